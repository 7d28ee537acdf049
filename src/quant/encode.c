/* Encoding rows. */
#include "quant/codec.h"

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "base/base.h"
#include "quant/blocks.h"
#include "quant/search.h"

void encode_f32(const float *src, void *dst, size_t n, const float *importance)
{
    (void)importance;
    memcpy(dst, src, n * sizeof *src);
}

/* n numbers of 16 bits. Finite numbers too large for them become the largest, not infinity, which
 * would make every product with the row infinite or a NaN. */
static void encode_halves(const float *src, uint8_t *dst, size_t n, uint16_t (*convert)(float),
                          uint16_t infinity)
{
    for (size_t i = 0; i < n; i++) {
        uint16_t bits = convert(src[i]);
        if ((bits & 0x7FFF) == infinity && isfinite(src[i]))
            bits--;
        memcpy(dst + 2 * i, &bits, sizeof bits);
    }
}

void encode_f16(const float *src, void *dst, size_t n, const float *importance)
{
    (void)importance;
    encode_halves(src, dst, n, block_f32_to_f16, 0x7C00);
}

void encode_bf16(const float *src, void *dst, size_t n, const float *importance)
{
    (void)importance;
    encode_halves(src, dst, n, block_f32_to_bf16, 0x7F80);
}

/* ---- Packing --------------------------------------------------------------------------------- */

static void pack_nibbles(const uint8_t *q, int n_bytes, uint8_t *bytes)
{
    for (int i = 0; i < n_bytes; i++)
        bytes[i] = (uint8_t)((q[i] & 15) | (q[n_bytes + i] & 15) << 4);
}

/* bytes[64]: two bits of q[256] from bit `shift` up, in the order of unpack_pairs. */
static void pack_pairs(const uint8_t *q, int shift, uint8_t *bytes)
{
    memset(bytes, 0, SUPER_LEN / 4);
    for (int i = 0; i < SUPER_LEN; i++)
        bytes[i / 128 * 32 + i % 32] |= (uint8_t)((q[i] >> shift & 3) << (i / 32 % 4 * 2));
}

static void pack_fifth_bits(const uint8_t *q, uint8_t qh[4])
{
    memset(qh, 0, 4);
    for (int i = 0; i < BLOCK_LEN; i++)
        qh[i / 8] |= (uint8_t)((q[i] >> 4 & 1) << i % 8);
}

/* ---- Blocks ---------------------------------------------------------------------------------- */

/* Writes what the search found for one block. */
typedef void pack_fn(const struct search_result *r, void *dst);

static void encode_blocks(const struct search_shape *shape, pack_fn *pack, size_t block_bytes,
                          const float *src, uint8_t *dst, size_t n, const float *importance)
{
    struct search_result r[SEARCH_LANES];
    size_t block_len = (size_t)(shape->group_len * shape->n_groups);
    size_t most = SEARCH_LANES / (size_t)shape->n_groups;
    for (size_t n_left = n / block_len; n_left > 0;) {
        size_t n_blocks = MIN(n_left, most);
        search_blocks(shape, src, importance, n_blocks, r);
        for (size_t b = 0; b < n_blocks; b++, dst += block_bytes)
            pack(&r[b], dst);
        n_left -= n_blocks;
        src += n_blocks * block_len;
        importance = importance != NULL ? importance + n_blocks * block_len : NULL;
    }
}

