/* speculate: drafts of the tokens that may come next, and whether verifying one pays (internal to
 * src/engine).
 *
 * One step over a token and a draft of k more reads the weights once and gives the logits of k + 1
 * positions, each to the last bit what a step of its own would have given. Drawing at each position
 * as always, for as long as the drawn token is the draft's, therefore gives the text that there
 * would be without drafts, at any temperature; only its speed changes.
 *
 * Drafts come from the text itself (struct ngrams), which costs nothing, or from a smaller model
 * with the same vocabulary (struct draft_model). Both say how sure they are of each token by a
 * class; how often the tokens of a class are right, and how long a step of so many rows takes, is
 * measured as the text grows (struct speculate_pay). A draft is verified only as far as it pays.
 *
 * Plain data and functions over them; everything belongs to one thread at a time. No clock is read
 * here but the draft model's; the caller says how long its steps took.
 */
#ifndef CONSORT_ENGINE_SPECULATE_H
#define CONSORT_ENGINE_SPECULATE_H

#include "engine/engine.h"

/* Most tokens of a draft. With the token before them they are 32 rows, up to which a format has one
 * arithmetic. */
#define SPECULATE_MAX SESSION_DRAFT_MAX

/* Classes of drafted tokens: by the length of the match, or where one goes on after an edit
 * (n-grams), by the probability that the draft model gave (models). The last counts all of a
 * model's. */
#define SPECULATE_NGRAM_CLASSES 9
#define SPECULATE_MODEL_CLASSES 8
#define SPECULATE_ANY_OF_MODEL (SPECULATE_NGRAM_CLASSES + SPECULATE_MODEL_CLASSES)
#define SPECULATE_CLASSES (SPECULATE_ANY_OF_MODEL + 1)

struct draft {
    int32_t tokens[SPECULATE_MAX];
    uint8_t classes[SPECULATE_MAX];
    size_t count;
};

/* ---- Drafts out of the text ------------------------------------------------------------------ */

/* An index of all places in a text by the three tokens before them: the latest place of each hash,
 * and from each place the one before. 12 bytes a token at most. {0} is empty. */
struct ngrams {
    uint32_t *heads; /* [n_heads], a power of two; 0: none */
    uint32_t *links; /* [capacity]: by place */
    size_t n_heads, capacity, count;
    size_t source, match; /* what followed at source is coming again, since match tokens (capped) */
    /* Before that: what comes may be an edited copy. */
    size_t before; /* tokens that matched, in front of edits (capped) */
    size_t misses; /* tokens of the last edit, until enough match again; 0: then there is none */
    size_t broken; /* where in the source it began */
};

void ngrams_free(struct ngrams *ngrams);
void ngrams_forget(struct ngrams *ngrams); /* another text; keeps the memory */

/* Indexes what text[n_tokens] has grown by. False when memory is out. */
bool ngrams_update(struct ngrams *ngrams, const int32_t *text, size_t n_tokens);

/* What followed where the longest match with the end of the text was found, the latest among equal
 * ones; where that broke off a few tokens ago and there is none, what follows behind the edit. At
 * most limit tokens. The text must be indexed. */
void ngrams_propose(struct ngrams *ngrams, const int32_t *text, size_t limit, struct draft *out);

/* ---- What pays ------------------------------------------------------------------------------- */

struct speculate_pay {
    double step_ns[SPECULATE_MAX + 2]; /* [rows] time of a step; 0: not measured */
    size_t prompt_rows;                /* of the largest step over a prompt, */
    double prompt_ns;                  /* and its time */
    double right[SPECULATE_CLASSES], seen[SPECULATE_CLASSES];
    double balance; /* steps of one row that drafts may lose until they have won some */
};

struct speculate_pay speculate_pay_begin(void);

/* A step over 1 to SPECULATE_MAX + 1 rows, with logits for all, took so long. */
void speculate_pay_step(struct speculate_pay *pay, size_t n_rows, double ns);
/* A step over a part of a prompt did. */
void speculate_pay_prompt(struct speculate_pay *pay, size_t n_rows, double ns);

