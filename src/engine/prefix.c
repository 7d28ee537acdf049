#include "engine/prefix.h"
#include "engine/kv_disk.h"

#include <stdlib.h>
#include <string.h>

#define PAGE MODEL_KV_PAGE_TOKENS
#define TELL_NS ((uint64_t)300 * 1000000000) /* of a page that is used, the disk hears so often */

struct prefix_node {
    struct prefix_node *parent;          /* NULL: a child of the root */
    struct prefix_node *children;        /* the first of them */
    struct prefix_node *previous, *next; /* among its parent's children */
    struct prefix_node *newer, *older;   /* by last use */
    struct prefix_node *bucket_next;     /* full ones: in the table */
    uint64_t hash;                       /* of all tokens up to its end */
    struct kv_key key;                   /* of full ones, where there is a disk */
    uint64_t told_ns; /* when the disk last got it or heard of its use; 0: never */
    uint32_t depth;   /* nodes above it */
    uint32_t page, n_tokens;
    int32_t tokens[];
};

struct prefix_cache {
    struct model *model;
    struct prefix_node *first;           /* child of the root */
    struct prefix_node *newest, *oldest; /* a parent is always newer than its children */
    struct prefix_node **table;          /* full nodes by hash */
    size_t table_mask;
    struct kv_disk *disk; /* NULL: none */
    struct kv_key root;   /* the key before the first page */
    uint32_t n_granted;
};

/* ---- Nodes ----------------------------------------------------------------------------------- */

static uint64_t hash_tokens(uint64_t hash, const int32_t *tokens)
{
    for (size_t i = 0; i < PAGE; i++) {
        hash = (hash ^ (uint32_t)tokens[i]) * 0x9E3779B97F4A7C15u;
        hash ^= hash >> 29;
    }
    return hash;
}

static struct prefix_node **children_of(struct prefix_cache *cache, struct prefix_node *parent)
{
    return parent != NULL ? &parent->children : &cache->first;
}

static struct prefix_node *find_full(const struct prefix_cache *cache,
                                     const struct prefix_node *parent, const int32_t *tokens)
{
    uint64_t hash = hash_tokens(parent != NULL ? parent->hash : 0, tokens);
    struct prefix_node *node = cache->table[hash & cache->table_mask];
    while (node != NULL && (node->hash != hash || node->parent != parent ||
                            memcmp(node->tokens, tokens, PAGE * sizeof *tokens) != 0))
        node = node->bucket_next;
    return node;
}

static void unlink_use(struct prefix_cache *cache, struct prefix_node *node)
{
    *(node->newer != NULL ? &node->newer->older : &cache->newest) = node->older;
    *(node->older != NULL ? &node->older->newer : &cache->oldest) = node->newer;
}

static void link_use(struct prefix_cache *cache, struct prefix_node *node)
{
    node->newer = NULL;
    node->older = cache->newest;
    *(node->older != NULL ? &node->older->newer : &cache->oldest) = node;
    cache->newest = node;
}

static void touch(struct prefix_cache *cache, struct prefix_node *node)
{
    for (; node != NULL; node = node->parent) {
        unlink_use(cache, node);
        link_use(cache, node);
    }
}

/* A leaf. */
static void remove_node(struct prefix_cache *cache, struct prefix_node *node)
{
    *(node->previous != NULL ? &node->previous->next : children_of(cache, node->parent)) =
        node->next;
    if (node->next != NULL)
        node->next->previous = node->previous;
    unlink_use(cache, node);
    if (node->n_tokens == PAGE) {
        struct prefix_node **place = &cache->table[node->hash & cache->table_mask];
        while (*place != node)
            place = &(*place)->bucket_next;
        *place = node->bucket_next;
    }
    model_page_release(cache->model, node->page);
    free(node);
}

/* Tokens of the node that text begins with. */
static uint32_t common(const struct prefix_node *node, const int32_t *text, size_t n_text)
{
    uint32_t n = 0;
    while (n < node->n_tokens && n < n_text && node->tokens[n] == text[n])
        n++;
    return n;
}

static bool key_behind(const struct prefix_cache *cache, const struct prefix_node *parent,
                       const int32_t *tokens, struct kv_key *out)
{
    return kv_disk_key(out, parent != NULL ? &parent->key : &cache->root, tokens);
}

