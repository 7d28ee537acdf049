#include "tiny_model.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { DISTINCT_ROWS = 61 };

static void put(struct buffer *out, const void *data, size_t size)
{
    if (!buffer_append(out, data, size))
        abort();
}

static void put_u32(struct buffer *out, uint32_t value)
{
    put(out, &value, sizeof value);
}

static void put_u64(struct buffer *out, uint64_t value)
{
    put(out, &value, sizeof value);
}

static void put_string(struct buffer *out, const char *text)
{
    put_u64(out, strlen(text));
    put(out, text, strlen(text));
}

static void put_key(struct tiny_gguf *gguf, const char *key, uint32_t type)
{
    put_string(&gguf->keys, key);
    put_u32(&gguf->keys, type);
    gguf->n_keys++;
}

void tiny_u32(struct tiny_gguf *gguf, const char *key, uint32_t value)
{
    put_key(gguf, key, 4);
    put_u32(&gguf->keys, value);
}

void tiny_f32(struct tiny_gguf *gguf, const char *key, float value)
{
    put_key(gguf, key, 6);
    put(&gguf->keys, &value, sizeof value);
}

void tiny_string(struct tiny_gguf *gguf, const char *key, const char *value)
{
    put_key(gguf, key, 8);
    put_string(&gguf->keys, value);
}

void tiny_strings(struct tiny_gguf *gguf, const char *key, const struct view *values, size_t n)
{
    put_key(gguf, key, 9);
    put_u32(&gguf->keys, 8);
    put_u64(&gguf->keys, n);
    for (size_t i = 0; i < n; i++) {
        put_u64(&gguf->keys, values[i].size);
        put(&gguf->keys, values[i].data, values[i].size);
    }
}

void tiny_i32s(struct tiny_gguf *gguf, const char *key, const int32_t *values, size_t n)
{
    put_key(gguf, key, 9);
    put_u32(&gguf->keys, 5);
    put_u64(&gguf->keys, n);
    put(&gguf->keys, values, n * sizeof *values);
}

static void align(struct buffer *out)
{
    static const char zeros[32];
    put(out, zeros, (32 - out->size % 32) % 32);
}

/* The number of a format in the file. */
static uint32_t format_number(enum quant_format format)
{
    switch (format) {
    case QUANT_F32:
        return 0;
    case QUANT_Q4_0:
        return 2;
    case QUANT_Q8_0:
        return 8;
    case QUANT_Q4_K:
        return 12;
    case QUANT_Q6_K:
        return 14;
    default:
        abort();
    }
}

void tiny_tensor_as(struct tiny_gguf *gguf, enum quant_format format, const char *name,
                    uint64_t n_cols, uint64_t n_rows, uint64_t n_matrices)
{
    if (gguf->left_out != NULL && strcmp(name, gguf->left_out) == 0)
        return;
    uint64_t seed = 14695981039346656037u; /* FNV-1a of the name */
    for (const char *c = name; *c != '\0'; c++)
        seed = (seed ^ (unsigned char)*c) * 1099511628211u;
    put_string(&gguf->tensors, name);
    put_u32(&gguf->tensors, n_matrices > 1 ? 3 : n_rows > 1 ? 2 : 1);
    put_u64(&gguf->tensors, n_cols);
    if (n_rows > 1 || n_matrices > 1)
        put_u64(&gguf->tensors, n_rows);
    if (n_matrices > 1)
        put_u64(&gguf->tensors, n_matrices);
    put_u32(&gguf->tensors, format_number(format));
    put_u64(&gguf->tensors, gguf->data.size);
    size_t bytes = quant_row_bytes(format, n_cols);
    float *row = malloc(n_cols * sizeof *row);
    void *encoded = malloc(bytes);
    if (row == NULL || encoded == NULL)
        abort();
    size_t first = gguf->data.size;
    for (uint64_t r = 0; r < n_rows * n_matrices; r++) {
        if (format != QUANT_F32 && r >= DISTINCT_ROWS) {
            memcpy(encoded, gguf->data.data + first + r % DISTINCT_ROWS * bytes, bytes);
            put(&gguf->data, encoded, bytes);
            continue;
        }
        for (uint64_t c = 0; c < n_cols; c++)
            row[c] = (float)(rng_uniform(seed, r * n_cols + c, 0) - 0.5) * 0.5f;
        quant_encode(format, row, encoded, n_cols, NULL);
        put(&gguf->data, encoded, bytes);
    }
    free(row);
    free(encoded);
    align(&gguf->data);
    gguf->n_tensors++;
}

