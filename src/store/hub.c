/* Models in the layout of Hugging Face:
 *
 *     BASE/api/models/OWNER/REPO/tree/main?recursive=true     the files there are
 *     BASE/OWNER/REPO/resolve/main/FILE                       a file
 *
 *     [{"type": "file", "path": "x-Q4_K_M.gguf", "size": 123,
 *       "lfs": {"oid": "HEX of the SHA-256", "size": 123}}, ...]
 */
#include "store/internal.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#define MAX_LIST_BYTES ((size_t)16 << 20)
#define MAX_PATH_BYTES 1024
#define MAX_CANDIDATES 1000

static const char *const preferred[] = {"Q4_K_M", "Q4_K_S", "Q4_0", "Q8_0"};

/* A file of the repository, or the first of the parts of one. */
struct candidate {
    const char *path; /* borrowed from the list */
    size_t stem;      /* bytes of path before the number of a part and .gguf */
    unsigned parts;   /* 1: a file of its own */
};

struct candidates {
    struct candidate list[MAX_CANDIDATES];
    size_t count;
};

/* ---- Choosing -------------------------------------------------------------------------------- */

static const char *without_folders(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash != NULL ? slash + 1 : path;
}

static const char *gguf_path(const json_t *entry)
{
    const char *path = json_string_value(json_object_get(entry, "path"));
    size_t size = path != NULL ? strlen(path) : 0;
    if (size <= 5 || size > MAX_PATH_BYTES || strcasecmp(path + size - 5, ".gguf") != 0)
        return NULL;
    return path;
}

/* Models; what only belongs to one, as the part that sees images does, is none. */
static void gather(const json_t *tree, struct candidates *out)
{
    const json_t *entry;
    size_t i;
    json_array_foreach(tree, i, entry)
    {
        unsigned number = 1;
        const char *path = gguf_path(entry);
        if (path == NULL || strncasecmp(without_folders(path), "mmproj", 6) == 0 ||
            out->count == MAX_CANDIDATES)
            continue;
        unsigned parts = part_count_of(path, &number);
        if (parts > 0 && number != 1)
            continue;
        size_t ending = strlen(".gguf") + (parts > 0 ? strlen("-00001-of-00002") : 0);
        out->list[out->count++] =
            (struct candidate){.path = path, .stem = strlen(path) - ending, .parts = MAX(parts, 1)};
    }
}

/* Whether the stem has the word at its end or between separators: "Q4_K" is not in "x-Q4_K_M". */
static bool has_word(const struct candidate *candidate, const char *word)
{
    size_t size = strlen(word);
    const char *name = without_folders(candidate->path);
    size_t stem = candidate->stem - (size_t)(name - candidate->path);
    for (size_t i = 1; i + size <= stem; i++)
        if (strchr("-._", name[i - 1]) != NULL && strncasecmp(name + i, word, size) == 0 &&
            (i + size == stem || strchr("-.", name[i + size]) != NULL))
            return true;
    return false;
}

/* "UD-Q4_K_XL", "x-Q4_K_M.gguf", or "folder/x.gguf". */
static bool is_wanted(const struct candidate *candidate, const char *wanted)
{
    return strcmp(candidate->path, wanted) == 0 ||
           strcasecmp(without_folders(candidate->path), wanted) == 0 || has_word(candidate, wanted);
}

static const struct candidate *choose(const struct candidates *all, const char *wanted,
                                      struct error *error)
{
    const struct candidate *best = NULL;
    struct buffer names = {0};
    for (size_t i = 0; i < all->count && wanted != NULL; i++)
        if (is_wanted(&all->list[i], wanted) && (best == NULL || all->list[i].stem < best->stem))
            best = &all->list[i];
    if (wanted == NULL && all->count == 1)
        best = &all->list[0];
    for (size_t p = 0; p < ARRAY_COUNT(preferred) && wanted == NULL && best == NULL; p++)
        for (size_t i = 0; i < all->count && best == NULL; i++)
            if (has_word(&all->list[i], preferred[p]))
                best = &all->list[i];
    if (best != NULL)
        return best;
    for (size_t i = 0; i < all->count && names.size < 160; i++)
        buffer_printf(&names, "%s%s", i > 0 ? ", " : "", without_folders(all->list[i].path));
    error_set(error, STATUS_NOT_FOUND, "%s%s there; name one of: %s",
              wanted != NULL ? "there is no " : "it is not clear which file is wanted",
              wanted != NULL ? wanted : "", names.size > 0 ? names.data : "no GGUF files at all");
    buffer_free(&names);
    return NULL;
}

/* ---- Files ----------------------------------------------------------------------------------- */

static const json_t *entry_of(const json_t *tree, const char *path)
{
    const json_t *entry;
    size_t i;
    json_array_foreach(tree, i, entry)
    {
        const char *found = json_string_value(json_object_get(entry, "path"));
        if (found != NULL && strcmp(found, path) == 0)
            return entry;
    }
    return NULL;
}

