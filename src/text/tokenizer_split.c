/* Pre-tokenizers: how a model cuts text into pieces that are merged one by one.
 *
 * The patterns are those of the models' own tokenizer.json (or of their published Python code),
 * which run in Oniguruma or Rust's regex. PCRE2 with UTF and UCP agrees with them except in these
 * points:
 *
 *   - \s there is Unicode's White_Space; PCRE2's also has U+180E. SPACE spells the property out.
 *   - \p{Han} there is the script; PCRE2's is, from 10.40 on, the script extensions. HAN lists it.
 *   - $ there is the end of a line; newlines are cut off before it is used, so it is \z here.
 *   - [a&&[^b]] is written as the complement of a union.
 *
 * A step cuts each piece of the step before into its matches and what lies between them. A
 * lookaround sees its own piece only, as in the models' libraries.
 */
#define PCRE2_CODE_UNIT_WIDTH 8

#include "text/tokenizer_internal.h"

#include <pcre2.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_STEPS ARRAY_COUNT(((struct pre_tokenizer *)0)->steps)

/* Between brackets. */
#define SPACE                                                                                      \
    "\\t-\\r "                                                                                     \
    "\\x{85}\\x{a0}\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}\\x{202f}\\x{205f}\\x{3000}"
#define UPPER "\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}"
#define LOWER "\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}"
#define HAN                                                                                        \
    "\\x{2e80}-\\x{2e99}\\x{2e9b}-\\x{2ef3}\\x{2f00}-\\x{2fd5}\\x{3005}\\x{3007}"                  \
    "\\x{3021}-\\x{3029}\\x{3038}-\\x{303b}\\x{3400}-\\x{4dbf}\\x{4e00}-\\x{9fff}"                 \
    "\\x{f900}-\\x{fa6d}\\x{fa70}-\\x{fad9}\\x{16fe2}-\\x{16fe3}\\x{16ff0}-\\x{16ff1}"             \
    "\\x{20000}-\\x{2a6df}\\x{2a700}-\\x{2b739}\\x{2b740}-\\x{2b81d}\\x{2b820}-\\x{2cea1}"         \
    "\\x{2ceb0}-\\x{2ebe0}\\x{2ebf0}-\\x{2ee5d}\\x{2f800}-\\x{2fa1d}\\x{30000}-\\x{3134a}"         \
    "\\x{31350}-\\x{323af}"
