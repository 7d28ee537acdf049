/* Attention over pages of codes (quant.h), written once for all instruction sets. Included by
 * kernels_loops.h; each kernels_ISA.c defines before it, besides the lanes:
 *
 *   counts                    sixteen sums of products of codes, with counts_zero
 *   counts_keys(counts, stored, query)     adds the products of the 64 codes of keys that are
 *                             stored, four to a lane, with four codes of a query. What the 128 that
 *                             keys carry adds is for counts_begin to take away: it begins with the
 *                             sum of the query's codes
 *   counts_values(counts, stored, weights) the same for 64 codes of values, with four of weights,
 *                             which are 0 to 127
 *   counts_join(high, low)    128 high + low
 *   lanes_of(counts)          as floats
 *   lanes_halves(src)         sixteen F16 numbers
 *   lanes_digits(lanes a, lanes b, to)     whole numbers below 2^14 as two digits, 64 bytes: of
 *                             four numbers of a the upper, then the lower digits, the same of b,
 *                             then of the next four
 */

/* Inputs whose sums stay in registers. */
#define PAGE_INPUTS 4

/* The next page's share for n rows of a block, were its bytes in the order of rows. */
KERNEL_LOOP void page_ask(const struct quant_page *page, size_t block, size_t row, size_t n)
{
    const size_t row_bytes = sizeof(struct page_block) / QUANT_PAGE_ROWS;
    const uint8_t *next = page->next;
    next += block * sizeof(struct page_block) + row * row_bytes;
    for (size_t b = 0; b < n * row_bytes; b += 64)
        __builtin_prefetch(next + b);
}

/* ---- Scores ---------------------------------------------------------------------------------- */

/* Keys whose scores with PAGE_INPUTS queries stay in registers: twice sixteen. */
#define PAGE_KEYS 32

/* The sums of products of PAGE_KEYS keys' codes in a block with n (a constant) queries. */
KERNEL_LOOP void add_keys(const uint8_t *stored, const struct packed_unit *query, size_t row_units,
                          size_t lane, size_t n, counts sum[PAGE_INPUTS][2])
{
    for (size_t i = 0; i < n; i++)
        sum[i][0] = sum[i][1] = counts_begin(query[i * row_units].sum[0][lane]);
    UNROLL
    for (size_t q = 0; q < 8; q++)
        for (size_t i = 0; i < n; i++)
            for (size_t l = 0; l < 2; l++)
                sum[i][l] = counts_keys(sum[i][l], stored + PAGE_KEY(16 * l, 4 * q),
                                        query[i * row_units].code + 32 * q + 4 * lane);
}

/* All keys times n (a constant) queries. */
KERNEL_LOOP void score_queries(const struct quant_page *keys, const struct packed_unit *query,
                               size_t n, float *y, size_t y_stride, bool ask)
{
    const size_t row_units = (keys->n_cols + UNIT_LEN - 1) / UNIT_LEN;
    for (size_t row = 0; row < keys->n_rows; row += PAGE_KEYS) {
        const struct page_block *block = keys->data;
        lanes score[PAGE_INPUTS][2];
        for (size_t i = 0; i < n; i++)
            score[i][0] = score[i][1] = lanes_zero();
        for (size_t b = 0; b < keys->n_cols / 32; b++, block++) {
            const struct packed_unit *unit = query + b / UNIT_BLOCKS;
            const size_t lane = BLOCK_LANE(b % UNIT_BLOCKS);
            counts sum[PAGE_INPUTS][2];
            if (ask)
                page_ask(keys, b, row, PAGE_KEYS);
            add_keys(block->code + PAGE_KEY(row, 0), unit, row_units, lane, n, sum);
            for (size_t l = 0; l < 2; l++) {
                lanes scale = lanes_halves(block->scale + row + 16 * l);
                for (size_t i = 0; i < n; i++) {
                    lanes both = lanes_mul(lanes_set(unit[i * row_units].scale[lane]), scale);
                    score[i][l] = lanes_fma(both, lanes_of(sum[i][l]), score[i][l]);
                }
            }
        }
        for (size_t i = 0; i < n; i++)
            for (size_t l = 0; l < 2; l++)
                lanes_store(y + i * y_stride + row + 16 * l, score[i][l]);
    }
}

static void page_scores(const struct quant_page *keys, const void *packed, size_t n_queries,
                        float *y, size_t y_stride)
{
    const struct packed_unit *query = packed;
    const size_t row_units = (keys->n_cols + UNIT_LEN - 1) / UNIT_LEN;
    size_t i = 0;
    for (; n_queries - i >= PAGE_INPUTS; i += PAGE_INPUTS)
        score_queries(keys, query + i * row_units, PAGE_INPUTS, y + i * y_stride, y_stride, i == 0);
    for (; i < n_queries; i++)
        score_queries(keys, query + i * row_units, 1, y + i * y_stride, y_stride, i == 0);
}

