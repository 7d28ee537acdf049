/* Slice files: a GGUF file with the parts of another file's tensors that one rank of a model needs,
 * each packed without gaps, and all keys of the other file. Two keys say what it is:
 *
 *   consort.slice          string: which slice, in words
 *   consort.slice.tensors  array of strings: all tensors of the other file, in its order, each as
 *                          "FORMAT SHAPE0 SHAPE1 SHAPE2 SHAPE3 HELD DIM BEGIN END BEGIN END ...
 * NAME"
 *
 * FORMAT is the number that GGUF has for it. HELD is - where the tensor is not in the file, 0 where
 * it is all there, else the number of spans [BEGIN, END) along dimension DIM, which lie one after
 * the other. Opened, such a file shows all tensors in their full shape, with the spans it holds; so
 * whoever reads shapes does not notice.
 *
 * The bytes are a function of the other file and the cuts alone, and any range of them can be read
 * without making the rest: after the header, a tensor's data are runs of bytes that lie together in
 * the other file, the same number of them for every row, matrix or tensor (`period`). */
#include "weights/gguf.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define KEY_SLICE "consort.slice"
#define KEY_TENSORS "consort.slice.tensors"
#define MAX_LINE (GGUF_MAX_NAME + 400)
#define MAX_DIM ((uint64_t)1 << 32)
#define MAX_NUMBERS ((uint64_t)1 << 48) /* in a tensor */

/* ---- Making ---------------------------------------------------------------------------------- */

struct piece {
    const struct weights_tensor *tensor;
    struct weights_cut cut; /* with at least one span */
    uint64_t offset;        /* in the slice file */
    uint64_t bytes, period; /* of all data; of the runs of one row, matrix or tensor */
    uint64_t unit, stride;  /* bytes of one step along the cut; from one period to the next */
};

struct weights_slice {
    struct buffer header;
    uint64_t alignment, size;
    struct piece *pieces;
    size_t n_pieces;
};

static bool valid_cut(const struct weights_tensor *tensor, const struct weights_cut *cut)
{
    uint64_t block = quant_info(tensor->format)->block_len, at = 0;
    if (cut->dim > 2 || (cut->dim == 2 && tensor->shape[3] != 1) || cut->n > WEIGHTS_MAX_SPANS)
        return false;
    for (uint32_t s = 0; s < cut->n; s++) {
        struct weights_span span = cut->spans[s];
        if (span.begin < at || span.begin >= span.end || span.end > tensor->shape[cut->dim] ||
            (cut->dim == 0 && (span.begin % block != 0 || span.end % block != 0)))
            return false;
        at = span.end;
    }
    return true;
}

static uint64_t cut_size(const struct weights_cut *cut)
{
    uint64_t n = 0;
    for (uint32_t s = 0; s < cut->n; s++)
        n += cut->spans[s].end - cut->spans[s].begin;
    return n;
}

static struct piece piece_of(const struct weights_tensor *tensor, const struct weights_cut *cut)
{
    const struct quant_info *info = quant_info(tensor->format);
    struct piece piece = {.tensor = tensor, .cut = *cut};
    uint64_t n_matrices = tensor->shape[2] * tensor->shape[3], n_periods = 1;
    if (cut->n == 0) { /* all of it, as one run */
        piece.cut.dim = 2;
        piece.cut.n = 1;
        piece.cut.spans[0] = (struct weights_span){0, n_matrices};
    }
    switch (piece.cut.dim) {
    case 0:
        n_periods = tensor->shape[1] * n_matrices;
        piece.unit = 1; /* columns are counted in bytes below */
        piece.stride = tensor->row_bytes;
        for (uint32_t s = 0; s < piece.cut.n; s++) {
            struct weights_span *span = &piece.cut.spans[s];
            span->begin = span->begin / info->block_len * info->block_bytes;
            span->end = span->end / info->block_len * info->block_bytes;
        }
        break;
    case 1:
        n_periods = n_matrices;
        piece.unit = tensor->row_bytes;
        piece.stride = tensor->matrix_bytes;
        break;
    default:
        piece.unit = tensor->matrix_bytes;
    }
    piece.period = cut_size(&piece.cut) * piece.unit;
    piece.bytes = piece.period * n_periods;
    return piece;
}

