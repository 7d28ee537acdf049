#include "fake_comm.h"

#include "fake_backend.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SIZES 1024

/* From one rank to another. */
struct way {
    unsigned char bytes[COMM_EAGER_BYTES];
    size_t first, n;     /* bytes that lie on the way */
    size_t sizes[SIZES]; /* of messages that were begun and not yet asked for */
    size_t first_size, n_sizes;
};

struct end {
    struct comm comm;
    struct fake_network *network;
};

/* mutex guards all below it. */
struct fake_network {
    uint32_t n_ranks;
    struct end *ends;
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    struct way *ways; /* [from][to] */
    bool cut;
    uint64_t n_calls, cut_after;
};

struct progress {
    bool out_begun, in_begun;
    size_t out_done, in_done;
};

static size_t pour(struct way *way, const unsigned char *from, size_t size)
{
    size_t n = MIN(size, COMM_EAGER_BYTES - way->n);
    for (size_t i = 0; i < n; i++)
        way->bytes[(way->first + way->n + i) % COMM_EAGER_BYTES] = from[i];
    way->n += n;
    return n;
}

static size_t draw(struct way *way, unsigned char *to, size_t size)
{
    size_t n = MIN(size, way->n);
    for (size_t i = 0; i < n; i++)
        to[i] = way->bytes[(way->first + i) % COMM_EAGER_BYTES];
    way->first = (way->first + n) % COMM_EAGER_BYTES;
    way->n -= n;
    return n;
}

static void check(bool holds, const char *what)
{
    if (holds)
        return;
    fprintf(stderr, "fake_comm: %s\n", what);
    abort();
}

static bool send_some(struct way *way, const struct comm_transfer *transfer,
                      struct progress *progress)
{
    size_t before = progress->out_done;
    bool begins = !progress->out_begun;
    if (begins) {
        check(way->n_sizes < SIZES, "too many messages on the way");
        way->sizes[(way->first_size + way->n_sizes++) % SIZES] = transfer->out_bytes;
        progress->out_begun = true;
    }
    progress->out_done +=
        pour(way, (const unsigned char *)transfer->out + before, transfer->out_bytes - before);
    return begins || progress->out_done > before;
}

static bool receive_some(struct way *way, const struct comm_transfer *transfer,
                         struct progress *progress)
{
    size_t before = progress->in_done;
    if (!progress->in_begun) {
        if (way->n_sizes == 0)
            return false;
        check(way->sizes[way->first_size] == transfer->in_bytes,
              "a message has another size than its receiver asks for");
        way->first_size = (way->first_size + 1) % SIZES;
        way->n_sizes--;
        progress->in_begun = true;
    }
    progress->in_done +=
        draw(way, (unsigned char *)transfer->in + before, transfer->in_bytes - before);
    return progress->in_done > before;
}

/* Moves what can be moved; *done where that was the rest. True where something moved. */
static bool move(struct end *end, const struct comm_transfer *transfers, size_t n,
                 struct progress *progress, bool *done)
{
    struct fake_network *network = end->network;
    uint32_t own = end->comm.rank, n_ranks = network->n_ranks;
    bool moved = false;
    *done = true;
    for (size_t i = 0; i < n; i++) {
        const struct comm_transfer *transfer = &transfers[i];
        check(transfer->rank < n_ranks && transfer->rank != own, "no such rank");
        bool out = progress[i].out_done < transfer->out_bytes;
        bool in = progress[i].in_done < transfer->in_bytes;
        for (size_t before = 0; before < i; before++)
            check(transfers[before].rank != transfer->rank, "a rank twice in a call");
        if (out &&
            send_some(&network->ways[own * n_ranks + transfer->rank], transfer, &progress[i]))
            moved = true;
        if (in &&
            receive_some(&network->ways[transfer->rank * n_ranks + own], transfer, &progress[i]))
            moved = true;
        *done = *done && progress[i].out_done == transfer->out_bytes &&
                progress[i].in_done == transfer->in_bytes;
    }
    return moved;
}

static enum status fake_exchange(struct comm *comm, const struct comm_transfer *transfers, size_t n,
                                 struct error *error)
{
    struct end *end = (struct end *)comm;
    struct fake_network *network = end->network;
    struct progress *progress = calloc(n + 1, sizeof *progress);
    check(progress != NULL, "no memory");
    pthread_mutex_lock(&network->mutex);
    if (++network->n_calls > network->cut_after)
        network->cut = true;
    bool done = false, waits = true;
    while (!done && waits) {
        if (move(end, transfers, n, progress, &done))
            pthread_cond_broadcast(&network->changed);
        else if (!done && network->cut)
            waits = false;
        else if (!done)
            pthread_cond_wait(&network->changed, &network->mutex);
    }
    if (network->cut)
        pthread_cond_broadcast(&network->changed);
    pthread_mutex_unlock(&network->mutex);
    free(progress);
    return done ? STATUS_OK
                : error_set(error, STATUS_LOST, "the connection to another rank was lost");
}

