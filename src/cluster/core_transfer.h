/* Which chunk of one object is fetched next, and from whom: pure decisions over who has what.
 *
 * Chunks that the fewest nodes hold come first, so that nodes which fetch the same object at the
 * same time soon have different parts to give to each other. Of the sources of a chunk the one with
 * the fewest chunks under way is asked, one that only holds parts before one that holds all. A
 * source that fails rests; one that sends wrong bytes rests long, and after some is not asked
 * again.
 */
#ifndef CONSORT_CORE_TRANSFER_H
#define CONSORT_CORE_TRANSFER_H

#include "cluster/core.h"

#define TRANSFER_MAX_SOURCES CLUSTER_MAX_NODES
#define TRANSFER_IN_FLIGHT 32 /* of one object from all sources together */
#define TRANSFER_REST_MS 500  /* times the failures in a row, up to 16 */
#define TRANSFER_WRONG_MS 30000
#define TRANSFER_MAX_WRONG 3

struct transfer_source {
    struct cluster_id node; /* none: free */
    bool whole;
    uint8_t *have; /* NULL: nothing, or whole */
    uint32_t in_flight, failures, wrong;
    uint64_t rest_ms; /* until then */
};

struct transfer_flight {
    uint32_t chunk;
    struct cluster_id source;
    uint64_t since_ms;
};

struct transfer {
    char object[CLUSTER_OBJECT_BYTES];
    uint64_t size_bytes;
    uint32_t n_chunks, n_have, n_flights;
    uint8_t *have;      /* a bit a chunk */
    uint8_t *flying;    /* a bit a chunk */
    uint8_t *n_holders; /* a byte a chunk: sources that hold it and are not whole */
    struct transfer_flight flights[TRANSFER_IN_FLIGHT];
    struct transfer_source sources[TRANSFER_MAX_SOURCES];
};

/* *transfer: zeros, or with whole sources. have as in cluster_core_manifest. */
enum status transfer_open(struct transfer *transfer, const char *object, uint64_t size_bytes,
                          const uint8_t *have, struct error *error);
void transfer_close(struct transfer *transfer);

/* Adds a source or makes it whole. False: there are too many. */
bool transfer_whole(struct transfer *transfer, struct cluster_id node);
/* have[(n_chunks + 7) / 8] of a source that holds parts. */
bool transfer_parts(struct transfer *transfer, struct cluster_id node, const uint8_t *have);
bool transfer_part(struct transfer *transfer, struct cluster_id node, uint32_t chunk);
/* A source is gone; what was under way from it is to be fetched again. */
void transfer_remove(struct transfer *transfer, struct cluster_id node);
struct transfer_source *transfer_source(struct transfer *transfer, struct cluster_id node);

/* The next chunk to ask for, which is then under way; false: none now. */
bool transfer_pick(struct transfer *transfer, uint64_t now_ms, uint64_t random, uint32_t *chunk,
                   struct cluster_id *source);
/* What became of it. True: the chunk is new. Ignored where it is not under way from this source. */
bool transfer_result(struct transfer *transfer, uint64_t now_ms, uint32_t chunk,
                     struct cluster_id source, enum cluster_fetch_result result);
/* Gives up chunks that are under way for longer. */
void transfer_expire(struct transfer *transfer, uint64_t now_ms, uint64_t timeout_ms);
bool transfer_done(const struct transfer *transfer);
/* A chunk that no source holds; n_chunks: there is none. */
uint32_t transfer_missing(const struct transfer *transfer);

bool bit_get(const uint8_t *bits, uint32_t index);
void bit_set(uint8_t *bits, uint32_t index);

#endif
