/* api: what clients of OpenAI's, Ollama's and Anthropic's APIs send and receive.
 *
 * A reader turns the JSON of a request into a struct api_call; a struct api_answer turns the events
 * of its generations into the bytes of the answer, streamed or whole, in the format of the API the
 * request came through. No sockets, no engine, no clock. A call and its answer belong to one thread
 * at a time.
 */
#ifndef CONSORT_API_H
#define CONSORT_API_H

#include "base/base.h"
#include "request/request.h"
#include "text/text.h"

#include <jansson.h>

#define API_MAX_CHOICES 128
#define API_MAX_PROMPTS 2048
#define API_MAX_STOPS 64
#define API_MAX_TOP_LOGPROBS 20

/* ---- Errors ---------------------------------------------------------------------------------- */

/* What a client is told. type and code are constants; code may be NULL. */
struct api_error {
    int http_status;
    const char *type, *code;
    char param[64];                       /* the field that is at fault, or empty */
    size_t prompt_tokens, context_tokens; /* of a prompt that is too long; else 0 */
    unsigned retry_after_s;               /* 0: not said */
    char text[512];
};

/* Fills *error and returns STATUS_INVALID; http_status is 400, the type invalid_request_error. */
enum status api_invalid(struct api_error *error, const char *param, const char *format, ...)
    BASE_PRINTF(3, 4);

/* What a status of the engine means to a client: 400 for STATUS_INVALID and STATUS_UNSUPPORTED, 404
 * for STATUS_NOT_FOUND, 503 for STATUS_MEMORY, else 500. */
void api_error_from(struct api_error *out, const struct error *error);

/* ---- Requests -------------------------------------------------------------------------------- */

/* Those after API_RERANK compute nothing with the model. */
enum api_operation {
    API_CHAT,
    API_COMPLETION,
    API_EMBEDDINGS,
    API_RERANK, /* the prompts are documents, scored for the query */
    API_LOAD,   /* the model is opened, and no more */
    API_SHOW,   /* what the file of the model holds */
    API_COUNT,  /* the tokens of a chat's prompt */
    API_RENDER, /* a chat's prompt */
    API_TOKENIZE,
    API_DETOKENIZE,
    API_PROPS, /* of an open model */
};

/* A prompt that is no conversation: a text; token ids where tokens is not NULL; or where parts is
 * not NULL, texts and tokens in a row. */
struct api_prompt {
    struct view text;
    const int32_t *tokens;
    size_t n_tokens;
    const struct api_prompt *parts; /* [n_parts], without parts of their own */
    size_t n_parts;
};

struct api_bias {
    struct view text;
    float bias;
};

enum api_tool_choice { API_TOOLS_AUTO, API_TOOLS_NONE, API_TOOLS_REQUIRED, API_TOOLS_NAMED };
enum api_output { API_OUTPUT_TEXT, API_OUTPUT_JSON, API_OUTPUT_SCHEMA, API_OUTPUT_GRAMMAR };

struct api_format;

/* Borrows from body, which it owns. */
struct api_call {
    const struct api_format *format;
    enum api_operation operation;
    json_t *body;
    struct arena *arena;
    const char *model; /* NULL: not named */

    json_t *messages;  /* chat: each content is a text; owned */
    json_t *variables; /* what the template gets besides messages; owned */
    struct api_prompt *prompts;
    size_t n_prompts;
    const struct infill *infill; /* completion: what is asked for instead of the prompt; or NULL */

    struct sampling sampling;
    uint32_t given; /* which of these the request names; for api_call_server_defaults */
    bool has_seed;
    uint32_t max_tokens; /* 0: not limited */
    uint32_t n_choices;  /* of each prompt */
    uint32_t n_ctx;      /* what the context must hold; 0: not said */
    bool has_keep_alive; /* the model stays open for keep_alive_ms; UINT64_MAX: for ever */
    uint64_t keep_alive_ms;
    const char **stops;
    size_t n_stops;
    struct api_bias *biases; /* of the tokens of texts */
    size_t n_biases;
    bool want_logprobs;
    uint32_t n_top_logprobs;
    bool stream, include_usage, echo, ignore_end;
    bool no_answer;                /* only what stands before it, with its log probabilities */
    bool want_tokens;              /* their ids */
    bool keep_blocks;              /* the answer's texts stay, also of a stream */
    bool store;                    /* the response is kept for later ones */
    const char *previous;          /* the response that this one follows, or NULL */
    json_t *input;                 /* of a response: its items; owned */
    json_t *response;              /* what the answer repeats of the request; owned */
    const json_t *response_fields; /* array of the fields that are told; NULL: all */

