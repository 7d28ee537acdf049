/* The ways between two nodes: which there are, how fast each is, and which one data takes.
 *
 *   measure {}                                        to the node with the lower id: measure again
 *   facts   {places: [[interface, address, prefix, order, pinned]],
 *            links: [[node, latency, bandwidth, interface,
 *                     [[interface, from, peer interface, address, latency, bandwidth, state]]]]}
 *
 * Each node tells its addresses. Of a pair, the one with the lower id looks which of the other's
 * are in a network of its own, adds the address of the control link where that is none of these,
 * and measures one way after the other; so it does again when an address comes or goes, when the
 * link is made anew, and from time to time, sooner where a way is dead. It tells the other what it
 * found. Both put the ways in the same order then; either may find one dead when it connects, and
 * asks for a new measurement.
 */
#include "cluster/core_internal.h"

#include "net/net.h"

#define NEAR 0.9 /* of the highest rate: as good, so the latency decides */

enum { CLASS_DEAD = 8, CONTROL_ORDER = 100, MAX_ORDER = 100 };

static const char *const state_names[] = {
    [PATH_UNKNOWN] = "unknown", [PATH_GOOD] = "good", [PATH_DEAD] = "dead"};

/* The one of a pair that measures. */
static bool measures(const struct cluster_core *core, const struct node *node)
{
    return cluster_id_compare(core->nodes[0].id, node->id) < 0;
}

/* ---- The order ------------------------------------------------------------------------------- */

static uint32_t class_of(const struct path *path)
{
    if (path->state == PATH_DEAD)
        return CLASS_DEAD;
    return 2 * path->strayed + (path->state != PATH_GOOD);
}

/* Of those that are measured: the lowest latency among the fastest. */
static uint32_t best_measured(const struct path *paths, uint32_t n, const bool *taken,
                              uint32_t class)
{
    double fastest = 0;
    uint32_t best = n;
    for (uint32_t i = 0; i < n; i++)
        if (!taken[i] && class_of(&paths[i]) == class)
            fastest = MAX(fastest, paths[i].bandwidth);
    for (uint32_t i = 0; i < n; i++)
        if (!taken[i] && class_of(&paths[i]) == class && paths[i].bandwidth >= NEAR * fastest &&
            (best == n || paths[i].latency_us < paths[best].latency_us))
            best = i;
    return best;
}

/* Of others: where the control link is, which works. */
static uint32_t best_unknown(const struct path *paths, uint32_t n, const bool *taken,
                             uint32_t class)
{
    uint32_t best = n;
    for (uint32_t i = 0; i < n; i++)
        if (!taken[i] && class_of(&paths[i]) == class &&
            (best == n || (paths[i].control && !paths[best].control)))
            best = i;
    return best;
}

void paths_order(const struct path *paths, uint32_t n, uint32_t order[CLUSTER_MAX_PATHS])
{
    bool taken[CLUSTER_MAX_PATHS] = {false};
    for (uint32_t at = 0; at < n; at++) {
        uint32_t class = UINT32_MAX;
        for (uint32_t i = 0; i < n; i++)
            if (!taken[i])
                class = MIN(class, class_of(&paths[i]));
        bool measured = class != CLASS_DEAD && class % 2 == 0;
        order[at] =
            measured ? best_measured(paths, n, taken, class) : best_unknown(paths, n, taken, class);
        taken[order[at]] = true;
    }
}

size_t cluster_core_ways(const struct cluster_core *core, struct cluster_id id,
                         struct cluster_way out[CLUSTER_MAX_PATHS])
{
    uint32_t order[CLUSTER_MAX_PATHS];
    const struct node *node = core_node((struct cluster_core *)core, id);
    if (node == NULL)
        return 0;
    paths_order(node->paths, node->n_paths, order);
    for (uint32_t i = 0; i < node->n_paths; i++)
        out[i] = node->paths[order[i]].way;
    return node->n_paths;
}

/* ---- Which there are ------------------------------------------------------------------------- */

static const struct cluster_place *place_at(const struct cluster_places *places,
                                            const char *address)
{
    for (uint32_t i = 0; i < places->n; i++)
        if (net_address_same(places->at[i].address, address))
            return &places->at[i];
    return NULL;
}

/* Whether the node is pinned to interfaces, and this is none of them. */
static bool strays(const struct cluster_places *places, const char *interface)
{
    bool pins = false, pinned = false;
    for (uint32_t i = 0; i < places->n; i++) {
        const struct cluster_place *place = &places->at[i];
        pins = pins || place->pinned;
        pinned = pinned || (place->pinned && strcmp(place->interface, interface) == 0);
    }
    return pins && !pinned;
}

