/* consort key: who may use the server. */
#include "cli/cli.h"
#include "gateway/gateway.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

static struct {
    const char *models;
    int64_t expires_s;
    struct key_limits limits;
    bool json;
} args = {.models = ""};

/* ---- Options --------------------------------------------------------------------------------- */

/* A day of UTC, "2027-01-31". */
static bool parse_date(const char *text, int64_t *out)
{
    struct tm parts = {0};
    int end = 0;
    if (sscanf(text, "%4d-%2d-%2d%n", &parts.tm_year, &parts.tm_mon, &parts.tm_mday, &end) != 3 ||
        text[end] != '\0')
        return false;
    const struct tm given = parts;
    parts.tm_year -= 1900;
    parts.tm_mon -= 1;
    *out = (int64_t)timegm(&parts);
    return parts.tm_year == given.tm_year - 1900 && parts.tm_mon == given.tm_mon - 1 &&
           parts.tm_mday == given.tm_mday; /* no 31st of February */
}

static bool take_expiry(const char *text, struct buffer *reason)
{
    int64_t now_s = (int64_t)time(NULL);
    if (!parse_date(text, &args.expires_s) && !cli_parse_duration(text, now_s, &args.expires_s))
        buffer_printf(reason,
                      "'%s' is neither a time like 12h, 30d or 1y nor a day like 2027-01-31", text);
    else if (args.expires_s <= now_s)
        buffer_printf(reason, "%s is over already", text);
    return reason->size == 0;
}

/* ---- The list -------------------------------------------------------------------------------- */

static const char *time_text(struct buffer *out, int64_t time_s)
{
    buffer_clear(out);
    if (time_s != 0)
        api_put_time(out, time_s);
    return out->size > 0 ? out->data : "never";
}

static json_t *time_json(int64_t time_s)
{
    struct buffer text = {0};
    json_t *value = time_s != 0 ? json_string(time_text(&text, time_s)) : json_null();
    buffer_free(&text);
    return value;
}

static bool add_json(void *context, const struct key *key)
{
    json_t *models = json_array();
    for (const char *at = key->models; *at != '\0'; at += *at == ',') {
        size_t size = strcspn(at, ",");
        json_array_append_new(models, json_stringn(at, size));
        at += size;
    }
    json_array_append_new(
        context, json_pack("{s:s, s:s, s:o, s:o, s:o, s:o, s:I, s:I, s:I}", "name", key->name,
                           "state", key_state(key, (int64_t)time(NULL)), "models", models,
                           "created", time_json(key->created_s), "expires",
                           time_json(key->expires_s), "revoked", time_json(key->revoked_s),
                           "requests_per_minute", (json_int_t)key->limits.requests_per_minute,
                           "tokens_per_minute", (json_int_t)key->limits.tokens_per_minute,
                           "parallel", (json_int_t)key->limits.parallel));
    return true;
}

static bool print_row(void *context, const struct key *key)
{
    struct buffer expires = {0};
    bool *headed = context;
    if (!*headed)
        cli_printf("%-20s  %-8s  %-20s  %s\n", "NAME", "STATE", "EXPIRES", "MODELS");
    *headed = true;
    cli_printf("%-20s  %-8s  %-20s  %s\n", key->name, key_state(key, (int64_t)time(NULL)),
               time_text(&expires, key->expires_s), key->models[0] != '\0' ? key->models : "all");
    buffer_free(&expires);
    return true;
}

static int list(struct sqlite3 *database)
{
    struct error error;
    bool headed = false;
    json_t *rows = args.json ? json_array() : NULL;
    enum status status = args.json ? keys_each(database, add_json, rows, &error)
                                   : keys_each(database, print_row, &headed, &error);
    if (status != STATUS_OK) {
        json_decref(rows);
        return cli_fail(&error);
    }
    if (args.json)
        return cli_print_json(rows);
    if (!headed)
        cli_note("there are no keys; consort key create NAME makes one");
    return CLI_DONE;
}

/* ---- The command ----------------------------------------------------------------------------- */

