/* SQLite files: opened with the form their tables need, and statements in one call. */
#include "base/base.h"

#include <errno.h>
#include <fcntl.h>
#include <sqlite3.h>
#include <stdarg.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define BUSY_MS 5000

/* ---- Errors ---------------------------------------------------------------------------------- */

enum status database_fail(struct sqlite3 *database, struct error *error)
{
    const char *path = sqlite3_db_filename(database, "main");
    switch (sqlite3_errcode(database) & 0xFF) {
    case SQLITE_NOMEM:
        return error_memory(error, 0);
    case SQLITE_BUSY:
    case SQLITE_LOCKED:
        return error_set(error, STATUS_BUSY, "%s is in use by another program: try again", path);
    case SQLITE_CORRUPT:
    case SQLITE_NOTADB:
        return error_set(error, STATUS_INVALID,
                         "%s is damaged or no database: put a copy in its place, or move it away",
                         path);
    case SQLITE_READONLY:
    case SQLITE_PERM:
    case SQLITE_CANTOPEN:
        return error_set(error, STATUS_IO,
                         "%s cannot be written: this user needs the right to write it and its "
                         "directory",
                         path);
    default:
        return error_set(error, STATUS_IO, "%s: %s", path, sqlite3_errmsg(database));
    }
}

/* ---- Statements ------------------------------------------------------------------------------ */

static bool bind_all(sqlite3_stmt *statement, const char *types, va_list values)
{
    int code = SQLITE_OK;
    for (int i = 1; *types != '\0' && code == SQLITE_OK; types++, i++) {
        const char *text;
        const struct view *bytes;
        switch (*types) {
        case 'i':
            code = sqlite3_bind_int64(statement, i, va_arg(values, int64_t));
            break;
        case 't':
            text = va_arg(values, const char *);
            code = sqlite3_bind_text(statement, i, text, -1, SQLITE_TRANSIENT);
            break;
        default: /* 'b' */
            bytes = va_arg(values, const struct view *);
            code = sqlite3_bind_blob(statement, i, bytes->data, (int)bytes->size, SQLITE_TRANSIENT);
        }
    }
    return code == SQLITE_OK;
}

static enum status query(struct sqlite3 *database, database_row *row, void *context,
                         struct error *error, const char *sql, const char *types, va_list values)
{
    sqlite3_stmt *statement = NULL;
    bool good = sqlite3_prepare_v2(database, sql, -1, &statement, NULL) == SQLITE_OK &&
                bind_all(statement, types, values);
    bool wanted = true;
    int code = SQLITE_DONE;
    while (good && wanted && (code = sqlite3_step(statement)) == SQLITE_ROW)
        wanted = row == NULL || row(context, statement);
    good = good && (code == SQLITE_DONE || code == SQLITE_ROW);
    enum status status = good ? STATUS_OK : database_fail(database, error);
    sqlite3_finalize(statement);
    return status;
}

enum status database_query(struct sqlite3 *database, database_row *row, void *context,
                           struct error *error, const char *sql, const char *types, ...)
{
    va_list values;
    va_start(values, types);
    enum status status = query(database, row, context, error, sql, types, values);
    va_end(values);
    return status;
}

enum status database_run(struct sqlite3 *database, struct error *error, const char *sql,
                         const char *types, ...)
{
    va_list values;
    va_start(values, types);
    enum status status = query(database, NULL, NULL, error, sql, types, values);
    va_end(values);
    return status;
}

const char *database_text(struct sqlite3_stmt *row, int column)
{
    const char *text = (const char *)sqlite3_column_text(row, column);
    return text != NULL ? text : "";
}

static bool keep_number(void *context, struct sqlite3_stmt *row)
{
    *(int64_t *)context = sqlite3_column_int64(row, 0);
    return false;
}

enum status database_number(struct sqlite3 *database, const char *sql, int64_t *out,
                            struct error *error)
{
    *out = 0;
    return database_query(database, keep_number, out, error, sql, "");
}

