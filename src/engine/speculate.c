/* Drafts out of the text, the reckoning of what pays, and both put together for one text. */
#include "engine/speculate.h"

#include <stdlib.h>
#include <string.h>

/* ---- Drafts out of the text ------------------------------------------------------------------ */

#define GRAM_LEN 3     /* the shortest match */
#define MATCH_MAX 32   /* longer ones are not told apart */
#define COPY_MIN 6     /* a match of so many may be of a copy, with edits */
#define MISSES_MAX 4   /* tokens of an edit */
#define EDIT_WINDOW 8  /* tokens that it may have left out */
#define CANDIDATES 32  /* places looked at, the latest first */
#define HEADS_MIN 1024 /* a power of two */

/* The slot of the tokens before place. */
static size_t gram_slot(const struct ngrams *ngrams, const int32_t *text, size_t place)
{
    uint64_t hash = (uint64_t)(uint32_t)text[place - 3] * 0x9e3779b97f4a7c15u ^
                    (uint64_t)(uint32_t)text[place - 2] * 0xc2b2ae3d27d4eb4fu ^
                    (uint64_t)(uint32_t)text[place - 1] * 0x165667b19e3779f9u;
    return (size_t)(hash >> 32) & (ngrams->n_heads - 1);
}

static void gram_enter(struct ngrams *ngrams, const int32_t *text, size_t place)
{
    uint32_t *head = &ngrams->heads[gram_slot(ngrams, text, place)];
    ngrams->links[place] = *head;
    *head = (uint32_t)place;
}

void ngrams_free(struct ngrams *ngrams)
{
    free(ngrams->heads);
    free(ngrams->links);
    *ngrams = (struct ngrams){0};
}

void ngrams_forget(struct ngrams *ngrams)
{
    if (ngrams->count > 0)
        memset(ngrams->heads, 0, ngrams->n_heads * sizeof *ngrams->heads);
    ngrams->count = ngrams->source = ngrams->match = ngrams->before = ngrams->misses = 0;
}

/* Room for places up to n_tokens; the heads grow with the text, so that few share one. */
static bool ngrams_reserve(struct ngrams *ngrams, const int32_t *text, size_t n_tokens)
{
    if (n_tokens < ngrams->capacity)
        return true;
    size_t n_heads = MAX(ngrams->n_heads, (size_t)HEADS_MIN);
    while (n_heads <= n_tokens)
        n_heads *= 2;
    uint32_t *heads = calloc(n_heads, sizeof *heads);
    uint32_t *links = calloc(n_heads, sizeof *links);
    if (heads == NULL || links == NULL) {
        free(heads);
        free(links);
        return false;
    }
    free(ngrams->heads);
    free(ngrams->links);
    ngrams->heads = heads;
    ngrams->links = links;
    ngrams->n_heads = ngrams->capacity = n_heads;
    for (size_t place = GRAM_LEN; place <= ngrams->count; place++)
        gram_enter(ngrams, text, place);
    return true;
}

/* Where the text goes on that was repeated when token came instead of what stands at source: behind
 * the same token, if that is near where the match broke, as others were left out or put in; else
 * the token was put in the place of another. */
static void follow_edit(struct ngrams *ngrams, const int32_t *text, int32_t token)
{
    if (ngrams->misses++ == 0)
        ngrams->broken = ngrams->source;
    ngrams->before = MIN(ngrams->before + ngrams->match, (size_t)MATCH_MAX);
    ngrams->match = 0;
    ngrams->source++;
    size_t end = MIN(ngrams->broken + EDIT_WINDOW, ngrams->count);
    for (size_t place = ngrams->broken; place < end; place++)
        if (text[place] == token) {
            ngrams->source = place + 1;
            ngrams->match = 1;
            return;
        }
}

static void follow(struct ngrams *ngrams, const int32_t *text, int32_t token)
{
    bool follows = ngrams->match > 0 || ngrams->misses > 0;
    if (follows && text[ngrams->source] == token) {
        ngrams->source++;
        ngrams->match = MIN(ngrams->match + 1, (size_t)MATCH_MAX);
        if (ngrams->match >= GRAM_LEN)
            ngrams->misses = 0;
    } else if (ngrams->before + ngrams->match >= COPY_MIN && ngrams->misses < MISSES_MAX) {
        follow_edit(ngrams, text, token);
    } else {
        ngrams->match = ngrams->before = ngrams->misses = 0;
    }
}

