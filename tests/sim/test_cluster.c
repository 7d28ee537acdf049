/* The control plane of whole clusters, from seeds: nodes come and go, links break, hang and
 * reorder, partitions come and heal, clients ask for models, commands change what is wanted; then
 * all heals, and what must be true in the end is checked. tests/fake/fake_cluster.c checks
 * meanwhile.
 *
 *   test_cluster [N [FIRST]]     N seeds from FIRST on (environment: SEEDS; 200 from 1)
 *   test_cluster --seed S        one seed, with a trace of all that happens
 *
 * Prints TAP. A seed that failed says how to repeat it; add it to `failed_once` with its fix.
 */
#include "fake_cluster.h"

#include "cluster/core_internal.h"

#define BATCH 50
#define MAX_UNDO 64
#define SETTLE_MS 120000
#define CALM_MS 60000

/* Seeds that found a mistake, and what it was. */
static const uint64_t failed_once[] = {1, 8692};

enum undo_kind { UNDO_START, UNDO_BLOCK, UNDO_HEAL, UNDO_HANG, UNDO_SLOW, UNDO_ABANDON };

struct undo {
    uint64_t time_ms;
    enum undo_kind kind;
    unsigned a, b;
};

struct story {
    struct sim *sim;
    struct sim_options options;
    struct undo undo[MAX_UNDO];
    unsigned n_undo, n_keys, n_rotations;
    bool sent_away;   /* a node was removed, or left */
    bool small_disks; /* some disks hold a few slices only */
    struct {
        char hash[16];
        unsigned revoked_at; /* a node, plus 1; 0: not revoked */
        uint64_t generation;
    } keys[SIM_MAX_KEYS];
};

static uint64_t any(struct story *story, uint64_t below)
{
    return sim_random(story->sim, below);
}

static unsigned any_node(struct story *story)
{
    return (unsigned)any(story, story->options.n_nodes);
}

static bool undo_later(struct story *story, enum undo_kind kind, unsigned a, unsigned b,
                       uint64_t most_ms)
{
    if (story->n_undo == MAX_UNDO)
        return false;
    story->undo[story->n_undo++] =
        (struct undo){sim_now(story->sim) + 300 + any(story, most_ms), kind, a, b};
    return true;
}

static void undo(struct story *story, const struct undo *what)
{
    struct sim *sim = story->sim;
    switch (what->kind) {
    case UNDO_START:
        sim_start(sim, what->a);
        break;
    case UNDO_BLOCK:
        sim_block(sim, what->a, what->b, false);
        break;
    case UNDO_HEAL:
        for (unsigned a = 0; a < story->options.n_nodes; a++)
            for (unsigned b = 0; b < story->options.n_nodes; b++)
                sim_block(sim, a, b, false);
        break;
    case UNDO_HANG:
        sim_hang(sim, what->a, false);
        break;
    case UNDO_SLOW:
        sim_latency(sim, what->a, 0);
        break;
    case UNDO_ABANDON:
        sim_abandon(sim, what->a);
        break;
    }
}

/* Those whose time has come, or all. */
static void undo_due(struct story *story, bool all)
{
    for (unsigned i = story->n_undo; i-- > 0;) {
        struct undo what = story->undo[i];
        if (!all && what.time_ms > sim_now(story->sim))
            continue;
        story->undo[i] = story->undo[--story->n_undo];
        undo(story, &what);
    }
}

/* ---- What may happen ------------------------------------------------------------------------- */

static void act_submit(struct story *story)
{
    unsigned model = (unsigned)any(story, story->options.n_models);
    uint32_t n = (uint32_t)any(story, 60);
    sim_submit(story->sim, any_node(story), model, n);
    if (any(story, 4) == 0) /* two at once */
        sim_submit(story->sim, any_node(story), model, n / 2);
}

static void act_cancel(struct story *story)
{
    unsigned n = sim_n_requests(story->sim);
    if (n > 0)
        sim_cancel(story->sim, (int)any(story, n));
}

