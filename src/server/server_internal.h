/* What the files of src/server share. Everything belongs to the loop's thread, but where a comment
 * says otherwise. */
#ifndef CONSORT_SERVER_INTERNAL_H
#define CONSORT_SERVER_INTERNAL_H

#include "api/api.h"
#include "cluster/cluster.h"
#include "gateway/gateway.h"
#include "net/net.h"
#include "server/page.h"
#include "server/server.h"
#include "store/store.h"

/* ---- The thread for long work ---------------------------------------------------------------- */

struct worker;

enum status worker_open(struct worker **out, struct error *error);
void worker_close(struct worker *worker); /* runs what is queued, then joins; NULL allowed */
/* Runs fn(context) on the worker's thread, in order. Any thread. False when memory is out. */
bool worker_post(struct worker *worker, net_fn *fn, void *context);

/* ---- Models ---------------------------------------------------------------------------------- */

enum model_state {
    MODEL_CLOSED,
    MODEL_OPENING, /* or in the line of those that will be */
    MODEL_OPEN,
    MODEL_AWAY, /* the cluster computes it; its metadata are open here */
};

struct model_waiter;
struct opening;

/* What is told of a model that need not be open. */
struct model_facts {
    bool known;
    int64_t modified_s; /* of the file that was looked at, as its size */
    uint64_t size_bytes;
    char family[32];    /* empty, as what follows, where the file is no model */
    const char *format; /* the one with the most bytes; a constant */
    uint64_t n_params;
};

struct served_model {
    struct server *server;
    const char *name, *path;
    struct store_model *stored; /* what the store says of it; NULL: a file from the options */
    bool gone; /* its name left the store or stands for another model: not found any more */
    char digest[STORE_DIGEST_BYTES]; /* of a file from the options, or of a model of other nodes */
    bool only_away;                  /* it does not lie here; path is NULL */
    bool spread; /* this server alone has too little memory: others of the cluster are to help */
    size_t n_holders; /* generations that point here */
    enum model_state state;
    struct engine *engine;
    struct scheduler *scheduler;
    size_t n_users; /* requests that hold it */
    uint64_t used_ns;
    uint64_t keep_alive_ms; /* after the last use; UINT64_MAX: for ever */
    struct net_timer *idle;
    bool stopping;                /* closed when nobody uses it any more */
    bool too_large;               /* what the last attempt to open it found */
    uint64_t memory_bytes;        /* of an open model, all it may come to use */
    struct opening *opening;      /* the attempt under way */
    struct model_waiter *waiting; /* requests, while it opens */
    struct served_model *next;    /* in the line */
    struct model_facts facts;
    bool waits;        /* for models in use */
    uint64_t asked_ns; /* when it came to the head of the line */
};

/* Told once on the loop, at once where the model is open. error is NULL where it is; then the model
 * stays open until models_release. */
typedef void model_ready(void *context, const struct api_error *error);

enum status models_open(struct server *server, struct error *error);
void models_close(struct server *server);
/* NULL: none. A name with ":latest" is the one without. */
struct served_model *models_find(struct server *server, const char *name);
/* The same, without a look at the store. */
struct served_model *models_known(struct server *server, const char *name);
void models_acquire(struct served_model *model, model_ready *ready, void *context);
void models_release(struct served_model *model);
/* Closes the model, at once or when those who use it are done. */
void models_stop(struct served_model *model);
/* Whether the model is there for the key that came with the exchange. */
bool models_visible(const struct served_model *model, const struct http_exchange *exchange);
/* Ollama's list of all models, or of those that are open; what the exchange's key may use. */
void models_list(const struct server *server, const struct http_exchange *exchange, bool open_only,
                 struct buffer *out);
/* Answers with the list of all; files that nobody has looked at are read on the worker first. */
void models_tags(struct server *server, struct http_exchange *exchange);
/* The template that the server was given for all, or what the store has for this one, instead of
 * the file's. While the model is opening, any thread. */
enum status models_set_template(const struct served_model *model, struct engine *engine,
                                struct error *error);
/* What the file holds, as Ollama tells it; reads the file's metadata. Any thread. */
enum status models_show(const struct served_model *model, struct buffer *out, struct error *error);
/* llama-server's list of places for requests, and how many each model has. */
void models_put_slots(const struct server *server, const struct http_exchange *exchange,
                      struct buffer *out);
size_t models_slots(const struct server *server);
/* The answer to who names a model (or none: NULL) that is not here. */
void models_unknown(const struct server *server, const struct http_exchange *exchange,
                    const char *name, struct api_error *error);

/* Context of an open model, in tokens; 0: only the cluster knows. */
size_t models_n_ctx(const struct served_model *model);
/* Ends the wait of all that wait for the model: it is there, or error says why not. */
void models_tell_waiters(struct served_model *model, const struct api_error *error);

/* ---- The cluster (cluster.c) ---------------------------------------------------------------- */

