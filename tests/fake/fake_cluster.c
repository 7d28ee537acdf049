#include "fake_cluster.h"

#include "cluster/core_internal.h"

#define MAX_CONNECTIONS 512
#define MAX_RANKS 64
#define MAX_WORKS CLUSTER_MAX_REQUESTS
#define STORE_OBJECTS 128
#define WALL_MS 1750000000000
#define RETRY_MS 20
#define CHECK_MS 250
#define DEAD_MEMBER_MS 5000 /* an instance with a dead member is over after */
#define HUNG_MEMBER_MS 8000 /* ... and with one that hangs */
#define CHUNK_MS 60
#define FACTS_MS 5000

/* ---- Parts ----------------------------------------------------------------------------------- */

enum event_kind {
    EVENT_TICK,
    EVENT_PUMP,
    EVENT_UP,
    EVENT_DIALLED,
    EVENT_OPENED,
    EVENT_CLOSED,
    EVENT_FETCHED,
    EVENT_MEASURED,
    EVENT_STEP,
    EVENT_BROKEN,
    EVENT_BEACON,
    EVENT_CHECK,
};

struct event {
    uint64_t time_ms, order;
    enum event_kind kind;
    unsigned node, generation, other, connection, end;
    uint64_t a, b;
    struct cluster_way way;
    char text[CLUSTER_OBJECT_BYTES], key[CLUSTER_KEY_ID_BYTES];
};

struct letter {
    struct letter *next;
    uint64_t due_ms;
    json_t *message; /* NULL: the end of the link */
};

struct side {
    unsigned node, generation;
    uint32_t link;
    bool up, closed;              /* of this end */
    struct letter *in, **in_last; /* on their way to it */
    uint64_t last_ms;
    bool pumping, dead; /* dead: nothing arrives any more */
};

struct connection {
    bool used;
    char key[CLUSTER_KEY_ID_BYTES];
    struct side sides[2]; /* [0] dialled */
};

struct rank {
    uint64_t instance;
    uint32_t epoch;
    uint64_t bytes;
    bool reserved, opening, open, closing;
    unsigned model;
    uint32_t n_members;
    struct cluster_id nodes[CLUSTER_MAX_NODES];
    char object[CLUSTER_OBJECT_BYTES];
    uint64_t steps;
};

struct work_here {
    uint64_t id; /* 0: free */
    uint64_t instance;
    uint32_t epoch, seed, n_wanted, n_done;
    bool refused;
};

struct store_object {
    char id[CLUSTER_OBJECT_BYTES]; /* "": free */
    uint32_t have;                 /* a bit a chunk */
    uint64_t used_s;
};

struct sim_node {
    struct sim *sim;
    unsigned index, generation;
    struct cluster_id id;
    char name[16], address[32];
    struct cluster_core *core;
    json_t *saved;
    const char *peer; /* in its configuration; NULL: none */
    uint64_t incarnation, memory, extra_latency_ms, frozen_until_ms, crashed_ms, hung_ms, facts_ms;
    int64_t skew_ms;
    int protocol; /* that it speaks; 0: this one */
    bool hung, abandoned, whole[SIM_MAX_MODELS], replica[SIM_MAX_MODELS];
    unsigned n_replied;
    struct cluster_key keys[CLUSTER_MAX_KEYS];
    size_t n_keys;
    struct rank ranks[MAX_RANKS];
    struct work_here works[MAX_WORKS];
    struct store_object store[STORE_OBJECTS];
    uint64_t chunks_from;
    double rates[SIM_NETWORKS]; /* of its interfaces, bytes a second; 0: down */
    const char *pin;            /* the interface that it wants data to go over */
    unsigned n_gone;            /* places that it was told are gone */
};

struct sim {
    struct sim_options options;
    uint64_t random, now_ms, order;
    struct sim_node nodes[SIM_MAX_NODES];
    struct cluster_model models[SIM_MAX_MODELS];
    bool blocked[SIM_MAX_NODES][SIM_MAX_NODES];
    bool beacons;
    struct connection connections[MAX_CONNECTIONS];
    unsigned n_connections;
    uint32_t next_link;
    struct event **heap;
    size_t n_heap, heap_capacity;
    struct event *spare;
    struct sim_request requests[SIM_MAX_REQUESTS];
    unsigned n_requests;
    bool forgetting; /* the user said that slices go */
    char fault[512];
    struct sim_counts counts;
    struct sim_question asked;
    struct sim_answered answered;
};

static void set_facts(struct sim *sim, struct sim_node *node);

static const struct cluster_key first_key = {"key-one", "secret-one"};

/* ---- Randomness, faults ---------------------------------------------------------------------- */

static uint64_t next_random(struct sim *sim)
{
    return hash_mix(sim->random += 0x9e3779b97f4a7c15u);
}

uint64_t sim_random(struct sim *sim, uint64_t below)
{
    return below == 0 ? 0 : next_random(sim) % below;
}

static bool chance(struct sim *sim, unsigned percent)
{
    return sim_random(sim, 100) < percent;
}

void sim_fail(struct sim *sim, const char *format, ...)
{
    if (sim->fault[0] != 0)
        return;
    int n = snprintf(sim->fault, sizeof sim->fault, "at %" PRIu64 " ms: ", sim->now_ms);
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(sim->fault + n, sizeof sim->fault - (size_t)n, format, arguments);
    va_end(arguments);
}

static void trace(struct sim *sim, const struct sim_node *node, const char *format, ...)
    BASE_PRINTF(3, 4);

static void trace(struct sim *sim, const struct sim_node *node, const char *format, ...)
{
    if (!sim->options.trace)
        return;
    printf("# %8.3f %-4s ", (double)sim->now_ms / 1000, node != NULL ? node->name : "");
    va_list arguments;
    va_start(arguments, format);
    vprintf(format, arguments);
    va_end(arguments);
    printf("\n");
}

const struct sim_question *sim_asked(const struct sim *sim)
{
    return &sim->asked;
}

const struct sim_answered *sim_answered(const struct sim *sim)
{
    return &sim->answered;
}

const char *sim_fault(const struct sim *sim)
{
    return sim->fault[0] != 0 ? sim->fault : NULL;
}

/* ---- Events ---------------------------------------------------------------------------------- */

static bool before(const struct event *a, const struct event *b)
{
    return a->time_ms != b->time_ms ? a->time_ms < b->time_ms : a->order < b->order;
}

static struct event *event_new(struct sim *sim, enum event_kind kind, unsigned node)
{
    struct event *event = sim->spare;
    if (event != NULL)
        sim->spare = *(struct event **)(void *)event->text;
    else
        event = malloc(sizeof *event);
    assert(event != NULL);
    memset(event, 0, offsetof(struct event, text));
    event->text[0] = event->key[0] = 0;
    event->kind = kind;
    event->node = node;
    event->generation = sim->nodes[node].generation;
    return event;
}

static void event_free(struct sim *sim, struct event *event)
{
    *(struct event **)(void *)event->text = sim->spare;
    sim->spare = event;
}

static void event_at(struct sim *sim, struct event *event, uint64_t time_ms)
{
    event->time_ms = time_ms;
    event->order = sim->order++;
    if (sim->n_heap == sim->heap_capacity) {
        sim->heap_capacity = MAX(sim->heap_capacity * 2, (size_t)256);
        sim->heap = realloc(sim->heap, sim->heap_capacity * sizeof *sim->heap);
        assert(sim->heap != NULL);
    }
    size_t at = sim->n_heap++;
    while (at > 0 && before(event, sim->heap[(at - 1) / 2])) {
        sim->heap[at] = sim->heap[(at - 1) / 2];
        at = (at - 1) / 2;
    }
    sim->heap[at] = event;
}

static struct event *event_next(struct sim *sim)
{
    struct event *first = sim->heap[0], *last = sim->heap[--sim->n_heap];
    size_t at = 0;
    for (;;) {
        size_t child = 2 * at + 1;
        if (child >= sim->n_heap)
            break;
        if (child + 1 < sim->n_heap && before(sim->heap[child + 1], sim->heap[child]))
            child++;
        if (before(last, sim->heap[child]))
            break;
        sim->heap[at] = sim->heap[child];
        at = child;
    }
    if (sim->n_heap > 0)
        sim->heap[at] = last;
    return first;
}

/* ---- Network --------------------------------------------------------------------------------- */

static uint64_t latency(struct sim *sim, unsigned a, unsigned b)
{
    uint64_t ms =
        sim->options.latency_ms + sim->nodes[a].extra_latency_ms + sim->nodes[b].extra_latency_ms;
    return sim_random(sim, ms + 1);
}

static bool reachable(const struct sim *sim, unsigned a, unsigned b)
{
    return !sim->blocked[a][b] && !sim->blocked[b][a];
}

