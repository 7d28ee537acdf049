#include "engine/scheduler_internal.h"

#define MIN_PROMPT_TOKENS 4 /* a prompt always goes on */
#define UNKNOWN_PROMPT_TOKENS 32
/* Where no text waits, requests that come in do, and those that are cancelled hold their pages: a
 * step may be longer, but not any length. Pieces of fewer tokens than this cost more each. */
#define ALONE_STEPS 4
#define ALONE_TOKENS 32
/* A step with a piece of a prompt takes at most so many times what it takes without. */
#define SLOWDOWN 2.25
#define SHORT_STEP_NS 60e6 /* few texts bear longer steps: nobody reads faster */
#define MARGIN 0.9

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

void step_cost_learn(struct step_cost *cost, uint32_t n_texts, size_t n_prompt, uint64_t ns)
{
    if (n_prompt == 0) {
        double *known = &cost->texts_ns[MIN(n_texts, cost->max_texts)];
        *known = blend(*known, (double)ns, 0.2);
        return;
    }
    double rest = (double)ns - (n_texts > 0 ? texts_cost(cost, n_texts) : 0);
    /* By themselves a few tokens cost about what ALONE_TOKENS do, so they say little of one. */
    bool few = n_texts == 0 && n_prompt < ALONE_TOKENS;
    double token_ns = MAX(rest, 0) / (double)(few ? ALONE_TOKENS : n_prompt);
    /* What got dearer is believed at once: the next step must not be too long again. */
    bool dearer = token_ns > cost->token_ns && !few;
    cost->token_ns = blend(cost->token_ns, token_ns, dearer ? 0.8 : 0.2);
}

size_t step_cost_allows(const struct step_cost *cost, uint32_t n_texts)
{
    if (cost->token_ns <= 0)
        return n_texts > 0 ? UNKNOWN_PROMPT_TOKENS : SIZE_MAX;
    if (n_texts == 0)
        return MAX((size_t)MIN(ALONE_STEPS * cost->limit_ns / cost->token_ns, 1e9), ALONE_TOKENS);
    double texts_ns = texts_cost(cost, n_texts);
    double limit = MIN(cost->limit_ns, MAX(SLOWDOWN * texts_ns, SHORT_STEP_NS));
    double tokens = (limit * MARGIN - texts_ns) / cost->token_ns;
    return tokens > MIN_PROMPT_TOKENS ? (size_t)MIN(tokens, 1e9) : MIN_PROMPT_TOKENS;
}
