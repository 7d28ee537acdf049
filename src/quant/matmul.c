/* The choice of kernels, and the public functions that call them. */
#include "quant/kernels.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* What CONSORT_ISA may name, best first. */
static const struct isa {
    const char *name;
    const struct kernel_set *kernels;
    const struct panel_set *panels; /* NULL: none */
} isas[] = {
#if defined(__x86_64__)
    {"amx", &kernels_avx512, &panels_amx},
    {"avx512", &kernels_avx512, NULL},
    {"avx2", &kernels_avx2, NULL},
#elif defined(__aarch64__)
    {"neon", &kernels_neon, NULL},
#endif
    {"scalar", &kernels_scalar, NULL},
};

/* Written once, under the mutex, by the first quant_init; read by who has called it. */
static const struct isa *chosen = &isas[ARRAY_COUNT(isas) - 1];
static bool initialised;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;

static bool can_run(const struct isa *isa)
{
    unsigned needed = isa->kernels->cpu_features;
    if (isa->panels != NULL)
        needed |= isa->panels->cpu_features;
    return (machine_cpu_features() & needed) == needed;
}

const struct kernel_set *kernels_at(size_t index)
{
    for (size_t i = 0; i < ARRAY_COUNT(isas); i++)
        if (isas[i].panels == NULL && index-- == 0)
            return isas[i].kernels;
    return NULL;
}

static const struct isa *find_isa(const char *name, struct error *error)
{
    char usable[64] = "";
    bool built_in = false;
    for (size_t i = 0; i < ARRAY_COUNT(isas); i++) {
        bool wanted = strcmp(isas[i].name, name) == 0;
        built_in |= wanted;
        if (!can_run(&isas[i]))
            continue;
        if (wanted)
            return &isas[i];
        size_t used = strlen(usable);
        snprintf(usable + used, sizeof usable - used, "%s%s", used > 0 ? ", " : "", isas[i].name);
    }
    error_set(error, STATUS_UNSUPPORTED, "instruction set '%s' %s; this machine has: %s", name,
              built_in ? "is not offered by this CPU and system" : "is not in this build", usable);
    return NULL;
}

const struct kernel_set *kernels_find(const char *name, struct error *error)
{
    const struct isa *isa = find_isa(name, error);
    return isa != NULL ? isa->kernels : NULL;
}

/* Under the mutex. */
static enum status choose_isa(struct error *error)
{
    const char *forced = getenv("CONSORT_ISA");
    const struct isa *isa = NULL;
    if (forced != NULL && forced[0] != '\0') {
        struct error reason;
        isa = find_isa(forced, &reason);
        if (isa == NULL)
            return error_set(error, reason.code, "CONSORT_ISA: %s", reason.text);
    }
    for (size_t i = 0; isa == NULL; i++)
        if (can_run(&isas[i]))
            isa = &isas[i];
    chosen = isa;
    initialised = true;
    return STATUS_OK;
}

enum status quant_init(struct error *error)
{
    pthread_mutex_lock(&mutex);
    enum status status = initialised ? STATUS_OK : choose_isa(error);
    pthread_mutex_unlock(&mutex);
    return status;
}

const char *quant_isa(void)
{
    return chosen->name;
}

enum quant_packing quant_packing(enum quant_format format, size_t n_inputs)
{
    bool exact = format == QUANT_F32 || format == QUANT_F16;
    if (chosen->panels != NULL && n_inputs > QUANT_SMALL_BATCH && !exact)
        return QUANT_PACKED_BF16;
    return exact || format == QUANT_BF16 ? QUANT_PACKED_FLOAT : QUANT_PACKED_INT8;
}

size_t quant_packed_bytes(enum quant_packing packing, size_t n_cols)
{
    switch (packing) {
    case QUANT_PACKED_BF16:
        return panel_steps(n_cols) * PANEL_STEP * sizeof(uint16_t);
    case QUANT_PACKED_INT8:
        return (n_cols + UNIT_LEN - 1) / UNIT_LEN * sizeof(struct packed_unit);
    default:
        return (n_cols + FLOAT_UNIT_LEN - 1) / FLOAT_UNIT_LEN * FLOAT_UNIT_LEN * sizeof(float);
    }
}

