#include "weights/gguf.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

/* ---- Files written by hand, so that they can be wrong ---------------------------------------- */

static void put(struct buffer *out, uint64_t value, size_t bytes)
{
    for (size_t i = 0; i < bytes; i++) {
        uint8_t byte = i < 8 ? (uint8_t)(value >> (8 * i)) : 0;
        assert_true(buffer_append(out, &byte, 1));
    }
}

static void put_text(struct buffer *out, const char *text)
{
    put(out, strlen(text), 8);
    assert_true(buffer_append_text(out, text));
}

static struct buffer gguf_begin(uint32_t version, uint64_t tensors, uint64_t keys)
{
    struct buffer out = {0};
    buffer_append_text(&out, "GGUF");
    put(&out, version, 4);
    put(&out, tensors, 8);
    put(&out, keys, 8);
    return out;
}

static void key_number(struct buffer *out, const char *key, enum weights_type type, uint64_t value)
{
    put_text(out, key);
    put(out, type, 4);
    put(out, value, gguf_type_bytes(type));
}

static void key_array(struct buffer *out, const char *key, uint32_t type, uint64_t count)
{
    put_text(out, key);
    put(out, WEIGHTS_ARRAY, 4);
    put(out, type, 4);
    put(out, count, 8);
}

static void tensor_info(struct buffer *out, const char *name, uint64_t cols, uint64_t rows,
                        uint32_t format, uint64_t offset)
{
    put_text(out, name);
    put(out, 2, 4);
    put(out, cols, 8);
    put(out, rows, 8);
    put(out, format, 4);
    put(out, offset, 8);
}

static void pad(struct buffer *out, size_t alignment, size_t data_bytes)
{
    while (out->size % alignment != 0)
        put(out, 0, 1);
    for (size_t i = 0; i < data_bytes; i++)
        put(out, i, 1);
}

/* Opens a file written by hand, which must fail with a sentence that holds both texts. */
static void expect_error(struct buffer *file, enum status code, const char *text, const char *other)
{
    struct weights *weights;
    struct error error = {0};
    enum status status = weights_open_memory(&weights, "m.gguf", file->data, file->size, &error);
    if (status != code || strstr(error.text, text) == NULL || strstr(error.text, other) == NULL)
        fail_msg("got status %d \"%s\", expected %d with \"%s\" and \"%s\"", status, error.text,
                 code, text, other);
    assert_null(weights);
    assert_non_null(strstr(error.text, "m.gguf"));
    buffer_free(file);
}

static struct weights *open_good(const struct buffer *file)
{
    struct weights *weights;
    struct error error = {0};
    if (weights_open_memory(&weights, "m.gguf", file->data, file->size, &error) != STATUS_OK)
        fail_msg("%s", error.text);
    return weights;
}

/* ---- What is refused ------------------------------------------------------------------------- */

static void test_weights_other_files(void **state)
{
    (void)state;
    static const struct {
        const char *begin, *found;
    } cases[] = {
        {"<!DOCTYPE html><html><body>login", "web page"},
        {"version https://git-lfs.github.com/spec/v1", "Git LFS"},
        {"{\"weight_map\": {}, \"metadata\": {}}", "JSON"},
        {"12345678{\"__metadata__\":{\"format\":\"pt\"}}", "safetensors"},
        {"PK\x03\x04 and the rest of an archive", "PyTorch"},
        {"tjgg\x01 and the rest of an old file", "before GGUF"},
        {"FUGG and the rest of the file, swapped", "big-endian"},
        {"nothing known, but long enough for one", "6e 6f 74 68"},
        {"GGUF", "too few"},
    };
    for (size_t i = 0; i < ARRAY_COUNT(cases); i++) {
        struct buffer file = {0};
        buffer_append_text(&file, cases[i].begin);
        expect_error(&file, STATUS_INVALID, cases[i].found, "GGUF");
    }
    struct buffer empty = {0};
    expect_error(&empty, STATUS_INVALID, "is empty", "GGUF");
}

