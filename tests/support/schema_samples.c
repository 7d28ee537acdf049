/* Random texts by JSON Schemas, for another validator to judge.
 *
 *   schema_samples TEXTS SEED
 *
 * Standard input has a schema a line. For each one line comes back: a list of texts, as JSON
 * strings, or the sentence by which the schema was refused. Each text is drawn from random logits,
 * byte by byte and with a few longer tokens; one that does not end soon gets tokens that close
 * first, and is left out where that does not help either. */
#include "sample/sample.h"
#include "tokenizer_vocabularies.h"

#include <stdlib.h>

#define MAX_TOKENS 3000
#define HURRY 250 /* tokens, then what closes comes first */

static const char *const extra[] = {"\":", "\",\"", "{\"", "\"}", "}}",     "]}", "12",    "tr",
                                    "ue",  "null",  "},{", "  ",  "\\u00e", "aa", "2024-", "a\":1"};

static double weight_of(const struct tokenizer *tokenizer, int32_t id, size_t step, double chance)
{
    static const char closers[] = "\"}]0123456789";
    struct buffer piece = {0};
    tokenizer_piece(tokenizer, id, false, &piece);
    bool closes = tokenizer_ends_generation(tokenizer, id) ||
                  (piece.size == 1 && strchr(closers, piece.data[0]) != NULL);
    buffer_free(&piece);
    if (step > HURRY && closes)
        return 10 - (tokenizer_ends_generation(tokenizer, id) ? 0 : 1) + chance;
    return chance;
}

/* The text, or NULL where it did not end. */
static json_t *sample(const struct tokenizer *tokenizer, struct grammar *grammar, uint64_t seed)
{
    struct grammar_matcher *matcher;
    struct error error;
    struct buffer text = {0};
    json_t *result = NULL;
    bool ended = false;
    if (grammar_matcher_open(&matcher, grammar, false, &error) != STATUS_OK)
        return NULL;
    for (size_t step = 0; step < MAX_TOKENS && !ended; step++) {
        float logits[SMALL_MAX] = {0};
        int32_t best = TOKEN_NONE;
        double most = -1;
        if (!grammar_matcher_mask(matcher, logits))
            break;
        for (int32_t id = 0; (size_t)id < tokenizer_count(tokenizer); id++) {
            double weight = logits[id] == 0 ? weight_of(tokenizer, id, step,
                                                        rng_uniform(seed, step, (uint32_t)id))
                                            : -1;
            if (weight > most) {
                most = weight;
                best = id;
            }
        }
        if (best == TOKEN_NONE) {
            buffer_append_text(&text, " STUCK");
            ended = true;
        } else {
            ended = tokenizer_ends_generation(tokenizer, best);
            tokenizer_piece(tokenizer, best, false, &text);
            grammar_matcher_accept(matcher, best);
        }
    }
    if (ended)
        result = json_stringn_nocheck(text.size > 0 ? text.data : "", text.size);
    grammar_matcher_close(matcher);
    buffer_free(&text);
    return result;
}

static json_t *answer(struct grammar_cache *cache, const struct tokenizer *tokenizer,
                      const char *line, uint64_t n, uint64_t seed)
{
    struct error error;
    struct grammar *grammar;
    json_t *schema = json_loads(line, JSON_DECODE_ANY, NULL);
    const struct grammar_spec spec = {.schema = schema};
    if (schema == NULL)
        return json_string("no JSON");
    enum status status = grammar_cache_get(cache, &spec, &grammar, &error);
    json_decref(schema);
    if (status != STATUS_OK)
        return json_string(error.text);
    json_t *texts = json_array();
    for (uint64_t i = 0; i < n; i++) {
        json_t *text = sample(tokenizer, grammar, seed + i);
        if (text != NULL)
            json_array_append_new(texts, text);
    }
    grammar_release(grammar);
    return texts;
}

int main(int argc, char **argv)
{
    static struct small_vocabulary vocabulary;
    struct tokenizer *tokenizer;
    struct grammar_cache *cache;
    struct error error;
    char *line = NULL;
    size_t capacity = 0;
    if (argc != 3)
        return 2;
    small_bytes(&vocabulary, "gpt-2");
    for (size_t i = 0; i < ARRAY_COUNT(extra); i++)
        small_add(&vocabulary, extra[i], TOKEN_NORMAL, 0);
    if (tokenizer_open(&tokenizer, &vocabulary.config, &error) != STATUS_OK ||
        grammar_cache_open(&cache, tokenizer, tokenizer_count(tokenizer), &error) != STATUS_OK)
        return 1;
    while (getline(&line, &capacity, stdin) > 0) {
        json_t *result =
            answer(cache, tokenizer, line, (uint64_t)atoll(argv[1]), (uint64_t)atoll(argv[2]));
        json_dumpf(result, stdout, JSON_ENCODE_ANY | JSON_COMPACT);
        putchar('\n');
        json_decref(result);
    }
    free(line);
    grammar_cache_close(cache);
    tokenizer_close(tokenizer);
    return 0;
}
