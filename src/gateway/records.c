/* The file of a running server, on a thread of its own: neither the loop nor a step of an engine
 * waits for a disk or a lock. What is to be written is summed up and goes out in one transaction
 * each time the thread looks; what cannot be written stays for the next time.
 *
 * A timer of the loop wakes the thread, which asks SQLite whether another process changed anything;
 * a moment later the loop takes what it found, so that a key that is revoked ends well within a
 * second, on other nodes too. `mutex` guards what stands below it. What goes
 * wrong is told once, until it goes well again or wrong in another way; what was known before stays
 * valid. */
#include "gateway/gateway_internal.h"

#include <pthread.h>
#include <sqlite3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#define LOOK_MS 300
#define TAKE_MS 40 /* after it was asked to look, the thread has mostly done so */

struct records {
    struct records_options options;
    struct net_timer *timer; /* the loop's */
    pthread_t thread;
    bool started;

    /* The thread's, once it runs. */
    struct sqlite3 *database; /* NULL: it could not be opened again */
    int64_t version;
    struct error told; /* what goes wrong; its text is empty where nothing does */

    pthread_mutex_t mutex;
    pthread_cond_t wanted;
    bool look, closing;
    bool changed; /* keys is what the file holds now; for the loop */
    struct known_key *keys;
    struct usage_entry *usage; /* to be written, as the next */
    struct audit_entry *events, **last_event;
    struct known_key *adopted; /* of other nodes, the latest first */
};

struct audit_entry {
    struct audit_entry *next;
    int64_t time_s;
    const char *event; /* a constant */
    char subject[KEY_NAME_BYTES];
    char detail[256];
};

/* ---- The file -------------------------------------------------------------------------------- */

static void tell(struct records *records, const char *sentence)
{
    if (records->options.log != NULL)
        records->options.log(records->options.log_context, sentence);
}

static void free_events(struct audit_entry *events)
{
    while (events != NULL) {
        struct audit_entry *next = events->next;
        free(events);
        events = next;
    }
}

static enum status open_file(struct records *records, struct error *error)
{
    records->version = -1;
    return gateway_database_open(&records->database, error);
}

/* A file that was put in the place of the one before, or that is gone. */
static enum status open_again(struct records *records, struct error *error)
{
    if (records->database != NULL && !database_moved(records->database))
        return STATUS_OK;
    database_close(records->database);
    return open_file(records, error);
}

/* *out stays NULL where nothing changed. */
static enum status read_changes(struct records *records, struct known_key **out, bool *changed,
                                struct error *error)
{
    int64_t version;
    *changed = false;
    enum status status = database_number(records->database, "PRAGMA data_version", &version, error);
    if (status != STATUS_OK || version == records->version)
        return status;
    status = known_keys_read(out, records->database, error);
    *changed = status == STATUS_OK;
    if (*changed)
        records->version = version;
    return status;
}

/* ---- The thread ------------------------------------------------------------------------------ */

static void offer(struct records *records, struct known_key *keys)
{
    pthread_mutex_lock(&records->mutex);
    struct known_key *stale = records->keys;
    records->keys = keys;
    records->changed = true;
    pthread_mutex_unlock(&records->mutex);
    known_keys_free(stale);
}

/* Puts back what could not be written. */
static void keep(struct records *records, struct usage_entry *usage, struct audit_entry *events,
                 struct known_key *adopted)
{
    struct known_key **end = &adopted;
    struct audit_entry *last = events;
    pthread_mutex_lock(&records->mutex);
    for (const struct usage_entry *entry = usage; entry != NULL; entry = entry->next)
        usage_sum(&records->usage, &(struct usage){entry->day, entry->key, entry->model,
                                                   entry->n_requests, entry->prompt_tokens,
                                                   entry->cached_tokens, entry->answer_tokens});
    while (last != NULL && last->next != NULL)
        last = last->next;
    if (last != NULL) {
        last->next = records->events;
        if (records->events == NULL)
            records->last_event = &last->next;
        records->events = events;
    }
    while (*end != NULL)
        end = &(*end)->next;
    *end = records->adopted;
    records->adopted = adopted;
    pthread_mutex_unlock(&records->mutex);
    usage_free(usage);
}

