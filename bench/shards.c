/* What it costs to spread a model over ranks, apart from any network: the ranks are threads of one
 * process, each pinned to a core of its own, and what they send each other goes through memory.
 *
 *   build/bench/shards MODEL [ROUNDS] [PLACEMENT ...]     (default: 3 rounds, 1:1 and 1+1)
 *
 * A placement is stages with + between them, each the shares of its shards with : between those.
 * They take turns with one rank of as many threads as the placement has ranks, and with one rank of
 * one thread, and the medians of their rates are printed: decoding one text, a prompt of 512
 * tokens, four such prompts, 32 texts at once; tokens a second, and as ratios to the two. */
#include "model/comm.h"
#include "model/model.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define ROUNDS 3
#define MAX_ROUNDS 15
#define PROMPT 512
#define N_PROMPTS 4
#define N_TEXTS 32
#define N_DECODED 48 /* tokens of one text */
#define N_STEPS 6    /* of many */
#define MAX_CONFIGS 16
#define MAX_RANKS 16

enum measure { DECODE, ONE_PROMPT, PROMPTS, TEXTS, MEASURES };
static const char *const measure_names[] = {"decode 1", "prompt 512", "prompts 4x512", "decode 32"};

/* ---- Ways between ranks ---------------------------------------------------------------------- */

#define WAY_BYTES ((size_t)1 << 20)

/* From one rank to another; each counter is written by one of them. */
struct way {
    _Alignas(64) atomic_size_t written;
    _Alignas(64) atomic_size_t read;
    unsigned char *bytes;
};

struct end {
    struct comm comm;
    struct way *ways; /* [from][to] */
};

static size_t pour(struct way *way, const unsigned char *from, size_t size)
{
    size_t written = atomic_load_explicit(&way->written, memory_order_relaxed);
    size_t room = WAY_BYTES - (written - atomic_load_explicit(&way->read, memory_order_acquire));
    size_t at = written % WAY_BYTES, n = MIN(MIN(size, room), WAY_BYTES - at);
    memcpy(way->bytes + at, from, n);
    atomic_store_explicit(&way->written, written + n, memory_order_release);
    return n;
}

static size_t draw(struct way *way, unsigned char *to, size_t size)
{
    size_t read = atomic_load_explicit(&way->read, memory_order_relaxed);
    size_t there = atomic_load_explicit(&way->written, memory_order_acquire) - read;
    size_t at = read % WAY_BYTES, n = MIN(MIN(size, there), WAY_BYTES - at);
    memcpy(to, way->bytes + at, n);
    atomic_store_explicit(&way->read, read + n, memory_order_release);
    return n;
}

static enum status exchange(struct comm *comm, const struct comm_transfer *transfers, size_t n,
                            struct error *error)
{
    struct end *end = (struct end *)comm;
    struct {
        size_t out, in;
    } done[64] = {{0, 0}};
    (void)error;
    for (bool all = false; !all;) {
        all = true;
        for (size_t i = 0; i < n; i++) {
            const struct comm_transfer *t = &transfers[i];
            struct way *to = &end->ways[comm->rank * comm->n_ranks + t->rank];
            struct way *from = &end->ways[t->rank * comm->n_ranks + comm->rank];
            if (done[i].out < t->out_bytes)
                done[i].out += pour(to, (const unsigned char *)t->out + done[i].out,
                                    t->out_bytes - done[i].out);
            if (done[i].in < t->in_bytes)
                done[i].in +=
                    draw(from, (unsigned char *)t->in + done[i].in, t->in_bytes - done[i].in);
            all = all && done[i].out == t->out_bytes && done[i].in == t->in_bytes;
        }
    }
    return STATUS_OK;
}

/* ---- Models ---------------------------------------------------------------------------------- */

struct config {
    const char *name; /* a placement, or NULL: one rank */
    unsigned n_threads;
    double rates[MEASURES][MAX_ROUNDS];

    struct model_placement placement;
    uint32_t n_ranks;
    struct end ends[MAX_RANKS];
    struct way *ways;
    struct rank {
        struct config *config;
        const struct weights *weights;
        uint32_t number;
        pthread_t thread;
    } ranks[MAX_RANKS];
    struct model *model;
};

static void die(const char *text)
{
    fprintf(stderr, "%s\n", text);
    abort();
}

static void pin(uint32_t core)
{
#ifdef __linux__
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(core, &set);
    sched_setaffinity(0, sizeof set, &set);
#else
    (void)core;
#endif
}

static void unpin(void)
{
#ifdef __linux__
    cpu_set_t set;
    CPU_ZERO(&set);
    for (int i = 0; i < CPU_SETSIZE; i++)
        CPU_SET(i, &set);
    sched_setaffinity(0, sizeof set, &set);
#endif
}

