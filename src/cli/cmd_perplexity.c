/* consort perplexity: how well a model predicts a text, and how far it is from another model.
 *
 * The text is cut into windows; each is computed on its own, and the second half of its tokens is
 * judged, so that every judged token has at least half a window before it. Perplexity is exp of the
 * mean negative log likelihood. The divergence is Kullback-Leibler's, of the base model from this
 * one, at the same positions.
 */
#include "cli/cli.h"
#include "cli/windows.h"

#include <stdlib.h>
#include <string.h>

#define LOGITS_BYTES ((size_t)32 << 20) /* of one step */

static struct {
    uint32_t n_ctx, max_windows;
    const char *base;
    bool json;
} args = {.n_ctx = 512};

/* Count, mean and spread of a number seen often. */
struct sample {
    size_t count;
    double sum, sum_squares;
};

static void sample_add(struct sample *sample, double value)
{
    sample->count++;
    sample->sum += value;
    sample->sum_squares += value * value;
}

static double sample_mean(const struct sample *sample)
{
    return sample->count > 0 ? sample->sum / (double)sample->count : 0;
}

static double sample_error(const struct sample *sample)
{
    double mean = sample_mean(sample);
    double variance = sample->sum_squares / (double)MAX(sample->count, 1) - mean * mean;
    return sample->count > 1 && variance > 0 ? sqrt(variance / (double)(sample->count - 1)) : 0;
}

/* One model being measured. */
struct runner {
    struct engine *engine;
    struct sequence *sequence;
    float *logits; /* [rows][n_vocab] */
    struct sample nll;
};

struct measurement {
    struct runner runners[2]; /* the model, and the base where there is one */
    size_t n_runners, rows, n_vocab;
    struct windows windows;
    struct cli_progress progress;
    uint64_t tokens_done;
    struct sample divergence, same_top;
    float *divergences; /* [n_judged], for the 99 % quantile */
};

/* ---- One row --------------------------------------------------------------------------------- */

/* log of the sum of exp over a row. */
static double log_sum(const float *logits, size_t n)
{
    float max = logits[0];
    double sum = 0;
    for (size_t i = 1; i < n; i++)
        max = MAX(max, logits[i]);
    for (size_t i = 0; i < n; i++)
        sum += expf(logits[i] - max);
    return max + log(sum);
}

static size_t largest(const float *logits, size_t n)
{
    size_t best = 0;
    for (size_t i = 1; i < n; i++)
        if (logits[i] > logits[best])
            best = i;
    return best;
}

static void compare_row(struct measurement *m, const float *model, double model_sum,
                        const float *base, double base_sum)
{
    double divergence = 0;
    for (size_t i = 0; i < m->n_vocab; i++) {
        double log_p = base[i] - base_sum;
        if (log_p > -100) /* the rest adds nothing */
            divergence += exp(log_p) * (log_p - (model[i] - model_sum));
    }
    divergence = MAX(divergence, 0); /* rounding */
    m->divergences[m->divergence.count] = (float)divergence;
    sample_add(&m->divergence, divergence);
    sample_add(&m->same_top, largest(model, m->n_vocab) == largest(base, m->n_vocab));
}

/* Row i of the last step predicted target. */
static void judge_row(struct measurement *m, size_t i, int32_t target)
{
    double sums[2];
    for (size_t r = 0; r < m->n_runners; r++) {
        const float *row = m->runners[r].logits + i * m->n_vocab;
        sums[r] = log_sum(row, m->n_vocab);
        sample_add(&m->runners[r].nll, sums[r] - row[target]);
    }
    if (m->n_runners == 2)
        compare_row(m, m->runners[0].logits + i * m->n_vocab, sums[0],
                    m->runners[1].logits + i * m->n_vocab, sums[1]);
}

/* ---- Windows --------------------------------------------------------------------------------- */

static enum status step_all(struct measurement *m, const int32_t *tokens, size_t n, bool judged,
                            struct error *error)
{
    for (size_t r = 0; r < m->n_runners; r++) {
        struct runner *runner = &m->runners[r];
        struct step_segment segment = {runner->sequence, tokens, n, judged ? n : 0};
        enum status status = model_step(runner->engine->model, &segment, 1, runner->logits, error);
        if (status != STATUS_OK)
            return status;
    }
    char so_far[48] = "";
    const struct sample *nll = &m->runners[0].nll;
    if (nll->count > 0)
        snprintf(so_far, sizeof so_far, "%.4f so far", exp(sample_mean(nll)));
    m->tokens_done += n;
    cli_progress_show(&m->progress, m->tokens_done, so_far);
    return cli_interrupted() ? error_set(error, STATUS_CANCELLED, "interrupted") : STATUS_OK;
}