static void test_weights_versions(void **state)
{
    (void)state;
    struct buffer file = gguf_begin(1, 0, 0);
    expect_error(&file, STATUS_UNSUPPORTED, "version 1", "2 or 3");
    file = gguf_begin(4, 0, 0);
    expect_error(&file, STATUS_UNSUPPORTED, "version 4", "2 or 3");
    file = gguf_begin(0x03000000, 0, 0);
    expect_error(&file, STATUS_UNSUPPORTED, "big-endian", "little-endian");
    for (uint32_t version = 2; version <= 3; version++) {
        file = gguf_begin(version, 0, 0);
        weights_close(open_good(&file));
        buffer_free(&file);
    }
}

static void test_weights_counts(void **state)
{
    (void)state;
    struct buffer file = gguf_begin(3, 0, UINT64_MAX);
    expect_error(&file, STATUS_INVALID, "18446744073709551615 keys", "at most 0");
    file = gguf_begin(3, 1000000, 0);
    expect_error(&file, STATUS_INVALID, "1000000 tensors", "at most 0");
    file = gguf_begin(3, 0, 3);
    key_number(&file, "a.key", WEIGHTS_U64, 1);
    key_number(&file, "b.key", WEIGHTS_U64, 1);
    expect_error(&file, STATUS_INVALID, "key 3", "after b.key");
}

static void test_weights_names(void **state)
{
    (void)state;
    struct buffer file = gguf_begin(3, 0, 1);
    put(&file, 1 << 20, 8);
    pad(&file, 1 << 11, 0);
    expect_error(&file, STATUS_INVALID, "name of key 1", "1048576 bytes");
    file = gguf_begin(3, 0, 2);
    key_number(&file, "twice", WEIGHTS_U8, 1);
    key_number(&file, "twice", WEIGHTS_U8, 2);
    expect_error(&file, STATUS_INVALID, "key twice", "occurs twice");
    file = gguf_begin(3, 0, 1);
    key_number(&file, "bad\x1bname", WEIGHTS_U8, 1);
    expect_error(&file, STATUS_INVALID, "name of key 1", "not text");
    file = gguf_begin(3, 0, 1);
    key_number(&file, "", WEIGHTS_U32, 1);
    expect_error(&file, STATUS_INVALID, "name of key 1", "empty");
    file = gguf_begin(3, 2, 0);
    tensor_info(&file, "t.weight", 4, 1, 0, 0);
    tensor_info(&file, "t.weight", 4, 1, 0, 32);
    pad(&file, 32, 64);
    expect_error(&file, STATUS_INVALID, "tensor t.weight", "occurs twice");
}

static void test_weights_values(void **state)
{
    (void)state;
    struct buffer file = gguf_begin(3, 0, 1);
    put_text(&file, "odd.type");
    put(&file, 13, 4);
    expect_error(&file, STATUS_INVALID, "odd.type", "type 13");
    file = gguf_begin(3, 0, 1);
    key_array(&file, "odd.array", 99, 0);
    expect_error(&file, STATUS_INVALID, "odd.array", "type 99");
    file = gguf_begin(3, 0, 1);
    key_array(&file, "deep.array", WEIGHTS_ARRAY, 1);
    expect_error(&file, STATUS_UNSUPPORTED, "deep.array", "array of arrays");
    file = gguf_begin(3, 0, 1);
    key_array(&file, "long.array", WEIGHTS_U64, UINT64_MAX / 8 + 2);
    expect_error(&file, STATUS_INVALID, "long.array", "2305843009213693953 elements");
    file = gguf_begin(3, 0, 1);
    key_array(&file, "long.strings", WEIGHTS_STRING, 1);
    put(&file, UINT64_MAX, 8);
    expect_error(&file, STATUS_INVALID, "long.strings", "string 0");
    file = gguf_begin(3, 0, 1);
    put_text(&file, "cut.key");
    put(&file, WEIGHTS_U32, 4);
    put(&file, 0, 3);
    expect_error(&file, STATUS_INVALID, "cut.key", "cut off");
}