    enum api_output output;
    const json_t *schema;     /* of API_OUTPUT_SCHEMA */
    const char *grammar;      /* of API_OUTPUT_GRAMMAR: GBNF */
    const char *output_param; /* the field that asked for it */
    const json_t *tools;      /* array, or NULL */
    enum api_tool_choice tool_choice;
    const char *tool_name; /* of API_TOOLS_NAMED */
    bool single_call;      /* at most one tool call in an answer */
    bool strict_tools;     /* a tool is strict: calls of it have the arguments of its schema */

    bool base64;         /* embeddings as base64 of float32 */
    uint32_t dimensions; /* of an embedding; 0: all */
    struct view query;   /* of API_RERANK, and the next two */
    uint32_t n_best;     /* documents that are told; 0: all */
    bool with_documents;
    bool add_special, parse_special, with_pieces; /* of API_TOKENIZE */
    bool truncate; /* a text that is too long for an embedding is cut */
};

/* Reads the body of POST /v1/chat/completions, /v1/completions, /v1/embeddings. Fields that are not
 * known are ignored; known ones are taken or refused with a sentence, never dropped. */
enum status openai_read(struct api_call **out, enum api_operation operation, struct view body,
                        struct api_error *error);
/* Of POST /api/chat, /api/generate (API_COMPLETION), /api/embed, /api/show. Without messages or a
 * prompt it asks for API_LOAD; a prompt that is not raw becomes a chat. */
enum status ollama_read(struct api_call **out, enum api_operation operation, struct view body,
                        struct api_error *error);
/* Of POST /api/embeddings, which takes one text. */
enum status ollama_read_embedding(struct api_call **out, enum api_operation operation,
                                  struct view body, struct api_error *error);
/* Of llama-server's /completion, /embedding, /tokenize, /detokenize, /apply-template (API_RENDER),
 * /props. */
enum status llama_read(struct api_call **out, enum api_operation operation, struct view body,
                       struct api_error *error);
/* Of POST /v1/messages (API_CHAT) and /v1/messages/count_tokens (API_COUNT). */
enum status anthropic_read(struct api_call **out, enum api_operation operation, struct view body,
                           struct api_error *error);
/* Of /infill (API_COMPLETION). */
enum status llama_read_infill(struct api_call **out, enum api_operation operation, struct view body,
                              struct api_error *error);
/* Of /completions and /embeddings, which are paths of llama-server as well as OpenAI's without /v1.
 * OpenAI's clients name a model. */
enum status llama_read_either(struct api_call **out, enum api_operation operation, struct view body,
                              struct api_error *error);
/* Of POST /v1/responses. The messages come with responses_follow. */
enum status responses_read(struct api_call **out, enum api_operation operation, struct view body,
                           struct api_error *error);
/* Makes the messages: history (items of earlier responses, or NULL), then the call's input, which
 * becomes the whole of both. */
enum status responses_follow(struct api_call *call, const json_t *history, struct api_error *error);
/* Of POST /v1/rerank. */
enum status rerank_read(struct api_call **out, enum api_operation operation, struct view body,
                        struct api_error *error);
/* What holds where the request does not say otherwise: a system text (may be empty), an array of
 * messages that begin a conversation, and an object of sampling parameters as Ollama names them. */
enum status api_call_defaults(struct api_call *call, const char *system, const json_t *messages,
                              const json_t *parameters, struct api_error *error);
void api_call_free(struct api_call *call); /* NULL allowed */

/* What a server takes where neither the request nor its model says. */
struct api_defaults {
    struct sampling sampling; /* its biases stay borrowed */
    bool has_seed;
    uint32_t max_tokens; /* 0: not limited */
    bool no_thinking;    /* before an answer, where the model can be told so */
};
void api_call_server_defaults(struct api_call *call, const struct api_defaults *defaults);

/* ---- Answers --------------------------------------------------------------------------------- */

/* A part of an answer. */
struct api_delta {
    enum reply_kind kind;
    struct view text; /* of a call: its arguments */
    size_t call;      /* its number in the choice, from 0 */
    const char *call_id, *call_name;
};

/* A tool call of an answer. */
struct api_tool_call {
    char id[12];
    char *name, *arguments;
};

/* Text of one kind in a row, or a call. */
struct api_block {
    enum reply_kind kind;
    size_t begin, size; /* in content or reasoning; of a call: its number, and 0 */
};

