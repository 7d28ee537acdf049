/* Tokens and requests for each day, key and model: added up in memory, written now and then. */
#include "gateway/gateway_internal.h"

#include <sqlite3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* ---- In memory ------------------------------------------------------------------------------- */

void usage_day(char day[USAGE_DAY_BYTES], int64_t time_s)
{
    struct tm parts = {0};
    time_t time = (time_t)time_s;
    gmtime_r(&time, &parts);
    strftime(day, USAGE_DAY_BYTES, "%Y-%m-%d", &parts);
}

bool usage_sum(struct usage_entry **entries, const struct usage *usage)
{
    struct usage_entry *entry = *entries;
    while (entry != NULL &&
           (strcmp(entry->day, usage->day) != 0 || strcmp(entry->key, usage->key) != 0 ||
            strcmp(entry->model, usage->model) != 0))
        entry = entry->next;
    if (entry == NULL) {
        entry = calloc(1, sizeof *entry);
        char *model = strdup(usage->model);
        if (entry == NULL || model == NULL) {
            free(entry);
            free(model);
            return false;
        }
        snprintf(entry->day, sizeof entry->day, "%s", usage->day);
        snprintf(entry->key, sizeof entry->key, "%s", usage->key);
        entry->model = model;
        entry->next = *entries;
        *entries = entry;
    }
    entry->n_requests += usage->n_requests;
    entry->prompt_tokens += usage->prompt_tokens;
    entry->cached_tokens += usage->cached_tokens;
    entry->answer_tokens += usage->answer_tokens;
    return true;
}

void usage_free(struct usage_entry *entries)
{
    while (entries != NULL) {
        struct usage_entry *next = entries->next;
        free(entries->model);
        free(entries);
        entries = next;
    }
}

/* ---- In the file ----------------------------------------------------------------------------- */

enum status usage_write(struct sqlite3 *database, const struct usage_entry *entries,
                        struct error *error)
{
    enum status status = STATUS_OK;
    for (; entries != NULL && status == STATUS_OK; entries = entries->next)
        status =
            database_run(database, error,
                         "INSERT INTO usage VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO "
                         "UPDATE SET requests = requests + excluded.requests, "
                         "prompt_tokens = prompt_tokens + excluded.prompt_tokens, "
                         "cached_tokens = cached_tokens + excluded.cached_tokens, "
                         "answer_tokens = answer_tokens + excluded.answer_tokens",
                         "tttiiii", entries->day, entries->key, entries->model, entries->n_requests,
                         entries->prompt_tokens, entries->cached_tokens, entries->answer_tokens);
    return status;
}

struct reading {
    usage_row *row;
    void *context;
};

static bool read_row(void *context, struct sqlite3_stmt *row)
{
    const struct reading *reading = context;
    const struct usage usage = {.day = database_text(row, 0),
                                .key = database_text(row, 1),
                                .model = database_text(row, 2),
                                .n_requests = sqlite3_column_int64(row, 3),
                                .prompt_tokens = sqlite3_column_int64(row, 4),
                                .cached_tokens = sqlite3_column_int64(row, 5),
                                .answer_tokens = sqlite3_column_int64(row, 6)};
    return reading->row(reading->context, &usage);
}

enum status usage_each(struct sqlite3 *database, int64_t since_s, usage_row *row, void *context,
                       struct error *error)
{
    struct reading reading = {row, context};
    char day[USAGE_DAY_BYTES];
    usage_day(day, since_s);
    return database_query(database, read_row, &reading, error,
                          "SELECT * FROM usage WHERE day >= ? ORDER BY day, key, model", "t", day);
}
