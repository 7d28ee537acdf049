/* The specification of the panels (see kernels.h) in plain C. */
#include "quant/kernels.h"

#include <math.h>

#include "quant/codec.h"

static const struct {
    unpack_block_fn *unpack;
    bool has_min;
} unpackers[QUANT_FORMAT_COUNT] = {
#define UNPACKER(format, name, n_blocks, centre, ...)                                              \
    [QUANT_##format] = {unpack_block_##name, (centre) == HAS_MIN},
    BLOCK_FORMAT_LIST(UNPACKER)
#undef UNPACKER
};

static uint16_t to_bf16(float value)
{
    return block_f32_to_bf16(panel_flush(value));
}

static float from_bf16(uint16_t bits)
{
    return panel_flush(block_bf16_to_f32(bits));
}

static void pack_bf16(const float *x, size_t n_cols, uint16_t *packed, size_t i, size_t n)
{
    size_t n_steps = panel_steps(n_cols);
    for (size_t step = 0; step < n_steps; step++) {
        uint16_t *to = packed + panel_at(i, n, step, n_steps);
        for (size_t k = 0; k < PANEL_STEP; k++) {
            size_t c = step * PANEL_STEP + k;
            to[PANEL_AT(k)] = c < n_cols ? to_bf16(x[c]) : 0;
        }
        for (size_t p = i + 1; i + 1 == n && p % PANEL_BLOCK != 0; p++)
            memset(packed + panel_at(p, n, step, n_steps), 0, PANEL_STEP * sizeof *to);
    }
}

/* The numbers of a block, or of a step of BF16 (n of them), at their positions in the panel. */
static void unpack_weights(enum quant_format format, const void *src, size_t n, float *out)
{
    int8_t code[UNIT_LEN];
    float scale[UNIT_GROUPS], min[UNIT_GROUPS];
    if (format == QUANT_BF16) {
        for (size_t k = 0; k < PANEL_STEP; k++) {
            uint16_t bits = 0;
            if (k < n)
                memcpy(&bits, (const uint8_t *)src + k * sizeof bits, sizeof bits);
            out[PANEL_AT(k)] = from_bf16(bits);
        }
        return;
    }
    unpackers[format].unpack(src, code, scale, min);
    for (size_t k = 0; k < n; k++) {
        float value = unpackers[format].has_min ? fmaf(scale[k / 16], code[k], -min[k / 16])
                                                : scale[k / 16] * code[k];
        out[PANEL_AT(k)] = from_bf16(to_bf16(value));
    }
}

static float add_step(float sum, const float *w, const uint16_t *x)
{
    float even = 0, odd = 0;
    for (size_t p = 0; p < PANEL_STEP; p += 2) {
        even = panel_flush(fmaf(w[p], from_bf16(x[p]), even));
        odd = panel_flush(fmaf(w[p + 1], from_bf16(x[p + 1]), odd));
    }
    return panel_flush(sum + panel_flush(even + odd));
}

static void panel_matmul(const struct quant_matrix *w, size_t row_begin, size_t row_end,
                         const void *packed, size_t n_inputs, float *y, size_t y_stride,
                         enum panel_sums from)
{
    const struct quant_info *info = quant_info(w->format);
    size_t len = info->block_len > 1 ? info->block_len : PANEL_STEP;
    size_t n_steps = panel_steps(w->n_cols);
    for (size_t r = row_begin; r < row_end; r++) {
        for (size_t i = 0; from == PANEL_FROM_ZERO && i < n_inputs; i++)
            y[i * y_stride + r] = 0;
        for (size_t c = 0; c < w->n_cols; c += len) {
            float weights[UNIT_LEN];
            unpack_weights(w->format,
                           (const uint8_t *)w->data + r * w->row_bytes +
                               c / info->block_len * info->block_bytes,
                           MIN(len, w->n_cols - c), weights);
            for (size_t i = 0; i < n_inputs; i++)
                for (size_t k = 0; k < len; k += PANEL_STEP)
                    y[i * y_stride + r] =
                        add_step(y[i * y_stride + r], weights + k,
                                 (const uint16_t *)packed +
                                     panel_at(i, n_inputs, (c + k) / PANEL_STEP, n_steps));
        }
    }
}

const struct panel_set panels_scalar = {
    .pack = pack_bf16,
    .matmul = panel_matmul,
};