static void set_strayed(const struct cluster_core *core, const struct node *node, struct path *path)
{
    path->strayed = (uint32_t)strays(&core->nodes[0].facts.places, path->interface) +
                    (uint32_t)strays(&node->facts.places, path->peer_interface);
}

/* Where to dial an address of a node, over an interface of this one. */
static void dial_at(const char *address, const char *interface, char out[CLUSTER_ADDRESS_BYTES])
{
    char host[NET_ADDRESS_BYTES], text[NET_ADDRESS_BYTES];
    net_address_host(address, interface, host);
    net_address_join(host, net_address_port(address), text);
    text_copy(out, CLUSTER_ADDRESS_BYTES, text);
}

static struct path path_between(const struct cluster_place *own, const struct cluster_place *other)
{
    char from[NET_ADDRESS_BYTES];
    struct path path = {.order = MAX(own->order, other->order)};
    net_address_host(own->address, own->interface, from);
    text_copy(path.way.from, sizeof path.way.from, from);
    text_copy(path.way.interface, sizeof path.way.interface, own->interface);
    text_copy(path.interface, sizeof path.interface, own->interface);
    text_copy(path.peer_interface, sizeof path.peer_interface, other->interface);
    dial_at(other->address, own->interface, path.way.address);
    return path;
}

/* Keeps those of the lowest order; one is enough for two interfaces. */
static void add_path(struct path *paths, uint32_t *n, uint32_t max, const struct path *path)
{
    uint32_t at = *n;
    for (uint32_t i = 0; i < *n; i++)
        if (strcmp(paths[i].interface, path->interface) == 0 &&
            strcmp(paths[i].peer_interface, path->peer_interface) == 0)
            return;
    while (at > 0 && paths[at - 1].order > path->order)
        at--;
    if (at == max)
        return;
    *n = MIN(*n + 1, max);
    memmove(paths + at + 1, paths + at, (*n - at - 1) * sizeof *paths);
    paths[at] = *path;
}

static void find_paths(const struct cluster_core *core, const struct node *node,
                       struct path paths[CLUSTER_MAX_PATHS], uint32_t *n)
{
    const struct cluster_places *own = &core->nodes[0].facts.places, *other = &node->facts.places;
    *n = 0;
    for (uint32_t i = 0; i < own->n; i++)
        for (uint32_t k = 0; k < other->n; k++) {
            const struct cluster_place *a = &own->at[i], *b = &other->at[k];
            /* An address that both have is of a network that each has for itself. */
            if (!net_address_near(a->address, b->address, MAX(a->prefix, b->prefix)) ||
                place_at(own, b->address) != NULL)
                continue;
            const struct path path = path_between(a, b);
            add_path(paths, n, CLUSTER_MAX_PATHS - 1, &path); /* and the control link's */
        }
    bool known = node->at[0] == 0;
    for (uint32_t i = 0; i < *n; i++) {
        paths[i].control = net_address_same(paths[i].way.address, node->at);
        known = known || paths[i].control;
    }
    if (!known) {
        struct path *path = &paths[(*n)++];
        const struct cluster_place *place = place_at(other, node->at);
        *path = (struct path){.order = CONTROL_ORDER, .control = true};
        text_copy(path->way.address, sizeof path->way.address, node->at);
        text_copy(path->peer_interface, sizeof path->peer_interface,
                  place != NULL ? place->interface : "");
    }
}

static bool same_way(const struct cluster_way *a, const struct cluster_way *b)
{
    return strcmp(a->address, b->address) == 0 && strcmp(a->from, b->from) == 0 &&
           strcmp(a->interface, b->interface) == 0;
}

static struct path *find_path(struct node *node, const struct cluster_way *way)
{
    for (uint32_t i = 0; i < node->n_paths; i++)
        if (same_way(&node->paths[i].way, way))
            return &node->paths[i];
    return NULL;
}

/* What the planner and the others are told of the way to a node: the numbers of the best. */
static void tell_link(struct cluster_core *core, const struct node *node)
{
    struct node *self = &core->nodes[0];
    uint32_t order[CLUSTER_MAX_PATHS], at = 0;
    paths_order(node->paths, node->n_paths, order);
    const struct path *best = node->n_paths > 0 ? &node->paths[order[0]] : NULL;
    core->facts_dirty = true;
    if (best == NULL || best->state != PATH_GOOD)
        return;
    while (at < self->n_links && !cluster_id_equal(self->links[at].node, node->id))
        at++;
    if (at == CLUSTER_MAX_NODES) /* those of nodes that are gone make room */
        at = (uint32_t)(core_random(core) % CLUSTER_MAX_NODES);
    else
        self->n_links = MAX(self->n_links, at + 1);
    struct told_link *link = &self->links[at];
    *link = (struct told_link){
        .node = node->id, .latency_us = best->latency_us, .bandwidth = best->bandwidth};
    text_copy(link->interface, sizeof link->interface, best->interface);
}