/* The letters with case, as DeepSeek's first tokenizers list them. */
#define CASED                                                                                      \
    "A-Za-z\\x{b5}\\x{c0}-\\x{d6}\\x{d8}-\\x{f6}\\x{f8}-\\x{1ba}\\x{1bc}-\\x{1bf}"                 \
    "\\x{1c4}-\\x{293}\\x{295}-\\x{2af}\\x{370}-\\x{373}\\x{376}\\x{377}\\x{37b}-\\x{37d}"         \
    "\\x{37f}\\x{386}\\x{388}-\\x{38a}\\x{38c}\\x{38e}-\\x{3a1}\\x{3a3}-\\x{3f5}"                  \
    "\\x{3f7}-\\x{481}\\x{48a}-\\x{52f}\\x{531}-\\x{556}\\x{10a0}-\\x{10c5}"                       \
    "\\x{13a0}-\\x{13f5}\\x{13f8}-\\x{13fd}\\x{1c90}-\\x{1cba}\\x{1cbd}-\\x{1cbf}"                 \
    "\\x{1d00}-\\x{1d2b}\\x{1d6b}-\\x{1d77}\\x{1d79}-\\x{1d9a}\\x{1e00}-\\x{1f15}"                 \
    "\\x{1f18}-\\x{1f1d}\\x{1f20}-\\x{1f45}\\x{1f48}-\\x{1f4d}\\x{1f50}-\\x{1f57}\\x{1f59}"        \
    "\\x{1f5b}\\x{1f5d}\\x{1f5f}-\\x{1f7d}\\x{1f80}-\\x{1fb4}\\x{1fb6}-\\x{1fbc}\\x{1fbe}"         \
    "\\x{1fc2}-\\x{1fc4}\\x{1fc6}-\\x{1fcc}\\x{1fd0}-\\x{1fd3}\\x{1fd6}-\\x{1fdb}"                 \
    "\\x{1fe0}-\\x{1fec}\\x{1ff2}-\\x{1ff4}\\x{1ff6}-\\x{1ffc}\\x{2102}\\x{2107}"                  \
    "\\x{210a}-\\x{2113}\\x{2115}\\x{2119}-\\x{211d}\\x{2124}\\x{2126}\\x{2128}"                   \
    "\\x{212a}-\\x{212d}\\x{212f}-\\x{2134}\\x{2139}\\x{213c}-\\x{213f}\\x{2145}-\\x{2149}"        \
    "\\x{214e}\\x{2183}\\x{2184}\\x{2c00}-\\x{2c7b}\\x{2c7e}-\\x{2ce4}\\x{2ceb}-\\x{2cee}"         \
    "\\x{2cf2}\\x{2cf3}\\x{a640}-\\x{a66d}\\x{a680}-\\x{a69b}\\x{a722}-\\x{a76f}"                  \
    "\\x{a771}-\\x{a787}\\x{a78b}-\\x{a78e}\\x{ab70}-\\x{abbf}\\x{fb00}-\\x{fb06}"                 \
    "\\x{fb13}-\\x{fb17}\\x{ff21}-\\x{ff3a}\\x{ff41}-\\x{ff5a}\\x{10400}-\\x{1044f}"               \
    "\\x{104b0}-\\x{104d3}\\x{104d8}-\\x{104fb}\\x{10c80}-\\x{10cb2}\\x{10cc0}-\\x{10cf2}"         \
    "\\x{118a0}-\\x{118df}\\x{1e900}-\\x{1e943}"

/* White space at the end of most patterns: up to the last newline, then all but the last of a run
 * before a word, then the rest. */
#define TAIL "|[" SPACE "]*[\\r\\n]+|[" SPACE "]+(?![^" SPACE "])|[" SPACE "]+"

#define CONTRACTION "(?i:'s|'t|'re|'ve|'m|'ll|'d)"

#define GPT2                                                                                       \
    "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^" SPACE "\\p{L}\\p{N}]+"                      \
    "|[" SPACE "]+(?![^" SPACE "])|[" SPACE "]+"

/* The family that began with GPT-4: what a word is, and how many digits stay together. */
#define GPT4(letters, not_symbol, digits)                                                          \
    CONTRACTION "|[^\\r\\n\\p{L}\\p{N}]?" letters "+|" digits "| ?[^" SPACE not_symbol             \
                "]+[\\r\\n]*" TAIL

/* The family that began with GPT-4o: words end where case rises. */
#define GPT4O(contraction, digits)                                                                 \
    "[^\\r\\n\\p{L}\\p{N}]?[" UPPER "]*[" LOWER "]+" contraction "|[^\\r\\n\\p{L}\\p{N}]?[" UPPER  \
    "]+[" LOWER "]*" contraction "|" digits "| ?[^" SPACE "\\p{L}\\p{N}]+[\\r\\n/]*" TAIL

/* The same without Han: complements of all other categories. */
#define KIMI_UPPER "[^\\p{Ll}\\p{N}\\p{P}\\p{S}\\p{Z}\\p{C}" HAN "]"
#define KIMI_LOWER "[^\\p{Lu}\\p{Lt}\\p{N}\\p{P}\\p{S}\\p{Z}\\p{C}" HAN "]"
#define KIMI                                                                                       \
    "[" HAN "]+"                                                                                   \
    "|[^\\r\\n\\p{L}\\p{N}]?" KIMI_UPPER "*" KIMI_LOWER "+" CONTRACTION "?"                        \
    "|[^\\r\\n\\p{L}\\p{N}]?" KIMI_UPPER "+" KIMI_LOWER "*" CONTRACTION "?"                        \
    "|\\p{N}{1,3}| ?[^" SPACE "\\p{L}\\p{N}]+[\\r\\n]*" TAIL

