/* From metadata to struct model_desc. What architectures differ in stands in one table of facts;
 * where a file says otherwise (scales, windows, routing), the file wins. Sources: the models'
 * papers and published configurations, and the key names of the GGUF specification. */
#include "model/model_internal.h"

#include <inttypes.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Where the embedding scale of an architecture comes from, unless the file names one. */
#define EMBEDDING_SQRT (-1.0f) /* sqrt(n_embd) */

struct architecture {
    const char *name;
    enum model_norm norm;
    enum model_rope rope;
    enum model_activation activation;
    enum model_routing routing;
    bool routing_norm;
    bool routing_before_ffn;
    bool parallel;
    bool post_norm;
    bool mla;
    bool qk_norm_after_rope;
    bool moe_plus_dense;
    bool logits_divided;     /* by logit_scale, instead of multiplied */
    bool full_without_rope;  /* layers that see everything do not rotate */
    bool window_unscaled;    /* windowed layers rotate without the model's rope scaling */
    bool window_by_key_only; /* no window unless the file names one */
    uint32_t window_every;   /* each so-many-th layer sees everything; 0: no windows */
    uint32_t window;         /* default */
    uint32_t window_chunk;   /* windows are fixed chunks of this size */
    float window_rope_base;  /* of windowed layers; 0: as the others */
    float embedding_scale, logit_scale, attn_scale, attn_softcap, logit_softcap; /* 0: neutral */
    float yarn_beta_fast;            /* default; 0: 32 */
    bool rope_if_finetuned;          /* no layer rotates where rope.scaling.finetuned is false */
    bool nextn_in_block_count;       /* block_count counts layers for predicting further tokens */
    uint32_t head_as_embd_at_layers; /* this size scales attention by n_embd / n_heads */
    uint32_t temperature_ctx;
};

#define HALVES MODEL_ROPE_HALVES
#define PAIRS MODEL_ROPE_PAIRS
#define LAYER_NORM MODEL_NORM_LAYER
#define GELU MODEL_ACTIVATION_GELU

static const struct architecture architectures[] = {
    {.name = "llama", .rope = PAIRS, .routing_norm = true},
    {.name = "qwen2", .rope = HALVES},
    {.name = "qwen2moe", .rope = HALVES},
    {.name = "qwen3", .rope = HALVES},
    {.name = "qwen3moe", .rope = HALVES, .routing_norm = true},
    {.name = "grok",
     .rope = HALVES,
     .activation = GELU,
     .routing_norm = true,
     .moe_plus_dense = true,
     .embedding_scale = 78.38367176906169f,
     .logit_scale = 0.5773502691896257f,
     .attn_scale = 0.08838834764831845f,
     .attn_softcap = 30.0f,
     .yarn_beta_fast = 8.0f},
    {.name = "command-r", .norm = LAYER_NORM, .rope = PAIRS, .parallel = true},
    {.name = "cohere2",
     .norm = LAYER_NORM,
     .rope = PAIRS,
     .parallel = true,
     .window_every = 4,
     .window = 4096,
     .full_without_rope = true},
    {.name = "llama4",
     .rope = PAIRS,
     .routing = MODEL_ROUTING_SIGMOID,
     .routing_before_ffn = true,
     .qk_norm_after_rope = true,
     .window_every = 4,
     .window_chunk = 8192,
     .full_without_rope = true,
     .temperature_ctx = 8192},
    {.name = "gemma2",
     .rope = HALVES,
     .activation = GELU,
     .window_every = 2,
     .window = 4096,
     .embedding_scale = EMBEDDING_SQRT,
     .attn_softcap = 50.0f,
     .logit_softcap = 30.0f,
     .head_as_embd_at_layers = 46},
    {.name = "gemma3",
     .rope = HALVES,
     .activation = GELU,
     .window_every = 6,
     .window_by_key_only = true,
     .window_rope_base = 10000.0f,
     .window_unscaled = true,
     .embedding_scale = EMBEDDING_SQRT,
     .head_as_embd_at_layers = 62},
    {.name = "phi3", .rope = HALVES},
    {.name = "deepseek2", .rope = PAIRS, .mla = true},
    {.name = "gpt-oss",
     .rope = HALVES,
     .activation = MODEL_ACTIVATION_SWIGLU_OAI,
     .routing = MODEL_ROUTING_SOFTMAX_CHOSEN,
     .window_every = 2,
     .window_by_key_only = true},
    {.name = "glm4", .rope = PAIRS},
    {.name = "glm4moe",
     .rope = HALVES,
     .routing = MODEL_ROUTING_SIGMOID,
     .nextn_in_block_count = true},
    {.name = "minimax-m2", .rope = HALVES, .routing = MODEL_ROUTING_SIGMOID, .routing_norm = true},
    {.name = "granite",
     .rope = PAIRS,
     .routing_norm = true,
     .logits_divided = true,
     .rope_if_finetuned = true},
    {.name = "olmo2",
     .rope = HALVES,
     .window_every = 4,
     .window_by_key_only = true,
     .window_unscaled = true},
    {.name = "starcoder2", .norm = LAYER_NORM, .rope = HALVES, .activation = GELU},
    {.name = "bert",
     .norm = LAYER_NORM,
     .rope = MODEL_ROPE_NONE,
     .activation = GELU,
     .post_norm = true},
    {.name = "nomic-bert", .norm = LAYER_NORM, .rope = HALVES, .post_norm = true},
};

