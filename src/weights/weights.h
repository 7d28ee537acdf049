/* weights: model files behind one read-only view: metadata, and tensors by name.
 *
 * Format-neutral: today GGUF (v2, v3, whole or in parts). The file stays memory-mapped while the
 * object is open; every string and tensor borrowed from it lives until weights_close. Nothing in
 * the file is trusted: every count, length, offset and shape is checked at opening, so what this
 * header hands out is inside the mapping. Read-only after opening: any number of threads may read.
 */
#ifndef CONSORT_WEIGHTS_H
#define CONSORT_WEIGHTS_H

#include "base/base.h"
#include "quant/quant.h"

#define WEIGHTS_MAX_DIMS 4

struct weights;

/* Numbers [begin, end) along one dimension. */
struct weights_span {
    uint64_t begin, end;
};

/* A part of a tensor: n spans along dimension dim (0 to 2) that follow each other, columns in whole
 * blocks of the format; with n 0 all of it. */
#define WEIGHTS_MAX_SPANS 3
struct weights_cut {
    bool needed;
    uint32_t dim, n;
    struct weights_span spans[WEIGHTS_MAX_SPANS];
};

struct weights_tensor {
    const char *name; /* zero-terminated */
    enum quant_format format;
    uint32_t n_dims;
    /* shape[0] is the fastest (columns), shape[1] rows, shape[2] matrices; absent ones are 1. */
    uint64_t shape[WEIGHTS_MAX_DIMS];
    const void *data;
    uint64_t size_bytes;            /* from the first to the last byte of data */
    size_t row_bytes, matrix_bytes; /* from one row, one matrix of data to the next */
    /* In a slice file only: what of the shape is there, the spans one after the other; where not
     * even that is needed, data is NULL. */
    struct weights_cut held;
};

/* Opens PATH, and for a split file (NAME-00001-of-00003.gguf) all its parts, whichever is named. */
enum status weights_open(struct weights **out, const char *path, struct error *error);
void weights_close(struct weights *weights);

const char *weights_path(const struct weights *weights);
/* True where path leads to one of the files that were opened, under whatever name. */
bool weights_reads(const struct weights *weights, const char *path);
uint64_t weights_size_bytes(const struct weights *weights); /* all parts */
/* Appends what the system says of the files, which is another text once one of them was replaced or
 * written to. */
bool weights_stamp(const struct weights *weights, struct buffer *out);

size_t weights_tensor_count(const struct weights *weights);
const struct weights_tensor *weights_tensor_at(const struct weights *weights, size_t index);
const struct weights_tensor *weights_find(const struct weights *weights, const char *name);

/* The tensor as one matrix of shape[0] columns, all else flattened to rows; borrows its data. */
struct quant_matrix weights_matrix(const struct weights_tensor *tensor);

/* *part is [span.begin, span.end) of the tensor along dimension dim (0 to 2; columns in whole
 * blocks of the format), borrowed as it lies, with the tensor's strides. False where the tensor has
 * no such part, or the file does not hold it. */
bool weights_part(const struct weights_tensor *tensor, uint32_t dim, struct weights_span span,
                  struct weights_tensor *part);

/* ---- Slice files ----------------------------------------------------------------------------- */

/* The bytes of a slice file: what one rank needs of a model, cut out of the whole file. They are a
 * function of that file, the cuts and the text alone. slice.c has the format. */
struct weights_slice;

/* Out of files[n_files] of one model, whole ones or slice files, n_files at least 1, which stay
 * borrowed. cuts[tensor count of files[0]]; text says which slice it is. STATUS_NOT_FOUND where
 * together they lack something of it. */
enum status weights_slice_merge(struct weights_slice **out, const struct weights *const *files,
                                size_t n_files, const char *text, const struct weights_cut *cuts,
                                struct error *error);
void weights_slice_close(struct weights_slice *slice);
uint64_t weights_slice_size(const struct weights_slice *slice);
/* out[size] = its bytes from offset on; false where it has not so many. Any number of threads. */
bool weights_slice_read(const struct weights_slice *slice, uint64_t offset, void *out, size_t size);

/* Of an open slice file, the text; NULL for a whole model. */
const char *weights_slice_text(const struct weights *weights);

