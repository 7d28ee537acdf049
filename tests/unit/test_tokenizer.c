#include "../support/tokenizer_vocabularies.h"
#include "text/tokenizer_internal.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

static struct tokenizer *open_small(const struct small_vocabulary *v)
{
    struct tokenizer *t = NULL;
    struct error error = {0};
    if (tokenizer_open(&t, &v->config, &error) != STATUS_OK)
        fail_msg("%s", error.text);
    return t;
}

/* Checks the tokens of text, written as their texts with '|' between. */
static void expect_sized(const struct tokenizer *t, struct view text, unsigned flags,
                         const char *expected)
{
    struct token_list list = {0};
    struct buffer found = {0};
    struct error error;
    assert_int_equal(tokenizer_encode(t, text, flags, &list, &error), STATUS_OK);
    buffer_append_text(&found, "");
    for (size_t i = 0; i < list.count; i++) {
        assert_in_range(list.ids[i], 0, tokenizer_count(t) - 1);
        struct view token = tokenizer_config(t)->tokens[list.ids[i]];
        buffer_printf(&found, "%s%.*s", i > 0 ? "|" : "", (int)token.size, token.data);
    }
    assert_string_equal(found.data, expected);
    buffer_free(&found);
    token_list_free(&list);
}

static void expect(const struct tokenizer *t, const char *text, unsigned flags,
                   const char *expected)
{
    expect_sized(t, view_of(text), flags, expected);
}

#define BOTH (TOKENIZER_ADD_SPECIAL | TOKENIZER_PARSE_SPECIAL)
#define G "\xc4\xa0"     /* a space in the byte alphabet */
#define U "\xe2\x96\x81" /* a space in SentencePiece's */

static void test_tokenizer_bytes_merges(void **state)
{
    (void)state;
    struct small_vocabulary v;
    small_bytes(&v, "gpt-2");
    struct tokenizer *t = open_small(&v);
    expect(t, "", 0, "");
    expect(t, "hello hello", 0, "hello|" G "hello");
    /* "b c" was learnt before "a b". */
    expect(t, "abc", 0, "abc");
    expect(t, "abab", 0, "ab|ab");
    /* No merge leads to it, and this pre-tokenizer does not take pieces whole. */
    expect(t, "orphan", 0, "o|r|p|h|a|n");
    expect(t, "\xc3\xa9", 0, "\xc3\x83|\xc2\xa9");
    expect_sized(t, (struct view){"a\0b", 3}, 0, "a|\xc4\x80|b");
    /* Bytes that are not UTF-8 become U+FFFD. */
    expect(t, "a\xff", 0, "a|\xc3\xaf|\xc2\xbf|\xc2\xbd");
    tokenizer_close(t);
}

static void test_tokenizer_bytes_whole_pieces(void **state)
{
    (void)state;
    struct small_vocabulary v;
    small_bytes(&v, "llama-bpe");
    struct tokenizer *t = open_small(&v);
    expect(t, "orphan", 0, "orphan");
    /* This pre-tokenizer also asks for BOS. */
    expect(t, "hello", BOTH, "<|begin|>|hello");
    tokenizer_close(t);
    small_bytes(&v, "gpt-2");
    t = open_small(&v);
    expect(t, "hello", BOTH, "hello");
    tokenizer_close(t);
}

