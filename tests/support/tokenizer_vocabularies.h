/* Small vocabularies of every kind, for tests and fuzz targets. */
#ifndef CONSORT_TESTS_TOKENIZER_VOCABULARIES_H
#define CONSORT_TESTS_TOKENIZER_VOCABULARIES_H

#include "text/text.h"

#include <stdio.h>
#include <string.h>

#define SMALL_MAX 320

struct small_vocabulary {
    struct tokenizer_config config;
    struct view tokens[SMALL_MAX];
    float scores[SMALL_MAX];
    int32_t types[SMALL_MAX];
    struct view merges[32];
    char bytes[256][8];
};

static inline int32_t small_add(struct small_vocabulary *v, const char *text, enum token_type type,
                                float score)
{
    size_t id = v->config.n_tokens++;
    v->tokens[id] = view_of(text);
    v->types[id] = (int32_t)type;
    v->scores[id] = score;
    return (int32_t)id;
}

static inline void small_merge(struct small_vocabulary *v, const char *text)
{
    v->merges[v->config.n_merges++] = view_of(text);
}

static inline void small_begin(struct small_vocabulary *v, const char *model, const char *pre)
{
    memset(v, 0, sizeof *v);
    v->config = (struct tokenizer_config){.model = view_of(model),
                                          .pre = view_of(pre),
                                          .tokens = v->tokens,
                                          .scores = v->scores,
                                          .types = v->types,
                                          .merges = v->merges,
                                          .bos = TOKEN_NONE,
                                          .eos = TOKEN_NONE,
                                          .eot = TOKEN_NONE,
                                          .unknown = TOKEN_NONE,
                                          .separator = TOKEN_NONE,
                                          .padding = TOKEN_NONE,
                                          .cls = TOKEN_NONE,
                                          .mask = TOKEN_NONE};
}

/* Byte-level BPE: ids 0-255 are the bytes, then a few merged tokens, then markup. */
static inline void small_bytes(struct small_vocabulary *v, const char *pre)
{
    uint32_t next = 256;
    small_begin(v, "gpt2", pre);
    for (uint32_t b = 0; b < 256; b++) {
        bool printable = (b > 0x20 && b < 0x7F) || (b > 0xA0 && b != 0xAD);
        size_t size = utf8_encode(printable ? b : next++, v->bytes[b]);
        v->bytes[b][size] = '\0';
        small_add(v, v->bytes[b], TOKEN_NORMAL, 0);
    }
    static const char *const merged[] = {
        "he", "ll", "hell", "hello", "ab", "bc", "abc", "\xc4\xa0h", "\xc4\xa0hello", "orphan",
    };
    for (size_t i = 0; i < ARRAY_COUNT(merged); i++)
        small_add(v, merged[i], TOKEN_NORMAL, 0);
    static const char *const merges[] = {
        "h e", "l l", "b c", "a b", "a bc", "he ll", "hell o", "\xc4\xa0 hello", "x nowhere", "",
    };
    for (size_t i = 0; i < ARRAY_COUNT(merges); i++)
        small_merge(v, merges[i]);
    v->config.bos = small_add(v, "<|begin|>", TOKEN_CONTROL, 0);
    v->config.eos = small_add(v, "<|end|>", TOKEN_CONTROL, 0);
    small_add(v, "<|", TOKEN_USER_DEFINED, 0);
    small_add(v, "[tool]", TOKEN_USER_DEFINED, 0);
}

/* SentencePiece BPE with byte fallback; ids 3-258 are the bytes. */
static inline void small_spm(struct small_vocabulary *v)
{
    small_begin(v, "llama", "default");
    v->config.unknown = small_add(v, "<unk>", TOKEN_UNKNOWN, 0);
    v->config.bos = small_add(v, "<s>", TOKEN_CONTROL, 0);
    v->config.eos = small_add(v, "</s>", TOKEN_CONTROL, 0);
    for (unsigned b = 0; b < 256; b++) {
        snprintf(v->bytes[b], sizeof v->bytes[b], "<0x%02X>", b);
        small_add(v, v->bytes[b], TOKEN_BYTE, 0);
    }
    static const char *const pieces[] = {
        "▁", "a", "b", "c", "ab", "bc", "▁ab", "aa", "▁▁", "<", "s", ">", "<s",
    };
    for (size_t i = 0; i < ARRAY_COUNT(pieces); i++)
        small_add(v, pieces[i], TOKEN_NORMAL, -(float)i);
    small_add(v, "[tool]", TOKEN_USER_DEFINED, 0);
}

/* Unigram. The charsmap turns a tab into a space and takes U+0001 away. */
static inline void small_unigram(struct small_vocabulary *v)
{
    static unsigned char charsmap[4 + 4 * 32 + 3];
    const struct {
        unsigned index;
        uint32_t unit;
    } units[] = {
        {0, 16u << 10},     {16 ^ 9, 9 | 1u << 8 | (uint32_t)(16 ^ 9 ^ 30) << 10},
        {30, 1u << 31 | 0}, {16 ^ 1, 1 | 1u << 8 | (uint32_t)(16 ^ 1 ^ 31) << 10},
        {31, 1u << 31 | 1},
    };
    small_begin(v, "t5", "");
    v->config.padding = small_add(v, "<pad>", TOKEN_CONTROL, 0);
    v->config.eos = small_add(v, "</s>", TOKEN_CONTROL, 0);
    v->config.unknown = small_add(v, "<unk>", TOKEN_UNKNOWN, 0);
    static const char *const pieces[] = {
        "▁", "a", "b", "ab", "▁a", "abb", "bb", "▁abbb",
    };
    static const float scores[] = {-2, -3, -3, -4, -4, -4.5f, -5, -20};
    for (size_t i = 0; i < ARRAY_COUNT(pieces); i++)
        small_add(v, pieces[i], TOKEN_NORMAL, scores[i]);
    memset(charsmap, 0, sizeof charsmap);
    charsmap[0] = 4 * 32;
    for (size_t i = 0; i < ARRAY_COUNT(units); i++)
        for (unsigned b = 0; b < 4; b++)
            charsmap[4 + 4 * units[i].index + b] = (unsigned char)(units[i].unit >> 8 * b);
    charsmap[4 + 4 * 32] = ' ';
    v->config.charsmap = (struct view){(const char *)charsmap, sizeof charsmap};
}

static inline void small_wordpiece(struct small_vocabulary *v, bool cased)
{
    small_begin(v, "bert", "");
    small_add(v, "[PAD]", TOKEN_CONTROL, 0);
    small_add(v, "[UNK]", TOKEN_CONTROL, 0);
    small_add(v, "[CLS]", TOKEN_CONTROL, 0);
    small_add(v, "[SEP]", TOKEN_CONTROL, 0);
    static const char *const pieces[] = {
        "▁un", "able", "▁able", "▁,", "▁cafe", "▁\xe4\xb8\xad", "s", "▁<",
    };
    for (size_t i = 0; i < ARRAY_COUNT(pieces); i++)
        small_add(v, pieces[i], TOKEN_NORMAL, 0);
    if (cased)
        small_add(v, "▁Able", TOKEN_NORMAL, 0);
}

#endif