/* ---- Reading keys ---- */

/* The first failure stays; later reads do nothing, so that a list of reads needs one check. */
struct reader {
    const struct weights *weights;
    const struct architecture *architecture;
    struct error *error;
    enum status status;
    char key[128];
};

static const char *full_key(struct reader *reader, const char *suffix)
{
    snprintf(reader->key, sizeof reader->key, "%s.%s", reader->architecture->name, suffix);
    return reader->key;
}

static void read_u32(struct reader *reader, const char *suffix, uint32_t *out)
{
    if (reader->status == STATUS_OK)
        reader->status = weights_u32(reader->weights, full_key(reader, suffix), out, reader->error);
}

static void read_f32(struct reader *reader, const char *suffix, float *out)
{
    if (reader->status == STATUS_OK)
        reader->status = weights_f32(reader->weights, full_key(reader, suffix), out, reader->error);
    if (reader->status == STATUS_OK && !isfinite(*out))
        reader->status =
            error_set(reader->error, STATUS_INVALID, "key %s is not a finite number", reader->key);
}

static void read_bool(struct reader *reader, const char *suffix, bool *out)
{
    if (reader->status == STATUS_OK)
        reader->status =
            weights_bool(reader->weights, full_key(reader, suffix), out, reader->error);
}

static bool has(struct reader *reader, const char *suffix)
{
    return weights_has(reader->weights, full_key(reader, suffix));
}

static void require(struct reader *reader, const char *suffix)
{
    if (reader->status == STATUS_OK && !has(reader, suffix))
        reader->status = error_set(reader->error, STATUS_INVALID,
                                   "key %s is missing, and the model cannot be run without it; "
                                   "convert or fetch it again",
                                   reader->key);
}

/* A required number in [1, limit]. */
static void read_size(struct reader *reader, const char *suffix, uint32_t limit, uint32_t *out)
{
    require(reader, suffix);
    read_u32(reader, suffix, out);
    if (reader->status == STATUS_OK && (*out < 1 || *out > limit))
        reader->status = error_set(reader->error, STATUS_INVALID,
                                   "key %s is %u; 1 to %u can be used", reader->key, *out, limit);
}

/* The format says which key or tensor, what was found and what was expected. */
BASE_PRINTF(3, 4)
static void check(struct reader *reader, bool holds, const char *format, ...)
{
    if (reader->status != STATUS_OK || holds)
        return;
    char what[160];
    va_list args;
    va_start(args, format);
    vsnprintf(what, sizeof what, format, args);
    va_end(args);
    reader->status = error_set(reader->error, STATUS_INVALID,
                               "the metadata of this %s model do not fit together: %s",
                               reader->architecture->name, what);
}

static const struct weights_tensor *layer_tensor(struct reader *reader, uint32_t layer,
                                                 const char *name)
{
    char full[96];
    snprintf(full, sizeof full, "blk.%u.%s.weight", layer, name);
    return weights_find(reader->weights, full);
}

static void expect_tensor(struct reader *reader, uint32_t layer, const char *suffix,
                          const char *why)
{
    char full[160];
    snprintf(full, sizeof full, "blk.%u.%.100s", layer, suffix);
    if (reader->status == STATUS_OK && weights_find(reader->weights, full) == NULL)
        reader->status =
            error_set(reader->error, STATUS_INVALID,
                      "tensor %s is missing%s; convert or fetch the model again", full, why);
}

/* ---- Groups of facts ---- */

