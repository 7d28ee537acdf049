#include "sample/sample.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

/* A chain with every stage off: the distribution is softmax(logits). */
static struct sampling neutral(void)
{
    return (struct sampling){
        .temperature = 1, .top_p = 1, .typical_p = 1, .repeat_penalty = 1, .dry_base = 1.75f};
}

static struct sampler *open_sampler(const struct sampling *sampling, size_t n_vocab)
{
    struct sampler *sampler;
    struct error error;
    if (sampler_open(&sampler, sampling, n_vocab, NULL, 0, &error) != STATUS_OK)
        fail_msg("%s", error.text);
    return sampler;
}

static void accept_all(struct sampler *sampler, const int32_t *tokens, size_t n)
{
    for (size_t i = 0; i < n; i++)
        sampler_accept(sampler, tokens[i]);
}

/* Bits of the ids that 2000 draws from logits give. */
static uint32_t reachable(struct sampler *sampler, const float *logits, size_t n)
{
    uint32_t seen = 0;
    float copy[32];
    for (uint64_t position = 0; position < 2000; position++) {
        memcpy(copy, logits, n * sizeof *logits);
        seen |= 1u << sampler_draw(sampler, copy, position);
    }
    return seen;
}

static uint32_t reachable_with(const struct sampling *sampling, const float *logits, size_t n)
{
    struct sampler *sampler = open_sampler(sampling, n);
    uint32_t seen = reachable(sampler, logits, n);
    sampler_close(sampler);
    return seen;
}

/* log of 0.4, 0.3, 0.15, 0.1, 0.05, in the order 2 4 0 1 3. */
static const float five[] = {-1.8971200f, -2.3025851f, -0.9162907f, -2.9957323f, -1.2039728f};

static void test_sample_greedy(void **state)
{
    (void)state;
    struct sampling sampling = neutral();
    sampling.temperature = 0;
    struct sampler *sampler = open_sampler(&sampling, 5);
    float logits[5];
    memcpy(logits, five, sizeof logits);
    assert_int_equal(sampler_draw(sampler, logits, 0), 2);
    float equal[5] = {1, 3, 3, 2, 3};
    assert_int_equal(sampler_draw(sampler, equal, 0), 1);
    float broken[5] = {NAN, -INFINITY, NAN, -7, NAN};
    assert_int_equal(sampler_draw(sampler, broken, 0), 3);
    float none[5] = {NAN, -INFINITY, NAN, NAN, NAN};
    assert_int_equal(sampler_draw(sampler, none, 0), -1);
    sampler_close(sampler);
    sampling.temperature = 1;
    sampler = open_sampler(&sampling, 5);
    assert_int_equal(sampler_draw(sampler, none, 0), -1);
    sampler_close(sampler);
    sampler_close(NULL);
}

static void test_sample_truncation(void **state)
{
    (void)state;
    struct sampling s = neutral();
    assert_int_equal(reachable_with(&s, five, 5), 0x1F);
    s.top_k = 2;
    assert_int_equal(reachable_with(&s, five, 5), 0x14);
    s.top_k = 1;
    assert_int_equal(reachable_with(&s, five, 5), 0x04);
    s.top_k = 5;
    assert_int_equal(reachable_with(&s, five, 5), 0x1F);
    s = neutral();
    s.top_p = 0.69f; /* 0.4 + 0.3 reach it */
    assert_int_equal(reachable_with(&s, five, 5), 0x14);
    s.top_p = 0.71f;
    assert_int_equal(reachable_with(&s, five, 5), 0x15);
    s.top_p = 0;
    assert_int_equal(reachable_with(&s, five, 5), 0x04);
    s = neutral();
    s.min_p = 0.37f; /* at least 0.148 */
    assert_int_equal(reachable_with(&s, five, 5), 0x15);
    s.min_p = 1;
    assert_int_equal(reachable_with(&s, five, 5), 0x04);
    /* Top-k narrows what top-p sees: of 4/7 and 3/7 the first alone reaches 0.5. */
    s = neutral();
    s.top_k = 2;
    s.top_p = 0.5f;
    assert_int_equal(reachable_with(&s, five, 5), 0x04);
}

