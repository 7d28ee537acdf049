/* Drafts: where they come from, when they pay, and that they never change a text. */
#include "engine/speculate.h"
#include "tiny_engine.h"
#include "../support/slow.h"
#include "tiny_model.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>

#include <cmocka.h>

#define N_CTX 256
#define N_PROMPT 60
#define N_ANSWER 90

/* ---- Drafts out of the text ------------------------------------------------------------------ */

#define N_TEXT 5000

static int32_t text[N_TEXT];
/* Classes of drafts out of the text. */
enum { AFTER_EDIT = 0, UNSURE = 1, SURE = SPECULATE_NGRAM_CLASSES - 1 };

static void expect_draft(struct ngrams *ngrams, size_t n, size_t limit, const int32_t *tokens,
                         size_t n_tokens)
{
    struct draft draft;
    assert_true(ngrams_update(ngrams, text, n));
    ngrams_propose(ngrams, text, limit, &draft);
    assert_int_equal(draft.count, n_tokens);
    for (size_t i = 0; i < n_tokens; i++)
        assert_int_equal(draft.tokens[i], tokens[i]);
}

static size_t write_text(const char *letters)
{
    size_t n = strlen(letters);
    for (size_t i = 0; i < n; i++)
        text[i] = letters[i];
    return n;
}

static void test_ngrams_propose(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        size_t limit;
        const char *draft;
    } cases[] = {
        {"", 9, ""},
        {"ab", 9, ""},
        {"abcdefgh", 9, ""},
        {"bcd1.bcd", 4, "1.bc"},      /* what followed */
        {"bcd1.bcd2.bcd", 2, "2."},   /* the latest */
        {"abcd1.bcd2.abcd", 2, "1."}, /* but rather the longest */
        {"bcd.bcd", 9, ".bcd.bcd."},  /* beyond the end: as a cycle */
        {"aaaaaa", 3, "aaa"},
        {"abcd.bcd", 0, ""},
    };
    for (size_t i = 0; i < ARRAY_COUNT(cases); i++) {
        struct ngrams ngrams = {0};
        int32_t expected[SPECULATE_MAX];
        for (size_t k = 0; k < strlen(cases[i].draft); k++)
            expected[k] = cases[i].draft[k];
        expect_draft(&ngrams, write_text(cases[i].text), cases[i].limit, expected,
                     strlen(cases[i].draft));
        ngrams_free(&ngrams);
    }
}

/* A copy goes on behind tokens that were put in the place of others, put in, or left out. */
static void test_ngrams_edits(void **state)
{
    (void)state;
    static const struct {
        const char *copy;
        size_t n; /* of it, before the draft */
        const char *draft;
    } cases[] = {
        {"ABCabcXefgh", 7, "efghi"},    {"ABCabcXefgh", 8, "fghij"},
        {"ABCabcXYfgh", 8, "fghij"},    {"ABCabcXdefgh", 7, "efghi"},
        {"ABCabcXdefgh", 8, "efghi"},   {"ABCabcXYZdefgh", 10, "efghi"},
        {"ABCabcfghij", 7, "ghijk"},    {"ABCabcfghij", 8, "hijkl"},
        {"ABCabcdefXhij", 10, "hijkl"}, {"ABCabcUVWXYZ", 10, "hijkl"},
        {"ABCabcUVWXYZ", 11, ""},       {"abcdeXghi", 6, ""},
    };
    for (size_t i = 0; i < ARRAY_COUNT(cases); i++) {
        struct ngrams ngrams = {0};
        struct draft draft;
        int32_t expected[5];
        size_t begin = write_text("ABCabcdefghijklmnop.");
        for (size_t k = 0; k < cases[i].n; k++) { /* as it is called, after every token */
            text[begin + k] = cases[i].copy[k];
            assert_true(ngrams_update(&ngrams, text, begin + k + 1));
            ngrams_propose(&ngrams, text, 5, &draft);
        }
        for (size_t k = 0; k < strlen(cases[i].draft); k++)
            expected[k] = cases[i].draft[k];
        expect_draft(&ngrams, begin + cases[i].n, 5, expected, strlen(cases[i].draft));
        ngrams_free(&ngrams);
    }
}

