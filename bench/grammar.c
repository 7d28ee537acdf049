/* grammar: how long a token's mask takes.
 *
 *   build/bench/grammar VOCABULARY.gguf [GRAMMAR.gbnf [TOKENS]]
 *
 * Follows random allowed tokens through the grammar (JSON where none is named), text after text,
 * twice with the same choices: the first time everything is new, the second time it has been seen.
 * Beside it, in the same run, the check of every token of the vocabulary, byte by byte. */
#include "engine/engine.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define N_NAIVE 3 /* masks made by the naive check, at most */

static const char json[] = "root ::= object\n"
                           "value ::= object | array | string | number | \"true\" | \"null\"\n"
                           "object ::= \"{\" ws (pair (\",\" ws pair)*)? \"}\"\n"
                           "pair ::= string \":\" ws value\n"
                           "array ::= \"[\" ws (value (\",\" ws value)*)? \"]\"\n"
                           "char ::= [^\"\\\\\\x00-\\x1F] | \"\\\\\" ([\"\\\\/bfnrt] | \"u\" "
                           "[0-9a-fA-F]{4})\n"
                           "string ::= \"\\\"\" char* \"\\\"\"\n"
                           "number ::= \"-\"? [0-9]{1,9} (\".\" [0-9]{1,9})?\n"
                           "ws ::= [ \\n]{0,4}\n";

static _Noreturn void fail(const char *text)
{
    fprintf(stderr, "grammar: %s\n", text);
    exit(1);
}

static int compare(const void *a, const void *b)
{
    double left = *(const double *)a, right = *(const double *)b;
    return (left > right) - (left < right);
}

static void report(const char *name, double *us, size_t n)
{
    double sum = 0;
    for (size_t i = 0; i < n; i++)
        sum += us[i];
    qsort(us, n, sizeof *us, compare);
    printf("%-14s mean %9.1f us, median %9.1f, 99 %% %9.1f, most %9.1f\n", name, sum / (double)n,
           us[n / 2], us[n * 99 / 100], us[n - 1]);
}

static struct grammar_matcher *open_matcher(struct grammar *grammar)
{
    struct grammar_matcher *matcher;
    struct error error;
    if (grammar_matcher_open(&matcher, grammar, false, &error) != STATUS_OK)
        fail(error.text);
    return matcher;
}

/* One of the tokens that are left, or TOKEN_NONE. */
static int32_t choose(const float *logits, size_t n_vocab, uint64_t number)
{
    int32_t found = TOKEN_NONE;
    uint64_t most = 0;
    for (size_t id = 0; id < n_vocab; id++) {
        uint64_t weight = logits[id] == 0 ? rng_u64(number, id, 0) : 0;
        if (weight > most) {
            most = weight;
            found = (int32_t)id;
        }
    }
    return found;
}

static void follow(struct grammar *grammar, const struct tokenizer *tokenizer, double *us, size_t n)
{
    size_t n_vocab = tokenizer_count(tokenizer);
    float *logits = calloc(n_vocab, sizeof *logits);
    struct grammar_matcher *matcher = open_matcher(grammar);
    if (logits == NULL)
        fail("out of memory");
    for (size_t i = 0; i < n; i++) {
        memset(logits, 0, n_vocab * sizeof *logits);
        uint64_t begin = clock_now_ns();
        if (!grammar_matcher_mask(matcher, logits))
            fail("no mask");
        us[i] = (double)(clock_now_ns() - begin) / 1e3;
        int32_t token = choose(logits, n_vocab, i);
        if (token == TOKEN_NONE || tokenizer_ends_generation(tokenizer, token) || i % 200 == 199) {
            grammar_matcher_close(matcher);
            matcher = open_matcher(grammar);
            continue;
        }
        grammar_matcher_accept(matcher, token);
    }
    grammar_matcher_close(matcher);
    free(logits);
}

/* Each token is read by a matcher of its own. */
static void check_all(struct grammar *grammar, const struct tokenizer *tokenizer, double *us)
{
    size_t n_vocab = tokenizer_count(tokenizer);
    float *logits = calloc(n_vocab, sizeof *logits);
    if (logits == NULL)
        fail("out of memory");
    for (size_t i = 0; i < N_NAIVE; i++) {
        uint64_t begin = clock_now_ns();
        for (size_t id = 0; id < n_vocab; id++) {
            struct grammar_matcher *matcher = open_matcher(grammar);
            grammar_matcher_accept(matcher, (int32_t)id);
            grammar_matcher_close(matcher);
        }
        us[i] = (double)(clock_now_ns() - begin) / 1e3;
    }
    free(logits);
}

int main(int argc, char **argv)
{
    struct error error;
    struct engine *engine;
    struct grammar_cache *cache;
    struct grammar *grammar;
    struct buffer text = {0};
    size_t n = argc > 3 ? (size_t)atoll(argv[3]) : 2000;
    if (argc < 2 || n == 0)
        fail("usage: grammar VOCABULARY.gguf [GRAMMAR.gbnf [TOKENS]]");
    if (engine_open(&engine, argv[1], ENGINE_TOKENIZER, NULL, &error) != STATUS_OK ||
        (argc > 2 && file_read(argv[2], 1 << 20, &text, &error) != STATUS_OK))
        fail(error.text);
    double *us = calloc(n + N_NAIVE, sizeof *us);
    struct grammar_spec spec = {.gbnf =
                                    argc > 2 ? (struct view){text.data, text.size} : view_of(json)};
    uint64_t begin = clock_now_ns();
    if (us == NULL ||
        grammar_cache_open(&cache, engine->tokenizer, tokenizer_count(engine->tokenizer), &error) !=
            STATUS_OK ||
        grammar_cache_get(cache, &spec, &grammar, &error) != STATUS_OK)
        fail(error.text);
    printf("%zu tokens; vocabulary and grammar ready in %.1f ms\n",
           tokenizer_count(engine->tokenizer), (double)(clock_now_ns() - begin) / 1e6);
    follow(grammar, engine->tokenizer, us, n);
    report("new", us, n);
    follow(grammar, engine->tokenizer, us, n);
    report("seen", us, n);
    double median = us[n / 2];
    check_all(grammar, engine->tokenizer, us);
    report("every token", us, N_NAIVE);
    printf("every token / seen: %.0f\n", us[N_NAIVE / 2] / median);
    grammar_release(grammar);
    grammar_cache_close(cache);
    engine_close(engine);
    buffer_free(&text);
    free(us);
    return 0;
}
