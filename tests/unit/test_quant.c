#include "base/base.h"
#include "quant/quant.h"
#include "quant/blocks.h"

#include <float.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define N_COLS 2048

static const struct {
    const char *name;
    uint32_t block_len, block_bytes;
    bool can_encode;
    double error; /* of normally distributed numbers, in %: the bound that encoding is held to */
} expected[] = {
    {"F32", 1, 4, true, 0},           {"F16", 1, 2, true, 0.03},
    {"BF16", 1, 2, true, 0.25},       {"Q4_0", 32, 18, true, 8.2},
    {"Q4_1", 32, 20, true, 7.0},      {"Q5_0", 32, 22, true, 4.08},
    {"Q5_1", 32, 24, true, 3.38},     {"Q8_0", 32, 34, true, 0.49},
    {"Q2_K", 256, 84, true, 26.4},    {"Q3_K", 256, 110, true, 14.6},
    {"Q4_K", 256, 144, true, 7.06},   {"Q5_K", 256, 176, true, 3.49},
    {"Q6_K", 256, 210, true, 1.69},   {"IQ4_NL", 32, 18, true, 7.5},
    {"IQ4_XS", 256, 136, true, 7.55}, {"TQ1_0", 256, 54, false, 0},
    {"TQ2_0", 256, 66, false, 0},     {"MXFP4", 32, 17, true, 11.5},
};

static void test_table(void **state)
{
    (void)state;
    assert_int_equal(ARRAY_COUNT(expected), QUANT_FORMAT_COUNT);
    for (int f = 0; f < QUANT_FORMAT_COUNT; f++) {
        const struct quant_info *info = quant_info(f);
        assert_string_equal(info->name, expected[f].name);
        assert_int_equal(info->block_len, expected[f].block_len);
        assert_int_equal(info->block_bytes, expected[f].block_bytes);
        assert_int_equal(info->can_encode, expected[f].can_encode);
        enum quant_format found;
        assert_true(quant_find(info->name, &found));
        assert_int_equal(found, f);
    }
    enum quant_format found;
    assert_true(quant_find("q4_k", &found));
    assert_int_equal(found, QUANT_Q4_K);
    assert_false(quant_find("Q4_", &found));
    assert_false(quant_find("", &found));
    assert_int_equal(quant_row_bytes(QUANT_Q6_K, 512), 420);
    assert_int_equal(quant_row_bytes(QUANT_BF16, 3), 6);
    assert_int_equal(quant_row_bytes(QUANT_MXFP4, 0), 0);
}

/* ---- Number conversions ---------------------------------------------------------------------- */