static void act_crash(struct story *story)
{
    unsigned node = any_node(story);
    if (sim_core(story->sim, node) != NULL && undo_later(story, UNDO_START, node, 0, 6000))
        sim_crash(story->sim, node, any(story, 2) == 0);
}

static void act_cut(struct story *story)
{
    sim_cut(story->sim, any_node(story), any_node(story));
}

static void act_block(struct story *story)
{
    unsigned a = any_node(story), b = any_node(story);
    if (undo_later(story, UNDO_BLOCK, a, b, 7000))
        sim_block(story->sim, a, b, true);
}

static void act_partition(struct story *story)
{
    uint64_t side = any(story, (uint64_t)1 << story->options.n_nodes);
    if (!undo_later(story, UNDO_HEAL, 0, 0, 9000))
        return;
    for (unsigned a = 0; a < story->options.n_nodes; a++)
        for (unsigned b = 0; b < story->options.n_nodes; b++)
            if ((side >> a & 1) != (side >> b & 1))
                sim_block(story->sim, a, b, true);
}

static void act_freeze(struct story *story)
{
    unsigned node = any_node(story);
    if (sim_core(story->sim, node) != NULL)
        sim_freeze(story->sim, node, sim_now(story->sim) + 300 + any(story, 8000));
}

static void act_hang(struct story *story)
{
    unsigned node = any_node(story);
    if (undo_later(story, UNDO_HANG, node, 0, 16000))
        sim_hang(story->sim, node, true);
}

static void act_slow(struct story *story)
{
    unsigned node = any_node(story);
    if (undo_later(story, UNDO_SLOW, node, 0, 4000))
        sim_latency(story->sim, node, any(story, 900));
}

static void act_skew(struct story *story)
{
    sim_skew(story->sim, any_node(story), (int64_t)any(story, 2000000) - 1000000);
}

static void act_network(struct story *story)
{
    static const double rates[] = {0, 6e6, 1e8, 1e9};
    sim_network(story->sim, any_node(story), (unsigned)any(story, SIM_NETWORKS),
                rates[any(story, ARRAY_COUNT(rates))]);
}

static struct cluster_core *any_core(struct story *story, unsigned *node)
{
    *node = any_node(story);
    return sim_core(story->sim, *node);
}

static void act_alias(struct story *story)
{
    unsigned node;
    struct cluster_core *core = any_core(story, &node);
    char key[32];
    struct error error;
    snprintf(key, sizeof key, "alias/a%u", (unsigned)any(story, 5));
    json_t *value = json_pack("{s:i}", "model", (int)any(story, 1000));
    if (core != NULL)
        cluster_core_put(core, key, any(story, 4) == 0 ? NULL : value, &error);
    json_decref(value);
}

static void act_key(struct story *story)
{
    unsigned node, i = (unsigned)any(story, SIM_MAX_KEYS);
    struct cluster_core *core = any_core(story, &node);
    if (core == NULL)
        return;
    char key[32];
    struct error error;
    snprintf(story->keys[i].hash, sizeof story->keys[i].hash, "%08x", i);
    snprintf(key, sizeof key, "key/%08x", i);
    bool revoke = any(story, 3) == 0;
    json_t *value = json_pack("{s:i, s:b}", "limit", (int)any(story, 100), "revoked", (int)revoke);
    enum status status = cluster_core_put(core, key, value, &error);
    json_decref(value);
    if (status != STATUS_OK && !cluster_core_key_revoked(core, story->keys[i].hash))
        sim_fail(story->sim, "a key was refused: %s", error.text);
    /* It counts once it is on the disk. */
    if (revoke && status == STATUS_OK && story->keys[i].revoked_at == 0) {
        uint64_t incarnation = core->options.incarnation;
        sim_run(story->sim, sim_now(story->sim) + 120);
        core = sim_core(story->sim, node);
        if (core != NULL && core->options.incarnation == incarnation && !core->saved_dirty)
            story->keys[i].revoked_at = node + 1;
    }
}