/* A long text, token by token, against a plain search; the index grows on the way. */
static void test_ngrams_long_text(void **state)
{
    (void)state;
    struct ngrams ngrams = {0};
    struct draft draft;
    size_t n_found = 0;
    for (size_t i = 0; i < N_TEXT; i++)
        text[i] = (int32_t)(rng_u64(1, i, 0) % 12);
    for (size_t n = 1; n <= N_TEXT; n++) {
        assert_true(ngrams_update(&ngrams, text, n));
        ngrams_propose(&ngrams, text, 1, &draft);
        bool matches = draft.count > 0 && draft.classes[0] != AFTER_EDIT;
        bool found = false; /* has this token followed these three before? */
        for (size_t i = 3; i < n && matches && !found; i++)
            found = text[i] == draft.tokens[0] &&
                    memcmp(text + i - 3, text + n - 3, 3 * sizeof *text) == 0;
        assert_true(found == matches);
        n_found += found;
    }
    assert_true(n_found > N_TEXT / 2);
    ngrams_forget(&ngrams);
    expect_draft(&ngrams, write_text("abcdefgh"), 9, NULL, 0);
    ngrams_free(&ngrams);
}

/* A phrase that occurs more often than is looked at does not end a long match. */
static void test_ngrams_follow_match(void **state)
{
    (void)state;
    struct ngrams ngrams = {0};
    size_t n = 0;
    static const int32_t passage[] = {50, 51, 52, 1, 2, 3, 60, 61};
    for (size_t i = 0; i < ARRAY_COUNT(passage); i++)
        text[n++] = passage[i];
    for (int i = 0; i < 100; i++)
        for (int32_t token = 1; token <= 4; token++)
            text[n++] = token == 4 ? 100 + i : token;
    for (size_t i = 0; i < 6; i++)
        text[n++] = passage[i];
    struct draft draft;
    assert_true(ngrams_update(&ngrams, text, n - 3));
    ngrams_propose(&ngrams, text, 1, &draft); /* as it is called, after every token */
    expect_draft(&ngrams, n, 2, passage + 6, 2);
    ngrams_free(&ngrams);
}

/* ---- What pays ------------------------------------------------------------------------------- */

static struct draft draft_of_class(uint8_t class, size_t n)
{
    struct draft draft = {.count = n};
    memset(draft.classes, class, sizeof draft.classes);
    return draft;
}

static void test_pay_length(void **state)
{
    (void)state;
    struct speculate_pay pay = speculate_pay_begin();
    struct draft sure = draft_of_class(SURE, SPECULATE_MAX),
                 unsure = draft_of_class(UNSURE, SPECULATE_MAX);
    assert_int_equal(speculate_pay_length(&pay, &sure), 0); /* nothing is measured yet */
    speculate_pay_step(&pay, 1, 100);
    size_t first = speculate_pay_length(&pay, &sure);
    assert_true(first > 0 && first < SPECULATE_MAX); /* a cautious try */
    assert_int_equal(speculate_pay_length(&pay, &unsure), 0);

    /* Steps that cost hardly more pay, once drafts have won something; those that cost as much as
     * one by one do not. */
    speculate_pay_step(&pay, 32, 140);
    speculate_pay_settle(&pay, 20, 140);
    assert_int_equal(speculate_pay_length(&pay, &sure), SPECULATE_MAX);
    assert_true(speculate_pay_length(&pay, &unsure) < SPECULATE_MAX / 2);
    struct speculate_pay dear = speculate_pay_begin();
    for (size_t rows = 1; rows <= SPECULATE_MAX + 1; rows++)
        speculate_pay_step(&dear, rows, 100 * (double)rows);
    assert_int_equal(speculate_pay_length(&dear, &sure), 0);

    /* What is said to be sure and never is, and what is always right. */
    for (int i = 0; i < 20; i++) {
        speculate_pay_token(&pay, SURE, false);
        speculate_pay_token(&pay, UNSURE, true);
    }
    assert_true(speculate_pay_length(&pay, &sure) < 3);
    assert_true(speculate_pay_length(&pay, &unsure) > SPECULATE_MAX / 2);
}

