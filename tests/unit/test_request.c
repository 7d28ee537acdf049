/* Requests and events that go to another machine as JSON, and what of them is refused. */
#include "../support/tokenizer_vocabularies.h"
#include "engine/engine.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>

#include <cmocka.h>

/* What another machine reads of a value: the text, with the strictest reader. */
static json_t *carried(json_t *json)
{
    assert_non_null(json);
    char *text = json_dumps(json, JSON_COMPACT);
    assert_non_null(text);
    json_t *read = json_loads(text, JSON_REJECT_DUPLICATES, NULL);
    assert_non_null(read);
    free(text);
    json_decref(json);
    return read;
}

/* ---- Requests -------------------------------------------------------------------------------- */

static float any_float(uint64_t seed, uint64_t i)
{
    for (uint32_t draw = 0;; draw++) {
        uint32_t bits = (uint32_t)rng_u64(seed, i, draw);
        float value;
        memcpy(&value, &bits, sizeof value);
        if (isfinite(value))
            return value;
    }
}

/* All numbers have all their bits. */
static struct generation_request *any_request(uint64_t seed)
{
    int32_t tokens[50];
    for (size_t i = 0; i < ARRAY_COUNT(tokens); i++)
        tokens[i] = (int32_t)(rng_u64(seed, i, 1) & INT32_MAX);
    struct generation_request *request = generation_request_open(tokens, ARRAY_COUNT(tokens));
    assert_non_null(request);
    struct logit_bias *biases = arena_array(request->arena, 3, sizeof *biases);
    struct view *stops = arena_array(request->arena, 4, sizeof *stops);
    assert_true(biases != NULL && stops != NULL);
    for (size_t i = 0; i < 3; i++)
        biases[i] = (struct logit_bias){tokens[i], any_float(seed, 20 + i)};
    biases[1].bias = -INFINITY;
    stops[0] = view_of("\xf0\x9f\x98\x80\"\\\n");
    stops[1] = (struct view){"\0a\0\0b\0", 6};
    stops[2] = (struct view){"\0", 1};
    stops[3] = view_of("x");
    request->sampling = (struct sampling){.temperature = any_float(seed, 1),
                                          .top_k = (uint32_t)rng_u64(seed, 2, 0),
                                          .top_p = any_float(seed, 3),
                                          .min_p = any_float(seed, 4),
                                          .typical_p = any_float(seed, 5),
                                          .repeat_last_n = UINT32_MAX,
                                          .repeat_penalty = any_float(seed, 6),
                                          .presence_penalty = any_float(seed, 7),
                                          .frequency_penalty = any_float(seed, 8),
                                          .dry_multiplier = any_float(seed, 9),
                                          .dry_base = any_float(seed, 10),
                                          .dry_allowed_length = (uint32_t)rng_u64(seed, 11, 0),
                                          .dry_last_n = (uint32_t)rng_u64(seed, 12, 0),
                                          .xtc_probability = any_float(seed, 13),
                                          .xtc_threshold = any_float(seed, 14),
                                          .seed = rng_u64(seed, 15, 0),
                                          .biases = biases,
                                          .n_biases = 3};
    request->n_drawn = seed % 50;
    request->max_tokens = (uint32_t)rng_u64(seed, 16, 0);
    request->stops = stops;
    request->n_stops = seed % 5;
    request->ignore_end = seed & 1;
    request->strip_space = seed & 2;
    request->show_control = seed & 4;
    request->want_logprobs = seed & 8;
    request->n_top_logprobs = seed % 65;
    request->client = rng_u64(seed, 17, 0);
    if (seed % 3 == 0)
        request->grammar_asked = json_pack("{s:{s:f}, s:b}", "schema", "minimum", 0.1, "chat", 1);
    return request;
}

