/* A store's folder: its names and its files. What changes names or removes files holds the lock. */
#include "store/internal.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define MAX_NAMES 10000
#define RECENT_NS 2000000000 /* longer than the clock of any file system stands still */
static const char name_end[] = ".json";

/* ---- Paths ----------------------------------------------------------------------------------- */

bool store_path_of(const struct store *store, const char *folder, const char *file,
                   struct buffer *out)
{
    buffer_clear(out);
    return buffer_printf(out, "%s/%s%s%s", store->path, folder, file[0] != '\0' ? "/" : "", file);
}

bool store_blob_path(const struct store *store, const char *digest, struct buffer *out)
{
    buffer_clear(out);
    return buffer_printf(out, "%s/blobs/sha256-%s", store->path, digest);
}

bool store_has_blob(const struct store *store, const struct store_file *file)
{
    struct buffer path = {0};
    struct stat facts;
    bool there = store_blob_path(store, file->digest, &path) && stat(path.data, &facts) == 0 &&
                 S_ISREG(facts.st_mode) && (uint64_t)facts.st_size == file->size_bytes;
    buffer_free(&path);
    return there;
}

/* The file of a name with its tag. Lower case and without ":" and "/", as some file systems need
 * it. */
static bool name_path(const struct store *store, const char *name, struct buffer *out)
{
    if (!store_path_of(store, "names", name, out) || !buffer_append_text(out, name_end))
        return false;
    for (char *at = out->data + strlen(store->path) + sizeof "/names/" - 1; *at != '\0'; at++)
        *at = *at == '/' ? '+' : *at == ':' ? '@' : (char)tolower((unsigned char)*at);
    return true;
}

/* ---- Opening --------------------------------------------------------------------------------- */

static enum status make_folders(struct store *store, struct error *error)
{
    static const char *const folders[] = {"names", "blobs", "split", "partial"};
    struct buffer path = {0};
    enum status status = STATUS_OK;
    if (mkdir(store->path, 0700) != 0 && errno != EEXIST)
        status = error_set(error, STATUS_IO, "cannot make the folder %s: %s", store->path,
                           strerror(errno));
    for (size_t i = 0; i < ARRAY_COUNT(folders) && status == STATUS_OK; i++) {
        if (!store_path_of(store, folders[i], "", &path))
            status = error_memory(error, 1);
        else if (mkdir(path.data, 0700) != 0 && errno != EEXIST)
            status = error_set(error, STATUS_IO, "cannot make the folder %s: %s", path.data,
                               strerror(errno));
    }
    buffer_free(&path);
    return status;
}

enum status store_open(struct store **out, const char *path, struct error *error)
{
    struct buffer home = {0};
    enum status status = STATUS_OK;
    *out = NULL;
    if (path == NULL) {
        status = home_directory("models", &home, error);
        path = home.data;
    }
    struct store *store = status == STATUS_OK ? calloc(1, sizeof *store) : NULL;
    if (store != NULL)
        store->path = strdup(path);
    if (status == STATUS_OK && (store == NULL || store->path == NULL))
        status = error_memory(error, sizeof *store);
    buffer_free(&home);
    if (status == STATUS_OK)
        status = make_folders(store, error);
    if (status != STATUS_OK) {
        store_close(store);
        return status;
    }
    *out = store;
    return STATUS_OK;
}

void store_close(struct store *store)
{
    if (store == NULL)
        return;
    free(store->path);
    free(store);
}

const char *store_path(const struct store *store)
{
    return store->path;
}

static enum status lock(const struct store *store, int *out, struct error *error)
{
    struct buffer path = {0};
    enum status status = store_path_of(store, "lock", "", &path) ? STATUS_OK : STATUS_MEMORY;
    if (status != STATUS_OK)
        error_memory(error, 1);
    else
        status = file_lock(out, path.data, true, error);
    buffer_free(&path);
    return status;
}

#if defined(__APPLE__)
#define MODIFIED(facts) (facts).st_mtimespec
#else
#define MODIFIED(facts) (facts).st_mtim
#endif

