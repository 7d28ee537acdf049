/* The status as JSON, for commands and the page. */
#include "cluster/core_internal.h"

static const char *const node_state_names[] = {"none", "up", "down", "down", "up"};

static json_t *models_json(const struct cluster_facts *facts)
{
    json_t *list = json_array();
    for (uint32_t i = 0; i < facts->n_models; i++)
        json_array_append_new(list, json_pack("{s:s, s:s, s:o}", "sha", facts->models[i].sha,
                                              "name", facts->models[i].name, "size",
                                              json_u64(facts->models[i].size_bytes)));
    return list;
}

static json_t *addresses_json(const struct node *node)
{
    json_t *list = json_array();
    for (uint32_t i = 0; i < node->n_addresses; i++)
        json_array_append_new(list, json_string(node->addresses[i]));
    return list;
}

/* How many models its server has open by itself, and what is told of them. */
static void put_replicas(json_t *json, const struct node *node)
{
    uint64_t waiting = 0, prefixes = 0;
    for (uint32_t i = 0; i < node->n_replicas; i++) {
        waiting += node->replicas[i].waiting;
        prefixes += node->replicas[i].n_prefixes;
    }
    json_object_set_new(json, "replicas", json_u64(node->n_replicas));
    json_object_set_new(json, "waiting", json_u64(waiting));
    json_object_set_new(json, "prefixes", json_u64(prefixes));
}

static json_t *node_json(const struct cluster_core *core, const struct node *node)
{
    const struct cluster_facts *facts = &node->facts;
    json_t *json = json_pack("{s:o, s:s, s:s, s:b, s:o}", "id", json_id(node->id), "name",
                             node->name, "state", node_state_names[node->state], "self",
                             (int)(node->state == NODE_SELF), "addresses", addresses_json(node));
    if (!node_here(node)) {
        json_object_set_new(json, "reason", json_string(node->reason));
        if (node->lost_ms != 0)
            json_object_set_new(json, "lost_ms", json_u64(core->now_ms - node->lost_ms));
        return json;
    }
    json_t *told =
        json_pack("{s:s, s:o, s:o, s:o, s:o, s:f, s:f, s:i, s:f, s:b, s:o, s:o, s:I}", "version",
                  facts->version, "memory_limit", json_u64(facts->memory_limit_bytes),
                  "memory_other", json_u64(facts->memory_other_bytes), "memory_free",
                  json_u64(node->state == NODE_SELF ? worker_free_bytes(core) : node->free_bytes),
                  "disk_free", json_u64(facts->disk_free_bytes), "bandwidth", facts->read_bandwidth,
                  "flops", facts->flops, "threads", (int)facts->n_threads, "load", facts->load,
                  "owns", (int)facts->can_own, "models", models_json(facts), "heard_ms",
                  json_u64(node->state == NODE_SELF ? 0 : core->now_ms - node->heard_ms),
                  "clock_skew_ms", (json_int_t)node->skew_ms);
    json_object_update(json, told);
    json_decref(told);
    json_t *rates = json_object();
    for (uint32_t i = 0; i < facts->n_rates; i++)
        json_object_set_new(rates, facts->rates[i].format, json_real(facts->rates[i].bytes_per_s));
    json_object_set_new(json, "rates", rates);
    put_replicas(json, node);
    return json;
}

static json_t *paths_json(const json_t *told)
{
    static const char *const names[] = {"interface",  "from",      "peer_interface", "address",
                                        "latency_us", "bandwidth", "state"};
    json_t *list = json_array();
    for (size_t i = 0; i < json_array_size(told); i++) {
        json_t *path = json_object();
        for (size_t k = 0; k < ARRAY_COUNT(names); k++)
            json_object_set(path, names[k], json_array_get(json_array_get(told, i), k));
        json_array_append_new(list, path);
    }
    return list;
}

/* Links as measured, of all nodes that are here; of each its paths, that of data first. */
static json_t *links_json(const struct cluster_core *core)
{
    json_t *list = json_array();
    for (size_t n = 0; n < CLUSTER_MAX_NODES; n++) {
        const struct node *node = &core->nodes[n];
        json_t *told = n == 0            ? paths_links(core)
                       : node_here(node) ? json_incref(node->told_links)
                                         : NULL;
        for (uint32_t i = 0; node_here(node) && i < node->n_links; i++) {
            const struct told_link *link = &node->links[i];
            json_array_append_new(
                list, json_pack("{s:o, s:o, s:f, s:f, s:s, s:o}", "from", json_id(node->id), "to",
                                json_id(link->node), "latency_us", link->latency_us, "bandwidth",
                                link->bandwidth, "interface", link->interface, "paths",
                                paths_json(json_array_get(json_array_get(told, i), 4))));
        }
        json_decref(told);
    }
    return list;
}

