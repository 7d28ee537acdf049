/* The reference data, which independent programs made: the folder $CONSORT_REFERENCE, or
 * ../shared/reference where that is not set. */
#ifndef CONSORT_TESTS_REFERENCE_H
#define CONSORT_TESTS_REFERENCE_H

#include "base/base.h"

#define REFERENCE_PATH_BYTES 4096

/* path = the place of a file in the folder, named by format. */
void reference_path(char path[REFERENCE_PATH_BYTES], const char *format, ...) BASE_PRINTF(2, 3);

/* False where there is no such file. */
bool reference_read(const char *path, struct buffer *out);

/* Token ids with white space between, most at the most; 0 where there is no such file. */
size_t reference_tokens(const char *path, int32_t *tokens, size_t most);

/* The length of found[n] - expected[n] over that of expected. */
double reference_error(const float *found, const float *expected, size_t n);

/* A file of the model arch/NAME.gguf, by its suffix: what it holds, or its token ids. */
bool reference_model_file(const char *name, const char *suffix, struct buffer *out);
size_t reference_model_tokens(const char *name, const char *suffix, int32_t *tokens, size_t most);

/* The error that the logits of a model stay under. The files of grok and starcoder2 were made with
 * a GELU rounded to F16 on both sides, unlike the others: the oracle in tests/oracle reproduces
 * them to 1e-5 with that rounding, and consort to 1e-6 without. */
double reference_tolerance(const char *name);

/* The first of the largest of n logits. */
size_t reference_best(const float *logits, size_t n);

#endif