static enum status measure_window(struct measurement *m, const int32_t *tokens, struct error *error)
{
    size_t n_ctx = m->windows.n_ctx, first = n_ctx / 2;
    size_t limit = SIZE_MAX;
    enum status status = STATUS_OK;
    for (size_t r = 0; r < m->n_runners; r++) {
        sequence_truncate(m->runners[r].sequence, 0);
        limit = MIN(limit, model_batch_limit(m->runners[r].engine->model));
    }
    for (size_t done = 0; done < first && status == STATUS_OK;) {
        size_t n = MIN(first - done, limit);
        status = step_all(m, tokens + done, n, false, error);
        done += n;
    }
    /* The last token has nothing to predict. */
    for (size_t done = first; done + 1 < n_ctx && status == STATUS_OK;) {
        size_t n = MIN(MIN(n_ctx - 1 - done, limit), m->rows);
        status = step_all(m, tokens + done, n, true, error);
        for (size_t i = 0; i < n && status == STATUS_OK; i++)
            judge_row(m, i, tokens[done + i + 1]);
        done += n;
    }
    return status;
}

static enum status measure(struct measurement *m, struct error *error)
{
    m->progress = cli_progress_begin("perplexity", m->windows.count * (m->windows.n_ctx - 1));
    enum status status = STATUS_OK;
    for (size_t w = 0; w < m->windows.count && status == STATUS_OK; w++)
        status = measure_window(m, windows_take(&m->windows, w), error);
    cli_progress_end(&m->progress);
    return status;
}

/* ---- Opening --------------------------------------------------------------------------------- */

static enum status open_runner(struct measurement *m, const char *path, struct error *error)
{
    struct runner *runner = &m->runners[m->n_runners];
    struct model_options options = cli_model_options();
    options.n_ctx = args.n_ctx;
    unsigned parts = ENGINE_MODEL | (m->n_runners == 0 ? ENGINE_TOKENIZER : 0);
    enum status status = cli_open_engine(&runner->engine, path, parts, &options, error);
    if (status != STATUS_OK)
        return status;
    m->n_runners++;
    size_t n_vocab = model_description(runner->engine->model)->n_vocab;
    if (!model_description(runner->engine->model)->causal)
        return error_set(error, STATUS_UNSUPPORTED,
                         "%s is an embedding model: it does not predict text", path);
    if (m->n_runners == 1) {
        m->n_vocab = n_vocab;
        m->rows = MIN(MAX(LOGITS_BYTES / (n_vocab * sizeof(float)), 1), args.n_ctx);
    } else if (n_vocab != m->n_vocab) {
        return error_set(error, STATUS_INVALID,
                         "the models cannot be compared: their vocabularies have %zu and %zu "
                         "tokens",
                         m->n_vocab, n_vocab);
    }
    runner->logits = malloc(m->rows * n_vocab * sizeof *runner->logits);
    if (runner->logits == NULL)
        return error_memory(error, m->rows * n_vocab * sizeof *runner->logits);
    return sequence_open(&runner->sequence, runner->engine->model, error);
}

static enum status open_all(struct measurement *m, char **operands, struct error *error)
{
    enum status status = open_runner(m, operands[0], error);
    if (status == STATUS_OK && args.base != NULL)
        status = open_runner(m, args.base, error);
    if (status == STATUS_OK)
        status = windows_open(&m->windows, m->runners[0].engine, operands[1], args.n_ctx,
                              args.max_windows, error);
    if (status != STATUS_OK)
        return status;
    for (size_t i = 0; i < m->windows.count * m->windows.n_ctx; i++)
        if ((size_t)m->windows.tokens.ids[i] >= m->n_vocab)
            return error_set(error, STATUS_INVALID,
                             "the tokenizer gives id %d, but the model has %zu logits",
                             m->windows.tokens.ids[i], m->n_vocab);
    size_t judged = m->windows.count * m->windows.n_ctx;
    m->divergences = args.base != NULL ? malloc(judged * sizeof *m->divergences) : NULL;
    if (args.base != NULL && m->divergences == NULL)
        return error_memory(error, judged * sizeof *m->divergences);
    return STATUS_OK;
}

