/* backend: where compute happens (internal to src/model; a GPU is one more implementation).
 *
 * Memory of the device is reached through (buffer, offset) pairs; nothing here dereferences one but
 * the backend itself. upload and run enqueue, in order; only download and sync wait. An operation
 * is plain data, so a backend may run it at once, queue it or record it. Shapes are written slowest
 * first: [rows][columns]; activations are float32. A backend belongs to one thread at a time.
 */
#ifndef CONSORT_MODEL_BACKEND_H
#define CONSORT_MODEL_BACKEND_H

#include "model/model.h"

/* How a page of the KV cache, PAGE = MODEL_KV_PAGE_TOKENS, holds the numbers of a head. */
enum kv_layout {
    KV_ROWS,        /* [PAGE] rows of n_cols numbers */
    KV_TURNED,      /* formats without blocks: [PAGE / TURNED][n_cols] rows of TURNED tokens */
    KV_CODE_KEYS,   /* Q8_0, n_cols % 32 == 0: in an order of the backend's, but in as many bytes */
    KV_CODE_VALUES, /* the same; always beside KV_CODE_KEYS */
};
#define MODEL_KV_TURNED_TOKENS 64

struct device_buffer;

struct device_ref {
    struct device_buffer *buffer; /* NULL: an optional operand that is absent */
    size_t offset;                /* bytes */
};

/* Weights [n_matrices][n_rows][n_cols] in a block format. */
struct device_matrix {
    struct device_ref data;
    enum quant_format format;
    size_t row_bytes, matrix_bytes;
    uint32_t n_rows, n_cols, n_matrices;
};

enum op_kind {
    OP_EMBED,
    OP_GATHER,
    OP_NORM,
    OP_MATMUL,
    OP_MATMUL_EACH,
    OP_ROPE,
    OP_KV_STORE,
    OP_ATTENTION,
    OP_GATE,
    OP_ADD,
    OP_SCALE,
    OP_SCALE_ROWS,
    OP_ROUTE,
    OP_COMBINE,
    OP_EXPECT,
};

#define OP_MATMUL_PARTS 3

struct op {
    enum op_kind kind;
    union {
        /* y[i] = scale * table[ids[i]], i < n. */
        struct {
            struct device_matrix table;
            struct device_ref ids; /* int32[n] */
            struct device_ref y;   /* [n][table.n_cols] */
            uint32_t n;
            float scale;
        } embed;

        /* y[i] = x[rows[i]], or x[i] where rows is absent; i < n. Strides in numbers. */
        struct {
            struct device_ref x, rows, y; /* [][n_cols], int32[n], [n][n_cols] */
            uint32_t n, n_cols, x_stride, y_stride;
        } gather;

        /* y[r] = normalised x[r] * weight + bias, over n_cols. weight and bias have n_weight_rows
         * rows that repeat (one, or one per head). x and y may be the same memory. */
        struct {
            enum model_norm norm;
            float eps;
            struct device_ref x, y, weight, bias;
            uint32_t n_rows, n_cols, n_weight_rows;
            uint32_t x_stride, y_stride; /* in numbers */
        } norm;

        /* y[i][r] = w[r] . x[i] + bias[r], for each of the n_parts weights that share x. A part
         * that adds begins its sums with what y holds, so that some columns of a weight may follow
         * others; only products in panels (QUANT_PACKED_BF16) can, and to the last bit it makes no
         * difference to them. OP_EXPECT is nothing but a hint that soon such a product will come:
         * a backend that is idle between two products may fetch its weights. */
        struct {
            struct op_matmul_part {
                struct device_matrix w; /* one matrix */
                struct device_ref y, bias;
                bool adds;
            } parts[OP_MATMUL_PARTS];
            struct device_ref x;
            uint32_t n_parts, n; /* n rows of x */
        } matmul;

        /* y[i][s] = w[m] . x + bias[m] with m = ids[i][s], or s where ids is absent; x is x[i]
         * where x_shared, else x[i][s]. transposed: y[i][s] = x . w[m], so x has w.n_rows numbers.
         * With ids, w holds those of n_all matrices from first_matrix on; others give zeros. */
        struct {
            struct device_matrix w;
            struct device_ref x, y, bias, ids; /* ids: int32[n][n_slots] */
            uint32_t n, n_slots;
            uint32_t first_matrix, n_all;
            uint32_t x_stride; /* numbers between the x of two slots (or tokens, where shared) */
            uint32_t y_stride;
            bool x_shared, transposed;
        } each;

