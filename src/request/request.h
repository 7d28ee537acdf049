/* request: plain data that crosses the engine's border: what is asked, and the events that answer
 * it. A request belongs to one thread at a time and passes to the engine whole; an event and what
 * it points to belong to the engine and live for one call.
 */
#ifndef CONSORT_REQUEST_H
#define CONSORT_REQUEST_H

#include "base/base.h"

#include <jansson.h>
#include <math.h>

struct logit_bias {
    int32_t token;
    float bias; /* added to the logit; -INFINITY forbids the token */
};

/* Sampler settings; the order of the stages is in sample.h. A stage at its neutral value does
 * nothing. */
struct sampling {
    float temperature;       /* 0: greedy */
    uint32_t top_k;          /* 0: off */
    float top_p;             /* 1: off */
    float min_p;             /* 0: off */
    float typical_p;         /* 1: off */
    uint32_t repeat_last_n;  /* tokens the three penalties look back on */
    float repeat_penalty;    /* 1: off */
    float presence_penalty;  /* 0: off */
    float frequency_penalty; /* 0: off */
    float dry_multiplier;    /* 0: off */
    float dry_base;
    uint32_t dry_allowed_length;
    uint32_t dry_last_n;   /* 0: the whole text */
    float xtc_probability; /* 0: off */
    float xtc_threshold;
    uint64_t seed;
    const struct logit_bias *biases; /* borrowed */
    size_t n_biases;
};

#define SAMPLING_DEFAULTS                                                                          \
    ((struct sampling){.temperature = 0.8f,                                                        \
                       .top_k = 40,                                                                \
                       .top_p = 0.95f,                                                             \
                       .min_p = 0.05f,                                                             \
                       .typical_p = 1.0f,                                                          \
                       .repeat_last_n = 64,                                                        \
                       .repeat_penalty = 1.0f,                                                     \
                       .dry_base = 1.75f,                                                          \
                       .dry_allowed_length = 2,                                                    \
                       .xtc_threshold = 0.1f})

/* ---- Request --------------------------------------------------------------------------------- */

struct grammar; /* of src/sample */

#define GENERATION_MAX_STOPS 64
#define GENERATION_MAX_STOP_BYTES 1024
#define GENERATION_MAX_TOP_LOGPROBS 64

/* One answer that is asked for. All it points to lives in its arena and ends with it. Several
 * answers to one prompt are as many requests, each with its seed: they share what is computed of
 * the prompt. */
struct generation_request {
    struct arena *arena;
    int32_t *tokens; /* [n_tokens], the whole prompt; at least one */
    size_t n_tokens;
    /* The last n_drawn of the tokens are no prompt: they were drawn for this same request before,
     * by a scheduler that is gone. The answer goes on behind them as if they had been drawn here:
     * with event n_drawn, and text from the byte on where that of event n_drawn - 1 ended. */
    size_t n_drawn;
    struct sampling sampling; /* its biases too lie in the arena; the seed is the caller's choice */
    struct grammar *grammar; /* what the answer follows, or NULL; borrowed until it is taken over */
    /* The same as it was asked for, to be compiled where the model is (engine_grammar); NULL:
     * nothing, or not told. A reference that the request owns. An object with one of "gbnf" (text),
     * "schema" (a JSON Schema) and "tools" (OpenAI's list); "tool": the only one of them to call;
     * "single_call"; "may_call": it may answer without a call too; "chat": the answer is a chat's
     * reply; "thinking": which begins within reasoning. */
    json_t *grammar_asked;
    uint32_t max_tokens;      /* of the answer; 0: what the context leaves */
    const struct view *stops; /* [n_stops], UTF-8, not empty: the answer ends before the first */
    size_t n_stops;
    bool ignore_end;   /* end tokens are text like others */
    bool strip_space;  /* the answer begins a text: a leading space the tokenizer adds is dropped */
    bool show_control; /* control tokens appear in the text, for parsers that look for them */
    bool want_logprobs; /* of each token, and of the n_top_logprobs best */
    bool score_prompt;  /* with want_logprobs: of the prompt's tokens too, which takes longer */
    bool no_answer;     /* it ends as soon as the prompt is processed */
    uint32_t n_top_logprobs;
    uint64_t client; /* clients take turns; those with the same number are first come, first served
                      */
};

/* A request for a copy of tokens, with SAMPLING_DEFAULTS; further memory comes from its arena. NULL
 * when memory is out. */
struct generation_request *generation_request_open(const int32_t *tokens, size_t n_tokens);
void generation_request_close(struct generation_request *request); /* NULL allowed */

/* Appends tokens that were drawn for the request before. */
enum status generation_request_resume(struct generation_request *request, const int32_t *drawn,
                                      size_t n_drawn, struct error *error);

/* A gap in a text that is to be filled, with what has been written of it, beside other files. */
struct infill_file {
    struct view name, text;
};
struct infill {
    struct view prefix, suffix, written;
    const struct infill_file *files; /* [n_files] */
    size_t n_files;
};

