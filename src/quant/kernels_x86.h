/* What AVX2 and AVX-512 unpack alike, in AVX2. Values of eight small blocks are kept with the even
 * blocks in the lower and the odd ones in the upper half, as UNIT_LANE wants them (each twice). */
#ifndef CONSORT_QUANT_KERNELS_X86_H
#define CONSORT_QUANT_KERNELS_X86_H

#include <immintrin.h>

#include "quant/kernels.h"
#include "quant/kernels_scales.h"

/* F16 fields of eight small blocks. */
INLINE __m256 even_odd_halves(const void *src, size_t block_bytes, size_t offset)
{
    const uint8_t *from = (const uint8_t *)src + offset;
    uint16_t bits[8];
    for (int b = 0; b < 8; b++)
        memcpy(&bits[b], from + (size_t)b * block_bytes, sizeof bits[b]);
    return _mm256_cvtph_ps(_mm_setr_epi16((short)bits[0], (short)bits[2], (short)bits[4],
                                          (short)bits[6], (short)bits[1], (short)bits[3],
                                          (short)bits[5], (short)bits[7]));
}

/* 2^(e - 128) of eight blocks, the scale of MXFP4's doubled numbers; the first two are denormal. */
INLINE __m256 even_odd_exponents(const struct block_mxfp4 *b)
{
    __m256i e = _mm256_setr_epi32(b[0].e, b[2].e, b[4].e, b[6].e, b[1].e, b[3].e, b[5].e, b[7].e);
    const __m256i one = _mm256_set1_epi32(1);
    __m256i normal = _mm256_slli_epi32(_mm256_sub_epi32(e, one), 23);
    __m256i denormal = _mm256_sllv_epi32(_mm256_set1_epi32(0x00200000), e);
    return _mm256_castsi256_ps(_mm256_blendv_epi8(denormal, normal, _mm256_cmpgt_epi32(e, one)));
}

/* A byte is a fraction in base three. Its next digit is floor(3 byte / 256), one for 86 and two for
 * 171 and more; the rest is 3 byte modulo 256. */
INLINE __m256i next_digit(__m256i *fraction)
{
    __m256i q = *fraction;
    __m256i one = _mm256_cmpeq_epi8(_mm256_max_epu8(q, _mm256_set1_epi8(86)), q);
    __m256i two = _mm256_cmpeq_epi8(_mm256_max_epu8(q, _mm256_set1_epi8((char)171)), q);
    *fraction = _mm256_add_epi8(q, _mm256_add_epi8(q, q));
    return _mm256_sub_epi8(_mm256_setzero_si256(), _mm256_add_epi8(one, two));
}

/* The 256 codes of a TQ1_0 block. */
INLINE void ternary_codes(const struct block_tq1_0 *b, __m256i code[8])
{
    __m256i first = _mm256_loadu_si256((const __m256i *)b->qs), last[5];
    /* 16 bytes of five digits, then (upper half) four bytes of four digits. */
    __m256i rest = _mm256_set_m128i(_mm_cvtsi32_si128((int)load_u32(b->qh)),
                                    _mm_loadu_si128((const __m128i *)(b->qs + 32)));
    for (int digit = 0; digit < 5; digit++) {
        code[digit] = next_digit(&first);
        last[digit] = next_digit(&rest);
    }
    __m256i fours = _mm256_unpacklo_epi64(_mm256_unpacklo_epi32(last[0], last[1]),
                                          _mm256_unpacklo_epi32(last[2], last[3]));
    code[5] = _mm256_permute2x128_si256(last[0], last[1], 0x20);
    code[6] = _mm256_permute2x128_si256(last[2], last[3], 0x20);
    code[7] = _mm256_blend_epi32(last[4], fours, 0xF0);
}

#endif
