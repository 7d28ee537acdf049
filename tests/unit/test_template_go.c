/* Go templates become Jinja that renders the same: the shapes that Ollama's models have. */
#include "text/text.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static const char conversation[] =
    "[{'role': 'system', 'content': 'Be \\'brief\\'.'}, {'role': 'user', 'content': 'One?'},"
    " {'role': 'assistant', 'content': '1'}, {'role': 'user', 'content': 'Two?'}]";

static const char with_tools[] =
    "[{'role': 'user', 'content': 'Rain?'}, {'role': 'assistant', 'content': '', 'tool_calls': "
    "[{'type': 'function', 'function': {'name': 'weather', 'arguments': {'city': 'Rome', 'n': "
    "2}}}]},"
    " {'role': 'tool', 'name': 'weather', 'content': 'no'}]";

static const char tools[] = "[{'type': 'function', 'function': {'name': 'weather', 'parameters': "
                            "{'type': 'object', 'properties': {'city': {'type': 'string'}}}}}]";

/* A JSON text written with single quotes. */
static json_t *json_of(const char *text)
{
    char *copy = strdup(text);
    for (size_t i = 0; copy[i] != '\0'; i++)
        if (copy[i] == '\'' && (i == 0 || copy[i - 1] != '\\'))
            copy[i] = '"';
    for (char *at = copy; (at = strstr(at, "\\'")) != NULL;)
        memmove(at, at + 1, strlen(at));
    json_t *value = json_loads(copy, 0, NULL);
    assert_non_null(value);
    free(copy);
    return value;
}

static void check(const char *go, const char *messages, const char *tool_list, const char *expected)
{
    struct buffer jinja = {0}, out = {0};
    struct error error = {0};
    struct chat_template *chat_template = NULL;
    if (chat_template_from_go(view_of(go), &jinja, &error) != STATUS_OK)
        fail_msg("%s: %s", go, error.text);
    struct view source = {jinja.data, jinja.size};
    if (chat_template_open(&chat_template, source, &error) != STATUS_OK)
        fail_msg("%s: %s", jinja.data, error.text);
    json_t *variables =
        json_pack("{s:o, s:b}", "messages", json_of(messages), "add_generation_prompt", 1);
    if (tool_list != NULL)
        json_object_set_new(variables, "tools", json_of(tool_list));
    if (chat_template_render(chat_template, variables, 1767323045, &out, &error) != STATUS_OK)
        fail_msg("%s\n%s", error.text, jinja.data);
    if (strcmp(out.size > 0 ? out.data : "", expected) != 0)
        fail_msg("%s\nrenders\n%s\ninstead of\n%s", go, out.size > 0 ? out.data : "", expected);
    json_decref(variables);
    chat_template_close(chat_template);
    buffer_free(&jinja);
    buffer_free(&out);
}

/* Of one turn, which is rendered for each. */
static void test_go_turns(void **state)
{
    (void)state;
    static const struct {
        const char *go, *expected;
    } cases[] = {
        {"{{ if .System }}<|im_start|>system\n{{ .System }}<|im_end|>\n{{ end }}{{ if .Prompt }}"
         "<|im_start|>user\n{{ .Prompt }}<|im_end|>\n{{ end }}<|im_start|>assistant\n{{ .Response "
         "}}<|im_end|>\n",
         "<|im_start|>system\nBe 'brief'.<|im_end|>\n<|im_start|>user\nOne?<|im_end|>\n"
         "<|im_start|>assistant\n1<|im_end|>\n<|im_start|>user\nTwo?<|im_end|>\n"
         "<|im_start|>assistant\n"},
        {"[INST] {{ if .System }}<<SYS>>{{ .System }}<</SYS>>\n\n{{ end }}{{ .Prompt }} [/INST] ",
         "[INST] <<SYS>>Be 'brief'.<</SYS>>\n\nOne? [/INST] 1[INST] Two? [/INST] "},
        {"{{- if .System }}### System:\n{{ .System }}\n{{- end }}\n\n### User:\n{{ .Prompt "
         "}}\n\n###"
         " Assistant:\n{{ .Response }}\n",
         "### System:\nBe 'brief'.\n\n### User:\nOne?\n\n### Assistant:\n1\n\n\n### User:\nTwo?\n\n"
         "### Assistant:\n"},
        {"{{ if .System }}<|system|>\n{{ .System }}</s>\n{{ end }}{{ if .Prompt }}<|user|>\n"
         "{{ .Prompt }}</s>\n{{ end }}<|assistant|>\n{{ .Response }}</s>\n",
         "<|system|>\nBe 'brief'.</s>\n<|user|>\nOne?</s>\n<|assistant|>\n1</s>\n<|user|>\nTwo?</s>"
         "\n<|assistant|>\n"},
        {"<start_of_turn>user\n{{ if .System }}{{ .System }} {{ end }}{{ .Prompt }}<end_of_turn>\n"
         "<start_of_turn>model\n{{ .Response }}<end_of_turn>\n",
         "<start_of_turn>user\nBe 'brief'. "
         "One?<end_of_turn>\n<start_of_turn>model\n1<end_of_turn>\n"
         "<start_of_turn>user\nTwo?<end_of_turn>\n<start_of_turn>model\n"},
        {"{{ if and .First .System }}{{ .System }}\n{{ end }}USER: {{ .Prompt }}\nASSISTANT: "
         "{{ .Response }}</s>",
         "Be 'brief'.\nUSER: One?\nASSISTANT: 1</s>USER: Two?\nASSISTANT: "},
        {"{{/* a }} comment */}}{{- /* and one */ -}}  {{ .Prompt }}{{ \"\\n\" }}{{ `{{` }}",
         "One?\n{{1Two?\n{{"},
    };
    for (size_t i = 0; i < ARRAY_COUNT(cases); i++)
        check(cases[i].go, conversation, NULL, cases[i].expected);
    check("{{ .Prompt }}|{{ .Response }}.",
          "[{'role': 'user', 'content': 'a'}, {'role': 'user', "
          "'content': 'b'}]",
          NULL, "a\n\nb|");
}

