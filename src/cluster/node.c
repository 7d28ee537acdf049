/* Links, beacons, time and files of a node; the environment of its control plane.
 *
 * A message of the control plane is JSON text. Over a link it goes in frames of type FRAME_PART,
 * and one of type FRAME_END that ends it, as most are short enough for one. The first message that
 * each side sends is what the core says first (cluster_core_hello). */
#include "cluster/node_internal.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define FRAME_PART 1
#define FRAME_END 2
#define BEACON_MS 1000
#define FACTS_MS 500
#define SAVE_MS 250
#define GROUP4 "239.255.77.4"
#define GROUP6 "ff02::636f:6e73"
#define GROUP_PORT 4002
#define NODE_FILE "cluster"
#define PENDING_BYTES                                                                              \
    ((size_t)16 * CLUSTER_MESSAGE_BYTES) /* of a link: requests come many at once */

uint64_t node_now_ms(void)
{
    return clock_now_ns() / 1000000;
}

static uint64_t wall_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

void node_logf(struct cluster_node *node, const char *format, ...)
{
    char line[512];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(line, sizeof line, format, arguments);
    va_end(arguments);
    if (node->options.host.log != NULL)
        node->options.host.log(node->options.host.context, line);
}

/* ---- Threads --------------------------------------------------------------------------------- */

void node_hold(struct cluster_node *node)
{
    atomic_fetch_add(&node->n_holds, 1);
}

void node_let_go(struct cluster_node *node)
{
    if (atomic_fetch_sub(&node->n_holds, 1) == 1)
        free(node);
}

struct post {
    struct cluster_node *node;
    net_fn *fn;
    void *context;
};

static void run_post(void *context)
{
    struct post *post = context;
    post->fn(post->context);
    node_let_go(post->node);
    free(post);
}

bool node_post(struct cluster_node *node, net_fn *fn, void *context)
{
    struct post *post = malloc(sizeof *post);
    if (post == NULL)
        return false;
    *post = (struct post){node, fn, context};
    node_hold(node);
    pthread_mutex_lock(&node->post_mutex);
    bool posted = !node->deaf && net_loop_post(node->options.loop, run_post, post);
    pthread_mutex_unlock(&node->post_mutex);
    if (posted)
        return true;
    free(post);
    node_let_go(node);
    return false;
}

/* ---- Identity -------------------------------------------------------------------------------- */

static void hex_of(const uint8_t *data, size_t size, char *out)
{
    for (size_t i = 0; i < size; i++)
        snprintf(out + 2 * i, 3, "%02x", data[i]);
}

static bool bytes_of(const char *hex, uint8_t *out, size_t size)
{
    if (strlen(hex) != 2 * size || strspn(hex, "0123456789abcdef") != 2 * size)
        return false;
    for (size_t i = 0; i < size; i++) {
        unsigned value;
        sscanf(hex + 2 * i, "%2x", &value);
        out[i] = (uint8_t)value;
    }
    return true;
}

struct cluster_id node_id_of(const uint8_t bytes[NET_NODE_BYTES])
{
    struct cluster_id id = {0};
    for (size_t i = 0; i < 8; i++) {
        id.high = id.high << 8 | bytes[i];
        id.low = id.low << 8 | bytes[i + 8];
    }
    return id;
}

void node_id_bytes(struct cluster_id id, uint8_t out[NET_NODE_BYTES])
{
    for (size_t i = 0; i < 8; i++) {
        out[i] = (uint8_t)(id.high >> (56 - 8 * i));
        out[i + 8] = (uint8_t)(id.low >> (56 - 8 * i));
    }
}

static enum status home_file(const char *name, struct buffer *out, struct error *error)
{
    enum status status = home_directory(NODE_FILE, out, error);
    if (status == STATUS_OK && !buffer_printf(out, "/%s", name))
        status = error_memory(error, out->size);
    return status;
}

/* The object of a file in the home folder, which is replaced by this node alone; NULL where it is
 * not there or no JSON. */
static json_t *read_object(const char *name)
{
    struct buffer path = {0}, text = {0};
    json_t *object = NULL;
    if (home_file(name, &path, NULL) == STATUS_OK && access(path.data, F_OK) == 0 &&
        file_read(path.data, CLUSTER_MESSAGE_BYTES, &text, NULL) == STATUS_OK)
        object = json_loadb(text.data, text.size, 0, NULL);
    buffer_free(&path);
    buffer_free(&text);
    return object;
}

