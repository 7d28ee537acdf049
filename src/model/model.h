/* model: from weights to logits. An architecture is a table of facts (struct model_desc), read from
 * metadata by describe*.c; forward.c is the one forward pass over it; compute is behind
 * struct backend (backend.h). A model and its sequences belong to one thread at a time.
 */
#ifndef CONSORT_MODEL_H
#define CONSORT_MODEL_H

#include "base/base.h"
#include "quant/quant.h"
#include "weights/weights.h"

#define MODEL_MAX_LAYERS 512
#define MODEL_MAX_EXPERTS 1024
#define MODEL_MAX_ROPE_DIMS 1024
#define MODEL_MAX_CTX (1u << 28)
#define MODEL_KV_PAGE_TOKENS 128 /* tokens a page of the KV cache */

/* ---- Description ----------------------------------------------------------------------------- */

enum model_norm { MODEL_NORM_RMS, MODEL_NORM_LAYER };

enum model_mixer { MODEL_MIXER_ATTENTION, MODEL_MIXER_MLA };

/* Which numbers of a head turn together: (2i, 2i+1), or (i, i + n/2). */
enum model_rope { MODEL_ROPE_NONE, MODEL_ROPE_PAIRS, MODEL_ROPE_HALVES };

enum model_rope_scaling {
    MODEL_ROPE_SCALING_NONE,
    MODEL_ROPE_SCALING_LINEAR,
    MODEL_ROPE_SCALING_YARN,
    MODEL_ROPE_SCALING_LONGROPE,
};

enum model_activation {
    MODEL_ACTIVATION_SILU,
    MODEL_ACTIVATION_GELU,       /* tanh form */
    MODEL_ACTIVATION_SWIGLU_OAI, /* clamped at 7: x sigmoid(1.702 x) (up + 1) */
};

enum model_routing {
    MODEL_ROUTING_SOFTMAX,        /* softmax over all experts, then the best */
    MODEL_ROUTING_SIGMOID,        /* sigmoid of each, then the best */
    MODEL_ROUTING_SOFTMAX_CHOSEN, /* the best by logit, then softmax over these */
};

enum model_pooling {
    MODEL_POOLING_NONE,
    MODEL_POOLING_MEAN,
    MODEL_POOLING_CLS,
    MODEL_POOLING_LAST,
    MODEL_POOLING_RANK,
};

/* Facts that may differ from layer to layer. */
struct model_layer_desc {
    uint32_t n_heads, n_kv_heads;
    uint32_t window; /* tokens a row sees, itself included; 0: all */
    bool chunked;    /* window is the size of fixed chunks, not a sliding one */
    bool rope;
    bool rope_scaled; /* the model's rope scaling holds here */
    float rope_base;
    bool moe;
    uint32_t n_ff; /* of the dense FFN */
};

struct model_desc {
    char architecture[32];
    char name[128]; /* general.name, or empty */
    uint32_t n_layers, n_embd, n_vocab, n_ctx_train;
    struct model_layer_desc layers[MODEL_MAX_LAYERS];

    enum model_norm norm;
    float norm_eps;
    bool post_norm; /* bert: norms come after the residual sums */
    bool parallel;  /* attention and FFN read the same norm; their outputs are summed */
    float embedding_scale, residual_scale, logit_scale;
    float attn_softcap, logit_softcap; /* 0: none */

    enum model_mixer mixer;
    uint32_t head_k, head_v; /* numbers in a head of keys, of values */
    float attn_scale;
    bool causal;
    bool qk_norm_after_rope;  /* llama4: RMS without weight, on rotated layers */
    uint32_t temperature_ctx; /* llama4: un-rotated layers scale q by the position; 0: not */
    float temperature_scale;
    uint32_t mla_q_rank, mla_kv_rank; /* mla_q_rank 0: q is not compressed */

