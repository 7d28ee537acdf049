/* Answers that are cut off after any token and go on elsewhere, from the tokens alone: what is told
 * from there on must be what would have been told without the cut, byte for byte. The model is tiny
 * and random; its tokens are bytes, some of them parts of longer characters. */
#include "../support/tokenizer_vocabularies.h"
#include "engine/engine.h"
#include "tiny_model.h"

#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <unistd.h>

#include <cmocka.h>

#define MAX_TOKENS 160
#define MAX_TEXT (4 * MAX_TOKENS)
#define MAX_TOP 4
#define END_TOKEN 'E'

/* ---- Fixture --------------------------------------------------------------------------------- */

struct fixture {
    struct small_vocabulary vocabulary;
    struct engine engine;
    struct scheduler *scheduler;
};

static void swap_tokens(struct small_vocabulary *v, size_t a, size_t b)
{
    struct view token = v->tokens[a];
    float score = v->scores[a];
    int32_t type = v->types[a];
    v->tokens[a] = v->tokens[b];
    v->scores[a] = v->scores[b];
    v->types[a] = v->types[b];
    v->tokens[b] = token;
    v->scores[b] = score;
    v->types[b] = type;
}

/* Bytes: the first 24 tokens are beginnings and ends of longer characters. */
static void take_bytes(struct small_vocabulary *v)
{
    static const uint8_t begins[] = {0xC3, 0xC4, 0xE2, 0xF0};
    small_bytes(v, "gpt-2");
    for (size_t i = 0; i < 24; i++)
        swap_tokens(v, i, i < sizeof begins ? begins[i] : 0x80 + i - sizeof begins);
    v->config.eos = END_TOKEN;
}

/* SentencePiece, whose first token of a text may begin with a space that is dropped. */
static void take_pieces(struct small_vocabulary *v)
{
    small_spm(v);
    for (size_t i = 0; i < 13; i++)
        swap_tokens(v, 3 + i, 259 + i);
    v->config.eos = TOKEN_NONE;
}

static void open_fixture(struct fixture *fixture, bool pieces, uint32_t n_ctx)
{
    struct tiny_gguf gguf = {0};
    struct engine *engine = &fixture->engine;
    struct error error = {0};
    struct model_options options = {.n_ctx = n_ctx, .kv_format = QUANT_F16, .n_threads = 2};
    char path[64];
    memset(fixture, 0, sizeof *fixture);
    tiny_llama_keys(&gguf, 2);
    tiny_llama_tensors(&gguf);
    tiny_write(&gguf, path);
    (pieces ? take_pieces : take_bytes)(&fixture->vocabulary);
    enum status status = weights_open(&engine->weights, path, &error);
    unlink(path);
    if (status == STATUS_OK)
        status = tokenizer_open(&engine->tokenizer, &fixture->vocabulary.config, &error);
    if (status == STATUS_OK)
        status = model_open(&engine->model, engine->weights, &options, &error);
    if (status == STATUS_OK)
        status = grammar_cache_open(&engine->grammars, engine->tokenizer, TINY_VOCAB, &error);
    if (status == STATUS_OK)
        status = scheduler_open(&fixture->scheduler, engine, NULL, &error);
    if (status != STATUS_OK)
        fail_msg("%s", error.text);
}

static void close_fixture(struct fixture *fixture)
{
    scheduler_close(fixture->scheduler);
    grammar_cache_close(fixture->engine.grammars);
    model_close(fixture->engine.model);
    tokenizer_close(fixture->engine.tokenizer);
    weights_close(fixture->engine.weights);
}

/* ---- Answers --------------------------------------------------------------------------------- */

struct told {
    int32_t token;
    size_t text_end; /* of the text until then */
    float logprob;
    struct token_logprob top[MAX_TOP];
    size_t n_top;
};

/* What the events of a request said. mutex guards done; the rest is the engine thread's till then.
 */
struct answered {
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    bool done;

    size_t first; /* index of the first event that is to come */
    bool started;
    struct told told[MAX_TOKENS];
    size_t n_told;
    char text[MAX_TEXT];
    size_t n_text;
    char stop[64];
    enum generation_event_kind kind;
    enum finish_reason reason;
    int32_t end_token;
    struct generation_usage usage;
};