static void pump_at(struct sim *sim, struct connection *connection, unsigned end, uint64_t time_ms)
{
    if (connection->sides[end].pumping)
        return;
    connection->sides[end].pumping = true;
    struct event *event = event_new(sim, EVENT_PUMP, 0);
    event->connection = (unsigned)(connection - sim->connections);
    event->end = end;
    event_at(sim, event, time_ms);
}

/* To the end `end`. Takes the reference. */
static void post(struct sim *sim, struct connection *connection, unsigned end, json_t *message)
{
    struct side *side = &connection->sides[end];
    if (side->dead || side->closed) {
        json_decref(message);
        return;
    }
    struct letter *letter = malloc(sizeof *letter);
    assert(letter != NULL);
    uint64_t due = sim->now_ms + latency(sim, side->node, connection->sides[1 - end].node);
    *letter = (struct letter){NULL, MAX(due, side->last_ms), message};
    side->last_ms = letter->due_ms;
    if (side->in == NULL)
        side->in_last = &side->in;
    *side->in_last = letter;
    side->in_last = &letter->next;
    pump_at(sim, connection, end, letter->due_ms);
}

static void letters_free(struct side *side)
{
    while (side->in != NULL) {
        struct letter *letter = side->in;
        side->in = letter->next;
        json_decref(letter->message);
        free(letter);
    }
}

static void close_side(struct side *side)
{
    side->closed = true;
    side->up = false;
    letters_free(side);
}

static void connection_reap(struct connection *connection)
{
    if (connection->sides[0].closed && connection->sides[1].closed &&
        !connection->sides[0].pumping && !connection->sides[1].pumping)
        connection->used = false;
}

static struct connection *find_link(struct sim *sim, unsigned node, uint32_t link, unsigned *end)
{
    for (unsigned i = 0; i < sim->n_connections; i++)
        for (*end = 0; *end < 2; ++*end) {
            struct side *side = &sim->connections[i].sides[*end];
            if (sim->connections[i].used && !side->closed && side->link == link &&
                side->node == node)
                return &sim->connections[i];
        }
    return NULL;
}

/* ---- The environment of a core --------------------------------------------------------------- */

static uint64_t env_now(void *context)
{
    struct sim_node *node = context;
    return node->sim->now_ms + 1000 * (node->index + 1);
}

static uint64_t env_wall(void *context)
{
    struct sim_node *node = context;
    return (uint64_t)(WALL_MS + (int64_t)node->sim->now_ms + node->skew_ms);
}

static uint64_t env_random(void *context)
{
    struct sim_node *node = context;
    return next_random(node->sim);
}

static void place_text(char *out, size_t size, unsigned node, unsigned network)
{
    snprintf(out, size, "10.%u.0.%u:1", network + 1, node); /* 10.0 is for what is always there */
}

/* The network that an address is in, where the node can be reached; SIM_NETWORKS: none. */
static unsigned network_of(const struct sim_node *node, const char *address)
{
    char text[CLUSTER_ADDRESS_BYTES];
    unsigned network = 0;
    for (; network < SIM_NETWORKS; network++) {
        place_text(text, sizeof text, node->index, network);
        if (node->rates[network] > 0 && strcmp(text, address) == 0)
            break;
    }
    return network;
}

static bool is_at(const struct sim_node *node, const char *address)
{
    return strcmp(node->address, address) == 0 || network_of(node, address) < SIM_NETWORKS;
}

static void env_connect(void *context, const char *address, const char *key_id)
{
    struct sim_node *node = context;
    struct sim *sim = node->sim;
    unsigned other = 0;
    while (other < sim->options.n_nodes && !is_at(&sim->nodes[other], address))
        other++;
    if (other == sim->options.n_nodes)
        other = node->index;
    trace(sim, node, "dials %s with %s", address, key_id);
    struct event *event = event_new(sim, EVENT_DIALLED, node->index);
    event->other = other;
    text_copy(event->text, sizeof event->text, address);
    text_copy(event->key, sizeof event->key, key_id);
    event_at(sim, event, sim->now_ms + latency(sim, node->index, other) + 1);
}

static void env_send(void *context, uint32_t link, json_t *message)
{
    struct sim_node *node = context;
    struct sim *sim = node->sim;
    unsigned end;
    struct connection *connection = find_link(sim, node->index, link, &end);
    if (connection == NULL) {
        sim_fail(sim, "%s sends on a link that is closed", node->name);
        return;
    }
    if (sim->counts.messages++ % 512 == 0) {
        size_t size = json_dumpb(message, NULL, 0, JSON_COMPACT);
        if (size > CLUSTER_MESSAGE_BYTES || size == 0)
            sim_fail(sim, "%s sends a message of %zu bytes", node->name, size);
    }
    post(sim, connection, 1 - end, json_incref(message));
}

static void env_drop(void *context, uint32_t link, const char *reason)
{
    struct sim_node *node = context;
    unsigned end;
    struct connection *connection = find_link(node->sim, node->index, link, &end);
    if (connection == NULL) {
        sim_fail(node->sim, "%s drops a link that is closed: %s", node->name, reason);
        return;
    }
    post(node->sim, connection, 1 - end, NULL);
    close_side(&connection->sides[end]);
    connection_reap(connection);
}

static void env_save(void *context, json_t *saved)
{
    struct sim_node *node = context;
    json_decref(node->saved);
    node->saved = json_deep_copy(saved);
}

static void env_keys(void *context, const struct cluster_key *keys, size_t n_keys)
{
    struct sim_node *node = context;
    memcpy(node->keys, keys, n_keys * sizeof *keys);
    node->n_keys = n_keys;
}

static void env_measure(void *context, struct cluster_id id, const struct cluster_way *way)
{
    struct sim_node *node = context;
    struct event *event = event_new(node->sim, EVENT_MEASURED, node->index);
    event->a = id.high;
    event->b = id.low;
    event->way = *way;
    event_at(node->sim, event, node->sim->now_ms + 300);
}

/* The slower interface of both is the rate; an address that was always there is one of 1 GB/s. */
static void happen_measured(struct sim *sim, struct sim_node *node, const struct event *event)
{
    struct cluster_id id = {event->a, event->b};
    double rate = 1e9;
    for (unsigned i = 0; i < sim->options.n_nodes && event->way.interface[0] != 0; i++) {
        unsigned network = network_of(&sim->nodes[i], event->way.address);
        if (cluster_id_equal(sim->nodes[i].id, id))
            rate = network < SIM_NETWORKS ? MIN(sim->nodes[i].rates[network], node->rates[network])
                                          : 0;
    }
    enum cluster_measure_result result = rate > 0 ? CLUSTER_MEASURED : CLUSTER_MEASURE_FAILED;
    if (sim->options.faults && chance(sim, 20))
        result = chance(sim, 50) ? CLUSTER_MEASURE_BUSY : CLUSTER_MEASURE_FAILED;
    cluster_core_measured(node->core, id, &event->way, result, 50, rate, "eth");
}

static void env_place_gone(void *context, struct cluster_id id, const char *address)
{
    struct sim_node *node = context;
    (void)id, (void)address;
    node->n_gone++;
}

static void env_log(void *context, const char *line)
{
    struct sim_node *node = context;
    trace(node->sim, node, "%s", line);
}

/* ---- Memory and engines ---------------------------------------------------------------------- */

static unsigned model_of(const struct sim *sim, const char *object)
{
    unsigned model = 0;
    while (model < sim->options.n_models &&
           strncmp(sim->models[model].sha, object, CLUSTER_SHA_TEXT - 1) != 0)
        model++;
    return model;
}

/* ---- Which layers an object has, told apart from what the core makes of its name ------------- */

/* A slice of the simulation: layers, and one of the shards of a stage. */
struct part {
    unsigned first, end, shard, n_shards;
};

static bool part_of(const char *object, struct part *out)
{
    const char *slash = strchr(object, '/');
    *out = (struct part){0, SIM_LAYERS, 0, 1};
    return slash == NULL || sscanf(slash + 1, "%u-%u.%u.%u", &out->first, &out->end, &out->shard,
                                   &out->n_shards) == 4;
}

/* What is held of each layer: all of it, or shards of one kind of stage. */
struct layers {
    bool whole[SIM_LAYERS];
    struct part stages[STORE_OBJECTS];
    uint32_t found[STORE_OBJECTS];
    size_t n_stages;
};

static void add_layers(struct layers *layers, const char *object)
{
    struct part part;
    size_t at = 0;
    if (!part_of(object, &part))
        return;
    while (at < layers->n_stages &&
           (layers->stages[at].first != part.first || layers->stages[at].end != part.end ||
            layers->stages[at].n_shards != part.n_shards))
        at++;
    if (at == layers->n_stages) {
        if (at == STORE_OBJECTS)
            return;
        layers->stages[layers->n_stages++] = part;
        layers->found[at] = 0;
    }
    layers->found[at] |= 1u << part.shard;
    for (unsigned i = part.first; layers->found[at] == (1u << part.n_shards) - 1 && i < part.end;
         i++)
        layers->whole[i] = true;
}

