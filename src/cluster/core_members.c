/* Who is there: nodes, links between them, and their end.
 *
 *   hello  {protocol, id, incarnation, name, address, key}    the first on each link, both ways
 *   bye    {code, reason}                                     the last: removed, left, refused
 *   beat   {wall, digest, free, load,                         each 250 ms
 *           steps: [[instance, epoch, steps, waiting]]}       of ranks that are open
 *   facts  {version, limit, other, disk, bandwidth, flops, threads, own,   when they changed
 *           keys: [id], models: [[sha, name, size]], objects: [[id, size]],
 *           nodes: [[id, name, [address]]], places, links}          (core_paths.c)
 *
 * Identities are 32 hexadecimal digits; times are milliseconds, sizes bytes, latencies
 * microseconds.
 *
 * Both sides of a pair may dial; the node with the lower id does so first. Where both come through,
 * the link that the lower one dialled stays, and of two by the same the later one. All that goes on
 * between two nodes is tied to one link: when it ends, or is replaced, each is lost to the other.
 * So what was sent on it and did not arrive never has to be asked about.
 */
#include "cluster/core_internal.h"

/* ---- Tables ---------------------------------------------------------------------------------- */

struct node *members_by_link(struct cluster_core *core, uint32_t link)
{
    NODE_EACH(core, node)
    if (node->state == NODE_UP && node->link == link)
        return node;
    return NULL;
}

static void note_refused(struct cluster_core *core, const char *address, const char *name,
                         const char *reason)
{
    struct refused *place = &core->refused[0];
    for (size_t i = 0; i < CLUSTER_MAX_REFUSED; i++) {
        struct refused *entry = &core->refused[i];
        if (entry->seen_ms != 0 && strcmp(entry->address, address) == 0) {
            place = entry;
            break;
        }
        if (entry->seen_ms < place->seen_ms)
            place = entry;
    }
    bool known = place->seen_ms != 0 && strcmp(place->address, address) == 0 &&
                 strcmp(place->reason, reason) == 0;
    text_copy(place->address, sizeof place->address, address);
    text_copy(place->name, sizeof place->name, name);
    text_copy(place->reason, sizeof place->reason, reason);
    place->seen_ms = MAX(core->now_ms, (uint64_t)1);
    if (!known)
        core_log(core, "%s (%s) cannot take part: %s", name, address, reason);
}

static void note_copied(struct cluster_core *core, const char *name, const char *address,
                        const char *other)
{
    struct refused *copied = &core->copied;
    if (copied->seen_ms == 0)
        core_log(core, "copied identity: %s runs at %s and at %s", name, address, other);
    text_copy(copied->name, sizeof copied->name, name);
    text_copy(copied->address, sizeof copied->address, address);
    snprintf(copied->reason, sizeof copied->reason,
             "copied identity: %s runs at %s and at %s; join one of them again", name, address,
             other);
    copied->seen_ms = MAX(core->now_ms, (uint64_t)1);
}

/* The latest first. */
static void add_address(struct node *node, const char *address)
{
    if (address[0] == 0)
        return;
    uint32_t at = 0;
    while (at < node->n_addresses && strcmp(node->addresses[at], address) != 0)
        at++;
    if (at == node->n_addresses) {
        node->n_addresses = MIN(node->n_addresses + 1, CLUSTER_MAX_ADDRESSES);
        at = node->n_addresses - 1;
    }
    memmove(node->addresses + 1, node->addresses, at * sizeof node->addresses[0]);
    text_copy(node->addresses[0], sizeof node->addresses[0], address);
}

static bool was_removed(const struct cluster_core *core, struct cluster_id id)
{
    char key[CLUSTER_ENTRY_KEY_BYTES] = "removed/";
    cluster_id_text(key + strlen(key), id);
    return cluster_core_get(core, key) != NULL;
}