static void close_all(struct measurement *m)
{
    for (size_t r = 0; r < m->n_runners; r++) {
        sequence_close(m->runners[r].sequence);
        free(m->runners[r].logits);
        engine_close(m->runners[r].engine);
    }
    windows_close(&m->windows);
    free(m->divergences);
}

/* ---- Result ---------------------------------------------------------------------------------- */

static int compare_floats(const void *a, const void *b)
{
    float x, y;
    memcpy(&x, a, sizeof x);
    memcpy(&y, b, sizeof y);
    return (x > y) - (x < y);
}

/* The value that share of the sorted values do not pass. */
static double quantile(const float *sorted, size_t n, double share)
{
    double place = share * (double)(n - 1);
    size_t below = (size_t)place;
    double part = place - (double)below;
    return sorted[below] + part * (sorted[MIN(below + 1, n - 1)] - sorted[below]);
}

static int print_result(const struct measurement *m)
{
    const struct sample *nll = &m->runners[0].nll;
    double perplexity = exp(sample_mean(nll)), error = perplexity * sample_error(nll);
    json_t *json =
        args.json ? json_pack("{s:f, s:f, s:I, s:I, s:I}", "perplexity", perplexity,
                              "standard_error", error, "tokens", (json_int_t)nll->count, "windows",
                              (json_int_t)m->windows.count, "context", (json_int_t)m->windows.n_ctx)
                  : NULL;
    if (!args.json)
        cli_printf("perplexity        %.4f +- %.4f (%zu tokens in %zu windows of %zu)\n",
                   perplexity, error, nll->count, m->windows.count, m->windows.n_ctx);
    if (m->n_runners == 2) {
        size_t n = m->divergence.count;
        double base = exp(sample_mean(&m->runners[1].nll));
        double mean = sample_mean(&m->divergence), mean_error = sample_error(&m->divergence);
        double high = quantile(m->divergences, n, 0.99), max = quantile(m->divergences, n, 1);
        double same = sample_mean(&m->same_top), same_error = sample_error(&m->same_top);
        if (args.json)
            json_object_set_new(json, "kl",
                                json_pack("{s:f, s:f, s:f, s:f, s:f, s:f, s:f}", "base_perplexity",
                                          base, "mean", mean, "mean_standard_error", mean_error,
                                          "p99", high, "max", max, "same_top", same,
                                          "same_top_standard_error", same_error));
        else
            cli_printf("base perplexity   %.4f\nmean divergence   %.6f +- %.6f\n"
                       "99 %% divergence   %.6f\nlargest           %.6f\n"
                       "same top token    %.2f %% +- %.2f %%\n",
                       base, mean, mean_error, high, max, 100 * same, 100 * same_error);
    }
    return args.json ? cli_print_json(json) : CLI_DONE;
}

static int run(const struct cli_command *command, char **operands, int n_operands)
{
    (void)command, (void)n_operands;
    struct error error;
    struct measurement m = {0};
    int code = CLI_DONE;
    enum status status = open_all(&m, operands, &error);
    if (status == STATUS_OK)
        status = measure(&m, &error);
    if (status != STATUS_OK) {
        code = cli_fail(&error);
    } else {
        if (m.divergences != NULL)
            qsort(m.divergences, m.divergence.count, sizeof *m.divergences, compare_floats);
        code = print_result(&m);
    }
    close_all(&m);
    return code;
}

static const struct cli_option options[] = {
    {.letter = 'c',
     .name = "ctx",
     .metavar = "N",
     .help = "tokens of a window (default: 512)",
     .type = CLI_U32,
     .min = 4,
     .value = &args.n_ctx},
    {.name = "chunks",
     .metavar = "N",
     .help = "stop after this many windows (default: the whole text)",
     .type = CLI_U32,
     .min = 1,
     .value = &args.max_windows},
    {.name = "kl",
     .metavar = "BASE",
     .help = "also run the model BASE, and say how far MODEL's predictions are from its",
     .type = CLI_TEXT,
     .value = &args.base},
    {.name = "json", .help = "print a JSON object", .type = CLI_FLAG, .value = &args.json},
};
static const struct cli_group group = CLI_GROUP("options", options);

const struct cli_command cli_perplexity = {
    .name = "perplexity",
    .operands = "MODEL TEXT",
    .summary = "Measures how well a model predicts a text; compares it with another model.",
    .description = "TEXT is a file, or - for standard input. The second half of every window is "
                   "judged. With --kl, MODEL is usually a quantisation of BASE.",
    .groups = {&group, &cli_compute_group},
    .min_operands = 2,
    .max_operands = 2,
    .run = run,
};
