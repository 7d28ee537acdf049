/* SQLite files: versions, who may read them, and what is wrong with them. */
#include "base/base.h"

#include <setjmp.h>
#include <sqlite3.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

static const char *const migrations[] = {
    "CREATE TABLE a (x INTEGER); INSERT INTO a VALUES (1)",
    "CREATE TABLE b (t TEXT, d BLOB); UPDATE a SET x = x + 1",
    "CREATE TABLE c (x); CREATE TABLE a (x)", /* fails in its second half */
};

struct fixture {
    char directory[32], path[64];
    struct error error;
};

static int set_up(void **state)
{
    struct fixture *fixture = calloc(1, sizeof *fixture);
    strcpy(fixture->directory, "/tmp/consort-XXXXXX");
    *state = fixture;
    if (mkdtemp(fixture->directory) == NULL)
        return -1;
    snprintf(fixture->path, sizeof fixture->path, "%s/d.db", fixture->directory);
    return 0;
}

static int tear_down(void **state)
{
    struct fixture *fixture = *state;
    static const char *const names[] = {"d.db", "d.db-wal", "d.db-shm"};
    for (size_t i = 0; i < ARRAY_COUNT(names); i++) {
        char path[64];
        snprintf(path, sizeof path, "%s/%s", fixture->directory, names[i]);
        unlink(path);
    }
    int code = rmdir(fixture->directory);
    free(fixture);
    return code;
}

static enum status open_at(struct fixture *fixture, struct sqlite3 **out, size_t version)
{
    return database_open(out, fixture->path, migrations, version, &fixture->error);
}

static int64_t number(struct sqlite3 *database, const char *sql)
{
    int64_t value;
    struct error error;
    assert_int_equal(database_number(database, sql, &value, &error), STATUS_OK);
    return value;
}

static void test_database_versions(void **state)
{
    struct fixture *fixture = *state;
    struct sqlite3 *database;
    assert_int_equal(open_at(fixture, &database, 1), STATUS_OK);
    assert_int_equal(number(database, "SELECT x FROM a"), 1);
    database_close(database);
    assert_int_equal(open_at(fixture, &database, 2), STATUS_OK);
    assert_int_equal(number(database, "SELECT x FROM a"), 2);
    database_close(database);
    assert_int_equal(open_at(fixture, &database, 1), STATUS_UNSUPPORTED);
    assert_non_null(strstr(fixture->error.text, "newer"));
    assert_int_equal(open_at(fixture, &database, 3), STATUS_IO);
    assert_int_equal(open_at(fixture, &database, 2), STATUS_OK);
    assert_int_equal(number(database, "SELECT count(*) FROM sqlite_master WHERE name = 'c'"), 0);
    database_close(database);
}

static void test_database_private(void **state)
{
    struct fixture *fixture = *state;
    struct sqlite3 *database;
    struct stat facts;
    for (int i = 0; i < 2; i++) { /* made so, and made so again */
        assert_int_equal(open_at(fixture, &database, 2), STATUS_OK);
        database_close(database);
        assert_int_equal(stat(fixture->path, &facts), 0);
        assert_int_equal(facts.st_mode & 0777, 0600);
        assert_int_equal(chmod(fixture->path, 0644), 0);
    }
}

static bool check_row(void *context, struct sqlite3_stmt *row)
{
    *(int *)context += 1;
    assert_string_equal(sqlite3_column_text(row, 0), "it's");
    assert_int_equal(sqlite3_column_bytes(row, 1), 3);
    assert_memory_equal(sqlite3_column_blob(row, 1), "\0x\0", 3);
    return true;
}

static void test_database_values(void **state)
{
    struct fixture *fixture = *state;
    struct sqlite3 *database;
    int n_rows = 0;
    const struct view bytes = {"\0x\0", 3};
    assert_int_equal(open_at(fixture, &database, 2), STATUS_OK);
    assert_int_equal(database_run(database, &fixture->error, "INSERT INTO b VALUES (?, ?)", "tb",
                                  "it's", &bytes),
                     STATUS_OK);
    assert_int_equal(database_begin(database, &fixture->error), STATUS_OK);
    assert_int_equal(database_run(database, &fixture->error, "DELETE FROM b", ""), STATUS_OK);
    assert_int_equal(database_end(database, STATUS_INVALID, &fixture->error), STATUS_INVALID);
    assert_int_equal(database_query(database, check_row, &n_rows, &fixture->error,
                                    "SELECT t, d FROM b WHERE ? = 7", "i", (int64_t)7),
                     STATUS_OK);
    assert_int_equal(n_rows, 1);
    assert_int_equal(database_run(database, &fixture->error, "nonsense", ""), STATUS_IO);
    database_close(database);
}

static void test_database_locked(void **state)
{
    struct fixture *fixture = *state;
    struct sqlite3 *one, *other;
    assert_int_equal(open_at(fixture, &one, 2), STATUS_OK);
    assert_int_equal(open_at(fixture, &other, 2), STATUS_OK);
    assert_int_equal(database_begin(one, &fixture->error), STATUS_OK);
    sqlite3_busy_timeout(other, 0);
    assert_int_equal(database_begin(other, &fixture->error), STATUS_BUSY);
    assert_non_null(strstr(fixture->error.text, "in use"));
    assert_int_equal(number(other, "SELECT x FROM a"), 2); /* readers go on */
    assert_int_equal(database_end(one, STATUS_OK, &fixture->error), STATUS_OK);
    assert_int_equal(database_begin(other, &fixture->error), STATUS_OK);
    database_close(one);
    database_close(other);
}

static void test_database_damaged(void **state)
{
    struct fixture *fixture = *state;
    struct sqlite3 *database;
    FILE *file = fopen(fixture->path, "w");
    for (int i = 0; i < 1000; i++)
        fputs("no database", file);
    fclose(file);
    assert_int_equal(open_at(fixture, &database, 2), STATUS_INVALID);
    assert_null(database);
    assert_non_null(strstr(fixture->error.text, "damaged"));
    assert_int_equal(database_open(&database, "/dev/null/d.db", migrations, 2, &fixture->error),
                     STATUS_IO);
    assert_non_null(strstr(fixture->error.text, "/dev/null/d.db"));
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        TEST(test_database_versions), TEST(test_database_private), TEST(test_database_values),
        TEST(test_database_locked),   TEST(test_database_damaged),
    };
#undef TEST
    return cmocka_run_group_tests(tests, NULL, NULL);
}
