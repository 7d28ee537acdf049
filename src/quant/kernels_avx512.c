/* AVX-512 with VNNI: a vector holds 64 codes, a unit is four vectors. */
#include "quant/kernels_avx512.h"

/* ---- Sixteen float lanes --------------------------------------------------------------------- */

typedef __m512 lanes;

INLINE lanes lanes_zero(void)
{
    return _mm512_setzero_ps();
}

INLINE lanes lanes_set(float value)
{
    return _mm512_set1_ps(value);
}

INLINE lanes lanes_load(const float *from)
{
    return _mm512_loadu_ps(from);
}

INLINE void lanes_store(float *to, lanes a)
{
    _mm512_storeu_ps(to, a);
}

INLINE lanes lanes_add(lanes a, lanes b)
{
    return _mm512_add_ps(a, b);
}

INLINE lanes lanes_sub(lanes a, lanes b)
{
    return _mm512_sub_ps(a, b);
}

INLINE lanes lanes_fma(lanes a, lanes b, lanes c)
{
    return _mm512_fmadd_ps(a, b, c);
}

INLINE lanes lanes_mul(lanes a, lanes b)
{
    return _mm512_mul_ps(a, b);
}

INLINE lanes lanes_div(lanes a, lanes b)
{
    return _mm512_div_ps(a, b);
}

INLINE lanes lanes_max(lanes a, lanes b)
{
    return _mm512_max_ps(a, b);
}

INLINE lanes lanes_min(lanes a, lanes b)
{
    return _mm512_min_ps(a, b);
}

INLINE lanes lanes_pick_less(lanes a, lanes b, lanes x, lanes y)
{
    return _mm512_mask_mov_ps(y, _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ), x);
}

INLINE lanes lanes_round(lanes a)
{
    return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

INLINE lanes lanes_power(lanes a)
{
    __m512i exponent = _mm512_add_epi32(_mm512_cvtps_epi32(a), _mm512_set1_epi32(127));
    return _mm512_castsi512_ps(_mm512_slli_epi32(exponent, 23));
}

INLINE float sum_of_eight(__m256 a)
{
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

INLINE float lanes_highest(lanes a)
{
    return _mm512_reduce_max_ps(a);
}

/* Pairs of rows are interleaved, then pairs of pairs; then 128-bit parts change places. */
INLINE void lanes_turn(lanes v[16])
{
    lanes part[16];
    for (int i = 0; i < 16; i += 4) {
        __m512d a = _mm512_castps_pd(_mm512_unpacklo_ps(v[i], v[i + 1]));
        __m512d b = _mm512_castps_pd(_mm512_unpackhi_ps(v[i], v[i + 1]));
        __m512d c = _mm512_castps_pd(_mm512_unpacklo_ps(v[i + 2], v[i + 3]));
        __m512d d = _mm512_castps_pd(_mm512_unpackhi_ps(v[i + 2], v[i + 3]));
        part[i] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, c));
        part[i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, c));
        part[i + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(b, d));
        part[i + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(b, d));
    }
    for (int i = 0; i < 4; i++) { /* part[4 r + i]: columns i, i + 4, ... of rows 4 r to 4 r + 3 */
        lanes a = _mm512_shuffle_f32x4(part[i], part[4 + i], 0x44);
        lanes b = _mm512_shuffle_f32x4(part[i], part[4 + i], 0xEE);
        lanes c = _mm512_shuffle_f32x4(part[8 + i], part[12 + i], 0x44);
        lanes d = _mm512_shuffle_f32x4(part[8 + i], part[12 + i], 0xEE);
        v[i] = _mm512_shuffle_f32x4(a, c, 0x88);
        v[4 + i] = _mm512_shuffle_f32x4(a, c, 0xDD);
        v[8 + i] = _mm512_shuffle_f32x4(b, d, 0x88);
        v[12 + i] = _mm512_shuffle_f32x4(b, d, 0xDD);
    }
}

#define ADD_INPUTS 4
#define ADD_UNITS 2

INLINE float lanes_sum(lanes a)
{
    return sum_of_eight(_mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1)));
}

/* ---- Units ---------------------------------------------------------------------------------- */

/* A strip holds two rows: the eight lanes of the first in the lower, those of the second in the
 * upper half of each vector. */
#define STRIP_ROWS 2
#define TILE_STRIPS 4
#define TILE_INPUTS 4
#define PARTIAL_VECTORS(centre) 8