static void act_load(struct story *story)
{
    unsigned node;
    struct cluster_core *core = any_core(story, &node);
    struct error error;
    unsigned model = (unsigned)any(story, story->options.n_models);
    if (core == NULL)
        return;
    if (any(story, 2) == 0)
        cluster_core_load(core, sim_model(story->sim, model), NULL, &error);
    else
        cluster_core_unload(core, sim_model(story->sim, model)->sha, any(story, 3) == 0, &error);
}

static void act_replica(struct story *story)
{
    unsigned model = (unsigned)any(story, story->options.n_models);
    sim_set_replica(story->sim, any_node(story), model, any(story, 3) != 0);
}

static void act_remove(struct story *story)
{
    unsigned node, other = any_node(story);
    struct cluster_core *core = any_core(story, &node);
    struct error error;
    if (core == NULL || node == other || story->options.n_nodes < 3 || story->sent_away)
        return;
    story->sent_away = true;
    if (any(story, 2) == 0 && sim_core(story->sim, other) != NULL)
        cluster_core_leave(sim_core(story->sim, other));
    else if (cluster_core_remove(core, sim_name(story->sim, other), &error) != STATUS_OK)
        story->sent_away = false;
    if (!story->sent_away)
        return;
    if (!undo_later(story, UNDO_ABANDON, other, 0, 3000))
        sim_abandon(story->sim, other);
}

/* A node that the others never heard of cannot get the new key. */
static bool all_known(struct story *story)
{
    for (unsigned a = 0; a < story->options.n_nodes; a++)
        for (unsigned b = 0; b < story->options.n_nodes; b++)
            if (!sim_abandoned(story->sim, a) && !sim_abandoned(story->sim, b) &&
                (sim_core(story->sim, a) == NULL ||
                 core_node(sim_core(story->sim, a), sim_id(story->sim, b)) == NULL))
                return false;
    return true;
}

static void act_rotate(struct story *story)
{
    unsigned node;
    struct cluster_core *core = any_core(story, &node);
    struct cluster_key key;
    struct error error;
    if (core == NULL || !all_known(story))
        return;
    snprintf(key.id, sizeof key.id, "key-%u", ++story->n_rotations);
    snprintf(key.secret, sizeof key.secret, "secret-%u", story->n_rotations);
    cluster_core_rotate(core, &key, &error);
}

static const struct {
    unsigned weight;
    void (*act)(struct story *story);
} acts[] = {
    {36, act_submit},   {4, act_cancel},  {6, act_crash}, {5, act_cut},    {4, act_block},
    {4, act_partition}, {4, act_freeze},  {3, act_hang},  {4, act_slow},   {2, act_skew},
    {5, act_alias},     {7, act_key},     {8, act_load},  {1, act_remove}, {1, act_rotate},
    {4, act_replica},   {5, act_network},
};

static void act(struct story *story)
{
    unsigned sum = 0, at = 0;
    for (size_t i = 0; i < ARRAY_COUNT(acts); i++)
        sum += acts[i].weight;
    unsigned left = (unsigned)any(story, sum);
    while (left >= acts[at].weight)
        left -= acts[at++].weight;
    acts[at].act(story);
}

/* ---- A story --------------------------------------------------------------------------------- */

