/* Text of an answer: whole characters, stop texts held back and cut off. */
#include "../support/tokenizer_vocabularies.h"
#include "engine/answer.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>

#include <cmocka.h>

/* Feeds bytes (a token each) and writes what is given after each, with '|' between, then what the
 * end gives and the stop text in brackets. */
static void run(const char *bytes, const struct view *stops, size_t n_stops, char *out, size_t size)
{
    struct small_vocabulary vocabulary;
    struct tokenizer *tokenizer;
    struct error error = {0};
    small_bytes(&vocabulary, "gpt-2");
    assert_int_equal(tokenizer_open(&tokenizer, &vocabulary.config, &error), STATUS_OK);
    struct answer answer = {
        .detokenizer = {.tokenizer = tokenizer}, .stops = stops, .n_stops = n_stops};
    struct view text, stop = {0};
    bool stopped = false;
    *out = '\0';
    for (const char *c = bytes; *c != '\0' && !stopped; c++) {
        stopped = answer_feed(&answer, (unsigned char)*c, &text, &stop);
        assert_true(utf8_valid(text.data, text.size));
        snprintf(out + strlen(out), size - strlen(out), "%.*s|", (int)text.size, text.data);
    }
    if (!stopped) {
        stopped = answer_finish(&answer, &text, &stop);
        snprintf(out + strlen(out), size - strlen(out), "%.*s", (int)text.size, text.data);
    }
    if (stopped)
        snprintf(out + strlen(out), size - strlen(out), "[%.*s]", (int)stop.size, stop.data);
    answer_free(&answer);
    tokenizer_close(tokenizer);
}

static void test_answer_gives(void **state)
{
    (void)state;
    const struct {
        const char *bytes, *stops[2], *expected;
    } cases[] = {
        {"abc", {0}, "a|b|c|"},
        {"a\xc3\xa9z", {0}, "a||\xc3\xa9|z|"},
        {"\xf0\x9f\x98\x80!", {0}, "|||\xf0\x9f\x98\x80|!|"},
        {"a\xc3", {0}, "a||\xef\xbf\xbd"},
        /* Held back while it may become a stop text. */
        {"abxy", {"abc"}, "||abx|y|"},
        {"xabc", {"abc"}, "x||||[abc]"},
        {"aabc", {"abc"}, "|a|||[abc]"},
        {"ab", {"abc"}, "||ab"},
        {"xx\nyy", {"\n"}, "x|x||[\n]"},
        /* The first that is whole ends the answer, also within another's beginning. */
        {"zabq", {"abcd", "b"}, "z||a|[b]"},
        {"zabc", {"c", "abc"}, "z||||[abc]"},
        /* A stop text that ends within a character is none until the character is whole. */
        {"a\xc3\xa9", {"\xc3\xa9"}, "a|||[\xc3\xa9]"},
        {"a\xc3\xa8", {"\xc3\xa9"}, "a||\xc3\xa8|"},
        {"a\xc3", {"\xef\xbf\xbd"}, "a||[\xef\xbf\xbd]"},
    };
    for (size_t i = 0; i < ARRAY_COUNT(cases); i++) {
        struct view stops[2];
        size_t n_stops = 0;
        char found[128];
        while (n_stops < 2 && cases[i].stops[n_stops] != NULL) {
            stops[n_stops] = view_of(cases[i].stops[n_stops]);
            n_stops++;
        }
        run(cases[i].bytes, stops, n_stops, found, sizeof found);
        assert_string_equal(found, cases[i].expected);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_answer_gives)};
    return cmocka_run_group_tests_name("answer", tests, NULL, NULL);
}
