/* store: model files under names, by their content.
 *
 * A store is one folder. Files lie in it once each, named by their SHA-256; a name is a small JSON
 * file that says which files a model has and how it wants to be asked. What is under a name is
 * whole and verified: files are checked before they get their place, and names appear by a rename.
 * Any number of processes may use one store: what changes it is done under a lock, and a process
 * that is killed leaves nothing but a download that the next one goes on with.
 *
 *     names/llama3.2@1b.json     what a name stands for
 *     blobs/sha256-HEX           the files
 *     split/HEX/                 the parts of a split model, as links with the names they need
 *     partial/                   downloads that are not whole
 *
 * A struct store is read-only after store_open: any thread may use it. All calls read and write
 * files, and store_pull waits for the network: none is for a thread that must not block.
 */
#ifndef CONSORT_STORE_H
#define CONSORT_STORE_H

#include "base/base.h"
#include "weights/weights.h"

#include <jansson.h>
#include <stdatomic.h>

/* ---- Names ----------------------------------------------------------------------------------- */

/* [OWNER/]...NAME[:TAG] of letters, digits and ._-, each part beginning with a letter or a digit.
 * In the store every name has a tag, which is "latest" where none is given. Names that differ only
 * in case are the same. */
#define STORE_NAME_BYTES 201 /* with the terminating zero */

/* The name with its tag. */
enum status store_name_parse(const char *text, char out[STORE_NAME_BYTES], struct error *error);
/* The length of name without ":latest". */
size_t store_name_short(const char *name);
/* A good name for a file or a URL: its last part without .gguf and the number of a part. */
void store_name_of_file(const char *path, char out[STORE_NAME_BYTES]);

/* ---- Models ---------------------------------------------------------------------------------- */

#define STORE_DIGEST_BYTES 65 /* SHA-256 in hexadecimal, with the terminating zero */
#define STORE_MAX_FILES 1000
#define STORE_MAX_MANIFEST_BYTES ((size_t)4 << 20)

struct store_file {
    const char *name; /* as it was called where it came from; no folders */
    char digest[STORE_DIGEST_BYTES];
    uint64_t size_bytes;
};

/* What a name stands for. All it points to lives as long as it does. */
struct store_model {
    struct arena *arena;
    const char *name; /* with its tag */
    const char *path; /* of the file to open; NULL for one that store_find did not give */
    char digest[STORE_DIGEST_BYTES]; /* of its file, or of the digests of its parts */
    uint64_t size_bytes;             /* of all files */
    int64_t modified_s;              /* since 1970; of the name */
    struct store_file *files;        /* [n_files]: the parts of one model, in order */
    size_t n_files;
    const char *source;        /* where it came from, or "" as the next three */
    const char *system;        /* what the system says where the client says nothing */
    const char *chat_template; /* in Go's language, as Ollama has it */
    bool template_wins;        /* over the one that the model file carries */
    const char *license;
    json_t *parameters; /* object: default sampling, as Ollama names it; owned */
    json_t *messages;   /* array: the beginning of each conversation; owned */
};

/* An empty one, to be filled. NULL when memory is out. */
struct store_model *store_model_new(void);
void store_model_free(struct store_model *model); /* NULL allowed */
/* A copy of text that lives as long as the model; "" where memory is out. */
const char *store_model_text(struct store_model *model, const char *text);

/* The JSON of a name's file, which is not trusted: sizes, digests, names and texts are checked. */
enum status store_manifest_read(struct store_model **out, struct view text, struct error *error);
enum status store_manifest_write(const struct store_model *model, struct buffer *out,
                                 struct error *error);

/* Takes what a Modelfile says into a model, and what it is made from into *from, which lives as
 * long as the model. A fault is told with its line. */
enum status store_modelfile_read(struct store_model *model, struct view text, const char **from,
                                 struct error *error);

/* ---- The store ------------------------------------------------------------------------------- */

struct store;

/* Opens the store in a folder, or where path is NULL in the user's (home_directory), and makes what
 * is missing. */
enum status store_open(struct store **out, const char *path, struct error *error);
void store_close(struct store *store); /* NULL allowed */
const char *store_path(const struct store *store);

/* A number that changes with every change of the names, except that two changes within a few
 * milliseconds may share one; *recent where the last one is so fresh that this matters. */
uint64_t store_version(const struct store *store, bool *recent);

/* STATUS_NOT_FOUND where there is no such name. */
enum status store_find(const struct store *store, const char *name, struct store_model **out,
                       struct error *error);

struct store_list {
    struct store_model **models; /* [n_models], by name */
    size_t n_models;
    size_t n_broken; /* names whose file cannot be read, and why of the first */
    struct error broken;
};
enum status store_list(const struct store *store, struct store_list *out, struct error *error);
void store_list_free(struct store_list *list);

/* Gives the model one more name, or that name another model. STATUS_NOT_FOUND where a file of it is
 * not in the store. */
enum status store_put(const struct store *store, const char *name, const struct store_model *model,
                      struct error *error);
enum status store_copy(const struct store *store, const char *from, const char *to,
                       struct error *error);
/* Drops a name, and the files that no other name has; *freed_bytes unless NULL. */
enum status store_remove(const struct store *store, const char *name, uint64_t *freed_bytes,
                         struct error *error);

/* The SHA-256 of a file that is in no store; about a second a gigabyte. Any thread; *stop ends it
 * with STATUS_CANCELLED. */
enum status store_file_digest(const char *path, const atomic_bool *stop,
                              char out[STORE_DIGEST_BYTES], struct error *error);

/* Downloads that are not whole and that nobody works on; the same pull would go on with them. */
struct store_abandoned {
    size_t n_files;
    uint64_t size_bytes;
};
enum status store_abandoned(const struct store *store, struct store_abandoned *out,
                            struct error *error);
enum status store_drop_abandoned(const struct store *store, struct store_abandoned *dropped,
                                 struct error *error);

/* ---- Pulling --------------------------------------------------------------------------------- */

/* What happens, in words and numbers; total_bytes is 0 for what has none. */
struct store_progress {
    const char *what; /* "pulling manifest", "pulling 1a2b3c4d5e6f", "success", as Ollama says it */
    const char *file; /* its name, or "" */
    const char *digest; /* of the file that is being pulled, or "" */
    uint64_t done_bytes, total_bytes;
    uint64_t begin_bytes; /* of these, there before */
    const char *trouble;  /* what went wrong, where it is tried again; or "" */
};

/* False cancels. Called at the beginning and the end of every part, and in between often. */
typedef bool store_progress_fn(void *context, const struct store_progress *progress);

/* As a line of Ollama's answer; NULL when memory is out. */
json_t *store_progress_json(const struct store_progress *progress);

struct store_pull {
    /* NAME[:TAG] of Ollama's registry, OWNER/REPO[:FORMAT or FILE] of Hugging Face, a URL or a
     * file. The environment variable HF_TOKEN goes along to the hub. */
    const char *source;
    bool names_only;  /* the source is neither a URL nor a file */
    const char *name; /* under which it is kept; NULL: that of the source */
    const char
        *mirror;      /* base URL of a registry or hub of the same layout; NULL: the public ones */
    unsigned tries;   /* of a connection, where none brings anything; 0: 8 */
    unsigned stall_s; /* a connection that gives nothing for so long is opened anew; 0: 30 */
    store_progress_fn *progress;
    void *context;
};

/* Brings a model into the store and gives it its name; *out (unless NULL) is what it has then.
 * Downloads that were not touched for two weeks go. */
enum status store_pull(const struct store *store, const struct store_pull *pull,
                       struct store_model **out, struct error *error);

#endif
