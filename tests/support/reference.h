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

#endif