static const char llama3[] =
    "<|start_header_id|>system<|end_header_id|>\n\n{{- if .System }}{{ .System }}\n{{- end }}\n"
    "{{- if .Tools }}When you receive a tool call response, answer.\n{{- end }}<|eot_id|>\n"
    "{{- range $i, $_ := .Messages }}\n"
    "{{- $last := eq (len (slice $.Messages $i)) 1 }}\n"
    "{{- if eq .Role \"user\" }}<|start_header_id|>user<|end_header_id|>\n"
    "{{- if and $.Tools $last }}\n\nThese are functions:\n{{ range $.Tools }}\n"
    "{{- . }}\n{{ end }}\n{{ .Content }}<|eot_id|>\n{{- else }}\n\n"
    "{{ .Content }}<|eot_id|>\n{{- end }}{{ if $last }}<|start_header_id|>assistant"
    "<|end_header_id|>\n\n{{ end }}\n"
    "{{- else if eq .Role \"assistant\" }}<|start_header_id|>assistant<|end_header_id|>\n"
    "{{- if .ToolCalls }}\n{{ range .ToolCalls }}\n"
    "{\"name\": \"{{ .Function.Name }}\", \"parameters\": {{ .Function.Arguments }}}{{ end }}\n"
    "{{- else }}\n\n{{ .Content }}\n{{- end }}{{ if not $last }}<|eot_id|>{{ end }}\n"
    "{{- else if eq .Role \"tool\" }}<|start_header_id|>ipython<|end_header_id|>\n\n"
    "{{ .Content }}<|eot_id|>{{ if $last }}<|start_header_id|>assistant<|end_header_id|>\n\n"
    "{{ end }}\n{{- end }}\n{{- end }}";

static const char chatml[] =
    "{{- if or .System .Tools }}<|im_start|>system\n{{ .System }}{{ if .Tools }}\n# Tools\n"
    "{{- range .Tools }}\n{\"type\": \"function\", \"function\": {{ .Function }}}\n{{- end }}"
    "{{- end }}<|im_end|>\n{{ end }}\n"
    "{{- $lastUser := -1 }}{{ range $i, $m := .Messages }}{{ if eq .Role \"user\" }}"
    "{{ $lastUser = $i }}{{ end }}{{ end }}"
    "{{- range $i, $_ := .Messages }}{{- $last := eq (len (slice $.Messages $i)) 1 -}}"
    "{{- if eq .Role \"user\" }}<|im_start|>user\n{{ .Content }}{{ if eq $i $lastUser }} *{{ end }}"
    "<|im_end|>\n{{ else if eq .Role \"assistant\" }}<|im_start|>assistant\n"
    "{{ if .Content }}{{ .Content }}{{- else if .ToolCalls }}<tool_call>\n"
    "{{ range .ToolCalls }}{\"name\": \"{{ .Function.Name }}\", \"arguments\": "
    "{{ .Function.Arguments }}}\n{{ end }}</tool_call>\n{{- end }}{{ if not $last }}<|im_end|>\n"
    "{{ end }}{{- else if eq .Role \"tool\" \"function\" }}<|im_start|>user\n<tool_response>\n"
    "{{ .Content }}\n</tool_response><|im_end|>\n{{ end }}"
    "{{- if and (ne .Role \"assistant\") $last }}<|im_start|>assistant\n{{ end }}{{- end }}";