struct node *members_add(struct cluster_core *core, struct cluster_id id, const char *name,
                         const char *address)
{
    struct node *node = core_node(core, id);
    if (node == NULL) {
        if (was_removed(core, id))
            return NULL;
        node = core->nodes + 1;
        while (node < core->nodes + CLUSTER_MAX_NODES && node->state != NODE_NONE)
            node++;
        if (node == core->nodes + CLUSTER_MAX_NODES) {
            char reason[CLUSTER_REASON_BYTES];
            snprintf(reason, sizeof reason, "the cluster has %d nodes already; remove one",
                     CLUSTER_MAX_NODES);
            note_refused(core, address, name, reason);
            return NULL;
        }
        memset(node, 0, sizeof *node);
        node->state = NODE_DOWN;
        node->id = id;
        text_copy(node->name, sizeof node->name, name);
        text_copy(node->reason, sizeof node->reason, "not reached yet");
        uint64_t yield = cluster_id_compare(core->nodes[0].id, id) < 0 ? 0 : DIAL_YIELD_MS;
        node->dial_ms = core->now_ms + yield;
        core->facts_dirty = core->saved_dirty = true;
    }
    if (node->state != NODE_SELF)
        add_address(node, address);
    return node;
}

static void forget(struct cluster_core *core, struct node *node)
{
    json_decref(node->work);
    json_decref(node->outbox);
    limits_node_gone(core, node);
    json_decref(node->told_links);
    memset(node, 0, sizeof *node);
    core->facts_dirty = core->saved_dirty = true;
}

/* ---- The end of a link ----------------------------------------------------------------------- */

static void dial_later(struct cluster_core *core, struct node *node)
{
    uint64_t wait = (uint64_t)DIAL_FIRST_MS << MIN(node->failures, 5u);
    bool first = cluster_id_compare(core->nodes[0].id, node->id) < 0;
    node->dial_ms = core->now_ms + core_jitter(core, MIN(wait, (uint64_t)DIAL_MOST_MS)) +
                    (first ? 0 : DIAL_YIELD_MS);
}

void members_lost(struct cluster_core *core, struct node *node, const char *reason)
{
    char text[CLUSTER_REASON_BYTES]; /* reason may be the node's own */
    text_copy(text, sizeof text, reason);
    core_log(core, "lost %s: %s", node->name, text);
    node->state = NODE_DOWN;
    node->link = 0;
    node->lost_ms = core->now_ms;
    text_copy(node->reason, sizeof node->reason, text);
    node->failures = 0;
    dial_later(core, node);
    node->has_facts = false;
    node->n_instances = node->n_grants = node->n_transfers = node->n_replicas = 0;
    json_decref(node->work);
    json_decref(node->outbox);
    node->work = node->outbox = NULL;
    worker_node_lost(core, node);
    requests_node_lost(core, node);
    instances_node_lost(core, node, text);
    fetch_node_lost(core, node);
    questions_node_lost(core, node);
    limits_node_lost(core, node, core->now_ms - node->heard_ms > CLUSTER_SILENCE_MS);
}

void members_drop(struct cluster_core *core, struct node *node, const char *reason)
{
    uint32_t link = node->link;
    members_lost(core, node, reason);
    core->env.drop(core->env.context, link, reason);
}

static json_t *bye(const char *code, const char *reason)
{
    return json_pack("{s:s, s:s, s:s}", "type", "bye", "code", code, "reason", reason);
}

void members_bye(struct cluster_core *core, const char *code, const char *reason)
{
    NODE_EACH(core, node)
    if (node->state == NODE_UP) {
        core_send(core, node, bye(code, reason));
        members_drop(core, node, reason);
    }
}

void on_bye(struct cluster_core *core, struct node *from, struct message *message)
{
    char code[CLUSTER_NAME_BYTES], reason[CLUSTER_REASON_BYTES];
    message_text(message, "code", code, sizeof code);
    message_text(message, "reason", reason, sizeof reason);
    if (message->failed)
        return;
    if (strcmp(code, "removed") == 0)
        text_copy(core->removed_reason, sizeof core->removed_reason, reason);
    members_drop(core, from, reason);
    limits_node_gone(core, from);
    from->failures = 5; /* it does not want this node now */
    dial_later(core, from);
}

