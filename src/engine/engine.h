/* engine: a model file ready to answer, sessions over it, and a scheduler over it.
 *
 * An engine owns everything that belongs to one open model file. A session is one text that grows:
 * the sequence in the KV cache, the sampler, the history of tokens and the detokeniser. Engine and
 * sessions belong to one thread at a time; sessions are closed before their engine.
 *
 * A scheduler answers many requests at once over one engine, on a thread of its own. While it is
 * open the engine's model belongs to that thread; its tokenizer and chat template are read-only and
 * may be used by all.
 */
#ifndef CONSORT_ENGINE_H
#define CONSORT_ENGINE_H

#include "base/base.h"
#include "model/model.h"
#include "request/request.h"
#include "sample/sample.h"
#include "text/text.h"
#include "weights/weights.h"

/* ---- Engine ---------------------------------------------------------------------------------- */

/* What of a file is opened; a part brings those it needs. */
enum engine_parts {
    ENGINE_WEIGHTS = 0, /* always */
    ENGINE_TOKENIZER = 1,
    ENGINE_TEMPLATE = 2, /* with the tokenizer */
    ENGINE_MODEL = 4,
};

struct engine {
    struct arena *arena;
    struct weights *weights;
    struct tokenizer *tokenizer;         /* NULL unless asked for, as the next two */
    struct chat_template *chat_template; /* the file's, or ChatML */
    struct view template_source;
    const struct reply_format *reply_format; /* that the template speaks of */
    bool template_is_default;                /* the file carries none */
    struct model *model;
    struct grammar_cache *grammars; /* with tokenizer and model; any thread */
    uint64_t load_ns;               /* how long opening took */
};

enum status engine_open(struct engine **out, const char *path, unsigned parts,
                        const struct model_options *options, struct error *error);
void engine_close(struct engine *engine);

/* The tokenizer a file describes (tokenizer.ggml.*), its tables allocated from arena, which must
 * outlive it, as must weights. */
enum status engine_tokenizer_open(struct tokenizer **out, struct arena *arena,
                                  const struct weights *weights, struct error *error);

/* Appends the tokens of a prompt: control tokens are parsed, and BOS leads where the model wants
 * one and the text does not bring it. */
enum status engine_encode(const struct engine *engine, struct view text, struct token_list *out,
                          struct error *error);

/* Appends the tokens of a query and a document, for a reranker. */
enum status engine_encode_pair(const struct engine *engine, struct view query, struct view document,
                               struct token_list *out, struct error *error);

/* Appends the tokens of a gap to be filled, with the marks that the model was trained with.
 * STATUS_UNSUPPORTED where it has none. */
enum status engine_encode_infill(const struct engine *engine, const struct infill *infill,
                                 struct token_list *out, struct error *error);

/* Another chat template than the file's; borrowed source. Before any use. */
enum status engine_set_template(struct engine *engine, struct view source, struct error *error);

/* The same of one in Go's language, which need not live on; one that does not win takes effect only
 * where the file carries none. Empty: nothing. */
enum status engine_set_go_template(struct engine *engine, const char *source, bool wins,
                                   struct error *error);

/* Renders a conversation (a JSON array of messages) with the chat template, ready for the
 * assistant's answer; out grows. Tool calls of earlier answers have their arguments as objects; for
 * a template that fails on these, they are given as texts, and one that refuses what the system
 * says (Gemma's) has it from the user. variables (an object, or NULL) is what else the template
 * sees: tools, its own switches. */
enum status engine_render(const struct engine *engine, const json_t *messages,
                          const json_t *variables, struct buffer *out, struct error *error);

/* A reference to the grammar that was asked for, in the words of grammar_asked in struct
 * generation_request; compiled where it is not known. A chat's needs the template. Any thread. */
enum status engine_grammar(const struct engine *engine, const json_t *asked, struct grammar **out,
                           struct error *error);

/* ---- Session --------------------------------------------------------------------------------- */

struct session;

enum status session_open(struct session **out, struct engine *engine, struct error *error);
void session_close(struct session *session);

/* Called between batches of a prompt with the tokens done so far; false cancels. */
typedef bool session_progress(void *context, size_t done, size_t total);

struct session_prompt {
    const int32_t *tokens; /* [n_tokens], at least one */
    size_t n_tokens;
    const struct sampling *sampling;
    struct grammar *grammar; /* what the answer follows, or NULL; the session takes a reference */
    bool strip_space; /* the answer begins a text: a leading space the tokenizer adds is dropped */
    session_progress *progress; /* may be NULL */
    void *context;
};

/* Makes the prompt the whole text and computes what the KV cache does not hold yet: the longest
 * common prefix with the previous text is kept. A prompt that leaves no room for an answer is an
 * error with both numbers. */
enum status session_begin(struct session *session, const struct session_prompt *prompt,
                          struct error *error);

/* Draws the next token into *token, appends it to the text and the whole characters it completes to
 * piece. STATUS_LIMIT when the context is full; the session stays usable. */
enum status session_next(struct session *session, int32_t *token, struct buffer *piece,
                         struct error *error);
/* Appends what the detokeniser held back. */
void session_finish(struct session *session, struct buffer *piece);

/* Tokens of the last prompt that were in the cache. */
size_t session_reused(const struct session *session);

/* ---- Speculation ----------------------------------------------------------------------------- */

/* Where drafts of coming tokens are taken from. */
enum session_drafts {
    SESSION_DRAFTS_OFF,
    SESSION_DRAFTS_NGRAM, /* what followed earlier in the text where it went as now */
    SESSION_DRAFTS_MODEL,
    SESSION_DRAFTS_AUTO, /* both; without a draft model as NGRAM */
};

