/* What the files of grammars share. On its way to a mask a grammar passes through these:
 *
 *   expressions (grammar_expression.c)  what GBNF, JSON Schemas and patterns are parsed into
 *   program     (grammar_program.c)     states, edges over bytes, calls of rules
 *   automaton   (grammar_automaton.c)   deterministic, built as far as texts go
 *   mask        (grammar_mask.c)        which tokens may follow a state of the automaton
 */
#ifndef CONSORT_GRAMMAR_INTERNAL_H
#define CONSORT_GRAMMAR_INTERNAL_H

#include "sample/sample.h"

/* ---- Expressions ----------------------------------------------------------------------------- */

#define GRAMMAR_MAX_NODES ((size_t)1 << 20)
#define GRAMMAR_MAX_RULES 4096u
#define GRAMMAR_MAX_REPEAT 100000u
#define GRAMMAR_MAX_DEPTH 200
#define GRAMMAR_NO_LIMIT UINT32_MAX

/* Stands before the text of a control token, which is one byte string to a grammar. No character
 * has this byte. */
#define GRAMMAR_CONTROL_BYTE '\xFF'

enum expression_kind {
    EXPRESSION_BYTES,
    EXPRESSION_RANGES, /* one character, in one of the ranges */
    EXPRESSION_SEQUENCE,
    EXPRESSION_CHOICE,
    EXPRESSION_REPEAT,
    EXPRESSION_RULE,
};

struct code_range {
    uint32_t first, last;
};

struct expression {
    enum expression_kind kind;
    struct expression *next;         /* in the list of its parent */
    struct expression *child, *last; /* of SEQUENCE, CHOICE; REPEAT has one child */
    struct view bytes;
    const struct code_range *ranges;
    size_t n_ranges;
    uint32_t min, max; /* of REPEAT; max may be GRAMMAR_NO_LIMIT */
    uint32_t rule;
};

struct rule {
    struct view name;
    struct expression *body; /* NULL: not defined yet */
};

/* Rules as they are parsed. Once failed is set, all that follows is void. */
struct rules {
    struct arena *arena;
    struct rule *list;
    uint32_t count, capacity;
    uint32_t root; /* the rule that is the whole text */
    size_t n_nodes;
    bool failed; /* memory or a limit is out */
};

/* A rule without a body; UINT32_MAX where that fails. */
uint32_t rules_add(struct rules *rules, struct view name);

/* All of these give NULL once memory is out, and take NULL as an expression then. */
struct expression *expression_bytes(struct rules *rules, struct view bytes); /* copied */
struct expression *expression_text(struct rules *rules, const char *text);
struct expression *expression_ranges(struct rules *rules, const struct code_range *ranges,
                                     size_t n);                          /* copied */
struct expression *expression_set(struct rules *rules, const char *set); /* as in "a-z0-9_" */
struct expression *expression_list(struct rules *rules, enum expression_kind kind);
void expression_add(struct expression *list, struct expression *child);
struct expression *expression_repeat(struct rules *rules, struct expression *child, uint32_t min,
                                     uint32_t max);
struct expression *expression_rule(struct rules *rules, uint32_t rule);
/* Sequences and choices of those given, up to a NULL. */
struct expression *expression_sequence_of(struct rules *rules, ...);
struct expression *expression_choice_of(struct rules *rules, ...);

/* Sorts ranges and joins those that meet; then takes those that are not in them. Surrogates are
 * never characters. */
size_t ranges_normalise(struct code_range *ranges, size_t n);
size_t ranges_invert(const struct code_range *ranges, size_t n, struct code_range *out /* n + 1 */);

/* A parser of GBNF, into rules. The error has the line. */
enum status gbnf_parse(struct rules *rules, struct view source, struct error *error);

/* Rules for what spec asks for. */
enum status reply_parse(struct rules *rules, const struct tokenizer *tokenizer,
                        const struct grammar_spec *spec, struct error *error);

/* ---- Program --------------------------------------------------------------------------------- */

#define PROGRAM_MAX_STATES ((size_t)1 << 20)
#define PROGRAM_MAX_EDGES ((size_t)1 << 23)

/* Bytes that no edge tells apart form a class; the classes are in the order of their bytes. */
struct program_edge {
    uint32_t target;
    uint8_t first, last; /* classes; bytes while the program is being built */
};

/* The rule is read, then it goes on in target. */
struct program_call {
    uint32_t rule, target;
};

struct program_state {
    uint32_t first_edge, first_call; /* those of the next state end them */
    bool final;                      /* a rule may end here */
};