/* ---- Transactions ---------------------------------------------------------------------------- */

enum status database_begin(struct sqlite3 *database, struct error *error)
{
    return database_run(database, error, "BEGIN IMMEDIATE", "");
}

enum status database_end(struct sqlite3 *database, enum status status, struct error *error)
{
    if (status == STATUS_OK)
        status = database_run(database, error, "COMMIT", "");
    if (status != STATUS_OK)
        sqlite3_exec(database, "ROLLBACK", NULL, NULL, NULL);
    return status;
}

/* ---- Opening --------------------------------------------------------------------------------- */

/* The file belongs to its owner alone. SQLite gives the files beside it the same mode. */
static enum status make_private(const char *path, struct error *error)
{
    struct stat facts;
    int fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd >= 0) {
        close(fd);
        return STATUS_OK;
    }
    if (errno != EEXIST)
        return error_set(error, STATUS_IO, "cannot make %s: %s", path, strerror(errno));
    /* By its name: closing a descriptor of it would give up locks that this process has on it. */
    if (stat(path, &facts) == 0 && (facts.st_mode & 077) != 0)
        (void)!chmod(path, facts.st_mode & 0700);
    return STATUS_OK;
}

/* Each step is a transaction of its own, so that one that fails leaves the version before it. */
static enum status migrate(struct sqlite3 *database, const char *const *migrations,
                           size_t n_migrations, struct error *error)
{
    for (;;) {
        char pragma[40];
        int64_t version;
        enum status status = database_number(database, "PRAGMA user_version", &version, error);
        if (status != STATUS_OK || (uint64_t)version == n_migrations)
            return status;
        if (version < 0 || (uint64_t)version > n_migrations)
            return error_set(error, STATUS_UNSUPPORTED,
                             "%s was written by a newer consort: use that one",
                             sqlite3_db_filename(database, "main"));
        status = database_begin(database, error);
        int64_t now = version; /* another process may have been faster */
        if (status == STATUS_OK)
            status = database_number(database, "PRAGMA user_version", &now, error);
        sqlite3_snprintf(sizeof pragma, pragma, "PRAGMA user_version = %lld",
                         (long long)version + 1);
        if (status == STATUS_OK && now == version &&
            (sqlite3_exec(database, migrations[version], NULL, NULL, NULL) != SQLITE_OK ||
             sqlite3_exec(database, pragma, NULL, NULL, NULL) != SQLITE_OK))
            status = database_fail(database, error);
        status = database_end(database, status, error);
        if (status != STATUS_OK)
            return status;
    }
}

enum status database_open(struct sqlite3 **out, const char *path, const char *const *migrations,
                          size_t n_migrations, struct error *error)
{
    struct sqlite3 *database = NULL;
    *out = NULL;
    enum status status = make_private(path, error);
    if (status != STATUS_OK)
        return status;
    if (sqlite3_open_v2(path, &database, SQLITE_OPEN_READWRITE, NULL) != SQLITE_OK) {
        status = database != NULL ? database_fail(database, error) : error_memory(error, 0);
        sqlite3_close(database);
        return status;
    }
    sqlite3_busy_timeout(database, BUSY_MS);
    /* A network file system refuses WAL and keeps the older journal, which is right too. */
    status = database_run(database, error, "PRAGMA journal_mode = WAL", "");
    if (status == STATUS_OK)
        status = database_run(database, error, "PRAGMA synchronous = NORMAL", "");
    if (status == STATUS_OK)
        status = migrate(database, migrations, n_migrations, error);
    if (status != STATUS_OK) {
        sqlite3_close(database);
        return status;
    }
    *out = database;
    return STATUS_OK;
}

bool database_moved(struct sqlite3 *database)
{
    int moved = 0;
    sqlite3_file_control(database, "main", SQLITE_FCNTL_HAS_MOVED, &moved);
    return moved != 0;
}

void database_close(struct sqlite3 *database)
{
    sqlite3_close(database);
}
