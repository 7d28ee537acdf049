/* The audit log: a table that is only added to, and how many failed logins it takes. */
#include "gateway/gateway_internal.h"

#include <sqlite3.h>
#include <stdio.h>
#include <string.h>

/* Anyone can fail to log in as often as they like. So many in a row are recorded, then so many a
 * minute; the next that is tells how many were not. */
#define LOGINS_PER_MINUTE 30

enum status audit_add(struct sqlite3 *database, const struct audit_event *event,
                      struct error *error)
{
    return database_run(database, error,
                        "INSERT INTO audit (time_s, event, subject, detail) VALUES (?, ?, ?, ?)",
                        "ittt", event->time_s, event->event, event->subject, event->detail);
}

struct reading {
    audit_row *row;
    void *context;
};

static bool read_row(void *context, struct sqlite3_stmt *row)
{
    const struct reading *reading = context;
    const struct audit_event event = {.time_s = sqlite3_column_int64(row, 0),
                                      .event = database_text(row, 1),
                                      .subject = database_text(row, 2),
                                      .detail = database_text(row, 3)};
    return reading->row(reading->context, &event);
}

enum status audit_each(struct sqlite3 *database, audit_row *row, void *context, struct error *error)
{
    struct reading reading = {row, context};
    return database_query(database, read_row, &reading, error,
                          "SELECT time_s, event, subject, detail FROM audit ORDER BY id", "");
}

/* ---- Logins ---------------------------------------------------------------------------------- */

bool logins_note(struct logins *logins, uint64_t now_ns, const char *peer, const char *why,
                 char *detail, size_t size_bytes)
{
    bucket_fill(&logins->bucket, LOGINS_PER_MINUTE, now_ns);
    if (logins->bucket.level < 1) {
        logins->n_left_out++;
        return false;
    }
    logins->bucket.level--;
    const char *port = strrchr(peer, ':'); /* a new one each time: of no use to anyone */
    int length = (int)(port != NULL ? (size_t)(port - peer) : strlen(peer));
    int at = snprintf(detail, size_bytes, "from %.*s: %s", length, peer, why);
    if (logins->n_left_out > 0 && at > 0 && (size_t)at < size_bytes)
        snprintf(detail + at, size_bytes - (size_t)at, " (%llu more before were not recorded)",
                 (unsigned long long)logins->n_left_out);
    logins->n_left_out = 0;
    return true;
}
