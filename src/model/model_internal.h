/* What the files of src/model share: the model's weights on a backend, and its working memory. */
#ifndef CONSORT_MODEL_INTERNAL_H
#define CONSORT_MODEL_INTERNAL_H

#include "model/backend.h"
#include "model/comm.h"
#include "model/slice.h"

/* Tokens a step, where the model is causal: at least; at most; at most where products of many
 * inputs have panels. Memory of this size may always be taken for them. */
#define MODEL_BATCH 96
#define MODEL_BATCH_MOST 192
#define MODEL_BATCH_PANELS 512
#define MODEL_BATCH_BYTES ((uint64_t)12 << 20)
#define MODEL_FF_TOKENS 64 /* as many have room between the products of an FFN in panels */
/* Tokens, at least, of a piece of a step in a pipeline; and where each unpacks the weights anew. */
#define MODEL_PIECE 64
#define MODEL_PIECE_PANELS 256
#define MAX_BLOCK 256 /* numbers, a multiple of those in a block of any format */

/* A tensor that is multiplied with, and its bias. */
struct weight {
    struct device_matrix matrix; /* data.buffer NULL: the model has no such tensor */
    struct device_ref bias;
    const char *name; /* of the tensor, for observers; NULL for a part of a fused one */
    uint32_t pad_before, pad_after; /* columns that a neighbour has to multiply */
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

    uint32_t group, first_in_group; /* heads of a KV head; the first of ours, in its group */
    uint32_t first_expert;
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
    struct device_ref q_own, k_own;  /* this rank's, where q and k are of all heads */
    struct device_ref padded;        /* the input of a weight whose border blocks are shared */
    struct device_ref joint;         /* [n][n_embd], of an FFN beside attention */
    struct device_ref q_low, q_mla;  /* [n][mla_q_rank], [n][heads][rank + rope] */
    struct device_ref heads, values; /* attention's result; MLA: before and after v_b */
    struct device_ref gate, up;      /* [n][slots][n_ff], or ff_numbers of them */
    struct device_ref ffn;           /* [n][n_embd], of a shared FFN */
    struct device_ref expert_out;    /* [n][slots][n_embd] */
    struct device_ref router, expert_ids, expert_weights, shared_gate, temperatures;
    struct device_ref logits; /* [MODEL_LOGITS_ROWS][n_vocab, or this rank's] */
};

#define MODEL_LOGITS_ROWS 32 /* rows of logits computed at a time */

/* Memory of the host for what goes between ranks (exchange.c). */
struct exchange {
    struct comm *comm; /* NULL: this is the only rank */
    float *own;        /* [batch][n_embd] */
    void *in, *out;
    bool lost; /* a call has failed: none is made any more */
    struct error error;
};

/* What one segment takes part in a step with: all that other ranks need to know of it. */
struct step_part {
    uint32_t first; /* position of its first token */
    uint32_t n_tokens, n_logits, n_pages;
};

/* A page of the cache that is copied before a step. */
struct page_copy {
    uint32_t from, to;
};

/* A step that is under way. On its own memory: ids[batch], pages of all parts in a row, parts. */
struct step {
    uint32_t n, n_parts, n_pages, n_copies, n_pieces;
    int32_t *ids;
    uint32_t *pages;
    struct step_part *parts;
    struct page_copy *copies;
    struct sequence **sequences; /* the owner's, one a part; NULL: closed meanwhile */
    float *logits;
    uint32_t message_bytes;
    bool done;
    enum status status; /* once done, or of a step before it */
};

struct model {
    struct model_desc *desc; /* of the whole model */
    struct model_desc *part; /* of this rank's slice: heads and FFN columns that are here */
    struct slice slice;
    const struct weights *weights;
    struct backend *backend;
    bool owns_backend;
    enum quant_format kv_format;
    uint32_t n_ctx, n_pages, batch;
    uint32_t piece; /* tokens, at least, of a piece of a step that goes through a stage at a time */
    uint64_t weight_bytes, activation_bytes;
    size_t ff_numbers; /* of an FFN that is no expert: what gate and up have room for */

