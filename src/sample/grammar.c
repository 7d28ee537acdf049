#include "sample/grammar_internal.h"

#include <math.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

/* What the automaton and the masks of one grammar may take; beyond it they begin anew. */
#define MAX_BYTES ((size_t)96 << 20)

/* mutex guards what stands below it. */
struct grammar {
    const struct grammar_vocabulary *vocabulary;
    struct program *program;

    pthread_mutex_t mutex;
    size_t n_references;
    struct automaton *automaton; /* NULL: to be opened */
    struct masks *masks;
    uint32_t start, start_after_space;
    uint64_t epoch; /* of the automaton: its states are other numbers in each */
};

struct grammar_matcher {
    struct grammar *grammar;
    bool skip_space;
    bool ended; /* by a token that ends texts */
    uint64_t epoch;
    uint32_t state;
    struct buffer text;  /* all that was read, for the next epoch */
    struct buffer piece; /* of one token */
    uint64_t *mask;      /* [n_words] */
};

/* ---- Grammars -------------------------------------------------------------------------------- */

static void close_automaton(struct grammar *grammar)
{
    masks_close(grammar->masks);
    automaton_close(grammar->automaton);
    grammar->masks = NULL;
    grammar->automaton = NULL;
}

/* Under the mutex. */
static bool open_automaton(struct grammar *grammar)
{
    if (automaton_open(&grammar->automaton, grammar->program) != STATUS_OK ||
        masks_open(&grammar->masks, grammar->vocabulary, grammar->automaton) != STATUS_OK) {
        close_automaton(grammar);
        return false;
    }
    grammar->epoch++;
    grammar->start = automaton_start(grammar->automaton);
    grammar->start_after_space = automaton_skip_space(grammar->automaton, grammar->start);
    return true;
}

static void free_grammar(struct grammar *grammar)
{
    close_automaton(grammar);
    program_close(grammar->program);
    pthread_mutex_destroy(&grammar->mutex);
    free(grammar);
}

/* From rules that were parsed. */
static enum status open_rules(struct grammar **out, const struct grammar_vocabulary *vocabulary,
                              const struct rules *rules, struct error *error)
{
    struct grammar *grammar = calloc(1, sizeof *grammar);
    if (grammar == NULL)
        return error_memory(error, sizeof *grammar);
    pthread_mutex_init(&grammar->mutex, NULL);
    grammar->vocabulary = vocabulary;
    grammar->n_references = 1;
    enum status status = program_open(&grammar->program, rules, error);
    if (status != STATUS_OK) {
        free_grammar(grammar);
        return status;
    }
    *out = grammar;
    return STATUS_OK;
}

enum status grammar_open(struct grammar **out, const struct grammar_vocabulary *vocabulary,
                         const struct grammar_spec *spec, struct error *error)
{
    *out = NULL;
    struct rules rules = {.arena = arena_open(0)};
    if (rules.arena == NULL)
        return error_memory(error, 1);
    enum status status = reply_parse(&rules, vocabulary->tokenizer, spec, error);
    if (status == STATUS_OK)
        status = open_rules(out, vocabulary, &rules, error);
    arena_close(rules.arena);
    return status;
}

struct grammar *grammar_hold(struct grammar *grammar)
{
    if (grammar == NULL)
        return NULL;
    pthread_mutex_lock(&grammar->mutex);
    grammar->n_references++;
    pthread_mutex_unlock(&grammar->mutex);
    return grammar;
}

void grammar_release(struct grammar *grammar)
{
    if (grammar == NULL)
        return;
    pthread_mutex_lock(&grammar->mutex);
    bool last = --grammar->n_references == 0;
    pthread_mutex_unlock(&grammar->mutex);
    if (last)
        free_grammar(grammar);
}

/* ---- Matchers -------------------------------------------------------------------------------- */

enum status grammar_matcher_open(struct grammar_matcher **out, struct grammar *grammar,
                                 bool skip_space, struct error *error)
{
    size_t n_words = grammar->vocabulary->n_words;
    struct grammar_matcher *matcher = calloc(1, sizeof *matcher);
    uint64_t *mask = calloc(n_words, sizeof *mask);
    *out = NULL;
    if (matcher == NULL || mask == NULL) {
        free(matcher);
        free(mask);
        return error_memory(error, n_words * sizeof *mask);
    }
    *matcher =
        (struct grammar_matcher){.grammar = grammar_hold(grammar),
                                 .skip_space = skip_space && grammar->vocabulary->skips_space,
                                 .mask = mask};
    *out = matcher;
    return STATUS_OK;
}

