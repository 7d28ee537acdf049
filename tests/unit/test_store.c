/* Names, and what they stand for. */
#include "store/store.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define HEX "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

static void test_names(void **state)
{
    (void)state;
    static const char *const good[][2] = {
        {"llama3.2", "llama3.2:latest"},
        {"llama3.2:1b-q4_k_m", "llama3.2:1b-q4_k_m"},
        {"Owner/Repo-GGUF", "Owner/Repo-GGUF:latest"},
        {"host.example/owner/repo:Q4_K_M", "host.example/owner/repo:Q4_K_M"},
        {"a", "a:latest"},
    };
    static const char *const bad[] = {"",   ".",    "..",    "../a",     "/a",     "a/",     "a//b",
                                      ":a", "a:",   "a:b:c", "a:b/c",    "a b",    "a\n",    "a/.b",
                                      "-a", "a\\b", "a%",    "\xc3\xa4", "a:../b", "a/../b", "~"};
    char name[STORE_NAME_BYTES], longest[400];
    struct error error;
    for (size_t i = 0; i < ARRAY_COUNT(good); i++) {
        assert_int_equal(store_name_parse(good[i][0], name, &error), STATUS_OK);
        assert_string_equal(name, good[i][1]);
    }
    for (size_t i = 0; i < ARRAY_COUNT(bad); i++)
        assert_int_equal(store_name_parse(bad[i], name, &error), STATUS_INVALID);
    memset(longest, 'a', sizeof longest);
    longest[STORE_NAME_BYTES - 1 - strlen(":latest")] = '\0';
    assert_int_equal(store_name_parse(longest, name, &error), STATUS_OK);
    assert_int_equal(strlen(name), STORE_NAME_BYTES - 1);
    strcat(longest, "a");
    assert_int_equal(store_name_parse(longest, name, &error), STATUS_INVALID);
    assert_int_equal(store_name_short("a:latest"), 1);
    assert_int_equal(store_name_short("a:later"), 7);
    assert_int_equal(store_name_short(":latest"), 7);
}

static void test_names_of_files(void **state)
{
    (void)state;
    static const char *const files[][2] = {
        {"/models/Llama-3.2-1B.Q4_K_M.gguf", "Llama-3.2-1B.Q4_K_M"},
        {"big-00002-of-00010.gguf", "big"},
        {"no-ending", "no-ending"},
        {"two words (1).gguf", "two-words--1-"},
        {"..gguf", "model"},
        {"-00001-of-00002.gguf", "00001-of-00002"},
        {"/", "model"},
        {"-00001-of-00002", "00001-of-00002"},
        {"x-0001-of-00002.gguf", "x-0001-of-00002"},
    };
    char name[STORE_NAME_BYTES], whole[STORE_NAME_BYTES], longest[400];
    struct error error;
    for (size_t i = 0; i < ARRAY_COUNT(files); i++) {
        store_name_of_file(files[i][0], name);
        assert_string_equal(name, files[i][1]);
        assert_int_equal(store_name_parse(name, whole, &error), STATUS_OK);
    }
    memset(longest, 'a', sizeof longest);
    longest[sizeof longest - 1] = '\0';
    store_name_of_file(longest, name);
    assert_int_equal(store_name_parse(name, whole, &error), STATUS_OK);
}

static struct store_model *read_manifest(const char *text, enum status expected, const char *why)
{
    struct store_model *model;
    struct error error = {.text = ""};
    assert_int_equal(store_manifest_read(&model, view_of(text), &error), expected);
    if (strstr(error.text, why) == NULL)
        fail_msg("'%s' does not say '%s'", error.text, why);
    assert_true((model != NULL) == (expected == STATUS_OK));
    return model;
}

#define FILE_JSON(name, size)                                                                      \
    "{\"name\":\"" name "\",\"digest\":\"sha256:" HEX "\",\"size\":" size "}"

static void test_manifest_comes_back(void **state)
{
    (void)state;
    struct store_model *model = read_manifest(
        "{\"name\":\"a/b:c\",\"source\":\"s\",\"files\":[" FILE_JSON(
            "x.gguf", "7") "],"
                           "\"system\":\"be kind\",\"template\":\"t\",\"license\":\"l\","
                           "\"parameters\":{\"temperature\":0.5,\"stop\":[\"x\"]},"
                           "\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}],\"unknown\":1}",
        STATUS_OK, "");
    for (int round = 0; round < 2; round++) {
        struct buffer text = {0};
        struct error error;
        assert_string_equal(model->name, "a/b:c");
        assert_string_equal(model->source, "s");
        assert_string_equal(model->system, "be kind");
        assert_string_equal(model->chat_template, "t");
        assert_string_equal(model->license, "l");
        assert_string_equal(model->digest, HEX);
        assert_int_equal(model->size_bytes, 7);
        assert_int_equal(model->n_files, 1);
        assert_int_equal(json_array_size(model->messages), 1);
        assert_int_equal(json_object_size(model->parameters), 2);
        assert_int_equal(store_manifest_write(model, &text, &error), STATUS_OK);
        store_model_free(model);
        model = read_manifest(text.data, STATUS_OK, "");
        buffer_free(&text);
    }
    store_model_free(model);
}

