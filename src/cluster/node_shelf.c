/* Objects that lie here: the models' own files, and HOME/cluster/objects with what was fetched.
 *
 * An object "SHA" is a model's file. "SHA/SLICE" is what a rank needs of it: who has the model, or
 * slices that together hold it (model_slice_merge), makes its bytes while they are read; who has
 * the slice reads them. SLICE says layers from and to, shard, shards, and their shares:
 * "0-8.1.2.1_1"; "meta" is a slice without weights.
 *
 * A file is called NAME.gguf, where NAME is the object with "-" for "/". When it was used last is
 * the time of its last change. SHA.name beside it has the name of the model. */
#include "cluster/core_slices.h"
#include "cluster/node_internal.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <openssl/evp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define FOLDER "cluster/objects"
#define UNKNOWN_DISK_BYTES ((uint64_t)1 << 50)
#define UNFINISHED_S ((time_t)14 * 86400) /* so long what was not fetched to its end is kept */

/* ---- Places ---------------------------------------------------------------------------------- */

bool node_object_file(const char *object, const char *end, struct buffer *out)
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
    return node_object_file(object, ".gguf", out) && access(out->data, R_OK) == 0;
}

bool node_object_path(struct cluster_node *node, const char *object, struct buffer *out)
{
    char model[CLUSTER_OBJECT_BYTES];
    snprintf(model, sizeof model, "%.*s", (int)strcspn(object, "/"), object);
    return model_path(node, object, out) || fetched_path(object, out) || fetched_path(model, out);
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
            fstatat(dirfd(directory), entry->d_name, &facts, 0) == 0) {
            out[n].used_s = (uint64_t)MAX(facts.st_mtime, (time_t)0);
            out[n++].size_bytes = (uint64_t)facts.st_size;
        }
    if (directory != NULL)
        closedir(directory);
    return n;
}

/* What was fetched; out[CLUSTER_MAX_OBJECTS]. */
static uint32_t list_fetched(struct cluster_object *out)
{
    struct buffer folder = {0};
    uint32_t n = home_directory(FOLDER, &folder, NULL) == STATUS_OK
                     ? list_objects(folder.data, out, CLUSTER_MAX_OBJECTS)
                     : 0;
    buffer_free(&folder);
    return n;
}