void members_removed(struct cluster_core *core, struct cluster_id id, const json_t *value)
{
    if (cluster_id_equal(id, core->nodes[0].id)) {
        core->removed = value != NULL;
        if (core->removed)
            members_bye(core, "left", "this node was removed from the cluster");
        return;
    }
    struct node *node = core_node(core, id);
    if (node == NULL || value == NULL)
        return;
    core_log(core, "%s was removed from the cluster", node->name);
    if (node->state == NODE_UP) {
        core_send(core, node, bye("removed", "this node was removed from the cluster"));
        members_drop(core, node, "removed from the cluster");
    }
    forget(core, node);
}

/* ---- A new link ------------------------------------------------------------------------------ */

struct greeting {
    struct cluster_id id;
    uint64_t incarnation;
    char name[CLUSTER_NAME_BYTES];
    char address[CLUSTER_ADDRESS_BYTES];
};

json_t *cluster_core_hello(const struct cluster_core *core, const char *key_id)
{
    return json_pack("{s:s, s:i, s:o, s:o, s:s, s:s, s:s}", "type", "hello", "protocol",
                     CLUSTER_PROTOCOL, "id", json_id(core->nodes[0].id), "incarnation",
                     json_u64(core->nodes[0].incarnation), "name", core->nodes[0].name, "address",
                     core->own_address, "key", key_id);
}

bool cluster_core_wanted(const struct cluster_core *core, const char *address)
{
    for (size_t i = 1; i < CLUSTER_MAX_NODES; i++) {
        const struct node *node = &core->nodes[i];
        for (uint32_t a = 0; node->state == NODE_UP && a < node->n_addresses; a++)
            if (strcmp(node->addresses[a], address) == 0)
                return false;
    }
    return !core->removed && !core->left;
}

/* False, with the reason, where the peer may not take part whatever it says. */
static bool read_hello(const json_t *hello, struct greeting *out, char reason[CLUSTER_REASON_BYTES])
{
    struct message message = message_over(hello);
    uint64_t protocol = message_u64(&message, "protocol", UINT32_MAX);
    message_text(&message, "name", out->name, sizeof out->name);
    if (!message.failed && protocol != CLUSTER_PROTOCOL) {
        snprintf(reason, CLUSTER_REASON_BYTES,
                 "it speaks version %" PRIu64 " of the protocol, this node version %d", protocol,
                 CLUSTER_PROTOCOL);
        return false;
    }
    out->id = message_id(&message, "id");
    out->incarnation = message_u64(&message, "incarnation", INT64_MAX);
    message_text(&message, "address", out->address, sizeof out->address);
    if (message.failed)
        snprintf(reason, CLUSTER_REASON_BYTES, "bad hello: %s", message.fault);
    return !message.failed;
}

static void link_refuse(struct cluster_core *core, uint32_t link, const char *code,
                        const char *reason)
{
    json_t *message = bye(code, reason);
    if (message != NULL)
        core->env.send(core->env.context, link, message);
    json_decref(message);
    core->env.drop(core->env.context, link, reason);
}

/* Whether a link by this key may bring a node: while the key changes the old one serves only nodes
 * that are known. */
static bool key_allows(const struct cluster_core *core, const char *key_id, bool known)
{
    return keys_hold(core, key_id) && (known || strcmp(core->keys[0].id, key_id) == 0);
}

/* Of a node that has a link already, or seems to: whether the new one takes its place. */
static bool link_replaces(struct cluster_core *core, struct node *node,
                          const struct greeting *greeting, bool outgoing, const char *address)
{
    if (greeting->incarnation == node->incarnation) {
        bool lower = cluster_id_compare(core->nodes[0].id, node->id) < 0;
        return (node->outgoing != lower) || (outgoing == lower);
    }
    if (greeting->incarnation != node->superseded)
        return true; /* it was started again */
    if (core->now_ms - node->superseded_ms > STALE_MS)
        note_copied(core, node->name, node->at, address);
    return false;
}