bool ngrams_update(struct ngrams *ngrams, const int32_t *text, size_t n_tokens)
{
    if (!ngrams_reserve(ngrams, text, n_tokens))
        return false;
    while (ngrams->count < n_tokens) {
        follow(ngrams, text, text[ngrams->count]);
        if (++ngrams->count >= GRAM_LEN)
            gram_enter(ngrams, text, ngrams->count);
    }
    return true;
}

/* How many tokens before place are those before the end of the text. */
static size_t match_length(const int32_t *text, size_t end, size_t place)
{
    size_t length = 0, most = MIN(place, (size_t)MATCH_MAX);
    while (length < most && text[place - 1 - length] == text[end - 1 - length])
        length++;
    return length;
}

static uint8_t class_of_match(size_t length)
{
    static const uint8_t ends[SPECULATE_NGRAM_CLASSES - 1] = {GRAM_LEN, 4,  5,  7,
                                                              10,       15, 23, MATCH_MAX};
    uint8_t class = 0;
    while (class < ARRAY_COUNT(ends) && length >= ends[class])
        class ++;
    return class;
}

void ngrams_propose(struct ngrams *ngrams, const int32_t *text, size_t limit, struct draft *out)
{
    size_t end = ngrams->count;
    out->count = 0;
    if (end < GRAM_LEN)
        return;
    /* A common phrase may have more candidates than are looked at; the match that led here stays
     * in the running for that. */
    uint32_t place = ngrams->links[end];
    for (int i = 0; i < CANDIDATES && place != 0; i++, place = ngrams->links[place]) {
        size_t length = match_length(text, end, place);
        if (length >= GRAM_LEN && length > ngrams->before + ngrams->match) {
            ngrams->source = place;
            ngrams->match = length;
            ngrams->before = ngrams->misses = 0;
        }
    }
    if (ngrams->match < GRAM_LEN && ngrams->misses == 0)
        return;
    for (; out->count < MIN(limit, (size_t)SPECULATE_MAX); out->count++) {
        size_t from = ngrams->source + out->count; /* may reach into the draft: a short cycle */
        out->tokens[out->count] = from < end ? text[from] : out->tokens[from - end];
        out->classes[out->count] = class_of_match(ngrams->match + out->count);
    }
}

/* ---- What pays ------------------------------------------------------------------------------- */

#define GAIN_MIN 1.05       /* less is not worth a risk */
#define BALANCE_START 0.5   /* steps of one row, */
#define BALANCE_MAX 4.0     /* so that what was won early is not all lost later, */
#define BALANCE_GROWTH 0.01 /* and the share of the time that may be lost for good */
#define PRIOR_WEIGHT 3.0
#define MEMORY 0.97 /* an observation counts that much less with each later one */

/* How often a token of each class is right, before anything is known. */
static const double class_priors[SPECULATE_CLASSES] = {
    0.4,                                          /* after an edit */
    0.2, 0.3, 0.45, 0.6,  0.75, 0.85, 0.9,  0.95, /* matches of 3, 4, 5, 7, 10, 15, 23, 32 */
    0.4, 0.5, 0.6,  0.65, 0.75, 0.85, 0.93, 0.97, /* a model that is this sure */
    0.7};

struct speculate_pay speculate_pay_begin(void)
{
    return (struct speculate_pay){.balance = BALANCE_START};
}

/* Noise only ever makes a step longer, so shorter times are believed sooner. */
void speculate_pay_step(struct speculate_pay *pay, size_t n_rows, double ns)
{
    double *known = &pay->step_ns[n_rows];
    if (*known == 0)
        *known = ns;
    else if (ns < *known)
        *known += (ns - *known) / 2;
    else
        *known += (MIN(ns, 2 * *known) - *known) / 8;
}

void speculate_pay_prompt(struct speculate_pay *pay, size_t n_rows, double ns)
{
    if (n_rows < MAX(pay->prompt_rows, (size_t)2))
        return;
    pay->prompt_rows = n_rows;
    pay->prompt_ns = ns;
}

/* times[rows] of all steps: as measured; between, on lines; beyond, growing as slowly as they do
 * from the first step to the last measured one or to that of a prompt. That is rather too fast, so
 * longer drafts are tried where they promise much, and are then measured. No step takes longer than
 * one of more rows. False while nothing is measured. */
