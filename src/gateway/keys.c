/* The tables of the file, and the rows of keys. A key that ends stays as a row: who still sends it
 * is told what became of it, and its name keeps its history. */
#include "gateway/gateway_internal.h"

#include <openssl/evp.h>
#include <openssl/rand.h>
#include <sqlite3.h>
#include <stdio.h>
#include <string.h>

#define FILE_NAME "/consort.db"
#define PREFIX "ck-"

static const char *const migrations[] = {
    "CREATE TABLE keys ("
    "  id INTEGER PRIMARY KEY,"
    "  name TEXT NOT NULL,"
    "  hash BLOB NOT NULL UNIQUE," /* SHA-256 of the key's text */
    "  models TEXT NOT NULL,"
    "  created_s INTEGER NOT NULL,"
    "  expires_s INTEGER NOT NULL,"
    "  revoked_s INTEGER NOT NULL,"
    "  requests_per_minute INTEGER NOT NULL DEFAULT 0," /* 0: not limited, as the next two */
    "  tokens_per_minute INTEGER NOT NULL DEFAULT 0,"
    "  parallel INTEGER NOT NULL DEFAULT 0);"
    "CREATE UNIQUE INDEX keys_in_use ON keys (name) WHERE revoked_s = 0;"
    "CREATE TABLE usage ("
    "  day TEXT NOT NULL," /* of UTC */
    "  key TEXT NOT NULL,"
    "  model TEXT NOT NULL,"
    "  requests INTEGER NOT NULL,"
    "  prompt_tokens INTEGER NOT NULL,"
    "  cached_tokens INTEGER NOT NULL,"
    "  answer_tokens INTEGER NOT NULL,"
    "  PRIMARY KEY (day, key, model)) WITHOUT ROWID;"
    "CREATE TABLE audit ("
    "  id INTEGER PRIMARY KEY AUTOINCREMENT,"
    "  time_s INTEGER NOT NULL,"
    "  event TEXT NOT NULL,"
    "  subject TEXT NOT NULL,"
    "  detail TEXT NOT NULL);"
    "CREATE TRIGGER audit_stays BEFORE UPDATE ON audit"
    "  BEGIN SELECT RAISE(ABORT, 'the audit log is only added to'); END;"
    "CREATE TRIGGER audit_remains BEFORE DELETE ON audit"
    "  BEGIN SELECT RAISE(ABORT, 'the audit log is only added to'); END;",
};

enum status gateway_database_path(struct buffer *out, struct error *error)
{
    enum status status = home_directory("", out, error);
    if (status == STATUS_OK && !buffer_append_text(out, FILE_NAME))
        status = error_memory(error, sizeof FILE_NAME);
    return status;
}

enum status gateway_database_open(struct sqlite3 **out, struct error *error)
{
    struct buffer path = {0};
    *out = NULL;
    enum status status = gateway_database_path(&path, error);
    if (status == STATUS_OK)
        status = database_open(out, path.data, migrations, ARRAY_COUNT(migrations), error);
    buffer_free(&path);
    return status;
}

/* ---- Texts ----------------------------------------------------------------------------------- */

void key_hash(struct view text, unsigned char hash[KEY_HASH_BYTES])
{
    unsigned size = 0;
    if (EVP_Digest(text.data, text.size, hash, &size, EVP_sha256(), NULL) != 1)
        memset(hash, 0, KEY_HASH_BYTES); /* the hash of no text */
}

static enum status make_text(char text[KEY_TEXT_BYTES], struct error *error)
{
    unsigned char random[32];
    if (RAND_bytes(random, sizeof random) != 1)
        return error_set(error, STATUS_IO, "the system gives no random numbers");
    size_t at = (size_t)snprintf(text, KEY_TEXT_BYTES, PREFIX);
    for (size_t i = 0; i < sizeof random; i++)
        at += (size_t)snprintf(text + at, KEY_TEXT_BYTES - at, "%02x", random[i]);
    return STATUS_OK;
}

