/* What the files of src/model share: the model's weights on a backend, and its working memory. */
#ifndef CONSORT_MODEL_INTERNAL_H
#define CONSORT_MODEL_INTERNAL_H

#include "model/backend.h"

/* Tokens a step, where the model is causal: at least; at most; at most where products of many
 * inputs have panels. Memory of this size may always be taken for them. */
#define MODEL_BATCH 96
#define MODEL_BATCH_MOST 192
#define MODEL_BATCH_PANELS 512
#define MODEL_BATCH_BYTES ((uint64_t)16 << 20)

/* A tensor that is multiplied with, and its bias. */
struct weight {
    struct device_matrix matrix; /* data.buffer NULL: the model has no such tensor */
    struct device_ref bias;
    const char *name; /* of the tensor, for observers; NULL for a part of a fused one */
};

static inline bool weight_present(const struct weight *weight)
{
    return weight->matrix.data.buffer != NULL;
}

/* A vector of F32. rows > 1: one row per head. */
struct vector {
    struct device_ref data;
    uint32_t n_cols, n_rows;
};

struct norm_weights {
    struct vector weight, bias;
};

static inline bool norm_present(const struct norm_weights *norm)
{
    return norm->weight.data.buffer != NULL;
}

struct layer {
    struct norm_weights attn_norm, attn_post_norm, ffn_norm, ffn_post_norm;
    struct norm_weights q_norm, k_norm, q_a_norm, kv_a_norm;
    struct vector sinks;
    struct weight q, k, v, attn_output;
    struct weight q_a, q_b, kv_a, k_b, v_b; /* MLA; k_b: see mla_k_transposed */
    bool mla_k_transposed;                  /* k_b comes from kv_b, rows [nope][rank] a head */
    struct weight gate, up, down;
    struct weight router, gate_experts, up_experts, down_experts;
    struct vector router_bias; /* only helps to choose */
    struct weight gate_shared, up_shared, down_shared, shared_router;

    uint32_t rope_table;
    struct device_buffer *k_cache, *v_cache; /* MLA: v_cache is k_cache */
    size_t k_row_bytes, v_row_bytes;         /* of one token */
};

/* Frequencies that layers share. */
struct rope_table {
    struct device_ref freqs; /* [rope_dims / 2] */
    float base, magnitude;
    bool scaled;
};

#define MODEL_MAX_ROPE_TABLES 4

/* Device memory of one step; names as in forward.c. */
struct activations {
    struct device_ref ids, positions, slots, visible, table_begin, tables, wanted, zeros;
    struct device_ref x, h, out;     /* [n][n_embd] */
    struct device_ref q, k, v;       /* [n][heads][head] */
    struct device_ref q_low, q_mla;  /* [n][mla_q_rank], [n][heads][rank + rope] */
    struct device_ref heads, values; /* attention's result; MLA: before and after v_b */
    struct device_ref gate, up, ffn; /* [n][slots][n_ff]; ffn: [n][n_embd] of a shared FFN */
    struct device_ref expert_out;    /* [n][slots][n_embd] */
    struct device_ref router, expert_ids, expert_weights, shared_gate, temperatures;
    struct device_ref logits; /* [MODEL_LOGITS_ROWS][n_vocab] */
};

#define MODEL_LOGITS_ROWS 32 /* rows of logits computed at a time */

struct model {
    struct model_desc *desc;
    const struct weights *weights;
    struct backend *backend;
    bool owns_backend;
    enum quant_format kv_format;
    uint32_t n_ctx, n_pages, batch;
    uint64_t activation_bytes;

    struct layer *layers;
    struct weight token_embd, position_embd, token_types, output, classifier, classifier_out;
    struct norm_weights embedding_norm, output_norm;
    struct rope_table ropes[MODEL_MAX_ROPE_TABLES];
    uint32_t n_ropes;

    struct device_buffer **buffers; /* all of them, to free */
    size_t n_buffers;
    struct activations at;
    struct device_buffer *activation_buffer;

    uint32_t *free_pages; /* a stack */
    uint32_t n_free_pages;
    uint32_t *page_holders; /* [n_pages]: how many hold it; 0: free */

    int32_t *step_ints; /* host side of a step's integers */
    float *step_floats;

    model_observer *observer;
    void *observer_context;
    float *observed;
    size_t observed_size;
    enum status observed_status; /* of what the observer should have seen in this step */
};

struct sequence {
    struct model *model;
    uint32_t *pages; /* [n_pages of the model] */
    uint32_t n_pages, length;
};

/* sequence.c */
static inline uint32_t model_pages_for(uint64_t n_tokens)
{
    return (uint32_t)((n_tokens + MODEL_KV_PAGE_TOKENS - 1) / MODEL_KV_PAGE_TOKENS);
}
enum status model_open_pages(struct model *model, struct error *error);
/* Makes room for n_tokens more; there are as many free pages as sequence_pages_needed says. */
void sequence_take_pages(struct sequence *sequence, size_t n_tokens);

/* load.c: finds, checks and maps every tensor. */
enum status model_load(struct model *model, struct error *error);
/* Registers a buffer to be freed with the model; NULL fails with STATUS_MEMORY. */
enum status model_keep(struct model *model, struct device_buffer *buffer, size_t size_bytes,
                       struct error *error);

/* rope.c: freqs[rope_dims / 2] for one base. factors (or NULL) divide them. */
void rope_frequencies(const struct model_desc *desc, float base, bool scaled, const float *factors,
                      float *freqs);

/* forward.c: runs and awaits a step whose integers are already on the device. Rows of logits that
 * are wanted go to logits (or NULL); the hidden rows stay in at.x. */
struct step_plan {
    uint32_t n;        /* tokens */
    uint32_t n_wanted; /* rows of logits */
    float *logits;
};
enum status model_forward(struct model *model, const struct step_plan *plan);

#endif
