/* Unpacking of all block formats with AVX-512: a vector holds 64 codes, a unit is four vectors. */
#ifndef CONSORT_QUANT_KERNELS_AVX512_H
#define CONSORT_QUANT_KERNELS_AVX512_H

#include "quant/kernels_x86.h"

/* Where the codes are. What brings four codes of each block together can take them out of the
 * file's bytes as well, which saves half of the moves between lanes. */
enum unit_codes {
    CODES_BY_BLOCK,       /* in code alone */
    CODES_NIBBLES,        /* also at nibbles: 16 bytes a block, step bytes apart, low ones first */
    CODES_NIBBLES_K,      /* also at nibbles: 32 bytes of two blocks, the low ones of the first */
    CODES_PAIRS,          /* two bits, 64 bytes in code[0] */
    CODES_PAIRS_AND_BITS, /* and 32 bytes of third bits in code[1] */
};

/* What scales are made of, from which those of two rows come with half of the instructions. */
enum unit_scales {
    SCALES_READY,     /* nothing but scale and min */
    SCALES_HALVES,    /* words, as in the file */
    SCALES_EXPONENTS, /* words, with the exponents of MXFP4 */
    SCALES_K,         /* head: d, dmin and packed scales of Q4_K and Q5_K */
    SCALES_XS,        /* head: d and packed scales of IQ4_XS */
};

struct unit {
    enum unit_codes codes;
    enum unit_scales scales;
    __m512i code[4]; /* without a sign */
    const uint8_t *nibbles;
    size_t step;
    const int8_t *table; /* what a nibble stands for, less centre; NULL: itself */
    int centre;
    __m512 scale, min; /* by UNIT_LANE */
    __m256i words;     /* by UNIT_LANE */
    __m128i head;
};

/* Transposes the 4 x 4 groups of four bytes in each 128 bits. */
INLINE void turn(__m512i v[4])
{
    __m512i a = _mm512_unpacklo_epi32(v[0], v[1]), b = _mm512_unpackhi_epi32(v[0], v[1]);
    __m512i c = _mm512_unpacklo_epi32(v[2], v[3]), d = _mm512_unpackhi_epi32(v[2], v[3]);
    v[0] = _mm512_unpacklo_epi64(a, c);
    v[1] = _mm512_unpackhi_epi64(a, c);
    v[2] = _mm512_unpacklo_epi64(b, d);
    v[3] = _mm512_unpackhi_epi64(b, d);
}

/* ---- Scales --------------------------------------------------------------------------------- */

/* The 16-bit words at offset + even bytes into eight small blocks, by lane and twice. Where they do
 * not all lie in the first 128 bytes, the last four are in those from BLOCKS_REST on. */
#define BLOCKS_REST(block_bytes) ((block_bytes) > 32 ? 4 * (block_bytes) : 8 * (block_bytes)-128)

INLINE __m256i block_words(const void *src, size_t block_bytes, size_t offset)
{
    const uint8_t *from = src, *rest = from + BLOCKS_REST(block_bytes);
#define FIRST(b) (short)(((b)*block_bytes + offset) / 2)
    if (7 * block_bytes + offset + 2 <= 128) {
        const __m256i all = _mm256_setr_epi16(
            FIRST(0), FIRST(2), FIRST(4), FIRST(6), FIRST(1), FIRST(3), FIRST(5), FIRST(7),
            FIRST(0), FIRST(2), FIRST(4), FIRST(6), FIRST(1), FIRST(3), FIRST(5), FIRST(7));
        return _mm512_castsi512_si256(_mm512_permutex2var_epi16(
            _mm512_loadu_si512(from), _mm512_castsi256_si512(all), _mm512_loadu_si512(from + 64)));
    }
#define LAST(b) (short)(((b)*block_bytes + offset - BLOCKS_REST(block_bytes)) / 2)
    const __m512i first = _mm512_castsi256_si512(
        _mm256_setr_epi16(FIRST(0), FIRST(2), 0, 0, FIRST(1), FIRST(3), 0, 0, FIRST(0), FIRST(2), 0,
                          0, FIRST(1), FIRST(3), 0, 0));
    const __m512i last =
        _mm512_castsi256_si512(_mm256_setr_epi16(0, 0, LAST(4), LAST(6), 0, 0, LAST(5), LAST(7), 0,
                                                 0, LAST(4), LAST(6), 0, 0, LAST(5), LAST(7)));
#undef FIRST
#undef LAST
    __m512i a =
        _mm512_permutex2var_epi16(_mm512_loadu_si512(from), first, _mm512_loadu_si512(from + 64));
    __m512i b =
        _mm512_permutex2var_epi16(_mm512_loadu_si512(rest), last, _mm512_loadu_si512(rest + 64));
    return _mm512_castsi512_si256(_mm512_mask_blend_epi16(0xCCCC, a, b));
}

