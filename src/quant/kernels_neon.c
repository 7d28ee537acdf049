/* NEON with dot products (ARMv8.2): a vector holds the 16 codes of one group. */
#include "quant/kernels.h"

#include <arm_neon.h>

#include "quant/kernels_scales.h"

/* ---- Sixteen float lanes --------------------------------------------------------------------- */

typedef struct {
    float32x4_t v[4];
} lanes;

INLINE lanes lanes_set(float value)
{
    float32x4_t four = vdupq_n_f32(value);
    return (lanes){{four, four, four, four}};
}

INLINE lanes lanes_zero(void)
{
    return lanes_set(0);
}

INLINE lanes lanes_load(const float *from)
{
    return (lanes){
        {vld1q_f32(from), vld1q_f32(from + 4), vld1q_f32(from + 8), vld1q_f32(from + 12)}};
}

INLINE void lanes_store(float *to, lanes a)
{
    for (int i = 0; i < 4; i++)
        vst1q_f32(to + 4 * i, a.v[i]);
}

INLINE lanes lanes_add(lanes a, lanes b)
{
    for (int i = 0; i < 4; i++)
        a.v[i] = vaddq_f32(a.v[i], b.v[i]);
    return a;
}

INLINE lanes lanes_sub(lanes a, lanes b)
{
    for (int i = 0; i < 4; i++)
        a.v[i] = vsubq_f32(a.v[i], b.v[i]);
    return a;
}

INLINE lanes lanes_fma(lanes a, lanes b, lanes c)
{
    for (int i = 0; i < 4; i++)
        c.v[i] = vfmaq_f32(c.v[i], a.v[i], b.v[i]);
    return c;
}

INLINE lanes lanes_mul(lanes a, lanes b)
{
    for (int i = 0; i < 4; i++)
        a.v[i] = vmulq_f32(a.v[i], b.v[i]);
    return a;
}

INLINE lanes lanes_div(lanes a, lanes b)
{
    for (int i = 0; i < 4; i++)
        a.v[i] = vdivq_f32(a.v[i], b.v[i]);
    return a;
}

INLINE lanes lanes_max(lanes a, lanes b)
{
    for (int i = 0; i < 4; i++)
        a.v[i] = vmaxq_f32(a.v[i], b.v[i]);
    return a;
}

INLINE lanes lanes_min(lanes a, lanes b)
{
    for (int i = 0; i < 4; i++)
        a.v[i] = vminq_f32(a.v[i], b.v[i]);
    return a;
}

INLINE lanes lanes_pick_less(lanes a, lanes b, lanes x, lanes y)
{
    for (int i = 0; i < 4; i++)
        y.v[i] = vbslq_f32(vcltq_f32(a.v[i], b.v[i]), x.v[i], y.v[i]);
    return y;
}

INLINE lanes lanes_round(lanes a)
{
    for (int i = 0; i < 4; i++)
        a.v[i] = vrndnq_f32(a.v[i]);
    return a;
}

INLINE lanes lanes_power(lanes a)
{
    for (int i = 0; i < 4; i++) {
        int32x4_t exponent = vaddq_s32(vcvtq_s32_f32(a.v[i]), vdupq_n_s32(127));
        a.v[i] = vreinterpretq_f32_s32(vshlq_n_s32(exponent, 23));
    }
    return a;
}

INLINE float lanes_sum(lanes a)
{
    float32x4_t four = vaddq_f32(vaddq_f32(a.v[0], a.v[2]), vaddq_f32(a.v[1], a.v[3]));
    float32x2_t two = vadd_f32(vget_low_f32(four), vget_high_f32(four));
    return vget_lane_f32(two, 0) + vget_lane_f32(two, 1);
}

INLINE float lanes_highest(lanes a)
{
    return vmaxvq_f32(vmaxq_f32(vmaxq_f32(a.v[0], a.v[1]), vmaxq_f32(a.v[2], a.v[3])));
}