static void choose(struct sim_options *options, uint64_t seed)
{
    uint64_t random = hash_mix(seed);
#define DRAW(below) ((random = hash_mix(random)) % (below))
    *options = (struct sim_options){.seed = seed};
    options->n_nodes = DRAW(20) == 0 ? 7 + (unsigned)DRAW(10) : 2 + (unsigned)DRAW(4);
    options->n_models = 1 + (unsigned)DRAW(4);
    options->latency_ms = 1 + DRAW(30);
    options->faults = DRAW(2) == 0;
    options->silent = DRAW(2) == 0;
    options->idle_ms = 2000 + (uint32_t)DRAW(6000);
    for (unsigned i = 0; i < options->n_nodes; i++)
        options->memory[i] = 50 + DRAW(100);
    bool small = DRAW(4) == 0;
    for (unsigned i = 0; i < options->n_nodes; i++)
        if (small && DRAW(2) == 0)
            options->disk[i] = DISK_KEEP_BYTES + DRAW(40) * CLUSTER_CHUNK_BYTES;
    for (unsigned i = 0; i < options->n_models; i++) {
        uint64_t kind = DRAW(12);
        options->models[i] = kind == 0 ? 10000 : kind < 6 ? 20 + DRAW(60) : 80 + DRAW(140);
    }
#undef DRAW
}

static void begin(struct story *story)
{
    struct sim *sim = story->sim;
    unsigned n = story->options.n_nodes;
    bool beacons = any(story, 3) != 0;
    sim_beacons(sim, beacons);
    for (unsigned i = 0; i < story->options.n_models; i++)
        for (unsigned k = 0; k < 1 + any(story, 2); k++)
            sim_give_model(sim, any_node(story), i);
    for (unsigned i = 0; i < n; i++) {
        sim_run(sim, sim_now(sim) + any(story, 600));
        if (!beacons && i > 0)
            sim_set_peer(sim, i, (unsigned)any(story, i));
        sim_start(sim, i);
    }
}

static void heal(struct story *story)
{
    struct sim *sim = story->sim;
    undo_due(story, true);
    sim_faults(sim, false);
    if (story->sent_away) /* it may be the only one that some know */
        sim_beacons(sim, true);
    for (unsigned a = 0; a < story->options.n_nodes; a++) {
        sim_freeze(sim, a, 0);
        sim_hang(sim, a, false);
        sim_latency(sim, a, 0);
        for (unsigned b = 0; b < story->options.n_nodes; b++)
            sim_block(sim, a, b, false);
        sim_start(sim, a);
        for (unsigned model = 0; model < story->options.n_models; model++)
            sim_set_replica(sim, a, model, false);
    }
}

static const char *unsettled(struct sim *sim)
{
    if (!sim_all_linked(sim))
        return "not all nodes are linked";
    if (!sim_all_agree(sim))
        return "the desired state differs";
    if (!sim_all_answered(sim))
        return "requests are not answered";
    return "a model has two instances";
}

static void check_keys(struct story *story)
{
    const char *wanted = NULL;
    for (unsigned n = 0; n < story->options.n_nodes; n++) {
        const struct cluster_core *core = sim_core(story->sim, n);
        if (core == NULL)
            continue;
        for (unsigned i = 0; i < SIM_MAX_KEYS; i++)
            if (story->keys[i].revoked_at != 0 &&
                !sim_abandoned(story->sim, story->keys[i].revoked_at - 1) &&
                !cluster_core_key_revoked(core, story->keys[i].hash))
                sim_fail(story->sim, "a revoked key is valid at %s", sim_name(story->sim, n));
        if (core->n_keys != 1 || (wanted != NULL && strcmp(wanted, core->keys[0].id) != 0))
            sim_fail(story->sim, "the cluster's key did not change everywhere: %s has %u",
                     sim_name(story->sim, n), core->n_keys);
        wanted = core->keys[0].id;
    }
}

static bool keys_ended(struct sim *sim)
{
    for (unsigned n = 0; n < sim_n_nodes(sim); n++)
        if (sim_core(sim, n) != NULL && sim_core(sim, n)->n_keys != 1)
            return false;
    return true;
}