/* Far above any model there is, and small enough that no product of two or three overflows. */
#define LIMIT_WIDTH (1u << 20) /* of embeddings, of all heads together, of an FFN */
#define LIMIT_HEADS (1u << 16)
#define LIMIT_VOCAB (1u << 24)
#define LIMIT_RANK (1u << 14)
#define LIMIT_BIDIRECTIONAL_CTX (1u << 20)

static void read_sizes(struct reader *reader, struct model_desc *desc)
{
    read_size(reader, "block_count", MODEL_MAX_LAYERS, &desc->n_layers);
    read_size(reader, "embedding_length", LIMIT_WIDTH, &desc->n_embd);
    read_size(reader, "context_length", MODEL_MAX_CTX, &desc->n_ctx_train);
    uint32_t n_unused = 0; /* layers for predicting further tokens, which a plain pass skips */
    read_u32(reader, "nextn_predict_layers", &n_unused);
    check(reader, n_unused < desc->n_layers,
          "nextn_predict_layers is %u, expected less than block_count, which is %u", n_unused,
          desc->n_layers);
    if (reader->status == STATUS_OK && reader->architecture->nextn_in_block_count)
        desc->n_layers -= n_unused;

    const struct weights_tensor *embedding = weights_find(reader->weights, "token_embd.weight");
    if (reader->status == STATUS_OK && embedding == NULL)
        reader->status = error_set(reader->error, STATUS_INVALID,
                                   "tensor token_embd.weight is missing; the file holds no model");
    uint64_t n_vocab = embedding != NULL ? embedding->shape[1] : 0;
    check(reader, n_vocab <= LIMIT_VOCAB,
          "token_embd.weight has %" PRIu64 " tokens, expected at most %u", n_vocab, LIMIT_VOCAB);
    if (reader->status == STATUS_OK)
        desc->n_vocab = (uint32_t)n_vocab;
}

static void read_heads(struct reader *reader, struct model_desc *desc)
{
    uint32_t heads[MODEL_MAX_LAYERS] = {0}, kv_heads[MODEL_MAX_LAYERS];
    require(reader, "attention.head_count");
    if (reader->status == STATUS_OK)
        reader->status = weights_u32_each(reader->weights, full_key(reader, "attention.head_count"),
                                          heads, desc->n_layers, reader->error);
    memcpy(kv_heads, heads, sizeof kv_heads);
    if (reader->status == STATUS_OK)
        reader->status =
            weights_u32_each(reader->weights, full_key(reader, "attention.head_count_kv"), kv_heads,
                             desc->n_layers, reader->error);
    for (uint32_t i = 0; i < desc->n_layers && reader->status == STATUS_OK; i++) {
        check(reader, heads[i] >= 1 && heads[i] <= LIMIT_HEADS,
              "attention.head_count is %u in layer %u, expected 1 to %u", heads[i], i, LIMIT_HEADS);
        check(reader, kv_heads[i] >= 1 && heads[i] % kv_heads[i] == 0,
              "attention.head_count is %u in layer %u, expected a multiple of "
              "attention.head_count_kv, which is %u",
              heads[i], i, kv_heads[i]);
        desc->layers[i].n_heads = heads[i];
        desc->layers[i].n_kv_heads = kv_heads[i];
    }
    if (reader->status != STATUS_OK)
        return;
    desc->head_k = desc->head_v = desc->n_embd / heads[0];
    read_u32(reader, "attention.key_length", &desc->head_k);
    read_u32(reader, "attention.value_length", &desc->head_v);
    if (reader->architecture->mla) {
        read_u32(reader, "attention.key_length_mla", &desc->head_k);
        read_u32(reader, "attention.value_length_mla", &desc->head_v);
    }
    for (uint32_t i = 0; i < desc->n_layers; i++)
        check(reader,
              desc->head_k >= 1 && desc->head_k <= LIMIT_WIDTH / heads[i] && desc->head_v >= 1 &&
                  desc->head_v <= LIMIT_WIDTH / heads[i],
              "heads have %u and %u numbers (attention.key_length, value_length), expected 1 to %u "
              "for %u heads",
              desc->head_k, desc->head_v, LIMIT_WIDTH / heads[i], heads[i]);
}

