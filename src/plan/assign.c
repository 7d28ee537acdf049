/* Who gets how much: shares within a group of nodes, and layers over a row of groups. */
#include "plan/internal.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define SHARE_UNITS 4096 /* shares of a group add up to about this */
#define ABOUT_EQUAL 1.15 /* rates that differ by no more are taken for the same */
#define BISECTIONS 6
#define GROWTH 1.3 /* of a limit that nothing fits */

/* ---- Shares ---------------------------------------------------------------------------------- */

double assign_least(const struct planner *planner, uint32_t n)
{
    double least = 0;
    for (uint32_t c = 0; c < planner->n_classes; c++) {
        const struct plan_layer *layer = &planner->classes[c];
        bool by_kv = layer->n_kv_heads != 0 && n <= layer->n_kv_heads;
        least = MAX(least, 1.0 / (by_kv ? layer->n_kv_heads : layer->n_heads));
    }
    return least;
}

/* Bytes of the model that shards share, and that each holds whole. */
static void held(const struct planner *planner, double *shared, double *whole)
{
    const struct plan_model *model = planner->in->model;
    double tokens = cache_tokens(&planner->in->work, 1);
    *shared = model->output_bytes;
    *whole = 0;
    for (uint32_t c = 0; c < planner->n_classes; c++) {
        const struct plan_layer *layer = &planner->classes[c];
        double count = planner->counts[(size_t)model->n_layers * planner->n_classes + c];
        bool compressed = layer->n_kv_heads == 0;
        *shared += count * (layer->head_bytes + layer->kv_head_bytes + layer->ff_bytes +
                            layer->expert_bytes + (compressed ? 0 : layer->kv_bytes * tokens));
        *whole += count * (layer->whole_bytes + (compressed ? layer->kv_bytes * tokens : 0));
    }
}

/* Sets those beyond a bound to it, and deals the rest out by weight, until none is. */
static void deal(const double *weights, const double *least, const double *most, double *shares,
                 uint32_t n)
{
    bool fixed[PLAN_MAX_SHARDS] = {false};
    for (uint32_t round = 0; round <= 2 * n; round++) {
        double left = 1, sum = 0;
        for (uint32_t i = 0; i < n; i++) {
            left -= fixed[i] ? shares[i] : 0;
            sum += fixed[i] ? 0 : weights[i];
        }
        if (sum <= 0)
            return;
        bool over = false, under = false;
        for (uint32_t i = 0; i < n; i++)
            if (!fixed[i]) {
                shares[i] = left * weights[i] / sum;
                over = over || shares[i] > most[i];
                under = under || shares[i] < least[i];
            }
        if (!over && !under)
            return;
        for (uint32_t i = 0; i < n; i++)
            if (!fixed[i] && (over ? shares[i] > most[i] : shares[i] < least[i])) {
                shares[i] = over ? most[i] : least[i];
                fixed[i] = true;
            }
    }
}

void plan_even_out(double *rates, uint32_t n)
{
    double high = 0;
    for (uint32_t i = 0; i < n; i++)
        high = MAX(high, rates[i]);
    for (uint32_t i = 0; i < n; i++)
        rates[i] = rates[i] * ABOUT_EQUAL >= high ? high : rates[i];
}

bool assign_shares(const struct planner *planner, struct group *group, double portion,
                   const double *less, struct fault *fault)
{
    double weights[PLAN_MAX_SHARDS], least[PLAN_MAX_SHARDS], most[PLAN_MAX_SHARDS],
        shares[PLAN_MAX_SHARDS], shared, whole, room = 0, capacity = 0;
    const struct plan_model *model = planner->in->model;
    uint32_t n = group->n;
    held(planner, &shared, &whole);
    shared *= portion;
    whole *= portion;
    bool one = planner->in->work.objective == PLAN_LATENCY;
    for (uint32_t i = 0; i < n; i++) {
        uint32_t node = group->shards[i].node;
        double embedding = portion >= 1 && i == 0 ? model->embedding_bytes : 0;
        double has = node_capacity(&planner->in->nodes[node]);
        weights[i] = 1 / planner->steps[one ? 0 : 1][node];
        /* A little more than a head, for shares are rounded. */
        least[i] = MIN(assign_least(planner, n) * 1.02, 1.0 / n);
        most[i] = (has - whole - embedding) / shared - (less != NULL ? less[i] : 0);
        if (most[i] < least[i]) {
            *fault = (struct fault){FAULT_MEMORY, node, whole + embedding + least[i] * shared, has};
            return false;
        }
        room += MIN(most[i], 1);
        capacity += has;
    }
    if (room < 1) {
        *fault = (struct fault){FAULT_MEMORY, UINT32_MAX, shared + n * whole, capacity};
        return false;
    }
    plan_even_out(weights, n);
    deal(weights, least, most, shares, n);
    for (uint32_t i = 0; i < n; i++)
        group->shards[i].share =
            (uint16_t)MAX(1, MIN(ceil(shares[i] * SHARE_UNITS - 0.25), UINT16_MAX));
    return true;
}