/* ---- Sums of values -------------------------------------------------------------------------- */

#define PAGE_DIGIT(row, digit)                                                                     \
    ((row) / 32 * 64 + (row) % 16 / 4 * 16 + (row) % 32 / 16 * 8 + (digit)*4)

/* The digits of the codes of n (a constant) inputs' weights, and what the codes are counted in. */
KERNEL_LOOP void weight_digits(const float *weight, size_t weight_stride, const float *scale,
                               size_t n_rows, size_t n, uint8_t digits[][2 * QUANT_PAGE_ROWS],
                               float *one)
{
    lanes most[PAGE_INPUTS], inverse[PAGE_INPUTS], rest[PAGE_INPUTS];
    for (size_t i = 0; i < n; i++)
        most[i] = lanes_zero();
    for (size_t r = 0; r < n_rows; r += 16)
        for (size_t i = 0; i < n; i++) {
            lanes product =
                lanes_mul(lanes_load(weight + i * weight_stride + r), lanes_load(scale + r));
            most[i] = lanes_max(most[i], product);
        }
    for (size_t i = 0; i < n; i++) {
        float largest = lanes_highest(most[i]);
        bool tiny = !(largest > PAGE_TINY);
        inverse[i] = lanes_set(tiny ? 0 : PAGE_WEIGHT_MAX / largest);
        one[i] = tiny ? 0 : largest / PAGE_WEIGHT_MAX;
        rest[i] = lanes_zero();
    }
    for (size_t r = 0; r < n_rows; r += 32)
        for (size_t i = 0; i < n; i++) {
            lanes code[2];
            for (size_t l = 0; l < 2; l++) {
                const size_t at = r + 16 * l;
                lanes product =
                    lanes_mul(lanes_load(weight + i * weight_stride + at), lanes_load(scale + at));
                lanes exact = lanes_fma(product, inverse[i], rest[i]);
                code[l] = lanes_round(exact);
                rest[i] = lanes_sub(exact, code[l]);
            }
            lanes_digits(code[0], code[1], digits[i] + PAGE_DIGIT(r, 0));
        }
}

/* A block of 32 columns times the weights of n (a constant) inputs. */
KERNEL_LOOP void add_block(const struct quant_page *values, size_t block, const float *scale,
                           const float *weight, size_t weight_stride, size_t n, float *y, bool ask)
{
    const struct page_block *from = (const struct page_block *)values->data + block;
    uint8_t digits[PAGE_INPUTS][2 * QUANT_PAGE_ROWS];
    float one[PAGE_INPUTS];
    counts sum[PAGE_INPUTS][2][2];
    weight_digits(weight, weight_stride, scale, values->n_rows, n, digits, one);
    for (size_t i = 0; i < n; i++)
        for (size_t k = 0; k < 4; k++)
            sum[i][k / 2][k % 2] = counts_zero();
    for (size_t row = 0; row < values->n_rows; row += 32) {
        const uint8_t *stored = from->code + PAGE_VALUE(row, 0);
        if (ask)
            page_ask(values, block, row, 32);
        UNROLL
        for (size_t r = 0; r < 32; r += 4)
            for (size_t i = 0; i < n; i++)
                for (size_t d = 0; d < 2; d++)
                    for (size_t l = 0; l < 2; l++)
                        sum[i][d][l] =
                            counts_values(sum[i][d][l], stored + PAGE_VALUE(r, 16 * l),
                                          digits[i] + PAGE_DIGIT(row, 0) + PAGE_DIGIT(r, d));
    }
    for (size_t i = 0; i < n; i++, y += values->n_cols)
        for (size_t l = 0; l < 2; l++)
            lanes_store(y + 16 * l, lanes_fma(lanes_set(one[i]),
                                              lanes_of(counts_join(sum[i][0][l], sum[i][1][l])),
                                              lanes_load(y + 16 * l)));
}

static void page_add(const struct quant_page *values, const float *weight, size_t weight_stride,
                     size_t n_inputs, float *y)
{
    const struct page_block *block = values->data;
    for (size_t b = 0; b < values->n_cols / 32; b++, y += 32) {
        float scale[QUANT_PAGE_ROWS];
        size_t i = 0;
        for (size_t row = 0; row < values->n_rows; row += 16)
            lanes_store(scale + row, lanes_halves(block[b].scale + row));
        for (size_t row = values->n_rows; row % 32 != 0; row++)
            scale[row] = 0; /* what was never written may be NaN */
        for (; n_inputs - i >= PAGE_INPUTS; i += PAGE_INPUTS)
            add_block(values, b, scale, weight + i * weight_stride, weight_stride, PAGE_INPUTS,
                      y + i * values->n_cols, i == 0);
        for (; i < n_inputs; i++)
            add_block(values, b, scale, weight + i * weight_stride, weight_stride, 1,
                      y + i * values->n_cols, i == 0);
    }
}
