/* What the files of the scheduler share: stream.c is one request while it is answered, batch.c the
 * streams of a step, cost.c how much of a prompt fits into one, scheduler.c the thread, the queue
 * and what other threads may call. */
#ifndef CONSORT_ENGINE_SCHEDULER_INTERNAL_H
#define CONSORT_ENGINE_SCHEDULER_INTERNAL_H

#include "engine/answer.h"
#include "engine/engine.h"
#include "engine/prefix.h"
#include "engine/speculate.h"
#include "sample/sample.h"

#include <stdatomic.h>

/* ---- Stream ---------------------------------------------------------------------------------- */

struct stream {
    uint64_t id;
    struct generation_request *request;
    generation_callback *callback;
    void *context;
    atomic_bool cancelled;

    /* Guarded by the scheduler's mutex. */
    struct stream *next; /* in the queue of its client, or among those that have ended */
    struct stream *live_next, *live_previous;
    bool queued;

    /* From here on the engine thread's. */
    const struct tokenizer *tokenizer;
    struct sampler *sampler;
    struct answer answer;
    struct token_list text; /* prompt and answer; the sequence has all but the last, or fewer */
    size_t limit;           /* length of text at which the answer ends */
    size_t n_vocab;
    uint64_t age; /* smaller: began earlier */
    struct sequence *sequence;
    struct prefix_path path;
    bool started; /* the prompt was processed, and STARTED given */
    bool over;    /* from the beginning: the tokens that were drawn before are the whole answer */
    struct generation_usage usage;
    uint64_t accepted_ns, begun_ns, started_ns;

    /* Of one step. */
    size_t n_step; /* tokens that it computes of this text */
    bool waits;    /* for an older one that computes the same now, or for a page on disk */
    float *logits; /* [n_rows][n_vocab] after the last of them */
    size_t n_rows; /* 0: the prompt goes on; more than one: with a draft */
    /* Of a prompt that is scored: [n_scores][n_vocab] in front of tokens first_score and on. */
    float *scores;
    size_t n_scores, first_score;
    size_t n_scored; /* tokens whose events were given */
    uint64_t flight; /* the step under way that brings the rows; 0: none */
    int32_t drawn;
    float *raw; /* [n_vocab], NULL unless logprobs are wanted */
    struct token_logprob *top;
    size_t n_top;
    float logprob;

    /* How it ended. */
    bool failed;
    struct error error;
    enum finish_reason reason;
    int32_t end_token;
    struct view last_text, stop;
};

/* Takes the request over, also when it fails. n_ctx: tokens that prompt and answer may have. */
enum status stream_open(struct stream **out, const struct engine *engine, uint32_t n_ctx,
                        struct generation_request *request, struct error *error);
void stream_close(struct stream *stream);

/* Tokens that are not computed yet. */
size_t stream_pending(const struct stream *stream);
/* Draws a token from a row of the logits. Streams may do so at the same time. */
void stream_draw(struct stream *stream, size_t row);
/* Appends the token that was drawn and gives its event; true when the answer has ended. */
bool stream_advance(struct stream *stream);
void stream_give_started(struct stream *stream);
/* The events of the prompt's tokens that this step has scored. */
void stream_give_scores(struct stream *stream);
void stream_finish(struct stream *stream, enum finish_reason reason);
void stream_fail(struct stream *stream, const struct error *error);
/* The last event. */
void stream_give_end(struct stream *stream);

/* ---- Cost of a step -------------------------------------------------------------------------- */

/* Learns what steps cost. Those that only continue texts: by how many. With more than
 * QUANT_SMALL_BATCH rows, tokens of texts and of prompts: by row. With fewer: what a token of a
 * prompt adds to the texts. A prompt's tokens cost more the more come before them. */
struct step_cost {
    uint32_t max_texts;
    double *texts_ns; /* [max_texts + 1]; 0: not seen yet, here and below */
    double row_ns, few_ns;
    double deep_ns;  /* that a token costs more for each in front of it */
    double limit_ns; /* of a step with a piece of a prompt beside texts */
};

/* depths: of the prompts' tokens, how many come before each, added up. */
void step_cost_learn(struct step_cost *cost, uint32_t n_texts, size_t n_prompt, double depths,
                     uint64_t ns);

struct waiting_prompts {
    uint32_t count;
    size_t n_tokens; /* not computed yet, of all */
    size_t n_whole;  /* with what was computed of the same prompts */
    double depth;    /* tokens that are, of the deepest prompt that goes on next */
};

/* Tokens of prompts that a step may have beside n_texts texts; at least a few. */
size_t step_cost_allows(const struct step_cost *cost, uint32_t n_texts,
                        const struct waiting_prompts *prompts);

/* ---- Flights --------------------------------------------------------------------------------- */

/* A step that is under way. On one machine it lands at once; of a pipeline of stages several are
 * under way, each with some of the texts, so that all stages are busy. A text waits for its own
 * flight; a prompt that goes on need not. */
struct flight {
    uint64_t number;
    uint32_t n_texts;
    size_t n_prompt;
    double prompt_depths;     /* as step_cost_learn takes them */
    size_t first_row, n_rows; /* of the logits */
    uint64_t begin_ns;
    bool drafts;
};

/* ---- Batch ----------------------------------------------------------------------------------- */

struct batch {
    struct engine *engine;
    struct prefix_cache *cache; /* NULL: none */
    uint32_t max_streams;
    size_t step_tokens;
    struct stream **running, **paused; /* [max_streams] together, each the oldest first */
    uint32_t n_running, n_paused;
    uint64_t last_age;
    struct step_segment *segments; /* [max_streams] */
    float *logits;                 /* [max_rows][n_vocab]; rows of flights follow each other */
    size_t step_rows, max_rows;    /* for prompts that are scored, at a time; in all */
    struct flight flights[MODEL_MAX_STEPS]; /* the oldest first */
    uint32_t n_flights, max_flights, n_stages;
    uint64_t last_flight, landed_ns;
    struct step_cost cost;
    struct speculation speculation; /* for a text that is alone */
    uint64_t drafted_id;            /* of the text that it follows; 0: none */
    struct stream *ended;           /* since the last look */
    struct scheduler_metrics counts;
};

enum status batch_open(struct batch *batch, struct engine *engine,
                       const struct scheduler_options *options, struct error *error);
void batch_close(struct batch *batch); /* has no streams any more */

bool batch_has_room(const struct batch *batch, const struct stream *stream);
void batch_add(struct batch *batch, struct stream *stream);
/* Ends those that were cancelled, or all. */
void batch_cancel(struct batch *batch, bool all);
/* Other models may compute on the same threads: whoever does has the turn. */
void batch_take_turn(struct batch *batch);
void batch_end_turn(struct batch *batch);
/* One step of all that run; of a pipeline, begins one and lands one, as fits. */
void batch_step(struct batch *batch);
/* Lands all that is under way. */
void batch_land(struct batch *batch);

#endif