/* Leaves server->node NULL where this machine is in no cluster. */
enum status cluster_open(struct server *server, struct error *error);
void cluster_close(struct server *server);
/* Tells the other nodes of keys that were made or ended here. */
void cluster_share_keys(void *context);
/* The digest that names the model in the cluster; "" where it is not known (yet). */
const char *cluster_digest_of(const struct served_model *model);
/* For struct gateway_shared. */
bool cluster_take(void *context, const struct key *key, struct key_allowance *out);
void cluster_give_back(void *context, const struct key *key, uint64_t n_tokens);
/* Makes the models of other nodes known. */
void cluster_refresh(struct server *server);
/* Whether other nodes may help with a model that is too large for this one. */
bool cluster_may_help(const struct served_model *model);
bool cluster_is_away(const struct served_model *model);
/* Opens the metadata of a model that is away; then the waiters are told. */
void cluster_meet(struct served_model *model);
/* As cluster_node_submit. */
enum status cluster_submit(struct served_model *model, struct generation_request *request,
                           generation_callback *callback, void *context, uint64_t *id,
                           struct error *error);
void cluster_get_status(struct server *server, struct http_exchange *exchange);
/* load, unload, remove, rotate; told where it fails. */
enum status cluster_command(struct server *server, const char *verb, const json_t *fields,
                            struct api_error *told);

/* ---- Replicas (replica.c) -------------------------------------------------------------------- */

/* Whether other nodes may answer requests for a model that is open here. */
bool replica_is_shared(const struct served_model *model);
/* On the loop. As scheduler_submit, or, where *sent becomes true, as cluster_node_submit. */
enum status replica_submit(struct served_model *model, struct generation_request *request,
                           generation_callback *callback, void *context, uint64_t *id, bool *sent,
                           struct error *error);
/* For struct cluster_host. */
size_t replica_list(void *context, struct cluster_replica *out, size_t max);
void replica_start(void *context, const struct cluster_work *work);
void replica_cancel(void *context, uint64_t work);

/* ---- Usage on all nodes (usage.c) ------------------------------------------------------------ */

/* Answers the exchange with the records of all nodes that are connected, from query's last "days"
 * on; server->node is not NULL. */
void usage_collect(struct server *server, struct http_exchange *exchange, const json_t *query);
/* For struct cluster_host. */
bool usage_asked(void *context, struct cluster_id from, uint64_t question, const char *what,
                 const json_t *query);
void usage_answered(void *context, uint64_t question, const json_t *body, const char *reason);
void usage_close(struct server *server); /* before the node is closed */

/* ---- Memory ---------------------------------------------------------------------------------- */

/* What a model could have: now, without the models nobody uses, alone. Bytes. */
struct memory_room {
    uint64_t left, with_idle, whole;
};

enum memory_plan { MEMORY_OPEN, MEMORY_CLOSE_IDLE, MEMORY_WAIT, MEMORY_REFUSE };

uint64_t memory_default_limit(void);
uint64_t memory_used(const struct server *server); /* by open models */
uint64_t memory_file_bytes(const char *path);      /* of a model's file; 0: it is not there */
struct memory_room memory_room(const struct server *server);
/* How a model comes to the memory it needs; sets the limits in options. The error says why it is
 * refused. Any thread. */
enum memory_plan memory_plan(const struct memory_room *room, const struct weights *weights,
                             struct model_options *options, struct error *error);
/* Adds to the text of a refusal which other models would fit that the exchange's key may use. */
void memory_suggest(const struct served_model *model, const struct http_exchange *exchange,
                    struct api_error *error);

/* ---- Models of the store --------------------------------------------------------------------- */

void shelf_open(struct server *server);
/* Makes a model of the store known; for those that stand first. */
enum status shelf_add(struct server *server, const char *name, struct error *error);
/* What changed in the store since the last call. */
void shelf_refresh(struct server *server);
bool shelf_read(struct server *server); /* the same, but tells no other node; whether it changed */
void shelf_close(struct server *server);

/* ---- Operating it ---------------------------------------------------------------------------- */

#define CONTROL_TOKEN_BYTES 65

struct control {
    char token[CONTROL_TOKEN_BYTES];
    char *path; /* of the file that announces the server; NULL: none */
    int fd;     /* locked while the server runs */
};

/* After it listens. Fails where the file cannot be written. */
enum status control_open(struct server *server, struct error *error);
void control_close(struct server *server);
/* Whether the request comes from the owner. */
bool control_holds(const struct server *server, const struct http_exchange *exchange);

void operate_stop(struct server *server, struct http_exchange *exchange);
void operate_down(struct server *server, struct http_exchange *exchange);
void operate_cluster(struct server *server, struct http_exchange *exchange);

/* Ollama's calls that change the store. */
struct library_job;
void library_pull(struct server *server, struct http_exchange *exchange);
void library_delete(struct server *server, struct http_exchange *exchange);
void library_copy(struct server *server, struct http_exchange *exchange);
void library_create(struct server *server, struct http_exchange *exchange);
void library_cancel(struct server *server); /* those under way */
void library_close(struct server *server);  /* cancels and waits; before the loop settles */

