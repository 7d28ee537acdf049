/* What a model's reply is made of, in the formats of all families, cut at every place. */
#include "text/text.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

/* A part is written C:text, R:text or T:name arguments, with | between parts of different kinds. */
struct seen {
    struct buffer text;
    int last;
};

static void take(void *context, const struct reply_part *part)
{
    struct seen *seen = context;
    if (part->kind == REPLY_CALL || (int)part->kind != seen->last)
        buffer_printf(&seen->text, "%s%c:%.*s%s", seen->text.size > 0 ? "|" : "", "CRT"[part->kind],
                      (int)part -> tool_name.size,
                      part->tool_name.size > 0 ? part->tool_name.data : "",
                      part->kind == REPLY_CALL ? " " : "");
    buffer_append(&seen->text, part->text.data, part->text.size);
    seen->last = (int)part->kind;
}

static const char tools_text[] =
    "[{\"type\":\"function\",\"function\":{\"name\":\"weather\",\"parameters\":{\"type\":"
    "\"object\","
    "\"properties\":{\"city\":{\"type\":\"string\"},\"days\":{\"type\":\"integer\"}}}}}]";

struct reply_case {
    const char *chat_template, *prompt, *reply, *expected;
    bool no_tools;
};

#define COMMAND "<|START_ACTION|>"
#define HERMES "<think> <tool_call>"
#define CODER "<tool_call> <function="
#define DEEPSEEK "<think> <｜tool▁calls▁begin｜>"
#define KIMI "<|tool_call_begin|>"
#define HARMONY "<|channel|> <|message|>"
#define LLAMA "<|start_header_id|>"
#define MINIMAX "<minimax:tool_call>"
#define CALL "T:weather {\"city\":\"Bern\",\"days\":2}"
#define JSON_CALL "{\"name\": \"weather\", \"arguments\": {\"city\": \"Bern\", \"days\": 2}}"