/* Drafts that lose end, and come back as the text grows without them. */
static void test_pay_balance(void **state)
{
    (void)state;
    struct speculate_pay pay = speculate_pay_begin();
    struct draft sure = draft_of_class(SURE, 8);
    speculate_pay_step(&pay, 1, 100);
    for (size_t rows = 2; rows <= 9; rows++)
        speculate_pay_step(&pay, rows, 160);
    double lost = 0;
    size_t n_tokens = 0;
    for (; n_tokens < 1000; n_tokens++) {
        size_t k = speculate_pay_length(&pay, &sure);
        double ns = k > 0 ? 160 : 100;
        lost += ns - 100;
        speculate_pay_settle(&pay, 1, ns); /* they are always wrong, whatever was believed */
    }
    assert_true(lost > 0 && lost <= 0.01 * 100 * 1000 + 50);
}

/* A model's drafts cost time by themselves. */
static void test_pay_ahead(void **state)
{
    (void)state;
    struct speculate_pay pay = speculate_pay_begin();
    struct draft none = {.count = 0};
    speculate_pay_step(&pay, 1, 100);
    speculate_pay_step(&pay, 9, 130);
    assert_true(speculate_pay_ahead(&pay, &none, 8, 5, 0) > 0);
    assert_int_equal(speculate_pay_ahead(&pay, &none, 8, 90, 0), 0);
    assert_int_equal(speculate_pay_ahead(&pay, &none, 8, 5, 200), 0);
    for (int i = 0; i < 30; i++)
        speculate_pay_token(&pay, SPECULATE_NGRAM_CLASSES, false);
    assert_int_equal(speculate_pay_ahead(&pay, &none, 8, 5, 0), 0);
    for (int i = 0; i < 200; i++)
        speculate_pay_fade(&pay);
    assert_true(speculate_pay_ahead(&pay, &none, 8, 5, 0) > 0);
}

/* ---- The same text --------------------------------------------------------------------------- */

struct answer {
    int32_t tokens[N_CTX];
    size_t n;
    enum status end;
    struct buffer text;
};

static const struct sampling samplings[] = {
    {.top_p = 1, .typical_p = 1, .repeat_penalty = 1, .dry_base = 1.75f},
    {.temperature = 1, .top_p = 1, .typical_p = 1, .repeat_penalty = 1, .dry_base = 2, .seed = 1},
    {.temperature = 1, .top_p = 1, .typical_p = 1, .repeat_penalty = 1, .dry_base = 2, .seed = 2},
    {.temperature = 0.3f,
     .top_k = 5,
     .top_p = 0.9f,
     .typical_p = 1,
     .repeat_penalty = 1,
     .dry_base = 2,
     .seed = 3},
    {.temperature = 0.5f,
     .top_p = 1,
     .typical_p = 0.9f,
     .repeat_last_n = 20,
     .repeat_penalty = 1.2f,
     .presence_penalty = 0.2f,
     .frequency_penalty = 0.1f,
     .dry_multiplier = 0.5f,
     .dry_base = 1.5f,
     .dry_allowed_length = 2,
     .xtc_probability = 0.5f,
     .xtc_threshold = 0.1f,
     .seed = 4},
};

static int32_t prompt[N_CTX];

/* Random tokens, or a few over and over. */
static void write_prompt(bool repeats)
{
    for (size_t i = 0; i < N_CTX; i++)
        prompt[i] = (int32_t)(rng_u64(3, repeats ? i % 11 : i, 0) % TINY_VOCAB);
}

static void begin_within(struct session *session, const int32_t *tokens, size_t n,
                         const struct sampling *sampling, struct grammar *grammar)
{
    struct error error = {0};
    struct session_prompt asked = {
        .tokens = tokens, .n_tokens = n, .sampling = sampling, .grammar = grammar};
    if (session_begin(session, &asked, &error) != STATUS_OK)
        fail_msg("%s", error.text);
}

static void begin(struct session *session, const int32_t *tokens, size_t n,
                  const struct sampling *sampling)
{
    begin_within(session, tokens, n, sampling, NULL);
}

