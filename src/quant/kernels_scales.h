/* The packed scales of some super-blocks, spread to a byte each inside 64-bit numbers (byte i is
 * scale i), for the vector kernels. All supported machines are little-endian. */
#ifndef CONSORT_QUANT_KERNELS_SCALES_H
#define CONSORT_QUANT_KERNELS_SCALES_H

#include <stdint.h>
#include <string.h>

static inline uint32_t load_u32(const uint8_t *from)
{
    uint32_t value;
    memcpy(&value, from, sizeof value);
    return value;
}

static inline uint64_t load_u64(const uint8_t *from)
{
    uint64_t value;
    memcpy(&value, from, sizeof value);
    return value;
}

/* Q4_K, Q5_K: the eight scales and minima of a block. */
static inline void scales_q4_k(const uint8_t packed[12], uint64_t *scales, uint64_t *mins)
{
    const uint32_t six = 0x3F3F3F3F, four = 0x0F0F0F0F, top = 0x30303030;
    uint32_t scale = load_u32(packed), min = load_u32(packed + 4), low = load_u32(packed + 8);
    *scales = (scale & six) | (uint64_t)((low & four) | (scale >> 2 & top)) << 32;
    *mins = (min & six) | (uint64_t)((low >> 4 & four) | (min >> 2 & top)) << 32;
}

/* Q3_K: the sixteen scales of a block, plus 32. */
static inline void scales_q3_k(const uint8_t packed[12], uint64_t scales[2])
{
    const uint64_t four = 0x0F0F0F0F0F0F0F0F, two = 0x0303030303030303;
    uint64_t low = load_u64(packed), high = load_u32(packed + 8);
    scales[0] = (low & four) | ((high | high >> 2 << 32) & two) << 4;
    scales[1] = (low >> 4 & four) | ((high >> 4 | high >> 6 << 32) & two) << 4;
}

/* IQ4_XS: the eight scales of a block, plus 32. */
static inline uint64_t scales_iq4_xs(const uint8_t scales_l[4], uint16_t scales_h)
{
    uint64_t low = load_u32(scales_l), high = scales_h;
    low = (low | low << 16) & 0x0000FFFF0000FFFF;
    low = (low | low << 8) & 0x00FF00FF00FF00FF;
    low = (low | low << 4) & 0x0F0F0F0F0F0F0F0F;
    high = (high | high << 24) & 0x000000FF000000FF;
    high = (high | high << 12) & 0x000F000F000F000F;
    high = (high | high << 6) & 0x0303030303030303;
    return low | high << 4;
}

#endif
