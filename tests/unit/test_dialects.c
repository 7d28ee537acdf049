/* Requests and answers of APIs other than OpenAI's, to the byte. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "../support/api_answers.h"

static const char *text_of(const json_t *messages, size_t index, const char *field)
{
    return json_string_value(json_object_get(json_array_get(messages, index), field));
}

/* ---- Answers --------------------------------------------------------------------------------- */

static const struct generation_usage usage = {
    .n_prompt = 4, .n_cached = 3, .n_output = 2, .queue_ns = 10, .prefill_ns = 20, .decode_ns = 30};

/* The whole life of an answer whose text comes byte by byte. */
static void answer(struct fixture *fixture, const char *text, enum finish_reason reason,
                   const char *stop)
{
    struct generation_event event = {.kind = GENERATION_STARTED,
                                     .usage = {.n_prompt = 4, .n_cached = 3}};
    api_answer_event(fixture->answer, 0, &event, &fixture->out);
    for (size_t i = 0; text[i] != '\0'; i++) {
        event = (struct generation_event){
            .kind = GENERATION_TOKEN, .text = {text + i, 1}, .token = (unsigned char)text[i]};
        api_answer_event(fixture->answer, 0, &event, &fixture->out);
    }
    event = (struct generation_event){
        .kind = GENERATION_FINISHED, .reason = reason, .stop = view_of(stop), .usage = usage};
    api_answer_event(fixture->answer, 0, &event, &fixture->out);
    assert_true(api_answer_done(fixture->answer));
}

static void parse_tools(struct fixture *fixture)
{
    struct error error;
    assert_int_equal(api_answer_parse(fixture->answer, 0, reply_format_of(view_of("<tool_call>")),
                                      view_of(""), &error),
                     STATUS_OK);
}

#define TOOLS "\"tools\":[{\"type\":\"function\",\"function\":{\"name\":\"f\"}}]"
#define CALL "<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": 1}}</tool_call>"

/* out with the id of its one call, which is drawn, made readable. */
static void hide_id(struct fixture *fixture, const char *before)
{
    char *at = fixture->out.data;
    while ((at = strstr(at, before)) != NULL) {
        at += strlen(before);
        memset(at, 'x', 9);
    }
}

/* ---- Ollama ---------------------------------------------------------------------------------- */

#define USER_A "\"messages\":[{\"role\":\"user\",\"content\":\"a\"}]"

static void test_ollama_reads(void **state)
{
    (void)state;
    struct api_call *call = read_good(
        ollama_read, API_CHAT,
        "{\"model\":\"m:latest\",\"messages\":[{\"role\":\"assistant\",\"content\":\"\","
        "\"thinking\":\"t\",\"tool_calls\":[{\"function\":{\"name\":\"f\",\"arguments\":{\"a\":1}}}"
        "]},{\"role\":\"tool\",\"tool_name\":\"f\",\"content\":\"5\"}],\"think\":\"high\","
        "\"keep_alive\":\"1h30m\",\"options\":{\"temperature\":0.5,\"num_predict\":-1,\"seed\":3,"
        "\"num_ctx\":100,\"stop\":[\"x\"],\"repeat_last_n\":-1,\"num_thread\":2}}");
    assert_true(call->stream);
    assert_string_equal(call->model, "m:latest");
    assert_string_equal(text_of(call->messages, 0, "reasoning_content"), "t");
    assert_string_equal(text_of(call->messages, 1, "name"), "f");
    assert_string_equal(json_string_value(json_object_get(call->variables, "reasoning_effort")),
                        "high");
    assert_true(json_is_true(json_object_get(call->variables, "enable_thinking")));
    assert_float_equal(call->sampling.temperature, 0.5, 0);
    assert_int_equal(call->max_tokens, UINT32_MAX);
    assert_int_equal(call->sampling.repeat_last_n, UINT32_MAX);
    assert_true(call->has_seed && call->sampling.seed == 3 && call->n_ctx == 100);
    assert_true(call->has_keep_alive && call->keep_alive_ms == 5400000 && call->n_stops == 1);
    api_call_free(call);
    call = read_good(ollama_read, API_COMPLETION,
                     "{\"prompt\":\"a\",\"system\":\"s\",\"stream\":false,\"keep_alive\":-1}");
    assert_true(!call->stream && call->operation == API_CHAT && call->keep_alive_ms == UINT64_MAX);
    assert_string_equal(text_of(call->messages, 0, "content"), "s");
    assert_string_equal(text_of(call->messages, 1, "role"), "user");
    api_call_free(call);
    call = read_good(ollama_read, API_COMPLETION, "{\"prompt\":\"a\",\"raw\":true}");
    assert_true(call->operation == API_COMPLETION && call->n_prompts == 1);
    api_call_free(call);
    call = read_good(ollama_read, API_COMPLETION, "{\"model\":\"m\",\"keep_alive\":0}");
    assert_true(call->operation == API_LOAD && !call->stream && call->keep_alive_ms == 0);
    api_call_free(call);
    call = read_good(ollama_read, API_EMBEDDINGS, "{\"input\":[\"a\",\"b\"],\"truncate\":true}");
    assert_true(call->n_prompts == 2 && call->truncate);
    api_call_free(call);
}

