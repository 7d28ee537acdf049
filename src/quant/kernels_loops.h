/* The loops over rows, inputs and units, written once for all instruction sets. Included at the end
 * of each kernels_ISA.c, which defines before it:
 *
 *   KERNEL_SET, KERNEL_NAME, KERNEL_FEATURES     the table's symbol and fields
 *   lanes                                        sixteen floats, with
 *   lanes_zero, lanes_set, lanes_load, lanes_store, lanes_sum,
 *   lanes_add, lanes_sub, lanes_mul, lanes_div, lanes_max, lanes_min, lanes_fma (a b + c),
 *   lanes_pick_less (a < b ? x : y),
 *   lanes_round (to even), lanes_power (2^a of whole a, -126 to 127)
 *   widen_NAME(src, lanes[2])                    for each float format and q8_0: src holds 32
 *   what kernels_blocks.h, kernels_rows.h and kernels_pages.h list
 */
#include <string.h>

/* Float weights: rows and inputs of a tile, whose sums stay in registers, and the rows that all
 * inputs pass through while they are in the caches. */
#define FLOAT_INPUTS 4
#define FLOAT_ROWS 4
#define FLOAT_ROW_PANEL 32

#ifndef KERNEL_LOOP
#define KERNEL_LOOP INLINE
#endif

typedef void widen_fn(const void *src, lanes out[2]);

#include "quant/kernels_blocks.h"

/* ---- Float formats --------------------------------------------------------------------------- */

/* A tile of n_rows times n_inputs, both constant. x_rest is where the numbers of a last, short unit
 * are, with zeros up to a whole unit. Strides are in floats. */
struct float_tile {
    const uint8_t *row;
    size_t row_bytes, unit_bytes, n_cols;
    const float *x, *x_rest;
    size_t x_stride, rest_stride;
    float *y; /* of the first row and input */
    size_t y_stride;
};

KERNEL_LOOP void float_products(lanes sum[FLOAT_ROWS][FLOAT_INPUTS][2], const uint8_t *row,
                                size_t row_bytes, const float *x, size_t x_stride, size_t n_rows,
                                size_t n_inputs, widen_fn *widen)
{
    for (size_t r = 0; r < n_rows; r++) {
        lanes weight[2];
        widen(row + r * row_bytes, weight);
        for (size_t i = 0; i < n_inputs; i++) {
            const float *from = x + i * x_stride;
            sum[r][i][0] = lanes_fma(weight[0], lanes_load(from), sum[r][i][0]);
            sum[r][i][1] = lanes_fma(weight[1], lanes_load(from + 16), sum[r][i][1]);
        }
    }
}

KERNEL_LOOP void float_dot(const struct float_tile *tile, size_t n_rows, size_t n_inputs,
                           widen_fn *widen)
{
    lanes sum[FLOAT_ROWS][FLOAT_INPUTS][2];
    size_t n_units = tile->n_cols / FLOAT_UNIT_LEN, n_rest = tile->n_cols % FLOAT_UNIT_LEN;
    for (size_t r = 0; r < n_rows; r++)
        for (size_t i = 0; i < n_inputs; i++)
            sum[r][i][0] = sum[r][i][1] = lanes_zero();
    for (size_t u = 0; u < n_units; u++)
        float_products(sum, tile->row + u * tile->unit_bytes, tile->row_bytes,
                       tile->x + u * FLOAT_UNIT_LEN, tile->x_stride, n_rows, n_inputs, widen);
    if (n_rest > 0) {
        uint8_t rest[FLOAT_ROWS][FLOAT_UNIT_LEN * sizeof(float)] = {{0}};
        for (size_t r = 0; r < n_rows; r++)
            memcpy(rest[r], tile->row + r * tile->row_bytes + n_units * tile->unit_bytes,
                   n_rest * tile->unit_bytes / FLOAT_UNIT_LEN);
        float_products(sum, rest[0], sizeof rest[0], tile->x_rest, tile->rest_stride, n_rows,
                       n_inputs, widen);
    }
    for (size_t r = 0; r < n_rows; r++)
        for (size_t i = 0; i < n_inputs; i++)
            tile->y[i * tile->y_stride + r] = lanes_sum(lanes_add(sum[r][i][0], sum[r][i][1]));
}

