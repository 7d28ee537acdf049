/* SentencePiece unigram (Kudo, 2018): text is normalised, then cut into the tokens whose summed log
 * probabilities are highest (Viterbi).
 *
 * The normaliser is a table from the file ("precompiled charsmap"):
 *
 *   bytes 0-3        size of the trie in bytes, little-endian
 *   bytes 4-…        a double-array trie (Darts-clone) of 32-bit units, little-endian:
 *
 *        31 | 30 … 10 | 9         | 8        | 7 … 0
 *        0  | offset  | extension | has leaf | label       an inner node
 *        1  | value                                        a leaf
 *
 *      The child of node i by byte c is i ^ offset(i) ^ c, if its label is c; the leaf of i is
 *      i ^ offset(i). offset is bits 30-10, shifted left by 8 where the extension bit is set.
 *
 *   then             zero-terminated replacements; a leaf's value is where its own begins
 */
#include "text/tokenizer_internal.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* A longer replacement (NFKC's longest takes 33 bytes) is not believed. */
#define MAX_REPLACEMENT_BYTES ((size_t)128)

/* What an unknown character costs beyond the worst token (as in SentencePiece). */
#define UNKNOWN_PENALTY 10.0

struct unigram_state {
    struct trie trie;
    const uint8_t *units;
    size_t n_units;
    struct view replacements;
    double unknown_score;
};

/* ---- Normalisation ---- */

static enum status open_charsmap(struct unigram_state *state, struct view charsmap,
                                 struct error *error)
{
    if (charsmap.size == 0)
        return STATUS_OK;
    struct cursor cursor = cursor_over(charsmap.data, charsmap.size);
    uint32_t trie_bytes = cursor_u32(&cursor);
    state->units = cursor_bytes(&cursor, trie_bytes);
    size_t left = cursor_left(&cursor);
    if (cursor.failed || trie_bytes % 4 != 0)
        return error_set(error, STATUS_INVALID,
                         "tokenizer.ggml.precompiled_charsmap: a trie of %u bytes does not fit "
                         "into %zu bytes",
                         trie_bytes, charsmap.size);
    state->n_units = trie_bytes / 4;
    state->replacements = (struct view){cursor_bytes(&cursor, left), left};
    return STATUS_OK;
}

static bool unit_at(const struct unigram_state *state, size_t index, uint32_t *unit)
{
    if (index >= state->n_units)
        return false;
    const uint8_t *bytes = state->units + 4 * index;
    *unit =
        bytes[0] | (uint32_t)bytes[1] << 8 | (uint32_t)bytes[2] << 16 | (uint32_t)bytes[3] << 24;
    return true;
}

static size_t unit_offset(uint32_t unit)
{
    return (size_t)(unit >> 10 & 0x1FFFFF) << (unit >> 9 & 1) * 8;
}

/* The longest key that begins text; its replacement goes to *out. Returns the key's size, or 0. */
static size_t match_charsmap(const struct unigram_state *state, struct view text, struct view *out)
{
    size_t index = 0, matched = 0;
    uint32_t unit, leaf;
    if (!unit_at(state, 0, &unit))
        return 0;
    for (size_t i = 0; i < text.size; i++) {
        uint8_t byte = (uint8_t)text.data[i];
        index ^= unit_offset(unit) ^ byte;
        if (byte == 0 || !unit_at(state, index, &unit) || (unit & 0x800000FF) != byte)
            break;
        if (!(unit >> 8 & 1) || !unit_at(state, index ^ unit_offset(unit), &leaf))
            continue;
        size_t value = leaf & 0x7FFFFFFF;
        if (value >= state->replacements.size)
            continue;
        const char *begin = state->replacements.data + value;
        size_t most = MIN(state->replacements.size - value, MAX_REPLACEMENT_BYTES);
        const char *end = memchr(begin, '\0', most);
        if (end != NULL) {
            matched = i + 1;
            *out = (struct view){begin, (size_t)(end - begin)};
        }
    }
    return matched;
}

struct normalizer {
    struct buffer *out;
    bool merge_spaces;
    bool add_prefix;
    bool begun;    /* a character other than a space has been written */
    size_t spaces; /* read but not written yet */
};

/* Spaces are written when the character behind them comes, so that those at the ends can be left
 * out. */
static void put_spaces(struct normalizer *n, bool at_end)
{
    size_t count = n->spaces;
    if (n->merge_spaces)
        count = at_end ? 0 : n->begun && count > 0;
    if (!n->begun && n->add_prefix && !(at_end && n->merge_spaces))
        count++;
    while (count-- > 0)
        buffer_append(n->out, SPACE_MARK, SPACE_MARK_BYTES);
    n->spaces = 0;
}

static void put(struct normalizer *n, struct view text)
{
    for (size_t i = 0, begin = 0; i <= text.size; i++) {
        if (i < text.size && text.data[i] != ' ')
            continue;
        if (i > begin) {
            put_spaces(n, false);
            n->begun = true;
            buffer_append(n->out, text.data + begin, i - begin);
        }
        n->spaces += i < text.size;
        begin = i + 1;
    }
}