static const struct reply_case cases[] = {
    {"", "", " plain text \n", "C: plain text \n", false},
    {HERMES, "", "plain <tool_calls> text\n", "C:plain <tool_calls> text\n", false},
    {HERMES, "", "<think>\nhm\n\n</think>\n\nyes", "R:hm|C:yes", false},
    {HERMES, "user<think>\n", "hm</think>yes", "R:hm|C:yes", false},
    {HERMES, "user<think>\n", "never done", "R:never done", false},
    {HERMES, "", "<think>a</think>\n<tool_call>\n" JSON_CALL "\n</tool_call>", "R:a|" CALL, false},
    {HERMES, "",
     "I look.\n<tool_call>" JSON_CALL "</tool_call>\n<tool_call>" JSON_CALL "</tool_call>\n",
     "C:I look.|" CALL "|" CALL, false},
    {HERMES, "", "<tool_call>" JSON_CALL, CALL, false},
    {HERMES, "",
     "<tool_call>{\"name\": \"weather\", \"arguments\": {\"city\": "
     "\"\\\"</tool_call>\"}}</tool_call>",
     "T:weather {\"city\":\"\\\"</tool_call>\"}", false},
    {HERMES, "", "<tool_call>{\"x</tool_call>\n<tool_call>" JSON_CALL "</tool_call>",
     "C:<tool_call>{\"x</tool_call>|" CALL, false},
    {"<think>", "user<think>", "a</think>\n\n" JSON_CALL, "R:a|" CALL, false},
    {"<think>", "user<think>", "a</think>\n\n{\"x\": 1}", "R:a|C:{\"x\": 1}", false},
    {HERMES, "", "<tool_call>nonsense</tool_call> and on",
     "C:<tool_call>nonsense</tool_call> and on", false},
    {HERMES, "", "a<tool_call>{\"x\":", "C:a<tool_call>{\"x\":", false},
    {HERMES, "", "<tool_call>" JSON_CALL "</tool_call>", "C:<tool_call>" JSON_CALL "</tool_call>",
     true},
    {CODER, "",
     "<tool_call>\n<function=weather>\n<parameter=city>\nBern\n</parameter>\n"
     "<parameter=days>\n2\n</parameter>\n</function>\n</tool_call>",
     CALL, false},
    {CODER, "",
     "<tool_call>\n<function=weather>\n<parameter=city>\n12\n</parameter>\n</function>\n"
     "</tool_call>",
     "T:weather {\"city\":\"12\"}", false},
    {"<arg_key>", "",
     "<think>x</think>\n<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>Bern"
     "</arg_value>\n<arg_key>days</arg_key>\n<arg_value>2</arg_value>\n</tool_call>",
     "R:x|" CALL, false},
    {"<arg_key>", "",
     "<tool_call>weather<arg_key>city</arg_key><arg_value>\nBern\n</arg_value></tool_call>",
     "T:weather {\"city\":\"\\nBern\\n\"}", false},
    {MINIMAX, "",
     "<minimax:tool_call>\n<invoke name=\"weather\">\n<parameter name=\"city\">Bern"
     "</parameter>\n<parameter name=\"days\">2</parameter>\n</invoke>\n"
     "</minimax:tool_call>",
     CALL, false},
    {DEEPSEEK, "",
     "Ok.<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>weather\n"
     "```json\n{\"city\": \"Bern\", \"days\": 2}\n```<｜tool▁call▁end｜>"
     "<｜tool▁calls▁end｜>",
     "C:Ok.|" CALL, false},
    {DEEPSEEK, "",
     "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>weather<｜tool▁sep｜>{\"city\": \"Bern\", "
     "\"days\": 2}<｜tool▁call▁end｜><｜tool▁call▁begin｜>weather<｜tool▁sep｜>{}"
     "<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
     CALL "|T:weather {}", false},
    {KIMI, "",
     "<|tool_calls_section_begin|><|tool_call_begin|>functions.weather:0"
     "<|tool_call_argument_begin|>{\"city\": \"Bern\", \"days\": 2}<|tool_call_end|>"
     "<|tool_calls_section_end|>",
     CALL, false},
    {"[TOOL_CALLS]", "", "[TOOL_CALLS][" JSON_CALL "," JSON_CALL "]", CALL "|" CALL, false},
    {"[TOOL_CALLS]", "", "Yes.[TOOL_CALLS]weather[ARGS]{\"city\": \"Bern\", \"days\": 2}",
     "C:Yes.|" CALL, false},
    {"[TOOL_CALLS]", "", "[THINK]a[/THINK]b", "R:a|C:b", false},
    {COMMAND, "",
     "<|START_THINKING|>I plan.<|END_THINKING|><|START_ACTION|>[\n    {\"tool_call_id\": \"0\", "
     "\"tool_name\": \"weather\", \"parameters\": {\"city\": \"Bern\", \"days\": 2}},\n    "
     "{\"tool_call_id\": \"1\", \"tool_name\": \"weather\", \"parameters\": {}}\n]"
     "<|END_ACTION|>",
     "R:I plan.|" CALL "|T:weather {}", false},
    {COMMAND, "", "<|START_RESPONSE|>Yes, <|START_x|>.\n<|END_RESPONSE|>", "C:Yes, <|START_x|>.",
     false},
    {COMMAND, "", "<|START_RESPONSE|>Yes.<|END_RESPONSE|>", "C:Yes.", true},
    {COMMAND, "", "<|START_RESPONSE|>Yes.", "C:Yes.", true},
    {COMMAND, "<|START_THINKING|>", "a<|END_THINKING|><|START_TEXT|>Yes.<|END_TEXT|>", "R:a|C:Yes.",
     false},
    {COMMAND, "", "Yes. <co>It</co: 0:[1]> rains", "C:Yes. <co>It</co: 0:[1]> rains", true},
    {COMMAND, "", "<|START_THINKING|>a<|END_THINKING|><|START_RESPONSE|>b<|END_RESPONSE|>",
     "R:a|C:b", true},
    {COMMAND, "<|CHATBOT_TOKEN|><|START_THINKING|>", "a<|END_THINKING|><|START_RESPONSE|>b",
     "R:a|C:b", true},
    {COMMAND, "", "<|START_ACTION|>[1]<|END_ACTION|>", "C:<|START_ACTION|>[1]<|END_ACTION|>",
     false},
    {COMMAND, "",
     "<|START_ACTION|>[{\"tool_name\": \"weather\", \"parameters\": {\"city\": "
     "\"<|END_ACTION|>\"}}]<|END_ACTION|>",
     "T:weather {\"city\":\"<|END_ACTION|>\"}", false},
    {LLAMA, "", "{\"name\": \"weather\", \"parameters\": {\"city\": \"Bern\", \"days\": 2}}", CALL,
     false},
    {LLAMA, "",
     "<|python_tag|>{\"name\": \"weather\", \"parameters\": {}}; {\"name\": \"weather\", "
     "\"parameters\": {}}",
     "T:weather {}|T:weather {}", false},
    {LLAMA, "", "{\"a\": 1}", "C:{\"a\": 1}", false},
    {HARMONY, "",
     "<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>final"
     "<|message|>yes",
     "R:hm|C:yes", false},
    {HARMONY, "",
     "<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>commentary "
     "to=functions.weather <|constrain|>json<|message|>{\"city\":\"Bern\",\"days\":2}",
     "R:hm|" CALL, false},
    {HARMONY, "",
     "<|start|>assistant<|channel|>commentary to=functions.weather<|message|>{}<|call|>",
     "T:weather {}", false},
    {HARMONY, "", "no channel", "C:no channel", false},
};

/* Feeds the reply in pieces of one size, or cut once where size is 0. */
static void check_case(const struct reply_case *c, const json_t *tools, size_t first, size_t size)
{
    struct seen seen = {.last = -1};
    struct reply_parser *parser;
    struct error error;
    size_t length = strlen(c->reply);
    assert_int_equal(reply_parser_open(&parser, reply_format_of(view_of(c->chat_template)),
                                       view_of(c->prompt), c->no_tools ? NULL : tools, take, &seen,
                                       &error),
                     STATUS_OK);
    for (size_t at = 0, n; at < length; at += n) {
        n = MIN(at == 0 && first > 0 ? first : size, length - at);
        reply_parser_feed(parser, (struct view){c->reply + at, n});
    }
    assert_true(reply_parser_end(parser));
    reply_parser_close(parser);
    if (strcmp(seen.text.size > 0 ? seen.text.data : "", c->expected) != 0)
        fail_msg("%s\n  gave     %s\n  expected %s\n  (cut at %zu)", c->reply,
                 seen.text.size > 0 ? seen.text.data : "", c->expected, first);
    buffer_free(&seen.text);
}

static void test_reply_formats(void **state)
{
    (void)state;
    json_t *tools = json_loads(tools_text, 0, NULL);
    for (size_t i = 0; i < ARRAY_COUNT(cases); i++) {
        size_t length = strlen(cases[i].reply);
        for (size_t first = 1; first <= length; first++)
            check_case(&cases[i], tools, first, length);
        check_case(&cases[i], tools, 0, 1);
    }
    json_decref(tools);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_reply_formats)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