/* A token of this class was, or was not, what was drawn. */
void speculate_pay_token(struct speculate_pay *pay, unsigned class, bool right);

/* How many tokens of the draft to verify: those that give the most tokens a second. 0 where that is
 * no gain, or where a loss would be more than drafts may still lose. */
size_t speculate_pay_length(const struct speculate_pay *pay, const struct draft *draft);

/* The same before a model has drafted: draft holds what it has so far, each further token costs
 * each_ns and the first fixed_ns beside. */
size_t speculate_pay_ahead(const struct speculate_pay *pay, const struct draft *draft, size_t limit,
                           double each_ns, double fixed_ns);

/* Nothing was drafted by a model: what is known of it counts less, so that it is tried again. */
void speculate_pay_fade(struct speculate_pay *pay);

/* What a draft came to: n_tokens more of the text in ns. */
void speculate_pay_settle(struct speculate_pay *pay, size_t n_tokens, double ns);

/* ---- Drafts by a model ----------------------------------------------------------------------- */

struct draft_model;

/* Refuses a draft engine whose tokens are others than the target's, naming the first that differs;
 * what either has beyond the other must be unused. Both stay borrowed. */
enum status draft_model_open(struct draft_model **out, struct engine *draft,
                             const struct engine *target, struct error *error);
void draft_model_close(struct draft_model *model);

/* Another text begins. */
void draft_model_begin(struct draft_model *model);
/* Computes it, before the first draft. */
enum status draft_model_read(struct draft_model *model, const int32_t *text, size_t n_tokens,
                             struct error *error);

/* The likeliest tokens after text, as many as pay (always: limit). Empty where the draft model
 * cannot go on. *ns is the time it took. */
void draft_model_propose(struct draft_model *model, struct speculate_pay *pay, const int32_t *text,
                         size_t n_tokens, size_t limit, bool always, struct draft *out, double *ns);

/* ---- All of it for one text ------------------------------------------------------------------ */

enum { SPECULATE_BY_NGRAM, SPECULATE_BY_MODEL, SPECULATE_N_SOURCES };

/* In place of the n-grams, for tests and benchmarks. */
typedef void speculate_fn(void *context, const int32_t *text, size_t n_tokens, size_t limit,
                          struct draft *out);

struct speculation {
    bool by_ngram;
    struct draft_model *model; /* or NULL; owned */
    size_t max;                /* tokens of a draft; 0: off */
    speculate_fn *propose;
    void *context;
    bool always; /* whether it pays or not */

    struct ngrams ngrams;
    struct speculate_pay pay;
    struct draft drafts[SPECULATE_N_SOURCES]; /* cut where they proved wrong */
    size_t source, n_sent;                    /* the draft in the step, and how much of it */
    size_t n_drawn;                           /* tokens since that step */
    double ns, model_ns;                      /* of the step and its draft, of the draft alone */
    size_t n_drafted, n_accepted;             /* of this text */
};

void speculation_close(struct speculation *speculation);

/* Another text begins; it may share its beginning with the last. */
void speculation_begin(struct speculation *speculation);
/* Lets the draft model read a prompt, so that its first draft costs no more than others. */
enum status speculation_read(struct speculation *speculation, const int32_t *text, size_t n_tokens,
                             struct error *error);

/* The tokens to verify after text in one step, at most room; NULL and 0 for none. Valid until the
 * next call. */
const int32_t *speculation_propose(struct speculation *speculation, const int32_t *text,
                                   size_t n_tokens, size_t room, size_t *n);

/* The step after the last proposal had this many rows and took so long. */
void speculation_computed(struct speculation *speculation, size_t n_rows, double ns);

/* The next token of the text. True where the draft had it and the step computed what follows. */
bool speculation_drawn(struct speculation *speculation, int32_t token);

/* A session's, to look into or to change. */
struct speculation *session_speculation(struct session *session);

#endif