static uint32_t bits_of(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

/* IEEE 754, 3.4, without bit tricks. */
static float half_value(unsigned bits)
{
    int sign = bits >> 15 ? -1 : 1, exponent = (int)(bits >> 10 & 31), mantissa = (int)bits & 1023;
    if (exponent == 31)
        return mantissa ? NAN : (float)sign * INFINITY;
    return (float)(sign * ldexp(exponent ? 1024 + mantissa : mantissa, MAX(exponent, 1) - 25));
}

static void test_f16_all(void **state)
{
    (void)state;
    for (unsigned bits = 0; bits < 0x10000; bits++) {
        float want = half_value(bits), got = block_f16_to_f32((uint16_t)bits);
        if (isnan(want)) {
            assert_true(isnan(got) && isnan(block_f16_to_f32(block_f32_to_f16(got))));
            continue;
        }
        assert_int_equal(bits_of(want), bits_of(got));
        assert_int_equal(block_f32_to_f16(got), bits);
        if ((bits & 0x7FFF) >= 0x7BFF)
            continue;
        /* Half way to the next number the even one wins; a little off it, the nearer one. */
        float middle = (want + half_value(bits + 1)) / 2;
        assert_int_equal(block_f32_to_f16(middle), bits + (bits & 1));
        assert_int_equal(block_f32_to_f16(nextafterf(middle, 0)), bits);
        assert_int_equal(block_f32_to_f16(nextafterf(middle, bits >> 15 ? -1e6f : 1e6f)), bits + 1);
    }
    assert_int_equal(block_f32_to_f16(65519.99f), 0x7BFF);
    assert_int_equal(block_f32_to_f16(65520), 0x7C00);
    assert_int_equal(block_f32_to_f16(-FLT_MAX), 0xFC00);
    assert_int_equal(block_f32_to_f16(FLT_TRUE_MIN), 0);
}

static void test_bf16(void **state)
{
    (void)state;
    for (unsigned bits = 0; bits < 0x10000; bits++) {
        float value = block_bf16_to_f32((uint16_t)bits);
        assert_int_equal(bits_of(value), bits << 16);
        if (isnan(value))
            assert_true(isnan(block_bf16_to_f32(block_f32_to_bf16(value))));
        else
            assert_int_equal(block_f32_to_bf16(value), bits);
    }
    assert_int_equal(block_f32_to_bf16(1.00390625f), 0x3F80); /* half way: even */
    assert_int_equal(block_f32_to_bf16(1.01171875f), 0x3F82); /* half way: even */
    assert_int_equal(block_f32_to_bf16(1.00390637f), 0x3F81); /* above half way */
    assert_int_equal(block_f32_to_bf16(FLT_MAX), 0x7F80);
    assert_int_equal(block_f32_to_bf16(NAN) & 0x7FC0, 0x7FC0);
}

/* ---- Decoding, number by number -------------------------------------------------------------- */

/* The numbers of a block as the formats' documents state them, one at a time, with exact products
 * in double and one rounding: what decoding must give in every bit. p is the block, i the number.
 */

static double half_at(const uint8_t *p, int at)
{
    return half_value(p[at] | (unsigned)p[at + 1] << 8);
}

/* Code i of `width` bits where `run` codes lie side by side in as many bytes, 8 / width runs deep.
 */
static int bit_field(const uint8_t *p, int i, int run, int width)
{
    int depth = 8 / width, byte = i / (run * depth) * run + i % run, level = i / run % depth;
    return p[byte] >> (level * width) & ((1 << width) - 1);
}

static int bit(const uint8_t *p, int i)
{
    return p[i / 8] >> i % 8 & 1;
}

static const int iq4[] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};

/* Scale (which = 0) or minimum (1) of group g of Q4_K and Q5_K. */
static int six_bits(const uint8_t *scales, int g, int which)
{
    if (g < 4)
        return scales[4 * which + g] & 63;
    return (scales[g + 4] >> 4 * which & 15) + 16 * (scales[4 * which + g - 4] >> 6);
}

static double mxfp4_value(int e, int code)
{
    static const double e2m1[] = {0, 0.5, 1, 1.5, 2, 3, 4, 6};
    return ldexp(code & 8 ? 0 - e2m1[code & 7] : e2m1[code], e - 127);
}

/* The digit of number i of a TQ1_0 block: 32 bytes of five, 16 of five, 4 of four. */
static int ternary_digit(const uint8_t *p, int i)
{
    int run = i < 160 ? 32 : i < 240 ? 16 : 4, first = i < 160 ? 0 : i < 240 ? 160 : 240;
    int byte = (i < 160 ? 0 : i < 240 ? 32 : 48) + (i - first) % run, digit = (i - first) / run;
    unsigned power = 1;
    for (int k = 0; k < digit; k++)
        power *= 3;
    return (int)(p[byte] * power % 256 * 3 / 256) - 1;
}

