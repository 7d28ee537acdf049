#include "sample/sample.h"

#include <float.h>
#include <stdlib.h>
#include <string.h>

/* What each random number is for, so that stages never share one. */
enum draw { DRAW_TOKEN, DRAW_XTC };

/* No DRY penalty is larger: it stays finite however long the repetition is. */
#define DRY_MAX_PENALTY 1e30

struct candidate {
    int32_t id;
    float logit;
    float key; /* what candidates are ordered by: the logit, or how typical it is */
};

struct sampler {
    struct sampling sampling;
    struct logit_bias *biases;
    size_t n_vocab;

    /* The text so far, as far back as a stage looks. */
    int32_t *history;
    size_t n_history, history_capacity;
    /* Per token: how often it stands in the penalty window, and the index of its last place. */
    uint32_t *window_count;
    size_t *last_place;

    bool *is_breaker;       /* [n_vocab], NULL without DRY */
    uint32_t *dry_length;   /* [n_vocab], all zero between draws */
    uint32_t *match_length; /* [history_capacity], scratch */

    struct candidate *candidates; /* [n_vocab] */

    struct grammar_matcher *matcher; /* NULL: any text */
    bool mask_failed;
};

/* ---- Opening --------------------------------------------------------------------------------- */

/* Every number that has a range, by its name in struct sampling. */
static const struct {
    size_t offset;
    const char *name;
    float min, max;
} ranges[] = {
#define RANGE(field, low, high)                                                                    \
    {                                                                                              \
        offsetof(struct sampling, field), #field, low, high                                        \
    }
    RANGE(temperature, 0, 1000),
    RANGE(top_p, 0, 1),
    RANGE(min_p, 0, 1),
    RANGE(typical_p, 0, 1),
    RANGE(repeat_penalty, 0.01f, 100),
    RANGE(presence_penalty, -100, 100),
    RANGE(frequency_penalty, -100, 100),
    RANGE(dry_multiplier, 0, 100),
    RANGE(dry_base, 1, 100),
    RANGE(xtc_probability, 0, 1),
    RANGE(xtc_threshold, 0, 1),
#undef RANGE
};

static enum status check_settings(const struct sampling *sampling, size_t n_vocab,
                                  struct error *error)
{
    for (size_t i = 0; i < ARRAY_COUNT(ranges); i++) {
        float value;
        memcpy(&value, (const char *)sampling + ranges[i].offset, sizeof value);
        if (!(value >= ranges[i].min && value <= ranges[i].max))
            return error_set(error, STATUS_INVALID, "%s is %g, it must be from %g to %g",
                             ranges[i].name, value, ranges[i].min, ranges[i].max);
    }
    for (size_t i = 0; i < sampling->n_biases; i++) {
        const struct logit_bias *bias = &sampling->biases[i];
        if (bias->token < 0 || (size_t)bias->token >= n_vocab)
            return error_set(error, STATUS_INVALID,
                             "logit bias for token %d: the vocabulary has ids 0 to %zu",
                             bias->token, n_vocab - 1);
        if (isnan(bias->bias) || bias->bias == INFINITY)
            return error_set(error, STATUS_INVALID,
                             "logit bias of token %d must be a number or -inf", bias->token);
    }
    return STATUS_OK;
}

static bool penalties_on(const struct sampling *sampling)
{
    return sampling->repeat_last_n > 0 &&
           (sampling->repeat_penalty != 1 || sampling->presence_penalty != 0 ||
            sampling->frequency_penalty != 0);
}

static bool dry_on(const struct sampling *sampling)
{
    return sampling->dry_multiplier > 0;
}