bool node_object_any(const char *sha, struct buffer *out)
{
    struct cluster_object objects[CLUSTER_MAX_OBJECTS];
    bool found = false;
    uint32_t n = list_fetched(objects);
    for (uint32_t i = 0; i < n && !found; i++)
        found = slice_of_model(objects[i].id, sha) && fetched_path(objects[i].id, out);
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

void object_source_close(struct object_source *source)
{
    if (source->fd >= 0)
        close(source->fd);
    weights_slice_close(source->slice);
    for (size_t i = 0; i < source->n_files; i++)
        weights_close(source->files[i]);
    *source = (struct object_source){.fd = -1};
}

/* All keys and the table of tensors, and none of their data. */
static enum status open_metadata(struct object_source *source, struct error *error)
{
    size_t n = weights_tensor_count(source->files[0]);
    struct weights_cut *cuts = calloc(n + 1, sizeof *cuts);
    if (cuts == NULL)
        return error_memory(error, n * sizeof *cuts);
    enum status status = weights_slice_merge(
        &source->slice, (const struct weights *const *)source->files, 1, "metadata", cuts, error);
    free(cuts);
    if (status == STATUS_OK)
        source->size_bytes = weights_slice_size(source->slice);
    return status;
}

/* Makes a slice of the files that are open. */
static enum status open_slice(struct object_source *source, const char *text, struct error *error)
{
    struct model_placement placement;
    struct model_desc *desc = NULL;
    uint32_t rank = 0;
    if (strcmp(text, "meta") == 0)
        return open_metadata(source, error);
    enum status status = model_describe(&desc, source->files[0], error);
    if (status == STATUS_OK && !read_slice(text, desc->n_layers, &placement, &rank))
        status = error_set(error, STATUS_INVALID, "there is no slice %.60s of it", text);
    if (status == STATUS_OK)
        status = model_slice_merge(&source->slice, (const struct weights *const *)source->files,
                                   source->n_files, &placement, rank, error);
    model_desc_free(desc);
    if (status == STATUS_OK)
        source->size_bytes = weights_slice_size(source->slice);
    return status;
}

static enum status open_file(struct object_source *source, const char *path, struct error *error)
{
    struct stat facts;
    source->fd = open(path, O_RDONLY | O_CLOEXEC);
    if (source->fd < 0 || fstat(source->fd, &facts) != 0)
        return error_set(error, STATUS_IO, "cannot open %s: %s", path, strerror(errno));
    source->size_bytes = (uint64_t)facts.st_size;
    return STATUS_OK;
}

/* The slices here that make up an object, opened. */
static enum status open_parts(struct object_source *source, const char *object, struct error *error)
{
    struct cluster_object objects[CLUSTER_MAX_OBJECTS];
    const char *held[CLUSTER_MAX_OBJECTS];
    bool used[CLUSTER_MAX_OBJECTS];
    struct buffer path = {0};
    enum status status = STATUS_OK;
    uint32_t n = 0, n_objects = list_fetched(objects);
    const char *slash = strchr(object, '/');
    for (uint32_t i = 0; i < n_objects; i++)
        if (slice_of_model(objects[i].id, object))
            held[n++] = objects[i].id;
    bool meta = n > 0 && slash != NULL && strcmp(slash, "/meta") == 0;
    for (uint32_t i = 0; meta && i < n; i++)
        used[i] = i == 0;
    if (slash == NULL || (!meta && !slices_cover(held, n, object, used)))
        return error_set(error, STATUS_NOT_FOUND, "it is not on this node");
    for (uint32_t i = 0; i < n && status == STATUS_OK; i++) {
        if (!used[i] || !fetched_path(held[i], &path))
            continue;
        status = weights_open(&source->files[source->n_files], path.data, error);
        source->n_files += status == STATUS_OK;
    }
    buffer_free(&path);
    if (status == STATUS_OK && source->n_files == 0)
        status = error_set(error, STATUS_NOT_FOUND, "it is not on this node");
    return status;
}

enum status object_source_open(struct cluster_node *node, struct object_source *source,
                               const char *object, struct error *error)
{
    struct buffer path = {0};
    const char *slash = strchr(object, '/');
    enum status status;
    if (strcmp(source->object, object) == 0)
        return STATUS_OK;
    object_source_close(source);
    bool whole = model_path(node, object, &path);
    if (whole && slash != NULL) {
        status = weights_open(&source->files[0], path.data, error);
        source->n_files = status == STATUS_OK;
    } else if (whole || fetched_path(object, &path)) {
        status = open_file(source, path.data, error);
    } else {
        status = open_parts(source, object, error);
    }
    if (status == STATUS_OK && source->n_files > 0)
        status = open_slice(source, slash + 1, error);
    if (status == STATUS_OK)
        snprintf(source->object, sizeof source->object, "%s", object);
    else
        object_source_close(source);
    buffer_free(&path);
    return status;
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

size_t object_chunk_size(uint64_t size_bytes, uint32_t chunk)
{
    uint64_t begin = (uint64_t)chunk * CLUSTER_CHUNK_BYTES;
    return begin < size_bytes ? (size_t)MIN(size_bytes - begin, (uint64_t)CLUSTER_CHUNK_BYTES) : 0;
}

bool object_hash(const char *data, size_t size, uint8_t out[OBJECT_HASH_BYTES])
{
    return EVP_Digest(data, size, out, NULL, EVP_sha256(), NULL) == 1;
}

enum status object_source_read(struct object_source *source, uint32_t chunk, struct buffer *out,
                               struct error *error)
{
    size_t size = object_chunk_size(source->size_bytes, chunk);
    uint64_t offset = (uint64_t)chunk * CLUSTER_CHUNK_BYTES;
    if (size == 0)
        return error_set(error, STATUS_INVALID, "it has no chunk %u", chunk);
    if (!buffer_reserve(out, OBJECT_HASH_BYTES + size))
        return error_memory(error, size);
    char *data = out->data + OBJECT_HASH_BYTES;
    enum status status = STATUS_OK;
    if (source->slice == NULL)
        status = read_all(source->fd, offset, size, data, error);
    else if (!weights_slice_read(source->slice, offset, data, size))
        status = error_set(error, STATUS_INVALID, "the slice ends before chunk %u", chunk);
    if (status == STATUS_OK && !object_hash(data, size, (uint8_t *)out->data))
        status = error_memory(error, OBJECT_HASH_BYTES);
    if (status == STATUS_OK)
        out->size = OBJECT_HASH_BYTES + size;
    return status;
}

/* ---- What the control plane knows and says --------------------------------------------------- */

void node_objects_facts(struct cluster_node *node, struct cluster_facts *facts)
{
    struct buffer folder = {0};
    struct disk disk;
    (void)node;
    if (home_directory(FOLDER, &folder, NULL) == STATUS_OK) {
        bool known = disk_query(folder.data, &disk, NULL) == STATUS_OK;
        facts->disk_free_bytes = known ? disk.free_bytes : UNKNOWN_DISK_BYTES;
        facts->n_objects = list_objects(folder.data, facts->objects, CLUSTER_MAX_OBJECTS);
    }
    buffer_free(&folder);
}

void node_object_used(const char *object)
{
    struct buffer path = {0};
    if (fetched_path(object, &path))
        utimensat(AT_FDCWD, path.data, NULL, 0);
    buffer_free(&path);
}

void node_object_call(const char *object, const char *model)
{
    char sha[CLUSTER_SHA_TEXT];
    struct buffer path = {0};
    struct file_writer *writer;
    snprintf(sha, sizeof sha, "%.*s", (int)sizeof sha - 1, object);
    if (strchr(object, '/') != NULL && model[0] != '\0' && node_object_file(sha, ".name", &path) &&
        access(path.data, F_OK) != 0 && file_create(&writer, path.data, NULL) == STATUS_OK) {
        if (file_write(writer, model, strlen(model), NULL) == STATUS_OK)
            file_commit(writer, NULL);
        else
            file_discard(writer);
    }
    buffer_free(&path);
}

void node_object_remove(void *context, const char *object)
{
    char sha[CLUSTER_SHA_TEXT];
    struct buffer path = {0};
    (void)context;
    snprintf(sha, sizeof sha, "%.*s", (int)sizeof sha - 1, object);
    if (node_object_file(object, ".gguf", &path))
        unlink(path.data);
    buffer_clear(&path);
    if (!node_object_any(sha, &path)) {
        buffer_clear(&path);
        if (node_object_file(sha, ".name", &path))
            unlink(path.data);
    }
    buffer_free(&path);
}

/* Whether a file is part of a fetch. */
static bool is_unfinished(const char *name)
{
    size_t size = strlen(name);
    return size > 5 &&
           (strcmp(name + size - 5, ".part") == 0 || strcmp(name + size - 5, ".have") == 0);
}

void node_objects_open(void)
{
    struct buffer folder = {0};
    struct dirent *entry;
    struct stat facts;
    time_t now = time(NULL);
    DIR *directory =
        home_directory(FOLDER, &folder, NULL) == STATUS_OK ? opendir(folder.data) : NULL;
    while (directory != NULL && (entry = readdir(directory)) != NULL)
        if (is_unfinished(entry->d_name) &&
            fstatat(dirfd(directory), entry->d_name, &facts, 0) == 0 &&
            now - facts.st_mtime > UNFINISHED_S)
            unlinkat(dirfd(directory), entry->d_name, 0);
    if (directory != NULL)
        closedir(directory);
    buffer_free(&folder);
}

/* ---- For people ------------------------------------------------------------------------------ */

/* The name beside the slices of a model; "": none. */
static void read_name(const char *sha, char out[CLUSTER_NAME_BYTES])
{
    struct buffer path = {0}, text = {0};
    out[0] = '\0';
    if (node_object_file(sha, ".name", &path) && access(path.data, R_OK) == 0 &&
        file_read(path.data, CLUSTER_NAME_BYTES - 1, &text, NULL) == STATUS_OK)
        snprintf(out, CLUSTER_NAME_BYTES, "%.*s", (int)text.size, text.size > 0 ? text.data : "");
    buffer_free(&path);
    buffer_free(&text);
}

size_t cluster_slices(struct cluster_slice out[CLUSTER_MAX_OBJECTS])
{
    struct cluster_object objects[CLUSTER_MAX_OBJECTS];
    uint32_t n_objects = list_fetched(objects);
    size_t n = 0;
    for (uint32_t i = 0; i < n_objects; i++) {
        const char *slash = strchr(objects[i].id, '/');
        if (slash != NULL && strcmp(slash, "/meta") == 0)
            continue;
        struct cluster_slice *slice = &out[n++];
        *slice = (struct cluster_slice){.size_bytes = objects[i].size_bytes,
                                        .used_s = (int64_t)objects[i].used_s};
        snprintf(slice->sha, sizeof slice->sha, "%.*s", (int)sizeof slice->sha - 1, objects[i].id);
        read_name(slice->sha, slice->model);
        slice_text(objects[i].id, slice->model[0] != '\0' ? slice->model : slice->sha, slice->text);
    }
    return n;
}

size_t cluster_slices_remove(const char *model)
{
    struct cluster_object objects[CLUSTER_MAX_OBJECTS];
    uint32_t n_objects = list_fetched(objects);
    size_t n = 0;
    for (uint32_t i = 0; i < n_objects; i++) {
        char sha[CLUSTER_SHA_TEXT], name[CLUSTER_NAME_BYTES];
        snprintf(sha, sizeof sha, "%.*s", (int)sizeof sha - 1, objects[i].id);
        read_name(sha, name);
        if (strcmp(sha, model) != 0 && strcmp(name, model) != 0)
            continue;
        node_object_remove(NULL, objects[i].id);
        n++;
    }
    return n;
}
