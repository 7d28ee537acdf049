/* The input is a JSON Schema, then after a zero byte a number that chooses how it is asked for: as
 * the text, behind the reasoning of a family, or as the parameters of a tool. */
#include "../support/tokenizer_vocabularies.h"
#include "sample/sample.h"

#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* What the templates of several families have. */
static const char *const templates[] = {"",
                                        "<think>",
                                        "<tool_call> <think>",
                                        "<function= <tool_call>",
                                        "<arg_key>",
                                        "<|start_header_id|>",
                                        "<|channel|><|message|>",
                                        "[TOOL_CALLS]",
                                        "<|START_THINKING|> <|START_ACTION|>"};

static void follow(const struct tokenizer *tokenizer, struct grammar *grammar)
{
    float logits[SMALL_MAX];
    struct grammar_matcher *matcher;
    struct error error;
    if (grammar_matcher_open(&matcher, grammar, true, &error) != STATUS_OK)
        return;
    for (size_t i = 0; i < 60; i++) {
        size_t id = 0, most = 0;
        memset(logits, 0, sizeof logits);
        if (!grammar_matcher_mask(matcher, logits))
            break;
        for (size_t t = 0; t < tokenizer_count(tokenizer); t++) {
            size_t weight = logits[t] == 0 ? 1 + rng_u64(i, t, 0) % 1000 : 0;
            if (weight > most) {
                most = weight;
                id = t;
            }
        }
        if (most == 0)
            break;
        grammar_matcher_accept(matcher, (int32_t)id);
    }
    grammar_matcher_close(matcher);
}

static void try_schema(const struct tokenizer *tokenizer, const json_t *schema, uint8_t way)
{
    struct grammar_cache *cache = NULL;
    struct grammar *grammar = NULL;
    struct error error;
    struct view source = view_of(templates[way % ARRAY_COUNT(templates)]);
    struct reply_syntax syntax = reply_syntax_of(reply_format_of(source), source);
    json_t *tools = json_pack("[{s:{s:s, s:O}}]", "function", "name", "f", "parameters", schema);
    struct grammar_spec spec = {.syntax = &syntax,
                                .thinking = syntax.think != NULL && way % 3 == 0};
    if (way >= 128)
        spec.tools = tools;
    else
        spec.schema = schema;
    if (grammar_cache_open(&cache, tokenizer, tokenizer_count(tokenizer), &error) == STATUS_OK &&
        grammar_cache_get(cache, &spec, &grammar, &error) == STATUS_OK)
        follow(tokenizer, grammar);
    grammar_release(grammar);
    grammar_cache_close(cache);
    json_decref(tools);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const uint8_t *zero = size > 0 ? memchr(data, 0, size) : NULL;
    size_t text_size = zero != NULL ? (size_t)(zero - data) : size;
    json_t *schema = json_loadb((const char *)data, text_size, JSON_DECODE_ANY, NULL);
    struct small_vocabulary *vocabulary = malloc(sizeof *vocabulary);
    struct tokenizer *tokenizer = NULL;
    struct error error;
    if (vocabulary != NULL && schema != NULL) {
        small_bytes(vocabulary, "gpt-2");
        if (tokenizer_open(&tokenizer, &vocabulary->config, &error) == STATUS_OK)
            try_schema(tokenizer, schema, zero != NULL && text_size + 1 < size ? zero[1] : 0);
    }
    tokenizer_close(tokenizer);
    json_decref(schema);
    free(vocabulary);
    return 0;
}
