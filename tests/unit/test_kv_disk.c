/* Pages on disk: what is written is read again bit for bit, also by the next who opens the folder;
 * what is damaged or foreign is not; the least recently used go. */
#include "engine/kv_disk.h"
#include "engine/prefix.h"
#include "tiny_model.h"

#include <dirent.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#define PAGE MODEL_KV_PAGE_TOKENS
#define SIZE ((size_t)20001)
#define FILE_BYTES (SIZE + 56)
#define LARGE ((uint64_t)1 << 30)

struct fixture {
    char path[64];
    struct kv_disk *disk;
    struct kv_key root;
    char log[1024]; /* the last line */
    unsigned n_lines;
};

static void keep_line(void *context, const char *line)
{
    struct fixture *f = context;
    snprintf(f->log, sizeof f->log, "%s", line);
    f->n_lines++;
}

/* What waits is written first. */
static void reopen(struct fixture *f, uint64_t limit_bytes)
{
    struct error error = {0};
    kv_disk_close(f->disk);
    if (kv_disk_open(&f->disk, f->path, limit_bytes, keep_line, f, &error) != STATUS_OK)
        fail_msg("%s", error.text);
}

static void open_fixture(struct fixture *f, uint64_t limit_bytes)
{
    *f = (struct fixture){0};
    snprintf(f->path, sizeof f->path, "/tmp/consort-kv-XXXXXX");
    assert_non_null(mkdtemp(f->path));
    reopen(f, limit_bytes);
    assert_true(kv_disk_root(&f->root, view_of("a model")));
}

static void close_fixture(struct fixture *f)
{
    kv_disk_close(f->disk);
    DIR *folder = opendir(f->path);
    const struct dirent *entry;
    char file[400];
    while ((entry = readdir(folder)) != NULL) {
        snprintf(file, sizeof file, "%s/%s", f->path, entry->d_name);
        unlink(file);
    }
    closedir(folder);
    assert_int_equal(rmdir(f->path), 0);
}

static struct kv_key key_of(const struct fixture *f, uint64_t seed)
{
    int32_t tokens[PAGE];
    struct kv_key key;
    for (size_t i = 0; i < PAGE; i++)
        tokens[i] = (int32_t)(rng_u64(seed, i, 0) % 1000);
    assert_true(kv_disk_key(&key, &f->root, tokens));
    return key;
}

static char byte_of(uint64_t seed, size_t i)
{
    return (char)rng_u64(seed, i / 64, 1) ^ (char)i;
}

static void put(struct fixture *f, uint64_t seed)
{
    char *data = malloc(SIZE);
    struct kv_key key = key_of(f, seed);
    assert_non_null(data);
    for (size_t i = 0; i < SIZE; i++)
        data[i] = byte_of(seed, i);
    assert_true(kv_disk_wants(f->disk, SIZE));
    kv_disk_write(f->disk, &key, 0, data, SIZE);
}

static bool get(struct fixture *f, uint64_t seed)
{
    static char data[SIZE];
    struct kv_key key = key_of(f, seed);
    bool there = kv_disk_read(f->disk, &key, 0, data, SIZE);
    for (size_t i = 0; there && i < SIZE; i++)
        assert_int_equal(data[i], byte_of(seed, i));
    assert_int_equal(kv_disk_has(f->disk, &key), there);
    assert_int_equal(kv_disk_touch(f->disk, &key, 0), there);
    return there;
}

static const char *file_of(const struct fixture *f, uint64_t seed)
{
    static char name[200];
    struct kv_key key = key_of(f, seed);
    int n = snprintf(name, sizeof name, "%s/", f->path);
    for (size_t i = 0; i < KV_KEY_BYTES; i++)
        snprintf(name + n + 2 * i, 3, "%02x", key.bytes[i]);
    return name;
}