/* ---- Layers ---------------------------------------------------------------------------------- */

struct layout {
    const struct planner *planner;
    const struct group *groups;
    uint32_t n_groups;
    double *times;      /* [group][class + 1]; the last is the vocabulary projection */
    double *holds;      /* [group][class + 1][PLAN_MAX_SHARDS] */
    double *capacities; /* [group][PLAN_MAX_SHARDS] */
};

static size_t row_of(const struct layout *layout, uint32_t group, uint32_t class)
{
    return (size_t)group * (layout->planner->n_classes + 1) + class;
}

static void fill_group(struct layout *layout, uint32_t g, struct batch batch)
{
    const struct planner *planner = layout->planner;
    const struct group *group = &layout->groups[g];
    const struct plan_model *model = planner->in->model;
    struct cuts cuts = cuts_of(group->shards, group->n);
    double tokens = cache_tokens(&planner->in->work, 1);
    for (uint32_t i = 0; i < group->n; i++) {
        uint32_t node = group->shards[i].node;
        layout->capacities[(size_t)g * PLAN_MAX_SHARDS + i] =
            node_capacity(&planner->in->nodes[node]);
        for (uint32_t c = 0; c <= planner->n_classes; c++) {
            struct part part = {0};
            if (c < planner->n_classes)
                part = part_of(planner, c, &cuts, i);
            else {
                double rows =
                    cut_at(&cuts, model->n_vocab, i + 1) - cut_at(&cuts, model->n_vocab, i);
                part.bytes = model->output_bytes * rows / MAX(model->n_vocab, 1u);
                part.output_flops = part.bytes * planner->flops_per_byte;
            }
            size_t row = row_of(layout, g, c);
            layout->times[row] =
                MAX(layout->times[row], part_time(planner, &part, node, batch, group->n));
            layout->holds[row * PLAN_MAX_SHARDS + i] =
                part.bytes + part.expert_bytes + part.kv_held * tokens;
        }
    }
}

struct layout *layout_open(const struct planner *planner, const struct group *groups, uint32_t n)
{
    struct layout *layout = calloc(1, sizeof *layout);
    if (layout == NULL)
        return NULL;
    size_t rows = (size_t)n * (planner->n_classes + 1);
    *layout = (struct layout){.planner = planner, .groups = groups, .n_groups = n};
    layout->times = calloc(rows, sizeof *layout->times);
    layout->holds = calloc(rows * PLAN_MAX_SHARDS, sizeof *layout->holds);
    layout->capacities = calloc((size_t)n * PLAN_MAX_SHARDS, sizeof *layout->capacities);
    if (layout->times == NULL || layout->holds == NULL || layout->capacities == NULL) {
        layout_close(layout);
        return NULL;
    }
    const struct plan_work *work = &planner->in->work;
    double b = work->objective == PLAN_LATENCY ? 1 : MAX((double)work->streams / n, 1);
    for (uint32_t g = 0; g < n; g++)
        fill_group(layout, g, batch_of(planner, b));
    return layout;
}

void layout_close(struct layout *layout)
{
    if (layout == NULL)
        return;
    free(layout->times);
    free(layout->holds);
    free(layout->capacities);
    free(layout);
}

/* A stage that is being filled. */
struct filling {
    double time, held[PLAN_MAX_SHARDS];
};

/* Adds a layer to a stage where time and memory allow it. */
static bool add_layer(const struct layout *layout, uint32_t g, uint32_t layer, double limit_s,
                      struct filling *filling)
{
    const struct planner *planner = layout->planner;
    const struct plan_model *model = planner->in->model;
    size_t row = row_of(layout, g, planner->class_of[layer]),
           output = row_of(layout, g, planner->n_classes);
    bool last = layer + 1 == model->n_layers;
    double time = filling->time + layout->times[row] + (last ? layout->times[output] : 0);
    if (time > limit_s)
        return false;
    /* The last layer brings the projection, the first the embedding; both are rare. */
    const double *adds = &layout->holds[row * PLAN_MAX_SHARDS],
                 *capacities = &layout->capacities[(size_t)g * PLAN_MAX_SHARDS],
                 *more = last ? &layout->holds[output * PLAN_MAX_SHARDS] : NULL;
    double held[PLAN_MAX_SHARDS];
    uint32_t n = layout->groups[g].n;
    for (uint32_t i = 0; i < n; i++) {
        held[i] = filling->held[i] + adds[i];
        if (more != NULL)
            held[i] += more[i];
        if (layer == 0 && i == 0)
            held[i] += model->embedding_bytes;
        if (held[i] > capacities[i])
            return false;
    }
    filling->time = time;
    memcpy(filling->held, held, n * sizeof held[0]);
    return true;
}

