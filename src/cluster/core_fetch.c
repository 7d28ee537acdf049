/* Objects that this node fetches from others, and who else does.
 *
 *   holds  {object, n, chunks}   which chunks of an object are here (hexadecimal, lowest bit first)
 *   have   {object, chunk}       one more
 *
 * Both go to nodes that fetch the same object (their work says so): so nodes give each other chunks
 * while they still fetch. Who holds an object whole, or the model that it can be made from, says so
 * in its facts. What is next is decided in core_transfer.c; the bytes go past the core.
 *
 * Where no node has an object, but several together have slices that overlap it, these are fetched
 * first, and then it is made of them: this node is its own source.
 */
#include "cluster/core_internal.h"

#define MANIFEST_TIMEOUT_MS 30000
#define PROGRESS_MS 1000
#define COPY_IN_FLIGHT 2 /* a second copy is not in a hurry */

struct fetching *fetch_find(struct cluster_core *core, const char *object)
{
    for (size_t i = 0; i < CLUSTER_MAX_TRANSFERS; i++)
        if (core->fetches[i].state != TRANSFER_NONE &&
            strcmp(core->fetches[i].transfer.object, object) == 0)
            return &core->fetches[i];
    return NULL;
}

static void fetch_free(struct cluster_core *core, struct fetching *fetching)
{
    transfer_close(&fetching->transfer);
    memset(fetching, 0, sizeof *fetching);
    core->work_dirty = true;
}

static void fetch_give_up(struct cluster_core *core, struct fetching *fetching)
{
    if (core->env.abandoned != NULL)
        core->env.abandoned(core->env.context, fetching->transfer.object);
    fetch_free(core, fetching);
}

void fetch_close(struct cluster_core *core)
{
    for (size_t i = 0; i < CLUSTER_MAX_TRANSFERS; i++)
        transfer_close(&core->fetches[i].transfer);
}

/* ---- Who has what ---------------------------------------------------------------------------- */

static bool fetches(const struct node *node, const char *object)
{
    for (uint32_t i = 0; i < node->n_transfers; i++)
        if (strcmp(node->transfers[i], object) == 0)
            return true;
    return false;
}

static char *chunks_text(const struct transfer *transfer)
{
    static const char digits[] = "0123456789abcdef";
    size_t n = ((size_t)transfer->n_chunks + 7) / 8;
    char *text = malloc(2 * n + 1);
    if (text == NULL)
        return NULL;
    for (size_t i = 0; i < n; i++) {
        text[2 * i] = digits[transfer->have[i] & 15];
        text[2 * i + 1] = digits[transfer->have[i] >> 4];
    }
    text[2 * n] = 0;
    return text;
}

static void tell_holds(struct cluster_core *core, struct fetching *fetching, struct node *node)
{
    char *text = chunks_text(&fetching->transfer);
    if (text == NULL)
        return;
    core_send(core, node,
              json_pack("{s:s, s:s, s:o, s:s}", "type", "holds", "object",
                        fetching->transfer.object, "n", json_u64(fetching->transfer.n_chunks),
                        "chunks", text));
    free(text);
    fetching->told[node - core->nodes] = true;
}

/* What node says of itself, for one object. */
static void note_source(struct cluster_core *core, struct fetching *fetching, struct node *node)
{
    const char *object = fetching->transfer.object;
    if (node->state != NODE_UP || !node->has_facts)
        return;
    bool *told = &fetching->told[node - core->nodes];
    if (copies_node_has(node, object))
        transfer_whole(&fetching->transfer, node->id);
    else if (!fetches(node, object)) {
        transfer_remove(&fetching->transfer, node->id);
        *told = false;
    } else if (!*told && fetching->state == TRANSFER_ACTIVE)
        tell_holds(core, fetching, node);
}

void fetch_node_told(struct cluster_core *core, struct node *node)
{
    for (size_t i = 0; i < CLUSTER_MAX_TRANSFERS; i++)
        if (core->fetches[i].state != TRANSFER_NONE)
            note_source(core, &core->fetches[i], node);
}

void fetch_node_lost(struct cluster_core *core, struct node *node)
{
    for (size_t i = 0; i < CLUSTER_MAX_TRANSFERS; i++) {
        struct fetching *fetching = &core->fetches[i];
        if (fetching->state == TRANSFER_NONE)
            continue;
        transfer_remove(&fetching->transfer, node->id);
        fetching->told[node - core->nodes] = false;
        if (fetching->asked && cluster_id_equal(fetching->asked_of, node->id))
            fetching->asked = false;
    }
}