static void compare(const struct generation_request *a, const struct generation_request *b)
{
#define SAME(field) assert_memory_equal(&a->field, &b->field, sizeof a->field)
    SAME(n_tokens), SAME(n_drawn), SAME(max_tokens), SAME(n_stops), SAME(ignore_end);
    SAME(strip_space), SAME(show_control), SAME(want_logprobs), SAME(n_top_logprobs), SAME(client);
    SAME(sampling.temperature), SAME(sampling.top_k), SAME(sampling.top_p), SAME(sampling.min_p);
    SAME(sampling.typical_p), SAME(sampling.repeat_last_n), SAME(sampling.repeat_penalty);
    SAME(sampling.presence_penalty), SAME(sampling.frequency_penalty), SAME(sampling.dry_base);
    SAME(sampling.dry_multiplier), SAME(sampling.dry_allowed_length), SAME(sampling.dry_last_n);
    SAME(sampling.xtc_probability), SAME(sampling.xtc_threshold), SAME(sampling.seed);
    SAME(sampling.n_biases);
#undef SAME
    assert_memory_equal(a->tokens, b->tokens, a->n_tokens * sizeof *a->tokens);
    assert_memory_equal(a->sampling.biases, b->sampling.biases,
                        a->sampling.n_biases * sizeof *a->sampling.biases);
    for (size_t i = 0; i < a->n_stops; i++)
        assert_true(view_equal(a->stops[i], b->stops[i]));
    assert_true(a->grammar_asked == b->grammar_asked ||
                json_equal(a->grammar_asked, b->grammar_asked));
}

static void test_request_is_carried(void **state)
{
    (void)state;
    for (uint64_t seed = 0; seed < 130; seed++) {
        struct generation_request *request = any_request(seed), *read;
        struct error error = {0};
        json_t *json = carried(generation_request_write(request));
        if (generation_request_read(&read, json, &error) != STATUS_OK)
            fail_msg("%s", error.text);
        compare(request, read);
        json_decref(json);
        generation_request_close(request);
        generation_request_close(read);
    }
}

static void expect_refused(const json_t *json, const char *field)
{
    struct generation_request *request;
    struct error error = {0};
    assert_int_equal(generation_request_read(&request, json, &error), STATUS_INVALID);
    assert_null(request);
    assert_non_null(strstr(error.text, field));
}

/* A copy of the request's JSON in which a member of object ("" is the whole) is another. */
static json_t *changed(const json_t *json, const char *object, const char *name, json_t *value)
{
    json_t *copy = json_deep_copy(json);
    json_t *at = *object != '\0' ? json_object_get(copy, object) : copy;
    assert_int_equal(json_object_set_new(at, name, value), 0);
    return copy;
}

static void test_request_refuses(void **state)
{
    (void)state;
    static const struct {
        const char *object, *name, *value, *told;
    } cases[] = {
        {"", "tokens", "[]", "tokens"},
        {"", "tokens", "[1, -1]", "tokens"},
        {"", "tokens", "[1, 2147483648]", "tokens"},
        {"", "tokens", "[1, \"2\"]", "tokens"},
        {"", "tokens", "7", "tokens"},
        {"", "drawn", "50", "drawn"},
        {"", "drawn", "-1", "drawn"},
        {"", "max_tokens", "4294967296", "max_tokens"},
        {"", "top_logprobs", "65", "top_logprobs"},
        {"", "ignore_end", "1", "ignore_end"},
        {"", "client", "\"0123\"", "client"},
        {"", "client", "\"0123456789ABCDEF\"", "client"},
        {"", "stops", "[\"\"]", "stops"},
        {"", "stops", "[[]]", "stops"},
        {"", "stops", "[[1]]", "stops"},
        {"", "stops", "[7]", "stops"},
        {"", "grammar", "{}", "grammar"},
        {"", "grammar", "\"[1]\"", "grammar"},
        {"", "grammar", "\"{\"", "grammar"},
        {"", "other", "1", "fields"},
        {"", "sampling", "[]", "sampling"},
        {"sampling", "other", "1", "sampling"},
        {"sampling", "temperature", "null", "temperature"},
        {"sampling", "temperature", "1e39", "temperature"},
        {"sampling", "temperature", "\"1\"", "temperature"},
        {"sampling", "top_k", "1.5", "top_k"},
        {"sampling", "top_k", "-1", "top_k"},
        {"sampling", "seed", "5", "seed"},
        {"sampling", "biases", "[[1]]", "biases"},
        {"sampling", "biases", "[[1, \"a\"]]", "biases"},
        {"sampling", "biases", "[[-1, 1]]", "biases"},
        {"sampling", "biases", "{}", "biases"},
    };
    struct generation_request *request = any_request(14);
    struct error error = {0};
    json_t *json = carried(generation_request_write(request));
    for (size_t i = 0; i < ARRAY_COUNT(cases); i++) {
        json_t *value = json_loads(cases[i].value, JSON_DECODE_ANY, NULL);
        json_t *wrong = changed(json, cases[i].object, cases[i].name, value);
        expect_refused(wrong, cases[i].told);
        json_decref(wrong);
    }
    /* Without one of its fields. */
    const char *name;
    json_t *value;
    json_object_foreach(json, name, value)
    {
        json_t *less = json_copy(json);
        json_object_del(less, name);
        expect_refused(less, "fields");
        json_decref(less);
    }
    expect_refused(NULL, "fields");
    /* A stop text that is too long, and as long as it may be. */
    char text[GENERATION_MAX_STOP_BYTES + 2];
    memset(text, 'a', sizeof text);
    json_t *wrong = changed(json, "", "stops", json_pack("[s%]", text, sizeof text - 1));
    expect_refused(wrong, "stops");
    json_decref(wrong);
    wrong = changed(json, "", "stops",
                    json_pack("[[s%, s]]", text, (size_t)GENERATION_MAX_STOP_BYTES - 1, ""));
    struct generation_request *read;
    assert_int_equal(generation_request_read(&read, wrong, &error), STATUS_OK);
    assert_int_equal(read->stops[0].size, GENERATION_MAX_STOP_BYTES);
    generation_request_close(read);
    json_decref(wrong);
    json_decref(json);
    generation_request_close(request);
}