static void test_ollama_refuses(void **state)
{
    static const struct bad_case cases[] = {
        {ollama_read, API_CHAT, "{" USER_A ",\"format\":\"xml\"}", "format must be"},
        {ollama_read, API_CHAT, "{" USER_A ",\"format\":5}", "format must have a JSON Schema"},
        {ollama_read, API_CHAT, "{" USER_A ",\"think\":5}", "think must be"},
        {ollama_read, API_CHAT, "{" USER_A ",\"keep_alive\":\"5 minutes\"}", "keep_alive must"},
        {ollama_read, API_CHAT, "{" USER_A ",\"options\":{\"temperature\":-1}}", "temperature is"},
        {ollama_read, API_CHAT, "{" USER_A ",\"options\":{\"mirostat\":2}}", "mirostat is not"},
        {ollama_read, API_CHAT, "{" USER_A ",\"options\":[]}", "options must be"},
        {ollama_read, API_CHAT, "{\"messages\":5}", "messages must be"},
        {ollama_read, API_CHAT,
         "{\"messages\":[{\"role\":\"user\",\"content\":\"a\",\"images\":[\"x\"]}]}", "images"},
        {ollama_read, API_COMPLETION, "{\"prompt\":[\"a\"],\"suffix\":\"b\"}", "prompt must be"},
        {ollama_read, API_COMPLETION, "{\"prompt\":\"a\",\"suffix\":5}", "suffix must be"},
        {ollama_read, API_COMPLETION, "{\"prompt\":5}", "prompt must be"},
        {ollama_read, API_EMBEDDINGS, "{}", "input is missing"},
        {ollama_read_embedding, API_EMBEDDINGS, "{\"prompt\":[\"a\"]}", "prompt must be"},
    };
    (void)state;
    check_refused(cases, ARRAY_COUNT(cases));
}

#define OLLAMA_HEAD "{\"model\":\"m\",\"created_at\":\"1970-01-01T00:00:09Z\","
#define OLLAMA_DONE(reason)                                                                        \
    "\"done\":true,\"done_reason\":\"" reason                                                      \
    "\",\"total_duration\":65,\"load_duration\":5,\"prompt_eval_count\":4,"                        \
    "\"prompt_eval_duration\":20,\"eval_count\":2,\"eval_duration\":30}"

static void test_ollama_streams(void **state)
{
    (void)state;
    struct fixture f;
    open_answer(&f, ollama_read, API_CHAT, "{\"model\":\"m\"," USER_A "," TOOLS "}");
    parse_tools(&f);
    answer(&f, "<think>h</think>\n" CALL, FINISH_END, "");
    hide_id(&f, "{\"id\":\"");
    assert_string_equal(
        f.out.data, OLLAMA_HEAD
        "\"message\":{\"role\":\"assistant\",\"content\":\"\",\"thinking\":\"h\"},"
        "\"done\":false}\n" OLLAMA_HEAD
        "\"message\":{\"role\":\"assistant\",\"content\":\"\",\"tool_calls\":[{\"id\":"
        "\"xxxxxxxxx\",\"function\":{\"index\":0,\"name\":\"f\",\"arguments\":"
        "{\"a\":1}}}]},\"done\":false}\n" OLLAMA_HEAD
        "\"message\":{\"role\":\"assistant\",\"content\":\"\"}," OLLAMA_DONE("stop") "\n");
    close_answer(&f);
}