INLINE void lanes_turn(lanes v[16])
{
    lanes turned[16];
    for (int r = 0; r < 4; r++)
        for (int c = 0; c < 4; c++) { /* four times four */
            const lanes *from = v + 4 * r;
            float32x4x2_t a = vtrnq_f32(from[0].v[c], from[1].v[c]);
            float32x4x2_t b = vtrnq_f32(from[2].v[c], from[3].v[c]);
            for (int i = 0; i < 2; i++) {
                turned[4 * c + i].v[r] =
                    vcombine_f32(vget_low_f32(a.val[i]), vget_low_f32(b.val[i]));
                turned[4 * c + 2 + i].v[r] =
                    vcombine_f32(vget_high_f32(a.val[i]), vget_high_f32(b.val[i]));
            }
        }
    memcpy(v, turned, sizeof turned);
}

#define ADD_INPUTS 2
#define ADD_UNITS 1

/* ---- Units ---------------------------------------------------------------------------------- */

struct unit {
    int8x16_t code[UNIT_GROUPS]; /* with their sign, unless the format has minima */
    lanes scale, min;            /* by UNIT_LANE */
};

#define STRIP_ROWS 1
#define TILE_STRIPS 2
#define TILE_INPUTS 4
#define PARTIAL_VECTORS(centre) 8

/* Even blocks, then odd ones. */
typedef struct {
    float32x4_t v[2];
} sums;
typedef struct {
    int32x4_t v[2];
} ints;
typedef ints partial;
typedef struct {
    int8x16_t v[2];
} quads;

struct strip {
    quads code[8];
    sums scale[2], min[2];
};

INLINE int8x16_t low_pairs(int32x4_t a, int32x4_t b)
{
    return vreinterpretq_s8_s64(vtrn1q_s64(vreinterpretq_s64_s32(a), vreinterpretq_s64_s32(b)));
}

INLINE int8x16_t high_pairs(int32x4_t a, int32x4_t b)
{
    return vreinterpretq_s8_s64(vtrn2q_s64(vreinterpretq_s64_s32(a), vreinterpretq_s64_s32(b)));
}

/* From vectors of a group each to four codes of each block: transposes the 4 x 4 groups of four
 * bytes of each half of the even and of the odd blocks. */
INLINE void turn(const int8x16_t group[UNIT_GROUPS], quads out[8])
{
    for (int p = 0; p < 2; p++)
        for (int h = 0; h < 2; h++) {
            int32x4_t q[4], a[2], b[2];
            for (int i = 0; i < 4; i++)
                q[i] = vreinterpretq_s32_s8(group[4 * i + 2 * p + h]);
            for (int i = 0; i < 2; i++) {
                a[i] = vtrn1q_s32(q[2 * i], q[2 * i + 1]);
                b[i] = vtrn2q_s32(q[2 * i], q[2 * i + 1]);
            }
            out[4 * h].v[p] = low_pairs(a[0], a[1]);
            out[4 * h + 1].v[p] = low_pairs(b[0], b[1]);
            out[4 * h + 2].v[p] = high_pairs(a[0], a[1]);
            out[4 * h + 3].v[p] = high_pairs(b[0], b[1]);
        }
}

INLINE void join(const struct unit *unit, struct strip *strip, int centre, size_t halves)
{
    turn(unit->code, strip->code);
    for (size_t h = 0; h < halves; h++)
        for (int p = 0; p < 2; p++) {
            strip->scale[h].v[p] = unit->scale.v[2 * h + p];
            if (centre == HAS_MIN)
                strip->min[h].v[p] = unit->min.v[2 * h + p];
        }
}

/* The same codes, hidden from the compiler, which would load them again for each input. */
INLINE quads keep(quads w)
{
    __asm__("" : "+w"(w.v[0]), "+w"(w.v[1]));
    return w;
}

