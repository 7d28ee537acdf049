#include "base/base.h"
#include "base/cgroup.h"

#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

static void test_error_cut_on_character(void **state)
{
    (void)state;
    struct error error;
    char text[sizeof error.text + 50];
    size_t limit = sizeof error.text - 1, begin = limit - 2;
    memset(text, 'a', sizeof text);
    memcpy(text + begin, "\xe2\x82\xac", 3); /* a euro sign across the limit */
    text[sizeof text - 1] = '\0';
    assert_int_equal(error_set(&error, STATUS_INVALID, "%s", text), STATUS_INVALID);
    assert_int_equal(strlen(error.text), begin);
    assert_int_equal(error_set(NULL, STATUS_IO, "x"), STATUS_IO);
}

static void test_status_texts(void **state)
{
    (void)state;
    assert_string_equal(status_text(STATUS_OK), "done");
    assert_string_equal(status_text(STATUS_CANCELLED), "cancelled");
    assert_string_equal(status_text((enum status)1000), "unknown status");
}

static void test_sizes_do_not_wrap(void **state)
{
    (void)state;
    size_t size = 7;
    assert_false(size_mul(SIZE_MAX / 2 + 1, 2, &size));
    assert_false(size_add(SIZE_MAX, 1, &size));
    assert_true(size_mul(SIZE_MAX / 2, 2, &size));
    assert_true(size == SIZE_MAX - 1);
    assert_true(size_add(SIZE_MAX - 1, 1, &size));
    assert_true(size == SIZE_MAX);
}

static void test_error_holds_no_control_characters(void **state)
{
    (void)state;
    struct error error;
    error_set(&error, STATUS_INVALID, "name %s", "a\x1b[2J\r\n\x7f\xc3\xa4");
    assert_string_equal(error.text, "name a?[2J???\xc3\xa4");
}

static void test_arena_limit(void **state)
{
    (void)state;
    struct arena *arena = arena_open(1024);
    assert_non_null(arena);
    char *a = arena_alloc(arena, 1000);
    assert_non_null(a);
    for (int i = 0; i < 1000; i++)
        assert_int_equal(a[i], 0);
    assert_null(arena_alloc(arena, 100));
    assert_null(arena_array(arena, SIZE_MAX / 2, 4));
    assert_string_equal(arena_copy(arena, "xy", 1), "x");
    arena_close(arena);
    arena_close(NULL);
}

static void test_buffer_grows(void **state)
{
    (void)state;
    struct buffer buffer = {0};
    for (int i = 0; i < 1000; i++)
        assert_true(buffer_printf(&buffer, "%d,", i));
    assert_int_equal(strlen(buffer.data), buffer.size);
    assert_memory_equal(buffer.data, "0,1,2,", 6);
    assert_false(buffer_reserve(&buffer, SIZE_MAX));
    assert_true(buffer.failed);
    buffer_free(&buffer);
}

static void test_utf8(void **state)
{
    (void)state;
    uint32_t cp = 0;
    assert_int_equal(utf8_decode("\xf0\x9f\x98\x80", 4, &cp), 4);
    assert_int_equal(cp, 0x1F600);
    assert_int_equal(utf8_decode("\xc0\x80", 2, &cp), 0);
    assert_int_equal(utf8_decode("\xed\xa0\x80", 3, &cp), 0);
    assert_int_equal(utf8_decode("\xf4\x90\x80\x80", 4, &cp), 0);
    assert_int_equal(utf8_decode("\xe2\x82", 2, &cp), 0);
    for (cp = 0; cp < 0x110000; cp += cp < 0x3000 ? 1 : 97) {
        char out[4];
        uint32_t back;
        if (cp >= 0xD800 && cp < 0xE000)
            continue;
        size_t n = utf8_encode(cp, out);
        assert_int_equal(utf8_decode(out, n, &back), n);
        assert_int_equal(back, cp);
    }
    assert_true(utf8_valid("a\xe2\x82\xac", 4));
    assert_false(utf8_valid("a\xe2\x82", 3));
    assert_false(utf8_valid("\x80", 1));
    assert_true(utf8_valid("", 0));
    assert_int_equal(utf8_count("a\xe2\x82\xac\xf0\x9f\x98\x80", 8), 3);
    assert_int_equal(utf8_count("", 0), 0);
    assert_int_equal(utf8_last("a\xe2\x82\xac", 4), 1);
    assert_int_equal(utf8_last("a", 1), 0);
    assert_int_equal(utf8_complete("a\xe2\x82", 3), 1);
    assert_int_equal(utf8_complete("a\xe2\x82\xac", 4), 4);
    assert_int_equal(utf8_complete("a\x80\x80", 3), 3);
    assert_int_equal(utf8_complete("\xed\xa0", 2), 2);
    assert_int_equal(utf8_complete("", 0), 0);
}