struct api_choice {
    struct reply_parser *parser; /* NULL: all is content */
    struct buffer content, reasoning;
    struct api_tool_call *calls; /* [n_calls] */
    size_t n_calls;
    json_t *logprobs;       /* of the tokens not sent yet: {token, logprob, bytes, top_logprobs} */
    size_t logprobs_offset; /* characters of the answer before these */
    struct token_list tokens; /* where wanted: those not sent yet */
    bool has_newline;
    enum finish_reason reason;
    struct view stop;              /* FINISH_STOP: which one, one of the call's */
    struct generation_usage usage; /* so far */
    bool begun;
    struct api_block *blocks; /* [n_blocks] of calls with keep_blocks */
    size_t n_blocks; /* of formats that write blocks: how many were opened, and the last one */
    bool block_open;
    enum reply_kind block;
};

struct api_answer {
    const struct api_call *call;
    const struct tokenizer *tokenizer;
    char id[48];
    uint64_t id_number;
    int64_t created_s;
    const char *model;
    struct api_choice *choices; /* [n_choices]: those of a prompt stand together */
    size_t n_choices, n_finished;
    size_t prompt_tokens, cached_tokens, completion_tokens;
    struct buffer *out;                          /* of the event that is being taken */
    size_t n_events;                             /* of formats that count them */
    uint64_t queue_ns, prompt_ns, completion_ns; /* the longest of the choices */
    uint64_t load_ns;                            /* until the model was open */
};

/* What comes of an operation that writes no text. */
struct api_result {
    const char *model;
    int64_t created_s;
    uint64_t load_ns, total_ns;
    const float *vectors; /* [n_prompts][n_numbers] */
    size_t n_numbers;
    size_t prompt_tokens;
    struct view text; /* of API_RENDER, API_DETOKENIZE; of API_PROPS: the template */
    const int32_t *tokens;
    size_t n_tokens;
    const struct tokenizer *tokenizer;
    const char *path; /* of the model's file */
    size_t n_ctx, n_slots;
};

/* How an API writes. Each appends to out. */
struct api_format {
    const char *id_prefix;
    const char *stream_type; /* Content-Type of a stream */
    void (*begin)(struct api_answer *answer, size_t choice, struct buffer *out);
    void (*block_end)(struct api_answer *answer, struct buffer *out); /* of keep_blocks */
    void (*delta)(struct api_answer *answer, size_t choice, const struct api_delta *delta,
                  struct buffer *out);
    void (*finish)(struct api_answer *answer, size_t choice, struct buffer *out);
    void (*end)(struct api_answer *answer, struct buffer *out);
    void (*whole)(struct api_answer *answer,
                  struct buffer *out); /* an answer that is not streamed */
    void (*result)(const struct api_call *call, const struct api_result *result,
                   struct buffer *out);
    void (*error)(const struct api_error *error, bool streaming, struct buffer *out);
    const char *ping; /* what keeps a silent stream open */
};

/* call, tokenizer and model stay borrowed. id_number makes the answer's id. */
enum status api_answer_open(struct api_answer **out, const struct api_call *call,
                            const struct tokenizer *tokenizer, const char *model,
                            uint64_t id_number, int64_t created_s, struct error *error);
void api_answer_close(struct api_answer *answer);

/* The choice is a chat's reply in that format to that prompt: reasoning and tool calls are found.
 * Before the choice's first event. */
enum status api_answer_parse(struct api_answer *answer, size_t choice,
                             const struct reply_format *format, struct view prompt,
                             struct error *error);

/* Takes an event of one choice, and appends what the client gets for it: with a stream at once,
 * else everything with the last event. Not for events that report a failure. */
void api_answer_event(struct api_answer *answer, size_t choice,
                      const struct generation_event *event, struct buffer *out);
bool api_answer_done(const struct api_answer *answer);

/* The items that a finished answer of /v1/responses adds, as a JSON array. */
void responses_put_output(const struct api_answer *answer, struct buffer *out);

/* The API that clients of a path speak: the form of errors that come before a call is read. */
const struct api_format *api_format_of(struct view path);

/* Appends seconds since 1970 as RFC 3339 writes them, in UTC. */
void api_put_time(struct buffer *out, int64_t time_s);

/* ---- JSON by hand ---------------------------------------------------------------------------- */

/* Appends text as a JSON string with its quotes; what is no UTF-8 becomes U+FFFD. */
void api_json_string(struct buffer *out, struct view text);

#endif