/* A list out of what each node tells of its work; each item gets the node as `field`. */
static json_t *told_json(const struct cluster_core *core, const char *what, const char *field)
{
    json_t *list = json_array();
    for (size_t n = 0; n < CLUSTER_MAX_NODES; n++) {
        const struct node *node = &core->nodes[n];
        const json_t *told = node_here(node) ? json_object_get(node->work, what) : NULL;
        for (size_t i = 0; i < json_array_size(told); i++) {
            json_t *item = json_object();
            json_t *value = json_array_get(told, i);
            if (json_is_object(value))
                json_object_update(item, value);
            else
                json_object_set(item, "item", value);
            json_object_set_new(item, field, json_id(node->id));
            json_array_append_new(list, item);
        }
    }
    return list;
}

static json_t *named_items(json_t *list, const char *const *names, size_t n)
{
    for (size_t i = 0; i < json_array_size(list); i++) {
        json_t *entry = json_array_get(list, i);
        json_t *item = json_incref(json_object_get(entry, "item"));
        json_object_del(entry, "item");
        for (size_t k = 0; k < n; k++)
            json_object_set(entry, names[k], json_array_get(item, k));
        json_decref(item);
    }
    return list;
}

/* With what it is in words. */
static json_t *transfers_json(const struct cluster_core *core)
{
    static const char *const names[] = {"object", "done", "of", "copy"};
    json_t *transfer,
        *list = named_items(told_json(core, "transfers", "node"), names, ARRAY_COUNT(names));
    char text[CLUSTER_REASON_BYTES];
    size_t i;
    json_array_foreach(list, i, transfer)
    {
        const char *object = json_string_value(json_object_get(transfer, "object"));
        if (object == NULL)
            continue;
        const char *model = fetch_model_name(core, object);
        slice_text(object, model[0] != '\0' ? model : object, text);
        json_object_set_new(transfer, "text", json_string(text));
        json_object_set_new(transfer, "model", json_string(model));
    }
    return list;
}

/* Each slice with the nodes that have it. */
static json_t *objects_json(const struct cluster_core *core)
{
    json_t *objects = json_object();
    for (size_t n = 0; n < CLUSTER_MAX_NODES; n++) {
        const struct node *node = &core->nodes[n];
        for (uint32_t i = 0; node_here(node) && i < node->facts.n_objects; i++) {
            const struct cluster_object *object = &node->facts.objects[i];
            json_t *entry = json_object_get(objects, object->id);
            if (entry == NULL) {
                entry = json_pack("{s:o, s:i, s:[]}", "size", json_u64(object->size_bytes),
                                  "copies", (int)copies_count(core, object->id), "nodes");
                json_object_set_new(objects, object->id, entry);
            }
            json_array_append_new(json_object_get(entry, "nodes"), json_id(node->id));
        }
    }
    return objects;
}

/* ---- What a user should know ----------------------------------------------------------------- */

static void add_problem(json_t *problems, const char *kind, const char *about, const char *format,
                        ...) BASE_PRINTF(4, 5);

static void add_problem(json_t *problems, const char *kind, const char *about, const char *format,
                        ...)
{
    char text[2 * CLUSTER_REASON_BYTES];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    json_array_append_new(problems,
                          json_pack("{s:s, s:s, s:s}", "kind", kind, "about", about, "text", text));
}

static void node_problems(const struct cluster_core *core, json_t *problems)
{
    for (size_t n = 1; n < CLUSTER_MAX_NODES; n++) {
        const struct node *node = &core->nodes[n];
        if (node->state == NODE_DOWN || node->state == NODE_DIALLING)
            add_problem(problems, "down", node->name, "%s is not there: %s", node->name,
                        node->reason);
        bool skewed = node->skew_ms > SKEW_MS || node->skew_ms < -SKEW_MS;
        if (node->state == NODE_UP && skewed)
            add_problem(problems, "clock", node->name, "the clock of %s differs by %lld seconds",
                        node->name, (long long)(node->skew_ms / 1000));
        if (core->n_keys > 1 && node->state != NODE_NONE) {
            bool has = false;
            for (uint32_t i = 0; i < node->n_keys; i++)
                has = has || strcmp(node->keys[i], core->keys[0].id) == 0;
            if (!has)
                add_problem(problems, "key", node->name,
                            "%s does not have the cluster's new key yet; the old one is accepted "
                            "until it has, or is removed",
                            node->name);
        }
    }
    for (size_t i = 0; i < CLUSTER_MAX_PEERS; i++) {
        const struct peer *peer = &core->peers[i];
        if (peer->address[0] != 0 && peer->failures > 1 && cluster_id_none(peer->node))
            add_problem(problems, "peer", peer->address, "%s cannot be reached: %s", peer->address,
                        peer->reason);
    }
    for (size_t i = 0; i < CLUSTER_MAX_REFUSED; i++) {
        const struct refused *refused = &core->refused[i];
        if (refused->seen_ms != 0 && core->now_ms - refused->seen_ms < REFUSED_MS)
            add_problem(problems, "refused", refused->address, "%s at %s cannot take part: %s",
                        refused->name, refused->address, refused->reason);
    }
    if (core->copied.seen_ms != 0 && core->now_ms - core->copied.seen_ms < REFUSED_MS)
        add_problem(problems, "copied", core->copied.name, "%s", core->copied.reason);
}