static void test_weights_alignment(void **state)
{
    (void)state;
    static const uint32_t wrong[] = {0, 1, 4, 48, 1u << 22};
    for (size_t i = 0; i < ARRAY_COUNT(wrong); i++) {
        struct buffer file = gguf_begin(3, 0, 1);
        key_number(&file, "general.alignment", WEIGHTS_U32, wrong[i]);
        expect_error(&file, STATUS_INVALID, "general.alignment", "power of two");
    }
    struct buffer file = gguf_begin(3, 0, 1);
    key_number(&file, "general.alignment", WEIGHTS_F32, 0);
    expect_error(&file, STATUS_INVALID, "general.alignment", "not a number of bytes");
    file = gguf_begin(3, 2, 1);
    key_number(&file, "general.alignment", WEIGHTS_U32, 256);
    tensor_info(&file, "a", 4, 1, 0, 0);
    tensor_info(&file, "b", 4, 1, 0, 256);
    pad(&file, 256, 512);
    struct weights *weights = open_good(&file);
    assert_ptr_equal(weights_find(weights, "a")->data, file.data + 256);
    assert_ptr_equal(weights_find(weights, "b")->data, file.data + 512);
    weights_close(weights);
    buffer_free(&file);
}

/* A file with one tensor of this format and shape, with data_bytes of data. */
static struct buffer one_tensor(uint32_t n_dims, const uint64_t *shape, uint32_t format,
                                uint64_t offset, size_t data_bytes)
{
    struct buffer file = gguf_begin(3, 1, 0);
    put_text(&file, "t.weight");
    put(&file, n_dims, 4);
    for (uint32_t d = 0; d < n_dims; d++)
        put(&file, shape[d], 8);
    put(&file, format, 4);
    put(&file, offset, 8);
    pad(&file, 32, data_bytes);
    return file;
}

static void test_weights_tensors(void **state)
{
    (void)state;
    static const struct {
        uint32_t n_dims;
        uint64_t shape[5];
        uint32_t format;
        uint64_t offset;
        size_t data_bytes;
        enum status code;
        const char *text;
    } cases[] = {
        {0, {0}, 0, 0, 64, STATUS_INVALID, "0 dimensions"},
        {5, {1, 1, 1, 1, 1}, 0, 0, 64, STATUS_INVALID, "5 dimensions"},
        {2, {4, 0}, 0, 0, 64, STATUS_INVALID, "dimension 1"},
        {2, {UINT64_MAX / 4 + 1, 4}, 0, 0, 64, STATUS_INVALID, "4611686018427387904"},
        {2, {(uint64_t)1 << 32, (uint64_t)1 << 32}, 1, 0, 64, STATUS_INVALID, "cannot lie"},
        {2, {4, 4096}, 0, 0, 64, STATUS_INVALID, "cannot lie"},
        {2, {48, 1}, 2, 0, 64, STATUS_INVALID, "multiple of 32 for format Q4_0"},
        {2, {128, 1}, 14, 0, 64, STATUS_INVALID, "multiple of 256 for format Q6_K"},
        {2, {32, 1}, 17, 0, 64, STATUS_UNSUPPORTED, "format IQ2_XS"},
        {2, {32, 1}, 21, 0, 64, STATUS_UNSUPPORTED, "format IQ3_S"},
        {2, {32, 1}, 26, 0, 64, STATUS_UNSUPPORTED, "format I32"},
        {2, {32, 1}, 4000, 0, 64, STATUS_UNSUPPORTED, "format number 4000"},
        {2, {4, 1}, 0, 8, 64, STATUS_INVALID, "multiple of 32"},
        {2, {4, 1}, 0, 64, 64, STATUS_INVALID, "offset 64"},
        {2, {4, 1}, 0, UINT64_MAX - 31, 64, STATUS_INVALID, "offset 18446744073709551584"},
        {2, {4, 4}, 0, 0, 63, STATUS_INVALID, "cut off"},
    };
    for (size_t i = 0; i < ARRAY_COUNT(cases); i++) {
        struct buffer file = one_tensor(cases[i].n_dims, cases[i].shape, cases[i].format,
                                        cases[i].offset, cases[i].data_bytes);
        expect_error(&file, cases[i].code, "t.weight", cases[i].text);
    }
    struct buffer file = gguf_begin(3, 2, 0);
    tensor_info(&file, "a.weight", 4, 3, 0, 0);
    tensor_info(&file, "b.weight", 4, 3, 0, 32);
    pad(&file, 32, 128);
    expect_error(&file, STATUS_INVALID, "a.weight", "b.weight overlap");
}

