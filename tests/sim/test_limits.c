/* Limits of API keys on whole clusters, from seeds: clients ask at all nodes, evenly or not, while
 * links are slow, break, part, and nodes start again. A ledger beside the cluster counts what was
 * let through on all nodes together, and compares it with the bounds at the top of core_limits.c.
 *
 *   test_limits [N [FIRST]]     N seeds of each kind from FIRST on (environment: SEEDS; 100 from 1)
 *
 * Prints TAP.
 */
#include "fake_cluster.h"

#include "cluster/core_internal.h"

#include <math.h>

#define STEP_MS 10
#define MAX_RUNNING 4096
#define TOKENS_MOST 200
#define HASH "0123abcd"

enum trouble { CALM, PARTED, CUT, RESTARTED, N_TROUBLES };

static const char *const trouble_names[] = {"whole clusters", "partitions", "links that break",
                                            "nodes that start again"};

struct running {
    unsigned node;
    uint64_t generation, ends_ms, n_tokens;
};

struct ledger {
    struct sim *sim;
    unsigned n_nodes;
    uint32_t limits[CLUSTER_N_LIMITS];
    double levels[2]; /* of a bucket for all nodes */
    uint64_t filled_ms, begun_ms;
    uint64_t n_taken, n_refused;
    double allowed_debt; /* requests, beyond one for each node */
    unsigned n_running;
    struct running running[MAX_RUNNING];
    uint64_t generations[SIM_MAX_NODES];
    double rates[SIM_MAX_NODES]; /* requests a second that clients ask for */
    double worst;                /* level of requests, lowest */
};

/* ---- The ledger ------------------------------------------------------------------------------ */

static void fill(struct ledger *ledger)
{
    double minutes = (double)(sim_now(ledger->sim) - ledger->filled_ms) / 60000;
    for (int kind = 0; kind < 2; kind++) {
        double limit = ledger->limits[kind];
        ledger->levels[kind] = fmin(limit, ledger->levels[kind] + limit * minutes);
    }
    ledger->filled_ms = sim_now(ledger->sim);
}

static void check(struct ledger *ledger)
{
    struct sim *sim = ledger->sim;
    uint32_t parallel = ledger->limits[CLUSTER_LIMIT_PARALLEL];
    double debt = ledger->n_nodes + ledger->allowed_debt;
    if (ledger->limits[0] > 0 && ledger->levels[0] < -debt)
        sim_fail(sim, "%u requests a minute: %.1f more than there were, %.1f may be",
                 ledger->limits[0], -ledger->levels[0], debt);
    bool whole = ledger->allowed_debt == 0;
    if (parallel > 0 && whole && ledger->n_running > parallel + ledger->n_nodes - 1)
        sim_fail(sim, "%u requests run at once on %u nodes, %u may", ledger->n_running,
                 ledger->n_nodes, parallel);
    if (parallel > 0 && whole && ledger->limits[1] > 0 &&
        ledger->levels[1] < -(double)(parallel + 2 * ledger->n_nodes) * TOKENS_MOST)
        sim_fail(sim, "%u tokens a minute: %.1f more than there were", ledger->limits[1],
                 -ledger->levels[1]);
    ledger->worst = fmin(ledger->worst, ledger->levels[0]);
}

static void ask(struct ledger *ledger, unsigned node)
{
    struct sim *sim = ledger->sim;
    struct cluster_core *core = sim_core(sim, node);
    struct cluster_allowance allowance;
    if (core == NULL || ledger->n_running == MAX_RUNNING)
        return;
    if (!cluster_core_take(core, HASH, &allowance)) {
        if (ledger->allowed_debt == 0)
            sim_fail(sim, "%s does not know the key", sim_name(sim, node));
        return;
    }
    if (!allowance.allowed) {
        ledger->n_refused++;
        if (!(allowance.wait_s > 0 && allowance.wait_s < 3600))
            sim_fail(sim, "refused, to try again in %g s", allowance.wait_s);
        return;
    }
    fill(ledger);
    ledger->n_taken++;
    ledger->levels[0]--;
    ledger->running[ledger->n_running++] =
        (struct running){.node = node,
                         .generation = ledger->generations[node],
                         .ends_ms = sim_now(sim) + 1 + sim_random(sim, 2000),
                         .n_tokens = sim_random(sim, TOKENS_MOST + 1)};
    check(ledger);
}