static bool has_layers(const struct layers *layers, const char *object)
{
    struct part part;
    if (!part_of(object, &part) || strchr(object, '/') == NULL)
        return false;
    for (unsigned i = part.first; i < part.end; i++)
        if (!layers->whole[i])
            return false;
    return true;
}

/* Whether any of the nodes of a plan has the object, or all together its layers. */
static bool holder(const struct cluster_plan_input *input, const char *object)
{
    struct layers layers = {.n_stages = 0};
    for (uint32_t i = 0; i < input->n_nodes; i++) {
        if (input->nodes[i].holds_model)
            return true;
        for (uint32_t k = 0; k < input->nodes[i].n_objects; k++) {
            if (strcmp(input->nodes[i].objects[k], object) == 0)
                return true;
            add_layers(&layers, input->nodes[i].objects[k]);
        }
    }
    return has_layers(&layers, object);
}

/* Models take turns in how they are cut. */
static void slice_name(const struct sim *sim, const char *sha, uint32_t n, uint32_t i,
                       char out[CLUSTER_OBJECT_BYTES])
{
    if (model_of(sim, sha) % 2 == 0)
        snprintf(out, CLUSTER_OBJECT_BYTES, "%s/%u-%u.0.1.1", sha, SIM_LAYERS * i / n,
                 SIM_LAYERS * (i + 1) / n);
    else
        snprintf(out, CLUSTER_OBJECT_BYTES, "%s/0-%u.%u.%u.1", sha, SIM_LAYERS, i, n);
}

/* The fewest nodes that hold the model in equal parts, this one among them where it must be. */
static enum status env_plan(void *context, const struct cluster_plan_input *input,
                            struct cluster_plan *out, struct error *error)
{
    struct sim_node *node = context;
    struct sim *sim = node->sim;
    uint64_t need = sim->options.models[model_of(sim, input->model->sha)], most = 0;
    bool possible = false;
    for (uint32_t n = 1; n <= input->n_nodes; n++) {
        uint64_t part = need / n + 1;
        uint32_t chosen[CLUSTER_MAX_NODES], n_chosen = 0, n_possible = 0;
        for (uint32_t i = 0; i < input->n_nodes; i++) {
            most = MAX(most, input->nodes[i].free_bytes);
            n_possible += input->nodes[i].facts->memory_limit_bytes >= part;
            if (input->nodes[i].free_bytes >= part && n_chosen < n)
                chosen[n_chosen++] = i;
        }
        possible = possible || n_possible >= n;
        bool self = n_chosen > 0 && cluster_id_equal(input->nodes[chosen[0]].id, input->owner);
        if (n_chosen < n || (input->owner_fixed && !self))
            continue;
        *out = (struct cluster_plan){.n_members = n, .spec = json_pack("{s:i}", "n", (int)n)};
        for (uint32_t i = 0; i < n; i++) {
            struct cluster_member *member = &out->members[i];
            member->node = input->nodes[chosen[i]].id;
            member->bytes = part;
            slice_name(sim, input->model->sha, n, i, member->slice);
            member->slice_bytes = sim_object_bytes(member->slice);
            text_copy(member->object, sizeof member->object,
                      input->nodes[chosen[i]].holds_model ? input->model->sha : member->slice);
            if (!holder(input, member->object)) {
                json_decref(out->spec);
                return error_set(error, STATUS_NOT_FOUND, "no node has %s", input->model->name);
            }
        }
        return STATUS_OK;
    }
    return error_set(error, possible ? STATUS_MEMORY : STATUS_LIMIT,
                     "%s needs %llu bytes, at most %llu are free on a node", input->model->name,
                     (unsigned long long)need, (unsigned long long)most);
}

static struct rank *find_rank(struct sim_node *node, uint64_t instance, uint32_t epoch)
{
    for (size_t i = 0; i < MAX_RANKS; i++) {
        struct rank *rank = &node->ranks[i];
        if ((rank->reserved || rank->open || rank->opening || rank->closing) &&
            rank->instance == instance && rank->epoch == epoch)
            return rank;
    }
    return NULL;
}

uint64_t sim_reserved(const struct sim *sim, unsigned index)
{
    uint64_t sum = 0;
    for (size_t i = 0; i < MAX_RANKS; i++) {
        const struct rank *rank = &sim->nodes[index].ranks[i];
        if (rank->reserved || rank->open || rank->opening || rank->closing)
            sum += rank->bytes;
    }
    return sum;
}

static bool env_reserve(void *context, uint64_t instance, uint32_t epoch, uint64_t bytes)
{
    struct sim_node *node = context;
    if (find_rank(node, instance, epoch) != NULL)
        sim_fail(node->sim, "%s grants the same twice", node->name);
    if (node->sim->options.faults && chance(node->sim, 2))
        return false;
    for (size_t i = 0; i < MAX_RANKS; i++) {
        struct rank *rank = &node->ranks[i];
        if (rank->reserved || rank->open || rank->opening || rank->closing)
            continue;
        *rank =
            (struct rank){.instance = instance, .epoch = epoch, .bytes = bytes, .reserved = true};
        if (sim_reserved(node->sim, node->index) > node->memory)
            sim_fail(node->sim, "%s granted more memory than it has", node->name);
        return true;
    }
    sim_fail(node->sim, "%s granted too much", node->name);
    return false;
}

static void env_release(void *context, uint64_t instance, uint32_t epoch)
{
    struct sim_node *node = context;
    struct rank *rank = find_rank(node, instance, epoch);
    if (rank == NULL || rank->open || rank->opening || rank->closing)
        sim_fail(node->sim, "%s releases what it did not reserve, or what is open", node->name);
    else
        memset(rank, 0, sizeof *rank);
}

static struct store_object *find_object(struct sim_node *node, const char *object)
{
    for (size_t i = 0; i < STORE_OBJECTS; i++)
        if (strcmp(node->store[i].id, object) == 0)
            return &node->store[i];
    return NULL;
}

static uint32_t n_chunks_of(const char *object)
{
    return 1 + (uint32_t)(hash_text(object) % 9);
}

uint64_t sim_object_bytes(const char *object)
{
    return (uint64_t)n_chunks_of(object) * CLUSTER_CHUNK_BYTES - 17;
}

static bool is_complete(const struct store_object *stored)
{
    return stored->id[0] != 0 && stored->have == (1u << n_chunks_of(stored->id)) - 1;
}

static bool node_has(struct sim_node *node, const char *object, uint32_t chunk)
{
    unsigned model = model_of(node->sim, object);
    if (model < node->sim->options.n_models && node->whole[model])
        return true;
    const struct store_object *stored = find_object(node, object);
    if (stored != NULL && (is_complete(stored) ||
                           (chunk != CLUSTER_CHUNK_MANIFEST && (stored->have >> chunk & 1) != 0)))
        return true;
    struct layers layers = {.n_stages = 0};
    for (size_t i = 0; i < STORE_OBJECTS; i++)
        if (is_complete(&node->store[i]) && model_of(node->sim, node->store[i].id) == model)
            add_layers(&layers, node->store[i].id);
    return has_layers(&layers, object);
}

/* As a file: the object, or the model. */
static bool env_has(void *context, const char *object)
{
    struct sim_node *node = context;
    unsigned model = model_of(node->sim, object);
    const struct store_object *stored = find_object(node, object);
    return (model < node->sim->options.n_models && node->whole[model]) ||
           (stored != NULL && is_complete(stored));
}

bool sim_covered(struct sim *sim, const char *object, unsigned but)
{
    struct layers layers = {.n_stages = 0};
    unsigned model = model_of(sim, object);
    for (unsigned n = 0; n < sim->options.n_nodes; n++) {
        struct sim_node *node = &sim->nodes[n];
        if (n == but || node->core == NULL)
            continue;
        if (node_has(node, object, CLUSTER_CHUNK_MANIFEST))
            return true;
        for (size_t i = 0; i < STORE_OBJECTS; i++)
            if (is_complete(&node->store[i]) && model_of(sim, node->store[i].id) == model)
                add_layers(&layers, node->store[i].id);
    }
    return has_layers(&layers, object);
}

bool sim_holds(struct sim *sim, unsigned node, const char *object)
{
    return node_has(&sim->nodes[node], object, CLUSTER_CHUNK_MANIFEST);
}

void sim_lost(struct sim *sim, bool counts)
{
    sim->counts.lost += counts;
}

void sim_age_objects(struct sim *sim, unsigned node, uint64_t seconds)
{
    for (size_t i = 0; i < STORE_OBJECTS; i++)
        sim->nodes[node].store[i].used_s -= MIN(sim->nodes[node].store[i].used_s, seconds);
    if (sim->nodes[node].core != NULL)
        set_facts(sim, &sim->nodes[node]);
}

static uint64_t disk_left(const struct sim_node *node)
{
    uint64_t all = node->sim->options.disk[node->index], used = 0;
    all = all != 0 ? all : (uint64_t)1 << 40;
    for (size_t i = 0; i < STORE_OBJECTS; i++)
        for (uint32_t chunk = 0; node->store[i].id[0] != 0 && chunk < 32; chunk++)
            used += (node->store[i].have >> chunk & 1) * (uint64_t)CLUSTER_CHUNK_BYTES;
    return all > used ? all - used : 0;
}

