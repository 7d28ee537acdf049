/* Inside the tokenizer: what its files share.
 *
 *   tokenizer.c             open, markup, framing (BOS, EOS), pieces, streaming
 *   tokenizer_vocabulary.c  text -> id, and tries over token texts
 *   tokenizer_merge.c       the merge loop of both BPE kinds
 *   tokenizer_bytes.c       byte-level BPE ("gpt2")
 *   tokenizer_split.c       its pre-tokenizers
 *   tokenizer_spm.c         SentencePiece BPE ("llama")
 *   tokenizer_unigram.c     SentencePiece unigram ("t5")
 *   tokenizer_wordpiece.c   WordPiece ("bert")
 */
#ifndef CONSORT_TOKENIZER_INTERNAL_H
#define CONSORT_TOKENIZER_INTERNAL_H

#include "text/text.h"

#define TOKENIZER_MAX_TOKENS ((size_t)1 << 24)
#define TOKENIZER_MAX_MERGES ((size_t)1 << 25)
#define TOKENIZER_MAX_TOKEN_BYTES ((size_t)1 << 16)
#define TOKENIZER_MAX_TEXT_BYTES ((size_t)1 << 30)

/* U+2581, SentencePiece's visible space. */
#define SPACE_MARK "\xe2\x96\x81"
#define SPACE_MARK_BYTES ((size_t)3)

#define REPLACEMENT "\xef\xbf\xbd"

/* ---- Vocabulary ---- */

/* An open-addressing hash table of ids; the keys are views that stand elsewhere. */
struct token_index {
    const struct view *keys;
    uint32_t *slots; /* id + 1, or 0 */
    size_t mask;
    uint64_t seed; /* drawn at opening, so that no file can prepare collisions */
};

/* Room for count keys out of keys[]; NULL slots when memory is out (returns false). */
bool token_index_open(struct token_index *index, struct arena *arena, const struct view *keys,
                      size_t count);
void token_index_add(struct token_index *index, int32_t id); /* the first of equal keys stays */
int32_t token_index_find(const struct token_index *index, struct view key);

/* A trie whose nodes stand in breadth-first order, so the children of a node are neighbours. */
struct trie {
    uint32_t n_nodes;
    uint32_t *first;  /* [n_nodes + 1]: the children of i are first[i] .. first[i + 1] */
    uint8_t *label;   /* [n_nodes] */
    int32_t *value;   /* [n_nodes], or TOKEN_NONE */
    bool starts[256]; /* whether a key begins with this byte */
};

struct trie_key {
    struct view text; /* not empty */
    int32_t value;
};

#define TRIE_ROOT 0u
#define TRIE_NONE UINT32_MAX

/* Sorts keys. False when memory is out. Of equal keys the lowest value stays. */
bool trie_open(struct trie *trie, struct arena *arena, struct trie_key *keys, size_t count);
uint32_t trie_step(const struct trie *trie, uint32_t node, uint8_t byte);

/* ---- The tokenizer ---- */

enum token_flags {
    TOKEN_ENDS = 1,         /* ends a generation */
    TOKEN_STRIPS_LEFT = 2,  /* swallows white space before it */
    TOKEN_STRIPS_RIGHT = 4, /* … after it */
};

struct tokenizer_kind {
    const char *model;
    /* Fills t->state from t->arena and may adjust rules that depend on the kind. */
    enum status (*open)(struct tokenizer *t, struct error *error);
    void (*close)(struct tokenizer *t);
    /* Tokens of a stretch without markup; opening is true at the beginning of the text and behind
     * a special token. False when memory is out. */
    bool (*encode)(const struct tokenizer *t, struct view text, bool opening,
                   struct token_list *out);
    enum tokenizer_rule add_bos, add_eos, add_space_prefix; /* where the file does not say */
    bool byte_level; /* texts of tokens are in the byte alphabet; otherwise SPACE_MARK is a space */
};

extern const struct tokenizer_kind tokenizer_bytes, tokenizer_spm, tokenizer_unigram,
    tokenizer_wordpiece;

