/* OpenAI's requests and answers, to the byte. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "../support/api_answers.h"

/* ---- Requests -------------------------------------------------------------------------------- */

static void test_api_reads_chat(void **state)
{
    (void)state;
    struct api_call *call = read_good(
        openai_read, API_CHAT,
        "{\"model\":\"m\",\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"text\","
        "\"text\":"
        "\"a\"},{\"type\":\"text\",\"text\":\"b\"}]},{\"role\":\"assistant\",\"content\":null}],"
        "\"temperature\":0.5,\"top_k\":7,\"seed\":3,\"n\":2,\"max_tokens\":5,"
        "\"max_completion_tokens\":6,\"stop\":[\"x\",\"\",\"yz\"],\"stream\":true,\"stream_"
        "options\":"
        "{\"include_usage\":true},\"logit_bias\":{\"5\":-100,\"6\":1.5},\"unknown\":[1],"
        "\"frequency_penalty\":null,\"chat_template_kwargs\":{\"enable_thinking\":false}}");
    assert_string_equal(call->model, "m");
    const json_t *first = json_array_get(call->messages, 0);
    assert_string_equal(json_string_value(json_object_get(first, "content")), "a\nb");
    assert_string_equal(
        json_string_value(json_object_get(json_array_get(call->messages, 1), "content")), "");
    assert_float_equal(call->sampling.temperature, 0.5, 0);
    assert_int_equal(call->sampling.top_k, 7);
    assert_true(call->has_seed && call->sampling.seed == 3);
    assert_int_equal(call->n_choices, 2);
    assert_int_equal(call->max_tokens, 6);
    assert_int_equal(call->n_stops, 2);
    assert_string_equal(call->stops[1], "yz");
    assert_true(call->stream && call->include_usage);
    assert_int_equal(call->sampling.n_biases, 2);
    assert_true(isinf(call->sampling.biases[0].bias));
    assert_true(json_is_false(json_object_get(call->variables, "enable_thinking")));
    api_call_free(call);
}

static void test_api_reads_prompts(void **state)
{
    (void)state;
    struct api_call *call =
        read_good(openai_read, API_COMPLETION, "{\"prompt\":\"a\",\"echo\":true}");
    assert_int_equal(call->n_prompts, 1);
    assert_true(call->echo && view_equal(call->prompts[0].text, view_of("a")));
    api_call_free(call);
    call = read_good(openai_read, API_COMPLETION, "{\"prompt\":[5,6]}");
    assert_int_equal(call->n_prompts, 1);
    assert_int_equal(call->prompts[0].n_tokens, 2);
    api_call_free(call);
    call = read_good(openai_read, API_EMBEDDINGS,
                     "{\"input\":[\"a\",[1,2,3]],\"encoding_format\":\"base64\"}");
    assert_int_equal(call->n_prompts, 2);
    assert_int_equal(call->prompts[1].n_tokens, 3);
    assert_true(call->base64);
    api_call_free(call);
}