static bool normalize(const struct tokenizer *t, struct view text, struct buffer *out)
{
    struct normalizer normalizer = {
        .out = out,
        .merge_spaces = t->config.remove_extra_whitespaces == TOKENIZER_YES,
        .add_prefix = t->config.add_space_prefix == TOKENIZER_YES,
    };
    buffer_reserve(out, text.size + text.size / 2);
    for (size_t at = 0, size; at < text.size; at += size) {
        struct view rest = {text.data + at, text.size - at}, replacement;
        uint32_t code;
        size = match_charsmap(t->state, rest, &replacement);
        if (size == 0) {
            size = MAX(utf8_decode(rest.data, rest.size, &code), (size_t)1);
            replacement = (struct view){rest.data, size};
        }
        put(&normalizer, replacement);
    }
    put_spaces(&normalizer, true);
    return !out->failed;
}

/* ---- Viterbi ---- */

/* The best way to reach a position: its last token and where that begins. */
struct reached {
    double score;
    uint32_t from;
    int32_t id;
};

static void reach(struct reached *to, double score, size_t from, int32_t id)
{
    if (score > to->score)
        *to = (struct reached){score, (uint32_t)from, id};
}

/* Extends from position at by every token that begins there. */
static void extend(const struct tokenizer *t, struct view text, size_t at, struct reached *best)
{
    const struct unigram_state *state = t->state;
    uint32_t code, node = TRIE_ROOT;
    size_t character = MAX(utf8_decode(text.data + at, text.size - at, &code), (size_t)1);
    bool single = false;
    for (size_t end = at; end < text.size;) {
        node = trie_step(&state->trie, node, (uint8_t)text.data[end++]);
        if (node == TRIE_NONE)
            break;
        int32_t id = state->trie.value[node];
        if (id == TOKEN_NONE)
            continue;
        double score = t->config.scores != NULL ? (double)t->config.scores[id] : 0;
        reach(&best[end], best[at].score + score, at, id);
        single = single || end - at == character;
    }
    if (!single)
        reach(&best[at + character], best[at].score + state->unknown_score, at, TOKEN_NONE);
}

/* Turns the best path round, so that best[i].from is where the token behind the one that ends at i
 * ends. Returns where the first one ends. */
static size_t turn_path(struct reached *best, size_t size)
{
    size_t end = size, next = size;
    while (end > 0) {
        size_t begin = best[end].from;
        best[end].from = (uint32_t)next;
        next = end;
        end = begin;
    }
    return next;
}

/* Appends the tokens of the best path; neighbouring unknown ones become one. */
static bool append_path(const struct tokenizer *t, struct reached *best, size_t size,
                        struct token_list *out)
{
    bool was_unknown = false, at_end = false;
    for (size_t end = turn_path(best, size); !at_end; end = best[end].from) {
        int32_t id = best[end].id;
        bool unknown = id == TOKEN_NONE;
        if (unknown && !was_unknown)
            id = t->config.unknown;
        if (id != TOKEN_NONE && !token_list_append(out, id))
            return false;
        was_unknown = unknown;
        at_end = end == size;
    }
    return true;
}

static bool viterbi(const struct tokenizer *t, struct view text, struct token_list *out)
{
    uint32_t code;
    if (text.size == 0)
        return true;
    struct reached *best = text.size < UINT32_MAX ? malloc((text.size + 1) * sizeof *best) : NULL;
    if (best == NULL)
        return false;
    for (size_t i = 0; i <= text.size; i++)
        best[i] = (struct reached){-DBL_MAX, 0, TOKEN_NONE};
    best[0].score = 0;
    for (size_t at = 0; at < text.size;
         at += MAX(utf8_decode(text.data + at, text.size - at, &code), (size_t)1))
        extend(t, text, at, best);
    bool done = append_path(t, best, text.size, out);
    free(best);
    return done;
}

static bool unigram_encode(const struct tokenizer *t, struct view text, bool opening,
                           struct token_list *out)
{
    (void)opening;
    struct buffer copy = {0}, normal = {0};
    bool done = tokenizer_clean(text, &copy, &text) && normalize(t, text, &normal) &&
                viterbi(t, (struct view){normal.data, normal.size}, out);
    buffer_free(&copy);
    buffer_free(&normal);
    return done;
}

/* ---- Opening ---- */

static enum status unigram_open(struct tokenizer *t, struct error *error)
{
    const struct tokenizer_config *config = &t->config;
    struct unigram_state *state = arena_alloc(t->arena, sizeof *state);
    t->state = state;
    if (state == NULL || !tokenizer_open_trie(t, &state->trie, tokenizer_is_word))
        return error_memory(error, config->n_tokens * sizeof(struct trie_key));
    double worst = 0;
    for (size_t i = 0; i < config->n_tokens; i++) {
        if (!tokenizer_is_word(t, (int32_t)i) || config->tokens[i].size == 0)
            continue;
        float score = config->scores != NULL ? config->scores[i] : 0;
        if (!isfinite(score))
            return error_set(error, STATUS_INVALID, "tokenizer.ggml.scores: token %zu has %g", i,
                             (double)score);
        worst = MIN(worst, (double)score);
    }
    state->unknown_score = worst - UNKNOWN_PENALTY;
    return open_charsmap(state, config->charsmap, error);
}

const struct tokenizer_kind tokenizer_unigram = {
    .model = "t5",
    .open = unigram_open,
    .encode = unigram_encode,
    .add_bos = TOKENIZER_NO,
    .add_eos = TOKENIZER_YES,
    .add_space_prefix = TOKENIZER_YES,
};
