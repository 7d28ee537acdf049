/* consort quantize: a model file in another number format.
 *
 * Works through each tensor in slabs of rows, so that memory does not grow with the model: the
 * input is mapped, a slab is encoded by all threads and written, and decoded again to measure the
 * error.
 */
#include "cli/cli.h"
#include "cli/mixes.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/statvfs.h>

#define SLAB_BYTES ((size_t)8 << 20)
#define QUANTIZATION_VERSION 2
#define MAX_KINDS 256
#define F16_MAX 65504.0f

static struct {
    const char *imatrix;
    bool requantize, pure;
} args;

/* What was lost, for all tensors that differ only in their layer. */
struct kind {
    char name[64];
    uint32_t formats; /* bits of enum quant_format */
    size_t count;
    double squared_error, squared_sum;
};

/* Scratch memory and sums of one thread. */
struct worker {
    float *row, *decoded; /* [longest row] */
    double squared_error, squared_sum;
    bool not_finite, too_large;
};

struct job {
    struct weights *in, *imatrix;
    struct weights_writer *writer;
    struct pool *pool;
    const struct mix *mix;
    struct mix_model model;
    struct worker *workers;
    uint8_t *slab;
    size_t slab_bytes;
    float *importance; /* [n_matrices][n_cols] of the tensor at hand, or NULL */
    size_t n_without_importance;
    struct kind kinds[MAX_KINDS];
    size_t n_kinds;
    uint64_t bytes_in, bytes_out, bytes_done;
    struct cli_progress progress;
};

/* The rows of one slab. */
struct slab {
    struct job *job;
    struct quant_matrix matrix; /* the input's rows, all of them */
    enum quant_format format;
    size_t first_row, rows_per_matrix, row_bytes;
};

static bool plain(enum quant_format format)
{
    return format == QUANT_F32 || format == QUANT_F16 || format == QUANT_BF16;
}

/* ---- Encoding -------------------------------------------------------------------------------- */

static void encode_rows(void *context, unsigned thread, size_t begin, size_t end)
{
    const struct slab *slab = context;
    struct worker *worker = &slab->job->workers[thread];
    size_t n_cols = slab->matrix.n_cols;
    for (size_t i = begin; i < end; i++) {
        size_t row = slab->first_row + i;
        uint8_t *out = slab->job->slab + i * slab->row_bytes;
        const float *importance = slab->job->importance != NULL
                                      ? slab->job->importance + row / slab->rows_per_matrix * n_cols
                                      : NULL;
        const uint8_t *in = slab->matrix.data;
        quant_decode(slab->matrix.format, in + row * slab->matrix.row_bytes, worker->row, n_cols);
        double sum = 0, error = 0;
        float largest = 0;
        for (size_t c = 0; c < n_cols; c++) {
            sum += (double)worker->row[c] * worker->row[c];
            largest = MAX(largest, fabsf(worker->row[c]));
        }
        if (!isfinite(sum)) {
            worker->not_finite = true;
            return;
        }
        quant_encode(slab->format, worker->row, out, n_cols, importance);
        quant_decode(slab->format, out, worker->decoded, n_cols);
        for (size_t c = 0; c < n_cols; c++) {
            double difference = (double)worker->row[c] - worker->decoded[c];
            error += difference * difference;
        }
        if (!isfinite(error) || (slab->format == QUANT_F16 && largest > F16_MAX))
            worker->too_large = true;
        worker->squared_error += error;
        worker->squared_sum += sum;
    }
}

/* Adds up and empties what the threads found; an error when a number could not be stored. */
static enum status collect(struct job *job, const struct weights_tensor *tensor,
                           enum quant_format format, struct kind *kind, struct error *error)
{
    for (unsigned t = 0; t < pool_threads(job->pool); t++) {
        struct worker *worker = &job->workers[t];
        if (worker->not_finite)
            return error_set(error, STATUS_INVALID,
                             "tensor %s holds infinities or what is no number: the file is damaged",
                             tensor->name);
        if (worker->too_large)
            return error_set(error, STATUS_INVALID,
                             "tensor %s holds numbers too large for %s: BF16 or F32 can hold them",
                             tensor->name, quant_info(format)->name);
        kind->squared_error += worker->squared_error;
        kind->squared_sum += worker->squared_sum;
        worker->squared_error = worker->squared_sum = 0;
    }
    return STATUS_OK;
}

