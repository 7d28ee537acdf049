/* Opens the input as a model and runs one step of it: metadata and shapes that do not fit must be
 * refused, and whatever numbers the weights are, nothing but numbers may come of it. */
#include "model/model.h"
#include "weights/gguf.h"

#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define MEMORY_LIMIT ((uint64_t)256 << 20) /* what an input may cost */

static void run(struct model *model)
{
    struct error error;
    const struct model_desc *desc = model_description(model);
    int32_t tokens[3] = {0, (int32_t)(desc->n_vocab - 1), (int32_t)(desc->n_vocab / 2)};
    float *out = malloc(MAX(desc->n_vocab, desc->n_embd) * sizeof *out);
    struct sequence *sequence;
    if (out == NULL || sequence_open(&sequence, model, &error) != STATUS_OK)
        abort();
    struct step_segment segment = {sequence, tokens, ARRAY_COUNT(tokens), 1};
    model_step(model, &segment, 1, out, &error);
    sequence_close(sequence);
    model_embed(model, tokens, ARRAY_COUNT(tokens), MODEL_POOLING_NONE, true, out, &error);
    free(out);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct weights *weights;
    struct model_desc *desc;
    struct error error = {0};
    if (weights_open_memory(&weights, "fuzz.gguf", data, size, &error) != STATUS_OK)
        return 0;
    if (model_describe(&desc, weights, &error) == STATUS_OK) {
        struct model *model;
        struct model_options options = {.n_ctx = 32, .kv_format = QUANT_F32, .n_threads = 1};
        bool small = model_kv_bytes(desc, MODEL_KV_PAGE_TOKENS, QUANT_F32) < MEMORY_LIMIT;
        model_desc_free(desc);
        if (small && model_open(&model, weights, &options, &error) == STATUS_OK) {
            run(model);
            model_close(model);
        } else if (small && error.text[0] == '\0') {
            abort();
        }
    }
    weights_close(weights);
    return 0;
}
