/* text: tokens from text and text from tokens; chat templates; what a model's reply is made of.
 *
 * A tokenizer and a template are built once from plain data and then read-only: any number of
 * threads may use one.
 */
#ifndef CONSORT_TEXT_H
#define CONSORT_TEXT_H

#include "base/base.h"

#include <jansson.h>

/* ---- Tokenizer ------------------------------------------------------------------------------- */

/* How GGUF marks each token. */
enum token_type {
    TOKEN_NORMAL = 1,
    TOKEN_UNKNOWN = 2,
    TOKEN_CONTROL = 3,      /* markup: <s>, <|im_end|>; parsed only where the caller allows it */
    TOKEN_USER_DEFINED = 4, /* always parsed */
    TOKEN_UNUSED = 5,
    TOKEN_BYTE = 6, /* <0x0A> */
};

/* Three-valued: a file may leave the rule to the tokenizer's kind. */
enum tokenizer_rule { TOKENIZER_DEFAULT, TOKENIZER_NO, TOKENIZER_YES };

#define TOKEN_NONE (-1)

/* Plain data, as model files carry it; borrowed for the life of the tokenizer, but the merges:
 * until tokenizer_open returns. */
struct tokenizer_config {
    /* "gpt2" (byte-level BPE), "llama" (SentencePiece BPE), "t5" (unigram) or "bert". */
    struct view model;
    struct view pre; /* name of the pre-tokenizer; may be empty */
    size_t n_tokens;
    const struct view *tokens;
    const float *scores;  /* [n_tokens] or NULL */
    const int32_t *types; /* [n_tokens] of enum token_type, or NULL: told from ids and texts */
    size_t n_merges;
    const struct view *merges; /* "left right", best first */
    struct view charsmap;      /* SentencePiece's precompiled normaliser; may be empty */
    /* Ids or TOKEN_NONE. */
    int32_t bos, eos, eot, unknown, separator, padding, cls, mask;
    enum tokenizer_rule add_bos, add_eos, add_sep, add_space_prefix, remove_extra_whitespaces;
};

struct tokenizer;

/* Every id, length and merge is checked; the error names what is wrong. */
enum status tokenizer_open(struct tokenizer **out, const struct tokenizer_config *config,
                           struct error *error);
void tokenizer_close(struct tokenizer *tokenizer);

struct token_list {
    int32_t *ids;
    size_t count;
    size_t capacity;
};
void token_list_free(struct token_list *list);
bool token_list_append(struct token_list *list, int32_t id);

enum tokenizer_flags {
    TOKENIZER_ADD_SPECIAL = 1,   /* BOS, EOS, CLS, SEP where the model wants them */
    TOKENIZER_PARSE_SPECIAL = 2, /* the text of a control token becomes that token */
};

/* Appends the tokens of text (any bytes; invalid UTF-8 is read as U+FFFD where the kind needs
 * characters). Time grows in proportion to the text. Fails only when memory is out. */
enum status tokenizer_encode(const struct tokenizer *tokenizer, struct view text, unsigned flags,
                             struct token_list *out, struct error *error);

size_t tokenizer_count(const struct tokenizer *tokenizer);
const struct tokenizer_config *tokenizer_config(const struct tokenizer *tokenizer);
int32_t tokenizer_find(const struct tokenizer *tokenizer, struct view text); /* or TOKEN_NONE */
bool tokenizer_is_control(const struct tokenizer *tokenizer, int32_t id);
bool tokenizer_ends_generation(const struct tokenizer *tokenizer, int32_t id); /* EOS, EOT, … */

/* Appends the bytes of one token, as they stand in running text; control tokens only where
 * with_special. An id out of range appends nothing. */
void tokenizer_piece(const struct tokenizer *tokenizer, int32_t id, bool with_special,
                     struct buffer *out);

/* Streaming: feed ids, take whole characters. {.tokenizer = t} begins; the first piece of an answer
 * loses a leading space where the tokenizer adds one (strip_space). */
struct detokenizer {
    const struct tokenizer *tokenizer;
    bool with_special;
    bool strip_space; /* set at the beginning of a text; cleared by the first piece */
    char held[4];     /* the beginning of a character */
    size_t n_held;
};