void on_holds(struct cluster_core *core, struct node *from, struct message *message)
{
    char object[CLUSTER_OBJECT_BYTES];
    message_text(message, "object", object, sizeof object);
    uint64_t n = message_u64(message, "n", CLUSTER_MAX_CHUNKS);
    const json_t *value = message_any(message, "chunks");
    size_t n_bytes = ((size_t)n + 7) / 8;
    const char *text = json_string_value(value);
    if (json_string_length(value) != 2 * n_bytes || text == NULL ||
        strspn(text, "0123456789abcdef") != 2 * n_bytes)
        message_fail(message, "\"chunks\" is wrong");
    struct fetching *fetching = message->failed ? NULL : fetch_find(core, object);
    if (fetching == NULL || fetching->state != TRANSFER_ACTIVE)
        return;
    struct transfer *transfer = &fetching->transfer;
    if (transfer->n_chunks != n) {
        message_fail(message, "it has another number of chunks");
        return;
    }
    for (uint32_t i = 0; i < n; i++) {
        char digit = text[i / 8 * 2 + i % 8 / 4];
        int bits = digit <= '9' ? digit - '0' : digit - 'a' + 10;
        if ((bits >> i % 4 & 1) != 0)
            transfer_part(transfer, from->id, i);
    }
}

void on_have(struct cluster_core *core, struct node *from, struct message *message)
{
    char object[CLUSTER_OBJECT_BYTES];
    message_text(message, "object", object, sizeof object);
    uint64_t chunk = message_u64(message, "chunk", CLUSTER_MAX_CHUNKS - 1);
    struct fetching *fetching = message->failed ? NULL : fetch_find(core, object);
    if (fetching != NULL && fetching->state == TRANSFER_ACTIVE)
        transfer_part(&fetching->transfer, from->id, (uint32_t)chunk);
}

/* ---- Fetching -------------------------------------------------------------------------------- */

bool fetch_want(struct cluster_core *core, const char *object, bool copy, struct error *error)
{
    struct fetching *fetching = fetch_find(core, object), *spare = NULL;
    for (size_t i = 0; fetching == NULL && i < CLUSTER_MAX_TRANSFERS; i++) {
        struct fetching *other = &core->fetches[i];
        if (other->state == TRANSFER_NONE)
            fetching = other;
        else if (other->copy && !worker_wants(core, other->transfer.object))
            spare = other;
    }
    if (fetching == NULL && spare != NULL && !copy) { /* an instance goes before a copy */
        fetch_give_up(core, spare);
        fetching = spare;
    }
    if (fetching == NULL) {
        error_set(error, STATUS_BUSY, "the node fetches %d files already", CLUSTER_MAX_TRANSFERS);
        return false;
    }
    fetching->wanted_ms = core->now_ms;
    if (fetching->state != TRANSFER_NONE) {
        fetching->copy = fetching->copy && copy;
        return true;
    }
    fetching->state = TRANSFER_MANIFEST;
    fetching->copy = copy;
    fetching->moved_ms = core->now_ms;
    text_copy(fetching->transfer.object, sizeof fetching->transfer.object, object);
    NODE_EACH(core, node)
    note_source(core, fetching, node);
    core->work_dirty = true;
    return true;
}

static void fetch_failed(struct cluster_core *core, struct fetching *fetching, const char *reason)
{
    char object[CLUSTER_OBJECT_BYTES];
    memcpy(object, fetching->transfer.object, sizeof object);
    core_log(core, "%s: %s", object, reason);
    fetch_give_up(core, fetching);
    worker_object_failed(core, object, reason);
}

const char *fetch_model_name(const struct cluster_core *core, const char *object)
{
    for (size_t i = 0; i < CLUSTER_MAX_RESERVATIONS; i++)
        if (core->reservations[i].state != RESERVATION_NONE &&
            slice_of_model(object, core->reservations[i].model.sha))
            return core->reservations[i].model.name;
    for (size_t n = 0; n < CLUSTER_MAX_NODES; n++) {
        const struct node *node = &core->nodes[n];
        const json_t *instances = node_here(node) ? json_object_get(node->work, "instances") : NULL;
        for (uint32_t i = 0; node_here(node) && i < node->facts.n_models; i++)
            if (slice_of_model(object, node->facts.models[i].sha))
                return node->facts.models[i].name;
        for (size_t i = 0; i < json_array_size(instances); i++) {
            const json_t *model = json_object_get(json_array_get(instances, i), "model");
            const char *sha = json_string_value(json_array_get(model, 0));
            const char *name = json_string_value(json_array_get(model, 1));
            if (sha != NULL && name != NULL && slice_of_model(object, sha))
                return name;
        }
    }
    return "";
}