const char *sim_single(struct sim *sim)
{
    for (unsigned n = 0; n < sim->options.n_nodes; n++)
        for (size_t i = 0; sim->nodes[n].core != NULL && i < CLUSTER_MAX_INSTANCES; i++) {
            const struct instance *instance = &sim->nodes[n].core->instances[i];
            for (uint32_t k = 0;
                 instance->state == INSTANCE_RUNNING && k < instance->plan.n_members; k++) {
                const char *slice = instance->plan.members[k].slice;
                uint64_t size = sim_object_bytes(slice);
                bool single = false, room = false;
                for (unsigned a = 0; a < sim->options.n_nodes; a++) {
                    single = single || (sim->nodes[a].core != NULL && !sim_covered(sim, slice, a));
                    room = room || (sim->nodes[a].core != NULL && !sim_holds(sim, a, slice) &&
                                    disk_left(&sim->nodes[a]) >=
                                        size + size / COPY_MARGIN_PARTS + DISK_KEEP_BYTES);
                }
                if (single && room)
                    return slice;
            }
        }
    return NULL;
}

static void env_open(void *context, const struct cluster_open *open)
{
    struct sim_node *node = context;
    struct sim *sim = node->sim;
    struct rank *rank = find_rank(node, open->instance, open->epoch);
    if (rank == NULL || rank->open || rank->opening || rank->closing) {
        sim_fail(sim, "%s opens a slice without a grant", node->name);
        return;
    }
    if (rank->bytes != open->bytes || !env_has(node, open->object))
        sim_fail(sim, "%s opens a slice that it does not have", node->name);
    rank->opening = true;
    sim->counts.opened++;
    rank->model = model_of(sim, open->model->sha);
    rank->n_members = open->n_members;
    text_copy(rank->object, sizeof rank->object, open->object);
    memcpy(rank->nodes, open->nodes, sizeof rank->nodes);
    struct event *event = event_new(sim, EVENT_OPENED, node->index);
    event->a = open->instance;
    event->b = open->epoch;
    event_at(sim, event, sim->now_ms + 20 + sim_random(sim, 800));
}

static void stop_works(struct sim_node *node, uint64_t instance, uint32_t epoch)
{
    for (size_t i = 0; i < MAX_WORKS; i++)
        if (node->works[i].instance == instance && node->works[i].epoch == epoch)
            node->works[i].id = 0;
}

static void env_close(void *context, uint64_t instance, uint32_t epoch)
{
    struct sim_node *node = context;
    struct sim *sim = node->sim;
    struct rank *rank = find_rank(node, instance, epoch);
    if (rank == NULL || rank->closing || !(rank->open || rank->opening)) {
        sim_fail(sim, "%s closes what is not open", node->name);
        return;
    }
    rank->open = rank->opening = false;
    rank->closing = true;
    stop_works(node, instance, epoch);
    struct event *event = event_new(sim, EVENT_CLOSED, node->index);
    event->a = instance;
    event->b = epoch;
    event_at(sim, event, sim->now_ms + 10 + sim_random(sim, 500));
}

static void env_fetch(void *context, const char *object, uint32_t chunk, struct cluster_id source)
{
    struct sim_node *node = context;
    struct sim *sim = node->sim;
    struct store_object *stored = find_object(node, object);
    if (stored != NULL && chunk != CLUSTER_CHUNK_MANIFEST && (stored->have >> chunk & 1) != 0)
        sim->counts.chunks_again++;
    struct event *event = event_new(sim, EVENT_FETCHED, node->index);
    event->a = chunk;
    event->other = 0;
    while (event->other < sim->options.n_nodes &&
           !cluster_id_equal(sim->nodes[event->other].id, source))
        event->other++;
    text_copy(event->text, sizeof event->text, object);
    event_at(sim, event, sim->now_ms + 5 + sim_random(sim, CHUNK_MS));
}

static void env_fetched(void *context, const char *object, const char *model)
{
    struct sim_node *node = context;
    struct store_object *stored = find_object(node, object);
    (void)model;
    if (!env_has(node, object))
        sim_fail(node->sim, "%s takes an object for whole that is not", node->name);
    if (stored != NULL)
        stored->used_s = env_wall(node) / 1000;
}

/* All run, and the links between them are free: what they know of each other is true, but for what
 * is on its way. */
static bool all_here(struct sim *sim)
{
    for (unsigned n = 0; n < sim->options.n_nodes; n++)
        if (sim->nodes[n].core == NULL || sim->nodes[n].frozen_until_ms > sim->now_ms)
            return false;
    return sim_all_linked(sim);
}

/* What a rank computes with, or what no other node has, may not go. */
static void env_remove(void *context, const char *object)
{
    struct sim_node *node = context;
    struct sim *sim = node->sim;
    struct store_object *stored = find_object(node, object);
    trace(sim, node, "removes %s", object);
    if (stored == NULL)
        sim_fail(sim, "%s removes what it does not have", node->name);
    else
        memset(stored, 0, sizeof *stored);
    sim->counts.removed++;
    for (size_t i = 0; i < MAX_RANKS; i++) {
        const struct rank *rank = &node->ranks[i];
        if ((rank->open || rank->opening) && strcmp(rank->object, object) == 0)
            sim_fail(sim, "%s removes a slice that it computes with", node->name);
    }
    if (!sim->forgetting && all_here(sim) && !sim_covered(sim, object, SIM_NOBODY))
        sim_fail(sim, "%s removes the last copy of %s", node->name, object);
}

/* ---- Requests -------------------------------------------------------------------------------- */

static int32_t token_of(uint32_t seed, uint32_t index)
{
    return (int32_t)(hash_mix((uint64_t)seed << 32 | index) & 0xffff);
}

static bool has_replica(const struct sim_node *node, const char *sha)
{
    for (unsigned i = 0; i < node->sim->options.n_models; i++)
        if (node->replica[i] && strcmp(node->sim->models[i].sha, sha) == 0)
            return true;
    return false;
}

static void env_start(void *context, const struct cluster_work *work)
{
    struct sim_node *node = context;
    struct sim *sim = node->sim;
    const struct rank *rank = find_rank(node, work->instance, work->epoch);
    if (work->instance == 0)
        node->n_replied += has_replica(node, work->sha);
    else if (rank == NULL || !rank->open)
        sim_fail(sim, "%s starts work on an instance that is not open", node->name);
    size_t at = 0;
    while (at < MAX_WORKS && node->works[at].id != 0)
        at++;
    assert(at < MAX_WORKS);
    struct work_here *here = &node->works[at];
    *here = (struct work_here){.id = work->work,
                               .instance = work->instance,
                               .epoch = work->epoch,
                               .refused = work->instance == 0 && !has_replica(node, work->sha),
                               .n_done = (uint32_t)work->n_tokens};
    here->seed = (uint32_t)json_integer_value(json_object_get(work->payload, "seed"));
    here->n_wanted = (uint32_t)json_integer_value(json_object_get(work->payload, "n"));
    sim->counts.continued += work->n_tokens > 0;
    for (uint32_t i = 0; i < work->n_tokens; i++)
        if (work->tokens[i] != token_of(here->seed, i))
            sim_fail(sim, "%s continues after tokens that never were", node->name);
    struct event *event = event_new(sim, EVENT_STEP, node->index);
    event->a = work->work;
    event_at(sim, event, sim->now_ms + 5 + sim_random(sim, 40));
}

static void env_cancel(void *context, uint64_t work)
{
    struct sim_node *node = context;
    for (size_t i = 0; i < MAX_WORKS; i++)
        if (node->works[i].id == work)
            node->works[i].id = 0;
}

static struct sim_request *request_of(struct sim_node *node, uint64_t id)
{
    for (unsigned i = 0; i < node->sim->n_requests; i++) {
        struct sim_request *request = &node->sim->requests[i];
        if (request->node == node->index && request->id == id && request->answer != SIM_GONE)
            return request;
    }
    return NULL;
}

static void env_token(void *context, uint64_t id, uint32_t index, int32_t token, const json_t *data)
{
    struct sim_node *node = context;
    struct sim *sim = node->sim;
    struct sim_request *request = request_of(node, id);
    (void)data;
    if (request == NULL || request->answer != SIM_WAITING)
        sim_fail(sim, "%s gives a token to a request that is over", node->name);
    else if (index != request->n_tokens)
        sim_fail(sim, "%s gives token %u where %u is due", node->name, index, request->n_tokens);
    else if (token != token_of(request->seed, index))
        sim_fail(sim, "%s gives another request's token", node->name);
    else
        request->n_tokens++;
}