/* At most limit tokens more. */
static void answer(struct session *session, size_t limit, struct answer *out)
{
    struct error error = {0};
    *out = (struct answer){.end = STATUS_OK};
    while (out->n < limit && out->end == STATUS_OK) {
        out->end = session_next(session, &out->tokens[out->n], &out->text, &error);
        out->n += out->end == STATUS_OK;
    }
    session_finish(session, &out->text);
}

static void expect_same(struct answer *expected, struct answer *found)
{
    assert_int_equal(found->n, expected->n);
    assert_int_equal(found->end, expected->end);
    assert_memory_equal(found->tokens, expected->tokens, found->n * sizeof *found->tokens);
    assert_int_equal(found->text.size, expected->text.size);
    assert_memory_equal(found->text.data, expected->text.data, found->text.size);
    buffer_free(&found->text);
}

static void speculate(struct session *session, enum session_drafts drafts, struct engine *draft)
{
    struct error error = {0};
    struct session_speculation options = {.drafts = drafts, .draft = draft};
    if (session_speculate(session, &options, &error) != STATUS_OK)
        fail_msg("%s", error.text);
    session_speculation(session)->always = true;
}

/* Drafts out of a known answer, of which some tokens are made wrong. */
struct replay {
    const struct answer *answer;
    size_t n_prompt;
    int wrong_of_4;
};

static void replay(void *context, const int32_t *tokens, size_t n, size_t limit, struct draft *out)
{
    const struct replay *known = context;
    (void)tokens;
    out->count = 0;
    for (size_t at = n - known->n_prompt; at < known->answer->n && out->count < limit; at++) {
        bool wrong = (int)(rng_u64(7, at, 0) % 4) < known->wrong_of_4;
        out->tokens[out->count] = (known->answer->tokens[at] + wrong) % TINY_VOCAB;
        out->classes[out->count++] = UNSURE;
    }
}

static void test_speculate_same_text(void **state)
{
    (void)state;
    struct tiny_engine plain, drafting;
    struct answer expected, found;
    tiny_engine_open(&plain, N_CTX, 2);
    tiny_engine_open(&drafting, N_CTX, 2);
    size_t n_accepted = 0;
    for (size_t i = 0; i < 2 * ARRAY_COUNT(samplings); i++) {
        const struct sampling *sampling = &samplings[i / 2];
        write_prompt(i % 2 == 1);
        begin(plain.session, prompt, N_PROMPT, sampling);
        answer(plain.session, N_ANSWER, &expected);

        speculate(drafting.session, SESSION_DRAFTS_NGRAM, NULL);
        begin(drafting.session, prompt, N_PROMPT, sampling);
        answer(drafting.session, N_ANSWER, &found);
        expect_same(&expected, &found);
        n_accepted += session_drafted(drafting.session).accepted;

        for (int wrong_of_4 = 0; wrong_of_4 <= 4; wrong_of_4 += test_every()) {
            struct replay known = {&expected, N_PROMPT, wrong_of_4};
            session_speculation(drafting.session)->propose = replay;
            session_speculation(drafting.session)->context = &known;
            begin(drafting.session, prompt, N_PROMPT, sampling);
            answer(drafting.session, N_ANSWER, &found);
            expect_same(&expected, &found);
            struct session_draft_counts counts = session_drafted(drafting.session);
            assert_true(counts.drafted > 0);
            assert_true(wrong_of_4 > 0 || counts.accepted == counts.drafted);
            assert_true(wrong_of_4 < 4 || counts.accepted == 0);
        }
        buffer_free(&expected.text);
    }
    assert_true(n_accepted > 0);
    tiny_engine_close(&plain);
    tiny_engine_close(&drafting);
}