#define DEEPSEEK_V3                                                                                \
    "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+"                                        \
    "|[^\\r\\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\\r\\n]*" TAIL

#define CJK_DEEPSEEK "[\\x{4e00}-\\x{9fa5}\\x{800}-\\x{4e00}\\x{ac00}-\\x{d7ff}]+"
#define CJK_AFMOE                                                                                  \
    "[\\x{4e00}-\\x{9fff}\\x{3400}-\\x{4dbf}\\x{f900}-\\x{faff}\\x{3040}-\\x{309f}"                \
    "\\x{30a0}-\\x{30ff}\\x{ff65}-\\x{ff9f}\\x{2f00}-\\x{2fdf}\\x{e00}-\\x{e7f}\\x{e80}-\\x{eff}"  \
    "\\x{1780}-\\x{17ff}\\x{1000}-\\x{109f}\\x{aa60}-\\x{aa7f}\\x{a9e0}-\\x{a9ff}"                 \
    "\\x{ac00}-\\x{d7af}\\x{1100}-\\x{11ff}]+"

/* Groups of three digits counted from the right: published as a cut at (?=(\d{3})+(?!\d)), here
 * written so that it reads a long run of digits once. */
#define THREES "\\A\\d{1,2}(?=(?:\\d{3})++(?!\\d))|\\d{3}"

#define POETRY " ?[^(" SPACE "|.,!?\\x{2026}\\x{3002}\\x{ff0c}\\x{3001}\\x{964}\\x{6d4}\\x{60c})]+"

#define ONE_DIGIT "\\p{N}"
#define THREE_DIGITS "\\p{N}{1,3}"
#define WORD "\\p{L}"
#define NOT_SYMBOL "\\p{L}\\p{N}"

