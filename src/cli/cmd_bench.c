/* consort bench: how fast a model runs, next to how fast this machine can read memory and multiply.
 *
 * Decoding one text reads every active weight once a token, so its limit is the read bandwidth;
 * prefill and large batches use each weight many times and are limited by arithmetic. Both limits
 * are measured in the same run; the share of them that is reached is the number to look at.
 */
#include "cli/bench.h"

#include <stdlib.h>
#include <string.h>

#define MAX_SIZES 16
/* Several texts of a sweep hold at most this many tokens, unless both lists are given: filling
 * them is what takes most of its time. */
#define SWEEP_MAX_HELD 8192

struct sizes {
    uint32_t at[MAX_SIZES];
    size_t n; /* 0: not given */
};

static struct {
    struct sizes prefill, decode, batch, context;
    uint32_t repeats;
    bool json, sweep;
    const char *prefix;
} args = {.repeats = 5};

/* ---- Runs ------------------------------------------------------------------------------------ */

/* The texts that runs work on. A dry pass over all runs computes nothing: it adds up what they
 * cost, in seconds at the machine's limits, so that the progress line knows the time left. */
struct texts {
    struct model *model;
    struct sequence **sequences; /* [n] */
    uint32_t *lengths;           /* [n] tokens in each */
    struct step_segment *segments;
    uint32_t n;
    int32_t *tokens; /* [the longest text + n] */
    float *logits;
    double *speeds; /* [repeats] */
    bool dry;
    double step_s, token_s; /* cost of a step, and of each of its tokens */
    double done_s;
    struct cli_progress progress;
    char label[64]; /* what is running */
};

/* The next n_tokens tokens of texts begin to end. */
static enum status step(struct texts *texts, uint32_t begin, uint32_t end, uint32_t n_tokens,
                        bool logits, struct error *error)
{
    enum status status = STATUS_OK;
    uint32_t n = end - begin;
    for (uint32_t t = begin; t < end; t++) {
        /* Different texts, so that experts are chosen as for strangers. */
        const int32_t *tokens = texts->tokens + texts->lengths[t] + t;
        texts->segments[t - begin] =
            (struct step_segment){texts->sequences[t], tokens, n_tokens, logits ? 1 : 0};
        texts->lengths[t] += n_tokens;
    }
    if (!texts->dry)
        status = model_step(texts->model, texts->segments, n, texts->logits, error);
    texts->done_s += texts->step_s + texts->token_s * n * n_tokens;
    if (texts->dry || status != STATUS_OK)
        return status;
    cli_progress_show(&texts->progress, (uint64_t)(texts->done_s * 1e6), texts->label);
    return cli_interrupted() ? error_set(error, STATUS_CANCELLED, "interrupted") : STATUS_OK;
}

static void shorten(struct texts *texts, uint32_t t, uint32_t length)
{
    if (texts->lengths[t] <= length)
        return;
    texts->lengths[t] = length;
    if (!texts->dry)
        sequence_truncate(texts->sequences[t], length);
}

/* The texts as they are before a run: its own hold the context, others are empty. */
static enum status prepare(struct texts *texts, const struct bench_run *run, struct error *error)
{
    enum status status = STATUS_OK;
    uint32_t most = (uint32_t)model_batch_limit(texts->model);
    for (uint32_t t = 0; t < texts->n; t++)
        shorten(texts, t, t < run->batch ? run->context : 0);
    for (uint32_t t = 0; t < run->batch; t++)
        while (texts->lengths[t] < run->context && status == STATUS_OK)
            status =
                step(texts, t, t + 1, MIN(most, run->context - texts->lengths[t]), false, error);
    return status;
}

static enum status execute(struct texts *texts, const struct bench_run *run, struct error *error)
{
    enum status status = STATUS_OK;
    for (uint32_t done = 0, n; done < run->tokens && status == STATUS_OK; done += n) {
        n = bench_step_tokens(run, model_batch_limit(texts->model), done);
        status = step(texts, 0, run->batch, n, run->decode || done + n == run->tokens, error);
    }
    return status;
}

static int compare_doubles(const void *a, const void *b)
{
    double x, y;
    memcpy(&x, a, sizeof x);
    memcpy(&y, b, sizeof y);
    return (x > y) - (x < y);
}