static void link_take(struct cluster_core *core, struct node *node, uint32_t link, bool outgoing,
                      const char *address, const struct greeting *greeting)
{
    if (greeting->incarnation != node->incarnation) {
        node->superseded = node->incarnation;
        node->superseded_ms = core->now_ms;
    }
    node->state = NODE_UP;
    node->link = link;
    node->outgoing = outgoing;
    text_copy(node->at, sizeof node->at, address);
    node->incarnation = greeting->incarnation;
    text_copy(node->name, sizeof node->name, greeting->name);
    node->heard_ms = node->up_ms = core->now_ms;
    node->asked_ms = 0;
    node->failures = 0;
    node->reason[0] = 0;
    node->skew_ms = 0;
    node->digest = state_digest(&core->state);
    core->removed_reason[0] = 0;
    paths_renew(core, node);
    paths_again(core, node);
    core_log(core, "%s is up", node->name);
    core->facts_dirty = core->work_dirty = core->saved_dirty = true;
    instances_node_up(core);
    limits_node_up(core, node);
    core->replicas_dirty = true;
}

static struct peer *find_peer(struct cluster_core *core, const char *address)
{
    for (size_t i = 0; i < CLUSTER_MAX_PEERS; i++)
        if (address[0] != 0 && strcmp(core->peers[i].address, address) == 0)
            return &core->peers[i];
    return NULL;
}

/* Why the peer may not take part, in *code and reason; NULL: it may. */
static struct node *link_admit(struct cluster_core *core, const struct greeting *greeting,
                               const char *address, const char *key_id, const char **code,
                               char reason[CLUSTER_REASON_BYTES])
{
    *code = "refused";
    if (core->removed || core->left) {
        snprintf(reason, CLUSTER_REASON_BYTES, "%s is no longer in the cluster",
                 core->nodes[0].name);
        return NULL;
    }
    if (cluster_id_equal(greeting->id, core->nodes[0].id)) {
        if (greeting->incarnation != core->nodes[0].incarnation)
            note_copied(core, greeting->name, core->own_address, address);
        snprintf(reason, CLUSTER_REASON_BYTES, "both nodes have the same identity");
        return NULL;
    }
    if (was_removed(core, greeting->id)) {
        *code = "removed";
        snprintf(reason, CLUSTER_REASON_BYTES, "this node was removed from the cluster");
        note_refused(core, address, greeting->name, "it was removed from the cluster");
        return NULL;
    }
    if (!key_allows(core, key_id, core_node(core, greeting->id) != NULL)) {
        snprintf(reason, CLUSTER_REASON_BYTES, "the cluster's key was changed; join again");
        note_refused(core, address, greeting->name, "it has a key that was changed");
        return NULL;
    }
    struct node *node = members_add(core, greeting->id, greeting->name, address);
    if (node == NULL)
        snprintf(reason, CLUSTER_REASON_BYTES, "the cluster has %d nodes already",
                 CLUSTER_MAX_NODES);
    return node;
}

void cluster_core_link_up(struct cluster_core *core, uint32_t link, bool outgoing,
                          const char *address, const char *key_id, const json_t *hello)
{
    core_begin(core);
    struct greeting greeting;
    char reason[CLUSTER_REASON_BYTES];
    const char *code = "refused";
    struct node *node = NULL;
    struct peer *peer = outgoing ? find_peer(core, address) : NULL;
    if (peer != NULL)
        peer->dialling = false;
    if (read_hello(hello, &greeting, reason)) {
        if (peer != NULL)
            peer->node = greeting.id;
        node = link_admit(core, &greeting, address, key_id, &code, reason);
    } else
        note_refused(core, address, greeting.name, reason);
    if (node != NULL && node->state == NODE_UP) {
        if (!link_replaces(core, node, &greeting, outgoing, address)) {
            if (greeting.incarnation != node->incarnation)
                link_refuse(core, link, "refused", "another node with this identity is there");
            else
                core->env.drop(core->env.context, link, "there is a link already");
            core_end(core);
            return;
        }
        members_drop(core, node, "another link took its place");
    } else if (node != NULL && greeting.incarnation == node->superseded &&
               greeting.incarnation != node->incarnation && node->superseded != 0 &&
               core->now_ms - node->superseded_ms > STALE_MS)
        note_copied(core, node->name, node->at, address);
    if (node == NULL)
        link_refuse(core, link, code, reason);
    else
        link_take(core, node, link, outgoing, address, &greeting);
    core_end(core);
}

