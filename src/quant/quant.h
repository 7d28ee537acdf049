/* quant: the block formats of weights, in one table, and the arithmetic on them.
 *
 * A row of n_cols numbers is stored as n_cols / block_len blocks of block_bytes. Formats are those
 * of GGML files (llama.cpp's ggml-common.h fixes their bytes; MXFP4 is OCP Microscaling
 * Formats 1.0). Decoding is exact. Matrix products come in one implementation per instruction set,
 * chosen once by quant_init; the scalar one is the specification. All functions may be called from
 * any thread once quant_init has returned.
 */
#ifndef CONSORT_QUANT_H
#define CONSORT_QUANT_H

#include "base/base.h"

#define QUANT_FORMAT_LIST(X)                                                                       \
    X(F32)                                                                                         \
    X(F16)                                                                                         \
    X(BF16)                                                                                        \
    X(Q4_0)                                                                                        \
    X(Q4_1)                                                                                        \
    X(Q5_0)                                                                                        \
    X(Q5_1)                                                                                        \
    X(Q8_0)                                                                                        \
    X(Q2_K)                                                                                        \
    X(Q3_K)                                                                                        \
    X(Q4_K)                                                                                        \
    X(Q5_K)                                                                                        \
    X(Q6_K)                                                                                        \
    X(IQ4_NL)                                                                                      \
    X(IQ4_XS)                                                                                      \
    X(TQ1_0)                                                                                       \
    X(TQ2_0)                                                                                       \
    X(MXFP4)

enum quant_format {
#define QUANT_FORMAT_ENUM(name) QUANT_##name,
    QUANT_FORMAT_LIST(QUANT_FORMAT_ENUM)
#undef QUANT_FORMAT_ENUM
        QUANT_FORMAT_COUNT
};

struct quant_info {
    const char *name;
    uint32_t block_len; /* numbers a block */
    uint32_t block_bytes;
    bool can_encode;
};

const struct quant_info *quant_info(enum quant_format format);

/* By name, any case. False when there is no such format. */
bool quant_find(const char *name, enum quant_format *out);

/* Bytes of a row; n_cols must be a multiple of block_len. */
size_t quant_row_bytes(enum quant_format format, size_t n_cols);

/* dst[n_cols] = the numbers of one row, bit-exact. n_cols % block_len == 0. */
void quant_decode(enum quant_format format, const void *src, float *dst, size_t n_cols);

/* Encodes one row, minimising the squared error weighted by importance[n_cols] (a mean squared
 * activation per column; NULL: all columns count the same). can_encode must hold and src be
 * finite. */
void quant_encode(enum quant_format format, const float *src, void *dst, size_t n_cols,
                  const float *importance);

/* ---- Products -------------------------------------------------------------------------------- */

/* Chooses the kernels: the best set that CPU and system allow, or the one CONSORT_ISA names
 * (scalar, avx2, avx512, amx, neon). Call before any product, from any thread; once one call has
 * succeeded, others change nothing.
 * Fails when CONSORT_ISA names a set that is unknown or that this machine cannot run. */
enum status quant_init(struct error *error);
const char *quant_isa(void); /* the name of the chosen set */

/* A weight matrix in memory; row r begins at data + r * row_bytes. */
struct quant_matrix {
    enum quant_format format;
    const void *data;
    size_t row_bytes;
    size_t n_rows;
    size_t n_cols;
};

/* Activations are packed once per product and shared by all rows of W. How, decides the arithmetic
 * of the product, and is chosen once for all its parts: up to QUANT_SMALL_BATCH inputs always have
 * the same one. F32 and F16 never go through bf16. */
enum quant_packing {
    QUANT_PACKED_FLOAT, /* F32, F16, BF16 */
    QUANT_PACKED_INT8,  /* block formats: int8 with a scale per 32 values */
    QUANT_PACKED_BF16,  /* many inputs, where the kernels have a matrix unit (amx) */
    QUANT_PACKINGS
};
#define QUANT_SMALL_BATCH 32

/* n_inputs: of the whole product, not of the part that a thread computes. */
enum quant_packing quant_packing(enum quant_format format, size_t n_inputs);

/* Whether products of block formats with more than QUANT_SMALL_BATCH inputs have panels. */
static inline bool quant_has_panels(void)
{
    return quant_packing(QUANT_Q8_0, QUANT_SMALL_BATCH + 1) == QUANT_PACKED_BF16;
}

/* The packed inputs of a product lie together, on a 64-byte boundary. Of an input
 * quant_packed_bytes are needed (a multiple of 64), and quant_packed_inputs(n) inputs where there
 * are n of them. Packed rows lie one after the other but with QUANT_PACKED_BF16. */
size_t quant_packed_bytes(enum quant_packing packing, size_t n_cols);
size_t quant_packed_inputs(enum quant_packing packing, size_t n);