static void test_cursor_stops_at_end(void **state)
{
    (void)state;
    const uint8_t bytes[] = {1, 2, 3, 4, 5, 6, 7, 8, 9};
    struct cursor cursor = cursor_over(bytes, sizeof bytes);
    assert_int_equal(cursor_u32(&cursor), 0x04030201);
    assert_int_equal(cursor_u16(&cursor), 0x0605);
    assert_int_equal(cursor_left(&cursor), 3);
    assert_int_equal(cursor_u32(&cursor), 0);
    assert_true(cursor.failed);
    assert_int_equal(cursor_u8(&cursor), 0);
    assert_null(cursor_bytes(&cursor, SIZE_MAX));
}

static void test_file_appears_whole(void **state)
{
    (void)state;
    char path[] = "/tmp/consort-test-XXXXXX";
    assert_true(close(mkstemp(path)) == 0);
    unlink(path);
    struct error error;
    struct file_writer *writer;
    assert_int_equal(file_create(&writer, path, &error), STATUS_OK);
    assert_int_equal(file_write(writer, "abc", 3, &error), STATUS_OK);
    assert_int_not_equal(access(path, F_OK), 0);
    assert_int_equal(file_commit(writer, &error), STATUS_OK);
    struct file_map map;
    assert_int_equal(file_map_open(&map, path, &error), STATUS_OK);
    assert_int_equal(map.size, 3);
    assert_memory_equal(map.data, "abc", 3);
    file_map_close(&map);
    struct buffer text = {0};
    assert_int_equal(file_read(path, 2, &text, &error), STATUS_LIMIT);
    buffer_clear(&text);
    assert_int_equal(file_read(path, 3, &text, &error), STATUS_OK);
    assert_string_equal(text.data, "abc");
    buffer_free(&text);
    unlink(path);
    assert_int_equal(file_map_open(&map, path, &error), STATUS_NOT_FOUND);

    char temporary[80];
    snprintf(temporary, sizeof temporary, "%s.tmp-%ld", path, (long)getpid());
    assert_int_equal(file_create(&writer, path, &error), STATUS_OK);
    assert_int_equal(access(temporary, F_OK), 0);
    file_discard(writer);
    assert_int_not_equal(access(temporary, F_OK), 0);
    assert_int_not_equal(access(path, F_OK), 0);
}