static void test_parts_have_one_digest(void **state)
{
    (void)state;
    struct store_model *model = read_manifest(
        "{\"name\":\"a\",\"files\":[" FILE_JSON("x-00001-of-00002.gguf", "7") "," FILE_JSON(
            "x-00002-of-00002.gguf", "5") "]}",
        STATUS_OK, "");
    assert_int_equal(model->size_bytes, 12);
    assert_int_equal(strlen(model->digest), 64);
    assert_string_not_equal(model->digest, HEX);
    store_model_free(model);
}

static void test_manifest_is_not_trusted(void **state)
{
    (void)state;
    static const char *const bad[][2] = {
        {"", "JSON"},
        {"[]", "JSON object"},
        {"{}", "no name"},
        {"{\"name\":\"a\",\"name\":\"b\"}", "JSON"},
        {"{\"name\":\"../a\"}", "no name of a model"},
        {"{\"name\":\"a\"}", "0 files"},
        {"{\"name\":\"a\",\"files\":[1]}", "no good name"},
        {"{\"name\":\"a\",\"files\":[" FILE_JSON("", "1") "]}", "no good name"},
        {"{\"name\":\"a\",\"files\":[" FILE_JSON("../x", "1") "]}", "no good name"},
        {"{\"name\":\"a\",\"files\":[" FILE_JSON(".x", "1") "]}", "no good name"},
        {"{\"name\":\"a\",\"files\":[" FILE_JSON("x\\u001b[2J", "1") "]}", "no good name"},
        {"{\"name\":\"a\",\"files\":[" FILE_JSON("x", "-1") "]}", "no good size"},
        {"{\"name\":\"a\",\"files\":[" FILE_JSON("x", "0") "]}", "no good size"},
        {"{\"name\":\"a\",\"files\":[" FILE_JSON("x", "1.5") "]}", "no good size"},
        {"{\"name\":\"a\",\"files\":[" FILE_JSON("x", "9000000000000000000") "]}", "no good size"},
        {"{\"name\":\"a\",\"files\":[" FILE_JSON("x", "1") "," FILE_JSON("x", "1") "]}", "order"},
        {"{\"name\":\"a\",\"files\":[{\"name\":\"x\",\"size\":1,\"digest\":\"sha256:../../x\"}]}",
         "SHA-256"},
        {"{\"name\":\"a\",\"files\":[{\"name\":\"x\",\"size\":1,\"digest\":\"" HEX "\"}]}",
         "SHA-256"},
        {"{\"name\":\"a\",\"system\":1}", "system is no text"},
        {"{\"name\":\"a\",\"parameters\":[]}", "parameters"},
        {"{\"name\":\"a\",\"files\":[" FILE_JSON("x", "1") "],\"messages\":[{}]}", "no role"},
    };
    for (size_t i = 0; i < ARRAY_COUNT(bad); i++)
        read_manifest(bad[i][0], STATUS_INVALID, bad[i][1]);
}

static void test_modelfile(void **state)
{
    (void)state;
    static const char text[] = "# a comment\r\n\nfrom base:1b\nPARAMETER temperature 0.5\n"
                               "PARAMETER top_k 40\nPARAMETER stop \"a b\"\nparameter stop c d  \n"
                               "PARAMETER penalize_newline true\n"
                               "SYSTEM \"\"\"one\ntwo \"quoted\" \"\"\"\nTEMPLATE {{ .Prompt }}\n"
                               "MESSAGE user Hello there\nLICENSE \"\"\"\"\"\"";
    struct store_model *model = store_model_new();
    struct error error = {.text = ""};
    const char *from = NULL;
    assert_int_equal(store_modelfile_read(model, view_of(text), &from, &error), STATUS_OK);
    assert_string_equal(from, "base:1b");
    assert_string_equal(model->system, "one\ntwo \"quoted\" ");
    assert_string_equal(model->chat_template, "{{ .Prompt }}");
    assert_string_equal(model->license, "");
    char *parameters = json_dumps(model->parameters, JSON_SORT_KEYS | JSON_COMPACT);
    assert_string_equal(parameters, "{\"penalize_newline\":true,\"stop\":[\"a b\",\"c d\"],"
                                    "\"temperature\":0.5,\"top_k\":40}");
    free(parameters);
    assert_int_equal(json_array_size(model->messages), 1);
    store_model_free(model);
}

static void test_modelfile_faults(void **state)
{
    (void)state;
    static const char *const bad[][2] = {
        {"FROM a\nADAPTER b", "line 2: adapters"},
        {"\n\nRUN x", "line 3 begins with 'RUN'"},
        {"SYSTEM \"\"\"x", "line 1: the quotes"},
        {"FROM a\nSYSTEM \"x\n\"", "line 2: the quotes"},
        {"FROM \xff", "UTF-8"},
    };
    for (size_t i = 0; i < ARRAY_COUNT(bad); i++) {
        struct store_model *model = store_model_new();
        struct error error = {.text = ""};
        const char *from = NULL;
        assert_int_not_equal(store_modelfile_read(model, view_of(bad[i][0]), &from, &error),
                             STATUS_OK);
        if (strstr(error.text, bad[i][1]) == NULL)
            fail_msg("'%s' does not say '%s'", error.text, bad[i][1]);
        store_model_free(model);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_names),
        cmocka_unit_test(test_names_of_files),
        cmocka_unit_test(test_manifest_comes_back),
        cmocka_unit_test(test_parts_have_one_digest),
        cmocka_unit_test(test_manifest_is_not_trusted),
        cmocka_unit_test(test_modelfile),
        cmocka_unit_test(test_modelfile_faults),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