    enum model_rope rope;
    uint32_t rope_dims;
    enum model_rope_scaling rope_scaling;
    uint32_t rope_ctx_orig;
    float rope_factor;    /* how many times the trained context was stretched */
    float rope_magnitude; /* turned numbers are scaled by it */
    float rope_beta_fast, rope_beta_slow;

    enum model_activation activation;
    uint32_t n_experts, n_experts_used, n_expert_ff, n_shared_ff;
    enum model_routing routing;
    bool routing_norm;       /* weights of the chosen are divided by their sum */
    bool routing_before_ffn; /* the weight scales an expert's input, not its output */
    bool moe_plus_dense;     /* grok-2: experts and a dense FFN, their sum scaled by sqrt(1/2) */
    float routing_scale;
    uint32_t n_expert_groups, n_expert_groups_used;

    enum model_pooling pooling;

    uint64_t n_params, n_params_active; /* all; read for one token */
};

/* Reads the facts; the error names the key that is missing, mistyped or out of range, or lists the
 * known architectures when this one is not. Needs no more of the file than metadata and shapes. */
enum status model_describe(struct model_desc **out, const struct weights *weights,
                           struct error *error);
void model_desc_free(struct model_desc *desc);

/* STATUS_UNSUPPORTED, with the reason, where the KV cache cannot have that format. */
enum status model_check_kv_format(const struct model_desc *desc, enum quant_format format,
                                  struct error *error);

/* KV cache bytes for n_ctx tokens; those of them that the last of n_ctx tokens reads, which windows
 * make fewer. */
uint64_t model_kv_bytes(const struct model_desc *desc, uint64_t n_ctx, enum quant_format kv_format);
uint64_t model_kv_read_bytes(const struct model_desc *desc, uint64_t n_ctx,
                             enum quant_format kv_format);

/* Products (one multiplication and one addition each) of the last of n_ctx tokens with the keys and
 * values it sees, over all layers and heads. */
uint64_t model_attention_products(const struct model_desc *desc, uint64_t n_ctx);

/* ---- Placement ------------------------------------------------------------------------------- */

#define MODEL_MAX_STAGES 64
#define MODEL_MAX_SHARDS 32 /* of a stage */

/* A stage has contiguous layers, and splits each over its shards: heads, FFN columns, experts. */
struct model_stage {
    uint32_t first_layer, end_layer;
    uint32_t n_shards;
    uint16_t shares[MODEL_MAX_SHARDS]; /* relative to each other; all 0: equal */
};

/* Where a model runs. Ranks count over the stages, and within each over its shards. The owner, who
 * runs the steps and gets the logits, is shard 0 of the last stage. */
struct model_placement {
    uint32_t n_stages;
    struct model_stage stages[MODEL_MAX_STAGES];
};

uint32_t model_placement_ranks(const struct model_placement *placement);
uint32_t model_placement_owner(const struct model_placement *placement); /* its rank */

/* ---- Running --------------------------------------------------------------------------------- */

struct model;
struct backend;
struct comm;

struct model_options {
    uint32_t n_ctx;              /* tokens of one sequence; 0: n_ctx_train, or less where memory
                                    does not allow it */
    uint32_t n_ctx_least;        /* with n_ctx 0: fewer tokens than these (and than n_ctx_train) are
                                    refused */
    uint64_t memory_bytes;       /* what the model may take; 0: what is free */
    uint64_t n_cache;            /* tokens the KV cache holds over all sequences, or what three
                                    quarters of the free memory allow; at least n_ctx */
    enum quant_format kv_format; /* F32, F16 or Q8_0 */
    unsigned n_threads;          /* 0: the machine's physical cores */
    struct pool *pool;           /* NULL: threads of its own; else borrowed until model_close, and
                                    whoever computes with the model has the pool's turn */
    bool ignore_memory;          /* load even what will swap */
    struct backend *backend;     /* NULL: the CPU; else borrowed until model_close */

    const struct model_placement *placement; /* NULL: the whole model, here; read by model_open */
    struct comm *comm; /* of this rank (comm.h); borrowed until model_close; NULL: only rank */
};