/* What the other one told, after places changed and before it tells more. */
static void review(const struct cluster_core *core, struct node *node)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < node->n_paths; i++) {
        struct path *path = &node->paths[i];
        bool there = path->way.from[0] == 0 ||
                     (place_at(&core->nodes[0].facts.places, path->way.from) != NULL &&
                      place_at(&node->facts.places, path->way.address) != NULL);
        if (!there)
            continue;
        set_strayed(core, node, path);
        node->paths[n++] = *path;
    }
    node->n_paths = n;
}

void paths_renew(struct cluster_core *core, struct node *node)
{
    struct path paths[CLUSTER_MAX_PATHS];
    uint32_t n;
    if (!measures(core, node)) {
        review(core, node);
        return;
    }
    find_paths(core, node, paths, &n);
    bool same = n == node->n_paths;
    for (uint32_t i = 0; i < n; i++) {
        const struct path *old = find_path(node, &paths[i].way);
        same = same && old != NULL;
        paths[i].due = true;
        if (old != NULL) {
            paths[i].state = old->state;
            paths[i].latency_us = old->latency_us;
            paths[i].bandwidth = old->bandwidth;
            paths[i].due = old->due;
            text_copy(paths[i].interface, sizeof paths[i].interface, old->interface);
        }
        set_strayed(core, node, &paths[i]);
    }
    memcpy(node->paths, paths, n * sizeof *paths);
    node->n_paths = n;
    if (same)
        return;
    tell_link(core, node);
    paths_again(core, node);
}

bool paths_same_places(const struct cluster_places *a, const struct cluster_places *b)
{
    bool same = a->n == b->n;
    for (uint32_t i = 0; same && i < a->n; i++)
        same = strcmp(a->at[i].address, b->at[i].address) == 0 &&
               strcmp(a->at[i].interface, b->at[i].interface) == 0 &&
               a->at[i].prefix == b->at[i].prefix && a->at[i].order == b->at[i].order &&
               a->at[i].pinned == b->at[i].pinned;
    return same;
}

void paths_gone(struct cluster_core *core, struct cluster_id node,
                const struct cluster_places *before, const struct cluster_places *now)
{
    for (uint32_t i = 0; i < before->n && core->env.place_gone != NULL; i++) {
        const char *address = before->at[i].address;
        if (place_at(now, address) == NULL)
            core->env.place_gone(core->env.context, node, address);
    }
}

/* ---- Measuring ------------------------------------------------------------------------------- */

void paths_again(struct cluster_core *core, struct node *node)
{
    for (uint32_t i = 0; i < node->n_paths; i++)
        node->paths[i].due = true;
    node->measure_ms = core->now_ms + core_jitter(core, MEASURE_FIRST_MS);
}

static struct path *first_due(struct node *node)
{
    for (uint32_t i = 0; i < node->n_paths; i++)
        if (node->paths[i].due)
            return &node->paths[i];
    return NULL;
}

static void take_result(struct cluster_core *core, struct node *node, struct path *path,
                        enum cluster_measure_result result, double latency_us, double bandwidth)
{
    bool good = result == CLUSTER_MEASURED && bandwidth > 0;
    path->due = false;
    if (!good && path->state != PATH_DEAD)
        core_log(core, "%s cannot be reached at %s%s%s", node->name, path->way.address,
                 path->interface[0] != 0 ? " over " : "", path->interface);
    path->state = good ? PATH_GOOD : PATH_DEAD;
    path->latency_us = good ? latency_us : 0;
    path->bandwidth = good ? bandwidth : 0;
    if (first_due(node) != NULL)
        return;
    bool dead = false;
    for (uint32_t i = 0; i < node->n_paths; i++)
        dead = dead || node->paths[i].state == PATH_DEAD;
    /* What is dead may have been busy, or comes back without an address that does. */
    uint64_t wait_ms = dead ? (uint64_t)MEASURE_LEAST_MS << node->dead_rounds : MEASURE_AGAIN_MS;
    node->dead_rounds = dead ? MIN(node->dead_rounds + 1, 8u) : 0;
    node->round_ms = core->now_ms;
    node->measure_ms = core->now_ms + core_jitter(core, MIN(wait_ms, (uint64_t)MEASURE_AGAIN_MS));
}

