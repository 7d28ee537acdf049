/* plan: which nodes should compute a model, and how fast that will be.
 *
 * Pure code: nodes, links, a model and its work go in as plain data; ranked placements with
 * predictions come out, and for each candidate that was rejected a sentence that says why. Nothing
 * here measures, opens a model or knows a network. Everything may be called from any thread.
 *
 * Units: bytes, seconds, bytes a second, floating-point operations a second (a product of two
 * numbers that is added to a sum counts as two), tokens a second.
 */
#ifndef CONSORT_PLAN_H
#define CONSORT_PLAN_H

#include "base/base.h"

#define PLAN_MAX_NODES 64
#define PLAN_MAX_SHARDS 16 /* of a stage */
#define PLAN_MAX_LAYERS 512
#define PLAN_NAME_BYTES 64
/* Of plain reading: products of one token with mapped weights. Measured with this program's CPU
 * kernels: 0.72 to 0.88, by format and size. */
#define PLAN_DECODE_SHARE 0.82
#define PLAN_LAYER_OVERHEAD_S 50e-6 /* where it was not measured; 44 us were, on two cores */

/* ---- What goes in ---------------------------------------------------------------------------- */

struct plan_node {
    char name[PLAN_NAME_BYTES];
    uint64_t memory_bytes;   /* that may be used for models */
    uint64_t disk_bytes;     /* that may be used for its slice; 0: not known, or it is there */
    double read_rate;        /* bytes a second of plain reading by all cores */
    double flops;            /* of products of weights with the tokens of a prompt, all cores */
    double layer_overhead_s; /* of each layer of a step, beside reading and products */
};

/* From one node to another. bandwidth 0: there is no link. */
struct plan_link {
    double latency_s; /* one way, of a small message */
    double bandwidth;
    double collective_s; /* measured: what a small all-reduce over it takes; 0: not measured */
};

struct plan_layer {
    uint32_t n_heads;
    uint32_t n_kv_heads;  /* 0: the cache is compressed (MLA), and whole on every shard */
    uint32_t window;      /* tokens that a token sees; 0: all */
    uint32_t n_ff;        /* columns of the dense and shared FFN; 0: none */
    uint32_t n_expert_ff; /* columns of an expert; 0: no experts */
    /* Bytes of weights by how shards hold them: by heads (q and the output), by KV heads (k and v),
     * by blocks of FFN columns, the experts, and what is whole on every shard. */
    double head_bytes, kv_head_bytes, ff_bytes, expert_bytes, whole_bytes;
    double kv_bytes;         /* of a token in the cache */
    double context_products; /* of a token with each token that it sees */
};

struct plan_model {
    char name[128];
    const struct plan_layer *layers; /* [n_layers], borrowed */
    uint32_t n_layers, n_embd, n_vocab;
    uint32_t n_experts, n_experts_used;
    uint32_t block;         /* columns of a quantisation block: FFNs are cut between these */
    double embedding_bytes; /* whole on the first node; a row is read for a token */
    double output_bytes;    /* the vocabulary projection; where tied, it is the embedding */
    bool tied;
    bool parallel; /* attention and FFN read the same input: one all-reduce a layer */
    double params, params_active;
};

enum plan_objective {
    PLAN_LATENCY,    /* tokens a second of one stream */
    PLAN_THROUGHPUT, /* of all streams together */
    PLAN_AUTO,       /* of each stream until a reader has enough, then of all together */
};

struct plan_work {
    uint32_t context; /* tokens that each stream may hold */
    uint32_t streams; /* answered at once */
    uint32_t prompt;  /* tokens of a prompt, for prefill and the time to the first token */
    enum plan_objective objective;
    double reader_rate; /* tokens a second that a reader needs */
};

struct plan_input {
    const struct plan_node *nodes;
    uint32_t n_nodes;
    const struct plan_link *links; /* [from * n_nodes + to]; NULL where there is one node */
    const struct plan_model *model;
    struct plan_work work;
};

/* ---- What comes out -------------------------------------------------------------------------- */

enum plan_kind { PLAN_ONE_NODE, PLAN_REPLICAS, PLAN_PIPELINE, PLAN_TENSOR, PLAN_GROUPS };
#define PLAN_KIND_COUNT (PLAN_GROUPS + 1)

/* "one node", "pipeline", ... */
const char *plan_kind_text(enum plan_kind kind);

struct plan_shard {
    uint32_t node;  /* index */
    uint16_t share; /* relative to those of its stage's other shards; never 0 */
    uint64_t weight_bytes, kv_bytes;
    uint64_t need_bytes; /* both and what else is needed; at most the node's memory */
};

/* Layers [first_layer, end_layer), by shards [first_shard, first_shard + n_shards) of the plan. */
struct plan_stage {
    uint32_t first_layer, end_layer;
    uint32_t first_shard, n_shards;
};

/* Stages follow each other; of replicas each stage is a replica and has all layers. */
struct plan {
    enum plan_kind kind;
    uint32_t n_stages, n_shards; /* a shard is a node */
    struct plan_stage stages[PLAN_MAX_NODES];
    struct plan_shard shards[PLAN_MAX_NODES];
    uint32_t n_batches;           /* micro-batches that all streams are cut into */
    double stream_rate, all_rate; /* tokens a second: of one stream alone; of all together */
    double prefill_rate, first_token_s;
    double step_s;       /* of one token of one stream: */
    double compute_s;    /* in the nodes that it passes one after the other, */
    double hop_s;        /* between stages, and on the way back, */
    double collective_s; /* and in all-reduces */
    uint32_t n_collectives;
};