/* The alphabet of byte-level BPE (tokenizer_bytes.c): the character of each byte, and back. */
struct byte_alphabet {
    uint16_t character[256];
    int16_t byte[256 + 68]; /* -1: none */
};

struct tokenizer {
    const struct tokenizer_kind *kind;
    struct tokenizer_config config; /* rules and ids as found */
    struct arena *arena;
    struct token_index by_text;
    struct byte_alphabet alphabet;
    uint8_t *flags;     /* [n_tokens] of enum token_flags */
    struct trie markup; /* control, user-defined and unknown tokens */
    int32_t byte_ids[256];
    int32_t front, back; /* what frames a text, or TOKEN_NONE */
    void *state;         /* of the kind */
};

/* Whether running text may become this token: neither markup nor a byte's name. */
bool tokenizer_is_word(const struct tokenizer *t, int32_t id);
/* A trie of the texts, where they have one, of the tokens that are wanted. False when memory is
 * out. */
typedef bool tokenizer_wanted_fn(const struct tokenizer *t, int32_t id);
bool tokenizer_open_trie(const struct tokenizer *t, struct trie *trie, tokenizer_wanted_fn *wanted);
/* The word with this text, or TOKEN_NONE. */
int32_t tokenizer_word(const struct tokenizer *t, struct view text);

/* text itself, or, where it is not valid UTF-8, a copy in *copy with U+FFFD for every wrong byte.
 * False when memory is out. */
bool tokenizer_clean(struct view text, struct buffer *copy, struct view *out);

/* Unicode's White_Space, which is what the models' own libraries mean by \s. */
bool tokenizer_is_space(uint32_t code_point);

/* ---- Merging ---- */

struct merge_symbol {
    uint32_t prev, next;  /* MERGE_END at the ends */
    uint32_t begin, size; /* bytes of the text; size 0: merged into its left neighbour */
    int32_t id;           /* or TOKEN_NONE */
};

#define MERGE_END UINT32_MAX

/* What left and right (neighbours in text) become: the lower rank goes first, among equal ranks the
 * leftmost pair. False: they do not merge. */
typedef bool merge_pair_fn(const struct tokenizer *t, const char *text,
                           const struct merge_symbol *left, const struct merge_symbol *right,
                           uint32_t *rank, int32_t *id);

struct merge_candidate {
    uint32_t rank, left, size;
    int32_t id;
};

/* Memory of one call to tokenizer_encode. {0} is empty. */
struct merge_work {
    struct merge_symbol *symbols;
    size_t n_symbols, symbol_capacity;
    struct merge_candidate *heap;
    size_t n_heap, heap_capacity;
};

void merge_work_free(struct merge_work *work);
/* Makes room for n symbols and forgets the old ones. */
bool merge_begin(struct merge_work *work, size_t n);
void merge_add(struct merge_work *work, size_t begin, size_t size, int32_t id);
/* Merges until nothing more does, in O(n log n). symbols[0] stays the first; follow next. */
bool merge_run(struct merge_work *work, const struct tokenizer *t, const char *text,
               merge_pair_fn *pair);

/* ---- Pre-tokenizers ---- */

struct splitter;

struct pre_tokenizer {
    const char *names; /* separated by spaces */
    const char *steps[6];
    bool whole;   /* a piece that is a token is taken as it is, whatever the merges say */
    bool add_bos; /* where the file does not say */
};

enum status pre_tokenizer_find(const struct pre_tokenizer **out, struct view name,
                               struct error *error);
enum status splitter_open(struct splitter **out, const struct pre_tokenizer *pre,
                          struct error *error);
void splitter_close(struct splitter *splitter);

/* Calls piece for the pieces of text (valid UTF-8) in order; false as soon as piece returns it or
 * memory is out. */
typedef bool splitter_piece_fn(void *context, const char *piece, size_t size);
bool splitter_run(const struct splitter *splitter, struct view text, splitter_piece_fn *piece,
                  void *context);

#endif