static void fetch_done(struct cluster_core *core, struct fetching *fetching)
{
    struct cluster_facts *facts = &core->nodes[0].facts;
    struct cluster_object object = {.size_bytes = fetching->transfer.size_bytes};
    bool listed = false;
    memcpy(object.id, fetching->transfer.object, sizeof object.id);
    object.used_s = core->env.wall_ms(core->env.context) / 1000;
    fetch_free(core, fetching);
    /* More than it was, until the next facts say how much is left. */
    facts->disk_free_bytes -= MIN(facts->disk_free_bytes, object.size_bytes);
    core->env.fetched(core->env.context, object.id, fetch_model_name(core, object.id));
    for (uint32_t i = 0; i < facts->n_objects; i++)
        listed = listed || strcmp(facts->objects[i].id, object.id) == 0;
    if (facts->n_objects < CLUSTER_MAX_OBJECTS && !listed)
        facts->objects[facts->n_objects++] = object;
    core->facts_dirty = true;
    worker_object_done(core, object.id);
}

static void fetch_manifest(struct cluster_core *core, struct fetching *fetching)
{
    if (fetching->asked && core->now_ms - fetching->asked_ms < MANIFEST_TIMEOUT_MS)
        return;
    const struct transfer_source *best = NULL;
    size_t first = core_random(core) % TRANSFER_MAX_SOURCES;
    for (size_t i = 0; i < TRANSFER_MAX_SOURCES; i++) {
        const struct transfer_source *source =
            &fetching->transfer.sources[(first + i) % TRANSFER_MAX_SOURCES];
        if (source->whole && core->now_ms >= source->rest_ms)
            best = source;
    }
    fetching->asked = best != NULL;
    if (best == NULL)
        return;
    fetching->asked_of = best->node;
    fetching->asked_ms = core->now_ms;
    core->env.fetch(core->env.context, fetching->transfer.object, CLUSTER_CHUNK_MANIFEST,
                    best->node);
}

static void fetch_more(struct cluster_core *core, struct fetching *fetching)
{
    struct transfer *transfer = &fetching->transfer;
    uint32_t chunk;
    struct cluster_id source;
    if (transfer_done(transfer)) {
        fetch_done(core, fetching);
        return;
    }
    bool copy = fetching->copy && !worker_wants(core, transfer->object);
    if (copy && copies_rest(core)) {
        fetching->moved_ms = core->now_ms;
        return;
    }
    while ((!copy || transfer->n_flights < COPY_IN_FLIGHT) &&
           transfer_pick(transfer, core->now_ms, core_random(core), &chunk, &source))
        core->env.fetch(core->env.context, transfer->object, chunk, source);
}

/* On the disk, for what is not here yet. */
static bool make_room(struct cluster_core *core, const struct fetching *fetching,
                      struct error *error)
{
    const struct transfer *transfer = &fetching->transfer;
    uint64_t missing = (uint64_t)(transfer->n_chunks - transfer->n_have) * CLUSTER_CHUNK_BYTES;
    return missing == 0 || disk_make_room(core, fetching, missing, error);
}

void cluster_core_manifest(struct cluster_core *core, const char *object, struct cluster_id source,
                           uint64_t size_bytes, const uint8_t *have)
{
    core_begin(core);
    struct fetching *fetching = fetch_find(core, object);
    if (fetching == NULL || fetching->state != TRANSFER_MANIFEST || !fetching->asked ||
        !cluster_id_equal(fetching->asked_of, source))
        return;
    struct error error;
    fetching->asked = false;
    fetching->moved_ms = core->now_ms;
    if (transfer_open(&fetching->transfer, object, size_bytes, have, &error) != STATUS_OK ||
        !make_room(core, fetching, &error)) {
        text_copy(fetching->transfer.object, sizeof fetching->transfer.object, object);
        fetch_failed(core, fetching, error.text);
    } else {
        fetching->state = TRANSFER_ACTIVE;
        core->work_dirty = true;
        NODE_EACH(core, node)
        note_source(core, fetching, node);
        fetch_more(core, fetching);
    }
    core_end(core);
}

static void tell_have(struct cluster_core *core, const struct fetching *fetching, uint32_t chunk)
{
    NODE_EACH(core, node)
    if (node->state == NODE_UP && fetching->told[node - core->nodes])
        core_send(core, node,
                  json_pack("{s:s, s:s, s:o}", "type", "have", "object", fetching->transfer.object,
                            "chunk", json_u64(chunk)));
}

void cluster_core_fetched(struct cluster_core *core, const char *object, uint32_t chunk,
                          struct cluster_id source, enum cluster_fetch_result result)
{
    core_begin(core);
    struct fetching *fetching = fetch_find(core, object);
    const struct node *node = core_node(core, source);
    if (fetching != NULL && result == CLUSTER_FETCH_WRONG)
        core_log(core, "%s sent wrong bytes of %s", node != NULL ? node->name : "a node", object);
    if (fetching != NULL && chunk == CLUSTER_CHUNK_MANIFEST) {
        struct transfer_source *from = transfer_source(&fetching->transfer, source);
        if (from != NULL && fetching->asked && cluster_id_equal(fetching->asked_of, source)) {
            from->rest_ms = core->now_ms + TRANSFER_REST_MS;
            fetching->asked = false;
        }
    } else if (fetching != NULL && fetching->state == TRANSFER_ACTIVE) {
        if (transfer_result(&fetching->transfer, core->now_ms, chunk, source, result)) {
            fetching->moved_ms = core->now_ms;
            tell_have(core, fetching, chunk);
        }
        fetch_more(core, fetching);
    }
    core_end(core);
}