static enum status check_name(const char *name, struct error *error)
{
    static const char allowed[] =
        "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._@-";
    size_t size = strlen(name);
    if (size == 0 || size >= KEY_NAME_BYTES || strspn(name, allowed) != size)
        return error_set(error, STATUS_INVALID,
                         "the name of a key has 1 to %d letters, digits and characters of . _ @ -",
                         KEY_NAME_BYTES - 1);
    if (strcmp(name, KEY_COMMAND_LINE) == 0)
        return error_set(error, STATUS_INVALID, "%s is the name of the key that --api-key gives",
                         name);
    return STATUS_OK;
}

/* ---- Keys of other nodes --------------------------------------------------------------------- */

enum status keys_adopt(struct sqlite3 *database, const struct key *key, int64_t now_s,
                       struct error *error)
{
    char name[KEY_NAME_BYTES];
    int64_t n_changes = 0;
    const unsigned char *hash = (const unsigned char *)key->hash.data;
    const char *names[] = {key->name, name};
    snprintf(name, sizeof name, "%.*s@%02x%02x%02x", KEY_NAME_BYTES - 8, key->name, hash[0],
             hash[1], hash[2]);
    enum status status =
        database_run(database, error,
                     "UPDATE keys SET revoked_s = ?1 WHERE hash = ?2 AND revoked_s = 0 AND ?1 != 0",
                     "ib", key->revoked_s, &key->hash);
    for (size_t i = 0; i < ARRAY_COUNT(names) && status == STATUS_OK && n_changes == 0; i++) {
        status = database_run(
            database, error,
            "INSERT OR IGNORE INTO keys (name, hash, models, created_s, expires_s, revoked_s,"
            " requests_per_minute, tokens_per_minute, parallel)"
            " VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
            "tbtiiiiii", names[i], &key->hash, key->models, now_s, key->expires_s, key->revoked_s,
            (int64_t)key->limits.requests_per_minute, (int64_t)key->limits.tokens_per_minute,
            (int64_t)key->limits.parallel);
        if (status == STATUS_OK)
            status = database_number(database, "SELECT changes()", &n_changes, error);
    }
    return status;
}

/* ---- Reading --------------------------------------------------------------------------------- */

#define COLUMNS                                                                                    \
    "name, hash, models, created_s, expires_s, revoked_s, "                                        \
    "requests_per_minute, tokens_per_minute, parallel"

struct reading {
    keys_row *row;
    void *context;
};

static uint32_t limit_at(struct sqlite3_stmt *row, int column)
{
    int64_t value = sqlite3_column_int64(row, column);
    return (uint32_t)MIN(MAX(value, 0), UINT32_MAX);
}

static bool read_row(void *context, struct sqlite3_stmt *row)
{
    const struct reading *reading = context;
    const void *hash = sqlite3_column_blob(row, 1);
    const struct key key = {
        .name = database_text(row, 0),
        .hash = {hash, (size_t)sqlite3_column_bytes(row, 1)},
        .models = database_text(row, 2),
        .created_s = sqlite3_column_int64(row, 3),
        .expires_s = sqlite3_column_int64(row, 4),
        .revoked_s = sqlite3_column_int64(row, 5),
        .limits = {.requests_per_minute = limit_at(row, 6),
                   .tokens_per_minute = limit_at(row, 7),
                   .parallel = limit_at(row, 8)},
    };
    return key.hash.size != KEY_HASH_BYTES || reading->row(reading->context, &key);
}

enum status keys_each(struct sqlite3 *database, keys_row *row, void *context, struct error *error)
{
    struct reading reading = {row, context};
    return database_query(database, read_row, &reading, error,
                          "SELECT " COLUMNS " FROM keys ORDER BY id", "");
}

const char *key_state(const struct key *key, int64_t now_s)
{
    if (key->revoked_s != 0)
        return "revoked";
    return key->expires_s != 0 && key->expires_s <= now_s ? "expired" : "active";
}

/* ---- Changing -------------------------------------------------------------------------------- */

