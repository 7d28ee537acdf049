#include "engine/scheduler_internal.h"

#include <math.h>

#define MIN_PROMPT_TOKENS 4 /* a prompt always goes on */
#define UNKNOWN_PROMPT_TOKENS 32
/* Where no text waits, requests that come in do, and those that are cancelled hold their pages: a
 * step may be longer, but not any length. Pieces of fewer tokens than this cost more each. */
#define ALONE_STEPS 4
#define ALONE_TOKENS 32
/* Beside more than FEW_TEXTS a step with a piece of a long prompt takes at most so many times what
 * it takes without, or SHORT_STEP_NS. What is done after SHORT_STEPS of full length is not long: it
 * is over sooner than it disturbs. */
#define FEW_TEXTS 4
#define SLOWDOWN 2.25
#define SHORT_STEPS 2
#define SHORT_STEP_NS 60e6
#define LONG_SHARE 0.75 /* of that, as what a token costs grows within a prompt */
/* Where more than MANY_PROMPTS wait it is not a token that is late but whole answers: steps are up
 * to MOST_LONGER times longer then, because long ones compute more rows a second. */
#define MANY_PROMPTS 2
#define MOST_LONGER 2.5
#define MARGIN 0.95
#define DEARER 1.2

static double blend(double old, double now, double share)
{
    return old > 0 ? old + share * (now - old) : now;
}

/* What n_texts take: as many were seen, or the next fewer, or the next more. */
static double texts_cost(const struct step_cost *cost, uint32_t n_texts)
{
    uint32_t n = MIN(n_texts, cost->max_texts);
    for (uint32_t i = n; i > 0; i--)
        if (cost->texts_ns[i] > 0)
            return cost->texts_ns[i];
    for (uint32_t i = n + 1; i <= cost->max_texts; i++)
        if (cost->texts_ns[i] > 0)
            return cost->texts_ns[i];
    return 0;
}

/* What got dearer is believed at once, as the next step must not be too long again; but much dearer
 * only step by step, as one may have waited for something else. */
static void learn(double *known, double now)
{
    if (*known > 0)
        now = MIN(now, DEARER * *known);
    *known = blend(*known, now, now > *known ? 0.8 : 0.2);
}

/* Rows that cost as much as what a step of many rows needs anyway: panels unpack all weights. */
static double fixed_rows(void)
{
    return quant_has_panels() ? 128 : 8;
}

void step_cost_learn(struct step_cost *cost, uint32_t n_texts, size_t n_prompt, uint64_t ns)
{
    if (n_prompt == 0) {
        double *known = &cost->texts_ns[MIN(n_texts, cost->max_texts)];
        *known = blend(*known, (double)ns, 0.2);
    }
    if (n_texts + n_prompt > QUANT_SMALL_BATCH) {
        learn(&cost->row_ns, (double)ns / ((double)(n_texts + n_prompt) + fixed_rows()));
    } else if (n_prompt > 0 && n_texts > 0) {
        learn(&cost->few_ns, MAX((double)ns - texts_cost(cost, n_texts), 0) / (double)n_prompt);
    }
}

/* Tokens of prompts with which a step of few rows takes limit_ns, or less. */
static double few_within(const struct step_cost *cost, uint32_t n_texts, double limit_ns)
{
    double texts_ns = texts_cost(cost, n_texts);
    double few_ns = cost->few_ns > 0 ? cost->few_ns : MAX(cost->row_ns, texts_ns / MAX(n_texts, 1));
    double room = MAX((double)QUANT_SMALL_BATCH - n_texts, 0);
    return MAX(MIN((limit_ns - texts_ns) / few_ns, room), 0);
}

/* The same of any step. */
static double tokens_within(const struct step_cost *cost, uint32_t n_texts, double limit_ns)
{
    double many = limit_ns / cost->row_ns - fixed_rows() - n_texts;
    bool is_many = floor(many) + n_texts > QUANT_SMALL_BATCH;
    return is_many ? many : few_within(cost, n_texts, limit_ns);
}

size_t step_cost_allows(const struct step_cost *cost, uint32_t n_texts, uint32_t n_prompts,
                        size_t n_waiting)
{
    if (cost->row_ns <= 0)
        return n_texts > 0 ? UNKNOWN_PROMPT_TOKENS : SIZE_MAX;
    if (n_texts == 0)
        return (size_t)MIN(MAX(tokens_within(cost, 0, ALONE_STEPS * cost->limit_ns), ALONE_TOKENS),
                           1e9);
    double limit_ns = cost->limit_ns;
    if (n_texts > FEW_TEXTS &&
        (double)n_waiting > tokens_within(cost, n_texts, SHORT_STEPS * limit_ns)) {
        limit_ns = MIN(limit_ns, MAX(SLOWDOWN * texts_cost(cost, n_texts), SHORT_STEP_NS));
        /* Deep in a prompt panels would take far longer than at its beginning. */
        if (n_prompts <= MANY_PROMPTS && quant_has_panels())
            return MAX(few_within(cost, n_texts, LONG_SHARE * limit_ns), MIN_PROMPT_TOKENS);
    }
    limit_ns *= MIN(MAX((double)n_prompts / MANY_PROMPTS, 1), MOST_LONGER);
    double tokens = tokens_within(cost, n_texts, MARGIN * limit_ns);
    return tokens > MIN_PROMPT_TOKENS ? (size_t)MIN(tokens, 1e9) : MIN_PROMPT_TOKENS;
}