/* A new child of parent. Ends of texts that it continues or repeats are worth nothing any more. */
static struct prefix_node *add_node(struct prefix_cache *cache, struct prefix_node *parent,
                                    uint32_t page, const int32_t *tokens, uint32_t n_tokens)
{
    struct prefix_node *node = malloc(sizeof *node + n_tokens * sizeof *tokens);
    if (node == NULL)
        return NULL;
    *node = (struct prefix_node){.parent = parent,
                                 .depth = parent != NULL ? parent->depth + 1 : 0,
                                 .page = page,
                                 .n_tokens = n_tokens};
    if (cache->disk != NULL && n_tokens == PAGE && !key_behind(cache, parent, tokens, &node->key)) {
        free(node);
        return NULL;
    }
    memcpy(node->tokens, tokens, n_tokens * sizeof *tokens);
    struct prefix_node **children = children_of(cache, parent);
    for (struct prefix_node *child = *children, *next; child != NULL; child = next) {
        next = child->next;
        if (child->n_tokens < PAGE && common(child, tokens, n_tokens) == child->n_tokens)
            remove_node(cache, child);
    }
    node->next = *children;
    if (node->next != NULL)
        node->next->previous = node;
    *children = node;
    if (n_tokens == PAGE) {
        node->hash = hash_tokens(parent != NULL ? parent->hash : 0, tokens);
        struct prefix_node **bucket = &cache->table[node->hash & cache->table_mask];
        node->bucket_next = *bucket;
        *bucket = node;
    }
    link_use(cache, node);
    model_page_hold(cache->model, page);
    return node;
}

/* ---- Opening --------------------------------------------------------------------------------- */

enum status prefix_open(struct prefix_cache **out, struct model *model, struct error *error)
{
    size_t n_buckets = 64;
    while (n_buckets < model_page_count(model))
        n_buckets *= 2;
    struct prefix_cache *cache = calloc(1, sizeof *cache);
    *out = NULL;
    if (cache != NULL)
        cache->table = calloc(n_buckets, sizeof(struct prefix_node *));
    if (cache == NULL || cache->table == NULL) {
        free(cache);
        return error_memory(error, n_buckets * sizeof(struct prefix_node *));
    }
    cache->model = model;
    cache->table_mask = n_buckets - 1;
    *out = cache;
    return STATUS_OK;
}

void prefix_close(struct prefix_cache *cache)
{
    if (cache == NULL)
        return;
    while (cache->oldest != NULL)
        remove_node(cache, cache->oldest);
    free(cache->table);
    free(cache);
}

/* ---- On disk --------------------------------------------------------------------------------- */

void prefix_use_disk(struct prefix_cache *cache, struct kv_disk *disk, struct view identity)
{
    size_t size = model_page_bytes(cache->model);
    if (size > 0 && kv_disk_admits(disk, size) && kv_disk_root(&cache->root, identity))
        cache->disk = disk;
}

void prefix_grant(struct prefix_cache *cache, uint32_t n_pages)
{
    if (cache != NULL)
        cache->n_granted = n_pages;
}

/* Says that a full page is used, or where it is not on disk hands it over to be written: limited
 * only as far as that was granted, else another time. */
static void tell(struct prefix_cache *cache, struct prefix_node *node, bool limited)
{
    struct error error;
    uint64_t now_ns = clock_now_ns();
    if (cache->disk == NULL || (node->told_ns != 0 && now_ns - node->told_ns < TELL_NS))
        return;
    if (!kv_disk_touch(cache->disk, &node->key, node->depth)) {
        size_t size = model_page_bytes(cache->model);
        if (limited && cache->n_granted == 0)
            return;
        cache->n_granted -= limited;
        void *data = kv_disk_wants(cache->disk, size) ? malloc(size) : NULL;
        if (data == NULL || model_page_read(cache->model, node->page, data, &error) != STATUS_OK) {
            free(data);
            return;
        }
        kv_disk_write(cache->disk, &node->key, node->depth, data, size);
    }
    node->told_ns = now_ns;
}

/* Brings a page from disk into a node behind parent. */
static struct prefix_node *read_node(struct prefix_cache *cache, struct prefix_node *parent,
                                     const int32_t *tokens, const struct kv_key *key)
{
    size_t size = model_page_bytes(cache->model);
    struct prefix_node *node = NULL;
    void *data = malloc(size);
    uint32_t depth = parent != NULL ? parent->depth + 1 : 0;
    if (data != NULL && kv_disk_read(cache->disk, key, depth, data, size)) {
        uint32_t page = model_page_take(cache->model);
        model_page_write(cache->model, page, data);
        node = add_node(cache, parent, page, tokens, PAGE);
        model_page_release(cache->model, page); /* the node holds it */
        if (node != NULL)
            node->told_ns = clock_now_ns();
    }
    free(data);
    return node;
}

/* The full page at the end of the path, where it is on disk and a page is free for it. */
static struct prefix_node *fetch(struct prefix_cache *cache, struct prefix_path *path,
                                 const int32_t *tokens)
{
    struct kv_key key;
    if (cache->disk == NULL || !key_behind(cache, path->end, tokens, &key) ||
        !kv_disk_has(cache->disk, &key))
        return NULL;
    path->more = cache->n_granted == 0;
    if (path->more || (model_pages_free(cache->model) == 0 && !prefix_make_room(cache, 1)))
        return NULL;
    cache->n_granted--;
    return read_node(cache, path->end, tokens, &key);
}

