/* mixes: which format each tensor of a model gets under a named quantisation. */
#ifndef CONSORT_CLI_MIXES_H
#define CONSORT_CLI_MIXES_H

#include "quant/quant.h"
#include "weights/weights.h"

/* Layers a finer format is used in. */
enum mix_share { MIX_NONE, MIX_ALL, MIX_HALF, MIX_EIGHTH };

struct mix_rule {
    enum quant_format format;
    enum mix_share share;
};

struct mix {
    const char *name;
    uint32_t file_type; /* general.file_type, as GGUF readers know it */
    enum quant_format base;
    struct mix_rule output; /* the matrix that makes logits */
    struct mix_rule attn_v, attn_out, ffn_down;
    struct mix_rule outside_experts; /* of a model with experts */
};

/* By name, any case; NULL when there is none. */
const struct mix *mix_find(const char *name);

/* All names, ", " between them. */
bool mix_names(struct buffer *out);

/* What a mix must know of the model. */
struct mix_model {
    uint32_t n_layers;
    bool has_output, has_experts;
};

struct mix_model mix_model_of(const struct weights *weights);

/* The format for a tensor: its own where it stays as it is (norms, biases, routers, positions),
 * else the mix's, else what its row length allows. pure: the mix's base for all that can take it.
 */
enum quant_format mix_format(const struct mix *mix, const struct mix_model *model,
                             const struct weights_tensor *tensor, bool pure);

#endif
