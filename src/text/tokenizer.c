#include "text/tokenizer_internal.h"

#include <stdlib.h>
#include <string.h>

/* ---- Lists ---- */

void token_list_free(struct token_list *list)
{
    free(list->ids);
    *list = (struct token_list){0};
}

bool token_list_append(struct token_list *list, int32_t id)
{
    if (list->count == list->capacity) {
        size_t capacity = MAX(list->capacity + list->capacity / 2, (size_t)64), bytes;
        int32_t *ids = size_mul(capacity, sizeof *ids, &bytes) ? realloc(list->ids, bytes) : NULL;
        if (ids == NULL)
            return false;
        list->ids = ids;
        list->capacity = capacity;
    }
    list->ids[list->count++] = id;
    return true;
}

/* ---- What the kinds share ---- */

static enum token_type tokenizer_type(const struct tokenizer *t, int32_t id)
{
    return (enum token_type)t->config.types[id];
}

bool tokenizer_is_word(const struct tokenizer *t, int32_t id)
{
    enum token_type type = tokenizer_type(t, id);
    return type != TOKEN_CONTROL && type != TOKEN_UNKNOWN && type != TOKEN_BYTE;
}

int32_t tokenizer_word(const struct tokenizer *t, struct view text)
{
    int32_t id = token_index_find(&t->by_text, text);
    return id != TOKEN_NONE && tokenizer_is_word(t, id) ? id : TOKEN_NONE;
}

bool tokenizer_open_trie(const struct tokenizer *t, struct trie *trie, tokenizer_wanted_fn *wanted)
{
    const struct tokenizer_config *config = &t->config;
    struct trie_key *keys = calloc(config->n_tokens, sizeof *keys);
    size_t count = 0;
    if (keys == NULL)
        return false;
    for (size_t i = 0; i < config->n_tokens; i++)
        if (config->tokens[i].size > 0 && wanted(t, (int32_t)i))
            keys[count++] = (struct trie_key){config->tokens[i], (int32_t)i};
    bool done = trie_open(trie, t->arena, keys, count);
    free(keys);
    return done;
}

bool tokenizer_clean(struct view text, struct buffer *copy, struct view *out)
{
    *out = text;
    if (text.size == 0 || utf8_valid(text.data, text.size))
        return true;
    uint32_t code;
    for (size_t at = 0, length; at < text.size; at += MAX(length, (size_t)1)) {
        length = utf8_decode(text.data + at, text.size - at, &code);
        if (length > 0)
            buffer_append(copy, text.data + at, length);
        else
            buffer_append(copy, REPLACEMENT, sizeof REPLACEMENT - 1);
    }
    *out = (struct view){copy->data, copy->size};
    return !copy->failed;
}