static void end_due(struct ledger *ledger)
{
    for (unsigned i = ledger->n_running; i-- > 0;) {
        struct running done = ledger->running[i];
        bool alive = done.generation == ledger->generations[done.node];
        if (alive && done.ends_ms > sim_now(ledger->sim))
            continue;
        ledger->running[i] = ledger->running[--ledger->n_running];
        struct cluster_core *core = sim_core(ledger->sim, done.node);
        if (!alive || core == NULL)
            continue;
        cluster_core_give_back(core, HASH, done.n_tokens);
        fill(ledger);
        ledger->levels[1] -= (double)done.n_tokens;
    }
    check(ledger);
}

static bool serve(struct ledger *ledger, uint64_t until_ms)
{
    struct sim *sim = ledger->sim;
    while (sim_now(sim) < until_ms && sim_fault(sim) == NULL) {
        sim_run(sim, sim_now(sim) + STEP_MS);
        end_due(ledger);
        for (unsigned node = 0; node < ledger->n_nodes; node++) {
            double wanted = ledger->rates[node] * STEP_MS / 1000;
            uint64_t n = (uint64_t)wanted;
            n += (double)sim_random(sim, 1000000) / 1e6 < wanted - (double)n;
            while (n-- > 0)
                ask(ledger, node);
        }
    }
    return sim_fault(sim) == NULL;
}

/* ---- Clusters -------------------------------------------------------------------------------- */

static void begin(struct ledger *ledger, uint64_t seed)
{
    static const uint32_t per_minute[] = {6, 30, 60, 600, 6000};
    uint64_t random = hash_mix(seed);
#define DRAW(below) ((random = hash_mix(random)) % (below))
    struct sim_options options = {.seed = seed, .n_models = 1, .models = {1000}};
    options.n_nodes = DRAW(10) == 0 ? 7 + (unsigned)DRAW(10) : 2 + (unsigned)DRAW(4);
    options.latency_ms = DRAW(3) == 0 ? 40 : 1;
    for (unsigned i = 0; i < options.n_nodes; i++)
        options.memory[i] = 100;
    *ledger = (struct ledger){.sim = sim_open(&options), .n_nodes = options.n_nodes};
    ledger->limits[0] = per_minute[DRAW(ARRAY_COUNT(per_minute))];
    ledger->limits[1] = DRAW(2) == 0 ? 0 : (uint32_t)(1000 + DRAW(100000));
    ledger->limits[2] = DRAW(2) == 0 ? 0 : (uint32_t)(1 + DRAW(12));
#undef DRAW
    struct sim *sim = ledger->sim;
    for (unsigned i = 0; i < options.n_nodes; i++)
        sim_start(sim, i);
    if (!sim_wait(sim, 20000, sim_all_linked))
        sim_fail(sim, "not all nodes are linked");
}

static void make_key(struct ledger *ledger)
{
    struct error error;
    struct sim *sim = ledger->sim;
    json_t *key =
        json_pack("{s:i, s:i, s:i}", "requests_per_minute", (int)ledger->limits[0],
                  "tokens_per_minute", (int)ledger->limits[1], "parallel", (int)ledger->limits[2]);
    if (cluster_core_put(sim_core(sim, 0), "key/" HASH, key, &error) != STATUS_OK)
        sim_fail(sim, "%s", error.text);
    json_decref(key);
    sim_run(sim, sim_now(sim) + 200); /* longer than any link takes */
    ledger->begun_ms = ledger->filled_ms = sim_now(sim);
    ledger->levels[0] = ledger->limits[0];
    ledger->levels[1] = ledger->limits[1];
}

/* Idle, now and then, more than there is, or all at once. */
static void choose_rates(struct ledger *ledger)
{
    for (unsigned i = 0; i < ledger->n_nodes; i++) {
        double fair = (double)ledger->limits[0] / 60 / ledger->n_nodes;
        static const double factors[] = {0, 0, 0.2, 1, 3, 30};
        ledger->rates[i] = fair * factors[sim_random(ledger->sim, ARRAY_COUNT(factors))];
        if (sim_random(ledger->sim, 8) == 0)
            ledger->rates[i] = 200;
    }
}

/* ---- What goes wrong ------------------------------------------------------------------------- */

static void part(struct ledger *ledger, bool parted)
{
    uint64_t side = parted ? sim_random(ledger->sim, (uint64_t)1 << ledger->n_nodes) : 0;
    for (unsigned a = 0; a < ledger->n_nodes; a++)
        for (unsigned b = 0; b < ledger->n_nodes; b++)
            sim_block(ledger->sim, a, b, (side >> a & 1) != (side >> b & 1));
}

