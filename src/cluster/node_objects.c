/* Objects: files that nodes get from each other in chunks of CLUSTER_CHUNK_BYTES, over wires that
 * are opened for it. Frames of such a wire, little-endian:
 *
 *     asks      ASK       u32 chunk | object           CLUSTER_CHUNK_MANIFEST: how large it is
 *     answers   MANIFEST  u64 size
 *               CHUNK     32 bytes SHA-256 | bytes
 *               REFUSAL   a sentence
 *
 * An object "SHA" is a model's file. "SHA/SLICE" is what a rank needs of it (model_slice_open): who
 * has the model makes its bytes while they are read, who has the slice reads them. SLICE says
 * layers from and to, shard, shards, and their shares: "0-8.1.2.1_1"; "meta" is a slice without
 * weights.
 *
 * What is being fetched lies in HOME/cluster/objects as NAME.part, beside NAME.have, a bit for each
 * chunk that is in it; when all are, it becomes NAME.gguf. NAME is the object with "-" for "/". Of a
 * model, NAME.name says what it is called. */
#include "cluster/node_internal.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <openssl/evp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define FOLDER "cluster/objects"
#define ASK 1
#define MANIFEST 2
#define CHUNK 3
#define REFUSAL 4
#define HASH_BYTES 32
#define ANSWER_BYTES ((size_t)CLUSTER_CHUNK_BYTES + 4096)
#define ASK_BYTES (4 + CLUSTER_OBJECT_BYTES)
#define IDLE_MS 60000   /* a wire that nobody asks over is closed */
#define ANSWER_MS 20000 /* a chunk that does not come is asked of another node */
#define KEEP_CHUNKS 16  /* between two times that what is here is made certain */

/* ---- Places ---------------------------------------------------------------------------------- */

static bool object_file(const char *object, const char *end, struct buffer *out)
{
    char name[CLUSTER_OBJECT_BYTES];
    snprintf(name, sizeof name, "%s", object);
    for (char *at = name; *at != '\0'; at++)
        if (*at == '/')
            *at = '-';
    if (strspn(name, "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ-_.:,") !=
            strlen(name) ||
        name[0] == '.')
        return false;
    return home_directory(FOLDER, out, NULL) == STATUS_OK && buffer_printf(out, "/%s%s", name, end);
}

void node_take_models(struct cluster_node *node, const struct cluster_local_model *models, size_t n)
{
    pthread_mutex_lock(&node->local_mutex);
    for (size_t i = 0; i < node->n_local; i++)
        free(node->local[i].path);
    node->n_local = 0;
    for (size_t i = 0; i < n && i < CLUSTER_MAX_MODELS; i++) {
        struct local_model *at = &node->local[node->n_local];
        at->path = strdup(models[i].path);
        memcpy(at->sha, models[i].model.sha, sizeof at->sha);
        node->n_local += at->path != NULL;
    }
    pthread_mutex_unlock(&node->local_mutex);
}

/* The file of the model that an object is of, where it lies here whole. Any thread. */
static bool model_path(struct cluster_node *node, const char *object, struct buffer *out)
{
    bool found = false;
    size_t size = strcspn(object, "/");
    pthread_mutex_lock(&node->local_mutex);
    for (size_t i = 0; i < node->n_local && !found; i++) {
        found = strlen(node->local[i].sha) == size && memcmp(node->local[i].sha, object, size) == 0;
        if (found) {
            buffer_clear(out);
            buffer_append_text(out, node->local[i].path);
        }
    }
    pthread_mutex_unlock(&node->local_mutex);
    return found && !out->failed;
}

static bool fetched_path(const char *object, struct buffer *out)
{
    return object_file(object, ".gguf", out) && access(out->data, R_OK) == 0;
}

/* The model that an object is of. */
static bool fetched_model(const char *object, struct buffer *out)
{
    char model[CLUSTER_OBJECT_BYTES];
    snprintf(model, sizeof model, "%.*s", (int)strcspn(object, "/"), object);
    return fetched_path(model, out);
}

bool node_object_path(struct cluster_node *node, const char *object, struct buffer *out)
{
    return model_path(node, object, out) || fetched_path(object, out) || fetched_model(object, out);
}

