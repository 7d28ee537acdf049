/* What the files of src/store share. */
#ifndef CONSORT_STORE_INTERNAL_H
#define CONSORT_STORE_INTERNAL_H

#include "store/store.h"

struct store {
    char *path;
};

/* ---- Digests --------------------------------------------------------------------------------- */

struct digest;

struct digest *digest_open(void); /* NULL when memory is out */
void digest_add(struct digest *digest, const void *data, size_t size);
void digest_end(struct digest *digest, char out[STORE_DIGEST_BYTES]); /* frees it */
void digest_discard(struct digest *digest);                           /* NULL allowed */
/* 64 hexadecimal digits in lower case. */
bool digest_valid(const char *text);

/* ---- Paths ----------------------------------------------------------------------------------- */

/* Each replaces out; false when memory is out. */
bool store_path_of(const struct store *store, const char *folder, const char *file,
                   struct buffer *out);
bool store_blob_path(const struct store *store, const char *digest, struct buffer *out);
bool store_has_blob(const struct store *store, const struct store_file *file);

/* "consort.gguf" out of "consort-00001-of-00003.gguf"; 0 where the name is not that of a part. */
unsigned part_count_of(const char *name, unsigned *number);

#define STORE_MAX_FILE_BYTES ((json_int_t)1 << 50)

/* ---- Models ---------------------------------------------------------------------------------- */

/* Fills digest and size_bytes from the files. */
void store_model_sum(struct store_model *model);

/* Files of the model that no name has are removed. */
enum status store_drop_files(const struct store *store, const struct store_model *model,
                             struct error *error);
/* That the files, which are in the store, are a model; fills its digest and path. */
enum status store_check_model(const struct store *store, struct store_model *model,
                              struct error *error);

/* ---- Pulling --------------------------------------------------------------------------------- */

/* A pull under way. */
struct pull {
    const struct store *store;
    const struct store_pull *options;
    struct store_model *model;
    const char *token; /* for the hub; NULL: none */
    struct store_progress at;
    struct store_progress told; /* what was told last, and when */
    uint64_t told_ns;
};

/* Tells the progress; STATUS_CANCELLED where it is not wanted any more. */
enum status pull_tell(struct pull *pull, struct error *error);
enum status pull_say(struct pull *pull, const char *what, struct error *error);
/* Adds a file to the model. */
struct store_file *pull_add_file(struct pull *pull, const char *name, struct error *error);

/* Waits between two looks at something; STATUS_CANCELLED as pull_tell. */
enum status pull_wait(struct pull *pull, unsigned ms, struct error *error);
/* What has to come of a file yet. */
uint64_t pull_missing_bytes(const struct pull *pull, const struct store_file *file);

/* Brings a file of this machine, or all parts of a split one, into the store. */
enum status pull_local(struct pull *pull, const char *path, struct error *error);
/* Brings the file of a URL. Its digest, where it is known, and its size are those of file. */
enum status pull_download(struct pull *pull, const char *url, bool with_token,
                          struct store_file *file, struct error *error);
/* A model of a registry in Ollama's layout: "library/NAME", its tag. */
enum status pull_registry(struct pull *pull, const char *base, const char *path, const char *tag,
                          struct error *error);
/* A model of a hub in Hugging Face's layout: "OWNER/REPO", and which of its files: a format, a
 * name, or NULL. */
enum status pull_hub(struct pull *pull, const char *base, const char *repository,
                     const char *wanted, struct error *error);
/* A layer of a registry's manifest: digest and size. */
enum status registry_read_layer(const json_t *layer, struct store_file *out, struct error *error);

/* ---- HTTP ------------------------------------------------------------------------------------ */

#define FETCH_ETAG_BYTES 256

/* One GET, and what came of it. */
struct fetch {
    struct pull *pull;
    const char *url;
    bool with_token;      /* the pull's token goes along, over what is encrypted */
    uint64_t from_bytes;  /* the server is asked to begin there, if */
    const char *if_range; /* the file still has this ETag; "": whatever it has */
    /* The head of an answer with a file is there; then its bytes. False ends it, with an error. */
    bool (*begin)(struct fetch *fetch, struct error *error);
    bool (*take)(struct fetch *fetch, const char *data, size_t size, struct error *error);

    char etag[FETCH_ETAG_BYTES];
    char digest[STORE_DIGEST_BYTES]; /* said on the way; or empty */
    uint64_t total_bytes;            /* of the whole file; 0: not said */
    bool ranged;                     /* it begins at range_begin */
    uint64_t range_begin;
    uint64_t got_bytes;
    long code;        /* of HTTP */
    bool again;       /* a failure that may pass */
    unsigned wait_ms; /* as the server asks for */

    void *curl;
    struct error *error;
    bool started;
};

enum status fetch_once(struct fetch *fetch, struct error *error);
/* After an attempt that failed with status: waits where another one is in order, which STATUS_OK
 * says. tries counts those without a byte. */
enum status fetch_retry(struct fetch *fetch, unsigned *tries, enum status status,
                        struct error *error);
/* A small document, whole; out is replaced and ends with a zero. */
enum status fetch_document(struct pull *pull, const char *url, bool with_token, size_t limit_bytes,
                           struct buffer *out, struct error *error);

bool url_is(const char *text);
/* How much of a URL may be shown: its query may hold a secret. */
int url_shown(const char *url);
/* Appends a path, percent-encoded. */
bool url_append(struct buffer *url, const char *path);

/* A file on its way into the store: its place in partial/, and the lock that lets only one process
 * work on it; the others wait. key names it: "sha256-HEX" where the digest is known. */
struct partial {
    struct buffer path, lock_path;
    int lock;
};

struct pull;
enum status partial_open(struct partial *partial, struct pull *pull, const char *key,
                         struct error *error);
void partial_close(struct partial *partial); /* what is there stays */

/* Removes downloads that were not touched for two weeks. */
void store_drop_old(const struct store *store);

/* Gives the file at path, whole and verified, its place in the store. */
enum status store_adopt(const struct store *store, const char *path, const char *digest,
                        struct error *error);
/* That the disk has room for more bytes, and some to spare. */
#define STORE_SPARE_BYTES ((uint64_t)64 << 20)
enum status store_check_room(const struct store *store, uint64_t bytes, struct error *error);

#endif