static void put_line(struct buffer *out, const struct weights_tensor *tensor,
                     const struct weights_cut *cut)
{
    struct buffer line = {0};
    buffer_printf(&line, "%u", (unsigned)gguf_format_number(tensor->format));
    for (size_t d = 0; d < WEIGHTS_MAX_DIMS; d++)
        buffer_printf(&line, " %" PRIu64, tensor->shape[d]);
    if (!cut->needed)
        buffer_append_text(&line, " - 0");
    else
        buffer_printf(&line, " %u %u", (unsigned)cut->n, (unsigned)cut->dim);
    for (uint32_t s = 0; s < cut->n && cut->needed; s++)
        buffer_printf(&line, " %" PRIu64 " %" PRIu64, cut->spans[s].begin, cut->spans[s].end);
    buffer_printf(&line, " %s", tensor->name);
    gguf_put_string(out, line.data != NULL ? line.data : "");
    out->failed = out->failed || line.failed;
    buffer_free(&line);
}

static void put_tensor(struct buffer *out, const struct piece *piece, const struct weights_cut *cut,
                       uint64_t offset)
{
    gguf_put_string(out, piece->tensor->name);
    gguf_put_number(out, piece->tensor->n_dims, 4);
    for (uint32_t d = 0; d < piece->tensor->n_dims; d++)
        gguf_put_number(out, cut->n > 0 && d == cut->dim ? cut_size(cut) : piece->tensor->shape[d],
                        8);
    gguf_put_number(out, gguf_format_number(piece->tensor->format), 4);
    gguf_put_number(out, offset, 8);
}

static void put_keys(struct buffer *out, const struct weights *weights, const char *text,
                     const struct weights_cut *cuts)
{
    for (size_t i = 0; i < weights->value_count; i++) {
        gguf_put_string(out, weights->values[i].key);
        buffer_append(out, weights->values[i].raw, weights->values[i].raw_size);
    }
    gguf_put_string(out, KEY_SLICE);
    gguf_put_number(out, WEIGHTS_STRING, 4);
    gguf_put_string(out, text);
    gguf_put_string(out, KEY_TENSORS);
    gguf_put_number(out, WEIGHTS_ARRAY, 4);
    gguf_put_number(out, WEIGHTS_STRING, 4);
    gguf_put_number(out, weights->tensor_count, 8);
    for (size_t i = 0; i < weights->tensor_count; i++)
        put_line(out, &weights->tensors[i], &cuts[i]);
}

static uint64_t aligned(const struct weights_slice *slice, uint64_t offset)
{
    return (offset + slice->alignment - 1) / slice->alignment * slice->alignment;
}

/* The header, and where everything lies behind it. */
static void lay_out(struct weights_slice *slice, const struct weights *weights, const char *text,
                    const struct weights_cut *cuts)
{
    struct buffer *header = &slice->header;
    const struct gguf_value *alignment = weights_value(weights, "general.alignment");
    slice->alignment = GGUF_ALIGNMENT;
    if (alignment != NULL)
        gguf_value_unsigned(alignment, GGUF_MAX_ALIGNMENT, &slice->alignment);
    buffer_append_text(header, GGUF_MAGIC);
    gguf_put_number(header, GGUF_VERSION, 4);
    gguf_put_number(header, slice->n_pieces, 8);
    gguf_put_number(header, weights->value_count + 2, 8);
    put_keys(header, weights, text, cuts);
    uint64_t offset = 0;
    for (size_t i = 0; i < slice->n_pieces; i++) {
        struct piece *piece = &slice->pieces[i];
        piece->offset = offset;
        put_tensor(header, piece, &cuts[piece->tensor - weights->tensors], offset);
        offset = aligned(slice, offset + piece->bytes);
    }
    uint64_t begin = aligned(slice, header->size);
    for (size_t i = 0; i < slice->n_pieces; i++)
        slice->pieces[i].offset += begin;
    slice->size = begin + offset;
}