size_t quant_packed_inputs(enum quant_packing packing, size_t n)
{
    size_t step = packing == QUANT_PACKED_BF16 ? PANEL_BLOCK : 1;
    return (n + step - 1) / step * step;
}

void quant_pack(enum quant_packing packing, const float *x, size_t n_cols, void *packed, size_t i,
                size_t n)
{
    size_t bytes = n_cols * sizeof *x, packed_bytes = quant_packed_bytes(packing, n_cols);
    uint8_t *row = (uint8_t *)packed + i * packed_bytes;
    switch (packing) {
    case QUANT_PACKED_BF16:
        chosen->panels->pack(x, n_cols, packed, i, n);
        break;
    case QUANT_PACKED_INT8:
        chosen->kernels->pack(x, (struct packed_unit *)row, n_cols);
        break;
    default:
        memcpy(row, x, bytes);
        memset(row + bytes, 0, packed_bytes - bytes);
    }
}

size_t quant_row_step(enum quant_packing packing)
{
    return packing == QUANT_PACKED_BF16 ? PANEL_ROW_STEP : 1;
}

void quant_matmul(const struct quant_matrix *w, enum quant_packing packing, size_t row_begin,
                  size_t row_end, const void *packed, size_t n_inputs, float *y, size_t y_stride)
{
    if (packing == QUANT_PACKED_BF16)
        chosen->panels->matmul(w, row_begin, row_end, packed, n_inputs, y, y_stride,
                               PANEL_FROM_ZERO);
    else
        chosen->kernels->matmul[w->format](w, row_begin, row_end, packed, n_inputs, y, y_stride);
}

void quant_matmul_add(const struct quant_matrix *w, size_t row_begin, size_t row_end,
                      const void *packed, size_t n_inputs, float *y, size_t y_stride)
{
    chosen->panels->matmul(w, row_begin, row_end, packed, n_inputs, y, y_stride, PANEL_FROM_Y);
}

uint64_t quant_peak(enum quant_format format, size_t rounds)
{
    _Alignas(64) uint8_t data[PEAK_BYTES];
    memset(data, 0x3c, sizeof data); /* as floats about a hundredth */
    switch (quant_packing(format, SIZE_MAX)) {
    case QUANT_PACKED_BF16:
        return chosen->panels->peak(data, rounds);
    case QUANT_PACKED_INT8:
        return chosen->kernels->peak_codes(data, rounds);
    default:
        return chosen->kernels->peak_floats(data, rounds);
    }
}

void quant_widen_rows(const struct quant_matrix *rows, float *dst)
{
    chosen->kernels->widen_rows[rows->format](rows, dst, 0);
}

void quant_turn_rows(const struct quant_matrix *rows, float *dst, size_t stride)
{
    chosen->kernels->turn_rows[rows->format](rows, dst, stride);
}

void quant_add_rows(const struct quant_sums *sums)
{
    chosen->kernels->add_rows[sums->rows.format](sums);
}

void quant_page_scores(const struct quant_page *keys, const void *packed, size_t n_queries,
                       float *y, size_t y_stride)
{
    chosen->kernels->page_scores(keys, packed, n_queries, y, y_stride);
}

void quant_page_add(const struct quant_page *values, const float *weight, size_t weight_stride,
                    size_t n_inputs, float *y)
{
    chosen->kernels->page_add(values, weight, weight_stride, n_inputs, y);
}

float quant_exp_sum(float *x, size_t n, float *highest, float *factor)
{
    return chosen->kernels->exp_sum(x, n, highest, factor);
}

void quant_sigmoid(float *x, size_t n)
{
    chosen->kernels->sigmoid(x, n);
}

const struct search_kernels *search_kernels(void)
{
    return &chosen->kernels->search;
}