static void test_kv_disk_keeps(void **state)
{
    (void)state;
    struct fixture f;
    struct stat facts;
    struct error error = {0};
    struct kv_disk *second;
    open_fixture(&f, LARGE);
    assert_false(get(&f, 1));
    put(&f, 1);
    put(&f, 2);
    put(&f, 1); /* once more is once */
    reopen(&f, LARGE);
    assert_true(get(&f, 1) && get(&f, 2));
    assert_false(get(&f, 3));
    assert_int_equal(stat(file_of(&f, 1), &facts), 0);
    assert_int_equal(facts.st_mode & 0777, 0600);
    assert_int_equal(facts.st_size, FILE_BYTES);
    /* Another model has other keys, and so has another place in a text. */
    struct kv_key root = f.root;
    assert_true(kv_disk_root(&f.root, view_of("another model")));
    assert_false(get(&f, 1));
    f.root = root;
    f.root = key_of(&f, 1);
    assert_false(get(&f, 1));
    f.root = root;
    /* One process at a time. */
    assert_int_equal(kv_disk_open(&second, f.path, LARGE, NULL, NULL, &error), STATUS_BUSY);
    assert_null(second);
    assert_int_equal(kv_disk_open(&second, "/nowhere/at/all", LARGE, NULL, NULL, &error),
                     STATUS_IO);
    assert_non_null(strstr(error.text, "/nowhere"));
    assert_int_equal(f.n_lines, 0);
    close_fixture(&f);
}

/* Flips a bit, or with at < 0 leaves only size bytes. */
static void damage(const char *name, off_t at, off_t size)
{
    int fd = open(name, O_RDWR);
    char byte = 0;
    assert_true(fd >= 0);
    if (at < 0) {
        assert_int_equal(ftruncate(fd, size), 0);
    } else {
        assert_int_equal(pread(fd, &byte, 1, at), 1);
        byte ^= 4;
        assert_int_equal(pwrite(fd, &byte, 1, at), 1);
    }
    close(fd);
}

static void test_kv_disk_distrusts(void **state)
{
    (void)state;
    static const struct {
        off_t at, size;
    } faults[] = {{0, 0},   {7, 0},   {8, 0},      {39, 0},     {40, 0},     {47, 0},    {48, 0},
                  {55, 0},  {56, 0},  {10000, 0},  {20050, 0},  {20056, 0},  {-1, 0},    {-1, 1},
                  {-1, 55}, {-1, 56}, {-1, 20000}, {-1, 20056}, {-1, 20058}, {-1, 40000}};
    struct fixture f;
    open_fixture(&f, LARGE);
    for (size_t i = 0; i < ARRAY_COUNT(faults); i++) {
        put(&f, 7);
        reopen(&f, LARGE);
        damage(file_of(&f, 7), faults[i].at, faults[i].size);
        assert_false(get(&f, 7));
        assert_int_not_equal(access(file_of(&f, 7), F_OK), 0); /* and it is gone */
        assert_int_equal(f.n_lines, i + 1);
    }
    assert_non_null(strstr(f.log, f.path));
    /* The page of another key or of another size is not this one. */
    put(&f, 7);
    put(&f, 8);
    reopen(&f, LARGE);
    char name[200];
    snprintf(name, sizeof name, "%s", file_of(&f, 7));
    assert_int_equal(rename(file_of(&f, 8), name), 0);
    assert_false(get(&f, 7));
    put(&f, 7);
    reopen(&f, LARGE);
    struct kv_key key = key_of(&f, 7);
    char data[100];
    assert_false(kv_disk_read(f.disk, &key, 0, data, sizeof data));
    assert_false(get(&f, 7));
    /* What is no file does no harm. */
    assert_int_equal(mkfifo(file_of(&f, 7), 0600), 0);
    assert_false(get(&f, 7));
    assert_int_equal(symlink("/dev/zero", file_of(&f, 7)), 0);
    assert_false(get(&f, 7));
    close_fixture(&f);
}

static void test_kv_disk_leaves_others(void **state)
{
    (void)state;
    struct fixture f;
    char notes[200], half[200];
    open_fixture(&f, LARGE);
    snprintf(notes, sizeof notes, "%s/notes.txt", f.path);
    snprintf(half, sizeof half, "%s.new", file_of(&f, 1));
    close(open(notes, O_CREAT | O_WRONLY, 0600));
    close(open(half, O_CREAT | O_WRONLY, 0600));
    reopen(&f, LARGE);
    assert_int_equal(access(notes, F_OK), 0);
    assert_int_not_equal(access(half, F_OK), 0);
    close_fixture(&f);
}