static void env_end(void *context, uint64_t id, enum status status, const char *reason,
                    const json_t *data)
{
    struct sim_node *node = context;
    struct sim *sim = node->sim;
    struct sim_request *request = request_of(node, id);
    (void)data;
    if (request == NULL || request->answer != SIM_WAITING) {
        sim_fail(sim, "%s ends a request twice", node->name);
        return;
    }
    if (status == STATUS_OK && request->n_tokens != request->n_wanted)
        sim_fail(sim, "%s ends an answer after %u of %u tokens", node->name, request->n_tokens,
                 request->n_wanted);
    if (status != STATUS_OK && reason[0] == 0)
        sim_fail(sim, "%s gives an error without a reason", node->name);
    request->answer = status == STATUS_OK ? SIM_ANSWERED : SIM_ERROR;
    if (status == STATUS_OK)
        sim->counts.answered++;
    else
        sim->counts.errors++;
    request->ended_ms = sim->now_ms;
    text_copy(request->reason, sizeof request->reason, reason);
    trace(sim, node, "request ends after %u tokens: %s %s", request->n_tokens, status_text(status),
          reason);
}

static bool env_ask(void *context, struct cluster_id from, uint64_t question, const char *what,
                    const json_t *query)
{
    struct sim_node *node = context;
    struct sim_question *asked = &node->sim->asked;
    (void)query;
    *asked = (struct sim_question){.at = node->index, .from = from, .question = question};
    text_copy(asked->what, sizeof asked->what, what);
    return strcmp(what, "nothing") != 0;
}

static void env_answered(void *context, uint64_t question, const json_t *body, const char *reason)
{
    struct sim_node *node = context;
    struct sim_answered *answered = &node->sim->answered;
    *answered = (struct sim_answered){
        .at = node->index, .n = answered->n + 1, .question = question, .good = body != NULL};
    answered->value = (int)json_integer_value(json_object_get(body, "n"));
    text_copy(answered->reason, sizeof answered->reason, body == NULL ? reason : "");
}

static const struct cluster_env environment = {.now_ms = env_now,
                                               .wall_ms = env_wall,
                                               .random = env_random,
                                               .connect = env_connect,
                                               .send = env_send,
                                               .drop = env_drop,
                                               .save = env_save,
                                               .keys = env_keys,
                                               .measure = env_measure,
                                               .place_gone = env_place_gone,
                                               .plan = env_plan,
                                               .reserve = env_reserve,
                                               .release = env_release,
                                               .has = env_has,
                                               .fetch = env_fetch,
                                               .fetched = env_fetched,
                                               .remove = env_remove,
                                               .open = env_open,
                                               .close = env_close,
                                               .start = env_start,
                                               .cancel = env_cancel,
                                               .token = env_token,
                                               .end = env_end,
                                               .ask = env_ask,
                                               .answered = env_answered,
                                               .log = env_log};

int sim_submit(struct sim *sim, unsigned index, unsigned model, uint32_t n_tokens)
{
    struct sim_node *node = &sim->nodes[index];
    if (node->core == NULL || sim->n_requests == SIM_MAX_REQUESTS)
        return -1;
    struct sim_request *request = &sim->requests[sim->n_requests];
    *request = (struct sim_request){.node = index,
                                    .model = model,
                                    .n_wanted = n_tokens,
                                    .seed = (uint32_t)next_random(sim) >> 1,
                                    .begun_ms = sim->now_ms};
    json_t *payload =
        json_pack("{s:I, s:i}", "seed", (json_int_t)request->seed, "n", (int)n_tokens);
    struct error error;
    struct cluster_id to = {0, 0};
    enum cluster_route way =
        cluster_core_replica(node->core, sim->models[model].sha, NULL, 0, 100, &to);
    if (way == CLUSTER_HERE)
        to = node->id;
    enum status status =
        cluster_core_submit_to(node->core, to, &sim->models[model], payload, &request->id, &error);
    json_decref(payload);
    if (status != STATUS_OK)
        return -1;
    trace(sim, node, "request %" PRIu64 " for %s", request->id, sim->models[model].name);
    return (int)sim->n_requests++;
}

static void tell_replicas(struct sim_node *node)
{
    struct cluster_replica list[SIM_MAX_MODELS];
    size_t n = 0;
    for (unsigned i = 0; i < node->sim->options.n_models; i++)
        if (node->replica[i]) {
            list[n] = (struct cluster_replica){.waiting = 0};
            memcpy(list[n++].sha, node->sim->models[i].sha, sizeof list[0].sha);
        }
    cluster_core_set_replicas(node->core, list, n);
}

void sim_set_replica(struct sim *sim, unsigned index, unsigned model, bool open)
{
    struct sim_node *node = &sim->nodes[index];
    if (node->core == NULL)
        return;
    node->replica[model] = open;
    tell_replicas(node);
}

unsigned sim_n_replied(const struct sim *sim, unsigned node)
{
    return sim->nodes[node].n_replied;
}

void sim_cancel(struct sim *sim, int index)
{
    struct sim_request *request = &sim->requests[index];
    struct sim_node *node = &sim->nodes[request->node];
    if (request->answer != SIM_WAITING || node->core == NULL)
        return;
    cluster_core_cancel(node->core, request->id);
    request->answer = SIM_CANCELLED;
}

const struct sim_request *sim_request(const struct sim *sim, int request)
{
    return &sim->requests[request];
}

unsigned sim_n_requests(const struct sim *sim)
{
    return sim->n_requests;
}

/* ---- What happens ---------------------------------------------------------------------------- */

/* Both ends come up, each at its time. */
static void connect_nodes(struct sim *sim, unsigned from, unsigned to, const char *key)
{
    unsigned at = 0;
    while (at < MAX_CONNECTIONS && sim->connections[at].used)
        at++;
    assert(at < MAX_CONNECTIONS);
    sim->n_connections = MAX(sim->n_connections, at + 1);
    struct connection *connection = &sim->connections[at];
    memset(connection, 0, sizeof *connection);
    connection->used = true;
    text_copy(connection->key, sizeof connection->key, key);
    for (unsigned end = 0; end < 2; end++) {
        unsigned index = end == 0 ? from : to;
        connection->sides[end] = (struct side){
            .node = index, .generation = sim->nodes[index].generation, .link = ++sim->next_link};
        struct event *event = event_new(sim, EVENT_UP, index);
        event->connection = at;
        event->end = end;
        event->a = connection->sides[end].link;
        event_at(sim, event, sim->now_ms + latency(sim, from, to));
    }
}

static void happen_dialled(struct sim *sim, const struct event *event)
{
    struct sim_node *node = &sim->nodes[event->node], *other = &sim->nodes[event->other];
    const char *reason = NULL;
    if (!reachable(sim, event->node, event->other) || other->frozen_until_ms > sim->now_ms)
        return; /* the core waits in vain */
    if (node == other || other->core == NULL)
        reason = "connection refused";
    bool known = false;
    for (size_t i = 0; i < other->n_keys; i++)
        known = known || strcmp(other->keys[i].id, event->key) == 0;
    if (reason == NULL && !known)
        reason = "it has another key";
    if (reason != NULL)
        cluster_core_connect_failed(node->core, event->text, reason);
    else if (cluster_core_wanted(node->core, event->text))
        connect_nodes(sim, event->node, event->other, event->key);
}

static void happen_up(struct sim *sim, const struct event *event)
{
    struct connection *connection = &sim->connections[event->connection];
    struct side *side = &connection->sides[event->end];
    struct side *peer = &connection->sides[1 - event->end];
    struct sim_node *node = &sim->nodes[side->node], *other = &sim->nodes[peer->node];
    if (!connection->used || side->closed || side->link != event->a)
        return;
    side->up = true;
    /* A process that is gone said hello before; what follows of it is the end. */
    json_t *hello = other->core != NULL && other->generation == peer->generation
                        ? cluster_core_hello(other->core, connection->key)
                        : NULL;
    if (hello == NULL) {
        close_side(side);
        connection_reap(connection);
        if (event->end == 0)
            cluster_core_connect_failed(node->core, other->address, "connection reset");
        return;
    }
    if (other->protocol != 0)
        json_object_set_new(hello, "protocol", json_integer(other->protocol));
    cluster_core_link_up(node->core, side->link, event->end == 0, other->address, connection->key,
                         hello);
    json_decref(hello);
}

static void happen_pump(struct sim *sim, const struct event *event)
{
    struct connection *connection = &sim->connections[event->connection];
    struct side *side = &connection->sides[event->end];
    const unsigned from = connection->sides[1 - event->end].node, to = side->node;
    side->pumping = false;
    bool frozen = sim->nodes[to].frozen_until_ms > sim->now_ms;
    while (side->in != NULL && !side->closed) {
        if (side->in->due_ms > sim->now_ms || frozen || sim->blocked[from][to] || !side->up) {
            pump_at(sim, connection, event->end, MAX(side->in->due_ms, sim->now_ms + RETRY_MS));
            return;
        }
        struct letter *letter = side->in;
        side->in = letter->next;
        struct cluster_core *core = sim->nodes[to].core;
        uint32_t link = side->link;
        if (letter->message == NULL) {
            close_side(side);
            cluster_core_link_down(core, link, "the other side closed it");
        } else
            cluster_core_message(core, link, letter->message);
        json_decref(letter->message);
        free(letter);
    }
    connection_reap(connection);
}

