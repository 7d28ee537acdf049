/* A pull from its source to its name. */
#include "store/internal.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

/* Where names are looked up unless a mirror is named. */
#define REGISTRY "https://registry.ollama.ai"
#define HUB "https://huggingface.co"

/* ---- Progress -------------------------------------------------------------------------------- */

#define TELL_NS 100000000u /* between two that say nothing new */

enum status pull_tell(struct pull *pull, struct error *error)
{
    const struct store_pull *options = pull->options;
    const struct store_progress *at = &pull->at, *told = &pull->told;
    uint64_t now_ns = clock_now_ns();
    bool news = at->what != told->what || at->file != told->file || at->trouble[0] != '\0' ||
                (at->done_bytes == at->total_bytes && told->done_bytes != at->done_bytes);
    if (options->progress == NULL || (!news && now_ns - pull->told_ns < TELL_NS))
        return STATUS_OK;
    pull->told = *at;
    pull->told_ns = now_ns;
    if (options->progress(options->context, at))
        return STATUS_OK;
    return error_set(error, STATUS_CANCELLED, "cancelled; the same pull goes on from here");
}

enum status pull_say(struct pull *pull, const char *what, struct error *error)
{
    pull->at = (struct store_progress){.what = what, .file = "", .digest = "", .trouble = ""};
    return pull_tell(pull, error);
}

enum status pull_wait(struct pull *pull, unsigned ms, struct error *error)
{
    enum { STEP_MS = 50 };
    enum status status = STATUS_OK;
    for (unsigned waited_ms = 0; waited_ms < ms && status == STATUS_OK; waited_ms += STEP_MS) {
        nanosleep(&(struct timespec){.tv_nsec = STEP_MS * 1000000L}, NULL);
        status = pull_tell(pull, error);
    }
    return status;
}

json_t *store_progress_json(const struct store_progress *progress)
{
    json_t *line = json_pack("{s:s}", "status", progress->what);
    if (progress->digest[0] != '\0')
        json_object_set_new(line, "digest", json_sprintf("sha256:%s", progress->digest));
    if (progress->total_bytes > 0) {
        json_object_set_new(line, "total", json_integer((json_int_t)progress->total_bytes));
        json_object_set_new(line, "completed", json_integer((json_int_t)progress->done_bytes));
    }
    return line;
}

/* ---- Files ----------------------------------------------------------------------------------- */

struct store_file *pull_add_file(struct pull *pull, const char *name, struct error *error)
{
    struct store_model *model = pull->model;
    if (model->n_files == STORE_MAX_FILES) {
        error_set(error, STATUS_LIMIT, "a model has at most %d files", STORE_MAX_FILES);
        return NULL;
    }
    struct store_file *file = &model->files[model->n_files++];
    file->name = store_model_text(model, utf8_valid(name, strlen(name)) ? name : "model.gguf");
    return file;
}

enum status partial_open(struct partial *partial, struct pull *pull, const char *key,
                         struct error *error)
{
    *partial = (struct partial){.lock = -1};
    if (!store_path_of(pull->store, "partial", key, &partial->path) ||
        !buffer_printf(&partial->lock_path, "%s.lock", partial->path.data))
        return error_memory(error, 1);
    enum status status = file_lock(&partial->lock, partial->lock_path.data, false, error);
    if (status == STATUS_BUSY) {
        pull->at.trouble = "another pull brings the same file: waiting for it";
        status = pull_tell(pull, error);
        pull->at.trouble = "";
        while (status == STATUS_OK && partial->lock < 0) {
            status = pull_wait(pull, 200, error);
            if (status == STATUS_OK)
                status = file_lock(&partial->lock, partial->lock_path.data, false, error);
            if (status == STATUS_BUSY)
                status = STATUS_OK;
        }
    }
    return status;
}

void partial_close(struct partial *partial)
{
    if (partial->lock >= 0)
        unlink(partial->lock_path.data);
    file_unlock(partial->lock);
    buffer_free(&partial->path);
    buffer_free(&partial->lock_path);
}