/* The entropy of five is 1.3924; the distances of -log p from it are 0.476 (p = 0.4), 0.188 (0.3),
 * 0.505 (0.15), 0.910 (0.1) and 1.603 (0.05), so tokens come in the order 4 2 0 1 3. */
static void test_sample_typical(void **state)
{
    (void)state;
    struct sampling s = neutral();
    s.typical_p = 0.25f;
    assert_int_equal(reachable_with(&s, five, 5), 0x10);
    s.typical_p = 0.65f;
    assert_int_equal(reachable_with(&s, five, 5), 0x14);
    s.typical_p = 0.75f;
    assert_int_equal(reachable_with(&s, five, 5), 0x15);
}

static void test_sample_xtc(void **state)
{
    (void)state;
    struct sampling s = neutral();
    s.xtc_probability = 1;
    s.xtc_threshold = 0.12f; /* 0.4, 0.3 and 0.15 are above: 0.15 stays */
    assert_int_equal(reachable_with(&s, five, 5), 0x0B);
    s.xtc_threshold = 0.35f; /* one alone stays */
    assert_int_equal(reachable_with(&s, five, 5), 0x1F);
    s.xtc_threshold = 0.5f;
    assert_int_equal(reachable_with(&s, five, 5), 0x1F);
    s.xtc_threshold = 0.12f;
    s.xtc_probability = 0.5f; /* sometimes */
    assert_int_equal(reachable_with(&s, five, 5), 0x1F);
}

static void test_sample_bias(void **state)
{
    (void)state;
    struct sampling s = neutral();
    struct logit_bias biases[] = {{2, -INFINITY}, {3, 100}};
    s.biases = biases;
    s.n_biases = 1;
    assert_int_equal(reachable_with(&s, five, 5), 0x1B);
    s.n_biases = 2;
    assert_int_equal(reachable_with(&s, five, 5), 0x08);
}

/* The logits after the penalties, seen through a greedy draw that overwrites them. */
static void test_sample_penalties(void **state)
{
    (void)state;
    struct sampling s = neutral();
    s.temperature = 0;
    s.repeat_penalty = 2;
    s.repeat_last_n = 4;
    s.presence_penalty = 0.25f;
    s.frequency_penalty = 0.5f;
    struct sampler *sampler = open_sampler(&s, 5);
    const int32_t text[] = {4, 4, 0, 1, 1, 0}; /* the window holds 0 1 1 0 */
    accept_all(sampler, text, 6);
    float logits[] = {4, -1, 3, 0, 5};
    assert_int_equal(sampler_draw(sampler, logits, 6), 4);
    assert_float_equal(logits[0], 2 - 0.25 - 1, 1e-6);
    assert_float_equal(logits[1], -2 - 0.25 - 1, 1e-6);
    assert_float_equal(logits[2], 3, 0);
    assert_float_equal(logits[4], 5, 0);
    sampler_close(sampler);
}

