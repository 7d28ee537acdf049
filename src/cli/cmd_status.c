/* consort status: the cluster, as the server here sees it. */
#include "cli/remote.h"

#include <string.h>
#include <time.h>

#define WATCH_NS 1000000000

static struct {
    bool watch, json;
} args;

/* The name of a node by its id, or the beginning of the id. */
static const char *name_of(const json_t *status, const char *id)
{
    const json_t *node;
    size_t i;
    json_array_foreach(json_object_get(status, "nodes"), i, node)
    {
        if (strcmp(cli_json_text(node, "id"), id) == 0)
            return cli_json_text(node, "name");
    }
    return id;
}

/* The first address that is not of one link alone. */
static const char *address_of(const json_t *node)
{
    const json_t *address;
    const char *found = "";
    size_t i;
    json_array_foreach(json_object_get(node, "addresses"), i, address)
    {
        const char *text = json_string_value(address);
        if (text != NULL && strchr(text, '%') == NULL && found[0] == '\0')
            found = text;
    }
    return found;
}

static void print_node(const json_t *node)
{
    char used[32], limit[32], rate[32] = "";
    const json_t *model;
    size_t i;
    double all = cli_json_number(node, "memory_limit");
    bool self = json_is_true(json_object_get(node, "self"));
    cli_printf("%-16s  %-5s  ", cli_json_text(node, "name"),
               self ? "here" : cli_json_text(node, "state"));
    if (json_object_get(node, "memory_limit") == NULL) {
        cli_printf("%s\n", cli_json_text(node, "reason"));
        return;
    }
    cli_printf("%-8s  ", cli_json_text(node, "version"));
    if (cli_json_number(node, "bandwidth") > 0)
        snprintf(rate, sizeof rate, "%.1f GB/s", cli_json_number(node, "bandwidth") / 1e9);
    cli_printf("%-22s  %9s of %9s  %10s  ", self ? "" : address_of(node),
               size_text(used, all - cli_json_number(node, "memory_free")), size_text(limit, all),
               rate);
    json_array_foreach(json_object_get(node, "models"), i, model)
        cli_printf("%s%s", i > 0 ? ", " : "", cli_json_text(model, "name"));
    cli_printf("\n");
}

/* "12.3 t/s", or nothing where it is not known. */
static const char *rate_text(char text[32], double tokens_per_s)
{
    text[0] = '\0';
    if (tokens_per_s > 0)
        snprintf(text, 32, "%.1f t/s", tokens_per_s);
    return text;
}

static void print_instances(const json_t *status)
{
    const json_t *instances = json_object_get(status, "instances"), *instance, *member;
    size_t i, k;
    if (json_array_size(instances) > 0)
        cli_printf("\n%-24s  %-10s  %10s  %10s  %s\n", "MODEL", "STATE", "PREDICTED", "REACHED",
                   "NODES");
    json_array_foreach(instances, i, instance)
    {
        const json_t *model = json_object_get(instance, "model");
        char predicted[32], reached[32];
        const char *name = json_string_value(json_array_get(model, 1));
        cli_printf("%-24s  %-10s  %10s  %10s  ", name != NULL ? name : "",
                   cli_json_text(instance, "state"),
                   rate_text(predicted, cli_json_number(instance, "predicted")),
                   rate_text(reached, cli_json_number(instance, "reached")));
        json_array_foreach(json_object_get(instance, "members"), k, member)
        {
            char bytes[32];
            const char *id = json_string_value(json_array_get(member, 0));
            cli_printf("%s%s (%s)", k > 0 ? ", " : "", name_of(status, id != NULL ? id : ""),
                       size_text(bytes, json_number_value(json_array_get(member, 1))));
        }
        const char *reason = cli_json_text(instance, "reason");
        bool waits = strcmp(cli_json_text(instance, "state"), "running") != 0 && reason[0] != '\0';
        cli_printf("%s%s\n", waits ? "  " : "", waits ? reason : "");
    }
}

static void print_transfers(const json_t *status)
{
    const json_t *transfer;
    size_t i;
    json_array_foreach(json_object_get(status, "transfers"), i, transfer)
    {
        double done = cli_json_number(transfer, "done"), all = cli_json_number(transfer, "of");
        bool copy = json_is_true(json_object_get(transfer, "copy"));
        cli_printf("%s%s %s %s: %.0f %%\n", i == 0 ? "\n" : "",
                   name_of(status, cli_json_text(transfer, "node")),
                   copy ? "keeps a copy of" : "fetches", cli_json_text(transfer, "text"),
                   all > 0 ? 100 * done / all : 0);
    }
}