uint64_t pull_missing_bytes(const struct pull *pull, const struct store_file *file)
{
    char key[STORE_DIGEST_BYTES + 8];
    struct buffer path = {0};
    struct stat facts;
    uint64_t there = 0;
    if (store_has_blob(pull->store, file))
        return 0;
    snprintf(key, sizeof key, "sha256-%s", file->digest);
    if (store_path_of(pull->store, "partial", key, &path) && stat(path.data, &facts) == 0)
        there = MIN((uint64_t)facts.st_size, file->size_bytes);
    buffer_free(&path);
    return file->size_bytes - there;
}

/* ---- The pull -------------------------------------------------------------------------------- */

/* What a source means: OWNER/REPO[:FORMAT or FILE] of the hub, or [OWNER/]NAME[:TAG] of the
 * registry. */
struct reference {
    bool hub;
    const char *base;
    char repository[STORE_NAME_BYTES]; /* "OWNER/REPO", "library/NAME" */
    const char *tag;                   /* NULL: none */
};

static enum status read_reference(const struct pull *pull, const char *source,
                                  struct reference *out, struct error *error)
{
    static const struct {
        const char *prefix;
        bool hub;
    } hosts[] = {{"hf.co/", true},
                 {"huggingface.co/", true},
                 {"ollama.com/", false},
                 {"registry.ollama.ai/", false}};
    char checked[STORE_NAME_BYTES];
    const char *at = source, *mirror = pull->options->mirror;
    bool chosen = false;
    for (size_t i = 0; i < ARRAY_COUNT(hosts) && !chosen; i++) {
        size_t size = strlen(hosts[i].prefix);
        chosen = strncmp(source, hosts[i].prefix, size) == 0;
        if (chosen) {
            out->hub = hosts[i].hub;
            at += size;
        }
    }
    size_t name = strcspn(at, ":");
    bool owner = memchr(at, '/', name) != NULL;
    if (!chosen)
        out->hub = owner;
    snprintf(out->repository, sizeof out->repository, "%s%.*s", owner ? "" : "library/",
             (int)MIN(name, sizeof out->repository), at);
    out->tag = at[name] == ':' && at[name + 1] != '\0' ? at + name + 1 : NULL;
    out->base = mirror != NULL ? mirror : out->hub ? HUB : REGISTRY;
    /* A file of the hub may stand in folders; else it is a name as the store has them. */
    enum status status = store_name_parse(out->repository, checked, error);
    if (status == STATUS_OK && out->tag != NULL && !out->hub)
        status = store_name_parse(source, checked, error);
    if (status == STATUS_OK && strchr(strchr(out->repository, '/') + 1, '/') != NULL)
        status = error_set(
            error, STATUS_INVALID,
            "'%.100s' is no name of a model: it is NAME[:TAG] or OWNER/REPO[:FORMAT]", source);
    return status;
}

/* The name in the store: as the source is called, with the name of a file for its tag. */
static enum status choose_name(struct pull *pull, char out[STORE_NAME_BYTES], struct error *error)
{
    char made[STORE_NAME_BYTES], file[STORE_NAME_BYTES];
    const char *name = pull->options->name, *source = pull->options->source;
    struct stat facts;
    if (name == NULL &&
        (pull->options->names_only || (!url_is(source) && stat(source, &facts) != 0))) {
        int colon = (int)strcspn(source, ":");
        bool tagged = source[colon] == ':' && source[colon + 1] != '\0';
        if (tagged)
            store_name_of_file(source + colon + 1, file);
        if (snprintf(made, sizeof made, "%.*s%s%s", colon, source, tagged ? ":" : "",
                     tagged ? file : "") >= (int)sizeof made)
            return store_name_parse(source, out, error);
        name = made;
    } else if (name == NULL) {
        char path[4096];
        snprintf(path, sizeof path, "%.*s", url_is(source) ? url_shown(source) : INT_MAX, source);
        store_name_of_file(path, made);
        name = made;
    }
    return store_name_parse(name, out, error);
}