/* ---- Use ------------------------------------------------------------------------------------- */

/* The child that has the most tokens in common with text. */
static struct prefix_node *find_partial(struct prefix_cache *cache, struct prefix_node *parent,
                                        const int32_t *text, size_t n_text, uint32_t *n_common)
{
    struct prefix_node *best = NULL;
    *n_common = 0;
    for (struct prefix_node *child = *children_of(cache, parent); child != NULL;
         child = child->next) {
        uint32_t n = common(child, text, n_text);
        if (n > *n_common) {
            best = child;
            *n_common = n;
        }
    }
    return best;
}

uint32_t prefix_extend(struct prefix_cache *cache, struct prefix_path *path,
                       struct sequence *sequence, const int32_t *tokens, size_t n_tokens)
{
    uint32_t begin = sequence_length(sequence), end = begin, n_common;
    path->more = false;
    if (cache == NULL || path->lost || begin != path->n_pages * PAGE)
        return 0;
    for (; n_tokens - end >= PAGE; end += PAGE) {
        struct prefix_node *node = find_full(cache, path->end, tokens + end);
        if (node == NULL)
            node = fetch(cache, path, tokens + end);
        if (node == NULL)
            break;
        sequence_adopt(sequence, node->page, PAGE);
        tell(cache, node, true);
        path->end = node;
        path->n_pages++;
    }
    struct prefix_node *node =
        find_partial(cache, path->end, tokens + end, n_tokens - end, &n_common);
    if (n_common >= PREFIX_MIN_TOKENS && !path->more) {
        sequence_adopt(sequence, node->page, n_common);
        end += n_common;
        touch(cache, node);
    } else if (end > begin) {
        touch(cache, path->end);
    }
    return end - begin;
}

/* Adds the full page at the end of the path. */
static void keep_page(struct prefix_cache *cache, struct prefix_path *path,
                      struct sequence *sequence, const int32_t *tokens)
{
    uint32_t page = sequence_page(sequence, path->n_pages);
    struct prefix_node *node = find_full(cache, path->end, tokens);
    if (node == NULL)
        node = add_node(cache, path->end, page, tokens, PAGE);
    else if (node->page != page)
        sequence_replace_page(sequence, path->n_pages, node->page);
    if (node != NULL)
        tell(cache, node, false);
    path->lost = node == NULL;
    path->end = node;
    path->n_pages++;
}

void prefix_keep(struct prefix_cache *cache, struct prefix_path *path, struct sequence *sequence,
                 const int32_t *tokens, bool with_end)
{
    uint32_t length = sequence_length(sequence), n_full = length / PAGE, n_common;
    if (cache == NULL || path->lost || (n_full == path->n_pages && !with_end))
        return;
    while (!path->lost && path->n_pages < n_full)
        keep_page(cache, path, sequence, tokens + (size_t)path->n_pages * PAGE);
    if (path->lost)
        return;
    struct prefix_node *last = path->end;
    const int32_t *rest = tokens + (size_t)n_full * PAGE;
    if (with_end && length % PAGE >= PREFIX_MIN_TOKENS) {
        last = find_partial(cache, path->end, rest, length % PAGE, &n_common);
        if (n_common < length % PAGE)
            last = add_node(cache, path->end, sequence_page(sequence, n_full), rest, length % PAGE);
    }
    touch(cache, last != NULL ? last : path->end);
}

/* ---- Giving up ------------------------------------------------------------------------------- */

bool prefix_make_room(struct prefix_cache *cache, uint32_t n_pages)
{
    if (cache == NULL)
        return false;
    struct prefix_node *node = cache->oldest;
    while (node != NULL && model_pages_free(cache->model) < n_pages) {
        struct prefix_node *newer = node->newer;
        /* Children are older, and where nobody else holds a page nobody holds its children's. */
        if (node->children == NULL && model_page_holders(cache->model, node->page) == 1)
            remove_node(cache, node);
        node = newer;
    }
    return model_pages_free(cache->model) >= n_pages;
}

uint32_t prefix_spare_pages(const struct prefix_cache *cache)
{
    uint32_t n = 0;
    for (const struct prefix_node *node = cache != NULL ? cache->oldest : NULL; node != NULL;
         node = node->newer)
        n += model_page_holders(cache->model, node->page) == 1;
    return n;
}

void prefix_forget(struct prefix_cache *cache, uint32_t page)
{
    struct prefix_node *node = cache != NULL ? cache->oldest : NULL;
    while (node != NULL && (node->page != page || node->children != NULL))
        node = node->newer;
    if (node != NULL)
        remove_node(cache, node);
}