static void read_windows(struct reader *reader, struct model_desc *desc)
{
    const struct architecture *arch = reader->architecture;
    uint32_t window = arch->window_chunk > 0 ? arch->window_chunk : arch->window;
    uint32_t every = arch->window_every;
    bool named = has(reader, "attention.sliding_window"), chunked = arch->window_chunk > 0;
    uint32_t by_key = 0;
    read_u32(reader, "attention.sliding_window", &by_key);
    /* A file with chunks names them by any number but 0, which turns them off. */
    if (named && (!chunked || by_key == 0))
        window = by_key;
    if (!named && arch->window_by_key_only)
        window = 0;
    bool windows = every > 0 && window > 0;
    for (uint32_t i = 0; i < desc->n_layers; i++) {
        struct model_layer_desc *layer = &desc->layers[i];
        bool full = !windows || i % every == every - 1;
        layer->window = full ? 0 : window;
        layer->chunked = chunked;
        layer->rope =
            arch->rope != MODEL_ROPE_NONE && !(windows && full && arch->full_without_rope);
        layer->rope_scaled = full || !arch->window_unscaled;
    }
    desc->temperature_ctx = windows ? arch->temperature_ctx : 0;
    desc->temperature_scale = 0.1f;
}

static bool rope_scaling_kind(struct view name, enum model_rope_scaling *out)
{
    static const struct {
        const char *name;
        enum model_rope_scaling kind;
    } kinds[] = {
        {"none", MODEL_ROPE_SCALING_NONE},
        {"linear", MODEL_ROPE_SCALING_LINEAR},
        {"yarn", MODEL_ROPE_SCALING_YARN},
        {"longrope", MODEL_ROPE_SCALING_LONGROPE},
    };
    for (size_t i = 0; i < ARRAY_COUNT(kinds); i++)
        if (view_equal(name, view_of(kinds[i].name))) {
            *out = kinds[i].kind;
            return true;
        }
    return false;
}

static void read_rope(struct reader *reader, struct model_desc *desc)
{
    const struct architecture *arch = reader->architecture;
    desc->rope = arch->rope;
    desc->rope_dims = desc->head_k;
    read_u32(reader, "rope.dimension_count", &desc->rope_dims);
    check(reader,
          desc->rope_dims % 2 == 0 && desc->rope_dims <= MODEL_MAX_ROPE_DIMS &&
              (desc->rope_dims <= desc->head_k || arch->rope == MODEL_ROPE_NONE),
          "rope.dimension_count is %u, expected an even number, at most %u and at most "
          "attention.key_length, which is %u",
          desc->rope_dims, MODEL_MAX_ROPE_DIMS, desc->head_k);
    float base = 10000.0f;
    read_f32(reader, "rope.freq_base", &base);
    check(reader, base > 0, "rope.freq_base is %g, expected more than 0", (double)base);
    bool finetuned = true;
    read_bool(reader, "rope.scaling.finetuned", &finetuned);
    for (uint32_t i = 0; i < desc->n_layers; i++) {
        struct model_layer_desc *layer = &desc->layers[i];
        bool windowed = layer->window > 0 && arch->window_rope_base > 0;
        layer->rope_base = windowed ? arch->window_rope_base : base;
        if (arch->rope_if_finetuned && !finetuned)
            layer->rope = false;
    }

    desc->rope_scaling = MODEL_ROPE_SCALING_LINEAR;
    struct view kind = {0};
    if (reader->status == STATUS_OK)
        reader->status = weights_string(reader->weights, full_key(reader, "rope.scaling.type"),
                                        &kind, reader->error);
    check(reader, kind.data == NULL || rope_scaling_kind(kind, &desc->rope_scaling),
          "rope.scaling.type is \"%.*s\", expected none, linear, yarn or longrope",
          (int)MIN(kind.size, 20), kind.data != NULL ? kind.data : "");
    desc->rope_factor = 0;
    read_f32(reader, "rope.scale_linear", &desc->rope_factor);
    read_f32(reader, "rope.scaling.factor", &desc->rope_factor);
    if (desc->rope_factor == 0 || desc->rope_scaling == MODEL_ROPE_SCALING_NONE)
        desc->rope_factor = 1.0f;
    check(reader, desc->rope_factor > 0, "rope.scaling.factor is %g, expected more than 0",
          (double)desc->rope_factor);
    desc->rope_ctx_orig = desc->n_ctx_train;
    read_u32(reader, "rope.scaling.original_context_length", &desc->rope_ctx_orig);
    desc->rope_beta_fast = arch->yarn_beta_fast > 0 ? arch->yarn_beta_fast : 32.0f;
    desc->rope_beta_slow = 1.0f;
    read_f32(reader, "rope.scaling.yarn_beta_fast", &desc->rope_beta_fast);
    read_f32(reader, "rope.scaling.yarn_beta_slow", &desc->rope_beta_slow);
    desc->rope_magnitude = 1.0f;
    read_f32(reader, "rope.scaling.attn_factor", &desc->rope_magnitude);
}

