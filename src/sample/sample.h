/* sample: the next token from logits.
 *
 * Stages, in this order: grammar, logit bias, repeat/presence/frequency penalties, DRY, top-k,
 * typical, top-p, min-p, XTC, temperature, draw. Randomness is counter-based (seed, position,
 * draw), so the same seed gives the same text on any number of threads and after any interruption.
 * A sampler belongs to one thread at a time.
 */
#ifndef CONSORT_SAMPLE_H
#define CONSORT_SAMPLE_H

#include "base/base.h"
#include "request/request.h"
#include "text/text.h"

/* ---- Grammars -------------------------------------------------------------------------------- */

/* What texts are allowed, compiled for a vocabulary. References are counted. Any thread, and
 * several texts at once may follow one grammar: what is found out for one serves the others. */
struct grammar;

/* What the text is: one of the first three. All is borrowed for the time of a call. */
struct grammar_spec {
    struct view gbnf;     /* llama.cpp's notation: the rule named root is the whole text */
    const json_t *schema; /* a JSON Schema: what is written always validates */
    const json_t *tools;  /* OpenAI's list: calls of them, with arguments by their schemas */
    const char *tool;     /* of the tools only this one; NULL: any */
    bool single_call;
    /* The reply may be a text as well, and only tools that are "strict" have the arguments of their
     * schemas. With syntax. */
    bool may_call;
    /* How a chat's reply is written: reasoning before the text is free. NULL: the text is all. */
    const struct reply_syntax *syntax;
    bool thinking; /* the reply begins within reasoning */
};

struct grammar *grammar_hold(struct grammar *grammar); /* gives it back; NULL allowed */
void grammar_release(struct grammar *grammar);         /* NULL allowed */

/* The grammars for one tokenizer; those that were asked for last are kept. Any thread. */
struct grammar_cache;

/* n_vocab: of the logits. The tokenizer, borrowed, may have fewer tokens. Costs nothing until a
 * grammar is asked for. */
enum status grammar_cache_open(struct grammar_cache **out, const struct tokenizer *tokenizer,
                               size_t n_vocab, struct error *error);
void grammar_cache_close(struct grammar_cache *cache); /* NULL allowed; no grammar is in use */

/* A reference to the grammar of spec, compiled where it is not known. The error is a sentence on
 * what is wrong and where. */
enum status grammar_cache_get(struct grammar_cache *cache, const struct grammar_spec *spec,
                              struct grammar **out, struct error *error);

/* One text that follows a grammar. One thread at a time. */
struct grammar_matcher;

/* skip_space: a space at the beginning of the first token is no part of the text, where the
 * tokenizer adds one. */
enum status grammar_matcher_open(struct grammar_matcher **out, struct grammar *grammar,
                                 bool skip_space, struct error *error);
void grammar_matcher_close(struct grammar_matcher *matcher); /* NULL allowed */
/* The text goes on with token. One that is not allowed leads to where none is. */
void grammar_matcher_accept(struct grammar_matcher *matcher, int32_t token);
/* Sets the logits[n_vocab] of tokens that cannot come next to -inf: all but those that end the text
 * where it may not go on, these where it may not end. False where that cannot be found out: memory
 * is out, or the grammar too ambiguous. */
bool grammar_matcher_mask(struct grammar_matcher *matcher, float *logits);

/* ---- Sampler --------------------------------------------------------------------------------- */

struct sampler;

/* dry_breakers (ids at which DRY stops matching backwards; a newline, quotes, ...) may be NULL.
 * Settings out of range are an error that names the setting and its range. */
enum status sampler_open(struct sampler **out, const struct sampling *sampling, size_t n_vocab,
                         const int32_t *dry_breakers, size_t n_dry_breakers, struct error *error);
void sampler_close(struct sampler *sampler);

/* Tells the sampler a token that now stands in the text (prompt tokens too). */
void sampler_accept(struct sampler *sampler, int32_t token);

/* The tokens from now on must follow the grammar, of which the sampler takes a reference; at most
 * once. skip_space as above. */
enum status sampler_constrain(struct sampler *sampler, struct grammar *grammar, bool skip_space,
                              struct error *error);

/* The token for position, from logits[n_vocab], which are overwritten. Does not accept it. At
 * temperature 0 the largest logit after bias and penalties; the stages from top-k on are skipped.
 * -1 when no token is possible; sampler_failure then says why. */
int32_t sampler_draw(struct sampler *sampler, float *logits, uint64_t position);
const char *sampler_failure(const struct sampler *sampler);

/* The model's own distribution, from logits as they were before sampler_draw: the n best tokens,
 * best first, go to top[n], and how many there are (fewer where logits are -inf or no numbers) is
 * returned. A logprob is a logit minus *log_total. */
size_t sample_logprobs(const float *logits, size_t n_vocab, struct token_logprob *top, size_t n,
                       double *log_total);

#endif
