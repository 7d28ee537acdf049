/* Why a candidate was rejected, as a sentence with its numbers. */
#include "plan/internal.h"

#include <stdio.h>
#include <string.h>

#define NAME_BYTES 192

/* "mac-1 alone", "a pipeline over 5 nodes (mac-1 ... mac-5)". */
static const char *describe(const struct planner *planner, const struct plan *plan,
                            char text[static NAME_BYTES])
{
    static const char *const words[PLAN_KIND_COUNT] = {
        "", "replicas on", "a pipeline over", "tensor parallel over", "a pipeline of groups over",
    };
    const struct plan_node *nodes = planner->in->nodes;
    uint32_t n = plan->n_shards;
    const char *first = nodes[plan->shards[0].node].name,
               *last = nodes[plan->shards[n - 1].node].name;
    if (n == 1)
        snprintf(text, NAME_BYTES, "%s alone", first);
    else if (n == 2)
        snprintf(text, NAME_BYTES, "%s %s and %s", words[plan->kind], first, last);
    else
        snprintf(text, NAME_BYTES, "%s %u nodes (%s ... %s)", words[plan->kind], n, first, last);
    return text;
}

void reason_fault(const struct planner *planner, const struct plan *plan, const struct fault *fault,
                  char *text, size_t size)
{
    const struct plan_node *nodes = planner->in->nodes;
    char need[32], has[32], what[NAME_BYTES];
    describe(planner, plan, what);
    size_text(need, fault->need);
    size_text(has, fault->has);
    switch (fault->kind) {
    case FAULT_MEMORY:
        if (fault->node == UINT32_MAX)
            snprintf(text, size, "%s: %s is needed, and they hold %s together", what, need, has);
        else if (plan->n_shards == 1)
            snprintf(text, size, "%s: %s is needed, and it has %s", what, need, has);
        else
            snprintf(text, size, "%s: %s would need %s, and has %s", what, nodes[fault->node].name,
                     need, has);
        break;
    case FAULT_DISK:
        snprintf(text, size, "%s: %s would store %s, and has %s of disk", what,
                 nodes[fault->node].name, need, has);
        break;
    case FAULT_HEADS:
        snprintf(text, size, "%s: a layer's %.0f heads leave one of %.0f shards without", what,
                 fault->has, fault->need);
        break;
    case FAULT_LINK:
        snprintf(text, size, "%s: there is no link between %s and %s", what,
                 nodes[fault->node].name, nodes[(uint32_t)fault->need].name);
        break;
    case FAULT_LAYERS:
        snprintf(text, size, "%s: %.0f layers are too few for %.0f stages", what, fault->has,
                 fault->need);
        break;
    case FAULT_NONE:
        snprintf(text, size, "%s: not possible", what);
        break;
    }
}

/* What makes this kind slow, in the terms of its formula. */
static void cause(const struct plan *plan, const struct plan *better, char *text, size_t size)
{
    double ms = 1e3;
    text[0] = '\0';
    if (plan->kind == PLAN_PIPELINE && plan->n_stages > 1)
        snprintf(text, size,
                 "; a token passes %u stages one after the other (%.2f ms) and %u hops (%.2f ms)",
                 plan->n_stages, plan->compute_s * ms, plan->n_stages, plan->hop_s * ms);
    else if (plan->n_collectives > 0) {
        /* By the formula an all-reduce pays below what sharding saves, over their number. */
        double saved = (better->step_s - plan->compute_s) / plan->n_collectives;
        double each = plan->collective_s / plan->n_collectives;
        snprintf(text, size, "; %u all-reduces a token take %.0f us each (%.2f ms)",
                 plan->n_collectives, each * 1e6, plan->collective_s * ms);
        size_t at = strlen(text);
        if (better->n_shards < plan->n_shards && saved > 0)
            snprintf(text + at, size - at, ", and would pay below %.0f us", saved * 1e6);
        else if (better->n_shards < plan->n_shards)
            snprintf(text + at, size - at, ", and reading is not shortened");
    } else if (plan->kind == PLAN_REPLICAS)
        snprintf(text, size, "; a stream stays on one of them");
}

void reason_slower(const struct planner *planner, const struct plan *plan,
                   const struct plan *better, char *text, size_t size)
{
    bool one = planner->in->work.objective == PLAN_LATENCY || planner->in->work.streams == 1;
    double rate = one ? plan->stream_rate : plan->all_rate;
    double than = one ? better->stream_rate : better->all_rate;
    char what[NAME_BYTES], other[NAME_BYTES], why[200], streams[32] = "one stream";
    if (!one)
        snprintf(streams, sizeof streams, "%u streams", planner->in->work.streams);
    cause(plan, better, why, sizeof why);
    const char *against = "and %s reaches %.1f%s";
    if (rate > than && better->n_shards < plan->n_shards)
        against = "less than 5 %% more than %s with %.1f%s";
    describe(planner, plan, what);
    describe(planner, better, other);
    int at = snprintf(text, size, "%s: %.1f tokens/s for %s, ", what, rate, streams);
    if (at > 0 && (size_t)at < size)
        snprintf(text + at, size - (size_t)at, against, other, than, why);
}
