/* Objects (node_shelf.c) in chunks of CLUSTER_CHUNK_BYTES, over wires that are opened for it.
 * Frames of such a wire, little-endian:
 *
 *     asks      ASK       u32 chunk | object           CLUSTER_CHUNK_MANIFEST: how large it is
 *     answers   MANIFEST  u64 size
 *               CHUNK     32 bytes SHA-256 | bytes
 *               REFUSAL   a sentence
 *
 * What is being fetched, or made here from other slices, lies in HOME/cluster/objects as NAME.part,
 * beside NAME.have, a bit for each chunk that is in it; when all are, it becomes NAME.gguf. */
#include "cluster/node_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define ASK 1
#define MANIFEST 2
#define CHUNK 3
#define REFUSAL 4
#define ANSWER_BYTES ((size_t)CLUSTER_CHUNK_BYTES + 4096)
#define ASK_BYTES (4 + CLUSTER_OBJECT_BYTES)
#define IDLE_MS 60000         /* a wire that nobody asks over is closed */
#define ANSWER_MS 20000       /* a chunk that does not come is asked of another node */
#define KEEP_CHUNKS 64        /* of which it is not certain that they are on the disk, at most, */
#define KEEP_NS 5000000000ull /* and for so long */
#define WIRES 4               /* to a source: while one hashes and writes, others receive */

/* ---- Serving, on a thread for each wire ------------------------------------------------------ */

struct node_serving {
    struct node_serving *next;
    struct cluster_node *node;
    struct net_wire *wire;
    pthread_t thread;
    atomic_bool ended;
};

static enum status answer(struct node_serving *serving, struct object_source *source,
                          struct view ask, uint8_t *type, struct buffer *out, struct error *error)
{
    struct cursor cursor = cursor_over(ask.data, ask.size);
    char object[CLUSTER_OBJECT_BYTES] = "";
    uint32_t chunk = cursor_u32(&cursor);
    size_t size = cursor_left(&cursor);
    if (cursor.failed || size == 0 || size >= sizeof object)
        return error_set(error, STATUS_INVALID, "it asks for nothing");
    memcpy(object, ask.data + 4, size);
    enum status status = object_source_open(serving->node, source, object, error);
    if (status != STATUS_OK)
        return status;
    *type = chunk == CLUSTER_CHUNK_MANIFEST ? MANIFEST : CHUNK;
    if (*type == CHUNK)
        return object_source_read(source, chunk, out, error);
    for (int i = 0; i < 8; i++)
        buffer_append(out, &(char){(char)(source->size_bytes >> (8 * i))}, 1);
    return STATUS_OK;
}

static void *serve(void *argument)
{
    struct node_serving *serving = argument;
    struct object_source source = {.fd = -1};
    struct buffer ask = {0}, out = {0};
    struct error error;
    uint8_t type;
    for (;;) {
        uint64_t deadline_ns = clock_now_ns() + IDLE_MS * 1000000ull;
        if (net_wire_receive_frame(serving->wire, ASK_BYTES, &type, &ask, deadline_ns, &error) !=
                STATUS_OK ||
            type != ASK)
            break;
        buffer_clear(&out);
        if (answer(serving, &source, (struct view){ask.data, ask.size}, &type, &out, &error) !=
            STATUS_OK) {
            type = REFUSAL;
            buffer_clear(&out);
            buffer_append_text(&out, error.text);
        }
        deadline_ns = clock_now_ns() + IDLE_MS * 1000000ull;
        if (net_wire_send_frame(serving->wire, type, (struct view){out.data, out.size}, deadline_ns,
                                &error) != STATUS_OK)
            break;
    }
    object_source_close(&source);
    buffer_free(&ask);
    buffer_free(&out);
    atomic_store(&serving->ended, true);
    return NULL;
}

/* Those whose other side left. */
static void clear_servings(struct cluster_node *node)
{
    for (struct node_serving **link = &node->servings; *link != NULL;) {
        struct node_serving *serving = *link;
        if (!atomic_load(&serving->ended)) {
            link = &serving->next;
            continue;
        }
        *link = serving->next;
        pthread_join(serving->thread, NULL);
        net_wire_close(serving->wire);
        free(serving);
    }
}

