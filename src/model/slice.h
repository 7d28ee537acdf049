/* slice: which part of a model one rank has (internal to src/model). Said once for every
 * architecture: a layer is cut into heads, FFN columns and experts, and each tensor's role says
 * along which of its dimensions that cuts it. Read-only after slice_open.
 */
#ifndef CONSORT_MODEL_SLICE_H
#define CONSORT_MODEL_SLICE_H

#include "model/model.h"

struct span {
    uint32_t begin, end;
};

static inline uint32_t span_size(struct span span)
{
    return span.end - span.begin;
}

/* What a shard has of a layer. */
struct layer_slice {
    struct span heads, kv_heads; /* KV heads at the edges may be a neighbour's as well */
    bool whole_qk;               /* q and k of all heads: a norm goes over them as one row */
    struct span ff, shared_ff;   /* columns of the dense FFN, of the shared experts */
    struct span expert_ff;       /* columns of each of the */
    struct span experts;         /* all of them, or all columns of some */
};

struct slice {
    const struct model_desc *desc; /* of the whole model; borrowed */
    uint32_t rank, n_ranks, owner;
    uint32_t stage, n_stages, shard, n_shards;
    uint32_t first_rank;               /* of shard 0 of this stage */
    uint32_t before_rank, n_before;    /* shards of the stage before */
    uint32_t after_rank, n_after;      /* and of the one after */
    struct span layer_range;           /* of the stage */
    bool embeds;                       /* has what turns token ids into rows */
    bool last;                         /* is in the stage that gives logits */
    struct span vocab;                 /* rows of the output, in the last stage */
    bool tied;                         /* the output is the embedding */
    struct layer_slice *layers;        /* [n_layers]; those of the stage are filled */
    struct model_placement *placement; /* as it was given; NULL: whole */
};

/* placement NULL: the whole model. weights says only what formats the tensors have. Refuses, with
 * the reason, a placement that does not fit the model. */
enum status slice_open(struct slice *slice, const struct model_desc *desc,
                       const struct model_placement *placement, uint32_t rank,
                       const struct weights *weights, struct error *error);
void slice_close(struct slice *slice);

/* Rows of the vocabulary that a shard of the slice's own stage has, were it the last. */
struct span slice_vocab(const struct slice *slice, uint32_t shard);

/* What the slice needs of a tensor: n spans along dim that follow each other (of a fused tensor one
 * for each part), or with n 0 all of it. Columns come in whole blocks; pad_before and pad_after of
 * them are a neighbour's. */
struct slice_cut {
    struct weights_cut part;
    uint32_t pad_before, pad_after;
};
struct slice_cut slice_cut(const struct slice *slice, const struct weights_tensor *tensor);

/* Starts to read ahead what the slice needs. */
void slice_prefetch(const struct slice *slice, const struct weights *weights);

/* Bytes of all tensors that the slice needs, without gaps. */
uint64_t slice_weight_bytes(const struct slice *slice, const struct weights *weights);

/* Tensors of parts that a plain forward pass does not have: further-token prediction and what old
 * converters left behind. */
bool slice_ignores(const struct model_desc *desc, const char *name);

#endif