static bool allocate(struct sampler *sampler, const int32_t *breakers, size_t n_breakers)
{
    size_t n_vocab = sampler->n_vocab;
    const struct sampling *sampling = &sampler->sampling;
    sampler->candidates = calloc(n_vocab, sizeof *sampler->candidates);
    if (sampler->candidates == NULL)
        return false;
    if (sampling->n_biases > 0) {
        sampler->biases = calloc(sampling->n_biases, sizeof *sampler->biases);
        if (sampler->biases == NULL)
            return false;
        memcpy(sampler->biases, sampling->biases, sampling->n_biases * sizeof *sampler->biases);
    }
    if (penalties_on(sampling)) {
        sampler->window_count = calloc(n_vocab, sizeof *sampler->window_count);
        sampler->last_place = calloc(n_vocab, sizeof *sampler->last_place);
        if (sampler->window_count == NULL || sampler->last_place == NULL)
            return false;
    }
    if (dry_on(sampling)) {
        sampler->is_breaker = calloc(n_vocab, sizeof *sampler->is_breaker);
        sampler->dry_length = calloc(n_vocab, sizeof *sampler->dry_length);
        if (sampler->is_breaker == NULL || sampler->dry_length == NULL)
            return false;
        for (size_t i = 0; i < n_breakers; i++)
            if (breakers[i] >= 0 && (size_t)breakers[i] < n_vocab)
                sampler->is_breaker[breakers[i]] = true;
    }
    return true;
}

enum status sampler_open(struct sampler **out, const struct sampling *sampling, size_t n_vocab,
                         const int32_t *dry_breakers, size_t n_dry_breakers, struct error *error)
{
    *out = NULL;
    if (n_vocab == 0 || n_vocab > INT32_MAX)
        return error_set(error, STATUS_INVALID, "a vocabulary cannot have %zu tokens", n_vocab);
    enum status status = check_settings(sampling, n_vocab, error);
    if (status != STATUS_OK)
        return status;
    struct sampler *sampler = calloc(1, sizeof *sampler);
    if (sampler == NULL)
        return error_memory(error, sizeof *sampler);
    sampler->sampling = *sampling;
    sampler->n_vocab = n_vocab;
    if (!allocate(sampler, dry_breakers, n_dry_breakers)) {
        sampler_close(sampler);
        return error_memory(error, n_vocab * sizeof *sampler->candidates);
    }
    sampler->sampling.biases = sampler->biases;
    *out = sampler;
    return STATUS_OK;
}

void sampler_close(struct sampler *sampler)
{
    if (sampler == NULL)
        return;
    free(sampler->biases);
    free(sampler->history);
    free(sampler->window_count);
    free(sampler->last_place);
    free(sampler->is_breaker);
    free(sampler->dry_length);
    free(sampler->match_length);
    free(sampler->candidates);
    grammar_matcher_close(sampler->matcher);
    free(sampler);
}

enum status sampler_constrain(struct sampler *sampler, struct grammar *grammar, bool skip_space,
                              struct error *error)
{
    return grammar_matcher_open(&sampler->matcher, grammar, skip_space, error);
}

/* ---- History --------------------------------------------------------------------------------- */

/* Makes room for one more token. Where memory is out the older half is forgotten, so that a token
 * can always be accepted; false only when there is no room at all. */
static bool history_reserve(struct sampler *sampler)
{
    if (sampler->n_history < sampler->history_capacity)
        return true;
    size_t capacity = MAX(2 * sampler->history_capacity, 1024);
    int32_t *history = realloc(sampler->history, capacity * sizeof *history);
    if (history != NULL)
        sampler->history = history;
    uint32_t *lengths = realloc(sampler->match_length, capacity * sizeof *lengths);
    if (lengths != NULL)
        sampler->match_length = lengths;
    if (history != NULL && lengths != NULL) {
        sampler->history_capacity = capacity;
        return true;
    }
    size_t half = sampler->n_history / 2;
    if (half == 0)
        return false;
    memmove(sampler->history, sampler->history + half,
            (sampler->n_history - half) * sizeof *sampler->history);
    sampler->n_history -= half;
    if (sampler->window_count != NULL) {
        memset(sampler->window_count, 0, sampler->n_vocab * sizeof *sampler->window_count);
        size_t window = MIN(sampler->n_history, sampler->sampling.repeat_last_n);
        for (size_t i = sampler->n_history - window; i < sampler->n_history; i++) {
            sampler->window_count[sampler->history[i]]++;
            sampler->last_place[sampler->history[i]] = i;
        }
    }
    return true;
}