static void print_rate(const json_t *measured)
{
    double rate = cli_json_number(measured, "bandwidth");
    cli_printf("  %7.0f us  %7.*f %s/s", cli_json_number(measured, "latency_us"),
               rate < 1e9 ? 1 : 2, rate < 1e9 ? rate / 1e6 : rate / 1e9, rate < 1e9 ? "MB" : "GB");
}

/* Of two nodes that have several, or where the one for data does not work. */
static void print_path(const json_t *path, bool first)
{
    const char *interface = cli_json_text(path, "interface"), *state = cli_json_text(path, "state");
    cli_printf("  %-4s %-10s > %-20s", first ? "data" : "", interface[0] != '\0' ? interface : "-",
               cli_json_text(path, "address"));
    if (strcmp(state, "good") == 0)
        print_rate(path);
    else
        cli_printf("  %s", strcmp(state, "dead") == 0 ? "does not work" : "not measured yet");
    cli_printf("\n");
}

static void print_links(const json_t *status)
{
    const json_t *links = json_object_get(status, "links"), *link, *path;
    size_t i, k;
    if (json_array_size(links) > 0)
        cli_printf("\n%-16s  %-16s  %10s  %12s  %s\n", "LINK FROM", "TO", "ONE WAY", "RATE",
                   "OVER");
    json_array_foreach(links, i, link)
    {
        const json_t *paths = json_object_get(link, "paths");
        cli_printf("%-16s  %-16s", name_of(status, cli_json_text(link, "from")),
                   name_of(status, cli_json_text(link, "to")));
        print_rate(link);
        cli_printf("  %s\n", cli_json_text(link, "interface"));
        json_array_foreach(paths, k, path)
        {
            if (json_array_size(paths) > 1 || strcmp(cli_json_text(path, "state"), "dead") == 0)
                print_path(path, k == 0);
        }
    }
}

static void print_problems(const json_t *status)
{
    const json_t *problems = json_object_get(status, "problems"), *problem;
    size_t i;
    json_array_foreach(problems, i, problem)
        cli_printf("%s! %s\n", i == 0 ? "\n" : "", cli_json_text(problem, "text"));
}

static void print(const json_t *status)
{
    const json_t *node;
    size_t i;
    cli_printf("%-16s  %-5s  %-8s  %-22s  %22s  %10s  %s\n", "NODE", "STATE", "VERSION", "ADDRESS",
               "MEMORY", "READS", "MODELS");
    json_array_foreach(json_object_get(status, "nodes"), i, node) print_node(node);
    print_instances(status);
    print_transfers(status);
    print_links(status);
    print_problems(status);
}

static int show(const struct server_presence *server)
{
    struct error error;
    json_t *status;
    if (cli_remote_ask(server, "/consort/cluster", NULL, &status, &error) != STATUS_OK)
        return cli_fail(&error);
    if (args.json)
        return cli_print_json(status);
    print(status);
    json_decref(status);
    return CLI_DONE;
}

static int run(const struct cli_command *command, char **operands, int n_operands)
{
    const struct timespec pause = {.tv_nsec = WATCH_NS - 1};
    struct server_presence server;
    struct error error;
    (void)command, (void)operands, (void)n_operands;
    if (cli_remote_find(&server, &error) != STATUS_OK)
        return cli_fail(&error);
    int code = show(&server);
    while (args.watch && code == CLI_DONE && !cli_interrupted()) {
        nanosleep(&pause, NULL);
        if (!args.json)
            cli_printf("\033[H\033[J");
        code = show(&server);
        cli_flush();
    }
    server_presence_free(&server);
    return code;
}

static const struct cli_option options[] = {
    {.name = "watch",
     .help = "again every second, until Ctrl-C",
     .type = CLI_FLAG,
     .value = &args.watch},
    {.name = "json", .help = "print a JSON object", .type = CLI_FLAG, .value = &args.json},
};
static const struct cli_group group = CLI_GROUP("options", options);

const struct cli_command cli_status = {
    .name = "status",
    .operands = "",
    .summary = "Shows the nodes of the cluster, and what runs where.",
    .groups = {&group, &cli_remote_group},
    .run = run,
};
