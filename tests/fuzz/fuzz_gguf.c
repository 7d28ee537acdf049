/* Opens the input as a GGUF file and reads all that it then offers, with every typed read. */
#include "weights/gguf.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void read_key(const struct weights *weights, const char *key, struct arena *arena)
{
    struct error error;
    uint32_t u32;
    uint64_t u64;
    float f32;
    bool yes;
    struct view view, *strings;
    float *floats;
    int32_t *numbers;
    size_t count;
    uint32_t each[3];
    struct buffer text = {0};
    weights_u32(weights, key, &u32, &error);
    weights_u64(weights, key, &u64, &error);
    weights_f32(weights, key, &f32, &error);
    weights_bool(weights, key, &yes, &error);
    weights_string(weights, key, &view, &error);
    weights_bytes(weights, key, &view, &error);
    weights_u32_each(weights, key, each, ARRAY_COUNT(each), &error);
    weights_strings(weights, key, arena, &strings, &count, &error);
    weights_f32_array(weights, key, arena, &floats, &count, &error);
    weights_i32_array(weights, key, arena, &numbers, &count, &error);
    if (!weights_value_text(weights, key, &text))
        abort();
    buffer_free(&text);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct weights *weights;
    struct error error = {0};
    if (weights_open_memory(&weights, "fuzz.gguf", data, size, &error) != STATUS_OK) {
        if (weights != NULL || error.text[0] == '\0')
            abort();
        return 0;
    }
    struct arena *arena = arena_open(0);
    for (size_t i = 0; i < weights_key_count(weights); i++)
        read_key(weights, weights_key_at(weights, i), arena);
    for (size_t i = 0; i < weights_tensor_count(weights); i++) {
        const struct weights_tensor *tensor = weights_tensor_at(weights, i);
        const uint8_t *begin = tensor->data;
        bool slice = weights_slice_text(weights) != NULL;
        if (weights_find(weights, tensor->name) != tensor)
            abort();
        if (slice && begin == NULL)
            continue;
        if (begin < data || tensor->size_bytes > (size_t)(data + size - begin))
            abort();
        if (slice && tensor->held.n > 0) {
            struct weights_tensor part;
            if (!weights_part(tensor, tensor->held.dim, tensor->held.spans[0], &part) ||
                (const uint8_t *)part.data < data ||
                part.size_bytes > (size_t)(data + size - (const uint8_t *)part.data))
                abort();
            continue;
        }
        struct quant_matrix matrix = weights_matrix(tensor);
        if (matrix.row_bytes * matrix.n_rows != tensor->size_bytes)
            abort();
    }
    arena_close(arena);
    weights_close(weights);
    return 0;
}