static void test_request_resumes(void **state)
{
    (void)state;
    static const int32_t prompt[] = {1, 2, 3}, first[] = {4}, second[] = {5, 6};
    static const int32_t all[] = {1, 2, 3, 4, 5, 6};
    struct error error = {0};
    struct generation_request *request = generation_request_open(prompt, 3);
    assert_int_equal(generation_request_resume(request, NULL, 0, &error), STATUS_OK);
    assert_int_equal(generation_request_resume(request, first, 1, &error), STATUS_OK);
    assert_int_equal(generation_request_resume(request, second, 2, &error), STATUS_OK);
    assert_int_equal(request->n_tokens, 6);
    assert_int_equal(request->n_drawn, 3);
    assert_memory_equal(request->tokens, all, sizeof all);
    generation_request_close(request);
}

/* ---- Events ---------------------------------------------------------------------------------- */

/* What a callback got last, and how many of each kind. */
struct got {
    size_t n[GENERATION_FAILED + 1];
    struct generation_event event;
    char text[64], stop[64], error[320];
    struct token_logprob top[GENERATION_MAX_TOP_LOGPROBS];
};

static void on_event(void *context, const struct generation_event *event)
{
    struct got *got = context;
    got->n[event->kind]++;
    got->event = *event;
    memcpy(got->text, event->text.size > 0 ? event->text.data : "", event->text.size);
    memcpy(got->stop, event->stop.size > 0 ? event->stop.data : "", event->stop.size);
    if (event->n_top > 0)
        memcpy(got->top, event->top, event->n_top * sizeof *event->top);
    if (event->error != NULL)
        snprintf(got->error, sizeof got->error, "%s", event->error->text);
}

static bool feed_token(struct generation_feed *feed, size_t index, int32_t token, json_t *data)
{
    json_t *read = carried(data);
    bool more = generation_feed_token(feed, index, token, read);
    json_decref(read);
    return more;
}

static void feed_end(struct generation_feed *feed, enum status status, const char *reason,
                     json_t *data)
{
    json_t *read = data != NULL ? carried(data) : NULL;
    generation_feed_end(feed, status, reason, read);
    json_decref(read);
}