static void test_tokenizer_markup(void **state)
{
    (void)state;
    struct small_vocabulary v;
    small_bytes(&v, "gpt-2");
    v.config.add_bos = v.config.add_eos = TOKENIZER_YES;
    struct tokenizer *t = open_small(&v);
    expect(t, "hello<|end|>[tool]ab", TOKENIZER_PARSE_SPECIAL, "hello|<|end|>|[tool]|ab");
    /* Without parsing, a control token's text is text; user-defined tokens stay, the longest first.
     */
    expect(t, "hello<|end|>[tool]ab", 0, "hello|<||e|n|d|||>|[tool]|ab");
    expect(t, "<|end", TOKENIZER_PARSE_SPECIAL, "<||e|n|d");
    expect(t, "", TOKENIZER_ADD_SPECIAL, "<|begin|>|<|end|>");
    expect(t, "ab", BOTH, "<|begin|>|ab|<|end|>");
    assert_true(tokenizer_is_control(t, v.config.eos));
    assert_false(tokenizer_is_control(t, 0));
    assert_false(tokenizer_is_control(t, -1));
    assert_int_equal(tokenizer_find(t, view_of("<|end|>")), v.config.eos);
    assert_int_equal(tokenizer_find(t, view_of("nothing")), TOKEN_NONE);
    tokenizer_close(t);
}

static void test_tokenizer_strips_around_markup(void **state)
{
    (void)state;
    struct small_vocabulary v;
    small_bytes(&v, "roberta-bpe");
    v.config.mask = small_add(&v, "<mask>", TOKEN_CONTROL, 0);
    struct tokenizer *t = open_small(&v);
    expect(t, "ab \xc2\xa0<mask> ab", TOKENIZER_PARSE_SPECIAL, "ab|<mask>|" G "|ab");
    tokenizer_close(t);
    small_spm(&v);
    small_add(&v, "<|placeholder1|>", TOKEN_CONTROL, 0);
    small_add(&v, "<|user|>", TOKEN_CONTROL, 0);
    t = open_small(&v);
    expect(t, "<|user|>\n ab<s> ab", TOKENIZER_PARSE_SPECIAL, "<|user|>|" U "ab|<s>|" U "|" U "ab");
    tokenizer_close(t);
}

static void test_tokenizer_spm(void **state)
{
    (void)state;
    struct small_vocabulary v;
    small_spm(&v);
    struct tokenizer *t = open_small(&v);
    expect(t, "", TOKENIZER_ADD_SPECIAL, "<s>");
    expect(t, "ab", TOKENIZER_ADD_SPECIAL, "<s>|" U "ab");
    /* "ab" has a higher score than "bc"; of equal pairs the leftmost goes first. */
    expect(t, "abc", 0, U "ab|c");
    expect(t, "aaa", 0, U "|aa|a");
    /* Characters without a token are spelt in bytes. */
    expect(t, "a\xc3\xa9", 0, U "|a|<0xC3>|<0xA9>");
    expect(t, "a\xff\n", 0, U "|a|<0xFF>|<0x0A>");
    /* A space is put in front behind every special token. */
    expect(t, "a</s>a[tool]a", TOKENIZER_PARSE_SPECIAL, U "|a|</s>|" U "|a|[tool]|" U "|a");
    /* The text of a control token, or of a byte token, merges into neither. */
    expect(t, "<s>", 0, U "|<s|>");
    expect(t, "<0x0A>", 0, U "|<|<0x30>|<0x78>|<0x30>|<0x41>|>");
    tokenizer_close(t);
    v.config.add_space_prefix = v.config.add_bos = TOKENIZER_NO;
    v.config.add_eos = TOKENIZER_YES;
    t = open_small(&v);
    expect(t, "ab  ab", TOKENIZER_ADD_SPECIAL, "ab|" U "|" U "ab|</s>");
    tokenizer_close(t);
}

static void test_tokenizer_spm_without_bytes(void **state)
{
    (void)state;
    struct small_vocabulary v;
    small_begin(&v, "llama", "");
    small_add(&v, "<unk>", TOKEN_UNKNOWN, 0);
    small_add(&v, "a", TOKEN_NORMAL, 0);
    v.config.scores = NULL;
    struct tokenizer *t = open_small(&v);
    expect(t, "az", 0, "<unk>|a|<unk>");
    tokenizer_close(t);
}

