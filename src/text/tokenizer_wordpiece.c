/* WordPiece as BERT uses it (Devlin et al., 2018): text is cleaned, cut into words and punctuation,
 * and each word is covered from the left by the longest tokens; a word that cannot be is unknown.
 *
 * GGUF marks tokens that begin a word with U+2581 and drops BERT's "##" from the others.
 */
#include "text/tokenizer_internal.h"

#include <stdlib.h>
#include <utf8proc.h>

/* A longer word is unknown (max_input_chars_per_word in BERT's tokenizer.json). */
#define MAX_WORD_CHARACTERS 100

struct wordpiece_state {
    struct trie trie;
    bool uncased; /* the vocabulary has no capital letters: text is lowered, accents are dropped */
};

/* ---- Cutting into words ---- */

static bool is_cjk(uint32_t c)
{
    static const uint32_t ranges[][2] = {
        {0x4E00, 0x9FFF},   {0x3400, 0x4DBF},   {0x20000, 0x2A6DF}, {0x2A700, 0x2B73F},
        {0x2B740, 0x2B81F}, {0x2B820, 0x2CEAF}, {0xF900, 0xFAFF},   {0x2F800, 0x2FA1F},
    };
    for (size_t i = 0; i < ARRAY_COUNT(ranges); i++)
        if (c >= ranges[i][0] && c <= ranges[i][1])
            return true;
    return false;
}

static bool is_dropped(uint32_t c, utf8proc_category_t category)
{
    return c == 0 || c == 0xFFFD || category == UTF8PROC_CATEGORY_CC ||
           category == UTF8PROC_CATEGORY_CF || category == UTF8PROC_CATEGORY_CO ||
           category == UTF8PROC_CATEGORY_CN || category == UTF8PROC_CATEGORY_CS;
}

/* Every ASCII symbol counts as punctuation too. */
static bool is_punctuation(uint32_t c, utf8proc_category_t category)
{
    return (c >= 33 && c <= 47) || (c >= 58 && c <= 64) || (c >= 91 && c <= 96) ||
           (c >= 123 && c <= 126) ||
           (category >= UTF8PROC_CATEGORY_PC && category <= UTF8PROC_CATEGORY_PO);
}

struct words {
    const struct tokenizer *t;
    struct token_list *out;
    struct buffer word; /* begins with SPACE_MARK */
    size_t n_characters;
};

/* The longest token that begins word; *size is its length. */
static int32_t longest_token(const struct tokenizer *t, struct view word, size_t *size)
{
    const struct wordpiece_state *state = t->state;
    int32_t best = TOKEN_NONE;
    uint32_t node = TRIE_ROOT;
    for (size_t i = 0; i < word.size; i++) {
        node = trie_step(&state->trie, node, (uint8_t)word.data[i]);
        if (node == TRIE_NONE)
            break;
        if (state->trie.value[node] == TOKEN_NONE)
            continue;
        best = state->trie.value[node];
        *size = i + 1;
    }
    return best;
}

/* Tokens of the word read so far. */
static bool finish_word(struct words *words)
{
    struct view rest = {words->word.data, words->word.size};
    size_t before = words->out->count, size = 0;
    int32_t id = words->n_characters <= MAX_WORD_CHARACTERS ? 0 : TOKEN_NONE;
    bool done = true;
    while (done && id != TOKEN_NONE && rest.size > 0) {
        id = longest_token(words->t, rest, &size);
        rest.data += size;
        rest.size -= size;
        done = id == TOKEN_NONE || token_list_append(words->out, id);
    }
    if (done && id == TOKEN_NONE) {
        words->out->count = before;
        id = words->t->config.unknown;
        done = id == TOKEN_NONE || token_list_append(words->out, id);
    }
    buffer_clear(&words->word);
    words->n_characters = 0;
    return done;
}

static bool add_character(struct words *words, uint32_t c)
{
    char text[4];
    if (words->n_characters++ == 0)
        buffer_append(&words->word, SPACE_MARK, SPACE_MARK_BYTES);
    return buffer_append(&words->word, text, utf8_encode(c, text));
}

/* A character that is ready for the vocabulary; punctuation is a word of its own. */
static bool read_folded(struct words *words, uint32_t c)
{
    if (!is_punctuation(c, utf8proc_category((utf8proc_int32_t)c)))
        return add_character(words, c);
    return finish_word(words) && add_character(words, c) && finish_word(words);
}

/* Takes accents and case off where the vocabulary has none (canonical decomposition, without the
 * marks). */
static bool fold(struct words *words, uint32_t c)
{
    const struct wordpiece_state *state = words->t->state;
    utf8proc_int32_t parts[32];
    int boundary = 0;
    if (!state->uncased)
        return read_folded(words, c);
    utf8proc_ssize_t n = utf8proc_decompose_char((utf8proc_int32_t)c, parts, ARRAY_COUNT(parts),
                                                 UTF8PROC_DECOMPOSE | UTF8PROC_STABLE, &boundary);
    for (utf8proc_ssize_t i = 0; i < n && n <= (utf8proc_ssize_t)ARRAY_COUNT(parts); i++)
        if (utf8proc_category(parts[i]) != UTF8PROC_CATEGORY_MN &&
            !read_folded(words, (uint32_t)utf8proc_tolower(parts[i])))
            return false;
    return true;
}

static bool read_character(struct words *words, uint32_t c)
{
    if (tokenizer_is_space(c))
        return finish_word(words);
    if (is_dropped(c, utf8proc_category((utf8proc_int32_t)c)))
        return true;
    if (is_cjk(c))
        return finish_word(words) && fold(words, c) && finish_word(words);
    return fold(words, c);
}

static bool wordpiece_encode(const struct tokenizer *t, struct view text, bool opening,
                             struct token_list *out)
{
    (void)opening;
    struct words words = {.t = t, .out = out};
    struct buffer copy = {0};
    uint32_t code = 0;
    bool done = tokenizer_clean(text, &copy, &text);
    for (size_t at = 0; done && at < text.size;) {
        at += utf8_decode(text.data + at, text.size - at, &code);
        done = read_character(&words, code);
    }
    done = done && finish_word(&words);
    buffer_free(&words.word);
    buffer_free(&copy);
    return done;
}

/* ---- Opening ---- */

static bool has_capital(struct view text)
{
    for (size_t i = 0; i < text.size; i++)
        if (text.data[i] >= 'A' && text.data[i] <= 'Z')
            return true;
    return false;
}

/* [UNK] and the like, which some files call normal tokens. */
static bool is_bracketed(struct view text)
{
    return text.size > 2 && text.data[0] == '[' && text.data[text.size - 1] == ']';
}

static enum status wordpiece_open(struct tokenizer *t, struct error *error)
{
    const struct tokenizer_config *config = &t->config;
    struct wordpiece_state *state = arena_alloc(t->arena, sizeof *state);
    t->state = state;
    if (state == NULL || !tokenizer_open_trie(t, &state->trie, tokenizer_is_word))
        return error_memory(error, config->n_tokens * sizeof(struct trie_key));
    state->uncased = true;
    for (size_t i = 0; i < config->n_tokens; i++) {
        struct view text = config->tokens[i];
        if (tokenizer_is_word(t, (int32_t)i) && !is_bracketed(text) && has_capital(text))
            state->uncased = false;
    }
    return STATUS_OK;
}

const struct tokenizer_kind tokenizer_wordpiece = {
    .model = "bert",
    .open = wordpiece_open,
    .encode = wordpiece_encode,
    .add_bos = TOKENIZER_YES,
    .add_eos = TOKENIZER_NO,
    .add_space_prefix = TOKENIZER_NO,
};
