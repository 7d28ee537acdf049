/* The prefix cache: which pages of the KV cache were computed from which tokens.
 *
 * A tree. A node is one page: its tokens, after those of its parents. Inner nodes have full pages;
 * a leaf may have fewer tokens, the end of a text. The cache holds every page it knows once, so a
 * page that only the cache holds can be given up; the least recently used goes first. A sequence
 * that runs along a path holds the pages of the path as well, so nothing of it is given up.
 * Belongs to the thread of its model.
 */
#ifndef CONSORT_ENGINE_PREFIX_H
#define CONSORT_ENGINE_PREFIX_H

#include "model/model.h"

#define PREFIX_MIN_TOKENS 16 /* fewer tokens of a page are computed again rather than copied */

struct kv_disk;
struct prefix_cache;
struct prefix_node;

/* How far a sequence runs along the tree: its first n_pages pages are the path to end. {0}: at the
 * root. */
struct prefix_path {
    struct prefix_node *end;
    uint32_t n_pages;
    bool lost; /* no memory for a node: the sequence is no longer followed */
    bool more; /* the next page is on disk, and will be read when that is granted again */
};

enum status prefix_open(struct prefix_cache **out, struct model *model, struct error *error);
/* Releases all pages. The functions below take NULL for a cache that never holds anything. */
void prefix_close(struct prefix_cache *cache);

/* Full pages go to disk as they are added, and come from there where the tree does not have them.
 * identity says what their numbers depend on. Before any use. */
void prefix_use_disk(struct prefix_cache *cache, struct kv_disk *disk, struct view identity);
/* From now on prefix_extend may move so many pages, from disk or to it. */
void prefix_grant(struct prefix_cache *cache, uint32_t n_pages);

/* Lets the sequence, whose text tokens[n_tokens] is to be, adopt what is cached of it beyond its
 * length, where that is the end of its path. Returns the number of tokens adopted. Sets path->more.
 */
uint32_t prefix_extend(struct prefix_cache *cache, struct prefix_path *path,
                       struct sequence *sequence, const int32_t *tokens, size_t n_tokens);

/* Adds the sequence's full pages to the tree (those that are there already replace its own), and
 * with_end also its last one. tokens is its text. Where memory is out they are left out. */
void prefix_keep(struct prefix_cache *cache, struct prefix_path *path, struct sequence *sequence,
                 const int32_t *tokens, bool with_end);

/* Gives up pages until n_pages are free; false when that cannot be. */
bool prefix_make_room(struct prefix_cache *cache, uint32_t n_pages);
/* Pages that could be given up. */
uint32_t prefix_spare_pages(const struct prefix_cache *cache);
/* Forgets the leaf with this page, if there is one. */
void prefix_forget(struct prefix_cache *cache, uint32_t page);

#endif