/* Of all messages, with tools. */
static void test_go_messages(void **state)
{
    (void)state;
    check(llama3, conversation, NULL,
          "<|start_header_id|>system<|end_header_id|>Be 'brief'.<|eot_id|>"
          "<|start_header_id|>user<|end_header_id|>\n\nOne?<|eot_id|>"
          "<|start_header_id|>assistant<|end_header_id|>\n\n1<|eot_id|>"
          "<|start_header_id|>user<|end_header_id|>\n\nTwo?<|eot_id|>"
          "<|start_header_id|>assistant<|end_header_id|>\n\n");
    check(
        llama3, with_tools, tools,
        "<|start_header_id|>system<|end_header_id|>When you receive a tool call response, "
        "answer.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nRain?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n{\"name\": \"weather\", \"parameters\": "
        "{\"city\":\"Rome\",\"n\":2}}<|eot_id|><|start_header_id|>ipython<|end_header_id|>\n\nno"
        "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n");
    check(chatml, with_tools, tools,
          "<|im_start|>system\n\n# Tools\n{\"type\": \"function\", \"function\": "
          "{\"name\":\"weather\",\"parameters\":{\"type\":\"object\",\"properties\":{\"city\":"
          "{\"type\":\"string\"}}}}}<|im_end|>\n<|im_start|>user\nRain? *<|im_end|>\n"
          "<|im_start|>assistant\n<tool_call>\n{\"name\": \"weather\", \"arguments\": "
          "{\"city\":\"Rome\",\"n\":2}}\n</tool_call><|im_end|>\n<|im_start|>user\n<tool_response>"
          "\nno\n</tool_response><|im_end|>\n<|im_start|>assistant\n");
    check(chatml, conversation, NULL,
          "<|im_start|>system\nBe 'brief'.<|im_end|>\n<|im_start|>user\nOne?<|im_end|>\n"
          "<|im_start|>assistant\n1<|im_end|>\n<|im_start|>user\nTwo? *<|im_end|>\n"
          "<|im_start|>assistant\n");
    check("{{ range .Tools }}{{ range $k, $v := .Function.Parameters.Properties }}{{ $k }}:"
          "{{ $v.Type }}{{ end }}{{ end }}{{ range .Messages }}{{ .Content | json }}{{ else }}none"
          "{{ end }}{{ index .Messages 0 | len }}",
          "[{'role': 'user', 'content': 'a'}]", tools, "city:string\"a\"2");
    check("{{ range .Messages }}{{ range $k, $v := .ToolCalls }}{{ $k }} {{ range $n, $a := "
          ".Function.Arguments }}{{ $n }}={{ $a }} {{ end }}{{ range .Function.Arguments }}{{ . }} "
          "{{ end }}{{ else }}{{ .Role }} {{ end }}{{ end }}{{ (index .Messages 1).Role }}"
          "{{ if eq (index $.Messages 2).Role \"user\" \"tool\" }}.{{ end }}",
          with_tools, NULL, "user 0 city=Rome n=2 Rome 2 tool assistant.");
    check("{{ $p := \"a\r\n\" }}{{ range .Messages }}{{ $p }}{{ .Content }}\r\n{{ end }}",
          "[{'role': 'user', 'content': 'a'}]", NULL, "a\r\na\r\n");
}

/* Of one role after another: texts become one message, results of tools and calls stay apart. */
static void test_go_collated(void **state)
{
    (void)state;
    static const char each[] = "{{ range $i, $m := .Messages }}{{ $i }}[{{ .Role }}:{{ .Content }}"
                               "{{ range .ToolCalls }}+{{ .Function.Name }}{{ end }}]{{ end }}"
                               "{{ len .Messages }}|{{ .System }}";
    check(each,
          "[{'role': 'system', 'content': 's'}, {'role': 'system', 'content': 't'},"
          " {'role': 'user', 'content': 'a'}, {'role': 'user', 'content': ''},"
          " {'role': 'user', 'content': 'b'}, {'role': 'user', 'content': 'c'},"
          " {'role': 'assistant', 'content': 'd'}, {'role': 'assistant', 'content': 'e'},"
          " {'role': 'user', 'content': 'f'}]",
          NULL, "0[system:s\n\nt]1[user:a\n\nb\n\nc]2[assistant:d\n\ne]3[user:f]4|s\n\nt");
    check(
        each,
        "[{'role': 'user', 'content': 'a'}, {'role': 'assistant', 'content': 'I look.'},"
        " {'role': 'assistant', 'content': null, 'tool_calls': [{'type': 'function', 'function':"
        " {'name': 'weather', 'arguments': {}}}]}, {'role': 'tool', 'content': 'no'},"
        " {'role': 'tool', 'content': 'yes'}, {'role': 'assistant', 'content': 'b'}]",
        NULL,
        "0[user:a]1[assistant:I look.]2[assistant:+weather]3[tool:no]4[tool:yes]5[assistant:b]6|");
    check("{{ .System }}<{{ .Prompt }}>{{ .Response }};",
          "[{'role': 'system', 'content': 's'}, {'role': 'system', 'content': 't'},"
          " {'role': 'user', 'content': 'a'}, {'role': 'assistant', 'content': 'b'},"
          " {'role': 'assistant', 'content': 'c'}, {'role': 'user', 'content': 'd'}]",
          NULL, "s\n\nt<a>b\n\nc;<d>");
}

