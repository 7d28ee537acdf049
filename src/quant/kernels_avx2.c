/* AVX2 with FMA and F16C: a vector holds 32 codes, a unit is eight vectors. */
#include "quant/kernels_x86.h"

/* ---- Sixteen float lanes --------------------------------------------------------------------- */

typedef struct {
    __m256 v[2];
} lanes;

INLINE lanes lanes_zero(void)
{
    return (lanes){{_mm256_setzero_ps(), _mm256_setzero_ps()}};
}

INLINE lanes lanes_set(float value)
{
    return (lanes){{_mm256_set1_ps(value), _mm256_set1_ps(value)}};
}

INLINE lanes lanes_load(const float *from)
{
    return (lanes){{_mm256_loadu_ps(from), _mm256_loadu_ps(from + 8)}};
}

INLINE void lanes_store(float *to, lanes a)
{
    _mm256_storeu_ps(to, a.v[0]);
    _mm256_storeu_ps(to + 8, a.v[1]);
}

INLINE lanes lanes_add(lanes a, lanes b)
{
    return (lanes){{_mm256_add_ps(a.v[0], b.v[0]), _mm256_add_ps(a.v[1], b.v[1])}};
}

INLINE lanes lanes_sub(lanes a, lanes b)
{
    return (lanes){{_mm256_sub_ps(a.v[0], b.v[0]), _mm256_sub_ps(a.v[1], b.v[1])}};
}

INLINE lanes lanes_mul(lanes a, lanes b)
{
    return (lanes){{_mm256_mul_ps(a.v[0], b.v[0]), _mm256_mul_ps(a.v[1], b.v[1])}};
}

INLINE lanes lanes_fma(lanes a, lanes b, lanes c)
{
    return (lanes){
        {_mm256_fmadd_ps(a.v[0], b.v[0], c.v[0]), _mm256_fmadd_ps(a.v[1], b.v[1], c.v[1])}};
}

INLINE lanes lanes_div(lanes a, lanes b)
{
    return (lanes){{_mm256_div_ps(a.v[0], b.v[0]), _mm256_div_ps(a.v[1], b.v[1])}};
}

INLINE lanes lanes_max(lanes a, lanes b)
{
    return (lanes){{_mm256_max_ps(a.v[0], b.v[0]), _mm256_max_ps(a.v[1], b.v[1])}};
}

INLINE lanes lanes_min(lanes a, lanes b)
{
    return (lanes){{_mm256_min_ps(a.v[0], b.v[0]), _mm256_min_ps(a.v[1], b.v[1])}};
}

INLINE lanes lanes_pick_less(lanes a, lanes b, lanes x, lanes y)
{
    for (int i = 0; i < 2; i++) {
        __m256 less = _mm256_cmp_ps(a.v[i], b.v[i], _CMP_LT_OQ);
        y.v[i] = _mm256_blendv_ps(y.v[i], x.v[i], less);
    }
    return y;
}

INLINE lanes lanes_round(lanes a)
{
    enum { nearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC };
    return (lanes){{_mm256_round_ps(a.v[0], nearest), _mm256_round_ps(a.v[1], nearest)}};
}

INLINE lanes lanes_power(lanes a)
{
    for (int i = 0; i < 2; i++) {
        __m256i exponent = _mm256_add_epi32(_mm256_cvtps_epi32(a.v[i]), _mm256_set1_epi32(127));
        a.v[i] = _mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23));
    }
    return a;
}

