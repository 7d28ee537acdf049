/* The numbers that GGUF gives to formats and value types, and lookup by name. */
#include "weights/gguf.h"

#include <stdlib.h>
#include <string.h>

size_t gguf_type_bytes(enum weights_type type)
{
    static const uint8_t bytes[] = {
        [WEIGHTS_U8] = 1,  [WEIGHTS_I8] = 1,  [WEIGHTS_U16] = 2, [WEIGHTS_I16] = 2,
        [WEIGHTS_U32] = 4, [WEIGHTS_I32] = 4, [WEIGHTS_F32] = 4, [WEIGHTS_BOOL] = 1,
        [WEIGHTS_U64] = 8, [WEIGHTS_I64] = 8, [WEIGHTS_F64] = 8,
    };
    return bytes[type];
}

/* Formats that have a number but cannot be read carry QUANT_FORMAT_COUNT; their names serve errors.
 */
static const struct {
    uint32_t number;
    enum quant_format format;
    const char *name;
} formats[] = {
    {0, QUANT_F32, "F32"},
    {1, QUANT_F16, "F16"},
    {2, QUANT_Q4_0, "Q4_0"},
    {3, QUANT_Q4_1, "Q4_1"},
    {4, QUANT_FORMAT_COUNT, "Q4_2"},
    {5, QUANT_FORMAT_COUNT, "Q4_3"},
    {6, QUANT_Q5_0, "Q5_0"},
    {7, QUANT_Q5_1, "Q5_1"},
    {8, QUANT_Q8_0, "Q8_0"},
    {9, QUANT_FORMAT_COUNT, "Q8_1"},
    {10, QUANT_Q2_K, "Q2_K"},
    {11, QUANT_Q3_K, "Q3_K"},
    {12, QUANT_Q4_K, "Q4_K"},
    {13, QUANT_Q5_K, "Q5_K"},
    {14, QUANT_Q6_K, "Q6_K"},
    {15, QUANT_FORMAT_COUNT, "Q8_K"},
    {16, QUANT_FORMAT_COUNT, "IQ2_XXS"},
    {17, QUANT_FORMAT_COUNT, "IQ2_XS"},
    {18, QUANT_FORMAT_COUNT, "IQ3_XXS"},
    {19, QUANT_FORMAT_COUNT, "IQ1_S"},
    {20, QUANT_IQ4_NL, "IQ4_NL"},
    {21, QUANT_FORMAT_COUNT, "IQ3_S"},
    {22, QUANT_FORMAT_COUNT, "IQ2_S"},
    {23, QUANT_IQ4_XS, "IQ4_XS"},
    {24, QUANT_FORMAT_COUNT, "I8"},
    {25, QUANT_FORMAT_COUNT, "I16"},
    {26, QUANT_FORMAT_COUNT, "I32"},
    {27, QUANT_FORMAT_COUNT, "I64"},
    {28, QUANT_FORMAT_COUNT, "F64"},
    {29, QUANT_FORMAT_COUNT, "IQ1_M"},
    {30, QUANT_BF16, "BF16"},
    {31, QUANT_FORMAT_COUNT, "Q4_0_4_4"},
    {32, QUANT_FORMAT_COUNT, "Q4_0_4_8"},
    {33, QUANT_FORMAT_COUNT, "Q4_0_8_8"},
    {34, QUANT_TQ1_0, "TQ1_0"},
    {35, QUANT_TQ2_0, "TQ2_0"},
    {36, QUANT_FORMAT_COUNT, "IQ4_NL_4_4"},
    {37, QUANT_FORMAT_COUNT, "IQ4_NL_4_8"},
    {38, QUANT_FORMAT_COUNT, "IQ4_NL_8_8"},
    {39, QUANT_MXFP4, "MXFP4"},
    {40, QUANT_FORMAT_COUNT, "NVFP4"},
};

uint32_t gguf_format_number(enum quant_format format)
{
    for (size_t i = 0; i < ARRAY_COUNT(formats); i++)
        if (formats[i].format == format)
            return formats[i].number;
    return UINT32_MAX;
}

bool gguf_format_find(uint32_t number, enum quant_format *format, const char **name)
{
    *name = NULL;
    if (number >= ARRAY_COUNT(formats))
        return false;
    *name = formats[number].name;
    *format = formats[number].format;
    return *format != QUANT_FORMAT_COUNT;
}

static int compare_slots(const void *a, const void *b)
{
    return strcmp(((const struct name_slot *)a)->name, ((const struct name_slot *)b)->name);
}

const char *name_index_sort(struct name_index *index)
{
    if (index->count == 0)
        return NULL;
    qsort(index->slots, index->count, sizeof *index->slots, compare_slots);
    for (size_t i = 1; i < index->count; i++)
        if (compare_slots(&index->slots[i - 1], &index->slots[i]) == 0)
            return index->slots[i].name;
    return NULL;
}

bool name_index_find(const struct name_index *index, const char *name, size_t *position)
{
    struct name_slot wanted = {.name = name};
    if (index->count == 0)
        return false;
    const struct name_slot *found =
        bsearch(&wanted, index->slots, index->count, sizeof wanted, compare_slots);
    if (found != NULL)
        *position = found->position;
    return found != NULL;
}