void tiny_tensor(struct tiny_gguf *gguf, const char *name, uint64_t n_cols, uint64_t n_rows,
                 uint64_t n_matrices)
{
    tiny_tensor_as(gguf, QUANT_F32, name, n_cols, n_rows, n_matrices);
}

void tiny_llama_keys(struct tiny_gguf *gguf, uint32_t n_heads)
{
    tiny_string(gguf, "general.architecture", "llama");
    tiny_u32(gguf, "llama.block_count", TINY_LAYERS);
    tiny_u32(gguf, "llama.embedding_length", TINY_EMBD);
    tiny_u32(gguf, "llama.context_length", 4096);
    tiny_u32(gguf, "llama.attention.head_count", n_heads);
    tiny_u32(gguf, "llama.attention.head_count_kv", n_heads / 2);
    tiny_f32(gguf, "llama.attention.layer_norm_rms_epsilon", 1e-5f);
}

void tiny_llama_tensors(struct tiny_gguf *gguf)
{
    tiny_llama_tensors_as(gguf, QUANT_F32, 96);
}

void tiny_llama_tensors_as(struct tiny_gguf *gguf, enum quant_format format, uint64_t n_ff)
{
    const struct {
        const char *suffix;
        uint64_t n_cols, n_rows;
    } tensors[] = {
        {"attn_norm", TINY_EMBD, 1},
        {"attn_q", TINY_EMBD, TINY_EMBD},
        {"attn_k", TINY_EMBD, 32},
        {"attn_v", TINY_EMBD, 32},
        {"attn_output", TINY_EMBD, TINY_EMBD},
        {"ffn_norm", TINY_EMBD, 1},
        {"ffn_gate", TINY_EMBD, n_ff},
        {"ffn_up", TINY_EMBD, n_ff},
        {"ffn_down", n_ff, TINY_EMBD},
    };
    tiny_tensor(gguf, "token_embd.weight", TINY_EMBD, TINY_VOCAB, 1);
    tiny_tensor(gguf, "output_norm.weight", TINY_EMBD, 1, 1);
    for (int layer = 0; layer < TINY_LAYERS; layer++)
        for (size_t i = 0; i < ARRAY_COUNT(tensors); i++) {
            char name[64];
            snprintf(name, sizeof name, "blk.%d.%s.weight", layer, tensors[i].suffix);
            tiny_tensor_as(gguf, tensors[i].n_rows > 1 ? format : QUANT_F32, name,
                           tensors[i].n_cols, tensors[i].n_rows, 1);
        }
}

void tiny_write(struct tiny_gguf *gguf, char path[64])
{
    struct buffer file = {0};
    put(&file, "GGUF", 4);
    put_u32(&file, 3);
    put_u64(&file, gguf->n_tensors);
    put_u64(&file, gguf->n_keys);
    put(&file, gguf->keys.data, gguf->keys.size);
    put(&file, gguf->tensors.data, gguf->tensors.size);
    align(&file);
    put(&file, gguf->data.data, gguf->data.size);

    strcpy(path, "/tmp/consort-tiny-XXXXXX");
    int fd = mkstemp(path);
    if (fd < 0 || write(fd, file.data, file.size) != (ssize_t)file.size || close(fd) != 0)
        abort();
    buffer_free(&file);
    buffer_free(&gguf->keys);
    buffer_free(&gguf->tensors);
    buffer_free(&gguf->data);
}