/* YaRN (Peng et al., 2023, section 3.4) also scales attention. DeepSeek puts it all into the scale
 * of the scores, the others into what is turned. Call when head_k is known. */
static void apply_yarn_magnitude(struct reader *reader, struct model_desc *desc)
{
    if (desc->rope_scaling != MODEL_ROPE_SCALING_YARN)
        return;
    float log_factor = logf(desc->rope_factor);
    if (desc->mixer != MODEL_MIXER_MLA) {
        desc->rope_magnitude *= 1.0f + 0.1f * log_factor;
        return;
    }
    float log_multiplier = 0;
    read_f32(reader, "rope.scaling.yarn_log_multiplier", &log_multiplier);
    float magnitude = desc->rope_magnitude * (1.0f + log_multiplier * log_factor);
    desc->attn_scale *= magnitude * magnitude;
    desc->rope_magnitude = 1.0f;
}

static void read_scales(struct reader *reader, struct model_desc *desc)
{
    const struct architecture *arch = reader->architecture;
    desc->embedding_scale = arch->embedding_scale == EMBEDDING_SQRT ? sqrtf((float)desc->n_embd)
                            : arch->embedding_scale > 0             ? arch->embedding_scale
                                                                    : 1.0f;
    read_f32(reader, "embedding_scale", &desc->embedding_scale);
    desc->residual_scale = 1.0f;
    read_f32(reader, "residual_scale", &desc->residual_scale);
    desc->logit_scale = arch->logit_scale > 0 ? arch->logit_scale : 1.0f;
    read_f32(reader, "logit_scale", &desc->logit_scale);
    if (desc->logit_scale == 0)
        desc->logit_scale = 1.0f;
    if (arch->logits_divided)
        desc->logit_scale = 1.0f / desc->logit_scale;

    bool by_embd = arch->head_as_embd_at_layers == desc->n_layers;
    float size = (float)(by_embd ? desc->n_embd / desc->layers[0].n_heads : desc->head_k);
    float scale = 0;
    read_f32(reader, "attention.scale", &scale);
    read_f32(reader, "attention.output_scale", &scale);
    if (scale == 0)
        scale = arch->attn_scale;
    desc->attn_scale = scale != 0 ? scale : 1.0f / sqrtf(size);
    desc->attn_softcap = arch->attn_softcap;
    desc->logit_softcap = arch->logit_softcap;
    read_f32(reader, "attn_logit_softcapping", &desc->attn_softcap);
    read_f32(reader, "final_logit_softcapping", &desc->logit_softcap);

    const char *eps = arch->norm == MODEL_NORM_LAYER ? "attention.layer_norm_epsilon"
                                                     : "attention.layer_norm_rms_epsilon";
    require(reader, eps);
    read_f32(reader, eps, &desc->norm_eps);
    check(reader, desc->norm_eps >= 0, "%s is %g, expected at least 0", eps,
          (double)desc->norm_eps);
}

static void read_experts(struct reader *reader, struct model_desc *desc)
{
    read_u32(reader, "expert_count", &desc->n_experts);
    read_u32(reader, "expert_used_count", &desc->n_experts_used);
    if (desc->n_experts == 0)
        desc->n_experts_used = 0;
    check(reader, desc->n_experts <= MODEL_MAX_EXPERTS, "expert_count is %u, expected at most %u",
          desc->n_experts, MODEL_MAX_EXPERTS);
    check(reader,
          desc->n_experts == 0 ||
              (desc->n_experts_used >= 1 && desc->n_experts_used <= desc->n_experts),
          "expert_used_count is %u, expected 1 to expert_count, which is %u", desc->n_experts_used,
          desc->n_experts);
    read_bool(reader, "expert_weights_norm", &desc->routing_norm);
    desc->routing_scale = 0;
    read_f32(reader, "expert_weights_scale", &desc->routing_scale);
    if (desc->routing_scale == 0)
        desc->routing_scale = 1.0f;
    uint32_t gating = 0;
    read_u32(reader, "expert_gating_func", &gating);
    check(reader, gating <= 3, "expert_gating_func is %u, expected 1 (softmax), 2 (sigmoid) or 3",
          gating);
    if (gating > 0)
        desc->routing = gating == 1   ? MODEL_ROUTING_SOFTMAX
                        : gating == 2 ? MODEL_ROUTING_SIGMOID
                                      : MODEL_ROUTING_SOFTMAX_CHOSEN;
    desc->n_expert_groups = desc->n_expert_groups_used = 1;
    read_u32(reader, "expert_group_count", &desc->n_expert_groups);
    read_u32(reader, "expert_group_used_count", &desc->n_expert_groups_used);
    if (desc->n_expert_groups == 0)
        desc->n_expert_groups = desc->n_expert_groups_used = 1;
    check(reader,
          desc->n_expert_groups_used >= 1 && desc->n_expert_groups_used <= desc->n_expert_groups &&
              desc->n_experts % desc->n_expert_groups == 0 &&
              (desc->n_experts == 0 ||
               desc->n_experts / desc->n_expert_groups * desc->n_expert_groups_used >=
                   desc->n_experts_used),
          "%u groups of which %u are used (expert_group_count, expert_group_used_count) do not "
          "divide %u experts of which %u are used",
          desc->n_expert_groups, desc->n_expert_groups_used, desc->n_experts, desc->n_experts_used);
}

