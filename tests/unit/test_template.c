#include "text/text.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

/* 2026-01-02T03:04:05 */
#define NOW 1767323045

static const char variables_text[] =
    "{\"x\": 5, \"y\": 2.5, \"s\": \"Hello World\", \"n\": null, \"t\": true, \"l\": [3, 1, 2],"
    " \"d\": {\"b\": 1, \"a\": 2}, \"u\": \"\xC3\xA9\xE4\xBD\xA0\xF0\x9F\x98\x80\"}";

/* The text of a rendering, or of its error where error is not NULL; to be freed. */
static enum status render(const char *source, struct buffer *out, struct error *error)
{
    struct chat_template *chat_template = NULL;
    json_t *variables = json_loads(variables_text, 0, NULL);
    assert_non_null(variables);
    enum status status = chat_template_open(&chat_template, view_of(source), error);
    if (status == STATUS_OK)
        status = chat_template_render(chat_template, variables, NOW, out, error);
    chat_template_close(chat_template);
    json_decref(variables);
    return status;
}

static void check(const char *source, const char *expected)
{
    struct buffer out = {0};
    struct error error = {0};
    if (render(source, &out, &error) != STATUS_OK)
        print_error("%s: %s\n", source, error.text);
    else if (strcmp(out.data != NULL ? out.data : "", expected) != 0)
        print_error("%s: \"%s\" is not \"%s\"\n", source, out.data, expected);
    assert_int_equal(error.code, STATUS_OK);
    assert_string_equal(out.data != NULL ? out.data : "", expected);
    buffer_free(&out);
}

/* An error whose text has this part. */
static void check_error(const char *source, const char *part)
{
    struct buffer out = {0};
    struct error error = {0};
    assert_int_not_equal(render(source, &out, &error), STATUS_OK);
    if (strstr(error.text, part) == NULL)
        print_error("%s: \"%s\" has no \"%s\"\n", source, error.text, part);
    assert_non_null(strstr(error.text, part));
    assert_int_equal(out.size, 0);
    buffer_free(&out);
}

static void test_template_expressions(void **state)
{
    (void)state;
    check("{{ 1 + 2 * 3 }} {{ -2 ** 2 }} {{ 2 ** 3 ** 2 }} {{ 7 // -2 }} {{ -7 % 3 }}",
          "7 4 64 -4 2");
    check("{{ 1 / 2 }} {{ 1e16 }} {{ 1e15 }} {{ 0.1 + 0.2 }} {{ 1e-5 }}",
          "0.5 1e+16 1000000000000000.0 0.30000000000000004 1e-05");
    check("{{ 'a' ~ 1 ~ none ~ true }} {{ 1 < 2 < 3 }} {{ 3 not in [1] }}", "a1NoneTrue True True");
    check("{{ [1, 'it\\'s', (1,), {'k': none}] }}", "[1, \"it's\", (1,), {'k': None}]");
    check("{{ s[::-1] }} {{ s[-5:] }} {{ l[5] }}{{ u|length }}{{ u[1] }}",
          "dlroW olleH World 3\xE4\xBD\xA0");
    check("{{ 'a' if x > 3 else 'b' }}{{ 'a' if false }}", "a");
    check("{{ -1|string }} {{ x is divisibleby 5 and t }} {{ not x is odd }}", "-1 True False");
}

static void test_template_undefined(void **state)
{
    (void)state;
    check("[{{ q }}{{ d.q }}{{ q|default('z') }}{{ q is defined }}]", "[zFalse]");
    check_error("{{ q.a }}", "'q' is undefined");
    check_error("line\n{{ d.q.a }}", "template line 2");
    check_error("{{ q() }}", "'q' is undefined");
    check_error("{{ q + 1 }}", "'q' is undefined");
}

static void test_template_white_space(void **state)
{
    (void)state;
    check("a\n  {% if x %}\n  b\n  {% endif %}\n  c\n", "a\n  b\n  c");
    check("a\n  {%+ if x %}\n  b\n  {% endif +%}\n  c", "a\n    b\n\n  c");
    check("a {%- if x -%} b {%- endif -%} c", "abc");
    check("a {#- comment -#} b {# c #}\n", "ab ");
    check("{% raw -%} {{ x }} {%- endraw %}", "{{ x }}");
}

static void test_template_scopes(void **state)
{
    (void)state;
    check("{% set a = 1 %}{% for i in l %}{% set a = i %}{% endfor %}{{ a }}", "1");
    check("{% if x %}{% set a = 1 %}{% endif %}{{ a }}", "1");
    check("{% set ns = namespace(a=0) %}{% for i in l %}{% set ns.a = ns.a + i %}{% endfor %}{{ "
          "ns.a }}",
          "6");
    check("{% macro m() %}{{ q }}{% endmacro %}{% set q = 7 %}{{ m() }}"
          "{% for q in [1] %}{{ m() }}{% endfor %}",
          "77");
}

static void test_template_loops(void **state)
{
    (void)state;
    check("{% for i in l if i > 1 %}{{ loop.index }}/{{ loop.length }}{{ loop.last }}{% endfor %}",
          "1/2False2/2True");
    check("{% for k, v in d|items %}{{ k }}{{ v }}{% else %}-{% endfor %}", "b1a2");
    check("{% for i in l %}{% if i == 1 %}{% continue %}{% endif %}{{ i }}{% endfor %}", "32");
    check("{% for i in l %}{% if i == 1 %}{% break %}{% endif %}{{ i }}{% endfor %}", "3");
    check("{% for t in [[1, [2]]] recursive %}{{ t if t is number else loop(t) }},{% endfor %}",
          "1,2,,,");
}

