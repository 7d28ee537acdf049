/* The kernels of one instruction set, behind one table of functions (internal to src/quant).
 *
 * The arithmetic is fixed to the last bit and the same for every instruction set, so a text does
 * not depend on the machine, the batch or the threads:
 *
 * Block formats work on units of 256 numbers (a super-block, or eight small blocks), seen as eight
 * blocks of 32. Eight float lanes, one a block, run along the row. With the weights' codes q, scale
 * ws and minimum wm, and the activations' codes a and scale as, two integers are exact: S = sum of
 * q a, A = sum of a. Every step below is one fused multiply-add:
 *
 *   lane += as (ws S)                  formats of the form x = ws q
 *
 *   lane += as (ws S - wm A)           formats with minima, x = ws q - wm
 *
 *   lane += as (ws S + ws' S')         formats with a scale for each half of a block; also those
 *                                      take their minima away as soon as a half is added
 *
 * Float formats work on units of 32 numbers: number k has lane k % 16 of accumulator k / 16, and is
 * added with one fused multiply-add. The two accumulators are added at the end of the row.
 *
 * At the end sixteen lanes are added as lane i + lane i + 8, eight as 4, then 2 and 1 apart. A row
 * whose length is no multiple of the unit is filled up with zeros.
 *
 * Panels are the exception: a product of many inputs on a CPU with a matrix unit for bf16. See the
 * end of this file. */
#ifndef CONSORT_QUANT_KERNELS_H
#define CONSORT_QUANT_KERNELS_H

#include <string.h>

#include "quant/blocks.h"
#include "quant/quant.h"
#include "quant/search.h"

/* The loops are compiled once for each format, with its unpacking inside. */
#define INLINE static inline __attribute__((always_inline))

#define PEAK_BYTES 6144 /* that the bare loops read: a multiple of their steps */

#define UNIT_LEN 256 /* numbers in a unit of the block formats */
#define UNIT_BLOCKS 8
#define UNIT_GROUPS 16
#define FLOAT_UNIT_LEN 32 /* numbers in a unit of the float formats */

/* Packed activations of block formats. Values of block b are in lane BLOCK_LANE(b), which is where
 * the vector units find the sum of its products. Codes lie in eight vectors of four codes of each
 * block, by lane, so that products are added up within the lanes: code k is at UNIT_CODE(k). */
struct packed_unit {
    float scale[UNIT_BLOCKS];
    int32_t sum[3][UNIT_BLOCKS]; /* of the codes of a block, of its first and of its second half */
    int8_t code[UNIT_LEN];
};
_Static_assert(sizeof(struct packed_unit) == 384, "packed rows stay 64-byte aligned");

#define BLOCK_LANE(block) ((block) % 2 * 4 + (block) / 2)
#define UNIT_CODE(k) ((k) % 32 / 4 * 32 + BLOCK_LANE((k) / 32) * 4 + (k) % 4)

/* Where unpackers put the scale of each group of 16 weights: first halves of blocks, then
 * second. */
#define UNIT_LANE(group) ((group) % 2 * 8 + BLOCK_LANE((group) / 2))

/* Activations below this are zeros: the inverse of their scale would overflow. */
#define PACK_TINY 1e-36f

/* Pages of codes (quant.h), blocks of 32 columns of all rows. Keys carry 128 more, without a sign,
 * at PAGE_KEY(row, column); values have their sign, at PAGE_VALUE.
 *
 *   score = sum over blocks of (query's scale * key's scale) * S, S the sum of products of codes;
 *           one fused multiply-add a block
 *   value += u / 16382 * S, S the sum of products of codes of weights w and of values, where
 *           w = weight * scale of the value, u is the largest w of the page, and a code is
 *           w * (16382 / u) + e, rounded, with e what rounding took from the code 16 rows before:
 *           many small weights would else be lost together. One fused multiply-add a page. Where
 *           no w is above PAGE_TINY all codes are zero. */