typedef __m512 sums;
typedef __m512i ints, partial, quads;

struct strip {
    quads code[8];
    sums scale[2], min[2];
};

/* turn leaves 128 bits of each: even blocks, their second halves, odd blocks, their second halves.
 */
INLINE void join_codes(const struct unit unit[2], quads code[8])
{
    __m512i a[4], b[4];
    memcpy(a, unit[0].code, sizeof a);
    memcpy(b, unit[1].code, sizeof b);
    turn(a);
    turn(b);
    for (int v = 0; v < 4; v++) {
        code[v] = _mm512_shuffle_i32x4(a[v], b[v], 0x88);
        code[v + 4] = _mm512_shuffle_i32x4(a[v], b[v], 0xDD);
    }
}

/* 16 bytes each. */
INLINE __m512i four_parts(const uint8_t *a, const uint8_t *b, const uint8_t *c, const uint8_t *d)
{
    __m512i all = _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)a));
    all = _mm512_mask_broadcast_i32x4(all, 0x00F0, _mm_loadu_si128((const __m128i *)b));
    all = _mm512_mask_broadcast_i32x4(all, 0x0F00, _mm_loadu_si128((const __m128i *)c));
    return _mm512_mask_broadcast_i32x4(all, 0xF000, _mm_loadu_si128((const __m128i *)d));
}

/* Even blocks beside odd ones: low nibbles are the first halves of all, high ones the second. */
INLINE void join_nibbles(const struct unit unit[2], quads code[8])
{
    const uint8_t *a = unit[0].nibbles, *b = unit[1].nibbles;
    const size_t step = unit[0].step;
    __m512i part[4];
    for (size_t i = 0; i < 4; i++)
        part[i] = four_parts(a + 2 * i * step, a + (2 * i + 1) * step, b + 2 * i * step,
                             b + (2 * i + 1) * step);
    turn(part);
    for (int v = 0; v < 4; v++) {
        code[v] = _mm512_and_si512(part[v], bytes(15));
        code[v + 4] = _mm512_and_si512(_mm512_srli_epi16(part[v], 4), bytes(15));
    }
    if (unit[0].table != NULL)
        for (int v = 0; v < 8; v++)
            code[v] = look_up(unit[0].table, unit[0].centre, code[v]);
}

/* Halves of two blocks side by side: low nibbles are of the even block, high ones of the odd. */
INLINE void join_nibbles_k(const struct unit unit[2], quads code[8])
{
    const __m512i shift = _mm512_setr_epi32(0, 0, 0, 0, 4, 4, 4, 4, 0, 0, 0, 0, 4, 4, 4, 4);
    __m512i part[4];
    for (size_t i = 0; i < 4; i++) {
        __m256i a = _mm256_loadu_si256((const __m256i *)(unit[0].nibbles + 32 * i));
        __m256i b = _mm256_loadu_si256((const __m256i *)(unit[1].nibbles + 32 * i));
        part[i] = _mm512_inserti64x4(_mm512_castsi256_si512(a), b, 1);
    }
    turn(part);
    for (int v = 0; v < 4; v++) {
        __m512i first = _mm512_shuffle_i32x4(part[v], part[v], 0xA0);
        __m512i second = _mm512_shuffle_i32x4(part[v], part[v], 0xF5);
        code[v] = _mm512_and_si512(_mm512_srlv_epi32(first, shift), bytes(15));
        code[v + 4] = _mm512_and_si512(_mm512_srlv_epi32(second, shift), bytes(15));
    }
}

INLINE void join_pairs(const struct unit unit[2], quads code[8])
{
    const __m512i four = bytes(4);
    for (int v = 0; v < 8; v++) {
        code[v] = _mm512_and_si512(pairs_of_rows(unit[0].code[0], unit[1].code[0], v), bytes(3));
        if (unit[0].codes == CODES_PAIRS_AND_BITS) /* code | bits & 4 */
            code[v] = _mm512_ternarylogic_epi32(
                code[v], bits_of_rows(unit[0].code[1], unit[1].code[1], v), four, 0xF8);
    }
}

/* The heads of both rows. */
INLINE __m256i heads(const struct unit unit[2])
{
    return _mm256_inserti128_si256(_mm256_castsi128_si256(unit[0].head), unit[1].head, 1);
}

/* The words of both rows. */
INLINE __m256i words(const struct unit unit[2])
{
    return _mm256_blend_epi32(unit[0].words, unit[1].words, 0xF0);
}

