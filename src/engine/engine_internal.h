/* What sessions and streams share. */
#ifndef CONSORT_ENGINE_INTERNAL_H
#define CONSORT_ENGINE_INTERNAL_H

#include "engine/engine.h"
#include "sample/sample.h"

/* session.c: a sampler for the engine's vocabulary. Any thread. */
enum status engine_sampler_open(struct sampler **out, const struct engine *engine,
                                const struct sampling *sampling, struct error *error);

/* engine.c: BOS where encoding an empty text with the model's own additions begins with it, else
 * TOKEN_NONE. */
enum status engine_leading_bos(const struct tokenizer *tokenizer, int32_t *bos,
                               struct error *error);

#endif