INLINE float sum_of_eight(__m256 a)
{
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

INLINE float lanes_sum(lanes a)
{
    return sum_of_eight(_mm256_add_ps(a.v[0], a.v[1]));
}

INLINE float lanes_highest(lanes a)
{
    __m256 eight = _mm256_max_ps(a.v[0], a.v[1]);
    __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}

/* Eight columns of eight rows: pairs of rows are interleaved, then pairs of pairs; then the halves
 * change places. */
INLINE void turn_eight(__m256 v[8])
{
    __m256 part[8];
    for (int i = 0; i < 8; i += 4) {
        __m256 a = _mm256_unpacklo_ps(v[i], v[i + 1]), b = _mm256_unpackhi_ps(v[i], v[i + 1]);
        __m256 c = _mm256_unpacklo_ps(v[i + 2], v[i + 3]);
        __m256 d = _mm256_unpackhi_ps(v[i + 2], v[i + 3]);
        part[i] = _mm256_shuffle_ps(a, c, 0x44);
        part[i + 1] = _mm256_shuffle_ps(a, c, 0xEE);
        part[i + 2] = _mm256_shuffle_ps(b, d, 0x44);
        part[i + 3] = _mm256_shuffle_ps(b, d, 0xEE);
    }
    for (int i = 0; i < 4; i++) {
        v[i] = _mm256_permute2f128_ps(part[i], part[4 + i], 0x20);
        v[4 + i] = _mm256_permute2f128_ps(part[i], part[4 + i], 0x31);
    }
}

INLINE void lanes_turn(lanes v[16])
{
    __m256 upper[2][8], lower[2][8]; /* rows 0 to 7 and 8 to 15, by half of the columns */
    for (int h = 0; h < 2; h++) {
        for (int i = 0; i < 8; i++) {
            upper[h][i] = v[i].v[h];
            lower[h][i] = v[8 + i].v[h];
        }
        turn_eight(upper[h]);
        turn_eight(lower[h]);
    }
    for (int h = 0; h < 2; h++)
        for (int i = 0; i < 8; i++)
            v[8 * h + i] = (lanes){{upper[h][i], lower[h][i]}};
}

#define ADD_INPUTS 2
#define ADD_UNITS 1

/* ---- Units ---------------------------------------------------------------------------------- */

/* Codes have no sign, but for the formats of full bytes (centre 7). */
#define FULL_BYTES 7

struct unit {
    __m256i code[8];
    lanes scale, min; /* by UNIT_LANE */
};

INLINE __m256i load(const void *from)
{
    return _mm256_loadu_si256(from);
}

/* From vectors of one block each to vectors of four codes of each block, by BLOCK_LANE: transposes
 * the 4 x 4 groups of four bytes in each 128 bits of the even and of the odd vectors, and brings
 * the first and the second halves of blocks together. */
INLINE void turn(__m256i v[8])
{
    __m256i part[2][4];
    for (int h = 0; h < 2; h++) {
        __m256i a = _mm256_unpacklo_epi32(v[h], v[2 + h]),
                b = _mm256_unpackhi_epi32(v[h], v[2 + h]),
                c = _mm256_unpacklo_epi32(v[4 + h], v[6 + h]),
                d = _mm256_unpackhi_epi32(v[4 + h], v[6 + h]);
        part[h][0] = _mm256_unpacklo_epi64(a, c);
        part[h][1] = _mm256_unpackhi_epi64(a, c);
        part[h][2] = _mm256_unpacklo_epi64(b, d);
        part[h][3] = _mm256_unpackhi_epi64(b, d);
    }
    for (int i = 0; i < 4; i++) {
        v[i] = _mm256_permute2x128_si256(part[0][i], part[1][i], 0x20);
        v[4 + i] = _mm256_permute2x128_si256(part[0][i], part[1][i], 0x31);
    }
}

#define STRIP_ROWS 1
#define TILE_STRIPS 2
#define TILE_INPUTS 4

/* Pairs of products lie in 16 bits. A byte without sign times one with a sign has room up to
 * 128 * 127 twice: so full bytes move their sign to the other factor, one vector at a time. Codes
 * of six bits find room twice, of five (which some formats with minima have) four times. */
#define PARTIAL_VECTORS(centre)                                                                    \
    ((centre) == FULL_BYTES ? 1 : (centre) == 5 ? 2 : (centre) == 4 || (centre) == HAS_MIN ? 4 : 8)

typedef __m256 sums;
typedef __m256i ints, partial, quads;

struct strip {
    quads code[8];
    sums scale[2], min[2];
};

INLINE void join(const struct unit *unit, struct strip *strip, int centre, size_t halves)
{
    memcpy(strip->code, unit->code, sizeof strip->code);
    turn(strip->code);
    for (size_t h = 0; h < halves; h++) {
        strip->scale[h] = unit->scale.v[h];
        if (centre == HAS_MIN)
            strip->min[h] = unit->min.v[h];
    }
}

/* The same codes, hidden from the compiler, which would load them again for each input. */
INLINE quads keep(quads w)
{
    __asm__("" : "+x"(w));
    return w;
}

INLINE quads input_codes(const struct packed_unit *x, size_t v)
{
    return load(x->code + 32 * v);
}

INLINE ints input_ints(const int32_t *from)
{
    return load(from);
}

INLINE ints ints_begin(ints codes_sum, int centre)
{
    if (centre == HAS_MIN || centre == FULL_BYTES)
        return _mm256_setzero_si256();
    return _mm256_sub_epi32(_mm256_setzero_si256(),
                            _mm256_slli_epi32(codes_sum, (unsigned)centre & 31));
}

INLINE partial partial_zero(void)
{
    return _mm256_setzero_si256();
}

/* Kept, because compilers would collect the products and add them up as a tree. */
INLINE partial partial_add(partial sum, quads w, quads x, int centre)
{
    partial pairs = centre == FULL_BYTES
                        ? _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w))
                        : _mm256_maddubs_epi16(w, x);
    return keep(_mm256_add_epi16(sum, pairs));
}