/* ---- Reading ahead --------------------------------------------------------------------------- */

/* Starts to bring the pages in ahead of use; never waits. With cuts[tensor count] (or NULL: all),
 * only what they need; they are copied, or where memory is out nothing is read ahead. The first
 * call counts. */
void weights_prefetch(const struct weights *weights, const struct weights_cut *cuts);

/* ---- Metadata -------------------------------------------------------------------------------- */

enum weights_type {
    WEIGHTS_U8,
    WEIGHTS_I8,
    WEIGHTS_U16,
    WEIGHTS_I16,
    WEIGHTS_U32,
    WEIGHTS_I32,
    WEIGHTS_F32,
    WEIGHTS_BOOL,
    WEIGHTS_STRING,
    WEIGHTS_ARRAY,
    WEIGHTS_U64,
    WEIGHTS_I64,
    WEIGHTS_F64,
};

size_t weights_key_count(const struct weights *weights);
const char *weights_key_at(const struct weights *weights, size_t index);
bool weights_has(const struct weights *weights, const char *key);

/* Typed reads. A key that is missing leaves *out as it is (the caller's default) and is no error; a
 * value of another kind or out of range is one that names key, type found and type expected. Any
 * integer type is taken where it fits; floats take F32 and F64. */
enum status weights_u32(const struct weights *weights, const char *key, uint32_t *out,
                        struct error *error);
enum status weights_u64(const struct weights *weights, const char *key, uint64_t *out,
                        struct error *error);
enum status weights_f32(const struct weights *weights, const char *key, float *out,
                        struct error *error);
enum status weights_bool(const struct weights *weights, const char *key, bool *out,
                         struct error *error);
enum status weights_string(const struct weights *weights, const char *key, struct view *out,
                           struct error *error);

/* A number per layer: a scalar is given to all of out[count], an array must have at least count. */
enum status weights_u32_each(const struct weights *weights, const char *key, uint32_t *out,
                             size_t count, struct error *error);

/* Arrays, allocated from arena; *count is 0 and *out NULL when the key is missing. Strings are
 * views into the mapping. */
enum status weights_strings(const struct weights *weights, const char *key, struct arena *arena,
                            struct view **out, size_t *count, struct error *error);
enum status weights_f32_array(const struct weights *weights, const char *key, struct arena *arena,
                              float **out, size_t *count, struct error *error);
enum status weights_i32_array(const struct weights *weights, const char *key, struct arena *arena,
                              int32_t **out, size_t *count, struct error *error);
/* The bytes of an array of U8 or I8, borrowed. */
enum status weights_bytes(const struct weights *weights, const char *key, struct view *out,
                          struct error *error);

/* The value as short text for people and scripts ("[32000 strings]" for arrays); out grows. */
bool weights_value_text(const struct weights *weights, const char *key, struct buffer *out);

/* ---- Writing --------------------------------------------------------------------------------- */

/* Writes a GGUF v3 file: first metadata, then every tensor's name and shape, then the data in the
 * same order. The file appears under its path when weights_writer_commit succeeds. */
struct weights_writer;

enum status weights_writer_open(struct weights_writer **out, const char *path, struct error *error);
/* Copies one key of another file as it is. */
enum status weights_writer_copy_key(struct weights_writer *writer, const struct weights *from,
                                    const char *key, struct error *error);
enum status weights_writer_u32(struct weights_writer *writer, const char *key, uint32_t value,
                               struct error *error);
enum status weights_writer_string(struct weights_writer *writer, const char *key, const char *value,
                                  struct error *error);
enum status weights_writer_strings(struct weights_writer *writer, const char *key,
                                   const char *const *values, size_t count, struct error *error);
enum status weights_writer_declare(struct weights_writer *writer, const char *name,
                                   enum quant_format format, uint32_t n_dims, const uint64_t *shape,
                                   struct error *error);
/* Appends bytes to the data of the tensor being written; tensors follow each other in the order of
 * their declaration, each exactly its size (padding is added here). */
enum status weights_writer_data(struct weights_writer *writer, const void *data, size_t size,
                                struct error *error);
enum status weights_writer_commit(struct weights_writer *writer, struct error *error); /* frees */
void weights_writer_discard(struct weights_writer *writer);

#endif
