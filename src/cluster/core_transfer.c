#include "cluster/core_transfer.h"

#include <stdlib.h>
#include <string.h>

#define MOST_FAILURES 16

bool bit_get(const uint8_t *bits, uint32_t index)
{
    return (bits[index / 8] >> index % 8 & 1) != 0;
}

void bit_set(uint8_t *bits, uint32_t index)
{
    bits[index / 8] |= (uint8_t)(1 << index % 8);
}

static void bit_clear(uint8_t *bits, uint32_t index)
{
    bits[index / 8] &= (uint8_t) ~(1 << index % 8);
}

static size_t bits_bytes(uint32_t n)
{
    return ((size_t)n + 7) / 8;
}

enum status transfer_open(struct transfer *transfer, const char *object, uint64_t size_bytes,
                          const uint8_t *have, struct error *error)
{
    uint64_t n_chunks =
        size_bytes / CLUSTER_CHUNK_BYTES + (size_bytes % CLUSTER_CHUNK_BYTES != 0 ? 1 : 0);
    if (n_chunks == 0 || n_chunks > CLUSTER_MAX_CHUNKS)
        return error_set(error, STATUS_LIMIT, "%s has %llu chunks; 1 to %d are possible", object,
                         (unsigned long long)n_chunks, CLUSTER_MAX_CHUNKS);
    uint32_t n = (uint32_t)n_chunks;
    transfer->have = calloc(bits_bytes(n), 1);
    transfer->flying = calloc(bits_bytes(n), 1);
    transfer->n_holders = calloc(n, 1);
    if (transfer->have == NULL || transfer->flying == NULL || transfer->n_holders == NULL) {
        transfer_close(transfer);
        return error_memory(error, n);
    }
    memmove(transfer->object, object, strlen(object) + 1);
    transfer->size_bytes = size_bytes;
    transfer->n_chunks = n;
    for (uint32_t i = 0; have != NULL && i < n; i++)
        if (bit_get(have, i)) {
            bit_set(transfer->have, i);
            transfer->n_have++;
        }
    return STATUS_OK;
}

void transfer_close(struct transfer *transfer)
{
    free(transfer->have);
    free(transfer->flying);
    free(transfer->n_holders);
    for (size_t i = 0; i < TRANSFER_MAX_SOURCES; i++)
        free(transfer->sources[i].have);
    memset(transfer, 0, sizeof *transfer);
}

struct transfer_source *transfer_source(struct transfer *transfer, struct cluster_id node)
{
    for (size_t i = 0; i < TRANSFER_MAX_SOURCES; i++)
        if (!cluster_id_none(node) && cluster_id_equal(transfer->sources[i].node, node))
            return &transfer->sources[i];
    return NULL;
}

static struct transfer_source *source_add(struct transfer *transfer, struct cluster_id node)
{
    struct transfer_source *source = transfer_source(transfer, node);
    for (size_t i = 0; source == NULL && i < TRANSFER_MAX_SOURCES; i++)
        if (cluster_id_none(transfer->sources[i].node)) {
            source = &transfer->sources[i];
            *source = (struct transfer_source){.node = node};
        }
    return source;
}

static void source_forget_parts(struct transfer *transfer, struct transfer_source *source)
{
    for (uint32_t i = 0; source->have != NULL && i < transfer->n_chunks; i++)
        if (bit_get(source->have, i))
            transfer->n_holders[i]--;
    free(source->have);
    source->have = NULL;
}

bool transfer_whole(struct transfer *transfer, struct cluster_id node)
{
    struct transfer_source *source = source_add(transfer, node);
    if (source == NULL)
        return false;
    source_forget_parts(transfer, source);
    source->whole = true;
    return true;
}

bool transfer_part(struct transfer *transfer, struct cluster_id node, uint32_t chunk)
{
    struct transfer_source *source = source_add(transfer, node);
    if (source == NULL || chunk >= transfer->n_chunks)
        return false;
    if (source->whole)
        return true;
    if (source->have == NULL)
        source->have = calloc(bits_bytes(transfer->n_chunks), 1);
    if (source->have == NULL)
        return false;
    if (!bit_get(source->have, chunk)) {
        bit_set(source->have, chunk);
        transfer->n_holders[chunk]++;
    }
    return true;
}

bool transfer_parts(struct transfer *transfer, struct cluster_id node, const uint8_t *have)
{
    bool good = true;
    for (uint32_t i = 0; good && i < transfer->n_chunks; i++)
        if (bit_get(have, i))
            good = transfer_part(transfer, node, i);
    return good;
}

static void flight_end(struct transfer *transfer, uint32_t place)
{
    struct transfer_flight *flight = &transfer->flights[place];
    struct transfer_source *source = transfer_source(transfer, flight->source);
    if (source != NULL)
        source->in_flight--;
    bit_clear(transfer->flying, flight->chunk);
    *flight = transfer->flights[--transfer->n_flights];
}

void transfer_remove(struct transfer *transfer, struct cluster_id node)
{
    struct transfer_source *source = transfer_source(transfer, node);
    if (source == NULL)
        return;
    for (uint32_t i = transfer->n_flights; i-- > 0;)
        if (cluster_id_equal(transfer->flights[i].source, node))
            flight_end(transfer, i);
    source_forget_parts(transfer, source);
    *source = (struct transfer_source){.whole = false};
}