/* "SHA-SLICE.gguf" is the object SHA/SLICE. */
static bool object_of(const char *file, struct cluster_object *out)
{
    static const char end[] = ".gguf";
    size_t size = strlen(file), sha = CLUSTER_SHA_TEXT - 1, tail = sizeof end - 1;
    if (size < sha + tail || size - tail >= sizeof out->id || strcmp(file + size - tail, end) != 0)
        return false;
    snprintf(out->id, sizeof out->id, "%.*s", (int)(size - tail), file);
    if (out->id[sha] == '-')
        out->id[sha] = '/';
    return true;
}

static uint32_t list_objects(const char *folder, struct cluster_object *out, uint32_t max)
{
    DIR *directory = opendir(folder);
    struct dirent *entry;
    struct stat facts;
    uint32_t n = 0;
    while (directory != NULL && n < max && (entry = readdir(directory)) != NULL)
        if (object_of(entry->d_name, &out[n]) &&
            fstatat(dirfd(directory), entry->d_name, &facts, 0) == 0)
            out[n++].size_bytes = (uint64_t)facts.st_size;
    if (directory != NULL)
        closedir(directory);
    return n;
}

bool node_object_any(const char *sha, struct buffer *out)
{
    struct cluster_object objects[CLUSTER_MAX_OBJECTS];
    struct buffer folder = {0};
    bool found = false;
    uint32_t n = home_directory(FOLDER, &folder, NULL) == STATUS_OK
                     ? list_objects(folder.data, objects, CLUSTER_MAX_OBJECTS)
                     : 0;
    for (uint32_t i = 0; i < n && !found; i++)
        found = strncmp(objects[i].id, sha, strlen(sha)) == 0 && fetched_path(objects[i].id, out);
    buffer_free(&folder);
    return found;
}

enum status node_object_name(const struct model_placement *placement, uint32_t rank,
                             const char *sha, char out[CLUSTER_OBJECT_BYTES], struct error *error)
{
    uint32_t stage = 0, shard = rank;
    while (shard >= placement->stages[stage].n_shards)
        shard -= placement->stages[stage++].n_shards;
    const struct model_stage *at = &placement->stages[stage];
    int n = snprintf(out, CLUSTER_OBJECT_BYTES, "%s/%u-%u.%u.%u", sha, at->first_layer,
                     at->end_layer, shard, at->n_shards);
    for (uint32_t i = 0; i < at->n_shards && n > 0 && n < CLUSTER_OBJECT_BYTES; i++)
        n += snprintf(out + n, (size_t)(CLUSTER_OBJECT_BYTES - n), "%c%u", i == 0 ? '.' : '_',
                      at->shares[i]);
    if (n <= 0 || n >= CLUSTER_OBJECT_BYTES)
        return error_set(error, STATUS_LIMIT, "a placement on %u shards has too long a name",
                         at->n_shards);
    return STATUS_OK;
}

/* A placement that has this slice, and its rank there. */
static bool read_slice(const char *text, uint32_t n_layers, struct model_placement *placement,
                       uint32_t *rank)
{
    unsigned first, end, shard, n_shards;
    int at = 0;
    *placement = (struct model_placement){0};
    if (sscanf(text, "%5u-%5u.%3u.%3u%n", &first, &end, &shard, &n_shards, &at) != 4 ||
        first >= end || end > n_layers || n_shards == 0 || n_shards > MODEL_MAX_SHARDS ||
        shard >= n_shards)
        return false;
    if (first > 0)
        placement->stages[placement->n_stages++] = (struct model_stage){0, first, 1, {1}};
    *rank = placement->n_stages + shard;
    struct model_stage *stage = &placement->stages[placement->n_stages++];
    *stage = (struct model_stage){.first_layer = first, .end_layer = end, .n_shards = n_shards};
    for (unsigned i = 0; i < n_shards; i++) {
        unsigned share;
        int size = 0;
        if (text[at] != (i == 0 ? '.' : '_') ||
            sscanf(text + at + 1, "%5u%n", &share, &size) != 1 || share > UINT16_MAX)
            return false;
        stage->shares[i] = (uint16_t)share;
        at += 1 + size;
    }
    if (end < n_layers)
        placement->stages[placement->n_stages++] = (struct model_stage){end, n_layers, 1, {1}};
    return text[at] == '\0';
}

bool node_object_has(void *context, const char *object)
{
    struct buffer path = {0};
    bool has = node_object_path(context, object, &path);
    buffer_free(&path);
    return has;
}

