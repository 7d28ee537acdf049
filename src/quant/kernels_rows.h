/* The loops of attention, and the exponentials, written once for all instruction sets. Included by
 * kernels_loops.h, after the lanes and widen_NAME that it lists. Also from the instruction set:
 *
 *   lanes_highest(lanes)     the largest lane
 *   lanes_turn(lanes v[16])  transposes sixteen times sixteen
 *   ADD_INPUTS, ADD_UNITS    a tile of so many inputs and units stays in registers
 */

/* ---- Widening -------------------------------------------------------------------------------- */

/* Unit u of up to n rows from `first` on, made n whole units: zeros complete a short one, and the
 * last row is repeated. */
KERNEL_LOOP void complete_units(const struct quant_matrix *rows, size_t first, size_t u, size_t n,
                                size_t unit_bytes, uint8_t spare[][FLOAT_UNIT_LEN * sizeof(float)])
{
    size_t n_cols = MIN(rows->n_cols - u * FLOAT_UNIT_LEN, (size_t)FLOAT_UNIT_LEN);
    for (size_t r = 0; r < n; r++) {
        const uint8_t *from = (const uint8_t *)rows->data +
                              MIN(first + r, rows->n_rows - 1) * rows->row_bytes + u * unit_bytes;
        memset(spare[r], 0, unit_bytes);
        memcpy(spare[r], from, n_cols * unit_bytes / FLOAT_UNIT_LEN);
    }
}

KERNEL_LOOP void widen_unit(const uint8_t *unit, float *dst, widen_fn *widen)
{
    lanes number[2];
    widen(unit, number);
    lanes_store(dst, number[0]);
    lanes_store(dst + 16, number[1]);
}

KERNEL_LOOP void widen_rows(const struct quant_matrix *rows, float *dst, widen_fn *widen,
                            size_t unit_bytes)
{
    uint8_t spare[1][FLOAT_UNIT_LEN * sizeof(float)];
    const uint8_t *row = rows->data;
    size_t n_units = rows->n_cols / FLOAT_UNIT_LEN;
    for (size_t r = 0; r < rows->n_rows; r++, row += rows->row_bytes) {
        for (size_t u = 0; u < n_units; u++, dst += FLOAT_UNIT_LEN)
            widen_unit(row + u * unit_bytes, dst, widen);
        if (rows->n_cols % FLOAT_UNIT_LEN == 0)
            continue;
        complete_units(rows, r, n_units, 1, unit_bytes, spare);
        widen_unit(spare[0], dst, widen);
        dst += FLOAT_UNIT_LEN;
    }
}

/* Sixteen units become 32 rows of sixteen numbers, one half (a constant) after the other so that
 * they stay in registers. */
KERNEL_LOOP void turn_half(const uint8_t *unit, size_t row_bytes, float *dst, size_t stride,
                           size_t half, widen_fn *widen)
{
    lanes v[16];
    for (size_t r = 0; r < 16; r++) {
        lanes number[2];
        widen(unit + r * row_bytes, number);
        v[r] = number[half];
    }
    lanes_turn(v);
    for (size_t c = 0; c < 16; c++)
        lanes_store(dst + (half * 16 + c) * stride, v[c]);
}

KERNEL_LOOP void turn_rows(const struct quant_matrix *rows, float *dst, size_t stride,
                           widen_fn *widen, size_t unit_bytes)
{
    uint8_t spare[16][FLOAT_UNIT_LEN * sizeof(float)];
    size_t n_units = (rows->n_cols + FLOAT_UNIT_LEN - 1) / FLOAT_UNIT_LEN;
    for (size_t first = 0; first < rows->n_rows; first += 16)
        for (size_t u = 0; u < n_units; u++) {
            const uint8_t *unit =
                (const uint8_t *)rows->data + first * rows->row_bytes + u * unit_bytes;
            size_t row_bytes = rows->row_bytes;
            if (rows->n_rows - first < 16 || rows->n_cols - u * FLOAT_UNIT_LEN < FLOAT_UNIT_LEN) {
                complete_units(rows, first, u, 16, unit_bytes, spare);
                unit = spare[0];
                row_bytes = sizeof spare[0];
            }
            turn_half(unit, row_bytes, dst + u * FLOAT_UNIT_LEN * stride + first, stride, 0, widen);
            turn_half(unit, row_bytes, dst + u * FLOAT_UNIT_LEN * stride + first, stride, 1, widen);
        }
}