INLINE quads input_codes(const struct packed_unit *x, size_t v)
{
    return (quads){{vld1q_s8(x->code + 32 * v), vld1q_s8(x->code + 32 * v + 16)}};
}

INLINE ints input_ints(const int32_t *from)
{
    return (ints){{vld1q_s32(from), vld1q_s32(from + 4)}};
}

INLINE partial partial_zero(void)
{
    return (partial){{vdupq_n_s32(0), vdupq_n_s32(0)}};
}

/* Codes have their sign. */
INLINE ints ints_begin(ints codes_sum, int centre)
{
    (void)codes_sum;
    (void)centre;
    return partial_zero();
}

INLINE partial partial_add(partial sum, quads w, quads x, int centre)
{
    (void)centre;
    for (int p = 0; p < 2; p++)
        sum.v[p] = vdotq_s32(sum.v[p], w.v[p], x.v[p]);
    return sum;
}

INLINE ints partial_end(ints total, partial sum)
{
    return (ints){{vaddq_s32(total.v[0], sum.v[0]), vaddq_s32(total.v[1], sum.v[1])}};
}

INLINE sums sums_zero(void)
{
    return (sums){{vdupq_n_f32(0), vdupq_n_f32(0)}};
}

INLINE sums sums_of(ints a)
{
    return (sums){{vcvtq_f32_s32(a.v[0]), vcvtq_f32_s32(a.v[1])}};
}

INLINE sums sums_mul(sums a, sums b)
{
    return (sums){{vmulq_f32(a.v[0], b.v[0]), vmulq_f32(a.v[1], b.v[1])}};
}

INLINE sums sums_fma(sums a, sums b, sums c)
{
    return (sums){{vfmaq_f32(c.v[0], a.v[0], b.v[0]), vfmaq_f32(c.v[1], a.v[1], b.v[1])}};
}

INLINE sums sums_fnma(sums a, sums b, sums c)
{
    return (sums){{vfmsq_f32(c.v[0], a.v[0], b.v[0]), vfmsq_f32(c.v[1], a.v[1], b.v[1])}};
}

INLINE sums input_scale(const struct packed_unit *x)
{
    return (sums){{vld1q_f32(x->scale), vld1q_f32(x->scale + 4)}};
}

INLINE void sums_totals(const sums *sum, size_t n, float *total)
{
    for (size_t s = 0; s < n; s++) {
        float32x4_t four = vaddq_f32(sum[s].v[0], sum[s].v[1]);
        float32x2_t two = vadd_f32(vget_low_f32(four), vget_high_f32(four));
        total[s] = vget_lane_f32(two, 0) + vget_lane_f32(two, 1);
    }
}

static void pack_unit(const float *x, struct packed_unit *out)
{
    int8x16_t code[UNIT_GROUPS];
    for (int b = 0; b < UNIT_BLOCKS; b++) {
        float32x4_t value[8], largest = vdupq_n_f32(0);
        for (int i = 0; i < 8; i++) {
            value[i] = vld1q_f32(x + 32 * b + 4 * i);
            largest = vmaxq_f32(largest, vabsq_f32(value[i]));
        }
        float range = vmaxvq_f32(largest);
        bool tiny = range < PACK_TINY;
        float inverse = tiny ? 0 : 127 / range;
        int32_t sum[2];
        for (int h = 0; h < 2; h++) {
            int16x4_t four[4];
            for (int i = 0; i < 4; i++)
                four[i] = vmovn_s32(vcvtnq_s32_f32(vmulq_n_f32(value[4 * h + i], inverse)));
            int8x8_t low = vmovn_s16(vcombine_s16(four[0], four[1]));
            int8x8_t high = vmovn_s16(vcombine_s16(four[2], four[3]));
            code[2 * b + h] = vcombine_s8(low, high);
            sum[h] = vaddlvq_s8(code[2 * b + h]);
        }
        int lane = BLOCK_LANE(b);
        out->scale[lane] = tiny ? 0 : range / 127;
        out->sum[0][lane] = sum[0] + sum[1];
        out->sum[1][lane] = sum[0];
        out->sum[2][lane] = sum[1];
    }
    quads turned[8];
    turn(code, turned);
    for (int v = 0; v < 8; v++)
        for (int p = 0; p < 2; p++)
            vst1q_s8(out->code + 32 * v + 16 * p, turned[v].v[p]);
}

