/* Control messages. The input is lines; what a line's first byte says is done with the rest:
 *
 *   1, 2   a message from the first or the second node
 *   h      the hello of a new link, of a node of its own
 *   s      the state that another core was saved with
 *   k      a request begins with the API key of that hash, r: one of it ends
 *   q      a question to the second node
 *   t, T   a moment passes, or a long time, and local work comes to its end; x: it fails
 *
 * In a message @ becomes the number of the instance that was last heard of, # its epoch, and % the
 * request last heard of, so that an input can answer what the core says.
 */
#include "cluster/core.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_LINES 64
#define NODES 2

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

struct world {
    struct cluster_core *core;
    uint64_t now_ms, random, instance, epoch, request, work;
    uint64_t opened[64], closed[64];
    uint32_t opened_epoch[64], closed_epoch[64];
    size_t n_opened, n_closed;
    char object[CLUSTER_OBJECT_BYTES];
    uint32_t chunk, n_tokens;
    struct cluster_id source;
    bool fetching, measuring;
    struct cluster_id measured;
    struct cluster_way way;
};

static const struct cluster_id self_id = {0, 3};
static const char sha[] = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";

static uint64_t world_now(void *context)
{
    return ((struct world *)context)->now_ms;
}

static uint64_t world_wall(void *context)
{
    return 1750000000000 + ((struct world *)context)->now_ms;
}

static uint64_t world_random(void *context)
{
    return ((struct world *)context)->random++ * 2 + 84;
}

static void world_connect(void *context, const char *address, const char *key_id)
{
    (void)context, (void)address, (void)key_id;
}

static void world_send(void *context, uint32_t link, json_t *message)
{
    struct world *world = context;
    (void)link;
    const json_t *instance = json_object_get(message, "instance");
    const json_t *request = json_object_get(message, "request");
    if (instance != NULL) {
        world->instance = (uint64_t)json_integer_value(instance);
        world->epoch = (uint64_t)json_integer_value(json_object_get(message, "epoch"));
    }
    if (request != NULL)
        world->request = (uint64_t)json_integer_value(request);
}

static void world_drop(void *context, uint32_t link, const char *reason)
{
    (void)context, (void)link, (void)reason;
}

static void world_save(void *context, json_t *saved)
{
    (void)context, (void)saved;
}

static void world_keys(void *context, const struct cluster_key *keys, size_t n_keys)
{
    (void)context, (void)keys, (void)n_keys;
}

/* Over this node and, where it may, the first other one. */
static enum status world_plan(void *context, const struct cluster_plan_input *input,
                              struct cluster_plan *out, struct error *error)
{
    (void)context;
    uint32_t n = MIN(input->n_nodes, 2u);
    *out = (struct cluster_plan){.n_members = n};
    for (uint32_t i = 0; i < n; i++) {
        if (input->nodes[i].free_bytes < 100)
            return error_set(error, STATUS_MEMORY, "no room");
        out->members[i] = (struct cluster_member){.node = input->nodes[i].id, .bytes = 100};
        memcpy(out->members[i].object, input->model->sha, sizeof sha);
        snprintf(out->members[i].slice, CLUSTER_OBJECT_BYTES, "%s/0-8.%u.%u.1", input->model->sha,
                 i, n);
        out->members[i].slice_bytes = 20u << 20;
    }
    return STATUS_OK;
}

static void world_measure(void *context, struct cluster_id node, const struct cluster_way *way)
{
    struct world *world = context;
    world->measuring = true;
    world->measured = node;
    world->way = *way;
}

static bool world_has(void *context, const char *object)
{
    (void)context;
    return strcmp(object, sha) == 0;
}

static void world_fetch(void *context, const char *object, uint32_t chunk, struct cluster_id source)
{
    struct world *world = context;
    memcpy(world->object, object, strlen(object) + 1);
    world->chunk = chunk;
    world->source = source;
    world->fetching = true;
}

static void world_fetched(void *context, const char *object, const char *model)
{
    (void)context, (void)object, (void)model;
}

static void world_remove(void *context, const char *object)
{
    (void)context, (void)object;
}

static void world_open(void *context, const struct cluster_open *open)
{
    struct world *world = context;
    if (world->n_opened < ARRAY_COUNT(world->opened)) {
        world->opened_epoch[world->n_opened] = open->epoch;
        world->opened[world->n_opened++] = open->instance;
    }
}

