/* What the files of the CPU backend share. */
#ifndef CONSORT_MODEL_BACKEND_CPU_H
#define CONSORT_MODEL_BACKEND_CPU_H

#include "model/backend.h"

/* Working memory of one operation; grows, never shrinks. */
struct cpu_scratch {
    void *data;
    size_t size;
};

struct cpu {
    struct backend backend; /* first: the two are cast into each other */
    struct pool *pool;
    bool owns_pool;
    bool failed; /* an operation found no memory; reported by the next wait */
    struct cpu_scratch packed[QUANT_PACKINGS], gathered, product, order;
};

/* The memory behind a ref; NULL for an absent operand. */
void *cpu_data(struct device_ref ref);

/* At least size_bytes, 64-byte aligned, contents undefined. NULL when the system has no more; the
 * operation then does nothing. */
void *cpu_scratch(struct cpu *cpu, struct cpu_scratch *scratch, size_t size_bytes);

void cpu_matmul(struct cpu *cpu, const struct op *op);
void cpu_matmul_each(struct cpu *cpu, const struct op *op);
void cpu_expect(struct cpu *cpu, const struct op *op);
void cpu_kv_store(struct cpu *cpu, const struct op *op);
void cpu_attention(struct cpu *cpu, const struct op *op);

/* The other operations: each works on rows [begin, end) alone. */
typedef void cpu_row_fn(const struct op *op, size_t begin, size_t end);
struct cpu_row_op {
    cpu_row_fn *fn;
    size_t n_rows, chunk;
};
struct cpu_row_op cpu_row_op(const struct op *op);

#endif