INLINE ints partial_end(ints total, partial sum)
{
    return _mm256_add_epi32(total, _mm256_madd_epi16(sum, _mm256_set1_epi16(1)));
}

INLINE sums sums_zero(void)
{
    return _mm256_setzero_ps();
}

INLINE sums sums_of(ints a)
{
    return _mm256_cvtepi32_ps(a);
}

INLINE sums sums_mul(sums a, sums b)
{
    return _mm256_mul_ps(a, b);
}

INLINE sums sums_fma(sums a, sums b, sums c)
{
    return _mm256_fmadd_ps(a, b, c);
}

INLINE sums sums_fnma(sums a, sums b, sums c)
{
    return _mm256_fnmadd_ps(a, b, c);
}

INLINE sums input_scale(const struct packed_unit *x)
{
    return _mm256_loadu_ps(x->scale);
}

INLINE void sums_totals(const sums *sum, size_t n, float *total)
{
    for (size_t s = 0; s < n; s++)
        total[s] = sum_of_eight(sum[s]);
}

INLINE float largest_of(__m256 a)
{
    __m128 four = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}

static void pack_unit(const float *x, struct packed_unit *out)
{
    const __m256 sign = _mm256_set1_ps(-0.0f);
    const __m256i in_order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    for (int b = 0; b < 8; b++) {
        __m256 value[4], largest = _mm256_setzero_ps();
        __m256i code[4];
        for (int i = 0; i < 4; i++) {
            value[i] = _mm256_loadu_ps(x + 32 * b + 8 * i);
            largest = _mm256_max_ps(largest, _mm256_andnot_ps(sign, value[i]));
        }
        float range = largest_of(largest);
        bool tiny = range < PACK_TINY;
        __m256 inverse = _mm256_set1_ps(tiny ? 0 : 127 / range);
        for (int i = 0; i < 4; i++)
            code[i] = _mm256_cvtps_epi32(_mm256_mul_ps(value[i], inverse));
        __m256i packed = _mm256_packs_epi16(_mm256_packs_epi32(code[0], code[1]),
                                            _mm256_packs_epi32(code[2], code[3]));
        packed = _mm256_permutevar8x32_epi32(packed, in_order);
        _mm256_storeu_si256((__m256i *)(out->code + 32 * b), packed);
        /* Four sums a group, then two additions. */
        __m256i each = _mm256_madd_epi16(_mm256_maddubs_epi16(_mm256_set1_epi8(1), packed),
                                         _mm256_set1_epi16(1));
        each = _mm256_hadd_epi32(each, each);
        each = _mm256_hadd_epi32(each, each);
        int lane = BLOCK_LANE(b);
        out->sum[1][lane] = _mm256_extract_epi32(each, 0);
        out->sum[2][lane] = _mm256_extract_epi32(each, 4);
        out->sum[0][lane] = out->sum[1][lane] + out->sum[2][lane];
        out->scale[lane] = tiny ? 0 : range / 127;
    }
    __m256i code[8];
    memcpy(code, out->code, sizeof code);
    turn(code);
    memcpy(out->code, code, sizeof code);
}

