/* The core as a whole: opening and closing, the tick, and messages to their handlers. */
#include <stdarg.h>

#include "cluster/core_internal.h"

#define SLOW_MS 1000
#define LOG_BYTES 512

/* ---- Helpers --------------------------------------------------------------------------------- */

uint64_t core_random(struct cluster_core *core)
{
    return core->env.random(core->env.context);
}

uint64_t core_jitter(struct cluster_core *core, uint64_t ms)
{
    return ms / 2 + core_random(core) % (ms + 1);
}

void core_log(struct cluster_core *core, const char *format, ...)
{
    if (core->env.log == NULL)
        return;
    char line[LOG_BYTES];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(line, sizeof line, format, arguments);
    va_end(arguments);
    core->env.log(core->env.context, line);
}

bool node_here(const struct node *node)
{
    return node->state == NODE_SELF || node->state == NODE_UP;
}

struct node *core_node(struct cluster_core *core, struct cluster_id id)
{
    NODE_EACH(core, node)
    if (node->state != NODE_NONE && cluster_id_equal(node->id, id))
        return node;
    return NULL;
}

struct node *core_node_here(struct cluster_core *core, struct cluster_id id)
{
    struct node *node = core_node(core, id);
    return node != NULL && node_here(node) ? node : NULL;
}

static void local_push(struct cluster_core *core, json_t *message)
{
    if (core->local_first + core->local_n == core->local_capacity) {
        if (core->local_first > 0) {
            memmove(core->local, core->local + core->local_first,
                    core->local_n * sizeof *core->local);
            core->local_first = 0;
        } else {
            size_t capacity = MAX(core->local_capacity * 2, (size_t)64);
            json_t **local = realloc(core->local, capacity * sizeof *local);
            if (local == NULL) {
                json_decref(message);
                return;
            }
            core->local = local;
            core->local_capacity = capacity;
        }
    }
    core->local[core->local_first + core->local_n++] = message;
}

void core_send(struct cluster_core *core, struct node *node, json_t *message)
{
    if (message == NULL)
        core_log(core, "out of memory: a message was not sent");
    else if (node->state == NODE_SELF)
        local_push(core, message);
    else {
        if (node->state == NODE_UP)
            core->env.send(core->env.context, node->link, message);
        json_decref(message);
    }
}

void core_send_all(struct cluster_core *core, json_t *message, const struct node *but)
{
    NODE_EACH(core, node)
    if (node->state == NODE_UP && node != but)
        core_send(core, node, json_incref(message));
    json_decref(message);
}

/* ---- Messages -------------------------------------------------------------------------------- */

static const struct {
    const char *type;
    message_handler *handle;
} handlers[] = {
    {"beat", on_beat},         {"tokens", on_tokens},
    {"facts", on_facts},       {"work", on_work},
    {"bye", on_bye},           {"measure", on_measure},
    {"state", on_state},       {"state_digest", on_state_digest},
    {"submit", on_submit},     {"cancel", on_cancel},
    {"still", on_still},       {"end", on_end},
    {"gone", on_gone},         {"elsewhere", on_elsewhere},
    {"reserve", on_reserve},   {"granted", on_granted},
    {"refused", on_refused},   {"commit", on_commit},
    {"prepared", on_prepared}, {"progress", on_progress},
    {"open", on_open},         {"opened", on_opened},
    {"failed", on_failed},     {"release", on_release},
    {"own", on_own},           {"make_room", on_make_room},
    {"unload", on_unload},     {"holds", on_holds},
    {"have", on_have},         {"copy", on_copy},
    {"forget", on_forget},     {"replicas", on_replicas},
    {"ask", on_ask},           {"answer", on_answer},
    {"usage", on_usage},       {"usage_heard", on_usage_heard},
};

/* False: the message is not what it should be, and fault says why. */
static bool dispatch(struct cluster_core *core, struct node *from, const json_t *json,
                     char fault[CLUSTER_REASON_BYTES])
{
    const char *type = json_string_value(json_object_get(json, "type"));
    if (type == NULL) {
        snprintf(fault, CLUSTER_REASON_BYTES, "a message has no type");
        return false;
    }
    for (size_t i = 0; i < ARRAY_COUNT(handlers); i++) {
        if (strcmp(type, handlers[i].type) != 0)
            continue;
        struct message message = message_over(json);
        handlers[i].handle(core, from, &message);
        if (message.failed)
            snprintf(fault, CLUSTER_REASON_BYTES, "bad message \"%s\": %s", type, message.fault);
        return !message.failed;
    }
    return true; /* of a later version */
}