static void read_ffn(struct reader *reader, struct model_desc *desc)
{
    for (uint32_t i = 0; i < desc->n_layers; i++) {
        struct model_layer_desc *layer = &desc->layers[i];
        const struct weights_tensor *down = layer_tensor(reader, i, "ffn_down");
        const struct weights_tensor *experts = layer_tensor(reader, i, "ffn_down_exps");
        const struct weights_tensor *shared = layer_tensor(reader, i, "ffn_down_shexp");
        const struct weights_tensor *all[] = {down, experts, shared};
        for (size_t t = 0; t < ARRAY_COUNT(all); t++)
            check(reader, all[t] == NULL || all[t]->shape[0] <= LIMIT_WIDTH,
                  "tensor %s is wider than %u", all[t] != NULL ? all[t]->name : "", LIMIT_WIDTH);
        layer->moe = experts != NULL;
        if (reader->status != STATUS_OK)
            return;
        if (down != NULL)
            layer->n_ff = (uint32_t)down->shape[0];
        if (experts != NULL)
            desc->n_expert_ff = (uint32_t)experts->shape[0];
        if (shared != NULL)
            desc->n_shared_ff = (uint32_t)shared->shape[0];
        if (down == NULL && experts == NULL)
            expect_tensor(reader, i, "ffn_down.weight", "");
        check(reader, experts == NULL || desc->n_experts > 0,
              "there is a tensor blk.%u.ffn_down_exps.weight, but expert_count is missing or 0", i);
    }
}

static void read_pooling(struct reader *reader, struct model_desc *desc)
{
    desc->causal = !reader->architecture->post_norm;
    read_bool(reader, "attention.causal", &desc->causal);
    check(reader, desc->causal || desc->n_ctx_train <= LIMIT_BIDIRECTIONAL_CTX,
          "context_length is %u, expected at most %u for a model that is not causal",
          desc->n_ctx_train, LIMIT_BIDIRECTIONAL_CTX);
    uint32_t pooling = 0;
    read_u32(reader, "pooling_type", &pooling);
    check(reader, pooling <= MODEL_POOLING_RANK, "pooling_type is %u, expected 0 to %d", pooling,
          MODEL_POOLING_RANK);
    desc->pooling = (enum model_pooling)pooling;
}

static void read_mla(struct reader *reader, struct model_desc *desc)
{
    desc->mixer = MODEL_MIXER_ATTENTION;
    if (!reader->architecture->mla)
        return;
    desc->mixer = MODEL_MIXER_MLA;
    read_size(reader, "attention.kv_lora_rank", LIMIT_RANK, &desc->mla_kv_rank);
    if (layer_tensor(reader, 0, "attn_q_a") != NULL)
        read_size(reader, "attention.q_lora_rank", LIMIT_RANK, &desc->mla_q_rank);
    check(reader, desc->rope_dims < desc->head_k,
          "rope.dimension_count is %u, expected less than attention.key_length_mla, which is %u",
          desc->rope_dims, desc->head_k);
}

/* ---- Layers are whole ---- */

/* Whether a tensor of that name is in all layers where it is in one. Those of FFNs are not, which
 * are dense in some layers and of experts in others. */
