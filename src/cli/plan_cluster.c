#include "cli/plan_cluster.h"

#include "cli/remote.h"

#include <stdlib.h>
#include <string.h>

static struct plan_node node_of(const json_t *told, const struct cluster_mix *mix)
{
    struct cluster_rate rates[CLUSTER_MAX_RATES];
    uint32_t n = 0;
    const char *format;
    json_t *rate;
    json_object_foreach(json_object_get(told, "rates"), format, rate)
    {
        if (n == CLUSTER_MAX_RATES)
            break;
        snprintf(rates[n].format, sizeof rates[n].format, "%s", format);
        rates[n++].bytes_per_s = json_number_value(rate);
    }
    double memory = cli_json_number(told, "memory_limit") - cli_json_number(told, "memory_other");
    struct plan_node node = {
        .memory_bytes = memory > 0 ? (uint64_t)memory : 0,
        .read_rate = cluster_plan_rate(mix, cli_json_number(told, "bandwidth"), rates, n),
        .flops = cli_json_number(told, "flops"),
        .layer_overhead_s = PLAN_LAYER_OVERHEAD_S,
    };
    snprintf(node.name, sizeof node.name, "%s", cli_json_text(told, "name"));
    return node;
}

static uint32_t place_of(const json_t *ids, const json_t *id)
{
    for (size_t i = 0; i < json_array_size(ids); i++)
        if (json_equal(json_array_get(ids, i), id))
            return (uint32_t)i;
    return UINT32_MAX;
}

/* What either end of a link has measured counts for both directions. */
static void read_links(struct plan_room *room, const json_t *links, const json_t *ids)
{
    const json_t *link;
    size_t i;
    json_array_foreach(links, i, link)
    {
        uint32_t from = place_of(ids, json_object_get(link, "from"));
        uint32_t to = place_of(ids, json_object_get(link, "to"));
        double bandwidth = cli_json_number(link, "bandwidth");
        if (from == UINT32_MAX || to == UINT32_MAX || bandwidth <= 0)
            continue;
        const struct plan_link measured = {cli_json_number(link, "latency_us") / 1e6, bandwidth, 0};
        room->links[(size_t)from * room->n_nodes + to] = measured;
        room->links[(size_t)to * room->n_nodes + from] = measured;
    }
}

static enum status read_status(struct plan_room *room, const json_t *status,
                               const struct cluster_mix *mix, struct error *error)
{
    json_t *ids = json_array();
    const json_t *node;
    size_t i;
    json_array_foreach(json_object_get(status, "nodes"), i, node)
    {
        if (cli_json_number(node, "bandwidth") <= 0 || room->n_nodes == PLAN_MAX_NODES)
            continue; /* it is down, or has not measured itself yet */
        json_array_append(ids, json_object_get(node, "id"));
        room->nodes[room->n_nodes++] = node_of(node, mix);
    }
    room->links =
        calloc(MAX((size_t)room->n_nodes * room->n_nodes, (size_t)1), sizeof *room->links);
    if (room->links != NULL)
        read_links(room, json_object_get(status, "links"), ids);
    json_decref(ids);
    return room->links != NULL ? STATUS_OK : error_memory(error, sizeof *room->links);
}

enum status plan_cluster_read(struct plan_room *room, const struct cluster_mix *mix,
                              struct error *error)
{
    struct server_presence server;
    struct error none;
    json_t *reply = NULL;
    enum status status = cli_remote_find(&server, error);
    if (status == STATUS_NOT_FOUND)
        return STATUS_OK;
    if (status != STATUS_OK)
        return status;
    if (cli_remote_ask(&server, "/consort/cluster", NULL, &reply, &none) == STATUS_OK)
        status = read_status(room, reply, mix, error);
    json_decref(reply);
    server_presence_free(&server);
    return status;
}