/* Under a grammar, which forbids tokens of the drafts, too; and where it lets no text go on. */
static void test_speculate_grammar(void **state)
{
    (void)state;
    static const char *const grammars[] = {
        "root ::= item+ \".\"{9}\nitem ::= \"AB\" [0-9]{1,3} \",\" | \"(\" item* \")\" | [^A]",
        "root ::= \"[\" [0-9 ,]* \"]\"",
        "root ::= [A-Z]{30} \"12\" [0-9]{20}",
    };
    struct tiny_engine plain, drafting;
    struct answer expected, found;
    struct grammar_cache *cache;
    struct error error;
    tiny_engine_open(&plain, N_CTX, 2);
    tiny_engine_open(&drafting, N_CTX, 2);
    speculate(drafting.session, SESSION_DRAFTS_NGRAM, NULL);
    assert_int_equal(grammar_cache_open(&cache, plain.engine.tokenizer, TINY_VOCAB, &error),
                     STATUS_OK);
    size_t n_accepted = 0, n_ended = 0;
    for (size_t i = 0; i < ARRAY_COUNT(grammars) * ARRAY_COUNT(samplings); i++) {
        const struct sampling *sampling = &samplings[i % ARRAY_COUNT(samplings)];
        const struct grammar_spec spec = {.gbnf = view_of(grammars[i / ARRAY_COUNT(samplings)])};
        struct grammar *grammar;
        if (grammar_cache_get(cache, &spec, &grammar, &error) != STATUS_OK)
            fail_msg("%s", error.text);
        write_prompt(true);
        begin_within(plain.session, prompt, N_PROMPT, sampling, grammar);
        answer(plain.session, N_ANSWER, &expected);
        n_ended += expected.end != STATUS_OK;
        /* -1: drafts of its own */
        for (int wrong_of_4 = -1; wrong_of_4 <= 4; wrong_of_4 += test_every()) {
            struct replay known = {&expected, N_PROMPT, wrong_of_4};
            session_speculation(drafting.session)->propose = wrong_of_4 < 0 ? NULL : replay;
            session_speculation(drafting.session)->context = &known;
            begin_within(drafting.session, prompt, N_PROMPT, sampling, grammar);
            answer(drafting.session, N_ANSWER, &found);
            expect_same(&expected, &found);
            n_accepted += wrong_of_4 < 0 ? session_drafted(drafting.session).accepted : 0;
        }
        buffer_free(&expected.text);
        grammar_release(grammar);
    }
    assert_true(n_accepted > 0 && n_ended > 0);
    tiny_engine_close(&drafting);
    session_close(plain.session); /* it may hold a grammar */
    plain.session = NULL;
    grammar_cache_close(cache);
    tiny_engine_close(&plain);
}

/* By itself, deciding by the clock what pays. */
static void test_speculate_adaptive(void **state)
{
    (void)state;
    struct tiny_engine plain, drafting;
    struct answer expected, found;
    tiny_engine_open(&plain, N_CTX, 2);
    tiny_engine_open(&drafting, N_CTX, 2);
    speculate(drafting.session, SESSION_DRAFTS_AUTO, NULL);
    session_speculation(drafting.session)->always = false;
    for (size_t i = 0; i < 2 * ARRAY_COUNT(samplings); i++) {
        write_prompt(i % 2 == 1);
        begin(plain.session, prompt, N_PROMPT, &samplings[i / 2]);
        answer(plain.session, N_ANSWER, &expected);
        begin(drafting.session, prompt, N_PROMPT, &samplings[i / 2]);
        answer(drafting.session, N_ANSWER, &found);
        expect_same(&expected, &found);
        buffer_free(&expected.text);
    }
    tiny_engine_close(&plain);
    tiny_engine_close(&drafting);
}

/* To the last token of the context, and none beyond. */
static void test_speculate_full_context(void **state)
{
    (void)state;
    struct tiny_engine plain, drafting;
    struct answer expected, found;
    tiny_engine_open(&plain, N_CTX, 2);
    tiny_engine_open(&drafting, N_CTX, 2);
    speculate(drafting.session, SESSION_DRAFTS_NGRAM, NULL);
    write_prompt(true);
    for (size_t n = N_CTX - 40; n < N_CTX; n += 13) {
        begin(plain.session, prompt, n, &samplings[0]);
        answer(plain.session, N_CTX, &expected);
        assert_int_equal(expected.end, STATUS_LIMIT);
        struct replay known = {&expected, n, 0};
        session_speculation(drafting.session)->propose = replay;
        session_speculation(drafting.session)->context = &known;
        begin(drafting.session, prompt, n, &samplings[0]);
        answer(drafting.session, N_CTX, &found);
        expect_same(&expected, &found);
        buffer_free(&expected.text);
    }
    tiny_engine_close(&plain);
    tiny_engine_close(&drafting);
}

