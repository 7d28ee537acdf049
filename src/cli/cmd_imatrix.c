/* consort imatrix: how much each column of each weight matters, measured on a text.
 *
 * The file is a GGUF as llama.cpp's: for every weight tensor NAME the tensors NAME.in_sum2 (per
 * column the sum of the squared activations, [n_cols, n_matrices]) and NAME.counts (rows that went
 * in, [1, n_matrices]), and the keys general.type, imatrix.datasets, imatrix.chunk_count,
 * imatrix.chunk_size.
 */
#include "cli/cli.h"
#include "cli/windows.h"

#include <stdlib.h>
#include <string.h>

static struct {
    uint32_t n_ctx, max_windows;
    const char *out;
} args = {.n_ctx = 512};

struct entry {
    const char *name; /* of the weight tensor */
    size_t n_cols, n_matrices;
    float *sums;   /* [n_matrices][n_cols], NULL until seen */
    float *counts; /* [n_matrices] */
};

struct collection {
    struct entry *entries; /* by name */
    size_t count;
    bool failed; /* memory was out */
};

/* ---- Collecting ------------------------------------------------------------------------------ */

static int compare_entries(const void *a, const void *b)
{
    return strcmp(((const struct entry *)a)->name, ((const struct entry *)b)->name);
}

static enum status collection_open(struct collection *collection, const struct weights *weights,
                                   struct error *error)
{
    size_t count = weights_tensor_count(weights);
    collection->entries = calloc(count + 1, sizeof *collection->entries);
    if (collection->entries == NULL)
        return error_memory(error, count * sizeof *collection->entries);
    collection->count = count;
    for (size_t i = 0; i < count; i++) {
        const struct weights_tensor *tensor = weights_tensor_at(weights, i);
        collection->entries[i] = (struct entry){
            .name = tensor->name,
            .n_cols = (size_t)tensor->shape[0],
            .n_matrices = (size_t)(tensor->shape[2] * tensor->shape[3]),
        };
    }
    qsort(collection->entries, count, sizeof *collection->entries, compare_entries);
    return STATUS_OK;
}

static void collection_close(struct collection *collection)
{
    for (size_t i = 0; i < collection->count; i++) {
        free(collection->entries[i].sums);
        free(collection->entries[i].counts);
    }
    free(collection->entries);
}

static void observe(void *context, const char *tensor, const float *x, size_t n_rows, size_t n_cols,
                    int expert)
{
    struct collection *collection = context;
    struct entry key = {.name = tensor};
    struct entry *entry =
        bsearch(&key, collection->entries, collection->count, sizeof key, compare_entries);
    size_t matrix = expert < 0 ? 0 : (size_t)expert;
    if (entry == NULL || n_cols != entry->n_cols || matrix >= entry->n_matrices)
        return;
    if (entry->sums == NULL) {
        entry->sums = calloc(entry->n_matrices, n_cols * sizeof *entry->sums);
        entry->counts = calloc(entry->n_matrices, sizeof *entry->counts);
        if (entry->sums == NULL || entry->counts == NULL) {
            collection->failed = true;
            return;
        }
    }
    float *sums = entry->sums + matrix * n_cols;
    for (size_t r = 0; r < n_rows; r++)
        for (size_t c = 0; c < n_cols; c++)
            sums[c] += x[r * n_cols + c] * x[r * n_cols + c];
    entry->counts[matrix] += (float)n_rows;
}

static enum status run_windows(struct engine *engine, struct windows *windows,
                               const struct collection *collection, struct error *error)
{
    struct sequence *sequence;
    enum status status = sequence_open(&sequence, engine->model, error);
    if (status != STATUS_OK)
        return status;
    struct cli_progress progress = cli_progress_begin("imatrix", windows->count * windows->n_ctx);
    for (size_t w = 0; w < windows->count && status == STATUS_OK; w++) {
        const int32_t *tokens = windows_take(windows, w);
        sequence_truncate(sequence, 0);
        for (size_t done = 0; done < windows->n_ctx && status == STATUS_OK;) {
            size_t n = MIN(windows->n_ctx - done, model_batch_limit(engine->model));
            struct step_segment segment = {sequence, tokens + done, n, 0};
            status = model_step(engine->model, &segment, 1, NULL, error);
            done += n;
            if (status == STATUS_OK && collection->failed)
                status = error_set(error, STATUS_MEMORY, "out of memory for the sums");
            if (status == STATUS_OK && cli_interrupted())
                status = error_set(error, STATUS_CANCELLED, "interrupted");
            cli_progress_show(&progress, w * windows->n_ctx + done, "");
        }
    }
    cli_progress_end(&progress);
    sequence_close(sequence);
    return status;
}

/* ---- Writing --------------------------------------------------------------------------------- */

