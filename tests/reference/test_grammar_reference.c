/* Masks over real vocabularies: a token is allowed exactly where the automaton reads its bytes. */
#include "../support/reference.h"
#include "engine/engine.h"
#include "sample/grammar_internal.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define N_STEPS 60
#define COMPARED_EVERY 6

static const char schema_text[] =
    "{\"type\":\"object\",\"properties\":{\"name\":{\"type\":\"string\",\"maxLength\":40},"
    "\"n\":{\"type\":\"number\"},\"list\":{\"type\":\"array\",\"items\":{\"$ref\":\"#\"}},"
    "\"any\":true},\"required\":[\"name\",\"any\"]}";

/* The grammar of the test with an automaton and masks of its own. */
struct bench {
    struct grammar_vocabulary *vocabulary;
    struct program *program;
    struct automaton *automaton;
    struct masks *masks;
};

static void open_bench(struct bench *b, const struct tokenizer *tokenizer)
{
    struct error error;
    struct rules rules = {.arena = arena_open(0)};
    json_t *schema = json_loads(schema_text, 0, NULL);
    const struct grammar_spec spec = {.schema = schema};
    assert_int_equal(vocabulary_open(&b->vocabulary, tokenizer, tokenizer_count(tokenizer), &error),
                     STATUS_OK);
    assert_int_equal(reply_parse(&rules, tokenizer, &spec, &error), STATUS_OK);
    assert_int_equal(program_open(&b->program, &rules, &error), STATUS_OK);
    assert_int_equal(automaton_open(&b->automaton, b->program), STATUS_OK);
    assert_int_equal(masks_open(&b->masks, b->vocabulary, b->automaton), STATUS_OK);
    json_decref(schema);
    arena_close(rules.arena);
}

static void close_bench(struct bench *b)
{
    masks_close(b->masks);
    automaton_close(b->automaton);
    program_close(b->program);
    vocabulary_close(b->vocabulary);
}

/* The state after a token, by its bytes. */
static uint32_t after(struct bench *b, uint32_t state, int32_t token)
{
    struct buffer piece = {0};
    vocabulary_piece(b->vocabulary, token, &piece);
    uint32_t next = piece.size > 0 ? state : STATE_DEAD;
    for (size_t i = 0; i < piece.size; i++)
        next = automaton_step(b->automaton, next, (uint8_t)piece.data[i]);
    buffer_free(&piece);
    return next;
}

static void compare(struct bench *b, const uint64_t *mask, uint32_t state)
{
    for (size_t id = 0; id < b->vocabulary->n_vocab; id++) {
        bool allowed = mask[id / 64] >> id % 64 & 1;
        bool ends = tokenizer_ends_generation(b->vocabulary->tokenizer, (int32_t)id);
        bool expected = ends ? automaton_get(b->automaton, state)->accepts
                             : after(b, state, (int32_t)id) != STATE_DEAD;
        assert_int_equal(allowed, expected);
    }
}

static void check_vocabulary(void **state)
{
    char path[REFERENCE_PATH_BYTES];
    struct engine *engine;
    struct error error;
    struct bench b = {0};
    reference_path(path, "tokenizer/%s.gguf", (const char *)*state);
    if (engine_open(&engine, path, ENGINE_TOKENIZER, NULL, &error) != STATUS_OK) {
        skip();
        return;
    }
    open_bench(&b, engine->tokenizer);
    size_t n_words = b.vocabulary->n_words;
    uint64_t *mask = calloc(n_words, sizeof *mask);
    uint32_t at = automaton_start(b.automaton);
    for (size_t step = 0; step < N_STEPS; step++) {
        const uint64_t *found = masks_of(b.masks, at);
        assert_non_null(found);
        memcpy(mask, found, n_words * sizeof *mask);
        if (step % COMPARED_EVERY == 0)
            compare(&b, mask, at);
        size_t best = 0;
        uint64_t most = 0;
        for (size_t id = 0; id < b.vocabulary->n_vocab; id++) {
            bool allowed = mask[id / 64] >> id % 64 & 1;
            uint64_t weight = allowed ? rng_u64(step, id, 0) : 0;
            if (weight > most && !tokenizer_ends_generation(engine->tokenizer, (int32_t)id)) {
                most = weight;
                best = id;
            }
        }
        at = most > 0 ? after(&b, at, (int32_t)best) : automaton_start(b.automaton);
    }
    free(mask);
    close_bench(&b);
    engine_close(engine);
}

int main(void)
{
    static char *names[] = {"llama-bpe", "deepseek-llm", "llama-spm", "gpt-2"};
    struct CMUnitTest tests[ARRAY_COUNT(names)];
    for (size_t i = 0; i < ARRAY_COUNT(names); i++)
        tests[i] = (struct CMUnitTest){
            .name = names[i], .test_func = check_vocabulary, .initial_state = names[i]};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