void cluster_core_link_down(struct cluster_core *core, uint32_t link, const char *reason)
{
    core_begin(core);
    struct node *node = members_by_link(core, link);
    if (node != NULL)
        members_lost(core, node, reason);
    core_end(core);
}

/* ---- Finding nodes --------------------------------------------------------------------------- */

void cluster_core_add_peer(struct cluster_core *core, const char *address)
{
    core_begin(core);
    if (strlen(address) >= CLUSTER_ADDRESS_BYTES || find_peer(core, address) != NULL)
        return;
    for (size_t i = 0; i < CLUSTER_MAX_PEERS; i++) {
        struct peer *peer = &core->peers[i];
        if (peer->address[0] != 0)
            continue;
        memset(peer, 0, sizeof *peer);
        text_copy(peer->address, sizeof peer->address, address);
        return;
    }
    core_log(core, "%s is not tried: there are %d addresses already", address, CLUSTER_MAX_PEERS);
}

void cluster_core_beacon(struct cluster_core *core, struct cluster_id id, uint64_t incarnation,
                         const char *name, const char *address)
{
    core_begin(core);
    struct node *self = &core->nodes[0];
    if (core->left || core->removed || strlen(address) >= CLUSTER_ADDRESS_BYTES)
        return;
    if (cluster_id_equal(id, self->id)) {
        if (incarnation != self->incarnation)
            note_copied(core, self->name, core->own_address, address);
        return;
    }
    struct node *node = members_add(core, id, name, address);
    if (node != NULL && node->state == NODE_DOWN && node->failures > 1) {
        node->failures = 1; /* it is there: no long waits any more */
        uint64_t soon = core->now_ms + core_jitter(core, DIAL_FIRST_MS) + DIAL_YIELD_MS;
        node->dial_ms = MIN(node->dial_ms, soon);
    }
}

void cluster_core_refused(struct cluster_core *core, const char *address, const char *name,
                          const char *reason)
{
    core_begin(core);
    note_refused(core, address, name, reason);
}

/* A way of data that goes elsewhere than the node's addresses, the turn-th of them; NULL: none. */
static const char *other_address(const struct node *node, uint32_t turn)
{
    const char *others[CLUSTER_MAX_PATHS];
    uint32_t n = 0;
    for (uint32_t i = 0; i < node->n_paths; i++) {
        const char *address = node->paths[i].way.address;
        bool known = false;
        for (uint32_t k = 0; k < node->n_addresses; k++)
            known = known || strcmp(node->addresses[k], address) == 0;
        if (!known)
            others[n++] = address;
    }
    return n > 0 ? others[turn % n] : NULL;
}

/* All addresses of the node, and then one more by which it may be there when they are not; with one
 * key after the other. */
static void dial(struct cluster_core *core, struct node *node)
{
    bool others = other_address(node, 0) != NULL;
    uint32_t n = node->n_addresses + others;
    if (n == 0)
        return;
    uint32_t at = node->failures % n, turn = node->failures / n;
    text_copy(node->dialled, sizeof node->dialled,
              at < node->n_addresses ? node->addresses[at] : other_address(node, turn));
    node->state = NODE_DIALLING;
    node->dial_ms = core->now_ms + DIAL_TIMEOUT_MS;
    core->env.connect(core->env.context, node->dialled, keys_for(core, node, turn));
}

static void dial_failed(struct cluster_core *core, struct node *node, const char *reason)
{
    node->state = NODE_DOWN;
    node->failures++;
    text_copy(node->reason, sizeof node->reason, reason);
    dial_later(core, node);
}