INLINE __m512 block_halves(const void *src, size_t block_bytes, size_t offset)
{
    return _mm512_cvtph_ps(block_words(src, block_bytes, offset));
}

/* 2^(e - 128) of eight blocks, the scale of MXFP4's doubled numbers; the first two are denormal. */
INLINE __m512 scales_of_exponents(__m256i words)
{
    /* Blocks are 17 bytes long: of every other one the exponent is the upper byte of a word. */
    __m512i word = _mm512_cvtepu16_epi32(words);
    const __m512i odd = _mm512_setr_epi32(0, 0, 0, 0, 8, 8, 8, 8, 0, 0, 0, 0, 8, 8, 8, 8);
    __m512i e = _mm512_and_si512(_mm512_srlv_epi32(word, odd), _mm512_set1_epi32(255));
    const __m512i one = _mm512_set1_epi32(1);
    __m512i denormal = _mm512_sllv_epi32(_mm512_set1_epi32(0x00200000), e);
    __m512i normal = _mm512_slli_epi32(_mm512_sub_epi32(e, one), 23);
    return _mm512_castsi512_ps(
        _mm512_mask_mov_epi32(denormal, _mm512_cmpgt_epi32_mask(e, one), normal));
}

INLINE __m512 half(uint16_t bits)
{
    return _mm512_cvtph_ps(_mm256_set1_epi16((short)bits));
}

/* Bytes by group to lanes. */
INLINE __m512i lanes_of_groups(__m128i bytes)
{
    return _mm512_cvtepi8_epi32(_mm_shuffle_epi8(
        bytes, _mm_setr_epi8(0, 4, 8, 12, 2, 6, 10, 14, 1, 5, 9, 13, 3, 7, 11, 15)));
}

/* Bytes by block of 32, eight of them, to lanes. */
INLINE __m512i lanes_of_blocks(uint64_t bytes)
{
    return _mm512_cvtepi8_epi32(
        _mm_shuffle_epi8(_mm_cvtsi64_si128((long long)bytes),
                         _mm_setr_epi8(0, 2, 4, 6, 1, 3, 5, 7, 0, 2, 4, 6, 1, 3, 5, 7)));
}

INLINE __m512 scaled(__m512 d, __m512i scales)
{
    return _mm512_mul_ps(d, _mm512_cvtepi32_ps(scales));
}

/* ---- Codes ---------------------------------------------------------------------------------- */

INLINE __m512i bytes(int value)
{
    return _mm512_set1_epi8((char)value);
}

/* a in the lower, b in the upper half. */
INLINE __m512i two_halves(uint32_t a, uint32_t b)
{
    return _mm512_inserti64x4(_mm512_set1_epi32((int)a), _mm256_set1_epi32((int)b), 1);
}

INLINE __m512i twice(const uint8_t *from)
{
    return _mm512_broadcast_i64x4(_mm256_loadu_si256((const __m256i *)from));
}

/* The nibbles of two small blocks: of each 16 bytes first the low ones, then the high ones. */
INLINE __m512i nibbles(const uint8_t *first, const uint8_t *second)
{
    __m512i q = _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)first));
    q = _mm512_mask_broadcast_i32x4(q, 0xFF00, _mm_loadu_si128((const __m128i *)second));
    const __m512i shift = _mm512_setr_epi32(0, 0, 0, 0, 4, 4, 4, 4, 0, 0, 0, 0, 4, 4, 4, 4);
    return _mm512_and_si512(_mm512_srlv_epi32(q, shift), bytes(15));
}

