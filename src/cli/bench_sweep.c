/* What a sweep measured, as a table (CSV, RFC 4180) and as a chart (SVG). */
#include "cli/bench.h"
#include "cli/chart.h"

#include <stdlib.h>
#include <string.h>

#define MAX_SIZES 16 /* of one list */

enum { FILE_CSV, FILE_SVG, N_FILES };

struct sweep {
    struct buffer path[N_FILES];
    struct file_writer *file[N_FILES];
};

enum status sweep_open(struct sweep **out, const char *prefix, struct error *error)
{
    static const char *const endings[N_FILES] = {"csv", "svg"};
    enum status status = STATUS_OK;
    struct sweep *sweep = calloc(1, sizeof *sweep);
    if (sweep == NULL)
        return error_memory(error, sizeof *sweep);
    for (int i = 0; i < N_FILES && status == STATUS_OK; i++) {
        if (!buffer_printf(&sweep->path[i], "%s.%s", prefix, endings[i]))
            status = error_memory(error, strlen(prefix));
        if (status == STATUS_OK)
            status = file_create(&sweep->file[i], sweep->path[i].data, error);
    }
    if (status != STATUS_OK) {
        sweep_close(sweep);
        sweep = NULL;
    }
    *out = sweep;
    return status;
}

void sweep_close(struct sweep *sweep)
{
    if (sweep == NULL)
        return;
    for (int i = 0; i < N_FILES; i++) {
        file_discard(sweep->file[i]);
        buffer_free(&sweep->path[i]);
    }
    free(sweep);
}

const char *sweep_csv_path(const struct sweep *sweep)
{
    return sweep->path[FILE_CSV].data;
}

const char *sweep_svg_path(const struct sweep *sweep)
{
    return sweep->path[FILE_SVG].data;
}

/* ---- Table ----------------------------------------------------------------------------------- */

static void add_field(struct buffer *out, const char *text)
{
    buffer_append_text(out, "\"");
    for (; *text != '\0'; text++)
        buffer_append(out, *text == '"' ? "\"\"" : text, *text == '"' ? 2 : 1);
    buffer_append_text(out, "\"");
}

static void write_csv(struct buffer *out, const struct bench *bench)
{
    buffer_append_text(out, "model,isa,threads,kv_type,phase,context,batch,tokens,repeats,"
                            "tokens_per_s,min,max,bytes_per_token,limit_tokens_per_s,limit_share,"
                            "bound,read_bandwidth_gb_s,code_products_g_s,float_products_g_s\n");
    for (size_t i = 0; i < bench->n_runs; i++) {
        const struct bench_run *run = &bench->runs[i];
        struct bench_share share = bench_share(&bench->limits, run);
        add_field(out, weights_path(bench->engine->weights));
        buffer_printf(out,
                      ",%s,%u,%s,%s,%u,%u,%u,%u,%.3f,%.3f,%.3f,%.0f,%.3f,%.4f,%s,%.3f,%.1f,%.1f\n",
                      quant_isa(), model_n_threads(bench->engine->model),
                      quant_info(cli_kv_format())->name, run->decode ? "decode" : "prefill",
                      run->context, run->batch, run->tokens, bench->repeats, run->median, run->min,
                      run->max, run->work.bytes / run->tokens / run->batch, share.limit,
                      share.share, share.bound == BENCH_MEMORY ? "memory" : "arithmetic",
                      share.read_rate / 1e9, bench->limits.codes / 1e9, bench->limits.floats / 1e9);
    }
}

/* ---- Chart ----------------------------------------------------------------------------------- */

struct axis {
    uint32_t at[MAX_SIZES];
    size_t n;
};

/* The place of value, which is added where it is new. */
static size_t place(struct axis *axis, uint32_t value)
{
    size_t i = 0;
    while (i < axis->n && axis->at[i] != value)
        i++;
    if (i == axis->n && i < MAX_SIZES)
        axis->at[axis->n++] = value;
    return MIN(i, (size_t)MAX_SIZES - 1);
}

