/* consort ps: what a running server does. */
#include "cli/remote.h"

#include <stdlib.h>
#include <string.h>

static struct {
    bool json;
} args;

/* "4 min 5 s" until the model is closed. */
static void print_keep_alive(const json_t *model)
{
    const json_t *left = json_object_get(model, "keep_alive_s");
    double seconds = json_number_value(left);
    if (json_integer_value(json_object_get(model, "users")) > 0)
        cli_printf("in use\n");
    else if (!json_is_number(left) || seconds > 1e8)
        cli_printf("for ever\n");
    else if (seconds >= 60)
        cli_printf("%.0f min %.0f s\n", (double)((long)seconds / 60), (double)((long)seconds % 60));
    else
        cli_printf("%.0f s\n", seconds);
}

static void print_model(const json_t *model, int width)
{
    char size[32];
    const char *name = json_string_value(json_object_get(model, "name"));
    const char *state = json_string_value(json_object_get(model, "state"));
    const json_t *memory = json_object_get(model, "memory_bytes");
    if (memory == NULL) {
        cli_printf("%-*s  %s\n", width, name, state);
        return;
    }
    cli_printf("%-*s  %-8s  %10s  %8lld  %7lld  %6lld  %8.1f  ", width, name, state,
               size_text(size, (double)json_integer_value(memory)),
               (long long)json_integer_value(json_object_get(model, "context")),
               (long long)json_integer_value(json_object_get(model, "running")),
               (long long)json_integer_value(json_object_get(model, "queued")),
               json_number_value(json_object_get(model, "tokens_per_second")));
    print_keep_alive(model);
}

static int print(const struct server_presence *server, const json_t *reply)
{
    char used[32], limit[32];
    const json_t *models = json_object_get(reply, "models"),
                 *memory = json_object_get(reply, "memory"), *model;
    size_t i, width = strlen("model"), n_open = 0;
    json_array_foreach(models, i, model)
    {
        size_t length = json_string_length(json_object_get(model, "name"));
        width = length > width ? length : width;
        n_open += json_object_get(model, "memory_bytes") != NULL;
    }
    cli_printf("%s: %zu of %zu models open, %s of %s in use%s\n", server->url, n_open,
               json_array_size(models),
               size_text(used, (double)json_integer_value(json_object_get(memory, "used_bytes"))),
               size_text(limit, (double)json_integer_value(json_object_get(memory, "limit_bytes"))),
               json_is_true(json_object_get(reply, "draining")) ? "; shutting down" : "");
    cli_printf("%-*s  %-8s  %10s  %8s  %7s  %6s  %8s  %s\n", (int)width, "model", "state", "memory",
               "context", "running", "queued", "tokens/s", "closes in");
    json_array_foreach(models, i, model) print_model(model, (int)width);
    return CLI_DONE;
}

static int run(const struct cli_command *command, char **operands, int n_operands)
{
    struct server_presence server;
    struct error error;
    json_t *reply;
    (void)command, (void)operands, (void)n_operands;
    if (cli_remote_find(&server, &error) != STATUS_OK)
        return cli_fail(&error);
    int code;
    if (cli_remote_ask(&server, "/consort/state", NULL, &reply, &error) != STATUS_OK)
        code = cli_fail(&error);
    else if (args.json)
        code = cli_print_json(json_incref(reply));
    else
        code = print(&server, reply);
    json_decref(reply);
    server_presence_free(&server);
    return code;
}

static const struct cli_option options[] = {
    {.name = "json", .help = "print a JSON object", .type = CLI_FLAG, .value = &args.json},
};
static const struct cli_group group = CLI_GROUP("options", options);

const struct cli_command cli_ps = {
    .name = "ps",
    .operands = "",
    .summary = "Shows what a running server does: its models, memory and requests.",
    .groups = {&group, &cli_remote_group},
    .run = run,
};