static enum status write_object(const char *name, const json_t *object, struct error *error)
{
    struct buffer path = {0};
    struct file_writer *writer = NULL;
    char *text = json_dumps(object, JSON_COMPACT);
    enum status status = text != NULL ? home_file(name, &path, error) : error_memory(error, 1);
    if (status == STATUS_OK)
        status = file_create(&writer, path.data, error);
    if (status == STATUS_OK)
        status = file_write(writer, text, strlen(text), error);
    if (status == STATUS_OK)
        status = file_commit(writer, error);
    else
        file_discard(writer);
    buffer_free(&path);
    free(text);
    return status;
}

enum status cluster_node_id(uint8_t id[NET_NODE_BYTES], struct error *error)
{
    char text[CLUSTER_ID_TEXT];
    json_t *object = read_object("node.json");
    const char *kept = json_string_value(json_object_get(object, "id"));
    bool good = kept != NULL && bytes_of(kept, id, NET_NODE_BYTES);
    json_decref(object);
    if (good)
        return STATUS_OK;
    for (size_t i = 0; i < NET_NODE_BYTES; i += 8) {
        uint64_t number = rng_entropy();
        memcpy(id + i, &number, sizeof number);
    }
    hex_of(id, NET_NODE_BYTES, text);
    object = json_pack("{s:s}", "id", text);
    enum status status = write_object("node.json", object, error);
    json_decref(object);
    return status;
}

enum status cluster_node_forget(struct error *error)
{
    static const char *const names[] = {"node.json", "state.json"};
    struct buffer path = {0};
    for (size_t i = 0; i < ARRAY_COUNT(names); i++)
        if (home_file(names[i], &path, NULL) == STATUS_OK)
            unlink(path.data);
    buffer_free(&path);
    return cluster_key_remove(error);
}

/* ---- Keys ------------------------------------------------------------------------------------ */

static void take_keys(void *context, const struct cluster_key *keys, size_t n_keys)
{
    struct cluster_node *node = context;
    struct error error;
    node->n_keys = 0;
    for (size_t i = 0; i < n_keys && i < CLUSTER_MAX_KEYS; i++) {
        size_t at = node->n_keys;
        if (cluster_key_link(&keys[i], &node->link_keys[at], &error) == STATUS_OK &&
            cluster_beacon_key(&keys[i], &node->beacon_keys[at], &error) == STATUS_OK)
            node->keys[node->n_keys++] = keys[i];
        else
            node_logf(node, "a key of the cluster cannot be used: %s", error.text);
    }
    if (node->n_keys == 0 || strcmp(node->keys[0].id, node->saved_key_id) == 0)
        return;
    if (cluster_key_save(&node->keys[0], &error) != STATUS_OK)
        node_logf(node, "the cluster's new key cannot be kept: %s", error.text);
    snprintf(node->saved_key_id, sizeof node->saved_key_id, "%s", node->keys[0].id);
}

static const struct net_link_key *link_key(const struct cluster_node *node, const char *key_id)
{
    for (size_t i = 0; i < node->n_keys; i++)
        if (key_id != NULL && strcmp(node->keys[i].id, key_id) == 0)
            return &node->link_keys[i];
    return &node->link_keys[0];
}

static bool find_key(void *context, struct view identity, uint8_t secret[NET_SECRET_BYTES])
{
    struct cluster_node *node = context;
    return cluster_key_find(node->keys, node->n_keys, identity, secret) ||
           cluster_token_find(identity, wall_ms() / 1000, secret);
}

/* The id of the key that a link holds, for the core. */
static const char *key_id_of(const struct net_link *link, char out[CLUSTER_KEY_ID_BYTES])
{
    return cluster_key_id(net_link_identity(link), out) ? out : "";
}

/* ---- Links ----------------------------------------------------------------------------------- */

struct net_hello node_hello(const struct cluster_node *node, enum net_purpose purpose,
                            json_t *fields)
{
    struct net_hello hello = {.incarnation = node->incarnation, .purpose = purpose};
    memcpy(hello.node, node->id, sizeof hello.node);
    if (fields == NULL)
        fields = json_object();
    json_object_set_new(fields, "port", json_integer(cluster_node_port(node)));
    char *text = json_dumps(fields, JSON_COMPACT);
    if (text != NULL && strlen(text) < sizeof hello.info)
        strcpy(hello.info, text);
    free(text);
    json_decref(fields);
    return hello;
}