/* What is no regular file keeps its place, and so does a link. */
static void test_file_keeps_pipes_and_links(void **state)
{
    (void)state;
    char folder[] = "/tmp/consort-test-XXXXXX", pipe_path[64], link_path[64], file_path[64];
    assert_non_null(mkdtemp(folder));
    snprintf(pipe_path, sizeof pipe_path, "%s/pipe", folder);
    snprintf(link_path, sizeof link_path, "%s/link", folder);
    snprintf(file_path, sizeof file_path, "%s/file", folder);
    assert_int_equal(mkfifo(pipe_path, 0600), 0);
    assert_int_equal(symlink("file", link_path), 0);
    int pipe_fd = open(pipe_path, O_RDWR);
    int file_fd = open(file_path, O_WRONLY | O_CREAT, 0600);
    assert_true(pipe_fd >= 0 && file_fd >= 0);

    struct error error;
    struct file_writer *writer;
    char bytes[4] = "";
    struct stat info;
    assert_int_equal(file_create(&writer, pipe_path, &error), STATUS_OK);
    assert_int_equal(file_write(writer, "abc", 3, &error), STATUS_OK);
    assert_int_equal(file_commit(writer, &error), STATUS_OK);
    assert_int_equal(read(pipe_fd, bytes, 3), 3);
    assert_string_equal(bytes, "abc");
    assert_true(lstat(pipe_path, &info) == 0 && S_ISFIFO(info.st_mode));
    assert_int_equal(file_create(&writer, pipe_path, &error), STATUS_OK);
    file_discard(writer);
    assert_true(lstat(pipe_path, &info) == 0 && S_ISFIFO(info.st_mode));

    assert_int_equal(file_create(&writer, link_path, &error), STATUS_OK);
    assert_int_equal(file_write(writer, "abcd", 4, &error), STATUS_OK);
    assert_int_equal(file_commit(writer, &error), STATUS_OK);
    assert_true(lstat(link_path, &info) == 0 && S_ISLNK(info.st_mode));
    assert_true(stat(file_path, &info) == 0 && info.st_size == 4);

    assert_int_equal(file_create(&writer, folder, &error), STATUS_IO);
    assert_null(writer);
    close(pipe_fd);
    close(file_fd);
    unlink(pipe_path);
    unlink(link_path);
    unlink(file_path);
    rmdir(folder);
}

/* Known answers of the reference implementation (Random123, kat_vectors, philox4x32 10). */
static void test_rng_known_answers(void **state)
{
    (void)state;
    assert_int_equal(rng_u64(0, 0, 0), 0xe169c58d6627e8d5u);
    double sum = 0;
    for (uint64_t i = 0; i < 10000; i++) {
        double x = rng_uniform(42, i, 0);
        assert_true(x >= 0 && x < 1);
        sum += x;
    }
    assert_true(sum > 4850 && sum < 5150);
    assert_int_not_equal(rng_u64(1, 2, 3), rng_u64(1, 3, 2));
}

struct counts {
    atomic_int seen[1000];
};

static void count_items(void *context, unsigned thread, size_t begin, size_t end)
{
    (void)thread;
    struct counts *counts = context;
    for (size_t i = begin; i < end; i++)
        atomic_fetch_add(&counts->seen[i], 1);
}

static void test_pool_covers_every_item_once(void **state)
{
    (void)state;
    for (unsigned threads = 1; threads <= 4; threads++) {
        struct pool *pool;
        struct error error;
        assert_int_equal(pool_open(&pool, threads, &error), STATUS_OK);
        struct counts counts = {0};
        for (int round = 0; round < 200; round++)
            pool_run(pool, count_items, &counts, 1000, 7);
        for (int i = 0; i < 1000; i++)
            assert_int_equal(counts.seen[i], 200);
        pool_close(pool);
    }
    struct pool *pool;
    struct error error;
    assert_int_equal(pool_open(&pool, 0, &error), STATUS_INVALID);
}

/* Two who share a pool never run at the same time, and take turns. */
struct sharer {
    struct pool *pool;
    struct counts *counts;
    atomic_int *running;
    bool alone;
};

static void *share_pool(void *argument)
{
    struct sharer *sharer = argument;
    sharer->alone = true;
    for (int round = 0; round < 500; round++) {
        pool_take_turn(sharer->pool);
        sharer->alone = sharer->alone && atomic_fetch_add(sharer->running, 1) == 0;
        pool_run(sharer->pool, count_items, sharer->counts, 1000, 7);
        atomic_fetch_sub(sharer->running, 1);
        pool_end_turn(sharer->pool);
    }
    return NULL;
}

static void test_pool_turns(void **state)
{
    (void)state;
    struct pool *pool;
    struct error error;
    struct counts counts[3] = {0};
    struct sharer sharers[3];
    pthread_t threads[3];
    atomic_int running = 0;
    assert_int_equal(pool_open(&pool, 3, &error), STATUS_OK);
    for (int i = 0; i < 3; i++) {
        sharers[i] = (struct sharer){.pool = pool, .counts = &counts[i], .running = &running};
        assert_int_equal(pthread_create(&threads[i], NULL, share_pool, &sharers[i]), 0);
    }
    for (int i = 0; i < 3; i++)
        pthread_join(threads[i], NULL);
    for (int i = 0; i < 3; i++) {
        assert_true(sharers[i].alone);
        for (int k = 0; k < 1000; k++)
            assert_int_equal(counts[i].seen[k], 500);
    }
    pool_close(pool);
}