static void on_token(struct answered *answered, const struct generation_event *event)
{
    struct told *told = &answered->told[answered->n_told];
    assert_true(answered->started);
    assert_int_equal(event->index, answered->first + answered->n_told);
    assert_true(answered->n_told < MAX_TOKENS && event->n_top <= MAX_TOP);
    *told = (struct told){.token = event->token,
                          .text_end = answered->n_text,
                          .logprob = event->logprob,
                          .n_top = event->n_top};
    if (event->n_top > 0)
        memcpy(told->top, event->top, event->n_top * sizeof *event->top);
    answered->n_told++;
}

static void on_event(void *context, const struct generation_event *event)
{
    struct answered *answered = context;
    assert_false(answered->done);
    assert_true(event->text.size < MAX_TEXT - answered->n_text);
    memcpy(answered->text + answered->n_text, event->text.size > 0 ? event->text.data : "",
           event->text.size);
    answered->n_text += event->text.size;
    if (event->kind == GENERATION_STARTED) {
        answered->started = true;
        return;
    }
    if (event->kind == GENERATION_TOKEN) {
        on_token(answered, event);
        return;
    }
    answered->kind = event->kind;
    answered->reason = event->reason;
    answered->end_token = event->end_token;
    answered->usage = event->usage;
    if (event->reason == FINISH_STOP)
        snprintf(answered->stop, sizeof answered->stop, "%.*s", (int)event->stop.size,
                 event->stop.data);
    pthread_mutex_lock(&answered->mutex);
    answered->done = true;
    pthread_cond_signal(&answered->changed);
    pthread_mutex_unlock(&answered->mutex);
}

static struct answered *new_answered(size_t first)
{
    struct answered *answered = calloc(1, sizeof *answered);
    assert_non_null(answered);
    answered->first = first;
    pthread_mutex_init(&answered->mutex, NULL);
    pthread_cond_init(&answered->changed, NULL);
    return answered;
}

static void wait_done(struct answered *answered)
{
    pthread_mutex_lock(&answered->mutex);
    while (!answered->done)
        pthread_cond_wait(&answered->changed, &answered->mutex);
    pthread_mutex_unlock(&answered->mutex);
}

static void free_answered(struct answered *answered)
{
    pthread_cond_destroy(&answered->changed);
    pthread_mutex_destroy(&answered->mutex);
    free(answered);
}

/* ---- Cuts ------------------------------------------------------------------------------------ */

/* What is asked; all but the tokens that were drawn. */
struct asked {
    int32_t prompt[MAX_TOKENS];
    size_t n_prompt;
    struct sampling sampling;
    struct grammar *grammar;
    uint32_t max_tokens;
    struct view stops[4];
    size_t n_stops;
    bool ignore_end, strip_space, want_logprobs;
};

static struct asked ask(size_t n_prompt, uint64_t seed)
{
    struct asked asked = {
        .n_prompt = n_prompt, .sampling = SAMPLING_DEFAULTS, .max_tokens = 60, .ignore_end = true};
    asked.sampling.seed = seed;
    for (size_t i = 0; i < n_prompt; i++)
        asked.prompt[i] = (int32_t)(rng_u64(seed, i, 7) % TINY_VOCAB);
    return asked;
}

static struct generation_request *make_request(const struct asked *asked, const int32_t *drawn,
                                               size_t n_drawn)
{
    int32_t tokens[2 * MAX_TOKENS];
    memcpy(tokens, asked->prompt, asked->n_prompt * sizeof *tokens);
    if (n_drawn > 0)
        memcpy(tokens + asked->n_prompt, drawn, n_drawn * sizeof *tokens);
    struct generation_request *request = generation_request_open(tokens, asked->n_prompt + n_drawn);
    assert_non_null(request);
    request->n_drawn = n_drawn;
    request->sampling = asked->sampling;
    request->grammar = asked->grammar;
    request->max_tokens = asked->max_tokens;
    request->stops = asked->stops;
    request->n_stops = asked->n_stops;
    request->ignore_end = asked->ignore_end;
    request->strip_space = asked->strip_space;
    request->want_logprobs = asked->want_logprobs;
    request->n_top_logprobs = asked->want_logprobs ? MAX_TOP : 0;
    return request;
}