/* ---- The server ------------------------------------------------------------------------------ */

struct server {
    struct server_options options;
    struct net_loop *loop;
    struct http_server *http;
    struct net_advertisement *advertisement; /* NULL: none */
    struct gateway *gateway;
    struct worker *worker;
    struct responses *responses;
    struct served_model models[SERVER_MAX_MODELS];
    size_t n_models;
    struct pool *pool;         /* of all models */
    struct kv_disk *kv_disk;   /* of all models; NULL: none */
    struct served_model *line; /* models to be opened, one at a time, the first under way */
    struct net_timer *blocked; /* the first waits for models in use; it runs out when it gives up */
    struct control control;
    struct cluster_node *node; /* NULL: this machine is in no cluster */
    struct digesting *digesting;
    struct usage_collection *collections; /* under way */
    struct replica_work *replica_works;   /* requests of other nodes */
    size_t n_busy;                        /* generations under way */
    struct wake_lock *wake;               /* while they are, and a little longer */
    struct net_timer *sleepy;             /* until that is over */
    unsigned drain_s;
    uint64_t memory_limit; /* bytes */
    unsigned wait_s;       /* for memory that models in use hold */
    struct store *store;   /* NULL: there is none */
    uint64_t store_version;
    bool store_recent;
    struct library_job *jobs;
    bool draining, closing;
    uint64_t begin_ns;
    int64_t begin_s;
    struct page_head page;
};

void server_logf(struct server *server, const char *format, ...) BASE_PRINTF(2, 3);
/* fields is taken over. */
void server_log_fields(struct server *server, json_t *fields, const char *format, ...)
    BASE_PRINTF(3, 4);

void put_object(json_t *object, struct buffer *out); /* and frees it */

/* What the page shows: the machine, the models and what they do; no text of anyone. */
void state_put(const struct server *server, const struct http_exchange *exchange,
               struct buffer *out);
json_t *state_describe(const struct served_model *model);
/* Lets what runs finish; now ends what is left of it at once. */
void server_begin_shutdown(struct server *server, bool now);
/* A generation begins or ends: the machine does not fall asleep meanwhile. */
void server_busy(struct server *server, bool begins);

/* Replies with an error in the form of format (NULL: of the path's API) and logs it. */
void reply_error(struct server *server, struct http_exchange *exchange,
                 const struct api_format *format, const struct api_error *error);
void reply_json(struct http_exchange *exchange, int status, struct view body);

/* ---- Prompts and vectors --------------------------------------------------------------------- */

/* The prompt of a chat as text, or as tokens; then answer knows how its choices will be read, and
 * unless it is NULL, *asked what they must follow. */
enum status prompt_render(const struct engine *engine, const struct api_call *call,
                          struct buffer *out, struct error *error);
enum status prompt_chat(const struct engine *engine, const struct api_call *call,
                        struct api_answer *answer, json_t **asked, struct token_list *out,
                        struct error *error);
/* What the answer must follow, as engine_grammar takes it: a new reference; *asked stays where
 * nothing is asked for, or something is there. prompt: of a chat. */
enum status prompt_constrain(const struct engine *engine, const struct api_call *call,
                             struct view prompt, json_t **asked, struct error *error);
/* Whether a chat's answer goes on from what the last message has of it. */
bool prompt_continues(const struct api_call *call);
/* The tokens of one of the call's prompts that are no chat. */
enum status prompt_encode(const struct engine *engine, const struct api_call *call,
                          const struct api_prompt *prompt, struct token_list *out,
                          struct error *error);

/* The answer of an API_EMBEDDINGS or API_RERANK; result has what is known before. On the engine's
 * thread. */
enum status vectors_compute(struct engine *engine, const struct api_call *call,
                            struct api_result *result, struct buffer *out, struct error *error);

/* ---- Responses that are kept ----------------------------------------------------------------- */

struct responses;

enum status responses_open(struct responses **out, uint64_t keep_s, struct error *error);
void responses_close(struct responses *responses); /* NULL allowed */
/* Makes the messages of a call of /v1/responses, after what it follows. On the worker. */
enum status response_follow(struct server *server, const char *owner, struct api_call *call,
                            struct api_error *told);
/* Keeps a finished answer to it. On the worker. */
void response_keep(struct server *server, const char *owner, struct api_answer *answer);
/* Answers a GET or DELETE of one that is kept; false where the path is another. */
bool response_told(struct server *server, struct http_exchange *exchange);

/* ---- Generations ----------------------------------------------------------------------------- */

/* Reads a body into a call. */
typedef enum status call_reader(struct api_call **out, enum api_operation operation,
                                struct view body, struct api_error *error);

/* Answers the exchange with what read makes of its body. */
void generate(struct server *server, struct http_exchange *exchange, call_reader *read,
              enum api_operation operation);

#endif