static void work_problems(const struct cluster_core *core, json_t *problems)
{
    for (size_t n = 0; n < CLUSTER_MAX_NODES; n++) {
        const struct node *node = &core->nodes[n];
        const json_t *instances = node_here(node) ? json_object_get(node->work, "instances") : NULL;
        for (size_t i = 0; i < json_array_size(instances); i++) {
            const json_t *instance = json_array_get(instances, i);
            const char *state = json_string_value(json_object_get(instance, "state"));
            const char *reason = json_string_value(json_object_get(instance, "reason"));
            const char *name =
                json_string_value(json_array_get(json_object_get(instance, "model"), 1));
            if (state != NULL && reason != NULL && name != NULL && strcmp(state, "failed") == 0)
                add_problem(problems, "failed", name, "%s cannot run: %s", name, reason);
        }
    }
    bool pinned = core->data_interface[0] == 0;
    for (uint32_t i = 0; i < core->nodes[0].facts.places.n; i++)
        pinned = pinned || core->nodes[0].facts.places.at[i].pinned;
    if (!pinned)
        add_problem(problems, "interface", core->data_interface,
                    "data is to go over %s alone, which has no network now: it goes over others",
                    core->data_interface);
    if (core->state.full)
        add_problem(problems, "full", "state",
                    "the cluster keeps too many keys, aliases and models; some were not taken");
    if (core->removed || core->removed_reason[0] != 0)
        add_problem(problems, "removed", core->nodes[0].name,
                    "this node was removed from the cluster; join again");
}

/* Slices that a lost node would take with it, where nothing is being done about it. */
static void copy_problems(const struct cluster_core *core, const json_t *copies, json_t *problems)
{
    const json_t *copy;
    size_t i;
    json_array_foreach(copies, i, copy)
    {
        const char *why = json_string_value(json_object_get(copy, "why"));
        const char *model = json_string_value(json_object_get(copy, "model"));
        const char *slice = json_string_value(json_object_get(copy, "slice"));
        const char *holder = json_string_value(json_array_get(json_object_get(copy, "nodes"), 0));
        char text[CLUSTER_REASON_BYTES];
        struct cluster_id id;
        if (strcmp(why, "one node") != 0 && strcmp(why, "no room") != 0)
            continue;
        const struct node *node = holder != NULL && cluster_id_parse(&id, holder)
                                      ? core_node((struct cluster_core *)(uintptr_t)core, id)
                                      : NULL;
        slice_text(slice, model, text);
        add_problem(problems, "single", model, "only %s has %s: %s",
                    node != NULL ? node->name : "one node", text,
                    strcmp(why, "one node") == 0 ? "no other node is there"
                                                 : "no other disk has room for a copy");
        json_object_set_new(json_array_get(problems, json_array_size(problems) - 1), "slice",
                            json_string(slice));
    }
}

json_t *cluster_core_status(const struct cluster_core *core)
{
    static const char *const grant_names[] = {"instance", "epoch", "owner", "bytes", "state"};
    json_t *nodes = json_array(), *problems = json_array(), *copies = copies_json(core);
    for (size_t i = 0; i < CLUSTER_MAX_NODES; i++)
        if (core->nodes[i].state != NODE_NONE)
            json_array_append_new(nodes, node_json(core, &core->nodes[i]));
    node_problems(core, problems);
    work_problems(core, problems);
    copy_problems(core, copies, problems);
    uint32_t n_asks = 0, n_works = 0;
    for (uint32_t i = 0; i < CLUSTER_MAX_REQUESTS; i++) {
        n_asks += core->asks[i].used;
        n_works += core->works[i].used;
    }
    return json_pack(
        "{s:o, s:s, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:{s:i, s:i}, s:o}", "self",
        json_id(core->nodes[0].id), "key", core->keys[0].id, "nodes", nodes, "links",
        links_json(core), "instances", told_json(core, "instances", "node"), "reservations",
        named_items(told_json(core, "grants", "node"), grant_names, ARRAY_COUNT(grant_names)),
        "objects", objects_json(core), "copies", copies, "transfers", transfers_json(core),
        "requests", "here", (int)n_asks, "owned", (int)n_works, "problems", problems);
}