static void test_ollama_whole(void **state)
{
    (void)state;
    struct fixture f;
    open_answer(&f, ollama_read, API_COMPLETION, "{\"prompt\":\"a\",\"stream\":false}");
    answer(&f, "ab", FINISH_LENGTH, "");
    assert_string_equal(f.out.data, OLLAMA_HEAD "\"response\":\"ab\"," OLLAMA_DONE("length"));
    buffer_clear(&f.out);
    struct api_error error;
    api_invalid(&error, "n", "a \"b\"");
    api_format_of(view_of("/api/tags"))->error(&error, false, &f.out);
    assert_string_equal(f.out.data, "{\"error\":\"a \\\"b\\\"\"}");
    close_answer(&f);
}

static void test_ollama_embeddings(void **state)
{
    (void)state;
    struct buffer out = {0};
    const struct api_result result = {.model = "m",
                                      .vectors = (const float[]){1, -2, 3, 4},
                                      .n_numbers = 2,
                                      .prompt_tokens = 3,
                                      .load_ns = 5,
                                      .total_ns = 7};
    struct api_call *call = read_good(ollama_read, API_EMBEDDINGS, "{\"input\":[\"a\",\"b\"]}");
    call->format->result(call, &result, &out);
    assert_string_equal(out.data,
                        "{\"model\":\"m\",\"embeddings\":[[1,-2],[3,4]],\"total_duration\":7,"
                        "\"load_duration\":5,\"prompt_eval_count\":3}");
    api_call_free(call);
    buffer_clear(&out);
    call = read_good(ollama_read_embedding, API_EMBEDDINGS, "{\"prompt\":\"a\"}");
    call->format->result(call, &result, &out);
    assert_string_equal(out.data, "{\"embedding\":[1,-2]}");
    api_call_free(call);
    buffer_free(&out);
}

/* ---- Anthropic ------------------------------------------------------------------------------- */

static void test_anthropic_reads(void **state)
{
    (void)state;
    struct api_call *call = read_good(
        anthropic_read, API_CHAT,
        "{\"max_tokens\":5,\"stop_sequences\":[\"x\"],\"system\":[{\"type\":\"text\",\"text\":"
        "\"x-anthropic-billing-header: cc_version=2; cch=1a2b3;\"},{\"type\":\"text\",\"text\":"
        "\"Be brief.\",\"cache_control\":{}}],\"thinking\":{\"type\":\"disabled\"},\"messages\":["
        "{\"role\":\"user\",\"content\":\"q\"},{\"role\":\"assistant\",\"content\":[{\"type\":"
        "\"thinking\",\"thinking\":\"t\",\"signature\":\"\"},{\"type\":\"text\",\"text\":\"a\"},"
        "{\"type\":\"tool_use\",\"id\":\"toolu_1\",\"name\":\"f\",\"input\":{\"a\":1}}]},"
        "{\"role\":\"user\",\"content\":[{\"type\":\"tool_result\",\"tool_use_id\":\"toolu_1\","
        "\"content\":[{\"type\":\"text\",\"text\":\"r\"}]},{\"type\":\"text\",\"text\":\"s\"}]}],"
        "\"tools\":[{\"name\":\"f\",\"description\":\"d\",\"input_schema\":{\"type\":\"object\"}}"
        "],\"tool_choice\":{\"type\":\"auto\"}}");
    char *messages = json_dumps(call->messages, JSON_COMPACT | JSON_SORT_KEYS);
    assert_string_equal(
        messages,
        "[{\"content\":\"Be brief.\",\"role\":\"system\"},{\"content\":\"q\",\"role\":\"user\"},"
        "{\"content\":\"a\",\"reasoning_content\":\"t\",\"role\":\"assistant\",\"tool_calls\":["
        "{\"function\":{\"arguments\":{\"a\":1},\"name\":\"f\"},\"id\":\"1\",\"type\":\"function\"}"
        "]},{\"content\":\"r\",\"name\":\"f\",\"role\":\"tool\",\"tool_call_id\":\"1\"},"
        "{\"content\":\"s\",\"role\":\"user\"}]");
    free(messages);
    char *tools = json_dumps(call->tools, JSON_COMPACT | JSON_SORT_KEYS);
    assert_string_equal(tools, "[{\"function\":{\"description\":\"d\",\"name\":\"f\","
                               "\"parameters\":{\"type\":\"object\"}},\"type\":\"function\"}]");
    free(tools);
    assert_true(json_is_false(json_object_get(call->variables, "enable_thinking")));
    assert_true(call->max_tokens == 5 && call->n_stops == 1 && !call->stream);
    api_call_free(call);
    call = read_good(anthropic_read, API_COUNT, "{\"system\":\"cch=5\\nBe brief.\"," USER_A "}");
    assert_string_equal(text_of(call->messages, 0, "content"), "Be brief.");
    api_call_free(call);
}