static enum status advance(struct job *job, uint64_t bytes, const char *name, struct error *error)
{
    job->bytes_done += bytes;
    cli_progress_show(&job->progress, job->bytes_done, name);
    return cli_interrupted() ? error_set(error, STATUS_CANCELLED, "interrupted") : STATUS_OK;
}

static enum status convert(struct job *job, const struct weights_tensor *tensor,
                           enum quant_format format, struct kind *kind, struct error *error)
{
    struct slab slab = {.job = job,
                        .matrix = weights_matrix(tensor),
                        .format = format,
                        .rows_per_matrix = (size_t)tensor->shape[1],
                        .row_bytes = quant_row_bytes(format, (size_t)tensor->shape[0])};
    size_t rows = MAX(job->slab_bytes / slab.row_bytes, 1);
    enum status status = STATUS_OK;
    for (size_t done = 0; done < slab.matrix.n_rows && status == STATUS_OK; done += rows) {
        size_t n = MIN(rows, slab.matrix.n_rows - done);
        slab.first_row = done;
        pool_run(job->pool, encode_rows, &slab, n, MAX(n / 64, 1));
        status = collect(job, tensor, format, kind, error);
        if (status == STATUS_OK)
            status = weights_writer_data(job->writer, job->slab, n * slab.row_bytes, error);
        if (status == STATUS_OK)
            status = advance(job, n * slab.matrix.row_bytes, tensor->name, error);
    }
    return status;
}

static enum status copy(struct job *job, const struct weights_tensor *tensor, struct error *error)
{
    const uint8_t *bytes = tensor->data;
    enum status status = STATUS_OK;
    for (uint64_t done = 0; done < tensor->size_bytes && status == STATUS_OK;) {
        size_t n = (size_t)MIN(tensor->size_bytes - done, SLAB_BYTES);
        status = weights_writer_data(job->writer, bytes + done, n, error);
        done += n;
        if (status == STATUS_OK)
            status = advance(job, n, tensor->name, error);
    }
    return status;
}

/* ---- Importance ------------------------------------------------------------------------------ */

static const struct weights_tensor *imatrix_part(const struct job *job, const char *name,
                                                 const char *part)
{
    struct buffer full = {0};
    buffer_printf(&full, "%s.%s", name, part);
    const struct weights_tensor *tensor =
        full.failed ? NULL : weights_find(job->imatrix, full.data);
    buffer_free(&full);
    return tensor;
}

/* Sets job->importance for a tensor; NULL where the file knows nothing of it. Experts that no token
 * reached count all their columns alike. */
static enum status load_importance(struct job *job, const struct weights_tensor *tensor,
                                   struct error *error)
{
    free(job->importance);
    job->importance = NULL;
    if (job->imatrix == NULL)
        return STATUS_OK;
    const struct weights_tensor *sums = imatrix_part(job, tensor->name, "in_sum2");
    const struct weights_tensor *counts = imatrix_part(job, tensor->name, "counts");
    if (sums == NULL || counts == NULL) {
        job->n_without_importance++;
        return STATUS_OK;
    }
    uint64_t n_cols = tensor->shape[0], n_matrices = tensor->shape[2] * tensor->shape[3];
    if (sums->format != QUANT_F32 || counts->format != QUANT_F32 || sums->shape[0] != n_cols ||
        sums->size_bytes / sizeof(float) != n_cols * n_matrices ||
        counts->size_bytes / sizeof(float) != n_matrices)
        return error_set(error, STATUS_INVALID,
                         "%s does not fit this model: %s has another shape in it", args.imatrix,
                         tensor->name);
    job->importance = malloc((size_t)(n_cols * n_matrices) * sizeof *job->importance);
    if (job->importance == NULL)
        return error_memory(error, (size_t)(n_cols * n_matrices) * sizeof *job->importance);
    for (uint64_t m = 0; m < n_matrices; m++) {
        float count = ((const float *)counts->data)[m];
        for (uint64_t c = 0; c < n_cols; c++) {
            float value = ((const float *)sums->data)[m * n_cols + c] / count;
            bool good = count > 0 && value >= 0 && isfinite(value);
            job->importance[m * n_cols + c] = good ? value : 1;
        }
    }
    return STATUS_OK;
}