/* Appends what id completes. */
void detokenizer_feed(struct detokenizer *detokenizer, int32_t id, struct buffer *out);
/* Appends what is held back at the end, as U+FFFD. */
void detokenizer_finish(struct detokenizer *detokenizer, struct buffer *out);

/* ---- Chat template --------------------------------------------------------------------------- */

/* Jinja2 as chat templates use it (trim_blocks, lstrip_blocks, loop controls, sandboxed). */
struct chat_template;

enum status chat_template_open(struct chat_template **out, struct view source, struct error *error);
void chat_template_close(struct chat_template *chat_template);

/* Renders with the members of variables (a JSON object; key order is kept) as the template's
 * variables. now_s is what strftime_now sees, in seconds since 1970, UTC. Errors (syntax, a raised
 * exception, an unknown name called, a limit passed) give a sentence with the line. */
enum status chat_template_render(const struct chat_template *chat_template, const json_t *variables,
                                 int64_t now_s, struct buffer *out, struct error *error);

/* Appends a template that renders what a Go template, as Ollama has them, renders of a
 * conversation: of one that writes a turn, or that goes through .Messages. STATUS_UNSUPPORTED, with
 * the line, where it says what is not known here. */
enum status chat_template_from_go(struct view source, struct buffer *out, struct error *error);

/* The template of a model that carries none: ChatML. */
extern const char chat_template_chatml[];

/* ---- Replies --------------------------------------------------------------------------------- */

/* How the models of a family mark their reasoning and their tool calls. */
struct reply_format;

/* The format that a chat template speaks of; never NULL. */
const struct reply_format *reply_format_of(struct view chat_template);
/* Whether its marks are control tokens, which must then appear in the text. */
bool reply_format_shows_control(const struct reply_format *format);
/* What closes the reasoning that a rendered prompt opens at its end; NULL where it opens none. */
const char *reply_format_open_think(const struct reply_format *format, struct view prompt);

/* How a family writes reasoning and calls, for those who make it do so. A piece that is NULL is not
 * there. */
struct reply_syntax {
    const char *think, *think_end; /* around reasoning */
    bool channels;                 /* gpt-oss: a header before each part */
    /* open, then for each call: prefix NAME middle ARGUMENTS suffix; then close. # stands for a
     * number. Between calls separator; NULL: nothing, or a line end. */
    const char *open, *prefix, *middle, *suffix, *separator, *close;
    /* Arguments that are no JSON object, for each: key NAME key_end VALUE value_end. A value whose
     * type is string is bare, others are JSON. */
    const char *key, *key_end, *value_end;
    bool single; /* nothing tells several calls apart */
    /* What begins a call wherever it stands in a reply, the beginning of open or of prefix. NULL: a
     * call is the whole reply, and so is whatever begins with a brace. */
    const char *mark;
    const char *other_mark;      /* where mark is NULL: begins a call all the same */
    const char *text, *text_end; /* around an answer that calls nothing */
};

/* As the chat template, which may choose among a family's ways, has it. */
struct reply_syntax reply_syntax_of(const struct reply_format *format, struct view chat_template);
/* Whether a reply to the prompt begins within reasoning. */
bool reply_begins_thinking(const struct reply_format *format, struct view prompt);

enum reply_kind { REPLY_CONTENT, REPLY_REASONING, REPLY_CALL };

/* CONTENT and REASONING come in pieces as they are written; a CALL comes whole. */
struct reply_part {
    enum reply_kind kind;
    struct view text;      /* of CALL: the arguments, a JSON object */
    struct view tool_name; /* of CALL */
};

typedef void reply_sink(void *context, const struct reply_part *part);

struct reply_parser;

/* prompt is the rendered prompt: where it ends inside reasoning, the reply begins there. tools is
 * OpenAI's list (borrowed until the parser closes), or NULL: then calls are content. */
enum status reply_parser_open(struct reply_parser **out, const struct reply_format *format,
                              struct view prompt, const json_t *tools, reply_sink *sink,
                              void *context, struct error *error);
void reply_parser_close(struct reply_parser *parser); /* NULL allowed */

/* Any pieces of the reply; what may be the beginning of a mark is held back. What looks like a call
 * but is none comes as content. */
void reply_parser_feed(struct reply_parser *parser, struct view text);
/* The reply has ended. False where memory ran out on the way. */
bool reply_parser_end(struct reply_parser *parser);

#endif