/* ---- Scales --------------------------------------------------------------------------------- */

INLINE float32x4_t four_halves(uint16x4_t bits)
{
    return vcvt_f32_f16(vreinterpret_f16_u16(bits));
}

/* F16 fields of eight small blocks, two groups each. */
INLINE lanes block_halves(const void *src, size_t block_bytes, size_t offset)
{
    const uint8_t *from = (const uint8_t *)src + offset;
    uint16_t even[4], odd[4];
    for (size_t i = 0; i < 4; i++) {
        memcpy(&even[i], from + 2 * i * block_bytes, sizeof even[i]);
        memcpy(&odd[i], from + (2 * i + 1) * block_bytes, sizeof odd[i]);
    }
    float32x4_t a = four_halves(vld1_u16(even)), b = four_halves(vld1_u16(odd));
    return (lanes){{a, b, a, b}};
}

INLINE lanes negated(lanes a)
{
    for (int i = 0; i < 4; i++)
        a.v[i] = vnegq_f32(a.v[i]);
    return a;
}

INLINE float half(uint16_t bits)
{
    return vgetq_lane_f32(four_halves(vdup_n_u16(bits)), 0);
}

/* Sixteen whole numbers, signed bytes, times d. */
INLINE lanes scaled(float d, int8x16_t bytes)
{
    int16x8_t low = vmovl_s8(vget_low_s8(bytes)), high = vmovl_s8(vget_high_s8(bytes));
    return (lanes){{
        vmulq_n_f32(vcvtq_f32_s32(vmovl_s16(vget_low_s16(low))), d),
        vmulq_n_f32(vcvtq_f32_s32(vmovl_s16(vget_high_s16(low))), d),
        vmulq_n_f32(vcvtq_f32_s32(vmovl_s16(vget_low_s16(high))), d),
        vmulq_n_f32(vcvtq_f32_s32(vmovl_s16(vget_high_s16(high))), d),
    }};
}

/* Bytes by group to lanes. */
INLINE int8x16_t lanes_of_groups(int8x16_t bytes)
{
    static const uint8_t order[16] = {0, 4, 8, 12, 2, 6, 10, 14, 1, 5, 9, 13, 3, 7, 11, 15};
    return vqtbl1q_s8(bytes, vld1q_u8(order));
}

/* Bytes by block of 32, eight of them, to lanes. */
INLINE int8x16_t lanes_of_blocks(uint64_t bytes)
{
    static const uint8_t order[16] = {0, 2, 4, 6, 1, 3, 5, 7, 0, 2, 4, 6, 1, 3, 5, 7};
    return vqtbl1q_s8(vreinterpretq_s8_u64(vdupq_n_u64(bytes)), vld1q_u8(order));
}

/* ---- Codes ---------------------------------------------------------------------------------- */

INLINE uint8x16_t low_nibbles(const uint8_t *from)
{
    return vandq_u8(vld1q_u8(from), vdupq_n_u8(15));
}

INLINE uint8x16_t high_nibbles(const uint8_t *from)
{
    return vshrq_n_u8(vld1q_u8(from), 4);
}

/* Bits of every byte, moved down to bit 0. */
INLINE uint8x16_t bits_at(const uint8_t *from, int shift, int mask)
{
    return vandq_u8(vshlq_u8(vld1q_u8(from), vdupq_n_s8((int8_t)-shift)),
                    vdupq_n_u8((uint8_t)mask));
}