static struct node_link *free_link(struct cluster_node *node)
{
    for (size_t i = 0; i < NODE_MAX_LINKS; i++)
        if (node->links[i].id == 0)
            return &node->links[i];
    return NULL;
}

static struct node_link *take_link(struct cluster_node *node, struct net_link *link, bool outgoing)
{
    struct node_link *at = free_link(node);
    if (at == NULL)
        return NULL;
    *at = (struct node_link){
        .id = ++node->last_link, .link = link, .node = node, .outgoing = outgoing};
    return at;
}

static void forget_link(struct node_link *at)
{
    buffer_free(&at->partial);
    *at = (struct node_link){0};
}

static struct node_link *find_link(struct cluster_node *node, uint32_t id)
{
    for (size_t i = 0; i < NODE_MAX_LINKS; i++)
        if (id != 0 && node->links[i].id == id)
            return &node->links[i];
    return NULL;
}

static bool send_json(struct node_link *at, const json_t *message)
{
    char *text = json_dumps(message, JSON_COMPACT);
    struct view left = text != NULL ? view_of(text) : (struct view){0};
    bool sent = text != NULL && left.size <= CLUSTER_MESSAGE_BYTES;
    while (sent && left.size > NET_FRAME_BYTES) {
        sent = net_link_send(at->link, FRAME_PART, (struct view){left.data, NET_FRAME_BYTES});
        left = (struct view){left.data + NET_FRAME_BYTES, left.size - NET_FRAME_BYTES};
    }
    sent = sent && net_link_send(at->link, FRAME_END, left);
    free(text);
    return sent;
}

/* The port a peer's links are taken at, of its hello; 0: not said. */
static unsigned port_of(const struct net_hello *hello)
{
    json_t *info = json_loads(hello->info, 0, NULL);
    json_int_t port = json_integer_value(json_object_get(info, "port"));
    json_decref(info);
    return port > 0 && port < 65536 ? (unsigned)port : 0;
}

/* The host of peer ("10.0.0.7:51234") with another port. */
static void with_port(const char *peer, unsigned port, char out[CLUSTER_ADDRESS_BYTES])
{
    const char *colon = strrchr(peer, ':');
    if (colon != NULL && port != 0)
        snprintf(out, CLUSTER_ADDRESS_BYTES, "%.*s:%u", (int)(colon - peer), peer, port);
    else
        out[0] = '\0';
}

static void on_up(void *context, struct net_link *link, const struct net_hello *hello)
{
    bool outgoing = !net_link_accepted(link);
    struct node_link *at = outgoing ? context : NULL;
    struct cluster_node *node = outgoing ? at->node : context;
    struct error error;
    if (!outgoing && hello->purpose == NET_JOIN) {
        if (cluster_join_answer(link, &node->keys[0], wall_ms() / 1000, &error) != STATUS_OK)
            node_logf(node, "%s may not join: %s", net_link_peer(link), error.text);
        else
            node_logf(node, "%s joins the cluster", net_link_peer(link));
        return;
    }
    if (!outgoing && hello->purpose != NET_CONTROL) {
        struct net_wire *wire = net_link_detach(link);
        if (wire == NULL)
            net_link_close(link);
        else if (hello->purpose == NET_DATA)
            node_rank_wire(node, wire, hello);
        else
            node_object_serve(node, wire);
        return;
    }
    if (at == NULL)
        at = take_link(node, link, false);
    if (at == NULL) {
        net_link_close(link);
        return;
    }
    cluster_id_text(at->peer_id, node_id_of(hello->node));
    with_port(net_link_peer(link), port_of(hello), at->address);
    char key_id[CLUSTER_KEY_ID_BYTES];
    json_t *first = cluster_core_hello(node->core, key_id_of(link, key_id));
    if (first == NULL || !send_json(at, first)) {
        net_link_close(link);
        forget_link(at);
    }
    json_decref(first);
}

/* Too deep for the parsers of messages: told from the text, before it is parsed. */
static bool too_deep(struct view text)
{
    size_t depth = 0;
    bool quoted = false;
    for (size_t i = 0; i < text.size; i++) {
        char c = text.data[i];
        if (quoted && c == '\\')
            i++;
        else if (c == '"')
            quoted = !quoted;
        else if (!quoted && (c == '{' || c == '['))
            depth++;
        else if (!quoted && (c == '}' || c == ']') && depth > 0)
            depth--;
        if (depth > CLUSTER_MESSAGE_DEPTH)
            return true;
    }
    return false;
}