static bool step_times(const struct speculate_pay *pay, double times[SPECULATE_MAX + 2])
{
    const double *known = pay->step_ns;
    if (known[1] == 0)
        return false;
    double growth = known[1] / 4;
    if (pay->prompt_rows > 0)
        growth = MIN((pay->prompt_ns - known[1]) / (double)(pay->prompt_rows - 1), growth);
    size_t last = 1;
    times[1] = known[1];
    for (size_t rows = 2; rows <= SPECULATE_MAX + 1; rows++) {
        if (known[rows] == 0)
            continue;
        for (size_t i = last + 1; i <= rows; i++)
            times[i] = known[last] +
                       (known[rows] - known[last]) * (double)(i - last) / (double)(rows - last);
        last = rows;
        growth = MIN(growth, (known[rows] - known[1]) / (double)(rows - 1));
    }
    for (size_t rows = last + 1; rows <= SPECULATE_MAX + 1; rows++)
        times[rows] = known[last] + MAX(growth, 0) * (double)(rows - last);
    for (size_t rows = SPECULATE_MAX; rows >= 1; rows--)
        times[rows] = MIN(times[rows], times[rows + 1]);
    return true;
}

static void observe(struct speculate_pay *pay, unsigned class, bool right)
{
    pay->right[class] = pay->right[class] * MEMORY + (right ? 1 : 0);
    pay->seen[class] = pay->seen[class] * MEMORY + 1;
}

void speculate_pay_token(struct speculate_pay *pay, unsigned class, bool right)
{
    observe(pay, class, right);
    if (class >= SPECULATE_NGRAM_CLASSES)
        observe(pay, SPECULATE_ANY_OF_MODEL, right);
}

static double chance_of(const struct speculate_pay *pay, unsigned class)
{
    return (pay->right[class] + PRIOR_WEIGHT * class_priors[class]) /
           (pay->seen[class] + PRIOR_WEIGHT);
}

/* The length, of at most n tokens with these chances, that gives the most tokens a second; 0 where
 * that is no gain worth the risk. */
static size_t best_length(const struct speculate_pay *pay, const double *chances, size_t n,
                          double each_ns, double fixed_ns)
{
    double times[SPECULATE_MAX + 2];
    if (!step_times(pay, times))
        return 0;
    double expected = 1, all_right = 1, best_rate = GAIN_MIN / times[1];
    size_t best = 0;
    for (size_t k = 1; k <= n; k++) {
        double ns = times[k + 1] + fixed_ns + each_ns * (double)k;
        all_right *= chances[k - 1];
        expected += all_right;
        if (expected / ns > best_rate && ns <= times[1] * (1 + pay->balance)) {
            best_rate = expected / ns;
            best = k;
        }
    }
    return best;
}

static void draft_chances(const struct speculate_pay *pay, const struct draft *draft,
                          double chances[SPECULATE_MAX])
{
    for (size_t i = 0; i < draft->count; i++)
        chances[i] = chance_of(pay, draft->classes[i]);
}

size_t speculate_pay_length(const struct speculate_pay *pay, const struct draft *draft)
{
    double chances[SPECULATE_MAX];
    draft_chances(pay, draft, chances);
    return best_length(pay, chances, draft->count, 0, 0);
}

size_t speculate_pay_ahead(const struct speculate_pay *pay, const struct draft *draft, size_t limit,
                           double each_ns, double fixed_ns)
{
    double chances[SPECULATE_MAX];
    draft_chances(pay, draft, chances);
    for (size_t i = draft->count; i < limit; i++)
        chances[i] = chance_of(pay, SPECULATE_ANY_OF_MODEL);
    return best_length(pay, chances, limit, each_ns, fixed_ns);
}

void speculate_pay_fade(struct speculate_pay *pay)
{
    for (size_t class = SPECULATE_NGRAM_CLASSES; class < SPECULATE_CLASSES; class ++) {
        pay->right[class] *= MEMORY;
        pay->seen[class] *= MEMORY;
    }
}

void speculate_pay_settle(struct speculate_pay *pay, size_t n_tokens, double ns)
{
    if (pay->step_ns[1] == 0)
        return;
    double won = (double)n_tokens * (1 + BALANCE_GROWTH) - ns / pay->step_ns[1];
    pay->balance = MIN(pay->balance + won, BALANCE_MAX);
}

