/* An engine over a tiny random llama whose first TINY_VOCAB tokens are bytes, and a session. */
#ifndef CONSORT_TESTS_TINY_ENGINE_H
#define CONSORT_TESTS_TINY_ENGINE_H

#include "../support/tokenizer_vocabularies.h"
#include "engine/engine.h"

struct tiny_engine {
    struct small_vocabulary vocabulary;
    struct engine engine;
    struct session *session;
};

/* A power of two of heads makes a model of its own. */
void tiny_engine_open(struct tiny_engine *tiny, uint32_t n_ctx, uint32_t n_heads);
void tiny_engine_close(struct tiny_engine *tiny);

#endif
