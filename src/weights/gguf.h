/* gguf: the parts of a weights object and the reader of one GGUF file (internal to src/weights).
 *
 * A GGUF file, all little-endian:
 *
 *   "GGUF"  u32 version (2, 3)  u64 tensor count  u64 key count
 *   per key      string name, u32 type, value        string: u64 length, bytes (no zero)
 *                                                    array:  u32 element type, u64 count, elements
 *   per tensor   string name, u32 dimensions (1..4), u64 shape[] (fastest first), u32 format,
 *                u64 offset into the data
 *   padding to a multiple of general.alignment (32 where the key is missing)
 *   data         every tensor at its offset, a multiple of the alignment
 */
#ifndef CONSORT_WEIGHTS_GGUF_H
#define CONSORT_WEIGHTS_GGUF_H

#include "weights/weights.h"

#include <sys/types.h>

#define GGUF_MAGIC "GGUF"
#define GGUF_VERSION 3
#define GGUF_ALIGNMENT 32
#define GGUF_MIN_ALIGNMENT 8
#define GGUF_MAX_ALIGNMENT (1u << 21)
#define GGUF_MAX_NAME 65535 /* bytes of a key's or tensor's name, as the format says */
#define GGUF_MAX_PARTS 65535
#define GGUF_NAME_SHOWN "%.100s" /* names in error sentences are cut here */

/* Bytes of a scalar of this type; 0 for strings and arrays. */
size_t gguf_type_bytes(enum weights_type type);

/* The file's number of a format, and back (*name is the published name, NULL for an unknown number;
 * false where the format cannot be read). */
uint32_t gguf_format_number(enum quant_format format);
bool gguf_format_find(uint32_t number, enum quant_format *format, const char **name);

/* Little-endian, as the format has them. */
bool gguf_put_number(struct buffer *out, uint64_t value, size_t bytes);
bool gguf_put_string(struct buffer *out, const char *text);

/* ---- Lookup by name -------------------------------------------------------------------------- */

/* Sorted rather than hashed: names come from the file, and no choice of them makes this slow. */
struct name_slot {
    const char *name;
    size_t position;
};

struct name_index {
    struct name_slot *slots;
    size_t count;
};

/* Sorts index->slots, already filled; returns a name that occurs twice, or NULL. */
const char *name_index_sort(struct name_index *index);
bool name_index_find(const struct name_index *index, const char *name, size_t *position);

/* ---- The object ------------------------------------------------------------------------------ */

/* One key's value. A scalar is elements[0]; a string is one string, its u64 length first. */
struct gguf_value {
    const char *key;
    enum weights_type type; /* of the value, or of an array's elements */
    bool is_array;
    uint64_t count; /* 1 for what is no array */
    const uint8_t *elements;
    const uint8_t *raw; /* from the type field to the end, as it lies in the file */
    size_t raw_size;
};

/* What one file holds. names are the file's own (for errors); arrays live in the arena. */
struct gguf_part {
    char *name; /* without folders */
    struct file_map map;
    dev_t device; /* with inode: which file it is */
    ino_t inode;
    int64_t modified_ns;
    const uint8_t *data;
    size_t size;
    struct gguf_value *values;
    size_t value_count;
    struct weights_tensor *tensors;
    size_t tensor_count;
};

struct weights {
    char *path;
    struct arena *arena;
    struct gguf_part *parts;
    size_t part_count;
    struct gguf_value *values;
    size_t value_count;
    struct weights_tensor *tensors;
    size_t tensor_count;
    struct name_index value_index, tensor_index;
    struct prefetch *prefetch;
    const char *slice_text; /* of a slice file */
};

/* slice.c: where the file is a slice, shows all tensors of the whole model in place of its own. */
enum status slice_join(struct weights *weights, struct error *error);

/* The thread of weights_prefetch; closing ends it before the files are unmapped. */
struct prefetch *prefetch_open(const struct weights *weights);
void prefetch_close(struct prefetch *prefetch);

/* Reads part->data[size], checking all of it; part->name is set. */
enum status gguf_read_part(struct gguf_part *part, struct arena *arena, struct error *error);

/* As weights_open, on a whole file in memory, which must outlive the object. */
enum status weights_open_memory(struct weights **out, const char *name, const void *data,
                                size_t size, struct error *error);

/* NULL when there is no such key. */
const struct gguf_value *weights_value(const struct weights *weights, const char *key);

/* An integer out of one value (not an array); false where it is none or below zero or over limit.
 */
bool gguf_value_unsigned(const struct gguf_value *value, uint64_t limit, uint64_t *out);

#endif