/* ---- Reading an object ----------------------------------------------------------------------- */

/* The bytes of one object, wherever they are. Of one thread. */
struct source {
    char object[CLUSTER_OBJECT_BYTES]; /* "": none */
    int fd;                            /* a file that holds them */
    struct weights *weights;           /* else they are made of these */
    struct weights_slice *slice;
    uint64_t size_bytes;
};

static void close_source(struct source *source)
{
    if (source->fd >= 0)
        close(source->fd);
    weights_slice_close(source->slice);
    weights_close(source->weights);
    *source = (struct source){.fd = -1};
}

/* All keys and the table of tensors, and none of their data. */
static enum status open_metadata(struct weights_slice **out, const struct weights *weights,
                                 struct error *error)
{
    size_t n = weights_tensor_count(weights);
    struct weights_cut *cuts = calloc(n + 1, sizeof *cuts);
    if (cuts == NULL)
        return error_memory(error, n * sizeof *cuts);
    enum status status = weights_slice_open(out, weights, "metadata", cuts, error);
    free(cuts);
    return status;
}

static enum status open_slice(struct weights_slice **out, const struct weights *weights,
                              const char *text, struct error *error)
{
    struct model_placement placement;
    struct model_desc *desc = NULL;
    uint32_t rank = 0;
    if (strcmp(text, "meta") == 0)
        return open_metadata(out, weights, error);
    enum status status = model_describe(&desc, weights, error);
    if (status == STATUS_OK && !read_slice(text, desc->n_layers, &placement, &rank))
        status = error_set(error, STATUS_INVALID, "there is no slice %.60s of it", text);
    if (status == STATUS_OK)
        status = model_slice_open(out, weights, &placement, rank, error);
    model_desc_free(desc);
    return status;
}

static enum status open_source(struct source *source, const char *object, const char *path,
                               bool whole, struct error *error)
{
    struct stat facts;
    const char *slash = strchr(object, '/');
    close_source(source);
    if (slash != NULL && whole) {
        enum status status = weights_open(&source->weights, path, error);
        if (status == STATUS_OK)
            status = open_slice(&source->slice, source->weights, slash + 1, error);
        if (status != STATUS_OK)
            return status;
        source->size_bytes = weights_slice_size(source->slice);
    } else {
        source->fd = open(path, O_RDONLY | O_CLOEXEC);
        if (source->fd < 0 || fstat(source->fd, &facts) != 0)
            return error_set(error, STATUS_IO, "cannot open %s: %s", path, strerror(errno));
        source->size_bytes = (uint64_t)facts.st_size;
    }
    snprintf(source->object, sizeof source->object, "%s", object);
    return STATUS_OK;
}

static enum status read_all(int fd, uint64_t offset, size_t size, char *out, struct error *error)
{
    while (size > 0) {
        ssize_t n = pread(fd, out, size, (off_t)offset);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return error_set(error, STATUS_IO, "cannot read a chunk: %s",
                             n < 0 ? strerror(errno) : "the file has become shorter");
        out += n;
        offset += (uint64_t)n;
        size -= (size_t)n;
    }
    return STATUS_OK;
}

static size_t chunk_size(uint64_t size_bytes, uint32_t chunk)
{
    uint64_t begin = (uint64_t)chunk * CLUSTER_CHUNK_BYTES;
    return begin < size_bytes ? (size_t)MIN(size_bytes - begin, (uint64_t)CLUSTER_CHUNK_BYTES) : 0;
}

static bool hash_of(const char *data, size_t size, uint8_t out[HASH_BYTES])
{
    return EVP_Digest(data, size, out, NULL, EVP_sha256(), NULL) == 1;
}

/* Appends the answer: a hash and the chunk. */
static enum status read_chunk(struct source *source, uint32_t chunk, struct buffer *out,
                              struct error *error)
{
    size_t size = chunk_size(source->size_bytes, chunk);
    uint64_t offset = (uint64_t)chunk * CLUSTER_CHUNK_BYTES;
    if (size == 0)
        return error_set(error, STATUS_INVALID, "it has no chunk %u", chunk);
    if (!buffer_reserve(out, HASH_BYTES + size))
        return error_memory(error, size);
    char *data = out->data + HASH_BYTES;
    enum status status = STATUS_OK;
    if (source->slice == NULL)
        status = read_all(source->fd, offset, size, data, error);
    else if (!weights_slice_read(source->slice, offset, data, size))
        status = error_set(error, STATUS_INVALID, "the slice ends before chunk %u", chunk);
    if (status == STATUS_OK && !hash_of(data, size, (uint8_t *)out->data))
        status = error_memory(error, HASH_BYTES);
    if (status == STATUS_OK)
        out->size = HASH_BYTES + size;
    return status;
}