static const struct pre_tokenizer pre_tokenizers[] = {
    {.names = "gpt-2 phi-2 jina-es jina-de jina-v1-en jina-v2-es jina-v2-de jina-v2-code "
              "roberta-bpe gigachat a.x-4.0 mellum modern-bert mpt olmo jais trillion "
              "granite-docling exaone4",
     .steps = {GPT2}},
    {.names = "llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2",
     .steps = {GPT4(WORD, NOT_SYMBOL, THREE_DIGITS)},
     .whole = true,
     .add_bos = true},
    {.names = "chatglm-bpe glm4 dbrx smaug-bpe", .steps = {GPT4(WORD, NOT_SYMBOL, THREE_DIGITS)}},
    {.names = "qwen2 deepseek-r1-qwen stablelm2 hunyuan megrez grok-2",
     .steps = {GPT4(WORD, NOT_SYMBOL, ONE_DIGIT)}},
    {.names = "qwen35", .steps = {GPT4("[\\p{L}\\p{M}]", "\\p{L}\\p{M}\\p{N}", ONE_DIGIT)}},
    {.names = "deepseek-llm",
     .steps = {"[\\r\\n]", "[" SPACE "]?[" CASED "]+",
               "[" SPACE "]?[!-/:-~\\x{ff01}-\\x{ff0f}\\x{ff1a}-\\x{ff5e}\\x{2018}-\\x{201f}"
               "\\x{3000}-\\x{3002}]+",
               "(?<![" SPACE "])[" SPACE "]++\\z", CJK_DEEPSEEK, ONE_DIGIT}},
    {.names = "deepseek-coder",
     .steps = {"[\\r\\n]", "[" SPACE "]?\\p{L}+", "[" SPACE "]?\\p{P}+", CJK_DEEPSEEK, ONE_DIGIT}},
    {.names = "deepseek-v3 hunyuan-dense",
     .steps = {THREE_DIGITS, "[\\x{4e00}-\\x{9fa5}\\x{3040}-\\x{30ff}]+", DEEPSEEK_V3}},
    {.names = "falcon", .steps = {"[\\p{P}$+<=>^~|`]+", GPT2, "[0-9][0-9][0-9]"}},
    {.names = "starcoder refact command-r smollm codeshell exaone minerva-7b",
     .steps = {ONE_DIGIT, GPT2}},
    {.names = "gpt-4o llama4", .steps = {GPT4O(CONTRACTION "?", THREE_DIGITS)}, .whole = true},
    {.names = "minimax-m2", .steps = {GPT4O(CONTRACTION "?", THREE_DIGITS)}},
    {.names = "tekken", .steps = {GPT4O("", ONE_DIGIT)}, .whole = true, .add_bos = true},
    {.names = "kimi-k2", .steps = {KIMI}, .whole = true},
    {.names = "superbpe", .steps = {"\\p{N}+", "\\d+", THREES}},
    {.names = "afmoe", .steps = {"\\p{N}+", "\\d+", THREES, CJK_AFMOE, DEEPSEEK_V3}},
    {.names = "bailingmoe bailingmoe2 llada-moe",
     .steps = {"'(?i:[sdmt]|ll|ve|re)|[^\\r\\n\\p{L}\\p{N}]?+\\p{L}+|\\p{N}| ?[^" SPACE
               "\\p{L}\\p{N}]++[\\r\\n]*|[" SPACE "]*[\\r\\n]|[" SPACE "]+(?![^" SPACE "])|[" SPACE
               "]+"}},
    {.names = "seed-coder",
     .steps = {CONTRACTION "|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| ?[^" SPACE
                           "\\p{L}\\p{N}\\r\\n]+" TAIL}},
    {.names = "bloom poro-chat gpt3-finnish", .steps = {POETRY}},
    {.names = "viking", .steps = {POETRY, ONE_DIGIT}},
    {.names = "chameleon",
     .steps = {"<sentinel:[0-9]+>", "IMGIMG[A-I]{1,4}Z", "[\\t\\n]|    |  ", ONE_DIGIT,
               "[\\p{P}!-/:-@\\[-`{-~]", GPT2},
     .add_bos = true},
    /* What a file gets that names none. */
    {.names = "default", .steps = {"[\\p{P}$+<=>^~|]+", GPT2, "\\p{N}+", "[0-9][0-9][0-9]"}},
};

static bool names_contain(const char *names, struct view name)
{
    for (size_t size; *names != '\0'; names += size + (names[size] == ' ')) {
        size = strcspn(names, " ");
        if (view_equal((struct view){names, size}, name))
            return true;
    }
    return false;
}

enum status pre_tokenizer_find(const struct pre_tokenizer **out, struct view name,
                               struct error *error)
{
    struct view wanted = name.size > 0 ? name : view_of("default");
    for (size_t i = 0; i < ARRAY_COUNT(pre_tokenizers); i++) {
        if (names_contain(pre_tokenizers[i].names, wanted)) {
            *out = &pre_tokenizers[i];
            return STATUS_OK;
        }
    }
    char known[160] = "";
    for (size_t i = 0, used = 0; i < ARRAY_COUNT(pre_tokenizers) && used < sizeof known; i++)
        used +=
            (size_t)snprintf(known + used, sizeof known - used, " %.*s",
                             (int)strcspn(pre_tokenizers[i].names, " "), pre_tokenizers[i].names);
    return error_set(error, STATUS_UNSUPPORTED,
                     "tokenizer.ggml.pre: the pre-tokenizer '%.*s' is not known; known are%s …",
                     (int)MIN(wanted.size, (size_t)30), wanted.data, known);
}

/* ---- Running them ---- */

struct splitter {
    size_t n_steps;
    pcre2_code *steps[MAX_STEPS];
};