static void summarise(double *speeds, size_t n, struct bench_run *run)
{
    qsort(speeds, n, sizeof *speeds, compare_doubles);
    run->min = speeds[0];
    run->max = speeds[n - 1];
    run->median = n % 2 == 1 ? speeds[n / 2] : (speeds[n / 2 - 1] + speeds[n / 2]) / 2;
}

static enum status measure(struct bench *bench, struct texts *texts, struct bench_run *run,
                           struct error *error)
{
    enum status status = STATUS_OK;
    snprintf(texts->label, sizeof texts->label, "%s, context %u, batch %u",
             run->decode ? "decode" : "prefill", run->context, run->batch);
    for (uint32_t r = 0; r < bench->repeats && status == STATUS_OK; r++) {
        status = prepare(texts, run, error);
        if (status != STATUS_OK)
            break;
        /* In turns, because what memory gives drifts on a machine that is shared. */
        if (run->decode && !texts->dry)
            run->read_rate = MAX(run->read_rate, bench_probe_read(bench->probe));
        uint64_t begin_ns = clock_now_ns();
        status = execute(texts, run, error);
        double seconds = (double)MAX(clock_now_ns() - begin_ns, 1) / 1e9;
        texts->speeds[r] = (double)run->tokens * run->batch / seconds;
    }
    bench->limits.bytes = MAX(bench->limits.bytes, run->read_rate);
    if (status == STATUS_OK && !texts->dry)
        summarise(texts->speeds, bench->repeats, run);
    return status;
}

static enum status measure_all(struct bench *bench, struct texts *texts, bool dry,
                               struct error *error)
{
    texts->progress = cli_progress_begin("bench", (uint64_t)(texts->done_s * 1e6));
    texts->done_s = 0;
    texts->dry = dry;
    /* The first step brings the weights in; it is not counted. */
    enum status status = step(texts, 0, 1, 1, true, error);
    for (size_t i = 0; i < bench->n_runs && status == STATUS_OK; i++)
        status = measure(bench, texts, &bench->runs[i], error);
    cli_progress_end(&texts->progress);
    for (uint32_t t = 0; t < texts->n; t++)
        shorten(texts, t, 0);
    return status;
}

/* ---- Opening --------------------------------------------------------------------------------- */

static void set_default(struct sizes *sizes, const uint32_t *at, size_t n)
{
    if (sizes->n > 0)
        return;
    memcpy(sizes->at, at, n * sizeof *at);
    sizes->n = n;
}

static void add_run(struct bench *bench, bool decode, uint32_t context, uint32_t batch,
                    uint32_t tokens)
{
    bench->runs[bench->n_runs++] =
        (struct bench_run){.decode = decode, .context = context, .batch = batch, .tokens = tokens};
}

static void plan_plain(struct bench *bench)
{
    for (size_t i = 0; i < args.prefill.n; i++)
        add_run(bench, false, 0, 1, args.prefill.at[i]);
    for (size_t c = 0; c < args.context.n; c++)
        for (size_t i = 0; i < args.decode.n; i++)
            for (size_t b = 0; b < args.batch.n; b++)
                add_run(bench, true, args.context.at[c], args.batch.at[b], args.decode.at[i]);
}

/* Contexts from short to long, so that each continues the last. n_ctx_train limits contexts that
 * nobody asked for. */
static void plan_sweep(struct bench *bench, uint32_t n_ctx_train, bool context_given, bool all)
{
    uint32_t tokens = MAX(args.prefill.at[0], args.decode.at[0]);
    for (size_t c = 0; c < args.context.n; c++) {
        uint64_t context = args.context.at[c];
        if (!context_given && context > 0 && context + tokens > n_ctx_train)
            continue;
        for (size_t b = 0; b < args.batch.n; b++) {
            uint32_t batch = args.batch.at[b];
            if (!all && batch > 1 && context * batch > SWEEP_MAX_HELD)
                continue;
            add_run(bench, false, (uint32_t)context, batch,
                    MAX(args.prefill.at[0] / batch, (uint32_t)1));
            add_run(bench, true, (uint32_t)context, batch, args.decode.at[0]);
        }
    }
}

