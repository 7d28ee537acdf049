/* SentencePiece BPE (Kudo and Richardson, 2018): spaces are made visible (U+2581), and of all pairs
 * of neighbours whose text is a token the one with the highest score is merged, the leftmost of
 * equals first. What is no token in the end is spelt in byte tokens. */
#include "text/tokenizer_internal.h"

#include <string.h>

#define PAIR_BITS ((size_t)1 << 20)

struct spm_state {
    size_t longest; /* token, in bytes */
    /* A Bloom filter of the character pairs that occur inside tokens. No merge can reach across any
     * other pair, so text is cut there: words become short runs. */
    uint64_t pairs[PAIR_BITS / 64];
};

/* One character, or one byte that belongs to none. */
static size_t symbol_at(const char *data, size_t size, uint32_t *code)
{
    size_t length = utf8_decode(data, size, code);
    if (length == 0) {
        *code = 0x110000 + (uint8_t)*data;
        length = 1;
    }
    return length;
}

static size_t pair_bit(uint32_t left, uint32_t right)
{
    uint64_t hash = ((uint64_t)left << 32 | right) * 0x9E3779B97F4A7C15u;
    return (hash >> 40) % PAIR_BITS;
}

static void learn_pairs(struct spm_state *state, struct view text)
{
    uint32_t previous = 0, code;
    for (size_t at = 0, length; at < text.size; at += length, previous = code) {
        length = symbol_at(text.data + at, text.size - at, &code);
        size_t bit = pair_bit(previous, code);
        if (at > 0)
            state->pairs[bit / 64] |= (uint64_t)1 << bit % 64;
    }
}

static bool may_join(const struct spm_state *state, uint32_t left, uint32_t right)
{
    size_t bit = pair_bit(left, right);
    return state->pairs[bit / 64] >> bit % 64 & 1;
}

static enum status spm_open(struct tokenizer *t, struct error *error)
{
    struct spm_state *state = arena_alloc(t->arena, sizeof *state);
    if (state == NULL)
        return error_memory(error, sizeof *state);
    t->state = state;
    for (size_t i = 0; i < t->config.n_tokens; i++) {
        if (!tokenizer_is_word(t, (int32_t)i))
            continue;
        learn_pairs(state, t->config.tokens[i]);
        state->longest = MAX(state->longest, t->config.tokens[i].size);
    }
    return STATUS_OK;
}

/* Ranks in the opposite order of scores. */
static uint32_t rank_of_score(float score)
{
    uint32_t bits;
    score += 0.0f; /* -0 becomes 0 */
    memcpy(&bits, &score, sizeof bits);
    return bits >> 31 ? bits : ~bits & 0x7FFFFFFF;
}

static bool spm_pair(const struct tokenizer *t, const char *text, const struct merge_symbol *left,
                     const struct merge_symbol *right, uint32_t *rank, int32_t *id)
{
    const struct spm_state *state = t->state;
    struct view joined = {text + left->begin, (size_t)left->size + right->size};
    if (joined.size > state->longest)
        return false;
    *id = tokenizer_word(t, joined);
    if (*id == TOKEN_NONE)
        return false;
    *rank = rank_of_score(t->config.scores != NULL ? t->config.scores[*id] : 0);
    return true;
}

static bool append_bytes(const struct tokenizer *t, struct view text, struct token_list *out)
{
    for (size_t i = 0; i < text.size; i++) {
        int32_t id = t->byte_ids[(uint8_t)text.data[i]];
        if (id == TOKEN_NONE)
            return t->config.unknown == TOKEN_NONE || token_list_append(out, t->config.unknown);
        if (!token_list_append(out, id))
            return false;
    }
    return true;
}

/* The run [begin, end) of text, whose symbols may join; n is how many there are. */
static bool encode_run(const struct tokenizer *t, struct merge_work *work, const char *text,
                       size_t begin, size_t end, size_t n, struct token_list *out)
{
    uint32_t code;
    if (!merge_begin(work, n))
        return false;
    for (size_t at = begin, length; at < end; at += length) {
        length = symbol_at(text + at, end - at, &code);
        merge_add(work, at, length, tokenizer_word(t, (struct view){text + at, length}));
    }
    if (!merge_run(work, t, text, spm_pair))
        return false;
    for (uint32_t i = 0; i != MERGE_END; i = work->symbols[i].next) {
        const struct merge_symbol *symbol = &work->symbols[i];
        bool done = symbol->id != TOKEN_NONE
                        ? token_list_append(out, symbol->id)
                        : append_bytes(t, (struct view){text + symbol->begin, symbol->size}, out);
        if (!done)
            return false;
    }
    return true;
}

static bool encode_marked(const struct tokenizer *t, struct view text, struct token_list *out)
{
    const struct spm_state *state = t->state;
    struct merge_work work = {0};
    size_t begin = 0, n = 0;
    uint32_t previous = 0, code;
    bool done = true;
    for (size_t at = 0, length; done && at < text.size; at += length, previous = code) {
        length = symbol_at(text.data + at, text.size - at, &code);
        if (n > 0 && !may_join(state, previous, code)) {
            done = encode_run(t, &work, text.data, begin, at, n, out);
            begin = at;
            n = 0;
        }
        n++;
    }
    done = done && (n == 0 || encode_run(t, &work, text.data, begin, text.size, n, out));
    merge_work_free(&work);
    return done;
}

static bool spm_encode(const struct tokenizer *t, struct view text, bool opening,
                       struct token_list *out)
{
    struct buffer marked = {0};
    bool done = buffer_reserve(&marked, text.size + text.size / 2);
    if (opening && t->config.add_space_prefix == TOKENIZER_YES)
        done = done && buffer_append(&marked, SPACE_MARK, SPACE_MARK_BYTES);
    for (size_t at = 0; done && at < text.size;) {
        const char *space = memchr(text.data + at, ' ', text.size - at);
        size_t end = space != NULL ? (size_t)(space - text.data) : text.size;
        done = buffer_append(&marked, text.data + at, end - at) &&
               (space == NULL || buffer_append(&marked, SPACE_MARK, SPACE_MARK_BYTES));
        at = end + (space != NULL);
    }
    done = done && encode_marked(t, (struct view){marked.data, marked.size}, out);
    buffer_free(&marked);
    return done;
}

const struct tokenizer_kind tokenizer_spm = {
    .model = "llama",
    .open = spm_open,
    .encode = spm_encode,
    .add_bos = TOKENIZER_YES,
    .add_eos = TOKENIZER_NO,
    .add_space_prefix = TOKENIZER_YES,
};