static void fail_link(struct node_link *at, const char *reason)
{
    struct cluster_node *node = at->node;
    uint32_t id = at->id;
    bool up = at->up;
    node_logf(node, "a link to %s ends: %s", net_link_peer(at->link), reason);
    net_link_close(at->link);
    forget_link(at);
    if (up)
        cluster_core_link_down(node->core, id, reason);
}

static void take_message(struct node_link *at, const json_t *message)
{
    struct cluster_node *node = at->node;
    uint32_t id = at->id;
    if (at->up) {
        cluster_core_message(node->core, id, message);
        return;
    }
    char key_id[CLUSTER_KEY_ID_BYTES];
    at->up = true;
    cluster_core_link_up(node->core, id, at->outgoing, at->outgoing ? at->dialled : at->address,
                         key_id_of(at->link, key_id), message);
}

static void on_message(void *context, struct net_link *link, uint8_t type, struct view message)
{
    struct node_link *at = context;
    (void)link;
    bool fits = message.size <= CLUSTER_MESSAGE_BYTES - at->partial.size &&
                buffer_append(&at->partial, message.data, message.size);
    if (!fits || (type != FRAME_PART && type != FRAME_END)) {
        fail_link(at, fits ? "a frame of a type that is not known" : "a message is too long");
        return;
    }
    if (type == FRAME_PART)
        return;
    struct view text = {at->partial.data, at->partial.size};
    json_t *object = too_deep(text) ? NULL : json_loadb(text.data, text.size, 0, NULL);
    buffer_clear(&at->partial);
    if (json_is_object(object))
        take_message(at, object);
    else
        fail_link(at, "a message is no JSON object");
    json_decref(object);
}

static bool speaks_otherwise(enum net_link_fault fault)
{
    return fault == NET_LINK_KEY || fault == NET_LINK_VERSION;
}

static void on_down(void *context, struct net_link *link, enum net_link_fault fault,
                    const char *text)
{
    (void)link;
    struct node_link *at = context;
    struct cluster_node *node = at->node;
    const struct node_link was = *at;
    forget_link(at);
    if (node->closing)
        return;
    if (was.up)
        cluster_core_link_down(node->core, was.id, text);
    else if (was.outgoing)
        cluster_core_connect_failed(node->core, was.dialled, text);
    if (speaks_otherwise(fault))
        cluster_core_refused(node->core, was.outgoing ? was.dialled : was.address, "", text);
}

/* A link that never came up, or one for joining. */
static void on_accepted_down(void *context, struct net_link *link, enum net_link_fault fault,
                             const char *text)
{
    struct cluster_node *node = context;
    for (size_t i = 0; i < NODE_MAX_LINKS; i++)
        if (node->links[i].link == link && node->links[i].id != 0) {
            on_down(&node->links[i], link, fault, text);
            return;
        }
}

static void on_refused(void *context, const char *peer, enum net_link_fault fault, const char *text)
{
    struct cluster_node *node = context;
    if (speaks_otherwise(fault))
        cluster_core_refused(node->core, peer, "", text);
}

static void on_accepted_message(void *context, struct net_link *link, uint8_t type,
                                struct view message)
{
    struct cluster_node *node = context;
    for (size_t i = 0; i < NODE_MAX_LINKS; i++)
        if (node->links[i].link == link && node->links[i].id != 0) {
            on_message(&node->links[i], link, type, message);
            return;
        }
}

static const struct net_link_events dialled_events = {
    .up = on_up, .message = on_message, .down = on_down};

/* ---- The environment of the core ------------------------------------------------------------- */

static uint64_t env_now_ms(void *context)
{
    (void)context;
    return node_now_ms();
}

static uint64_t env_wall_ms(void *context)
{
    (void)context;
    return wall_ms();
}

static uint64_t env_random(void *context)
{
    (void)context;
    return rng_entropy();
}

struct failed_dial {
    struct cluster_node *node;
    char address[CLUSTER_ADDRESS_BYTES], reason[CLUSTER_REASON_BYTES];
};

static void tell_failed_dial(void *context)
{
    struct failed_dial *dial = context;
    if (!dial->node->closing)
        cluster_core_connect_failed(dial->node->core, dial->address, dial->reason);
    free(dial);
}

static void object_used(void *context, const char *object)
{
    (void)context;
    node_object_used(object);
}