/* All parts, where the URL is that of one. */
static enum status pull_url(struct pull *pull, const char *url, struct error *error)
{
    char file_name[STORE_NAME_BYTES + 32], digits[16];
    unsigned number, count;
    size_t shown = (size_t)url_shown(url);
    struct buffer part = {0}, path = {0};
    buffer_append(&path, url, shown);
    if (path.failed)
        return error_memory(error, shown);
    count = part_count_of(path.data, &number);
    pull->model->source = store_model_text(pull->model, path.data);
    enum status status = STATUS_OK;
    for (unsigned i = 1; i <= MAX(count, 1) && status == STATUS_OK; i++) {
        buffer_clear(&part);
        if (count > 0) { /* -00001-of-00003.gguf */
            snprintf(digits, sizeof digits, "%05u", i);
            memcpy(path.data + path.size - strlen("00001-of-00003.gguf"), digits, 5);
        }
        buffer_printf(&part, "%s%s", path.data, url + shown);
        store_name_of_file(path.data, file_name);
        if (count > 0)
            snprintf(file_name + strlen(file_name), 27, "-%05u-of-%05u", i, count);
        strcat(file_name, ".gguf");
        struct store_file *file = pull_add_file(pull, file_name, error);
        status = file == NULL  ? error->code
                 : part.failed ? error_memory(error, 1)
                               : pull_download(pull, part.data, false, file, error);
    }
    buffer_free(&part);
    buffer_free(&path);
    return status;
}

static enum status fetch(struct pull *pull, struct error *error)
{
    struct stat facts;
    struct reference reference;
    const char *source = pull->options->source;
    size_t size = strlen(source);
    bool any = !pull->options->names_only;
    if (any && url_is(source))
        return pull_url(pull, source, error);
    if (any &&
        (stat(source, &facts) == 0 || strchr("/.~", source[0]) != NULL ||
         (strchr(source, ':') == NULL && size > 5 && strcmp(source + size - 5, ".gguf") == 0)))
        return pull_local(pull, source, error);
    enum status status = read_reference(pull, source, &reference, error);
    if (status != STATUS_OK)
        return status;
    if (reference.hub)
        return pull_hub(pull, reference.base, reference.repository, reference.tag, error);
    return pull_registry(pull, reference.base, reference.repository,
                         reference.tag != NULL ? reference.tag : "latest", error);
}

/* Gives the model its name, once it proves to be one. A file that another process removed
 * meanwhile, with the last name that had it, is STATUS_NOT_FOUND. */
static enum status commit(struct pull *pull, const char *name, struct error *error)
{
    const struct store *store = pull->store;
    struct error ignored;
    enum status status = pull_say(pull, "verifying sha256 digest", error);
    if (status != STATUS_OK)
        return status;
    status = store_check_model(store, pull->model, error);
    if (status != STATUS_OK && status != STATUS_NOT_FOUND)
        store_drop_files(store, pull->model, &ignored);
    if (status == STATUS_OK)
        status = pull_say(pull, "writing manifest", error);
    return status == STATUS_OK ? store_put(store, name, pull->model, error) : status;
}

/* Files may go again before the name is there, with the last other name that had them. */
static enum status fetch_and_commit(struct pull *pull, const char *name, struct error *error)
{
    enum status status = STATUS_NOT_FOUND;
    for (int round = 0; round < 3 && status == STATUS_NOT_FOUND; round++) {
        pull->model->n_files = 0;
        status = fetch(pull, error);
        if (status != STATUS_OK)
            return status;
        status = commit(pull, name, error);
    }
    return status;
}

enum status store_pull(const struct store *store, const struct store_pull *options,
                       struct store_model **out, struct error *error)
{
    char name[STORE_NAME_BYTES];
    struct pull pull = {.store = store,
                        .options = options,
                        .model = store_model_new(),
                        .token = getenv("HF_TOKEN"),
                        .at = {.what = "", .file = "", .digest = "", .trouble = ""},
                        .told = {.what = ""}};
    enum status status = pull.model != NULL ? STATUS_OK : error_memory(error, sizeof *pull.model);
    if (status == STATUS_OK)
        status = choose_name(&pull, name, error);
    if (status == STATUS_OK)
        store_drop_old(store);
    if (status == STATUS_OK)
        status = fetch_and_commit(&pull, name, error);
    if (status == STATUS_OK)
        status = pull_say(&pull, "success", error);
    if (status == STATUS_OK && out != NULL)
        status = store_find(store, name, out, error);
    store_model_free(pull.model);
    return status;
}
