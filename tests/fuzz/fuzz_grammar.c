/* The input is a grammar in GBNF, then after a zero byte numbers that choose among the tokens that
 * may come next. */
#include "../support/tokenizer_vocabularies.h"
#include "sample/sample.h"

#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void follow(const struct tokenizer *tokenizer, struct grammar *grammar, const uint8_t *data,
                   size_t size)
{
    float logits[SMALL_MAX];
    size_t n_vocab = tokenizer_count(tokenizer);
    struct grammar_matcher *matcher;
    struct error error;
    if (grammar_matcher_open(&matcher, grammar, size % 2 > 0, &error) != STATUS_OK)
        return;
    for (size_t i = 0; i < size && i < 200; i++) {
        size_t pick = data[i], id = 0, n = 0;
        memset(logits, 0, sizeof logits);
        if (!grammar_matcher_mask(matcher, logits))
            break;
        for (size_t t = 0; t < n_vocab; t++)
            n += logits[t] == 0;
        for (pick = n > 0 ? pick % n : 0; n > 0 && (logits[id] != 0 || pick > 0); id++)
            pick -= logits[id] == 0;
        grammar_matcher_accept(matcher, (int32_t)(n > 0 ? id : data[i]));
    }
    grammar_matcher_close(matcher);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const uint8_t *zero = size > 0 ? memchr(data, 0, size) : NULL;
    size_t text_size = zero != NULL ? (size_t)(zero - data) : size;
    struct small_vocabulary *vocabulary = malloc(sizeof *vocabulary);
    struct tokenizer *tokenizer = NULL;
    struct grammar_cache *cache = NULL;
    struct grammar *grammar = NULL;
    struct error error;
    if (vocabulary == NULL)
        return 0;
    small_spm(vocabulary);
    const struct grammar_spec spec = {.gbnf = {(const char *)data, text_size}};
    if (tokenizer_open(&tokenizer, &vocabulary->config, &error) == STATUS_OK &&
        grammar_cache_open(&cache, tokenizer, tokenizer_count(tokenizer), &error) == STATUS_OK &&
        grammar_cache_get(cache, &spec, &grammar, &error) == STATUS_OK && zero != NULL)
        follow(tokenizer, grammar, zero + 1, size - text_size - 1);
    grammar_release(grammar);
    grammar_cache_close(cache);
    tokenizer_close(tokenizer);
    free(vocabulary);
    return 0;
}