static pcre2_code *compile(const char *pattern, struct error *error)
{
    int code;
    PCRE2_SIZE offset;
    pcre2_code *compiled =
        pcre2_compile((PCRE2_SPTR)pattern, PCRE2_ZERO_TERMINATED,
                      PCRE2_UTF | PCRE2_UCP | PCRE2_NO_AUTO_CAPTURE, &code, &offset, NULL);
    if (compiled == NULL) {
        char text[128] = "";
        pcre2_get_error_message(code, (PCRE2_UCHAR *)text, sizeof text);
        error_set(error, STATUS_UNSUPPORTED,
                  "this PCRE2 does not take a pre-tokenizer's pattern: %s (at %zu)", text,
                  (size_t)offset);
        return NULL;
    }
    /* Where there is no JIT, matching is interpreted. */
    pcre2_jit_compile(compiled, PCRE2_JIT_COMPLETE);
    return compiled;
}

enum status splitter_open(struct splitter **out, const struct pre_tokenizer *pre,
                          struct error *error)
{
    struct splitter *splitter = calloc(1, sizeof *splitter);
    if (splitter == NULL)
        return error_memory(error, sizeof *splitter);
    for (size_t i = 0; i < MAX_STEPS && pre->steps[i] != NULL; i++) {
        splitter->steps[i] = compile(pre->steps[i], error);
        if (splitter->steps[i] == NULL) {
            splitter_close(splitter);
            return STATUS_UNSUPPORTED;
        }
        splitter->n_steps++;
    }
    *out = splitter;
    return STATUS_OK;
}

void splitter_close(struct splitter *splitter)
{
    if (splitter == NULL)
        return;
    for (size_t i = 0; i < splitter->n_steps; i++)
        pcre2_code_free(splitter->steps[i]);
    free(splitter);
}

struct splitting {
    const struct splitter *splitter;
    pcre2_match_data *matches[MAX_STEPS];
    splitter_piece_fn *piece;
    void *context;
};

/* The first match of a step at or behind from, as [*begin, *end). Without one (or where PCRE2 gives
 * up at one of its limits, which a pattern above reaches on no text known) it is [size, size). */
static void next_match(const struct splitting *run, size_t step, const char *text, size_t size,
                       size_t from, size_t *begin, size_t *end)
{
    const pcre2_code *code = run->splitter->steps[step];
    pcre2_match_data *data = run->matches[step];
    int count = pcre2_match(code, (PCRE2_SPTR)text, size, from, PCRE2_NO_UTF_CHECK, data, NULL);
    if (count < 0 && count != PCRE2_ERROR_NOMATCH)
        count = pcre2_match(code, (PCRE2_SPTR)text, size, from, PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT,
                            data, NULL);
    const PCRE2_SIZE *ends = pcre2_get_ovector_pointer(data);
    bool found = count > 0 && ends[1] > ends[0] && ends[0] >= from;
    *begin = found ? ends[0] : size;
    *end = found ? ends[1] : size;
}

static bool split(const struct splitting *run, size_t step, const char *text, size_t size)
{
    if (size == 0)
        return true;
    if (step == run->splitter->n_steps)
        return run->piece(run->context, text, size);
    for (size_t at = 0, begin, end; at < size; at = end) {
        next_match(run, step, text, size, at, &begin, &end);
        if (!split(run, step + 1, text + at, begin - at) ||
            !split(run, step + 1, text + begin, end - begin))
            return false;
    }
    return true;
}

bool splitter_run(const struct splitter *splitter, struct view text, splitter_piece_fn *piece,
                  void *context)
{
    struct splitting run = {.splitter = splitter, .piece = piece, .context = context};
    bool done = true;
    for (size_t i = 0; i < splitter->n_steps; i++) {
        run.matches[i] = pcre2_match_data_create(1, NULL);
        done = done && run.matches[i] != NULL;
    }
    done = done && split(&run, 0, text.data, text.size);
    for (size_t i = 0; i < splitter->n_steps; i++)
        pcre2_match_data_free(run.matches[i]);
    return done;
}