static bool in_all_layers(const char *suffix)
{
    static const char *const names[] = {
        "attn_norm",      "attn_output_norm", "post_attention_norm",
        "ffn_norm",       "post_ffw_norm",    "layer_output_norm",
        "attn_q",         "attn_k",           "attn_v",
        "attn_qkv",       "attn_output",      "attn_q_norm",
        "attn_k_norm",    "attn_sinks",       "attn_q_a",
        "attn_q_a_norm",  "attn_q_b",         "attn_kv_a_mqa",
        "attn_kv_a_norm", "attn_kv_b",        "attn_k_b",
        "attn_v_b",
    };
    size_t length = strcspn(suffix, ".");
    for (size_t i = 0; i < ARRAY_COUNT(names); i++)
        if (strlen(names[i]) == length && memcmp(names[i], suffix, length) == 0)
            return true;
    return false;
}

/* A tensor of one layer must be in all, and none belongs to a layer that there is not. */
static void check_same_tensors(struct reader *reader, const struct model_desc *desc)
{
    uint32_t n_unused = 0;
    read_u32(reader, "nextn_predict_layers", &n_unused);
    for (size_t t = 0; t < weights_tensor_count(reader->weights); t++) {
        const char *name = weights_tensor_at(reader->weights, t)->name;
        if (strncmp(name, "blk.", 4) != 0 || name[4] < '0' || name[4] > '9')
            continue;
        char *suffix;
        unsigned long layer = strtoul(name + 4, &suffix, 10);
        check(reader, layer < (unsigned long)desc->n_layers + n_unused,
              "there is a tensor %.100s, but block_count is %u", name, desc->n_layers);
        if (*suffix++ != '.' || layer >= desc->n_layers || !in_all_layers(suffix))
            continue;
        if (layer > 0)
            expect_tensor(reader, 0, suffix, ", which other layers have");
        else
            for (uint32_t i = 1; i < desc->n_layers; i++)
                expect_tensor(reader, i, suffix, ", which other layers have");
    }
}

/* Norms have other names and places in each architecture, but none does without. */
static void check_whole(struct reader *reader, struct model_desc *desc)
{
    check_same_tensors(reader, desc);
    bool before = layer_tensor(reader, 0, "attn_norm") != NULL;
    bool after = layer_tensor(reader, 0, "post_attention_norm") != NULL;
    if (!before && !after && layer_tensor(reader, 0, "attn_output_norm") == NULL)
        expect_tensor(reader, 0, "attn_norm.weight", "");
    if (!desc->parallel && layer_tensor(reader, 0, "layer_output_norm") == NULL &&
        layer_tensor(reader, 0, "post_ffw_norm") == NULL && !(before && after))
        expect_tensor(reader, 0, "ffn_norm.weight", "");
    if (reader->status == STATUS_OK && !desc->post_norm &&
        weights_find(reader->weights, "output_norm.weight") == NULL)
        reader->status =
            error_set(reader->error, STATUS_INVALID,
                      "tensor output_norm.weight is missing; convert or fetch the model again");
}

static void count_parameters(struct reader *reader, struct model_desc *desc)
{
    uint64_t routed = 0;
    for (size_t i = 0; i < weights_tensor_count(reader->weights); i++) {
        const struct weights_tensor *tensor = weights_tensor_at(reader->weights, i);
        uint64_t n = 1;
        for (size_t d = 0; d < WEIGHTS_MAX_DIMS; d++)
            n *= tensor->shape[d];
        desc->n_params += n;
        if (strstr(tensor->name, "_exps.") != NULL)
            routed += n;
    }
    desc->n_params_active = desc->n_params;
    if (desc->n_experts > 0)
        desc->n_params_active -= routed - routed / desc->n_experts * desc->n_experts_used;
}

static enum status find_architecture(struct reader *reader)
{
    struct view name = {0};
    enum status status =
        weights_string(reader->weights, "general.architecture", &name, reader->error);
    if (status != STATUS_OK)
        return status;
    for (size_t i = 0; i < ARRAY_COUNT(architectures); i++)
        if (name.data != NULL && view_equal(name, view_of(architectures[i].name))) {
            reader->architecture = &architectures[i];
            return STATUS_OK;
        }
    if (name.data == NULL)
        return error_set(reader->error, STATUS_INVALID,
                         "key general.architecture is missing; the file holds no model");
    struct buffer known = {0};
    for (size_t i = 0; i < ARRAY_COUNT(architectures); i++)
        buffer_printf(&known, "%s%s", i > 0 ? ", " : "", architectures[i].name);
    error_set(reader->error, STATUS_UNSUPPORTED, "architecture \"%.*s\" is not known; known are %s",
              (int)MIN(name.size, 40), name.data, known.data != NULL ? known.data : "");
    buffer_free(&known);
    return STATUS_UNSUPPORTED;
}

