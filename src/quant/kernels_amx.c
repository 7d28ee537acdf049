/* Panels with AMX (see kernels.h): a strip of 32 rows of weights is unpacked to bf16, UNIT_LEN
 * columns at a time, into the first-level cache; all inputs pass over it from the second. Their
 * sums wait there for the next columns, for as many rows as it has room for, so that the inputs,
 * which lie further away, are read once for all of these. The tiles of the matrix unit hold a block
 * of sums of 32 inputs and 32 rows:
 *
 *   tiles 0 to 3   sums      [input half][row half]   16 inputs x 16 rows of float
 *   tiles 4, 5     inputs    [half]                   16 inputs x 32 numbers
 *   tiles 6, 7     weights   [half]                   16 pairs of numbers x 16 rows
 *
 * Tiles are always whole: what is not there is zeros among the weights and the packed inputs, and
 * its sums are not copied out. A strip lies in memory as the tiles want it:
 *
 *   [step of 32 numbers][half of the rows][pair][row][2]
 */
#include "quant/kernels_avx512.h"
#include "quant/kernels_tiles.h"

#define STRIP_ROWS 32
#define PANEL_ROWS 256
#define PANEL_INPUTS 512
#define BLOCK_INPUTS (2 * PANEL_BLOCK)

#define STEP_NUMBERS (STRIP_ROWS * PANEL_STEP) /* of one step of a strip */
#define TILE_FLOATS (TILE_BYTES / sizeof(float))
#define BLOCK_FLOATS (4 * TILE_FLOATS)
#define PANEL_STRIPS (PANEL_ROWS / STRIP_ROWS)
#define PANEL_BLOCKS (PANEL_INPUTS / BLOCK_INPUTS)

static _Thread_local struct {
    _Alignas(64) uint16_t weights[PANEL_UNIT_STEPS * STEP_NUMBERS];
    _Alignas(64) float sums[PANEL_STRIPS][PANEL_BLOCKS][BLOCK_FLOATS]; /* of the columns so far */
} panel;

/* ---- Rounding -------------------------------------------------------------------------------- */

/* Numbers to bf16, those of low first. */
INLINE __m512i to_bf16(__m512 low, __m512 high)
{
    return (__m512i)_mm512_cvtne2ps_pbh(high, low);
}

/* bf16 numbers in the order of PANEL_AT. */
INLINE __m512i in_panel_order(__m512i numbers)
{
    return _mm512_shuffle_epi8(numbers, _mm512_broadcast_i32x4(_mm_setr_epi8(
                                            0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15)));
}

static void pack_bf16(const float *x, size_t n_cols, uint16_t *packed, size_t i, size_t n)
{
    size_t n_steps = panel_steps(n_cols), step = 0;
    for (size_t c = 0; c < n_cols; c += PANEL_STEP, step++) {
        size_t rest = MIN(n_cols - c, (size_t)PANEL_STEP);
        __mmask32 mask = (__mmask32)(((uint64_t)1 << rest) - 1);
        __m512 low = _mm512_maskz_loadu_ps((__mmask16)mask, x + c);
        __m512 high = _mm512_maskz_loadu_ps((__mmask16)(mask >> 16), x + c + 16);
        uint16_t *to = packed + panel_at(i, n, step, n_steps);
        _mm512_storeu_si512(to, in_panel_order(to_bf16(low, high)));
        for (size_t p = i + 1; i + 1 == n && p % PANEL_BLOCK != 0; p++)
            _mm512_storeu_si512(to += PANEL_STEP, _mm512_setzero_si512());
    }
}

/* ---- Unpacking ------------------------------------------------------------------------------- */