uint64_t store_version(const struct store *store, bool *recent)
{
    struct buffer path = {0};
    struct stat facts;
    struct timespec now;
    uint64_t version = 0;
    *recent = false;
    if (store_path_of(store, "names", "", &path) && stat(path.data, &facts) == 0) {
        version =
            (uint64_t)MODIFIED(facts).tv_sec * 1000000000u + (uint64_t)MODIFIED(facts).tv_nsec;
        clock_gettime(CLOCK_REALTIME, &now);
        uint64_t now_ns = (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
        *recent = now_ns < version + RECENT_NS;
    }
    buffer_free(&path);
    return version;
}

/* ---- Reading names --------------------------------------------------------------------------- */

/* The path that opens the model: its file, or the first of the links to its parts. */
static enum status set_path(const struct store *store, struct store_model *model,
                            struct error *error)
{
    struct buffer path = {0};
    if (model->n_files == 1) {
        store_blob_path(store, model->digest, &path);
    } else {
        store_path_of(store, "split", model->digest, &path);
        buffer_printf(&path, "/%s", model->files[0].name);
    }
    if (!path.failed)
        model->path = arena_copy(model->arena, path.data, path.size);
    buffer_free(&path);
    return model->path != NULL ? STATUS_OK : error_memory(error, 1);
}

static enum status read_name(const struct store *store, const char *path, struct store_model **out,
                             struct error *error)
{
    struct buffer text = {0};
    struct error reason;
    struct stat facts;
    *out = NULL;
    enum status status = file_read(path, STORE_MAX_MANIFEST_BYTES, &text, error);
    if (status == STATUS_OK) {
        status = store_manifest_read(out, (struct view){text.data, text.size}, &reason);
        if (status != STATUS_OK)
            error_set(error, status, "%s is broken: %s; remove it and pull the model again", path,
                      reason.text);
    }
    buffer_free(&text);
    if (status != STATUS_OK)
        return status;
    if (stat(path, &facts) == 0)
        (*out)->modified_s = (int64_t)facts.st_mtime;
    status = set_path(store, *out, error);
    if (status != STATUS_OK) {
        store_model_free(*out);
        *out = NULL;
    }
    return status;
}

enum status store_find(const struct store *store, const char *name, struct store_model **out,
                       struct error *error)
{
    char whole[STORE_NAME_BYTES];
    struct buffer path = {0};
    *out = NULL;
    enum status status = store_name_parse(name, whole, error);
    if (status == STATUS_OK && !name_path(store, whole, &path))
        status = error_memory(error, 1);
    if (status == STATUS_OK)
        status = read_name(store, path.data, out, error);
    if (status == STATUS_NOT_FOUND)
        error_set(error, status, "there is no model '%s' in the store", name);
    buffer_free(&path);
    return status;
}

static int by_name(const void *a, const void *b)
{
    const struct store_model *const *x = a, *const *y = b;
    return strcmp((*x)->name, (*y)->name);
}

static enum status add_to_list(const struct store *store, const char *file, struct store_list *list,
                               struct error *error)
{
    struct buffer path = {0};
    struct error reason;
    struct store_model *model, **grown;
    size_t size = strlen(file), end = sizeof name_end - 1;
    if (size <= end || strcmp(file + size - end, name_end) != 0)
        return STATUS_OK;
    if (list->n_models == MAX_NAMES)
        return error_set(error, STATUS_LIMIT, "%s/names has more than %d models", store->path,
                         MAX_NAMES);
    if (!store_path_of(store, "names", file, &path))
        return error_memory(error, 1);
    enum status status = read_name(store, path.data, &model, &reason);
    buffer_free(&path);
    if (status == STATUS_NOT_FOUND) /* removed just now */
        return STATUS_OK;
    if (status != STATUS_OK) {
        if (list->n_broken++ == 0)
            list->broken = reason;
        return STATUS_OK;
    }
    grown = realloc(list->models, (list->n_models + 1) * sizeof(struct store_model *));
    if (grown == NULL) {
        store_model_free(model);
        return error_memory(error, (list->n_models + 1) * sizeof(struct store_model *));
    }
    list->models = grown;
    list->models[list->n_models++] = model;
    return STATUS_OK;
}

enum status store_list(const struct store *store, struct store_list *out, struct error *error)
{
    struct buffer path = {0};
    struct dirent *entry;
    *out = (struct store_list){0};
    DIR *folder = store_path_of(store, "names", "", &path) ? opendir(path.data) : NULL;
    enum status status = STATUS_OK;
    if (folder == NULL)
        status =
            error_set(error, STATUS_IO, "cannot read %s/names: %s", store->path, strerror(errno));
    while (status == STATUS_OK && (entry = readdir(folder)) != NULL)
        status = add_to_list(store, entry->d_name, out, error);
    if (folder != NULL)
        closedir(folder);
    buffer_free(&path);
    if (status != STATUS_OK)
        store_list_free(out);
    else if (out->n_models > 0)
        qsort(out->models, out->n_models, sizeof(struct store_model *), by_name);
    return status;
}

void store_list_free(struct store_list *list)
{
    for (size_t i = 0; i < list->n_models; i++)
        store_model_free(list->models[i]);
    free(list->models);
    *list = (struct store_list){0};
}

/* ---- Writing names --------------------------------------------------------------------------- */

/* The parts of a split model find each other by their names: links give them those. They may be
 * there already, also from a process that was killed between two of them. */
static enum status link_parts(const struct store *store, const struct store_model *model,
                              struct error *error)
{
    struct buffer path = {0}, target = {0};
    enum status status = STATUS_OK;
    store_path_of(store, "split", model->digest, &path);
    if (!path.failed && mkdir(path.data, 0700) != 0 && errno != EEXIST)
        status = error_set(error, STATUS_IO, "cannot make the folder %s: %s", path.data,
                           strerror(errno));
    for (size_t i = 0; i < model->n_files && status == STATUS_OK; i++) {
        store_path_of(store, "split", model->digest, &path);
        buffer_printf(&path, "/%s", model->files[i].name);
        buffer_clear(&target);
        buffer_printf(&target, "../../blobs/sha256-%s", model->files[i].digest);
        if (path.failed || target.failed)
            status = error_memory(error, 1);
        else if (symlink(target.data, path.data) != 0 && errno != EEXIST)
            status = error_set(error, STATUS_IO, "cannot make the link %s: %s", path.data,
                               strerror(errno));
    }
    buffer_free(&path);
    buffer_free(&target);
    return status;
}

static enum status write_name(const struct store *store, const struct store_model *model,
                              struct error *error)
{
    struct buffer path = {0}, text = {0};
    struct file_writer *writer = NULL;
    enum status status = store_manifest_write(model, &text, error);
    if (status == STATUS_OK && !name_path(store, model->name, &path))
        status = error_memory(error, 1);
    if (status == STATUS_OK)
        status = file_create(&writer, path.data, error);
    if (status == STATUS_OK)
        status = file_write(writer, text.data, text.size, error);
    if (status == STATUS_OK)
        status = file_commit(writer, error);
    else
        file_discard(writer);
    buffer_free(&path);
    buffer_free(&text);
    return status;
}

enum status store_put(const struct store *store, const char *name, const struct store_model *model,
                      struct error *error)
{
    char whole[STORE_NAME_BYTES];
    int held = -1;
    enum status status = store_name_parse(name, whole, error);
    if (status == STATUS_OK)
        status = lock(store, &held, error);
    for (size_t i = 0; i < model->n_files && status == STATUS_OK; i++)
        if (!store_has_blob(store, &model->files[i]))
            status = error_set(error, STATUS_NOT_FOUND, "the file %s of %s is not in the store",
                               model->files[i].name, model->name);
    if (status == STATUS_OK && model->n_files > 1)
        status = link_parts(store, model, error);
    if (status == STATUS_OK) {
        struct store_model named = *model;
        named.name = whole;
        status = write_name(store, &named, error);
    }
    file_unlock(held);
    return status;
}

enum status store_copy(const struct store *store, const char *from, const char *to,
                       struct error *error)
{
    struct store_model *model;
    enum status status = store_find(store, from, &model, error);
    if (status == STATUS_OK)
        status = store_put(store, to, model, error);
    store_model_free(model);
    return status;
}

/* ---- Removing -------------------------------------------------------------------------------- */

static bool uses_file(const struct store_list *list, const char *digest)
{
    for (size_t m = 0; m < list->n_models; m++)
        for (size_t i = 0; i < list->models[m]->n_files; i++)
            if (strcmp(list->models[m]->files[i].digest, digest) == 0)
                return true;
    return false;
}

static void remove_links(const struct store *store, const struct store_model *model)
{
    struct buffer path = {0};
    for (size_t i = 0; i < model->n_files; i++)
        if (store_path_of(store, "split", model->digest, &path) &&
            buffer_printf(&path, "/%s", model->files[i].name))
            unlink(path.data);
    if (store_path_of(store, "split", model->digest, &path))
        rmdir(path.data);
    buffer_free(&path);
}

/* Removes what of a model no name needs any more. The lock is held. */
static enum status drop_files(const struct store *store, const struct store_model *model,
                              uint64_t *freed_bytes, struct error *error)
{
    struct store_list list;
    struct buffer path = {0};
    bool shared = false;
    enum status status = store_list(store, &list, error);
    if (status != STATUS_OK)
        return status;
    if (list.n_broken > 0) { /* whose files these are is not known */
        *error = list.broken;
        store_list_free(&list);
        return error->code;
    }
    for (size_t i = 0; i < list.n_models; i++)
        shared |= strcmp(list.models[i]->digest, model->digest) == 0;
    if (!shared && model->n_files > 1)
        remove_links(store, model);
    for (size_t i = 0; i < model->n_files; i++) {
        const struct store_file *file = &model->files[i];
        if (!uses_file(&list, file->digest) && store_blob_path(store, file->digest, &path) &&
            unlink(path.data) == 0 && freed_bytes != NULL)
            *freed_bytes += file->size_bytes;
    }
    buffer_free(&path);
    store_list_free(&list);
    return STATUS_OK;
}

enum status store_remove(const struct store *store, const char *name, uint64_t *freed_bytes,
                         struct error *error)
{
    char whole[STORE_NAME_BYTES];
    struct store_model *model = NULL;
    struct buffer path = {0};
    struct error reason;
    int held = -1;
    if (freed_bytes != NULL)
        *freed_bytes = 0;
    enum status status = store_name_parse(name, whole, error);
    if (status == STATUS_OK && !name_path(store, whole, &path))
        status = error_memory(error, 1);
    if (status == STATUS_OK)
        status = lock(store, &held, error);
    if (status == STATUS_OK) {
        /* A name whose file is broken can be removed too; what it had is not known. */
        status = store_find(store, whole, &model, &reason);
        if (status == STATUS_NOT_FOUND)
            *error = reason;
        else if (unlink(path.data) != 0)
            status =
                error_set(error, STATUS_IO, "cannot remove %s: %s", path.data, strerror(errno));
        else
            status = model != NULL ? drop_files(store, model, freed_bytes, error) : STATUS_OK;
    }
    file_unlock(held);
    buffer_free(&path);
    store_model_free(model);
    return status;
}

/* ---- Files ----------------------------------------------------------------------------------- */

enum status store_adopt(const struct store *store, const char *path, const char *digest,
                        struct error *error)
{
    struct buffer blob = {0};
    enum status status = STATUS_OK;
    if (!store_blob_path(store, digest, &blob))
        status = error_memory(error, 1);
    else if (rename(path, blob.data) != 0)
        status = error_set(error, STATUS_IO, "cannot move %s to %s: %s", path, blob.data,
                           strerror(errno));
    buffer_free(&blob);
    return status;
}

enum status store_drop_files(const struct store *store, const struct store_model *model,
                             struct error *error)
{
    int held;
    enum status status = lock(store, &held, error);
    if (status == STATUS_OK)
        status = drop_files(store, model, NULL, error);
    file_unlock(held);
    return status;
}

enum status store_check_model(const struct store *store, struct store_model *model,
                              struct error *error)
{
    struct weights *weights = NULL;
    store_model_sum(model);
    enum status status = set_path(store, model, error);
    if (status == STATUS_OK && model->n_files > 1)
        status = link_parts(store, model, error);
    if (status == STATUS_OK)
        status = weights_open(&weights, model->path, error);
    weights_close(weights);
    return status;
}

enum status store_check_room(const struct store *store, uint64_t bytes, struct error *error)
{
    struct disk disk;
    enum status status = disk_query(store->path, &disk, error);
    if (status != STATUS_OK || bytes + STORE_SPARE_BYTES <= disk.free_bytes)
        return status;
    return error_set(error, STATUS_LIMIT,
                     "this needs %.2f GB, and %.2f GB are free in %s: make room, or name another "
                     "folder with CONSORT_HOME",
                     (double)bytes / 1e9, (double)disk.free_bytes / 1e9, store->path);
}
