#include "engine/scheduler_internal.h"

#include <math.h>

#define MIN_PROMPT_TOKENS 4 /* a prompt always goes on */
#define UNKNOWN_PROMPT_TOKENS 32
/* Where no text waits, requests that come in do, and those that are cancelled hold their pages: a
 * step may be longer, but not any length. Pieces of fewer tokens than this cost more each, and deep
 * in a prompt, where each costs more anyway, they are not made shorter for it. */
#define ALONE_STEPS 4
#define ALONE_TOKENS 32
/* Beside more than FEW_TEXTS, short prompts are computed at once: what is done within one step, or
 * LONG_STEPS with panels, which would unpack all weights for each of several. With a piece of a
 * longer one a step takes at most SLOWDOWN times what it takes without, or SHORT_STEP_NS. */
#define FEW_TEXTS 4
#define LONG_STEPS 2.5
#define SLOWDOWN 2.25
#define SHORT_STEP_NS 60e6
/* Where more than MANY_PROMPTS wait it is not a token that is late but whole answers: steps are
 * LONG_STEPS long then, because long ones compute more rows a second. */
#define MANY_PROMPTS 2
#define MARGIN 0.95
#define DEARER 1.2
/* Until it was seen, a token after so many others is believed to cost twice what the first does. */
#define TWICE_DEPTH 2048

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

/* Corrects what is known of n times a cost and depths times another, which took ns together: each
 * of them by its share. What got dearer is believed at once, as the next step must not be too long
 * again; but much dearer only step by step, as one may have waited for something else. */
static void learn(double *known, double n, double *known_deep, double depths, double ns)
{
    if (*known <= 0)
        *known = ns / (n + (*known_deep > 0 ? 0 : depths / TWICE_DEPTH));
    if (*known_deep <= 0)
        *known_deep = *known / TWICE_DEPTH;
    double part = n * *known, part_deep = depths * *known_deep, expected = part + part_deep;
    if (expected <= 0)
        return;
    double change = MIN(ns / expected, DEARER) - 1;
    change *= (change > 0 ? 0.8 : 0.2) * expected / (part * part + part_deep * part_deep);
    *known *= 1 + change * part;
    *known_deep *= 1 + change * part_deep;
}

/* Rows that cost as much as what a step of many rows needs anyway: panels unpack all weights. */
static double fixed_rows(void)
{
    return quant_has_panels() ? 128 : 8;
}

void step_cost_learn(struct step_cost *cost, uint32_t n_texts, size_t n_prompt, double depths,
                     uint64_t ns)
{
    if (n_prompt == 0) {
        double *known = &cost->texts_ns[MIN(n_texts, cost->max_texts)];
        *known = *known > 0 ? *known + 0.2 * ((double)ns - *known) : (double)ns;
    }
    if (n_texts + n_prompt > QUANT_SMALL_BATCH) {
        double n_rows = (double)(n_texts + n_prompt) + fixed_rows();
        learn(&cost->row_ns, n_rows, &cost->deep_ns, depths, (double)ns);
    } else if (n_prompt > 0 && n_texts > 0) {
        double added_ns = MAX((double)ns - texts_cost(cost, n_texts), 1);
        learn(&cost->few_ns, (double)n_prompt, &cost->deep_ns, depths, added_ns);
    }
}

/* Tokens of prompts, each after depth others, with which a step of few rows takes limit_ns, or
 * less. */
static double few_within(const struct step_cost *cost, uint32_t n_texts, double depth,
                         double limit_ns)
{
    double texts_ns = texts_cost(cost, n_texts);
    double few_ns = cost->few_ns > 0 ? cost->few_ns : MAX(cost->row_ns, texts_ns / MAX(n_texts, 1));
    double room = MAX((double)QUANT_SMALL_BATCH - n_texts, 0);
    return MAX(MIN((limit_ns - texts_ns) / (few_ns + depth * cost->deep_ns), room), 0);
}

/* The same of any step. */
static double tokens_within(const struct step_cost *cost, uint32_t n_texts, double depth,
                            double limit_ns)
{
    double token_ns = cost->row_ns + depth * cost->deep_ns;
    double many = (limit_ns - cost->row_ns * (fixed_rows() + n_texts)) / token_ns;
    bool is_many = floor(many) + n_texts > QUANT_SMALL_BATCH;
    return is_many ? many : few_within(cost, n_texts, depth, limit_ns);
}

size_t step_cost_allows(const struct step_cost *cost, uint32_t n_texts,
                        const struct waiting_prompts *prompts)
{
    if (cost->row_ns <= 0)
        return n_texts > 0 ? UNKNOWN_PROMPT_TOKENS : SIZE_MAX;
    if (n_texts == 0)
        return (size_t)MIN(
            MAX(tokens_within(cost, 0, 0, ALONE_STEPS * cost->limit_ns), ALONE_TOKENS), 1e9);
    double limit_ns = cost->limit_ns;
    if (n_texts > FEW_TEXTS) {
        double short_ns = (quant_has_panels() ? LONG_STEPS : 1) * limit_ns;
        if ((double)prompts->n_whole <= tokens_within(cost, n_texts, prompts->depth, short_ns))
            return MAX(prompts->n_tokens, (size_t)MIN_PROMPT_TOKENS);
        limit_ns = MIN(limit_ns, MAX(SLOWDOWN * texts_cost(cost, n_texts), SHORT_STEP_NS));
    }
    if (prompts->count > MANY_PROMPTS)
        limit_ns *= LONG_STEPS;
    double tokens = tokens_within(cost, n_texts, prompts->depth, MARGIN * limit_ns);
    return tokens > MIN_PROMPT_TOKENS ? (size_t)MIN(tokens, 1e9) : MIN_PROMPT_TOKENS;
}