/* Whether the planner of the simulation finds a placement when nothing else runs. */
static bool fits(struct story *story, unsigned model)
{
    uint64_t need = story->options.models[model];
    for (uint32_t n = 1; n <= story->options.n_nodes; n++) {
        uint32_t fit = 0;
        for (unsigned i = 0; i < story->options.n_nodes; i++)
            if (sim_core(story->sim, i) != NULL && story->options.memory[i] >= need / n + 1)
                fit++;
        if (fit >= n)
            return true;
    }
    return false;
}

/* Whether nodes that run have the whole of it, in whatever slices, and room for others. */
static bool held(struct story *story, unsigned model)
{
    char whole[CLUSTER_OBJECT_BYTES];
    snprintf(whole, sizeof whole, "%s/0-%d.0.1.1", sim_model(story->sim, model)->sha, SIM_LAYERS);
    return sim_covered(story->sim, whole, SIM_NOBODY) && !story->small_disks;
}

static bool no_single(struct sim *sim)
{
    return sim_single(sim) == NULL;
}

static bool lost_one_answers(struct story *story, unsigned model)
{
    struct sim *sim = story->sim;
    unsigned lost = any_node(story), node = any_node(story);
    if (sim_core(sim, lost) == NULL || lost == node || sim_core(sim, node) == NULL)
        return true;
    bool runs = sim_n_instances(sim, model, true) > 0;
    sim_crash(sim, lost, any(story, 2) == 0);
    if (runs && !held(story, model))
        sim_fail(sim, "%s took some of %s with it", sim_name(sim, lost),
                 sim_model(sim, model)->name);
    bool possible = fits(story, model) && held(story, model);
    int request = sim_submit(sim, node, model, 5);
    bool good = sim_wait(sim, sim_now(sim) + CALM_MS, sim_all_answered) && request >= 0;
    good = good && (!possible || sim_request(sim, request)->answer == SIM_ANSWERED);
    if (!good && sim_fault(sim) == NULL)
        sim_fail(sim, "without %s, %s does not run: %s", sim_name(sim, lost),
                 sim_model(sim, model)->name,
                 request >= 0 ? sim_request(sim, request)->reason : "");
    sim_lost(sim, possible);
    sim_start(sim, lost);
    return sim_wait(sim, sim_now(sim) + CALM_MS, sim_settled);
}

/* While a model is kept loaded and nothing else happens, its slices get second copies, wherever a
 * disk has room; then any one node may be lost with all that is on it. */
static void check_copies(struct story *story, unsigned model)
{
    struct sim *sim = story->sim;
    struct error error;
    unsigned node = 0;
    while (sim_core(sim, node) == NULL)
        node++;
    if (cluster_core_load(sim_core(sim, node), sim_model(sim, model), NULL, &error) != STATUS_OK)
        return;
    sim_run(sim, sim_now(sim) + 3000);
    if (!sim_wait(sim, sim_now(sim) + CALM_MS, no_single)) {
        const char *slice = sim_single(sim);
        sim_fail(sim, "a lost node takes %s with it", slice != NULL ? slice : "a slice");
        return;
    }
    if (!story->small_disks && !lost_one_answers(story, model))
        sim_fail(sim, "does not settle after a loss: %s", unsettled(sim));
    while (sim_core(sim, node) == NULL)
        node++;
    cluster_core_unload(sim_core(sim, node), sim_model(sim, model)->sha, false, &error);
}

/* Alone, with all nodes, each model that fits must be answered, from any node. */
static void ask_each(struct story *story)
{
    struct sim *sim = story->sim;
    for (unsigned model = 0; model < story->options.n_models; model++) {
        unsigned node = any_node(story);
        int request = sim_submit(sim, node, model, 5);
        if (request < 0)
            continue;
        if (!sim_wait(sim, sim_now(sim) + CALM_MS, sim_all_answered)) {
            sim_fail(sim, "a request is not answered while nothing happens");
            return;
        }
        bool good = sim_request(sim, request)->answer == SIM_ANSWERED;
        if (good && !fits(story, model))
            sim_fail(sim, "%s runs, and does not fit", sim_model(sim, model)->name);
        if (!good && fits(story, model) && held(story, model))
            sim_fail(sim, "%s does not run: %s", sim_model(sim, model)->name,
                     sim_request(sim, request)->reason);
        if (good && sim_fault(sim) == NULL)
            check_copies(story, model);
    }
}