/* A file that gives no types: its ids tell the markup, the names the bytes. */
static void test_tokenizer_without_types(void **state)
{
    (void)state;
    struct small_vocabulary v;
    small_spm(&v);
    v.config.types = NULL;
    struct tokenizer *t = open_small(&v);
    struct buffer out = {0};
    expect(t, "<s>\n", 0, "▁|<s|>|<0x0A>");
    expect(t, "<s>\n", TOKENIZER_PARSE_SPECIAL, "<s>|▁|<0x0A>");
    tokenizer_piece(t, 3 + 0x0A, false, &out);
    assert_string_equal(out.data, "\n");
    buffer_free(&out);
    tokenizer_close(t);
}

static void test_tokenizer_unigram(void **state)
{
    (void)state;
    struct small_vocabulary v;
    small_unigram(&v);
    struct tokenizer *t = open_small(&v);
    expect(t, "", TOKENIZER_ADD_SPECIAL, "</s>");
    expect(t, "   ", 0, "");
    expect(t, "ab", TOKENIZER_ADD_SPECIAL, U "|ab|</s>");
    /* _ + abb (-6.5) beats _a + bb (-9) and _a + b + b (-10). */
    expect(t, "abb", 0, U "|abb");
    /* The single token for all of it costs more than its parts. */
    expect(t, "abbb", 0, U "|abb|b");
    /* Unknown characters in a row are one unknown token. */
    expect(t, "azzzb", 0, U "a|<unk>|b");
    expect(t, "\xf0\x9f\x98\x80\xff", 0, U "|<unk>");
    /* The charsmap's tab, spaces in a row and at the ends, and what it takes away. */
    expect(t,
           " \ta \t a\x01"
           "b  ",
           0, U "a|" U "|ab");
    tokenizer_close(t);
    v.config.remove_extra_whitespaces = v.config.add_space_prefix = TOKENIZER_NO;
    t = open_small(&v);
    expect(t, "a  a ", 0, "a|" U "|" U "a|" U);
    tokenizer_close(t);
}

static void test_tokenizer_wordpiece(void **state)
{
    (void)state;
    struct small_vocabulary v;
    small_wordpiece(&v, false);
    struct tokenizer *t = open_small(&v);
    expect(t, "Unable, able", TOKENIZER_ADD_SPECIAL, "[CLS]|" U "un|able|" U ",|" U "able|[SEP]");
    expect(t, "CAF\xc3\x89s cafe\xcc\x81", 0, U "cafe|s|" U "cafe");
    /* Chinese characters stand alone, control characters vanish, the unknown is one token a word.
     */
    expect(t,
           "able\xe4\xb8\xad"
           "able",
           0, U "able|" U "\xe4\xb8\xad|" U "able");
    expect(t, "ab\x01le\xe2\x80\x8b\xff", 0, U "able");
    expect(t, "unablex xyz", 0, "[UNK]|[UNK]");
    /* U+226E is "<" with a stroke: punctuation once the mark is off. */
    expect(t, "un\xe2\x89\xae", 0, U "un|" U "<");
    /* A word of more than 100 characters is not looked at. */
    char word[104] = "un";
    memset(word + 2, 's', 98);
    char known[512] = U "un";
    for (int i = 0; i < 98; i++)
        strcat(known, "|s");
    expect(t, word, 0, known);
    word[100] = 's';
    expect(t, word, 0, "[UNK]");
    tokenizer_close(t);
    small_wordpiece(&v, true);
    t = open_small(&v);
    expect(t, "Able able ABLE", 0, U "Able|" U "able|[UNK]");
    tokenizer_close(t);
}

static bool join_piece(void *context, const char *piece, size_t size)
{
    struct buffer *out = context;
    return (out->size == 0 || buffer_append_text(out, "|")) && buffer_append(out, piece, size);
}

