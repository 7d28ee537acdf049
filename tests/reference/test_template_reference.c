/* Published chat templates render byte for byte as Jinja2 renders them. */
#include "../support/reference.h"
#include "text/text.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include <cmocka.h>

/* The case's variables, with the file's bos_token and eos_token where the case has none. */
static json_t *case_variables(const json_t *reference, const char *name)
{
    json_t *variables = json_copy(json_object_get(json_object_get(reference, "cases"), name));
    static const char *const tokens[] = {"bos_token", "eos_token"};
    for (size_t i = 0; i < ARRAY_COUNT(tokens); i++)
        if (json_object_get(variables, tokens[i]) == NULL)
            json_object_set(variables, tokens[i], json_object_get(reference, tokens[i]));
    return variables;
}

/* "2026-01-02T03:04:05" in seconds since 1970. */
static int64_t parse_now(const char *text)
{
    struct tm parts = {0};
    assert_int_equal(sscanf(text, "%d-%d-%dT%d:%d:%d", &parts.tm_year, &parts.tm_mon,
                            &parts.tm_mday, &parts.tm_hour, &parts.tm_min, &parts.tm_sec),
                     6);
    parts.tm_year -= 1900;
    parts.tm_mon -= 1;
    return timegm(&parts);
}

static size_t check_case(const struct chat_template *chat_template, const json_t *reference,
                         const char *template_name, const char *case_name, const json_t *expected)
{
    struct buffer out = {0};
    struct error error = {0};
    json_t *variables = case_variables(reference, case_name);
    int64_t now = parse_now(json_string_value(json_object_get(reference, "now")));
    enum status status = chat_template_render(chat_template, variables, now, &out, &error);
    const json_t *text = json_object_get(expected, "text");
    bool as_expected =
        text == NULL
            ? status != STATUS_OK
            : status == STATUS_OK &&
                  view_equal((struct view){out.data, out.size},
                             (struct view){json_string_value(text), json_string_length(text)});
    if (!as_expected)
        print_error("%s, %s: %s\n", template_name, case_name,
                    status == STATUS_OK ? "another text" : error.text);
    buffer_free(&out);
    json_decref(variables);
    return as_expected ? 0 : 1;
}

static size_t check_template(const json_t *reference, const char *name, const json_t *cases)
{
    char path[REFERENCE_PATH_BYTES];
    struct buffer source = {0};
    struct error error = {0};
    struct chat_template *chat_template = NULL;
    reference_path(path, "template/%s.jinja", name);
    assert_true(reference_read(path, &source));
    enum status status =
        chat_template_open(&chat_template, (struct view){source.data, source.size}, &error);
    if (status != STATUS_OK)
        print_error("%s: %s\n", name, error.text);
    assert_int_equal(status, STATUS_OK);
    size_t failures = 0;
    const char *case_name;
    json_t *expected;
    json_object_foreach((json_t *)(uintptr_t)cases, case_name, expected)
    {
        failures += check_case(chat_template, reference, name, case_name, expected);
    }
    chat_template_close(chat_template);
    buffer_free(&source);
    return failures;
}

static void test_template_reference(void **state)
{
    char path[REFERENCE_PATH_BYTES];
    json_error_t json_error;
    (void)state;
    reference_path(path, "template/expected.json");
    json_t *reference = json_load_file(path, 0, &json_error);
    if (reference == NULL) {
        print_message("%s is missing\n", path);
        skip();
    }
    size_t failures = 0, count = 0;
    const char *name;
    json_t *cases;
    json_object_foreach(json_object_get(reference, "expected"), name, cases)
    {
        failures += check_template(reference, name, cases);
        count += json_object_size(cases);
    }
    assert_int_equal(failures, 0);
    assert_true(count > 0);
    json_decref(reference);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_template_reference),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