static void env_connect(void *context, const char *address, const char *key_id)
{
    struct cluster_node *node = context;
    struct error error = {.text = "there are too many links"};
    struct node_link *at = take_link(node, NULL, true);
    const struct net_link_options options = {
        .events = &dialled_events,
        .context = at,
        .hello = node_hello(node, NET_CONTROL, NULL),
        .pending_bytes = PENDING_BYTES,
    };
    if (at != NULL) {
        snprintf(at->dialled, sizeof at->dialled, "%s", address);
        if (net_link_connect(&at->link, node->options.loop, address, link_key(node, key_id),
                             &options, &error) == STATUS_OK)
            return;
        forget_link(at);
    }
    struct failed_dial *dial = calloc(1, sizeof *dial);
    if (dial == NULL)
        return;
    dial->node = node;
    snprintf(dial->address, sizeof dial->address, "%s", address);
    snprintf(dial->reason, sizeof dial->reason, "%.*s", CLUSTER_REASON_BYTES - 1, error.text);
    if (!node_post(node, tell_failed_dial, dial))
        free(dial);
}

static void end_link(void *context)
{
    struct node_link *at = context;
    struct cluster_node *node = at->node;
    if (at->id == 0 || at->link == NULL || node->closing)
        return;
    uint32_t id = at->id;
    net_link_close(at->link);
    forget_link(at);
    cluster_core_link_down(node->core, id, "the other side does not read what is sent to it");
}

static void env_send(void *context, uint32_t link, json_t *message)
{
    struct node_link *at = find_link(context, link);
    if (at != NULL && at->link != NULL && !send_json(at, message))
        node_post(at->node, end_link, at);
}

static void env_drop(void *context, uint32_t link, const char *reason)
{
    struct node_link *at = find_link(context, link);
    (void)reason;
    if (at == NULL)
        return;
    net_link_close(at->link);
    forget_link(at);
}

static void env_save(void *context, json_t *saved)
{
    struct cluster_node *node = context;
    json_decref(node->to_save);
    node->to_save = json_deep_copy(saved);
}

static void save_now(struct cluster_node *node)
{
    struct error error;
    if (node->to_save == NULL)
        return;
    if (write_object("state.json", node->to_save, &error) != STATUS_OK)
        node_logf(node, "what the cluster agreed on cannot be kept: %s", error.text);
    json_decref(node->to_save);
    node->to_save = NULL;
}

static void env_changed(void *context, const char *key, const json_t *value)
{
    struct cluster_node *node = context;
    if (node->options.host.changed != NULL)
        node->options.host.changed(node->options.host.context, key, value);
}

static bool env_ask(void *context, struct cluster_id from, uint64_t question, const char *what,
                    const json_t *query)
{
    const struct cluster_host *host = &((struct cluster_node *)context)->options.host;
    return host->ask != NULL && host->ask(host->context, from, question, what, query);
}

static void env_answered(void *context, uint64_t question, const json_t *body, const char *reason)
{
    const struct cluster_host *host = &((struct cluster_node *)context)->options.host;
    if (host->answered != NULL)
        host->answered(host->context, question, body, reason);
}

static void env_log(void *context, const char *line)
{
    node_logf(context, "%s", line);
}

bool node_address(const struct cluster_node *node, struct cluster_id id,
                  char out[CLUSTER_ADDRESS_BYTES])
{
    char text[CLUSTER_ID_TEXT];
    cluster_id_text(text, id);
    out[0] = '\0';
    for (size_t i = 0; i < NODE_MAX_LINKS; i++) {
        const struct node_link *at = &node->links[i];
        if (at->id != 0 && at->up && strcmp(at->peer_id, text) == 0) {
            snprintf(out, CLUSTER_ADDRESS_BYTES, "%s", at->outgoing ? at->dialled : at->address);
            return out[0] != '\0';
        }
    }
    return false;
}

/* ---- Beacons --------------------------------------------------------------------------------- */

static void send_beacon(struct cluster_node *node)
{
    uint8_t packet[CLUSTER_BEACON_BYTES];
    struct cluster_beacon beacon = {
        .node = node_id_of(node->id),
        .incarnation = node->incarnation,
        .time_ms = wall_ms(),
        .port = (uint16_t)cluster_node_port(node),
    };
    snprintf(beacon.name, sizeof beacon.name, "%s", node->name);
    size_t size = cluster_beacon_write(&beacon, &node->beacon_keys[0], packet);
    if (size > 0)
        net_multicast_send(node->multicast, (struct view){(const char *)packet, size});
}