/* Puts the lower halves of the rows' 128 bits together, and the upper ones. */
INLINE __m256i halves_together(__m256i rows)
{
    return _mm256_permute4x64_epi64(rows, 0xD8);
}

/* The half at byte at of each row, in all of the row's lanes. */
INLINE __m512 halves_of_rows(__m256i rows, int at)
{
    return _mm512_cvtph_ps(
        _mm256_shuffle_epi8(rows, _mm256_set1_epi16((short)(0x0100 + 0x0101 * at))));
}

/* d, dmin, then four bytes each: lower bits of scales 0 to 3, of minima 0 to 3, and of both of the
 * others, whose upper bits are above the lower of the first. */
INLINE void join_scales_k(__m256i head, struct strip *strip)
{
    const __m256i lower = _mm256_set1_epi64x(0x0F0F0F0F3F3F3F3F);
    const __m256i upper = _mm256_set1_epi64x(0x3030303000000000);
    const __m256i shift = _mm256_setr_epi32(0, 0, 0, 4, 0, 0, 0, 4);
    const __m256i order = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15));
    __m256i low = _mm256_srlv_epi32(_mm256_shuffle_epi32(head, 0xED), shift);
    __m256i high = _mm256_srli_epi32(_mm256_shuffle_epi32(head, 0xA5), 2);
    __m256i both = _mm256_or_si256(_mm256_and_si256(low, lower), _mm256_and_si256(high, upper));
    both = halves_together(_mm256_shuffle_epi8(both, order));
    strip->scale[0] =
        scaled(halves_of_rows(head, 0), _mm512_cvtepu8_epi32(_mm256_castsi256_si128(both)));
    strip->min[0] =
        scaled(halves_of_rows(head, 2), _mm512_cvtepu8_epi32(_mm256_extracti128_si256(both, 1)));
}

/* d, two upper bits of each scale, then the lower four. */
INLINE void join_scales_xs(__m256i head, struct strip *strip)
{
    const __m256i shift = _mm256_setr_epi32(0, 4, 0, 4, 0, 4, 0, 4);
    const __m512i pairs = _mm512_broadcast_i64x4(_mm256_setr_epi32(16, 20, 24, 28, 18, 22, 26, 30));
    __m256i low = _mm256_and_si256(_mm256_srlv_epi32(_mm256_shuffle_epi32(head, 0x55), shift),
                                   _mm256_set1_epi8(15));
    __m512i first =
        _mm512_permutexvar_epi32(_mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 4, 4, 4, 4, 4, 4, 4, 4),
                                 _mm512_castsi256_si512(head));
    __m512i high = _mm512_and_si512(_mm512_srlv_epi32(first, pairs), _mm512_set1_epi32(3));
    __m512i all =
        _mm512_or_si512(_mm512_cvtepu8_epi32(_mm256_castsi256_si128(halves_together(low))),
                        _mm512_slli_epi32(high, 4));
    strip->scale[0] = scaled(halves_of_rows(head, 0), _mm512_sub_epi32(all, _mm512_set1_epi32(32)));
}

INLINE void join_scales(const struct unit unit[2], struct strip *strip, int centre, size_t halves)
{
    if (unit[0].scales == SCALES_K) {
        join_scales_k(heads(unit), strip);
        return;
    }
    if (unit[0].scales == SCALES_XS)
        join_scales_xs(heads(unit), strip);
    else if (unit[0].scales == SCALES_HALVES)
        strip->scale[0] = _mm512_cvtph_ps(words(unit));
    else if (unit[0].scales == SCALES_EXPONENTS)
        strip->scale[0] = scales_of_exponents(words(unit));
    else
        strip->scale[0] = _mm512_shuffle_f32x4(unit[0].scale, unit[1].scale, 0x44);
    if (halves == 2)
        strip->scale[1] = _mm512_shuffle_f32x4(unit[0].scale, unit[1].scale, 0xEE);
    if (centre == HAS_MIN)
        strip->min[0] = _mm512_shuffle_f32x4(unit[0].min, unit[1].min, 0x44);
    if (centre == HAS_MIN && halves == 2)
        strip->min[1] = _mm512_shuffle_f32x4(unit[0].min, unit[1].min, 0xEE);
}