/* Whatever is cut off, the file is refused, or it is whole without the rest. */
static void test_weights_truncation(void **state)
{
    (void)state;
    struct buffer file = gguf_begin(3, 2, 3);
    key_number(&file, "x.count", WEIGHTS_U32, 7);
    key_array(&file, "x.names", WEIGHTS_STRING, 2);
    put_text(&file, "first");
    put_text(&file, "second");
    key_array(&file, "x.numbers", WEIGHTS_F32, 3);
    put(&file, 0, 12);
    tensor_info(&file, "a", 8, 2, 0, 0);
    tensor_info(&file, "b", 32, 1, 2, 64);
    pad(&file, 32, 64 + 18);
    weights_close(open_good(&file));
    for (size_t size = 0; size < file.size; size++) {
        struct weights *weights;
        struct error error = {0};
        /* A copy of exactly this size lets a sanitizer see a read past its end. */
        void *copy = malloc(size + 1);
        char *cut = (char *)copy + 1;
        memcpy(cut, file.data, size);
        assert_int_equal(weights_open_memory(&weights, "m.gguf", cut, size, &error),
                         STATUS_INVALID);
        assert_non_null(strstr(error.text, "m.gguf"));
        free(copy);
    }
    buffer_free(&file);
}

/* Many tensors: opening and finding all of them stays fast, and memory in proportion. */
static void test_weights_many_tensors(void **state)
{
    (void)state;
    enum { COUNT = 100000 };
    struct buffer file = gguf_begin(3, COUNT, 0);
    char name[32];
    for (int i = 0; i < COUNT; i++) {
        snprintf(name, sizeof name, "blk.%d.weight", i * 7919 % COUNT);
        tensor_info(&file, name, 1, 1, 0, (uint64_t)i * 32);
    }
    pad(&file, 32, COUNT * 32);
    uint64_t begin = clock_now_ns();
    struct weights *weights = open_good(&file);
    for (int i = 0; i < COUNT; i++) {
        snprintf(name, sizeof name, "blk.%d.weight", i);
        const struct weights_tensor *tensor = weights_find(weights, name);
        assert_non_null(tensor);
        assert_string_equal(tensor->name, name);
    }
    assert_null(weights_find(weights, "blk.100000.weight"));
    assert_true(clock_now_ns() - begin < (uint64_t)20 * 1000000000);
    weights_close(weights);
    buffer_free(&file);
}

/* ---- Typed reads ----------------------------------------------------------------------------- */

static struct buffer typed_file(void)
{
    struct buffer file = gguf_begin(3, 0, 14);
    key_number(&file, "u8", WEIGHTS_U8, 200);
    key_number(&file, "i8", WEIGHTS_I8, (uint8_t)-3);
    key_number(&file, "u16", WEIGHTS_U16, 65535);
    key_number(&file, "i32", WEIGHTS_I32, (uint32_t)-5);
    key_number(&file, "u64", WEIGHTS_U64, (uint64_t)1 << 40);
    key_number(&file, "i64", WEIGHTS_I64, 12);
    key_number(&file, "f32", WEIGHTS_F32, 0x3fc00000);
    key_number(&file, "f64", WEIGHTS_F64, 0x3ff8000000000000);
    key_number(&file, "huge", WEIGHTS_F64, 0x7fe0000000000000);
    key_number(&file, "yes", WEIGHTS_BOOL, 1);
    put_text(&file, "text");
    put(&file, WEIGHTS_STRING, 4);
    put_text(&file, "hello");
    key_array(&file, "strings", WEIGHTS_STRING, 2);
    put_text(&file, "ab");
    put_text(&file, "");
    key_array(&file, "numbers", WEIGHTS_I16, 3);
    put(&file, 1, 2);
    put(&file, 2, 2);
    put(&file, (uint16_t)-7, 2);
    key_array(&file, "bytes", WEIGHTS_U8, 4);
    put(&file, 0x64636261, 4);
    return file;
}