/* encode_NAME for a format whose blocks are packed by `pack`; the rest is its shape. */
#define ENCODE(name, pack, ...)                                                                    \
    void encode_##name(const float *src, void *dst, size_t n, const float *importance)             \
    {                                                                                              \
        static const struct search_shape shape = {__VA_ARGS__};                                    \
        encode_blocks(&shape, pack, sizeof(struct block_##name), src, dst, n, importance);         \
    }

/* ---- Small blocks: one group whose scale is d ------------------------------------------------ */

#define SMALL_SHAPE(low, high)                                                                     \
    .group_len = BLOCK_LEN, .n_groups = 1, .scale_low = 1, .scale_high = 1, .level_low = low,      \
    .level_high = high

/* A block of d, then what the shape asks for: m where there are minima, fifth bits where there are
 * more than 16 levels; nibbles last. */
static void pack_small(const struct search_result *r, void *dst)
{
    uint8_t *out = dst;
    memcpy(out, &r->d, sizeof r->d);
    out += sizeof r->d;
    if (r->shape->min_high > 0) {
        uint16_t m = r->dmin ^ 0x8000;
        memcpy(out, &m, sizeof m);
        out += sizeof m;
    }
    if (r->shape->level_high - r->shape->level_low > 15) {
        pack_fifth_bits(r->q, out);
        out += 4;
    }
    pack_nibbles(r->q, 16, out);
}

ENCODE(q4_0, pack_small, SMALL_SHAPE(-8, 7))
ENCODE(q4_1, pack_small, SMALL_SHAPE(0, 15), .min_low = 1, .min_high = 1)
ENCODE(q5_0, pack_small, SMALL_SHAPE(-16, 15))
ENCODE(q5_1, pack_small, SMALL_SHAPE(0, 31), .min_low = 1, .min_high = 1)
ENCODE(iq4_nl, pack_small, SMALL_SHAPE(0, 0), .table = block_iq4_table)

static void pack_q8_0(const struct search_result *r, void *dst)
{
    struct block_q8_0 b = {.d = r->d};
    for (int i = 0; i < BLOCK_LEN; i++)
        b.qs[i] = (int8_t)(r->q[i] + r->shape->level_low);
    memcpy(dst, &b, sizeof b);
}

/* -128 is left out: some programs negate codes in eight bits. */
ENCODE(q8_0, pack_q8_0, SMALL_SHAPE(-127, 127))

/* The levels are searched in rising order; below zero their codes go the other way. */
static void pack_mxfp4(const struct search_result *r, void *dst)
{
    struct block_mxfp4 b = {.e = (uint8_t)(r->scale[0] + 128)};
    uint8_t q[BLOCK_LEN];
    for (int i = 0; i < BLOCK_LEN; i++)
        q[i] = (uint8_t)(r->q[i] < 7 ? 15 - r->q[i] : r->q[i] - 7);
    pack_nibbles(q, 16, b.qs);
    memcpy(dst, &b, sizeof b);
}

/* A larger power than 2^124 would make infinity of the largest level. */
void encode_mxfp4(const float *src, void *dst, size_t n, const float *importance)
{
    static const int8_t levels[SEARCH_TABLE_LEN] = {-12, -8, -6, -4, -3, -2, -1, 0,
                                                    1,   2,  3,  4,  6,  8,  12, 12};
    static const struct search_shape shape = {SMALL_SHAPE(0, 0), .table = levels};
    struct search_result r[SEARCH_LANES];
    struct block_mxfp4 *out = dst;
    for (size_t done = 0; done < n;) {
        size_t n_blocks = MIN((n - done) / BLOCK_LEN, SEARCH_LANES);
        search_powers(&shape, src + done, importance != NULL ? importance + done : NULL, n_blocks,
                      -128, 124, r);
        for (size_t b = 0; b < n_blocks; b++)
            pack_mxfp4(&r[b], out++);
        done += n_blocks * BLOCK_LEN;
    }
}

/* ---- Super-blocks ---------------------------------------------------------------------------- */

static void pack_q2_k(const struct search_result *r, void *dst)
{
    struct block_q2_k b;
    b.d = r->d;
    b.dmin = r->dmin;
    for (int g = 0; g < 16; g++)
        b.scales[g] = (uint8_t)(r->scale[g] | r->min[g] << 4);
    pack_pairs(r->q, 0, b.qs);
    memcpy(dst, &b, sizeof b);
}

ENCODE(q2_k, pack_q2_k, .group_len = 16, .n_groups = 16, .scale_high = 15, .min_high = 15,
       .level_high = 3)

static void pack_q3_k(const struct search_result *r, void *dst)
{
    struct block_q3_k b;
    memset(&b, 0, sizeof b);
    b.d = r->d;
    pack_pairs(r->q, 0, b.qs);
    for (int i = 0; i < SUPER_LEN; i++)
        b.hmask[i % 32] |= (uint8_t)((r->q[i] >> 2 & 1) << i / 32);
    for (int g = 0; g < 16; g++) {
        int scale = r->scale[g] + 32;
        b.scales[g % 8] |= (uint8_t)((scale & 15) << g / 8 * 4);
        b.scales[8 + g % 4] |= (uint8_t)((scale >> 4) << g / 4 * 2);
    }
    memcpy(dst, &b, sizeof b);
}

ENCODE(q3_k, pack_q3_k, .group_len = 16, .n_groups = 16, .scale_low = -32, .scale_high = 31,
       .level_low = -4, .level_high = 3)

/* The inverse of unpack_scales_mins. */
static void pack_scales_mins(const int *scale, const int *min, uint8_t packed[12])
{
    for (int i = 0; i < 4; i++) {
        packed[i] = (uint8_t)(scale[i] | scale[4 + i] >> 4 << 6);
        packed[4 + i] = (uint8_t)(min[i] | min[4 + i] >> 4 << 6);
        packed[8 + i] = (uint8_t)((scale[4 + i] & 15) | (min[4 + i] & 15) << 4);
    }
}

static void pack_q4_k(const struct search_result *r, void *dst)
{
    struct block_q4_k b;
    b.d = r->d;
    b.dmin = r->dmin;
    pack_scales_mins(r->scale, r->min, b.scales);
    for (int i = 0; i < SUPER_LEN; i += 64)
        pack_nibbles(r->q + i, 32, b.qs + i / 2);
    memcpy(dst, &b, sizeof b);
}

ENCODE(q4_k, pack_q4_k, .group_len = 32, .n_groups = 8, .scale_high = 63, .min_high = 63,
       .level_high = 15)

static void pack_q5_k(const struct search_result *r, void *dst)
{
    struct block_q5_k b;
    memset(&b, 0, sizeof b);
    b.d = r->d;
    b.dmin = r->dmin;
    pack_scales_mins(r->scale, r->min, b.scales);
    for (int i = 0; i < SUPER_LEN; i += 64)
        pack_nibbles(r->q + i, 32, b.qs + i / 2);
    for (int i = 0; i < SUPER_LEN; i++)
        b.qh[i % 32] |= (uint8_t)((r->q[i] >> 4 & 1) << i / 32);
    memcpy(dst, &b, sizeof b);
}

ENCODE(q5_k, pack_q5_k, .group_len = 32, .n_groups = 8, .scale_high = 63, .min_high = 63,
       .level_high = 31)

static void pack_q6_k(const struct search_result *r, void *dst)
{
    struct block_q6_k b;
    b.d = r->d;
    for (int g = 0; g < 16; g++)
        b.scales[g] = (int8_t)r->scale[g];
    pack_nibbles(r->q, 64, b.ql);
    pack_nibbles(r->q + 128, 64, b.ql + 64);
    pack_pairs(r->q, 4, b.qh);
    memcpy(dst, &b, sizeof b);
}

ENCODE(q6_k, pack_q6_k, .group_len = 16, .n_groups = 16, .scale_low = -128, .scale_high = 127,
       .level_low = -32, .level_high = 31)

static void pack_iq4_xs(const struct search_result *r, void *dst)
{
    struct block_iq4_xs b;
    memset(&b, 0, sizeof b);
    b.d = r->d;
    for (int g = 0; g < 8; g++) {
        int scale = r->scale[g] + 32;
        b.scales_l[g / 2] |= (uint8_t)((scale & 15) << g % 2 * 4);
        b.scales_h |= (uint16_t)((scale >> 4) << g * 2);
        pack_nibbles(r->q + 32 * g, 16, b.qs + 16 * g);
    }
    memcpy(dst, &b, sizeof b);
}

ENCODE(iq4_xs, pack_iq4_xs, .group_len = 32, .n_groups = 8, .scale_low = -32, .scale_high = 31,
       .table = block_iq4_table)

#undef ENCODE