static int act(struct sqlite3 *database, const char *action, const char *name)
{
    char text[KEY_TEXT_BYTES];
    struct error error;
    int64_t now_s = (int64_t)time(NULL);
    const struct key wanted = {
        .name = name, .models = args.models, .expires_s = args.expires_s, .limits = args.limits};
    enum status status;
    if (strcmp(action, "revoke") == 0) {
        status = keys_revoke(database, name, now_s, &error);
        if (status == STATUS_OK)
            cli_note("the key %s is not valid any more", name);
        return status == STATUS_OK ? CLI_DONE : cli_fail(&error);
    }
    if (strcmp(action, "create") == 0)
        status = keys_create(database, &wanted, now_s, text, &error);
    else
        status = keys_rotate(database, name, now_s, text, &error);
    if (status != STATUS_OK)
        return cli_fail(&error);
    cli_note("keep this key, it is not shown again:");
    cli_printf("%s\n", text);
    return CLI_DONE;
}

static int run(const struct cli_command *command, char **operands, int n_operands)
{
    static const char *const actions[] = {"create", "list", "revoke", "rotate"};
    const char *action = operands[0], *name = operands[1];
    struct sqlite3 *database;
    struct error error;
    bool known = false, lists = strcmp(action, "list") == 0;
    for (size_t i = 0; i < ARRAY_COUNT(actions); i++)
        known |= strcmp(action, actions[i]) == 0;
    if (!known)
        return cli_usage(command, "'%s' is none of create, list, revoke and rotate", action);
    if (lists != (n_operands == 1))
        return cli_usage(command, lists ? "list takes no name" : "%s needs the name of a key",
                         action);
    const struct key_limits *limits = &args.limits;
    bool described = args.models[0] != '\0' || args.expires_s != 0 || limits->parallel > 0 ||
                     limits->requests_per_minute > 0 || limits->tokens_per_minute > 0;
    if (strcmp(action, "create") != 0 && described)
        return cli_usage(command, "what a key may do is said with create");
    if (gateway_database_open(&database, &error) != STATUS_OK)
        return cli_fail(&error);
    int code = lists ? list(database) : act(database, action, name);
    database_close(database);
    return code;
}

static const struct cli_option options[] = {
    {.name = "models",
     .metavar = "A,B",
     .help = "create: the models that the key may use (default: all)",
     .type = CLI_TEXT,
     .value = &args.models},
    {.name = "expires",
     .metavar = "WHEN",
     .help = "create: the key ends after a time (12h, 30d, 1y), or when a day begins "
             "(2027-01-31, UTC) (default: never)",
     .type = CLI_CALL,
     .parse = take_expiry},
    {.name = "requests-per-minute",
     .metavar = "N",
     .help = "create: requests to models that the key may make in a minute (default: no limit)",
     .type = CLI_U32,
     .min = 1,
     .value = &args.limits.requests_per_minute},
    {.name = "tokens-per-minute",
     .metavar = "N",
     .help = "create: tokens of prompts and answers in a minute (default: no limit)",
     .type = CLI_U32,
     .min = 1,
     .value = &args.limits.tokens_per_minute},
    {.name = "parallel",
     .metavar = "N",
     .help = "create: requests that are answered at once (default: no limit)",
     .type = CLI_U32,
     .min = 1,
     .value = &args.limits.parallel},
    {.name = "json", .help = "list: print a JSON array", .type = CLI_FLAG, .value = &args.json},
};
static const struct cli_group group = CLI_GROUP("options", options);

const struct cli_command cli_key = {
    .name = "key",
    .operands = "create|list|revoke|rotate [NAME]",
    .summary = "Makes, lists and revokes the API keys of the server.",
    .description =
        "Once there is a key, every request to the server needs one. A server that runs learns of "
        "a change within a second. A minute's allowance comes back at an even rate; who used it up "
        "gets status 429 and how long to wait. Tokens count when a request ends. rotate gives a "
        "new key under the same name and ends the old one. Keys are kept as hashes in "
        "CONSORT_HOME; nobody can show one again. In a cluster, keys hold on all nodes, and their "
        "limits for all nodes together.",
    .groups = {&group},
    .min_operands = 1,
    .max_operands = 2,
    .run = run,
};