bool tokenizer_is_space(uint32_t c)
{
    return (c >= 9 && c <= 13) || c == 0x20 || c == 0x85 || c == 0xA0 || c == 0x1680 ||
           (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F ||
           c == 0x205F || c == 0x3000;
}

/* ---- Opening: checks ---- */

static const struct tokenizer_kind *const kinds[] = {
    &tokenizer_bytes,
    &tokenizer_spm,
    &tokenizer_unigram,
    &tokenizer_wordpiece,
};

static const struct tokenizer_kind *find_kind(struct view model)
{
    for (size_t i = 0; i < ARRAY_COUNT(kinds); i++)
        if (view_equal(model, view_of(kinds[i]->model)))
            return kinds[i];
    return NULL;
}

static enum status check_ids(const struct tokenizer_config *config, struct error *error)
{
    const struct {
        const char *name;
        int32_t id;
    } ids[] = {
        {"bos", config->bos},
        {"eos", config->eos},
        {"eot", config->eot},
        {"unknown", config->unknown},
        {"separator", config->separator},
        {"padding", config->padding},
        {"cls", config->cls},
        {"mask", config->mask},
    };
    for (size_t i = 0; i < ARRAY_COUNT(ids); i++)
        if (ids[i].id != TOKEN_NONE && (ids[i].id < 0 || (size_t)ids[i].id >= config->n_tokens))
            return error_set(error, STATUS_INVALID,
                             "the tokenizer's %s token is %d, but there are %zu tokens",
                             ids[i].name, (int)ids[i].id, config->n_tokens);
    return STATUS_OK;
}

static enum status check_config(const struct tokenizer_config *config, struct error *error)
{
    if (find_kind(config->model) == NULL)
        return error_set(error, STATUS_UNSUPPORTED,
                         "the tokenizer model '%.*s' is not known; known are gpt2, llama, t5, bert",
                         (int)MIN(config->model.size, (size_t)40),
                         config->model.size > 0 ? config->model.data : "");
    if (config->n_tokens == 0 || config->tokens == NULL)
        return error_set(error, STATUS_INVALID, "the tokenizer has no tokens");
    if (config->n_tokens > TOKENIZER_MAX_TOKENS || config->n_merges > TOKENIZER_MAX_MERGES)
        return error_set(error, STATUS_LIMIT,
                         "the tokenizer has %zu tokens and %zu merges; the most are %zu and %zu",
                         config->n_tokens, config->n_merges, TOKENIZER_MAX_TOKENS,
                         TOKENIZER_MAX_MERGES);
    for (size_t i = 0; i < config->n_tokens; i++)
        if (config->tokens[i].size > TOKENIZER_MAX_TOKEN_BYTES)
            return error_set(error, STATUS_LIMIT, "token %zu has %zu bytes; the most are %zu", i,
                             config->tokens[i].size, TOKENIZER_MAX_TOKEN_BYTES);
    for (size_t i = 0; i < config->n_merges; i++)
        if (config->merges[i].size > 2 * TOKENIZER_MAX_TOKEN_BYTES)
            return error_set(error, STATUS_LIMIT, "merge %zu has %zu bytes; the most are %zu", i,
                             config->merges[i].size, 2 * TOKENIZER_MAX_TOKEN_BYTES);
    return check_ids(config, error);
}

/* ---- What a token stands for ---- */

static void byte_alphabet_fill(struct byte_alphabet *alphabet)
{
    uint16_t next = 256;
    memset(alphabet->byte, 0xFF, sizeof alphabet->byte);
    for (int b = 0; b < 256; b++) {
        bool printable = (b > 0x20 && b < 0x7F) || (b > 0xA0 && b != 0xAD);
        uint16_t character = printable ? (uint16_t)b : next++;
        alphabet->character[b] = character;
        alphabet->byte[character] = (int16_t)b;
    }
}

static int hex_digit(char c)
{
    return c >= '0' && c <= '9'   ? c - '0'
           : c >= 'A' && c <= 'F' ? c - 'A' + 10
           : c >= 'a' && c <= 'f' ? c - 'a' + 10
                                  : -1;
}

/* The byte that "<0x0A>" names, or -1. */
static int byte_named(struct view text)
{
    if (text.size != 6 || memcmp(text.data, "<0x", 3) != 0 || text.data[5] != '>')
        return -1;
    int high = hex_digit(text.data[3]), low = hex_digit(text.data[4]);
    return high < 0 || low < 0 ? -1 : high * 16 + low;
}

/* Writes what the text of a word stands for, never longer than the text; returns its size. */
static size_t piece_of_word(const struct tokenizer *t, struct view text, char *out)
{
    const struct byte_alphabet *alphabet = &t->alphabet;
    size_t size = 0;
    uint32_t code;
    for (size_t at = 0, length; at < text.size; at += length) {
        length = utf8_decode(text.data + at, text.size - at, &code);
        if (length == 0) {
            length = 1;
            code = UINT32_MAX;
        }
        if (!t->kind->byte_level && code == 0x2581) {
            out[size++] = ' ';
        } else if (t->kind->byte_level && code < ARRAY_COUNT(alphabet->byte) &&
                   alphabet->byte[code] >= 0) {
            out[size++] = (char)alphabet->byte[code];
        } else {
            memcpy(out + size, text.data + at, length);
            size += length;
        }
    }
    return size;
}

/* ---- Opening ---- */

/* Types for a file that gives none: what its ids and the names of bytes tell. */
static bool open_types(struct tokenizer *t)
{
    struct tokenizer_config *config = &t->config;
    if (config->types != NULL)
        return true;
    int32_t *types = arena_array(t->arena, config->n_tokens, sizeof *types);
    if (types == NULL)
        return false;
    for (size_t i = 0; i < config->n_tokens; i++) {
        bool byte = !t->kind->byte_level && byte_named(config->tokens[i]) >= 0;
        types[i] = byte ? TOKEN_BYTE : TOKEN_NORMAL;
    }
    const int32_t control[] = {config->bos, config->eos,     config->eot, config->separator,
                               config->cls, config->padding, config->mask};
    for (size_t i = 0; i < ARRAY_COUNT(control); i++)
        if (control[i] != TOKEN_NONE)
            types[control[i]] = TOKEN_CONTROL;
    if (config->unknown != TOKEN_NONE && types[config->unknown] == TOKEN_NORMAL)
        types[config->unknown] = TOKEN_UNKNOWN;
    config->types = types;
    return true;
}

static void open_byte_ids(struct tokenizer *t)
{
    for (int b = 0; b < 256; b++) {
        char text[4];
        size_t size = utf8_encode(t->alphabet.character[b], text);
        t->byte_ids[b] =
            t->kind->byte_level ? tokenizer_word(t, (struct view){text, size}) : TOKEN_NONE;
    }
    if (t->kind->byte_level)
        return;
    for (size_t i = t->config.n_tokens; i-- > 0;) {
        int byte = byte_named(t->config.tokens[i]);
        if (byte >= 0 && tokenizer_type(t, (int32_t)i) == TOKEN_BYTE)
            t->byte_ids[byte] = (int32_t)i;
    }
}

/* ---- Opening: markup ---- */

/* Texts that end an answer whatever the file's own ids say, as published chat models write them. */
static const char *const end_texts[] = {
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "<|return|>",
    "<|call|>",
    "<|eom_id|>",
    "<EOT>",
    "_<EOT>",
    "</s>",
    "<|end_of_text|>",
    "<end_of_utterance>",
    "[EOS]",
    "<|eot|>",
    "<|user|>",
    "<|observation|>",
    "[e~[",
    "<|END_OF_TURN_TOKEN|>",
    "<｜end▁of▁sentence｜>",
};

static bool is_markup(const struct tokenizer *t, int32_t id)
{
    enum token_type type = tokenizer_type(t, id);
    return type == TOKEN_CONTROL || type == TOKEN_USER_DEFINED || type == TOKEN_UNKNOWN;
}

static int32_t find_markup(const struct tokenizer *t, const char *text)
{
    int32_t id = token_index_find(&t->by_text, view_of(text));
    return id != TOKEN_NONE && is_markup(t, id) ? id : TOKEN_NONE;
}

static void open_flags(struct tokenizer *t)
{
    const struct tokenizer_config *config = &t->config;
    for (size_t i = 0; i < ARRAY_COUNT(end_texts); i++) {
        int32_t id = find_markup(t, end_texts[i]);
        if (id != TOKEN_NONE)
            t->flags[id] |= TOKEN_ENDS;
    }
    /* In gpt-oss's format <|end|> ends a message; the answer goes on until <|return|> or a call. */
    int32_t end = find_markup(t, "<|end|>");
    if (end != TOKEN_NONE && find_markup(t, "<|return|>") != TOKEN_NONE &&
        find_markup(t, "<|call|>") != TOKEN_NONE)
        t->flags[end] &= (uint8_t)~TOKEN_ENDS;
    if (config->eos != TOKEN_NONE)
        t->flags[config->eos] |= TOKEN_ENDS;
    if (config->eot != TOKEN_NONE)
        t->flags[config->eot] |= TOKEN_ENDS;
    if (config->mask != TOKEN_NONE)
        t->flags[config->mask] |= TOKEN_STRIPS_LEFT;
    /* GGUF does not say which markup swallows the white space behind it. Phi-3's does (rstrip in
     * its tokenizer.json), and its placeholders give it away. */
    if (find_markup(t, "<|placeholder1|>") == TOKEN_NONE || t->kind != &tokenizer_spm)
        return;
    static const char *const keep[] = {"<unk>", "<s>", "<|endoftext|>"};
    for (size_t i = 0; i < config->n_tokens; i++)
        if (is_markup(t, (int32_t)i))
            t->flags[i] |= TOKEN_STRIPS_RIGHT;
    for (size_t i = 0; i < ARRAY_COUNT(keep); i++) {
        int32_t id = find_markup(t, keep[i]);
        if (id != TOKEN_NONE)
            t->flags[id] &= (uint8_t)~TOKEN_STRIPS_RIGHT;
    }
}

/* ---- Opening: rules ---- */

static void default_id(const struct tokenizer *t, int32_t *id, const char *text)
{
    if (*id == TOKEN_NONE)
        *id = token_index_find(&t->by_text, view_of(text));
}

/* Ids that the file leaves out but the vocabulary shows. */
static void open_ids(struct tokenizer *t)
{
    struct tokenizer_config *config = &t->config;
    for (size_t i = 0; i < config->n_tokens && config->unknown == TOKEN_NONE; i++)
        if (tokenizer_type(t, (int32_t)i) == TOKEN_UNKNOWN)
            config->unknown = (int32_t)i;
    if (t->kind == &tokenizer_wordpiece) {
        default_id(t, &config->unknown, "[UNK]");
        default_id(t, &config->separator, "[SEP]");
        default_id(t, &config->mask, "[MASK]");
        default_id(t, &config->padding, "[PAD]");
        if (config->cls == TOKEN_NONE)
            config->cls = config->bos;
        default_id(t, &config->cls, "[CLS]");
    } else if (t->kind == &tokenizer_bytes) {
        default_id(t, &config->eos, "<|endoftext|>");
    } else {
        default_id(t, &config->unknown, "<unk>");
        default_id(t, &config->eos, "</s>");
        if (t->kind == &tokenizer_spm)
            default_id(t, &config->bos, "<s>");
    }
}

static void default_rule(enum tokenizer_rule *rule, enum tokenizer_rule value)
{
    if (*rule == TOKENIZER_DEFAULT)
        *rule = value;
}

static void open_rules(struct tokenizer *t)
{
    struct tokenizer_config *config = &t->config;
    /* T5 has no BOS; XLM-RoBERTa, whose files carry the same name, has and uses one. */
    bool unigram_bos = t->kind == &tokenizer_unigram && config->bos != TOKEN_NONE;
    default_rule(&config->add_bos, unigram_bos ? TOKENIZER_YES : t->kind->add_bos);
    default_rule(&config->add_eos, t->kind->add_eos);
    default_rule(&config->add_sep, t->kind == &tokenizer_wordpiece ? TOKENIZER_YES : TOKENIZER_NO);
    default_rule(&config->add_space_prefix, t->kind->add_space_prefix);
    default_rule(&config->remove_extra_whitespaces,
                 t->kind == &tokenizer_unigram ? TOKENIZER_YES : TOKENIZER_NO);
    if (t->kind == &tokenizer_wordpiece) { /* BERT's frame is no choice */
        t->front = config->cls;
        t->back = config->separator;
    } else {
        t->front = config->add_bos == TOKENIZER_YES ? config->bos : TOKEN_NONE;
        t->back = config->add_eos == TOKENIZER_YES ? config->eos : TOKEN_NONE;
    }
}

static enum status open_parts(struct tokenizer *t, struct error *error)
{
    size_t n = t->config.n_tokens;
    byte_alphabet_fill(&t->alphabet);
    t->flags = arena_array(t->arena, n, sizeof *t->flags);
    if (t->flags == NULL || !token_index_open(&t->by_text, t->arena, t->config.tokens, n) ||
        !open_types(t) || !tokenizer_open_trie(t, &t->markup, is_markup))
        return error_memory(error, n * sizeof(struct view));
    for (size_t i = 0; i < n; i++)
        if (t->config.tokens[i].size > 0)
            token_index_add(&t->by_text, (int32_t)i);
    open_ids(t);
    open_flags(t);
    open_byte_ids(t);
    enum status status = t->kind->open(t, error);
    open_rules(t);
    return status;
}

enum status tokenizer_open(struct tokenizer **out, const struct tokenizer_config *config,
                           struct error *error)
{
    enum status status = check_config(config, error);
    if (status != STATUS_OK)
        return status;
    struct tokenizer *t = calloc(1, sizeof *t);
    struct arena *arena = arena_open(0);
    if (t == NULL || arena == NULL) {
        free(t);
        arena_close(arena);
        return error_memory(error, sizeof *t);
    }
    t->arena = arena;
    t->config = *config;
    t->kind = find_kind(config->model);
    status = open_parts(t, error);
    if (status != STATUS_OK) {
        tokenizer_close(t);
        return status;
    }
    t->config.merges = NULL;
    t->config.n_merges = 0;
    *out = t;
    return STATUS_OK;
}

void tokenizer_close(struct tokenizer *t)
{
    if (t == NULL)
        return;
    if (t->kind->close != NULL)
        t->kind->close(t);
    arena_close(t->arena);
    free(t);
}

/* ---- Encoding ---- */

/* The longest markup that begins at data; *size is its length. Control and unknown tokens count
 * only where all is true. */
static int32_t match_markup(const struct tokenizer *t, const char *data, size_t left, bool all,
                            size_t *size)
{
    int32_t found = TOKEN_NONE;
    if (!t->markup.starts[(uint8_t)data[0]])
        return found;
    uint32_t node = TRIE_ROOT;
    for (size_t i = 0; i < left; i++) {
        node = trie_step(&t->markup, node, (uint8_t)data[i]);
        if (node == TRIE_NONE)
            break;
        int32_t id = t->markup.value[node];
        if (id != TOKEN_NONE && (all || tokenizer_type(t, id) == TOKEN_USER_DEFINED)) {
            found = id;
            *size = i + 1;
        }
    }
    return found;
}

static struct view strip_right(struct view text)
{
    uint32_t code;
    for (size_t back = 1; back <= 4 && back <= text.size; back++) {
        size_t length = utf8_decode(text.data + text.size - back, back, &code);
        if (length == back && tokenizer_is_space(code)) {
            text.size -= back;
            back = 0;
        }
    }
    return text;
}

static size_t leading_space(const char *data, size_t size)
{
    size_t at = 0, length;
    uint32_t code;
    while (at < size && (length = utf8_decode(data + at, size - at, &code)) > 0 &&
           tokenizer_is_space(code))
        at += length;
    return at;
}

/* text, cut at its markup. */
static bool encode_text(const struct tokenizer *t, struct view text, bool all,
                        struct token_list *out)
{
    size_t begin = 0, size = 0;
    bool opening = true;
    for (size_t at = 0; at < text.size;) {
        int32_t id = match_markup(t, text.data + at, text.size - at, all, &size);
        if (id == TOKEN_NONE) {
            at++;
            continue;
        }
        struct view before = {text.data + begin, at - begin};
        if (t->flags[id] & TOKEN_STRIPS_LEFT)
            before = strip_right(before);
        if (before.size > 0 && !t->kind->encode(t, before, opening, out))
            return false;
        if (!token_list_append(out, id))
            return false;
        opening = true;
        at += size;
        if (t->flags[id] & TOKEN_STRIPS_RIGHT)
            at += leading_space(text.data + at, text.size - at);
        begin = at;
    }
    struct view rest = {text.data + begin, text.size - begin};
    return rest.size == 0 || t->kind->encode(t, rest, opening, out);
}

enum status tokenizer_encode(const struct tokenizer *t, struct view text, unsigned flags,
                             struct token_list *out, struct error *error)
{
    if (text.size > TOKENIZER_MAX_TEXT_BYTES)
        return error_set(error, STATUS_LIMIT, "the text has %zu bytes; the most are %zu", text.size,
                         TOKENIZER_MAX_TEXT_BYTES);
    bool special = flags & TOKENIZER_ADD_SPECIAL;
    bool done = !special || t->front == TOKEN_NONE || token_list_append(out, t->front);
    done = done &&
           (text.size == 0 || encode_text(t, text, (flags & TOKENIZER_PARSE_SPECIAL) != 0, out));
    done = done && (!special || t->back == TOKEN_NONE || token_list_append(out, t->back));
    return done ? STATUS_OK : error_memory(error, text.size);
}

/* ---- Looking up ---- */

static bool in_range(const struct tokenizer *t, int32_t id)
{
    return id >= 0 && (size_t)id < t->config.n_tokens;
}

size_t tokenizer_count(const struct tokenizer *t)
{
    return t->config.n_tokens;
}

const struct tokenizer_config *tokenizer_config(const struct tokenizer *t)
{
    return &t->config;
}

int32_t tokenizer_find(const struct tokenizer *t, struct view text)
{
    return token_index_find(&t->by_text, text);
}

bool tokenizer_is_control(const struct tokenizer *t, int32_t id)
{
    return in_range(t, id) && tokenizer_type(t, id) == TOKEN_CONTROL;
}

bool tokenizer_ends_generation(const struct tokenizer *t, int32_t id)
{
    return in_range(t, id) && (t->flags[id] & TOKEN_ENDS);
}

void tokenizer_piece(const struct tokenizer *t, int32_t id, bool with_special, struct buffer *out)
{
    if (!in_range(t, id))
        return;
    enum token_type type = tokenizer_type(t, id);
    if (!with_special && (type == TOKEN_CONTROL || type == TOKEN_UNKNOWN))
        return;
    struct view text = t->config.tokens[id];
    int byte = type == TOKEN_BYTE ? byte_named(text) : -1;
    if (byte >= 0)
        buffer_append(out, &(char){(char)byte}, 1);
    else if (type != TOKEN_NORMAL && type != TOKEN_UNUSED)
        buffer_append(out, text.data, text.size);
    else if (buffer_reserve(out, text.size)) {
        out->size += piece_of_word(t, text, out->data + out->size);
        out->data[out->size] = '\0';
    }
}

/* ---- Streaming ---- */

/* Writes U+FFFD in place of each byte of out[begin, …) that is part of no character. */
static void replace_invalid(struct buffer *out, size_t begin)
{
    struct buffer copy = {0};
    struct view clean;
    if (tokenizer_clean((struct view){out->data + begin, out->size - begin}, &copy, &clean)) {
        if (copy.size > 0) {
            out->size = begin;
            buffer_append(out, clean.data, clean.size);
        }
    } else {
        out->failed = true;
    }
    buffer_free(&copy);
}

void detokenizer_feed(struct detokenizer *d, int32_t id, struct buffer *out)
{
    const struct tokenizer *t = d->tokenizer;
    size_t begin = out->size;
    if (!buffer_append(out, d->held, d->n_held))
        return;
    size_t with_held = out->size;
    tokenizer_piece(t, id, d->with_special, out);
    if (d->strip_space && out->size > with_held) {
        d->strip_space = false;
        if (t->config.add_space_prefix == TOKENIZER_YES && out->data[begin] == ' ') {
            out->size--;
            memmove(out->data + begin, out->data + begin + 1, out->size - begin);
        }
    }
    size_t whole = begin + utf8_complete(out->data + begin, out->size - begin);
    d->n_held = out->size - whole;
    memcpy(d->held, out->data + whole, d->n_held);
    out->size = whole;
    out->data[whole] = '\0';
    replace_invalid(out, begin);
}

void detokenizer_finish(struct detokenizer *d, struct buffer *out)
{
    size_t begin = out->size;
    if (buffer_append(out, d->held, d->n_held))
        replace_invalid(out, begin);
    d->n_held = 0;
}