/* ---- Events ---------------------------------------------------------------------------------- */

enum finish_reason {
    FINISH_END,       /* the model ended its answer */
    FINISH_STOP,      /* a stop text appeared */
    FINISH_LENGTH,    /* max_tokens, or the context is full */
    FINISH_CANCELLED, /* by scheduler_cancel, or because the scheduler closes */
};

struct token_logprob {
    int32_t token;
    float
        logprob; /* natural logarithm, of the model's own distribution before any sampling stage */
};

struct generation_usage {
    size_t n_prompt, n_cached; /* tokens of the prompt, and how many of them were computed before */
    size_t n_output;           /* tokens drawn, an end token among them */
    uint64_t queue_ns;         /* until the first step */
    uint64_t prefill_ns;       /* until the prompt was processed */
    uint64_t decode_ns;        /* until the end */
};

enum generation_event_kind {
    GENERATION_PROMPT,   /* with score_prompt: once for each token of the prompt, in order */
    GENERATION_STARTED,  /* the prompt is processed; once, before the first token */
    GENERATION_TOKEN,    /* once for each token of the answer but an end token */
    GENERATION_FINISHED, /* the last event */
    GENERATION_FAILED,   /* the last event */
};

/* Every request that was accepted gets events in this order: PROMPT and STARTED, TOKEN any number
 * of times, and FINISHED or FAILED. One that is cancelled early, or whose n_drawn tokens are the
 * whole answer already, gets FINISHED alone. */
struct generation_event {
    enum generation_event_kind kind;
    uint64_t id; /* of the request */

    /* TOKEN, FINISHED: the text that is certain now, whole characters. What may yet become a stop
     * text or a character is held back and comes later, so text may be empty. All texts of a
     * request in a row are the answer. */
    struct view text;

    /* TOKEN, PROMPT */
    size_t index; /* of the token in the answer or the prompt, from 0 */
    int32_t token;
    float logprob; /* where asked for, as the next two; the best come first. NAN of the first token
                    * of a prompt, before which nothing stands */
    const struct token_logprob *top;
    size_t n_top;

    /* FINISHED */
    enum finish_reason reason;
    int32_t end_token; /* FINISH_END: which one; else -1 */
    struct view stop;  /* FINISH_STOP: which one */

    struct generation_usage usage; /* STARTED (the prompt's part), FINISHED, FAILED */
    const struct error *error;     /* FAILED */
};

/* Receives the events of one request, on the engine's thread, one at a time. It must not block, and
 * may call scheduler_cancel and scheduler_submit. */
typedef void generation_callback(void *context, const struct generation_event *event);

/* ---- As JSON, between machines --------------------------------------------------------------- */

/* Numbers keep all their bits. No value is nested deeper than four times, and no string has a zero
 * byte (a text with zeros is the array of what stands between them), so any reader of JSON takes
 * it. */

#define GENERATION_MAX_TOKENS (1 << 22)
#define GENERATION_MAX_BIASES (1 << 20)
#define GENERATION_MAX_EVENT_BYTES (1 << 20) /* of a text in one event */

/* The request but for the compiled grammar: a new reference, NULL where memory is out. */
json_t *generation_request_write(const struct generation_request *request);
/* What a stranger may have written: STATUS_INVALID names the field. Ranges that depend on the model
 * are left to scheduler_submit. */
enum status generation_request_read(struct generation_request **out, const json_t *json,
                                    struct error *error);

/* A TOKEN event but for index and token. usage: that of STARTED, with the first token; or NULL. A
 * new reference, NULL where memory is out. */
json_t *generation_token_write(const struct generation_event *event,
                               const struct generation_usage *usage);
/* A FINISHED or FAILED event, the latter but for its error. */
json_t *generation_end_write(const struct generation_event *event);

/* The events of one request that is answered elsewhere, given to a callback as a scheduler gives
 * them. Begins as {.callback, .context, .id}; one thread at a time. */
struct generation_feed {
    generation_callback *callback;
    void *context;
    uint64_t id;

    bool started, ended;
    struct generation_usage usage; /* as far as it is known */
    struct buffer text, stop;
    struct token_logprob top[GENERATION_MAX_TOP_LOGPROBS];
};

/* A token, from data as generation_token_write gives it. Data that nobody here would have written
 * end the answer as FAILED. False once it has ended. */
bool generation_feed_token(struct generation_feed *feed, size_t index, int32_t token,
                           const json_t *data);
/* The end: status OK and data as generation_end_write gives it, or why there is no more. */
void generation_feed_end(struct generation_feed *feed, enum status status, const char *reason,
                         const json_t *data);
/* Ends it as FINISH_CANCELLED, unless it has ended. */
void generation_feed_cancel(struct generation_feed *feed);
void generation_feed_free(struct generation_feed *feed); /* what it points to; no event */

#endif
