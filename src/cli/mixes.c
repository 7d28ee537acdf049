/* The names and their meaning follow the published descriptions of the k-quant mixes: S is one
 * format throughout, M and L spend more bits where errors cost most: on the values of attention and
 * on the way down from the feed-forward layer. "Half" are the outer layers, a quarter at each end:
 * the first shape everything after them, and nothing after the last repairs their errors. */
#include "cli/mixes.h"

#include <stdlib.h>
#include <string.h>
#include <strings.h>

/* clang-format off */
#define ALL(format) {QUANT_##format, MIX_ALL}
#define HALF(format) {QUANT_##format, MIX_HALF}
#define EIGHTH(format) {QUANT_##format, MIX_EIGHTH}
/* clang-format on */

static const struct mix mixes[] = {
    {"F32", 0, .base = QUANT_F32},
    {"F16", 1, .base = QUANT_F16},
    {"BF16", 32, .base = QUANT_BF16},
    {"Q8_0", 7, .base = QUANT_Q8_0},
    {"Q6_K", 18, .base = QUANT_Q6_K},
    {"Q5_K_M", 17, QUANT_Q5_K, .output = ALL(Q6_K), .attn_v = HALF(Q6_K), .ffn_down = HALF(Q6_K)},
    {"Q5_K_S", 16, QUANT_Q5_K, .output = ALL(Q6_K)},
    {"Q5_K", 16, QUANT_Q5_K, .output = ALL(Q6_K)},
    {"Q5_1", 9, QUANT_Q5_1, .output = ALL(Q6_K)},
    {"Q5_0", 8, QUANT_Q5_0, .output = ALL(Q6_K)},
    {"Q4_K_M", 15, QUANT_Q4_K, .output = ALL(Q6_K), .attn_v = HALF(Q6_K), .ffn_down = HALF(Q6_K)},
    {"Q4_K_S", 14, QUANT_Q4_K, .output = ALL(Q6_K), .attn_v = EIGHTH(Q5_K),
     .ffn_down = EIGHTH(Q5_K)},
    {"Q4_K", 14, QUANT_Q4_K, .output = ALL(Q6_K)},
    {"Q4_1", 3, QUANT_Q4_1, .output = ALL(Q6_K)},
    {"Q4_0", 2, QUANT_Q4_0, .output = ALL(Q6_K)},
    {"IQ4_NL", 25, QUANT_IQ4_NL, .output = ALL(Q6_K)},
    {"IQ4_XS", 30, QUANT_IQ4_XS, .output = ALL(Q6_K), .attn_v = ALL(Q5_K)},
    {"MXFP4", 38, QUANT_MXFP4, .output = ALL(Q8_0), .outside_experts = ALL(Q8_0)},
    {"MXFP4_MOE", 38, QUANT_MXFP4, .output = ALL(Q8_0), .outside_experts = ALL(Q8_0)},
    {"Q3_K_L", 13, QUANT_Q3_K, .output = ALL(Q6_K), .attn_v = ALL(Q5_K), .attn_out = ALL(Q5_K),
     .ffn_down = ALL(Q5_K)},
    {"Q3_K_M", 12, QUANT_Q3_K, .output = ALL(Q6_K), .attn_v = ALL(Q5_K), .attn_out = ALL(Q4_K),
     .ffn_down = ALL(Q4_K)},
    {"Q3_K_S", 11, QUANT_Q3_K, .output = ALL(Q6_K), .attn_v = ALL(Q4_K)},
    {"Q3_K", 11, QUANT_Q3_K, .output = ALL(Q6_K)},
    {"Q2_K_M", 10, QUANT_Q2_K, .output = ALL(Q6_K), .attn_v = ALL(Q4_K), .attn_out = ALL(Q3_K),
     .ffn_down = ALL(Q3_K)},
    {"Q2_K_S", 21, QUANT_Q2_K, .output = ALL(Q6_K), .attn_v = ALL(Q4_K), .ffn_down = EIGHTH(Q4_K)},
    {"Q2_K", 10, QUANT_Q2_K, .output = ALL(Q6_K)},
};

const struct mix *mix_find(const char *name)
{
    for (size_t i = 0; i < ARRAY_COUNT(mixes); i++)
        if (strcasecmp(mixes[i].name, name) == 0)
            return &mixes[i];
    return NULL;
}

