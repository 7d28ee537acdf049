/* Panels with AMX (see kernels.h): 128 rows of weights and 2048 columns at a time are unpacked to
 * bf16, once, and stay in the second-level cache while all inputs pass over them. The tiles of
 * the matrix unit hold a block of sums of 32 inputs and 32 rows:
 *
 *   tiles 0 to 3   sums      [input half][row half]   16 inputs x 16 rows of float
 *   tiles 4, 5     inputs    [half]                   16 inputs x 32 numbers
 *   tiles 6, 7     weights   [half]                   16 pairs of numbers x 16 rows
 *
 * Blocks at the edges have smaller tiles, so nothing outside a matrix is read or written. A panel
 * lies in memory as the tiles want it:
 *
 *   [strip of 32 rows][step of 32 numbers][half of the rows][pair][row][2]
 */
#include "quant/kernels_avx512.h"
#include "quant/kernels_tiles.h"

#define STRIP_ROWS 32
#define PANEL_ROWS 128
#define PANEL_COLS 2048
#define PANEL_INPUTS 512
#define BLOCK_INPUTS 32

#define STEP_NUMBERS (STRIP_ROWS * PANEL_STEP)  /* of one step of a strip */
#define STRIP_NUMBERS (STRIP_ROWS * PANEL_COLS) /* from one strip to the next */