/* Adds value where the bits of two small blocks are set. */
INLINE __m512i add_bits(__m512i code, const uint8_t *first, const uint8_t *second, int value)
{
    __mmask64 set = load_u32(first) | (__mmask64)load_u32(second) << 32;
    return _mm512_mask_add_epi8(code, set, code, bytes(value));
}

/* Adds value where bit 2 v (then 2 v + 1) of 32 bytes is set. */
INLINE __m512i add_byte_bits(__m512i code, __m256i from, int v, int value)
{
    const __m512i bits = two_halves(0x01010101u << 2 * v, 0x02020202u << 2 * v);
    __mmask64 set = _mm512_test_epi8_mask(_mm512_broadcast_i64x4(from), bits);
    return _mm512_mask_add_epi8(code, set, code, bytes(value));
}

/* table[code] + centre */
INLINE __m512i look_up(const int8_t table[16], int centre, __m512i code)
{
    __m128i row =
        _mm_add_epi8(_mm_loadu_si128((const __m128i *)table), _mm_set1_epi8((char)centre));
    return _mm512_shuffle_epi8(_mm512_broadcast_i32x4(row), code);
}

INLINE void set_nibbles(const uint8_t *qs, size_t step, const int8_t *table, int centre,
                        struct unit *out)
{
    out->codes = CODES_NIBBLES;
    out->nibbles = qs;
    out->step = step;
    out->table = table;
    out->centre = centre;
    for (int v = 0; v < 4; v++) {
        __m512i code = nibbles(qs + (size_t)(2 * v) * step, qs + (size_t)(2 * v + 1) * step);
        out->code[v] = table != NULL ? look_up(table, centre, code) : code;
    }
}

/* ---- Codes of two bits ---------------------------------------------------------------------- */

/* Numbers 4 v to 4 v + 3 of each block, of two rows, by lane and not yet masked. Four blocks share
 * their bytes, and each has two bits of them. */
INLINE __m512i pairs_of_rows(__m512i first, __m512i second, int v)
{
    const __m512i from = _mm512_setr_epi32(0, 0, 8, 8, 0, 0, 8, 8, 16, 16, 24, 24, 16, 16, 24, 24);
    const __m512i shift = _mm512_setr_epi32(0, 4, 0, 4, 2, 6, 2, 6, 0, 4, 0, 4, 2, 6, 2, 6);
    __m512i at = _mm512_add_epi32(from, _mm512_set1_epi32(v));
    return _mm512_srlv_epi32(_mm512_permutex2var_epi32(first, at, second), shift);
}

/* The same for third bits, moved to bit 2. All blocks share their bytes; block b has bit b. */
INLINE __m512i bits_of_rows(__m512i first, __m512i second, int v)
{
    const __m512i from = _mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 16, 16, 16, 16, 16, 16, 16, 16);
    const __m512i by = _mm512_setr_epi32(30, 0, 2, 4, 31, 1, 3, 5, 30, 0, 2, 4, 31, 1, 3, 5);
    __m512i at = _mm512_add_epi32(from, _mm512_set1_epi32(v));
    return _mm512_rorv_epi32(_mm512_permutex2var_epi32(first, at, second), by);
}

/* Makes CODES_BY_BLOCK of what unpacking left. */
INLINE void spread_codes(struct unit *unit)
{
    if (unit->codes != CODES_PAIRS && unit->codes != CODES_PAIRS_AND_BITS)
        return;
    const __m512i pairs = unit->code[0], bits = unit->code[1];
    const __m512i half[2] = {_mm512_shuffle_i64x2(pairs, pairs, 0x44),
                             _mm512_shuffle_i64x2(pairs, pairs, 0xEE)};
    for (int v = 0; v < 4; v++) {
        __m512i q = _mm512_srlv_epi32(half[v / 2], v % 2 ? two_halves(4, 6) : two_halves(0, 2));
        unit->code[v] = _mm512_and_si512(q, bytes(3));
        if (unit->codes == CODES_PAIRS_AND_BITS)
            unit->code[v] = add_byte_bits(unit->code[v], _mm512_castsi512_si256(bits), v, 4);
    }
    unit->codes = CODES_BY_BLOCK;
}

/* ---- Small blocks --------------------------------------------------------------------------- */