/* ---- Serving, on a thread for each wire ------------------------------------------------------ */

struct node_serving {
    struct node_serving *next;
    struct cluster_node *node;
    struct net_wire *wire;
    pthread_t thread;
    atomic_bool ended;
};

static enum status find_object(struct node_serving *serving, struct source *source,
                               const char *object, struct error *error)
{
    struct buffer path = {0};
    enum status status;
    if (strcmp(source->object, object) == 0)
        return STATUS_OK;
    bool whole = model_path(serving->node, object, &path);
    bool found = whole || fetched_path(object, &path);
    if (!found)
        found = whole = fetched_model(object, &path);
    if (found)
        status = open_source(source, object, path.data, whole, error);
    else
        status = error_set(error, STATUS_NOT_FOUND, "it is not on this node");
    buffer_free(&path);
    return status;
}

static enum status answer(struct node_serving *serving, struct source *source, struct view ask,
                          uint8_t *type, struct buffer *out, struct error *error)
{
    struct cursor cursor = cursor_over(ask.data, ask.size);
    char object[CLUSTER_OBJECT_BYTES] = "";
    uint32_t chunk = cursor_u32(&cursor);
    size_t size = cursor_left(&cursor);
    if (cursor.failed || size == 0 || size >= sizeof object)
        return error_set(error, STATUS_INVALID, "it asks for nothing");
    memcpy(object, ask.data + 4, size);
    enum status status = find_object(serving, source, object, error);
    if (status != STATUS_OK)
        return status;
    *type = chunk == CLUSTER_CHUNK_MANIFEST ? MANIFEST : CHUNK;
    if (*type == CHUNK)
        return read_chunk(source, chunk, out, error);
    for (int i = 0; i < 8; i++)
        buffer_append(out, &(char){(char)(source->size_bytes >> (8 * i))}, 1);
    return STATUS_OK;
}