static void on_datagram(void *context, struct view datagram, const char *from)
{
    static const char *const reasons[] = {
        [CLUSTER_BEACON_OTHER_KEY] = "it is in another cluster, or holds an old key of this one",
        [CLUSTER_BEACON_FORGED] = "its beacon is not signed with the key it names",
        [CLUSTER_BEACON_OLD] = "its clock is more than ten minutes away from this one's",
    };
    struct cluster_node *node = context;
    struct cluster_beacon beacon;
    unsigned version = 0;
    char address[CLUSTER_ADDRESS_BYTES], reason[CLUSTER_REASON_BYTES];
    enum cluster_beacon_verdict verdict = cluster_beacon_read(&beacon, datagram, node->beacon_keys,
                                                              node->n_keys, wall_ms(), &version);
    if (verdict == CLUSTER_BEACON_GARBAGE)
        return;
    if (verdict == CLUSTER_BEACON_OTHER_VERSION) {
        snprintf(reason, sizeof reason, "it speaks version %u of the protocol, this node %d",
                 version, NET_PROTOCOL_VERSION);
        cluster_core_refused(node->core, from, "", reason);
        return;
    }
    with_port(from, beacon.port, address);
    if (cluster_id_equal(beacon.node, node_id_of(node->id)) &&
        beacon.incarnation == node->incarnation)
        return; /* our own */
    if (verdict == CLUSTER_BEACON_GOOD)
        cluster_core_beacon(node->core, beacon.node, beacon.incarnation, beacon.name, address);
    else
        cluster_core_refused(node->core, address, beacon.name, reasons[verdict]);
}

/* ---- Time ------------------------------------------------------------------------------------ */

static void set_facts(struct cluster_node *node)
{
    struct cluster_facts *facts = calloc(1, sizeof *facts); /* too large for the stack */
    struct cluster_local_model models[CLUSTER_MAX_MODELS];
    const struct cluster_host *host = &node->options.host;
    struct machine machine;
    double load;
    if (facts == NULL)
        return;
    machine_query(&machine);
    snprintf(facts->version, sizeof facts->version, "%s", CONSORT_VERSION);
    facts->memory_limit_bytes = node->options.memory_limit_bytes;
    facts->memory_other_bytes = host->memory_used != NULL ? host->memory_used(host->context) : 0;
    facts->read_bandwidth = node->read_bandwidth;
    facts->flops = node->flops;
    facts->n_rates = node->n_rates;
    memcpy(facts->rates, node->rates, node->n_rates * sizeof *node->rates);
    facts->n_threads =
        node->options.model.n_threads > 0 ? node->options.model.n_threads : machine.physical_cores;
    facts->load = getloadavg(&load, 1) == 1 ? MIN(load / (double)facts->n_threads, 1.0) : 0;
    facts->can_own = true;
    size_t n = host->models != NULL ? host->models(host->context, models, CLUSTER_MAX_MODELS) : 0;
    for (size_t i = 0; i < n; i++)
        facts->models[facts->n_models++] = models[i].model;
    node_take_models(node, models, n);
    node_objects_facts(node, facts);
    node_places_refresh(node);
    facts->places = node->places;
    cluster_core_set_facts(node->core, facts);
    free(facts);
}

static void set_replicas(struct cluster_node *node)
{
    const struct cluster_host *host = &node->options.host;
    struct cluster_replica list[CLUSTER_MAX_REPLICAS];
    if (host->replicas != NULL)
        cluster_core_set_replicas(node->core, list,
                                  host->replicas(host->context, list, CLUSTER_MAX_REPLICAS));
}

void cluster_node_refresh(struct cluster_node *node)
{
    set_facts(node);
}

static void tick(void *context)
{
    struct cluster_node *node = context;
    uint64_t now_ms = node_now_ms();
    node->ticking = net_loop_after(node->options.loop, CLUSTER_TICK_MS, tick, node);
    if (now_ms - node->facts_ms >= FACTS_MS) {
        node->facts_ms = now_ms;
        set_facts(node);
    }
    if (now_ms - node->replicas_ms >= CLUSTER_BEAT_MS) {
        node->replicas_ms = now_ms;
        set_replicas(node);
    }
    node_rank_tick(node);
    node_metadata_tick(node);
    cluster_core_tick(node->core);
    if (node->multicast != NULL && now_ms - node->beaconed_ms >= BEACON_MS) {
        node->beaconed_ms = now_ms;
        send_beacon(node);
    }
    if (now_ms - node->saved_ms >= SAVE_MS) {
        node->saved_ms = now_ms;
        save_now(node);
    }
}