static void test_weights_scalars(void **state)
{
    (void)state;
    struct buffer file = typed_file();
    struct weights *weights = open_good(&file);
    uint32_t u32 = 42;
    uint64_t u64 = 0;
    float f32 = 0;
    bool yes = false;
    struct view text = {0};
    struct error error = {0};
    assert_int_equal(weights_u32(weights, "missing", &u32, &error), STATUS_OK);
    assert_int_equal(u32, 42);
    assert_int_equal(weights_u32(weights, "u8", &u32, &error), STATUS_OK);
    assert_int_equal(u32, 200);
    assert_int_equal(weights_u32(weights, "i64", &u32, &error), STATUS_OK);
    assert_int_equal(u32, 12);
    assert_int_equal(weights_u64(weights, "u64", &u64, &error), STATUS_OK);
    assert_true(u64 == (uint64_t)1 << 40);
    assert_int_equal(weights_f32(weights, "f32", &f32, &error), STATUS_OK);
    assert_true(f32 == 1.5f);
    f32 = 0;
    assert_int_equal(weights_f32(weights, "f64", &f32, &error), STATUS_OK);
    assert_true(f32 == 1.5f);
    assert_int_equal(weights_bool(weights, "yes", &yes, &error), STATUS_OK);
    assert_true(yes);
    assert_int_equal(weights_string(weights, "text", &text, &error), STATUS_OK);
    assert_true(view_equal(text, view_of("hello")));

    assert_int_equal(weights_u32(weights, "u64", &u32, &error), STATUS_INVALID);
    assert_non_null(strstr(error.text, "u64 is 1099511627776, expected 0 to 4294967295"));
    assert_int_equal(weights_u32(weights, "i8", &u32, &error), STATUS_INVALID);
    assert_non_null(strstr(error.text, "i8 is -3, expected 0"));
    assert_int_equal(weights_u32(weights, "text", &u32, &error), STATUS_INVALID);
    assert_non_null(strstr(error.text, "text has type string, expected an integer"));
    assert_int_equal(weights_u32(weights, "f32", &u32, &error), STATUS_INVALID);
    assert_int_equal(weights_u32(weights, "numbers", &u32, &error), STATUS_INVALID);
    assert_int_equal(weights_f32(weights, "u8", &f32, &error), STATUS_INVALID);
    assert_int_equal(weights_f32(weights, "huge", &f32, &error), STATUS_INVALID);
    assert_int_equal(weights_bool(weights, "u8", &yes, &error), STATUS_INVALID);
    assert_int_equal(weights_string(weights, "strings", &text, &error), STATUS_INVALID);
    assert_non_null(strstr(error.text, "strings has type array of strings, expected a string"));
    weights_close(weights);
    buffer_free(&file);
}

static void test_weights_arrays(void **state)
{
    (void)state;
    struct buffer file = typed_file();
    struct weights *weights = open_good(&file);
    struct arena *arena = arena_open(0);
    struct error error = {0};
    uint32_t each[4] = {0};
    size_t count;
    assert_int_equal(weights_u32_each(weights, "u8", each, 4, &error), STATUS_OK);
    assert_int_equal(each[3], 200);
    assert_int_equal(weights_u32_each(weights, "numbers", each, 2, &error), STATUS_OK);
    assert_int_equal(each[1], 2);
    assert_int_equal(weights_u32_each(weights, "numbers", each, 3, &error), STATUS_INVALID);
    assert_non_null(strstr(error.text, "numbers holds -7"));
    assert_int_equal(weights_u32_each(weights, "numbers", each, 4, &error), STATUS_INVALID);
    assert_non_null(strstr(error.text, "has 3 elements, expected 4"));

    int32_t *numbers;
    assert_int_equal(weights_i32_array(weights, "numbers", arena, &numbers, &count, &error),
                     STATUS_OK);
    assert_int_equal(count, 3);
    assert_int_equal(numbers[2], -7);
    float *floats = (float *)each;
    assert_int_equal(weights_f32_array(weights, "missing", arena, &floats, &count, &error),
                     STATUS_OK);
    assert_null(floats);
    assert_int_equal(count, 0);
    assert_int_equal(weights_f32_array(weights, "numbers", arena, &floats, &count, &error),
                     STATUS_INVALID);
    assert_int_equal(weights_i32_array(weights, "i32", arena, &numbers, &count, &error),
                     STATUS_INVALID);
    struct view *strings;
    assert_int_equal(weights_strings(weights, "strings", arena, &strings, &count, &error),
                     STATUS_OK);
    assert_int_equal(count, 2);
    assert_true(view_equal(strings[0], view_of("ab")));
    assert_int_equal(strings[1].size, 0);
    struct view bytes;
    assert_int_equal(weights_bytes(weights, "bytes", &bytes, &error), STATUS_OK);
    assert_true(view_equal(bytes, view_of("abcd")));
    assert_int_equal(weights_bytes(weights, "numbers", &bytes, &error), STATUS_INVALID);
    arena_close(arena);
    weights_close(weights);
    buffer_free(&file);
}