/* What has expired counts as revoked then, so that its name is free. */
static enum status retire_expired(struct sqlite3 *database, int64_t now_s, struct error *error)
{
    return database_run(database, error,
                        "UPDATE keys SET revoked_s = expires_s "
                        "WHERE revoked_s = 0 AND expires_s != 0 AND expires_s <= ?1",
                        "i", now_s);
}

static enum status revoke(struct sqlite3 *database, const char *name, int64_t now_s,
                          struct error *error)
{
    enum status status = retire_expired(database, now_s, error);
    if (status == STATUS_OK)
        status = database_run(database, error,
                              "UPDATE keys SET revoked_s = ?1 WHERE name = ?2 AND revoked_s = 0",
                              "it", now_s, name);
    if (status == STATUS_OK && sqlite3_changes(database) == 0)
        status = error_set(error, STATUS_NOT_FOUND,
                           "there is no valid key '%.64s'; consort key list shows all", name);
    return status;
}

/* Ends the transaction of a change, with a line in the audit log. */
static enum status end_change(struct sqlite3 *database, enum status status, const char *event,
                              const char *name, int64_t now_s, struct error *error)
{
    if (status == STATUS_OK)
        status = audit_add(database, &(struct audit_event){now_s, event, name, ""}, error);
    return database_end(database, status, error);
}

enum status keys_create(struct sqlite3 *database, const struct key *wanted, int64_t now_s,
                        char text[KEY_TEXT_BYTES], struct error *error)
{
    unsigned char hash[KEY_HASH_BYTES];
    const struct view hash_view = {(const char *)hash, sizeof hash};
    const struct key_limits *limits = &wanted->limits;
    enum status status = check_name(wanted->name, error);
    if (status == STATUS_OK)
        status = make_text(text, error);
    if (status == STATUS_OK)
        status = database_begin(database, error);
    if (status != STATUS_OK)
        return status;
    key_hash(view_of(text), hash);
    status = retire_expired(database, now_s, error);
    if (status == STATUS_OK)
        status = database_run(database, error,
                              "INSERT INTO keys (" COLUMNS ") SELECT ?1, ?2, ?3, ?4, ?5, 0, "
                              "?6, ?7, ?8 WHERE NOT EXISTS "
                              "(SELECT 1 FROM keys WHERE name = ?1 AND revoked_s = 0)",
                              "tbtiiiii", wanted->name, &hash_view, wanted->models, now_s,
                              wanted->expires_s, (int64_t)limits->requests_per_minute,
                              (int64_t)limits->tokens_per_minute, (int64_t)limits->parallel);
    if (status == STATUS_OK && sqlite3_changes(database) == 0)
        status =
            error_set(error, STATUS_INVALID,
                      "there is a key '%s' already: consort key rotate or revoke it", wanted->name);
    return end_change(database, status, "key created", wanted->name, now_s, error);
}

enum status keys_rotate(struct sqlite3 *database, const char *name, int64_t now_s,
                        char text[KEY_TEXT_BYTES], struct error *error)
{
    unsigned char hash[KEY_HASH_BYTES];
    const struct view hash_view = {(const char *)hash, sizeof hash};
    enum status status = make_text(text, error);
    if (status == STATUS_OK)
        status = database_begin(database, error);
    if (status != STATUS_OK)
        return status;
    key_hash(view_of(text), hash);
    status = revoke(database, name, now_s, error);
    if (status == STATUS_OK)
        status = database_run(database, error,
                              "INSERT INTO keys (" COLUMNS ") "
                              "SELECT name, ?1, models, ?2, expires_s, 0, "
                              "requests_per_minute, tokens_per_minute, parallel "
                              "FROM keys WHERE name = ?3 ORDER BY id DESC LIMIT 1",
                              "bit", &hash_view, now_s, name);
    return end_change(database, status, "key rotated", name, now_s, error);
}

enum status keys_revoke(struct sqlite3 *database, const char *name, int64_t now_s,
                        struct error *error)
{
    enum status status = database_begin(database, error);
    if (status != STATUS_OK)
        return status;
    status = revoke(database, name, now_s, error);
    return end_change(database, status, "key revoked", name, now_s, error);
}
