/* consort usage and consort audit: what the server has recorded. */
#include "cli/remote.h"
#include "cluster/cluster.h"
#include "gateway/gateway.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

static struct {
    uint32_t n_days;
    const char *node;
    bool by_node, json;
} args = {.n_days = 30};

/* ---- Usage: rows of this machine's file, or of all nodes ------------------------------------- */

#define N_COUNTS 4 /* requests, tokens of prompts, of those cached, of answers */

/* The texts live in owner. */
struct row {
    const char *day, *key, *model, *node; /* node "": the sum of all, or no cluster */
    int64_t counts[N_COUNTS];
};

struct table {
    struct row *rows;
    size_t n, capacity;
    json_t *owner;
};

static bool add_row(struct table *table, const struct row *row)
{
    if (table->n == table->capacity) {
        size_t capacity = MAX(table->capacity * 2, (size_t)64);
        struct row *rows = realloc(table->rows, capacity * sizeof *rows);
        if (rows == NULL)
            return false;
        table->rows = rows;
        table->capacity = capacity;
    }
    table->rows[table->n++] = *row;
    return true;
}

static void free_table(struct table *table)
{
    free(table->rows);
    json_decref(table->owner);
}

static int compare_rows(const void *a, const void *b)
{
    const struct row *x = a, *y = b;
    int order = strcmp(x->day, y->day);
    order = order != 0 ? order : strcmp(x->key, y->key);
    order = order != 0 ? order : strcmp(x->model, y->model);
    return order != 0 ? order : strcmp(x->node, y->node);
}

/* Rows that differ in nothing but their counts become one. */
static void sum_rows(struct table *table)
{
    size_t n = 0;
    if (table->n > 0)
        qsort(table->rows, table->n, sizeof *table->rows, compare_rows);
    for (size_t i = 0; i < table->n; i++) {
        struct row *last = n > 0 ? &table->rows[n - 1] : NULL;
        if (last != NULL && compare_rows(last, &table->rows[i]) == 0)
            for (int k = 0; k < N_COUNTS; k++)
                last->counts[k] += table->rows[i].counts[k];
        else
            table->rows[n++] = table->rows[i];
    }
    table->n = n;
}

static bool keep_usage(void *context, const struct usage *usage)
{
    struct table *table = context;
    json_t *texts = json_pack("[s, s, s]", usage->day, usage->key, usage->model);
    if (texts == NULL)
        return true; /* a name that is no UTF-8 */
    json_array_append_new(table->owner, texts);
    return add_row(table, &(struct row){json_string_value(json_array_get(texts, 0)),
                                        json_string_value(json_array_get(texts, 1)),
                                        json_string_value(json_array_get(texts, 2)),
                                        "",
                                        {usage->n_requests, usage->prompt_tokens,
                                         usage->cached_tokens, usage->answer_tokens}});
}

static enum status read_file(struct table *table, struct error *error)
{
    struct sqlite3 *database;
    int64_t since_s = (int64_t)time(NULL) - ((int64_t)args.n_days - 1) * 86400;
    enum status status = gateway_database_open(&database, error);
    table->owner = json_array();
    if (status == STATUS_OK)
        status = usage_each(database, since_s, keep_usage, table, error);
    database_close(database);
    return status;
}

static bool add_answer(struct table *table, const json_t *values, const char *node)
{
    struct row row = {.node = args.by_node ? node : ""};
    json_int_t counts[N_COUNTS];
    if (json_unpack((json_t *)(uintptr_t)values, "[s, s, s, I, I, I, I]", &row.day, &row.key,
                    &row.model, &counts[0], &counts[1], &counts[2], &counts[3]) != 0)
        return true;
    for (int k = 0; k < N_COUNTS; k++)
        row.counts[k] = (int64_t)counts[k];
    return add_row(table, &row);
}

static bool is_wanted(const json_t *of, bool *found)
{
    const char *name = json_string_value(json_object_get(of, "node"));
    bool wanted = args.node == NULL || (name != NULL && strcmp(args.node, name) == 0);
    *found |= wanted;
    return wanted;
}

/* What the server answered (src/server/usage.c draws it); takes reply over. */
static enum status take_answer(struct table *table, json_t *reply, struct error *error)
{
    const json_t *of, *values;
    size_t i, k;
    bool found = args.node == NULL, good = true;
    table->owner = reply;
    json_array_foreach(json_object_get(reply, "nodes"), i, of)
    {
        const char *name = json_string_value(json_object_get(of, "node"));
        if (name == NULL || !is_wanted(of, &found))
            continue;
        json_array_foreach(json_object_get(of, "rows"), k, values) good &=
            add_answer(table, values, name);
        if (json_is_true(json_object_get(of, "cut")))
            cli_note("%s has more rows than are sent: the last days are missing; ask for fewer "
                     "--days",
                     name);
    }
    json_array_foreach(json_object_get(reply, "missing"), i, of)
    {
        const char *reason = json_string_value(json_object_get(of, "reason"));
        if (is_wanted(of, &found))
            cli_note("what %s counted is missing: %s",
                     json_string_value(json_object_get(of, "node")), reason != NULL ? reason : "");
    }
    if (!found)
        return error_set(error, STATUS_NOT_FOUND,
                         "the cluster has no node %s; consort status "
                         "lists them",
                         args.node);
    return good ? STATUS_OK : error_memory(error, sizeof(struct row));
}

