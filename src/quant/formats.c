/* The table of formats, and the number conversions and code books they share. */
#include "quant/quant.h"

#include <string.h>
#include <strings.h>

#include "quant/blocks.h"
#include "quant/codec.h"

#define SMALL BLOCK_LEN
#define SUPER SUPER_LEN

static const struct format {
    struct quant_info info;
    decode_fn *decode;
    encode_fn *encode;
} formats[QUANT_FORMAT_COUNT] = {
#define FORMAT(name, len, bytes, function)                                                         \
    [QUANT_##name] = {{#name, len, bytes, true}, decode_##function, encode_##function}
#define FORMAT_READ(name, len, bytes, function)                                                    \
    [QUANT_##name] = {{#name, len, bytes, false}, decode_##function, NULL}
    FORMAT(F32, 1, 4, f32),
    FORMAT(F16, 1, 2, f16),
    FORMAT(BF16, 1, 2, bf16),
    FORMAT(Q4_0, SMALL, sizeof(struct block_q4_0), q4_0),
    FORMAT(Q4_1, SMALL, sizeof(struct block_q4_1), q4_1),
    FORMAT(Q5_0, SMALL, sizeof(struct block_q5_0), q5_0),
    FORMAT(Q5_1, SMALL, sizeof(struct block_q5_1), q5_1),
    FORMAT(Q8_0, SMALL, sizeof(struct block_q8_0), q8_0),
    FORMAT(Q2_K, SUPER, sizeof(struct block_q2_k), q2_k),
    FORMAT(Q3_K, SUPER, sizeof(struct block_q3_k), q3_k),
    FORMAT(Q4_K, SUPER, sizeof(struct block_q4_k), q4_k),
    FORMAT(Q5_K, SUPER, sizeof(struct block_q5_k), q5_k),
    FORMAT(Q6_K, SUPER, sizeof(struct block_q6_k), q6_k),
    FORMAT(IQ4_NL, SMALL, sizeof(struct block_iq4_nl), iq4_nl),
    FORMAT(IQ4_XS, SUPER, sizeof(struct block_iq4_xs), iq4_xs),
    FORMAT_READ(TQ1_0, SUPER, sizeof(struct block_tq1_0), tq1_0),
    FORMAT_READ(TQ2_0, SUPER, sizeof(struct block_tq2_0), tq2_0),
    FORMAT(MXFP4, SMALL, sizeof(struct block_mxfp4), mxfp4),
#undef FORMAT
#undef FORMAT_READ
};

const int8_t block_iq4_table[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                    1,    13,   25,  38,  53,  69,  89,  113};
const int8_t block_e2m1_doubled[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

const struct quant_info *quant_info(enum quant_format format)
{
    return &formats[format].info;
}

bool quant_find(const char *name, enum quant_format *out)
{
    for (int i = 0; i < QUANT_FORMAT_COUNT; i++) {
        if (strcasecmp(name, formats[i].info.name) == 0) {
            *out = (enum quant_format)i;
            return true;
        }
    }
    return false;
}

size_t quant_row_bytes(enum quant_format format, size_t n_cols)
{
    return n_cols / formats[format].info.block_len * formats[format].info.block_bytes;
}

void quant_decode(enum quant_format format, const void *src, float *dst, size_t n_cols)
{
    const struct format *f = &formats[format];
    size_t step = f->info.block_len > 1 ? f->info.block_len : n_cols;
    const uint8_t *block = src;
    for (size_t i = 0; i < n_cols; i += step, block += f->info.block_bytes)
        f->decode(block, dst + i, step);
}

void quant_encode(enum quant_format format, const float *src, void *dst, size_t n_cols,
                  const float *importance)
{
    formats[format].encode(src, dst, n_cols, importance);
}

static float float_of_bits(uint32_t bits)
{
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static uint32_t bits_of_float(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

float block_f16_to_f32(uint16_t bits)
{
    uint32_t sign = (uint32_t)(bits & 0x8000) << 16, exponent = bits >> 10 & 31,
             mantissa = bits & 0x3FF;
    if (exponent == 31) /* infinity, or a NaN, which becomes quiet and keeps its payload */
        return float_of_bits(sign | 0x7F800000 | (mantissa ? 0x400000 | mantissa << 13 : 0));
    if (exponent == 0) { /* zero and the denormal numbers */
        float value = (float)mantissa * 0x1p-24f;
        return sign ? -value : value;
    }
    return float_of_bits(sign | (exponent + 112) << 23 | mantissa << 13);
}

uint16_t block_f32_to_f16(float value)
{
    uint32_t bits = bits_of_float(value), magnitude = bits & 0x7FFFFFFF;
    uint16_t sign = (uint16_t)(bits >> 16 & 0x8000);
    if (magnitude > 0x7F800000)
        return (uint16_t)(sign | 0x7E00 | (magnitude >> 13 & 0x1FF));
    if (magnitude >= 0x477FF000) /* 65520 and more round to infinity */
        return sign | 0x7C00;
    if (magnitude < 0x38800000) /* denormal: 0.5 has the unit in the last place that we round to */
        return (uint16_t)(sign | (bits_of_float(float_of_bits(magnitude) + 0.5f) - 0x3F000000));
    magnitude += 0xFFF + (magnitude >> 13 & 1);
    return (uint16_t)(sign | (magnitude - 0x38000000) >> 13);
}

float block_bf16_to_f32(uint16_t bits)
{
    return float_of_bits((uint32_t)bits << 16);
}

uint16_t block_f32_to_bf16(float value)
{
    uint32_t bits = bits_of_float(value);
    if ((bits & 0x7FFFFFFF) > 0x7F800000)
        return (uint16_t)(bits >> 16 | 0x40);
    return (uint16_t)((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}