static void world_close(void *context, uint64_t instance, uint32_t epoch)
{
    struct world *world = context;
    if (world->n_closed < ARRAY_COUNT(world->closed)) {
        world->closed_epoch[world->n_closed] = epoch;
        world->closed[world->n_closed++] = instance;
    }
}

static void world_start(void *context, const struct cluster_work *work)
{
    struct world *world = context;
    world->work = work->work;
    world->n_tokens = (uint32_t)work->n_tokens;
}

static void world_cancel(void *context, uint64_t work)
{
    (void)context, (void)work;
}

static void world_token(void *context, uint64_t request, uint32_t index, int32_t token,
                        const json_t *data)
{
    (void)context, (void)request, (void)index, (void)token, (void)data;
}

static void world_end(void *context, uint64_t request, enum status status, const char *reason,
                      const json_t *data)
{
    (void)context, (void)request, (void)status, (void)reason, (void)data;
}

static bool world_ask(void *context, struct cluster_id from, uint64_t question, const char *what,
                      const json_t *query)
{
    (void)context, (void)from, (void)question, (void)query;
    return what[0] == 'a';
}

static void world_answered(void *context, uint64_t question, const json_t *body, const char *reason)
{
    (void)context, (void)question, (void)body, (void)reason;
}

static void world_ends(struct world *world, bool good, uint64_t ms)
{
    struct cluster_core *core = world->core;
    while (world->n_opened > 0) {
        size_t i = --world->n_opened;
        cluster_core_opened(core, world->opened[i], world->opened_epoch[i],
                            good ? STATUS_OK : STATUS_IO, good ? "" : "no mesh");
    }
    while (world->n_closed > 0) {
        size_t i = --world->n_closed;
        cluster_core_closed(core, world->closed[i], world->closed_epoch[i]);
    }
    if (world->fetching) {
        world->fetching = false;
        char object[CLUSTER_OBJECT_BYTES];
        memcpy(object, world->object, sizeof object);
        if (world->chunk == CLUSTER_CHUNK_MANIFEST)
            cluster_core_manifest(core, object, world->source, 20u << 20, NULL);
        else
            cluster_core_fetched(core, object, world->chunk, world->source,
                                 good ? CLUSTER_FETCHED : CLUSTER_FETCH_WRONG);
    }
    if (world->measuring) {
        struct cluster_way ways[CLUSTER_MAX_PATHS];
        world->measuring = false;
        cluster_core_measured(core, world->measured, &world->way,
                              good ? CLUSTER_MEASURED : CLUSTER_MEASURE_FAILED, 50, 1e9, "eth1");
        if (cluster_core_ways(core, world->measured, ways) > 0 && !good)
            cluster_core_way_failed(core, world->measured, &ways[0]);
    }
    if (world->work != 0) {
        cluster_core_token(core, world->work, world->n_tokens++, 7, NULL);
        if (good && world->n_tokens > 3)
            cluster_core_end(core, world->work, STATUS_OK, "", NULL);
    }
    if (!good)
        cluster_core_broken(core, world->instance, (uint32_t)world->epoch,
                            world->now_ms % 2 == 0 ? STATUS_LOST : STATUS_MEMORY, "broken");
    cluster_core_steps(core, world->instance, (uint32_t)world->epoch, 1, true);
    world->now_ms += ms;
    cluster_core_tick(core);
}

static json_t *parse(const struct world *world, const uint8_t *line, size_t size)
{
    struct buffer text = {0};
    for (size_t i = 0; i < size; i++) {
        if (line[i] == '@' || line[i] == '#' || line[i] == '%')
            buffer_printf(&text, "%llu",
                          (unsigned long long)(line[i] == '@'   ? world->instance
                                               : line[i] == '#' ? world->epoch
                                                                : world->request));
        else
            buffer_append(&text, &line[i], 1);
    }
    json_t *json = json_loadb(text.data != NULL ? text.data : "", text.size, 0, NULL);
    buffer_free(&text);
    return json;
}