#define MAX_5 "\"max_tokens\":5"

static void test_anthropic_refuses(void **state)
{
    static const struct bad_case cases[] = {
        {anthropic_read, API_CHAT, "{" USER_A "}", "max_tokens is missing"},
        {anthropic_read, API_CHAT, "{" MAX_5 "}", "messages must be"},
        {anthropic_read, API_CHAT, "{" MAX_5 ",\"messages\":[5]}", "messages.0.role"},
        {anthropic_read, API_CHAT, "{" MAX_5 "," USER_A ",\"system\":5}", "system must be"},
        {anthropic_read, API_CHAT, "{" MAX_5 "," USER_A ",\"tools\":5}", "tools must be a list"},
        {anthropic_read, API_CHAT, "{" MAX_5 "," USER_A ",\"tools\":[{}]}", "tools.0 must"},
        {anthropic_read, API_CHAT,
         "{" MAX_5 "," USER_A ",\"tools\":[{\"type\":\"web_search_1\",\"name\":\"f\"}]}",
         "only tools that the client runs"},
        {anthropic_read, API_CHAT,
         "{" MAX_5 "," USER_A ",\"output_config\":{\"format\":{\"type\":\"xml\"}}}",
         "must be json_schema"},
        {anthropic_read, API_CHAT, "{" MAX_5 "," USER_A ",\"tool_choice\":{\"type\":\"x\"}}",
         "tool_choice.type must"},
        {anthropic_read, API_CHAT,
         "{" MAX_5 ",\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"image\"}]}]}",
         "images"},
        {anthropic_read, API_CHAT,
         "{" MAX_5 ",\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"tool_use\"}]}]}",
         "tool_use in messages.0"},
        {anthropic_read, API_CHAT, "{" MAX_5 "," USER_A ",\"mcp_servers\":[{}]}", "mcp_servers"},
    };
    (void)state;
    check_refused(cases, ARRAY_COUNT(cases));
}

#define EVENT(name) "event: " name "\ndata: {\"type\":\"" name "\""
#define MESSAGE                                                                                    \
    "{\"id\":\"msg_0000000000000001\",\"type\":\"message\",\"role\":\"assistant\",\"model\":"      \
    "\"m\","                                                                                       \
    "\"content\":["
#define USAGE(n_output)                                                                            \
    "\"usage\":{\"input_tokens\":1,\"cache_creation_input_tokens\":0,"                             \
    "\"cache_read_input_tokens\":3,\"output_tokens\":" n_output "}"