static struct answered *begin(struct fixture *fixture, const struct asked *asked,
                              const int32_t *drawn, size_t n_drawn)
{
    struct error error = {0};
    struct answered *answered = new_answered(n_drawn);
    if (scheduler_submit(fixture->scheduler, make_request(asked, drawn, n_drawn), on_event,
                         answered, NULL, &error) != STATUS_OK)
        fail_msg("%s", error.text);
    return answered;
}

/* What came behind a cut, beside what came without it. */
static void compare(const struct answered *whole, const struct answered *rest, size_t cut)
{
    size_t text_begin = cut > 0 ? whole->told[cut - 1].text_end : 0;
    assert_int_equal(rest->kind, GENERATION_FINISHED);
    assert_int_equal(rest->reason, whole->reason);
    assert_int_equal(rest->end_token, whole->end_token);
    assert_string_equal(rest->stop, whole->stop);
    assert_int_equal(rest->usage.n_output, whole->usage.n_output);
    assert_int_equal(rest->usage.n_prompt, whole->usage.n_prompt);
    assert_true(rest->usage.n_cached <= rest->usage.n_prompt);
    assert_int_equal(cut + rest->n_told, whole->n_told);
    assert_int_equal(text_begin + rest->n_text, whole->n_text);
    assert_memory_equal(rest->text, whole->text + text_begin, rest->n_text);
    for (size_t i = 0; i < rest->n_told; i++) {
        const struct told *a = &rest->told[i], *b = &whole->told[cut + i];
        assert_int_equal(a->token, b->token);
        assert_int_equal(text_begin + a->text_end, b->text_end);
        assert_memory_equal(&a->logprob, &b->logprob, sizeof a->logprob);
        assert_int_equal(a->n_top, b->n_top);
        assert_memory_equal(a->top, b->top, sizeof a->top);
    }
}

/* Cuts the answer after each token. Gives it whole. */
static struct answered *cut_everywhere(struct fixture *fixture, const struct asked *asked)
{
    struct answered *whole = begin(fixture, asked, NULL, 0), *rests[MAX_TOKENS + 1];
    int32_t drawn[MAX_TOKENS];
    wait_done(whole);
    assert_int_equal(whole->kind, GENERATION_FINISHED);
    for (size_t i = 0; i < whole->n_told; i++)
        drawn[i] = whole->told[i].token;
    for (size_t cut = 0; cut <= whole->n_told; cut++)
        rests[cut] = begin(fixture, asked, drawn, cut);
    for (size_t cut = 0; cut <= whole->n_told; cut++) {
        wait_done(rests[cut]);
        compare(whole, rests[cut], cut);
        assert_int_equal(rests[cut]->started, cut < whole->n_told || whole->reason == FINISH_END);
        free_answered(rests[cut]);
    }
    return whole;
}

/* Characters of more than one byte that are whole. */
static size_t count_long(const struct answered *answered)
{
    size_t n = 0;
    for (size_t i = 0; i < answered->n_text; i++)
        n += (uint8_t)answered->text[i] >= 0xC0 &&
             strncmp(answered->text + i, "\xef\xbf\xbd", 3) != 0;
    return n;
}

/* Bytes of longer characters are likely. */
static void favour_long(struct asked *asked)
{
    static struct logit_bias biases[24];
    for (int32_t i = 0; i < 24; i++)
        biases[i] = (struct logit_bias){i, i < 4 ? 4.0f : 2.0f};
    asked->sampling.biases = biases;
    asked->sampling.n_biases = ARRAY_COUNT(biases);
}

/* ---- Tests ----------------------------------------------------------------------------------- */