INLINE void set_halves(const void *src, size_t block_bytes, struct unit *out)
{
    out->scales = SCALES_HALVES;
    out->words = block_words(src, block_bytes, 0);
    out->scale = _mm512_cvtph_ps(out->words);
}

INLINE void unpack_q4_0(const void *src, struct unit *out)
{
    const struct block_q4_0 *b = src;
    set_halves(src, sizeof *b, out);
    set_nibbles(b->qs, sizeof *b, NULL, 0, out);
}

INLINE void unpack_q4_1(const void *src, struct unit *out)
{
    const struct block_q4_1 *b = src;
    set_halves(src, sizeof *b, out);
    out->min = _mm512_sub_ps(_mm512_setzero_ps(), block_halves(src, sizeof *b, 2));
    set_nibbles(b->qs, sizeof *b, NULL, 0, out);
}

INLINE void unpack_q5_0(const void *src, struct unit *out)
{
    const struct block_q5_0 *b = src;
    out->codes = CODES_BY_BLOCK;
    set_halves(src, sizeof *b, out);
    for (int v = 0; v < 4; v++)
        out->code[v] =
            add_bits(nibbles(b[2 * v].qs, b[2 * v + 1].qs), b[2 * v].qh, b[2 * v + 1].qh, 16);
}

INLINE void unpack_q5_1(const void *src, struct unit *out)
{
    const struct block_q5_1 *b = src;
    out->codes = CODES_BY_BLOCK;
    set_halves(src, sizeof *b, out);
    out->min = _mm512_sub_ps(_mm512_setzero_ps(), block_halves(src, sizeof *b, 2));
    for (int v = 0; v < 4; v++)
        out->code[v] =
            add_bits(nibbles(b[2 * v].qs, b[2 * v + 1].qs), b[2 * v].qh, b[2 * v + 1].qh, 16);
}

INLINE void unpack_q8_0(const void *src, struct unit *out)
{
    const struct block_q8_0 *b = src;
    out->codes = CODES_BY_BLOCK;
    set_halves(src, sizeof *b, out);
    for (int v = 0; v < 4; v++) {
        __m512i q = _mm512_inserti64x4(
            _mm512_castsi256_si512(_mm256_loadu_si256((const __m256i *)b[2 * v].qs)),
            _mm256_loadu_si256((const __m256i *)b[2 * v + 1].qs), 1);
        out->code[v] = _mm512_xor_si512(q, bytes(128));
    }
}

INLINE void unpack_iq4_nl(const void *src, struct unit *out)
{
    const struct block_iq4_nl *b = src;
    set_halves(src, sizeof *b, out);
    set_nibbles(b->qs, sizeof *b, block_iq4_table, 128, out);
}

INLINE void unpack_mxfp4(const void *src, struct unit *out)
{
    const struct block_mxfp4 *b = src;
    out->scales = SCALES_EXPONENTS;
    out->words = block_words(src, sizeof *b, 0);
    out->scale = scales_of_exponents(out->words);
    set_nibbles(b->qs, sizeof *b, block_e2m1_doubled, 16, out);
}

/* ---- Super-blocks ---------------------------------------------------------------------------- */

INLINE void unpack_q2_k(const void *src, struct unit *out)
{
    const struct block_q2_k *b = src;
    __m512i scales = lanes_of_groups(_mm_loadu_si128((const __m128i *)b->scales));
    const __m512i four = _mm512_set1_epi32(15);
    out->scale = scaled(half(b->d), _mm512_and_si512(scales, four));
    out->min = scaled(half(b->dmin), _mm512_and_si512(_mm512_srli_epi32(scales, 4), four));
    out->scales = SCALES_READY;
    out->codes = CODES_PAIRS;
    out->code[0] = _mm512_loadu_si512(b->qs);
}

INLINE void unpack_q3_k(const void *src, struct unit *out)
{
    const struct block_q3_k *b = src;
    uint64_t scales[2];
    scales_q3_k(b->scales, scales);
    __m512i centred = _mm512_sub_epi32(
        lanes_of_groups(_mm_set_epi64x((long long)scales[1], (long long)scales[0])),
        _mm512_set1_epi32(32));
    out->scale = scaled(half(b->d), centred);
    out->scales = SCALES_READY;
    out->codes = CODES_PAIRS_AND_BITS;
    out->code[0] = _mm512_loadu_si512(b->qs);
    out->code[1] = _mm512_castsi256_si512(_mm256_loadu_si256((const __m256i *)b->hmask));
}