static enum status plan(struct bench *bench, uint32_t n_ctx_train, struct error *error)
{
    static const uint32_t prefill[] = {512}, decode[] = {128}, one[] = {1}, none[] = {0};
    static const uint32_t sweep_prefill[] = {256}, sweep_decode[] = {16};
    static const uint32_t batches[] = {1, 2, 4, 8, 16, 32}, contexts[] = {0, 256, 1024, 4096};
    bool context_given = args.context.n > 0, all = context_given && args.batch.n > 0;
    bench->runs = calloc(MAX_SIZES + MAX_SIZES * MAX_SIZES * MAX_SIZES, sizeof *bench->runs);
    if (bench->runs == NULL)
        return error_memory(error, sizeof *bench->runs);
    if (!args.sweep) {
        set_default(&args.prefill, prefill, 1);
        set_default(&args.decode, decode, 1);
        set_default(&args.batch, one, 1);
        set_default(&args.context, none, 1);
        plan_plain(bench);
        return STATUS_OK;
    }
    set_default(&args.prefill, sweep_prefill, 1);
    set_default(&args.decode, sweep_decode, 1);
    set_default(&args.batch, batches, ARRAY_COUNT(batches));
    set_default(&args.context, contexts, ARRAY_COUNT(contexts));
    plan_sweep(bench, n_ctx_train, context_given, all);
    return STATUS_OK;
}

/* Tokens of the KV cache, of the longest text, and texts that the runs need. */
struct needs {
    uint64_t held, length;
    uint32_t n_texts;
};

static struct needs needs_of(const struct bench *bench)
{
    struct needs needs = {0};
    if (cli_speculate_given()) /* two sessions */
        needs.held = 2 * (DRAFTS_PROMPT + (uint64_t)args.decode.at[0] + MODEL_KV_PAGE_TOKENS);
    for (size_t i = 0; i < bench->n_runs; i++) {
        const struct bench_run *run = &bench->runs[i];
        uint64_t length = (uint64_t)run->context + run->tokens;
        needs.length = MAX(needs.length, length);
        needs.held = MAX(needs.held, (length + MODEL_KV_PAGE_TOKENS) * run->batch);
        needs.n_texts = MAX(needs.n_texts, run->batch);
    }
    needs.held += MODEL_KV_PAGE_TOKENS;
    return needs;
}

/* The facts of the model that runs depend on, before it is opened with what they need. */
static enum status read_n_ctx_train(const char *path, uint32_t *n_ctx_train, struct error *error)
{
    struct weights *weights = NULL;
    struct model_desc *desc = NULL;
    enum status status = cli_open_weights(&weights, path, error);
    if (status == STATUS_OK)
        status = model_describe(&desc, weights, error);
    if (status == STATUS_OK) {
        *n_ctx_train = desc->n_ctx_train;
        if (!desc->causal)
            status = error_set(error, STATUS_UNSUPPORTED,
                               "%s is an embedding model: it cannot decode", path);
    }
    model_desc_free(desc);
    weights_close(weights);
    return status;
}

static enum status open_texts(struct bench *bench, struct texts *texts, struct needs needs,
                              struct error *error)
{
    enum status status = STATUS_OK;
    uint32_t n_vocab = model_description(bench->engine->model)->n_vocab;
    size_t n_tokens = (size_t)needs.length + needs.n_texts;
    texts->model = bench->engine->model;
    texts->n = needs.n_texts;
    if (texts->n > model_batch_limit(texts->model))
        return error_set(error, STATUS_LIMIT, "a step takes at most %zu tokens, not a batch of %u",
                         model_batch_limit(texts->model), texts->n);
    texts->tokens = calloc(n_tokens, sizeof *texts->tokens);
    texts->sequences = calloc(texts->n, sizeof(struct sequence *));
    texts->lengths = calloc(texts->n, sizeof *texts->lengths);
    texts->segments = calloc(texts->n, sizeof *texts->segments);
    texts->logits = calloc((size_t)texts->n * n_vocab, sizeof *texts->logits);
    texts->speeds = calloc(bench->repeats, sizeof *texts->speeds);
    if (texts->tokens == NULL || texts->sequences == NULL || texts->lengths == NULL ||
        texts->segments == NULL || texts->logits == NULL || texts->speeds == NULL)
        return error_memory(error, n_tokens * sizeof *texts->tokens);
    for (size_t i = 0; i < n_tokens; i++)
        texts->tokens[i] = (int32_t)(rng_u64(1, i, 0) % n_vocab);
    for (uint32_t t = 0; t < texts->n && status == STATUS_OK; t++)
        status = sequence_open(&texts->sequences[t], texts->model, error);
    return status;
}

