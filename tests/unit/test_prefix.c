/* The prefix cache alone: what it hands out, keeps and gives up. */
#include "engine/prefix.h"
#include "tiny_model.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#define PAGE MODEL_KV_PAGE_TOKENS
#define N_PAGES 8

struct fixture {
    struct weights *weights;
    struct model *model;
    struct prefix_cache *cache;
};

static void open_fixture(struct fixture *fixture)
{
    struct tiny_gguf gguf = {0};
    struct error error = {0};
    struct model_options options = {
        .n_ctx = N_PAGES * PAGE, .kv_format = QUANT_F16, .n_threads = 1};
    char path[64];
    tiny_llama_keys(&gguf, 2);
    tiny_llama_tensors(&gguf);
    tiny_write(&gguf, path);
    enum status status = weights_open(&fixture->weights, path, &error);
    unlink(path);
    if (status == STATUS_OK)
        status = model_open(&fixture->model, fixture->weights, &options, &error);
    if (status == STATUS_OK)
        status = prefix_open(&fixture->cache, fixture->model, &error);
    if (status != STATUS_OK)
        fail_msg("%s", error.text);
}

static void close_fixture(struct fixture *fixture)
{
    prefix_close(fixture->cache);
    assert_int_equal(model_pages_free(fixture->model), N_PAGES);
    model_close(fixture->model);
    weights_close(fixture->weights);
}

static void make_text(int32_t *tokens, size_t n, uint64_t seed)
{
    for (size_t i = 0; i < n; i++)
        tokens[i] = (int32_t)(rng_u64(seed, i, 0) % TINY_VOCAB);
}

/* Computes a text from what is cached of it; returns how much that was, and keeps the rest. */
static uint32_t use(struct fixture *fixture, const int32_t *tokens, uint32_t n_tokens)
{
    struct error error = {0};
    struct sequence *sequence;
    struct prefix_path path = {0};
    float logits[TINY_VOCAB];
    assert_int_equal(sequence_open(&sequence, fixture->model, &error), STATUS_OK);
    uint32_t adopted = prefix_extend(fixture->cache, &path, sequence, tokens, n_tokens);
    assert_int_equal(sequence_length(sequence), adopted);
    while (sequence_length(sequence) < n_tokens) {
        uint32_t length = sequence_length(sequence);
        struct step_segment segment = {sequence, tokens + length, MIN(n_tokens - length, 100), 1};
        prefix_make_room(fixture->cache, sequence_pages_needed(sequence, segment.n_tokens));
        assert_int_equal(model_step(fixture->model, &segment, 1, logits, &error), STATUS_OK);
        prefix_keep(fixture->cache, &path, sequence, tokens, false);
    }
    prefix_keep(fixture->cache, &path, sequence, tokens, true);
    sequence_close(sequence);
    return adopted;
}

static void test_prefix_finds(void **state)
{
    (void)state;
    struct fixture fixture;
    int32_t a[4 * PAGE], b[4 * PAGE];
    open_fixture(&fixture);
    make_text(a, ARRAY_COUNT(a), 1);
    memcpy(b, a, sizeof a);
    b[PAGE + 40] ^= 1;

    assert_int_equal(use(&fixture, a, 2 * PAGE + 50), 0);
    assert_int_equal(prefix_spare_pages(fixture.cache), 3);
    /* The same again, also where it ends within a page or goes on. */
    assert_int_equal(use(&fixture, a, 2 * PAGE + 50), 2 * PAGE + 50);
    assert_int_equal(use(&fixture, a, 2 * PAGE), 2 * PAGE);
    assert_int_equal(use(&fixture, a, PAGE + 20), PAGE + 20);
    assert_int_equal(use(&fixture, a, PAGE + PREFIX_MIN_TOKENS - 1), PAGE);
    assert_int_equal(use(&fixture, a, 2 * PAGE + 60), 2 * PAGE + 50);
    assert_int_equal(prefix_spare_pages(fixture.cache), 3); /* the longer end took the place */
    /* A text that parts from it within a page. */
    assert_int_equal(use(&fixture, b, 2 * PAGE + 50), PAGE + 40);
    assert_int_equal(use(&fixture, b, 2 * PAGE + 50), 2 * PAGE + 50);
    assert_int_equal(use(&fixture, a, 2 * PAGE + 60), 2 * PAGE + 60);
    assert_int_equal(prefix_spare_pages(fixture.cache), 5);
    /* The same tokens after other ones are another text. */
    make_text(b, PAGE, 2);
    memcpy(b + PAGE, a, PAGE * sizeof *a);
    assert_int_equal(use(&fixture, b, 2 * PAGE), 0);
    close_fixture(&fixture);
}

