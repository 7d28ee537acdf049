/* Tokenizers out of GGUF metadata, from files written by hand. */
#include "engine/engine.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

struct keys {
    struct buffer bytes;
    uint64_t count;
};

static void put(struct keys *keys, uint64_t value, size_t size)
{
    for (size_t i = 0; i < size; i++) {
        char byte = (char)(value >> 8 * i);
        assert_true(buffer_append(&keys->bytes, &byte, 1));
    }
}

static void put_text(struct keys *keys, const char *text)
{
    put(keys, strlen(text), 8);
    buffer_append_text(&keys->bytes, text);
}

static void key(struct keys *keys, const char *name, enum weights_type type)
{
    char full[64];
    snprintf(full, sizeof full, "tokenizer.ggml.%s", name);
    put_text(keys, full);
    put(keys, type, 4);
    keys->count++;
}

static void key_text(struct keys *keys, const char *name, const char *text)
{
    key(keys, name, WEIGHTS_STRING);
    put_text(keys, text);
}

static void key_id(struct keys *keys, const char *name, uint32_t id)
{
    key(keys, name, WEIGHTS_U32);
    put(keys, id, 4);
}

static void key_array(struct keys *keys, const char *name, enum weights_type type, uint64_t count)
{
    key(keys, name, WEIGHTS_ARRAY);
    put(keys, type, 4);
    put(keys, count, 8);
}

static const char *const tokens[] = {"<unk>", "<s>", "</s>", "a", "b", "ab", "▁"};

static struct keys begin(void)
{
    static const int32_t types[] = {2, 3, 3, 1, 1, 1, 1};
    static const float scores[] = {0, 0, 0, -1, -1, -2, -3};
    struct keys keys = {0};
    key_text(&keys, "model", "llama");
    key_array(&keys, "tokens", WEIGHTS_STRING, ARRAY_COUNT(tokens));
    for (size_t i = 0; i < ARRAY_COUNT(tokens); i++)
        put_text(&keys, tokens[i]);
    key_array(&keys, "token_type", WEIGHTS_I32, ARRAY_COUNT(types));
    for (size_t i = 0; i < ARRAY_COUNT(types); i++)
        put(&keys, (uint32_t)types[i], 4);
    key_array(&keys, "scores", WEIGHTS_F32, ARRAY_COUNT(scores));
    buffer_append(&keys.bytes, scores, sizeof scores);
    return keys;
}

/* Writes the keys as a file without tensors and opens its tokenizer; frees the keys. */
static enum status open_keys(struct keys *keys, struct weights **weights, struct arena *arena,
                             struct tokenizer **tokenizer, struct error *error)
{
    char path[] = "/tmp/consort-vocabulary-XXXXXX";
    int fd = mkstemp(path);
    struct keys head = {0};
    buffer_append_text(&head.bytes, "GGUF");
    put(&head, 3, 4);
    put(&head, 0, 8);
    put(&head, keys->count, 8);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, head.bytes.data, head.bytes.size), head.bytes.size);
    assert_int_equal(write(fd, keys->bytes.data, keys->bytes.size), keys->bytes.size);
    close(fd);
    buffer_free(&head.bytes);
    buffer_free(&keys->bytes);
    enum status status = weights_open(weights, path, error);
    unlink(path);
    if (status != STATUS_OK)
        fail_msg("%s", error->text);
    return engine_tokenizer_open(tokenizer, arena, *weights, error);
}

static void test_vocabulary_read(void **state)
{
    (void)state;
    struct keys keys = begin();
    struct weights *weights;
    struct tokenizer *tokenizer;
    struct error error = {0};
    struct token_list list = {0};
    struct arena *arena = arena_open(0);
    key_id(&keys, "bos_token_id", 1);
    key_id(&keys, "eos_token_id", 2);
    key_id(&keys, "unknown_token_id", 0);
    key_id(&keys, "padding_token_id", UINT32_MAX); /* converters write -1 for "none" */
    key_id(&keys, "seperator_token_id", 999);
    key(&keys, "add_eos_token", WEIGHTS_BOOL);
    put(&keys, 1, 1);
    key(&keys, "add_space_prefix", WEIGHTS_BOOL);
    put(&keys, 0, 1);
    if (open_keys(&keys, &weights, arena, &tokenizer, &error) != STATUS_OK)
        fail_msg("%s", error.text);
    const struct tokenizer_config *config = tokenizer_config(tokenizer);
    assert_int_equal(config->padding, TOKEN_NONE);
    assert_int_equal(config->separator, TOKEN_NONE);
    assert_int_equal(
        tokenizer_encode(tokenizer, view_of("aab"), TOKENIZER_ADD_SPECIAL, &list, &error),
        STATUS_OK);
    const int32_t expected[] = {1, 3, 5, 2};
    assert_int_equal(list.count, ARRAY_COUNT(expected));
    assert_memory_equal(list.ids, expected, sizeof expected);
    token_list_free(&list);
    tokenizer_close(tokenizer);
    weights_close(weights);
    arena_close(arena);
}

static void expect_refused(struct keys keys, const char *part)
{
    struct weights *weights;
    struct tokenizer *tokenizer;
    struct error error = {0};
    struct arena *arena = arena_open(0);
    assert_int_not_equal(open_keys(&keys, &weights, arena, &tokenizer, &error), STATUS_OK);
    if (strstr(error.text, part) == NULL)
        fail_msg("'%s' does not say '%s'", error.text, part);
    weights_close(weights);
    arena_close(arena);
}

static void test_vocabulary_refuses(void **state)
{
    (void)state;
    struct keys keys = {0};
    expect_refused(keys, "tokenizer.ggml.model is missing");
    key_text(&keys, "model", "llama");
    expect_refused(keys, "tokenizer.ggml.tokens is missing");
    keys = begin();
    key_id(&keys, "bos_token_id", 7);
    expect_refused(keys, "tokenizer.ggml.bos_token_id is 7, but there are 7 tokens");
    keys = begin();
    key_text(&keys, "eos_token_id", "two");
    expect_refused(keys, "tokenizer.ggml.eos_token_id");
    keys = begin();
    key_text(&keys, "add_bos_token", "yes");
    expect_refused(keys, "tokenizer.ggml.add_bos_token");
    keys = (struct keys){0};
    key_text(&keys, "model", "llama");
    key_array(&keys, "tokens", WEIGHTS_STRING, 1);
    put_text(&keys, "a");
    key_array(&keys, "scores", WEIGHTS_F32, 2);
    put(&keys, 0, 8);
    expect_refused(keys, "tokenizer.ggml.scores has 2 elements, but there are 1 tokens");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_vocabulary_read),
        cmocka_unit_test(test_vocabulary_refuses),
    };
    return cmocka_run_group_tests_name("vocabulary", tests, NULL, NULL);
}