/* ---- Scales --------------------------------------------------------------------------------- */

INLINE lanes each_twice(__m256 even_odd)
{
    return (lanes){{even_odd, even_odd}};
}

INLINE lanes block_halves(const void *src, size_t block_bytes, size_t offset)
{
    return each_twice(even_odd_halves(src, block_bytes, offset));
}

INLINE lanes negated(lanes a)
{
    const __m256 sign = _mm256_set1_ps(-0.0f);
    return (lanes){{_mm256_xor_ps(a.v[0], sign), _mm256_xor_ps(a.v[1], sign)}};
}

INLINE lanes half(uint16_t bits)
{
    return lanes_set(_cvtsh_ss(bits));
}

/* Sixteen whole numbers, signed bytes, times d. */
INLINE lanes scaled(lanes d, __m128i bytes)
{
    __m256i low = _mm256_cvtepi8_epi32(bytes),
            high = _mm256_cvtepi8_epi32(_mm_srli_si128(bytes, 8));
    return lanes_mul(d, (lanes){{_mm256_cvtepi32_ps(low), _mm256_cvtepi32_ps(high)}});
}

/* Bytes by group to lanes. */
INLINE __m128i lanes_of_groups(__m128i bytes)
{
    return _mm_shuffle_epi8(bytes,
                            _mm_setr_epi8(0, 4, 8, 12, 2, 6, 10, 14, 1, 5, 9, 13, 3, 7, 11, 15));
}

/* Bytes by block of 32, eight of them, to lanes. */
INLINE __m128i lanes_of_blocks(uint64_t bytes)
{
    return _mm_shuffle_epi8(_mm_cvtsi64_si128((long long)bytes),
                            _mm_setr_epi8(0, 2, 4, 6, 1, 3, 5, 7, 0, 2, 4, 6, 1, 3, 5, 7));
}

/* ---- Codes ---------------------------------------------------------------------------------- */

INLINE __m256i bytes_of(int value)
{
    return _mm256_set1_epi8((char)value);
}

/* Bits of every byte, moved down to bit 0. */
INLINE __m256i bits_at(__m256i q, int shift, int mask)
{
    return _mm256_and_si256(_mm256_srli_epi16(q, shift), bytes_of(mask));
}

/* The nibbles of 16 bytes: first the low ones, then the high ones. */
INLINE __m256i nibbles(const uint8_t *from)
{
    __m128i q = _mm_loadu_si128((const __m128i *)from);
    __m256i both = _mm256_inserti128_si256(_mm256_castsi128_si256(q), _mm_srli_epi16(q, 4), 1);
    return _mm256_and_si256(both, bytes_of(15));
}

/* Sixteen where bit i of 32 is set. */
INLINE __m256i fifth_bits(const uint8_t *from)
{
    const __m256i byte_of =
        _mm256_setr_epi64x(0, 0x0101010101010101, 0x0202020202020202, 0x0303030303030303);
    const __m256i bit = _mm256_set1_epi64x((long long)0x8040201008040201);
    __m256i spread = _mm256_shuffle_epi8(_mm256_set1_epi32((int)load_u32(from)), byte_of);
    __m256i set = _mm256_cmpeq_epi8(_mm256_and_si256(spread, bit), bit);
    return _mm256_and_si256(set, bytes_of(16));
}