/* One line for each rule that tells a pre-tokenizer from its neighbours. */
static void test_tokenizer_pre_tokenizers(void **state)
{
    (void)state;
    static const struct {
        const char *pre, *text, *pieces;
    } cases[] = {
        {"gpt-2", "I'll  go\n\n x1234!?", "I|'ll| | go|\n\n| x|1234|!?"},
        {"gpt-2", "WE'LL", "WE|'|LL"},
        {"gpt-2", "a \xe1\xa0\x8e", "a| \xe1\xa0\x8e"}, /* U+180E is no white space */
        {"gpt-2", "a   ", "a|   "},
        {"llama-bpe", "WE'LL  go\n\n x1234!?\n\ny", "WE|'LL| | go|\n\n| x|123|4|!?\n\n|y"},
        {"llama3", " \n 12", " \n| |12"},
        {"qwen2", "x12 \xe2\x80\xa6\xe2\x80\xa6", "x|1|2| \xe2\x80\xa6\xe2\x80\xa6"},
        {"qwen2",
         "a\xcc\x81"
         "b",
         "a|\xcc\x81"
         "b"},
        {"qwen35",
         "a\xcc\x81"
         "b1 ",
         "a\xcc\x81"
         "b|1| "},
        {"deepseek-llm", "ab 12,\xe4\xb8\xad\xe6\x96\x87 \n",
         "ab| |1|2|,|\xe4\xb8\xad\xe6\x96\x87| |\n"},
        {"deepseek-llm", "a   b  ", "a|  | b|  "},
        {"deepseek-coder", "ab $1", "ab| $|1"},
        {"deepseek-coder", "ab, c", "ab|,| c"},
        {"deepseek-v3", "#abc 1234\xe3\x81\x82x ~!", "#abc| |123|4|\xe3\x81\x82|x| ~!"},
        {"falcon", "a(1234)b", "a|(|123|4|)|b"},
        {"starcoder", "a 12", "a| |1|2"},
        {"gpt-4o", "HTTPServer's x/\n", "HTTPServer's| x|/\n"},
        {"gpt-4o", "fooBar \xc3\x84rger", "foo|Bar| \xc3\x84rger"},
        {"tekken", "it's 12", "it|'s| |1|2"},
        {"chatglm-bpe", "x1234", "x|123|4"},
        {"kimi-k2",
         "\xe4\xb8\xad\xe6\x96\x87"
         "fooBar's",
         "\xe4\xb8\xad\xe6\x96\x87|foo|Bar's"},
        {"superbpe", "a1234567b", "a|1|234|567|b"},
        {"superbpe", "123456", "123|456"},
        {"chameleon", "IMGIMGABZ x1", "IMGIMGABZ| x|1"},
        {"bailingmoe", "a\n\nb", "a|\n\n|b"},
        {"default", "a1234$b", "a|123|4|$|b"},
    };
    for (size_t i = 0; i < ARRAY_COUNT(cases); i++) {
        const struct pre_tokenizer *pre;
        struct splitter *splitter;
        struct error error;
        struct buffer found = {0};
        assert_int_equal(pre_tokenizer_find(&pre, view_of(cases[i].pre), &error), STATUS_OK);
        assert_int_equal(splitter_open(&splitter, pre, &error), STATUS_OK);
        assert_true(splitter_run(splitter, view_of(cases[i].text), join_piece, &found));
        if (strcmp(found.data, cases[i].pieces) != 0)
            print_error("%s:\n", cases[i].pre);
        assert_string_equal(found.data, cases[i].pieces);
        buffer_free(&found);
        splitter_close(splitter);
    }
}

static void test_tokenizer_every_pattern_compiles(void **state)
{
    (void)state;
    static const char names[] =
        "gpt-2 mpt llama-bpe llama-v3 falcon3 dbrx qwen2 qwen35 deepseek-r1-qwen hunyuan "
        "deepseek-llm "
        "deepseek-coder deepseek-v3 hunyuan-dense falcon starcoder refact command-r smollm gpt-4o "
        "llama4 minimax-m2 tekken kimi-k2 chatglm-bpe glm4 superbpe afmoe bailingmoe seed-coder "
        "bloom "
        "viking chameleon default";
    char copy[sizeof names];
    memcpy(copy, names, sizeof names);
    for (char *rest = copy, *name; (name = strtok_r(rest, " ", &rest)) != NULL;) {
        const struct pre_tokenizer *pre;
        struct splitter *splitter;
        struct error error;
        assert_int_equal(pre_tokenizer_find(&pre, view_of(name), &error), STATUS_OK);
        if (splitter_open(&splitter, pre, &error) != STATUS_OK)
            fail_msg("%s: %s", name, error.text);
        splitter_close(splitter);
    }
}