/* src begins with d, dmin and the twelve bytes of scales and minima. */
INLINE void set_scales_mins(const struct block_q4_k *src, struct unit *out)
{
    uint64_t scales, mins;
    scales_q4_k(src->scales, &scales, &mins);
    out->scale = scaled(half(src->d), lanes_of_blocks(scales));
    out->min = scaled(half(src->dmin), lanes_of_blocks(mins));
    out->scales = SCALES_K;
    out->head = _mm_loadu_si128((const __m128i *)src);
}

/* Vector v of 256 nibbles: of each 32 bytes first the low ones, then the high ones. */
INLINE __m512i nibbles_k(const uint8_t *qs, int v)
{
    return _mm512_and_si512(_mm512_srlv_epi32(twice(qs + 32 * v), two_halves(0, 4)), bytes(15));
}

INLINE void unpack_q4_k(const void *src, struct unit *out)
{
    const struct block_q4_k *b = src;
    out->codes = CODES_NIBBLES_K;
    out->nibbles = b->qs;
    set_scales_mins(src, out);
    for (int v = 0; v < 4; v++)
        out->code[v] = nibbles_k(b->qs, v);
}

INLINE void unpack_q5_k(const void *src, struct unit *out)
{
    const struct block_q5_k *b = src;
    out->codes = CODES_BY_BLOCK;
    set_scales_mins(src, out);
    for (int v = 0; v < 4; v++)
        out->code[v] =
            add_byte_bits(nibbles_k(b->qs, v), _mm256_loadu_si256((const __m256i *)b->qh), v, 16);
}

INLINE void unpack_q6_k(const void *src, struct unit *out)
{
    const struct block_q6_k *b = src;
    out->scales = SCALES_READY;
    out->codes = CODES_BY_BLOCK;
    out->scale = scaled(half(b->d), lanes_of_groups(_mm_loadu_si128((const __m128i *)b->scales)));
    for (int h = 0; h < 2; h++) {
        __m512i low = _mm512_loadu_si512(b->ql + 64 * h), high = twice(b->qh + 32 * h);
        __m512i high0 = _mm512_sllv_epi32(high, two_halves(4, 2));
        __m512i high1 = _mm512_srlv_epi32(high, two_halves(0, 2));
        out->code[2 * h] =
            _mm512_or_si512(_mm512_and_si512(low, bytes(15)), _mm512_and_si512(high0, bytes(0x30)));
        out->code[2 * h + 1] =
            _mm512_or_si512(_mm512_and_si512(_mm512_srli_epi32(low, 4), bytes(15)),
                            _mm512_and_si512(high1, bytes(0x30)));
    }
}

INLINE void unpack_iq4_xs(const void *src, struct unit *out)
{
    const struct block_iq4_xs *b = src;
    out->scales = SCALES_XS;
    out->head = _mm_loadu_si128(src);
    __m512i scales = lanes_of_blocks(scales_iq4_xs(b->scales_l, b->scales_h));
    out->scale = scaled(half(b->d), _mm512_sub_epi32(scales, _mm512_set1_epi32(32)));
    set_nibbles(b->qs, 16, block_iq4_table, 128, out);
}

INLINE void unpack_tq1_0(const void *src, struct unit *out)
{
    const struct block_tq1_0 *b = src;
    out->scales = SCALES_READY;
    out->codes = CODES_BY_BLOCK;
    __m256i code[8];
    ternary_codes(b, code);
    out->scale = half(b->d);
    for (int v = 0; v < 4; v++)
        out->code[v] = _mm512_inserti64x4(_mm512_castsi256_si512(code[2 * v]), code[2 * v + 1], 1);
}

INLINE void unpack_tq2_0(const void *src, struct unit *out)
{
    const struct block_tq2_0 *b = src;
    out->scale = half(b->d);
    out->scales = SCALES_READY;
    out->codes = CODES_PAIRS;
    out->code[0] = _mm512_loadu_si512(b->qs);
}

#endif
