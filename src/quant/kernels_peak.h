/* Bare loops of the instructions that products rest on, with operands from the first cache: what
 * the arithmetic of an instruction set could reach if nothing else had to be done. Included by
 * kernels_loops.h, once for each instruction set; the compiler's flags say which one it is. */

#if defined(__AVX512VNNI__)
#define PEAK_SUMS 12 /* sums that do not wait for one another, in registers */
#define PEAK_LANES 12
typedef __m512i dots;
INLINE dots dots_add(dots sum, dots w, const uint8_t *codes)
{
    return _mm512_dpbusd_epi32(sum, w, _mm512_loadu_si512(codes));
}

#elif defined(__AVX2__)
#define PEAK_SUMS 8
#define PEAK_LANES 6 /* of two registers each */
typedef __m256i dots;
INLINE dots dots_add(dots sum, dots w, const uint8_t *codes)
{
    __m256i pairs = _mm256_maddubs_epi16(w, _mm256_loadu_si256((const __m256i *)codes));
    return _mm256_add_epi16(sum, pairs);
}

#elif defined(__ARM_FEATURE_DOTPROD)
#define PEAK_SUMS 24
#define PEAK_LANES 6 /* of four registers each */
typedef int32x4_t dots;
INLINE dots dots_add(dots sum, dots w, const uint8_t *codes)
{
    return vdotq_s32(sum, vreinterpretq_s8_s32(w), vld1q_s8((const int8_t *)codes));
}

#else
#define PEAK_SUMS 8
#define PEAK_LANES 1
typedef struct {
    int8_t code[1];
} dots;
INLINE dots dots_add(dots sum, dots w, const uint8_t *codes)
{
    sum.code[0] = (int8_t)(sum.code[0] + w.code[0] * (int8_t)codes[0]);
    return sum;
}
#endif

/* data[PEAK_BYTES] is read rounds times and changed at the end, so that nothing is left out. */
static uint64_t peak_codes(uint8_t *data, size_t rounds)
{
    const size_t step = PEAK_SUMS * sizeof(dots);
    dots sum[PEAK_SUMS], w;
    _Static_assert(PEAK_BYTES % (PEAK_SUMS * sizeof(dots)) == 0, "whole steps");
    memcpy(&w, data, sizeof w);
    memcpy(sum, data, sizeof sum);
    for (size_t round = 0; round < rounds; round++)
        for (size_t at = 0; at < PEAK_BYTES; at += step)
            for (size_t i = 0; i < PEAK_SUMS; i++)
                sum[i] = dots_add(sum[i], w, data + at + i * sizeof w);
    memcpy(data, sum, sizeof sum);
    return (uint64_t)rounds * PEAK_BYTES;
}

static uint64_t peak_floats(uint8_t *data, size_t rounds)
{
    const float *from = (const float *)data;
    const size_t n = PEAK_BYTES / sizeof *from, step = PEAK_LANES * 16;
    lanes sum[PEAK_LANES], w = lanes_load(from);
    _Static_assert(PEAK_BYTES % (PEAK_LANES * 16 * sizeof(float)) == 0, "whole steps");
    for (size_t i = 0; i < PEAK_LANES; i++)
        sum[i] = lanes_zero();
    for (size_t round = 0; round < rounds; round++)
        for (size_t at = 0; at < n; at += step)
            for (size_t i = 0; i < PEAK_LANES; i++)
                sum[i] = lanes_fma(lanes_load(from + at + 16 * i), w, sum[i]);
    for (size_t i = 0; i < PEAK_LANES; i++)
        lanes_store((float *)data + 16 * i, sum[i]);
    return (uint64_t)rounds * n;
}
