/* What the files of src/plan share. */
#ifndef CONSORT_PLAN_INTERNAL_H
#define CONSORT_PLAN_INTERNAL_H

#include "plan/plan.h"

/* ---- Constants: what machines reach of what they could, and what is kept free ---------------- */

/* Of a memory's nominal bandwidth: plain reading. With the above 0.66 of it, where published single
 * machines reach 0.55 to 0.77. */
#define NOMINAL_SHARE 0.80
/* Of products with many inputs: prefill, everything else included. A sixth of it was outside of
 * products on the CPU; a published 70B reaches 0.8 of a GPU's arithmetic. */
#define PRODUCT_SHARE 0.8
/* Of that: products with experts, which few of the tokens share. */
#define EXPERT_SHARE 0.5
/* What both ends add to a message: waking, encrypting, summing. */
#define MESSAGE_S 15e-6
/* Numbers between nodes are F32. */
#define NUMBER_BYTES 4
/* Tokens that prefill takes at a time. */
#define PREFILL_TOKENS 512
/* Beyond weights and cache: activations (at most 2.5 % of the weights, or 16 MiB), scratch. */
#define MARGIN_SHARE 0.03
#define MARGIN_BYTES ((double)(32 << 20))
/* The cache is handed out in pages. */
#define PAGE_TOKENS 128
/* A plan over more nodes has to be so much better. */
#define WORTH 1.05

/* ---- Candidates ------------------------------------------------------------------------------ */

/* Layers with equal facts. */
struct planner {
    const struct plan_input *in;
    struct plan_layer *classes;
    uint32_t n_classes;
    uint32_t *class_of; /* [n_layers] */
    uint32_t *counts;   /* [n_layers + 1][n_classes]: of each class before a layer */
    double flops_per_byte;
    uint32_t n_expert_ff; /* columns of an expert, the least of all layers; 0: none */
    double depth;         /* tokens that a stream holds when decoding is predicted */
    bool uniform;         /* all links are the same */
    double *steps[2]; /* [n_nodes] seconds of a step of the whole model: one stream, all of them */
    uint32_t *order;  /* nodes, the fastest first */
};

/* What a shard holds of some layers, and reads and computes for a token. */
struct part {
    double bytes, expert_bytes; /* of weights; experts count whole, a step reads some of them */
    double kv_read;             /* of a stream */
    double kv_held;             /* of a token of context */
    double flops, expert_flops;
    double output_flops;  /* of tokens that another one is drawn behind */
    double context_flops; /* for each token that is seen */
    double n_layers;
};

/* Where shards begin and end: their shares, added up. */
struct cuts {
    uint32_t n;
    uint64_t edges[PLAN_MAX_SHARDS + 1];
};

/* n tokens of as many streams, and the share of all experts that they choose together. */
struct batch {
    double n, touched;
};

enum fault_kind {
    FAULT_NONE,
    FAULT_MEMORY, /* of one node, or of all together (node UINT32_MAX) */
    FAULT_DISK,
    FAULT_HEADS, /* more shards than heads */
    FAULT_LINK,  /* two of the nodes have none */
    FAULT_LAYERS /* more stages than layers */
};

struct fault {
    enum fault_kind kind;
    uint32_t node;
    double need, has;
};

/* The worst of the links between some nodes. */
struct wire {
    double latency_s, bandwidth, collective_s;
};

/* One stage's nodes. */
struct group {
    uint32_t n;
    struct plan_shard shards[PLAN_MAX_SHARDS];
};

/* measure.c */
struct cuts cuts_of(const struct plan_shard *shards, uint32_t n);
uint32_t cut_at(const struct cuts *cuts, uint32_t units, uint32_t i); /* as plan_cut */
const struct plan_link *link_between(const struct planner *planner, uint32_t a, uint32_t b);
struct part part_of(const struct planner *planner, uint32_t class, const struct cuts *cuts,
                    uint32_t i);
struct batch batch_of(const struct planner *planner, double n);
/* Seconds in which a node reads and computes a part, of a stage of n_shards. */
double part_time(const struct planner *planner, const struct part *part, uint32_t node,
                 struct batch batch, uint32_t n_shards);
/* What a node may hold of weights and cache. */
double node_capacity(const struct plan_node *node);
/* Seconds of a step of the whole model on one node. */
double node_step(const struct planner *planner, uint32_t node, double streams);
/* Fills in all but kind and layout. False with the fault where it cannot run. */
bool measure_plan(const struct planner *planner, struct plan *plan, struct fault *fault);
/* The same for stages that each are a replica. */
bool measure_replicas(const struct planner *planner, struct plan *plan, struct fault *fault);

/* Tokens that the cache holds, of all streams or of those of one of several replicas. */
double cache_tokens(const struct plan_work *work, uint32_t replicas);

/* assign.c */
/* Shares of a group's nodes: by speed, as far as memory goes, where the group holds `portion` of
 * the model. less (or NULL) is what each gets less than its memory could hold, of the model. False
 * where it does not fit. */
bool assign_shares(const struct planner *planner, struct group *group, double portion,
                   const double *less, struct fault *fault);
/* The least share that leaves a shard of n a head. */
double assign_least(const struct planner *planner, uint32_t n);

/* What each of n groups holds of each class of layers, and how long it takes. NULL: no memory. */
struct layout;
struct layout *layout_open(const struct planner *planner, const struct group *groups, uint32_t n);
void layout_close(struct layout *layout);

enum layout_how {
    LAYOUT_FILL,    /* each stage has as many layers as it holds; not all groups may be used */
    LAYOUT_BALANCE, /* all are used, and the slowest takes as little time as possible */
};

/* Lays the layers out over groups sequence[0..n), into stages and shards of plan. False where they
 * do not fit. */
bool layout_make(const struct layout *layout, const uint32_t *sequence, uint32_t n,
                 enum layout_how how, struct plan *plan, struct fault *fault);

/* Writes the nodes of the groups to plan's shards, which then names no layers; their number. */
uint32_t layout_nodes(const struct layout *layout, const uint32_t *sequence, uint32_t n,
                      struct plan *plan);

/* reasons.c */
void reason_fault(const struct planner *planner, const struct plan *plan, const struct fault *fault,
                  char *text, size_t size);
/* Why a plan is no better than one over fewer nodes, or as many. */
void reason_slower(const struct planner *planner, const struct plan *plan,
                   const struct plan *better, char *text, size_t size);

/* plan.c */
/* Whether a is so many times as good as b, by the objective. */
bool plan_better(const struct planner *planner, const struct plan *a, const struct plan *b,
                 double times);
double model_weight_bytes(const struct plan_model *model);

#endif
