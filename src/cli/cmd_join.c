/* consort join, consort leave: whether this machine is in a cluster. */
#include "cli/remote.h"
#include "cluster/cluster.h"

#include <string.h>
#include <time.h>

static int run_join(const struct cli_command *command, char **operands, int n_operands)
{
    struct cluster_key key;
    struct cluster_token token;
    struct net_hello hello = {.purpose = NET_JOIN, .incarnation = rng_entropy()};
    struct error error;
    (void)command, (void)n_operands;
    enum status status = cluster_key_load(&key, &error);
    if (status == STATUS_OK)
        status = error_set(&error, STATUS_INVALID,
                           "this machine is in a cluster already: consort leave leaves it first");
    else if (status == STATUS_NOT_FOUND)
        status = cluster_token_read(&token, view_of(operands[0]), &error);
    if (status == STATUS_OK)
        status = cluster_node_id(hello.node, &error);
    if (status == STATUS_OK)
        status = cluster_join(&token, &hello, (uint64_t)time(NULL), &key, &error);
    if (status == STATUS_OK)
        status = cluster_key_save(&key, &error);
    if (status != STATUS_OK)
        return cli_fail(&error);
    cli_note("this machine is in the cluster now. Next:\n"
             "    consort up        serve, together with the others\n"
             "    consort status    show them");
    return CLI_DONE;
}

const struct cli_command cli_join = {
    .name = "join",
    .operands = "TOKEN",
    .summary = "Joins the cluster of the machine that consort token was typed on.",
    .min_operands = 1,
    .max_operands = 1,
    .run = run_join,
};

static int run_leave(const struct cli_command *command, char **operands, int n_operands)
{
    struct server_presence server;
    struct cluster_key key;
    struct error error, none;
    json_t *reply = NULL, *fields = json_pack("{s:s}", "do", "leave");
    (void)command, (void)operands, (void)n_operands;
    enum status status = cluster_key_load(&key, &error);
    if (status == STATUS_NOT_FOUND)
        error_set(&error, status, "this machine is in no cluster");
    if (status == STATUS_OK && cli_remote_find(&server, &none) == STATUS_OK) {
        /* The others are told where a server runs here; where not, they see it as being away. */
        cli_remote_ask(&server, "/consort/cluster", fields, &reply, &none);
        server_presence_free(&server);
    }
    json_decref(fields);
    json_decref(reply);
    if (status == STATUS_OK)
        status = cluster_node_forget(&error);
    if (status != STATUS_OK)
        return cli_fail(&error);
    cli_note("this machine has left the cluster; a server that runs here serves alone from now on");
    return CLI_DONE;
}

const struct cli_command cli_leave = {
    .name = "leave",
    .operands = "",
    .summary = "Leaves the cluster: forgets its key.",
    .groups = {&cli_remote_group},
    .run = run_leave,
};