/* A node that left while nobody heard it is removed by the user. */
static void forget_abandoned(struct story *story)
{
    struct error error;
    for (unsigned a = 0; a < story->options.n_nodes; a++)
        for (unsigned b = 0; b < story->options.n_nodes; b++) {
            struct cluster_core *core = sim_core(story->sim, b);
            if (sim_abandoned(story->sim, a) && core != NULL &&
                core_node(core, sim_id(story->sim, a)) != NULL)
                cluster_core_remove(core, sim_name(story->sim, a), &error);
        }
}

/* Data takes the fastest network that both nodes have. */
static void check_ways(struct story *story)
{
    struct sim *sim = story->sim;
    struct cluster_way ways[CLUSTER_MAX_PATHS];
    for (unsigned a = 0; a < story->options.n_nodes; a++)
        for (unsigned b = 0; b < story->options.n_nodes; b++) {
            double fastest = 0, taken = 0;
            if (a == b || sim_core(sim, a) == NULL || sim_core(sim, b) == NULL)
                continue;
            size_t n = cluster_core_ways(sim_core(sim, a), sim_id(sim, b), ways);
            for (unsigned i = 0; i < SIM_NETWORKS; i++) {
                double rate = MIN(sim_rate(sim, a, i), sim_rate(sim, b, i));
                char name[16];
                snprintf(name, sizeof name, "net%u", i);
                if (n > 0 && strcmp(ways[0].interface, name) == 0)
                    taken = rate;
                fastest = MAX(fastest, rate);
            }
            if (n > 0 && ways[0].interface[0] == 0)
                taken = 1e9; /* the address outside these networks */
            if (taken < fastest)
                sim_fail(sim, "data from %s to %s takes no network of the best", sim_name(sim, a),
                         sim_name(sim, b));
        }
}

static void finish(struct story *story)
{
    struct sim *sim = story->sim;
    struct error error;
    heal(story);
    if (!sim_wait(sim, sim_now(sim) + SETTLE_MS, sim_settled)) {
        sim_fail(sim, "does not settle: %s", unsettled(sim));
        return;
    }
    forget_abandoned(story);
    sim_run(sim, sim_now(sim) + 5000); /* what was on its way has arrived */
    if (!sim_wait(sim, sim_now(sim) + CALM_MS, keys_ended))
        sim_fail(sim, "the cluster's key does not change everywhere");
    check_keys(story);
    unsigned node = 0;
    while (sim_core(sim, node) == NULL)
        node++;
    for (unsigned i = 0; i < story->options.n_models; i++)
        cluster_core_unload(sim_core(sim, node), sim_model(sim, i)->sha, false, &error);
    if (!sim_wait(sim, sim_now(sim) + CALM_MS, sim_nothing_held))
        sim_fail(sim, "memory stays reserved");
    ask_each(story);
    if (!sim_wait(sim, sim_now(sim) + CALM_MS, sim_nothing_held))
        sim_fail(sim, "memory stays reserved in the end");
    check_ways(story);
    for (unsigned i = 0; i < story->options.n_nodes; i++)
        if (sim_core(sim, i) != NULL) {
            json_t *status = cluster_core_status(sim_core(sim, i));
            if (status == NULL)
                sim_fail(sim, "no status");
            json_decref(status);
        }
}

static void add_counts(struct sim_counts *sum, const struct sim_counts *counts)
{
    sum->messages += counts->messages;
    sum->answered += counts->answered;
    sum->errors += counts->errors;
    sum->continued += counts->continued;
    sum->opened += counts->opened;
    sum->chunks += counts->chunks;
    sum->chunks_again += counts->chunks_again;
    sum->removed += counts->removed;
    sum->lost += counts->lost;
}