static float small_number(enum quant_format format, const uint8_t *p, int i)
{
    switch (format) {
    case QUANT_Q4_0:
        return (float)(half_at(p, 0) * (bit_field(p + 2, i, 16, 4) - 8));
    case QUANT_Q4_1:
        return (float)(half_at(p, 0) * bit_field(p + 4, i, 16, 4) + half_at(p, 2));
    case QUANT_Q5_0:
        return (float)(half_at(p, 0) * (bit_field(p + 6, i, 16, 4) + 16 * bit(p + 2, i) - 16));
    case QUANT_Q5_1:
        return (float)(half_at(p, 0) * (bit_field(p + 8, i, 16, 4) + 16 * bit(p + 4, i)) +
                       half_at(p, 2));
    case QUANT_Q8_0:
        return (float)(half_at(p, 0) * (int8_t)p[2 + i]);
    case QUANT_IQ4_NL:
        return (float)(half_at(p, 0) * iq4[bit_field(p + 2, i, 16, 4)]);
    case QUANT_MXFP4:
        return (float)mxfp4_value(p[0], bit_field(p + 1, i, 16, 4));
    case QUANT_F16:
        return (float)half_at(p, 0);
    case QUANT_BF16:
    case QUANT_F32: {
        uint32_t bits = 0;
        memcpy((uint8_t *)&bits + (format == QUANT_BF16 ? 2 : 0), p, format == QUANT_BF16 ? 2 : 4);
        float value;
        memcpy(&value, &bits, sizeof value);
        return value;
    }
    default:
        fail();
        return 0;
    }
}

static float number(enum quant_format format, const uint8_t *p, int i)
{
    int q, g = i / 16;
    switch (format) {
    case QUANT_Q2_K:
        q = bit_field(p + 16, i, 32, 2);
        return (float)(half_at(p, 80) * (p[g] & 15) * q - half_at(p, 82) * (p[g] >> 4));
    case QUANT_Q3_K:
        q = bit_field(p + 32, i, 32, 2) - (bit_field(p, i, 32, 1) ? 0 : 4);
        int scale = bit_field(p + 96, g, 8, 4) + 16 * bit_field(p + 104, g, 4, 2);
        return (float)(half_at(p, 108) * (scale - 32) * q);
    case QUANT_Q4_K:
    case QUANT_Q5_K:
        g = i / 32;
        q = bit_field(p + (format == QUANT_Q4_K ? 16 : 48), i, 32, 4);
        if (format == QUANT_Q5_K)
            q += 16 * bit_field(p + 16, i, 32, 1);
        return (float)(half_at(p, 0) * six_bits(p + 4, g, 0) * q -
                       half_at(p, 2) * six_bits(p + 4, g, 1));
    case QUANT_Q6_K:
        q = bit_field(p, i, 64, 4) + 16 * bit_field(p + 128, i, 32, 2) - 32;
        return (float)(half_at(p, 208) * (int8_t)p[192 + g] * q);
    case QUANT_IQ4_XS:
        g = i / 32;
        q = (p[4 + g / 2] >> 4 * (g % 2) & 15) + 16 * (p[2 + g / 4] >> 2 * (g % 4) & 3) - 32;
        return (float)(half_at(p, 0) * q * iq4[bit_field(p + 8, i, 16, 4)]);
    case QUANT_TQ1_0:
        return (float)(half_at(p, 52) * ternary_digit(p, i));
    case QUANT_TQ2_0:
        return (float)(half_at(p, 64) * (bit_field(p, i, 32, 2) - 1));
    default:
        return small_number(format, p, i);
    }
}

/* Random bytes, so all codes and all kinds of scales (zero, denormal, infinite, NaN), at odd
 * addresses. */
static void test_decode_random_bytes(void **state)
{
    (void)state;
    for (int f = 0; f < QUANT_FORMAT_COUNT; f++) {
        const struct quant_info *info = quant_info(f);
        size_t n_blocks = 1 + 300 * 256 / info->block_len, size = n_blocks * info->block_bytes;
        uint8_t *bytes = malloc(size + 1);
        float *got = malloc(n_blocks * info->block_len * sizeof *got);
        assert_true(bytes != NULL && got != NULL);
        for (size_t i = 0; i <= size; i++)
            bytes[i] = (uint8_t)rng_u64((uint64_t)f, i, 1);
        quant_decode(f, bytes + 1, got, n_blocks * info->block_len);
        for (size_t i = 0; i < n_blocks * info->block_len; i++) {
            float want = number(f, bytes + 1 + i / info->block_len * info->block_bytes,
                                (int)(i % info->block_len));
            if (isnan(want) ? !isnan(got[i]) : bits_of(want) != bits_of(got[i]))
                fail_msg("%s: number %zu is %a, expected %a", info->name, i, got[i], want);
        }
        free(bytes);
        free(got);
    }
}