/* value where a bit of mask is set. */
INLINE uint8x16_t where_set(uint8x16_t bytes, uint8x16_t mask, int value)
{
    return vandq_u8(vtstq_u8(bytes, mask), vdupq_n_u8((uint8_t)value));
}

/* 16 where bit i of 16 is set. */
INLINE uint8x16_t fifth_bits(const uint8_t *from)
{
    uint8x16_t bytes = vcombine_u8(vdup_n_u8(from[0]), vdup_n_u8(from[1]));
    return where_set(bytes, vreinterpretq_u8_u64(vdupq_n_u64(0x8040201008040201)), 16);
}

/* Group g of 256 codes of two bits. */
INLINE uint8x16_t pairs(const uint8_t *from, int g)
{
    return bits_at(from + g / 8 * 32 + g % 2 * 16, g / 2 % 4 * 2, 3);
}

/* value where the bit of group g is set in 32 bytes. */
INLINE uint8x16_t byte_bits(const uint8_t *from, int g, int value)
{
    return where_set(vld1q_u8(from + g % 2 * 16), vdupq_n_u8((uint8_t)(1 << g / 2)), value);
}

INLINE int8x16_t as_signed(uint8x16_t code)
{
    return vreinterpretq_s8_u8(code);
}

INLINE int8x16_t centred(uint8x16_t code, int centre)
{
    return vsubq_s8(as_signed(code), vdupq_n_s8((int8_t)centre));
}

/* ---- Small blocks --------------------------------------------------------------------------- */

INLINE void unpack_q4_0(const void *src, struct unit *out)
{
    const struct block_q4_0 *b = src;
    out->scale = block_halves(src, sizeof *b, 0);
    for (int i = 0; i < 8; i++) {
        out->code[2 * i] = centred(low_nibbles(b[i].qs), 8);
        out->code[2 * i + 1] = centred(high_nibbles(b[i].qs), 8);
    }
}

INLINE void unpack_q4_1(const void *src, struct unit *out)
{
    const struct block_q4_1 *b = src;
    out->scale = block_halves(src, sizeof *b, 0);
    out->min = negated(block_halves(src, sizeof *b, 2));
    for (int i = 0; i < 8; i++) {
        out->code[2 * i] = as_signed(low_nibbles(b[i].qs));
        out->code[2 * i + 1] = as_signed(high_nibbles(b[i].qs));
    }
}

INLINE void unpack_q5_0(const void *src, struct unit *out)
{
    const struct block_q5_0 *b = src;
    out->scale = block_halves(src, sizeof *b, 0);
    for (int i = 0; i < 8; i++) {
        out->code[2 * i] = centred(vorrq_u8(low_nibbles(b[i].qs), fifth_bits(b[i].qh)), 16);
        out->code[2 * i + 1] =
            centred(vorrq_u8(high_nibbles(b[i].qs), fifth_bits(b[i].qh + 2)), 16);
    }
}

INLINE void unpack_q5_1(const void *src, struct unit *out)
{
    const struct block_q5_1 *b = src;
    out->scale = block_halves(src, sizeof *b, 0);
    out->min = negated(block_halves(src, sizeof *b, 2));
    for (int i = 0; i < 8; i++) {
        out->code[2 * i] = as_signed(vorrq_u8(low_nibbles(b[i].qs), fifth_bits(b[i].qh)));
        out->code[2 * i + 1] = as_signed(vorrq_u8(high_nibbles(b[i].qs), fifth_bits(b[i].qh + 2)));
    }
}

INLINE void unpack_q8_0(const void *src, struct unit *out)
{
    const struct block_q8_0 *b = src;
    out->scale = block_halves(src, sizeof *b, 0);
    for (int g = 0; g < UNIT_GROUPS; g++)
        out->code[g] = vld1q_s8(b[g / 2].qs + g % 2 * 16);
}