static void test_weights_value_text(void **state)
{
    (void)state;
    static const struct {
        const char *key, *text;
    } cases[] = {
        {"u8", "200"},   {"i8", "-3"},      {"u64", "1099511627776"},   {"f32", "1.5"},
        {"yes", "true"}, {"text", "hello"}, {"strings", "[2 strings]"}, {"numbers", "[1, 2, -7]"},
    };
    struct buffer file = typed_file();
    struct weights *weights = open_good(&file);
    for (size_t i = 0; i < ARRAY_COUNT(cases); i++) {
        struct buffer text = {0};
        assert_true(weights_value_text(weights, cases[i].key, &text));
        assert_string_equal(text.data, cases[i].text);
        buffer_free(&text);
    }
    struct buffer text = {0};
    assert_false(weights_value_text(weights, "missing", &text));
    assert_true(weights_has(weights, "u8"));
    assert_int_equal(weights_key_count(weights), 14);
    assert_string_equal(weights_key_at(weights, 0), "u8");
    weights_close(weights);
    buffer_free(&file);
}

/* ---- Writing, and files in parts ------------------------------------------------------------- */

static char folder[64];

static const char *path_of(const char *name)
{
    static char path[160];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    return path;
}

static int make_folder(void **state)
{
    (void)state;
    snprintf(folder, sizeof folder, "/tmp/test_weights.XXXXXX");
    return mkdtemp(folder) == NULL;
}

static int remove_folder(void **state)
{
    (void)state;
    char command[96];
    snprintf(command, sizeof command, "rm -r %s", folder);
    return system(command);
}

static const uint8_t payload[64] = {1, 2, 3, 4, 5};

/* Writes a file that says (in keys where count > 0) that it is part number of count, with one
 * tensor of 9 numbers in a row. */
static void write_part(const char *name, unsigned number, unsigned count, unsigned tensors,
                       const char *tensor)
{
    struct weights_writer *writer;
    struct error error = {0};
    assert_int_equal(weights_writer_open(&writer, path_of(name), &error), STATUS_OK);
    if (count > 0) {
        assert_int_equal(weights_writer_u32(writer, "split.no", number, &error), STATUS_OK);
        assert_int_equal(weights_writer_u32(writer, "split.count", count, &error), STATUS_OK);
        assert_int_equal(weights_writer_u32(writer, "split.tensors.count", tensors, &error),
                         STATUS_OK);
    }
    assert_int_equal(weights_writer_string(writer, "general.architecture", "llama", &error),
                     STATUS_OK);
    uint64_t shape[] = {9};
    assert_int_equal(weights_writer_declare(writer, tensor, QUANT_F32, 1, shape, &error),
                     STATUS_OK);
    assert_int_equal(weights_writer_data(writer, payload, 36, &error), STATUS_OK);
    assert_int_equal(weights_writer_commit(writer, &error), STATUS_OK);
}

static void expect_path_error(const char *name, enum status code, const char *text)
{
    struct weights *weights;
    struct error error = {0};
    assert_int_equal(weights_open(&weights, path_of(name), &error), code);
    assert_null(weights);
    if (strstr(error.text, text) == NULL)
        fail_msg("\"%s\" does not say \"%s\"", error.text, text);
}

