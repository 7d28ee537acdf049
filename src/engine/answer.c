#include "engine/answer.h"

#include <string.h>

/* Where stop stands in text, or where a part of it begins at the end of text; the text's size where
 * neither is so. */
static size_t find_stop(struct view text, struct view stop, bool *whole)
{
    for (size_t i = 0; i < text.size; i++) {
        size_t n = MIN(stop.size, text.size - i);
        if (memcmp(text.data + i, stop.data, n) == 0) {
            *whole = n == stop.size;
            return i;
        }
    }
    *whole = false;
    return text.size;
}

/* Gives what no stop text may reach any more. */
static bool give(struct answer *answer, bool at_end, struct view *text, struct view *stop)
{
    struct view all = {answer->text.size > 0 ? answer->text.data : "", answer->text.size};
    size_t certain = all.size, stopped_at = SIZE_MAX;
    for (size_t s = 0; s < answer->n_stops; s++) {
        bool whole;
        size_t at = find_stop(all, answer->stops[s], &whole);
        if (whole && at < stopped_at) {
            stopped_at = at;
            *stop = answer->stops[s];
        }
        if (!at_end)
            certain = MIN(certain, at);
    }
    bool stopped = stopped_at != SIZE_MAX;
    *text = (struct view){all.data, stopped ? stopped_at : certain};
    answer->n_given = text->size;
    return stopped;
}

/* Drops what was given before. */
static void advance(struct answer *answer)
{
    struct buffer *text = &answer->text;
    if (answer->n_given == 0)
        return;
    memmove(text->data, text->data + answer->n_given, text->size - answer->n_given);
    text->size -= answer->n_given;
    answer->n_given = 0;
}

bool answer_feed(struct answer *answer, int32_t token, struct view *text, struct view *stop)
{
    advance(answer);
    detokenizer_feed(&answer->detokenizer, token, &answer->text);
    return give(answer, false, text, stop);
}

bool answer_finish(struct answer *answer, struct view *text, struct view *stop)
{
    advance(answer);
    detokenizer_finish(&answer->detokenizer, &answer->text);
    return give(answer, true, text, stop);
}

void answer_free(struct answer *answer)
{
    buffer_free(&answer->text);
}