void sampler_accept(struct sampler *sampler, int32_t token)
{
    if (sampler->matcher != NULL)
        grammar_matcher_accept(sampler->matcher, token);
    bool wanted = sampler->window_count != NULL || sampler->dry_length != NULL;
    if (!wanted || token < 0 || (size_t)token >= sampler->n_vocab || !history_reserve(sampler))
        return;
    size_t place = sampler->n_history++;
    sampler->history[place] = token;
    if (sampler->window_count == NULL)
        return;
    sampler->window_count[token]++;
    sampler->last_place[token] = place;
    if (place >= sampler->sampling.repeat_last_n)
        sampler->window_count[sampler->history[place - sampler->sampling.repeat_last_n]]--;
}

/* ---- Stages on all logits -------------------------------------------------------------------- */

static void apply_penalties(const struct sampler *sampler, float *logits)
{
    const struct sampling *s = &sampler->sampling;
    size_t window = MIN(sampler->n_history, s->repeat_last_n);
    for (size_t i = sampler->n_history - window; i < sampler->n_history; i++) {
        int32_t token = sampler->history[i];
        if (sampler->last_place[token] != i)
            continue; /* each token once, at its last place */
        float logit = logits[token];
        /* Division would reward a negative logit. */
        logit = logit > 0 ? logit / s->repeat_penalty : logit * s->repeat_penalty;
        logits[token] = logit - s->presence_penalty -
                        (float)sampler->window_count[token] * s->frequency_penalty;
    }
}

/* match[k] = how many tokens of text, read backwards from its end, equal those read backwards from
 * k before the end (the Z-algorithm on the reversed text: linear time). */
static void match_lengths(const int32_t *text, size_t n, uint32_t *match)
{
#define BACK(i) text[n - 1 - (i)]
    size_t left = 0, right = 0; /* the match that reaches furthest */
    match[0] = (uint32_t)n;
    for (size_t k = 1; k < n; k++) {
        size_t length = k < right ? MIN(right - k, match[k - left]) : 0;
        while (k + length < n && BACK(length) == BACK(k + length))
            length++;
        if (k + length > right) {
            left = k;
            right = k + length;
        }
        match[k] = (uint32_t)length;
    }
#undef BACK
}

/* DRY ("Don't Repeat Yourself", p-e-w 2024): where the end of the text already stood earlier in it,
 * the token that followed there loses multiplier * base^(length - allowed_length). */
static void apply_dry(struct sampler *sampler, float *logits)
{
    const struct sampling *s = &sampler->sampling;
    size_t n = sampler->n_history;
    if (s->dry_last_n > 0)
        n = MIN(n, s->dry_last_n);
    const int32_t *text = sampler->history + (sampler->n_history - n);
    size_t reach = 0; /* a match never crosses a breaker */
    while (reach < n && !sampler->is_breaker[text[n - 1 - reach]])
        reach++;
    if (n < 2 || reach == 0 || reach < s->dry_allowed_length)
        return;
    match_lengths(text, n, sampler->match_length);
    for (size_t k = 1; k < n; k++) {
        int32_t follower = text[n - k];
        uint32_t length = (uint32_t)MIN(sampler->match_length[k], reach);
        if (!sampler->is_breaker[follower] && length > sampler->dry_length[follower])
            sampler->dry_length[follower] = length;
    }
    for (size_t k = 1; k < n; k++) {
        int32_t follower = text[n - k];
        uint32_t length = sampler->dry_length[follower];
        sampler->dry_length[follower] = 0;
        if (length == 0 || length < s->dry_allowed_length)
            continue;
        double penalty =
            s->dry_multiplier * pow(s->dry_base, (double)length - s->dry_allowed_length);
        logits[follower] -= (float)MIN(penalty, DRY_MAX_PENALTY);
    }
}

/* ---- Candidates ------------------------------------------------------------------------------ */

/* The larger key first; the smaller id among equals, so that order never depends on the way. */
static bool better(const struct candidate *a, const struct candidate *b)
{
    return a->key > b->key || (a->key == b->key && a->id < b->id);
}