/* Exchanges quarter q of vector i with quarter i of vector q, of v[0], v[apart] and so on. */
INLINE void turn_quarters(__m512i *v, size_t apart)
{
    __m512i *v0 = v, *v1 = v + apart, *v2 = v + 2 * apart, *v3 = v + 3 * apart;
    __m512i a = _mm512_shuffle_i32x4(*v0, *v1, 0x44), b = _mm512_shuffle_i32x4(*v2, *v3, 0x44);
    __m512i c = _mm512_shuffle_i32x4(*v0, *v1, 0xEE), d = _mm512_shuffle_i32x4(*v2, *v3, 0xEE);
    *v0 = _mm512_shuffle_i32x4(a, b, 0x88);
    *v1 = _mm512_shuffle_i32x4(a, b, 0xDD);
    *v2 = _mm512_shuffle_i32x4(c, d, 0x88);
    *v3 = _mm512_shuffle_i32x4(c, d, 0xDD);
}

/* Lane i of vector k becomes lane k of vector i. */
INLINE void turn_lanes(__m512i v[16])
{
    for (int i = 0; i < 16; i += 4)
        turn(v + i);
    for (int i = 0; i < 4; i++)
        turn_quarters(v + i, 4);
}

/* Sixteen rows of a strip and the UNIT_LEN columns from col on, as tiles; rows and columns that are
 * not there are zeros. */
struct half_strip {
    const struct quant_matrix *w;
    size_t row, n_rows, col;
    size_t ahead; /* bytes from a unit to the one that is asked for */
    uint16_t *to; /* the first tile; the others are STEP_NUMBERS apart */
};
typedef void strip_fn(const struct half_strip *strip);

struct unpacking {
    void (*unpack)(const void *src, struct unit *unit);
    size_t unit_bytes, block_bytes, block_len;
    int centre;
};

/* Row r of the strip; a short last unit is filled up with zeros. */
INLINE void unpack_row(const struct half_strip *strip, size_t r, struct unpacking how,
                       struct unit *unit)
{
    const struct quant_matrix *w = strip->w;
    const uint8_t *src = (const uint8_t *)w->data + (strip->row + r) * w->row_bytes +
                         strip->col / UNIT_LEN * how.unit_bytes;
    uint8_t spare[UNIT_LEN / BLOCK_LEN * sizeof(struct block_q8_0)];
    for (size_t b = 0; b < how.unit_bytes; b += 64)
        __builtin_prefetch(src + strip->ahead + b, 0, 2);
    if (w->n_cols - strip->col < UNIT_LEN) {
        memset(spare, 0, how.unit_bytes);
        memcpy(spare, src, (w->n_cols - strip->col) / how.block_len * how.block_bytes);
        src = spare;
    }
    how.unpack(src, unit);
    spread_codes(unit);
}

/* Scales and minima of a group of 16 numbers: of rows 0 to 7, each twice, and of rows 8 to 15. */
struct group {
    __m512 scale[2], min[2];
};

INLINE struct group group_of_rows(__m512i scale, __m512i min, int centre)
{
    const __m512i first = _mm512_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7);
    const __m512i second = _mm512_add_epi32(first, _mm512_set1_epi32(8));
    struct group group;
    group.scale[0] = _mm512_castsi512_ps(_mm512_permutexvar_epi32(first, scale));
    group.scale[1] = _mm512_castsi512_ps(_mm512_permutexvar_epi32(second, scale));
    if (centre == HAS_MIN) {
        group.min[0] = _mm512_castsi512_ps(_mm512_permutexvar_epi32(first, min));
        group.min[1] = _mm512_castsi512_ps(_mm512_permutexvar_epi32(second, min));
    } else {
        const __m512 middle = _mm512_set1_ps((float)(1 << centre));
        group.min[0] = _mm512_mul_ps(group.scale[0], middle);
        group.min[1] = _mm512_mul_ps(group.scale[1], middle);
    }
    return group;
}

