/* lines: what a person types, a line at a time: with editing and history on a terminal, plainly
 * from a pipe. History stays in memory. The prompt goes to stderr. */
#ifndef CONSORT_CLI_LINES_H
#define CONSORT_CLI_LINES_H

#include "base/base.h"

struct lines;

enum lines_result { LINES_READ, LINES_END, LINES_INTERRUPTED };

enum status lines_open(struct lines **out, struct error *error);
void lines_close(struct lines *lines);
bool lines_on_terminal(const struct lines *lines);

/* Replaces *line by the next one, without its end. A line that ends with a backslash goes on in the
 * next. */
enum lines_result lines_read(struct lines *lines, struct buffer *line);

#endif
