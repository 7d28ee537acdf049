/* Sessions over a tiny random model, whose first 96 tokens are the bytes 0 to 95. */
#include "tiny_engine.h"
#include "tiny_model.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>

#include <cmocka.h>

#define N_CTX 1024
#define N_PROMPT 700 /* more than one batch, on any machine */
#define N_ANSWER 8

static const struct sampling greedy = {
    .top_p = 1, .typical_p = 1, .repeat_penalty = 1, .dry_base = 1.75f};

static int32_t prompt[N_CTX];

static void open_fixture(struct tiny_engine *fixture)
{
    tiny_engine_open(fixture, N_CTX, 2);
    for (size_t i = 0; i < N_CTX; i++)
        prompt[i] = (int32_t)(rng_u64(3, i, 0) % TINY_VOCAB);
}

static enum status begin(struct session *session, const int32_t *tokens, size_t n_tokens,
                         session_progress *progress, void *context, struct error *error)
{
    struct session_prompt asked = {.tokens = tokens,
                                   .n_tokens = n_tokens,
                                   .sampling = &greedy,
                                   .progress = progress,
                                   .context = context};
    return session_begin(session, &asked, error);
}

static void answer(struct session *session, int32_t *tokens, size_t n_tokens, struct buffer *text)
{
    struct error error = {0};
    for (size_t i = 0; i < n_tokens; i++)
        if (session_next(session, &tokens[i], text, &error) != STATUS_OK)
            fail_msg("%s", error.text);
    session_finish(session, text);
}

/* What the cache holds of a prompt is not computed again, and changes nothing. */
static void test_session_reuses_prefix(void **state)
{
    (void)state;
    struct tiny_engine fixture;
    struct error error = {0};
    struct buffer text = {0}, again = {0};
    int32_t first[N_ANSWER], second[N_ANSWER];
    open_fixture(&fixture);
    struct session *session = fixture.session;
    assert_int_equal(begin(session, prompt, N_PROMPT, NULL, NULL, &error), STATUS_OK);
    assert_int_equal(session_reused(session), 0);
    answer(session, first, N_ANSWER, &text);
    assert_int_equal(text.size, N_ANSWER); /* a byte each */

    /* The prompt and three tokens of the answer: all but the last are held. */
    memcpy(prompt + N_PROMPT, first, 3 * sizeof *first);
    assert_int_equal(begin(session, prompt, N_PROMPT + 3, NULL, NULL, &error), STATUS_OK);
    assert_int_equal(session_reused(session), N_PROMPT + 2);
    answer(session, second, N_ANSWER - 3, &again);
    assert_memory_equal(second, first + 3, (N_ANSWER - 3) * sizeof *first);
    assert_memory_equal(again.data, text.data + 3, N_ANSWER - 3);

    /* Another beginning keeps nothing; a session that never saw the first text answers alike. */
    struct tiny_engine fresh;
    open_fixture(&fresh);
    prompt[0] ^= 1;
    assert_int_equal(begin(session, prompt, 20, NULL, NULL, &error), STATUS_OK);
    assert_int_equal(session_reused(session), 0);
    assert_int_equal(begin(fresh.session, prompt, 20, NULL, NULL, &error), STATUS_OK);
    answer(session, first, N_ANSWER, &text);
    answer(fresh.session, second, N_ANSWER, &again);
    assert_memory_equal(first, second, sizeof first);
    buffer_free(&text);
    buffer_free(&again);
    session_close(NULL);
    tiny_engine_close(&fresh);
    tiny_engine_close(&fixture);
}

static bool stop_at_once(void *context, size_t done, size_t total)
{
    size_t *calls = context;
    assert_true(done > 0 && done < total && total == N_PROMPT);
    ++*calls;
    return false;
}

/* A prompt that was interrupted goes on where it stopped. */
static void test_session_interrupted(void **state)
{
    (void)state;
    struct tiny_engine fixture;
    struct error error = {0};
    struct buffer text = {0};
    int32_t expected[N_ANSWER], found[N_ANSWER];
    size_t calls = 0;
    open_fixture(&fixture);
    struct session *session = fixture.session;
    assert_int_equal(begin(session, prompt, N_PROMPT, NULL, NULL, &error), STATUS_OK);
    answer(session, expected, N_ANSWER, &text);
    assert_int_equal(begin(session, prompt + 1, 5, NULL, NULL, &error), STATUS_OK);
    assert_int_equal(begin(session, prompt, N_PROMPT, stop_at_once, &calls, &error),
                     STATUS_CANCELLED);
    assert_int_equal(calls, 1);
    answer(session, found, N_ANSWER, &text);
    assert_memory_equal(found, expected, sizeof found);
    buffer_free(&text);
    tiny_engine_close(&fixture);
}

static void test_session_refuses(void **state)
{
    (void)state;
    struct tiny_engine fixture;
    struct error error = {0};
    struct buffer text = {0};
    int32_t token;
    open_fixture(&fixture);
    struct session *session = fixture.session;
    assert_int_equal(begin(session, prompt, 0, NULL, NULL, &error), STATUS_INVALID);
    assert_int_equal(begin(session, prompt, N_CTX, NULL, NULL, &error), STATUS_LIMIT);
    assert_non_null(strstr(error.text, "has 1024 tokens and the context holds 1024"));
    assert_int_equal(begin(session, prompt, N_CTX - 1, NULL, NULL, &error), STATUS_OK);
    assert_int_equal(session_next(session, &token, &text, &error), STATUS_OK);
    assert_int_equal(session_next(session, &token, &text, &error), STATUS_LIMIT);
    assert_non_null(strstr(error.text, "context of 1024 tokens is full"));
    assert_int_equal(begin(session, prompt, 5, NULL, NULL, &error), STATUS_OK);
    assert_int_equal(session_next(session, &token, &text, &error), STATUS_OK);
    buffer_free(&text);
    tiny_engine_close(&fixture);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_session_reuses_prefix),
        cmocka_unit_test(test_session_interrupted),
        cmocka_unit_test(test_session_refuses),
    };
    return cmocka_run_group_tests_name("session", tests, NULL, NULL);
}
