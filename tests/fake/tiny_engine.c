#include "tiny_engine.h"
#include "tiny_model.h"

#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

void tiny_engine_open(struct tiny_engine *tiny, uint32_t n_ctx, uint32_t n_heads)
{
    struct tiny_gguf gguf = {0};
    struct engine *engine = &tiny->engine;
    struct error error = {0};
    struct model_options options = {.n_ctx = n_ctx, .kv_format = QUANT_F16, .n_threads = 1};
    char path[64];
    memset(tiny, 0, sizeof *tiny);
    tiny_llama_keys(&gguf, n_heads);
    tiny_llama_tensors(&gguf);
    tiny_write(&gguf, path);
    enum status status = weights_open(&engine->weights, path, &error);
    unlink(path);
    small_bytes(&tiny->vocabulary, "gpt-2");
    if (status == STATUS_OK)
        status = tokenizer_open(&engine->tokenizer, &tiny->vocabulary.config, &error);
    if (status == STATUS_OK)
        status = model_open(&engine->model, engine->weights, &options, &error);
    if (status == STATUS_OK)
        status = session_open(&tiny->session, engine, &error);
    if (status != STATUS_OK) {
        fprintf(stderr, "%s\n", error.text);
        abort();
    }
}

void tiny_engine_close(struct tiny_engine *tiny)
{
    session_close(tiny->session);
    model_close(tiny->engine.model);
    tokenizer_close(tiny->engine.tokenizer);
    weights_close(tiny->engine.weights);
}