/* Vector v of 256 codes of two bits. */
INLINE __m256i pairs(const uint8_t *from, int v)
{
    return bits_at(load(from + v / 4 * 32), v % 4 * 2, 3);
}

/* value where bit v of 32 bytes is set. */
INLINE __m256i byte_bits(const uint8_t *from, int v, int value)
{
    __m256i set = _mm256_and_si256(load(from), bytes_of(1 << v));
    return _mm256_andnot_si256(_mm256_cmpeq_epi8(set, _mm256_setzero_si256()), bytes_of(value));
}

/* table[code] + centre */
INLINE __m256i look_up(const int8_t table[16], int centre, __m256i code)
{
    __m128i row =
        _mm_add_epi8(_mm_loadu_si128((const __m128i *)table), _mm_set1_epi8((char)centre));
    return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(row), code);
}

/* ---- Small blocks --------------------------------------------------------------------------- */

INLINE void unpack_q4_0(const void *src, struct unit *out)
{
    const struct block_q4_0 *b = src;
    out->scale = block_halves(src, sizeof *b, 0);
    for (int v = 0; v < 8; v++)
        out->code[v] = nibbles(b[v].qs);
}

INLINE void unpack_q4_1(const void *src, struct unit *out)
{
    const struct block_q4_1 *b = src;
    out->scale = block_halves(src, sizeof *b, 0);
    out->min = negated(block_halves(src, sizeof *b, 2));
    for (int v = 0; v < 8; v++)
        out->code[v] = nibbles(b[v].qs);
}

INLINE void unpack_q5_0(const void *src, struct unit *out)
{
    const struct block_q5_0 *b = src;
    out->scale = block_halves(src, sizeof *b, 0);
    for (int v = 0; v < 8; v++)
        out->code[v] = _mm256_or_si256(nibbles(b[v].qs), fifth_bits(b[v].qh));
}

INLINE void unpack_q5_1(const void *src, struct unit *out)
{
    const struct block_q5_1 *b = src;
    out->scale = block_halves(src, sizeof *b, 0);
    out->min = negated(block_halves(src, sizeof *b, 2));
    for (int v = 0; v < 8; v++)
        out->code[v] = _mm256_or_si256(nibbles(b[v].qs), fifth_bits(b[v].qh));
}

INLINE void unpack_q8_0(const void *src, struct unit *out)
{
    const struct block_q8_0 *b = src;
    out->scale = block_halves(src, sizeof *b, 0);
    for (int v = 0; v < 8; v++)
        out->code[v] = load(b[v].qs);
}

INLINE void unpack_iq4_nl(const void *src, struct unit *out)
{
    const struct block_iq4_nl *b = src;
    out->scale = block_halves(src, sizeof *b, 0);
    for (int v = 0; v < 8; v++)
        out->code[v] = look_up(block_iq4_table, 0, nibbles(b[v].qs));
}

INLINE void unpack_mxfp4(const void *src, struct unit *out)
{
    const struct block_mxfp4 *b = src;
    for (int v = 0; v < 8; v++)
        out->code[v] = look_up(block_e2m1_doubled, 16, nibbles(b[v].qs));
    out->scale = each_twice(even_odd_exponents(b));
}

/* ---- Super-blocks ---------------------------------------------------------------------------- */

INLINE void unpack_q2_k(const void *src, struct unit *out)
{
    const struct block_q2_k *b = src;
    const __m128i four = _mm_set1_epi8(15);
    __m128i scales = lanes_of_groups(_mm_loadu_si128((const __m128i *)b->scales));
    out->scale = scaled(half(b->d), _mm_and_si128(scales, four));
    out->min = scaled(half(b->dmin), _mm_and_si128(_mm_srli_epi16(scales, 4), four));
    for (int v = 0; v < 8; v++)
        out->code[v] = pairs(b->qs, v);
}