struct page_block {
    uint8_t code[QUANT_PAGE_ROWS * 32];
    uint16_t scale[QUANT_PAGE_ROWS];
};
#define PAGE_KEY(row, c) ((row) / 16 * 512 + (c) / 4 * 64 + (row) % 16 * 4 + (c) % 4)
#define PAGE_VALUE(row, c) ((row) / 4 * 128 + (c)*4 + (row) % 4)
#define PAGE_WEIGHT_MAX 16382 /* with e below 2^14: two digits of seven bits */
#define PAGE_TINY 1e-30f

/* X(format, name, blocks in a unit, centre, scales of 32 numbers). Vector units may hold codes
 * without a sign, q + 2^centre; HAS_MIN marks the formats with minima, whose codes have no sign
 * anyway. */
#define HAS_MIN (-1)
#define BLOCK_FORMAT_LIST(X)                                                                       \
    X(Q4_0, q4_0, 8, 3, 1)                                                                         \
    X(Q4_1, q4_1, 8, HAS_MIN, 1)                                                                   \
    X(Q5_0, q5_0, 8, 4, 1)                                                                         \
    X(Q5_1, q5_1, 8, HAS_MIN, 1)                                                                   \
    X(Q8_0, q8_0, 8, 7, 1)                                                                         \
    X(Q2_K, q2_k, 1, HAS_MIN, 2)                                                                   \
    X(Q3_K, q3_k, 1, 2, 2)                                                                         \
    X(Q4_K, q4_k, 1, HAS_MIN, 1)                                                                   \
    X(Q5_K, q5_k, 1, HAS_MIN, 1)                                                                   \
    X(Q6_K, q6_k, 1, 5, 2)                                                                         \
    X(IQ4_NL, iq4_nl, 8, 7, 1)                                                                     \
    X(IQ4_XS, iq4_xs, 1, 7, 1)                                                                     \
    X(TQ1_0, tq1_0, 1, 0, 1)                                                                       \
    X(TQ2_0, tq2_0, 1, 0, 1)                                                                       \
    X(MXFP4, mxfp4, 8, 4, 1)

/* X(format, name, bytes of a unit): weights that are widened to float. */
#define FLOAT_FORMAT_LIST(X)                                                                       \
    X(F32, f32, 128)                                                                               \
    X(F16, f16, 64)                                                                                \
    X(BF16, bf16, 64)

/* As quant_matmul, quant_widen_rows and quant_turn_rows, without the format. */
typedef void kernel_matmul_fn(const struct quant_matrix *w, size_t row_begin, size_t row_end,
                              const void *packed, size_t n_inputs, float *y, size_t y_stride);
typedef void kernel_rows_fn(const struct quant_matrix *rows, float *dst, size_t stride);

struct kernel_set {
    const char *name;
    unsigned cpu_features; /* bits of enum cpu_feature that it needs */
    void (*pack)(const float *x, struct packed_unit *packed, size_t n_cols);
    kernel_matmul_fn *matmul[QUANT_FORMAT_COUNT];
    kernel_rows_fn *widen_rows[QUANT_FORMAT_COUNT]; /* F32, F16, BF16, Q8_0 */
    kernel_rows_fn *turn_rows[QUANT_FORMAT_COUNT];
    void (*add_rows[QUANT_FORMAT_COUNT])(const struct quant_sums *sums);
    void (*page_scores)(const struct quant_page *keys, const void *packed, size_t n_queries,
                        float *y, size_t y_stride);
    void (*page_add)(const struct quant_page *values, const float *weight, size_t weight_stride,
                     size_t n_inputs, float *y);
    float (*exp_sum)(float *x, size_t n, float *highest, float *factor);
    void (*sigmoid)(float *x, size_t n);
    struct search_kernels search;
    /* Bare loops of the products (kernels_peak.h); they return how many they computed. */
    uint64_t (*peak_codes)(uint8_t *data, size_t rounds);
    uint64_t (*peak_floats)(uint8_t *data, size_t rounds);
};

