/* What the writers and readers of JSON share. */
#ifndef CONSORT_REQUEST_INTERNAL_H
#define CONSORT_REQUEST_INTERNAL_H

#include "request/request.h"

/* A text: a string, or the array of what stands between its zero bytes. NULL where memory is out.
 */
json_t *request_text_write(struct view text);
/* Replaces out. False where json is no such text, has more than limit bytes, or memory is out. */
bool request_text_read(const json_t *json, size_t limit, struct buffer *out);

/* A number that need not be finite: -inf (and what is no number) is null. */
json_t *request_float_write(float value);
bool request_float_read(const json_t *json, float *out);

/* An integer from min to max. */
bool request_integer_read(const json_t *json, int64_t min, int64_t max, int64_t *out);

/* json[object][name] = value, of which the reference is taken; false where value is NULL or memory
 * is out. */
bool request_put(json_t *object, const char *name, json_t *value);

#endif
