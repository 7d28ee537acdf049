/* Unpacking and decoding one block. A block becomes codes and, per 16 of them, a scale and a
 * minimum; a number is scale * code - minimum. The order of the float operations is part of the
 * formats: each scale and product is exact or rounded once, so the results are the same bits
 * everywhere. A block is copied before use because a file may place it at an odd address. */
#include "quant/codec.h"

#include <string.h>

#include "quant/blocks.h"

void decode_f32(const void *src, float *dst, size_t n)
{
    memcpy(dst, src, n * sizeof *dst);
}

/* n numbers of 16 bits. */
static void decode_halves(const uint8_t *src, float *dst, size_t n, float (*convert)(uint16_t))
{
    for (size_t i = 0; i < n; i++) {
        uint16_t bits;
        memcpy(&bits, src + 2 * i, sizeof bits);
        dst[i] = convert(bits);
    }
}

void decode_f16(const void *src, float *dst, size_t n)
{
    decode_halves(src, dst, n, block_f16_to_f32);
}

void decode_bf16(const void *src, float *dst, size_t n)
{
    decode_halves(src, dst, n, block_bf16_to_f32);
}

/* code[2 n_bytes]: the low nibbles of n_bytes bytes, then the high ones. */
static void unpack_nibbles(const uint8_t *bytes, int n_bytes, int8_t *code)
{
    for (int i = 0; i < n_bytes; i++) {
        code[i] = bytes[i] & 15;
        code[n_bytes + i] = bytes[i] >> 4;
    }
}

/* code[256]: per 32 bytes, four runs of 32 codes of two bits, from the lowest bits up. */
static void unpack_pairs(const uint8_t bytes[64], int8_t *code)
{
    for (int i = 0; i < SUPER_LEN; i++)
        code[i] = bytes[i / 128 * 32 + i % 32] >> (i / 32 % 4 * 2) & 3;
}

static void centre(int8_t *code, int n, int middle)
{
    for (int i = 0; i < n; i++)
        code[i] = (int8_t)(code[i] - middle);
}

static void look_up(int8_t *code, int n, const int8_t table[16])
{
    for (int i = 0; i < n; i++)
        code[i] = table[code[i]];
}

/* The same scale and minimum for n_groups groups of 16. */
static void fill_groups(float *scale, float *min, int n_groups, float scale_value, float min_value)
{
    for (int g = 0; g < n_groups; g++) {
        scale[g] = scale_value;
        min[g] = min_value;
    }
}

void unpack_block_q4_0(const void *src, int8_t *code, float *scale, float *min)
{
    struct block_q4_0 b;
    memcpy(&b, src, sizeof b);
    unpack_nibbles(b.qs, 16, code);
    centre(code, BLOCK_LEN, 8);
    fill_groups(scale, min, 2, block_f16_to_f32(b.d), 0);
}

void unpack_block_q4_1(const void *src, int8_t *code, float *scale, float *min)
{
    struct block_q4_1 b;
    memcpy(&b, src, sizeof b);
    unpack_nibbles(b.qs, 16, code);
    fill_groups(scale, min, 2, block_f16_to_f32(b.d), -block_f16_to_f32(b.m));
}

static void add_fifth_bits(const uint8_t qh[4], int8_t *code)
{
    for (int i = 0; i < BLOCK_LEN; i++)
        code[i] |= (int8_t)((qh[i / 8] >> i % 8 & 1) << 4);
}

void unpack_block_q5_0(const void *src, int8_t *code, float *scale, float *min)
{
    struct block_q5_0 b;
    memcpy(&b, src, sizeof b);
    unpack_nibbles(b.qs, 16, code);
    add_fifth_bits(b.qh, code);
    centre(code, BLOCK_LEN, 16);
    fill_groups(scale, min, 2, block_f16_to_f32(b.d), 0);
}

void unpack_block_q5_1(const void *src, int8_t *code, float *scale, float *min)
{
    struct block_q5_1 b;
    memcpy(&b, src, sizeof b);
    unpack_nibbles(b.qs, 16, code);
    add_fifth_bits(b.qh, code);
    fill_groups(scale, min, 2, block_f16_to_f32(b.d), -block_f16_to_f32(b.m));
}