static void test_request_events_are_carried(void **state)
{
    (void)state;
    struct got got = {0};
    struct generation_feed feed = {.callback = on_event, .context = &got, .id = 77};
    const struct generation_usage begun = {.n_prompt = 9, .n_cached = 4, .queue_ns = 5};
    static const struct token_logprob top[] = {{5, -0.1f}, {6, -INFINITY}, {7, -1e-30f}};
    assert_true(
        feed_token(&feed, 3, 12,
                   generation_token_write(
                       &(struct generation_event){
                           .logprob = -1.1f, .top = top, .n_top = 3, .text = {"\xc3\xa9\0b", 4}},
                       &begun)));
    assert_int_equal(got.n[GENERATION_STARTED], 1);
    assert_int_equal(got.n[GENERATION_TOKEN], 1);
    assert_int_equal(got.event.id, 77);
    assert_int_equal(got.event.index, 3);
    assert_int_equal(got.event.token, 12);
    assert_true(got.event.logprob == -1.1f);
    assert_int_equal(got.event.n_top, 3);
    assert_memory_equal(got.top, top, sizeof top);
    assert_int_equal(got.event.text.size, 4);
    assert_memory_equal(got.text, "\xc3\xa9\0b", 4);
    assert_int_equal(got.event.usage.n_prompt, 9);
    assert_int_equal(got.event.usage.n_cached, 4);
    /* One without anything is small. */
    json_t *bare = generation_token_write(&(struct generation_event){.index = 4}, NULL);
    assert_int_equal(json_object_size(bare), 0);
    assert_true(feed_token(&feed, 4, 13, bare));
    assert_int_equal(got.event.text.size + got.event.n_top, 0);
    assert_int_equal(got.event.usage.n_output, 5);
    struct generation_event end = {.kind = GENERATION_FINISHED,
                                   .text = {"\0", 1},
                                   .reason = FINISH_STOP,
                                   .end_token = -1,
                                   .stop = view_of("stop"),
                                   .usage = {9, 4, 5, 1, 2, UINT64_MAX}};
    feed_end(&feed, STATUS_OK, NULL, generation_end_write(&end));
    assert_int_equal(got.n[GENERATION_STARTED], 1);
    assert_int_equal(got.event.kind, GENERATION_FINISHED);
    assert_int_equal(got.event.reason, FINISH_STOP);
    assert_int_equal(got.event.end_token, -1);
    assert_string_equal(got.stop, "stop");
    assert_int_equal(got.event.text.size, 1);
    assert_int_equal(got.event.usage.prefill_ns, 2);
    assert_true(got.event.usage.decode_ns == INT64_MAX);
    /* Nothing comes behind the end. */
    assert_false(feed_token(&feed, 5, 1, json_object()));
    feed_end(&feed, STATUS_LOST, "lost", NULL);
    generation_feed_cancel(&feed);
    assert_int_equal(got.n[GENERATION_FINISHED] + got.n[GENERATION_FAILED], 1);
    generation_feed_free(&feed);
}

static void test_request_events_end(void **state)
{
    (void)state;
    struct generation_event end = {.kind = GENERATION_FINISHED, .end_token = 7};
    const enum finish_reason reasons[] = {FINISH_END, FINISH_STOP, FINISH_LENGTH, FINISH_CANCELLED};
    for (size_t i = 0; i < ARRAY_COUNT(reasons); i++) {
        struct got got = {0};
        struct generation_feed feed = {.callback = on_event, .context = &got};
        end.reason = reasons[i];
        feed_end(&feed, STATUS_OK, NULL, generation_end_write(&end));
        assert_int_equal(got.event.reason, reasons[i]);
        assert_int_equal(got.event.end_token, 7);
        assert_int_equal(got.n[GENERATION_STARTED], reasons[i] != FINISH_CANCELLED);
        generation_feed_free(&feed);
    }
    struct got got = {0};
    struct generation_feed feed = {.callback = on_event, .context = &got};
    end = (struct generation_event){.kind = GENERATION_FAILED, .usage = {.n_prompt = 3}};
    feed_end(&feed, STATUS_MEMORY, "it is full", generation_end_write(&end));
    assert_int_equal(got.event.kind, GENERATION_FAILED);
    assert_string_equal(got.error, "it is full");
    assert_int_equal(got.event.usage.n_prompt, 3);
    feed.ended = false;
    feed_end(&feed, STATUS_LOST, NULL, NULL);
    assert_string_equal(got.error, status_text(STATUS_LOST));
    feed.ended = false;
    generation_feed_cancel(&feed);
    assert_int_equal(got.event.reason, FINISH_CANCELLED);
    generation_feed_free(&feed);
}

