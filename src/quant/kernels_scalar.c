/* The specification of the kernels: plain C that follows kernels.h word by word. */
#include "quant/kernels.h"

#include <math.h>

#include "quant/codec.h"

/* ---- Sixteen float lanes --------------------------------------------------------------------- */

typedef struct {
    float v[16];
} lanes;

static inline lanes lanes_zero(void)
{
    return (lanes){{0}};
}

static inline lanes lanes_set(float value)
{
    lanes a;
    for (int i = 0; i < 16; i++)
        a.v[i] = value;
    return a;
}

static inline lanes lanes_load(const float *from)
{
    lanes a;
    for (int i = 0; i < 16; i++)
        a.v[i] = from[i];
    return a;
}

static inline void lanes_store(float *to, lanes a)
{
    for (int i = 0; i < 16; i++)
        to[i] = a.v[i];
}

static inline lanes lanes_add(lanes a, lanes b)
{
    for (int i = 0; i < 16; i++)
        a.v[i] += b.v[i];
    return a;
}

static inline lanes lanes_sub(lanes a, lanes b)
{
    for (int i = 0; i < 16; i++)
        a.v[i] -= b.v[i];
    return a;
}

static inline lanes lanes_fma(lanes a, lanes b, lanes c)
{
    for (int i = 0; i < 16; i++)
        c.v[i] = fmaf(a.v[i], b.v[i], c.v[i]);
    return c;
}

static inline lanes lanes_mul(lanes a, lanes b)
{
    for (int i = 0; i < 16; i++)
        a.v[i] *= b.v[i];
    return a;
}

static inline lanes lanes_div(lanes a, lanes b)
{
    for (int i = 0; i < 16; i++)
        a.v[i] /= b.v[i];
    return a;
}

static inline lanes lanes_max(lanes a, lanes b)
{
    for (int i = 0; i < 16; i++)
        a.v[i] = a.v[i] > b.v[i] ? a.v[i] : b.v[i];
    return a;
}

static inline lanes lanes_min(lanes a, lanes b)
{
    for (int i = 0; i < 16; i++)
        a.v[i] = a.v[i] < b.v[i] ? a.v[i] : b.v[i];
    return a;
}

static inline lanes lanes_pick_less(lanes a, lanes b, lanes x, lanes y)
{
    for (int i = 0; i < 16; i++)
        y.v[i] = a.v[i] < b.v[i] ? x.v[i] : y.v[i];
    return y;
}

static inline lanes lanes_round(lanes a)
{
    for (int i = 0; i < 16; i++)
        a.v[i] = rintf(a.v[i]);
    return a;
}

static inline lanes lanes_power(lanes a)
{
    for (int i = 0; i < 16; i++) {
        uint32_t bits = (uint32_t)((int32_t)a.v[i] + 127) << 23;
        memcpy(&a.v[i], &bits, sizeof bits);
    }
    return a;
}

static inline float lanes_sum(lanes a)
{
    for (int apart = 8; apart > 0; apart /= 2)
        for (int i = 0; i < apart; i++)
            a.v[i] += a.v[i + apart];
    return a.v[0];
}

static inline float lanes_highest(lanes a)
{
    float highest = a.v[0];
    for (int i = 1; i < 16; i++)
        highest = a.v[i] > highest ? a.v[i] : highest;
    return highest;
}

static inline void lanes_turn(lanes v[16])
{
    for (int r = 0; r < 16; r++)
        for (int c = 0; c < r; c++) {
            float number = v[r].v[c];
            v[r].v[c] = v[c].v[r];
            v[c].v[r] = number;
        }
}

#define ADD_INPUTS 2
#define ADD_UNITS 1

/* ---- Units ---------------------------------------------------------------------------------- */

struct unit {
    int8_t code[UNIT_LEN]; /* with their sign, unless the format has minima */
    float scale[UNIT_GROUPS], min[UNIT_GROUPS];
};