static void peer_failed(struct cluster_core *core, struct peer *peer, const char *reason)
{
    peer->dialling = false;
    uint64_t wait = (uint64_t)DIAL_FIRST_MS << MIN(peer->failures, 5u);
    peer->failures++;
    peer->dial_ms = core->now_ms + core_jitter(core, MIN(wait, (uint64_t)DIAL_MOST_MS));
    text_copy(peer->reason, sizeof peer->reason, reason);
}

void cluster_core_connect_failed(struct cluster_core *core, const char *address, const char *reason)
{
    core_begin(core);
    NODE_EACH(core, node)
    if (node->state == NODE_DIALLING && strcmp(node->dialled, address) == 0)
        dial_failed(core, node, reason);
    struct peer *peer = find_peer(core, address);
    if (peer != NULL && peer->dialling)
        peer_failed(core, peer, reason);
    core_end(core);
}

/* Addresses whose node is known are its own business. */
static void dial_peers(struct cluster_core *core)
{
    for (size_t i = 0; i < CLUSTER_MAX_PEERS; i++) {
        struct peer *peer = &core->peers[i];
        if (peer->address[0] == 0 || core->now_ms < peer->dial_ms)
            continue;
        if (peer->dialling) {
            peer_failed(core, peer, "no answer");
            continue;
        }
        if (!cluster_id_none(peer->node) && core_node(core, peer->node) != NULL)
            continue;
        peer->dialling = true;
        peer->dial_ms = core->now_ms + DIAL_TIMEOUT_MS;
        core->env.connect(core->env.context, peer->address,
                          core->keys[peer->failures % core->n_keys].id);
    }
}

void members_tick(struct cluster_core *core)
{
    NODE_EACH(core, node)
    {
        if (node->state == NODE_UP && core->now_ms - node->heard_ms > CLUSTER_SILENCE_MS)
            members_drop(core, node, "not heard for three seconds");
        else if (node->state == NODE_DIALLING && core->now_ms >= node->dial_ms)
            dial_failed(core, node, "no answer");
        else if (node->state == NODE_DOWN && core->now_ms >= node->dial_ms && !core->removed)
            dial(core, node);
    }
    paths_tick(core);
    if (!core->removed)
        dial_peers(core);
}

/* ---- Telling --------------------------------------------------------------------------------- */

void members_beat(struct cluster_core *core)
{
    struct node *self = &core->nodes[0];
    self->free_bytes = worker_free_bytes(core);
    json_t *steps = json_array();
    for (size_t i = 0; i < CLUSTER_MAX_RESERVATIONS; i++) {
        const struct reservation *r = &core->reservations[i];
        if (r->state == RESERVATION_OPENED)
            json_array_append_new(steps, json_pack("[o, o, o, b]", json_u64(r->instance),
                                                   json_u64(r->epoch), json_u64(r->steps),
                                                   (int)r->waiting));
    }
    json_t *message =
        json_pack("{s:s, s:o, s:o, s:o, s:f, s:o}", "type", "beat", "wall",
                  json_u64(core->env.wall_ms(core->env.context)), "digest",
                  json_u64(state_digest(&core->state)), "free", json_u64(self->free_bytes), "load",
                  self->facts.load, "steps", steps);
    core_send(core, self, json_incref(message));
    core_send_all(core, message, NULL);
}

void on_beat(struct cluster_core *core, struct node *from, struct message *message)
{
    uint64_t wall = message_u64(message, "wall", INT64_MAX);
    uint64_t digest = message_u64(message, "digest", INT64_MAX);
    uint64_t free_bytes = message_u64(message, "free", INT64_MAX);
    double load = message_real(message, "load");
    size_t n;
    const json_t *steps = message_list(message, "steps", CLUSTER_MAX_RESERVATIONS, &n);
    if (message->failed)
        return;
    from->skew_ms = (int64_t)(wall - core->env.wall_ms(core->env.context));
    from->free_bytes = free_bytes;
    from->facts.load = load;
    from->digest = digest;
    for (size_t i = 0; i < n; i++) {
        struct message item = message_item(steps, i);
        uint64_t instance = item_u64(&item, 0, INT64_MAX);
        uint32_t epoch = (uint32_t)item_u64(&item, 1, UINT32_MAX);
        uint64_t count = item_u64(&item, 2, INT64_MAX);
        bool waiting = json_is_true(json_array_get(item.json, 3));
        message_take(message, &item);
        if (message->failed)
            return;
        instance_steps(core, from, instance, epoch, count, waiting);
    }
    if (from->state == NODE_UP)
        state_compare(core, from);
}

