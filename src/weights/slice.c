/* Slice files: a GGUF file with the parts of another file's tensors that one rank of a model needs,
 * each packed without gaps, and all keys of the other file. Two keys say what it is:
 *
 *   consort.slice          string: which slice, in words
 *   consort.slice.tensors  array of strings: all tensors of the other file, in its order, each as
 *                          "FORMAT SHAPE0 SHAPE1 SHAPE2 SHAPE3 HELD DIM BEGIN END ... NAME"
 *
 * FORMAT is the number that GGUF has for it. HELD is - where the tensor is not in the file, 0 where
 * it is all there, else the number of spans [BEGIN, END) along dimension DIM, which lie one after
 * the other. Opened, such a file shows all tensors in their full shape, with the spans it holds; so
 * whoever reads shapes does not notice.
 *
 * The bytes are a function of the other file and the cuts alone, and any range of them can be read
 * without making the rest: after the header, a tensor's data are runs of bytes that lie together in
 * the other file, the same number of them for every row, matrix or tensor (`period`). Slice files
 * that together hold what a slice needs give the same bytes as the whole file (`held_at` finds
 * where a byte of the whole tensor lies). */
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
    const struct weights_tensor *const *from; /* [n_files]: the tensor in each file */
    const struct weights_tensor *tensor;      /* one of them that has data */
    struct weights_cut cut;                   /* with at least one span */
    uint64_t offset;                          /* in the slice file */
    uint64_t bytes, period; /* of all data; of the runs of one row, matrix or tensor */
    uint64_t unit, stride;  /* bytes of one step along the cut; from one period to the next */
    uint64_t row_bytes, matrix_bytes, all_bytes; /* of the whole tensor */
};

