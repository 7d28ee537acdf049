/* Grammars over a small vocabulary: the bytes, and random tokens of several letters. Whether a text
 * may go on is asked of PCRE2 (partial matches) where a pattern can say it. */
#include "../support/tokenizer_vocabularies.h"
#include "sample/grammar_internal.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <cmocka.h>

#define N_RANDOM_TOKENS 50

struct fixture {
    struct small_vocabulary vocabulary;
    char texts[N_RANDOM_TOKENS][8];
    struct tokenizer *tokenizer;
    struct grammar_cache *cache;
    size_t n_vocab;
};

static int open_fixture(void **state)
{
    struct fixture *f = calloc(1, sizeof *f);
    struct error error;
    small_bytes(&f->vocabulary, "gpt-2");
    for (size_t i = 0; i < N_RANDOM_TOKENS; i++) {
        size_t n = 2 + rng_u64(1, i, 0) % 5;
        for (size_t c = 0; c < n; c++)
            f->texts[i][c] = "abc\"{}:,1"[rng_u64(1, i, (uint32_t)c + 1) % 9];
        small_add(&f->vocabulary, f->texts[i], TOKEN_NORMAL, 0);
    }
    if (tokenizer_open(&f->tokenizer, &f->vocabulary.config, &error) != STATUS_OK)
        fail_msg("%s", error.text);
    f->n_vocab = tokenizer_count(f->tokenizer) + 3; /* some logits belong to no token */
    assert_int_equal(grammar_cache_open(&f->cache, f->tokenizer, f->n_vocab, &error), STATUS_OK);
    *state = f;
    return 0;
}

static int close_fixture(void **state)
{
    struct fixture *f = *state;
    grammar_cache_close(f->cache);
    tokenizer_close(f->tokenizer);
    free(f);
    return 0;
}

static struct grammar *open_grammar(struct fixture *f, const char *text)
{
    struct grammar *grammar;
    struct error error;
    const struct grammar_spec spec = {.gbnf = view_of(text)};
    if (grammar_cache_get(f->cache, &spec, &grammar, &error) != STATUS_OK)
        fail_msg("%s: %s", text, error.text);
    return grammar;
}

static struct grammar_matcher *open_matcher(struct grammar *grammar)
{
    struct grammar_matcher *matcher;
    struct error error;
    assert_int_equal(grammar_matcher_open(&matcher, grammar, false, &error), STATUS_OK);
    return matcher;
}

/* allowed[n_vocab] of what may come next; how many they are. */
static size_t next_tokens(struct fixture *f, struct grammar_matcher *matcher, bool *allowed)
{
    float logits[SMALL_MAX + 8] = {0};
    size_t n = 0;
    assert_true(grammar_matcher_mask(matcher, logits));
    for (size_t i = 0; i < f->n_vocab; i++) {
        allowed[i] = logits[i] == 0;
        n += allowed[i];
    }
    return n;
}

/* Reads text byte by byte. 'x': it is not allowed; '.': it may end here; '>': it must go on. */
static char verdict(struct fixture *f, struct grammar *grammar, struct view text)
{
    bool allowed[SMALL_MAX + 8];
    struct grammar_matcher *matcher = open_matcher(grammar);
    char result = '>';
    for (size_t i = 0; i < text.size && result != 'x'; i++) {
        next_tokens(f, matcher, allowed);
        if (!allowed[(unsigned char)text.data[i]])
            result = 'x';
        grammar_matcher_accept(matcher, (unsigned char)text.data[i]);
    }
    bool any = next_tokens(f, matcher, allowed) > 0;
    assert_int_equal(any, result != 'x');
    for (size_t i = 0; i < f->n_vocab; i++)
        if (result == '>' && allowed[i] && tokenizer_ends_generation(f->tokenizer, (int32_t)i))
            result = '.';
    grammar_matcher_close(matcher);
    return result;
}

/* ---- GBNF ------------------------------------------------------------------------------------ */