enum status model_describe(struct model_desc **out, const struct weights *weights,
                           struct error *error)
{
    *out = NULL;
    struct reader reader = {.weights = weights, .error = error};
    enum status status = find_architecture(&reader);
    if (status != STATUS_OK)
        return status;
    struct model_desc *desc = calloc(1, sizeof *desc);
    if (desc == NULL)
        return error_memory(error, sizeof *desc);

    const struct architecture *arch = reader.architecture;
    snprintf(desc->architecture, sizeof desc->architecture, "%s", arch->name);
    struct view name = {0};
    reader.status = weights_string(weights, "general.name", &name, error);
    if (name.data != NULL)
        snprintf(desc->name, sizeof desc->name, "%.*s", (int)MIN(name.size, 127), name.data);
    for (char *c = desc->name; *c != '\0'; c++)
        if ((unsigned char)*c < ' ' || *c == 0x7f)
            *c = '?'; /* it is shown on terminals */
    desc->norm = arch->norm;
    desc->post_norm = arch->post_norm;
    desc->parallel = arch->parallel;
    desc->activation = arch->activation;
    desc->routing = arch->routing;
    desc->routing_norm = arch->routing_norm;
    desc->routing_before_ffn = arch->routing_before_ffn;
    desc->moe_plus_dense = arch->moe_plus_dense;

    static void (*const groups[])(struct reader *, struct model_desc *) = {
        read_sizes,   read_heads,           read_windows, read_rope,
        read_mla,     read_scales,          read_experts, read_ffn,
        read_pooling, apply_yarn_magnitude, check_whole,  count_parameters,
    };
    for (size_t i = 0; i < ARRAY_COUNT(groups) && reader.status == STATUS_OK; i++)
        groups[i](&reader, desc);
    /* The largest llama4 has 128 experts and no norm on q and k (its published configuration). */
    desc->qk_norm_after_rope = arch->qk_norm_after_rope && desc->n_experts != 128;
    if (reader.status != STATUS_OK) {
        free(desc);
        return reader.status;
    }
    *out = desc;
    return STATUS_OK;
}

void model_desc_free(struct model_desc *desc)
{
    free(desc);
}

uint64_t model_kv_row_bytes(const struct model_desc *desc, const struct model_layer_desc *layer,
                            enum quant_format kv_format)
{
    if (desc->mixer == MODEL_MIXER_MLA)
        return quant_row_bytes(kv_format, desc->mla_kv_rank + desc->rope_dims);
    return layer->n_kv_heads *
           (quant_row_bytes(kv_format, desc->head_k) + quant_row_bytes(kv_format, desc->head_v));
}

uint64_t model_kv_bytes(const struct model_desc *desc, uint64_t n_ctx, enum quant_format kv_format)
{
    uint64_t bytes = 0;
    for (uint32_t i = 0; i < desc->n_layers; i++)
        bytes += model_kv_row_bytes(desc, &desc->layers[i], kv_format);
    return bytes * n_ctx;
}

/* By the last of n_ctx tokens, itself included. */
static uint64_t tokens_seen(const struct model_layer_desc *layer, uint64_t n_ctx)
{
    if (layer->window == 0 || n_ctx == 0)
        return n_ctx;
    return layer->chunked ? (n_ctx - 1) % layer->window + 1 : MIN(n_ctx, layer->window);
}

uint64_t model_kv_read_bytes(const struct model_desc *desc, uint64_t n_ctx,
                             enum quant_format kv_format)
{
    uint64_t bytes = 0;
    for (uint32_t i = 0; i < desc->n_layers; i++)
        bytes += tokens_seen(&desc->layers[i], n_ctx) *
                 model_kv_row_bytes(desc, &desc->layers[i], kv_format);
    return bytes;
}

uint64_t model_attention_products(const struct model_desc *desc, uint64_t n_ctx)
{
    uint64_t products = 0, width = desc->head_k + desc->head_v;
    if (desc->mixer == MODEL_MIXER_MLA) /* in the compressed space */
        width = 2 * (uint64_t)desc->mla_kv_rank + desc->rope_dims;
    for (uint32_t i = 0; i < desc->n_layers; i++)
        products += tokens_seen(&desc->layers[i], n_ctx) * desc->layers[i].n_heads * width;
    return products;
}
