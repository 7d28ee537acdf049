#include "sample/grammar_internal.h"

#include <stdlib.h>
#include <string.h>

/* A token with its bytes, to be put in order. */
struct spelling {
    struct view bytes;
    int32_t token;
};

void vocabulary_piece(const struct grammar_vocabulary *vocabulary, int32_t token,
                      struct buffer *out)
{
    const struct tokenizer *tokenizer = vocabulary->tokenizer;
    bool control = tokenizer_is_control(tokenizer, token);
    if (control)
        buffer_append(out, (const char[]){GRAMMAR_CONTROL_BYTE}, 1);
    tokenizer_piece(tokenizer, token, control, out);
}

static int compare_spellings(const void *a, const void *b)
{
    const struct spelling *left = a, *right = b;
    size_t n = MIN(left->bytes.size, right->bytes.size);
    int order = memcmp(left->bytes.data, right->bytes.data, n);
    if (order != 0)
        return order;
    if (left->bytes.size != right->bytes.size)
        return left->bytes.size < right->bytes.size ? -1 : 1;
    return (left->token > right->token) - (left->token < right->token);
}

/* The spellings of all tokens that texts have, in order; their bytes lie in text. */
static struct spelling *list_spellings(struct grammar_vocabulary *vocabulary, struct buffer *text,
                                       size_t *n)
{
    size_t n_tokens = MIN(tokenizer_count(vocabulary->tokenizer), vocabulary->n_vocab);
    struct spelling *list = calloc(MAX(n_tokens, (size_t)1), sizeof *list);
    *n = 0;
    for (size_t id = 0; list != NULL && id < n_tokens; id++) {
        size_t begin = text->size;
        if (tokenizer_ends_generation(vocabulary->tokenizer, (int32_t)id)) {
            vocabulary->ends[id / 64] |= (uint64_t)1 << id % 64;
            continue;
        }
        vocabulary_piece(vocabulary, (int32_t)id, text);
        size_t size = text->size - begin;
        /* Bytes of no character must not pass for the sign of a control token. */
        bool signs = size > 0 && memchr(text->data + begin, GRAMMAR_CONTROL_BYTE, size) != NULL &&
                     !tokenizer_is_control(vocabulary->tokenizer, (int32_t)id);
        if (size > 0 && size <= VOCABULARY_MAX_TOKEN_BYTES && !signs)
            list[(*n)++] = (struct spelling){{NULL, size}, (int32_t)id};
        else
            text->size = begin;
    }
    if (list == NULL || text->failed) {
        free(list);
        return NULL;
    }
    for (size_t i = 0, at = 0; i < *n; at += list[i++].bytes.size)
        list[i].bytes.data = text->data + at;
    qsort(list, *n, sizeof *list, compare_spellings);
    return list;
}

/* Bytes that both begin with. */
static size_t common(struct view a, struct view b)
{
    size_t n = 0;
    while (n < a.size && n < b.size && a.data[n] == b.data[n])
        n++;
    return n;
}

bool token_tree_add(struct token_tree *tree, struct token_node node)
{
    if (tree->n_nodes == tree->capacity) {
        uint32_t capacity = MAX(2 * tree->capacity, 64u);
        struct token_node *nodes = realloc(tree->nodes, capacity * sizeof *nodes);
        if (nodes == NULL)
            return false;
        tree->nodes = nodes;
        tree->capacity = capacity;
    }
    tree->nodes[tree->n_nodes++] = node;
    return true;
}

static bool grow_tree(struct grammar_vocabulary *vocabulary, const struct spelling *list, size_t n)
{
    struct token_tree *tree = &vocabulary->tree;
    uint32_t path[VOCABULARY_MAX_TOKEN_BYTES + 1];
    size_t depth = 0;
    for (size_t i = 0; i < n; i++) {
        struct view bytes = list[i].bytes;
        size_t kept = i > 0 ? common(list[i - 1].bytes, bytes) : 0;
        for (; depth > kept; depth--)
            tree->nodes[path[depth]].end = tree->n_nodes;
        if (i > 0 && kept == bytes.size) { /* equal to the one before */
            vocabulary->same[list[i - 1].token] = list[i].token;
            continue;
        }
        while (depth < bytes.size) {
            uint8_t byte = (uint8_t)bytes.data[depth++];
            path[depth] = tree->n_nodes;
            if (!token_tree_add(tree, (struct token_node){.token = TOKEN_NONE,
                                                          .depth = (uint16_t)depth,
                                                          .byte = byte}))
                return false;
        }
        tree->nodes[path[depth]].token = list[i].token;
    }
    for (; depth > 0; depth--)
        tree->nodes[path[depth]].end = tree->n_nodes;
    return true;
}

enum status vocabulary_open(struct grammar_vocabulary **out, const struct tokenizer *tokenizer,
                            size_t n_vocab, struct error *error)
{
    struct grammar_vocabulary *vocabulary = calloc(1, sizeof *vocabulary);
    *out = NULL;
    if (vocabulary == NULL)
        return error_memory(error, sizeof *vocabulary);
    vocabulary->tokenizer = tokenizer;
    vocabulary->n_vocab = n_vocab;
    vocabulary->n_words = (n_vocab + 63) / 64;
    vocabulary->skips_space = tokenizer_config(tokenizer)->add_space_prefix == TOKENIZER_YES;
    vocabulary->same = calloc(n_vocab, sizeof *vocabulary->same);
    vocabulary->ends = calloc(vocabulary->n_words, sizeof *vocabulary->ends);
    bool good = vocabulary->same != NULL && vocabulary->ends != NULL;
    struct buffer text = {0};
    size_t n = 0;
    struct spelling *list = good ? list_spellings(vocabulary, &text, &n) : NULL;
    if (list != NULL)
        memset(vocabulary->same, 0xFF, n_vocab * sizeof *vocabulary->same); /* TOKEN_NONE */
    good = list != NULL && grow_tree(vocabulary, list, n);
    free(list);
    buffer_free(&text);
    if (!good) {
        vocabulary_close(vocabulary);
        return error_memory(error, n_vocab * sizeof(struct token_node));
    }
    *out = vocabulary;
    return STATUS_OK;
}

void vocabulary_close(struct grammar_vocabulary *vocabulary)
{
    if (vocabulary == NULL)
        return;
    free(vocabulary->tree.nodes);
    free(vocabulary->same);
    free(vocabulary->ends);
    free(vocabulary);
}