static void test_tokenizer_end_tokens(void **state)
{
    (void)state;
    struct small_vocabulary v;
    small_bytes(&v, "gpt-2");
    int32_t eot = v.config.eot = small_add(&v, "eot", TOKEN_NORMAL, 0);
    int32_t message = small_add(&v, "<|im_end|>", TOKEN_CONTROL, 0);
    int32_t text = small_add(&v, "</s>", TOKEN_NORMAL, 0);
    struct tokenizer *t = open_small(&v);
    assert_true(tokenizer_ends_generation(t, v.config.eos));
    assert_true(tokenizer_ends_generation(t, eot));
    assert_true(tokenizer_ends_generation(t, message));
    assert_false(tokenizer_ends_generation(t, text));
    assert_false(tokenizer_ends_generation(t, v.config.bos));
    assert_false(tokenizer_ends_generation(t, -1));
    assert_false(tokenizer_ends_generation(t, 1 << 20));
    tokenizer_close(t);
    /* gpt-oss: <|end|> only ends a message there. */
    v.config.eos = small_add(&v, "<|return|>", TOKEN_CONTROL, 0);
    int32_t call = small_add(&v, "<|call|>", TOKEN_CONTROL, 0);
    t = open_small(&v);
    assert_true(tokenizer_ends_generation(t, v.config.eos));
    assert_true(tokenizer_ends_generation(t, call));
    assert_false(tokenizer_ends_generation(t, tokenizer_find(t, view_of("<|end|>"))));
    tokenizer_close(t);
}

static void test_tokenizer_pieces(void **state)
{
    (void)state;
    struct small_vocabulary v;
    struct buffer out = {0};
    small_bytes(&v, "gpt-2");
    struct tokenizer *t = open_small(&v);
    tokenizer_piece(t, tokenizer_find(t, view_of(G "hello")), false, &out);
    tokenizer_piece(t, 0xE2, false, &out);
    tokenizer_piece(t, v.config.bos, false, &out);
    tokenizer_piece(t, v.config.bos, true, &out);
    tokenizer_piece(t, tokenizer_find(t, view_of("[tool]")), false, &out);
    tokenizer_piece(t, -5, true, &out);
    tokenizer_piece(t, INT32_MAX, true, &out);
    assert_string_equal(out.data, " hello\xe2<|begin|>[tool]");
    buffer_clear(&out); /* but for its first byte it holds the old text */
    tokenizer_piece(t, tokenizer_find(t, view_of(G "hello")), false, &out);
    assert_string_equal(out.data, " hello");
    tokenizer_close(t);
    buffer_clear(&out);
    small_spm(&v);
    t = open_small(&v);
    tokenizer_piece(t, tokenizer_find(t, view_of(U "ab")), false, &out);
    tokenizer_piece(t, 3 + 0x0A, false, &out);
    tokenizer_piece(t, v.config.unknown, false, &out);
    assert_string_equal(out.data, " ab\n");
    tokenizer_close(t);
    buffer_free(&out);
}

static void feed_bytes(struct detokenizer *d, const char *bytes, const char *expected)
{
    struct buffer out = {0};
    buffer_append_text(&out, "");
    for (; *bytes != '\0'; bytes++)
        detokenizer_feed(d, 3 + (uint8_t)*bytes, &out);
    assert_string_equal(out.data, expected);
    buffer_free(&out);
}