/* Whether model_open would find memory with these options, and for what context; where it would
 * not, STATUS_MEMORY with the numbers and the largest context that fits. Reads metadata alone. */
enum status model_plan(const struct weights *weights, const struct model_options *options,
                       uint32_t *n_ctx, struct error *error);

/* The slice file of a rank: weights_slice_read gives its bytes. It can be opened in place of the
 * whole file as the weights of a model on that rank. The text says what the bytes depend on beside
 * the whole file: layers, shard and shares, not the rest of the placement. */
#define MODEL_SLICE_TEXT 320
enum status model_slice_open(struct weights_slice **out, const struct weights *weights,
                             const struct model_placement *placement, uint32_t rank,
                             struct error *error);
/* The same bytes out of slice files of other placements, files[n_files], which stay borrowed.
 * STATUS_NOT_FOUND where together they lack something of it. */
enum status model_slice_merge(struct weights_slice **out, const struct weights *const *files,
                              size_t n_files, const struct model_placement *placement,
                              uint32_t rank, struct error *error);
enum status model_slice_text(char text[MODEL_SLICE_TEXT], const struct weights *weights,
                             const struct model_placement *placement, uint32_t rank,
                             struct error *error);

/* What a rank of options.placement takes, with n_ctx, n_cache and kv_format as in options; nothing
 * is built for it. weights_bytes is also about the size of its slice file. */
struct model_memory {
    uint64_t weights_bytes, kv_bytes, work_bytes;
};
enum status model_rank_memory(const struct weights *weights, const struct model_options *options,
                              uint32_t rank, struct model_memory *memory, struct error *error);

/* weights stay borrowed until model_close. Fails as model_plan does where memory is short. With a
 * comm all ranks open at the same time; n_ctx, n_cache and kv_format are the owner's on all of
 * them, and where one cannot open, the owner fails with its sentence. */
enum status model_open(struct model **out, const struct weights *weights,
                       const struct model_options *options, struct error *error);
void model_close(struct model *model);

const struct model_desc *model_description(const struct model *model);
uint32_t model_n_ctx(const struct model *model);
unsigned model_n_threads(const struct model *model);
struct backend *model_backend(struct model *model); /* for models that take turns with this one */
struct pool *model_pool(const struct model *model); /* idle between steps; NULL: none */
uint64_t model_memory_bytes(const struct model *model); /* weights + KV + activations */
enum quant_format model_kv_format(const struct model *model);
size_t model_batch_limit(const struct model *model); /* tokens one step may have */

/* What of count tokens a step takes that may take limit: steps of about the same length, as a short
 * one at the end unpacks all weights for a few tokens. */
static inline size_t model_even_share(size_t count, size_t limit)
{
    size_t n_steps = (count + limit - 1) / limit;
    return n_steps > 1 ? (count + n_steps - 1) / n_steps : count;
}

uint32_t model_n_stages(const struct model *model);

/* The state of one text: its KV pages (later also snapshots of recurrent layers). */
struct sequence;

enum status sequence_open(struct sequence **out, struct model *model, struct error *error);
void sequence_close(struct sequence *sequence);
uint32_t sequence_length(const struct sequence *sequence);
/* Forgets all tokens from length on. */
void sequence_truncate(struct sequence *sequence, uint32_t length);

/* Pages of the KV cache, by their numbers. A page may be held by several sequences, and by others
 * who keep it for later ones (hold, release); it is free when nobody holds it. A sequence that adds
 * tokens to a page which it does not hold alone takes a copy of it first, so what a page holds
 * never changes for the others. */
uint32_t model_page_count(const struct model *model);
uint32_t model_pages_free(const struct model *model);
void model_page_hold(struct model *model, uint32_t page);
void model_page_release(struct model *model, uint32_t page);
uint32_t model_page_holders(const struct model *model, uint32_t page);
/* A free page, held by the caller; one must be free. */
uint32_t model_page_take(struct model *model);