INLINE void unpack_iq4_nl(const void *src, struct unit *out)
{
    const struct block_iq4_nl *b = src;
    const int8x16_t table = vld1q_s8(block_iq4_table);
    out->scale = block_halves(src, sizeof *b, 0);
    for (int i = 0; i < 8; i++) {
        out->code[2 * i] = vqtbl1q_s8(table, low_nibbles(b[i].qs));
        out->code[2 * i + 1] = vqtbl1q_s8(table, high_nibbles(b[i].qs));
    }
}

/* 2^(e - 128) of every other block, the scale of doubled numbers; the first two are denormal. */
INLINE float32x4_t exponents(const struct block_mxfp4 *b)
{
    const uint32_t bytes[4] = {b[0].e, b[2].e, b[4].e, b[6].e};
    uint32x4_t e = vld1q_u32(bytes), one = vdupq_n_u32(1);
    uint32x4_t normal = vshlq_n_u32(vsubq_u32(e, one), 23);
    uint32x4_t denormal = vshlq_u32(vdupq_n_u32(0x00200000), vreinterpretq_s32_u32(e));
    return vreinterpretq_f32_u32(vbslq_u32(vcgtq_u32(e, one), normal, denormal));
}

INLINE void unpack_mxfp4(const void *src, struct unit *out)
{
    const struct block_mxfp4 *b = src;
    const int8x16_t table = vld1q_s8(block_e2m1_doubled);
    for (int i = 0; i < 8; i++) {
        out->code[2 * i] = vqtbl1q_s8(table, low_nibbles(b[i].qs));
        out->code[2 * i + 1] = vqtbl1q_s8(table, high_nibbles(b[i].qs));
    }
    out->scale.v[0] = out->scale.v[2] = exponents(b);
    out->scale.v[1] = out->scale.v[3] = exponents(b + 1);
}

/* ---- Super-blocks ---------------------------------------------------------------------------- */

INLINE void unpack_q2_k(const void *src, struct unit *out)
{
    const struct block_q2_k *b = src;
    out->scale = scaled(half(b->d), lanes_of_groups(as_signed(low_nibbles(b->scales))));
    out->min = scaled(half(b->dmin), lanes_of_groups(as_signed(high_nibbles(b->scales))));
    for (int g = 0; g < UNIT_GROUPS; g++)
        out->code[g] = as_signed(pairs(b->qs, g));
}

INLINE void unpack_q3_k(const void *src, struct unit *out)
{
    const struct block_q3_k *b = src;
    uint64_t scales[2];
    scales_q3_k(b->scales, scales);
    uint8x16_t by_group =
        vreinterpretq_u8_u64(vcombine_u64(vcreate_u64(scales[0]), vcreate_u64(scales[1])));
    out->scale = scaled(half(b->d), lanes_of_groups(centred(by_group, 32)));
    for (int g = 0; g < UNIT_GROUPS; g++)
        out->code[g] = centred(vorrq_u8(pairs(b->qs, g), byte_bits(b->hmask, g, 4)), 4);
}

INLINE void set_scales_mins(const uint8_t packed[12], uint16_t d, uint16_t dmin, struct unit *out)
{
    uint64_t scales, mins;
    scales_q4_k(packed, &scales, &mins);
    out->scale = scaled(half(d), lanes_of_blocks(scales));
    out->min = scaled(half(dmin), lanes_of_blocks(mins));
}

/* Group g of 256 nibbles: of each 32 bytes first the low ones, then the high ones. */
INLINE uint8x16_t nibbles_k(const uint8_t *qs, int g)
{
    return bits_at(qs + g / 4 * 32 + g % 2 * 16, g / 2 % 2 * 4, 15);
}

INLINE void unpack_q4_k(const void *src, struct unit *out)
{
    const struct block_q4_k *b = src;
    set_scales_mins(b->scales, b->d, b->dmin, out);
    for (int g = 0; g < UNIT_GROUPS; g++)
        out->code[g] = as_signed(nibbles_k(b->qs, g));
}