#define STRIP_ROWS 1
#define TILE_STRIPS 2
#define TILE_INPUTS 4
#define PARTIAL_VECTORS(centre) 8

typedef struct {
    float v[UNIT_BLOCKS];
} sums;
typedef struct {
    int32_t v[UNIT_BLOCKS];
} ints;
typedef ints partial;
typedef struct {
    int8_t v[UNIT_BLOCKS * 4];
} quads;

struct strip {
    quads code[8];
    sums scale[2], min[2];
};

static inline void join(const struct unit *unit, struct strip *strip, int centre, size_t halves)
{
    (void)centre;
    (void)halves;
    for (int k = 0; k < UNIT_LEN; k++)
        strip->code[UNIT_CODE(k) / 32].v[UNIT_CODE(k) % 32] = unit->code[k];
    for (int g = 0; g < UNIT_GROUPS; g++) {
        strip->scale[g % 2].v[BLOCK_LANE(g / 2)] = unit->scale[g];
        strip->min[g % 2].v[BLOCK_LANE(g / 2)] = unit->min[g];
    }
}

static inline quads keep(quads w)
{
    return w;
}

static inline quads input_codes(const struct packed_unit *x, size_t v)
{
    quads a;
    memcpy(a.v, x->code + 32 * v, sizeof a.v);
    return a;
}

static inline ints input_ints(const int32_t *from)
{
    ints a;
    memcpy(a.v, from, sizeof a.v);
    return a;
}

/* Codes have their sign. */
static inline ints ints_begin(ints codes_sum, int centre)
{
    (void)codes_sum;
    (void)centre;
    return (ints){{0}};
}

static inline partial partial_zero(void)
{
    return (partial){{0}};
}

static inline partial partial_add(partial sum, quads w, quads x, int centre)
{
    (void)centre;
    for (int i = 0; i < UNIT_BLOCKS * 4; i++)
        sum.v[i / 4] += w.v[i] * x.v[i];
    return sum;
}

static inline ints partial_end(ints total, partial sum)
{
    for (int i = 0; i < UNIT_BLOCKS; i++)
        total.v[i] += sum.v[i];
    return total;
}

static inline sums sums_zero(void)
{
    return (sums){{0}};
}

static inline sums sums_of(ints a)
{
    sums b;
    for (int i = 0; i < UNIT_BLOCKS; i++)
        b.v[i] = (float)a.v[i];
    return b;
}

static inline sums sums_mul(sums a, sums b)
{
    for (int i = 0; i < UNIT_BLOCKS; i++)
        a.v[i] *= b.v[i];
    return a;
}

static inline sums sums_fma(sums a, sums b, sums c)
{
    for (int i = 0; i < UNIT_BLOCKS; i++)
        c.v[i] = fmaf(a.v[i], b.v[i], c.v[i]);
    return c;
}

static inline sums sums_fnma(sums a, sums b, sums c)
{
    for (int i = 0; i < UNIT_BLOCKS; i++)
        c.v[i] = fmaf(-a.v[i], b.v[i], c.v[i]);
    return c;
}

static inline sums input_scale(const struct packed_unit *x)
{
    sums a;
    memcpy(a.v, x->scale, sizeof a.v);
    return a;
}

static inline void sums_totals(const sums *sum, size_t n, float *total)
{
    for (size_t s = 0; s < n; s++) {
        sums a = sum[s];
        for (int apart = UNIT_BLOCKS / 2; apart > 0; apart /= 2)
            for (int i = 0; i < apart; i++)
                a.v[i] += a.v[i + apart];
        total[s] = a.v[0];
    }
}