extern const struct kernel_set kernels_scalar;
#if defined(__x86_64__)
extern const struct kernel_set kernels_avx2;
extern const struct kernel_set kernels_avx512;
#elif defined(__aarch64__)
extern const struct kernel_set kernels_neon;
#endif

/* ---- Panels ---------------------------------------------------------------------------------- */

/* Products of more than QUANT_SMALL_BATCH inputs where a matrix unit multiplies bf16; all formats
 * but F32 and F16, which would lose digits. This arithmetic, too, is fixed to the last bit:
 *
 * A weight is a float, scale * code - min with one rounding, then bf16; so are activations.
 * Rounding to bf16 is to nearest even and makes denormal numbers zero. The numbers of a row are
 * taken in steps of 32, each as Intel documents TDPBF16PS: even and odd positions are added in two
 * chains of fused multiply-adds, position by position from zero; the chains are added; that is
 * added to the row's sum. What is denormal on the way counts as zero. A row that ends within a
 * step is filled up with zeros. */
#define PANEL_STEP 32
#define PANEL_ROW_STEP 32 /* rows that are computed together */

/* Number k has this position: k and k + 4 of eight are neighbours, where the unpacking of weights
 * leaves them. */
#define PANEL_AT(k) ((k) / 8 * 8 + (k) % 4 * 2 + (k) % 8 / 4)

static inline float panel_flush(float value)
{
    return __builtin_fabsf(value) < 0x1p-126f ? __builtin_copysignf(0, value) : value;
}

/* Packed activations lie as a matrix unit reads them, so that it reads on and on: units of UNIT_LEN
 * columns (the last one is shorter), in each blocks of PANEL_BLOCK inputs, steps, inputs and the
 * numbers of a step. The last block is filled up with zeros. */
#define PANEL_BLOCK 16
#define PANEL_UNIT_STEPS (UNIT_LEN / PANEL_STEP)

static inline size_t panel_steps(size_t n_cols)
{
    return (n_cols + PANEL_STEP - 1) / PANEL_STEP;
}

/* Where the numbers of a step begin, of input i of n. */
static inline size_t panel_at(size_t i, size_t n, size_t step, size_t n_steps)
{
    size_t begin = step / PANEL_UNIT_STEPS * PANEL_UNIT_STEPS;
    size_t unit_steps = MIN(n_steps - begin, (size_t)PANEL_UNIT_STEPS);
    size_t blocks = (n + PANEL_BLOCK - 1) / PANEL_BLOCK;
    size_t block = begin * blocks + i / PANEL_BLOCK * unit_steps + (step - begin);
    return (block * PANEL_BLOCK + i % PANEL_BLOCK) * PANEL_STEP;
}

enum panel_sums { PANEL_FROM_ZERO, PANEL_FROM_Y }; /* what sums begin with */

struct panel_set {
    unsigned cpu_features;
    void (*pack)(const float *x, size_t n_cols, uint16_t *packed, size_t i, size_t n);
    void (*matmul)(const struct quant_matrix *w, size_t row_begin, size_t row_end,
                   const void *packed, size_t n_inputs, float *y, size_t y_stride,
                   enum panel_sums from);           /* for all formats but F32 and F16 */
    uint64_t (*peak)(uint8_t *data, size_t rounds); /* as peak_codes; NULL in the scalar set */
};

extern const struct panel_set panels_scalar;
#if defined(__x86_64__)
extern const struct panel_set panels_amx;
#endif

/* ---- The choice ------------------------------------------------------------------------------ */

/* The set of this name that is built in and that this machine can run. NULL: there is none, and
 * *error says why. */
const struct kernel_set *kernels_find(const char *name, struct error *error);

/* The sets of kernels in this build, best first, also those this machine cannot run; NULL past the
 * last. */
const struct kernel_set *kernels_at(size_t index);

#endif
