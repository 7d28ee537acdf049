/* Tiny random models written by hand, byte for byte, so that a test can also make wrong ones. */
#ifndef CONSORT_TESTS_TINY_MODEL_H
#define CONSORT_TESTS_TINY_MODEL_H

#include "base/base.h"
#include "quant/quant.h"

struct tiny_gguf {
    struct buffer keys, tensors, data;
    uint64_t n_keys, n_tensors;
    const char *left_out; /* the name of a tensor that tiny_tensor does not write, or NULL */
};

void tiny_u32(struct tiny_gguf *gguf, const char *key, uint32_t value);
void tiny_f32(struct tiny_gguf *gguf, const char *key, float value);
void tiny_string(struct tiny_gguf *gguf, const char *key, const char *value);
void tiny_strings(struct tiny_gguf *gguf, const char *key, const struct view *values, size_t n);
void tiny_i32s(struct tiny_gguf *gguf, const char *key, const int32_t *values, size_t n);
/* F32, n_cols x n_rows x n_matrices, seeded by its name. */
void tiny_tensor(struct tiny_gguf *gguf, const char *name, uint64_t n_cols, uint64_t n_rows,
                 uint64_t n_matrices);
/* The same numbers in another format that can be encoded. Encoding takes long, so that rows repeat
 * after a number of them that divides nothing. */
void tiny_tensor_as(struct tiny_gguf *gguf, enum quant_format format, const char *name,
                    uint64_t n_cols, uint64_t n_rows, uint64_t n_matrices);

/* The keys and tensors of a llama of 2 layers; half as many KV heads as heads, all heads together
 * TINY_EMBD numbers. */
#define TINY_EMBD 64
#define TINY_VOCAB 96
#define TINY_LAYERS 2
void tiny_llama_keys(struct tiny_gguf *gguf, uint32_t n_heads);
void tiny_llama_tensors(struct tiny_gguf *gguf);
/* With matrices of the layers in another format, and an FFN of this width. */
void tiny_llama_tensors_as(struct tiny_gguf *gguf, enum quant_format format, uint64_t n_ff);

/* Writes the file under a temporary name, which goes to path, and frees gguf. */
void tiny_write(struct tiny_gguf *gguf, char path[64]);

#endif