void cluster_core_measured(struct cluster_core *core, struct cluster_id id,
                           const struct cluster_way *way, enum cluster_measure_result result,
                           double latency_us, double bandwidth, const char *interface)
{
    core_begin(core);
    struct node *node = core_node(core, id);
    struct path *path = node != NULL ? find_path(node, way) : NULL;
    if (cluster_id_equal(core->measured_node, id))
        core->measured_node = (struct cluster_id){0, 0};
    if (path != NULL && result == CLUSTER_MEASURE_BUSY)
        node->measure_ms = core->now_ms + core_jitter(core, MEASURE_BUSY_MS);
    else if (path != NULL) {
        if (path->way.interface[0] == 0 && interface[0] != 0)
            text_copy(path->interface, sizeof path->interface, interface);
        set_strayed(core, node, path);
        take_result(core, node, path, result, latency_us, bandwidth);
        tell_link(core, node);
    }
    core_end(core);
}

void paths_tick(struct cluster_core *core)
{
    struct node *next = NULL;
    if (core->env.measure == NULL)
        return;
    if (!cluster_id_none(core->measured_node)) {
        struct node *node = core_node(core, core->measured_node);
        if (core->now_ms - core->measure_begun_ms < MEASURE_STUCK_MS)
            return;
        struct path *path = node != NULL ? find_path(node, &core->measured_way) : NULL;
        if (path != NULL)
            take_result(core, node, path, CLUSTER_MEASURE_FAILED, 0, 0);
        core->measured_node = (struct cluster_id){0, 0};
    }
    NODE_EACH(core, node)
    {
        if (node->state != NODE_UP || core->now_ms < node->measure_ms || !measures(core, node))
            continue;
        if (first_due(node) == NULL)
            paths_again(core, node);
        else if (next == NULL || node->measure_ms < next->measure_ms)
            next = node;
    }
    if (next == NULL)
        return;
    core->measured_node = next->id;
    core->measured_way = first_due(next)->way;
    core->measure_begun_ms = core->now_ms;
    core->env.measure(core->env.context, next->id, &core->measured_way);
}

/* Asked for by the other side, or by a connection that failed. */
static void again_if_due(struct cluster_core *core, struct node *node)
{
    if (measures(core, node) && core->now_ms - node->round_ms >= MEASURE_LEAST_MS)
        paths_again(core, node);
}

void on_measure(struct cluster_core *core, struct node *from, struct message *message)
{
    (void)message;
    if (from->state == NODE_UP)
        again_if_due(core, from);
}

void cluster_core_way_failed(struct cluster_core *core, struct cluster_id id,
                             const struct cluster_way *way)
{
    core_begin(core);
    struct node *node = core_node_here(core, id);
    struct path *path = node != NULL && node->state == NODE_UP ? find_path(node, way) : NULL;
    if (path != NULL) {
        path->state = PATH_DEAD;
        if (measures(core, node)) {
            again_if_due(core, node);
            tell_link(core, node);
        } else
            core_send(core, node, json_pack("{s:s}", "type", "measure"));
    }
    core_end(core);
}

/* ---- Telling --------------------------------------------------------------------------------- */

json_t *paths_places(const struct cluster_places *places)
{
    json_t *list = json_array();
    for (uint32_t i = 0; i < places->n; i++) {
        const struct cluster_place *place = &places->at[i];
        json_array_append_new(list,
                              json_pack("[s, s, i, i, b]", place->interface, place->address,
                                        (int)place->prefix, (int)place->order, (int)place->pinned));
    }
    return list;
}

static json_t *told_paths(const struct node *node)
{
    uint32_t order[CLUSTER_MAX_PATHS];
    json_t *list = json_array();
    if (node != NULL)
        paths_order(node->paths, node->n_paths, order);
    for (uint32_t i = 0; node != NULL && i < node->n_paths; i++) {
        const struct path *path = &node->paths[order[i]];
        json_array_append_new(list,
                              json_pack("[s, s, s, s, f, f, s]", path->interface, path->way.from,
                                        path->peer_interface, path->way.address, path->latency_us,
                                        path->bandwidth, state_names[path->state]));
    }
    return list;
}

json_t *paths_links(const struct cluster_core *core)
{
    const struct node *self = &core->nodes[0];
    json_t *list = json_array();
    for (uint32_t i = 0; i < self->n_links; i++) {
        const struct told_link *link = &self->links[i];
        const struct node *node = core_node((struct cluster_core *)core, link->node);
        json_array_append_new(list,
                              json_pack("[o, f, f, s, o]", json_id(link->node), link->latency_us,
                                        link->bandwidth, link->interface, told_paths(node)));
    }
    return list;
}