INLINE void join(const struct unit unit[2], struct strip *strip, int centre, size_t halves)
{
    if (unit[0].codes == CODES_BY_BLOCK)
        join_codes(unit, strip->code);
    else if (unit[0].codes == CODES_NIBBLES)
        join_nibbles(unit, strip->code);
    else if (unit[0].codes == CODES_NIBBLES_K)
        join_nibbles_k(unit, strip->code);
    else
        join_pairs(unit, strip->code);
    join_scales(unit, strip, centre, halves);
}

/* The same codes, hidden from the compiler, which would load them again for each input. */
INLINE quads keep(quads w)
{
    __asm__("" : "+v"(w));
    return w;
}

INLINE quads input_codes(const struct packed_unit *x, size_t v)
{
    return _mm512_broadcast_i64x4(_mm256_loadu_si256((const __m256i *)(x->code + 32 * v)));
}

INLINE ints input_ints(const int32_t *from)
{
    return _mm512_broadcast_i64x4(_mm256_loadu_si256((const __m256i *)from));
}

INLINE ints ints_begin(ints codes_sum, int centre)
{
    if (centre == HAS_MIN)
        return _mm512_setzero_si512();
    return _mm512_sub_epi32(_mm512_setzero_si512(),
                            _mm512_slli_epi32(codes_sum, (unsigned)centre & 31));
}

INLINE partial partial_zero(void)
{
    return _mm512_setzero_si512();
}

INLINE partial partial_add(partial sum, quads w, quads x, int centre)
{
    (void)centre;
    return _mm512_dpbusd_epi32(sum, w, x);
}

INLINE ints partial_end(ints total, partial sum)
{
    return _mm512_add_epi32(total, sum);
}

INLINE sums sums_zero(void)
{
    return _mm512_setzero_ps();
}

INLINE sums sums_of(ints a)
{
    return _mm512_cvtepi32_ps(a);
}

INLINE sums sums_mul(sums a, sums b)
{
    return _mm512_mul_ps(a, b);
}

INLINE sums sums_fma(sums a, sums b, sums c)
{
    return _mm512_fmadd_ps(a, b, c);
}

INLINE sums sums_fnma(sums a, sums b, sums c)
{
    return _mm512_fnmadd_ps(a, b, c);
}

INLINE sums input_scale(const struct packed_unit *x)
{
    return _mm512_broadcast_f32x8(_mm256_loadu_ps(x->scale));
}

/* The lanes that are 4, 2 and 1 apart, of four strips together. */
INLINE void sums_totals(const sums *sum, size_t n, float *total)
{
    if (n == 1) {
        total[0] = sum_of_eight(_mm512_castps512_ps256(sum[0]));
        total[1] = sum_of_eight(_mm512_extractf32x8_ps(sum[0], 1));
        return;
    }
    __m512 four[2];
    for (int i = 0; i < 2; i++)
        four[i] = _mm512_add_ps(_mm512_shuffle_f32x4(sum[2 * i], sum[2 * i + 1], 0x88),
                                _mm512_shuffle_f32x4(sum[2 * i], sum[2 * i + 1], 0xDD));
    __m512d a = _mm512_castps_pd(four[0]), b = _mm512_castps_pd(four[1]);
    __m512 two = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(a, b)),
                               _mm512_castpd_ps(_mm512_unpackhi_pd(a, b)));
    const __m512i rows = _mm512_setr_epi32(0, 4, 8, 12, 2, 6, 10, 14, 0, 0, 0, 0, 0, 0, 0, 0);
    __m512 one = _mm512_add_ps(two, _mm512_movehdup_ps(two));
    _mm256_storeu_ps(total, _mm512_castps512_ps256(_mm512_permutexvar_ps(rows, one)));
}

