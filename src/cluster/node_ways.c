/* This node's addresses, and how it reaches others for data: over which interface, at which
 * address. The core decides by what was measured (core_paths.c); here it meets the system. */
#include "cluster/node_internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PLACES_MS 1000
#define WAY_MS 3000 /* a way that may be dead holds the next one up for so long */

/* ---- This node's addresses ------------------------------------------------------------------- */

/* Which kind is expected to be faster; what is measured decides. */
static uint32_t order_of(enum net_interface_kind kind)
{
    static const uint32_t orders[] = {
        [NET_INTERFACE_THUNDERBOLT] = 0, [NET_INTERFACE_ETHERNET] = 1, [NET_INTERFACE_OTHER] = 2,
        [NET_INTERFACE_VIRTUAL] = 3,     [NET_INTERFACE_WIFI] = 4,     [NET_INTERFACE_LOOPBACK] = 5,
    };
    return orders[kind];
}

/* Whether links to that address would be taken here. */
static bool listens_at(const struct cluster_node *node, const char *address)
{
    struct view host = node_listen_host(node);
    char text[NET_ADDRESS_BYTES];
    if (host.size > 0 && host.data[0] == '[')
        host = (struct view){host.data + 1, host.size - 2};
    snprintf(text, sizeof text, "%.*s", (int)MIN(host.size, sizeof text - 1), host.data);
    if (host.size > 0)
        return net_address_same(text, address);
    bool six = strchr(address, ':') != NULL;
    return six == (node->options.listen[0] == '[');
}

/* Keeps them in their order. */
static void add_place(struct cluster_places *places, const struct cluster_place *place)
{
    uint32_t at = places->n;
    while (at > 0 && places->at[at - 1].order > place->order)
        at--;
    if (at == CLUSTER_MAX_PLACES)
        return;
    places->n = MIN(places->n + 1, CLUSTER_MAX_PLACES);
    memmove(places->at + at + 1, places->at + at, (places->n - at - 1) * sizeof *places->at);
    places->at[at] = *place;
}

static void add_interface(const struct cluster_node *node, const struct net_interface *interface,
                          struct cluster_places *places)
{
    const char *pin = node->options.data_interface;
    for (size_t i = 0; i < interface->n_addresses; i++) {
        char host[NET_ADDRESS_BYTES], address[NET_ADDRESS_BYTES];
        struct cluster_place place = {.prefix = interface->prefixes[i],
                                      .order = order_of(interface->kind)};
        bool of_link = net_address_of_link(interface->addresses[i]);
        /* Bridges and tunnels of one machine alone have such, too. */
        if ((of_link && interface->kind == NET_INTERFACE_VIRTUAL) ||
            !net_address_host(interface->addresses[i], NULL, host) || !listens_at(node, host))
            continue;
        net_address_join(host, cluster_node_port(node), address);
        snprintf(place.address, sizeof place.address, "%s", address);
        snprintf(place.interface, sizeof place.interface, "%s", interface->name);
        place.pinned = pin != NULL && strcmp(interface->name, pin) == 0;
        add_place(places, &place);
    }
}

void node_places_refresh(struct cluster_node *node)
{
    struct net_interface *all;
    size_t n;
    uint64_t now_ms = node_now_ms();
    if (node->places_ms != 0 && now_ms - node->places_ms < PLACES_MS)
        return;
    node->places_ms = now_ms;
    if (net_interfaces(&all, &n, NULL) != STATUS_OK)
        return;
    memset(&node->places, 0, sizeof node->places);
    for (size_t i = 0; i < n; i++)
        if (all[i].kind != NET_INTERFACE_LOOPBACK && all[i].running)
            add_interface(node, &all[i], &node->places);
    free(all);
}

void node_place_gone(void *context, struct cluster_id id, const char *address)
{
    struct cluster_node *node = context;
    bool own = cluster_id_equal(id, node_id_of(node->id));
    if (own)
        node_logf(node, "this machine has no longer the address %s", address);
    node_ranks_place_gone(node, own, address);
    node_objects_place_gone(node, own, address);
}

/* ---- Ways to other nodes --------------------------------------------------------------------- */

struct node_ways node_ways(const struct cluster_node *node, struct cluster_id id)
{
    struct node_ways ways = {.id = id};
    struct cluster_way control = {.interface = ""};
    ways.n = cluster_core_ways(node->core, id, ways.ways);
    if (!node_address(node, id, control.address))
        return ways;
    for (size_t i = 0; i < ways.n; i++)
        if (ways.ways[i].interface[0] == '\0' && strcmp(ways.ways[i].address, control.address) == 0)
            return ways;
    ways.ways[ways.n++] = control;
    return ways;
}

struct failed_way {
    struct cluster_node *node;
    struct cluster_id id;
    struct cluster_way way;
};

static void tell_failed(void *context)
{
    struct failed_way *failed = context;
    if (!failed->node->closing)
        cluster_core_way_failed(failed->node->core, failed->id, &failed->way);
    free(failed);
}

static void way_failed(struct cluster_node *node, struct cluster_id id,
                       const struct cluster_way *way)
{
    struct failed_way *failed = malloc(sizeof *failed);
    if (failed == NULL)
        return;
    *failed = (struct failed_way){node, id, *way};
    if (!node_post(node, tell_failed, failed))
        free(failed);
}

enum status node_ways_connect(struct cluster_node *node, struct net_wire **out,
                              const struct node_ways *ways, const struct net_link_key *key,
                              const struct net_hello *hello, uint64_t deadline_ns, size_t *used,
                              struct error *error)
{
    uint8_t id[NET_NODE_BYTES];
    enum status status = error_set(error, STATUS_LOST, "the address of the node is not known");
    node_id_bytes(ways->id, id);
    for (size_t i = 0; i < ways->n; i++) {
        const struct cluster_way *way = &ways->ways[i];
        struct net_wire_options options = {
            .hello = *hello,
            .deadline_ns = clock_now_ns() + WAY_MS * 1000000ull,
            .from = way->from[0] != '\0' ? way->from : NULL,
            .interface = way->interface[0] != '\0' ? way->interface : NULL,
            .node = id,
        };
        if (deadline_ns != 0)
            options.deadline_ns =
                i + 1 < ways->n ? MIN(options.deadline_ns, deadline_ns) : deadline_ns;
        status = net_wire_connect(out, way->address, key, &options, NULL, NULL, error);
        for (size_t k = 0; status == STATUS_OK && k < i; k++)
            way_failed(node, ways->id, &ways->ways[k]);
        if (status == STATUS_OK && used != NULL)
            *used = i;
        if (status == STATUS_OK)
            return status;
    }
    return status;
}