/* ---- All of it for one text ------------------------------------------------------------------ */

void speculation_close(struct speculation *speculation)
{
    draft_model_close(speculation->model);
    ngrams_free(&speculation->ngrams);
    *speculation = (struct speculation){0};
}

void speculation_begin(struct speculation *s)
{
    if (s->model != NULL)
        draft_model_begin(s->model);
    ngrams_forget(&s->ngrams);
    for (size_t class = 0; class < SPECULATE_CLASSES; class ++) {
        s->pay.right[class] /= 4; /* another text may repeat itself more, or less */
        s->pay.seen[class] /= 4;
    }
    for (size_t i = 0; i < SPECULATE_N_SOURCES; i++)
        s->drafts[i].count = 0;
    s->n_sent = s->n_drawn = s->n_drafted = s->n_accepted = 0;
    s->ns = s->pay.step_ns[1];
}

enum status speculation_read(struct speculation *s, const int32_t *text, size_t n_tokens,
                             struct error *error)
{
    return s->model != NULL ? draft_model_read(s->model, text, n_tokens, error) : STATUS_OK;
}

/* Fills the draft of the text itself; where memory is out there are none from now on. */
static void propose_by_ngram(struct speculation *s, const int32_t *text, size_t n_tokens)
{
    struct draft *draft = &s->drafts[SPECULATE_BY_NGRAM];
    if (s->propose != NULL)
        s->propose(s->context, text, n_tokens, s->max, draft);
    else if (!s->by_ngram)
        return;
    else if (ngrams_update(&s->ngrams, text, n_tokens))
        ngrams_propose(&s->ngrams, text, s->max, draft);
    else
        s->by_ngram = false;
}

const int32_t *speculation_propose(struct speculation *s, const int32_t *text, size_t n_tokens,
                                   size_t room, size_t *n)
{
    struct draft *by_model = &s->drafts[SPECULATE_BY_MODEL];
    if (s->n_drawn > 0)
        speculate_pay_settle(&s->pay, s->n_drawn, s->ns);
    for (size_t i = 0; i < SPECULATE_N_SOURCES; i++)
        s->drafts[i].count = 0;
    s->source = SPECULATE_BY_NGRAM;
    s->n_sent = s->n_drawn = 0;
    s->model_ns = 0;
    *n = 0;
    if (s->max == 0 || room == 0)
        return NULL;
    propose_by_ngram(s, text, n_tokens);
    const struct draft *draft = &s->drafts[SPECULATE_BY_NGRAM];
    s->n_sent = s->always ? draft->count : speculate_pay_length(&s->pay, draft);
    if (s->n_sent == 0 && s->model != NULL) {
        s->source = SPECULATE_BY_MODEL;
        draft = by_model;
        draft_model_propose(s->model, &s->pay, text, n_tokens, MIN(s->max, room), s->always,
                            by_model, &s->model_ns);
        s->n_sent = s->always ? draft->count : speculate_pay_length(&s->pay, draft);
    }
    s->n_sent = MIN(s->n_sent, room);
    *n = s->n_sent;
    return s->n_sent > 0 ? draft->tokens : NULL;
}

void speculation_computed(struct speculation *s, size_t n_rows, double ns)
{
    s->n_sent = n_rows - 1;
    s->n_drafted += s->n_sent;
    speculate_pay_step(&s->pay, n_rows, ns);
    /* A step without a draft wins and loses nothing. */
    s->ns = (s->n_sent > 0 ? ns : s->pay.step_ns[1]) + s->model_ns;
}

bool speculation_drawn(struct speculation *s, int32_t token)
{
    size_t at = s->n_drawn++;
    bool follows = false;
    for (size_t i = 0; i < SPECULATE_N_SOURCES; i++) {
        struct draft *draft = &s->drafts[i];
        if (at >= draft->count)
            continue;
        bool right = draft->tokens[at] == token;
        speculate_pay_token(&s->pay, draft->classes[at], right);
        if (!right)
            draft->count = at; /* what follows there is about another text */
        else if (i == s->source && at < s->n_sent)
            follows = true;
    }
    s->n_accepted += follows;
    return follows;
}