/* ---- Peers by name --------------------------------------------------------------------------- */

struct resolving {
    struct cluster_node *node;
    const char *address;
    struct net_address found[4];
    size_t n;
    struct error error;
};

static void add_resolved(void *context)
{
    struct resolving *resolving = context;
    struct cluster_node *node = resolving->node;
    if (resolving->n == 0)
        node_logf(node, "the peer %s is not found: %s", resolving->address, resolving->error.text);
    for (size_t i = 0; i < resolving->n && !node->closing; i++)
        cluster_core_add_peer(node->core, resolving->found[i].text);
    free(resolving);
}

static void *resolve(void *argument)
{
    struct resolving *resolving = argument;
    if (net_resolve(resolving->address, resolving->found, ARRAY_COUNT(resolving->found),
                    &resolving->n, &resolving->error) != STATUS_OK)
        resolving->n = 0;
    struct cluster_node *node = resolving->node;
    if (!node_post(node, add_resolved, resolving))
        free(resolving);
    node_let_go(node);
    return NULL;
}

static void add_peers(struct cluster_node *node)
{
    pthread_t thread;
    for (size_t i = 0; i < node->options.n_peers; i++) {
        struct resolving *resolving = calloc(1, sizeof *resolving);
        if (resolving == NULL)
            return;
        resolving->node = node;
        resolving->address = node->options.peers[i];
        node_hold(node);
        if (thread_start(&thread, resolve, resolving)) {
            pthread_detach(thread);
        } else {
            free(resolving);
            node_let_go(node);
        }
    }
}

/* ---- Life cycle ------------------------------------------------------------------------------ */

struct view node_listen_host(const struct cluster_node *node)
{
    const char *colon = strrchr(node->options.listen, ':');
    struct view host = {node->options.listen,
                        colon != NULL ? (size_t)(colon - node->options.listen) : 0};
    bool all = view_equal(host, view_of("0.0.0.0")) || view_equal(host, view_of("[::]"));
    return all ? (struct view){"", 0} : host;
}

/* Nobody else can reach it. */
static bool listens_to_itself(const struct cluster_node *node)
{
    struct view host = node_listen_host(node);
    return view_equal(host, view_of("localhost")) || view_equal(host, view_of("[::1]")) ||
           (host.size > 4 && memcmp(host.data, "127.", 4) == 0);
}

static enum status open_core(struct cluster_node *node, struct error *error)
{
    struct view host = node_listen_host(node);
    char address[CLUSTER_ADDRESS_BYTES] = "";
    if (host.size > 0)
        snprintf(address, sizeof address, "%.*s:%u", (int)MIN(host.size, (size_t)100), host.data,
                 cluster_node_port(node));
    const struct cluster_env env = {
        .context = node,
        .now_ms = env_now_ms,
        .wall_ms = env_wall_ms,
        .random = env_random,
        .connect = env_connect,
        .send = env_send,
        .drop = env_drop,
        .save = env_save,
        .keys = take_keys,
        .changed = env_changed,
        .measure = node_measure,
        .place_gone = node_place_gone,
        .plan = node_plan,
        .has = node_object_has,
        .fetch = node_object_fetch,
        .fetched = node_object_fetched,
        .abandoned = node_object_abandon,
        .used = object_used,
        .remove = node_object_remove,
        .open = node_rank_open,
        .close = node_rank_close,
        .start = node_rank_start,
        .cancel = node_rank_cancel,
        .token = node_request_token,
        .end = node_request_end,
        .ask = env_ask,
        .answered = env_answered,
        .log = env_log,
    };
    json_t *saved = read_object("state.json");
    const struct cluster_options options = {
        .id = node_id_of(node->id),
        .incarnation = node->incarnation,
        .name = node->name,
        .address = address,
        .key = node->keys[0],
        .saved = saved,
        .data_interface = node->options.data_interface,
    };
    enum status status = cluster_core_open(&node->core, &env, &options, error);
    json_decref(saved);
    return status;
}