/* Restores the heap below i. The root is the best candidate, or the worst. */
static void sift_down(struct candidate *heap, size_t n, size_t i, bool best_on_top)
{
    struct candidate moving = heap[i];
    for (;;) {
        size_t child = 2 * i + 1;
        if (child >= n)
            break;
        if (child + 1 < n && better(&heap[child + 1], &heap[child]) == best_on_top)
            child++;
        if (better(&heap[child], &moving) != best_on_top)
            break;
        heap[i] = heap[child];
        i = child;
    }
    heap[i] = moving;
}

static void heapify(struct candidate *heap, size_t n, bool best_on_top)
{
    for (size_t i = n / 2; i-- > 0;)
        sift_down(heap, n, i, best_on_top);
}

/* The k best logits, best first: one pass over the vocabulary with a heap of the k best so far,
 * whose root is the one to beat. Returns how many there are; logits that are -inf or no number
 * never are. */
static size_t take_best(const float *logits, size_t n_vocab, size_t k, struct candidate *out)
{
    size_t n = 0, id = 0;
    for (; id < n_vocab && n < k; id++)
        if (logits[id] > -INFINITY)
            out[n++] = (struct candidate){(int32_t)id, logits[id], logits[id]};
    heapify(out, n, false);
    for (; id < n_vocab; id++) {
        if (!(logits[id] > out[0].logit)) /* an equal one with a larger id is worse */
            continue;
        out[0] = (struct candidate){(int32_t)id, logits[id], logits[id]};
        sift_down(out, n, 0, false);
    }
    for (size_t rest = n; rest > 1; rest--) {
        struct candidate worst = out[0];
        out[0] = out[rest - 1];
        sift_down(out, rest - 1, 0, false);
        out[rest - 1] = worst;
    }
    return n;
}

static size_t take_all(const float *logits, size_t n_vocab, struct candidate *out)
{
    size_t n = 0;
    for (size_t id = 0; id < n_vocab; id++)
        if (logits[id] > -INFINITY)
            out[n++] = (struct candidate){(int32_t)id, logits[id], logits[id]};
    return n;
}

static float max_logit(const struct candidate *c, size_t n)
{
    float max = c[0].logit;
    for (size_t i = 1; i < n; i++)
        max = MAX(max, c[i].logit);
    return max;
}

/* log of the sum of exp(logit): subtracting it from a logit gives a log probability. */
static double log_sum(const struct candidate *c, size_t n)
{
    float max = max_logit(c, n);
    double sum = 0;
    for (size_t i = 0; i < n; i++)
        sum += expf(c[i].logit - max);
    return max + log(sum);
}

/* Keeps the fewest candidates, best key first, whose probabilities reach share; at least one. */
static size_t keep_share(struct candidate *c, size_t n, double share)
{
    double log_total = log_sum(c, n);
    heapify(c, n, true);
    double reached = 0;
    size_t rest = n;
    while (rest > 0 && (rest == n || reached < share)) {
        struct candidate best = c[0];
        c[0] = c[rest - 1];
        sift_down(c, rest - 1, 0, true);
        c[--rest] = best;
        reached += exp(best.logit - log_total);
    }
    /* The kept ones lie at the end, the best last. */
    size_t kept = n - rest;
    for (size_t i = 0; i < kept / 2; i++) {
        struct candidate other = c[rest + i];
        c[rest + i] = c[n - 1 - i];
        c[n - 1 - i] = other;
    }
    memmove(c, c + rest, kept * sizeof *c);
    return kept;
}

/* Locally typical sampling (Meister et al., TACL 2023): tokens whose surprise is nearest to the
 * expected one. */
static size_t stage_typical(struct candidate *c, size_t n, double share)
{
    double log_total = log_sum(c, n), entropy = 0;
    for (size_t i = 0; i < n; i++) {
        double log_p = c[i].logit - log_total;
        entropy -= exp(log_p) * log_p;
    }
    for (size_t i = 0; i < n; i++)
        c[i].key = -(float)fabs(log_total - c[i].logit - entropy);
    n = keep_share(c, n, share);
    for (size_t i = 0; i < n; i++)
        c[i].key = c[i].logit;
    return n;
}