void node_object_serve(struct cluster_node *node, struct net_wire *wire)
{
    clear_servings(node);
    struct node_serving *serving = calloc(1, sizeof *serving);
    if (serving == NULL) {
        net_wire_close(wire);
        return;
    }
    serving->node = node;
    serving->wire = wire;
    if (!thread_start(&serving->thread, serve, serving)) {
        net_wire_close(wire);
        free(serving);
        return;
    }
    serving->next = node->servings;
    node->servings = serving;
}

/* ---- What is being fetched ------------------------------------------------------------------- */

/* Shared by the fetchers of an object. */
struct target {
    atomic_uint n_holds;
    char object[CLUSTER_OBJECT_BYTES];
    pthread_mutex_t mutex; /* guards what follows */
    int fd;                /* of the part; -1: not opened yet */
    uint64_t size_bytes;   /* 0: not known */
    uint8_t *have;
    size_t have_bytes;
    unsigned n_uncertain; /* chunks since then: */
    uint64_t kept_ns;     /* when it was made certain what is here */
    bool keeping;         /* a thread makes them certain, without the mutex */
    bool whole;           /* it has its name; what still comes is not noted */
};

static void let_go(struct target *target)
{
    if (target == NULL || atomic_fetch_sub(&target->n_holds, 1) != 1)
        return;
    if (target->fd >= 0)
        close(target->fd);
    pthread_mutex_destroy(&target->mutex);
    free(target->have);
    free(target);
}

static void write_have(const struct target *target, const uint8_t *have)
{
    struct buffer path = {0};
    struct file_writer *writer;
    if (!node_object_file(target->object, ".have", &path) ||
        file_create(&writer, path.data, NULL) != STATUS_OK) {
        buffer_free(&path);
        return;
    }
    if (file_write(writer, have, target->have_bytes, NULL) == STATUS_OK)
        file_commit(writer, NULL);
    else
        file_discard(writer);
    buffer_free(&path);
}

/* Makes certain what is here, and writes which chunks these are. Under the mutex, but for the time
 * that the disk needs. */
static void keep(struct target *target)
{
    uint8_t *have = malloc(target->have_bytes);
    if (have == NULL)
        return;
    memcpy(have, target->have, target->have_bytes);
    target->n_uncertain = 0;
    target->kept_ns = clock_now_ns();
    target->keeping = true;
    pthread_mutex_unlock(&target->mutex);
    if (fsync(target->fd) == 0)
        write_have(target, have);
    free(have);
    pthread_mutex_lock(&target->mutex);
    target->keeping = false;
    struct buffer path = {0};
    if (target->whole && node_object_file(target->object, ".have", &path))
        unlink(path.data);
    buffer_free(&path);
}