void unpack_block_q8_0(const void *src, int8_t *code, float *scale, float *min)
{
    struct block_q8_0 b;
    memcpy(&b, src, sizeof b);
    memcpy(code, b.qs, sizeof b.qs);
    fill_groups(scale, min, 2, block_f16_to_f32(b.d), 0);
}

void unpack_block_q2_k(const void *src, int8_t *code, float *scale, float *min)
{
    struct block_q2_k b;
    memcpy(&b, src, sizeof b);
    unpack_pairs(b.qs, code);
    float d = block_f16_to_f32(b.d), dmin = block_f16_to_f32(b.dmin);
    for (int g = 0; g < SUPER_LEN / 16; g++) {
        scale[g] = d * (float)(b.scales[g] & 15);
        min[g] = dmin * (float)(b.scales[g] >> 4);
    }
}

void unpack_block_q3_k(const void *src, int8_t *code, float *scale, float *min)
{
    struct block_q3_k b;
    memcpy(&b, src, sizeof b);
    unpack_pairs(b.qs, code);
    for (int i = 0; i < SUPER_LEN; i++)
        code[i] |= (int8_t)((b.hmask[i % 32] >> i / 32 & 1) << 2);
    centre(code, SUPER_LEN, 4);
    float d = block_f16_to_f32(b.d);
    for (int g = 0; g < SUPER_LEN / 16; g++) {
        /* Scale g: four low bits in nibble g / 8 of byte g % 8, two high ones in bytes 8..11. */
        int low = b.scales[g % 8] >> g / 8 * 4 & 15, high = b.scales[8 + g % 4] >> g / 4 * 2 & 3;
        scale[g] = d * (float)((low | high << 4) - 32);
        min[g] = 0;
    }
}

/* Q4_K, Q5_K: eight scales and eight minima of six bits. Bytes 0..3 hold scales 0..3, bytes 4..7
 * minima 0..3; their two highest bits complete the nibbles of bytes 8..11, scales 4..7 low and
 * minima 4..7 high. */
static void unpack_scales_mins(const uint8_t packed[12], uint16_t d, uint16_t dmin, float *scale,
                               float *min)
{
    float by = block_f16_to_f32(d), min_by = block_f16_to_f32(dmin);
    for (int i = 0; i < 4; i++) {
        int s = packed[i], m = packed[4 + i], low = packed[8 + i];
        fill_groups(scale + 2 * i, min + 2 * i, 2, by * (float)(s & 63), min_by * (float)(m & 63));
        fill_groups(scale + 8 + 2 * i, min + 8 + 2 * i, 2, by * (float)((low & 15) | s >> 6 << 4),
                    min_by * (float)(low >> 4 | m >> 6 << 4));
    }
}

void unpack_block_q4_k(const void *src, int8_t *code, float *scale, float *min)
{
    struct block_q4_k b;
    memcpy(&b, src, sizeof b);
    for (int i = 0; i < SUPER_LEN; i += 64)
        unpack_nibbles(b.qs + i / 2, 32, code + i);
    unpack_scales_mins(b.scales, b.d, b.dmin, scale, min);
}

void unpack_block_q5_k(const void *src, int8_t *code, float *scale, float *min)
{
    struct block_q5_k b;
    memcpy(&b, src, sizeof b);
    for (int i = 0; i < SUPER_LEN; i += 64)
        unpack_nibbles(b.qs + i / 2, 32, code + i);
    for (int i = 0; i < SUPER_LEN; i++)
        code[i] |= (int8_t)((b.qh[i % 32] >> i / 32 & 1) << 4);
    unpack_scales_mins(b.scales, b.d, b.dmin, scale, min);
}

void unpack_block_q6_k(const void *src, int8_t *code, float *scale, float *min)
{
    struct block_q6_k b;
    int8_t high[SUPER_LEN];
    memcpy(&b, src, sizeof b);
    unpack_nibbles(b.ql, 64, code);
    unpack_nibbles(b.ql + 64, 64, code + 128);
    unpack_pairs(b.qh, high);
    for (int i = 0; i < SUPER_LEN; i++)
        code[i] |= (int8_t)(high[i] << 4);
    centre(code, SUPER_LEN, 32);
    float d = block_f16_to_f32(b.d);
    for (int g = 0; g < SUPER_LEN / 16; g++)
        fill_groups(scale + g, min + g, 1, d * (float)b.scales[g], 0);
}

