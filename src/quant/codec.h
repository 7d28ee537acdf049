/* The functions behind the table of formats (internal to src/quant).
 *
 * Decoding handles one block; of F32, F16 and BF16, whose blocks are single numbers, any n of them.
 * Encoding handles a row of n numbers. Blocks may lie at any address. decode_* and encode_* have
 * the meaning of quant_decode and quant_encode. */
#ifndef CONSORT_QUANT_CODEC_H
#define CONSORT_QUANT_CODEC_H

#include <stddef.h>
#include <stdint.h>

typedef void decode_fn(const void *src, float *dst, size_t n);
typedef void encode_fn(const float *src, void *dst, size_t n, const float *importance);

decode_fn decode_f32, decode_f16, decode_bf16;

#define UNPACKED_FORMAT_LIST(X)                                                                    \
    X(q4_0)                                                                                        \
    X(q4_1)                                                                                        \
    X(q5_0)                                                                                        \
    X(q5_1)                                                                                        \
    X(q8_0)                                                                                        \
    X(q2_k)                                                                                        \
    X(q3_k)                                                                                        \
    X(q4_k)                                                                                        \
    X(q5_k)                                                                                        \
    X(q6_k)                                                                                        \
    X(iq4_nl)                                                                                      \
    X(iq4_xs)                                                                                      \
    X(tq1_0)                                                                                       \
    X(tq2_0)                                                                                       \
    X(mxfp4)

/* A block as code[block_len] and, per 16 numbers, scale and min: x = scale * code - min. */
typedef void unpack_block_fn(const void *src, int8_t *code, float *scale, float *min);

#define DECLARE_FORMAT(name)                                                                       \
    decode_fn decode_##name;                                                                       \
    unpack_block_fn unpack_block_##name;
UNPACKED_FORMAT_LIST(DECLARE_FORMAT)
#undef DECLARE_FORMAT

encode_fn encode_f32, encode_f16, encode_bf16;
encode_fn encode_q4_0, encode_q4_1, encode_q5_0, encode_q5_1, encode_q8_0;
encode_fn encode_q2_k, encode_q3_k, encode_q4_k, encode_q5_k, encode_q6_k;
encode_fn encode_iq4_nl, encode_iq4_xs, encode_mxfp4;

#endif