static bool member_lives(struct sim *sim, const struct rank *rank, uint32_t member)
{
    for (unsigned i = 0; i < sim->options.n_nodes; i++) {
        struct sim_node *node = &sim->nodes[i];
        if (!cluster_id_equal(node->id, rank->nodes[member]) || node->core == NULL)
            continue;
        const struct rank *its = find_rank(node, rank->instance, rank->epoch);
        return its != NULL && its->open && !node->hung && node->frozen_until_ms <= sim->now_ms;
    }
    return false;
}

static void count_step(struct sim *sim, const struct rank *rank)
{
    for (unsigned i = 0; i < sim->options.n_nodes; i++) {
        struct rank *its = find_rank(&sim->nodes[i], rank->instance, rank->epoch);
        if (its != NULL)
            its->steps++;
    }
}

/* One token of one request, where all ranks take part. */
static void happen_step(struct sim *sim, struct event *event)
{
    struct sim_node *node = &sim->nodes[event->node];
    struct work_here *here = NULL;
    for (size_t i = 0; i < MAX_WORKS; i++)
        if (node->works[i].id == event->a && event->a != 0)
            here = &node->works[i];
    const struct rank *rank = here != NULL ? find_rank(node, here->instance, here->epoch) : NULL;
    bool replica = here != NULL && here->instance == 0;
    if (!replica && (rank == NULL || !rank->open))
        return;
    struct event *next = event_new(sim, EVENT_STEP, event->node);
    next->a = event->a;
    event_at(sim, next, sim->now_ms + 10 + sim_random(sim, 60));
    for (uint32_t i = 0; !replica && i < rank->n_members; i++) {
        if (member_lives(sim, rank, i))
            continue;
        if (!sim->options.silent && chance(sim, 3)) { /* the mesh notices */
            struct event *broken = event_new(sim, EVENT_BROKEN, event->node);
            broken->a = rank->instance;
            broken->b = rank->epoch;
            event_at(sim, broken, sim->now_ms + 1);
        }
        return;
    }
    if (!replica)
        count_step(sim, rank);
    uint64_t id = here->id;
    if (here->refused) {
        here->id = 0;
        cluster_core_end(node->core, id, STATUS_NOT_FOUND, "it is closed", NULL);
    } else if (here->n_done < here->n_wanted) {
        uint32_t index = here->n_done++;
        cluster_core_token(node->core, id, index, token_of(here->seed, index), NULL);
    } else {
        here->id = 0;
        cluster_core_end(node->core, id, STATUS_OK, "", NULL);
    }
    if (chance(sim, 70))
        cluster_core_flush(node->core);
}

static void happen_fetched(struct sim *sim, const struct event *event)
{
    struct sim_node *node = &sim->nodes[event->node];
    if (event->other == sim->options.n_nodes)
        return;
    struct sim_node *source = &sim->nodes[event->other];
    uint32_t chunk = (uint32_t)event->a;
    enum cluster_fetch_result result = CLUSTER_FETCHED;
    if (source->core == NULL || !reachable(sim, event->node, event->other) ||
        !node_has(source, event->text, chunk) || (sim->options.faults && chance(sim, 4)))
        result = CLUSTER_FETCH_FAILED;
    else if (sim->options.faults && chance(sim, 2) && chunk != CLUSTER_CHUNK_MANIFEST)
        result = CLUSTER_FETCH_WRONG;
    struct store_object *stored = find_object(node, event->text);
    if (stored == NULL && (stored = find_object(node, "")) != NULL)
        text_copy(stored->id, sizeof stored->id, event->text);
    assert(stored != NULL);
    if (result != CLUSTER_FETCHED || chunk != CLUSTER_CHUNK_MANIFEST) {
        if (result == CLUSTER_FETCHED) {
            stored->have |= 1u << chunk;
            source->chunks_from += source != node;
            sim->counts.chunks++;
        }
        cluster_core_fetched(node->core, event->text, chunk, source->id, result);
        return;
    }
    uint8_t have[2] = {(uint8_t)stored->have, (uint8_t)(stored->have >> 8)};
    cluster_core_manifest(node->core, event->text, source->id, sim_object_bytes(event->text), have);
}

static void happen_opened(struct sim *sim, const struct event *event)
{
    struct sim_node *node = &sim->nodes[event->node];
    struct rank *rank = find_rank(node, event->a, (uint32_t)event->b);
    if (rank == NULL || !rank->opening)
        return;
    bool fails = sim->options.faults && chance(sim, 3);
    rank->opening = false;
    rank->open = !fails;
    cluster_core_opened(node->core, event->a, (uint32_t)event->b, fails ? STATUS_IO : STATUS_OK,
                        fails ? "the mesh did not connect" : "");
}

static void happen_closed(struct sim *sim, const struct event *event)
{
    struct sim_node *node = &sim->nodes[event->node];
    struct rank *rank = find_rank(node, event->a, (uint32_t)event->b);
    if (rank == NULL || !rank->closing)
        return;
    rank->closing = false; /* still reserved, until the core releases it */
    cluster_core_closed(node->core, event->a, (uint32_t)event->b);
}

static void set_facts(struct sim *sim, struct sim_node *node)
{
    struct cluster_facts facts = {.memory_limit_bytes = node->memory,
                                  .disk_free_bytes = disk_left(node),
                                  .read_bandwidth = 1e11,
                                  .flops = 1e12,
                                  .n_threads = 2,
                                  .can_own = true};
    for (unsigned i = 0; i < sim->options.n_models; i++)
        if (node->whole[i])
            facts.models[facts.n_models++] = sim->models[i];
    for (unsigned i = 0; i < SIM_NETWORKS; i++)
        if (node->rates[i] > 0) {
            struct cluster_place *place = &facts.places.at[facts.places.n++];
            *place = (struct cluster_place){.prefix = 24, .order = 1};
            snprintf(place->interface, sizeof place->interface, "net%u", i);
            place_text(place->address, sizeof place->address, node->index, i);
            place->pinned = node->pin != NULL && strcmp(node->pin, place->interface) == 0;
        }
    for (size_t i = 0; i < STORE_OBJECTS; i++)
        if (is_complete(&node->store[i]) && facts.n_objects < CLUSTER_MAX_OBJECTS) {
            struct cluster_object *object = &facts.objects[facts.n_objects++];
            text_copy(object->id, sizeof object->id, node->store[i].id);
            object->size_bytes = sim_object_bytes(object->id);
            object->used_s = node->store[i].used_s;
        }
    cluster_core_set_facts(node->core, &facts);
}

static void tell_steps(struct sim_node *node)
{
    for (size_t i = 0; i < MAX_RANKS; i++) {
        const struct rank *rank = &node->ranks[i];
        if (!rank->open)
            continue;
        bool waiting = node->hung;
        for (size_t k = 0; !waiting && k < MAX_WORKS; k++)
            waiting = node->works[k].id != 0 && node->works[k].instance == rank->instance &&
                      node->works[k].epoch == rank->epoch;
        cluster_core_steps(node->core, rank->instance, rank->epoch, rank->steps, waiting);
    }
}

/* No instance stays for long with a rank that hangs while there is work. */
static void check_hung(struct sim *sim, const struct sim_node *node,
                       const struct instance *instance, const struct sim_node *member)
{
    uint64_t now_ms = env_now((void *)(uintptr_t)node);
    if (member->hung && sim->now_ms - member->hung_ms > HUNG_MEMBER_MS &&
        member->frozen_until_ms == 0 && node->frozen_until_ms == 0 &&
        instance->state == INSTANCE_RUNNING && now_ms - instance->changed_ms > HUNG_MEMBER_MS &&
        now_ms - instance->idle_ms > HUNG_MEMBER_MS && requests_of(node->core, instance) > 0)
        sim_fail(sim, "%s waits for %s, which hangs", node->name, member->name);
}

/* An owner learns of a dead member within a bound. */
static void check_members(struct sim *sim, const struct sim_node *node)
{
    for (size_t i = 0; i < CLUSTER_MAX_INSTANCES; i++) {
        const struct instance *instance = &node->core->instances[i];
        for (uint32_t k = 0; k < instance->plan.n_members; k++)
            for (unsigned n = 0; n < sim->options.n_nodes; n++) {
                const struct sim_node *member = &sim->nodes[n];
                if (cluster_id_equal(member->id, instance->plan.members[k].node) &&
                    member->core == NULL &&
                    sim->now_ms - MAX(member->crashed_ms, node->frozen_until_ms) > DEAD_MEMBER_MS)
                    sim_fail(sim, "%s keeps an instance with %s, which is dead", node->name,
                             member->name);
                if (cluster_id_equal(member->id, instance->plan.members[k].node))
                    check_hung(sim, node, instance, member);
            }
    }
}