static enum status write_all(struct records *records, const struct usage_entry *usage,
                             const struct audit_entry *events, const struct known_key *adopted,
                             struct error *error)
{
    enum status status = database_begin(records->database, error);
    if (status != STATUS_OK)
        return status;
    status = usage_write(records->database, usage, error);
    for (; adopted != NULL && status == STATUS_OK; adopted = adopted->next) {
        const struct key key = known_key_row(adopted);
        status = keys_adopt(records->database, &key, (int64_t)time(NULL), error);
    }
    for (; events != NULL && status == STATUS_OK; events = events->next)
        status = audit_add(
            records->database,
            &(struct audit_event){events->time_s, events->event, events->subject, events->detail},
            error);
    return database_end(records->database, status, error);
}

static enum status write_records(struct records *records, struct error *error)
{
    pthread_mutex_lock(&records->mutex);
    struct usage_entry *usage = records->usage;
    struct audit_entry *events = records->events;
    struct known_key *adopted = records->adopted;
    records->adopted = NULL;
    records->usage = NULL;
    records->events = NULL;
    records->last_event = &records->events;
    pthread_mutex_unlock(&records->mutex);
    if (usage == NULL && events == NULL && adopted == NULL)
        return STATUS_OK;
    enum status status = write_all(records, usage, events, adopted, error);
    if (status != STATUS_OK) {
        keep(records, usage, events, adopted);
        return status;
    }
    if (adopted != NULL)
        records->version = -1; /* what this connection writes is no news to it */
    known_keys_free(adopted);
    usage_free(usage);
    free_events(events);
    return STATUS_OK;
}

static void report(struct records *records, enum status status, const struct error *error)
{
    char line[sizeof error->text + 80];
    if (status != STATUS_OK && strcmp(records->told.text, error->text) != 0) {
        snprintf(line, sizeof line, "keys stay as they were, and usage waits to be written: %s",
                 error->text);
        tell(records, line);
    }
    records->told = status != STATUS_OK ? *error : (struct error){0};
}

/* Writes first, so that keys of other nodes are among those that are read. A file that cannot be
 * written may still tell of keys. */
static void look(struct records *records)
{
    struct error error, unread;
    struct known_key *keys = NULL;
    bool changed = false;
    enum status status = open_again(records, &error);
    if (status == STATUS_OK) {
        status = write_records(records, &error);
        enum status reading =
            read_changes(records, &keys, &changed, status == STATUS_OK ? &error : &unread);
        if (status == STATUS_OK)
            status = reading;
    }
    if (changed)
        offer(records, keys);
    report(records, status, &error);
}

static void *records_main(void *argument)
{
    struct records *records = argument;
    pthread_mutex_lock(&records->mutex);
    for (bool closing = false; !closing;) {
        if (!records->look && !records->closing) {
            pthread_cond_wait(&records->wanted, &records->mutex);
            continue;
        }
        records->look = false;
        closing = records->closing; /* then once more, for what is left */
        pthread_mutex_unlock(&records->mutex);
        look(records);
        pthread_mutex_lock(&records->mutex);
    }
    pthread_mutex_unlock(&records->mutex);
    return NULL;
}

/* ---- The loop -------------------------------------------------------------------------------- */

void records_adopt(struct records *records, const struct key *key)
{
    struct known_key *copy = records != NULL ? known_key_copy(key) : NULL;
    if (copy == NULL)
        return;
    pthread_mutex_lock(&records->mutex);
    copy->next = records->adopted;
    records->adopted = copy;
    pthread_mutex_unlock(&records->mutex);
}

void records_use(struct records *records, const struct usage *usage)
{
    if (records == NULL)
        return;
    pthread_mutex_lock(&records->mutex);
    usage_sum(&records->usage, usage);
    pthread_mutex_unlock(&records->mutex);
}