/* Keeps what is at least min_p times as likely as the most likely one. */
static size_t stage_min_p(struct candidate *c, size_t n, float min_p)
{
    float least = max_logit(c, n) + logf(min_p);
    size_t kept = 0;
    for (size_t i = 0; i < n; i++)
        if (c[i].logit >= least)
            c[kept++] = c[i];
    return kept;
}

/* XTC ("Exclude Top Choices", p-e-w 2024): of several candidates of at least this probability, only
 * the least likely stays. */
static size_t stage_xtc(struct candidate *c, size_t n, double threshold)
{
    double least = log_sum(c, n) + log(threshold);
    const struct candidate *last = NULL;
    for (size_t i = 0; i < n; i++)
        if (c[i].logit >= least && (last == NULL || better(last, &c[i])))
            last = &c[i];
    if (last == NULL)
        return n;
    struct candidate stays = *last;
    size_t kept = 0;
    for (size_t i = 0; i < n; i++)
        if (c[i].logit < least || c[i].id == stays.id)
            c[kept++] = c[i];
    return kept;
}

static int32_t pick(const struct candidate *c, size_t n, float temperature, double chance)
{
    float max = max_logit(c, n);
    double total = 0;
    for (size_t i = 0; i < n; i++)
        total += exp(((double)c[i].logit - max) / temperature);
    double target = chance * total, reached = 0;
    for (size_t i = 0; i < n; i++) {
        reached += exp(((double)c[i].logit - max) / temperature);
        if (reached > target)
            return c[i].id;
    }
    return c[n - 1].id;
}

static int32_t greedy(const float *logits, size_t n_vocab)
{
    int32_t best = -1;
    float max = -INFINITY;
    for (size_t id = 0; id < n_vocab; id++)
        if (logits[id] > max) {
            max = logits[id];
            best = (int32_t)id;
        }
    return best;
}

int32_t sampler_draw(struct sampler *sampler, float *logits, uint64_t position)
{
    const struct sampling *s = &sampler->sampling;
    if (sampler->matcher != NULL && !grammar_matcher_mask(sampler->matcher, logits)) {
        sampler->mask_failed = true;
        return -1;
    }
    for (size_t i = 0; i < s->n_biases; i++)
        logits[s->biases[i].token] += s->biases[i].bias;
    if (sampler->window_count != NULL)
        apply_penalties(sampler, logits);
    if (sampler->dry_length != NULL)
        apply_dry(sampler, logits);
    if (s->temperature == 0)
        return greedy(logits, sampler->n_vocab);

    struct candidate *c = sampler->candidates;
    bool all = s->top_k == 0 || s->top_k >= sampler->n_vocab;
    size_t n = all ? take_all(logits, sampler->n_vocab, c)
                   : take_best(logits, sampler->n_vocab, s->top_k, c);
    if (n == 0)
        return -1;
    if (s->typical_p < 1)
        n = stage_typical(c, n, s->typical_p);
    if (s->top_p < 1)
        n = keep_share(c, n, s->top_p);
    if (s->min_p > 0)
        n = stage_min_p(c, n, s->min_p);
    if (s->xtc_probability > 0 && s->xtc_threshold > 0 &&
        rng_uniform(s->seed, position, DRAW_XTC) < s->xtc_probability)
        n = stage_xtc(c, n, s->xtc_threshold);
    return pick(c, n, s->temperature, rng_uniform(s->seed, position, DRAW_TOKEN));
}

const char *sampler_failure(const struct sampler *sampler)
{
    if (sampler->mask_failed)
        return "the grammar cannot be followed any further: it is too ambiguous or memory is out";
    if (sampler->matcher != NULL)
        return "no token is possible: the vocabulary has none that the grammar allows here, or "
               "every logit is forbidden or not a number";
    return "no token is possible: every logit is forbidden or not a number";
}