enum status weights_slice_open(struct weights_slice **out, const struct weights *weights,
                               const char *text, const struct weights_cut *cuts,
                               struct error *error)
{
    *out = NULL;
    if (weights_slice_text(weights) != NULL)
        return error_set(error, STATUS_UNSUPPORTED, "%s is a slice of a model already",
                         weights->path);
    struct weights_slice *slice = calloc(1, sizeof *slice);
    if (slice != NULL)
        slice->pieces = calloc(weights->tensor_count + 1, sizeof *slice->pieces);
    if (slice == NULL || slice->pieces == NULL) {
        free(slice);
        return error_memory(error, weights->tensor_count * sizeof *slice->pieces);
    }
    for (size_t i = 0; i < weights->tensor_count; i++) {
        const struct weights_tensor *tensor = &weights->tensors[i];
        if (!cuts[i].needed)
            continue;
        if (!valid_cut(tensor, &cuts[i])) {
            weights_slice_close(slice);
            return error_set(error, STATUS_INVALID,
                             "tensor " GGUF_NAME_SHOWN " cannot be cut like this", tensor->name);
        }
        slice->pieces[slice->n_pieces++] = piece_of(tensor, &cuts[i]);
    }
    lay_out(slice, weights, text, cuts);
    if (slice->header.failed) {
        weights_slice_close(slice);
        return error_memory(error, weights->tensor_count);
    }
    *out = slice;
    return STATUS_OK;
}

void weights_slice_close(struct weights_slice *slice)
{
    if (slice == NULL)
        return;
    buffer_free(&slice->header);
    free(slice->pieces);
    free(slice);
}

uint64_t weights_slice_size(const struct weights_slice *slice)
{
    return slice->size;
}

/* ---- Reading a range ------------------------------------------------------------------------- */

/* [begin, begin + size) of a piece's data. */
static void read_piece(const struct piece *piece, uint64_t begin, unsigned char *out, uint64_t size)
{
    const unsigned char *data = piece->tensor->data;
    for (uint64_t at = begin; at < begin + size;) {
        uint64_t in_period = at % piece->period, n = 0;
        const unsigned char *period = data + at / piece->period * piece->stride;
        for (uint32_t s = 0; s < piece->cut.n && n == 0; s++) {
            struct weights_span span = piece->cut.spans[s];
            uint64_t run = (span.end - span.begin) * piece->unit;
            if (in_period < run) {
                n = MIN(run - in_period, begin + size - at);
                memcpy(out, period + span.begin * piece->unit + in_period, (size_t)n);
            } else {
                in_period -= run;
            }
        }
        out += n;
        at += n;
    }
}

/* The last piece that begins at or before offset; the first where none does. */
static size_t piece_at(const struct weights_slice *slice, uint64_t offset)
{
    size_t low = 0, high = slice->n_pieces;
    while (high - low > 1) {
        size_t middle = (low + high) / 2;
        if (slice->pieces[middle].offset <= offset)
            low = middle;
        else
            high = middle;
    }
    return low;
}

bool weights_slice_read(const struct weights_slice *slice, uint64_t offset, void *out, size_t size)
{
    unsigned char *to = out;
    uint64_t end = offset + size;
    if (offset > slice->size || size > slice->size - offset)
        return false;
    memset(to, 0, size); /* what lies between */
    if (offset < slice->header.size)
        memcpy(to, slice->header.data + offset,
               (size_t)MIN((uint64_t)size, slice->header.size - offset));
    for (size_t i = slice->n_pieces > 0 ? piece_at(slice, offset) : 0;
         i < slice->n_pieces && slice->pieces[i].offset < end; i++) {
        const struct piece *piece = &slice->pieces[i];
        uint64_t first = MAX(offset, piece->offset), last = MIN(end, piece->offset + piece->bytes);
        if (first < last)
            read_piece(piece, first - piece->offset, to + (first - offset), last - first);
    }
    return true;
}

/* ---- Opening a slice file -------------------------------------------------------------------- */

const char *weights_slice_text(const struct weights *weights)
{
    return weights->slice_text;
}

/* A number and the space behind it. */
static bool take_number(const char **text, uint64_t limit, uint64_t *out)
{
    const char *at = *text;
    *out = 0;
    for (; *at >= '0' && *at <= '9'; at++) {
        *out = *out * 10 + (uint64_t)(*at - '0');
        if (*out > limit)
            return false;
    }
    if (at == *text || *at != ' ')
        return false;
    *text = at + 1;
    return true;
}

