/* The products with block formats, written once for all instruction sets. Included by
 * kernels_loops.h; each kernels_ISA.c defines before it:
 *
 *   struct unit            256 weights of a row, unpacked
 *   unpack_NAME(src, unit) for each block format: src holds one unit
 *   STRIP_ROWS             rows in a strip, 1 or 2
 *   pack_unit(x, packed_unit)  256 activations
 *   quads                  a vector of codes: four of each block, of all rows of a strip
 *   struct strip           { quads code[8]; sums scale[2], min[2]; }: the units of a strip's rows,
 *                          lanes by block; of a whole block (scale[0]) or of its two halves
 *   join(unit[STRIP_ROWS], strip, centre, halves)
 *   keep(quads)            the same, in a register from here on
 *   input_codes(packed_unit, v)
 *   ints                   sums of products, by lane: input_ints(from) spreads one of packed_unit's
 *                          sums over the rows; ints_begin(ints, centre) is what the sum of products
 *                          begins with: what the centre takes away, or 0
 *   partial                sums that grow over up to PARTIAL_VECTORS(centre) vectors of codes:
 *                          partial_zero, partial_add(partial, quads, quads, centre),
 *                          partial_end(ints, partial)
 *   sums                   float lanes: sums_zero, sums_of(ints), sums_mul, sums_fma (a b + c),
 *                          sums_fnma (c - a b), input_scale(packed_unit),
 *                          sums_totals(sums[n], n, float[n * STRIP_ROWS]), n 1 or TILE_STRIPS
 *   TILE_STRIPS, TILE_INPUTS  what a tile multiplies at a time
 */

/* Weights are unpacked once for SLAB_INPUTS inputs: slabs of SLAB_ROWS rows by SLAB_UNITS units,
 * which the first-level cache holds, while the inputs pass by from the second. */
#define SLAB_ROWS 8
#define SLAB_UNITS 8
#define SLAB_INPUTS 256
#define SLAB_STRIPS (SLAB_ROWS / STRIP_ROWS)

#ifndef UNROLL
#define UNROLL _Pragma("GCC unroll 8")
#endif

typedef void unpack_fn(const void *src, struct unit *unit);

/* What is constant for a format. */
struct block_kind {
    unpack_fn *unpack;
    size_t unit_bytes, block_bytes, block_len;
    int centre;
    size_t halves; /* scales of a block of 32 numbers */
};

/* Unit u of a row; the last one may be short, and is then completed with zeros in spare. */
KERNEL_LOOP const void *unit_of_row(const uint8_t *row, size_t u, size_t n_cols,
                                    struct block_kind kind, uint8_t *spare)
{
    const uint8_t *src = row + u * kind.unit_bytes;
    if (n_cols - u * UNIT_LEN >= UNIT_LEN)
        return src;
    memset(spare, 0, kind.unit_bytes);
    memcpy(spare, src, (n_cols - u * UNIT_LEN) / kind.block_len * kind.block_bytes);
    return spare;
}

/* Unit u of the rows from data on, row_step bytes apart. */
KERNEL_LOOP void unpack_strip(const uint8_t *data, size_t row_step, size_t u, size_t n_cols,
                              struct block_kind kind, struct strip *strip)
{
    uint8_t spare[STRIP_ROWS][UNIT_LEN / BLOCK_LEN * sizeof(struct block_q8_0)];
    struct unit unit[STRIP_ROWS]; /* may go on pointing to the row, or to spare */
    for (size_t k = 0; k < STRIP_ROWS; k++)
        kind.unpack(unit_of_row(data + k * row_step, u, n_cols, kind, spare[k]), &unit[k]);
    join(unit, strip, kind.centre, kind.halves);
}

/* sum += n_strips strips of weights, w_stride apart, times n_inputs inputs, x_stride apart. Both
 * counts are constants, and so are the loops over vectors: all sums stay in registers. */
