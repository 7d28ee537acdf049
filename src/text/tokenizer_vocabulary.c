#include "text/tokenizer_internal.h"

#include <stdlib.h>
#include <string.h>

/* ---- Text -> id ---- */

static uint64_t mix(uint64_t a, uint64_t b)
{
    a = (a ^ b) * 0x9E3779B97F4A7C15u;
    return a ^ a >> 29;
}

static uint64_t hash_bytes(const char *data, size_t size, uint64_t seed)
{
    uint64_t hash = mix(seed, size), word;
    for (; size >= 8; data += 8, size -= 8) {
        memcpy(&word, data, 8);
        hash = mix(hash, word);
    }
    if (size > 0) {
        word = 0;
        memcpy(&word, data, size);
        hash = mix(hash, word);
    }
    return mix(hash, seed);
}

bool token_index_open(struct token_index *index, struct arena *arena, const struct view *keys,
                      size_t count)
{
    size_t capacity = 16;
    while (capacity < count * 2)
        capacity *= 2;
    index->keys = keys;
    index->slots = arena_array(arena, capacity, sizeof *index->slots);
    index->mask = capacity - 1;
    index->seed = rng_entropy();
    return index->slots != NULL;
}

/* The slot that holds key, or the free one where it belongs. */
static uint32_t *token_index_slot(const struct token_index *index, struct view key)
{
    size_t at = hash_bytes(key.data, key.size, index->seed) & index->mask;
    while (index->slots[at] != 0 && !view_equal(index->keys[index->slots[at] - 1], key))
        at = (at + 1) & index->mask;
    return &index->slots[at];
}

void token_index_add(struct token_index *index, int32_t id)
{
    uint32_t *slot = token_index_slot(index, index->keys[id]);
    if (*slot == 0)
        *slot = (uint32_t)id + 1;
}

int32_t token_index_find(const struct token_index *index, struct view key)
{
    return (int32_t)*token_index_slot(index, key) - 1;
}

/* ---- Trie ---- */

static int compare_keys(const void *a, const void *b)
{
    const struct trie_key *left = a, *right = b;
    size_t common = MIN(left->text.size, right->text.size);
    int order = memcmp(left->text.data, right->text.data, common);
    if (order != 0)
        return order;
    if (left->text.size != right->text.size)
        return left->text.size < right->text.size ? -1 : 1;
    return left->value < right->value ? -1 : left->value > right->value;
}

/* Nodes of the trie over sorted keys: each key adds what it does not share with the one before. */
static size_t count_nodes(const struct trie_key *keys, size_t count)
{
    size_t nodes = 1;
    for (size_t i = 0; i < count; i++) {
        size_t shared = 0;
        if (i > 0) {
            size_t most = MIN(keys[i].text.size, keys[i - 1].text.size);
            while (shared < most && keys[i].text.data[shared] == keys[i - 1].text.data[shared])
                shared++;
        }
        nodes += keys[i].text.size - shared;
    }
    return nodes;
}

/* The keys below one node: those in [begin, end), which agree in their first depth bytes. */
struct trie_range {
    uint32_t begin, end, depth;
};

/* Appends the children of node to the trie and their ranges to ranges. */
static void trie_expand(struct trie *trie, uint32_t node, const struct trie_key *keys,
                        struct trie_range *ranges)
{
    struct trie_range range = ranges[node];
    uint32_t at = range.begin, depth = range.depth;
    trie->value[node] = TOKEN_NONE;
    trie->first[node] = trie->n_nodes;
    if (at < range.end && keys[at].text.size == depth)
        trie->value[node] = keys[at].value;
    while (at < range.end && keys[at].text.size == depth)
        at++;
    while (at < range.end) {
        uint8_t byte = (uint8_t)keys[at].text.data[depth];
        uint32_t end = at + 1;
        while (end < range.end && (uint8_t)keys[end].text.data[depth] == byte)
            end++;
        trie->label[trie->n_nodes] = byte;
        ranges[trie->n_nodes] = (struct trie_range){at, end, depth + 1};
        trie->n_nodes++;
        at = end;
    }
}

bool trie_open(struct trie *trie, struct arena *arena, struct trie_key *keys, size_t count)
{
    if (count > 0)
        qsort(keys, count, sizeof *keys, compare_keys);
    size_t nodes = count_nodes(keys, count);
    if (nodes >= TRIE_NONE)
        return false;
    trie->first = arena_array(arena, nodes + 1, sizeof *trie->first);
    trie->label = arena_array(arena, nodes, sizeof *trie->label);
    trie->value = arena_array(arena, nodes, sizeof *trie->value);
    struct trie_range *ranges = calloc(nodes, sizeof *ranges);
    if (trie->first == NULL || trie->label == NULL || trie->value == NULL || ranges == NULL) {
        free(ranges);
        return false;
    }
    ranges[0] = (struct trie_range){0, (uint32_t)count, 0};
    trie->n_nodes = 1;
    for (uint32_t node = 0; node < trie->n_nodes; node++)
        trie_expand(trie, node, keys, ranges);
    trie->first[trie->n_nodes] = trie->n_nodes;
    for (size_t i = 0; i < count; i++)
        trie->starts[(uint8_t)keys[i].text.data[0]] = true;
    free(ranges);
    return true;
}

uint32_t trie_step(const struct trie *trie, uint32_t node, uint8_t byte)
{
    uint32_t low = trie->first[node], high = trie->first[node + 1];
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        if (trie->label[middle] == byte)
            return middle;
        if (trie->label[middle] < byte)
            low = middle + 1;
        else
            high = middle;
    }
    return TRIE_NONE;
}