static struct cluster_core *open_core(struct world *world, const json_t *saved)
{
    const struct cluster_env env = {.context = world,
                                    .now_ms = world_now,
                                    .wall_ms = world_wall,
                                    .random = world_random,
                                    .connect = world_connect,
                                    .send = world_send,
                                    .drop = world_drop,
                                    .save = world_save,
                                    .keys = world_keys,
                                    .measure = world_measure,
                                    .plan = world_plan,
                                    .has = world_has,
                                    .fetch = world_fetch,
                                    .fetched = world_fetched,
                                    .remove = world_remove,
                                    .open = world_open,
                                    .close = world_close,
                                    .start = world_start,
                                    .cancel = world_cancel,
                                    .token = world_token,
                                    .end = world_end,
                                    .ask = world_ask,
                                    .answered = world_answered};
    const struct cluster_options options = {.id = self_id,
                                            .incarnation = 1,
                                            .name = "self",
                                            .address = "self:1",
                                            .key = {"key", "secret"},
                                            .saved = saved,
                                            .idle_ms = 3000};
    struct cluster_core *core = NULL;
    struct error error;
    return cluster_core_open(&core, &env, &options, &error) == STATUS_OK ? core : NULL;
}

static void link_node(struct world *world, uint32_t link)
{
    char id[CLUSTER_ID_TEXT];
    json_t *hello = json_pack("{s:i, s:s, s:i, s:s, s:s}", "protocol", CLUSTER_PROTOCOL, "id",
                              cluster_id_text(id, (struct cluster_id){0, link}), "incarnation", 1,
                              "name", "other", "address", "other:1");
    cluster_core_link_up(world->core, link, false, "other:1", "key", hello);
    json_decref(hello);
}

/* What takes no JSON. */
static bool plain_done(struct world *world, const uint8_t *line, size_t size)
{
    char text[CLUSTER_SHA_TEXT + 8];
    struct cluster_allowance allowance;
    struct error error;
    uint64_t question;
    snprintf(text, sizeof text, "%.*s", (int)MIN(size - 1, sizeof text - 1),
             (const char *)line + 1);
    if (line[0] == 'k') {
        cluster_core_take(world->core, text, &allowance);
    } else if (line[0] == 'r') {
        cluster_core_give_back(world->core, text, 10);
    } else if (line[0] == 'q') {
        json_t *query = json_object();
        cluster_core_ask(world->core, (struct cluster_id){0, 2}, "a", query, &question, &error);
        json_decref(query);
    } else {
        return false;
    }
    return true;
}

static void line_done(struct world *world, const uint8_t *line, size_t size, uint32_t *link)
{
    if (line[0] == 't' || line[0] == 'T' || line[0] == 'x') {
        world_ends(world, line[0] != 'x', line[0] == 'T' ? 3100 : 300);
        return;
    }
    if (plain_done(world, line, size))
        return;
    json_t *json = parse(world, line + 1, size - 1);
    if (json == NULL)
        return;
    if (line[0] == '1' || line[0] == '2')
        cluster_core_message(world->core, (uint32_t)(line[0] - '0'), json);
    else if (line[0] == 'h') {
        ++*link;
        cluster_core_link_up(world->core, *link, *link % 2 == 0, "new:1", "key", json);
    } else if (line[0] == 's') {
        struct world other = {.now_ms = 1000};
        other.core = open_core(&other, json);
        if (other.core != NULL)
            cluster_core_tick(other.core);
        cluster_core_close(other.core);
    }
    json_decref(json);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct cluster_facts facts = {
        .memory_limit_bytes = 1000,
        .disk_free_bytes = (uint64_t)1 << 40,
        .can_own = true,
        .n_models = 1,
        .places = {2,
                   {{"eth1", "10.0.1.3:1", 24, 1, false}, {"eth2", "[fe80::3]:1", 64, 1, false}}}};
    struct world world = {.now_ms = 1000};
    struct cluster_model model = {.name = "model", .size_bytes = 100};
    struct error error;
    uint32_t link = NODES;
    memcpy(model.sha, sha, sizeof sha);
    facts.models[0] = model;
    world.core = open_core(&world, NULL);
    if (world.core == NULL)
        return 0;
    cluster_core_set_facts(world.core, &facts);
    for (uint32_t i = 1; i <= NODES; i++)
        link_node(&world, i);
    json_t *payload = json_object();
    cluster_core_submit(world.core, &model, payload, &world.request, &error);
    json_decref(payload);
    for (size_t n = 0; size > 0 && n < MAX_LINES; n++) {
        const uint8_t *end = memchr(data, '\n', size);
        size_t length = end != NULL ? (size_t)(end - data) : size;
        if (length > 0)
            line_done(&world, data, length, &link);
        size_t skip = MIN(length + 1, size);
        data += skip;
        size -= skip;
    }
    world_ends(&world, true, 300);
    json_decref(cluster_core_status(world.core));
    cluster_core_close(world.core);
    return 0;
}