#define DEFINE_ROWS(format, name, unit_bytes)                                                      \
    static void widen_rows_##name(const struct quant_matrix *rows, float *dst, size_t stride)      \
    {                                                                                              \
        (void)stride;                                                                              \
        widen_rows(rows, dst, widen_##name, unit_bytes);                                           \
    }                                                                                              \
    static void turn_rows_##name(const struct quant_matrix *rows, float *dst, size_t stride)       \
    {                                                                                              \
        turn_rows(rows, dst, stride, widen_##name, unit_bytes);                                    \
    }
FLOAT_FORMAT_LIST(DEFINE_ROWS)
DEFINE_ROWS(Q8_0, q8_0, sizeof(struct block_q8_0))
#undef DEFINE_ROWS

/* ---- Sums of rows ---------------------------------------------------------------------------- */

/* A tile of n_inputs times n_units (both constant) from column c of input i on. */
KERNEL_LOOP void add_tile(const struct quant_sums *s, size_t i, size_t c, size_t n_inputs,
                          size_t n_units, widen_fn *widen, size_t unit_bytes)
{
    lanes sum[ADD_INPUTS][2 * ADD_UNITS], number[2 * ADD_UNITS];
    const float *weight = s->weight + i * s->weight_stride;
    size_t offset = c / FLOAT_UNIT_LEN * unit_bytes;
    float *y = s->y + i * s->y_stride + c;
    for (size_t k = 0; k < n_inputs; k++)
        for (size_t l = 0; l < 2 * n_units; l++)
            sum[k][l] = s->from_zero ? lanes_zero() : lanes_load(y + k * s->y_stride + 16 * l);
    for (size_t r = 0; r < s->rows.n_rows; r++, offset += s->rows.row_bytes) {
        for (size_t u = 0; u < n_units; u++) {
            widen((const uint8_t *)s->rows.data + offset + u * unit_bytes, number + 2 * u);
            if (s->next != NULL && i == 0)
                __builtin_prefetch((const uint8_t *)s->next + offset + u * unit_bytes);
        }
        for (size_t k = 0; k < n_inputs; k++) {
            lanes scale = lanes_set(weight[k * s->weight_stride + r]);
            for (size_t l = 0; l < 2 * n_units; l++)
                sum[k][l] = lanes_fma(number[l], scale, sum[k][l]);
        }
    }
    for (size_t k = 0; k < n_inputs; k++)
        for (size_t l = 0; l < 2 * n_units; l++)
            lanes_store(y + k * s->y_stride + 16 * l, sum[k][l]);
}

/* All inputs, while the columns are in the first cache. */
KERNEL_LOOP void add_columns(const struct quant_sums *s, size_t c, size_t n_units, widen_fn *widen,
                             size_t unit_bytes)
{
    size_t i = 0;
    for (; s->n_inputs - i >= ADD_INPUTS; i += ADD_INPUTS)
        add_tile(s, i, c, ADD_INPUTS, n_units, widen, unit_bytes);
    if (ADD_INPUTS > 2 && s->n_inputs - i >= 2) {
        add_tile(s, i, c, 2, n_units, widen, unit_bytes);
        i += 2;
    }
    if (i < s->n_inputs)
        add_tile(s, i, c, 1, n_units, widen, unit_bytes);
}

KERNEL_LOOP void add_rows(const struct quant_sums *s, widen_fn *widen, size_t unit_bytes)
{
    const size_t wide = ADD_UNITS * FLOAT_UNIT_LEN;
    size_t c = 0;
    for (; s->rows.n_cols - c >= wide; c += wide)
        add_columns(s, c, ADD_UNITS, widen, unit_bytes);
    for (; c < s->rows.n_cols; c += FLOAT_UNIT_LEN)
        add_columns(s, c, 1, widen, unit_bytes);
}

#define DEFINE_SUMS(format, name, unit_bytes)                                                      \
    static void add_rows_##name(const struct quant_sums *s)                                        \
    {                                                                                              \
        add_rows(s, widen_##name, unit_bytes);                                                     \
    }
FLOAT_FORMAT_LIST(DEFINE_SUMS)
DEFINE_SUMS(Q8_0, q8_0, sizeof(struct block_q8_0))
#undef DEFINE_SUMS

/* ---- Exponentials ---------------------------------------------------------------------------- */

/* exp(x) = 2^k exp(r) with k whole and |r| <= ln 2 / 2. The polynomial interpolates exp(r) - 1 - r
 * at Chebyshev's points, with a relative error below 1.1e-8. From k = -127 on the power is zero. */
KERNEL_LOOP lanes lanes_exp(lanes x)
{
    static const float terms[] = {8.36317893e-3f, 4.16665561e-2f, 0.166665763f, 0.5f, 1.0f, 1.0f};
    x = lanes_max(x, lanes_set(-88.0f));
    lanes k = lanes_round(lanes_mul(x, lanes_set(1.44269504f)));
    lanes r = lanes_fma(k, lanes_set(-0.693359375f), x); /* ln 2 in two parts (Cody and Waite) */
    r = lanes_fma(k, lanes_set(2.12194440e-4f), r);
    lanes value = lanes_set(1.3926184e-3f);
    for (size_t i = 0; i < ARRAY_COUNT(terms); i++)
        value = lanes_fma(value, r, lanes_set(terms[i]));
    return lanes_mul(value, lanes_power(k));
}

static float exp_sum(float *x, size_t n, float *highest, float *factor)
{
    float before = *highest;
    lanes most = lanes_set(before), sum = lanes_zero();
    for (size_t i = 0; i < n; i += 16)
        most = lanes_max(most, lanes_load(x + i));
    *highest = lanes_highest(most);
    lanes shift = lanes_set(-*highest);
    for (size_t i = 0; i < n; i += 16) {
        lanes value = lanes_exp(lanes_add(lanes_load(x + i), shift));
        sum = lanes_add(sum, value);
        lanes_store(x + i, value);
    }
    if (factor != NULL) {
        float ratio[16];
        lanes_store(ratio, lanes_exp(lanes_set(before - *highest)));
        *factor = ratio[0];
    }
    return lanes_sum(sum);
}

KERNEL_LOOP void sigmoid_lanes(float *x)
{
    const lanes one = lanes_set(1.0f);
    lanes below = lanes_max(lanes_load(x), lanes_set(-87.0f)); /* keeps exp(-x) finite */
    lanes power = lanes_exp(lanes_mul(below, lanes_set(-1.0f)));
    lanes_store(x, lanes_div(one, lanes_add(one, power)));
}

static void sigmoid(float *x, size_t n)
{
    for (; n >= 16; n -= 16, x += 16)
        sigmoid_lanes(x);
    float rest[16] = {0};
    memcpy(rest, x, n * sizeof *x);
    sigmoid_lanes(rest);
    memcpy(x, rest, n * sizeof *x);
}