static void close_texts(struct texts *texts)
{
    for (uint32_t t = 0; texts->sequences != NULL && t < texts->n; t++)
        sequence_close(texts->sequences[t]);
    free(texts->sequences);
    free(texts->lengths);
    free(texts->segments);
    free(texts->tokens);
    free(texts->logits);
    free(texts->speeds);
}

/* What runs will cost is estimated from the first step of a token: all its bytes, and its products.
 */
static void estimate_costs(const struct bench *bench, struct texts *texts)
{
    struct bench_run one = {.decode = true, .batch = 1, .tokens = 1};
    struct bench_work work = bench_work(bench->engine, &one);
    const struct bench_limits *limits = &bench->limits;
    texts->step_s = limits->bytes > 0 ? work.bytes / limits->bytes : 1e-3;
    texts->token_s = (limits->codes > 0 ? work.codes / limits->codes : 0) +
                     (limits->floats > 0 ? work.floats / limits->floats : 0);
}

static enum status open_and_measure(struct bench *bench, const char *path, struct error *error)
{
    uint32_t n_ctx_train = 0;
    struct texts texts = {0};
    struct needs needs = {0};
    enum status status = read_n_ctx_train(path, &n_ctx_train, error);
    if (status == STATUS_OK)
        status = plan(bench, n_ctx_train, error);
    if (status == STATUS_OK) {
        struct model_options options = cli_model_options();
        needs = needs_of(bench);
        if (needs.held > UINT32_MAX)
            status = error_set(error, STATUS_LIMIT, "these sizes need a context of %llu tokens",
                               (unsigned long long)needs.held);
        options.n_ctx = (uint32_t)needs.held;
        unsigned parts = ENGINE_MODEL | (cli_speculate_given() ? ENGINE_TOKENIZER : 0);
        if (status == STATUS_OK)
            status = cli_open_engine(&bench->engine, path, parts, &options, error);
    }
    if (status == STATUS_OK)
        status = open_texts(bench, &texts, needs, error);
    if (status == STATUS_OK) {
        bench->probe = bench_probe_open(model_n_threads(bench->engine->model),
                                        weights_size_bytes(bench->engine->weights));
        bench->limits = bench_measure_limits(bench->engine, bench->probe);
        for (size_t i = 0; i < bench->n_runs; i++)
            bench->runs[i].work = bench_work(bench->engine, &bench->runs[i]);
        estimate_costs(bench, &texts);
        status = measure_all(bench, &texts, true, error);
    }
    if (status == STATUS_OK)
        status = measure_all(bench, &texts, false, error);
    if (status == STATUS_OK && cli_speculate_given())
        status =
            drafts_measure(&bench->drafts, bench->engine, args.decode.at[0], args.repeats, error);
    close_texts(&texts);
    bench_probe_close(bench->probe);
    bench->probe = NULL;
    return status;
}

/* ---- Result ---------------------------------------------------------------------------------- */

static const char *bound_text(enum bench_bound bound)
{
    return bound == BENCH_MEMORY ? "memory" : "arithmetic";
}

static double bytes_per_token(const struct bench_run *run)
{
    return run->work.bytes / run->tokens / run->batch;
}

static json_t *run_json(const struct bench *bench, const struct bench_run *run)
{
    struct bench_share share = bench_share(&bench->limits, run);
    return json_pack("{s:I, s:I, s:I, s:f, s:f, s:f, s:I, s:I, s:f, s:f, s:s, s:f, s:f, s:f}",
                     "tokens", (json_int_t)run->tokens, "context", (json_int_t)run->context,
                     "batch", (json_int_t)run->batch, "tokens_per_s", run->median, "min", run->min,
                     "max", run->max, "repeats", (json_int_t)bench->repeats, "bytes_per_token",
                     (json_int_t)bytes_per_token(run), "read_gb_s", share.read_rate / 1e9,
                     "limit_tokens_per_s", share.limit, "bound", bound_text(share.bound),
                     "limit_share", share.share, "bandwidth_share", share.memory_share,
                     "arithmetic_share", share.arithmetic_share);
}