INLINE void unpack_q5_k(const void *src, struct unit *out)
{
    const struct block_q5_k *b = src;
    set_scales_mins(b->scales, b->d, b->dmin, out);
    for (int g = 0; g < UNIT_GROUPS; g++)
        out->code[g] = as_signed(vorrq_u8(nibbles_k(b->qs, g), byte_bits(b->qh, g, 16)));
}

INLINE void unpack_q6_k(const void *src, struct unit *out)
{
    const struct block_q6_k *b = src;
    out->scale = scaled(half(b->d), lanes_of_groups(vld1q_s8(b->scales)));
    for (int g = 0; g < UNIT_GROUPS; g++) {
        uint8x16_t low = bits_at(b->ql + g / 8 * 64 + g % 4 * 16, g / 4 % 2 * 4, 15);
        out->code[g] = centred(vorrq_u8(low, vshlq_n_u8(pairs(b->qh, g), 4)), 32);
    }
}

INLINE void unpack_iq4_xs(const void *src, struct unit *out)
{
    const struct block_iq4_xs *b = src;
    const int8x16_t table = vld1q_s8(block_iq4_table);
    int8x16_t scales = lanes_of_blocks(scales_iq4_xs(b->scales_l, b->scales_h));
    out->scale = scaled(half(b->d), vsubq_s8(scales, vdupq_n_s8(32)));
    for (int i = 0; i < 8; i++) {
        out->code[2 * i] = vqtbl1q_s8(table, low_nibbles(b->qs + 16 * i));
        out->code[2 * i + 1] = vqtbl1q_s8(table, high_nibbles(b->qs + 16 * i));
    }
}

/* A byte is a fraction in base three. Its next digit is floor(3 byte / 256), one for 86 and two for
 * 171 and more; the rest is 3 byte modulo 256. The result is the digit minus one. */
INLINE int8x16_t next_digit(uint8x16_t *fraction)
{
    uint8x16_t q = *fraction;
    uint8x16_t one = vcgeq_u8(q, vdupq_n_u8(86)), two = vcgeq_u8(q, vdupq_n_u8(171));
    *fraction = vaddq_u8(q, vaddq_u8(q, q));
    return vsubq_s8(vdupq_n_s8(-1), as_signed(vaddq_u8(one, two)));
}

INLINE void unpack_tq1_0(const void *src, struct unit *out)
{
    const struct block_tq1_0 *b = src;
    uint32_t last[4];
    uint8x16_t first[3], rest = vreinterpretq_u8_u32(vdupq_n_u32(load_u32(b->qh)));
    for (int i = 0; i < 3; i++)
        first[i] = vld1q_u8(b->qs + 16 * i);
    for (int digit = 0; digit < 5; digit++) {
        out->code[2 * digit] = next_digit(&first[0]);
        out->code[2 * digit + 1] = next_digit(&first[1]);
        out->code[10 + digit] = next_digit(&first[2]);
    }
    for (int digit = 0; digit < 4; digit++)
        last[digit] = vgetq_lane_u32(vreinterpretq_u32_s8(next_digit(&rest)), 0);
    out->code[15] = vreinterpretq_s8_u32(vld1q_u32(last));
    out->scale = lanes_set(half(b->d));
}

INLINE void unpack_tq2_0(const void *src, struct unit *out)
{
    const struct block_tq2_0 *b = src;
    out->scale = lanes_set(half(b->d));
    for (int g = 0; g < UNIT_GROUPS; g++)
        out->code[g] = centred(pairs(b->qs, g), 1);
}

/* ---- Float formats -------------------------------------------------------------------------- */

INLINE void widen_f32(const void *src, lanes out[2])
{
    for (int i = 0; i < 8; i++)
        out[i / 4].v[i % 4] = vreinterpretq_f32_u8(vld1q_u8((const uint8_t *)src + 16 * i));
}

