/* consort usage and consort audit: what the server has recorded. */
#include "cli/cli.h"
#include "gateway/gateway.h"

#include <time.h>

static struct {
    uint32_t n_days;
    bool json;
} args = {.n_days = 30};

/* Where the rows of a listing go: an array, or standard output with its heads. */
struct listing {
    json_t *rows;
    bool headed;
};

static bool add_usage(void *context, const struct usage *usage)
{
    struct listing *listing = context;
    const char *key = usage->key[0] != '\0' ? usage->key : "-";
    if (listing->rows != NULL) {
        json_array_append_new(listing->rows,
                              json_pack("{s:s, s:s, s:s, s:I, s:I, s:I, s:I}", "day", usage->day,
                                        "key", usage->key, "model", usage->model, "requests",
                                        (json_int_t)usage->n_requests, "prompt_tokens",
                                        (json_int_t)usage->prompt_tokens, "cached_tokens",
                                        (json_int_t)usage->cached_tokens, "answer_tokens",
                                        (json_int_t)usage->answer_tokens));
        return true;
    }
    if (!listing->headed)
        cli_printf("%-10s  %-16s  %-24s %9s %12s %12s %12s\n", "DAY", "KEY", "MODEL", "REQUESTS",
                   "PROMPT", "OF IT CACHED", "ANSWER");
    listing->headed = true;
    cli_printf("%-10s  %-16s  %-24s %9lld %12lld %12lld %12lld\n", usage->day, key, usage->model,
               (long long)usage->n_requests, (long long)usage->prompt_tokens,
               (long long)usage->cached_tokens, (long long)usage->answer_tokens);
    return true;
}

static bool add_event(void *context, const struct audit_event *event)
{
    struct listing *listing = context;
    struct buffer when = {0};
    api_put_time(&when, event->time_s);
    const char *text = when.size > 0 ? when.data : "";
    if (listing->rows != NULL)
        json_array_append_new(listing->rows,
                              json_pack("{s:s, s:s, s:s, s:s}", "time", text, "event", event->event,
                                        "key", event->subject, "detail", event->detail));
    else
        cli_printf("%s  %-14s  %-16s  %s\n", text, event->event,
                   event->subject[0] != '\0' ? event->subject : "-", event->detail);
    listing->headed = true;
    buffer_free(&when);
    return true;
}

static enum status read_usage(struct sqlite3 *database, struct listing *listing,
                              struct error *error)
{
    int64_t since_s = (int64_t)time(NULL) - ((int64_t)args.n_days - 1) * 86400;
    return usage_each(database, since_s, add_usage, listing, error);
}

static enum status read_audit(struct sqlite3 *database, struct listing *listing,
                              struct error *error)
{
    return audit_each(database, add_event, listing, error);
}

static int print(enum status (*read)(struct sqlite3 *, struct listing *, struct error *))
{
    struct sqlite3 *database;
    struct error error;
    if (gateway_database_open(&database, &error) != STATUS_OK)
        return cli_fail(&error);
    struct listing listing = {.rows = args.json ? json_array() : NULL};
    enum status status = read(database, &listing, &error);
    database_close(database);
    if (status != STATUS_OK) {
        json_decref(listing.rows);
        return cli_fail(&error);
    }
    if (args.json)
        return cli_print_json(listing.rows);
    if (!listing.headed)
        cli_note("nothing is recorded");
    return CLI_DONE;
}

static int run_usage(const struct cli_command *command, char **operands, int n_operands)
{
    (void)command, (void)operands, (void)n_operands;
    return print(read_usage);
}

static int run_audit(const struct cli_command *command, char **operands, int n_operands)
{
    (void)command, (void)operands, (void)n_operands;
    return print(read_audit);
}

static const struct cli_option usage_options[] = {
    {.name = "days",
     .metavar = "N",
     .help = "of the last N days, today among them (default: 30)",
     .type = CLI_U32,
     .min = 1,
     .max = 100000,
     .value = &args.n_days},
    {.name = "json", .help = "print a JSON array", .type = CLI_FLAG, .value = &args.json},
};
static const struct cli_group usage_group = CLI_GROUP("options", usage_options);

const struct cli_command cli_usage_command = {
    .name = "usage",
    .operands = "",
    .summary = "Shows requests and tokens for each day (UTC), key and model.",
    .description = "A server that runs writes what was used about three times a second. Without a "
                   "key the name is empty.",
    .groups = {&usage_group},
    .run = run_usage,
};

static const struct cli_option audit_options[] = {
    {.name = "json", .help = "print a JSON array", .type = CLI_FLAG, .value = &args.json},
};
static const struct cli_group audit_group = CLI_GROUP("options", audit_options);

const struct cli_command cli_audit = {
    .name = "audit",
    .operands = "",
    .summary = "Shows who changed keys, logins that failed, and servers that began and ended.",
    .description = "The log is only added to. Of failed logins at most thirty a minute are "
                   "recorded, and how many more there were; never what was sent.",
    .groups = {&audit_group},
    .run = run_audit,
};