/* Numbers worked out by hand, which also hold the code above. */
static void test_decode_by_hand(void **state)
{
    (void)state;
    float y[256];
    const uint8_t q4_0[18] = {0x00, 0x38, [2] = 0xF0, [17] = 0x08}; /* d = 0.5 */
    quant_decode(QUANT_Q4_0, q4_0, y, 32);
    assert_true(y[0] == -4 && y[16] == 3.5f && y[15] == 0 && y[31] == -4);

    const uint8_t q5_1[24] = {0x00, 0x40, 0x00, 0xBC, 0x01, 0, 0, 0x80, [8] = 0x03}; /* 2, -1 */
    quant_decode(QUANT_Q5_1, q5_1, y, 32);
    assert_true(y[0] == 37 && y[1] == -1 && y[31] == 31);

    const uint8_t mxfp4[17] = {128, [1] = 0x71, [16] = 0x9F};
    quant_decode(QUANT_MXFP4, mxfp4, y, 32);
    assert_true(y[0] == 1 && y[16] == 12 && y[15] == -12 && y[31] == -1 && y[1] == 0);
    const uint8_t mxfp4_ends[2][17] = {{0, [1] = 0x71}, {255, [1] = 0x21}};
    quant_decode(QUANT_MXFP4, mxfp4_ends[0], y, 32);
    assert_true(y[0] == 0x1p-128f && y[16] == 0x1.8p-125f);
    quant_decode(QUANT_MXFP4, mxfp4_ends[1], y, 32);
    assert_true(y[0] == 0x1p127f && isinf(y[16]));

    /* 0x96 = 150 is 0.12012 in base three (0.58426) times 256, rounded up: digits 1 2 0 2 1 less
     * one. */
    const uint8_t tq1_0[54] = {150, [52] = 0x00, 0x3C};
    quant_decode(QUANT_TQ1_0, tq1_0, y, 256);
    assert_true(y[0] == 0 && y[32] == 1 && y[64] == -1 && y[96] == 1 && y[128] == 0);
    assert_true(y[1] == -1 && y[255] == -1);

    /* Group 7 of Q4_K: scale 1 + 16 * 3 = 49, minimum 2 + 16 * 1 = 18, d = 1, dmin = 2. */
    const uint8_t q4_k[144] = {
        0x00, 0x3C, 0x00, 0x40, [7] = 0xC0, [11] = 0x40, [15] = 0x21, [143] = 0x50};
    quant_decode(QUANT_Q4_K, q4_k, y, 256);
    assert_true(y[255] == 5 * 49 - 36 && y[224] == -36 && y[223] == 0);
}

/* ---- Encoding -------------------------------------------------------------------------------- */

static void fill_normal(float *x, size_t n, uint64_t seed)
{
    for (size_t i = 0; i < n; i++) {
        double radius = sqrt(-2 * log(1 - rng_uniform(seed, i, 0)));
        x[i] = (float)(0.02 * radius * cos(6.283185307179586 * rng_uniform(seed, i, 1)));
    }
}

/* Encodes and decodes a row of n numbers; the result must be finite. */
static void round_trip(enum quant_format format, const float *x, size_t n, const float *importance,
                       float *y)
{
    uint8_t *bytes = malloc(quant_row_bytes(format, n));
    assert_non_null(bytes);
    quant_encode(format, x, bytes, n, importance);
    quant_decode(format, bytes, y, n);
    free(bytes);
    for (size_t i = 0; i < n; i++)
        if (!isfinite(y[i]))
            fail_msg("%s: %g became %g", quant_info(format)->name, x[i], y[i]);
}

/* In %, each square weighted (weight may be NULL). */
static double relative_error(const float *x, const float *y, size_t n, const float *weight)
{
    double error = 0, size = 0;
    for (size_t i = 0; i < n; i++) {
        double w = weight != NULL ? weight[i] : 1, difference = (double)x[i] - y[i];
        error += w * difference * difference;
        size += w * x[i] * x[i];
    }
    return size > 0 ? 100 * sqrt(error / size) : 0;
}