static enum status open_imatrix(struct job *job, struct error *error)
{
    if (args.imatrix == NULL)
        return STATUS_OK;
    enum status status = weights_open(&job->imatrix, args.imatrix, error);
    const char *suffix = strrchr(args.imatrix, '.');
    if (status != STATUS_OK && suffix != NULL && strcmp(suffix, ".dat") == 0)
        return error_set(
            error, status,
            "%s: the older .dat form of importance matrices is not read; make it again "
            "with consort imatrix, or llama-imatrix --output-format gguf",
            args.imatrix);
    struct view type = {0};
    if (status == STATUS_OK)
        status = weights_string(job->imatrix, "general.type", &type, error);
    if (status == STATUS_OK && !view_equal(type, view_of("imatrix")))
        status = error_set(error, STATUS_INVALID,
                           "%s is no importance matrix: consort imatrix makes one", args.imatrix);
    return status;
}

/* ---- The plan -------------------------------------------------------------------------------- */

static enum quant_format format_of(const struct job *job, const struct weights_tensor *tensor)
{
    return mix_format(job->mix, &job->model, tensor, args.pure);
}

/* Checks that every tensor can be converted, and adds up the sizes. */
static enum status plan(struct job *job, const char *path, size_t *longest_row, struct error *error)
{
    if (weights_slice_text(job->in) != NULL)
        return error_set(error, STATUS_UNSUPPORTED, "%s is a slice of a model, not a whole one",
                         path);
    job->model = mix_model_of(job->in);
    for (size_t i = 0; i < weights_tensor_count(job->in); i++) {
        const struct weights_tensor *tensor = weights_tensor_at(job->in, i);
        enum quant_format format = format_of(job, tensor);
        uint64_t rows = tensor->size_bytes / quant_row_bytes(tensor->format, tensor->shape[0]);
        if (format != tensor->format && !plain(tensor->format) && !args.requantize)
            return error_set(error, STATUS_INVALID,
                             "%s is quantised already (%s is %s): --requantize does it again, but "
                             "the original gives better results",
                             path, tensor->name, quant_info(tensor->format)->name);
        job->bytes_in += tensor->size_bytes;
        job->bytes_out += rows * quant_row_bytes(format, tensor->shape[0]);
        job->slab_bytes = MAX(job->slab_bytes, quant_row_bytes(format, (size_t)tensor->shape[0]));
        *longest_row = MAX(*longest_row, (size_t)tensor->shape[0]);
    }
    return STATUS_OK;
}

static enum status prepare_workers(struct job *job, size_t longest_row, struct error *error)
{
    struct machine machine;
    machine_query(&machine);
    unsigned n_threads =
        cli_model_args.n_threads > 0 ? cli_model_args.n_threads : machine.physical_cores;
    enum status status = pool_open(&job->pool, n_threads, error);
    if (status != STATUS_OK)
        return status;
    job->workers = calloc(n_threads, sizeof *job->workers);
    job->slab = malloc(job->slab_bytes);
    bool good = job->workers != NULL && job->slab != NULL;
    for (unsigned t = 0; t < n_threads && good; t++) {
        job->workers[t].row = calloc(longest_row, sizeof(float));
        job->workers[t].decoded = calloc(longest_row, sizeof(float));
        good = job->workers[t].row != NULL && job->workers[t].decoded != NULL;
    }
    return good ? STATUS_OK : error_memory(error, longest_row * sizeof(float));
}

/* The folder a path lies in; false when memory is out. */
static bool folder_of(const char *path, struct buffer *out)
{
    const char *slash = strrchr(path, '/');
    if (slash == NULL)
        return buffer_append_text(out, ".");
    return buffer_append(out, path, (size_t)MAX(slash - path, 1));
}

/* Writing must not end in the middle, and never over the file being read. */
static enum status check_target(const struct job *job, const char *out, struct error *error)
{
    if (strcmp(out, "-") == 0)
        return error_set(error, STATUS_INVALID,
                         "a model file cannot be written to standard output: OUT is a path");
    if (weights_reads(job->in, out))
        return error_set(error, STATUS_INVALID, "%s is the input: the output needs another name",
                         out);
    struct buffer folder = {0};
    struct statvfs disk;
    enum status status = STATUS_OK;
    if (!folder_of(out, &folder))
        status = error_memory(error, strlen(out));
    else if (statvfs(folder.data, &disk) != 0)
        status =
            error_set(error, STATUS_IO, "cannot write to %s: %s", folder.data, strerror(errno));
    else if ((uint64_t)disk.f_bavail * disk.f_frsize < job->bytes_out) {
        char need[32], have[32];
        status = error_set(error, STATUS_LIMIT, "%s needs %s, and %s has %s free", out,
                           cli_size_text(need, (double)job->bytes_out), folder.data,
                           cli_size_text(have, (double)disk.f_bavail * (double)disk.f_frsize));
    }
    buffer_free(&folder);
    return status;
}