static void test_machine(void **state)
{
    (void)state;
    struct machine machine;
    machine_query(&machine);
    assert_true(machine.physical_cores >= 1);
    assert_true(machine.memory_bytes > 0);
    assert_true(machine.memory_free_bytes <= machine.memory_bytes);
    assert_true(machine.memory_own_bytes > 0 && machine.memory_own_bytes < machine.memory_bytes);
}

static void put_file(const char *root, const char *path, const char *text)
{
    char whole[256];
    snprintf(whole, sizeof whole, "%s%s", root, path);
    for (char *slash = strchr(whole + strlen(root) + 1, '/'); slash != NULL;
         slash = strchr(slash + 1, '/')) {
        *slash = '\0';
        mkdir(whole, 0700);
        *slash = '/';
    }
    FILE *file = fopen(whole, "w");
    assert_non_null(file);
    fputs(text, file);
    fclose(file);
}

/* Groups of both versions: a limit holds for the groups below, file cache is not used memory. */
static void test_cgroups_limit_memory(void **state)
{
    (void)state;
    char root[] = "/tmp/consort-cgroup-XXXXXX", command[64];
    assert_non_null(mkdtemp(root));
    uint64_t total = 1000000, available = 900000;
    cgroup_apply(root, &total, &available); /* no groups */
    assert_int_equal(total, 1000000);
    assert_int_equal(available, 900000);

    put_file(root, "/proc/self/cgroup", "9:cpu,memory:/docker/4f1c\n3:cpuset:/\n0::/user/app\n");
    put_file(root, "/sys/fs/cgroup/memory/docker/4f1c/memory.limit_in_bytes",
             "9223372036854771712\n");
    put_file(root, "/sys/fs/cgroup/memory/docker/memory.limit_in_bytes", "800000\n");
    put_file(root, "/sys/fs/cgroup/memory/docker/memory.usage_in_bytes", "300000\n");
    put_file(root, "/sys/fs/cgroup/memory/docker/memory.stat",
             "active_file 1\ntotal_active_file 40000\ntotal_inactive_file 60000\n");
    cgroup_apply(root, &total, &available);
    assert_int_equal(total, 800000);
    assert_int_equal(available, 600000);

    put_file(root, "/sys/fs/cgroup/user/memory.max", "500000\n");
    put_file(root, "/sys/fs/cgroup/user/memory.current", "450000\n");
    put_file(root, "/sys/fs/cgroup/user/memory.stat", "inactive_file 150000\n");
    put_file(root, "/sys/fs/cgroup/user/app/memory.max", "max\n");
    cgroup_apply(root, &total, &available);
    assert_int_equal(total, 500000);
    assert_int_equal(available, 200000);

    put_file(root, "/sys/fs/cgroup/user/app/memory.max", "100000\n");
    put_file(root, "/sys/fs/cgroup/user/app/memory.current", "170000\n"); /* beyond its limit */
    cgroup_apply(root, &total, &available);
    assert_int_equal(total, 100000);
    assert_int_equal(available, 0);
    snprintf(command, sizeof command, "rm -r %s", root);
    assert_int_equal(system(command), 0);
}