void records_audit(struct records *records, const char *event, const char *subject,
                   const char *detail)
{
    struct audit_entry *entry = records != NULL ? calloc(1, sizeof *entry) : NULL;
    if (entry == NULL)
        return;
    entry->time_s = (int64_t)time(NULL);
    entry->event = event;
    snprintf(entry->subject, sizeof entry->subject, "%s", subject);
    snprintf(entry->detail, sizeof entry->detail, "%s", detail);
    pthread_mutex_lock(&records->mutex);
    *records->last_event = entry;
    records->last_event = &entry->next;
    pthread_mutex_unlock(&records->mutex);
}

static void wake(void *context);

static void take_found(void *context)
{
    struct records *records = context;
    pthread_mutex_lock(&records->mutex);
    struct known_key *keys = records->keys;
    bool changed = records->changed;
    records->keys = NULL;
    records->changed = false;
    pthread_mutex_unlock(&records->mutex);
    records->timer = net_loop_after(records->options.loop, LOOK_MS - TAKE_MS, wake, records);
    if (changed)
        records->options.changed(records->options.context, keys);
}

static void wake(void *context)
{
    struct records *records = context;
    pthread_mutex_lock(&records->mutex);
    records->look = true;
    pthread_cond_signal(&records->wanted);
    pthread_mutex_unlock(&records->mutex);
    records->timer = net_loop_after(records->options.loop, TAKE_MS, take_found, records);
}

/* ---- Life cycle ------------------------------------------------------------------------------ */

static enum status first_look(struct records *records, struct error *error)
{
    struct known_key *keys = NULL;
    bool changed = false;
    enum status status = open_file(records, error);
    if (status == STATUS_OK)
        status = read_changes(records, &keys, &changed, error);
    if (changed)
        records->options.changed(records->options.context, keys);
    return status;
}

/* Whether a file is there. One that cannot be read may hold keys; where none is there and none can
 * be made, there are no keys. */
static bool file_exists(void)
{
    struct buffer path = {0};
    struct error error;
    struct stat facts;
    bool exists = gateway_database_path(&path, &error) == STATUS_OK && stat(path.data, &facts) == 0;
    buffer_free(&path);
    return exists;
}

enum status records_open(struct records **out, const struct records_options *options,
                         struct error *error)
{
    *out = NULL;
    struct records *records = calloc(1, sizeof *records);
    if (records == NULL)
        return error_memory(error, sizeof *records);
    records->options = *options;
    records->last_event = &records->events;
    pthread_mutex_init(&records->mutex, NULL);
    pthread_cond_init(&records->wanted, NULL);
    enum status status = first_look(records, error);
    if (status != STATUS_OK && status != STATUS_MEMORY && !file_exists()) {
        char line[sizeof error->text + 64];
        snprintf(line, sizeof line, "there are no keys and no records: %s", error->text);
        tell(records, line);
        records_close(records);
        return STATUS_OK;
    }
    if (status == STATUS_OK) {
        records->started = thread_start(&records->thread, records_main, records);
        records->timer = net_loop_after(options->loop, LOOK_MS, wake, records);
        if (!records->started || records->timer == NULL)
            status = error_set(error, STATUS_MEMORY, "cannot start the thread that reads keys");
    }
    if (status != STATUS_OK) {
        records_close(records);
        return status;
    }
    *out = records;
    return STATUS_OK;
}

void records_close(struct records *records)
{
    if (records == NULL)
        return;
    net_timer_cancel(records->timer);
    pthread_mutex_lock(&records->mutex);
    records->closing = true;
    pthread_cond_signal(&records->wanted);
    pthread_mutex_unlock(&records->mutex);
    if (records->started)
        pthread_join(records->thread, NULL);
    known_keys_free(records->keys);
    usage_free(records->usage);
    known_keys_free(records->adopted);
    free_events(records->events);
    database_close(records->database);
    pthread_cond_destroy(&records->wanted);
    pthread_mutex_destroy(&records->mutex);
    free(records);
}