static void test_anthropic_streams(void **state)
{
    (void)state;
    struct fixture f;
    open_answer(&f, anthropic_read, API_CHAT,
                "{" MAX_5 "," USER_A ",\"tools\":[{\"name\":\"f\"}],\"stream\":true}");
    parse_tools(&f);
    answer(&f, "<think>h</think>b" CALL, FINISH_END, "");
    hide_id(&f, "toolu_");
    /* clang-format off */
    assert_string_equal(f.out.data,
        EVENT("message_start") ",\"message\":" MESSAGE "],"
            "\"stop_reason\":null,\"stop_sequence\":null," USAGE("0") "}}\n\n"
        EVENT("content_block_start") ",\"index\":0,"
            "\"content_block\":{\"type\":\"thinking\",\"thinking\":\"\",\"signature\":\"\"}}\n\n"
        EVENT("content_block_delta") ",\"index\":0,"
            "\"delta\":{\"type\":\"thinking_delta\",\"thinking\":\"h\"}}\n\n"
        EVENT("content_block_stop") ",\"index\":0}\n\n"
        EVENT("content_block_start") ",\"index\":1,"
            "\"content_block\":{\"type\":\"text\",\"text\":\"\"}}\n\n"
        EVENT("content_block_delta") ",\"index\":1,"
            "\"delta\":{\"type\":\"text_delta\",\"text\":\"b\"}}\n\n"
        EVENT("content_block_stop") ",\"index\":1}\n\n"
        EVENT("content_block_start") ",\"index\":2,\"content_block\":{\"type\":\"tool_use\","
            "\"id\":\"toolu_xxxxxxxxx\",\"name\":\"f\",\"input\":{}}}\n\n"
        EVENT("content_block_delta") ",\"index\":2,"
            "\"delta\":{\"type\":\"input_json_delta\",\"partial_json\":\"{\\\"a\\\":1}\"}}\n\n"
        EVENT("content_block_stop") ",\"index\":2}\n\n"
        EVENT("message_delta") ",\"delta\":{\"stop_reason\":\"tool_use\",\"stop_sequence\":null},"
            USAGE("2") "}\n\n"
        EVENT("message_stop") "}\n\n");
    /* clang-format on */
    close_answer(&f);
}

static void test_anthropic_whole(void **state)
{
    (void)state;
    struct fixture f;
    open_answer(&f, anthropic_read, API_CHAT,
                "{" MAX_5 "," USER_A ",\"stop_sequences\":[\"x\",\"y\"]}");
    answer(&f, "ab", FINISH_STOP, "y");
    assert_string_equal(f.out.data,
                        MESSAGE "{\"type\":\"text\",\"text\":\"ab\"}],\"stop_reason\":"
                                "\"stop_sequence\",\"stop_sequence\":\"y\"," USAGE("2") "}");
    buffer_clear(&f.out);
    struct api_error error;
    api_invalid(&error, "n", "a \"b\"");
    api_format_of(view_of("/v1/messages"))->error(&error, true, &f.out);
    assert_string_equal(f.out.data, "event: error\ndata: {\"type\":\"error\",\"error\":{\"type\":"
                                    "\"invalid_request_error\",\"message\":\"a \\\"b\\\"\"}}\n\n");
    close_answer(&f);
}

/* ---- llama-server ---------------------------------------------------------------------------- */

static void test_llama_reads(void **state)
{
    (void)state;
    struct api_call *call =
        read_good(llama_read, API_COMPLETION,
                  "{\"prompt\":[\"a\",[5,6]],\"n_predict\":7,\"temperature\":0.5,\"n_probs\":2,"
                  "\"ignore_eos\":true,\"mirostat\":0,\"grammar\":\"\",\"cache_prompt\":true}");
    assert_true(call->n_prompts == 2 && call->max_tokens == 7 && call->ignore_end);
    assert_true(call->want_logprobs && call->n_top_logprobs == 2 && !call->stream);
    api_call_free(call);
    call = read_good(llama_read, API_TOKENIZE, "{\"content\":\"a\",\"add_special\":true}");
    assert_true(call->add_special && call->parse_special && !call->with_pieces);
    api_call_free(call);
    call = read_good(llama_read, API_DETOKENIZE, "{\"tokens\":[]}");
    assert_int_equal(call->n_prompts, 0);
    api_call_free(call);
    call = read_good(llama_read, API_PROPS, "");
    api_call_free(call);
}