/* An answer that stops within a draft leaves no trace of its rest, in the cache or elsewhere. */
static void test_speculate_stop_within_draft(void **state)
{
    (void)state;
    struct tiny_engine plain, drafting;
    struct answer expected, found, rest;
    tiny_engine_open(&plain, N_CTX, 2);
    tiny_engine_open(&drafting, N_CTX, 2);
    speculate(drafting.session, SESSION_DRAFTS_NGRAM, NULL);
    write_prompt(false);
    for (size_t stop = 1; stop < 40; stop += 3) {
        begin(plain.session, prompt, N_PROMPT, &samplings[1]);
        answer(plain.session, N_ANSWER, &expected);
        struct replay known = {&expected, N_PROMPT, (int)(stop % 2)};
        session_speculation(drafting.session)->propose = replay;
        session_speculation(drafting.session)->context = &known;
        begin(drafting.session, prompt, N_PROMPT, &samplings[1]);
        answer(drafting.session, stop, &found);
        assert_memory_equal(found.tokens, expected.tokens, stop * sizeof *found.tokens);

        /* The answer and two more tokens are the next prompt. */
        int32_t next[N_CTX];
        memcpy(next, prompt, N_PROMPT * sizeof *next);
        memcpy(next + N_PROMPT, found.tokens, stop * sizeof *next);
        next[N_PROMPT + stop] = 5;
        next[N_PROMPT + stop + 1] = 6;
        buffer_free(&expected.text);
        buffer_free(&found.text);
        begin(plain.session, next, N_PROMPT + stop + 2, &samplings[2]);
        answer(plain.session, 20, &rest);
        session_speculation(drafting.session)->propose = NULL;
        begin(drafting.session, next, N_PROMPT + stop + 2, &samplings[2]);
        assert_true(session_reused(drafting.session) >= N_PROMPT + stop - 1);
        answer(drafting.session, 20, &found);
        expect_same(&rest, &found);
        buffer_free(&rest.text);
    }
    tiny_engine_close(&plain);
    tiny_engine_close(&drafting);
}

/* Where another session holds the rest of the KV cache, there is no room for drafts. */
static void test_speculate_shared_cache(void **state)
{
    (void)state;
    struct tiny_engine plain, drafting;
    struct session *other;
    struct error error = {0};
    struct answer expected, found;
    tiny_engine_open(&plain, N_CTX, 2);
    tiny_engine_open(&drafting, N_CTX, 2);
    assert_int_equal(session_open(&other, &drafting.engine, &error), STATUS_OK);
    speculate(drafting.session, SESSION_DRAFTS_NGRAM, NULL);
    write_prompt(true);
    begin(other, prompt, 20, &samplings[0]); /* one page; the other is left */
    size_t n = MODEL_KV_PAGE_TOKENS - 10;
    begin(plain.session, prompt, n, &samplings[0]);
    answer(plain.session, 11, &expected);
    struct replay known = {&expected, n, 0};
    session_speculation(drafting.session)->propose = replay;
    session_speculation(drafting.session)->context = &known;
    begin(drafting.session, prompt, n, &samplings[0]);
    answer(drafting.session, 11, &found);
    expect_same(&expected, &found);
    buffer_free(&expected.text);
    session_close(other);
    tiny_engine_close(&plain);
    tiny_engine_close(&drafting);
}

/* ---- Drafts by a model ----------------------------------------------------------------------- */