/* [context][batch] of prefill and of decode. */
struct grid {
    struct axis contexts, batches;
    double value[2][MAX_SIZES * MAX_SIZES], limit[2][MAX_SIZES * MAX_SIZES];
};

static void fill_grid(struct grid *grid, const struct bench *bench)
{
    for (size_t i = 0; i < bench->n_runs; i++) {
        const struct bench_run *run = &bench->runs[i];
        size_t at =
            place(&grid->contexts, run->context) * MAX_SIZES + place(&grid->batches, run->batch);
        grid->value[run->decode][at] = run->median;
        grid->limit[run->decode][at] = bench_share(&bench->limits, run).limit;
    }
}

static struct chart_panel panel_over(const struct grid *grid, bool context, bool decode)
{
    const struct axis *x = context ? &grid->contexts : &grid->batches;
    const struct axis *series = context ? &grid->batches : &grid->contexts;
    size_t x_stride = context ? MAX_SIZES : 1, series_stride = context ? 1 : MAX_SIZES;
    return (struct chart_panel){
        .title = decode ? "decode, tokens/s" : "prefill, tokens/s",
        .x_name = context ? "context (tokens before)" : "batch (texts at once)",
        .ticks = x->at,
        .n_ticks = x->n,
        .series_name = context ? "batch" : "context",
        .series = series->at,
        .n_series = series->n,
        .value = {grid->value[decode], x_stride, series_stride},
        .limit = {grid->limit[decode], x_stride, series_stride},
    };
}

static bool write_svg(struct buffer *out, const struct bench *bench)
{
    struct buffer title = {0}, subtitle = {0};
    struct grid *grid = calloc(1, sizeof *grid);
    const struct model_desc *desc = model_description(bench->engine->model);
    const char *path = weights_path(bench->engine->weights), *slash = strrchr(path, '/');
    char count[32], size[32];
    buffer_printf(&title, "%s", slash != NULL ? slash + 1 : path);
    buffer_printf(&subtitle,
                  "%s, %s parameters, %s; %u threads (%s), KV cache %s; reads %.1f GB/s; medians "
                  "of %u",
                  desc->architecture, cli_count_text(count, (double)desc->n_params),
                  cli_size_text(size, (double)weights_size_bytes(bench->engine->weights)),
                  model_n_threads(bench->engine->model), quant_isa(),
                  quant_info(cli_kv_format())->name, bench->limits.bytes / 1e9, bench->repeats);
    bool good = grid != NULL && !title.failed && !subtitle.failed;
    if (good) {
        fill_grid(grid, bench);
        struct chart chart = {.title = title.data, .subtitle = subtitle.data, .n_panels = 4};
        for (int i = 0; i < 4; i++)
            chart.panels[i] = panel_over(grid, i < 2, i % 2 == 1);
        good = chart_svg(out, &chart);
    }
    free(grid);
    buffer_free(&title);
    buffer_free(&subtitle);
    return good;
}

enum status sweep_write(struct sweep *sweep, const struct bench *bench, struct error *error)
{
    enum status status = STATUS_OK;
    struct buffer text[N_FILES] = {{0}};
    write_csv(&text[FILE_CSV], bench);
    if (text[FILE_CSV].failed || !write_svg(&text[FILE_SVG], bench))
        status = error_memory(error, text[FILE_CSV].size + text[FILE_SVG].size);
    for (int i = 0; i < N_FILES && status == STATUS_OK; i++)
        status = file_write(sweep->file[i], text[i].data, text[i].size, error);
    for (int i = 0; i < N_FILES && status == STATUS_OK; i++) {
        status = file_commit(sweep->file[i], error);
        sweep->file[i] = NULL;
    }
    for (int i = 0; i < N_FILES; i++)
        buffer_free(&text[i]);
    return status;
}