/* All rows times n_inputs (a constant) inputs. A single input reads one row after the other. */
KERNEL_LOOP void float_rows(struct float_tile tile, size_t n, size_t n_inputs, widen_fn *widen)
{
    for (; n_inputs > 1 && n >= FLOAT_ROWS; n -= FLOAT_ROWS) {
        float_dot(&tile, FLOAT_ROWS, n_inputs, widen);
        tile.row += FLOAT_ROWS * tile.row_bytes;
        tile.y += FLOAT_ROWS;
    }
    for (; n > 0; n--, tile.row += tile.row_bytes, tile.y++)
        float_dot(&tile, 1, n_inputs, widen);
}

KERNEL_LOOP void float_matmul(const struct quant_matrix *w, size_t row_begin, size_t row_end,
                              const float *x, size_t n_inputs, float *y, size_t y_stride,
                              widen_fn *widen, size_t unit_bytes)
{
    size_t whole = w->n_cols / FLOAT_UNIT_LEN * FLOAT_UNIT_LEN;
    size_t stride = w->n_cols == whole ? whole : whole + FLOAT_UNIT_LEN;
    size_t step = n_inputs >= FLOAT_INPUTS ? FLOAT_ROW_PANEL : row_end - row_begin;
    for (size_t r = row_begin; r < row_end; r += step) {
        size_t n_rows = MIN(step, row_end - r);
        for (size_t i = 0; i < n_inputs;) {
            struct float_tile tile = {.row = (const uint8_t *)w->data + r * w->row_bytes,
                                      .row_bytes = w->row_bytes,
                                      .unit_bytes = unit_bytes,
                                      .n_cols = w->n_cols,
                                      .x = x + i * stride,
                                      .x_rest = x + i * stride + whole,
                                      .x_stride = stride,
                                      .rest_stride = stride,
                                      .y = y + i * y_stride + r,
                                      .y_stride = y_stride};
            bool several = n_inputs - i >= FLOAT_INPUTS;
            if (several)
                float_rows(tile, n_rows, FLOAT_INPUTS, widen);
            else
                float_rows(tile, n_rows, 1, widen);
            i += several ? FLOAT_INPUTS : 1;
        }
    }
}

#define DEFINE_FLOAT_MATMUL(format, name, unit_bytes)                                              \
    static void matmul_##name(const struct quant_matrix *w, size_t row_begin, size_t row_end,      \
                              const void *packed, size_t n_inputs, float *y, size_t y_stride)      \
    {                                                                                              \
        float_matmul(w, row_begin, row_end, packed, n_inputs, y, y_stride, widen_##name,           \
                     unit_bytes);                                                                  \
    }
FLOAT_FORMAT_LIST(DEFINE_FLOAT_MATMUL)
#undef DEFINE_FLOAT_MATMUL

#include "quant/kernels_rows.h"

#include "quant/kernels_search.h"

#include "quant/kernels_pages.h"

#include "quant/kernels_peak.h"

const struct kernel_set KERNEL_SET = {
    .name = KERNEL_NAME,
    .cpu_features = KERNEL_FEATURES,
    .pack = pack_units,
    .page_scores = page_scores,
    .page_add = page_add,
    .exp_sum = exp_sum,
    .sigmoid = sigmoid,
    .search = {search_fit, search_choose, search_levels},
    .peak_codes = peak_codes,
    .peak_floats = peak_floats,
#define MATMUL_FIELD(format, name, ...) [QUANT_##format] = matmul_##name,
    .matmul = {BLOCK_FORMAT_LIST(MATMUL_FIELD) FLOAT_FORMAT_LIST(MATMUL_FIELD)},
#undef MATMUL_FIELD
#define ROWS_FIELDS(format, name, ...)                                                             \
    .widen_rows[QUANT_##format] = widen_rows_##name,                                               \
    .turn_rows[QUANT_##format] = turn_rows_##name, .add_rows[QUANT_##format] = add_rows_##name,
    FLOAT_FORMAT_LIST(ROWS_FIELDS) ROWS_FIELDS(Q8_0, q8_0)
#undef ROWS_FIELDS
};
