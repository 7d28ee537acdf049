/* consort down: ends a running server. */
#include "cli/remote.h"

#include <time.h>

#define LOOK_NS 20000000 /* between two looks whether it has ended */
#define GRACE_S 10       /* beyond the time that it lets its requests finish */

static struct {
    bool now;
} args;

/* Whether the server has taken its file away. */
static bool has_ended(long pid)
{
    struct server_presence servers[16];
    struct error error;
    size_t n;
    bool ended = true;
    if (server_presences(servers, ARRAY_COUNT(servers), &n, &error) != STATUS_OK)
        return false;
    for (size_t i = 0; i < n; i++) {
        ended = ended && servers[i].pid != pid;
        server_presence_free(&servers[i]);
    }
    return ended;
}

static int wait_for_end(const struct server_presence *server, uint64_t limit_s)
{
    const struct timespec look = {.tv_nsec = LOOK_NS};
    uint64_t begin_ns = clock_now_ns();
    while (!has_ended(server->pid)) {
        if (cli_interrupted() || clock_now_ns() - begin_ns > limit_s * 1000000000u) {
            cli_note("process %ld still runs: consort down --now ends it at once", server->pid);
            return CLI_FAILED;
        }
        nanosleep(&look, NULL);
    }
    cli_note("%s has ended", server->url);
    return CLI_DONE;
}

static int run(const struct cli_command *command, char **operands, int n_operands)
{
    struct server_presence server;
    struct error error;
    json_t *reply, *body = json_pack("{s:b}", "now", args.now);
    (void)command, (void)operands, (void)n_operands;
    enum status status = cli_remote_find(&server, &error);
    if (status == STATUS_OK) {
        status = cli_remote_ask(&server, "/consort/down", body, &reply, &error);
        if (status != STATUS_OK)
            server_presence_free(&server);
    }
    json_decref(body);
    if (status != STATUS_OK)
        return cli_fail(&error);
    json_int_t running = json_integer_value(json_object_get(reply, "running"));
    json_int_t drain_s = args.now ? 0 : json_integer_value(json_object_get(reply, "drain_s"));
    json_decref(reply);
    if (running > 0 && !args.now)
        cli_note("%lld requests may finish, for %lld s at most", (long long)running,
                 (long long)drain_s);
    int code = wait_for_end(&server, (uint64_t)drain_s + GRACE_S);
    server_presence_free(&server);
    return code;
}

static const struct cli_option options[] = {
    {.name = "now",
     .help = "end it at once, requests or not",
     .type = CLI_FLAG,
     .value = &args.now},
};
static const struct cli_group group = CLI_GROUP("options", options);

const struct cli_command cli_down = {
    .name = "down",
    .operands = "",
    .summary = "Ends the server of this user on this machine, when its requests have ended.",
    .groups = {&group, &cli_remote_group},
    .run = run,
};