static void test_sample_dry(void **state)
{
    (void)state;
    struct sampling s = neutral();
    s.temperature = 0;
    s.dry_multiplier = 1;
    s.dry_base = 2;
    s.dry_allowed_length = 2;
    struct error error;
    struct sampler *sampler;
    const int32_t breaker = 9;
    /* The end "1 2 3" stood before 4 (length 3) and "2 3" before 5 (length 2); 6 follows "3" alone.
     */
    const int32_t text[] = {1, 2, 3, 4, 7, 2, 3, 5, 8, 3, 6, 1, 2, 3};
    assert_int_equal(sampler_open(&sampler, &s, 10, &breaker, 1, &error), STATUS_OK);
    accept_all(sampler, text, ARRAY_COUNT(text));
    float logits[10] = {0};
    sampler_draw(sampler, logits, 14);
    const float expected[10] = {0, 0, 0, 0, -2, -1, 0, 0, 0, 0};
    for (int i = 0; i < 10; i++)
        assert_float_equal(logits[i], expected[i], 1e-6);
    /* A breaker ends the match: after "9 3" only one token is left to compare. */
    const int32_t broken[] = {9, 3, 4, 9, 3};
    accept_all(sampler, broken, ARRAY_COUNT(broken));
    memset(logits, 0, sizeof logits);
    sampler_draw(sampler, logits, 19);
    for (int i = 0; i < 10; i++)
        assert_float_equal(logits[i], 0, 0);
    sampler_close(sampler);
    /* Looking back on five tokens only, nothing repeats. */
    s.dry_last_n = 5;
    sampler = open_sampler(&s, 10);
    accept_all(sampler, text, ARRAY_COUNT(text));
    sampler_draw(sampler, logits, 14);
    for (int i = 0; i < 10; i++)
        assert_float_equal(logits[i], 0, 0);
    sampler_close(sampler);
}

/* One token repeated: the penalty stays finite, and 60,000 tokens take linear time. */
static void test_sample_dry_long(void **state)
{
    (void)state;
    struct sampling s = neutral();
    s.temperature = 0;
    s.dry_multiplier = 1;
    s.dry_base = 4;
    struct sampler *sampler = open_sampler(&s, 4);
    for (int i = 0; i < 60000; i++)
        sampler_accept(sampler, 1);
    float logits[4] = {0, 9, 0, 0};
    uint64_t begin_ns = clock_now_ns();
    assert_int_equal(sampler_draw(sampler, logits, 0), 0);
    assert_true(clock_now_ns() - begin_ns < 1000000000u);
    assert_true(logits[1] < -1e29f && logits[1] > -INFINITY);
    sampler_close(sampler);
}

/* Frequencies of 20,000 draws against softmax(logits / temperature), by chi-squared. */
static void test_sample_distribution(void **state)
{
    (void)state;
    enum { N = 5, DRAWS = 20000 };
    const float temperatures[] = {1, 0.5f, 2};
    for (size_t t = 0; t < ARRAY_COUNT(temperatures); t++) {
        struct sampling s = neutral();
        s.temperature = temperatures[t];
        s.seed = 7;
        struct sampler *sampler = open_sampler(&s, N);
        double count[N] = {0}, p[N], total = 0, chi = 0;
        for (int i = 0; i < DRAWS; i++) {
            float logits[N];
            memcpy(logits, five, sizeof logits);
            count[sampler_draw(sampler, logits, (uint64_t)i)]++;
        }
        for (int i = 0; i < N; i++)
            total += p[i] = exp(five[i] / s.temperature);
        for (int i = 0; i < N; i++) {
            double expected = DRAWS * p[i] / total;
            chi += (count[i] - expected) * (count[i] - expected) / expected;
        }
        assert_true(chi < 18.5); /* 4 degrees of freedom: passed with probability 0.999 */
        sampler_close(sampler);
    }
}

static void fill_random(float *logits, size_t n, uint64_t seed)
{
    for (size_t i = 0; i < n; i++)
        logits[i] = (float)(10 * rng_uniform(seed, i, 0));
}