static bool source_has(const struct transfer_source *source, uint32_t chunk)
{
    return source->whole || (source->have != NULL && bit_get(source->have, chunk));
}

static bool source_ready(const struct transfer_source *source, uint64_t now_ms)
{
    return !cluster_id_none(source->node) && source->in_flight < CLUSTER_CHUNKS_IN_FLIGHT &&
           source->wrong < TRANSFER_MAX_WRONG && now_ms >= source->rest_ms;
}

/* The source of a chunk with the least to do; NULL: none is ready. */
static struct transfer_source *source_choose(struct transfer *transfer, uint64_t now_ms,
                                             uint64_t random, uint32_t chunk)
{
    struct transfer_source *best = NULL;
    for (size_t i = 0; i < TRANSFER_MAX_SOURCES; i++) {
        struct transfer_source *source =
            &transfer->sources[(i + random % TRANSFER_MAX_SOURCES) % TRANSFER_MAX_SOURCES];
        if (!source_ready(source, now_ms) || !source_has(source, chunk))
            continue;
        if (best == NULL || source->in_flight < best->in_flight ||
            (source->in_flight == best->in_flight && best->whole && !source->whole))
            best = source;
    }
    return best;
}

bool transfer_pick(struct transfer *transfer, uint64_t now_ms, uint64_t random, uint32_t *chunk,
                   struct cluster_id *source)
{
    uint32_t n = transfer->n_chunks;
    bool any = false, whole = false;
    for (size_t i = 0; i < TRANSFER_MAX_SOURCES; i++)
        if (source_ready(&transfer->sources[i], now_ms)) {
            any = true;
            whole = whole || transfer->sources[i].whole;
        }
    if (!any || transfer->n_flights == TRANSFER_IN_FLIGHT ||
        transfer->n_have + transfer->n_flights >= n)
        return false;
    struct transfer_source *from = NULL;
    uint32_t rarest = UINT32_MAX;
    for (uint32_t i = 0; i < n; i++) {
        uint32_t at = (uint32_t)((i + (random >> 8) % n) % n);
        uint32_t holders = transfer->n_holders[at];
        if (holders >= rarest || (!whole && holders == 0) || bit_get(transfer->have, at) ||
            bit_get(transfer->flying, at))
            continue;
        struct transfer_source *found = source_choose(transfer, now_ms, random, at);
        if (found == NULL)
            continue;
        from = found;
        rarest = holders;
        *chunk = at;
        if (holders == 0)
            break;
    }
    if (from == NULL)
        return false;
    *source = from->node;
    from->in_flight++;
    bit_set(transfer->flying, *chunk);
    transfer->flights[transfer->n_flights++] = (struct transfer_flight){*chunk, from->node, now_ms};
    return true;
}

static void source_failed(struct transfer_source *source, uint64_t now_ms,
                          enum cluster_fetch_result result)
{
    source->failures = MIN(source->failures + 1, MOST_FAILURES);
    source->rest_ms = now_ms + (uint64_t)TRANSFER_REST_MS * source->failures;
    if (result == CLUSTER_FETCH_WRONG) {
        source->wrong++;
        source->rest_ms = now_ms + TRANSFER_WRONG_MS;
    }
}

bool transfer_result(struct transfer *transfer, uint64_t now_ms, uint32_t chunk,
                     struct cluster_id source, enum cluster_fetch_result result)
{
    uint32_t place = 0;
    while (place < transfer->n_flights &&
           (transfer->flights[place].chunk != chunk ||
            !cluster_id_equal(transfer->flights[place].source, source)))
        place++;
    if (place == transfer->n_flights)
        return false;
    flight_end(transfer, place);
    struct transfer_source *from = transfer_source(transfer, source);
    if (result != CLUSTER_FETCHED) {
        source_failed(from, now_ms, result);
        return false;
    }
    from->failures = 0;
    bit_set(transfer->have, chunk);
    transfer->n_have++;
    return true;
}

void transfer_expire(struct transfer *transfer, uint64_t now_ms, uint64_t timeout_ms)
{
    for (uint32_t i = transfer->n_flights; i-- > 0;) {
        struct transfer_flight *flight = &transfer->flights[i];
        if (now_ms - flight->since_ms < timeout_ms)
            continue;
        source_failed(transfer_source(transfer, flight->source), now_ms, CLUSTER_FETCH_FAILED);
        flight_end(transfer, i);
    }
}

bool transfer_done(const struct transfer *transfer)
{
    return transfer->n_chunks > 0 && transfer->n_have == transfer->n_chunks;
}

uint32_t transfer_missing(const struct transfer *transfer)
{
    for (size_t i = 0; i < TRANSFER_MAX_SOURCES; i++)
        if (transfer->sources[i].whole && transfer->sources[i].wrong < TRANSFER_MAX_WRONG)
            return transfer->n_chunks;
    uint32_t chunk = 0;
    while (chunk < transfer->n_chunks &&
           (bit_get(transfer->have, chunk) || transfer->n_holders[chunk] > 0))
        chunk++;
    return chunk;
}
