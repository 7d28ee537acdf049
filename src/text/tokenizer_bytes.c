/* Byte-level BPE (GPT-2; Radford et al., 2019): text is cut into pieces by a pre-tokenizer, and the
 * bytes of each piece are merged pairwise, the merge that was learnt first going first.
 *
 * Vocabularies write bytes as printable characters: 0x21-0x7E, 0xA1-0xAC and 0xAE-0xFF stand for
 * themselves, the other 68 bytes, in order, are U+0100, U+0101, …
 */
#include "text/tokenizer_internal.h"

#include <string.h>

/* One merge: (left id, right id) -> its rank and the id of the result. */
struct merge_rule {
    uint64_t pair; /* left << 32 | right */
    uint32_t rank;
    int32_t id; /* TOKEN_NONE: a free slot */
};

struct bytes_state {
    struct splitter *splitter;
    struct merge_rule *rules;
    size_t mask;
    uint64_t seed;
    bool whole; /* a piece that is a token is taken as it is, whatever the merges say */
};

static struct merge_rule *rule_slot(const struct bytes_state *state, uint64_t pair)
{
    uint64_t hash = (pair ^ state->seed) * 0x9E3779B97F4A7C15u;
    size_t at = (hash ^ hash >> 32) & state->mask;
    while (state->rules[at].id != TOKEN_NONE && state->rules[at].pair != pair)
        at = (at + 1) & state->mask;
    return &state->rules[at];
}

static uint64_t pair_of(int32_t left, int32_t right)
{
    return (uint64_t)(uint32_t)left << 32 | (uint32_t)right;
}

/* A merge of tokens that the vocabulary lacks can never be used and is left out. */
static void rule_add(struct tokenizer *t, struct bytes_state *state, struct view merge,
                     uint32_t rank, struct buffer *joined)
{
    const char *space = merge.size > 1 ? memchr(merge.data + 1, ' ', merge.size - 1) : NULL;
    if (space == NULL)
        return;
    struct view left = {merge.data, (size_t)(space - merge.data)};
    struct view right = {space + 1, merge.size - left.size - 1};
    buffer_clear(joined);
    if (right.size == 0 || !buffer_append(joined, left.data, left.size) ||
        !buffer_append(joined, right.data, right.size))
        return;
    int32_t a = tokenizer_word(t, left), b = tokenizer_word(t, right);
    int32_t id = tokenizer_word(t, (struct view){joined->data, joined->size});
    if (a == TOKEN_NONE || b == TOKEN_NONE || id == TOKEN_NONE)
        return;
    struct merge_rule *rule = rule_slot(state, pair_of(a, b));
    if (rule->id == TOKEN_NONE)
        *rule = (struct merge_rule){pair_of(a, b), rank, id};
}

static enum status open_rules(struct tokenizer *t, struct bytes_state *state, struct error *error)
{
    const struct tokenizer_config *config = &t->config;
    size_t capacity = 16;
    while (capacity < config->n_merges * 2)
        capacity *= 2;
    state->rules = arena_array(t->arena, capacity, sizeof *state->rules);
    if (state->rules == NULL)
        return error_memory(error, capacity * sizeof *state->rules);
    for (size_t i = 0; i < capacity; i++)
        state->rules[i].id = TOKEN_NONE;
    state->mask = capacity - 1;
    state->seed = rng_entropy();
    struct buffer joined = {0};
    for (size_t i = 0; i < config->n_merges; i++)
        rule_add(t, state, config->merges[i], (uint32_t)i, &joined);
    bool failed = joined.failed;
    buffer_free(&joined);
    return failed ? error_memory(error, TOKENIZER_MAX_TOKEN_BYTES) : STATUS_OK;
}