/* Asks all nodes; STATUS_NOT_FOUND: this machine is in no cluster, or no server of it runs. */
static enum status ask_nodes(json_t **reply, struct error *error)
{
    struct cluster_key key;
    struct server_presence server;
    if (cluster_key_load(&key, error) == STATUS_NOT_FOUND)
        return STATUS_NOT_FOUND;
    memset(&key, 0, sizeof key);
    enum status status = cli_remote_find(&server, error);
    if (status != STATUS_OK) {
        if (status == STATUS_NOT_FOUND)
            cli_note("only what this machine counted: the other nodes are asked through its "
                     "server, and none runs here");
        return status;
    }
    json_t *question = json_pack("{s:s, s:I}", "do", "usage", "days", (json_int_t)args.n_days);
    status = cli_remote_ask(&server, "/consort/cluster", question, reply, error);
    json_decref(question);
    server_presence_free(&server);
    return status;
}

static enum status read_rows(struct table *table, struct error *error)
{
    json_t *reply = NULL;
    enum status status = ask_nodes(&reply, error);
    if (status == STATUS_OK)
        return take_answer(table, reply, error);
    if (status != STATUS_NOT_FOUND)
        return status;
    if (args.node != NULL)
        return error_set(error, STATUS_INVALID,
                         "--node is for a cluster, whose server runs on this machine");
    return read_file(table, error);
}

static json_t *row_json(const struct row *row)
{
    const int64_t *counts = row->counts;
    json_t *object = json_pack("{s:s, s:s, s:s, s:I, s:I, s:I, s:I}", "day", row->day, "key",
                               row->key, "model", row->model, "requests", (json_int_t)counts[0],
                               "prompt_tokens", (json_int_t)counts[1], "cached_tokens",
                               (json_int_t)counts[2], "answer_tokens", (json_int_t)counts[3]);
    if (args.by_node && row->node[0] != '\0')
        json_object_set_new(object, "node", json_string(row->node));
    return object;
}

static void print_row(const struct row *row)
{
    const char *key = row->key[0] != '\0' ? row->key : "-";
    if (args.by_node)
        cli_printf("%-16s  ", row->node[0] != '\0' ? row->node : "-");
    cli_printf("%-10s  %-16s  %-24s %9lld %12lld %12lld %12lld\n", row->day, key, row->model,
               (long long)row->counts[0], (long long)row->counts[1], (long long)row->counts[2],
               (long long)row->counts[3]);
}

static int print_table(const struct table *table)
{
    json_t *rows = args.json ? json_array() : NULL;
    if (!args.json && table->n > 0) {
        if (args.by_node)
            cli_printf("%-16s  ", "NODE");
        cli_printf("%-10s  %-16s  %-24s %9s %12s %12s %12s\n", "DAY", "KEY", "MODEL", "REQUESTS",
                   "PROMPT", "OF IT CACHED", "ANSWER");
    }
    for (size_t i = 0; i < table->n; i++)
        if (args.json)
            json_array_append_new(rows, row_json(&table->rows[i]));
        else
            print_row(&table->rows[i]);
    if (args.json)
        return cli_print_json(rows);
    if (table->n == 0)
        cli_note("nothing is recorded");
    return CLI_DONE;
}

static int run_usage(const struct cli_command *command, char **operands, int n_operands)
{
    struct table table = {.rows = NULL};
    struct error error;
    (void)command, (void)operands, (void)n_operands;
    enum status status = read_rows(&table, &error);
    sum_rows(&table);
    int code = status == STATUS_OK ? print_table(&table) : cli_fail(&error);
    free_table(&table);
    return code;
}

/* ---- Audit ----------------------------------------------------------------------------------- */

/* Where the rows go: an array, or standard output. */
struct listing {
    json_t *rows;
    bool any;
};

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
    listing->any = true;
    buffer_free(&when);
    return true;
}

static int run_audit(const struct cli_command *command, char **operands, int n_operands)
{
    struct sqlite3 *database;
    struct error error;
    (void)command, (void)operands, (void)n_operands;
    if (gateway_database_open(&database, &error) != STATUS_OK)
        return cli_fail(&error);
    struct listing listing = {.rows = args.json ? json_array() : NULL};
    enum status status = audit_each(database, add_event, &listing, &error);
    database_close(database);
    if (status != STATUS_OK) {
        json_decref(listing.rows);
        return cli_fail(&error);
    }
    if (args.json)
        return cli_print_json(listing.rows);
    if (!listing.any)
        cli_note("nothing is recorded");
    return CLI_DONE;
}

/* ---- Commands -------------------------------------------------------------------------------- */

static const struct cli_option usage_options[] = {
    {.name = "days",
     .metavar = "N",
     .help = "of the last N days, today among them (default: 30)",
     .type = CLI_U32,
     .min = 1,
     .max = 100000,
     .value = &args.n_days},
    {.name = "node",
     .metavar = "NAME",
     .help = "of one node of the cluster (default: the sum of all)",
     .type = CLI_TEXT,
     .value = &args.node},
    {.name = "by-node",
     .help = "a row for each node of the cluster",
     .type = CLI_FLAG,
     .value = &args.by_node},
    {.name = "json", .help = "print a JSON array", .type = CLI_FLAG, .value = &args.json},
};
static const struct cli_group usage_group = CLI_GROUP("options", usage_options);

const struct cli_command cli_usage_command = {
    .name = "usage",
    .operands = "",
    .summary = "Shows requests and tokens for each day (UTC), key and model.",
    .description = "A server that runs writes what was used about three times a second. Without a "
                   "key the name is empty. Each node of a cluster keeps its own records; the "
                   "server on this machine asks the others for theirs. Nodes that are not "
                   "connected are named on standard error.",
    .groups = {&usage_group, &cli_remote_group},
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