/* Gives each stage as many layers as fit, ends[n] behind each one's last. Where all must be used,
 * each leaves one for those behind it. *used: stages that got some. */
static bool fill(const struct layout *layout, const uint32_t *sequence, uint32_t n, double limit_s,
                 bool all, uint32_t *ends, uint32_t *used)
{
    uint32_t n_layers = layout->planner->in->model->n_layers, layer = 0, s = 0;
    for (; s < n && layer < n_layers; s++) {
        struct filling filling = {0};
        uint32_t first = layer, leave = all ? n - s - 1 : 0;
        while (layer < n_layers && (layer == first || n_layers - layer > leave) &&
               add_layer(layout, sequence[s], layer, limit_s, &filling))
            layer++;
        if (layer == first)
            return false;
        ends[s] = layer;
    }
    *used = s;
    return layer == n_layers;
}

/* What each stage would take if layers could be cut anywhere. */
static double ideal_time(const struct layout *layout, const uint32_t *sequence, uint32_t n)
{
    const struct planner *planner = layout->planner;
    const uint32_t *counts =
        &planner->counts[(size_t)planner->in->model->n_layers * planner->n_classes];
    double speed = 0;
    for (uint32_t s = 0; s < n; s++) {
        double sum = 0;
        for (uint32_t c = 0; c < planner->n_classes; c++)
            sum += layout->times[row_of(layout, sequence[s], c)] * counts[c];
        speed += 1 / MAX(sum, 1e-12);
    }
    return 1 / speed;
}

/* The least limit that all stages keep, nearly: ends, which fit without one, become its. */
static void balance(const struct layout *layout, const uint32_t *sequence, uint32_t n,
                    uint32_t *ends)
{
    uint32_t tried[PLAN_MAX_NODES], used;
    double low = ideal_time(layout, sequence, n), high = low;
    int rounds = 0;
    while (!fill(layout, sequence, n, high, true, tried, &used)) {
        low = high;
        high *= GROWTH;
        if (++rounds == 60) /* only memory decides */
            return;
    }
    memcpy(ends, tried, n * sizeof ends[0]);
    for (int i = 0; i < BISECTIONS && rounds > 0; i++) {
        double middle = (low + high) / 2;
        if (fill(layout, sequence, n, middle, true, tried, &used)) {
            high = middle;
            memcpy(ends, tried, n * sizeof ends[0]);
        } else
            low = middle;
    }
}

static void write_stages(const struct layout *layout, const uint32_t *sequence, uint32_t n,
                         const uint32_t *ends, struct plan *plan)
{
    plan->n_stages = n;
    plan->n_shards = 0;
    for (uint32_t s = 0; s < n; s++) {
        const struct group *group = &layout->groups[sequence[s]];
        plan->stages[s] =
            (struct plan_stage){s > 0 ? ends[s - 1] : 0, ends[s], plan->n_shards, group->n};
        memcpy(&plan->shards[plan->n_shards], group->shards, group->n * sizeof *plan->shards);
        plan->n_shards += group->n;
    }
}

uint32_t layout_nodes(const struct layout *layout, const uint32_t *sequence, uint32_t n,
                      struct plan *plan)
{
    uint32_t ends[PLAN_MAX_NODES] = {0};
    write_stages(layout, sequence, n, ends, plan);
    return plan->n_shards;
}

bool layout_make(const struct layout *layout, const uint32_t *sequence, uint32_t n,
                 enum layout_how how, struct plan *plan, struct fault *fault)
{
    const struct planner *planner = layout->planner;
    uint32_t ends[PLAN_MAX_NODES], used;
    bool all = how == LAYOUT_BALANCE;
    if (all && n > planner->in->model->n_layers) {
        *fault = (struct fault){FAULT_LAYERS, 0, n, planner->in->model->n_layers};
        return false;
    }
    if (!fill(layout, sequence, n, INFINITY, all, ends, &used)) {
        double shared, whole, has = 0;
        held(planner, &shared, &whole);
        for (uint32_t s = 0; s < n; s++)
            for (uint32_t i = 0; i < layout->groups[sequence[s]].n; i++)
                has += layout->capacities[(size_t)sequence[s] * PLAN_MAX_SHARDS + i];
        *fault = (struct fault){FAULT_MEMORY, UINT32_MAX,
                                shared + whole + planner->in->model->embedding_bytes, has};
        return false;
    }
    if (all)
        balance(layout, sequence, n, ends);
    write_stages(layout, sequence, used, ends, plan);
    return true;
}
