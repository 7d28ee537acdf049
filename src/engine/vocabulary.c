/* From a model file's metadata ("tokenizer.ggml.…") to a tokenizer. */
#include "engine/engine.h"

static enum status read_id(const struct weights *weights, const char *key, int32_t *out,
                           struct error *error)
{
    uint32_t id = UINT32_MAX;
    *out = TOKEN_NONE;
    enum status status = weights_u32(weights, key, &id, error);
    if (status == STATUS_OK && id <= INT32_MAX)
        *out = (int32_t)id;
    return status;
}

/* Ids that only some models use; converters have written numbers past the end for "none". */
static void drop_outside(int32_t *id, size_t n_tokens)
{
    if (*id != TOKEN_NONE && (size_t)*id >= n_tokens)
        *id = TOKEN_NONE;
}

static enum status read_ids(const struct weights *weights, struct tokenizer_config *config,
                            struct error *error)
{
    const struct {
        const char *key;
        int32_t *out;
        bool lenient;
    } ids[] = {
        {"tokenizer.ggml.bos_token_id", &config->bos, false},
        {"tokenizer.ggml.eos_token_id", &config->eos, false},
        {"tokenizer.ggml.eot_token_id", &config->eot, true},
        {"tokenizer.ggml.unknown_token_id", &config->unknown, false},
        {"tokenizer.ggml.seperator_token_id", &config->separator, true},
        {"tokenizer.ggml.padding_token_id", &config->padding, true},
        {"tokenizer.ggml.cls_token_id", &config->cls, true},
        {"tokenizer.ggml.mask_token_id", &config->mask, true},
    };
    for (size_t i = 0; i < ARRAY_COUNT(ids); i++) {
        enum status status = read_id(weights, ids[i].key, ids[i].out, error);
        if (status != STATUS_OK)
            return status;
        if (ids[i].lenient)
            drop_outside(ids[i].out, config->n_tokens);
        else if (*ids[i].out != TOKEN_NONE && (size_t)*ids[i].out >= config->n_tokens)
            return error_set(error, STATUS_INVALID, "%s is %d, but there are %zu tokens",
                             ids[i].key, (int)*ids[i].out, config->n_tokens);
    }
    return STATUS_OK;
}

static enum status read_rules(const struct weights *weights, struct tokenizer_config *config,
                              struct error *error)
{
    const struct {
        const char *key;
        enum tokenizer_rule *out;
    } rules[] = {
        {"tokenizer.ggml.add_bos_token", &config->add_bos},
        {"tokenizer.ggml.add_eos_token", &config->add_eos},
        {"tokenizer.ggml.add_sep_token", &config->add_sep},
        {"tokenizer.ggml.add_space_prefix", &config->add_space_prefix},
        {"tokenizer.ggml.remove_extra_whitespaces", &config->remove_extra_whitespaces},
    };
    for (size_t i = 0; i < ARRAY_COUNT(rules); i++) {
        bool value = false;
        enum status status = weights_bool(weights, rules[i].key, &value, error);
        if (status != STATUS_OK)
            return status;
        if (weights_has(weights, rules[i].key))
            *rules[i].out = value ? TOKENIZER_YES : TOKENIZER_NO;
    }
    return STATUS_OK;
}

/* An array that goes with the tokens must be as long as theirs. */
static enum status check_count(const char *key, size_t count, size_t n_tokens, struct error *error)
{
    return count == 0 || count == n_tokens
               ? STATUS_OK
               : error_set(error, STATUS_INVALID, "%s has %zu elements, but there are %zu tokens",
                           key, count, n_tokens);
}

static enum status read_tokens(const struct weights *weights, struct arena *arena,
                               struct arena *opening, struct tokenizer_config *config,
                               struct error *error)
{
    struct view *tokens, *merges;
    float *scores;
    int32_t *types;
    size_t n_scores, n_types;
    enum status status =
        weights_strings(weights, "tokenizer.ggml.tokens", arena, &tokens, &config->n_tokens, error);
    if (status == STATUS_OK)
        status =
            weights_f32_array(weights, "tokenizer.ggml.scores", arena, &scores, &n_scores, error);
    if (status == STATUS_OK)
        status =
            weights_i32_array(weights, "tokenizer.ggml.token_type", arena, &types, &n_types, error);
    if (status == STATUS_OK)
        status = weights_strings(weights, "tokenizer.ggml.merges", opening, &merges,
                                 &config->n_merges, error);
    if (status == STATUS_OK)
        status = check_count("tokenizer.ggml.scores", n_scores, config->n_tokens, error);
    if (status == STATUS_OK)
        status = check_count("tokenizer.ggml.token_type", n_types, config->n_tokens, error);
    if (status != STATUS_OK)
        return status;
    config->tokens = tokens;
    config->scores = n_scores > 0 ? scores : NULL;
    config->types = n_types > 0 ? types : NULL;
    config->merges = merges;
    return STATUS_OK;
}

enum status engine_tokenizer_open(struct tokenizer **out, struct arena *arena,
                                  const struct weights *weights, struct error *error)
{
    struct tokenizer_config config = {0};
    if (!weights_has(weights, "tokenizer.ggml.model") ||
        !weights_has(weights, "tokenizer.ggml.tokens"))
        return error_set(error, STATUS_NOT_FOUND,
                         "the file has no tokenizer: tokenizer.ggml.%s is missing",
                         weights_has(weights, "tokenizer.ggml.model") ? "tokens" : "model");
    struct arena *opening = arena_open(0); /* merges are turned into a table of rules */
    enum status status = opening == NULL ? error_memory(error, sizeof(struct view)) : STATUS_OK;
    if (status == STATUS_OK)
        status = weights_string(weights, "tokenizer.ggml.model", &config.model, error);
    if (status == STATUS_OK)
        status = weights_string(weights, "tokenizer.ggml.pre", &config.pre, error);
    if (status == STATUS_OK)
        status =
            weights_bytes(weights, "tokenizer.ggml.precompiled_charsmap", &config.charsmap, error);
    if (status == STATUS_OK)
        status = read_tokens(weights, arena, opening, &config, error);
    if (status == STATUS_OK)
        status = read_ids(weights, &config, error);
    if (status == STATUS_OK)
        status = read_rules(weights, &config, error);
    if (status == STATUS_OK)
        status = tokenizer_open(out, &config, error);
    arena_close(opening);
    return status;
}