bool mix_names(struct buffer *out)
{
    for (size_t i = 0; i < ARRAY_COUNT(mixes); i++)
        buffer_printf(out, "%s%s", i > 0 ? ", " : "", mixes[i].name);
    return !out->failed;
}

/* ---- Tensors --------------------------------------------------------------------------------- */

static bool contains(const char *text, const char *part)
{
    return strstr(text, part) != NULL;
}

/* The layer in "blk.N.", or -1. */
static int layer_of(const char *name)
{
    return strncmp(name, "blk.", 4) == 0 ? atoi(name + 4) : -1;
}

struct mix_model mix_model_of(const struct weights *weights)
{
    struct mix_model model = {0};
    for (size_t i = 0; i < weights_tensor_count(weights); i++) {
        const char *name = weights_tensor_at(weights, i)->name;
        int layer = layer_of(name);
        if (layer >= 0 && layer < 1 << 16)
            model.n_layers = MAX(model.n_layers, (uint32_t)layer + 1);
        model.has_output = model.has_output || strcmp(name, "output.weight") == 0;
        model.has_experts = model.has_experts || contains(name, "_exps.");
    }
    return model;
}

/* Matrices that a model multiplies with; all else is small, and its errors would cost most. */
static bool is_matrix(const struct weights_tensor *tensor)
{
    static const char *const kept[] = {"norm",        "ffn_gate_inp", "position_embd",
                                       "token_types", "rope_freqs",   "cls",
                                       "attn_rel_b",  "ssm_",         "altup"};
    size_t length = strlen(tensor->name);
    if (tensor->n_dims < 2 || length < 7 || strcmp(tensor->name + length - 7, ".weight") != 0)
        return false;
    for (size_t i = 0; i < ARRAY_COUNT(kept); i++)
        if (contains(tensor->name, kept[i]))
            return false;
    return true;
}

static bool in_share(const struct mix_rule *rule, int layer, uint32_t n_layers)
{
    uint32_t at = layer < 0 ? 0 : (uint32_t)layer;
    switch (rule->share) {
    case MIX_NONE:
        return false;
    case MIX_ALL:
        return true;
    case MIX_HALF:
        return 4 * at < n_layers || 4 * (at + 1) > 3 * n_layers;
    case MIX_EIGHTH:
        return 8 * at < n_layers;
    }
    return false;
}

/* The nearest format whose blocks divide a row: of 32 numbers, or of one. */
static enum quant_format fitting(enum quant_format format, uint64_t n_cols)
{
    static const struct {
        enum quant_format from, to;
    } steps[] = {{QUANT_Q2_K, QUANT_IQ4_NL}, {QUANT_Q3_K, QUANT_IQ4_NL},
                 {QUANT_Q4_K, QUANT_Q5_0},   {QUANT_Q5_K, QUANT_Q5_1},
                 {QUANT_Q6_K, QUANT_Q8_0},   {QUANT_IQ4_XS, QUANT_IQ4_NL}};
    for (size_t i = 0; i < ARRAY_COUNT(steps); i++)
        if (steps[i].from == format && n_cols % quant_info(format)->block_len != 0)
            format = steps[i].to;
    return n_cols % quant_info(format)->block_len == 0 ? format : QUANT_F16;
}

enum quant_format mix_format(const struct mix *mix, const struct mix_model *model,
                             const struct weights_tensor *tensor, bool pure)
{
    if (!is_matrix(tensor))
        return tensor->format;
    const char *name = tensor->name;
    int layer = layer_of(name);
    const struct mix_rule *rule = NULL;
    if (strcmp(name, model->has_output ? "output.weight" : "token_embd.weight") == 0)
        rule = &mix->output;
    else if (model->has_experts && !contains(name, "_exps.") &&
             mix->outside_experts.share != MIX_NONE)
        rule = &mix->outside_experts;
    else if (contains(name, ".attn_v.") || contains(name, ".attn_v_b.") ||
             contains(name, ".attn_kv_b."))
        rule = &mix->attn_v;
    else if (contains(name, ".attn_output."))
        rule = &mix->attn_out;
    else if (contains(name, ".ffn_down"))
        rule = &mix->ffn_down;
    enum quant_format format = mix->base;
    if (!pure && rule != NULL && in_share(rule, layer, model->n_layers))
        format = rule->format;
    return fitting(format, tensor->shape[0]);
}