/* Handles what this node told itself, and what that leads to. */
static void settle(struct cluster_core *core)
{
    char fault[CLUSTER_REASON_BYTES];
    while (core->local_n > 0) {
        json_t *message = core->local[core->local_first++];
        core->local_n--;
        if (!dispatch(core, &core->nodes[0], message, fault)) {
            core_log(core, "own message: %s", fault);
            assert(!"a node sent itself a bad message");
        }
        json_decref(message);
    }
    core->local_first = 0;
}

void core_begin(struct cluster_core *core)
{
    core->now_ms = core->env.now_ms(core->env.context);
}

void core_end(struct cluster_core *core)
{
    settle(core);
}

void cluster_core_message(struct cluster_core *core, uint32_t link, const json_t *json)
{
    core_begin(core);
    struct node *from = members_by_link(core, link);
    if (from == NULL)
        return; /* it was dropped meanwhile */
    from->heard_ms = core->now_ms;
    char fault[CLUSTER_REASON_BYTES];
    if (!dispatch(core, from, json, fault) && from->state == NODE_UP && from->link == link)
        members_drop(core, from, fault);
    core_end(core);
}

/* ---- Life ------------------------------------------------------------------------------------ */

static enum status check_options(const struct cluster_options *options, struct error *error)
{
    if (cluster_id_none(options->id) || options->incarnation > INT64_MAX)
        return error_set(error, STATUS_INVALID, "the node has no identity");
    if (strlen(options->name) >= CLUSTER_NAME_BYTES ||
        strlen(options->address) >= CLUSTER_ADDRESS_BYTES)
        return error_set(error, STATUS_INVALID, "the node's name or address is too long");
    if (options->key.id[0] == 0)
        return error_set(error, STATUS_INVALID, "the cluster has no key");
    return STATUS_OK;
}

enum status cluster_core_open(struct cluster_core **out, const struct cluster_env *env,
                              const struct cluster_options *options, struct error *error)
{
    struct error unread = {.code = STATUS_OK};
    error = error != NULL ? error : &unread;
    enum status status = check_options(options, error);
    if (status != STATUS_OK)
        return status;
    struct cluster_core *core = calloc(1, sizeof *core);
    if (core == NULL)
        return error_memory(error, sizeof *core);
    core->env = *env;
    core->options = *options;
    struct cluster_options *own = &core->options;
    own->grant_ms = options->grant_ms != 0 ? options->grant_ms : CLUSTER_GRANT_MS;
    own->prepare_ms = options->prepare_ms != 0 ? options->prepare_ms : CLUSTER_PREPARE_MS;
    own->open_ms = options->open_ms != 0 ? options->open_ms : CLUSTER_OPEN_MS;
    own->hung_ms = options->hung_ms != 0 ? options->hung_ms : CLUSTER_HUNG_MS;
    text_copy(core->own_address, sizeof core->own_address, options->address);
    text_copy(core->data_interface, sizeof core->data_interface,
              options->data_interface != NULL ? options->data_interface : "");
    struct node *self = &core->nodes[0];
    self->state = NODE_SELF;
    self->id = options->id;
    self->incarnation = options->incarnation;
    text_copy(self->name, sizeof self->name, options->name);
    own->name = self->name;
    own->address = core->own_address;
    own->saved = NULL;
    own->data_interface = core->data_interface;
    core->keys[0] = options->key;
    core->n_keys = 1;
    core_begin(core);
    if (options->saved != NULL && !state_read_saved(core, options->saved, error)) {
        cluster_core_close(core);
        return error->code;
    }
    self->n_keys = core->n_keys;
    core->env.keys(core->env.context, core->keys, core->n_keys);
    core->facts_dirty = core->work_dirty = core->saved_dirty = true;
    *out = core;
    return STATUS_OK;
}

void cluster_core_close(struct cluster_core *core)
{
    if (core == NULL)
        return;
    while (core->local_n > 0) {
        json_decref(core->local[core->local_first++]);
        core->local_n--;
    }
    free(core->local);
    NODE_EACH(core, node)
    {
        json_decref(node->work);
        json_decref(node->told_links);
        json_decref(node->outbox);
    }
    for (size_t i = 0; i < CLUSTER_MAX_INSTANCES; i++) {
        json_decref(core->instances[i].options);
        json_decref(core->instances[i].plan.spec);
    }
    for (size_t i = 0; i < CLUSTER_MAX_RESERVATIONS; i++)
        json_decref(core->reservations[i].spec);
    requests_close(core);
    fetch_close(core);
    limits_close(core);
    state_close(&core->state);
    free(core);
}