static void test_tokenizer_streaming(void **state)
{
    (void)state;
    struct small_vocabulary v;
    small_spm(&v);
    struct tokenizer *t = open_small(&v);
    struct detokenizer d = {.tokenizer = t};
    feed_bytes(&d, "\xf0\x9f", "");
    feed_bytes(&d, "\x98", "");
    feed_bytes(&d, "\x80\xc3", "\xf0\x9f\x98\x80");
    /* What can no longer become a character is U+FFFD, and what follows is not held up by it. */
    feed_bytes(&d,
               "a\xff"
               "b",
               REPLACEMENT "a" REPLACEMENT "b");
    feed_bytes(&d, "\xe2\x82", "");
    struct buffer out = {0};
    detokenizer_feed(&d, INT32_MAX, &out);
    assert_int_equal(out.size, 0);
    detokenizer_finish(&d, &out);
    assert_string_equal(out.data, REPLACEMENT REPLACEMENT);
    /* The first piece loses the space that encoding put there; the second keeps its own. */
    int32_t ab = tokenizer_find(t, view_of(U "ab"));
    d = (struct detokenizer){.tokenizer = t, .strip_space = true};
    buffer_clear(&out);
    detokenizer_feed(&d, v.config.bos, &out);
    detokenizer_feed(&d, ab, &out);
    detokenizer_feed(&d, ab, &out);
    assert_string_equal(out.data, "ab ab");
    buffer_free(&out);
    tokenizer_close(t);
}

static void expect_refused(const struct small_vocabulary *v, const char *part)
{
    struct tokenizer *t = NULL;
    struct error error = {0};
    assert_int_not_equal(tokenizer_open(&t, &v->config, &error), STATUS_OK);
    assert_null(t);
    if (strstr(error.text, part) == NULL)
        fail_msg("'%s' does not say '%s'", error.text, part);
}

static void test_tokenizer_refuses(void **state)
{
    (void)state;
    struct small_vocabulary v;
    small_bytes(&v, "no-such");
    expect_refused(&v, "'no-such' is not known; known are gpt-2 llama-bpe");
    small_bytes(&v, "gpt-2");
    v.config.model = view_of("abacus");
    expect_refused(&v, "'abacus' is not known; known are gpt2, llama, t5, bert");
    v.config.model = (struct view){0};
    expect_refused(&v, "''");
    small_bytes(&v, "gpt-2");
    v.config.eos = 1000;
    expect_refused(&v, "eos token is 1000");
    v.config.eos = -7;
    expect_refused(&v, "eos token is -7");
    small_bytes(&v, "gpt-2");
    v.config.n_tokens = 0;
    expect_refused(&v, "no tokens");
    v.config.n_tokens = SIZE_MAX;
    expect_refused(&v, "most are");
    small_bytes(&v, "gpt-2");
    v.config.n_merges = SIZE_MAX / 2;
    expect_refused(&v, "most are");
    small_bytes(&v, "gpt-2");
    v.tokens[3].size = SIZE_MAX / 4;
    expect_refused(&v, "token 3");
    small_unigram(&v);
    v.scores[4] = (float)(1e308 * 10);
    expect_refused(&v, "token 4");
    small_unigram(&v);
    v.config.charsmap.size = 40;
    expect_refused(&v, "charsmap");
    v.config.charsmap.size = 2;
    expect_refused(&v, "charsmap");
}