static struct model *open_rank(struct config *config, const struct weights *weights, uint32_t rank)
{
    struct model *model;
    struct error error = {0};
    struct model_options options = {
        .n_ctx = 1024,
        .n_cache = N_TEXTS * 128 + N_PROMPTS * 1024,
        .kv_format = QUANT_F16,
        .n_threads = config->n_threads,
        .placement = config->n_ranks > 1 ? &config->placement : NULL,
        .comm = config->n_ranks > 1 ? &config->ends[rank].comm : NULL,
        .ignore_memory = true,
    };
    if (model_open(&model, weights, &options, &error) != STATUS_OK)
        die(error.text);
    return model;
}

static void *follow(void *context)
{
    struct rank *rank = context;
    struct error error = {0};
    pin(rank->number);
    struct model *model = open_rank(rank->config, rank->weights, rank->number);
    if (model_follow(model, &error) != STATUS_OK)
        die(error.text);
    model_close(model);
    return NULL;
}

static void parse(struct config *config, uint32_t n_layers)
{
    const char *text = config->name;
    struct model_placement *placement = &config->placement;
    for (bool stages = true; stages; text++) {
        struct model_stage *stage = &placement->stages[placement->n_stages++];
        for (bool shards = true; shards; shards = *text == ':' && *text++ == ':')
            stage->shares[stage->n_shards++] = (uint16_t)strtoul(text, (char **)&text, 10);
        stages = *text == '+' && placement->n_stages < MODEL_MAX_STAGES;
    }
    for (uint32_t s = 0; s < placement->n_stages; s++) {
        placement->stages[s].first_layer = n_layers * s / placement->n_stages;
        placement->stages[s].end_layer = n_layers * (s + 1) / placement->n_stages;
    }
    config->n_ranks = model_placement_ranks(placement);
    if (config->n_ranks > MAX_RANKS)
        die("too many ranks");
}

static void open_config(struct config *config, const struct weights *weights)
{
    uint32_t n = config->n_ranks;
    uint32_t owner = n > 1 ? model_placement_owner(&config->placement) : 0;
    config->ways = aligned_alloc(64, sizeof *config->ways * n * n);
    memset(config->ways, 0, sizeof *config->ways * n * n);
    for (uint32_t i = 0; i < n * n; i++)
        config->ways[i].bytes = malloc(WAY_BYTES);
    for (uint32_t r = 0; r < n; r++)
        config->ends[r] =
            (struct end){{.rank = r, .n_ranks = n, .exchange = exchange}, config->ways};
    for (uint32_t r = 0; r < n; r++) {
        config->ranks[r] = (struct rank){.config = config, .weights = weights, .number = r};
        if (r != owner &&
            pthread_create(&config->ranks[r].thread, NULL, follow, &config->ranks[r]) != 0)
            die("no thread");
    }
    if (n > 1 || config->n_threads == 1)
        pin(owner);
    config->model = open_rank(config, weights, owner);
}

static void close_config(struct config *config)
{
    uint32_t n = config->n_ranks;
    uint32_t owner = n > 1 ? model_placement_owner(&config->placement) : 0;
    model_close(config->model);
    for (uint32_t r = 0; r < n; r++)
        if (r != owner)
            pthread_join(config->ranks[r].thread, NULL);
    for (uint32_t i = 0; i < n * n; i++)
        free(config->ways[i].bytes);
    free(config->ways);
    unpin();
}

/* ---- Measuring ------------------------------------------------------------------------------- */

static int32_t tokens[PROMPT];
static float *logits;

static void check(enum status status, const struct error *error)
{
    if (status != STATUS_OK)
        die(error->text);
}

static void end_one(struct model *model)
{
    struct error error = {0};
    check(model_step_end(model, &error), &error);
}

/* Begins a step, and ends the oldest where as many as there are stages, and one, are under way. */
static void begin(struct model *model, const struct step_segment *segments, size_t n, float *to)
{
    struct error error = {0};
    uint32_t most = MIN(model_steps_most(model), model_n_stages(model) + 1);
    if (model_steps_under_way(model) == most)
        end_one(model);
    check(model_step_begin(model, segments, n, to, &error), &error);
}

static void end_all(struct model *model)
{
    while (model_steps_under_way(model) > 0)
        end_one(model);
}

static double prompts(struct model *model, size_t n)
{
    struct error error = {0};
    struct sequence *sequences[N_PROMPTS];
    size_t limit = model_batch_limit(model);
    uint64_t begin_ns = clock_now_ns();
    for (size_t p = 0; p < n; p++) {
        check(sequence_open(&sequences[p], model, &error), &error);
        for (size_t done = 0, count; done < PROMPT; done += count) {
            count = MIN(PROMPT - done, limit);
            struct step_segment segment = {sequences[p], tokens + done, count,
                                           done + count == PROMPT};
            begin(model, &segment, 1, logits);
        }
    }
    end_all(model);
    double seconds = (double)(clock_now_ns() - begin_ns) * 1e-9;
    for (size_t p = 0; p < n; p++)
        sequence_close(sequences[p]);
    return (double)(n * PROMPT) / seconds;
}