/* Packs x as input i of n. */
void quant_pack(enum quant_packing packing, const float *x, size_t n_cols, void *packed, size_t i,
                size_t n);

/* Rows that a thread should take at a time: a multiple of it. */
size_t quant_row_step(enum quant_packing packing);

/* y[i * y_stride + r] = W[r] . x[i] for r in [row_begin, row_end), i in [0, n_inputs), where x[i]
 * is the i-th of n_inputs packed inputs. The sum of one (r, i) pair is the same for every n_inputs
 * and row range with the same packing. */
void quant_matmul(const struct quant_matrix *w, enum quant_packing packing, size_t row_begin,
                  size_t row_end, const void *packed, size_t n_inputs, float *y, size_t y_stride);

/* The same with QUANT_PACKED_BF16, added to y. Products of some columns (whole steps of 32), and so
 * of the next ones, give the same bits as one of all columns. */
void quant_matmul_add(const struct quant_matrix *w, size_t row_begin, size_t row_end,
                      const void *packed, size_t n_inputs, float *y, size_t y_stride);

/* A bare loop of the instruction that products with this format rest on, with operands from the
 * first cache: no kernel of the chosen set can be faster. Returns the products (one multiplication
 * and one addition each) that it computed, a few thousand times rounds; the caller takes the time.
 */
uint64_t quant_peak(enum quant_format format, size_t rounds);

/* ---- Attention over cached rows (F32, F16, BF16, Q8_0) --------------------------------------- */
/* Rows are widened once for all queries that see them; widened columns come in whole units of 32,
 * completed with zeros. */

#define QUANT_WIDENED(n_cols) (((n_cols) + 31) / 32 * 32)

/* dst[r][c] = row r [c], dst being [n_rows][QUANT_WIDENED(n_cols)]. */
void quant_widen_rows(const struct quant_matrix *rows, float *dst);

/* dst[c][r] = row r [c], dst being [QUANT_WIDENED(n_cols)][stride]. Up to the next multiple of 16,
 * for which stride must have room, the last row is repeated. */
void quant_turn_rows(const struct quant_matrix *rows, float *dst, size_t stride);

/* y[i][c] += sum over r of weight[i][r] * rows[r][c], in the order of r and with one fused
 * multiply-add each, for i < n_inputs. rows.n_cols % 32 == 0; strides in floats. */
struct quant_sums {
    struct quant_matrix rows; /* many inputs gain where they are widened before */
    const float *weight;
    float *y;
    size_t weight_stride, y_stride, n_inputs;
    bool from_zero;   /* what y held does not count */
    const void *next; /* rows that are wanted after these, or NULL: brought into the caches */
};
void quant_add_rows(const struct quant_sums *sums);

/* ---- Attention over pages of codes ----------------------------------------------------------- */
/* A page of QUANT_PAGE_ROWS rows of one head may hold int8 codes with an F16 scale for each 32
 * numbers of a row, as Q8_0 does and in as many bytes, but in the order in which sums of integer
 * products are taken: four columns of a key, or four rows of a column of values, lie together.
 * n_cols % 32 == 0. The arithmetic is fixed to the last bit. */

#define QUANT_PAGE_ROWS 128
enum quant_page_order { QUANT_PAGE_KEYS, QUANT_PAGE_VALUES };

/* Encodes x[n_cols] as a row of the page; the other rows stay. */
void quant_page_store(enum quant_page_order order, void *page, size_t row, const float *x,
                      size_t n_cols);

struct quant_page {
    const void *data;
    size_t n_rows, n_cols;
    const void *next; /* the page that is wanted after this one: brought into the caches */
};

/* y[i * y_stride + r] = query i . key r for the keys r < n_rows. Queries are packed as for products
 * (QUANT_PACKED_INT8). Up to the next multiple of 32, for which y has room, y becomes undefined. */
void quant_page_scores(const struct quant_page *keys, const void *packed, size_t n_queries,
                       float *y, size_t y_stride);

/* y[i * n_cols + c] += sum over r < n_rows of weight[i * weight_stride + r] * values[r][c].
 * Weights are not negative; they are rounded to 1/16382 of the largest weight times scale of the
 * same 32 columns. They are read up to the next multiple of 32, and must be finite there. */
void quant_page_add(const struct quant_page *values, const float *weight, size_t weight_stride,
                    size_t n_inputs, float *y);

/* ---- Exponentials --------------------------------------------------------------------------- */
/* The same bits on every instruction set; errors of about one unit in the last place. */

/* One step of a running softmax: raises *highest to the largest of x[n], replaces x[i] by
 * exp(x[i] - *highest) and returns their sum. *factor (or NULL) becomes exp(before - *highest), by
 * which earlier sums are to be multiplied. n is a multiple of 16; below -88 exponentials are 0. */
float quant_exp_sum(float *x, size_t n, float *highest, float *factor);

/* x[i] = 1 / (1 + exp(-x[i])). */
void quant_sigmoid(float *x, size_t n);

#endif