void unpack_block_iq4_nl(const void *src, int8_t *code, float *scale, float *min)
{
    struct block_iq4_nl b;
    memcpy(&b, src, sizeof b);
    unpack_nibbles(b.qs, 16, code);
    look_up(code, BLOCK_LEN, block_iq4_table);
    fill_groups(scale, min, 2, block_f16_to_f32(b.d), 0);
}

void unpack_block_iq4_xs(const void *src, int8_t *code, float *scale, float *min)
{
    struct block_iq4_xs b;
    memcpy(&b, src, sizeof b);
    float d = block_f16_to_f32(b.d);
    for (int i = 0; i < SUPER_LEN / BLOCK_LEN; i++) {
        int low = b.scales_l[i / 2] >> i % 2 * 4 & 15, high = b.scales_h >> i * 2 & 3;
        unpack_nibbles(b.qs + 16 * i, 16, code + BLOCK_LEN * i);
        fill_groups(scale + 2 * i, min + 2 * i, 2, d * (float)((low | high << 4) - 32), 0);
    }
    look_up(code, SUPER_LEN, block_iq4_table);
}

/* code[n_digits n_bytes] = digit - 1, first the leading digit of every byte, then the second, ...
 * A byte holds the fraction 0.abcde in base three times 256, rounded up: multiplying it by three
 * moves the next digit above the eighth bit. */
static void unpack_ternary(const uint8_t *bytes, int n_bytes, int n_digits, int8_t *code)
{
    for (int i = 0; i < n_bytes; i++) {
        unsigned fraction = bytes[i];
        for (int digit = 0; digit < n_digits; digit++) {
            fraction = (fraction & 255) * 3;
            code[digit * n_bytes + i] = (int8_t)((int)(fraction >> 8) - 1);
        }
    }
}

void unpack_block_tq1_0(const void *src, int8_t *code, float *scale, float *min)
{
    struct block_tq1_0 b;
    memcpy(&b, src, sizeof b);
    unpack_ternary(b.qs, 32, 5, code);
    unpack_ternary(b.qs + 32, 16, 5, code + 160);
    unpack_ternary(b.qh, 4, 4, code + 240);
    fill_groups(scale, min, SUPER_LEN / 16, block_f16_to_f32(b.d), 0);
}

void unpack_block_tq2_0(const void *src, int8_t *code, float *scale, float *min)
{
    struct block_tq2_0 b;
    memcpy(&b, src, sizeof b);
    unpack_pairs(b.qs, code);
    centre(code, SUPER_LEN, 1);
    fill_groups(scale, min, SUPER_LEN / 16, block_f16_to_f32(b.d), 0);
}

/* 2^(e - 128), the scale of the doubled numbers, for every byte e: GGML files give 255, a NaN in
 * the OCP specification, its plain value. */
static float mxfp4_scale(uint8_t e)
{
    uint32_t bits = e < 2 ? 0x00200000u << e : (uint32_t)(e - 1) << 23;
    float scale;
    memcpy(&scale, &bits, sizeof scale);
    return scale;
}

void unpack_block_mxfp4(const void *src, int8_t *code, float *scale, float *min)
{
    struct block_mxfp4 b;
    memcpy(&b, src, sizeof b);
    unpack_nibbles(b.qs, 16, code);
    look_up(code, BLOCK_LEN, block_e2m1_doubled);
    fill_groups(scale, min, 2, mxfp4_scale(b.e), 0);
}

#define DEFINE_DECODE(name)                                                                        \
    void decode_##name(const void *src, float *dst, size_t n)                                      \
    {                                                                                              \
        int8_t code[SUPER_LEN];                                                                    \
        float scale[SUPER_LEN / 16], min[SUPER_LEN / 16];                                          \
        unpack_block_##name(src, code, scale, min);                                                \
        for (size_t i = 0; i < n; i++)                                                             \
            dst[i] = scale[i / 16] * (float)code[i] - min[i / 16];                                 \
    }
UNPACKED_FORMAT_LIST(DEFINE_DECODE)
#undef DEFINE_DECODE
