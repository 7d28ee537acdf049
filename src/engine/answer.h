/* The text of an answer as it grows: whole characters, and nothing that may yet turn out to be the
 * beginning of a stop text. */
#ifndef CONSORT_ENGINE_ANSWER_H
#define CONSORT_ENGINE_ANSWER_H

#include "text/text.h"

struct answer {
    struct detokenizer detokenizer; /* set by whoever begins the answer, as the next two */
    const struct view *stops;       /* [n_stops], borrowed */
    size_t n_stops;
    struct buffer text; /* what was given last, and what is held back */
    size_t n_given;
};

/* Adds a token. *text is what is certain now, until the next call. True when a stop text has
 * appeared: text ends before it, and *stop names it. */
bool answer_feed(struct answer *answer, int32_t token, struct view *text, struct view *stop);

/* What was held back, at the end of an answer. Ends as answer_feed does: the last characters too
 * may make a stop text whole. */
bool answer_finish(struct answer *answer, struct view *text, struct view *stop);

void answer_free(struct answer *answer);

#endif