/* ---- Being told ------------------------------------------------------------------------------ */

void paths_read_places(struct message *message, struct cluster_places *places)
{
    size_t n;
    const json_t *list = message_list(message, "places", CLUSTER_MAX_PLACES, &n);
    for (size_t i = 0; i < n; i++) {
        struct message item = message_item(list, i);
        struct cluster_place *place = &places->at[i];
        item_text(&item, 0, place->interface, sizeof place->interface);
        item_text(&item, 1, place->address, NET_ADDRESS_BYTES);
        place->prefix = (uint32_t)item_u64(&item, 2, 128);
        place->order = (uint32_t)item_u64(&item, 3, MAX_ORDER - 1);
        place->pinned = json_is_true(json_array_get(item.json, 4));
        message_take(message, &item);
    }
    places->n = message->failed ? 0 : (uint32_t)n;
}

static struct path read_path(struct message *item)
{
    char state[16];
    struct path path = {.order = 0};
    item_text(item, 0, path.interface, sizeof path.interface);
    item_text(item, 1, path.way.from, NET_ADDRESS_BYTES);
    item_text(item, 2, path.peer_interface, sizeof path.peer_interface);
    item_text(item, 3, path.way.address, sizeof path.way.address);
    path.latency_us = item_real(item, 4);
    path.bandwidth = item_real(item, 5);
    item_text(item, 6, state, sizeof state);
    for (size_t i = 0; i < ARRAY_COUNT(state_names); i++)
        if (strcmp(state, state_names[i]) == 0)
            path.state = (enum path_state)i;
    return path;
}

/* The same path as seen from here; false: its address there is not known. */
static bool mirror(const struct cluster_core *core, const struct node *node,
                   const struct path *told, struct path *out)
{
    *out = *told;
    memset(&out->way, 0, sizeof out->way);
    text_copy(out->interface, sizeof out->interface, told->peer_interface);
    text_copy(out->peer_interface, sizeof out->peer_interface, told->interface);
    out->control = told->way.from[0] == 0;
    if (out->control) {
        text_copy(out->way.address, sizeof out->way.address, node->at);
    } else {
        const struct cluster_place *there = place_at(&node->facts.places, told->way.from);
        char from[NET_ADDRESS_BYTES];
        if (there == NULL || !net_address_host(told->way.address, out->interface, from))
            return false;
        dial_at(there->address, out->interface, out->way.address);
        text_copy(out->way.from, sizeof out->way.from, from);
        text_copy(out->way.interface, sizeof out->way.interface, out->interface);
        out->control = net_address_same(out->way.address, node->at);
    }
    set_strayed(core, node, out);
    return out->way.address[0] != 0;
}

static void take_paths(struct cluster_core *core, struct node *from, const struct path *told,
                       size_t n)
{
    struct path paths[CLUSTER_MAX_PATHS];
    uint32_t n_paths = 0;
    for (size_t i = 0; i < n; i++)
        n_paths += mirror(core, from, &told[i], &paths[n_paths]);
    memcpy(from->paths, paths, n_paths * sizeof *paths);
    from->n_paths = n_paths;
}

void paths_read(struct cluster_core *core, struct node *from, struct message *message)
{
    size_t n, n_told;
    const json_t *list = message_list(message, "links", CLUSTER_MAX_NODES, &n);
    for (size_t i = 0; i < n; i++) {
        struct message item = message_item(list, i);
        struct told_link *link = &from->links[i];
        struct path told[CLUSTER_MAX_PATHS];
        link->node = item_id(&item, 0);
        link->latency_us = item_real(&item, 1);
        link->bandwidth = item_real(&item, 2);
        item_text(&item, 3, link->interface, sizeof link->interface);
        const json_t *paths = json_array_get(item.json, 4);
        n_told = json_array_size(paths);
        if (n_told > CLUSTER_MAX_PATHS)
            message_fail(&item, "a link has more than %d paths", CLUSTER_MAX_PATHS);
        for (size_t k = 0; k < n_told && !item.failed; k++) {
            struct message path = message_item(paths, k);
            told[k] = read_path(&path);
            message_take(&item, &path);
        }
        message_take(message, &item);
        if (!message->failed && cluster_id_equal(link->node, core->nodes[0].id) &&
            !measures(core, from))
            take_paths(core, from, told, n_told);
    }
    from->n_links = message->failed ? 0 : (uint32_t)n;
    json_decref(from->told_links);
    from->told_links = message->failed ? NULL : json_incref((json_t *)list);
}