static void test_llama_refuses(void **state)
{
    static const struct bad_case cases[] = {
        {llama_read, API_COMPLETION, "{}", "prompt is missing"},
        {llama_read, API_COMPLETION, "{\"prompt\":\"a\",\"grammar\":5}",
         "grammar must be a string"},
        {llama_read, API_COMPLETION, "{\"prompt\":\"a\",\"grammar\":\"root\",\"json_schema\":true}",
         "together"},
        {llama_read, API_COMPLETION, "{\"prompt\":\"a\",\"n_predict\":0}", "n_predict is 0"},
        {llama_read, API_TOKENIZE, "{\"content\":5}", "content must be"},
        {llama_read, API_DETOKENIZE, "{\"tokens\":[\"a\"]}", "token ids"},
        {llama_read, API_DETOKENIZE, "{}", "token ids"},
        {llama_read, API_RENDER, "{}", "messages must be"},
    };
    (void)state;
    check_refused(cases, ARRAY_COUNT(cases));
}

static void test_llama_streams(void **state)
{
    (void)state;
    struct fixture f;
    open_answer(&f, llama_read, API_COMPLETION,
                "{\"prompt\":\"q\",\"stream\":true,\"stop\":[\"y\"],\"n_predict\":-1}");
    answer(&f, "a", FINISH_STOP, "y");
    static const char begin[] =
        "data: {\"index\":0,\"content\":\"a\",\"tokens\":[97],\"id_slot\":-1,\"stop\":false,"
        "\"tokens_predicted\":1,\"tokens_evaluated\":4}\n\n"
        "data: {\"index\":0,\"content\":\"\",\"tokens\":[],\"id_slot\":-1,\"stop\":true,"
        "\"tokens_predicted\":2,\"tokens_evaluated\":4,\"model\":\"m\",\"generation_settings\":"
        "{\"temperature\":0.800000012,\"top_p\":";
    static const char end[] =
        "\"n_predict\":-1,\"n_probs\":0,\"ignore_eos\":false,\"stream\":true,"
        "\"seed\":4294967295,\"stop\":[\"y\"]},\"prompt\":\"q\",\"has_new_line\":false,"
        "\"truncated\":false,\"stop_type\":\"word\",\"stopping_word\":\"y\","
        "\"tokens_cached\":3,\"timings\":{\"cache_n\":3,\"prompt_n\":1,\"prompt_ms\":0.000,"
        "\"prompt_per_token_ms\":0.000,\"prompt_per_second\":50000000.000,\"predicted_n\":2,"
        "\"predicted_ms\":0.000,\"predicted_per_token_ms\":0.000,"
        "\"predicted_per_second\":66666666.667}}\n\n";
    assert_memory_equal(f.out.data, begin, sizeof begin - 1);
    assert_true(f.out.size > sizeof end);
    assert_string_equal(f.out.data + f.out.size - (sizeof end - 1), end);
    close_answer(&f);
}

static void test_llama_results(void **state)
{
    (void)state;
    struct fixture f;
    open_answer(&f, llama_read, API_TOKENIZE, "{\"content\":\"a\",\"with_pieces\":true}");
    const struct api_result result = {.tokens = (const int32_t[]){'a'},
                                      .n_tokens = 1,
                                      .tokenizer = f.tokenizer,
                                      .text = view_of("t")};
    f.call->format->result(f.call, &result, &f.out);
    assert_non_null(strstr(f.out.data, "{\"tokens\":[{\"id\":97,\"piece\":"));
    f.call->with_pieces = false;
    buffer_clear(&f.out);
    f.call->format->result(f.call, &result, &f.out);
    assert_string_equal(f.out.data, "{\"tokens\":[97]}");
    f.call->operation = API_RENDER;
    buffer_clear(&f.out);
    f.call->format->result(f.call, &result, &f.out);
    assert_string_equal(f.out.data, "{\"prompt\":\"t\"}");
    close_answer(&f);
}

/* ---- Responses ------------------------------------------------------------------------------- */

#define RESPONSE_ASK                                                                               \
    "{\"input\":\"q\",\"parallel_tool_calls\":false,\"tools\":[{\"type\":\"function\",\"name\":"   \
    "\"f\"}]"
#define RESPONSE_REPLY "<think>h</think>\n\nc" CALL CALL