/* What was not used for the longest time goes, leaves before their parents. */
static void test_prefix_gives_up(void **state)
{
    (void)state;
    struct fixture fixture;
    int32_t texts[5][3 * PAGE];
    open_fixture(&fixture);
    for (size_t i = 0; i < ARRAY_COUNT(texts); i++)
        make_text(texts[i], ARRAY_COUNT(texts[i]), i);
    for (size_t i = 0; i < 4; i++)
        assert_int_equal(use(&fixture, texts[i], 2 * PAGE), 0);
    assert_int_equal(model_pages_free(fixture.model), 0);
    assert_int_equal(use(&fixture, texts[0], 2 * PAGE), 2 * PAGE);

    assert_true(prefix_make_room(fixture.cache, 1));
    assert_int_equal(model_pages_free(fixture.model), 1);
    assert_int_equal(use(&fixture, texts[1], PAGE + 1), PAGE); /* the second page went */
    assert_int_equal(use(&fixture, texts[4], 2 * PAGE), 0);
    assert_int_equal(use(&fixture, texts[2], 2 * PAGE), PAGE); /* as the next oldest did */
    assert_int_equal(use(&fixture, texts[0], 2 * PAGE), 2 * PAGE);
    assert_true(prefix_make_room(fixture.cache, N_PAGES));
    assert_int_equal(prefix_spare_pages(fixture.cache), 0);
    assert_int_equal(use(&fixture, texts[0], PAGE), 0);
    close_fixture(&fixture);
}

/* Pages of a text that is being continued stay. */
static void test_prefix_keeps_used(void **state)
{
    (void)state;
    struct fixture fixture;
    struct error error = {0};
    struct sequence *sequence;
    struct prefix_path path = {0};
    int32_t a[3 * PAGE], b[3 * PAGE];
    open_fixture(&fixture);
    make_text(a, ARRAY_COUNT(a), 1);
    make_text(b, ARRAY_COUNT(b), 2);
    use(&fixture, a, 2 * PAGE + 30);
    use(&fixture, b, 2 * PAGE);
    assert_int_equal(sequence_open(&sequence, fixture.model, &error), STATUS_OK);
    assert_int_equal(prefix_extend(fixture.cache, &path, sequence, a, 2 * PAGE + 20),
                     2 * PAGE + 20);
    assert_int_equal(path.n_pages, 2);
    assert_int_equal(prefix_spare_pages(fixture.cache), 2);
    assert_false(prefix_make_room(fixture.cache, N_PAGES));
    assert_int_equal(model_pages_free(fixture.model), N_PAGES - 3);

    /* Forgetting the shared end spares a copy. */
    assert_int_equal(sequence_pages_needed(sequence, 1), 1);
    prefix_forget(fixture.cache, sequence_page(sequence, 2));
    assert_int_equal(sequence_pages_needed(sequence, 1), 0);
    prefix_forget(fixture.cache, sequence_page(sequence, 2)); /* is not there any more */
    prefix_forget(fixture.cache, sequence_page(sequence, 0)); /* has a child */
    sequence_close(sequence);
    assert_int_equal(prefix_spare_pages(fixture.cache), 2);
    close_fixture(&fixture);
}

static void test_prefix_none(void **state)
{
    (void)state;
    struct prefix_path path = {0};
    int32_t token = 0;
    assert_int_equal(prefix_spare_pages(NULL), 0);
    assert_false(prefix_make_room(NULL, 1));
    prefix_forget(NULL, 0);
    prefix_close(NULL);
    struct fixture fixture;
    struct sequence *sequence;
    struct error error = {0};
    open_fixture(&fixture);
    assert_int_equal(sequence_open(&sequence, fixture.model, &error), STATUS_OK);
    assert_int_equal(prefix_extend(NULL, &path, sequence, &token, 1), 0);
    prefix_keep(NULL, &path, sequence, &token, true);
    sequence_close(sequence);
    close_fixture(&fixture);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_prefix_finds),
        cmocka_unit_test(test_prefix_gives_up),
        cmocka_unit_test(test_prefix_keeps_used),
        cmocka_unit_test(test_prefix_none),
    };
    return cmocka_run_group_tests_name("prefix", tests, NULL, NULL);
}