static void test_resume_sampling(void **state)
{
    (void)state;
    struct fixture fixture;
    size_t n_long = 0;
    open_fixture(&fixture, false, 1024);
    for (uint64_t i = 0; i < 6; i++) {
        struct asked asked = ask(i % 2 == 0 ? 20 : 118, i);
        struct sampling *sampling = &asked.sampling;
        if (i > 0)
            favour_long(&asked);
        sampling->temperature = i % 3 == 0 ? 0 : 1;
        sampling->top_k = i == 1 ? 0 : 60;
        sampling->top_p = i == 1 ? 1 : 0.95f;
        sampling->repeat_penalty = i < 2 ? 1 : 1.3f;
        sampling->presence_penalty = i == 4 ? 0.5f : 0;
        sampling->frequency_penalty = i > 3 ? 0.3f : 0;
        sampling->dry_multiplier = i > 2 ? 0.8f : 0;
        sampling->xtc_probability = i == 5 ? 0.5f : 0;
        asked.want_logprobs = i % 2 == 1;
        struct answered *whole = cut_everywhere(&fixture, &asked);
        assert_int_equal(whole->reason, FINISH_LENGTH);
        assert_int_equal(whole->n_told, asked.max_tokens);
        n_long += count_long(whole);
        free_answered(whole);
    }
    assert_true(n_long > 10);
    close_fixture(&fixture);
}

/* The context ends the answer. */
static void test_resume_context(void **state)
{
    (void)state;
    struct fixture fixture;
    struct error error = {0};
    open_fixture(&fixture, false, 128);
    struct asked asked = ask(80, 3);
    asked.max_tokens = 0;
    struct answered *whole = cut_everywhere(&fixture, &asked);
    assert_int_equal(whole->reason, FINISH_LENGTH);
    assert_int_equal(whole->n_told, 48);
    /* One that went on in a larger context is full here. */
    int32_t drawn[60];
    for (size_t i = 0; i < ARRAY_COUNT(drawn); i++)
        drawn[i] = 'A';
    struct answered *full = begin(&fixture, &asked, drawn, 60);
    wait_done(full);
    assert_int_equal(full->reason, FINISH_LENGTH);
    assert_int_equal(full->n_told + full->n_text, 0);
    assert_false(full->started);
    free_answered(full);
    free_answered(whole);
    /* Nothing but drawn tokens. */
    asked.n_prompt = 0;
    assert_int_equal(scheduler_submit(fixture.scheduler, make_request(&asked, drawn, 4), on_event,
                                      NULL, NULL, &error),
                     STATUS_INVALID);
    close_fixture(&fixture);
}

/* A text of the answer from a character on, n characters long, copied with what follows. */
static struct view piece(const struct answered *answered, size_t at, size_t n, const char *end,
                         char out[64])
{
    const char *text = answered->text;
    size_t size = 0;
    while (((uint8_t)text[at] & 0xC0) == 0x80)
        at++;
    while (n > 0) {
        size++;
        n -= ((uint8_t)text[at + size] & 0xC0) != 0x80;
    }
    snprintf(out, 64, "%.*s%s", (int)size, text + at, end);
    return view_of(out);
}

/* A stop text appears; others only begin, and hold text back. */
static void test_resume_stops(void **state)
{
    (void)state;
    struct fixture fixture;
    size_t n_stopped = 0, n_held = 0;
    open_fixture(&fixture, false, 512);
    for (uint64_t i = 0; i < 8; i++) {
        char pieces[4][64];
        struct asked asked = ask(10 + i, 40 + i);
        favour_long(&asked);
        asked.sampling.temperature = 1;
        struct answered *plain = begin(&fixture, &asked, NULL, 0);
        wait_done(plain);
        assert_true(plain->n_text > 40);
        asked.stops[0] = piece(plain, 12, 3, "~", pieces[0]);
        asked.stops[1] = piece(plain, plain->n_text - 4, 1, "~~", pieces[1]);
        asked.stops[2] = piece(plain, 25, 2, "~", pieces[2]);
        asked.stops[3] = piece(plain, 30 + i, 1 + i % 3, "", pieces[3]);
        asked.n_stops = i % 4 == 0 ? 3 : 4;
        struct answered *whole = cut_everywhere(&fixture, &asked);
        n_stopped += whole->reason == FINISH_STOP;
        for (size_t t = 0; t + 1 < whole->n_told; t++)
            n_held += whole->told[t].text_end == (t > 0 ? whole->told[t - 1].text_end : 0);
        free_answered(whole);
        free_answered(plain);
    }
    assert_true(n_stopped >= 4 && n_stopped < 8);
    assert_true(n_held > 20);
    close_fixture(&fixture);
}