struct plan_rejection {
    enum plan_kind kind;
    uint32_t n_nodes;
    bool fits;                    /* it could run; the rates are its predictions */
    double stream_rate, all_rate; /* 0 where it does not fit */
    char text[320];               /* why, with numbers */
};

struct plan_result {
    struct plan *plans; /* the best first; each is 5 % better than all over fewer nodes */
    size_t n_plans;     /* 0: refusal says what is missing */
    struct plan_rejection *rejections; /* those that fit first, then by nodes */
    size_t n_rejections;
    uint64_t weight_bytes; /* of the whole model */
    uint64_t kv_bytes;     /* of all streams */
    char refusal[512];
};

/* *out is the caller's (plan_free) and says by n_plans whether anything fits. STATUS_INVALID for
 * numbers that make no sense, with the sentence why. */
enum status plan_make(struct plan_result **out, const struct plan_input *input,
                      struct error *error);
void plan_free(struct plan_result *result); /* NULL allowed */

/* Rates that are about as high as the highest of n become it: measurements of equal machines
 * differ, and the borders of equal shares lie between heads and blocks. */
void plan_even_out(double *rates, uint32_t n);

/* Where the units (heads, blocks, rows) of shard i begin, of those of all n shards: the share of
 * those before it, rounded. Shard n begins where the last one ends. */
uint32_t plan_cut(uint32_t units, const struct plan_shard *shards, uint32_t n, uint32_t i);

/* ---- Cost ------------------------------------------------------------------------------------ */

struct plan_costs {
    double busy, awake;       /* shares of the year, busy <= awake */
    double kwh_price;         /* money is in any one currency */
    double years, residual;   /* of use; the share of the price that is left then */
    double admin_hours, rate; /* a year; for an hour */
    double cloud_month;       /* what a cloud would cost; 0: not known */
    double capex;             /* what all costs; 0: the sum of the machines' prices */
};

struct plan_power {
    double idle_w, peak_w, sleep_w;
};

struct plan_bill {
    double kwh_year, year; /* energy; money */
    double per_mtok;       /* for a million tokens; 0 without a rate */
    double months;         /* until it has paid for itself; 0: no cloud, negative: never */
};

/* power and capex are those of all machines together, rate the tokens a second while busy. */
struct plan_bill plan_cost(const struct plan_costs *costs, const struct plan_power *power,
                           double capex, double rate);

/* ---- Rooms: machines that one may not have --------------------------------------------------- */

struct plan_machine {
    char name[PLAN_NAME_BYTES];
    double memory_gb;           /* as sold: 2^30 bytes each */
    double read_gbs;            /* plain reading; measured, or from the nominal bandwidth */
    double nominal_gbs, tflops; /* 0: not known */
    double overhead_us;         /* of a layer */
    struct plan_power power;    /* zeros: not known */
    double price;
};

struct plan_link_kind {
    char name[PLAN_NAME_BYTES];
    double latency_us, gbs, collective_us;
};

/* A model by its shape. */
struct plan_shape {
    char name[PLAN_NAME_BYTES];
    double size_gb; /* 10^9 bytes */
    double layers, embedding, heads, kv_heads, head_size, ff, vocabulary;
    double experts, experts_used, expert_ff, shared_ff, dense_layers;
    double q_rank, kv_rank, rope_dims; /* MLA */
    double block;
    bool tied;
};

#define PLAN_MAX_ENTRIES 256 /* machines, kinds of links and shapes that a room may know */

/* What files of machines say. {0} knows nothing. */
struct plan_room {
    struct plan_machine *machines;
    struct plan_link_kind *kinds;
    struct plan_shape *shapes;
    size_t n_machines, n_kinds, n_shapes;
    struct plan_costs costs;
    bool has_costs;
    struct plan_node nodes[PLAN_MAX_NODES];
    struct plan_machine node_machines[PLAN_MAX_NODES]; /* what each node is */
    uint32_t n_nodes;
    struct plan_link *links; /* [n_nodes * n_nodes], or NULL */
};

/* Adds what a YAML text says to the room: `machines`, `link-kinds` and `models` to those it knows,
 * which entries of the same name replace; `costs`; and the nodes and their links. Errors begin with
 * "NAME:LINE:COLUMN: ", and leave a room that can only be freed. */
enum status plan_room_read(struct plan_room *room, struct view text, const char *name,
                           struct error *error);
void plan_room_free(struct plan_room *room);

/* The machines, links and models that come with the program (docs/machines.yaml). */
struct view plan_library(void);

const struct plan_machine *plan_find_machine(const struct plan_room *room, const char *name);
const struct plan_link_kind *plan_find_kind(const struct plan_room *room, const char *name);
const struct plan_shape *plan_find_shape(const struct plan_room *room, const char *name);

/* A node of a machine, and a link of a kind. */
struct plan_node plan_machine_node(const struct plan_machine *machine);
struct plan_link plan_kind_link(const struct plan_link_kind *kind);

/* What decoding reads at most of a memory whose nominal bandwidth is known. */
double plan_read_rate(double nominal);

/* The model of a shape, whose cache takes kv_number_bytes for each number. layers[PLAN_MAX_LAYERS]
 * is the caller's and must live as long as *out. */
void plan_shape_model(struct plan_model *out, struct plan_layer *layers,
                      const struct plan_shape *shape, double kv_number_bytes);

#endif