static void test_encode_error(void **state)
{
    (void)state;
    float x[N_COLS], y[N_COLS];
    fill_normal(x, N_COLS, 1);
    for (int f = 0; f < QUANT_FORMAT_COUNT; f++) {
        if (!quant_info(f)->can_encode)
            continue;
        round_trip(f, x, N_COLS, NULL, y);
        double error = relative_error(x, y, N_COLS, NULL);
        if (error > expected[f].error)
            fail_msg("%s: error %.3f %%, expected at most %.3f", expected[f].name, error,
                     expected[f].error);
    }
}

static void test_encode_importance(void **state)
{
    (void)state;
    float x[N_COLS], plain[N_COLS], weighted[N_COLS], importance[N_COLS];
    fill_normal(x, N_COLS, 2);
    for (size_t i = 0; i < N_COLS; i++)
        importance[i] = (float)exp(6 * rng_uniform(3, i, 0));
    for (int f = QUANT_Q4_0; f < QUANT_FORMAT_COUNT; f++) {
        if (!quant_info(f)->can_encode)
            continue;
        round_trip(f, x, N_COLS, NULL, plain);
        round_trip(f, x, N_COLS, importance, weighted);
        double before = relative_error(x, plain, N_COLS, importance);
        double after = relative_error(x, weighted, N_COLS, importance);
        if (!(after < (f == QUANT_MXFP4 ? 1 : 0.99) * before)) /* it has only powers of two */
            fail_msg("%s: weighted error %.3f %% with importance, %.3f %% without",
                     expected[f].name, after, before);
    }
}

/* Importance that says nothing, or nonsense, does no harm. */
static void test_encode_useless_importance(void **state)
{
    (void)state;
    float x[256], y[256], importance[256];
    const float values[] = {0, 1e-38f, FLT_MAX, -1, NAN, INFINITY, FLT_TRUE_MIN};
    fill_normal(x, 256, 4);
    for (size_t k = 0; k <= ARRAY_COUNT(values); k++) {
        for (size_t i = 0; i < 256; i++)
            importance[i] = values[k < ARRAY_COUNT(values) ? k : i % ARRAY_COUNT(values)];
        for (int f = QUANT_Q4_0; f < QUANT_FORMAT_COUNT; f++) {
            if (!quant_info(f)->can_encode)
                continue;
            round_trip(f, x, 256, importance, y);
            if (k < ARRAY_COUNT(values))
                assert_true(relative_error(x, y, 256, NULL) <= 1.2 * expected[f].error);
        }
    }
}

static void test_encode_zeros(void **state)
{
    (void)state;
    float x[256] = {0}, y[256];
    for (int f = 0; f < QUANT_FORMAT_COUNT; f++) {
        if (!quant_info(f)->can_encode)
            continue;
        x[7] = -0.0f;
        round_trip(f, x, 256, NULL, y);
        for (int i = 0; i < 256; i++)
            assert_true(y[i] == 0);
    }
}

/* Blocks of one number, and blocks that lie far from zero. */
static void test_encode_constants(void **state)
{
    (void)state;
    float x[256], y[256];
    for (int f = 0; f < QUANT_FORMAT_COUNT; f++) {
        if (!quant_info(f)->can_encode)
            continue;
        for (int sign = -1; sign <= 1; sign += 2) {
            for (int i = 0; i < 256; i++)
                x[i] = (float)sign * 0.7f;
            round_trip(f, x, 256, NULL, y);
            assert_true(relative_error(x, y, 256, NULL) < (f == QUANT_MXFP4 ? 8 : 0.3));
            for (int i = 0; i < 256; i++)
                x[i] = (float)sign * (1 + 0.01f * (float)rng_uniform(5, (uint64_t)i, 0));
            round_trip(f, x, 256, NULL, y);
            bool has_offset = f == QUANT_Q4_1 || f == QUANT_Q5_1 || f == QUANT_Q2_K ||
                              f == QUANT_Q4_K || f == QUANT_Q5_K;
            if (has_offset)
                assert_true(relative_error(x, y, 256, NULL) < 0.4);
        }
    }
}