static uint64_t bytes_there(const struct fixture *f)
{
    DIR *folder = opendir(f->path);
    const struct dirent *entry;
    uint64_t bytes = 0;
    char file[400];
    struct stat facts;
    while ((entry = readdir(folder)) != NULL) {
        snprintf(file, sizeof file, "%s/%s", f->path, entry->d_name);
        if (stat(file, &facts) == 0 && S_ISREG(facts.st_mode))
            bytes += (uint64_t)facts.st_size;
    }
    closedir(folder);
    return bytes;
}

static void used_at(const struct fixture *f, uint64_t seed, time_t second)
{
    const struct timespec times[] = {{.tv_sec = second}, {.tv_sec = second}};
    assert_int_equal(utimensat(AT_FDCWD, file_of(f, seed), times, 0), 0);
}

static void test_kv_disk_limit(void **state)
{
    (void)state;
    struct fixture f;
    uint64_t limit = 10 * FILE_BYTES;
    open_fixture(&f, limit);
    for (uint64_t seed = 1; seed <= 9; seed++)
        put(&f, seed);
    reopen(&f, limit);
    for (uint64_t seed = 1; seed <= 9; seed++)
        used_at(&f, seed, (time_t)(1000 + seed));
    assert_true(get(&f, 1)); /* now the latest used */
    for (uint64_t seed = 10; seed <= 14; seed++) {
        put(&f, seed);
        reopen(&f, limit);
        assert_true(bytes_there(&f) <= limit);
        used_at(&f, seed, (time_t)(1000 + seed));
    }
    assert_true(get(&f, 1) && get(&f, 14));
    assert_false(get(&f, 2) || get(&f, 3));
    reopen(&f, 3 * FILE_BYTES); /* a smaller limit holds at once */
    assert_true(bytes_there(&f) <= 3 * FILE_BYTES);
    assert_true(get(&f, 14));
    /* Of one text the beginning stays longest. */
    assert_true(kv_disk_admits(f.disk, 3 * FILE_BYTES - 56));
    assert_int_equal(f.n_lines, 0);
    assert_false(kv_disk_admits(f.disk, 3 * FILE_BYTES - 55));
    assert_int_equal(f.n_lines, 1);
    close_fixture(&f);
}

/* Pages used in the same minute go from the end of their text. */
static void test_kv_disk_keeps_beginnings(void **state)
{
    (void)state;
    struct fixture f;
    struct stat first, third;
    open_fixture(&f, LARGE);
    put(&f, 1);
    put(&f, 3);
    reopen(&f, LARGE);
    struct kv_key a = key_of(&f, 1), b = key_of(&f, 3);
    bool ordered = false;
    for (int i = 0; i < 2 && !ordered; i++) { /* unless a minute ends between the two */
        assert_true(kv_disk_touch(f.disk, &a, 0) && kv_disk_touch(f.disk, &b, 2));
        assert_int_equal(stat(file_of(&f, 1), &first), 0);
        assert_int_equal(stat(file_of(&f, 3), &third), 0);
        ordered = file_modified_ns(&first) > file_modified_ns(&third);
    }
    assert_true(ordered);
    close_fixture(&f);
}

/* What cannot be written is said once, and leaves nothing. */
static void test_kv_disk_full(void **state)
{
    (void)state;
    struct fixture f;
    struct rlimit before, small;
    open_fixture(&f, LARGE);
    signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &before), 0);
    small = before;
    small.rlim_cur = 5000;
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &small), 0);
    put(&f, 1);
    put(&f, 2);
    kv_disk_close(f.disk);
    f.disk = NULL;
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &before), 0);
    assert_int_equal(f.n_lines, 1);
    assert_non_null(strstr(f.log, "cannot be written"));
    assert_int_equal(bytes_there(&f), 0);
    reopen(&f, LARGE);
    put(&f, 1);
    reopen(&f, LARGE);
    assert_true(get(&f, 1));
    close_fixture(&f);
}

/* ---- Under a prefix cache -------------------------------------------------------------------- */

#define N_PAGES 8

struct cached {
    struct weights *weights;
    struct model *model;
    struct prefix_cache *cache;
};