    struct layer *layers; /* [n_layers]; those of the slice are filled */
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

    struct exchange exchange;
    struct step *steps; /* a ring */
    uint32_t most_steps, first_step, n_steps;
    unsigned char *message; /* of a step */
    size_t message_limit;
    int32_t *step_ints; /* host side of a step's integers */
    float *step_floats;
    bool followed; /* the other ranks wait for steps, or for the end */

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
/* Makes room for n_tokens more; there are as many free pages as sequence_pages_needed says. What
 * has to be copied before the step goes to its copies. */
void sequence_take_pages(struct sequence *sequence, size_t n_tokens, struct step *step);
/* Copies the whole page, in all layers. */
void model_copy_page(struct model *model, struct page_copy copy);

/* load.c: finds, checks and maps every tensor of the slice. */
enum status model_load(struct model *model, struct error *error);
/* Registers a buffer to be freed with the model; NULL fails with STATUS_MEMORY. */
enum status model_keep(struct model *model, struct device_buffer *buffer, size_t size_bytes,
                       struct error *error);

/* rope.c: freqs[rope_dims / 2] for one base. factors (or NULL) divide them. */
void rope_frequencies(const struct model_desc *desc, float base, bool scaled, const float *factors,
                      float *freqs);

/* describe.c: what one token keeps of a layer with these facts. */
uint64_t model_kv_row_bytes(const struct model_desc *desc, const struct model_layer_desc *layer,
                            enum quant_format kv_format);

/* forward.c: runs and awaits a step whose integers are already on the device. Rows of logits that
 * are wanted go to logits (or NULL); the hidden rows stay in at.x. STATUS_LOST where another rank
 * is gone. */
struct step_plan {
    uint32_t n;        /* tokens */
    uint32_t n_pieces; /* in which they go through the stages */
    uint32_t n_wanted; /* rows of logits */
    float *logits;
};
enum status model_forward(struct model *model, const struct step_plan *plan);

/* exchange.c. Functions without a status do nothing once the exchange is lost. */
enum status exchange_open(struct model *model, struct error *error);
void exchange_close(struct model *model);
uint64_t exchange_bytes(const struct model *model); /* memory that it takes */
/* False where the exchange is lost. */
bool exchange_call(struct model *model, const struct comm_transfer *transfers, size_t n);
enum status exchange_give_up(struct model *model); /* loses it: STATUS_LOST */
/* x[n_rows][n_embd] becomes the sum of all shards' x, rounded on the way where that is allowed and
 * there are many rows. */
void exchange_sum(struct model *model, struct device_ref x, uint32_t n_rows, bool rounded);
/* Brings the rows that a stage begins with to x; sends those that it ends with. */
void exchange_begin_stage(struct model *model, struct device_ref x, uint32_t n_rows);
void exchange_end_stage(struct model *model, struct device_ref x, uint32_t n_rows);
/* at.logits of all shards of the last stage, to to[n_rows][n_vocab] at the owner. Waits. */
enum status exchange_logits(struct model *model, uint32_t n_rows, float *to);

/* steps.c */
enum status steps_open(struct model *model, struct error *error);
void steps_close(struct model *model);
size_t steps_tables(const struct model *model); /* entries of all page tables of a step */
void steps_forget(struct model *model, const struct sequence *sequence); /* it closes */

/* ranks.c: the ranks of a model agree on what they open. Of the owner's model the terms are set;
 * they become those of the others. */
enum status ranks_send_terms(struct model *model, enum status status, struct error *error);
enum status ranks_take_terms(struct model *model, struct error *error);
/* All ranks tell the owner how opening went. */
enum status ranks_report(struct model *model, enum status status, struct error *error);

#endif