void grammar_matcher_close(struct grammar_matcher *matcher)
{
    if (matcher == NULL)
        return;
    grammar_release(matcher->grammar);
    buffer_free(&matcher->text);
    buffer_free(&matcher->piece);
    free(matcher->mask);
    free(matcher);
}

static void read_bytes(struct grammar_matcher *matcher, struct view bytes)
{
    for (size_t i = 0; i < bytes.size; i++)
        matcher->state =
            automaton_step(matcher->grammar->automaton, matcher->state, (uint8_t)bytes.data[i]);
}

/* Brings the matcher to the automaton of now, and that one within its limits. Under the mutex. */
static bool update(struct grammar_matcher *matcher, bool anew)
{
    struct grammar *grammar = matcher->grammar;
    if (grammar->automaton != NULL &&
        (anew || automaton_bytes(grammar->automaton) + masks_bytes(grammar->masks) > MAX_BYTES))
        close_automaton(grammar);
    if (grammar->automaton == NULL && !open_automaton(grammar))
        return false;
    if (matcher->epoch == grammar->epoch && matcher->state != STATE_UNKNOWN)
        return true;
    matcher->epoch = grammar->epoch;
    matcher->state = matcher->skip_space ? grammar->start_after_space : grammar->start;
    read_bytes(matcher, (struct view){matcher->text.data, matcher->text.size});
    return matcher->state != STATE_UNKNOWN;
}

void grammar_matcher_accept(struct grammar_matcher *matcher, int32_t token)
{
    struct grammar *grammar = matcher->grammar;
    if (tokenizer_ends_generation(grammar->vocabulary->tokenizer, token)) {
        matcher->ended = true;
        return;
    }
    buffer_clear(&matcher->piece);
    vocabulary_piece(grammar->vocabulary, token, &matcher->piece);
    struct view bytes = {matcher->piece.data, matcher->piece.size};
    pthread_mutex_lock(&grammar->mutex);
    if (update(matcher, false))
        read_bytes(matcher, bytes);
    pthread_mutex_unlock(&grammar->mutex);
    if (bytes.size > 0)
        buffer_append(&matcher->text, bytes.data, bytes.size);
}

/* Writes the mask of the state to the matcher's own. */
static bool find_mask(struct grammar_matcher *matcher)
{
    struct grammar *grammar = matcher->grammar;
    size_t size = grammar->vocabulary->n_words * sizeof *matcher->mask;
    if (matcher->ended) {
        memcpy(matcher->mask, grammar->vocabulary->ends, size);
        return true;
    }
    if (matcher->text.failed || matcher->piece.failed)
        return false;
    bool found = false;
    pthread_mutex_lock(&grammar->mutex);
    for (unsigned attempt = 0; attempt < 2 && !found; attempt++) {
        if (!update(matcher, attempt > 0))
            continue;
        memset(matcher->mask, 0, size);
        found = matcher->state == STATE_DEAD;
        const uint64_t *mask = masks_of(grammar->masks, matcher->state);
        if (mask == NULL)
            continue;
        memcpy(matcher->mask, mask, size);
        found = true;
    }
    pthread_mutex_unlock(&grammar->mutex);
    return found;
}

/* Forbids those of 64 logits whose bits are not in word. */
static void forbid(float *logits, uint64_t word)
{
    float kept[32];
    if (__builtin_popcountll(word) > 32) {
        for (uint64_t rest = ~word; rest != 0; rest &= rest - 1)
            logits[__builtin_ctzll(rest)] = -INFINITY;
        return;
    }
    size_t n = 0;
    for (uint64_t rest = word; rest != 0; rest &= rest - 1)
        kept[n++] = logits[__builtin_ctzll(rest)];
    for (size_t i = 0; i < 64; i++)
        logits[i] = -INFINITY;
    n = 0;
    for (uint64_t rest = word; rest != 0; rest &= rest - 1)
        logits[__builtin_ctzll(rest)] = kept[n++];
}

bool grammar_matcher_mask(struct grammar_matcher *matcher, float *logits)
{
    if (!find_mask(matcher))
        return false;
    size_t n_vocab = matcher->grammar->vocabulary->n_vocab, n_whole = n_vocab / 64;
    for (size_t w = 0; w < n_whole; w++)
        forbid(logits + w * 64, matcher->mask[w]);
    for (size_t id = n_whole * 64; id < n_vocab; id++)
        if ((matcher->mask[id / 64] >> id % 64 & 1) == 0)
            logits[id] = -INFINITY;
    return true;
}