static void test_home_is_made_for_its_owner(void **state)
{
    (void)state;
    char root[] = "/tmp/consort-home-XXXXXX", path[128];
    struct error error;
    struct buffer out = {0};
    struct stat facts;
    assert_non_null(mkdtemp(root));
    snprintf(path, sizeof path, "%s/home", root);
    setenv("CONSORT_HOME", path, 1);
    assert_int_equal(home_directory("run", &out, &error), STATUS_OK);
    snprintf(path, sizeof path, "%s/home/run", root);
    assert_string_equal(out.data, path);
    assert_int_equal(stat(path, &facts), 0);
    assert_int_equal(facts.st_mode & 0777, 0700);
    assert_int_equal(rmdir(path), 0);

    FILE *file = fopen(path, "w"); /* a file is in the way */
    assert_non_null(file);
    fclose(file);
    assert_int_equal(home_directory("run", &out, &error), STATUS_IO);
    unlink(path);
    unsetenv("CONSORT_HOME");

    setenv("HOME", root, 1);
    assert_int_equal(home_directory("", &out, &error), STATUS_OK);
    size_t size = strlen(root);
    assert_memory_equal(out.data, root, size);
    for (char *end; strlen(out.data) > size; *end = '\0') {
        assert_int_equal(rmdir(out.data), 0);
        end = strrchr(out.data, '/');
    }
    snprintf(path, sizeof path, "%s/home", root);
    assert_int_equal(rmdir(path), 0);
    assert_int_equal(rmdir(root), 0);
    buffer_free(&out);
}

static void *read_mask(void *out)
{
    pthread_sigmask(SIG_BLOCK, NULL, out);
    return NULL;
}

static void test_threads_take_no_signals(void **state)
{
    (void)state;
    static const int signals[] = {SIGINT, SIGTERM, SIGHUP, SIGUSR1, SIGCHLD};
    sigset_t before, after, inside;
    pthread_t thread;
    read_mask(&before);
    sigemptyset(&inside);
    assert_true(thread_start(&thread, read_mask, &inside));
    pthread_join(thread, NULL);
    read_mask(&after);
    for (size_t i = 0; i < ARRAY_COUNT(signals); i++) {
        assert_int_equal(sigismember(&inside, signals[i]), 1);
        assert_int_equal(sigismember(&before, signals[i]), 0);
        assert_int_equal(sigismember(&after, signals[i]), 0);
    }
}

static void test_pages_are_zeroed_and_apart(void **state)
{
    (void)state;
    const size_t sizes[] = {1, 4096, ((size_t)64 << 20) - 1, (size_t)64 << 20,
                            ((size_t)64 << 20) + 1};
    unsigned char *pages[2 * ARRAY_COUNT(sizes)];
    assert_null(pages_alloc(0));
    for (size_t i = 0; i < ARRAY_COUNT(pages); i++) {
        size_t size = sizes[i / 2];
        pages[i] = pages_alloc(size);
        assert_non_null(pages[i]);
        assert_int_equal((uintptr_t)pages[i] % 64, 0);
        assert_int_equal(pages[i][0] + pages[i][size / 2] + pages[i][size - 1], 0);
        pages[i][0] = pages[i][size - 1] = (unsigned char)(i + 1);
    }
    for (size_t i = 0; i < ARRAY_COUNT(pages); i++) {
        assert_int_equal(pages[i][0], i + 1);
        assert_int_equal(pages[i][sizes[i / 2] - 1], i + 1);
        pages_free(pages[i], sizes[i / 2]);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_pages_are_zeroed_and_apart),
        cmocka_unit_test(test_home_is_made_for_its_owner),
        cmocka_unit_test(test_status_texts),
        cmocka_unit_test(test_sizes_do_not_wrap),
        cmocka_unit_test(test_error_cut_on_character),
        cmocka_unit_test(test_error_holds_no_control_characters),
        cmocka_unit_test(test_arena_limit),
        cmocka_unit_test(test_buffer_grows),
        cmocka_unit_test(test_utf8),
        cmocka_unit_test(test_cursor_stops_at_end),
        cmocka_unit_test(test_file_appears_whole),
        cmocka_unit_test(test_file_keeps_pipes_and_links),
        cmocka_unit_test(test_rng_known_answers),
        cmocka_unit_test(test_pool_covers_every_item_once),
        cmocka_unit_test(test_pool_turns),
        cmocka_unit_test(test_threads_take_no_signals),
        cmocka_unit_test(test_machine),
        cmocka_unit_test(test_cgroups_limit_memory),
    };
    return cmocka_run_group_tests_name("base", tests, NULL, NULL);
}