/* Byte i of each 32-bit lane, as a number. */
INLINE __m512 byte_of_lanes(__m512i bytes, int i)
{
    __m128i first =
        _mm_setr_epi32((int)0x80808000, (int)0x80808004, (int)0x80808008, (int)0x8080800C);
    __m512i take = _mm512_broadcast_i32x4(_mm_add_epi32(first, _mm_set1_epi32(i)));
    return _mm512_cvtepi32_ps(_mm512_shuffle_epi8(bytes, take));
}

/* codes[half of the rows]: eight codes a row. Makes four pairs of each row, (i, i + 4). */
INLINE void put_pairs(const __m512i codes[2], const struct group *group, uint16_t *to)
{
    for (int i = 0; i < 4; i++) {
        __m512 number[2];
        for (int h = 0; h < 2; h++)
            number[h] = _mm512_fmsub_ps(byte_of_lanes(codes[h], i), group->scale[h], group->min[h]);
        _mm512_store_si512(to + i * (TILE_ROW_BYTES / 2), to_bf16(number[0], number[1]));
    }
}

INLINE void block_strip(const struct half_strip *strip, struct unpacking how)
{
    struct unit unit[TILE_ROWS];
    __m512i scale[UNIT_GROUPS], min[UNIT_GROUPS];
    memset(unit, 0, strip->n_rows < TILE_ROWS ? sizeof unit : 0);
    for (size_t r = 0; r < strip->n_rows; r++)
        unpack_row(strip, r, how, &unit[r]);
    for (int r = 0; r < TILE_ROWS; r++) {
        scale[r] = _mm512_castps_si512(unit[r].scale);
        min[r] = how.centre == HAS_MIN ? _mm512_castps_si512(unit[r].min) : scale[r];
    }
    turn_lanes(scale);
    if (how.centre == HAS_MIN)
        turn_lanes(min);
    for (int v = 0; v < 4; v++) {
        __m512i codes[2][2][4]; /* [eight of 16 codes][half of the rows][group of 16 codes] */
        for (int h = 0; h < 2; h++) {
            for (int i = 0; i < 4; i++) {
                const struct unit *two = &unit[8 * h + 2 * i];
                codes[0][h][i] = _mm512_unpacklo_epi64(two[0].code[v], two[1].code[v]);
                codes[1][h][i] = _mm512_unpackhi_epi64(two[0].code[v], two[1].code[v]);
            }
            turn_quarters(codes[0][h], 1);
            turn_quarters(codes[1][h], 1);
        }
        for (int g = 0; g < 4; g++) {
            int lane = UNIT_LANE(4 * v + g);
            struct group group = group_of_rows(scale[lane], min[lane], how.centre);
            uint16_t *to =
                strip->to + (2 * v + g / 2) * STEP_NUMBERS + g % 2 * 8 * (TILE_ROW_BYTES / 2);
            for (int e = 0; e < 2; e++)
                put_pairs((const __m512i[2]){codes[e][0][g], codes[e][1][g]}, &group,
                          to + e * 4 * (TILE_ROW_BYTES / 2));
        }
    }
}