static enum status bytes_open(struct tokenizer *t, struct error *error)
{
    const struct pre_tokenizer *pre;
    enum status status = pre_tokenizer_find(&pre, t->config.pre, error);
    if (status != STATUS_OK)
        return status;
    struct bytes_state *state = arena_alloc(t->arena, sizeof *state);
    if (state == NULL)
        return error_memory(error, sizeof *state);
    t->state = state;
    state->whole = pre->whole;
    if (t->config.add_bos == TOKENIZER_DEFAULT && pre->add_bos)
        t->config.add_bos = TOKENIZER_YES;
    status = splitter_open(&state->splitter, pre, error);
    if (status != STATUS_OK)
        return status;
    return open_rules(t, state, error);
}

static void bytes_close(struct tokenizer *t)
{
    struct bytes_state *state = t->state;
    if (state != NULL)
        splitter_close(state->splitter);
}

static bool bytes_pair(const struct tokenizer *t, const char *text, const struct merge_symbol *left,
                       const struct merge_symbol *right, uint32_t *rank, int32_t *id)
{
    (void)text;
    const struct merge_rule *rule = rule_slot(t->state, pair_of(left->id, right->id));
    *rank = rule->rank;
    *id = rule->id;
    return rule->id != TOKEN_NONE;
}

struct bytes_run {
    const struct tokenizer *t;
    struct merge_work work;
    struct token_list *out;
    struct buffer text; /* of a piece, in the alphabet of bytes */
};

/* The word that is the whole piece, or TOKEN_NONE. */
static int32_t whole_piece(struct bytes_run *run, const char *piece, size_t size)
{
    if (size > TOKENIZER_MAX_TOKEN_BYTES || !buffer_reserve(&run->text, 2 * size))
        return TOKEN_NONE;
    char *text = run->text.data;
    size_t length = 0;
    for (size_t i = 0; i < size; i++)
        length += utf8_encode(run->t->alphabet.character[(uint8_t)piece[i]], text + length);
    return tokenizer_word(run->t, (struct view){text, length});
}

/* A byte that the vocabulary has no token for is left out. */
static bool append_known(struct bytes_run *run, int32_t id)
{
    return id == TOKEN_NONE || token_list_append(run->out, id);
}

static bool bytes_piece(void *context, const char *piece, size_t size)
{
    struct bytes_run *run = context;
    const struct tokenizer *t = run->t;
    const struct bytes_state *state = t->state;
    if (size == 1)
        return append_known(run, t->byte_ids[(uint8_t)piece[0]]);
    if (state->whole) {
        int32_t id = whole_piece(run, piece, size);
        if (id != TOKEN_NONE)
            return token_list_append(run->out, id);
    }
    if (!merge_begin(&run->work, size))
        return false;
    for (size_t i = 0; i < size; i++)
        merge_add(&run->work, i, 1, t->byte_ids[(uint8_t)piece[i]]);
    if (!merge_run(&run->work, t, piece, bytes_pair))
        return false;
    for (uint32_t i = 0; i != MERGE_END; i = run->work.symbols[i].next)
        if (!append_known(run, run->work.symbols[i].id))
            return false;
    return true;
}

static bool bytes_encode(const struct tokenizer *t, struct view text, bool opening,
                         struct token_list *out)
{
    (void)opening;
    const struct bytes_state *state = t->state;
    struct bytes_run run = {.t = t, .out = out};
    struct buffer copy = {0};
    bool done = tokenizer_clean(text, &copy, &text) &&
                splitter_run(state->splitter, text, bytes_piece, &run);
    buffer_free(&copy);
    done = done && !run.text.failed;
    buffer_free(&run.text);
    merge_work_free(&run.work);
    return done;
}

const struct tokenizer_kind tokenizer_bytes = {
    .model = "gpt2",
    .open = bytes_open,
    .close = bytes_close,
    .encode = bytes_encode,
    .add_bos = TOKENIZER_NO,
    .add_eos = TOKENIZER_NO,
    .add_space_prefix = TOKENIZER_NO,
    .byte_level = true,
};