static int print_json(const struct bench *bench, const struct sweep *sweep)
{
    const struct model *model = bench->engine->model;
    const struct model_desc *desc = model_description(model);
    json_t *prefill = json_array(), *decode = json_array();
    for (size_t i = 0; i < bench->n_runs; i++)
        json_array_append_new(bench->runs[i].decode ? decode : prefill,
                              run_json(bench, &bench->runs[i]));
    json_t *json =
        json_pack("{s:s, s:s, s:I, s:I, s:I, s:s, s:s, s:f, s:I, s:f, s:f, s:f, s:o, s:o, s:o*}",
                  "model", weights_path(bench->engine->weights), "architecture", desc->architecture,
                  "parameters", (json_int_t)desc->n_params, "size_bytes",
                  (json_int_t)weights_size_bytes(bench->engine->weights), "threads",
                  (json_int_t)model_n_threads(model), "isa", quant_isa(), "kv_type",
                  quant_info(cli_kv_format())->name, "load_s", (double)bench->engine->load_ns / 1e9,
                  "memory_bytes", (json_int_t)model_memory_bytes(model), "read_bandwidth_gb_s",
                  bench->limits.bytes / 1e9, "code_products_g_s", bench->limits.codes / 1e9,
                  "float_products_g_s", bench->limits.floats / 1e9, "prefill", prefill, "decode",
                  decode, "drafts", bench->drafts.tokens > 0 ? drafts_json(&bench->drafts) : NULL);
    if (cli_ranks() > 0 && json != NULL) {
        json_object_set_new(json, "ranks", json_integer(cli_ranks()));
        json_object_set_new(json, "placement", json_string(cli_ranks_placement()));
    }
    if (sweep != NULL && json != NULL)
        json_object_set_new(json, "files",
                            json_pack("[s, s]", sweep_csv_path(sweep), sweep_svg_path(sweep)));
    return cli_print_json(json);
}

static void print_text(const struct bench *bench)
{
    const struct model *model = bench->engine->model;
    const struct model_desc *desc = model_description(model);
    char a[32], b[32], ranks[64] = "";
    if (cli_ranks() > 0)
        snprintf(ranks, sizeof ranks, "%u ranks (%s), ", cli_ranks(), cli_ranks_placement());
    cli_printf("%s, %s parameters, %s; %s%u threads (%s), KV cache %s\n", desc->architecture,
               cli_count_text(a, (double)desc->n_params),
               cli_size_text(b, (double)weights_size_bytes(bench->engine->weights)), ranks,
               model_n_threads(model), quant_isa(), quant_info(cli_kv_format())->name);
    cli_printf("load %.3f s, memory %s\n", (double)bench->engine->load_ns / 1e9,
               cli_size_text(a, (double)model_memory_bytes(model)));
    cli_printf("this machine reads %.1f GB/s, multiplies %.0f billion codes or %.0f billion floats "
               "a second\n\n",
               bench->limits.bytes / 1e9, bench->limits.codes / 1e9, bench->limits.floats / 1e9);
    cli_printf("        tokens  context  batch   tokens/s     (least to most)    limit  reached  "
               "limited by  read a token\n");
    for (size_t i = 0; i < bench->n_runs; i++) {
        const struct bench_run *r = &bench->runs[i];
        struct bench_share share = bench_share(&bench->limits, r);
        char spread[48];
        snprintf(spread, sizeof spread, "(%.2f to %.2f)", r->min, r->max);
        cli_printf("%-7s %6u  %7u  %5u %10.2f %19s %8.1f  %5.0f %%  %-10s  %12s\n",
                   r->decode ? "decode" : "prefill", r->tokens, r->context, r->batch, r->median,
                   spread, share.limit, 100 * share.share, bound_text(share.bound),
                   cli_size_text(a, bytes_per_token(r)));
    }
    if (bench->drafts.tokens > 0)
        drafts_print(&bench->drafts);
}