static json_t *told_nodes(struct cluster_core *core)
{
    json_t *list = json_array();
    NODE_EACH(core, node)
    {
        if (node->state == NODE_NONE || node->state == NODE_SELF)
            continue;
        json_t *addresses = json_array();
        for (uint32_t i = 0; i < node->n_addresses; i++)
            json_array_append_new(addresses, json_string(node->addresses[i]));
        json_array_append_new(list,
                              json_pack("[o, s, o]", json_id(node->id), node->name, addresses));
    }
    return list;
}

static json_t *facts_message(struct cluster_core *core)
{
    const struct cluster_facts *facts = &core->nodes[0].facts;
    json_t *keys = json_array(), *models = json_array(), *objects = json_array();
    json_t *rates = json_array();
    for (uint32_t i = 0; i < core->n_keys; i++)
        json_array_append_new(keys, json_string(core->keys[i].id));
    for (uint32_t i = 0; i < facts->n_models; i++)
        json_array_append_new(models, json_model(&facts->models[i]));
    for (uint32_t i = 0; i < facts->n_objects; i++)
        json_array_append_new(objects, json_pack("[s, o]", facts->objects[i].id,
                                                 json_u64(facts->objects[i].size_bytes)));
    for (uint32_t i = 0; i < facts->n_rates; i++)
        json_array_append_new(
            rates, json_pack("[s, f]", facts->rates[i].format, facts->rates[i].bytes_per_s));
    return json_pack(
        "{s:s, s:s, s:o, s:o, s:o, s:f, s:o, s:f, s:i, s:b, s:o, s:o, s:o, s:o, s:o, s:o}", "type",
        "facts", "version", facts->version, "limit", json_u64(facts->memory_limit_bytes), "other",
        json_u64(facts->memory_other_bytes), "disk", json_u64(disk_offered(core)), "bandwidth",
        facts->read_bandwidth, "rates", rates, "flops", facts->flops, "threads",
        (int)MIN(facts->n_threads, INT16_MAX), "own", (int)facts->can_own, "keys", keys, "models",
        models, "objects", objects, "links", paths_links(core), "nodes", told_nodes(core), "places",
        paths_places(&facts->places));
}

void members_tell(struct cluster_core *core)
{
    if (core->facts_dirty && core->nodes[0].has_facts)
        core_send_all(core, facts_message(core), NULL);
    if (core->work_dirty) {
        json_t *work = work_message(core);
        core_send(core, &core->nodes[0], json_incref(work));
        core_send_all(core, work, NULL);
    }
    core->facts_dirty = core->work_dirty = false;
}

/* ---- Being told ------------------------------------------------------------------------------ */

static void read_held(struct message *message, struct cluster_facts *facts)
{
    size_t n_models, n_objects;
    const json_t *models = message_list(message, "models", CLUSTER_MAX_MODELS, &n_models);
    const json_t *objects = message_list(message, "objects", CLUSTER_MAX_OBJECTS, &n_objects);
    for (size_t i = 0; i < n_models; i++) {
        struct message item = message_item(models, i);
        struct cluster_model *model = &facts->models[i];
        item_text(&item, 0, model->sha, sizeof model->sha);
        item_text(&item, 1, model->name, sizeof model->name);
        model->size_bytes = item_u64(&item, 2, INT64_MAX);
        message_take(message, &item);
    }
    for (size_t i = 0; i < n_objects; i++) {
        struct message item = message_item(objects, i);
        item_text(&item, 0, facts->objects[i].id, sizeof facts->objects[i].id);
        facts->objects[i].size_bytes = item_u64(&item, 1, INT64_MAX);
        message_take(message, &item);
    }
    facts->n_models = (uint32_t)n_models;
    facts->n_objects = (uint32_t)n_objects;
}