/* What was changed is saved before others are told of it. */
static void save(struct cluster_core *core)
{
    if (!core->saved_dirty)
        return;
    json_t *saved = state_saved(core);
    if (saved == NULL)
        return;
    core->saved_dirty = false;
    core->env.save(core->env.context, saved);
    json_decref(saved);
}

void cluster_core_tick(struct cluster_core *core)
{
    core_begin(core);
    if (core->left)
        return;
    members_tick(core);
    worker_tick(core);
    instances_tick(core);
    fetch_tick(core);
    copies_tick(core);
    disk_tick(core);
    requests_tick(core);
    limits_tick(core);
    questions_tick(core);
    if (core->now_ms >= core->slow_ms) {
        core->slow_ms = core->now_ms + SLOW_MS;
        keys_tick(core);
    }
    settle(core);
    save(core);
    members_tell(core);
    if (core->now_ms >= core->beat_ms) {
        core->beat_ms = core->now_ms + CLUSTER_BEAT_MS;
        members_beat(core);
        replicas_tell(core, false);
    }
    core_end(core);
}

void cluster_core_set_facts(struct cluster_core *core, const struct cluster_facts *facts)
{
    core_begin(core);
    struct node *self = &core->nodes[0];
    const struct cluster_places before = self->facts.places;
    self->facts = *facts;
    self->facts.places.n = MIN(facts->places.n, CLUSTER_MAX_PLACES);
    if (!paths_same_places(&before, &self->facts.places)) {
        paths_gone(core, self->id, &before, &self->facts.places);
        for (struct node *node = core->nodes + 1; node < core->nodes + CLUSTER_MAX_NODES; node++)
            if (node->state != NODE_NONE)
                paths_renew(core, node);
    }
    self->facts.n_models = MIN(facts->n_models, CLUSTER_MAX_MODELS);
    text_copy(self->facts.version, sizeof self->facts.version, facts->version);
    self->facts.n_objects = MIN(facts->n_objects, CLUSTER_MAX_OBJECTS);
    self->facts.n_rates = MIN(facts->n_rates, CLUSTER_MAX_RATES);
    for (uint32_t i = 0; i < self->facts.n_models; i++) {
        struct cluster_model *model = &self->facts.models[i];
        text_copy(model->name, sizeof model->name, model->name);
    }
    self->has_facts = true;
    core->facts_dirty = true;
    core_end(core);
}

/* ---- Commands about nodes -------------------------------------------------------------------- */

void cluster_core_leave(struct cluster_core *core)
{
    char key[CLUSTER_ENTRY_KEY_BYTES] = "removed/";
    cluster_id_text(key + strlen(key), core->nodes[0].id);
    json_t *value = json_pack("{s:s, s:b}", "name", core->nodes[0].name, "left", 1);
    struct error error;
    if (cluster_core_put(core, key, value, &error) != STATUS_OK) /* ends all links */
        core_log(core, "the others are not told: %s", error.text);
    json_decref(value);
    core->left = true;
    members_bye(core, "left", "it left the cluster");
    save(core);
}

enum status cluster_core_remove(struct cluster_core *core, const char *name, struct error *error)
{
    struct cluster_id id;
    struct node *found = NULL;
    if (cluster_id_parse(&id, name))
        found = core_node(core, id);
    NODE_EACH(core, node)
    {
        if (node->state == NODE_NONE || strcmp(node->name, name) != 0)
            continue;
        if (found != NULL)
            return error_set(error, STATUS_INVALID,
                             "several nodes are called %s; name it by its id", name);
        found = node;
    }
    if (found == NULL)
        return error_set(error, STATUS_NOT_FOUND, "the cluster has no node %s", name);
    if (found->state == NODE_SELF)
        return error_set(error, STATUS_INVALID, "this node itself; it can leave");
    char key[CLUSTER_ENTRY_KEY_BYTES] = "removed/";
    cluster_id_text(key + strlen(key), found->id);
    json_t *value = json_pack("{s:s}", "name", found->name);
    enum status status = cluster_core_put(core, key, value, error);
    json_decref(value);
    return status;
}