static void open_cached(struct cached *c, struct kv_disk *disk, enum quant_format kv_format)
{
    struct tiny_gguf gguf = {0};
    struct error error = {0};
    struct model_options options = {
        .n_ctx = N_PAGES * PAGE, .kv_format = kv_format, .n_threads = 1};
    struct buffer identity = {0};
    char path[64];
    tiny_llama_keys(&gguf, 2);
    tiny_llama_tensors(&gguf);
    tiny_write(&gguf, path);
    enum status status = weights_open(&c->weights, path, &error);
    unlink(path);
    if (status == STATUS_OK)
        status = model_open(&c->model, c->weights, &options, &error);
    if (status == STATUS_OK)
        status = prefix_open(&c->cache, c->model, &error);
    if (status != STATUS_OK)
        fail_msg("%s", error.text);
    assert_true(model_page_text(c->model, &identity));
    prefix_use_disk(c->cache, disk, (struct view){identity.data, identity.size});
    buffer_free(&identity);
}

static void close_cached(struct cached *c)
{
    prefix_close(c->cache);
    assert_int_equal(model_pages_free(c->model), N_PAGES);
    model_close(c->model);
    weights_close(c->weights);
}

/* Computes a text with what is cached of it, so many pages from disk at a time; returns how much
 * that was. bytes takes what its first full page holds. */
static uint32_t compute(struct cached *c, const int32_t *tokens, uint32_t n_tokens,
                        uint32_t n_granted, float *logits, char *bytes)
{
    struct error error = {0};
    struct sequence *sequence;
    struct prefix_path path = {0};
    uint32_t adopted = 0;
    assert_int_equal(sequence_open(&sequence, c->model, &error), STATUS_OK);
    for (bool more = true; more; more = path.more) {
        prefix_grant(c->cache, n_granted);
        adopted += prefix_extend(c->cache, &path, sequence, tokens, n_tokens - 1);
    }
    while (sequence_length(sequence) < n_tokens) {
        uint32_t length = sequence_length(sequence);
        struct step_segment segment = {sequence, tokens + length, MIN(n_tokens - length, 90), 1};
        assert_int_equal(model_step(c->model, &segment, 1, logits, &error), STATUS_OK);
        prefix_keep(c->cache, &path, sequence, tokens, false);
    }
    assert_int_equal(model_page_read(c->model, sequence_page(sequence, 0), bytes, &error),
                     STATUS_OK);
    prefix_keep(c->cache, &path, sequence, tokens, true);
    sequence_close(sequence);
    return adopted;
}

static void check_format(struct fixture *f, enum quant_format format)
{
    struct cached c;
    int32_t tokens[3 * PAGE + 40];
    float first[TINY_VOCAB], again[TINY_VOCAB];
    for (size_t i = 0; i < ARRAY_COUNT(tokens); i++)
        tokens[i] = (int32_t)(rng_u64(5, i, 0) % TINY_VOCAB);
    open_cached(&c, f->disk, format);
    size_t size = model_page_bytes(c.model);
    char *bytes = malloc(size), *others = malloc(size);
    assert_true(size > 0 && bytes != NULL && others != NULL);
    assert_int_equal(compute(&c, tokens, ARRAY_COUNT(tokens), 1, first, bytes), 0);
    close_cached(&c);
    reopen(f, LARGE);
    open_cached(&c, f->disk, format);
    assert_int_equal(compute(&c, tokens, ARRAY_COUNT(tokens), 2, again, others), 3 * PAGE);
    assert_memory_equal(bytes, others, size);
    assert_memory_equal(first, again, sizeof first);
    /* Another text finds the pages that it begins with. */
    tokens[PAGE + 3] ^= 1;
    assert_int_equal(compute(&c, tokens, ARRAY_COUNT(tokens), 2, again, others), PAGE);
    close_cached(&c);
    free(bytes);
    free(others);
}

static void test_kv_disk_prefix(void **state)
{
    (void)state;
    struct fixture f;
    open_fixture(&f, LARGE);
    check_format(&f, QUANT_F16);
    check_format(&f, QUANT_Q8_0); /* finds nothing of the other's */
    close_fixture(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_kv_disk_keeps),
        cmocka_unit_test(test_kv_disk_distrusts),
        cmocka_unit_test(test_kv_disk_leaves_others),
        cmocka_unit_test(test_kv_disk_limit),
        cmocka_unit_test(test_kv_disk_keeps_beginnings),
        cmocka_unit_test(test_kv_disk_full),
        cmocka_unit_test(test_kv_disk_prefix),
    };
    return cmocka_run_group_tests_name("kv_disk", tests, NULL, NULL);
}