/* The part, and what an earlier attempt has left of it. Under the mutex. */
static enum status open_target(struct target *target, uint64_t size_bytes, struct error *error)
{
    struct buffer path = {0}, have = {0};
    struct stat facts;
    uint64_t n_chunks = (size_bytes + CLUSTER_CHUNK_BYTES - 1) / CLUSTER_CHUNK_BYTES;
    if (target->fd >= 0 && target->size_bytes == size_bytes)
        return STATUS_OK;
    if (target->fd >= 0 || n_chunks == 0 || n_chunks > CLUSTER_MAX_CHUNKS)
        return error_set(error, STATUS_INVALID, "it is told to have %llu bytes",
                         (unsigned long long)size_bytes);
    target->have_bytes = (size_t)(n_chunks + 7) / 8;
    free(target->have);
    target->have = calloc(1, target->have_bytes);
    if (target->have == NULL || !node_object_file(target->object, ".part", &path)) {
        buffer_free(&path);
        return error_memory(error, target->have_bytes);
    }
    target->fd = open(path.data, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    enum status status = STATUS_OK;
    if (target->fd < 0 || fstat(target->fd, &facts) != 0)
        status = error_set(error, STATUS_IO, "cannot write %s: %s", path.data, strerror(errno));
    bool named = node_object_file(target->object, ".have", &have);
    bool goes_on = status == STATUS_OK && (uint64_t)facts.st_size == size_bytes && named &&
                   access(have.data, R_OK) == 0;
    if (status == STATUS_OK && !goes_on && named)
        unlink(have.data); /* of another part */
    struct buffer bits = {0};
    if (goes_on && file_read(have.data, target->have_bytes, &bits, NULL) == STATUS_OK &&
        bits.size == target->have_bytes)
        memcpy(target->have, bits.data, bits.size);
    else if (status == STATUS_OK && ftruncate(target->fd, (off_t)size_bytes) != 0)
        status = error_set(error, STATUS_IO, "%s: %s", path.data, strerror(errno));
    target->size_bytes = size_bytes;
    target->kept_ns = clock_now_ns();
    buffer_free(&bits);
    buffer_free(&have);
    buffer_free(&path);
    return status;
}

static bool has_all(const struct target *target)
{
    for (uint32_t c = 0; object_chunk_size(target->size_bytes, c) > 0; c++)
        if ((target->have[c / 8] >> c % 8 & 1) == 0)
            return false;
    return true;
}

static enum status put_chunk(struct target *target, uint32_t chunk, struct view data,
                             struct error *error)
{
    uint64_t offset = (uint64_t)chunk * CLUSTER_CHUNK_BYTES;
    for (size_t done = 0; done < data.size;) {
        ssize_t n = pwrite(target->fd, data.data + done, data.size - done, (off_t)(offset + done));
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return error_set(error, STATUS_IO, "cannot write a chunk: %s", strerror(errno));
        done += (size_t)n;
    }
    pthread_mutex_lock(&target->mutex);
    target->have[chunk / 8] |= (uint8_t)(1u << chunk % 8);
    bool due = ++target->n_uncertain >= KEEP_CHUNKS || clock_now_ns() - target->kept_ns > KEEP_NS;
    if (due && !target->whole && !target->keeping)
        keep(target);
    bool complete = has_all(target);
    pthread_mutex_unlock(&target->mutex);
    if (complete) /* so that the loop, which gives it its name, need not wait for the disk */
        fsync(target->fd);
    return STATUS_OK;
}

/* ---- Fetching, on up to WIRES threads for each source ---------------------------------------- */

struct ask {
    struct ask *next;
    struct target *target;
    uint32_t chunk; /* BRING: all of them */
};

#define BRING (UINT32_MAX - 1)

struct node_fetcher {
    struct node_fetcher *next;
    struct cluster_node *node;
    struct cluster_id source;
    struct net_link_key key;
    struct net_hello hello;
    pthread_t thread;
    atomic_uint n_asks;    /* that are not done */
    pthread_mutex_t mutex; /* guards what follows */
    pthread_cond_t posted;
    struct ask *first, **last;
    struct node_ways ways;
    struct net_wire *wire; /* the thread's; another may only abort it */
    bool renew;            /* another way is better now: the next ask takes it */
    bool closing;
    bool local;                  /* the source is this node: objects are made from slices here */
    struct object_source making; /* the thread's */
};

/* What came of an ask, for the core. */
struct outcome {
    struct cluster_node *node;
    struct cluster_id source;
    char object[CLUSTER_OBJECT_BYTES];
    uint32_t chunk;
    enum cluster_fetch_result result;
    uint64_t size_bytes;
    uint8_t *have;
};

static void tell(void *context)
{
    struct outcome *outcome = context;
    struct cluster_core *core = outcome->node->core;
    if (outcome->node->closing) {
        ; /* nobody listens any more */
    } else if (outcome->result == CLUSTER_FETCHED && outcome->chunk == CLUSTER_CHUNK_MANIFEST) {
        cluster_core_manifest(core, outcome->object, outcome->source, outcome->size_bytes,
                              outcome->have);
    } else {
        cluster_core_fetched(core, outcome->object, outcome->chunk, outcome->source,
                             outcome->result);
    }
    free(outcome->have);
    free(outcome);
}

static void report(struct node_fetcher *fetcher, const struct ask *ask,
                   enum cluster_fetch_result result)
{
    struct outcome *outcome = calloc(1, sizeof *outcome);
    if (outcome == NULL)
        return;
    *outcome = (struct outcome){
        .node = fetcher->node, .source = fetcher->source, .chunk = ask->chunk, .result = result};
    snprintf(outcome->object, sizeof outcome->object, "%s", ask->target->object);
    if (result == CLUSTER_FETCHED && ask->chunk == CLUSTER_CHUNK_MANIFEST) {
        pthread_mutex_lock(&ask->target->mutex);
        outcome->size_bytes = ask->target->size_bytes;
        outcome->have = malloc(ask->target->have_bytes);
        if (outcome->have != NULL)
            memcpy(outcome->have, ask->target->have, ask->target->have_bytes);
        pthread_mutex_unlock(&ask->target->mutex);
    }
    if (!node_post(fetcher->node, tell, outcome)) {
        free(outcome->have);
        free(outcome);
    }
}

static enum cluster_fetch_result take_manifest(struct target *target, struct view data)
{
    struct cursor cursor = cursor_over(data.data, data.size);
    uint64_t size_bytes = cursor_u64(&cursor);
    if (cursor.failed)
        return CLUSTER_FETCH_WRONG;
    pthread_mutex_lock(&target->mutex);
    enum status status = open_target(target, size_bytes, NULL);
    pthread_mutex_unlock(&target->mutex);
    return status == STATUS_OK ? CLUSTER_FETCHED : CLUSTER_FETCH_FAILED;
}

static enum cluster_fetch_result take_chunk(struct target *target, uint32_t chunk, struct view data)
{
    uint8_t hash[OBJECT_HASH_BYTES];
    pthread_mutex_lock(&target->mutex);
    size_t size = target->fd >= 0 ? object_chunk_size(target->size_bytes, chunk) : 0;
    pthread_mutex_unlock(&target->mutex);
    if (size == 0)
        return CLUSTER_FETCH_FAILED;
    if (data.size != OBJECT_HASH_BYTES + size ||
        !object_hash(data.data + OBJECT_HASH_BYTES, size, hash) ||
        memcmp(hash, data.data, OBJECT_HASH_BYTES) != 0)
        return CLUSTER_FETCH_WRONG;
    data = (struct view){data.data + OBJECT_HASH_BYTES, size};
    return put_chunk(target, chunk, data, NULL) == STATUS_OK ? CLUSTER_FETCHED
                                                             : CLUSTER_FETCH_FAILED;
}

static void drop_wire(struct node_fetcher *fetcher)
{
    pthread_mutex_lock(&fetcher->mutex);
    struct net_wire *wire = fetcher->wire;
    fetcher->wire = NULL;
    pthread_mutex_unlock(&fetcher->mutex);
    net_wire_close(wire);
}

static bool connect_wire(struct node_fetcher *fetcher)
{
    struct net_wire *wire;
    pthread_mutex_lock(&fetcher->mutex);
    struct node_ways ways = fetcher->ways;
    struct net_link_key key = fetcher->key;
    bool renew = fetcher->renew;
    fetcher->renew = false;
    pthread_mutex_unlock(&fetcher->mutex);
    if (renew)
        drop_wire(fetcher);
    if (fetcher->wire != NULL)
        return true;
    if (node_ways_connect(fetcher->node, &wire, &ways, &key, &fetcher->hello, 0, NULL, NULL) !=
        STATUS_OK)
        return false;
    pthread_mutex_lock(&fetcher->mutex);
    fetcher->wire = wire;
    if (fetcher->closing)
        net_wire_abort(wire);
    pthread_mutex_unlock(&fetcher->mutex);
    return true;
}

static enum cluster_fetch_result fetch(struct node_fetcher *fetcher, struct target *target,
                                       uint32_t chunk, struct buffer *in)
{
    struct buffer out = {0};
    uint8_t type = 0;
    if (!connect_wire(fetcher))
        return CLUSTER_FETCH_FAILED;
    for (int i = 0; i < 4; i++)
        buffer_append(&out, &(char){(char)(chunk >> (8 * i))}, 1);
    buffer_append_text(&out, target->object);
    uint64_t deadline_ns = clock_now_ns() + ANSWER_MS * 1000000ull;
    enum status status = net_wire_send_frame(fetcher->wire, ASK, (struct view){out.data, out.size},
                                             deadline_ns, NULL);
    if (status == STATUS_OK)
        status = net_wire_receive_frame(fetcher->wire, ANSWER_BYTES, &type, in, deadline_ns, NULL);
    buffer_free(&out);
    struct view data = {in->data, in->size};
    if (status != STATUS_OK) {
        drop_wire(fetcher);
        return CLUSTER_FETCH_FAILED;
    }
    if (type == MANIFEST && chunk == CLUSTER_CHUNK_MANIFEST)
        return take_manifest(target, data);
    return type == CHUNK ? take_chunk(target, chunk, data) : CLUSTER_FETCH_FAILED;
}

/* As fetch, where this node has slices that make up the object. */
static enum cluster_fetch_result make(struct node_fetcher *fetcher, struct target *target,
                                      uint32_t chunk, struct buffer *in)
{
    struct object_source *source = &fetcher->making;
    struct error error;
    if (object_source_open(fetcher->node, source, target->object, &error) != STATUS_OK) {
        node_logf(fetcher->node, "%.80s cannot be made from what is here: %s", target->object,
                  error.text);
        return CLUSTER_FETCH_FAILED;
    }
    if (chunk == CLUSTER_CHUNK_MANIFEST) {
        pthread_mutex_lock(&target->mutex);
        enum status status = open_target(target, source->size_bytes, NULL);
        pthread_mutex_unlock(&target->mutex);
        return status == STATUS_OK ? CLUSTER_FETCHED : CLUSTER_FETCH_FAILED;
    }
    buffer_clear(in);
    if (object_source_read(source, chunk, in, &error) != STATUS_OK)
        return CLUSTER_FETCH_FAILED;
    return take_chunk(target, chunk, (struct view){in->data, in->size});
}

/* A small object, all of it, without the control plane. */
static void bring(struct node_fetcher *fetcher, struct target *target, struct buffer *in)
{
    struct buffer part = {0}, whole = {0}, have = {0};
    bool good = fetch(fetcher, target, CLUSTER_CHUNK_MANIFEST, in) == CLUSTER_FETCHED;
    for (uint32_t c = 0; good && object_chunk_size(target->size_bytes, c) > 0; c++)
        good = fetch(fetcher, target, c, in) == CLUSTER_FETCHED;
    if (good && node_object_file(target->object, ".part", &part) &&
        node_object_file(target->object, ".gguf", &whole) &&
        node_object_file(target->object, ".have", &have)) {
        unlink(have.data);
        good = rename(part.data, whole.data) == 0;
    }
    buffer_free(&part);
    buffer_free(&whole);
    buffer_free(&have);
}

static void *fetch_all(void *argument)
{
    struct node_fetcher *fetcher = argument;
    struct buffer in = {0};
    pthread_mutex_lock(&fetcher->mutex);
    while (!fetcher->closing) {
        struct ask *ask = fetcher->first;
        if (ask == NULL) {
            object_source_close(&fetcher->making); /* removed files would keep their room */
            pthread_cond_wait(&fetcher->posted, &fetcher->mutex);
            continue;
        }
        fetcher->first = ask->next;
        if (fetcher->first == NULL)
            fetcher->last = &fetcher->first;
        pthread_mutex_unlock(&fetcher->mutex);
        if (ask->chunk == BRING)
            bring(fetcher, ask->target, &in);
        else
            report(fetcher, ask,
                   fetcher->local ? make(fetcher, ask->target, ask->chunk, &in)
                                  : fetch(fetcher, ask->target, ask->chunk, &in));
        let_go(ask->target);
        free(ask);
        atomic_fetch_sub(&fetcher->n_asks, 1);
        pthread_mutex_lock(&fetcher->mutex);
    }
    pthread_mutex_unlock(&fetcher->mutex);
    drop_wire(fetcher);
    object_source_close(&fetcher->making);
    buffer_free(&in);
    return NULL;
}

static struct node_fetcher *open_fetcher(struct cluster_node *node, struct cluster_id source)
{
    char text[CLUSTER_ID_TEXT];
    struct node_fetcher *fetcher = calloc(1, sizeof *fetcher);
    if (fetcher == NULL)
        return NULL;
    fetcher->node = node;
    fetcher->source = source;
    fetcher->local = strcmp(cluster_id_text(text, source), node->id_text) == 0;
    fetcher->making.fd = -1;
    fetcher->last = &fetcher->first;
    fetcher->key = node->link_keys[0];
    fetcher->hello = node_hello(node, NET_STORE, NULL);
    pthread_mutex_init(&fetcher->mutex, NULL);
    pthread_cond_init(&fetcher->posted, NULL);
    if (!thread_start(&fetcher->thread, fetch_all, fetcher)) {
        pthread_cond_destroy(&fetcher->posted);
        pthread_mutex_destroy(&fetcher->mutex);
        free(fetcher);
        return NULL;
    }
    fetcher->next = node->fetchers;
    node->fetchers = fetcher;
    return fetcher;
}

/* The one of a source with the least to do, or a new one where all have something to do. */
static struct node_fetcher *fetcher_of(struct cluster_node *node, struct cluster_id source)
{
    struct node_fetcher *best = NULL;
    unsigned n = 0, least = 0;
    for (struct node_fetcher *at = node->fetchers; at != NULL; at = at->next) {
        if (!cluster_id_equal(at->source, source))
            continue;
        unsigned n_asks = atomic_load(&at->n_asks);
        if (best == NULL || n_asks < least) {
            best = at;
            least = n_asks;
        }
        n++;
    }
    if (best != NULL && (least == 0 || n == WIRES || best->local))
        return best;
    struct node_fetcher *another = open_fetcher(node, source);
    return another != NULL ? another : best;
}

static struct target *open_new_target(const char *object)
{
    struct target *target = calloc(1, sizeof *target);
    if (target == NULL)
        return NULL;
    atomic_init(&target->n_holds, 1);
    target->fd = -1;
    snprintf(target->object, sizeof target->object, "%s", object);
    pthread_mutex_init(&target->mutex, NULL);
    return target;
}

static struct target *target_of(struct cluster_node *node, const char *object)
{
    struct target **place = NULL;
    for (size_t i = 0; i < ARRAY_COUNT(node->targets); i++) {
        if (node->targets[i] != NULL && strcmp(node->targets[i]->object, object) == 0)
            return node->targets[i];
        if (node->targets[i] == NULL && place == NULL)
            place = &node->targets[i];
    }
    if (place == NULL)
        return NULL;
    *place = open_new_target(object);
    return *place;
}

/* From the loop's own stack, the outcome has to come later. */
static void refuse(struct cluster_node *node, const char *object, uint32_t chunk,
                   struct cluster_id source)
{
    struct outcome *outcome = calloc(1, sizeof *outcome);
    if (outcome == NULL)
        return;
    *outcome = (struct outcome){
        .node = node, .source = source, .chunk = chunk, .result = CLUSTER_FETCH_FAILED};
    snprintf(outcome->object, sizeof outcome->object, "%s", object);
    if (!node_post(node, tell, outcome))
        free(outcome);
}

/* Hands an ask to the thread of its source; takes a hold of target. */
static bool hand_over(struct cluster_node *node, struct target *target, uint32_t chunk,
                      struct cluster_id source)
{
    const struct node_ways ways = node_ways(node, source);
    struct node_fetcher *fetcher = fetcher_of(node, source);
    struct ask *ask = calloc(1, sizeof *ask);
    if (fetcher == NULL || target == NULL || ask == NULL || (!fetcher->local && ways.n == 0)) {
        free(ask);
        return false;
    }
    atomic_fetch_add(&target->n_holds, 1);
    atomic_fetch_add(&fetcher->n_asks, 1);
    *ask = (struct ask){.target = target, .chunk = chunk};
    pthread_mutex_lock(&fetcher->mutex);
    fetcher->renew =
        fetcher->wire != NULL &&
        (fetcher->renew || strcmp(fetcher->ways.ways[0].address, ways.ways[0].address) != 0 ||
         strcmp(fetcher->ways.ways[0].from, ways.ways[0].from) != 0);
    fetcher->ways = ways;
    fetcher->key = node->link_keys[0]; /* it may have changed */
    *fetcher->last = ask;
    fetcher->last = &ask->next;
    pthread_cond_signal(&fetcher->posted);
    pthread_mutex_unlock(&fetcher->mutex);
    return true;
}

void node_object_fetch(void *context, const char *object, uint32_t chunk, struct cluster_id source)
{
    struct cluster_node *node = context;
    if (!hand_over(node, target_of(node, object), chunk, source))
        refuse(node, object, chunk, source);
}

void node_object_bring(struct cluster_node *node, const char *object, struct cluster_id source)
{
    struct target *target = open_new_target(object);
    hand_over(node, target, BRING, source);
    let_go(target);
}

void node_object_abandon(void *context, const char *object)
{
    struct cluster_node *node = context;
    for (size_t i = 0; i < ARRAY_COUNT(node->targets); i++) {
        struct target *target = node->targets[i];
        if (target == NULL || strcmp(target->object, object) != 0)
            continue;
        node->targets[i] = NULL;
        let_go(target); /* the few chunks that were not made certain may come again */
    }
}

void node_object_fetched(void *context, const char *object, const char *model)
{
    struct cluster_node *node = context;
    struct buffer part = {0}, whole = {0}, have = {0};
    struct target *target = target_of(node, object);
    if (target == NULL || !node_object_file(object, ".part", &part) ||
        !node_object_file(object, ".gguf", &whole) || !node_object_file(object, ".have", &have)) {
        node_logf(node, "%.80s cannot be kept: out of memory", object);
    } else {
        pthread_mutex_lock(&target->mutex);
        target->whole = true;
        if (target->fd >= 0 && (fsync(target->fd) != 0 || rename(part.data, whole.data) != 0))
            node_logf(node, "%.80s cannot be kept: %s", object, strerror(errno));
        unlink(have.data);
        pthread_mutex_unlock(&target->mutex);
        for (size_t i = 0; i < ARRAY_COUNT(node->targets); i++)
            if (node->targets[i] == target)
                node->targets[i] = NULL;
        let_go(target);
    }
    node_object_call(object, model);
    buffer_free(&part);
    buffer_free(&whole);
    buffer_free(&have);
}

/* ---- The end --------------------------------------------------------------------------------- */

void node_objects_place_gone(struct cluster_node *node, bool own, const char *address)
{
    for (struct node_fetcher *at = node->fetchers; at != NULL; at = at->next) {
        char local[NET_ADDRESS_BYTES];
        pthread_mutex_lock(&at->mutex);
        if (at->wire != NULL) {
            net_wire_local(at->wire, local);
            if (net_address_same(own ? local : net_wire_peer(at->wire), address))
                net_wire_abort(at->wire);
        }
        pthread_mutex_unlock(&at->mutex);
    }
}

void node_objects_close(struct cluster_node *node)
{
    for (struct node_fetcher *at = node->fetchers; at != NULL; at = at->next) {
        pthread_mutex_lock(&at->mutex);
        at->closing = true;
        if (at->wire != NULL)
            net_wire_abort(at->wire);
        pthread_cond_signal(&at->posted);
        pthread_mutex_unlock(&at->mutex);
    }
    node_take_models(node, NULL, 0);
    while (node->fetchers != NULL) {
        struct node_fetcher *at = node->fetchers;
        node->fetchers = at->next;
        pthread_join(at->thread, NULL);
        for (struct ask *ask = at->first, *next; ask != NULL; ask = next) {
            next = ask->next;
            let_go(ask->target);
            free(ask);
        }
        pthread_cond_destroy(&at->posted);
        pthread_mutex_destroy(&at->mutex);
        free(at);
    }
    for (size_t i = 0; i < ARRAY_COUNT(node->targets); i++) {
        struct target *target = node->targets[i];
        if (target != NULL && target->fd >= 0) {
            pthread_mutex_lock(&target->mutex);
            keep(target);
            pthread_mutex_unlock(&target->mutex);
        }
        let_go(target);
    }
    for (struct node_serving *at = node->servings; at != NULL; at = at->next)
        net_wire_abort(at->wire);
    while (node->servings != NULL) {
        struct node_serving *at = node->servings;
        node->servings = at->next;
        pthread_join(at->thread, NULL);
        net_wire_close(at->wire);
        free(at);
    }
}