static void test_api_refuses(void **state)
{
    static const struct bad_case cases[] = {
        {openai_read, API_CHAT, "{", "no JSON"},
        {openai_read, API_CHAT, "[]", "must be a JSON object"},
        {openai_read, API_CHAT, "{}", "messages must be"},
        {openai_read, API_CHAT, "{\"messages\":[]}", "at least one"},
        {openai_read, API_CHAT, "{\"messages\":[5]}", "messages.0 must be an object"},
        {openai_read, API_CHAT, "{\"messages\":[{\"role\":\"king\",\"content\":\"a\"}]}",
         "messages.0.role"},
        {openai_read, API_CHAT,
         "{\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"image_url\"}]}]}", "images"},
        {openai_read, API_COMPLETION, "{}", "prompt is missing"},
        {openai_read, API_COMPLETION, "{\"prompt\":[-1]}", "token id"},
        {openai_read, API_CHAT,
         "{\"messages\":[{\"role\":\"user\",\"content\":\"a\"}],\"max_tokens\":0}", "at least 1"},
        {openai_read, API_COMPLETION, "{\"prompt\":\"a\",\"temperature\":-1}", "temperature is -1"},
        {openai_read, API_COMPLETION, "{\"prompt\":\"a\",\"temperature\":\"hot\"}",
         "must be a number"},
        {openai_read, API_COMPLETION, "{\"prompt\":\"a\",\"n\":1.5}", "whole number"},
        {openai_read, API_COMPLETION, "{\"prompt\":\"a\",\"n\":0}", "from 1 to"},
        {openai_read, API_COMPLETION, "{\"prompt\":\"a\",\"stream\":1}", "true or false"},
        {openai_read, API_COMPLETION, "{\"prompt\":\"a\",\"stop\":5}", "string or a list"},
        {openai_read, API_COMPLETION, "{\"prompt\":\"a\",\"seed\":\"x\"}", "whole number"},
        {openai_read, API_COMPLETION, "{\"prompt\":\"a\",\"logit_bias\":{\"x\":1}}", "no token id"},
        {openai_read, API_COMPLETION, "{\"prompt\":\"a\",\"logit_bias\":{\"1\":101}}",
         "-100 to 100"},
        {openai_read, API_COMPLETION, "{\"prompt\":\"a\",\"response_format\":{\"type\":\"xml\"}}",
         "json_object"},
        {openai_read, API_COMPLETION, "{\"prompt\":\"a\",\"model\":5}", "model must be a string"},
        {openai_read, API_EMBEDDINGS, "{\"input\":\"a\",\"encoding_format\":\"int8\"}",
         "float or base64"},
    };
    (void)state;
    check_refused(cases, ARRAY_COUNT(cases));
}

/* ---- Answers --------------------------------------------------------------------------------- */

static void give(struct fixture *fixture, size_t choice, struct generation_event event)
{
    api_answer_event(fixture->answer, choice, &event, &fixture->out);
}

static const struct generation_usage usage = {.n_prompt = 4, .n_cached = 3, .n_output = 2};

#define HEAD(object, id)                                                                           \
    "{\"id\":\"" id "0000000000000001\",\"object\":\"" object "\",\"created\":9,\"model\":\"m\","  \
    "\"system_fingerprint\":\"build-" CONSORT_VERSION "\","
/* At the end of an answer that took no time. */
#define TIMINGS(n_output)                                                                          \
    "\"timings\":{\"cache_n\":3,\"prompt_n\":1,\"prompt_ms\":0.000,\"prompt_per_token_ms\":0.000," \
    "\"prompt_per_second\":0.000,\"predicted_n\":" n_output ",\"predicted_ms\":0.000,"             \
    "\"predicted_per_token_ms\":0.000,\"predicted_per_second\":0.000}"
#define CHUNK "data: " HEAD("chat.completion.chunk", "chatcmpl-")