static void test_request_events_refuse(void **state)
{
    (void)state;
    static const struct {
        bool last;
        const char *text;
    } cases[] = {
        {false, "{\"text\": 1}"},
        {false, "{\"text\": [\"a\", 1]}"},
        {false, "{\"logprob\": \"1\"}"},
        {false, "{\"logprob\": 1e300}"},
        {false, "{\"top\": 1}"},
        {false, "{\"top\": [[1, 2, 3]]}"},
        {false, "{\"top\": [[-1, 2]]}"},
        {false, "{\"usage\": {}}"},
        {true, "{}"},
        {true, "{\"reason\": \"why\", \"end_token\": 1, \"text\": \"\", \"stop\": \"\"}"},
        {true, "{\"reason\": \"end\", \"end_token\": 1, \"text\": \"\", \"stop\": \"\"}"},
    };
    for (size_t i = 0; i < ARRAY_COUNT(cases); i++) {
        struct got got = {0};
        struct generation_feed feed = {.callback = on_event, .context = &got};
        json_t *json = json_loads(cases[i].text, 0, NULL);
        assert_non_null(json);
        if (cases[i].last)
            generation_feed_end(&feed, STATUS_OK, NULL, json);
        else
            assert_false(generation_feed_token(&feed, 0, 1, json));
        assert_int_equal(got.event.kind, GENERATION_FAILED);
        assert_non_null(strstr(got.error, "cannot be read"));
        assert_int_equal(got.n[GENERATION_TOKEN] + got.n[GENERATION_STARTED], 0);
        json_decref(json);
        generation_feed_free(&feed);
    }
    /* More alternatives than there may be. */
    struct got got = {0};
    struct generation_feed feed = {.callback = on_event, .context = &got};
    json_t *top = json_array();
    for (size_t i = 0; i <= GENERATION_MAX_TOP_LOGPROBS; i++)
        json_array_append_new(top, json_pack("[i, f]", 1, -1.0));
    assert_false(feed_token(&feed, 0, 1, json_pack("{s:o}", "top", top)));
    generation_feed_free(&feed);
}

/* ---- Grammars -------------------------------------------------------------------------------- */

static void test_request_grammars(void **state)
{
    (void)state;
    static const struct {
        const char *asked, *fault; /* NULL: none */
    } cases[] = {
        {"{'gbnf': 'root ::= [ab]+', 'chat': true, 'thinking': true}", NULL},
        {"{'gbnf': 'root ::= [ab]+'}", NULL},
        {"{'schema': {'type': 'object'}, 'chat': true}", NULL},
        {"{'schema': true}", NULL},
        {"{'tools': [{'function': {'name': 'f'}}], 'chat': true, 'single_call': true}", NULL},
        {"{'tools': [{'function': {'name': 'f'}}], 'chat': true, 'tool': 'f'}", NULL},
        {"{'tools': [{'function': {'name': 'f'}}], 'chat': true, 'tool': 'g'}", "no tool g"},
        {"{'tools': [{'function': {'name': 'f'}}]}", "chat"},
        {"{'tools': [{'function': {}}], 'chat': true}", "follows one of"},
        {"{'tools': {}, 'chat': true}", "follows one of"},
        {"{'gbnf': 'root ::= ['}", ""},
        {"{'gbnf': 1}", "follows one of"},
        {"{'schema': {'type': 'other'}}", ""},
        {"{'schema': {}, 'gbnf': 'root ::= [a]'}", "follows one of"},
        {"{'schema': {}, 'tool': 1}", "follows one of"},
        {"{}", "follows one of"},
    };
    struct small_vocabulary vocabulary;
    struct engine engine = {.template_source = view_of("<think> <tool_call>")};
    struct error error = {0};
    small_bytes(&vocabulary, "gpt-2");
    assert_int_equal(tokenizer_open(&engine.tokenizer, &vocabulary.config, &error), STATUS_OK);
    assert_int_equal(
        grammar_cache_open(&engine.grammars, engine.tokenizer, vocabulary.config.n_tokens, &error),
        STATUS_OK);
    engine.reply_format = reply_format_of(engine.template_source);
    for (size_t i = 0; i < ARRAY_COUNT(cases); i++) {
        char text[256];
        struct grammar *grammar;
        snprintf(text, sizeof text, "%s", cases[i].asked);
        for (char *c = text; *c != '\0'; c++)
            *c = *c == '\'' ? '"' : *c;
        json_t *asked = json_loads(text, 0, NULL);
        assert_non_null(asked);
        enum status status = engine_grammar(&engine, asked, &grammar, &error);
        assert_int_equal(status == STATUS_OK, cases[i].fault == NULL);
        if (cases[i].fault != NULL)
            assert_non_null(strstr(error.text, cases[i].fault));
        grammar_release(grammar);
        json_decref(asked);
    }
    grammar_cache_close(engine.grammars);
    tokenizer_close(engine.tokenizer);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_request_is_carried),
        cmocka_unit_test(test_request_refuses),
        cmocka_unit_test(test_request_resumes),
        cmocka_unit_test(test_request_events_are_carried),
        cmocka_unit_test(test_request_events_end),
        cmocka_unit_test(test_request_events_refuse),
        cmocka_unit_test(test_request_grammars),
    };
    return cmocka_run_group_tests_name("request", tests, NULL, NULL);
}