KERNEL_LOOP void unit_tile(sums sum[TILE_INPUTS][TILE_STRIPS], const struct strip *w,
                           size_t w_stride, const struct packed_unit *x, size_t x_stride,
                           size_t n_strips, size_t n_inputs, struct block_kind kind)
{
    sums value[TILE_INPUTS][TILE_STRIPS];
    const size_t half_vectors = 8 / kind.halves, room = PARTIAL_VECTORS(kind.centre);
    /* A single sum would wait for each of its additions. */
    const size_t chain = n_strips * n_inputs == 1 ? MIN(room, (size_t)4) : room;
    const size_t step = MIN(half_vectors, chain);
    for (size_t i = 0; i < n_inputs; i++)
        for (size_t s = 0; s < n_strips; s++)
            value[i][s] = sums_zero();
    for (size_t h = 0; h < kind.halves; h++) {
        const size_t which = kind.halves == 1 ? 0 : h + 1;
        ints total[TILE_INPUTS][TILE_STRIPS];
        for (size_t i = 0; i < n_inputs; i++) {
            ints begin = ints_begin(input_ints(x[i * x_stride].sum[which]), kind.centre);
            for (size_t s = 0; s < n_strips; s++)
                total[i][s] = begin;
        }
        UNROLL
        for (size_t begin = 0; begin < half_vectors; begin += step) {
            partial sub[TILE_INPUTS][TILE_STRIPS];
            for (size_t i = 0; i < n_inputs; i++)
                for (size_t s = 0; s < n_strips; s++)
                    sub[i][s] = partial_zero();
            UNROLL
            for (size_t v = h * half_vectors + begin; v < h * half_vectors + begin + step; v++) {
                quads weight[TILE_STRIPS];
                for (size_t s = 0; s < n_strips; s++)
                    weight[s] =
                        n_strips > 1 ? keep(w[s * w_stride].code[v]) : w[s * w_stride].code[v];
                for (size_t i = 0; i < n_inputs; i++) {
                    quads a = input_codes(&x[i * x_stride], v);
                    for (size_t s = 0; s < n_strips; s++)
                        sub[i][s] = partial_add(sub[i][s], weight[s], a, kind.centre);
                }
            }
            for (size_t i = 0; i < n_inputs; i++)
                for (size_t s = 0; s < n_strips; s++)
                    total[i][s] = partial_end(total[i][s], sub[i][s]);
        }
        for (size_t i = 0; i < n_inputs; i++) {
            sums codes_sum = sums_of(input_ints(x[i * x_stride].sum[which]));
            for (size_t s = 0; s < n_strips; s++) {
                const struct strip *from = &w[s * w_stride];
                sums product = sums_of(total[i][s]);
                value[i][s] = h == 0 ? sums_mul(from->scale[0], product)
                                     : sums_fma(from->scale[h], product, value[i][s]);
                if (kind.centre == HAS_MIN)
                    value[i][s] = sums_fnma(from->min[h], codes_sum, value[i][s]);
            }
        }
    }
    for (size_t i = 0; i < n_inputs; i++) {
        sums scale = input_scale(&x[i * x_stride]);
        for (size_t s = 0; s < n_strips; s++)
            sum[i][s] = sums_fma(scale, value[i][s], sum[i][s]);
    }
}

/* ---- Few inputs ------------------------------------------------------------------------------ */

/* Processors foresee reads within a page of memory only; rows are read this far ahead. A whole page
 * is 7 % slower on Sapphire Rapids, 2 KiB are 4 % slower on Zen 5. */
#define FEW_AHEAD_BYTES 3072

#define FEW_INPUTS (2 * TILE_INPUTS)

/* Some inputs: the first n, and n from second on where that is not 0; n is a constant. */
struct few {
    const struct quant_matrix *w;
    const struct packed_unit *x;
    size_t n, second;
};

/* The strip of the rows at data, row_step bytes apart, is used where it is unpacked, in
 * registers. */
KERNEL_LOOP void few_strip(struct few few, const uint8_t *data, size_t row_step, bool two,
                           float total[FEW_INPUTS][STRIP_ROWS], struct block_kind kind)
{
    size_t n_units = (few.w->n_cols + UNIT_LEN - 1) / UNIT_LEN;
    const struct packed_unit *x = few.x, *other = few.x + few.second * n_units;
    sums sum[2][TILE_INPUTS][TILE_STRIPS];
    for (size_t i = 0; i < few.n; i++)
        sum[0][i][0] = sum[1][i][0] = sums_zero();
    for (size_t u = 0; u < n_units; u++) {
        struct strip strip;
        for (size_t k = 0; k < STRIP_ROWS; k++)
            for (size_t b = 0; b < kind.unit_bytes; b += 64)
                __builtin_prefetch(data + k * row_step + u * kind.unit_bytes + b + FEW_AHEAD_BYTES);
        unpack_strip(data, row_step, u, few.w->n_cols, kind, &strip);
        unit_tile(sum[0], &strip, 0, x + u, n_units, 1, few.n, kind);
        if (two)
            unit_tile(sum[1], &strip, 0, other + u, n_units, 1, few.n, kind);
    }
    for (size_t i = 0; i < few.n; i++) {
        sums_totals(sum[0][i], 1, total[i]);
        if (two)
            sums_totals(sum[1][i], 1, total[few.second + i]);
    }
}