/* What each adds to the bound of requests; the reasons stand in core_limits.c. */
static void trouble(struct ledger *ledger, enum trouble kind, unsigned turn)
{
    struct sim *sim = ledger->sim;
    unsigned node = (unsigned)sim_random(sim, ledger->n_nodes);
    switch (kind) {
    case PARTED:
        ledger->allowed_debt += turn % 2 == 0 ? (double)ledger->limits[0] / 2 : ledger->n_nodes;
        part(ledger, turn % 2 == 0);
        break;
    case CUT: /* and both ends may each be one ahead of what the other one heard */
        ledger->allowed_debt += ledger->n_nodes + 2;
        sim_cut(sim, node, (unsigned)sim_random(sim, ledger->n_nodes));
        break;
    case RESTARTED:
        ledger->allowed_debt += ledger->limits[0];
        ledger->generations[node]++;
        sim_crash(sim, node, sim_random(sim, 2) == 0);
        sim_run(sim, sim_now(sim) + sim_random(sim, 1000));
        sim_start(sim, node);
        break;
    default:
        break;
    }
}

/* NULL, or what went wrong. */
static const char *tell(uint64_t seed, enum trouble kind)
{
    static char fault[512];
    static struct ledger ledger;
    begin(&ledger, seed);
    make_key(&ledger);
    for (unsigned turn = 0; turn < 12 && sim_fault(ledger.sim) == NULL; turn++) {
        choose_rates(&ledger);
        if (turn > 0)
            trouble(&ledger, kind, turn - 1);
        serve(&ledger, sim_now(ledger.sim) + 1000 + sim_random(ledger.sim, 12000));
    }
    snprintf(fault, sizeof fault, "%s", sim_fault(ledger.sim) != NULL ? sim_fault(ledger.sim) : "");
    sim_close(ledger.sim);
    return fault[0] != 0 ? fault : NULL;
}

/* One node is asked for more than there is, or all are; nearly all must be used. */
static const char *use_all(uint64_t seed, bool alone, double *least)
{
    static char fault[512];
    static struct ledger ledger;
    begin(&ledger, seed);
    ledger.limits[1] = ledger.limits[2] = 0;
    make_key(&ledger);
    for (unsigned i = 0; i < ledger.n_nodes; i++)
        ledger.rates[i] = i == 0 || !alone ? 200 : 0;
    serve(&ledger, ledger.begun_ms + 60000);
    double part_used = (double)ledger.n_taken / (2.0 * ledger.limits[0]);
    *least = fmin(*least, part_used);
    if (part_used < 0.9 && ledger.n_taken + 2 < 2 * ledger.limits[0])
        sim_fail(ledger.sim, "of %u requests in the first minute only %u were let through",
                 2 * ledger.limits[0], (unsigned)ledger.n_taken);
    snprintf(fault, sizeof fault, "%s", sim_fault(ledger.sim) != NULL ? sim_fault(ledger.sim) : "");
    sim_close(ledger.sim);
    return fault[0] != 0 ? fault : NULL;
}

static bool report(unsigned number, const char *what, uint64_t seed, const char *fault)
{
    if (fault != NULL)
        printf("# seed %" PRIu64 " (%s): %s\n", seed, what, fault);
    (void)number;
    return fault == NULL;
}

int main(int argc, char **argv)
{
    const char *asked = argc > 1 ? argv[1] : getenv("SEEDS");
    uint64_t n = asked != NULL ? strtoull(asked, NULL, 10) : 100;
    uint64_t first = argc > 2 ? strtoull(argv[2], NULL, 10) : 1;
    bool all_good = true;
    printf("1..%d\n", N_TROUBLES + 2);
    for (unsigned kind = 0; kind < N_TROUBLES + 2; kind++) {
        static const char *const uses[] = {"one node alone uses all", "all nodes use all"};
        const char *what = kind < N_TROUBLES ? trouble_names[kind] : uses[kind - N_TROUBLES];
        bool good = true;
        double least = 1;
        for (uint64_t seed = first; seed < first + n; seed++)
            good &= report(kind + 1, what, seed,
                           kind < N_TROUBLES ? tell(seed, (enum trouble)kind)
                                             : use_all(seed, kind == N_TROUBLES, &least));
        if (kind >= N_TROUBLES)
            printf("# the least that was used of what there is: %.3f\n", least);
        printf("%sok %u - %s, seeds %" PRIu64 " to %" PRIu64 "\n", good ? "" : "not ", kind + 1,
               what, first, first + n - 1);
        fflush(stdout);
        all_good &= good;
    }
    return !all_good;
}
