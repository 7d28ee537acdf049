/* server: this machine as an HTTP server for language models.
 *
 * It puts the parts together: the routes of src/api on the HTTP server of src/net, over engines
 * that are opened when they are first asked for. One thread runs the loop (server_run) and owns all
 * models and exchanges; each open model has its engine's thread; one more thread reads requests,
 * renders templates and tokenizes, so that neither the loop nor a step waits for a long prompt.
 */
#ifndef CONSORT_SERVER_H
#define CONSORT_SERVER_H

#include "api/api.h"
#include "cluster/cluster.h"
#include "engine/engine.h"

#define SERVER_MAX_MODELS 256
#define SERVER_MAX_ADDRESSES 16
#define SERVER_MAX_ORIGINS 64

/* A model file under the name clients use; path NULL: the one that has this name in the store. All
 * other models of the store are served too. */
struct server_model {
    const char *name;
    const char *path;
};

/* One line of the log, without prompts or answers, from any thread. fields says the same to
 * programs, as an object; NULL: there is no more to say. */
struct json_t;
typedef void server_log(void *context, const char *line, const struct json_t *fields);

/* Borrowed until server_close. */
struct server_options {
    const char *addresses[SERVER_MAX_ADDRESSES]; /* "127.0.0.1:4000" */
    size_t n_addresses;
    struct server_model models[SERVER_MAX_MODELS];
    size_t n_models;
    struct model_options model;         /* of each engine */
    struct scheduler_options scheduler; /* of each engine */
    uint64_t keep_alive_ms;             /* an unused model is closed after it; 0: never */
    uint64_t memory_bytes;  /* all models together; 0: this machine's, but for a reserve */
    uint64_t kv_disk_bytes; /* what is kept of KV caches on disk; 0: nothing */
    unsigned wait_s;        /* a request waits so long for memory that models in use hold (60) */
    unsigned drain_s;       /* at the end, what runs may go on for so long (30) */
    bool announce; /* the commands of this user on this machine find it (server_presences) */
    bool open;     /* without keys, anyone on the network may use it */
    bool preload;  /* the models are opened at the start */
    uint64_t keep_responses_s; /* a stored response is kept so long; 0: none is */
    bool any_model;            /* names that are not known mean the first model */
    struct api_defaults defaults;
    const char *chat_template; /* of all models, instead of their own; NULL: none */
    const char *mirror;        /* of store_pull, for /api/pull; NULL: the public ones */
    const char *api_key;       /* beside those that src/gateway keeps; NULL: none */
    const char *origins[SERVER_MAX_ORIGINS]; /* whose pages may read answers, or "*" */
    size_t n_origins;
    const char *tls_certificate, *tls_key;
    bool no_advertise; /* DNS-SD does not tell of the API where other machines can reach it */
    bool no_cluster;   /* also where this machine has the key of one */
    const char *cluster_listen; /* for other nodes, "0.0.0.0:4001"; NULL: the default */
    const char *peers[CLUSTER_MAX_PEER_OPTIONS]; /* HOST:PORT of nodes that no beacon reaches */
    size_t n_peers;
    const char *node_name;      /* NULL: the machine's */
    const char *data_interface; /* that data of the cluster goes over; NULL: the best one */
    server_log *log;            /* NULL: none */
    void *log_context;
};

struct server;

/* Listens, so that what is wrong with an address or with the keys is known here. Refuses to listen
 * beyond this machine without a key, unless options->open. */
enum status server_open(struct server **out, const struct server_options *options,
                        struct error *error);
/* Serves until server_stop, or SIGTERM or SIGINT: then what runs may finish; a second signal ends
 * it at once. */
void server_run(struct server *server);
void server_stop(struct server *server);  /* any thread */
void server_close(struct server *server); /* NULL allowed */

/* A running server of this user on this machine: where it is, and what proves to it that who asks
 * is its owner. The texts live in facts. */
struct server_presence {
    long pid;
    const char *url, *token;
    const char *certificate; /* its chain (PEM); NULL: without TLS */
    struct json_t *facts;
};

/* Up to limit of them. Each is to be freed. */
enum status server_presences(struct server_presence *out, size_t limit, size_t *n,
                             struct error *error);
void server_presence_free(struct server_presence *presence);

unsigned server_cluster_port(const struct server *server); /* 0: it is in no cluster */
/* The port of the index-th address. */
unsigned server_port(const struct server *server, size_t index);

#endif