static void test_grammar_gbnf(void **state)
{
    static const struct {
        const char *grammar, *text;
        char verdict;
    } cases[] = {
        {"root ::= \"ab\" | \"ac\"", "a", '>'},
        {"root ::= \"ab\" | \"ac\"", "ac", '.'},
        {"root ::= \"ab\" | \"ac\"", "ad", 'x'},
        {"root ::= \"\"", "", '.'},
        {"root ::= \"\"", "a", 'x'},
        {"root ::=\n", "", '.'},
        {"root ::= [a-c]{2,3}", "ab", '.'},
        {"root ::= [a-c]{2,3}", "a", '>'},
        {"root ::= [a-c]{2,3}", "abca", 'x'},
        {"root ::= [a-c]{2}", "abc", 'x'},
        {"root ::= \"a\"{2,} \"b\"", "aaaaab", '.'},
        {"root ::= \"a\"{2,} \"b\"", "ab", 'x'},
        {"root ::= \"a\"{0,1}", "", '.'},
        {"root ::= [^a]", "b", '.'},
        {"root ::= [^a]", "a", 'x'},
        {"root ::= [^a]", "\xC3\xA9", '.'},
        {"root ::= [^a]", "\xC3", '>'},
        {"root ::= [^a]", "\xFF", 'x'},
        {"root ::= .", "\xF0\x9F\x98\x80", '.'},
        {"root ::= .", "\xED\xA0\x80", 'x'}, /* half a surrogate pair */
        {"root ::= [\\u00e0-\\u00ff]", "\xC3\xA9", '.'},
        {"root ::= [\\u00e0-\\u00ff]", "\xC3\x9F", 'x'},
        {"root ::= [\\U0001F600-\\U0001F64F]+", "\xF0\x9F\x98\x80\xF0\x9F\x99\x8F", '.'},
        {"root ::= [\\U0001F600-\\U0001F64F]+", "\xF0\x9F\x99\x90", 'x'},
        {"root ::= [é-ü]", "\xC3\xB6", '.'},
        {"root ::= \"\\x41\\n\\t\\\\\\\"\"", "A\n\t\\\"", '.'},
        {"root ::= [\\]\\[-]", "]", '.'},
        {"root ::= [\\]\\[-]", "-", '.'},
        {"root ::= a b? # ends with b\na ::= \"x\"+\n# nothing\nb ::= \"y\"", "xxy", '.'},
        {"root ::= (\n \"a\" # one\n | \"b\"\n)+ \"c\"", "abac", '.'},
        {"root ::= \"a\"\n | \"b\"", "b", '.'},
        {"root ::= (\"a\"?)*", "aaa", '.'},
        {"root ::= (\"a\"*)* \"b\"", "aab", '.'},
        {"root ::= e \"x\" e\ne ::= \"\" | \"y\"", "xy", '.'},
        {"root ::= e \"x\" e\ne ::= \"\" | \"y\"", "yx", '.'},
        {"root ::= e \"x\" e\ne ::= \"\" | \"y\"", "yy", 'x'},
        {"root ::= \"(\" root \")\" | \"\"", "((", '>'},
        {"root ::= \"(\" root \")\" | \"\"", "(())", '.'},
        {"root ::= \"(\" root \")\" | \"\"", "(()))", 'x'},
        {"root ::= list\nlist ::= \"a\" | \"a,\" list", "a,a,a", '.'},
        {"root ::= s\ns ::= \"a\" s \"b\" | \"a\" s \"c\" | \"d\"", "aaaadbcbc", '.'},
        {"root ::= s\ns ::= \"a\" s \"b\" | \"a\" s \"c\" | \"d\"", "aadbcb", 'x'},
        {"root ::= \"a\" dead | \"b\"\ndead ::= \"x\" dead", "a", 'x'}, /* would never end */
        {"root ::= \"a\" [] | \"b\"", "a", 'x'},
    };
    for (size_t i = 0; i < ARRAY_COUNT(cases); i++) {
        struct grammar *grammar = open_grammar(*state, cases[i].grammar);
        char found = verdict(*state, grammar, view_of(cases[i].text));
        if (found != cases[i].verdict)
            fail_msg("%s: '%s' is %c, not %c", cases[i].grammar, cases[i].text, found,
                     cases[i].verdict);
        grammar_release(grammar);
    }
}