INLINE void unpack_q3_k(const void *src, struct unit *out)
{
    const struct block_q3_k *b = src;
    uint64_t scales[2];
    scales_q3_k(b->scales, scales);
    __m128i by_group = _mm_set_epi64x((long long)scales[1], (long long)scales[0]);
    out->scale = scaled(half(b->d), _mm_sub_epi8(lanes_of_groups(by_group), _mm_set1_epi8(32)));
    for (int v = 0; v < 8; v++)
        out->code[v] = _mm256_or_si256(pairs(b->qs, v), byte_bits(b->hmask, v, 4));
}

INLINE void set_scales_mins(const uint8_t packed[12], uint16_t d, uint16_t dmin, struct unit *out)
{
    uint64_t scales, mins;
    scales_q4_k(packed, &scales, &mins);
    out->scale = scaled(half(d), lanes_of_blocks(scales));
    out->min = scaled(half(dmin), lanes_of_blocks(mins));
}

/* Vector v of 256 nibbles: of each 32 bytes first the low ones, then the high ones. */
INLINE __m256i nibbles_k(const uint8_t *qs, int v)
{
    return bits_at(load(qs + v / 2 * 32), v % 2 * 4, 15);
}

INLINE void unpack_q4_k(const void *src, struct unit *out)
{
    const struct block_q4_k *b = src;
    set_scales_mins(b->scales, b->d, b->dmin, out);
    for (int v = 0; v < 8; v++)
        out->code[v] = nibbles_k(b->qs, v);
}

INLINE void unpack_q5_k(const void *src, struct unit *out)
{
    const struct block_q5_k *b = src;
    set_scales_mins(b->scales, b->d, b->dmin, out);
    for (int v = 0; v < 8; v++)
        out->code[v] = _mm256_or_si256(nibbles_k(b->qs, v), byte_bits(b->qh, v, 16));
}

INLINE void unpack_q6_k(const void *src, struct unit *out)
{
    const struct block_q6_k *b = src;
    out->scale = scaled(half(b->d), lanes_of_groups(_mm_loadu_si128((const __m128i *)b->scales)));
    for (int v = 0; v < 8; v++) {
        __m256i low = bits_at(load(b->ql + v / 4 * 64 + v % 2 * 32), v / 2 % 2 * 4, 15);
        out->code[v] = _mm256_or_si256(low, _mm256_slli_epi16(pairs(b->qh, v), 4));
    }
}

INLINE void unpack_iq4_xs(const void *src, struct unit *out)
{
    const struct block_iq4_xs *b = src;
    __m128i scales = lanes_of_blocks(scales_iq4_xs(b->scales_l, b->scales_h));
    out->scale = scaled(half(b->d), _mm_sub_epi8(scales, _mm_set1_epi8(32)));
    for (int v = 0; v < 8; v++)
        out->code[v] = look_up(block_iq4_table, 0, nibbles(b->qs + 16 * v));
}

INLINE void unpack_tq1_0(const void *src, struct unit *out)
{
    const struct block_tq1_0 *b = src;
    ternary_codes(b, out->code);
    out->scale = half(b->d);
}

INLINE void unpack_tq2_0(const void *src, struct unit *out)
{
    const struct block_tq2_0 *b = src;
    out->scale = half(b->d);
    for (int v = 0; v < 8; v++)
        out->code[v] = pairs(b->qs, v);
}

/* ---- Float formats -------------------------------------------------------------------------- */

INLINE void widen_f32(const void *src, lanes out[2])
{
    const float *from = src;
    out[0] = lanes_load(from);
    out[1] = lanes_load(from + 16);
}

INLINE void widen_f16(const void *src, lanes out[2])
{
    const __m128i *from = src;
    for (int i = 0; i < 4; i++)
        out[i / 2].v[i % 2] = _mm256_cvtph_ps(_mm_loadu_si128(from + i));
}