/* ---- Writing --------------------------------------------------------------------------------- */

static enum status write_keys(struct job *job, struct error *error)
{
    static const char *const renewed[] = {"general.file_type", "general.quantization_version",
                                          "split.no", "split.count", "split.tensors.count"};
    enum status status = STATUS_OK;
    for (size_t i = 0; i < weights_key_count(job->in) && status == STATUS_OK; i++) {
        const char *key = weights_key_at(job->in, i);
        bool copied = true;
        for (size_t k = 0; k < ARRAY_COUNT(renewed); k++)
            copied = copied && strcmp(key, renewed[k]) != 0;
        if (copied)
            status = weights_writer_copy_key(job->writer, job->in, key, error);
    }
    if (status == STATUS_OK)
        status = weights_writer_u32(job->writer, "general.file_type", job->mix->file_type, error);
    if (status == STATUS_OK)
        status = weights_writer_u32(job->writer, "general.quantization_version",
                                    QUANTIZATION_VERSION, error);
    for (size_t i = 0; i < weights_tensor_count(job->in) && status == STATUS_OK; i++) {
        const struct weights_tensor *tensor = weights_tensor_at(job->in, i);
        status = weights_writer_declare(job->writer, tensor->name, format_of(job, tensor),
                                        tensor->n_dims, tensor->shape, error);
    }
    return status;
}

/* "blk.7.ffn_down.weight" is of the kind "ffn_down". The last kind takes all that find no place. */
static struct kind *kind_of(struct job *job, const char *name)
{
    char kind[64];
    if (strncmp(name, "blk.", 4) == 0) {
        name += 4 + strspn(name + 4, "0123456789");
        name += *name == '.';
    }
    size_t length = strlen(name);
    if (length > 7 && strcmp(name + length - 7, ".weight") == 0)
        length -= 7;
    snprintf(kind, sizeof kind, "%.*s", (int)MIN(length, sizeof kind - 1), name);
    for (size_t i = 0; i < job->n_kinds; i++)
        if (strcmp(job->kinds[i].name, kind) == 0)
            return &job->kinds[i];
    struct kind *added = &job->kinds[MIN(job->n_kinds, MAX_KINDS - 1)];
    job->n_kinds = MIN(job->n_kinds + 1, MAX_KINDS);
    memcpy(added->name, kind, sizeof kind);
    return added;
}

static enum status write_tensors(struct job *job, struct error *error)
{
    enum status status = STATUS_OK;
    job->progress = cli_progress_begin("quantize", job->bytes_in);
    for (size_t i = 0; i < weights_tensor_count(job->in) && status == STATUS_OK; i++) {
        const struct weights_tensor *tensor = weights_tensor_at(job->in, i);
        enum quant_format format = format_of(job, tensor);
        if (format == tensor->format) {
            status = copy(job, tensor, error);
            continue;
        }
        struct kind *kind = kind_of(job, tensor->name);
        kind->formats |= 1u << format;
        kind->count++;
        status = load_importance(job, tensor, error);
        if (status == STATUS_OK)
            status = convert(job, tensor, format, kind, error);
    }
    cli_progress_end(&job->progress);
    return status;
}

static enum status write_file(struct job *job, const char *path, struct error *error)
{
    enum status status = weights_writer_open(&job->writer, path, error);
    if (status != STATUS_OK)
        return status;
    status = write_keys(job, error);
    if (status == STATUS_OK)
        status = write_tensors(job, error);
    if (status == STATUS_OK)
        return weights_writer_commit(job->writer, error);
    weights_writer_discard(job->writer);
    return status;
}