static void test_grammar_refuses(void **state)
{
    static const struct {
        const char *grammar, *reason;
    } cases[] = {
        {"", "the rule root is not defined"},
        {"start ::= \"a\"", "the rule root is not defined"},
        {"root ::= \"a\"\nroot ::= \"b\"", "line 2: a rule is defined twice"},
        {"root ::= a", "the rule a is not defined"},
        {"root = \"a\"", "line 1: ::= was expected"},
        {"root ::= \"a", "ends too early"},
        {"root ::= [a", "ends too early"},
        {"root ::= (\"a\"", "a ) is missing"},
        {"root ::= \"a\" )", "no part of a rule"},
        {"root ::= \"\\q\"", "unknown escape"},
        {"root ::= \"\\u00g0\"", "hexadecimal"},
        {"root ::= \"\\ud800\"", "no character"},
        {"root ::= [b-a]", "backwards"},
        {"root ::= \"a\"{3,2}", "maximum below its minimum"},
        {"root ::= \"a\"{1000000}", "larger than"},
        {"root ::= \"a\"{x}", "a number was expected"},
        {"root ::= \"\xFF\"", "valid UTF-8"},
        {"root ::= root \"a\" | \"b\"", "the rule root calls itself before it reads anything"},
        {"root ::= e root | \"b\"\ne ::= \"x\"?", "the rule root calls itself"},
        {"root ::= \"a\" root", "no text is possible"},
        {"root ::= ((([a-z]{99999}){99999}){99999})", "too large"},
    };
    struct fixture *f = *state;
    for (size_t i = 0; i < ARRAY_COUNT(cases); i++) {
        struct grammar *grammar = NULL;
        struct error error = {0};
        const struct grammar_spec spec = {.gbnf = view_of(cases[i].grammar)};
        enum status status = grammar_cache_get(f->cache, &spec, &grammar, &error);
        assert_int_not_equal(status, STATUS_OK);
        assert_null(grammar);
        if (strstr(error.text, cases[i].reason) == NULL)
            fail_msg("%s: %s", cases[i].grammar, error.text);
    }
}

/* ---- Random patterns ------------------------------------------------------------------------- */

struct writer {
    uint64_t seed, n;
    struct buffer gbnf, pattern;
};

static uint64_t choose(struct writer *w, uint64_t n)
{
    return rng_u64(w->seed, w->n++, 0) % n;
}

static void write_both(struct writer *w, const char *gbnf, const char *pattern)
{
    buffer_append_text(&w->gbnf, gbnf);
    buffer_append_text(&w->pattern, pattern);
}

/* The same random expression as GBNF and as a pattern. */
static void write_random(struct writer *w, unsigned depth)
{
    static const char *const leaves[][2] = {
        {"\"a\"", "a"},         {"\"bc\"", "bc"}, {"[a-b]", "[a-b]"}, {"[^a]", "[^a]"},
        {"\"{\\\"\"", "\\{\""}, {"\"\"", ""},     {"[1:,]", "[1:,]"}};
    static const char *const repeats[] = {"*", "+", "?", "{2}", "{1,3}", "{0,2}", "{2,}"};
    uint64_t kind = depth == 0 ? 0 : choose(w, 4);
    if (kind == 0) {
        uint64_t leaf = choose(w, ARRAY_COUNT(leaves));
        write_both(w, leaves[leaf][0], leaves[leaf][1]);
        return;
    }
    write_both(w, "(", "(?:");
    write_random(w, depth - 1);
    if (kind == 3) {
        uint64_t repeat = choose(w, ARRAY_COUNT(repeats));
        write_both(w, ")", ")");
        write_both(w, repeats[repeat], repeats[repeat]);
        return;
    }
    write_both(w, kind == 1 ? " " : " | ", kind == 1 ? "" : "|");
    write_random(w, depth - 1);
    write_both(w, ")", ")");
}

/* As verdict, by PCRE2. */
static char pattern_verdict(const pcre2_code *code, pcre2_match_data *match, struct view text)
{
    const uint8_t *data = (const uint8_t *)text.data;
    if (pcre2_match(code, data, text.size, 0, 0, match, NULL) > 0)
        return '.';
    return pcre2_match(code, data, text.size, 0, PCRE2_PARTIAL_HARD, match, NULL) ==
                   PCRE2_ERROR_PARTIAL
               ? '>'
               : 'x';
}

/* Follows random allowed tokens; before each, every token is compared with the pattern. */
static void walk_random(struct fixture *f, struct writer *w, const pcre2_code *code)
{
    bool allowed[SMALL_MAX + 8];
    struct grammar *grammar = open_grammar(f, w->gbnf.data);
    struct grammar_matcher *matcher = open_matcher(grammar);
    pcre2_match_data *match = pcre2_match_data_create_from_pattern(code, NULL);
    struct buffer text = {0};
    buffer_reserve(&text, 64);
    for (size_t step = 0; step < 6; step++) {
        int32_t pick = TOKEN_NONE;
        uint64_t best = 0;
        next_tokens(f, matcher, allowed);
        char here = pattern_verdict(code, match, (struct view){text.data, text.size});
        for (size_t id = 0; id < f->n_vocab; id++) {
            size_t size = text.size;
            tokenizer_piece(f->tokenizer, (int32_t)id, false, &text);
            bool ends = tokenizer_ends_generation(f->tokenizer, (int32_t)id);
            bool expected =
                ends ? here == '.'
                : text.size > size
                    ? pattern_verdict(code, match, (struct view){text.data, text.size}) != 'x'
                    : false;
            /* Not bytes of no character: PCRE2 looks at bytes here. */
            bool ascii = utf8_valid(text.data, text.size);
            text.size = size;
            if (ascii && expected != allowed[id])
                fail_msg("%s: after '%.*s' token %zu is %s", w->gbnf.data, (int)text.size,
                         text.data, id, allowed[id] ? "allowed" : "forbidden");
            uint64_t weight = rng_u64(w->seed, id, 9 + (uint32_t)step);
            if (allowed[id] && ascii && !ends && weight >= best) {
                best = weight;
                pick = (int32_t)id;
            }
        }
        if (pick == TOKEN_NONE)
            break;
        grammar_matcher_accept(matcher, pick);
        tokenizer_piece(f->tokenizer, pick, false, &text);
    }
    buffer_free(&text);
    pcre2_match_data_free(match);
    grammar_matcher_close(matcher);
    grammar_release(grammar);
}