static enum status open_links(struct cluster_node *node, struct error *error)
{
    static const struct net_link_events events = {.up = on_up,
                                                  .message = on_accepted_message,
                                                  .down = on_accepted_down,
                                                  .refused = on_refused};
    struct net_link_server_options options = {
        .link = {.events = &events, .context = node, .pending_bytes = PENDING_BYTES},
        .find_key = find_key,
    };
    options.link.hello = node_hello(node, NET_CONTROL, NULL);
    enum status status = net_link_server_open(&node->server, node->options.loop,
                                              node->options.listen, &options, error);
    if (status != STATUS_OK)
        return status;
    options.link.hello = node_hello(node, NET_CONTROL, NULL); /* with the port that it got */
    net_link_server_set_hello(node->server, &options.link.hello);
    const struct net_multicast_options multicast = {.group4 = GROUP4,
                                                    .group6 = GROUP6,
                                                    .port = GROUP_PORT,
                                                    .received = on_datagram,
                                                    .context = node};
    struct error failed;
    /* Who listens on loopback alone would be looked for elsewhere. */
    bool quiet = node->options.quiet || listens_to_itself(node);
    if (!quiet &&
        net_multicast_open(&node->multicast, node->options.loop, &multicast, &failed) != STATUS_OK)
        node_logf(node, "no beacons: %s; other nodes have to name this one with --peer",
                  failed.text);
    return STATUS_OK;
}

static void find_name(struct cluster_node *node)
{
    char host[256] = "";
    gethostname(host, sizeof host - 1);
    host[strcspn(host, ".")] = '\0';
    const char *name = node->options.name != NULL ? node->options.name : host;
    snprintf(node->name, sizeof node->name, "%.*s", CLUSTER_NAME_BYTES - 1,
             name[0] != '\0' ? name : "node");
}

enum status cluster_node_open(struct cluster_node **out, const struct cluster_node_options *options,
                              struct error *error)
{
    *out = NULL;
    struct cluster_node *node = calloc(1, sizeof *node);
    if (node == NULL)
        return error_memory(error, sizeof *node);
    node->options = *options;
    atomic_init(&node->n_holds, 1);
    pthread_mutex_init(&node->local_mutex, NULL);
    pthread_mutex_init(&node->post_mutex, NULL);
    if (node->options.listen == NULL)
        node->options.listen = CLUSTER_DEFAULT_LISTEN;
    node->incarnation = rng_entropy() >> 1;
    find_name(node);
    struct cluster_key key;
    enum status status = cluster_key_load(&key, error);
    if (status == STATUS_OK)
        status = cluster_node_id(node->id, error);
    if (status == STATUS_OK) {
        hex_of(node->id, sizeof node->id, node->id_text);
        snprintf(node->saved_key_id, sizeof node->saved_key_id, "%s", key.id);
        take_keys(node, &key, 1);
        status = open_links(node, error);
    }
    if (status == STATUS_OK)
        status = open_core(node, error);
    if (status != STATUS_OK) {
        cluster_node_close(node);
        return status;
    }
    add_peers(node);
    node_objects_open();
    set_facts(node);
    node_measure_machine(node);
    tick(node);
    *out = node;
    return STATUS_OK;
}

void cluster_node_close(struct cluster_node *node)
{
    if (node == NULL)
        return;
    net_timer_cancel(node->ticking);
    node->ticking = NULL;
    node->closing = true;
    node_requests_close(node);
    node_metadata_close(node);
    node_ranks_close(node);
    node_objects_close(node);
    save_now(node);
    for (size_t i = 0; i < NODE_MAX_LINKS; i++)
        if (node->links[i].id != 0) {
            net_link_close(node->links[i].link);
            forget_link(&node->links[i]);
        }
    net_multicast_close(node->multicast);
    net_link_server_close(node->server);
    cluster_core_close(node->core);
    node->core = NULL;
    node->server = NULL;
    /* Threads that still measure hold the node, and not the loop. */
    pthread_mutex_lock(&node->post_mutex);
    node->deaf = true;
    pthread_mutex_unlock(&node->post_mutex);
    node_let_go(node);
}

unsigned cluster_node_port(const struct cluster_node *node)
{
    return node->server != NULL ? net_link_server_port(node->server) : 0;
}

json_t *cluster_node_status(const struct cluster_node *node)
{
    return cluster_core_status(node->core);
}

bool cluster_node_alone(const struct cluster_node *node)
{
    for (size_t i = 0; i < NODE_MAX_LINKS; i++)
        if (node->links[i].id != 0 && node->links[i].up)
            return false;
    return true;
}

enum status cluster_node_rotate(struct cluster_node *node, struct error *error)
{
    struct cluster_key next;
    enum status status = cluster_key_make(&next, error);
    return status == STATUS_OK ? cluster_core_rotate(node->core, &next, error) : status;
}

struct cluster_core *cluster_node_core(struct cluster_node *node)
{
    return node->core;
}