static _Thread_local struct {
    _Alignas(64) uint16_t weights[PANEL_ROWS * PANEL_COLS];
    _Alignas(64) float sums[PANEL_INPUTS][PANEL_ROWS]; /* of the columns so far */
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

static void pack_bf16(const float *x, uint16_t *packed, size_t n_cols)
{
    for (size_t c = 0; c < n_cols; c += PANEL_STEP) {
        size_t rest = MIN(n_cols - c, (size_t)PANEL_STEP);
        __mmask32 mask = (__mmask32)(((uint64_t)1 << rest) - 1);
        __m512 low = _mm512_maskz_loadu_ps((__mmask16)mask, x + c);
        __m512 high = _mm512_maskz_loadu_ps((__mmask16)(mask >> 16), x + c + 16);
        _mm512_storeu_si512(packed + c, in_panel_order(to_bf16(low, high)));
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

/* Sixteen rows of a strip and the UNIT_LEN columns from col on, as tiles; rows and columns that the
 * matrix does not have are zeros. */
struct half_strip {
    const struct quant_matrix *w;
    size_t row, n_rows, col;
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

/* A part of the columns: all inputs times the rows of the panel. */
struct sweep {
    const uint8_t *x; /* of the first input, at the first column */
    size_t x_bytes;   /* from one input to the next */
    size_t n_inputs, n_rows, n_steps;
    bool first;        /* sums begin here */
    const float *from; /* else: the sums so far */
    float *to;
    size_t from_stride, to_stride; /* in floats, from one input to the next */
};

struct block {
    const uint8_t *x, *ahead;
    const uint16_t *weights;
    const float *from;
    float *to;
};

/* A block of sums; halves of inputs and of rows (constants) that are not empty. Asks for eight
 * lines a step of the inputs that come next: the rows of a panel share the loads of the inputs
 * from memory, which would otherwise hold up the first of them. */
INLINE void tile_block(const struct sweep *s, struct block b, int input_halves, int row_halves)
{
    const size_t from_bytes = s->from_stride * sizeof(float), x_bytes = s->x_bytes;
    const size_t half = TILE_ROWS * x_bytes, n_steps = s->n_steps;
    const float *from = b.from + TILE_ROWS * s->from_stride;
    const bool more_rows = row_halves > 1, more_inputs = input_halves > 1;
    if (s->first) {
        tile_zero(0);
        if (more_rows)
            tile_zero(1);
        if (more_inputs)
            tile_zero(2);
        if (more_inputs && more_rows)
            tile_zero(3);
    } else {
        tile_load(0, b.from, from_bytes);
        if (more_rows)
            tile_load(1, b.from + TILE_ROWS, from_bytes);
        if (more_inputs)
            tile_load(2, from, from_bytes);
        if (more_inputs && more_rows)
            tile_load(3, from + TILE_ROWS, from_bytes);
    }
    for (size_t step = 0; step < n_steps; step++) {
        tile_load(6, b.weights, TILE_ROW_BYTES);
        tile_load(4, b.x, x_bytes);
        tile_dot_bf16(0, 4, 6);
        if (more_rows) {
            tile_load(7, b.weights + STEP_NUMBERS / 2, TILE_ROW_BYTES);
            tile_dot_bf16(1, 4, 7);
        }
        if (more_inputs) {
            tile_load(5, b.x + half, x_bytes);
            tile_dot_bf16(2, 5, 6);
        }
        if (more_inputs && more_rows)
            tile_dot_bf16(3, 5, 7);
        for (size_t i = 0; i < BLOCK_INPUTS * STRIP_ROWS / PANEL_ROWS; i++)
            __builtin_prefetch(b.ahead + i * x_bytes, 0, 2);
        b.x += TILE_ROW_BYTES;
        b.ahead += TILE_ROW_BYTES;
        b.weights += STEP_NUMBERS;
    }
    const size_t to_bytes = s->to_stride * sizeof(float);
    float *to = b.to + TILE_ROWS * s->to_stride;
    tile_store(0, b.to, to_bytes);
    if (more_rows)
        tile_store(1, b.to + TILE_ROWS, to_bytes);
    if (more_inputs)
        tile_store(2, to, to_bytes);
    if (more_inputs && more_rows)
        tile_store(3, to + TILE_ROWS, to_bytes);
}

/* Tiles for a block of this size, unless they are set up already. */
static void shape_tiles(struct tile_config *config, size_t n_inputs, size_t n_rows)
{
    struct tile_config c = {.palette = 1};
    for (size_t i = 0; i < 2; i++) {
        size_t inputs = n_inputs > i * TILE_ROWS ? MIN(n_inputs - i * TILE_ROWS, TILE_ROWS) : 0;
        for (size_t k = 0; k < 2; k++) {
            size_t rows = n_rows > k * TILE_ROWS ? MIN(n_rows - k * TILE_ROWS, TILE_ROWS) : 0;
            bool empty = inputs == 0 || rows == 0;
            c.rows[2 * i + k] = empty ? 0 : (uint8_t)inputs;
            c.row_bytes[2 * i + k] = empty ? 0 : (uint16_t)(rows * sizeof(float));
            c.rows[6 + k] = rows == 0 ? 0 : TILE_ROWS;
            c.row_bytes[6 + k] = (uint16_t)(rows * 2 * sizeof(uint16_t));
        }
        c.rows[4 + i] = (uint8_t)inputs;
        c.row_bytes[4 + i] = inputs == 0 ? 0 : TILE_ROW_BYTES;
    }
    if (memcmp(config, &c, sizeof c) == 0)
        return;
    *config = c;
    tile_configure(config);
}

/* noinline keeps the four loops apart, and the strides in registers. */
#define DEFINE_TILE_BLOCK(inputs, rows)                                                            \
    static __attribute__((noinline)) void tile_block_##inputs##rows(const struct sweep *s,         \
                                                                    struct block b)                \
    {                                                                                              \
        tile_block(s, b, inputs, rows);                                                            \
    }
DEFINE_TILE_BLOCK(1, 1)
DEFINE_TILE_BLOCK(1, 2)
DEFINE_TILE_BLOCK(2, 1)
DEFINE_TILE_BLOCK(2, 2)
#undef DEFINE_TILE_BLOCK

static void sweep_inputs(const struct sweep *s, struct tile_config *config)
{
    static void (*const blocks[2][2])(const struct sweep *, struct block) = {
        {tile_block_11, tile_block_12}, {tile_block_21, tile_block_22}};
    tile_fence(panel.weights);
    for (size_t i = 0; i < s->n_inputs; i += BLOCK_INPUTS) {
        size_t n_inputs = MIN(s->n_inputs - i, (size_t)BLOCK_INPUTS);
        for (size_t r = 0; r < s->n_rows; r += STRIP_ROWS) {
            size_t n_rows = MIN(s->n_rows - r, (size_t)STRIP_ROWS);
            size_t next = i + BLOCK_INPUTS + r * BLOCK_INPUTS / PANEL_ROWS;
            const uint8_t *x = s->x + i * s->x_bytes;
            struct block b = {
                .x = x,
                .ahead = next + BLOCK_INPUTS <= s->n_inputs ? s->x + next * s->x_bytes : x,
                .weights = panel.weights + r / STRIP_ROWS * STRIP_NUMBERS,
                .from = s->from + i * s->from_stride + r,
                .to = s->to + i * s->to_stride + r,
            };
            shape_tiles(config, n_inputs, n_rows);
            blocks[n_inputs > TILE_ROWS][n_rows > TILE_ROWS](s, b);
        }
    }
}

static void unpack_panel(const struct quant_matrix *w, size_t row, size_t n_rows, size_t col,
                         size_t n_cols)
{
    for (size_t r = 0; r < n_rows; r += TILE_ROWS)
        for (size_t c = 0; c < n_cols; c += UNIT_LEN) {
            struct half_strip strip = {.w = w,
                                       .row = row + r,
                                       .n_rows = MIN(n_rows - r, (size_t)TILE_ROWS),
                                       .col = col + c};
            strip.to = panel.weights + r / STRIP_ROWS * STRIP_NUMBERS +
                       c / PANEL_STEP * STEP_NUMBERS + r % STRIP_ROWS * PANEL_STEP;
            strips[w->format](&strip);
        }
}

static void panel_matmul(const struct quant_matrix *w, size_t row_begin, size_t row_end,
                         const void *packed, size_t n_inputs, float *y, size_t y_stride)
{
    struct tile_config config = {0};
    size_t x_bytes = panel_packed_bytes(w->n_cols);
    for (size_t row = row_begin; row < row_end; row += PANEL_ROWS)
        for (size_t i = 0; i < n_inputs; i += PANEL_INPUTS)
            for (size_t col = 0; col < w->n_cols; col += PANEL_COLS) {
                size_t n_cols = MIN(w->n_cols - col, (size_t)PANEL_COLS);
                bool last = col + n_cols == w->n_cols;
                struct sweep s = {
                    .x = (const uint8_t *)packed + i * x_bytes + col * sizeof(uint16_t),
                    .x_bytes = x_bytes,
                    .n_inputs = MIN(n_inputs - i, (size_t)PANEL_INPUTS),
                    .n_rows = MIN(row_end - row, (size_t)PANEL_ROWS),
                    .n_steps = (n_cols + PANEL_STEP - 1) / PANEL_STEP,
                    .first = col == 0,
                    .from = panel.sums[0],
                    .from_stride = PANEL_ROWS,
                    .to = last ? y + i * y_stride + row : panel.sums[0],
                    .to_stride = last ? y_stride : PANEL_ROWS,
                };
                unpack_panel(w, row, s.n_rows, col, n_cols);
                sweep_inputs(&s, &config);
            }
    tile_release();
}

/* The loop of tile_block with operands from the first cache. */
static uint64_t peak(uint8_t *data, size_t rounds)
{
    struct tile_config config = {0};
    shape_tiles(&config, BLOCK_INPUTS, STRIP_ROWS);
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