static void happen_check(struct sim *sim)
{
    for (unsigned i = 0; i < sim->options.n_nodes; i++) {
        const struct sim_node *node = &sim->nodes[i];
        if (node->core == NULL || node->frozen_until_ms > sim->now_ms)
            continue;
        check_members(sim, node);
        if (sim_reserved(sim, i) > node->memory)
            sim_fail(sim, "%s holds more memory than it has", node->name);
    }
    event_at(sim, event_new(sim, EVENT_CHECK, 0), sim->now_ms + CHECK_MS);
}

static void happen_beacon(struct sim *sim)
{
    event_at(sim, event_new(sim, EVENT_BEACON, 0), sim->now_ms + 1000);
    for (unsigned a = 0; sim->beacons && a < sim->options.n_nodes; a++)
        for (unsigned b = 0; b < sim->options.n_nodes; b++) {
            struct sim_node *from = &sim->nodes[a], *to = &sim->nodes[b];
            if (a != b && from->core != NULL && to->core != NULL && !sim->blocked[a][b] &&
                to->frozen_until_ms <= sim->now_ms && from->frozen_until_ms <= sim->now_ms)
                cluster_core_beacon(to->core, from->id, from->incarnation, from->name,
                                    from->address);
        }
}

static void happen_broken(struct sim_node *node, const struct event *event)
{
    cluster_core_broken(node->core, event->a, (uint32_t)event->b, STATUS_LOST, "the mesh broke");
}

static void handle(struct sim *sim, struct event *event)
{
    struct sim_node *node = &sim->nodes[event->node];
    switch (event->kind) {
    case EVENT_PUMP:
        happen_pump(sim, event);
        return;
    case EVENT_CHECK:
        happen_check(sim);
        return;
    case EVENT_BEACON:
        happen_beacon(sim);
        return;
    default:
        break;
    }
    if (event->generation != node->generation || node->core == NULL)
        return;
    switch (event->kind) {
    case EVENT_TICK:
        tell_steps(node);
        if (node->facts_ms <= sim->now_ms) {
            node->facts_ms = sim->now_ms + FACTS_MS;
            set_facts(sim, node);
        }
        cluster_core_tick(node->core);
        event_at(sim, event_new(sim, EVENT_TICK, event->node), sim->now_ms + CLUSTER_TICK_MS);
        break;
    case EVENT_UP:
        happen_up(sim, event);
        break;
    case EVENT_DIALLED:
        happen_dialled(sim, event);
        break;
    case EVENT_OPENED:
        happen_opened(sim, event);
        break;
    case EVENT_CLOSED:
        happen_closed(sim, event);
        break;
    case EVENT_FETCHED:
        happen_fetched(sim, event);
        break;
    case EVENT_MEASURED:
        happen_measured(sim, node, event);
        break;
    case EVENT_STEP:
        happen_step(sim, event);
        break;
    case EVENT_BROKEN:
        happen_broken(node, event);
        break;
    default:
        break;
    }
}

bool sim_run(struct sim *sim, uint64_t until_ms)
{
    while (sim->fault[0] == 0 && sim->n_heap > 0 && sim->heap[0]->time_ms <= until_ms) {
        struct event *event = event_next(sim);
        sim->now_ms = event->time_ms;
        uint64_t frozen_ms = sim->nodes[event->node].frozen_until_ms;
        if (frozen_ms > sim->now_ms && event->kind != EVENT_PUMP && event->kind != EVENT_CHECK &&
            event->kind != EVENT_BEACON) {
            event_at(sim, event, MIN(frozen_ms, sim->now_ms + RETRY_MS));
            continue;
        }
        handle(sim, event);
        event_free(sim, event);
    }
    if (sim->fault[0] == 0)
        sim->now_ms = MAX(sim->now_ms, until_ms);
    return sim->fault[0] == 0;
}

bool sim_wait(struct sim *sim, uint64_t until_ms, bool (*done)(struct sim *sim))
{
    while (!done(sim)) {
        if (sim->now_ms >= until_ms || !sim_run(sim, sim->now_ms + 100))
            return false;
    }
    return true;
}

/* ---- Nodes ----------------------------------------------------------------------------------- */

struct sim *sim_open(const struct sim_options *options)
{
    struct sim *sim = calloc(1, sizeof *sim);
    assert(sim != NULL);
    sim->options = *options;
    sim->random = options->seed;
    sim->now_ms = 1;
    sim->beacons = true;
    for (unsigned i = 0; i < options->n_models; i++) {
        struct cluster_model *model = &sim->models[i];
        for (int k = 0; k < 4; k++)
            snprintf(model->sha + 16 * k, 17, "%016" PRIx64, next_random(sim));
        snprintf(model->name, sizeof model->name, "model-%u", i);
        model->size_bytes = options->models[i];
    }
    for (unsigned i = 0; i < options->n_nodes; i++) {
        struct sim_node *node = &sim->nodes[i];
        node->sim = sim;
        node->index = i;
        node->id = (struct cluster_id){next_random(sim), next_random(sim)};
        node->memory = options->memory[i];
        snprintf(node->name, sizeof node->name, "n%u", i);
        snprintf(node->address, sizeof node->address, "10.0.0.%u:1", i);
    }
    event_at(sim, event_new(sim, EVENT_CHECK, 0), CHECK_MS);
    event_at(sim, event_new(sim, EVENT_BEACON, 0), 10);
    return sim;
}

void sim_close(struct sim *sim)
{
    for (unsigned i = 0; i < sim->options.n_nodes; i++) {
        cluster_core_close(sim->nodes[i].core);
        json_decref(sim->nodes[i].saved);
    }
    for (unsigned i = 0; i < sim->n_connections; i++)
        for (unsigned end = 0; end < 2; end++)
            letters_free(&sim->connections[i].sides[end]);
    while (sim->n_heap > 0)
        free(sim->heap[--sim->n_heap]);
    while (sim->spare != NULL) {
        struct event *event = sim->spare;
        sim->spare = *(struct event **)(void *)event->text;
        free(event);
    }
    free(sim->heap);
    free(sim);
}

void sim_start(struct sim *sim, unsigned index)
{
    struct sim_node *node = &sim->nodes[index];
    struct error error = {.code = STATUS_OK};
    if (node->core != NULL || node->abandoned)
        return;
    node->generation++;
    node->incarnation = next_random(sim) >> 1;
    node->frozen_until_ms = 0;
    node->hung = false;
    struct cluster_env env = environment;
    env.context = node;
    const struct cluster_options options = {.id = node->id,
                                            .incarnation = node->incarnation,
                                            .name = node->name,
                                            .address = node->address,
                                            .key = first_key,
                                            .saved = node->saved,
                                            .data_interface = node->pin,
                                            .prepare_ms = 10000,
                                            .open_ms = 5000,
                                            .hung_ms = 3000,
                                            .idle_ms = sim->options.idle_ms};
    if (cluster_core_open(&node->core, &env, &options, &error) != STATUS_OK) {
        sim_fail(sim, "%s does not start: %s", node->name, error.text);
        return;
    }
    trace(sim, node, "starts");
    set_facts(sim, node);
    if (node->peer != NULL)
        cluster_core_add_peer(node->core, node->peer);
    event_at(sim, event_new(sim, EVENT_TICK, index), sim->now_ms + sim_random(sim, 50));
}

void sim_network(struct sim *sim, unsigned index, unsigned network, double rate)
{
    sim->nodes[index].rates[network] = rate;
    if (sim->nodes[index].core != NULL)
        set_facts(sim, &sim->nodes[index]);
}

double sim_rate(const struct sim *sim, unsigned index, unsigned network)
{
    return sim->nodes[index].rates[network];
}

void sim_pin(struct sim *sim, unsigned index, const char *interface)
{
    sim->nodes[index].pin = interface;
    if (sim->nodes[index].core != NULL)
        set_facts(sim, &sim->nodes[index]);
}

void sim_move(struct sim *sim, unsigned index, const char *address)
{
    text_copy(sim->nodes[index].address, sizeof sim->nodes[index].address, address);
}

unsigned sim_gone(const struct sim *sim, unsigned index)
{
    return sim->nodes[index].n_gone;
}