/* NULL, or what went wrong, until the next call. */
static const char *tell(uint64_t seed, bool trace, struct sim_counts *sum)
{
    static char fault[512];
    struct story story = {.n_undo = 0};
    choose(&story.options, seed);
    for (unsigned i = 0; i < story.options.n_nodes; i++)
        story.small_disks = story.small_disks || story.options.disk[i] != 0;
    story.options.trace = trace;
    story.sim = sim_open(&story.options);
    begin(&story);
    uint64_t end_ms = sim_now(story.sim) + 4000 + any(&story, 14000);
    while (sim_now(story.sim) < end_ms && sim_fault(story.sim) == NULL) {
        sim_run(story.sim, sim_now(story.sim) + any(&story, 500));
        undo_due(&story, false);
        act(&story);
    }
    if (sim_fault(story.sim) == NULL)
        finish(&story);
    const char *found = sim_fault(story.sim);
    if (found != NULL)
        snprintf(fault, sizeof fault, "%s", found);
    add_counts(sum, sim_counts(story.sim));
    sim_close(story.sim);
    return found != NULL ? fault : NULL;
}

static bool tell_some(unsigned number, const char *program, const char *what, const uint64_t *seeds,
                      uint64_t first, uint64_t n)
{
    unsigned failed = 0;
    struct sim_counts counts = {.messages = 0};
    for (uint64_t i = 0; i < n; i++) {
        uint64_t seed = seeds != NULL ? seeds[i] : first + i;
        const char *fault = tell(seed, false, &counts);
        if (fault == NULL)
            continue;
        failed++;
        printf("# seed %" PRIu64 ": %s\n# repeat it: %s --seed %" PRIu64 "\n", seed, fault, program,
               seed);
    }
    printf("%s %u - %s", failed > 0 ? "not ok" : "ok", number, what);
    if (seeds == NULL)
        printf(" %" PRIu64 " to %" PRIu64, first, first + n - 1);
    printf("\n# %" PRIu64 " messages, %" PRIu64 " ranks opened, %" PRIu64 " chunks (%" PRIu64
           " twice), %" PRIu64 " slices removed; %" PRIu64 " answers, %" PRIu64 " errors, %" PRIu64
           " continued; %" PRIu64 " nodes lost that took nothing with them\n",
           counts.messages, counts.opened, counts.chunks, counts.chunks_again, counts.removed,
           counts.answered, counts.errors, counts.continued, counts.lost);
    fflush(stdout);
    return failed == 0;
}

int main(int argc, char **argv)
{
    if (argc == 3 && strcmp(argv[1], "--seed") == 0) {
        struct sim_counts counts = {.messages = 0};
        const char *fault = tell(strtoull(argv[2], NULL, 10), true, &counts);
        printf("1..1\n%sok 1 - seed %s\n", fault != NULL ? "not " : "", argv[2]);
        if (fault != NULL)
            printf("# %s\n", fault);
        return fault != NULL;
    }
    const char *asked = argc > 1 ? argv[1] : getenv("SEEDS");
    uint64_t n = asked != NULL ? strtoull(asked, NULL, 10) : 200;
    uint64_t first = argc > 2 ? strtoull(argv[2], NULL, 10) : 1;
    uint64_t n_batches = (n + BATCH - 1) / BATCH;
    printf("1..%" PRIu64 "\n", n_batches + 1);
    bool good =
        tell_some(1, argv[0], "seeds that failed once", failed_once, 0, ARRAY_COUNT(failed_once));
    for (uint64_t i = 0; i < n_batches; i++)
        good = tell_some((unsigned)i + 2, argv[0], "seeds", NULL, first + i * BATCH,
                         MIN((uint64_t)BATCH, n - i * BATCH)) &&
               good;
    return !good;
}