#define SESSION_DRAFT_MAX 31

struct session_speculation {
    enum session_drafts drafts;
    struct engine *draft; /* with model and tokenizer; borrowed until session_close; or NULL */
    size_t max_tokens;    /* of a draft, at most SESSION_DRAFT_MAX; 0: as many as their logits take
                             no more than a hundredth of the model's memory, at least 3 */
};

/* Several tokens of a draft are verified in one step from now on, wherever that is measured to be
 * faster. The text is the same to the last token. Refuses a draft model with another vocabulary.
 * Before session_begin. */
enum status session_speculate(struct session *session, const struct session_speculation *options,
                              struct error *error);

/* Drafted tokens since session_begin that were verified, and those of them that were right. */
struct session_draft_counts {
    size_t drafted, accepted;
};
struct session_draft_counts session_drafted(const struct session *session);

/* ---- Pages of KV caches on disk -------------------------------------------------------------- */

/* Keeps what schedulers have computed of prompts in a folder, for whoever opens it later. */
struct kv_disk;

/* A line for people, from any thread. */
typedef void kv_disk_log(void *context, const char *line);

/* Takes the folder, which exists: STATUS_BUSY where another process has it. What lies there takes
 * at most limit_bytes. Starts a thread. log may be NULL. */
enum status kv_disk_open(struct kv_disk **out, const char *path, uint64_t limit_bytes,
                         kv_disk_log *log, void *log_context, struct error *error);
/* Writes what was handed over. After all schedulers that use it. NULL allowed. */
void kv_disk_close(struct kv_disk *disk);

/* ---- Scheduler ------------------------------------------------------------------------------- */

/* Each step computes one token of every text that is being answered, and a piece of the prompts
 * that come in: as much as keeps the step short, so that no text waits long for another's prompt.
 * The text of an answer does not depend on what else is computed with it. */
struct scheduler;

#define SCHEDULER_SEQUENCES 32

/* Zero means the default. */
struct scheduler_options {
    uint32_t max_sequences; /* texts answered together (SCHEDULER_SEQUENCES) */
    uint32_t max_queued;    /* requests and calls that wait beyond these (1024) */
    uint32_t n_ctx;         /* tokens of one request, prompt and answer; all that the model holds */
    uint32_t step_tokens;   /* tokens of one step; the model's limit */
    uint32_t step_ms;       /* a step with a piece of a prompt takes about this at most, where texts
                               are being answered (200); longer where many prompts wait */
    bool no_prefix_cache;   /* every prompt is computed from its beginning */
    bool no_drafts;         /* a text that is alone is not continued by drafts out of itself */
    struct kv_disk *kv_disk; /* NULL: none; borrowed. Not used by a model on several ranks */
    const char *file_digest; /* of the model file, for kv_disk; NULL: what the system says of it */
};

/* Starts the thread. The engine has a model and a tokenizer, stays borrowed until scheduler_close,
 * and has no other sequences meanwhile. options NULL: all defaults. */
enum status scheduler_open(struct scheduler **out, struct engine *engine,
                           const struct scheduler_options *options, struct error *error);

/* Refuses new requests from now on; those that were accepted go on. Any thread. */
void scheduler_drain(struct scheduler *scheduler);
/* Cancels what is left, waits for the thread, frees all. Not from a callback. NULL allowed. */
void scheduler_close(struct scheduler *scheduler);

/* Any thread. Takes the request over, also when it fails. *id (unless NULL) names it; events may
 * arrive before this returns. Fails with
 *   STATUS_LIMIT    the prompt leaves no room for an answer in the context: both numbers;
 *   STATUS_BUSY     the queue is full, or the scheduler drains or closes: try again later;
 *   STATUS_INVALID  token ids, stop texts or sampling out of range;
 *   STATUS_UNSUPPORTED  the model writes no text;
 *   STATUS_MEMORY */
enum status scheduler_submit(struct scheduler *scheduler, struct generation_request *request,
                             generation_callback *callback, void *context, uint64_t *id,
                             struct error *error);

/* Any thread. The request ends with FINISH_CANCELLED, at the latest after the step that is running;
 * one that has ended already is left alone. */
void scheduler_cancel(struct scheduler *scheduler, uint64_t id);

/* Any thread. Runs job(engine, context) on the engine's thread between two steps, first come first
 * served: embeddings, and what else needs the model. It waits in the same queue as far as that may
 * be full: STATUS_BUSY as above. */
typedef void scheduler_job(struct engine *engine, void *context);
enum status scheduler_call(struct scheduler *scheduler, scheduler_job *job, void *context,
                           struct error *error);

struct scheduler_metrics {
    uint64_t n_queued, n_running, n_paused; /* requests now; paused: for lack of pages */
    uint64_t pages, pages_free;             /* of the KV cache */
    uint64_t pages_cached; /* held for later prompts alone; given up when pages are short */
    /* Since the scheduler was opened: */
    uint64_t n_accepted, n_refused, n_finished, n_cancelled, n_failed, n_pauses;
    uint64_t prompt_tokens, cached_tokens, output_tokens; /* cached: of the prompt tokens */
    uint64_t prefix_hits; /* requests that began with cached tokens */
    uint64_t draft_tokens, draft_tokens_right;
    uint64_t steps, step_ns;
    double tokens_per_s; /* of answers, of late */
};
void scheduler_metrics(struct scheduler *scheduler, struct scheduler_metrics *out); /* any thread */

#endif