static void *serve(void *argument)
{
    struct node_serving *serving = argument;
    struct source source = {.fd = -1};
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
    close_source(&source);
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
    unsigned n_uncertain; /* chunks since KEEP */
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

/* Makes certain what is here, and writes which chunks these are. Under the mutex. */
static void keep(struct target *target)
{
    struct buffer path = {0};
    struct file_writer *writer;
    target->n_uncertain = 0;
    if (fsync(target->fd) != 0 || !object_file(target->object, ".have", &path) ||
        file_create(&writer, path.data, NULL) != STATUS_OK) {
        buffer_free(&path);
        return;
    }
    if (file_write(writer, target->have, target->have_bytes, NULL) == STATUS_OK)
        file_commit(writer, NULL);
    else
        file_discard(writer);
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
    target->have = calloc(1, target->have_bytes);
    if (target->have == NULL || !object_file(target->object, ".part", &path)) {
        buffer_free(&path);
        return error_memory(error, target->have_bytes);
    }
    target->fd = open(path.data, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    enum status status = STATUS_OK;
    if (target->fd < 0 || fstat(target->fd, &facts) != 0)
        status = error_set(error, STATUS_IO, "cannot write %s: %s", path.data, strerror(errno));
    bool goes_on = status == STATUS_OK && (uint64_t)facts.st_size == size_bytes &&
                   object_file(target->object, ".have", &have) && access(have.data, R_OK) == 0;
    struct buffer bits = {0};
    if (goes_on && file_read(have.data, target->have_bytes, &bits, NULL) == STATUS_OK &&
        bits.size == target->have_bytes)
        memcpy(target->have, bits.data, bits.size);
    else if (status == STATUS_OK && ftruncate(target->fd, (off_t)size_bytes) != 0)
        status = error_set(error, STATUS_IO, "%s: %s", path.data, strerror(errno));
    target->size_bytes = size_bytes;
    buffer_free(&bits);
    buffer_free(&have);
    buffer_free(&path);
    return status;
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
    if (++target->n_uncertain >= KEEP_CHUNKS)
        keep(target);
    pthread_mutex_unlock(&target->mutex);
    return STATUS_OK;
}

/* ---- Fetching, on a thread for each source --------------------------------------------------- */

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
    pthread_mutex_t mutex; /* guards what follows */
    pthread_cond_t posted;
    struct ask *first, **last;
    char address[CLUSTER_ADDRESS_BYTES];
    struct net_wire *wire; /* the thread's; another may only abort it */
    bool closing;
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
    uint8_t hash[HASH_BYTES];
    pthread_mutex_lock(&target->mutex);
    size_t size = target->fd >= 0 ? chunk_size(target->size_bytes, chunk) : 0;
    pthread_mutex_unlock(&target->mutex);
    if (size == 0)
        return CLUSTER_FETCH_FAILED;
    if (data.size != HASH_BYTES + size || !hash_of(data.data + HASH_BYTES, size, hash) ||
        memcmp(hash, data.data, HASH_BYTES) != 0)
        return CLUSTER_FETCH_WRONG;
    data = (struct view){data.data + HASH_BYTES, size};
    return put_chunk(target, chunk, data, NULL) == STATUS_OK ? CLUSTER_FETCHED
                                                             : CLUSTER_FETCH_FAILED;
}

static bool connect_wire(struct node_fetcher *fetcher)
{
    struct net_wire *wire;
    struct net_wire_options options = {.hello = fetcher->hello};
    char address[CLUSTER_ADDRESS_BYTES];
    if (fetcher->wire != NULL)
        return true;
    pthread_mutex_lock(&fetcher->mutex);
    snprintf(address, sizeof address, "%s", fetcher->address);
    pthread_mutex_unlock(&fetcher->mutex);
    if (net_wire_connect(&wire, address, &fetcher->key, &options, NULL, NULL, NULL) != STATUS_OK)
        return false;
    pthread_mutex_lock(&fetcher->mutex);
    fetcher->wire = wire;
    if (fetcher->closing)
        net_wire_abort(wire);
    pthread_mutex_unlock(&fetcher->mutex);
    return true;
}

static void drop_wire(struct node_fetcher *fetcher)
{
    pthread_mutex_lock(&fetcher->mutex);
    struct net_wire *wire = fetcher->wire;
    fetcher->wire = NULL;
    pthread_mutex_unlock(&fetcher->mutex);
    net_wire_close(wire);
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

/* A small object, all of it, without the control plane. */
static void bring(struct node_fetcher *fetcher, struct target *target, struct buffer *in)
{
    struct buffer part = {0}, whole = {0}, have = {0};
    bool good = fetch(fetcher, target, CLUSTER_CHUNK_MANIFEST, in) == CLUSTER_FETCHED;
    for (uint32_t c = 0; good && chunk_size(target->size_bytes, c) > 0; c++)
        good = fetch(fetcher, target, c, in) == CLUSTER_FETCHED;
    if (good && object_file(target->object, ".part", &part) &&
        object_file(target->object, ".gguf", &whole) &&
        object_file(target->object, ".have", &have)) {
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
            report(fetcher, ask, fetch(fetcher, ask->target, ask->chunk, &in));
        let_go(ask->target);
        free(ask);
        pthread_mutex_lock(&fetcher->mutex);
    }
    pthread_mutex_unlock(&fetcher->mutex);
    drop_wire(fetcher);
    buffer_free(&in);
    return NULL;
}

static struct node_fetcher *fetcher_of(struct cluster_node *node, struct cluster_id source)
{
    for (struct node_fetcher *at = node->fetchers; at != NULL; at = at->next)
        if (cluster_id_equal(at->source, source))
            return at;
    struct node_fetcher *fetcher = calloc(1, sizeof *fetcher);
    if (fetcher == NULL)
        return NULL;
    fetcher->node = node;
    fetcher->source = source;
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
    char address[CLUSTER_ADDRESS_BYTES];
    struct node_fetcher *fetcher = fetcher_of(node, source);
    struct ask *ask = calloc(1, sizeof *ask);
    if (fetcher == NULL || target == NULL || ask == NULL || !node_address(node, source, address)) {
        free(ask);
        return false;
    }
    atomic_fetch_add(&target->n_holds, 1);
    *ask = (struct ask){.target = target, .chunk = chunk};
    pthread_mutex_lock(&fetcher->mutex);
    snprintf(fetcher->address, sizeof fetcher->address, "%s", address);
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

struct naming {
    const char *sha;
    char name[CLUSTER_NAME_BYTES];
};

static void take_name(void *context, const struct cluster_model *model, bool runs)
{
    struct naming *naming = context;
    (void)runs;
    if (strcmp(model->sha, naming->sha) == 0)
        memcpy(naming->name, model->name, sizeof naming->name);
}

/* So that the model can be asked for when the node that brought it has gone. */
static void keep_name(struct cluster_node *node, const char *object)
{
    struct naming naming = {.sha = object};
    struct buffer path = {0};
    struct file_writer *writer;
    if (strchr(object, '/') != NULL)
        return;
    cluster_node_models(node, take_name, &naming);
    if (naming.name[0] != '\0' && object_file(object, ".name", &path) &&
        file_create(&writer, path.data, NULL) == STATUS_OK) {
        if (file_write(writer, naming.name, strlen(naming.name), NULL) == STATUS_OK)
            file_commit(writer, NULL);
        else
            file_discard(writer);
    }
    buffer_free(&path);
}

void node_object_fetched(void *context, const char *object)
{
    struct cluster_node *node = context;
    struct buffer part = {0}, whole = {0}, have = {0};
    struct target *target = target_of(node, object);
    if (target == NULL || !object_file(object, ".part", &part) ||
        !object_file(object, ".gguf", &whole) || !object_file(object, ".have", &have)) {
        node_logf(node, "%.80s cannot be kept: out of memory", object);
    } else {
        keep_name(node, object);
        pthread_mutex_lock(&target->mutex);
        if (target->fd >= 0 && (fsync(target->fd) != 0 || rename(part.data, whole.data) != 0))
            node_logf(node, "%.80s cannot be kept: %s", object, strerror(errno));
        unlink(have.data);
        pthread_mutex_unlock(&target->mutex);
        for (size_t i = 0; i < ARRAY_COUNT(node->targets); i++)
            if (node->targets[i] == target)
                node->targets[i] = NULL;
        let_go(target);
    }
    buffer_free(&part);
    buffer_free(&whole);
    buffer_free(&have);
}

/* ---- What is here ---------------------------------------------------------------------------- */

static bool is_told(const struct cluster_facts *facts, const char *sha)
{
    for (uint32_t i = 0; i < facts->n_models; i++)
        if (strcmp(facts->models[i].sha, sha) == 0)
            return true;
    return false;
}

/* A model that was fetched whole is told as one, by its name. */
static bool tell_model(struct cluster_facts *facts, const struct cluster_object *object)
{
    struct buffer path = {0}, name = {0};
    bool known = is_told(facts, object->id);
    if (strchr(object->id, '/') == NULL && !known && facts->n_models < CLUSTER_MAX_MODELS &&
        object_file(object->id, ".name", &path) &&
        file_read(path.data, CLUSTER_NAME_BYTES - 1, &name, NULL) == STATUS_OK && name.size > 0) {
        struct cluster_model *model = &facts->models[facts->n_models++];
        *model = (struct cluster_model){.size_bytes = object->size_bytes};
        snprintf(model->sha, sizeof model->sha, "%.64s", object->id);
        snprintf(model->name, sizeof model->name, "%.*s", (int)name.size, name.data);
        known = true;
    }
    buffer_free(&path);
    buffer_free(&name);
    return known;
}

void node_objects_facts(struct cluster_node *node, struct cluster_facts *facts)
{
    struct buffer folder = {0};
    struct disk disk;
    (void)node;
    if (home_directory(FOLDER, &folder, NULL) == STATUS_OK) {
        if (disk_query(folder.data, &disk, NULL) == STATUS_OK)
            facts->disk_free_bytes = disk.free_bytes;
        facts->n_objects = list_objects(folder.data, facts->objects, CLUSTER_MAX_OBJECTS);
    }
    for (uint32_t i = facts->n_objects; i-- > 0;)
        if (tell_model(facts, &facts->objects[i]))
            facts->objects[i] = facts->objects[--facts->n_objects];
    buffer_free(&folder);
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