/* Three numbers in equal steps are exact, up to the rounding of d to F16, wherever a format has as
 * many levels in equal steps, although most groups could hold them in several ways. */
static void test_encode_ternary(void **state)
{
    (void)state;
    float x[N_COLS], y[N_COLS], importance[N_COLS];
    for (uint64_t i = 0; i < N_COLS; i++) {
        x[i] = 0.3f * (float)((int)(rng_u64(8, i, 0) % 3) - 1);
        importance[i] = (float)exp(6 * rng_uniform(8, i, 1));
    }
    for (int f = 0; f < QUANT_FORMAT_COUNT; f++) {
        if (!quant_info(f)->can_encode || f == QUANT_IQ4_NL || f == QUANT_IQ4_XS ||
            f == QUANT_MXFP4)
            continue;
        round_trip(f, x, N_COLS, importance, y);
        double error = relative_error(x, y, N_COLS, NULL);
        if (error > (f == QUANT_BF16 ? 0.4 : 0.1))
            fail_msg("%s: error %.3f %%", expected[f].name, error);
    }
}

/* Small and large scales: exact where the format reaches, the nearest end elsewhere. */
static void test_encode_magnitudes(void **state)
{
    (void)state;
    float unit[256], x[256], y[256];
    fill_normal(unit, 256, 6);
    for (int f = 0; f < QUANT_FORMAT_COUNT; f++) {
        if (!quant_info(f)->can_encode)
            continue;
        for (int power = -150; power <= 128; power++) {
            for (int i = 0; i < 256; i++)
                x[i] = fmaxf(fminf(ldexpf(unit[i], power), FLT_MAX), -FLT_MAX);
            round_trip(f, x, 256, NULL, y);
            bool wide = f == QUANT_F32 || f == QUANT_BF16 || f == QUANT_MXFP4;
            double error = relative_error(x, y, 256, NULL);
            if (power >= (wide ? -110 : -1) && power <= (wide ? 120 : 16))
                assert_true(error <= 1.3 * expected[f].error);
            else if (error > 100.01)
                fail_msg("%s: error %.2f %% at 2^%d", expected[f].name, error, power);
        }
        for (int i = 0; i < 256; i++)
            x[i] = i % 2 ? 1e30f : -1e30f;
        round_trip(f, x, 256, NULL, y);
        for (int i = 0; i < 256; i++)
            assert_true(i % 2 ? y[i] >= 65504 : y[i] <= -65504);
    }
}

/* Rows of numbers of all sizes side by side, and of numbers that are none, are encoded to something
 * finite. */
static void test_encode_wild(void **state)
{
    (void)state;
    float x[256], y[256];
    for (uint64_t round = 0; round < 50; round++) {
        for (uint64_t i = 0; i < 256; i++) {
            uint32_t bits = (uint32_t)rng_u64(7, round * 256 + i, 0);
            memcpy(&x[i], &bits, sizeof bits);
            if (round % 2 == 0 && !isfinite(x[i]))
                x[i] = 0;
        }
        for (int f = 0; f < QUANT_FORMAT_COUNT; f++)
            if (quant_info(f)->can_encode && (round % 2 == 0 || f >= QUANT_Q4_0))
                round_trip(f, x, 256, round % 3 == 0 ? x : NULL, y);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_table),
        cmocka_unit_test(test_f16_all),
        cmocka_unit_test(test_bf16),
        cmocka_unit_test(test_decode_random_bytes),
        cmocka_unit_test(test_decode_by_hand),
        cmocka_unit_test(test_encode_error),
        cmocka_unit_test(test_encode_importance),
        cmocka_unit_test(test_encode_useless_importance),
        cmocka_unit_test(test_encode_zeros),
        cmocka_unit_test(test_encode_constants),
        cmocka_unit_test(test_encode_ternary),
        cmocka_unit_test(test_encode_magnitudes),
        cmocka_unit_test(test_encode_wild),
    };
    return cmocka_run_group_tests_name("quant", tests, NULL, NULL);
}
