/* What the files of src/gateway share: keys.c, usage.c and audit.c are the tables of the file,
 * records.c the thread that reads and writes it for a server, admission.c who may ask, limits.c how
 * much, origins.c pages of other sites. */
#ifndef CONSORT_GATEWAY_INTERNAL_H
#define CONSORT_GATEWAY_INTERNAL_H

#include "gateway/gateway.h"

enum status gateway_database_path(struct buffer *out, struct error *error);

/* Adds a key of another node, or ends the one of that hash. A name that is in use here gets the
 * beginning of the hash. */
enum status keys_adopt(struct sqlite3 *database, const struct key *key, int64_t now_s,
                       struct error *error);
void key_hash(struct view text, unsigned char hash[KEY_HASH_BYTES]);

/* ---- Limits ---------------------------------------------------------------------------------- */

void put_duration(char text[32], double seconds);

/* A request of use->key begins, unless a limit stands against it; adds the fields of the answer
 * that tell what is left. Each that began ends with limits_give_back. */
bool limits_take(const struct gateway_shared *shared, struct gateway_use *use,
                 struct http_exchange *exchange, uint64_t now_ns, struct api_error *error);
void limits_give_back(const struct gateway_shared *shared, const struct gateway_use *use);

/* ---- Usage ----------------------------------------------------------------------------------- */

#define USAGE_DAY_BYTES 16

/* A sum that is not written yet. */
struct usage_entry {
    struct usage_entry *next;
    char day[USAGE_DAY_BYTES], key[KEY_NAME_BYTES];
    char *model;
    int64_t n_requests, prompt_tokens, cached_tokens, answer_tokens;
};

void usage_day(char day[USAGE_DAY_BYTES], int64_t time_s);
/* False when memory is out. */
bool usage_sum(struct usage_entry **entries, const struct usage *usage);
void usage_free(struct usage_entry *entries);
enum status usage_write(struct sqlite3 *database, const struct usage_entry *entries,
                        struct error *error);

/* ---- Audit ----------------------------------------------------------------------------------- */

enum status audit_add(struct sqlite3 *database, const struct audit_event *event,
                      struct error *error);

struct logins {
    struct bucket bucket;
    uint64_t n_left_out;
};

/* False where a failed login is not to be recorded; else fills detail. */
bool logins_note(struct logins *logins, uint64_t now_ns, const char *peer, const char *why,
                 char *detail, size_t size_bytes);

/* ---- Keys in memory (of the loop's thread, but a list that is on its way) -------------------- */

struct known_key {
    struct known_key *next;
    uint64_t number; /* from 1 */
    char name[KEY_NAME_BYTES];
    unsigned char hash[KEY_HASH_BYTES];
    char *models;
    int64_t expires_s, revoked_s;
    struct key_limits limits;
    struct bucket buckets[2]; /* requests, tokens */
    uint32_t n_running;
    bool built_in; /* options->api_key */
    bool listed;   /* the file has it, or it is built in */
};

/* A copy, or NULL. */
struct known_key *known_key_copy(const struct key *key);
struct key known_key_row(const struct known_key *key); /* borrowed */
/* All keys of the file. */
enum status known_keys_read(struct known_key **out, struct sqlite3 *database, struct error *error);
void known_keys_free(struct known_key *keys);

/* ---- Records: the file of a running server --------------------------------------------------- */

struct records;

/* Told on the loop, with all keys of the file, which the callee takes over: once in records_open,
 * and whenever they changed. */
typedef void records_changed(void *context, struct known_key *keys);

struct records_options {
    struct net_loop *loop;
    records_changed *changed;
    void *context;
    gateway_log *log;
    void *log_context;
};

/* *out is NULL, and the reason logged, where there is no file and none can be made: then there are
 * no keys either. */
enum status records_open(struct records **out, const struct records_options *options,
                         struct error *error);
void records_close(struct records *records); /* writes what is left; NULL allowed */

/* What is to be written, soon. On the loop, where records may be NULL. */
void records_adopt(struct records *records, const struct key *key);
void records_use(struct records *records, const struct usage *usage);
void records_audit(struct records *records, const char *event, const char *subject,
                   const char *detail);

/* ---- Origins --------------------------------------------------------------------------------- */

/* The host of "host:port", "[::1]:port", or of an origin. */
struct view host_of(struct view text);
bool host_is_loopback(struct view host);
/* Whether a page of this server asks, that was opened by an address or a name of the local network.
 * Other names are no sign: whoever owns one can let it point here. */
bool origin_is_own(struct view origin, struct view host);

/* ---- Gateway --------------------------------------------------------------------------------- */

struct gateway {
    struct gateway_options options;
    struct records *records;
    struct known_key *keys; /* all that were ever seen; freed only at the end */
    uint64_t n_keys;
    bool asks; /* a key is needed */
    bool started;
    struct logins logins;
};

#endif
