/* The matrix unit AMX: eight tiles of up to 16 rows of 64 bytes. The operations that the panels
 * need are the compiler's intrinsics or, with TILES_EMULATED, plain C that follows Intel's manual
 * (instruction set reference, LDTILECFG, TILELOADD, TILESTORED, TDPBF16PS), so that the loops can
 * be tested on machines without the unit. Tile numbers are constants. */
#ifndef CONSORT_QUANT_KERNELS_TILES_H
#define CONSORT_QUANT_KERNELS_TILES_H

#include <immintrin.h>
#include <stdlib.h>
#include <string.h>

#include "quant/kernels.h"

#define TILE_ROWS 16
#define TILE_ROW_BYTES 64
#define TILE_BYTES (TILE_ROWS * TILE_ROW_BYTES)

/* The operand of LDTILECFG, byte by byte: the shape of each tile. */
struct tile_config {
    uint8_t palette; /* 1 */
    uint8_t start_row;
    uint8_t reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
};
_Static_assert(sizeof(struct tile_config) == 64, "the operand of LDTILECFG");

#if !defined(TILES_EMULATED)

/* gcc does not know that the instructions read memory: what was written until here must be
 * there. */
INLINE void tile_fence(const void *memory)
{
    __asm__ volatile("" : : "r"(memory) : "memory");
}

INLINE void tile_configure(const struct tile_config *config)
{
    tile_fence(config);
    _tile_loadconfig(config);
}

#define tile_release() _tile_release()
#define tile_zero(tile) _tile_zero(tile)
#define tile_load(tile, from, stride) _tile_loadd(tile, from, stride)
#define tile_store(tile, to, stride) _tile_stored(tile, to, stride)
#define tile_dot_bf16(sum, a, b) _tile_dpbf16ps(sum, a, b)

#else

static _Thread_local struct {
    struct tile_config config;
    uint32_t data[8][TILE_ROWS][TILE_ROW_BYTES / 4];
} tiles;

static inline void tile_fence(const void *memory)
{
    (void)memory;
}

/* As where the CPU faults. */
static inline void tile_check(bool fits)
{
    if (!fits)
        abort();
}

static inline void tile_configure(const struct tile_config *config)
{
    memset(&tiles, 0, sizeof tiles);
    tiles.config = *config;
    bool fits = config->palette == 1 && config->start_row == 0;
    for (int t = 0; t < 16; t++)
        fits = fits && config->rows[t] <= (t < 8 ? TILE_ROWS : 0) &&
               config->row_bytes[t] <= TILE_ROW_BYTES &&
               (config->rows[t] == 0) == (config->row_bytes[t] == 0);
    tile_check(fits);
}

static inline void tile_release(void)
{
    memset(&tiles, 0, sizeof tiles);
}

static inline void tile_zero(int tile)
{
    tile_check(tiles.config.rows[tile] > 0);
    memset(tiles.data[tile], 0, sizeof tiles.data[tile]);
}

static inline void tile_load(int tile, const void *from, size_t stride)
{
    tile_zero(tile); /* also checks it */
    for (size_t r = 0; r < tiles.config.rows[tile]; r++)
        memcpy(tiles.data[tile][r], (const uint8_t *)from + r * stride,
               tiles.config.row_bytes[tile]);
}

static inline void tile_store(int tile, void *to, size_t stride)
{
    tile_check(tiles.config.rows[tile] > 0);
    for (size_t r = 0; r < tiles.config.rows[tile]; r++)
        memcpy((uint8_t *)to + r * stride, tiles.data[tile][r], tiles.config.row_bytes[tile]);
}

static inline float tile_float(uint32_t bits)
{
    float value;
    memcpy(&value, &bits, sizeof value);
    return panel_flush(value);
}

/* sum[m][n] += the products of the pairs a[m][k], b[k][n]. */
static inline void tile_dot_bf16(int sum, int a, int b)
{
    const struct tile_config *c = &tiles.config;
    tile_check(c->rows[sum] > 0 && c->rows[sum] == c->rows[a] &&
               c->row_bytes[sum] == c->row_bytes[b] && c->row_bytes[a] / 4 == c->rows[b]);
    for (int m = 0; m < tiles.config.rows[sum]; m++) {
        float even[TILE_ROWS] = {0}, odd[TILE_ROWS] = {0};
        for (int k = 0; k < tiles.config.row_bytes[a] / 4; k++)
            for (int n = 0; n < tiles.config.row_bytes[sum] / 4; n++) {
                uint32_t x = tiles.data[a][m][k], y = tiles.data[b][k][n];
                even[n] =
                    panel_flush(__builtin_fmaf(tile_float(x << 16), tile_float(y << 16), even[n]));
                odd[n] = panel_flush(
                    __builtin_fmaf(tile_float(x & 0xFFFF0000), tile_float(y & 0xFFFF0000), odd[n]));
            }
        for (int n = 0; n < tiles.config.row_bytes[sum] / 4; n++) {
            float total =
                panel_flush(tile_float(tiles.data[sum][m][n]) + panel_flush(even[n] + odd[n]));
            memcpy(&tiles.data[sum][m][n], &total, sizeof total);
        }
    }
}

#endif

#endif