static void test_grammar_patterns(void **state)
{
    size_t n = 0;
    for (uint64_t seed = 1; seed <= 150; seed++) {
        struct writer w = {.seed = seed};
        int number;
        PCRE2_SIZE at;
        buffer_append_text(&w.gbnf, "root ::= ");
        buffer_append_text(&w.pattern, "\\A(?:");
        write_random(&w, 4);
        buffer_append_text(&w.pattern, ")\\z");
        pcre2_code *code =
            pcre2_compile((const uint8_t *)w.pattern.data, w.pattern.size, 0, &number, &at, NULL);
        assert_non_null(code);
        walk_random(*state, &w, code);
        n++;
        pcre2_code_free(code);
        buffer_free(&w.gbnf);
        buffer_free(&w.pattern);
    }
    assert_int_equal(n, 150);
}

/* ---- Masks ----------------------------------------------------------------------------------- */

static const char json_grammar[] =
    "root ::= object\n"
    "value ::= object | array | string | number | \"true\"\n"
    "object ::= \"{\" ( string \":\" value (\",\" string \":\" value)* )? \"}\"\n"
    "array ::= \"[\" ( value (\",\" value)* )? \"]\"\n"
    "char ::= [^\"\\\\] | \"\\\\\" [\"n]\n"
    "string ::= \"\\\"\" char* \"\\\"\"\n"
    "number ::= [0-9]+\n";

/* Each token is allowed exactly where a matcher that takes it byte by byte goes on. */
static void check_mask(struct fixture *f, struct grammar *grammar, const struct token_list *text)
{
    bool allowed[SMALL_MAX + 8], after[SMALL_MAX + 8];
    struct grammar_matcher *matcher = open_matcher(grammar);
    for (size_t i = 0; i < text->count; i++)
        grammar_matcher_accept(matcher, text->ids[i]);
    next_tokens(f, matcher, allowed);
    grammar_matcher_close(matcher);
    for (size_t id = 0; id < tokenizer_count(f->tokenizer); id++) {
        struct buffer piece = {0};
        tokenizer_piece(f->tokenizer, (int32_t)id, false, &piece);
        if (piece.size > 0) {
            matcher = open_matcher(grammar);
            for (size_t i = 0; i < text->count; i++)
                grammar_matcher_accept(matcher, text->ids[i]);
            for (size_t i = 0; i < piece.size; i++)
                grammar_matcher_accept(matcher, (unsigned char)piece.data[i]);
            if (allowed[id] != (next_tokens(f, matcher, after) > 0))
                fail_msg("token %zu '%s' after %zu tokens is %s", id, piece.data, text->count,
                         allowed[id] ? "allowed" : "forbidden");
            grammar_matcher_close(matcher);
        }
        buffer_free(&piece);
    }
}

static void test_grammar_masks(void **state)
{
    struct fixture *f = *state;
    struct grammar *grammar = open_grammar(f, json_grammar);
    for (uint64_t seed = 1; seed <= 12; seed++) {
        struct token_list text = {0};
        struct grammar_matcher *matcher = open_matcher(grammar);
        for (size_t step = 0; step < 14; step++) {
            bool allowed[SMALL_MAX + 8];
            check_mask(f, grammar, &text);
            size_t n = next_tokens(f, matcher, allowed), pick = rng_u64(seed, step, 3) % n, id = 0;
            while (!allowed[id] || pick-- > 0)
                id++;
            if (tokenizer_ends_generation(f->tokenizer, (int32_t)id))
                break;
            token_list_append(&text, (int32_t)id);
            grammar_matcher_accept(matcher, (int32_t)id);
        }
        grammar_matcher_close(matcher);
        token_list_free(&text);
    }
    grammar_release(grammar);
}