static void pack_unit(const float *x, struct packed_unit *out)
{
    for (int begin = 0; begin < UNIT_LEN; begin += BLOCK_LEN) {
        float largest = 0;
        for (int i = begin; i < begin + BLOCK_LEN; i++)
            largest = fabsf(x[i]) > largest ? fabsf(x[i]) : largest;
        bool tiny = largest < PACK_TINY;
        float scale = tiny ? 0 : largest / 127, inverse = tiny ? 0 : 127 / largest;
        int lane = BLOCK_LANE(begin / BLOCK_LEN);
        int32_t sum[2] = {0, 0};
        for (int i = 0; i < BLOCK_LEN; i++) {
            int8_t code = (int8_t)lrintf(x[begin + i] * inverse);
            out->code[UNIT_CODE(begin + i)] = code;
            sum[i / 16] += code;
        }
        out->scale[lane] = scale;
        out->sum[0][lane] = sum[0] + sum[1];
        out->sum[1][lane] = sum[0];
        out->sum[2][lane] = sum[1];
    }
}

#define DEFINE_UNPACK(format, name, n_blocks, ...)                                                 \
    static void unpack_##name(const void *src, struct unit *unit)                                  \
    {                                                                                              \
        const int len = UNIT_LEN / (n_blocks);                                                     \
        const struct block_##name *block = src;                                                    \
        for (int b = 0; b < (n_blocks); b++)                                                       \
            unpack_block_##name(block + b, unit->code + b * len, unit->scale + b * len / 16,       \
                                unit->min + b * len / 16);                                         \
    }
BLOCK_FORMAT_LIST(DEFINE_UNPACK)
#undef DEFINE_UNPACK

/* ---- Float formats -------------------------------------------------------------------------- */

#define DEFINE_WIDEN(name)                                                                         \
    static void widen_##name(const void *src, lanes out[2])                                        \
    {                                                                                              \
        float number[FLOAT_UNIT_LEN];                                                              \
        decode_##name(src, number, FLOAT_UNIT_LEN);                                                \
        out[0] = lanes_load(number);                                                               \
        out[1] = lanes_load(number + 16);                                                          \
    }
DEFINE_WIDEN(f32)
DEFINE_WIDEN(f16)
DEFINE_WIDEN(bf16)
DEFINE_WIDEN(q8_0)
#undef DEFINE_WIDEN

/* ---- Pages of codes -------------------------------------------------------------------------- */

typedef struct {
    int32_t v[16];
} counts;

static inline counts counts_zero(void)
{
    return (counts){{0}};
}

/* The 128 is taken away from the codes. */
static inline counts counts_begin(int32_t codes_sum)
{
    (void)codes_sum;
    return counts_zero();
}

static inline counts counts_keys(counts sum, const uint8_t *stored, const int8_t *query)
{
    for (int i = 0; i < 64; i++)
        sum.v[i / 4] += (stored[i] - 128) * query[i % 4];
    return sum;
}

static inline counts counts_values(counts sum, const uint8_t *stored, const uint8_t *weights)
{
    for (int i = 0; i < 64; i++)
        sum.v[i / 4] += (int8_t)stored[i] * weights[i % 4];
    return sum;
}

static inline counts counts_join(counts high, counts low)
{
    for (int i = 0; i < 16; i++)
        low.v[i] += 128 * high.v[i];
    return low;
}

static inline lanes lanes_of(counts a)
{
    lanes b;
    for (int i = 0; i < 16; i++)
        b.v[i] = (float)a.v[i];
    return b;
}

static inline lanes lanes_halves(const uint16_t *src)
{
    lanes a;
    for (int i = 0; i < 16; i++)
        a.v[i] = block_f16_to_f32(src[i]);
    return a;
}

static inline void lanes_digits(lanes a, lanes b, uint8_t *to)
{
    for (int i = 0; i < 32; i++) {
        int whole = (int)(i < 16 ? a.v[i] : b.v[i - 16]);
        uint8_t *at = to + i % 16 / 4 * 16 + i / 16 * 8 + i % 4;
        at[0] = (uint8_t)(whole >> 7);
        at[4] = (uint8_t)(whole & 127);
    }
}

#define KERNEL_SET kernels_scalar
#define KERNEL_NAME "scalar"
#define KERNEL_FEATURES 0
#define KERNEL_LOOP static
#define UNROLL
#include "quant/kernels_loops.h"