static void test_draft_model_same_text(void **state)
{
    (void)state;
    struct tiny_engine plain, drafting, model;
    struct answer expected, found;
    for (uint32_t n_heads = 2; n_heads <= 4; n_heads += 2) {
        tiny_engine_open(&plain, N_CTX, 2);
        tiny_engine_open(&drafting, N_CTX, 2);
        tiny_engine_open(&model, n_heads == 2 ? N_CTX : N_PROMPT + 40, n_heads);
        speculate(drafting.session, SESSION_DRAFTS_MODEL, &model.engine);
        for (size_t i = 0; i < ARRAY_COUNT(samplings); i++) {
            write_prompt(i % 2 == 1);
            begin(plain.session, prompt, N_PROMPT, &samplings[i]);
            answer(plain.session, N_ANSWER, &expected);
            begin(drafting.session, prompt, N_PROMPT, &samplings[i]);
            answer(drafting.session, N_ANSWER, &found);
            expect_same(&expected, &found);
            struct session_draft_counts counts = session_drafted(drafting.session);
            assert_true(counts.drafted > 0 && counts.accepted <= counts.drafted);
            if (n_heads == 2 && i == 0) /* greedily the same model is right, to where it stops */
                assert_true(counts.drafted - counts.accepted < SPECULATE_MAX);
            buffer_free(&expected.text);
        }
        /* Deciding by itself, and along with n-grams. */
        speculate(drafting.session, SESSION_DRAFTS_AUTO, &model.engine);
        session_speculation(drafting.session)->always = false;
        begin(plain.session, prompt, N_PROMPT, &samplings[0]);
        answer(plain.session, N_ANSWER, &expected);
        begin(drafting.session, prompt, N_PROMPT, &samplings[0]);
        answer(drafting.session, N_ANSWER, &found);
        expect_same(&expected, &found);
        buffer_free(&expected.text);
        tiny_engine_close(&plain);
        tiny_engine_close(&drafting);
        tiny_engine_close(&model);
    }
}

static enum status open_with(struct tiny_engine *target, struct tiny_engine *draft,
                             struct error *error)
{
    struct session_speculation options = {.drafts = SESSION_DRAFTS_MODEL, .draft = &draft->engine};
    tokenizer_close(draft->engine.tokenizer);
    assert_int_equal(tokenizer_open(&draft->engine.tokenizer, &draft->vocabulary.config, error),
                     STATUS_OK);
    return session_speculate(target->session, &options, error);
}

static void test_draft_model_vocabulary(void **state)
{
    (void)state;
    struct tiny_engine target, draft;
    struct error error = {0};
    tiny_engine_open(&target, N_CTX, 2);
    tiny_engine_open(&draft, N_CTX, 2);
    assert_int_equal(open_with(&target, &draft, &error), STATUS_OK);

    struct small_vocabulary *vocabulary = &draft.vocabulary;
    size_t last = vocabulary->config.n_tokens;
    small_add(vocabulary, "[PAD]", TOKEN_UNUSED, 0);
    assert_int_equal(open_with(&target, &draft, &error), STATUS_OK);
    vocabulary->types[last] = TOKEN_NORMAL;
    assert_int_equal(open_with(&target, &draft, &error), STATUS_INVALID);
    assert_non_null(strstr(error.text, "tokens, and the model has"));
    vocabulary->config.n_tokens = last;
    vocabulary->tokens[97] = view_of("other");
    assert_int_equal(open_with(&target, &draft, &error), STATUS_INVALID);
    assert_non_null(strstr(error.text, "token 97 is 'other' there and 'a' in the model"));
    /* The session goes on without. */
    struct answer found;
    begin(target.session, prompt, N_PROMPT, &samplings[0]);
    answer(target.session, 5, &found);
    assert_int_equal(found.n, 5);
    buffer_free(&found.text);
    struct session_speculation options = {.drafts = SESSION_DRAFTS_MODEL};
    assert_int_equal(session_speculate(target.session, &options, &error), STATUS_INVALID);
    tiny_engine_close(&target);
    tiny_engine_close(&draft);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ngrams_propose),
        cmocka_unit_test(test_ngrams_edits),
        cmocka_unit_test(test_ngrams_long_text),
        cmocka_unit_test(test_ngrams_follow_match),
        cmocka_unit_test(test_pay_length),
        cmocka_unit_test(test_pay_balance),
        cmocka_unit_test(test_pay_ahead),
        cmocka_unit_test(test_speculate_same_text),
        cmocka_unit_test(test_speculate_grammar),
        cmocka_unit_test(test_speculate_adaptive),
        cmocka_unit_test(test_speculate_full_context),
        cmocka_unit_test(test_speculate_stop_within_draft),
        cmocka_unit_test(test_speculate_shared_cache),
        cmocka_unit_test(test_draft_model_same_text),
        cmocka_unit_test(test_draft_model_vocabulary),
    };
    return cmocka_run_group_tests_name("speculate", tests, NULL, NULL);
}