static void test_api_streams_chat(void **state)
{
    (void)state;
    struct fixture f;
    open_answer(&f, openai_read, API_CHAT,
                "{\"messages\":[{\"role\":\"user\",\"content\":\"a\"}],\"stream\":true,"
                "\"stream_options\":{\"include_usage\":true}}");
    give(&f, 0, (struct generation_event){.kind = GENERATION_STARTED});
    assert_int_equal(f.out.size, 0);
    give(&f, 0,
         (struct generation_event){.kind = GENERATION_TOKEN, .text = view_of("a\n\"\xC3\xA4")});
    give(&f, 0, (struct generation_event){.kind = GENERATION_TOKEN});
    give(&f, 0,
         (struct generation_event){.kind = GENERATION_FINISHED,
                                   .text = view_of("b"),
                                   .reason = FINISH_LENGTH,
                                   .usage = usage});
    assert_true(api_answer_done(f.answer));
    assert_string_equal(
        f.out.data,
        CHUNK "\"choices\":[{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"\"},"
              "\"logprobs\":null,\"finish_reason\":null}],\"usage\":null}\n\n" CHUNK
              "\"choices\":[{\"index\":0,\"delta\":{\"content\":\"a\\n\\\"\xC3\xA4\"},"
              "\"logprobs\":null,\"finish_reason\":null}],\"usage\":null}\n\n" CHUNK
              "\"choices\":[{\"index\":0,\"delta\":{\"content\":\"b\"},"
              "\"logprobs\":null,\"finish_reason\":null}],\"usage\":null}\n\n" CHUNK
              "\"choices\":[{\"index\":0,\"delta\":{},\"logprobs\":null,"
              "\"finish_reason\":\"length\"}],\"usage\":null}\n\n" CHUNK
              "\"choices\":[],\"usage\":{\"prompt_tokens\":4,\"completion_tokens\":2,"
              "\"total_tokens\":6,\"prompt_tokens_details\":{\"cached_tokens\":3}}," TIMINGS(
                  "2") "}\n\n"
                       "data: [DONE]\n\n");
    close_answer(&f);
}

static void test_api_whole_chat(void **state)
{
    (void)state;
    struct fixture f;
    open_answer(&f, openai_read, API_CHAT,
                "{\"messages\":[{\"role\":\"user\",\"content\":\"a\"}],\"n\":2}");
    for (size_t i = 0; i < 2; i++) {
        give(&f, i, (struct generation_event){.kind = GENERATION_TOKEN, .text = view_of("a")});
        assert_int_equal(f.out.size, 0);
        give(&f, i,
             (struct generation_event){
                 .kind = GENERATION_FINISHED, .text = view_of("b"), .usage = usage});
    }
    assert_string_equal(
        f.out.data,
        HEAD("chat.completion",
             "chatcmpl-") "\"choices\":[{\"index\":0,\"message\":{\"role\":\"assistant\","
                          "\"content\":\"ab\","
                          "\"refusal\":null},\"logprobs\":null,\"finish_reason\":\"stop\"},"
                          "{\"index\":1,\"message\":{\"role\":\"assistant\",\"content\":\"ab\","
                          "\"refusal\":null},"
                          "\"logprobs\":null,\"finish_reason\":\"stop\"}],"
                          "\"usage\":{\"prompt_tokens\":4,\"completion_tokens\":4,\"total_tokens\":"
                          "8,"
                          "\"prompt_tokens_details\":{\"cached_tokens\":3}}," TIMINGS("4") "}");
    close_answer(&f);
}

static void test_api_tool_calls(void **state)
{
    (void)state;
    static const char reply[] = "<think>hm</think>\n<tool_call>{\"name\": \"f\", \"arguments\": "
                                "{\"a\": 1}}</tool_call>";
    for (int stream = 0; stream < 2; stream++) {
        struct fixture f;
        struct error error;
        char body[256];
        snprintf(body, sizeof body,
                 "{\"messages\":[{\"role\":\"user\",\"content\":\"a\"}],\"tools\":[{\"type\":"
                 "\"function\",\"function\":{\"name\":\"f\"}}],\"stream\":%s}",
                 stream ? "true" : "false");
        open_answer(&f, openai_read, API_CHAT, body);
        assert_int_equal(api_answer_parse(f.answer, 0, reply_format_of(view_of("<tool_call>")),
                                          view_of(""), &error),
                         STATUS_OK);
        for (size_t i = 0; i < sizeof reply - 1; i++)
            give(&f, 0,
                 (struct generation_event){.kind = GENERATION_TOKEN, .text = {reply + i, 1}});
        give(&f, 0, (struct generation_event){.kind = GENERATION_FINISHED, .usage = usage});
        const char *expected[2][6] = {
            {"\"content\":null,\"tool_calls\":[{\"id\":\"",
             "\"type\":\"function\",\"function\":{\"name\":\"f\",\"arguments\":\"{\\\"a\\\":1}\"}}"
             "]",
             "\"reasoning_content\":\"hm\"", "\"finish_reason\":\"tool_calls\""},
            {"\"delta\":{\"reasoning_content\":\"h\"}",
             "\"delta\":{\"tool_calls\":[{\"index\":0,\"id\":",
             "\"type\":\"function\",\"function\":{\"name\":\"f\",\"arguments\":\"\"}}]}",
             "\"delta\":{\"tool_calls\":[{\"index\":0,\"function\":{\"arguments\":\"{\\\"a\\\":1}"
             "\"}}]}",
             "\"delta\":{},\"logprobs\":null,\"finish_reason\":\"tool_calls\"",
             "data: [DONE]\n\n"}};
        for (size_t i = 0; i < 6 && expected[stream][i] != NULL; i++)
            if (strstr(f.out.data, expected[stream][i]) == NULL)
                fail_msg("%s is not in\n%s", expected[stream][i], f.out.data);
        assert_null(strstr(f.out.data, "tool_call>"));
        close_answer(&f);
    }
}