/* n_inputs is a constant up to TILE_INPUTS; with two, up to FEW_INPUTS are computed in two tiles,
 * which may overlap. The rows of a strip are far apart, so that each of them is read in one long
 * run. */
KERNEL_LOOP void few_inputs(const struct quant_matrix *w, size_t row_begin, size_t row_end,
                            const struct packed_unit *x, size_t n_inputs, bool two, float *y,
                            size_t y_stride, struct block_kind kind)
{
    size_t step = (row_end - row_begin) / STRIP_ROWS;
    const uint8_t *data = (const uint8_t *)w->data;
    struct few few = {w, x, two ? TILE_INPUTS : n_inputs, two ? n_inputs - TILE_INPUTS : 0};
    float total[FEW_INPUTS][STRIP_ROWS];
    for (size_t r = row_begin; r < row_begin + step; r++) {
        few_strip(few, data + r * w->row_bytes, step * w->row_bytes, two, total, kind);
        for (size_t i = 0; i < n_inputs; i++)
            for (size_t k = 0; k < STRIP_ROWS; k++)
                y[i * y_stride + r + k * step] = total[i][k];
    }
    for (size_t r = row_begin + STRIP_ROWS * step; r < row_end; r++) {
        few_strip(few, data + r * w->row_bytes, 0, two, total, kind);
        for (size_t i = 0; i < n_inputs; i++)
            y[i * y_stride + r] = total[i][0];
    }
}

/* ---- Several inputs -------------------------------------------------------------------------- */

/* n_rows rows times n_inputs inputs, some units at a time: n_units from unit on. */
struct slab {
    const struct quant_matrix *w;
    const struct packed_unit *x; /* of the first input */
    float *y;                    /* of the first row and input */
    size_t row, n_rows, n_inputs, row_units, y_stride;
    size_t unit, n_units;
    size_t asked, ask; /* rows of the slab below: asked for already, and by each tile */
    struct strip strip[SLAB_STRIPS][SLAB_UNITS];
    sums sum[SLAB_INPUTS][SLAB_STRIPS]; /* of the units before */
};

KERNEL_LOOP void unpack_slab(struct slab *p, struct block_kind kind)
{
    const size_t row_bytes = p->w->row_bytes;
    for (size_t r = 0; r < p->n_rows; r += STRIP_ROWS) {
        const uint8_t *data = (const uint8_t *)p->w->data + (p->row + r) * row_bytes;
        size_t step = p->n_rows - r < STRIP_ROWS ? 0 : row_bytes;
        for (size_t u = 0; u < p->n_units; u++)
            unpack_strip(data, step, p->unit + u, p->w->n_cols, kind, &p->strip[r / STRIP_ROWS][u]);
    }
}

/* n_strips strips from strip on times n_inputs inputs from input on; both counts are constants.
 * Meanwhile rows of the slab below come into the second cache. */
KERNEL_LOOP void slab_tile(struct slab *p, size_t strip, size_t n_strips, size_t input,
                           size_t n_inputs, struct block_kind kind)
{
    const struct packed_unit *x = p->x + input * p->row_units + p->unit;
    sums sum[TILE_INPUTS][TILE_STRIPS];
    for (size_t i = 0; i < n_inputs; i++)
        for (size_t s = 0; s < n_strips; s++)
            sum[i][s] = p->unit == 0 ? sums_zero() : p->sum[input + i][strip + s];
    const uint8_t *below = (const uint8_t *)p->w->data +
                           (p->row + p->n_rows + p->asked) * p->w->row_bytes +
                           p->unit * kind.unit_bytes;
    const size_t ask = p->asked < SLAB_ROWS ? p->ask : 0;
    for (size_t u = 0; u < p->n_units; u++) {
        for (size_t r = 0; r < ask; r++)
            for (size_t b = 0; b < kind.unit_bytes; b += 64)
                __builtin_prefetch(below + r * p->w->row_bytes + u * kind.unit_bytes + b, 0, 2);
        unit_tile(sum, &p->strip[strip][u], SLAB_UNITS, x + u, p->row_units, n_strips, n_inputs,
                  kind);
    }
    p->asked += ask;
    if (p->unit + p->n_units < p->row_units) {
        for (size_t i = 0; i < n_inputs; i++)
            for (size_t s = 0; s < n_strips; s++)
                p->sum[input + i][strip + s] = sum[i][s];
        return;
    }
    const size_t row = strip * STRIP_ROWS, n_rows = n_strips * STRIP_ROWS;
    for (size_t i = 0; i < n_inputs; i++) {
        float total[TILE_STRIPS * STRIP_ROWS], *y = p->y + (input + i) * p->y_stride + row;
        sums_totals(sum[i], n_strips, total);
        if (p->n_rows - row >= n_rows)
            memcpy(y, total, n_rows * sizeof *y); /* of constant length */
        else
            memcpy(y, total, (p->n_rows - row) * sizeof *y);
    }
}

