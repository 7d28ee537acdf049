#include "cluster/rank.h"

#define MAX_LAYERS 65536
#define MAX_CACHE ((json_int_t)1 << 40) /* tokens */

/* ---- Writing --------------------------------------------------------------------------------- */

static json_t *write_stage(const struct model_stage *stage)
{
    json_t *shares = json_array();
    for (uint32_t i = 0; i < stage->n_shards && shares != NULL; i++) {
        if (json_array_append_new(shares, json_integer(stage->shares[i])) == 0)
            continue;
        json_decref(shares);
        shares = NULL;
    }
    return json_pack("{s:i, s:i, s:o}", "first", (int)stage->first_layer, "end",
                     (int)stage->end_layer, "shares", shares);
}

json_t *cluster_placement_write(const struct model_placement *placement,
                                const struct model_options *options)
{
    json_t *stages = json_array();
    for (uint32_t s = 0; s < placement->n_stages && stages != NULL; s++) {
        if (json_array_append_new(stages, write_stage(&placement->stages[s])) == 0)
            continue;
        json_decref(stages);
        stages = NULL;
    }
    return json_pack("{s:o, s:I, s:I, s:s}", "stages", stages, "n_ctx", (json_int_t)options->n_ctx,
                     "n_cache", (json_int_t)options->n_cache, "kv",
                     quant_info(options->kv_format)->name);
}

/* ---- Reading --------------------------------------------------------------------------------- */

static enum status fault(struct error *error, const char *text)
{
    return error_set(error, STATUS_INVALID, "a placement must have %s", text);
}

static bool read_integer(const json_t *json, json_int_t min, json_int_t max, uint64_t *out)
{
    if (!json_is_integer(json) || json_integer_value(json) < min || json_integer_value(json) > max)
        return false;
    *out = (uint64_t)json_integer_value(json);
    return true;
}

static bool read_stage(const json_t *json, uint32_t first_layer, struct model_stage *stage)
{
    const json_t *shares = json_object_get(json, "shares");
    size_t n = json_array_size(shares);
    uint64_t first, end, share, total = 0;
    if (!read_integer(json_object_get(json, "first"), first_layer, first_layer, &first) ||
        !read_integer(json_object_get(json, "end"), (json_int_t)first_layer + 1, MAX_LAYERS,
                      &end) ||
        n == 0 || n > MODEL_MAX_SHARDS)
        return false;
    *stage = (struct model_stage){
        .first_layer = (uint32_t)first, .end_layer = (uint32_t)end, .n_shards = (uint32_t)n};
    for (size_t i = 0; i < n; i++) {
        if (!read_integer(json_array_get(shares, i), 0, UINT16_MAX, &share))
            return false;
        stage->shares[i] = (uint16_t)share;
        total += share;
    }
    /* All 0 is equal shares; one that is 0 beside others would have nothing to do. */
    for (size_t i = 0; i < n && total > 0; i++)
        if (stage->shares[i] == 0)
            return false;
    return true;
}

enum status cluster_placement_read(const json_t *spec, struct model_placement *placement,
                                   struct model_options *options, struct error *error)
{
    const json_t *stages = json_object_get(spec, "stages");
    const char *kv = json_string_value(json_object_get(spec, "kv"));
    struct model_placement read = {.n_stages = (uint32_t)json_array_size(stages)};
    uint64_t n_ctx, n_cache;
    enum quant_format kv_format;
    if (read.n_stages == 0 || json_array_size(stages) > MODEL_MAX_STAGES)
        return fault(error, "1 to 64 stages");
    uint32_t layer = 0;
    for (uint32_t s = 0; s < read.n_stages; s++) {
        if (!read_stage(json_array_get(stages, s), layer, &read.stages[s]))
            return fault(error, "stages of layers that follow each other, with their shares");
        layer = read.stages[s].end_layer;
    }
    if (!read_integer(json_object_get(spec, "n_ctx"), 0, UINT32_MAX, &n_ctx) ||
        !read_integer(json_object_get(spec, "n_cache"), 0, MAX_CACHE, &n_cache))
        return fault(error, "numbers of tokens for context and cache");
    if (kv == NULL || !quant_find(kv, &kv_format) ||
        (kv_format != QUANT_F32 && kv_format != QUANT_F16 && kv_format != QUANT_Q8_0))
        return fault(error, "a KV cache of F32, F16 or Q8_0");
    *placement = read;
    options->n_ctx = (uint32_t)n_ctx;
    options->n_cache = n_cache;
    options->kv_format = kv_format;
    return STATUS_OK;
}