static void test_resume_grammar(void **state)
{
    (void)state;
    static const char *const grammars[] = {
        "root ::= item+ \".\"{9}\nitem ::= \"AB\" [0-9]{1,3} \",\" | \"(\" item* \")\" | [^A]",
        "root ::= [A-D]{30} [0-9]{5}", /* ends: the end token alone is possible then */
    };
    struct fixture fixture;
    struct error error = {0};
    open_fixture(&fixture, false, 512);
    for (size_t i = 0; i < 2 * ARRAY_COUNT(grammars); i++) {
        struct asked asked = ask(20, 60 + i);
        const struct grammar_spec spec = {.gbnf = view_of(grammars[i / 2])};
        asked.sampling.temperature = i % 2 == 0 ? 0 : 1;
        asked.ignore_end = false;
        if (grammar_cache_get(fixture.engine.grammars, &spec, &asked.grammar, &error) != STATUS_OK)
            fail_msg("%s", error.text);
        struct answered *whole = cut_everywhere(&fixture, &asked);
        if (i / 2 == 1)
            assert_int_equal(whole->reason, FINISH_END);
        free_answered(whole);
        grammar_release(asked.grammar);
    }
    close_fixture(&fixture);
}

static void test_resume_end(void **state)
{
    (void)state;
    struct fixture fixture;
    struct error error = {0};
    size_t n_ended = 0;
    open_fixture(&fixture, false, 512);
    for (uint64_t i = 0; i < 4; i++) {
        static const struct logit_bias bias = {END_TOKEN, 3};
        struct asked asked = ask(20, 80 + i);
        asked.sampling.temperature = 1;
        asked.sampling.biases = &bias;
        asked.sampling.n_biases = 1;
        asked.ignore_end = false;
        struct answered *whole = cut_everywhere(&fixture, &asked);
        n_ended += whole->reason == FINISH_END;
        free_answered(whole);
    }
    assert_true(n_ended > 2);
    /* The end token is among those that were drawn; then something behind it. */
    struct asked asked = ask(20, 90);
    static const int32_t drawn[] = {'A', END_TOKEN, 'B'};
    asked.ignore_end = false;
    struct answered *over = begin(&fixture, &asked, drawn, 2);
    wait_done(over);
    assert_int_equal(over->reason, FINISH_END);
    assert_int_equal(over->end_token, END_TOKEN);
    assert_int_equal(over->usage.n_output, 2);
    assert_int_equal(over->n_told + over->n_text, 0);
    free_answered(over);
    assert_int_equal(scheduler_submit(fixture.scheduler, make_request(&asked, drawn, 3), on_event,
                                      NULL, NULL, &error),
                     STATUS_INVALID);
    assert_non_null(strstr(error.text, "over before the last of the 3 tokens"));
    close_fixture(&fixture);
}

static void test_resume_space(void **state)
{
    (void)state;
    struct fixture fixture;
    open_fixture(&fixture, true, 512);
    for (uint64_t i = 0; i < 4; i++) {
        struct asked asked = ask(20, 100 + i);
        static struct logit_bias biases[13];
        for (int32_t t = 0; t < 13; t++)
            biases[t] = (struct logit_bias){3 + t, 8};
        asked.sampling.temperature = 1;
        asked.sampling.biases = biases;
        asked.sampling.n_biases = ARRAY_COUNT(biases);
        asked.strip_space = i % 2 == 1;
        free_answered(cut_everywhere(&fixture, &asked));
    }
    close_fixture(&fixture);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_resume_sampling), cmocka_unit_test(test_resume_context),
        cmocka_unit_test(test_resume_stops),    cmocka_unit_test(test_resume_grammar),
        cmocka_unit_test(test_resume_end),      cmocka_unit_test(test_resume_space),
    };
    return cmocka_run_group_tests_name("resume", tests, NULL, NULL);
}
