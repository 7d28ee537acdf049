/* Rows of keys and values as codes of a page. */
#include "quant/kernels.h"

#include <assert.h>

#define F16_MAX 65504.0f

_Static_assert(sizeof(struct page_block) == QUANT_PAGE_ROWS * sizeof(struct block_q8_0),
               "pages of codes are as large as rows of Q8_0");

/* Up to a unit of a row; lanes by packed_unit. */
static void store_unit(enum quant_page_order order, struct page_block *block, size_t row,
                       const struct packed_unit *unit, size_t n_blocks)
{
    for (size_t b = 0; b < n_blocks; b++, block++) {
        size_t lane = BLOCK_LANE(b);
        block->scale[row] = block_f32_to_f16(MIN(unit->scale[lane], F16_MAX));
        for (size_t c = 0; c < 32; c++) {
            int8_t code = unit->code[UNIT_CODE(32 * b + c)];
            if (order == QUANT_PAGE_KEYS)
                block->code[PAGE_KEY(row, c)] = (uint8_t)(code + 128);
            else
                block->code[PAGE_VALUE(row, c)] = (uint8_t)code;
        }
    }
}

void quant_page_store(enum quant_page_order order, void *page, size_t row, const float *x,
                      size_t n_cols)
{
    struct page_block *block = page;
    assert(n_cols % 32 == 0 && row < QUANT_PAGE_ROWS);
    for (size_t n; n_cols > 0; n_cols -= n, x += n, block += n / 32) {
        _Alignas(64) struct packed_unit unit;
        n = MIN(n_cols, (size_t)UNIT_LEN);
        quant_pack(QUANT_PACKED_INT8, x, n, &unit, 0, 1);
        store_unit(order, block, row, &unit, n / 32);
    }
}