/* Adds the file; paths[] gets where it is in the repository. */
static enum status add_file(struct pull *pull, const json_t *tree, const char *path,
                            const char **kept, struct error *error)
{
    const json_t *entry = entry_of(tree, path), *lfs = json_object_get(entry, "lfs");
    const json_t *size = json_object_get(lfs != NULL ? lfs : entry, "size");
    const char *oid = json_string_value(json_object_get(lfs, "oid"));
    if (entry == NULL)
        return error_set(error, STATUS_NOT_FOUND,
                         "the repository lacks %.150s, a part of the model", path);
    if (!json_is_integer(size) || json_integer_value(size) <= 0 ||
        json_integer_value(size) > STORE_MAX_FILE_BYTES)
        return error_set(error, STATUS_INVALID, "the list of files gives %.150s no good size",
                         path);
    struct store_file *file = pull_add_file(pull, without_folders(path), error);
    if (file == NULL)
        return error->code;
    file->size_bytes = (uint64_t)json_integer_value(size);
    if (oid != NULL && digest_valid(oid))
        memcpy(file->digest, oid, STORE_DIGEST_BYTES);
    *kept = store_model_text(pull->model, path);
    return STATUS_OK;
}

static enum status add_files(struct pull *pull, const json_t *tree,
                             const struct candidate *candidate, const char **paths,
                             struct error *error)
{
    char path[MAX_PATH_BYTES + 32];
    enum status status = STATUS_OK;
    uint64_t missing_bytes = 0;
    if (candidate->parts > STORE_MAX_FILES)
        return error_set(error, STATUS_LIMIT, "a model has at most %d files", STORE_MAX_FILES);
    for (unsigned i = 0; i < candidate->parts && status == STATUS_OK; i++) {
        snprintf(path, sizeof path, "%s", candidate->path);
        if (candidate->parts > 1)
            snprintf(path + candidate->stem, sizeof path - candidate->stem, "-%05u-of-%05u.gguf",
                     i + 1, candidate->parts);
        status = add_file(pull, tree, path, &paths[i], error);
        if (status == STATUS_OK)
            missing_bytes += pull_missing_bytes(pull, &pull->model->files[i]);
    }
    return status == STATUS_OK ? store_check_room(pull->store, missing_bytes, error) : status;
}

static enum status download_all(struct pull *pull, const char *base, const char *repository,
                                const char *const *paths, struct error *error)
{
    struct buffer url = {0};
    enum status status = STATUS_OK;
    for (size_t i = 0; i < pull->model->n_files && status == STATUS_OK; i++) {
        buffer_clear(&url);
        buffer_printf(&url, "%s/%s/resolve/main/", base, repository);
        if (url_append(&url, paths[i]))
            status = pull_download(pull, url.data, true, &pull->model->files[i], error);
        else
            status = error_memory(error, 1);
    }
    buffer_free(&url);
    return status;
}

static enum status pull_chosen(struct pull *pull, const char *base, const char *repository,
                               const char *wanted, const json_t *tree, struct error *error)
{
    struct candidates *all = calloc(1, sizeof *all);
    const char **paths = calloc(STORE_MAX_FILES, sizeof *paths);
    enum status status = STATUS_MEMORY;
    if (all == NULL || paths == NULL) {
        error_memory(error, sizeof *all);
    } else {
        gather(tree, all);
        const struct candidate *chosen = choose(all, wanted, error);
        status = chosen != NULL ? add_files(pull, tree, chosen, paths, error) : error->code;
        if (status == STATUS_OK)
            status = download_all(pull, base, repository, paths, error);
    }
    free(all);
    free(paths);
    return status;
}

enum status pull_hub(struct pull *pull, const char *base, const char *repository,
                     const char *wanted, struct error *error)
{
    struct buffer url = {0}, text = {0};
    json_error_t where;
    json_t *tree = NULL;
    enum status status = pull_say(pull, "pulling manifest", error);
    if (status == STATUS_OK &&
        !buffer_printf(&url, "%s/api/models/%s/tree/main?recursive=true", base, repository))
        status = error_memory(error, 1);
    if (status == STATUS_OK)
        status = fetch_document(pull, url.data, true, MAX_LIST_BYTES, &text, error);
    if (status == STATUS_OK) {
        buffer_clear(&url);
        buffer_printf(&url, "%s/%s", base, repository);
        pull->model->source = store_model_text(pull->model, url.failed ? "" : url.data);
        tree = json_loadb(text.data, text.size, 0, &where);
        status =
            json_is_array(tree)
                ? pull_chosen(pull, base, repository, wanted, tree, error)
                : error_set(error, STATUS_INVALID,
                            "%.150s gave no list of files: is this a hub of models?", url.data);
    }
    json_decref(tree);
    buffer_free(&url);
    buffer_free(&text);
    return status;
}