static void test_template_macros(void **state)
{
    (void)state;
    check("{% macro m(a, b=a) %}{{ a }}{{ b }}{{ varargs }}{{ kwargs }}{% endmacro %}"
          "{{ m(1) }}{{ m(1, 2, 3, z=4) }}",
          "11(){}12(3,){'z': 4}");
    check("{% macro m() %}<{{ caller(1) }}>{% endmacro %}{% call(a) m() %}{{ a }}{% endcall %}",
          "<1>");
    check_error("{% macro m(a) %}{% endmacro %}{{ m(1, 2) }}", "takes not more than 1");
    check_error("{% macro m(a) %}{% endmacro %}{{ m(b=2) }}", "no parameter 'b'");
}

static void test_template_chat(void **state)
{
    (void)state;
    check("{{ d|tojson }}{{ d|tojson(indent=1) }}{{ '\\u00fc<' | tojson }}",
          "{\"b\": 1, \"a\": 2}{\n \"b\": 1,\n \"a\": 2\n}\"\xC3\xBC<\"");
    check("{{ strftime_now('%d %b %Y %H:%M') }}", "02 Jan 2026 03:04");
    check("{% generation %}a{% endgeneration %}", "a");
    check("{% set l = [] %}{% set _ = l.append(1) %}{{ l }}{{ l.pop(0) }}{{ l }}", "[1]1[]");
    check(
        "{{ [{'a': {'b': 1}}, {'a': {}}]|selectattr('a.b', 'defined')|map(attribute='a.b')|list }}",
        "[1]");
    check_error("{{ raise_exception('no such role') }}", "no such role");
}

static void test_template_chatml(void **state)
{
    struct chat_template *chat_template = NULL;
    struct buffer out = {0};
    json_t *variables = json_loads("{\"messages\": [{\"role\": \"user\", \"content\": \"hi\"}],"
                                   " \"add_generation_prompt\": true}",
                                   0, NULL);
    (void)state;
    assert_int_equal(chat_template_open(&chat_template, view_of(chat_template_chatml), NULL),
                     STATUS_OK);
    assert_int_equal(chat_template_render(chat_template, variables, NOW, &out, NULL), STATUS_OK);
    assert_string_equal(out.data, "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n");
    chat_template_close(chat_template);
    json_decref(variables);
    buffer_free(&out);
}

static void test_template_errors(void **state)
{
    (void)state;
    check_error("a\n\n{% include 'x' %}", "template line 3: the statement 'include'");
    check_error("{{ x|nope }}", "no filter is named 'nope'");
    check("{% if false %}{{ x|nope }}{% endif %}ok", "ok");
    check_error("{{ x", "expected '}}'");
    check_error("{% if x %}", "is missing");
    check_error("{{ 'a' + 1 }}", "between a str and a int");
    check_error("{{ s.encode('utf-8') }}", "not supported");
    check_error("{{ 1 // 0 }}", "division by zero");
    check_error("{{ 9223372036854775807 + 1 }}", "64 bits");
    check_error("\xFF", "not valid UTF-8");
}

static void check_repeated_error(const char *begin, const char *part, size_t count,
                                 const char *expected)
{
    struct buffer source = {0};
    buffer_append_text(&source, begin);
    for (size_t i = 0; i < count; i++)
        buffer_append_text(&source, part);
    check_error(source.data, expected);
    buffer_free(&source);
}

static void test_template_limits(void **state)
{
    (void)state;
    check_error("{% for i in range(10**9) %}{% endfor %}", "range()");
    check_error("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "levels deep");
    check_error("{{ 'a' * 10**12 }}", "grows beyond");
    check_error("{{ [0] * 10**12 }}", "steps");
    check_error("{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}",
                "more than");
    check_error("{{ ('a' * 5000000).find('a' * 2500000 ~ 'b') }}", "steps");
    check_error("{{ ('a' * 5000000).rfind('a' * 2500000 ~ 'b') }}", "steps");
    check_error("{{ ('a' * 2500000 ~ 'b') in 'a' * 5000000 }}", "steps");
    check_error("{% set t = namespace(v=(1,)) %}{% for i in range(60) %}{% set t.v = (t.v, t.v) %}"
                "{% endfor %}{{ {t.v: 1} }}",
                "steps");
    check_error("{% set l = [] %}{% set _ = l.append(l) %}{{ l }}", "nested too deeply");
    check_repeated_error("{{ ", "(", 100000, "nested");
    check_repeated_error("{{ ", "not ", 100000, "nested");
    check_repeated_error("{{ 1", " + 1", 100000, "expected");
    check_repeated_error("", "{% if x %}", 10000, "nested");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_template_expressions), cmocka_unit_test(test_template_undefined),
        cmocka_unit_test(test_template_white_space), cmocka_unit_test(test_template_scopes),
        cmocka_unit_test(test_template_loops),       cmocka_unit_test(test_template_macros),
        cmocka_unit_test(test_template_chat),        cmocka_unit_test(test_template_chatml),
        cmocka_unit_test(test_template_errors),      cmocka_unit_test(test_template_limits),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