/* Odd vocabularies that are no errors: whatever comes out, ids are in range. */
static void test_tokenizer_survives(void **state)
{
    (void)state;
    static const char text[] = "<s>hello  \xe4\xb8\xad\xff[UNK] <|end|>";
    static const char *const models[] = {"gpt2", "llama", "t5", "bert"};
    for (size_t i = 0; i < ARRAY_COUNT(models); i++) {
        struct small_vocabulary v;
        small_bytes(&v, "gpt-2");
        v.config.model = view_of(models[i]);
        v.config.types = NULL;
        v.config.scores = NULL;
        for (size_t token = 20; token < 200; token++)
            v.tokens[token] = (struct view){token % 3 ? "" : "same", token % 3 ? 0 : 4};
        v.tokens[200] = view_of("\xff\xfe");
        struct tokenizer *t = open_small(&v);
        struct token_list list = {0};
        struct buffer out = {0};
        struct error error;
        assert_int_equal(tokenizer_encode(t, view_of(text), BOTH, &list, &error), STATUS_OK);
        struct detokenizer d = {.tokenizer = t, .with_special = true};
        for (size_t k = 0; k < list.count; k++) {
            assert_in_range(list.ids[k], 0, v.config.n_tokens - 1);
            detokenizer_feed(&d, list.ids[k], &out);
        }
        detokenizer_finish(&d, &out);
        assert_true(utf8_valid(out.size > 0 ? out.data : "", out.size));
        buffer_free(&out);
        token_list_free(&list);
        tokenizer_close(t);
    }
}

/* Quadratic time would take hours here; the limit leaves room for sanitizers. */
static void check_long_run(const struct tokenizer *t, const char *unit)
{
    struct buffer text = {0};
    struct token_list list = {0};
    struct error error;
    while (text.size < 300000)
        buffer_append_text(&text, unit);
    clock_t start = clock();
    assert_int_equal(tokenizer_encode(t, (struct view){text.data, text.size}, 0, &list, &error),
                     STATUS_OK);
    assert_true((double)(clock() - start) / CLOCKS_PER_SEC < 20);
    buffer_free(&text);
    token_list_free(&list);
}

static void check_long_runs(const struct small_vocabulary *v)
{
    static const char *const units[] = {
        "a",
        "ab",
        "A",
        " ",
        "\n",
        "\t \n",
        "1",
        "!",
        "\xe4\xb8\xad",
        "\xf0\x9f\x98\x80",
        "e\xcc\x81",
        "\xff",
        "<|",
        "          x",
        "'",
        "h",
    };
    struct tokenizer *t = open_small(v);
    for (size_t i = 0; i < ARRAY_COUNT(units); i++)
        check_long_run(t, units[i]);
    tokenizer_close(t);
}

static void test_tokenizer_long_runs(void **state)
{
    (void)state;
    static const char *const pres[] = {"gpt-2",       "llama-bpe", "gpt-4o",   "deepseek-llm",
                                       "deepseek-v3", "kimi-k2",   "superbpe", "default"};
    struct small_vocabulary v;
    for (size_t i = 0; i < ARRAY_COUNT(pres); i++) {
        small_bytes(&v, pres[i]);
        check_long_runs(&v);
    }
    small_spm(&v);
    check_long_runs(&v);
    small_unigram(&v);
    check_long_runs(&v);
    small_wordpiece(&v, false);
    check_long_runs(&v);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_tokenizer_bytes_merges),
        cmocka_unit_test(test_tokenizer_bytes_whole_pieces),
        cmocka_unit_test(test_tokenizer_markup),
        cmocka_unit_test(test_tokenizer_strips_around_markup),
        cmocka_unit_test(test_tokenizer_spm),
        cmocka_unit_test(test_tokenizer_spm_without_bytes),
        cmocka_unit_test(test_tokenizer_without_types),
        cmocka_unit_test(test_tokenizer_unigram),
        cmocka_unit_test(test_tokenizer_wordpiece),
        cmocka_unit_test(test_tokenizer_pre_tokenizers),
        cmocka_unit_test(test_tokenizer_every_pattern_compiles),
        cmocka_unit_test(test_tokenizer_end_tokens),
        cmocka_unit_test(test_tokenizer_pieces),
        cmocka_unit_test(test_tokenizer_streaming),
        cmocka_unit_test(test_tokenizer_refuses),
        cmocka_unit_test(test_tokenizer_survives),
        cmocka_unit_test(test_tokenizer_long_runs),
    };
    return cmocka_run_group_tests_name("tokenizer", tests, NULL, NULL);
}