KERNEL_LOOP void slab_inputs(struct slab *p, size_t input, size_t n_inputs, struct block_kind kind)
{
    size_t s = 0, n_strips = (p->n_rows + STRIP_ROWS - 1) / STRIP_ROWS;
    for (; n_strips - s >= TILE_STRIPS; s += TILE_STRIPS)
        slab_tile(p, s, TILE_STRIPS, input, n_inputs, kind);
    for (; s < n_strips; s++)
        slab_tile(p, s, 1, input, n_inputs, kind);
}

KERNEL_LOOP void block_slab(struct slab *p, struct block_kind kind)
{
    for (p->unit = 0; p->unit < p->row_units; p->unit += SLAB_UNITS) {
        const size_t tile = kind.halves == 2 ? TILE_INPUTS / 2 : TILE_INPUTS;
        size_t i = 0;
        p->n_units = MIN((size_t)SLAB_UNITS, p->row_units - p->unit);
        size_t tiles = (p->n_inputs / tile + p->n_inputs % tile) * (SLAB_STRIPS / TILE_STRIPS);
        p->ask = (SLAB_ROWS + tiles - 1) / tiles;
        p->asked = 0;
        unpack_slab(p, kind);
        for (; p->n_inputs - i >= tile; i += tile)
            slab_inputs(p, i, tile, kind);
        for (; i < p->n_inputs; i++)
            slab_inputs(p, i, 1, kind);
    }
}

KERNEL_LOOP void block_matmul(const struct quant_matrix *w, size_t row_begin, size_t row_end,
                              const struct packed_unit *x, size_t n_inputs, float *y,
                              size_t y_stride, struct block_kind kind)
{
    switch (n_inputs) {
    case 1:
        few_inputs(w, row_begin, row_end, x, 1, false, y, y_stride, kind);
        return;
    case 2:
        few_inputs(w, row_begin, row_end, x, 2, false, y, y_stride, kind);
        return;
    case 3:
        few_inputs(w, row_begin, row_end, x, 3, false, y, y_stride, kind);
        return;
    case 4:
        few_inputs(w, row_begin, row_end, x, 4, false, y, y_stride, kind);
        return;
    }
    if (n_inputs <= FEW_INPUTS) {
        few_inputs(w, row_begin, row_end, x, n_inputs, true, y, y_stride, kind);
        return;
    }
    struct slab p;
    p.w = w;
    p.row_units = (w->n_cols + UNIT_LEN - 1) / UNIT_LEN;
    p.y_stride = y_stride;
    for (size_t i = 0; i < n_inputs; i += SLAB_INPUTS)
        for (size_t row = row_begin; row < row_end; row += SLAB_ROWS) {
            p.x = x + i * p.row_units;
            p.y = y + i * y_stride + row;
            p.row = row;
            p.n_rows = MIN(row_end - row, (size_t)SLAB_ROWS);
            p.n_inputs = MIN(n_inputs - i, (size_t)SLAB_INPUTS);
            block_slab(&p, kind);
        }
}

#define DEFINE_BLOCK_MATMUL(format, name, n_blocks, centre, halves)                                \
    static void matmul_##name(const struct quant_matrix *w, size_t row_begin, size_t row_end,      \
                              const void *packed, size_t n_inputs, float *y, size_t y_stride)      \
    {                                                                                              \
        const size_t bytes = sizeof(struct block_##name);                                          \
        block_matmul(w, row_begin, row_end, packed, n_inputs, y, y_stride,                         \
                     (struct block_kind){unpack_##name, (n_blocks)*bytes, bytes,                   \
                                         UNIT_LEN / (n_blocks), centre, halves});                  \
    }
BLOCK_FORMAT_LIST(DEFINE_BLOCK_MATMUL)
#undef DEFINE_BLOCK_MATMUL

static void pack_units(const float *x, struct packed_unit *packed, size_t n_cols)
{
    for (; n_cols >= UNIT_LEN; n_cols -= UNIT_LEN, x += UNIT_LEN)
        pack_unit(x, packed++);
    if (n_cols > 0) {
        float rest[UNIT_LEN] = {0};
        memcpy(rest, x, n_cols * sizeof *x);
        pack_unit(rest, packed);
    }
}