#define DEFINE_STRIP(format, name, n_blocks, centre, ...)                                          \
    static void strip_##name(const struct half_strip *strip)                                       \
    {                                                                                              \
        const size_t bytes = sizeof(struct block_##name);                                          \
        block_strip(strip, (struct unpacking){unpack_##name, (n_blocks)*bytes, bytes,              \
                                              UNIT_LEN / (n_blocks), centre});                     \
    }
BLOCK_FORMAT_LIST(DEFINE_STRIP)
#undef DEFINE_STRIP

static void strip_bf16(const struct half_strip *strip)
{
    const struct quant_matrix *w = strip->w;
    for (size_t c = 0; c < UNIT_LEN; c += PANEL_STEP) {
        size_t col = MIN(strip->col + c, w->n_cols), n = MIN(w->n_cols - col, (size_t)PANEL_STEP);
        const uint8_t *from = (const uint8_t *)w->data + strip->row * w->row_bytes + 2 * col;
        __m512i v[TILE_ROWS];
        for (size_t r = 0; r < TILE_ROWS; r++) {
            __mmask32 mask = r < strip->n_rows ? (__mmask32)(((uint64_t)1 << n) - 1) : 0;
            v[r] = in_panel_order(_mm512_maskz_loadu_epi16(mask, from + r * w->row_bytes));
        }
        turn_lanes(v);
        for (size_t p = 0; p < TILE_ROWS; p++)
            _mm512_store_si512(strip->to + c / PANEL_STEP * STEP_NUMBERS + p * (TILE_ROW_BYTES / 2),
                               v[p]);
    }
}

static strip_fn *const strips[QUANT_FORMAT_COUNT] = {
#define STRIP_FIELD(format, name, ...) [QUANT_##format] = strip_##name,
    BLOCK_FORMAT_LIST(STRIP_FIELD) STRIP_FIELD(BF16, bf16)
#undef STRIP_FIELD
};

/* ---- Products -------------------------------------------------------------------------------- */

/* Where a block of sums lies; distances in floats. */
struct place {
    float *at;
    size_t stride, inputs,
        rows; /* from one input, half of the inputs, half of the rows to the next */
};

struct block {
    const uint8_t *x;  /* of the first input */
    size_t half_bytes; /* to the second half of the inputs */
    size_t n_steps;
    const uint8_t *ahead;
    bool from_zero; /* else sums begin with what lies at from */
    struct place from, to;
};

/* A block of sums, or one of only 16 inputs (halves is a constant). Asks for AHEAD_LINES a step of
 * the inputs of the next columns. */
#define AHEAD_LINES (BLOCK_INPUTS / PANEL_STRIPS)

INLINE void tile_block(struct block b, int halves)
{
    const uint8_t *weights = (const uint8_t *)panel.weights;
    if (b.from_zero) {
        tile_zero(0);
        tile_zero(1);
        if (halves > 1) {
            tile_zero(2);
            tile_zero(3);
        }
    } else {
        const size_t stride = b.from.stride * sizeof(float);
        tile_load(0, b.from.at, stride);
        tile_load(1, b.from.at + b.from.rows, stride);
        if (halves > 1) {
            tile_load(2, b.from.at + b.from.inputs, stride);
            tile_load(3, b.from.at + b.from.inputs + b.from.rows, stride);
        }
    }
    for (size_t step = 0; step < b.n_steps; step++) {
        tile_load(6, weights, TILE_ROW_BYTES);
        tile_load(4, b.x, TILE_ROW_BYTES);
        tile_dot_bf16(0, 4, 6);
        tile_load(7, weights + TILE_BYTES, TILE_ROW_BYTES);
        tile_dot_bf16(1, 4, 7);
        if (halves > 1) {
            tile_load(5, b.x + b.half_bytes, TILE_ROW_BYTES);
            tile_dot_bf16(2, 5, 6);
            tile_dot_bf16(3, 5, 7);
        }
        for (size_t i = 0; i < AHEAD_LINES; i++)
            __builtin_prefetch(b.ahead + i * TILE_ROW_BYTES, 0, 2);
        b.x += TILE_BYTES;
        b.ahead += AHEAD_LINES * TILE_ROW_BYTES;
        weights += 2 * TILE_BYTES;
    }
    const size_t stride = b.to.stride * sizeof(float);
    tile_store(0, b.to.at, stride);
    tile_store(1, b.to.at + b.to.rows, stride);
    if (halves > 1) {
        tile_store(2, b.to.at + b.to.inputs, stride);
        tile_store(3, b.to.at + b.to.inputs + b.to.rows, stride);
    }
}

/* Some columns: all inputs times the rows of the panel. */
struct sweep {
    const struct quant_matrix *w;
    const uint8_t *x; /* of the first input */
    size_t row, n_rows, n_inputs, col, n_steps;
    size_t ahead_bytes;    /* to the inputs of the next columns */
    bool first, last;      /* columns */
    enum panel_sums begin; /* what the first ones begin with */
    float *y;              /* of the first row and input */
    size_t y_stride;
};

/* What lies at number (input i, row r) of a block of sums. */
static size_t block_at(size_t i, size_t r)
{
    return i / TILE_ROWS * 2 * TILE_FLOATS + r / TILE_ROWS * TILE_FLOATS +
           i % TILE_ROWS * TILE_ROWS + r % TILE_ROWS;
}

static void fill_block(float *sums, size_t n_inputs, size_t n_rows, const float *y, size_t y_stride)
{
    for (size_t i = 0; i < n_inputs; i++)
        for (size_t r = 0; r < n_rows; r += TILE_ROWS)
            memcpy(sums + block_at(i, r), y + i * y_stride + r,
                   MIN(n_rows - r, (size_t)TILE_ROWS) * sizeof *y);
}

static void copy_block(const float *sums, size_t n_inputs, size_t n_rows, float *y, size_t y_stride)
{
    for (size_t i = 0; i < n_inputs; i++)
        for (size_t r = 0; r < n_rows; r += TILE_ROWS)
            memcpy(y + i * y_stride + r, sums + block_at(i, r),
                   MIN(n_rows - r, (size_t)TILE_ROWS) * sizeof *y);
}

/* All inputs times a strip, the one that begins at row r of the panel. */
static void sweep_strip(const struct sweep *s, size_t r)
{
    const size_t n_rows = MIN(s->n_rows - r, (size_t)STRIP_ROWS);
    const size_t half_bytes = s->n_steps * TILE_BYTES;
    const size_t ahead = s->ahead_bytes + r / STRIP_ROWS * (2 * half_bytes / PANEL_STRIPS);
    tile_fence(panel.weights);
    for (size_t i = 0; i < s->n_inputs; i += BLOCK_INPUTS) {
        const size_t n_inputs = MIN(s->n_inputs - i, (size_t)BLOCK_INPUTS);
        const bool whole = n_inputs % PANEL_BLOCK == 0 && n_rows == STRIP_ROWS;
        const uint8_t *x = s->x + i / PANEL_BLOCK * half_bytes;
        struct place sums = {panel.sums[r / STRIP_ROWS][i / BLOCK_INPUTS], TILE_ROWS,
                             2 * TILE_FLOATS, TILE_FLOATS};
        float *y = s->y + i * s->y_stride + r;
        struct place result = {y, s->y_stride, TILE_ROWS * s->y_stride, TILE_ROWS};
        struct block b = {
            .x = x,
            .half_bytes = half_bytes,
            .n_steps = s->n_steps,
            .ahead = x + ahead,
            .from_zero = s->first && s->begin == PANEL_FROM_ZERO,
            .from = s->first && whole ? result : sums,
            .to = s->last && whole ? result : sums,
        };
        if (s->first && s->begin == PANEL_FROM_Y && !whole)
            fill_block(sums.at, n_inputs, n_rows, y, s->y_stride);
        if (n_inputs > PANEL_BLOCK)
            tile_block(b, 2);
        else
            tile_block(b, 1);
        if (s->last && !whole)
            copy_block(sums.at, n_inputs, n_rows, y, s->y_stride);
    }
}

static void sweep_columns(const struct sweep *s)
{
    /* The next columns, or the first ones of the rows below. */
    const size_t unit_bytes = quant_row_bytes(s->w->format, UNIT_LEN);
    const size_t ahead =
        s->last ? PANEL_ROWS * s->w->row_bytes - s->col / UNIT_LEN * unit_bytes : unit_bytes;
    for (size_t r = 0; r < s->n_rows; r += STRIP_ROWS) {
        for (size_t half = 0; half < STRIP_ROWS; half += TILE_ROWS) {
            size_t row = MIN(r + half, s->n_rows);
            struct half_strip strip = {.w = s->w,
                                       .row = s->row + row,
                                       .n_rows = MIN(s->n_rows - row, (size_t)TILE_ROWS),
                                       .col = s->col,
                                       .ahead = ahead,
                                       .to = panel.weights + half * PANEL_STEP};
            strips[s->w->format](&strip);
        }
        sweep_strip(s, r);
    }
}

static void configure_tiles(void)
{
    struct tile_config config = {.palette = 1};
    for (int t = 0; t < 8; t++) {
        config.rows[t] = TILE_ROWS;
        config.row_bytes[t] = TILE_ROW_BYTES;
    }
    tile_configure(&config);
}

static void panel_matmul(const struct quant_matrix *w, size_t row_begin, size_t row_end,
                         const void *packed, size_t n_inputs, float *y, size_t y_stride,
                         enum panel_sums from)
{
    const size_t n_steps = panel_steps(w->n_cols);
    configure_tiles();
    for (size_t i = 0; i < n_inputs; i += PANEL_INPUTS)
        for (size_t row = row_begin; row < row_end; row += PANEL_ROWS)
            for (size_t step = 0; step < n_steps; step += PANEL_UNIT_STEPS) {
                const size_t next = MIN(step + PANEL_UNIT_STEPS, n_steps - 1);
                const uint16_t *x = packed;
                const struct sweep s = {
                    .w = w,
                    .x = (const uint8_t *)(x + panel_at(i, n_inputs, step, n_steps)),
                    .row = row,
                    .n_rows = MIN(row_end - row, (size_t)PANEL_ROWS),
                    .n_inputs = MIN(n_inputs - i, (size_t)PANEL_INPUTS),
                    .col = step * PANEL_STEP,
                    .n_steps = MIN(n_steps - step, (size_t)PANEL_UNIT_STEPS),
                    .ahead_bytes = sizeof *x * (panel_at(i, n_inputs, next, n_steps) -
                                                panel_at(i, n_inputs, step, n_steps)),
                    .first = step == 0,
                    .begin = from,
                    .last = step + PANEL_UNIT_STEPS >= n_steps,
                    .y = y + i * y_stride + row,
                    .y_stride = y_stride,
                };
                sweep_columns(&s);
            }
    tile_release();
}

/* The loop of tile_block with operands from the first cache. */
static uint64_t peak(uint8_t *data, size_t rounds)
{
    configure_tiles();
    _Static_assert(PEAK_BYTES >= 4 * TILE_BYTES, "operands of a step");
    tile_fence(data);
    tile_zero(0);
    tile_zero(1);
    tile_zero(2);
    tile_zero(3);
    for (size_t round = 0; round < rounds; round++) {
        tile_load(6, data, TILE_ROW_BYTES);
        tile_load(4, data + TILE_BYTES, TILE_ROW_BYTES);
        tile_dot_bf16(0, 4, 6);
        tile_load(7, data + 2 * TILE_BYTES, TILE_ROW_BYTES);
        tile_dot_bf16(1, 4, 7);
        tile_load(5, data + 3 * TILE_BYTES, TILE_ROW_BYTES);
        tile_dot_bf16(2, 5, 6);
        tile_dot_bf16(3, 5, 7);
    }
    tile_store(0, data, TILE_ROW_BYTES);
    tile_release();
    return (uint64_t)rounds * BLOCK_INPUTS * STRIP_ROWS * PANEL_STEP;
}

#if defined(TILES_EMULATED)
#define PANEL_SET panels_amx_emulated
#define PANEL_FEATURES (CPU_AVX512 | CPU_AVX512_BF16)
extern const struct panel_set PANEL_SET;
#else
#define PANEL_SET panels_amx
#define PANEL_FEATURES (CPU_AVX512 | CPU_AVX512_BF16 | CPU_AMX_BF16)
#endif

const struct panel_set PANEL_SET = {
    .cpu_features = PANEL_FEATURES,
    .pack = pack_bf16,
    .matmul = panel_matmul,
    .peak = peak,
};