INLINE uint16x4_t load_halves(const void *src, int i)
{
    return vreinterpret_u16_u8(vld1_u8((const uint8_t *)src + 8 * i));
}

INLINE void widen_f16(const void *src, lanes out[2])
{
    for (int i = 0; i < 8; i++)
        out[i / 4].v[i % 4] = four_halves(load_halves(src, i));
}

INLINE void widen_bf16(const void *src, lanes out[2])
{
    for (int i = 0; i < 8; i++)
        out[i / 4].v[i % 4] = vreinterpretq_f32_u32(vshll_n_u16(load_halves(src, i), 16));
}

INLINE void widen_q8_0(const void *src, lanes out[2])
{
    const struct block_q8_0 *b = src;
    for (int i = 0; i < 2; i++)
        out[i] = scaled(half(b->d), vld1q_s8(b->qs + 16 * i));
}

/* ---- Pages of codes -------------------------------------------------------------------------- */

typedef struct {
    int32x4_t v[4];
} counts;

INLINE counts counts_zero(void)
{
    int32x4_t zero = vdupq_n_s32(0);
    return (counts){{zero, zero, zero, zero}};
}

/* The 128 is taken away from the codes. */
INLINE counts counts_begin(int32_t codes_sum)
{
    (void)codes_sum;
    return counts_zero();
}

INLINE int8x16_t four_codes(const void *from)
{
    int32_t four;
    memcpy(&four, from, sizeof four);
    return vreinterpretq_s8_s32(vdupq_n_s32(four));
}

INLINE counts counts_keys(counts sum, const uint8_t *stored, const int8_t *query)
{
    for (int i = 0; i < 4; i++) {
        int8x16_t key = as_signed(veorq_u8(vld1q_u8(stored + 16 * i), vdupq_n_u8(128)));
        sum.v[i] = vdotq_s32(sum.v[i], key, four_codes(query));
    }
    return sum;
}

INLINE counts counts_values(counts sum, const uint8_t *stored, const uint8_t *weights)
{
    for (int i = 0; i < 4; i++)
        sum.v[i] = vdotq_s32(sum.v[i], as_signed(vld1q_u8(stored + 16 * i)), four_codes(weights));
    return sum;
}

INLINE counts counts_join(counts high, counts low)
{
    for (int i = 0; i < 4; i++)
        low.v[i] = vaddq_s32(low.v[i], vshlq_n_s32(high.v[i], 7));
    return low;
}

INLINE lanes lanes_of(counts a)
{
    return (lanes){{vcvtq_f32_s32(a.v[0]), vcvtq_f32_s32(a.v[1]), vcvtq_f32_s32(a.v[2]),
                    vcvtq_f32_s32(a.v[3])}};
}

INLINE lanes lanes_halves(const uint16_t *src)
{
    lanes a;
    for (int i = 0; i < 4; i++)
        a.v[i] = four_halves(vld1_u16(src + 4 * i));
    return a;
}

INLINE uint16x4_t whole_numbers(float32x4_t a)
{
    return vmovn_u32(vcvtnq_u32_f32(a));
}

INLINE void lanes_digits(lanes a, lanes b, uint8_t *to)
{
    for (int i = 0; i < 4; i++) {
        uint16x8_t both = vcombine_u16(whole_numbers(a.v[i]), whole_numbers(b.v[i]));
        uint32x2_t upper = vreinterpret_u32_u8(vshrn_n_u16(both, 7));
        uint32x2_t lower = vreinterpret_u32_u8(vand_u8(vmovn_u16(both), vdup_n_u8(127)));
        uint32x2x2_t each = vzip_u32(upper, lower);
        vst1q_u8(to + 16 * i, vreinterpretq_u8_u32(vcombine_u32(each.val[0], each.val[1])));
    }
}

#define KERNEL_SET kernels_neon
#define KERNEL_NAME "neon"
#define KERNEL_FEATURES CPU_ARM_DOTPROD
#include "quant/kernels_loops.h"