static void test_weights_round_trip(void **state)
{
    (void)state;
    struct buffer source = typed_file();
    struct weights *from = open_good(&source), *back;
    struct weights_writer *writer;
    struct error error = {0};
    assert_int_equal(weights_writer_open(&writer, path_of("w.gguf"), &error), STATUS_OK);
    for (size_t i = 0; i < weights_key_count(from); i++)
        assert_int_equal(weights_writer_copy_key(writer, from, weights_key_at(from, i), &error),
                         STATUS_OK);
    assert_int_equal(weights_writer_copy_key(writer, from, "none", &error), STATUS_NOT_FOUND);
    assert_int_equal(weights_writer_u32(writer, "general.alignment", 64, &error), STATUS_OK);
    assert_int_equal(weights_writer_u32(writer, "general.file_type", 1, &error), STATUS_OK);
    uint64_t odd[] = {5, 1}, block[] = {32, 2, 1}, bad[] = {33};
    assert_int_equal(weights_writer_declare(writer, "a", QUANT_F16, 2, odd, &error), STATUS_OK);
    assert_int_equal(weights_writer_declare(writer, "b", QUANT_Q4_0, 3, block, &error), STATUS_OK);
    assert_int_equal(weights_writer_declare(writer, "c", QUANT_Q4_0, 1, bad, &error),
                     STATUS_INVALID);
    assert_int_equal(weights_writer_data(writer, payload, 46, &error), STATUS_OK);
    assert_int_equal(access(path_of("w.gguf"), F_OK), -1);
    assert_int_equal(weights_writer_commit(writer, &error), STATUS_OK);

    assert_int_equal(weights_open(&back, path_of("w.gguf"), &error), STATUS_OK);
    assert_int_equal(weights_key_count(back), weights_key_count(from) + 2);
    for (size_t i = 0; i < weights_key_count(from); i++) {
        const struct gguf_value *a = &from->values[i];
        const struct gguf_value *b = weights_value(back, a->key);
        assert_non_null(b);
        assert_int_equal(a->raw_size, b->raw_size);
        assert_memory_equal(a->raw, b->raw, a->raw_size);
    }
    const struct weights_tensor *a = weights_find(back, "a"), *b = weights_find(back, "b");
    assert_int_equal(a->size_bytes, 10);
    assert_memory_equal(a->data, payload, 10);
    assert_int_equal((const char *)b->data - (const char *)a->data, 64);
    assert_memory_equal(b->data, payload + 10, 36);
    struct quant_matrix matrix = weights_matrix(b);
    assert_int_equal(matrix.n_rows, 2);
    assert_int_equal(matrix.row_bytes, 18);
    assert_int_equal(weights_size_bytes(back),
                     64 + ((const char *)a->data - (const char *)back->parts[0].data) + 64);
    weights_prefetch(back, NULL);
    weights_close(back);
    weights_close(from);
    buffer_free(&source);
}

static void test_weights_writer_errors(void **state)
{
    (void)state;
    struct weights_writer *writer;
    struct error error = {0};
    uint64_t shape[] = {4};
    assert_int_equal(weights_writer_open(&writer, path_of("none/w.gguf"), &error),
                     STATUS_NOT_FOUND);
    assert_null(writer);
    assert_int_equal(weights_writer_open(&writer, path_of("e.gguf"), &error), STATUS_OK);
    assert_int_equal(weights_writer_u32(writer, "general.alignment", 3, &error), STATUS_INVALID);
    assert_int_equal(weights_writer_declare(writer, "a", QUANT_F32, 1, shape, &error), STATUS_OK);
    assert_int_equal(weights_writer_data(writer, payload, 8, &error), STATUS_OK);
    assert_int_equal(weights_writer_u32(writer, "late", 3, &error), STATUS_INVALID);
    assert_int_equal(weights_writer_data(writer, payload, 9, &error), STATUS_INVALID);
    weights_writer_discard(writer);
    assert_int_equal(weights_writer_open(&writer, path_of("e.gguf"), &error), STATUS_OK);
    assert_int_equal(weights_writer_declare(writer, "a", QUANT_F32, 1, shape, &error), STATUS_OK);
    assert_int_equal(weights_writer_data(writer, payload, 8, &error), STATUS_OK);
    assert_int_equal(weights_writer_commit(writer, &error), STATUS_INVALID);
    assert_non_null(strstr(error.text, "tensor a has 8 of its 16 bytes"));
    assert_int_equal(weights_writer_open(&writer, path_of("e.gguf"), &error), STATUS_OK);
    assert_int_equal(weights_writer_u32(writer, "k", 3, &error), STATUS_OK);
    assert_int_equal(weights_writer_u32(writer, "k", 3, &error), STATUS_OK);
    assert_int_equal(weights_writer_commit(writer, &error), STATUS_INVALID);
    assert_non_null(strstr(error.text, "k is written twice"));
    assert_int_equal(access(path_of("e.gguf"), F_OK), -1);
    weights_writer_discard(NULL);
}