static void read_rates(struct message *message, struct cluster_facts *facts)
{
    size_t n;
    if (message_any(message, "rates") == NULL)
        return;
    const json_t *rates = message_list(message, "rates", CLUSTER_MAX_RATES, &n);
    for (size_t i = 0; i < n; i++) {
        struct message item = message_item(rates, i);
        item_text(&item, 0, facts->rates[i].format, sizeof facts->rates[i].format);
        facts->rates[i].bytes_per_s = item_real(&item, 1);
        message_take(message, &item);
    }
    facts->n_rates = (uint32_t)n;
}

/* Nodes that the other one knows. */
static void read_nodes(struct cluster_core *core, struct message *message)
{
    size_t n;
    const json_t *list = message_list(message, "nodes", CLUSTER_MAX_NODES, &n);
    for (size_t i = 0; i < n && !message->failed; i++) {
        struct message item = message_item(list, i);
        struct cluster_id id = item_id(&item, 0);
        char name[CLUSTER_NAME_BYTES], text[CLUSTER_ADDRESS_BYTES];
        item_text(&item, 1, name, sizeof name);
        const json_t *addresses = json_array_get(item.json, 2);
        size_t n_addresses = MIN(json_array_size(addresses), (size_t)CLUSTER_MAX_ADDRESSES);
        message_take(message, &item);
        if (message->failed || core_node(core, id) != NULL)
            continue;
        struct message places = message_over(addresses);
        for (size_t a = n_addresses; a-- > 0;) {
            item_text(&places, a, text, sizeof text);
            if (!places.failed)
                members_add(core, id, name, text);
        }
        message_take(message, &places);
    }
}

void on_facts(struct cluster_core *core, struct node *from, struct message *message)
{
    struct cluster_facts *facts = &from->facts;
    const struct cluster_places before = facts->places;
    double load = facts->load;
    memset(facts, 0, sizeof *facts);
    facts->load = load;
    if (message_any(message, "version") != NULL)
        message_text(message, "version", facts->version, sizeof facts->version);
    facts->memory_limit_bytes = message_u64(message, "limit", INT64_MAX);
    facts->memory_other_bytes = message_u64(message, "other", INT64_MAX);
    facts->disk_free_bytes = message_u64(message, "disk", INT64_MAX);
    facts->read_bandwidth = message_real(message, "bandwidth");
    facts->flops = message_real(message, "flops");
    facts->n_threads = (uint32_t)message_u64(message, "threads", UINT32_MAX);
    facts->can_own = message_flag(message, "own");
    read_rates(message, facts);
    read_held(message, facts);
    size_t n_keys;
    const json_t *keys = message_list(message, "keys", CLUSTER_MAX_KEYS, &n_keys);
    struct message list = message_over(keys);
    for (size_t i = 0; i < n_keys; i++)
        item_text(&list, i, from->keys[i], sizeof from->keys[i]);
    message_take(message, &list);
    from->n_keys = message->failed ? 0 : (uint32_t)n_keys;
    paths_read_places(message, &facts->places);
    paths_read(core, from, message);
    read_nodes(core, message);
    from->has_facts = !message->failed;
    if (message->failed)
        return;
    if (!paths_same_places(&before, &facts->places)) {
        paths_gone(core, from->id, &before, &facts->places);
        paths_renew(core, from);
    }
    fetch_node_told(core, from);
}

const struct told_link *members_link(const struct node *a, const struct node *b)
{
    for (int turn = 0; turn < 2; turn++) {
        const struct node *from = turn == 0 ? a : b, *to = turn == 0 ? b : a;
        for (uint32_t i = 0; i < from->n_links; i++)
            if (cluster_id_equal(from->links[i].node, to->id))
                return &from->links[i];
    }
    return NULL;
}