/* One line to a tensor with its full shape and what of it is held. */
static bool parse_line(const char *text, struct weights_tensor *tensor, struct weights_cut *cut)
{
    uint64_t number, numbers = 1;
    const char *name;
    *tensor = (struct weights_tensor){0};
    *cut = (struct weights_cut){.needed = true};
    if (!take_number(&text, UINT32_MAX, &number) ||
        !gguf_format_find((uint32_t)number, &tensor->format, &name))
        return false;
    for (size_t d = 0; d < WEIGHTS_MAX_DIMS; d++) {
        if (!take_number(&text, MAX_DIM, &tensor->shape[d]) || tensor->shape[d] == 0 ||
            tensor->shape[d] > MAX_NUMBERS / numbers)
            return false;
        numbers *= tensor->shape[d];
    }
    if (tensor->shape[0] % quant_info(tensor->format)->block_len != 0)
        return false;
    if (text[0] == '-' && text[1] == ' ') {
        cut->needed = false;
        text += 2;
        number = 0;
    } else if (!take_number(&text, WEIGHTS_MAX_SPANS, &number)) {
        return false;
    }
    cut->n = (uint32_t)number;
    if (!take_number(&text, 2, &number))
        return false;
    cut->dim = (uint32_t)number;
    for (uint32_t s = 0; s < cut->n; s++)
        if (!take_number(&text, MAX_DIM, &cut->spans[s].begin) ||
            !take_number(&text, MAX_DIM, &cut->spans[s].end))
            return false;
    tensor->name = text;
    return text[0] != '\0' && valid_cut(tensor, cut);
}

/* Takes over where the tensor's part lies in the file. */
static bool join_held(const struct weights *weights, struct weights_tensor *tensor,
                      const struct weights_cut *cut)
{
    const struct weights_tensor *held = weights_find(weights, tensor->name);
    if (!cut->needed)
        return held == NULL;
    if (held == NULL || held->format != tensor->format)
        return false;
    for (uint32_t d = 0; d < WEIGHTS_MAX_DIMS; d++)
        if (held->shape[d] != (cut->n > 0 && d == cut->dim ? cut_size(cut) : tensor->shape[d]))
            return false;
    tensor->n_dims = held->n_dims;
    tensor->data = held->data;
    tensor->size_bytes = held->size_bytes;
    tensor->row_bytes = held->row_bytes;
    tensor->matrix_bytes = held->matrix_bytes;
    tensor->held = *cut;
    return true;
}

static enum status read_line(struct weights *weights, struct view line,
                             struct weights_tensor *tensor, size_t *n_held, struct error *error)
{
    struct weights_cut cut;
    char *text = line.size <= MAX_LINE ? arena_copy(weights->arena, line.data, line.size) : NULL;
    if (text == NULL && line.size <= MAX_LINE)
        return error_memory(error, line.size);
    if (text == NULL || strlen(text) != line.size || !parse_line(text, tensor, &cut) ||
        !join_held(weights, tensor, &cut))
        return error_set(error, STATUS_INVALID,
                         "%s: key " KEY_TENSORS " does not fit the tensors of the file",
                         weights->parts[0].name);
    *n_held += cut.needed;
    if (!cut.needed) {
        tensor->held.needed = false;
        for (uint32_t d = 0; d < WEIGHTS_MAX_DIMS; d++)
            if (tensor->shape[d] > 1 || d == 0)
                tensor->n_dims = d + 1;
    }
    return STATUS_OK;
}

enum status slice_join(struct weights *weights, struct error *error)
{
    struct view text = {0}, *lines;
    size_t count, n_held = 0;
    enum status status = weights_string(weights, KEY_SLICE, &text, error);
    if (status != STATUS_OK || text.data == NULL)
        return status;
    weights->slice_text = arena_copy(weights->arena, text.data, text.size);
    if (weights->slice_text == NULL)
        return error_memory(error, text.size);
    status = weights_strings(weights, KEY_TENSORS, weights->arena, &lines, &count, error);
    if (status != STATUS_OK)
        return status;
    struct weights_tensor *tensors = arena_array(weights->arena, count, sizeof *tensors);
    struct name_index index = {arena_array(weights->arena, count, sizeof *index.slots), count};
    if (count > 0 && (tensors == NULL || index.slots == NULL))
        return error_memory(error, count * sizeof *tensors);
    for (size_t i = 0; i < count && status == STATUS_OK; i++) {
        status = read_line(weights, lines[i], &tensors[i], &n_held, error);
        index.slots[i] = (struct name_slot){tensors[i].name, i};
    }
    if (status != STATUS_OK)
        return status;
    if (n_held != weights->tensor_count || name_index_sort(&index) != NULL)
        return error_set(error, STATUS_INVALID,
                         "%s: key " KEY_TENSORS " does not fit the tensors of the file",
                         weights->parts[0].name);
    weights->tensors = tensors;
    weights->tensor_count = count;
    weights->tensor_index = index;
    return STATUS_OK;
}