static void test_api_completion_logprobs(void **state)
{
    (void)state;
    struct fixture f;
    const struct token_logprob top[] = {{'a', -0.5f}, {'b', -1.5f}};
    open_answer(&f, openai_read, API_COMPLETION, "{\"prompt\":\"q\",\"logprobs\":2}");
    give(&f, 0,
         (struct generation_event){.kind = GENERATION_TOKEN,
                                   .text = view_of("a"),
                                   .token = 'a',
                                   .logprob = -0.5f,
                                   .top = top,
                                   .n_top = 2});
    give(&f, 0, (struct generation_event){.kind = GENERATION_FINISHED, .usage = usage});
    json_t *body = json_loads(f.out.data, 0, NULL);
    const json_t *choice = json_array_get(json_object_get(body, "choices"), 0);
    const json_t *logprobs = json_object_get(choice, "logprobs");
    assert_string_equal(json_string_value(json_object_get(choice, "text")), "a");
    assert_int_equal(json_array_size(json_object_get(logprobs, "tokens")), 1);
    assert_int_equal(json_object_size(json_array_get(json_object_get(logprobs, "top_logprobs"), 0)),
                     2);
    json_decref(body);
    close_answer(&f);
}

static void test_api_writes_errors_and_vectors(void **state)
{
    (void)state;
    struct api_error error;
    struct buffer out = {0};
    api_invalid(&error, "n", "a \"b\"");
    api_format_of(view_of("/v1/models"))->error(&error, false, &out);
    assert_string_equal(out.data, "{\"error\":{\"message\":\"a \\\"b\\\"\",\"type\":"
                                  "\"invalid_request_error\",\"param\":\"n\",\"code\":null}}");
    buffer_clear(&out);
    api_json_string(&out, (struct view){"\xFFz\x01", 3});
    assert_string_equal(out.data, "\"\xEF\xBF\xBDz\\u0001\"");
    buffer_clear(&out);
    struct api_call *call =
        read_good(openai_read, API_EMBEDDINGS, "{\"input\":\"a\",\"encoding_format\":\"base64\"}");
    const struct api_result result = {
        .model = "m", .vectors = (const float[]){1, -2}, .n_numbers = 2, .prompt_tokens = 3};
    call->format->result(call, &result, &out);
    assert_non_null(strstr(out.data, "\"embedding\":\"AACAPwAAAMA=\""));
    api_call_free(call);
    buffer_free(&out);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_api_reads_chat),
        cmocka_unit_test(test_api_reads_prompts),
        cmocka_unit_test(test_api_refuses),
        cmocka_unit_test(test_api_streams_chat),
        cmocka_unit_test(test_api_whole_chat),
        cmocka_unit_test(test_api_tool_calls),
        cmocka_unit_test(test_api_completion_logprobs),
        cmocka_unit_test(test_api_writes_errors_and_vectors),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