struct fake_network *fake_network_open(uint32_t n_ranks)
{
    struct fake_network *network = calloc(1, sizeof *network);
    check(network != NULL, "no memory");
    network->n_ranks = n_ranks;
    network->cut_after = UINT64_MAX;
    network->ends = calloc(n_ranks, sizeof *network->ends);
    network->ways = calloc((size_t)n_ranks * n_ranks, sizeof *network->ways);
    check(network->ends != NULL && network->ways != NULL, "no memory");
    for (uint32_t r = 0; r < n_ranks; r++)
        network->ends[r] =
            (struct end){{.rank = r, .n_ranks = n_ranks, .exchange = fake_exchange}, network};
    pthread_mutex_init(&network->mutex, NULL);
    pthread_cond_init(&network->changed, NULL);
    return network;
}

void fake_network_close(struct fake_network *network)
{
    pthread_cond_destroy(&network->changed);
    pthread_mutex_destroy(&network->mutex);
    free(network->ends);
    free(network->ways);
    free(network);
}

struct comm *fake_network_comm(struct fake_network *network, uint32_t rank)
{
    return &network->ends[rank].comm;
}

void fake_network_cut_after(struct fake_network *network, uint64_t n_calls)
{
    pthread_mutex_lock(&network->mutex);
    network->cut_after = network->n_calls + n_calls;
    network->cut = network->cut || n_calls == 0;
    pthread_cond_broadcast(&network->changed);
    pthread_mutex_unlock(&network->mutex);
}

void fake_network_cut(struct fake_network *network)
{
    fake_network_cut_after(network, 0);
}

uint64_t fake_network_calls(struct fake_network *network)
{
    pthread_mutex_lock(&network->mutex);
    uint64_t n = network->n_calls;
    pthread_mutex_unlock(&network->mutex);
    return n;
}

/* ---- Models over ranks ---- */

struct fake_rank {
    pthread_t thread;
    struct fake_network *network;
    const struct weights *weights;
    struct model_options options;
    bool on_fake;
    enum status status;
    struct error error;
};

static struct backend *fake_device(bool on_fake, unsigned n_threads)
{
    struct backend *backend = NULL;
    struct error error;
    if (on_fake)
        check(fake_backend_open(&backend, MAX(n_threads, 1), &error) == STATUS_OK, "no device");
    return backend;
}

static void *follow(void *context)
{
    struct fake_rank *rank = context;
    struct model *model = NULL;
    rank->status = model_open(&model, rank->weights, &rank->options, &rank->error);
    if (rank->status == STATUS_OK)
        rank->status = model_follow(model, &rank->error);
    if (rank->status != STATUS_OK)
        fake_network_cut(rank->network);
    model_close(model);
    return NULL;
}

enum status fake_ranks_open(struct fake_ranks *ranks, const struct weights *weights,
                            const struct model_options *options, bool on_fake,
                            const struct weights *const *own_weights, struct error *error)
{
    uint32_t n = model_placement_ranks(options->placement);
    uint32_t owner = model_placement_owner(options->placement);
    enum status status = quant_init(error); /* once, before there are threads */
    if (status != STATUS_OK)
        return status;
    *ranks = (struct fake_ranks){.network = fake_network_open(n), .n_ranks = n};
    ranks->ranks = calloc(n, sizeof *ranks->ranks);
    check(ranks->ranks != NULL, "no memory");
    for (uint32_t r = 0; r < n; r++) {
        struct fake_rank *rank = &ranks->ranks[r];
        rank->network = ranks->network;
        rank->weights = own_weights != NULL ? own_weights[r] : weights;
        rank->options = *options;
        rank->options.comm = fake_network_comm(ranks->network, r);
        rank->options.backend = fake_device(on_fake, options->n_threads);
        if (r != owner)
            check(pthread_create(&rank->thread, NULL, follow, rank) == 0, "no thread");
    }
    struct fake_rank *own = &ranks->ranks[owner];
    own->status = model_open(&ranks->owner, own->weights, &own->options, error);
    if (own->status != STATUS_OK)
        fake_network_cut(ranks->network);
    return own->status;
}

enum status fake_ranks_close(struct fake_ranks *ranks)
{
    enum status status = STATUS_OK;
    model_close(ranks->owner);
    for (uint32_t r = 0; r < ranks->n_ranks; r++) {
        struct fake_rank *rank = &ranks->ranks[r];
        if (r != model_placement_owner(rank->options.placement)) {
            pthread_join(rank->thread, NULL);
            if (status == STATUS_OK)
                status = rank->status;
        }
    }
    for (uint32_t r = 0; r < ranks->n_ranks; r++)
        if (ranks->ranks[r].options.backend != NULL)
            ranks->ranks[r].options.backend->close(ranks->ranks[r].options.backend);
    fake_network_close(ranks->network);
    free(ranks->ranks);
    *ranks = (struct fake_ranks){0};
    return status;
}

struct model_placement fake_placement(const char *text, uint32_t n_layers)
{
    struct model_placement placement = {.n_stages = 1};
    for (const char *c = text; *c != '\0'; c++)
        placement.n_stages += *c == '+';
    for (uint32_t s = 0; s < placement.n_stages; s++) {
        struct model_stage *stage = &placement.stages[s];
        stage->first_layer = n_layers * s / placement.n_stages;
        stage->end_layer = n_layers * (s + 1) / placement.n_stages;
        for (bool more = true; more; text++) {
            stage->shares[stage->n_shards++] = (uint16_t)strtoul(text, (char **)&text, 10);
            more = *text == ':';
        }
    }
    return placement;
}