void sim_crash(struct sim *sim, unsigned index, bool power)
{
    struct sim_node *node = &sim->nodes[index];
    if (node->core == NULL)
        return;
    trace(sim, node, power ? "loses power" : "is killed");
    for (unsigned i = 0; i < sim->n_connections; i++)
        for (unsigned end = 0; end < 2; end++) {
            struct connection *connection = &sim->connections[i];
            struct side *side = &connection->sides[end], *peer = &connection->sides[1 - end];
            if (!connection->used || side->node != index || side->closed ||
                side->generation != node->generation)
                continue;
            if (power) {
                letters_free(peer);
                peer->dead = true;
            } else
                post(sim, connection, 1 - end, NULL);
            close_side(side);
            connection_reap(connection);
        }
    cluster_core_close(node->core);
    node->core = NULL;
    node->generation++;
    node->crashed_ms = sim->now_ms;
    node->frozen_until_ms = 0;
    node->n_keys = 0;
    memset(node->ranks, 0, sizeof node->ranks);
    memset(node->works, 0, sizeof node->works);
    memset(node->replica, 0, sizeof node->replica);
    for (unsigned i = 0; i < sim->n_requests; i++)
        if (sim->requests[i].node == index && sim->requests[i].answer == SIM_WAITING)
            sim->requests[i].answer = SIM_GONE;
    /* Ids of requests begin anew with the next process. */
    for (unsigned i = 0; i < sim->n_requests; i++)
        if (sim->requests[i].node == index)
            sim->requests[i].id = 0;
}

void sim_abandon(struct sim *sim, unsigned node)
{
    sim_crash(sim, node, true);
    sim->nodes[node].abandoned = true;
}

bool sim_abandoned(const struct sim *sim, unsigned node)
{
    return sim->nodes[node].abandoned;
}

void sim_freeze(struct sim *sim, unsigned node, uint64_t until_ms)
{
    trace(sim, &sim->nodes[node], "is stopped until %.3f", (double)until_ms / 1000);
    sim->nodes[node].frozen_until_ms = until_ms;
}

void sim_hang(struct sim *sim, unsigned node, bool hung)
{
    trace(sim, &sim->nodes[node], hung ? "hangs" : "hangs no more");
    sim->nodes[node].hung = hung;
    sim->nodes[node].hung_ms = sim->now_ms;
}

void sim_skew(struct sim *sim, unsigned node, int64_t wall_ms)
{
    sim->nodes[node].skew_ms = wall_ms;
}

void sim_set_peer(struct sim *sim, unsigned node, unsigned peer)
{
    sim->nodes[node].peer = sim->nodes[peer].address;
}

void sim_speak(struct sim *sim, unsigned node, int protocol)
{
    sim->nodes[node].protocol = protocol;
}

void sim_copy_identity(struct sim *sim, unsigned node, unsigned of)
{
    sim->nodes[node].id = sim->nodes[of].id;
}

void sim_give_model(struct sim *sim, unsigned node, unsigned model)
{
    sim->nodes[node].whole[model] = true;
    if (sim->nodes[node].core != NULL)
        set_facts(sim, &sim->nodes[node]);
}

void sim_forget(struct sim *sim, unsigned node, unsigned model)
{
    struct error error;
    sim->forgetting = true;
    if (cluster_core_forget(sim->nodes[node].core, sim->models[model].sha, &error) != STATUS_OK)
        sim_fail(sim, "%s is not forgotten: %s", sim->models[model].name, error.text);
}

void sim_take_object(struct sim *sim, unsigned node, const char *object)
{
    for (size_t i = 0; i < STORE_OBJECTS; i++)
        if (object[0] == 0 || strcmp(sim->nodes[node].store[i].id, object) == 0)
            memset(&sim->nodes[node].store[i], 0, sizeof sim->nodes[node].store[i]);
    if (sim->nodes[node].core != NULL)
        set_facts(sim, &sim->nodes[node]);
}

void sim_set_memory(struct sim *sim, unsigned node, uint64_t bytes)
{
    sim->nodes[node].memory = bytes;
    if (sim->nodes[node].core != NULL)
        set_facts(sim, &sim->nodes[node]);
}

unsigned sim_n_objects(const struct sim *sim, unsigned node)
{
    unsigned n = 0;
    for (size_t i = 0; i < STORE_OBJECTS; i++)
        if (sim->nodes[node].store[i].id[0] != 0 &&
            sim->nodes[node].store[i].have == (1u << n_chunks_of(sim->nodes[node].store[i].id)) - 1)
            n++;
    return n;
}

uint64_t sim_chunks_from(const struct sim *sim, unsigned node)
{
    return sim->nodes[node].chunks_from;
}

const struct sim_counts *sim_counts(const struct sim *sim)
{
    return &sim->counts;
}

uint64_t sim_now(const struct sim *sim)
{
    return sim->now_ms;
}

unsigned sim_n_nodes(const struct sim *sim)
{
    return sim->options.n_nodes;
}

struct cluster_core *sim_core(struct sim *sim, unsigned node)
{
    return sim->nodes[node].core;
}

struct cluster_id sim_id(const struct sim *sim, unsigned node)
{
    return sim->nodes[node].id;
}

const char *sim_name(const struct sim *sim, unsigned node)
{
    return sim->nodes[node].name;
}

const struct cluster_model *sim_model(const struct sim *sim, unsigned model)
{
    return &sim->models[model];
}

void sim_block(struct sim *sim, unsigned from, unsigned to, bool blocked)
{
    if (sim->blocked[from][to] != blocked)
        trace(sim, &sim->nodes[from], "%s %s", blocked ? "reaches no more" : "reaches again",
              sim->nodes[to].name);
    sim->blocked[from][to] = blocked;
}

void sim_cut(struct sim *sim, unsigned a, unsigned b)
{
    for (unsigned i = 0; i < sim->n_connections; i++) {
        struct connection *connection = &sim->connections[i];
        unsigned x = connection->sides[0].node, y = connection->sides[1].node;
        if (!connection->used || !((x == a && y == b) || (x == b && y == a)))
            continue;
        trace(sim, &sim->nodes[a], "the link to %s breaks", sim->nodes[b].name);
        for (unsigned end = 0; end < 2; end++)
            if (!connection->sides[end].closed)
                post(sim, connection, end, NULL);
    }
}

void sim_latency(struct sim *sim, unsigned node, uint64_t ms)
{
    sim->nodes[node].extra_latency_ms = ms;
}

void sim_faults(struct sim *sim, bool on)
{
    sim->options.faults = on;
}

void sim_trace(struct sim *sim)
{
    sim->options.trace = true;
}

void sim_beacons(struct sim *sim, bool on)
{
    sim->beacons = on;
}

/* ---- What can be asked of the whole ---------------------------------------------------------- */

bool sim_all_linked(struct sim *sim)
{
    for (unsigned a = 0; a < sim->options.n_nodes; a++)
        for (unsigned b = 0; b < sim->options.n_nodes; b++) {
            struct cluster_core *core = sim->nodes[a].core;
            if (a == b || core == NULL || sim->nodes[b].core == NULL)
                continue;
            const struct node *node = core_node(core, sim->nodes[b].id);
            if (node == NULL || node->state != NODE_UP || !node->has_facts)
                return false;
        }
    return true;
}

bool sim_all_agree(struct sim *sim)
{
    const struct cluster_core *first = NULL;
    for (unsigned i = 0; i < sim->options.n_nodes; i++) {
        const struct cluster_core *core = sim->nodes[i].core;
        if (core == NULL)
            continue;
        if (first == NULL)
            first = core;
        else if (state_digest(&core->state) != state_digest(&first->state))
            return false;
    }
    return true;
}

bool sim_all_answered(struct sim *sim)
{
    for (unsigned i = 0; i < sim->n_requests; i++)
        if (sim->requests[i].answer == SIM_WAITING)
            return false;
    return true;
}

bool sim_nothing_held(struct sim *sim)
{
    for (unsigned i = 0; i < sim->options.n_nodes; i++) {
        const struct cluster_core *core = sim->nodes[i].core;
        if (core == NULL)
            continue;
        if (sim_reserved(sim, i) > 0)
            return false;
        for (size_t k = 0; k < CLUSTER_MAX_RESERVATIONS; k++)
            if (core->reservations[k].state != RESERVATION_NONE)
                return false;
        for (size_t k = 0; k < CLUSTER_MAX_INSTANCES; k++)
            if (core->instances[k].state != INSTANCE_NONE)
                return false;
        for (size_t k = 0; k < CLUSTER_MAX_REQUESTS; k++)
            if (core->works[k].used || core->asks[k].used)
                return false;
    }
    return true;
}

unsigned sim_n_instances(struct sim *sim, unsigned model, bool running)
{
    unsigned n = 0;
    for (unsigned i = 0; i < sim->options.n_nodes; i++)
        for (size_t k = 0; sim->nodes[i].core != NULL && k < CLUSTER_MAX_INSTANCES; k++) {
            const struct instance *instance = &sim->nodes[i].core->instances[k];
            bool counts =
                running ? instance->state == INSTANCE_RUNNING
                        : instance->state != INSTANCE_NONE && instance->state != INSTANCE_FAILED;
            if (counts && strcmp(instance->model.sha, sim->models[model].sha) == 0)
                n++;
        }
    return n;
}

bool sim_settled(struct sim *sim)
{
    for (unsigned i = 0; i < sim->options.n_models; i++)
        if (sim_n_instances(sim, i, false) > 1)
            return false;
    return sim_all_linked(sim) && sim_all_agree(sim) && sim_all_answered(sim);
}