struct program {
    struct program_state *states; /* [n_states + 1] */
    uint32_t n_states;
    struct program_edge *edges;
    struct program_call *calls;
    uint32_t *starts; /* [n_rules] UINT32_MAX: never called */
    uint32_t *ranks;  /* [n_rules] a rule calls only higher ranks before it reads a byte */
    uint32_t n_rules, root;
    uint8_t class_of[256];
    unsigned n_classes;
};

enum status program_open(struct program **out, const struct rules *rules, struct error *error);
void program_close(struct program *program);

/* ---- Automaton ------------------------------------------------------------------------------- */

/* A state of the automaton is the set of places in the program where the text may have led, each
 * with what follows when its rule has ended: a stack. Stacks share their lower parts, and paths
 * that read the same rule from the same place on are one stack with several frames on top. Equal
 * stacks, and equal states, are the same number; so what was found out about a state holds whenever
 * it comes again. */
struct place {
    uint32_t state, stack;
};

#define STATE_UNKNOWN 0u
#define STATE_DEAD 1u

#define STACK_END 0u    /* below it the text ends */
#define STACK_BOTTOM 1u /* below it is what was cut off */

struct automaton_state {
    uint32_t first_place, n_places;
    uint32_t row;    /* of successors; 0: none yet */
    bool accepts;    /* the text may end here */
    bool escapes;    /* a rule may have ended into what was cut off */
    bool skips;      /* by automaton_skip_space: what a cut would lose */
    uint32_t mask;   /* + 1, in the masks of the grammar; 0: none */
    uint32_t shared; /* + 1, the local mask of this state; 0: none */
};

struct automaton;

enum status automaton_open(struct automaton **out, const struct program *program);
void automaton_close(struct automaton *automaton);

uint32_t automaton_start(struct automaton *automaton);
/* The state after byte. STATE_DEAD: none. STATE_UNKNOWN: memory or a limit is out. */
uint32_t automaton_step(struct automaton *automaton, uint32_t state, uint8_t byte);
/* The same places with stacks of at most depth frames above STACK_BOTTOM. */
uint32_t automaton_cut(struct automaton *automaton, uint32_t state, unsigned depth);
struct automaton_state *automaton_get(struct automaton *automaton, uint32_t state);
/* After space, which it does not read, as at once; after all else as state. */
uint32_t automaton_skip_space(struct automaton *automaton, uint32_t state);
size_t automaton_bytes(const struct automaton *automaton);

/* ---- Vocabulary ------------------------------------------------------------------------------ */

#define VOCABULARY_MAX_TOKEN_BYTES 250

/* The tokens as a tree, in the order of a walk that visits a node before those below it. */
struct token_node {
    uint32_t end;   /* the first node that is not below this one */
    int32_t token;  /* or TOKEN_NONE */
    uint16_t depth; /* from 1 */
    uint8_t byte;
};

struct token_tree {
    struct token_node *nodes;
    uint32_t n_nodes, capacity;
};

/* Appends a node; its end is the caller's to set. False when memory is out. */
bool token_tree_add(struct token_tree *tree, struct token_node node);

/* The tokens of a tokenizer as grammars see them; read-only. */
struct grammar_vocabulary {
    const struct tokenizer *tokenizer;
    size_t n_vocab, n_words; /* words: of 64 bits, of a mask */
    struct token_tree tree;
    int32_t *same;  /* [n_vocab] the next token with the same bytes, or TOKEN_NONE */
    uint64_t *ends; /* mask of the tokens that end a text */
    bool skips_space;
};

enum status vocabulary_open(struct grammar_vocabulary **out, const struct tokenizer *tokenizer,
                            size_t n_vocab, struct error *error);
void vocabulary_close(struct grammar_vocabulary *vocabulary); /* NULL allowed */
/* Appends the bytes of a token as grammars see it; nothing for those that no text has. */
void vocabulary_piece(const struct grammar_vocabulary *vocabulary, int32_t token,
                      struct buffer *out);

/* ---- Masks ----------------------------------------------------------------------------------- */

struct masks;

enum status masks_open(struct masks **out, const struct grammar_vocabulary *vocabulary,
                       struct automaton *automaton);
void masks_close(struct masks *masks);
/* The tokens that may follow state, [n_words]; valid until the next call. NULL when memory or a
 * limit is out. */
const uint64_t *masks_of(struct masks *masks, uint32_t state);
size_t masks_bytes(const struct masks *masks);

/* ---- Grammars -------------------------------------------------------------------------------- */

/* The vocabulary is borrowed for the life of the grammar. */
enum status grammar_open(struct grammar **out, const struct grammar_vocabulary *vocabulary,
                         const struct grammar_spec *spec, struct error *error);

#endif