static int run(const struct cli_command *command, char **operands, int n_operands)
{
    (void)n_operands;
    if (!args.sweep && args.prefix != NULL)
        return cli_usage(command, "--output is for --sweep");
    if (args.sweep && (args.prefill.n > 1 || args.decode.n > 1))
        return cli_usage(command, "--sweep takes one length of --prefill and one of --decode");
    if (!cli_check_speculate(command))
        return CLI_USAGE;
    if (cli_speculate_given() && cli_ranks_asked())
        return cli_usage(command, "--mpi measures without --speculate and --draft");
    struct error error;
    int code = CLI_DONE;
    if (!cli_ranks_lead(command, operands[0], &code))
        return code;
    struct bench bench = {.repeats = args.repeats};
    struct sweep *sweep = NULL;
    enum status status = STATUS_OK;
    if (args.sweep) /* what cannot be written must not be measured first */
        status = sweep_open(&sweep, args.prefix != NULL ? args.prefix : "bench", &error);
    if (status == STATUS_OK)
        status = open_and_measure(&bench, operands[0], &error);
    if (status == STATUS_OK && sweep != NULL)
        status = sweep_write(sweep, &bench, &error);
    if (status != STATUS_OK)
        code = cli_fail(&error);
    else if (args.json)
        code = print_json(&bench, sweep);
    else
        print_text(&bench);
    if (status == STATUS_OK && sweep != NULL)
        cli_note("wrote %s and %s", sweep_csv_path(sweep), sweep_svg_path(sweep));
    sweep_close(sweep);
    free(bench.runs);
    engine_close(bench.engine);
    cli_ranks_leave(status, &error);
    return code;
}

static bool parse_sizes(const char *text, uint32_t min, struct sizes *sizes, struct buffer *reason)
{
    bool good = cli_parse_u32_list(text, min, sizes->at, MAX_SIZES, &sizes->n);
    if (!good)
        buffer_printf(reason, "'%s' is not a list of at most %d numbers such as 128,512", text,
                      MAX_SIZES);
    return good;
}

static bool parse_prefill(const char *text, struct buffer *reason)
{
    return parse_sizes(text, 1, &args.prefill, reason);
}

static bool parse_decode(const char *text, struct buffer *reason)
{
    return parse_sizes(text, 1, &args.decode, reason);
}

static bool parse_batch(const char *text, struct buffer *reason)
{
    return parse_sizes(text, 1, &args.batch, reason);
}

static bool parse_context(const char *text, struct buffer *reason)
{
    return parse_sizes(text, 0, &args.context, reason);
}

static const struct cli_option options[] = {
    {.letter = 'p',
     .name = "prefill",
     .metavar = "N,...",
     .help = "prompt lengths to measure (default: 512; with --sweep 256)",
     .type = CLI_CALL,
     .parse = parse_prefill},
    {.letter = 'n',
     .name = "decode",
     .metavar = "N,...",
     .help = "answer lengths to measure (default: 128; with --sweep 16)",
     .type = CLI_CALL,
     .parse = parse_decode},
    {.letter = 'b',
     .name = "batch",
     .metavar = "N,...",
     .help = "texts decoded together (default: 1; with --sweep 1 to 32)",
     .type = CLI_CALL,
     .parse = parse_batch},
    {.letter = 'c',
     .name = "context",
     .metavar = "N,...",
     .help = "tokens that each text holds before (default: 0; with --sweep 0 to 4096)",
     .type = CLI_CALL,
     .parse = parse_context},
    {.letter = 'r',
     .name = "repeats",
     .metavar = "N",
     .help = "repetitions; their median, least and most are printed (default: 5)",
     .type = CLI_U32,
     .min = 1,
     .max = 1000,
     .value = &args.repeats},
    {.name = "sweep",
     .help = "measure every context with every batch; writes a table and a chart (see -o)",
     .type = CLI_FLAG,
     .value = &args.sweep},
    {.letter = 'o',
     .name = "output",
     .metavar = "PREFIX",
     .help = "where the sweep writes PREFIX.csv and PREFIX.svg (default: bench)",
     .type = CLI_TEXT,
     .value = &args.prefix},
    {.name = "json", .help = "print a JSON object", .type = CLI_FLAG, .value = &args.json},
};
static const struct cli_group group = CLI_GROUP("options", options);

const struct cli_command cli_bench = {
    .name = "bench",
    .operands = "MODEL",
    .summary =
        "Measures prefill and decode speed, and how near they come to this machine's limits.",
    .description =
        "A step cannot be faster than its weights and its KV cache are read from memory, nor than "
        "its products are computed. Both rates are measured in the same run, by plain reading and "
        "by a bare loop of the instruction that products rest on. The slower of the two is the "
        "limit, and the table says how much of it is reached.\n\n"
        "With --speculate or --draft, also how much faster an answer comes with drafts, after a "
        "prompt that repeats itself.\n\n"
        "With --mpi one model runs on all ranks that mpirun started; the limits are still those of "
        "one machine, the owner's.",
    .groups = {&group, &cli_compute_group, &cli_speculate_group, &cli_ranks_group},
    .min_operands = 1,
    .max_operands = 1,
    .run = run,
};