static enum status declare(struct weights_writer *writer, const struct entry *entry,
                           struct error *error)
{
    struct buffer name = {0};
    buffer_printf(&name, "%s.in_sum2", entry->name);
    enum status status = weights_writer_declare(
        writer, name.data, QUANT_F32, 2, (uint64_t[]){entry->n_cols, entry->n_matrices}, error);
    buffer_clear(&name);
    buffer_printf(&name, "%s.counts", entry->name);
    if (status == STATUS_OK)
        status = weights_writer_declare(writer, name.data, QUANT_F32, 2,
                                        (uint64_t[]){1, entry->n_matrices}, error);
    buffer_free(&name);
    return status;
}

static enum status write_file(struct weights_writer *writer, const struct collection *collection,
                              const char *dataset, const struct windows *windows,
                              struct error *error)
{
    enum status status = weights_writer_string(writer, "general.type", "imatrix", error);
    if (status == STATUS_OK)
        status = weights_writer_strings(writer, "imatrix.datasets", &dataset, 1, error);
    if (status == STATUS_OK)
        status = weights_writer_u32(writer, "imatrix.chunk_count", (uint32_t)windows->count, error);
    if (status == STATUS_OK)
        status = weights_writer_u32(writer, "imatrix.chunk_size", (uint32_t)windows->n_ctx, error);
    for (size_t i = 0; i < collection->count && status == STATUS_OK; i++)
        if (collection->entries[i].sums != NULL)
            status = declare(writer, &collection->entries[i], error);
    for (size_t i = 0; i < collection->count && status == STATUS_OK; i++) {
        const struct entry *entry = &collection->entries[i];
        if (entry->sums == NULL)
            continue;
        status = weights_writer_data(
            writer, entry->sums, entry->n_matrices * entry->n_cols * sizeof *entry->sums, error);
        if (status == STATUS_OK)
            status = weights_writer_data(writer, entry->counts,
                                         entry->n_matrices * sizeof *entry->counts, error);
    }
    return status;
}

static enum status save(const struct collection *collection, const char *dataset,
                        const struct windows *windows, struct error *error)
{
    struct weights_writer *writer;
    enum status status = weights_writer_open(&writer, args.out, error);
    if (status != STATUS_OK)
        return status;
    status = write_file(writer, collection, dataset, windows, error);
    if (status == STATUS_OK)
        return weights_writer_commit(writer, error);
    weights_writer_discard(writer);
    return status;
}

static int run(const struct cli_command *command, char **operands, int n_operands)
{
    (void)n_operands;
    if (args.out == NULL)
        return cli_usage(command, "imatrix needs -o FILE");
    struct error error;
    struct engine *engine = NULL;
    struct windows windows = {0};
    struct collection collection = {0};
    struct model_options options = cli_model_options();
    options.n_ctx = args.n_ctx;
    enum status status =
        cli_open_engine(&engine, operands[0], ENGINE_MODEL | ENGINE_TOKENIZER, &options, &error);
    if (status == STATUS_OK)
        status = windows_open(&windows, engine, operands[1], args.n_ctx, args.max_windows, &error);
    if (status == STATUS_OK)
        status = collection_open(&collection, engine->weights, &error);
    if (status == STATUS_OK) {
        model_observe(engine->model, observe, &collection);
        status = run_windows(engine, &windows, &collection, &error);
    }
    if (status == STATUS_OK)
        status = save(&collection, operands[1], &windows, &error);
    if (status == STATUS_OK)
        cli_note("%zu windows of %zu tokens, written to %s", windows.count, windows.n_ctx,
                 args.out);
    collection_close(&collection);
    windows_close(&windows);
    engine_close(engine);
    return status == STATUS_OK ? CLI_DONE : cli_fail(&error);
}

static const struct cli_option options[] = {
    {.letter = 'o',
     .name = "out",
     .metavar = "FILE",
     .help = "where the matrix goes (required)",
     .type = CLI_TEXT,
     .value = &args.out},
    {.letter = 'c',
     .name = "ctx",
     .metavar = "N",
     .help = "tokens of a window (default: 512)",
     .type = CLI_U32,
     .min = 2,
     .value = &args.n_ctx},
    {.name = "chunks",
     .metavar = "N",
     .help = "stop after this many windows (default: the whole text)",
     .type = CLI_U32,
     .min = 1,
     .value = &args.max_windows},
};
static const struct cli_group group = CLI_GROUP("options", options);

const struct cli_command cli_imatrix = {
    .name = "imatrix",
    .operands = "MODEL TEXT",
    .summary = "Measures on a text which weights matter most, for quantize --imatrix.",
    .description = "TEXT is a file, or - for standard input; it should be like what the model will "
                   "be used for. The file is as llama.cpp writes and reads it.",
    .groups = {&group, &cli_compute_group},
    .min_operands = 2,
    .max_operands = 2,
    .run = run,
};