/* Items come in the order of the reply; a second call is dropped where one is allowed. */
static void test_responses_streams(void **state)
{
    (void)state;
    static const char *const names[] = {
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.reasoning_text.delta",
        "response.reasoning_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.output_item.added",
        "response.function_call_arguments.delta",
        "response.function_call_arguments.done",
        "response.output_item.done",
        "response.completed",
    };
    struct fixture f;
    open_answer(&f, responses_read, API_CHAT, RESPONSE_ASK ",\"stream\":true}");
    parse_tools(&f);
    answer(&f, RESPONSE_REPLY, FINISH_END, "");
    const char *at = f.out.data;
    for (size_t i = 0; i < ARRAY_COUNT(names); i++) {
        char expected[160];
        snprintf(expected, sizeof expected,
                 "event: %s\ndata: {\"type\":\"%s\",\"sequence_number\":%zu,", names[i], names[i],
                 i);
        assert_memory_equal(at, expected, strlen(expected));
        at = strstr(at, "\n\n");
        assert_non_null(at);
        at += 2;
    }
    assert_string_equal(at, "");
    close_answer(&f);
}

static void test_responses_whole(void **state)
{
    (void)state;
    struct fixture f;
    open_answer(&f, responses_read, API_CHAT, RESPONSE_ASK "}");
    parse_tools(&f);
    answer(&f, RESPONSE_REPLY, FINISH_END, "");
    hide_id(&f, "\"call_id\":\"");
    static const char output[] =
        "\"output\":["
        "{\"id\":\"rs_000000000000000100\",\"type\":\"reasoning\",\"summary\":[],\"content\":"
        "[{\"type\":\"reasoning_text\",\"text\":\"h\"}]},"
        "{\"id\":\"msg_000000000000000101\",\"type\":\"message\",\"status\":\"completed\","
        "\"role\":\"assistant\",\"content\":[{\"type\":\"output_text\",\"text\":\"c\","
        "\"annotations\":[],\"logprobs\":[]}]},"
        "{\"id\":\"fc_000000000000000102\",\"type\":\"function_call\",\"status\":\"completed\","
        "\"call_id\":\"xxxxxxxxx\",\"name\":\"f\",\"arguments\":\"{\\\"a\\\":1}\"}],"
        "\"usage\":{\"input_tokens\":4,\"input_tokens_details\":{\"cached_tokens\":3},"
        "\"output_tokens\":2,";
    if (strstr(f.out.data, output) == NULL)
        fail_msg("%s", f.out.data);
    close_answer(&f);
}

static void test_responses_errors(void **state)
{
    (void)state;
    struct api_error error;
    struct buffer out = {0};
    api_invalid(&error, "n", "no");
    api_format_of(view_of("/v1/responses"))->error(&error, true, &out);
    assert_string_equal(
        out.data,
        "event: error\ndata: {\"type\":\"error\",\"code\":\"invalid_request_error\",\"message\":"
        "\"no\",\"param\":null}\n\n"
        "event: response.failed\ndata: {\"type\":\"response.failed\",\"response\":{\"object\":"
        "\"response\",\"status\":\"failed\",\"output\":[],\"error\":{\"code\":"
        "\"invalid_request_error\",\"message\":\"no\"}}}\n\n");
    buffer_free(&out);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ollama_reads),      cmocka_unit_test(test_ollama_refuses),
        cmocka_unit_test(test_ollama_streams),    cmocka_unit_test(test_ollama_whole),
        cmocka_unit_test(test_ollama_embeddings), cmocka_unit_test(test_anthropic_reads),
        cmocka_unit_test(test_anthropic_refuses), cmocka_unit_test(test_anthropic_streams),
        cmocka_unit_test(test_anthropic_whole),   cmocka_unit_test(test_llama_reads),
        cmocka_unit_test(test_llama_refuses),     cmocka_unit_test(test_llama_streams),
        cmocka_unit_test(test_llama_results),     cmocka_unit_test(test_responses_streams),
        cmocka_unit_test(test_responses_whole),   cmocka_unit_test(test_responses_errors),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