static void pack_unit(const float *x, struct packed_unit *out)
{
    for (int g = 0; g < UNIT_GROUPS; g += 2) {
        __m512 a = _mm512_loadu_ps(x + 16 * g), b = _mm512_loadu_ps(x + 16 * g + 16);
        float largest = _mm512_reduce_max_ps(_mm512_max_ps(_mm512_abs_ps(a), _mm512_abs_ps(b)));
        bool tiny = largest < PACK_TINY;
        __m512 inverse = _mm512_set1_ps(tiny ? 0 : 127 / largest);
        __m512i code_a = _mm512_cvtps_epi32(_mm512_mul_ps(a, inverse));
        __m512i code_b = _mm512_cvtps_epi32(_mm512_mul_ps(b, inverse));
        _mm_storeu_si128((__m128i *)(out->code + 16 * g), _mm512_cvtepi32_epi8(code_a));
        _mm_storeu_si128((__m128i *)(out->code + 16 * g + 16), _mm512_cvtepi32_epi8(code_b));
        int lane = BLOCK_LANE(g / 2);
        out->scale[lane] = tiny ? 0 : largest / 127;
        out->sum[1][lane] = _mm512_reduce_add_epi32(code_a);
        out->sum[2][lane] = _mm512_reduce_add_epi32(code_b);
        out->sum[0][lane] = out->sum[1][lane] + out->sum[2][lane];
    }
    __m512i code[4];
    memcpy(code, out->code, sizeof code);
    turn(code);
    for (int v = 0; v < 4; v++) {
        __m512i halves = _mm512_shuffle_i32x4(code[v], code[v], 0xD8);
        _mm256_storeu_si256((__m256i *)(out->code + 32 * v), _mm512_castsi512_si256(halves));
        _mm256_storeu_si256((__m256i *)(out->code + 32 * v + 128),
                            _mm512_extracti64x4_epi64(halves, 1));
    }
}

/* ---- Float formats -------------------------------------------------------------------------- */

INLINE void widen_f32(const void *src, lanes out[2])
{
    out[0] = _mm512_loadu_ps(src);
    out[1] = _mm512_loadu_ps((const float *)src + 16);
}

INLINE void widen_f16(const void *src, lanes out[2])
{
    const __m256i *from = src;
    out[0] = _mm512_cvtph_ps(_mm256_loadu_si256(from));
    out[1] = _mm512_cvtph_ps(_mm256_loadu_si256(from + 1));
}

INLINE void widen_bf16(const void *src, lanes out[2])
{
    const __m256i *from = src;
    for (int i = 0; i < 2; i++)
        out[i] = _mm512_castsi512_ps(
            _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256(from + i)), 16));
}

INLINE void widen_q8_0(const void *src, lanes out[2])
{
    const struct block_q8_0 *b = src;
    for (int i = 0; i < 2; i++)
        out[i] = scaled(half(b->d),
                        _mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)(b->qs + 16 * i))));
}

/* ---- Pages of codes -------------------------------------------------------------------------- */

typedef __m512i counts;

INLINE counts counts_zero(void)
{
    return _mm512_setzero_si512();
}

INLINE counts counts_begin(int32_t codes_sum)
{
    return _mm512_set1_epi32(-128 * codes_sum);
}

INLINE __m512i four_codes(const void *from)
{
    int32_t four;
    memcpy(&four, from, sizeof four);
    return _mm512_set1_epi32(four);
}

INLINE counts counts_keys(counts sum, const uint8_t *stored, const int8_t *query)
{
    return _mm512_dpbusd_epi32(sum, _mm512_loadu_si512(stored), four_codes(query));
}

INLINE counts counts_values(counts sum, const uint8_t *stored, const uint8_t *weights)
{
    return _mm512_dpbusd_epi32(sum, four_codes(weights), _mm512_loadu_si512(stored));
}

INLINE counts counts_join(counts high, counts low)
{
    return _mm512_add_epi32(_mm512_slli_epi32(high, 7), low);
}

INLINE lanes lanes_of(counts a)
{
    return _mm512_cvtepi32_ps(a);
}

INLINE lanes lanes_halves(const uint16_t *src)
{
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)src));
}

/* The upper digit of a number is moved to its second byte. */
INLINE __m512i two_digits(lanes a)
{
    __m512i whole = _mm512_cvtps_epi32(a);
    return _mm512_add_epi32(whole, _mm512_and_si512(whole, _mm512_set1_epi32(127 << 7)));
}

INLINE void lanes_digits(lanes a, lanes b, uint8_t *to)
{
    const __m512i upper_first =
        _mm512_broadcast_i32x4(_mm_setr_epi8(1, 3, 5, 7, 0, 2, 4, 6, 9, 11, 13, 15, 8, 10, 12, 14));
    __m512i both = _mm512_packus_epi32(two_digits(a), two_digits(b));
    _mm512_storeu_si512(to, _mm512_shuffle_epi8(both, upper_first));
}

#define KERNEL_SET kernels_avx512
#define KERNEL_NAME "avx512"
#define KERNEL_FEATURES CPU_AVX512
#include "quant/kernels_loops.h"