static void test_go_refused(void **state)
{
    (void)state;
    static const struct {
        const char *go, *part;
    } cases[] = {
        {"", "without .Messages or .Prompt"},
        {"Hello", "without .Messages or .Prompt"},
        {"{{ .Prompt", "an action without end"},
        {"{{ .Prompt }}\n\n{{ .Query }}", "line 3: '.Query' is not known"},
        {"{{ range .Messages }}{{ .Size }}{{ end }}", "'.Size'"},
        {"{{ if .Prompt }}x", "a missing end"},
        {"{{ .Prompt }}{{ end }}", "an end or else too many"},
        {"{{ .Prompt }}{{ else }}", "an end or else too many"},
        {"{{ .Prompt | printf \"%s\" }}", "the function 'printf'"},
        {"{{ with .Prompt }}{{ . }}{{ end }}", "the function 'with'"},
        {"{{ template \"x\" }}{{ .Prompt }}", "the function 'template'"},
        {"{{ $x }}{{ .Prompt }}", "'$x'"},
        {"{{ . }}{{ .Prompt }}", "'.'"},
        {"{{ (.Prompt }}", "a missing )"},
        {"{{ .Prompt .Prompt }}", "'.Prompt'"},
        {"{{ \"a\\q\" }}{{ .Prompt }}", "the escape"},
        {"{{ range $i, $m := .Messages }}{{ $m = 1 }}{{ end }}", "an assignment to"},
        {"{{ if eq .Prompt }}{{ end }}", "the function 'eq'"},
        {"{{ .Prompt }}{{ 1.5 }}", "the number '1.5'"},
        {"{{ .Prompt }}{{ 0x1F }}", "the number '0x1F'"},
        {"{{ .Prompt }}{{ 12345678901 }}", "the number '12345678901'"},
        {"{{ (index .Messages 0).Size }}", "'.Size'"},
    };
    for (size_t i = 0; i < ARRAY_COUNT(cases); i++) {
        struct buffer out = {0};
        struct error error = {0};
        enum status status = chat_template_from_go(view_of(cases[i].go), &out, &error);
        if (status != STATUS_UNSUPPORTED || strstr(error.text, cases[i].part) == NULL)
            fail_msg("%s: %d %s", cases[i].go, status, error.text);
        buffer_free(&out);
    }
}

/* What nests without end, or would grow with each level, is refused before it does. */
static void test_go_limits(void **state)
{
    (void)state;
    static const struct {
        const char *first, *again;
    } cases[] = {{"", "{{ if .Prompt }}"},
                 {"{{ if .Prompt }}", "{{ else if .Prompt }}"},
                 {"{{ .Prompt", " | len"},
                 {"{{ .Prompt | eq 1", " | eq 1 2 3 4 5 6"},
                 {"{{ not ", "(not "}};
    for (size_t i = 0; i < ARRAY_COUNT(cases); i++) {
        struct buffer deep = {0}, out = {0};
        struct error error = {0};
        buffer_append_text(&deep, cases[i].first);
        for (int k = 0; k < 5000; k++)
            buffer_append_text(&deep, cases[i].again);
        buffer_append_text(&deep, " }}");
        enum status status =
            chat_template_from_go((struct view){deep.data, deep.size}, &out, &error);
        if (status != STATUS_UNSUPPORTED || strstr(error.text, "so deep nesting") == NULL)
            fail_msg("%s: %d %s", cases[i].again, status, error.text);
        buffer_free(&deep);
        buffer_free(&out);
    }
    struct buffer out = {0};
    struct error error = {0};
    char *large = calloc(1, 1 << 20);
    assert_non_null(large);
    memset(large, 'a', 1 << 20);
    assert_int_equal(chat_template_from_go((struct view){large, 1 << 20}, &out, &error),
                     STATUS_LIMIT);
    assert_int_equal(chat_template_from_go((struct view){"{{ .Prompt }}\0", 14}, &out, &error),
                     STATUS_UNSUPPORTED);
    free(large);
    buffer_free(&out);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_go_turns), cmocka_unit_test(test_go_messages),
        cmocka_unit_test(test_go_collated), cmocka_unit_test(test_go_refused),
        cmocka_unit_test(test_go_limits)};
    return cmocka_run_group_tests_name("template_go", tests, NULL, NULL);
}