struct weights_slice {
    struct buffer header;
    uint64_t alignment, size;
    struct piece *pieces;
    const struct weights_tensor **from; /* [n_pieces][n_files] */
    size_t n_pieces, n_files;
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

/* Counts columns in bytes. */
static struct weights_span column_bytes(const struct weights_tensor *tensor,
                                        struct weights_span span)
{
    const struct quant_info *info = quant_info(tensor->format);
    return (struct weights_span){span.begin / info->block_len * info->block_bytes,
                                 span.end / info->block_len * info->block_bytes};
}

static struct piece piece_of(const struct weights_tensor *tensor, const struct weights_cut *cut)
{
    struct piece piece = {.tensor = tensor, .cut = *cut};
    uint64_t n_matrices = tensor->shape[2] * tensor->shape[3], n_periods = 1;
    piece.row_bytes = column_bytes(tensor, (struct weights_span){0, tensor->shape[0]}).end;
    piece.matrix_bytes = piece.row_bytes * tensor->shape[1];
    piece.all_bytes = piece.matrix_bytes * n_matrices;
    if (cut->n == 0) { /* all of it, as one run */
        piece.cut.dim = 2;
        piece.cut.n = 1;
        piece.cut.spans[0] = (struct weights_span){0, n_matrices};
    }
    switch (piece.cut.dim) {
    case 0:
        n_periods = tensor->shape[1] * n_matrices;
        piece.unit = 1; /* columns are counted in bytes */
        piece.stride = piece.row_bytes;
        for (uint32_t s = 0; s < piece.cut.n; s++)
            piece.cut.spans[s] = column_bytes(tensor, piece.cut.spans[s]);
        break;
    case 1:
        n_periods = n_matrices;
        piece.unit = piece.row_bytes;
        piece.stride = piece.matrix_bytes;
        break;
    default:
        piece.unit = piece.matrix_bytes;
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

/* What a slice file has beside the keys of the other file. */
static bool of_slice(const char *key)
{
    return strcmp(key, KEY_SLICE) == 0 || strcmp(key, KEY_TENSORS) == 0;
}

static uint64_t count_keys(const struct weights *weights)
{
    uint64_t n = 0;
    for (size_t i = 0; i < weights->value_count; i++)
        n += !of_slice(weights->values[i].key);
    return n + 2;
}

static void put_keys(struct buffer *out, const struct weights *weights, const char *text,
                     const struct weights_cut *cuts)
{
    for (size_t i = 0; i < weights->value_count; i++) {
        if (of_slice(weights->values[i].key))
            continue;
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
    gguf_put_number(header, count_keys(weights), 8);
    put_keys(header, weights, text, cuts);
    uint64_t offset = 0;
    for (size_t i = 0; i < slice->n_pieces; i++) {
        struct piece *piece = &slice->pieces[i];
        piece->offset = offset;
        put_tensor(header, piece, &cuts[piece->from[0] - weights->tensors], offset);
        offset = aligned(slice, offset + piece->bytes);
    }
    uint64_t begin = aligned(slice, header->size);
    for (size_t i = 0; i < slice->n_pieces; i++)
        slice->pieces[i].offset += begin;
    slice->size = begin + offset;
}

/* Whether files hold [span.begin, span.end) along dim, one after the other or together. */
static bool span_held(const struct weights_slice *slice, const struct piece *piece, uint32_t dim,
                      struct weights_span span)
{
    uint64_t at = span.begin, before;
    do {
        before = at;
        for (size_t f = 0; f < slice->n_files && at < span.end; f++) {
            const struct weights_tensor *tensor = piece->from[f];
            for (uint32_t s = 0; tensor->data != NULL && tensor->held.dim == dim &&
                                 s < tensor->held.n && at < span.end;
                 s++)
                if (tensor->held.spans[s].begin <= at && at < tensor->held.spans[s].end)
                    at = tensor->held.spans[s].end;
        }
    } while (at < span.end && at > before);
    return at >= span.end;
}

/* Whether the files have all that a cut asks for: one has the whole tensor, or along one dimension
 * they have it together. */
static bool all_held(const struct weights_slice *slice, const struct piece *piece,
                     const struct weights_cut *cut)
{
    const uint64_t *shape = piece->tensor->shape;
    for (size_t f = 0; f < slice->n_files; f++)
        if (piece->from[f]->data != NULL && piece->from[f]->held.n == 0)
            return true;
    for (uint32_t dim = 0; dim < 3; dim++) {
        bool held = true;
        struct weights_span all = {0, dim < 2 ? shape[dim] : shape[2] * shape[3]};
        if (cut->n == 0 || cut->dim != dim)
            held = span_held(slice, piece, dim, all);
        for (uint32_t s = 0; cut->dim == dim && s < cut->n; s++)
            held = held && span_held(slice, piece, dim, cut->spans[s]);
        if (held)
            return true;
    }
    return false;
}

/* One tensor of the slice, out of the i-th of each file. */
static enum status add_piece(struct weights_slice *slice, const struct weights *const *files,
                             size_t i, const struct weights_cut *cut, struct error *error)
{
    const struct weights_tensor **from = slice->from + slice->n_pieces * slice->n_files;
    const struct weights_tensor *first = &files[0]->tensors[i], *shown = first;
    for (size_t f = 0; f < slice->n_files; f++) {
        from[f] = &files[f]->tensors[i];
        if (from[f]->format != first->format || strcmp(from[f]->name, first->name) != 0 ||
            memcmp(from[f]->shape, first->shape, sizeof first->shape) != 0)
            return error_set(error, STATUS_INVALID, "%s and %s are not of the same model",
                             files[0]->path, files[f]->path);
        if (from[f]->data != NULL)
            shown = from[f];
    }
    if (!valid_cut(first, cut))
        return error_set(error, STATUS_INVALID,
                         "tensor " GGUF_NAME_SHOWN " cannot be cut like this", first->name);
    struct piece *piece = &slice->pieces[slice->n_pieces];
    *piece = piece_of(shown, cut);
    piece->from = from;
    if (shown->data == NULL || !all_held(slice, piece, cut))
        return error_set(error, STATUS_NOT_FOUND,
                         "tensor " GGUF_NAME_SHOWN " is in none of the slices", first->name);
    slice->n_pieces++;
    return STATUS_OK;
}

enum status weights_slice_merge(struct weights_slice **out, const struct weights *const *files,
                                size_t n_files, const char *text, const struct weights_cut *cuts,
                                struct error *error)
{
    size_t n = files[0]->tensor_count;
    *out = NULL;
    struct weights_slice *slice = calloc(1, sizeof *slice);
    if (slice != NULL) {
        slice->n_files = n_files;
        slice->pieces = calloc(n + 1, sizeof *slice->pieces);
        slice->from = calloc(n * n_files + 1, sizeof *slice->from);
    }
    enum status status = slice == NULL || slice->pieces == NULL || slice->from == NULL
                             ? error_memory(error, n * sizeof *slice->pieces)
                             : STATUS_OK;
    for (size_t f = 1; f < n_files && status == STATUS_OK; f++)
        if (files[f]->tensor_count != n)
            status = error_set(error, STATUS_INVALID, "%s and %s are not of the same model",
                               files[0]->path, files[f]->path);
    for (size_t i = 0; i < n && status == STATUS_OK; i++)
        if (cuts[i].needed)
            status = add_piece(slice, files, i, &cuts[i], error);
    if (status == STATUS_OK) {
        lay_out(slice, files[0], text, cuts);
        if (slice->header.failed)
            status = error_memory(error, n);
    }
    if (status == STATUS_OK)
        *out = slice;
    else
        weights_slice_close(slice);
    return status;
}

void weights_slice_close(struct weights_slice *slice)
{
    if (slice == NULL)
        return;
    buffer_free(&slice->header);
    free(slice->pieces);
    free(slice->from);
    free(slice);
}

uint64_t weights_slice_size(const struct weights_slice *slice)
{
    return slice->size;
}

/* ---- Reading a range ------------------------------------------------------------------------- */

/* Where a file has the byte at `offset` of the whole tensor, and how many from there on lie
 * together in both; NULL: it has not. */
static const unsigned char *held_at(const struct piece *piece, const struct weights_tensor *tensor,
                                    uint64_t offset, uint64_t *n)
{
    const unsigned char *data = tensor->data;
    const struct weights_cut *held = &tensor->held;
    uint64_t matrix = offset / piece->matrix_bytes, in_matrix = offset % piece->matrix_bytes;
    uint64_t row = in_matrix / piece->row_bytes, in_row = in_matrix % piece->row_bytes;
    if (data == NULL)
        return NULL;
    if (held->n == 0) {
        *n = piece->all_bytes - offset;
        return data + offset;
    }
    uint64_t at = held->dim == 0 ? in_row : held->dim == 1 ? row : matrix, packed = 0;
    for (uint32_t s = 0; s < held->n; s++) {
        struct weights_span span = held->spans[s];
        if (held->dim == 0)
            span = column_bytes(tensor, span);
        if (at < span.begin || at >= span.end) {
            packed += span.end - span.begin;
            continue;
        }
        uint64_t left = span.end - at;
        packed += at - span.begin;
        switch (held->dim) {
        case 0:
            *n = left;
            return data + (matrix * tensor->shape[1] + row) * tensor->row_bytes + packed;
        case 1:
            *n = left * piece->row_bytes - in_row;
            return data + matrix * tensor->matrix_bytes + packed * piece->row_bytes + in_row;
        default:
            *n = left * piece->matrix_bytes - in_matrix;
            return data + packed * piece->matrix_bytes + in_matrix;
        }
    }
    return NULL;
}

/* [offset, offset + size) of the whole tensor, which the files hold. */
static void read_run(const struct weights_slice *slice, const struct piece *piece, uint64_t offset,
                     unsigned char *out, uint64_t size)
{
    while (size > 0) {
        const unsigned char *from = NULL;
        uint64_t n = size;
        for (size_t f = 0; f < slice->n_files && from == NULL; f++)
            from = held_at(piece, piece->from[f], offset, &n);
        n = MIN(n, size);
        if (from != NULL)
            memcpy(out, from, (size_t)n);
        out += n;
        offset += n;
        size -= n;
    }
}

/* [begin, begin + size) of a piece's data. */
static void read_piece(const struct weights_slice *slice, const struct piece *piece, uint64_t begin,
                       unsigned char *out, uint64_t size)
{
    for (uint64_t at = begin; at < begin + size;) {
        uint64_t in_period = at % piece->period, n = 0;
        uint64_t period = at / piece->period * piece->stride;
        for (uint32_t s = 0; s < piece->cut.n && n == 0; s++) {
            struct weights_span span = piece->cut.spans[s];
            uint64_t run = (span.end - span.begin) * piece->unit;
            if (in_period < run) {
                n = MIN(run - in_period, begin + size - at);
                read_run(slice, piece, period + span.begin * piece->unit + in_period, out, n);
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
            read_piece(slice, piece, first - piece->offset, to + (first - offset), last - first);
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
