/* Philox 4x32-10: ten rounds of two 32x32 multiplications over a 128-bit counter and a 64-bit key
 * (Salmon, Moraes, Dror, Shaw: Parallel random numbers: as easy as 1, 2, 3. SC 2011). */
#include "base/base.h"

#include <unistd.h>
#if defined(__linux__)
#include <sys/random.h>
#endif

#define PHILOX_MULTIPLIER_0 0xD2511F53u
#define PHILOX_MULTIPLIER_1 0xCD9E8D57u
#define PHILOX_WEYL_0 0x9E3779B9u
#define PHILOX_WEYL_1 0xBB67AE85u

uint64_t rng_u64(uint64_t seed, uint64_t position, uint32_t draw)
{
    uint32_t counter[4] = {(uint32_t)position, (uint32_t)(position >> 32), draw, 0};
    uint32_t key[2] = {(uint32_t)seed, (uint32_t)(seed >> 32)};
    for (int round = 0; round < 10; round++) {
        uint64_t product0 = (uint64_t)PHILOX_MULTIPLIER_0 * counter[0];
        uint64_t product1 = (uint64_t)PHILOX_MULTIPLIER_1 * counter[2];
        uint32_t next[4] = {(uint32_t)(product1 >> 32) ^ counter[1] ^ key[0], (uint32_t)product1,
                            (uint32_t)(product0 >> 32) ^ counter[3] ^ key[1], (uint32_t)product0};
        for (int i = 0; i < 4; i++)
            counter[i] = next[i];
        key[0] += PHILOX_WEYL_0;
        key[1] += PHILOX_WEYL_1;
    }
    return (uint64_t)counter[1] << 32 | counter[0];
}

double rng_uniform(uint64_t seed, uint64_t position, uint32_t draw)
{
    return (double)(rng_u64(seed, position, draw) >> 11) * 0x1p-53;
}

uint64_t rng_entropy(void)
{
    uint64_t value;
    if (getentropy(&value, sizeof value) != 0)
        value = clock_now_ns();
    return value;
}