static void print_result(const struct job *job)
{
    char in[32], out[32];
    cli_printf("%-24s %7s  %-16s %s\n", "kind", "tensors", "format", "relative RMS error");
    for (size_t i = 0; i < job->n_kinds; i++) {
        const struct kind *kind = &job->kinds[i];
        char formats[64] = "";
        for (unsigned f = 0; f < QUANT_FORMAT_COUNT; f++)
            if (kind->formats & (1u << f))
                snprintf(formats + strlen(formats), sizeof formats - strlen(formats), "%s%s",
                         formats[0] != '\0' ? "+" : "", quant_info((enum quant_format)f)->name);
        double error = kind->squared_sum > 0 ? sqrt(kind->squared_error / kind->squared_sum) : 0;
        cli_printf("%-24s %7zu  %-16s %.4f %%\n", kind->name, kind->count, formats, 100 * error);
    }
    cli_printf("%s to %s\n", cli_size_text(in, (double)job->bytes_in),
               cli_size_text(out, (double)job->bytes_out));
    if (job->n_without_importance > 0)
        cli_note("%s holds no importance for %zu tensors", args.imatrix, job->n_without_importance);
}

/* ---- The command ----------------------------------------------------------------------------- */

static void close_job(struct job *job)
{
    for (unsigned t = 0; job->workers != NULL && t < pool_threads(job->pool); t++) {
        free(job->workers[t].row);
        free(job->workers[t].decoded);
    }
    free(job->workers);
    free(job->slab);
    free(job->importance);
    pool_close(job->pool);
    weights_close(job->imatrix);
    weights_close(job->in);
}

static int run(const struct cli_command *command, char **operands, int n_operands)
{
    (void)n_operands;
    struct error error;
    static struct job job = {.slab_bytes = SLAB_BYTES};
    size_t longest_row = 0;
    job.mix = mix_find(operands[2]);
    if (job.mix == NULL) {
        struct buffer names = {0};
        mix_names(&names);
        int code = cli_usage(command, "unknown format '%s'; there are %s", operands[2], names.data);
        buffer_free(&names);
        return code;
    }
    enum status status = quant_init(&error);
    if (status == STATUS_OK)
        status = cli_open_weights(&job.in, operands[0], &error);
    if (status == STATUS_OK)
        status = open_imatrix(&job, &error);
    if (status == STATUS_OK)
        status = plan(&job, operands[0], &longest_row, &error);
    if (status == STATUS_OK)
        status = check_target(&job, operands[1], &error);
    if (status == STATUS_OK)
        status = prepare_workers(&job, longest_row, &error);
    if (status == STATUS_OK)
        status = write_file(&job, operands[1], &error);
    if (status == STATUS_OK)
        print_result(&job);
    close_job(&job);
    return status == STATUS_OK ? CLI_DONE : cli_fail(&error);
}

static const struct cli_option options[] = {
    {.name = "imatrix",
     .metavar = "FILE",
     .help = "importance matrix that consort imatrix or llama.cpp made",
     .type = CLI_TEXT,
     .value = &args.imatrix},
    {.name = "requantize",
     .help = "also convert what is quantised already",
     .type = CLI_FLAG,
     .value = &args.requantize},
    {.name = "pure",
     .help = "one format for all matrices, no mix",
     .type = CLI_FLAG,
     .value = &args.pure},
    {.letter = 't',
     .name = "threads",
     .metavar = "N",
     .help = "threads (default: the machine's cores)",
     .type = CLI_U32,
     .min = 1,
     .max = 1024,
     .value = &cli_model_args.n_threads},
};
static const struct cli_group group = CLI_GROUP("options", options);

const struct cli_command cli_quantize = {
    .name = "quantize",
    .operands = "IN OUT FORMAT",
    .summary = "Writes a model file in another number format.",
    .description =
        "FORMAT is F32, F16, BF16, Q8_0, Q6_K, Q5_K, Q5_1, Q5_0, Q4_K, Q4_1, Q4_0, IQ4_NL, IQ4_XS, "
        "MXFP4 (for experts; the rest Q8_0), Q3_K or Q2_K, or a mix that spends more bits where "
        "errors cost most: Q5_K_M, Q5_K_S, Q4_K_M, Q4_K_S, Q3_K_L, Q3_K_M, Q3_K_S, Q2_K_M, Q2_K_S "
        "(L more than M, M more than S). The output matrix gets Q6_K where that is finer. The "
        "error "
        "of each kind of tensor is printed. OUT appears when it is whole.",
    .groups = {&group},
    .min_operands = 3,
    .max_operands = 3,
    .run = run,
};