/* Two readings of each letter: as many stacks as letters squared, not two to the letters. */
static void test_grammar_ambiguous(void **state)
{
    struct fixture *f = *state;
    struct grammar *grammar =
        open_grammar(f, "root ::= s\ns ::= \"a\" s \"b\" | \"a\" s \"c\" | \"a\" s | \"d\"\n");
    struct grammar_matcher *matcher = open_matcher(grammar);
    bool allowed[SMALL_MAX + 8];
    for (size_t i = 0; i < 300; i++)
        grammar_matcher_accept(matcher, i < 200 ? 'a' : i == 200 ? 'd' : "bc"[i % 2]);
    next_tokens(f, matcher, allowed);
    assert_true(allowed['b'] && allowed['c'] && !allowed['a'] && !allowed['d']);
    grammar_matcher_close(matcher);
    grammar_release(grammar);
}

/* A token that is not allowed leads to where none is; one that ends the text, to no other. */
static void test_grammar_ends(void **state)
{
    struct fixture *f = *state;
    struct grammar *grammar = open_grammar(f, "root ::= \"a\"*");
    struct grammar_matcher *matcher = open_matcher(grammar);
    bool allowed[SMALL_MAX + 8];
    int32_t end = TOKEN_NONE;
    next_tokens(f, matcher, allowed);
    for (size_t id = 0; id < f->n_vocab; id++)
        if (tokenizer_ends_generation(f->tokenizer, (int32_t)id)) {
            assert_true(allowed[id]);
            end = (int32_t)id;
        }
    assert_int_not_equal(end, TOKEN_NONE);
    grammar_matcher_accept(matcher, end);
    next_tokens(f, matcher, allowed);
    assert_true(allowed[end] && !allowed['a']);
    grammar_matcher_close(matcher);

    matcher = open_matcher(grammar);
    grammar_matcher_accept(matcher, 'b');
    assert_int_equal(next_tokens(f, matcher, allowed), 0);
    grammar_matcher_close(matcher);
    grammar_release(grammar);
}

/* The sampler draws nothing else, at any temperature. */
static void test_grammar_sampler(void **state)
{
    struct fixture *f = *state;
    struct grammar *grammar = open_grammar(f, "root ::= [ab]{3} \"cc\"");
    for (unsigned temperature = 0; temperature < 3; temperature++) {
        struct sampling sampling = SAMPLING_DEFAULTS;
        struct sampler *sampler;
        struct error error;
        struct buffer text = {0};
        sampling.temperature = (float)temperature;
        assert_int_equal(sampler_open(&sampler, &sampling, f->n_vocab, NULL, 0, &error), STATUS_OK);
        sampler_accept(sampler, 'x'); /* of the prompt */
        assert_int_equal(sampler_constrain(sampler, grammar, true, &error), STATUS_OK);
        for (uint64_t i = 0; i < 6; i++) {
            float logits[SMALL_MAX + 8];
            for (size_t id = 0; id < f->n_vocab; id++)
                logits[id] = (float)rng_uniform(temperature, i, (uint32_t)id);
            int32_t token = sampler_draw(sampler, logits, i);
            assert_true(token >= 0);
            sampler_accept(sampler, token);
            if (tokenizer_ends_generation(f->tokenizer, token))
                break;
            tokenizer_piece(f->tokenizer, token, false, &text);
        }
        assert_int_equal(text.size, 5);
        assert_int_equal(verdict(f, grammar, (struct view){text.data, text.size}), '.');
        buffer_free(&text);
        sampler_close(sampler);
    }
    grammar_release(grammar);
}

/* Equal texts are one grammar; old ones are given up, but not while they are used. */
static void test_grammar_cache(void **state)
{
    struct fixture *f = *state;
    struct grammar *first = open_grammar(f, "root ::= \"a\""), *again;
    again = open_grammar(f, "root ::= \"a\"");
    assert_ptr_equal(first, again);
    grammar_release(again);
    for (unsigned i = 0; i < 40; i++) {
        char text[32];
        snprintf(text, sizeof text, "root ::= \"b%u\"", i);
        grammar_release(open_grammar(f, text));
    }
    assert_int_equal(verdict(f, first, view_of("a")), '.');
    grammar_release(first);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_grammar_gbnf),      cmocka_unit_test(test_grammar_refuses),
        cmocka_unit_test(test_grammar_patterns),  cmocka_unit_test(test_grammar_masks),
        cmocka_unit_test(test_grammar_ambiguous), cmocka_unit_test(test_grammar_ends),
        cmocka_unit_test(test_grammar_sampler),   cmocka_unit_test(test_grammar_cache),
    };
    return cmocka_run_group_tests(tests, open_fixture, close_fixture);
}