static void test_weights_parts(void **state)
{
    (void)state;
    write_part("m-00001-of-00003.gguf", 0, 3, 3, "a");
    write_part("m-00002-of-00003.gguf", 1, 3, 3, "b");
    expect_path_error("m-00001-of-00003.gguf", STATUS_NOT_FOUND, "part 3 of 3 is missing");
    write_part("m-00003-of-00003.gguf", 2, 3, 3, "c");
    static const char *const names[] = {"m-00001-of-00003.gguf", "m-00003-of-00003.gguf"};
    for (size_t i = 0; i < ARRAY_COUNT(names); i++) {
        struct weights *weights;
        struct error error = {0};
        assert_int_equal(weights_open(&weights, path_of(names[i]), &error), STATUS_OK);
        assert_int_equal(weights_tensor_count(weights), 3);
        assert_memory_equal(weights_find(weights, "c")->data, payload, 36);
        assert_false(weights_has(weights, "split.count"));
        assert_true(weights_reads(weights, path_of("m-00002-of-00003.gguf")));
        assert_false(weights_reads(weights, path_of("m-00004-of-00003.gguf")));
        assert_int_equal(weights_key_count(weights), 1);
        weights_close(weights);
    }
}

static void test_weights_parts_disagree(void **state)
{
    (void)state;
    write_part("d-00001-of-00002.gguf", 0, 2, 2, "a");
    write_part("d-00002-of-00002.gguf", 1, 2, 2, "a");
    expect_path_error("d-00001-of-00002.gguf", STATUS_INVALID, "tensor a occurs twice");
    write_part("d-00002-of-00002.gguf", 0, 2, 2, "b");
    expect_path_error("d-00001-of-00002.gguf", STATUS_INVALID, "split.no is 0, expected 1");
    write_part("d-00002-of-00002.gguf", 1, 3, 2, "b");
    expect_path_error("d-00001-of-00002.gguf", STATUS_INVALID, "split.count is 3, expected 2");
    write_part("d-00002-of-00002.gguf", 1, 0, 2, "b");
    expect_path_error("d-00001-of-00002.gguf", STATUS_INVALID, "no key split.count");
    write_part("d-00001-of-00002.gguf", 0, 2, 9, "a");
    write_part("d-00002-of-00002.gguf", 1, 2, 9, "b");
    expect_path_error("d-00001-of-00002.gguf", STATUS_INVALID,
                      "split.tensors.count is 9, expected 2");
    write_part("renamed.gguf", 0, 2, 2, "a");
    expect_path_error("renamed.gguf", STATUS_INVALID, "keep their names");
    expect_path_error("d-00003-of-00002.gguf", STATUS_INVALID, "part 3 of 2");
    expect_path_error("d-00001-of-99999.gguf", STATUS_INVALID, "at most 65535");
    write_part("whole.gguf", 0, 2, 1, "a");
    expect_path_error("whole.gguf", STATUS_INVALID, "end in -00001-of-00002.gguf");
    write_part("whole.gguf", 0, 70000, 1, "a");
    expect_path_error("whole.gguf", STATUS_INVALID, "split.count is not a number of parts");
}

static void test_weights_paths(void **state)
{
    (void)state;
    expect_path_error("absent.gguf", STATUS_NOT_FOUND, "absent.gguf");
    expect_path_error("", STATUS_INVALID, "folder");
    assert_int_equal(mkfifo(path_of("pipe.gguf"), 0600), 0);
    expect_path_error("pipe.gguf", STATUS_INVALID, "not a regular file");
    fclose(fopen(path_of("empty.gguf"), "w"));
    expect_path_error("empty.gguf", STATUS_INVALID, "empty");
    weights_close(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_weights_other_files),  cmocka_unit_test(test_weights_versions),
        cmocka_unit_test(test_weights_counts),       cmocka_unit_test(test_weights_names),
        cmocka_unit_test(test_weights_values),       cmocka_unit_test(test_weights_alignment),
        cmocka_unit_test(test_weights_tensors),      cmocka_unit_test(test_weights_truncation),
        cmocka_unit_test(test_weights_many_tensors), cmocka_unit_test(test_weights_scalars),
        cmocka_unit_test(test_weights_arrays),       cmocka_unit_test(test_weights_value_text),
        cmocka_unit_test(test_weights_round_trip),   cmocka_unit_test(test_weights_writer_errors),
        cmocka_unit_test(test_weights_parts),        cmocka_unit_test(test_weights_parts_disagree),
        cmocka_unit_test(test_weights_paths),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