/* What a page holds, to be put into a page of the same model later, in another process too. The
 * bytes depend on the model file, the format of the cache, the instruction set, and what
 * model_page_text says beside. Between steps; data has model_page_bytes: 0 for a model on several
 * ranks, whose pages are not here as a whole. */
size_t model_page_bytes(const struct model *model);
bool model_page_text(const struct model *model, struct buffer *out); /* appends */
enum status model_page_read(struct model *model, uint32_t page, void *data, struct error *error);
void model_page_write(struct model *model, uint32_t page, const void *data);

/* The page of the sequence's tokens from index * MODEL_KV_PAGE_TOKENS on. */
uint32_t sequence_page(const struct sequence *sequence, uint32_t index);
/* Appends the first n_tokens of a page, computed for the same text up to there. The length is a
 * multiple of MODEL_KV_PAGE_TOKENS, and the context has room. */
void sequence_adopt(struct sequence *sequence, uint32_t page, uint32_t n_tokens);
/* Holds page instead of its own at index, which is full and has the same tokens. */
void sequence_replace_page(struct sequence *sequence, uint32_t index, uint32_t page);
/* Free pages that a step with n_tokens more takes. */
uint32_t sequence_pages_needed(const struct sequence *sequence, size_t n_tokens);

/* One sequence's share of a step: tokens that follow what it holds. */
struct step_segment {
    struct sequence *sequence;
    const int32_t *tokens;
    size_t n_tokens;
    size_t n_logits; /* logits are wanted for the last n_logits tokens */
};

/* One forward pass over all segments together, each of another sequence; at most model_batch_limit
 * tokens. logits takes [sum of n_logits][n_vocab], in order. On failure (a token id out of range,
 * the context full, memory out) no sequence has changed. STATUS_LOST: a rank of the placement is
 * gone; the model is of no use any more but to be closed. Of a placement only the owner calls
 * it. */
enum status model_step(struct model *model, const struct step_segment *segments, size_t n_segments,
                       float *logits, struct error *error);

/* The same in two: a step is under way from begin to end, and its segments count for what its
 * sequences hold from begin on; logits are there after end. Steps end in the order in which they
 * began, and sequences may be truncated and closed meanwhile. Where the model is a pipeline of
 * stages, several steps under way keep all of them busy; else begin does next to nothing. begin
 * answers STATUS_BUSY where model_steps_most are under way. When a step fails, those that began
 * after it fail too, and no sequence has what they added. */
enum status model_step_begin(struct model *model, const struct step_segment *segments,
                             size_t n_segments, float *logits, struct error *error);
enum status model_step_end(struct model *model, struct error *error);
#define MODEL_MAX_STEPS 8
uint32_t model_steps_most(const struct model *model); /* 1, or for a pipeline MODEL_MAX_STEPS */
uint32_t model_steps_under_way(const struct model *model);

/* On a rank that is not the owner: computes its slice of the owner's steps until the owner closes
 * its model. STATUS_LOST where another rank is gone, or the comm was told to give up. Whatever
 * fails on one rank, its comm is then to be closed, so that the others learn of it. */
enum status model_follow(struct model *model, struct error *error);

/* For embedding models: the pooled vector of tokens. out takes n_embd numbers, L2-normalised when
 * normalise; one score when the pooling is RANK. pooling other than NONE overrides the file's. */
enum status model_embed(struct model *model, const int32_t *tokens, size_t n_tokens,
                        enum model_pooling pooling, bool normalise, float *out,
                        struct error *error);

/* Called for every product with a weight tensor: x[n_rows][n_cols] are the rows that go into it.
 * expert is -1, or the matrix of a 3-D tensor the rows go to. For importance matrices. NULL ends.
 */
typedef void model_observer(void *context, const char *tensor, const float *x, size_t n_rows,
                            size_t n_cols, int expert);
void model_observe(struct model *model, model_observer *observer, void *context);

#endif