/* Texts in as many groups as there are stages; each group's next step begins when its last has
 * ended. */
static double decode(struct model *model, size_t n_texts, size_t n_steps)
{
    struct error error = {0};
    struct sequence *sequences[N_TEXTS];
    struct step_segment segments[N_TEXTS];
    size_t n_vocab = model_description(model)->n_vocab;
    for (size_t t = 0; t < n_texts; t++) {
        check(sequence_open(&sequences[t], model, &error), &error);
        segments[t] = (struct step_segment){sequences[t], tokens + t, 16, 1};
        check(model_step(model, &segments[t], 1, logits, &error), &error);
        segments[t].n_tokens = 1;
    }
    size_t n_groups = MIN((size_t)model_n_stages(model), n_texts);
    uint64_t begin_ns = clock_now_ns();
    for (size_t i = 0; i < n_steps * n_groups; i++) {
        size_t first = n_texts * (i % n_groups) / n_groups;
        size_t last = n_texts * (i % n_groups + 1) / n_groups;
        if (model_steps_under_way(model) == n_groups)
            end_one(model);
        check(model_step_begin(model, segments + first, last - first, logits + first * n_vocab,
                               &error),
              &error);
    }
    end_all(model);
    double seconds = (double)(clock_now_ns() - begin_ns) * 1e-9;
    for (size_t t = 0; t < n_texts; t++)
        sequence_close(sequences[t]);
    return (double)(n_texts * n_steps) / seconds;
}

static void measure(struct config *config, const struct weights *weights, int round)
{
    open_config(config, weights);
    struct model *model = config->model;
    decode(model, 1, 4); /* brings the weights to memory */
    config->rates[DECODE][round] = decode(model, 1, N_DECODED);
    config->rates[ONE_PROMPT][round] = prompts(model, 1);
    config->rates[PROMPTS][round] = prompts(model, N_PROMPTS);
    config->rates[TEXTS][round] = decode(model, N_TEXTS, N_STEPS);
    close_config(config);
}

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(const double *rates, int n_rounds)
{
    double sorted[MAX_ROUNDS];
    memcpy(sorted, rates, (size_t)n_rounds * sizeof *sorted);
    qsort(sorted, (size_t)n_rounds, sizeof *sorted, compare);
    return sorted[n_rounds / 2];
}

int main(int argc, char **argv)
{
    static struct config configs[MAX_CONFIGS];
    static const char *const usual[] = {"1:1", "1+1"};
    struct error error = {0};
    struct weights *weights;
    struct model_desc *desc;
    if (argc < 2)
        die("usage: shards MODEL [PLACEMENT ...]");
    check(quant_init(&error), &error);
    check(weights_open(&weights, argv[1], &error), &error);
    check(model_describe(&desc, weights, &error), &error);
    size_t n = 2;
    unsigned n_most = 1;
    bool rounds_given = argc > 2 && strpbrk(argv[2], ":+") == NULL;
    int n_rounds = rounds_given ? MAX(MIN(atoi(argv[2]), MAX_ROUNDS), 1) : ROUNDS;
    int first = rounds_given ? 3 : 2, given = argc - first;
    for (int i = 0; i < (given > 0 ? given : 2) && n < MAX_CONFIGS; i++, n++) {
        configs[n] =
            (struct config){.name = given > 0 ? argv[first + i] : usual[i], .n_threads = 1};
        parse(&configs[n], desc->n_layers);
        n_most = MAX(n_most, configs[n].n_ranks);
    }
    configs[0] = (struct config){.n_threads = n_most, .n_ranks = 1};
    configs[1] = (struct config){.n_threads = 1, .n_ranks = 1};
    for (size_t i = 0; i < PROMPT; i++)
        tokens[i] = (int32_t)(rng_u64(1, i, 0) % desc->n_vocab);
    logits = calloc((size_t)N_TEXTS * desc->n_vocab, sizeof *logits);
    if (logits == NULL)
        die("no memory");
    for (int round = 0; round < n_rounds; round++)
        for (size_t c = 0; c < n; c++)
            measure(&configs[c], weights, round);
    printf("%s, %s\n%-24s", argv[1], quant_isa(), "");
    for (size_t m = 0; m < MEASURES; m++)
        printf("%27s", measure_names[m]);
    printf("\n");
    for (size_t c = 0; c < n; c++) {
        char name[32];
        snprintf(name, sizeof name, "1 rank, threads: %u", configs[c].n_threads);
        printf("%-24s", configs[c].name != NULL ? configs[c].name : name);
        for (size_t m = 0; m < MEASURES; m++) {
            double rate = median(configs[c].rates[m], n_rounds);
            printf("%9.1f (%5.3fx, %5.3fx)", rate, rate / median(configs[0].rates[m], n_rounds),
                   rate / median(configs[1].rates[m], n_rounds));
        }
        printf("\n");
    }
    free(logits);
    model_desc_free(desc);
    weights_close(weights);
    return 0;
}