/* ---- Made of slices -------------------------------------------------------------------------- */

uint32_t fetch_progress(const struct cluster_core *core, const char *object)
{
    uint32_t n = 0;
    for (size_t i = 0; i < CLUSTER_MAX_TRANSFERS; i++)
        if (core->fetches[i].state != TRANSFER_NONE &&
            slice_of_model(core->fetches[i].transfer.object, object))
            n += core->fetches[i].transfer.n_have;
    return n;
}

static bool has_source(const struct fetching *fetching)
{
    for (size_t i = 0; i < TRANSFER_MAX_SOURCES; i++)
        if (fetching->transfer.sources[i].whole)
            return true;
    return false;
}

/* Where nobody has it: fetches what is missing here of the slices that make it up. */
static void fetch_parts(struct cluster_core *core, struct fetching *fetching)
{
    const char *held[SLICES_MAX_HELD], *object = fetching->transfer.object;
    const struct node *holders[SLICES_MAX_HELD];
    bool used[SLICES_MAX_HELD];
    struct error error;
    size_t n = copies_held(core, object, NULL, held, holders);
    if (!slices_cover(held, n, object, used))
        return;
    for (size_t i = 0; i < n; i++) {
        if (!used[i] || copies_node_has(&core->nodes[0], held[i]))
            continue;
        char part[CLUSTER_OBJECT_BYTES];
        text_copy(part, sizeof part, held[i]);
        if (!fetch_want(core, part, false, &error))
            continue;
        fetching->moved_ms = MAX(fetching->moved_ms, fetch_find(core, part)->moved_ms);
    }
}

/* Sources that do not tell of themselves. */
static void look_for_sources(struct cluster_core *core, struct fetching *fetching)
{
    if (core->now_ms < fetching->parts_ms || fetching->copy)
        return;
    fetching->parts_ms = core->now_ms + PARTS_MS;
    if (has_source(fetching))
        return;
    if (copies_node_has(&core->nodes[0], fetching->transfer.object))
        transfer_whole(&fetching->transfer, core->nodes[0].id);
    else
        fetch_parts(core, fetching);
}

void fetch_forget(struct cluster_core *core, const char *sha)
{
    for (size_t i = 0; i < CLUSTER_MAX_TRANSFERS; i++) {
        struct fetching *fetching = &core->fetches[i];
        if (fetching->state != TRANSFER_NONE && slice_of_model(fetching->transfer.object, sha) &&
            !worker_wants(core, fetching->transfer.object))
            fetch_give_up(core, fetching);
    }
}

/* ---- The tick -------------------------------------------------------------------------------- */

static void fetching_tick(struct cluster_core *core, struct fetching *fetching)
{
    struct transfer *transfer = &fetching->transfer;
    if (worker_wants(core, transfer->object))
        fetching->wanted_ms = core->now_ms;
    if (fetching->copy && copies_wanted(core, transfer->object))
        fetching->wanted_ms = core->now_ms;
    if (core->now_ms - fetching->wanted_ms > TRANSFER_LINGER_MS) {
        fetch_give_up(core, fetching);
        return;
    }
    look_for_sources(core, fetching);
    if (transfer->n_have != fetching->told_chunks &&
        core->now_ms - fetching->told_ms >= PROGRESS_MS) {
        fetching->told_chunks = transfer->n_have;
        fetching->told_ms = core->now_ms;
        core->work_dirty = true;
    }
    if (fetching->state == TRANSFER_ACTIVE)
        transfer_expire(transfer, core->now_ms, CHUNK_TIMEOUT_MS);
    if (transfer->n_flights == 0 && !fetching->asked &&
        core->now_ms - fetching->moved_ms > TRANSFER_STUCK_MS) {
        fetch_failed(core, fetching, "no node here has what is missing of it");
        return;
    }
    if (fetching->state == TRANSFER_MANIFEST)
        fetch_manifest(core, fetching);
    else
        fetch_more(core, fetching);
}

void fetch_tick(struct cluster_core *core)
{
    for (size_t i = 0; i < CLUSTER_MAX_TRANSFERS; i++)
        if (core->fetches[i].state != TRANSFER_NONE)
            fetching_tick(core, &core->fetches[i]);
}