INLINE void widen_bf16(const void *src, lanes out[2])
{
    const __m128i *from = src;
    for (int i = 0; i < 4; i++)
        out[i / 2].v[i % 2] = _mm256_castsi256_ps(
            _mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(from + i)), 16));
}

INLINE void widen_q8_0(const void *src, lanes out[2])
{
    const struct block_q8_0 *b = src;
    for (int i = 0; i < 2; i++)
        out[i] = scaled(half(b->d), _mm_loadu_si128((const __m128i *)(b->qs + 16 * i)));
}

/* ---- Pages of codes -------------------------------------------------------------------------- */

typedef struct {
    __m256i v[2];
} counts;

INLINE counts counts_zero(void)
{
    return (counts){{_mm256_setzero_si256(), _mm256_setzero_si256()}};
}

/* The 128 is taken away from the codes. */
INLINE counts counts_begin(int32_t codes_sum)
{
    (void)codes_sum;
    return counts_zero();
}

INLINE __m256i four_codes(const void *from)
{
    int32_t four;
    memcpy(&four, from, sizeof four);
    return _mm256_set1_epi32(four);
}

/* Bytes up to 128 times signed bytes within +-127: two products have room in 16 bits. */
INLINE __m256i add_products(__m256i sum, __m256i without_sign, __m256i with_sign)
{
    __m256i two = _mm256_maddubs_epi16(without_sign, with_sign);
    return _mm256_add_epi32(sum, _mm256_madd_epi16(two, _mm256_set1_epi16(1)));
}

INLINE counts counts_keys(counts sum, const uint8_t *stored, const int8_t *query)
{
    for (int i = 0; i < 2; i++) {
        __m256i key = _mm256_xor_si256(load(stored + 32 * i), bytes_of(128));
        sum.v[i] =
            add_products(sum.v[i], _mm256_abs_epi8(key), _mm256_sign_epi8(four_codes(query), key));
    }
    return sum;
}

INLINE counts counts_values(counts sum, const uint8_t *stored, const uint8_t *weights)
{
    for (int i = 0; i < 2; i++)
        sum.v[i] = add_products(sum.v[i], four_codes(weights), load(stored + 32 * i));
    return sum;
}

INLINE counts counts_join(counts high, counts low)
{
    for (int i = 0; i < 2; i++)
        low.v[i] = _mm256_add_epi32(low.v[i], _mm256_slli_epi32(high.v[i], 7));
    return low;
}

INLINE lanes lanes_of(counts a)
{
    return (lanes){{_mm256_cvtepi32_ps(a.v[0]), _mm256_cvtepi32_ps(a.v[1])}};
}

INLINE lanes lanes_halves(const uint16_t *src)
{
    const __m128i *from = (const __m128i *)src;
    return (lanes){
        {_mm256_cvtph_ps(_mm_loadu_si128(from)), _mm256_cvtph_ps(_mm_loadu_si128(from + 1))}};
}

/* The upper digit of a number is moved to its second byte. */
INLINE __m256i two_digits(__m256 a)
{
    __m256i whole = _mm256_cvtps_epi32(a);
    return _mm256_add_epi32(whole, _mm256_and_si256(whole, _mm256_set1_epi32(127 << 7)));
}

INLINE void lanes_digits(lanes a, lanes b, uint8_t *to)
{
    const __m256i upper_first = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(1, 3, 5, 7, 0, 2, 4, 6, 9, 11, 13, 15, 8, 10, 12, 14));
    for (int i = 0; i < 2; i++) {
        __m256i both = _mm256_packus_epi32(two_digits(a.v[i]), two_digits(b.v[i]));
        _mm256_storeu_si256((__m256i *)(to + 32 * i), _mm256_shuffle_epi8(both, upper_first));
    }
}

#define KERNEL_SET kernels_avx2
#define KERNEL_NAME "avx2"
#define KERNEL_FEATURES CPU_AVX2
#include "quant/kernels_loops.h"
