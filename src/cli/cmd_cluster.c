/* consort load, unload, remove, rotate-key: what the cluster is asked to do, by the server that
 * runs here. */
#include "cli/remote.h"

#include <string.h>
#include <time.h>

#define RETRY_NS 200000000

static struct {
    uint32_t n_ctx;
    const char *placement;
    bool now, full;
} args;

/* Asks; prints nothing but what went wrong. */
static int ask(json_t *fields, const char *done)
{
    const struct timespec pause = {.tv_nsec = RETRY_NS};
    struct server_presence server;
    struct error error;
    json_t *reply = NULL;
    enum status status = cli_remote_find(&server, &error);
    if (status == STATUS_OK) {
        status = cli_remote_ask(&server, "/consort/cluster", fields, &reply, &error);
        while (status == STATUS_BUSY && !cli_interrupted()) { /* a large file has just been named */
            nanosleep(&pause, NULL);
            status = cli_remote_ask(&server, "/consort/cluster", fields, &reply, &error);
        }
        server_presence_free(&server);
    }
    json_decref(fields);
    json_decref(reply);
    if (status != STATUS_OK)
        return cli_fail(&error);
    cli_note("%s", done);
    return CLI_DONE;
}

static int run_load(const struct cli_command *command, char **operands, int n_operands)
{
    json_t *options = json_object();
    (void)command, (void)n_operands;
    if (args.n_ctx > 0)
        json_object_set_new(options, "ctx", json_integer(args.n_ctx));
    if (args.placement != NULL)
        json_object_set_new(options, "placement", json_string(args.placement));
    if (args.full)
        json_object_set_new(options, "full", json_true());
    return ask(json_pack("{s:s, s:s, s:o}", "do", "load", "model", operands[0], "options", options),
               "it is loaded when consort status says so, and stays until consort unload");
}

static const struct cli_option load_options[] = {
    {.name = "ctx",
     .metavar = "TOKENS",
     .help = "context of the model (default: that of consort up, else at most 8192, less where "
             "memory is short)",
     .type = CLI_U32,
     .min = 1,
     .value = &args.n_ctx},
    {.name = "placement",
     .metavar = "auto|single|pipeline|tensor",
     .help = "how it is spread over the nodes (default: auto)",
     .type = CLI_CHOICE,
     .value = &args.placement},
    {.name = "full",
     .help = "each node that takes part stores the whole model, not its slice alone",
     .type = CLI_FLAG,
     .value = &args.full},
};
static const struct cli_group load_group = CLI_GROUP("options", load_options);

const struct cli_command cli_load = {
    .name = "load",
    .operands = "MODEL",
    .summary =
        "Opens a model on the cluster, and keeps it open; with other options, opens it anew.",
    .groups = {&load_group, &cli_remote_group},
    .min_operands = 1,
    .max_operands = 1,
    .run = run_load,
};

static int run_unload(const struct cli_command *command, char **operands, int n_operands)
{
    (void)command, (void)n_operands;
    return ask(json_pack("{s:s, s:s, s:b}", "do", "unload", "model", operands[0], "now", args.now),
               args.now ? "it is closed" : "it is closed when its requests have ended");
}

static const struct cli_option unload_options[] = {
    {.name = "now", .help = "also while it answers requests", .type = CLI_FLAG, .value = &args.now},
};
static const struct cli_group unload_group = CLI_GROUP("options", unload_options);

const struct cli_command cli_unload = {
    .name = "unload",
    .operands = "MODEL",
    .summary = "Closes a model of the cluster.",
    .groups = {&unload_group, &cli_remote_group},
    .min_operands = 1,
    .max_operands = 1,
    .run = run_unload,
};

static int run_remove(const struct cli_command *command, char **operands, int n_operands)
{
    (void)command, (void)n_operands;
    return ask(json_pack("{s:s, s:s}", "do", "remove", "node", operands[0]),
               "it is no part of the cluster any more, and is refused where it comes back");
}

const struct cli_command cli_remove = {
    .name = "remove",
    .operands = "NODE",
    .summary = "Takes a node, by its name or id, out of the cluster for good.",
    .groups = {&cli_remote_group},
    .min_operands = 1,
    .max_operands = 1,
    .run = run_remove,
};

static int run_rotate(const struct cli_command *command, char **operands, int n_operands)
{
    (void)command, (void)operands, (void)n_operands;
    return ask(json_pack("{s:s}", "do", "rotate"),
               "the nodes that are connected take the new key; others have to join again");
}

const struct cli_command cli_rotate = {
    .name = "rotate-key",
    .operands = "",
    .summary = "Changes the key that the nodes of the cluster share.",
    .groups = {&cli_remote_group},
    .run = run_rotate,
};