/* Top-k through the heap equals top-k by sorting; the same seed gives the same token. */
static void test_sample_large_vocabulary(void **state)
{
    (void)state;
    enum { N = 256000, K = 40 };
    float *logits = malloc(N * sizeof *logits);
    struct sampling s = neutral();
    s.top_k = K;
    s.temperature = 1000; /* nearly uniform over those that are left */
    struct sampler *sampler = open_sampler(&s, N), *other = open_sampler(&s, N);
    fill_random(logits, N, 1);
    size_t above = 0;
    float least = INFINITY;
    uint64_t best_ns = UINT64_MAX;
    for (uint64_t position = 0; position < 500; position++) {
        uint64_t begin_ns = clock_now_ns();
        int32_t id = sampler_draw(sampler, logits, position);
        best_ns = MIN(best_ns, clock_now_ns() - begin_ns);
        assert_int_equal(sampler_draw(other, logits, position), id);
        least = MIN(least, logits[id]);
    }
    for (size_t i = 0; i < N; i++)
        above += logits[i] >= least;
    assert_int_equal(above, K); /* 500 draws from 40 find the last one */
    print_message("# draw from %d with top-k %d: %.3f ms\n", N, K, (double)best_ns / 1e6);
    sampler_close(sampler);
    sampler_close(other);
    s.top_k = 0;
    s.temperature = 1;
    s.top_p = 0.9f;
    s.typical_p = 0.95f;
    s.min_p = 0.01f;
    sampler = open_sampler(&s, N);
    assert_in_range(sampler_draw(sampler, logits, 0), 0, N - 1);
    sampler_close(sampler);
    free(logits);
}

static void test_sample_settings_out_of_range(void **state)
{
    (void)state;
    struct sampler *sampler;
    struct error error;
    struct sampling s = neutral();
    s.temperature = NAN;
    assert_int_equal(sampler_open(&sampler, &s, 5, NULL, 0, &error), STATUS_INVALID);
    assert_non_null(strstr(error.text, "temperature"));
    s = neutral();
    s.top_p = 1.5f;
    assert_int_equal(sampler_open(&sampler, &s, 5, NULL, 0, &error), STATUS_INVALID);
    assert_string_equal(error.text, "top_p is 1.5, it must be from 0 to 1");
    s = neutral();
    struct logit_bias bias = {5, 1};
    s.biases = &bias;
    s.n_biases = 1;
    assert_int_equal(sampler_open(&sampler, &s, 5, NULL, 0, &error), STATUS_INVALID);
    bias = (struct logit_bias){0, INFINITY};
    assert_int_equal(sampler_open(&sampler, &s, 5, NULL, 0, &error), STATUS_INVALID);
    bias.bias = NAN;
    assert_int_equal(sampler_open(&sampler, &s, 5, NULL, 0, &error), STATUS_INVALID);
    assert_int_equal(sampler_open(&sampler, &s, 0, NULL, 0, &error), STATUS_INVALID);
    assert_null(sampler);
}

static void test_sample_logprobs(void **state)
{
    (void)state;
    const float logits[] = {-INFINITY, five[0], NAN, five[1], five[2], five[3], five[4]};
    struct token_logprob top[8];
    double log_total;
    assert_int_equal(sample_logprobs(logits, ARRAY_COUNT(logits), top, 3, &log_total), 3);
    assert_float_equal(log_total, 0, 1e-5);
    const int32_t best[] = {4, 6, 1};
    for (size_t i = 0; i < 3; i++) {
        assert_int_equal(top[i].token, best[i]);
        assert_float_equal(top[i].logprob, logits[best[i]], 1e-5);
    }
    assert_int_equal(sample_logprobs(logits, ARRAY_COUNT(logits), top, 8, &log_total), 5);
    assert_int_equal(top[4].token, 5);
    assert_int_equal(sample_logprobs(logits, ARRAY_COUNT(logits), NULL, 0, &log_total), 0);
    assert_float_equal(log_total, 0, 1e-5);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sample_greedy),
        cmocka_unit_test(test_sample_truncation),
        cmocka_unit_test(test_sample_typical),
        cmocka_unit_test(test_sample_xtc),
        cmocka_unit_test(test_sample_bias),
        cmocka_unit_test(test_sample_penalties),
        cmocka_unit_test(test_sample_dry),
        cmocka_unit_test(test_sample_dry_long),
        cmocka_unit_test(test_sample_distribution),
        cmocka_unit_test(test_sample_large_vocabulary),
        cmocka_unit_test(test_sample_settings_out_of_range),
        cmocka_unit_test(test_sample_logprobs),
    };
    return cmocka_run_group_tests_name("sample", tests, NULL, NULL);
}
