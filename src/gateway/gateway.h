/* gateway: who may use this server, how much of it, and what they used.
 *
 * Keys lie in an SQLite file, where the command line makes and revokes them. Of a key only its
 * SHA-256 is kept: a key is 256 random bits, which nobody can try out, so a slow hash would protect
 * it no better and would only cost time with every request.
 *
 * A struct gateway is the server's side. It belongs to the thread of its loop, and never touches
 * the file there: a thread of its own reads it, and hands over what changed within a second.
 */
#ifndef CONSORT_GATEWAY_H
#define CONSORT_GATEWAY_H

#include "api/api.h"
#include "base/base.h"
#include "net/net.h"

struct sqlite3;

/* ---- The file -------------------------------------------------------------------------------- */

/* The file in the home directory, made where it is missing; an object for one thread. */
enum status gateway_database_open(struct sqlite3 **out, struct error *error);

/* ---- Keys ------------------------------------------------------------------------------------ */

#define KEY_NAME_BYTES 64
#define KEY_TEXT_BYTES 68 /* "ck-", 64 hexadecimal digits, and the end of the text */
#define KEY_HASH_BYTES 32
#define KEY_COMMAND_LINE "command-line" /* the name of options->api_key */

/* 0: not limited. A minute's allowance comes back at an even rate. */
struct key_limits {
    uint32_t requests_per_minute, tokens_per_minute; /* tokens of prompts and answers */
    uint32_t parallel;                               /* requests at once */
};

/* A row of the file. */
struct key {
    const char *name;
    struct view hash;
    const char *models;                      /* that it may use, "a,b"; "": all */
    int64_t created_s, expires_s, revoked_s; /* seconds since 1970; 0: never */
    struct key_limits limits;
};

/* Makes a key under a name that no valid key has, and gives its text, which is kept nowhere. */
enum status keys_create(struct sqlite3 *database, const struct key *wanted, int64_t now_s,
                        char text[KEY_TEXT_BYTES], struct error *error);
/* Makes a new key with all that the valid one of that name has, which is revoked. */
enum status keys_rotate(struct sqlite3 *database, const char *name, int64_t now_s,
                        char text[KEY_TEXT_BYTES], struct error *error);
enum status keys_revoke(struct sqlite3 *database, const char *name, int64_t now_s,
                        struct error *error);
/* Each key, revoked ones too, in the order in which they were made; false ends it. The key lives
 * for the call. */
typedef bool keys_row(void *context, const struct key *key);
enum status keys_each(struct sqlite3 *database, keys_row *row, void *context, struct error *error);

/* "active", "expired" or "revoked". */
const char *key_state(const struct key *key, int64_t now_s);

/* ---- Usage ----------------------------------------------------------------------------------- */

/* What was used on one day of UTC through one key of one model. */
struct usage {
    const char *day, *key, *model; /* "2027-01-31"; key "": none was asked for */
    int64_t n_requests, prompt_tokens, cached_tokens, answer_tokens; /* cached: of the prompts' */
};

/* From the day on that has since_s, in order; false ends it. */
typedef bool usage_row(void *context, const struct usage *usage);
enum status usage_each(struct sqlite3 *database, int64_t since_s, usage_row *row, void *context,
                       struct error *error);

/* ---- Audit ----------------------------------------------------------------------------------- */

/* Keys made, rotated and revoked; logins that failed; servers that began and ended. Never a key. */
struct audit_event {
    int64_t time_s;
    const char *event, *subject, *detail;
};

typedef bool audit_row(void *context, const struct audit_event *event);
enum status audit_each(struct sqlite3 *database, audit_row *row, void *context,
                       struct error *error);

/* ---- The server's side ----------------------------------------------------------------------- */

struct gateway;

typedef void gateway_log(void *context, const char *line);

enum key_limit { KEY_LIMIT_REQUESTS, KEY_LIMIT_TOKENS, KEY_LIMIT_PARALLEL };

struct key_allowance {
    bool allowed;
    enum key_limit refused_by;
    double wait_s;  /* refused: when to try again */
    double left[2]; /* requests and tokens of this minute */
};

/* Who decides where a key's limits hold for several servers together. On the loop. */
struct gateway_shared {
    void *context;
    /* False: it does not decide about this key now; then its limits are this server's alone. */
    bool (*take)(void *context, const struct key *key, struct key_allowance *out);
    void (*give_back)(void *context, const struct key *key, uint64_t n_tokens);
};

/* Borrowed until gateway_close. */
struct gateway_options {
    struct net_loop *loop;
    const char *const *addresses; /* [n_addresses] that will be listened on, "host:port" */
    size_t n_addresses;
    const char *api_key;        /* one more key; NULL: none */
    const char *const *origins; /* [n_origins] whose pages may read answers, or "*" */
    size_t n_origins;
    bool open;            /* without keys, anyone on the network may use it */
    net_fn *keys_changed; /* on the loop, when keys were made or ended here; NULL: nobody asks */
    void *keys_context;
    struct gateway_shared shared; /* take NULL: nobody else is asked */
    gateway_log *log;
    void *log_context;
};

/* Reads the keys. Refuses addresses that other machines reach where there is no key, unless
 * options->open. */
enum status gateway_open(struct gateway **out, const struct gateway_options *options,
                         struct error *error);
void gateway_close(struct gateway *gateway); /* NULL allowed */

/* Each key that is in the file, or was adopted; false ends it. */
void gateway_each_key(const struct gateway *gateway, keys_row *row, void *context);
/* A key that was made, or ended, on another node: it holds here from now on, and is written to the
 * file. What is revoked stays so. */
void gateway_adopt_key(struct gateway *gateway, const struct key *key);

/* For each request, before anything else: adds what pages of other sites need to read the answer,
 * and answers the question that a browser asks ahead of a request; true: the exchange has ended. */
bool gateway_cross_origin(struct gateway *gateway, struct http_exchange *exchange);

/* Whether the request may go on. Without keys, a page of another site must not reach this server
 * through the user's browser, be it directly (Origin) or by a name that it lets point here (Host;
 * DNS rebinding). Once there was a key, every request needs one, from this machine too, and also
 * when the last one is revoked: what was closed does not open by itself. */
bool gateway_admit(struct gateway *gateway, struct http_exchange *exchange,
                   struct api_error *error);

/* Of a request that was admitted: whether its key may use the model. */
bool gateway_allows(const struct http_exchange *exchange, const char *model);
/* The name of its key; "" where none was asked for. */
const char *gateway_owner(const struct http_exchange *exchange);
/* Fills *error with what a client is told whose key may not use the model. */
void gateway_forbid(const struct http_exchange *exchange, const char *model,
                    struct api_error *error);

/* A request to a model, from gateway_begin to gateway_end, which may come after its exchange has
 * ended. */
struct gateway_use {
    struct known_key *key; /* NULL: none was asked for */
    bool shared;           /* it counts with other servers */
    const char *model;     /* NULL: it did not come so far */
    size_t prompt_tokens, cached_tokens, answer_tokens;
};

/* False where the key has used up one of its limits. */
bool gateway_begin(struct gateway *gateway, struct http_exchange *exchange, struct gateway_use *use,
                   struct api_error *error);
void gateway_end(struct gateway *gateway, const struct gateway_use *use);
/* The number by which the requests of a key take turns with those of others; 0: without a key. */
uint64_t gateway_client(const struct gateway_use *use);

#endif