        /* Turns the first 2 * n_freqs numbers of each head by position * freqs[i], in place. */
        struct {
            struct device_ref x, positions, freqs; /* int32[n], float[n_freqs] */
            enum model_rope rope;
            uint32_t n, n_heads, head_stride, token_stride, n_freqs;
            float magnitude; /* the turned numbers are scaled by it */
        } rope;

        /* The cache takes x[i] as token slots[i], encoded. A cache is [pages][n_heads] of what the
         * layout says: token t is in page t / PAGE. */
        struct {
            struct device_ref x, slots, cache; /* [n][n_heads][n_cols], int32[n] */
            enum quant_format format;
            uint32_t n, n_heads, n_cols;
            enum kv_layout layout;
        } store;

        /* Softmax attention of q[i] over the tokens its sequence holds, page by page. A token at
         * position p sees [begin, visible[i]) where begin follows from window. Position t of a
         * sequence is token t % PAGE of page tables[table_begin[i] + t / PAGE] of the caches, which
         * are as in store. head_v < head_k may take v from the first numbers of the rows of k. */
        struct {
            struct device_ref q, k, v, y; /* [n][n_heads][head_k], caches, [n][n_heads][head_v] */
            struct device_ref positions, visible, table_begin, tables; /* int32 */
            struct device_ref sinks; /* float[n_heads]: a logit each that takes part in the sum */
            enum quant_format format;
            uint32_t n, n_heads, n_kv_heads, head_k, head_v;
            uint32_t group, first_in_group;  /* head h reads KV head (h + first_in_group) / group */
            size_t k_row_bytes, v_row_bytes; /* of one head of a token */
            uint32_t window;
            enum kv_layout k_layout;
            bool chunked;
            float scale, softcap;
        } attention;

        /* y[i] = activation(gate[i]) * up[i]; without up: activation(gate[i]). */
        struct {
            struct device_ref gate, up, y;
            enum model_activation activation;
            uint32_t n, n_cols, gate_stride, up_stride;
        } gate;

        /* y = a + scale * b, n numbers. y may be a. */
        struct {
            struct device_ref a, b, y;
            size_t n;
            float scale;
        } add;

        /* x = softcap * tanh(scale * x / softcap), or scale * x where softcap is 0. */
        struct {
            struct device_ref x;
            size_t n;
            float scale, softcap;
        } scale;

        /* x[i] *= factors[i], or sigmoid(factors[i]). */
        struct {
            struct device_ref x, factors;
            uint32_t n, n_cols;
            bool sigmoid;
        } scale_rows;

        /* Chooses n_used of n_experts per row of logits. */
        struct {
            struct device_ref logits, bias; /* [n][n_experts]; bias only helps to choose */
            struct device_ref ids, weights; /* int32, float [n][n_used] */
            enum model_routing routing;
            uint32_t n, n_experts, n_used, n_groups, n_groups_used;
            float scale;
            bool normalise;
        } route;

        /* y[i] = sum over s of weights[i][s] * x[i][s]; without weights: the plain sum. */
        struct {
            struct device_ref x, weights, y;
            uint32_t n, n_slots, n_cols;
        } combine;
    };
};

struct backend {
    const char *name;
    unsigned n_threads;
    struct pool *pool; /* threads of the host that idle while nothing is enqueued; NULL: none */

    /* Contents undefined; counted against the device only where written. NULL: out of memory. */
    struct device_buffer *(*alloc)(struct backend *backend, size_t size_bytes);
    /* Read-only memory of the process (mapped weights), used in place where the device can. */
    struct device_buffer *(*map)(struct backend *backend, const void *data, size_t size_bytes);
    void (*free)(struct backend *backend, struct device_buffer *buffer); /* NULL allowed */

    /* Copies from before it returns. */
    void (*upload)(struct backend *backend, struct device_ref to, const void *from, size_t size);
    void (*run)(struct backend *backend, const struct op *op);
    /* These two wait for all that was enqueued, and fail with STATUS_MEMORY where the device had no
     * room for what one of the operations since the last wait needed. */
    enum status (*download)(struct backend *backend, void *to, struct device_ref from, size_t size);
    enum status (*sync)(struct backend *backend);
    void (*close)(struct backend *backend);
};

/* The CPU: runs every operation at once, on the threads of pool, which stays borrowed until the
 * backend is closed, or where that is NULL on n_threads of its own. */
enum status backend_cpu_open(struct backend **out, unsigned n_threads, struct pool *pool,
                             struct error *error);

#endif
