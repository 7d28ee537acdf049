#include "request/request_internal.h"

#include <string.h>

/* ---- Values ---------------------------------------------------------------------------------- */

static const char *const reasons[] = {
    [FINISH_END] = "end",
    [FINISH_STOP] = "stop",
    [FINISH_LENGTH] = "length",
    [FINISH_CANCELLED] = "cancelled",
};

/* Every number in struct generation_usage. */
static const struct {
    const char *name;
    size_t offset;
    bool size; /* size_t; else uint64_t */
} counts[] = {
#define COUNT(field, size)                                                                         \
    {                                                                                              \
#field, offsetof(struct generation_usage, field), size                                     \
    }
    COUNT(n_prompt, true),  COUNT(n_cached, true),    COUNT(n_output, true),
    COUNT(queue_ns, false), COUNT(prefill_ns, false), COUNT(decode_ns, false),
#undef COUNT
};

static json_t *write_usage(const struct generation_usage *usage)
{
    json_t *json = json_object();
    for (size_t i = 0; i < ARRAY_COUNT(counts) && json != NULL; i++) {
        const char *at = (const char *)usage + counts[i].offset;
        uint64_t value;
        if (counts[i].size)
            value = *(const size_t *)at;
        else
            value = *(const uint64_t *)at;
        if (request_put(json, counts[i].name, json_integer((json_int_t)MIN(value, INT64_MAX))))
            continue;
        json_decref(json);
        json = NULL;
    }
    return json;
}

static bool read_usage(const json_t *json, struct generation_usage *out)
{
    struct generation_usage usage;
    for (size_t i = 0; i < ARRAY_COUNT(counts); i++) {
        char *at = (char *)&usage + counts[i].offset;
        int64_t value, max = counts[i].size ? GENERATION_MAX_TOKENS : INT64_MAX;
        if (!request_integer_read(json_object_get(json, counts[i].name), 0, max, &value))
            return false;
        if (counts[i].size)
            *(size_t *)at = (size_t)value;
        else
            *(uint64_t *)at = (uint64_t)value;
    }
    *out = usage;
    return usage.n_cached <= usage.n_prompt;
}

static json_t *write_top(const struct generation_event *event)
{
    json_t *top = json_array();
    for (size_t i = 0; i < event->n_top && top != NULL; i++) {
        const struct token_logprob *one = &event->top[i];
        if (json_array_append_new(
                top, json_pack("[i, o]", one->token, request_float_write(one->logprob))) == 0)
            continue;
        json_decref(top);
        top = NULL;
    }
    return top;
}

static bool read_top(const json_t *json, struct token_logprob *out, size_t *n)
{
    *n = json_array_size(json);
    if (json == NULL)
        return true;
    if (!json_is_array(json) || *n > GENERATION_MAX_TOP_LOGPROBS)
        return false;
    for (size_t i = 0; i < *n; i++) {
        const json_t *pair = json_array_get(json, i);
        int64_t token;
        if (json_array_size(pair) != 2 ||
            !request_integer_read(json_array_get(pair, 0), 0, INT32_MAX, &token) ||
            !request_float_read(json_array_get(pair, 1), &out[i].logprob))
            return false;
        out[i].token = (int32_t)token;
    }
    return true;
}

/* A text that may be left out where it is empty. */
static bool read_text(const json_t *json, struct buffer *buffer, struct view *out)
{
    buffer_clear(buffer);
    if (json != NULL && !request_text_read(json, GENERATION_MAX_EVENT_BYTES, buffer))
        return false;
    *out = (struct view){buffer->size > 0 ? buffer->data : "", buffer->size};
    return true;
}

/* ---- Writing --------------------------------------------------------------------------------- */

json_t *generation_token_write(const struct generation_event *event,
                               const struct generation_usage *usage)
{
    json_t *json = json_object();
    bool good = json != NULL;
    if (good && event->text.size > 0)
        good = request_put(json, "text", request_text_write(event->text));
    if (good && event->logprob != 0)
        good = request_put(json, "logprob", request_float_write(event->logprob));
    if (good && event->n_top > 0)
        good = request_put(json, "top", write_top(event));
    if (good && usage != NULL)
        good = request_put(json, "usage", write_usage(usage));
    if (good)
        return json;
    json_decref(json);
    return NULL;
}

json_t *generation_end_write(const struct generation_event *event)
{
    json_t *json = json_object();
    bool good = json != NULL && request_put(json, "usage", write_usage(&event->usage));
    if (good && event->kind == GENERATION_FINISHED)
        good = request_put(json, "reason", json_string(reasons[event->reason])) &&
               request_put(json, "end_token", json_integer(event->end_token)) &&
               request_put(json, "text", request_text_write(event->text)) &&
               request_put(json, "stop", request_text_write(event->stop));
    if (good)
        return json;
    json_decref(json);
    return NULL;
}

/* ---- Reading --------------------------------------------------------------------------------- */

static void give(struct generation_feed *feed, struct generation_event event)
{
    event.id = feed->id;
    event.usage = feed->usage;
    feed->ended = event.kind == GENERATION_FINISHED || event.kind == GENERATION_FAILED;
    feed->callback(feed->context, &event);
}

static void start(struct generation_feed *feed)
{
    if (feed->started)
        return;
    feed->started = true;
    give(feed, (struct generation_event){.kind = GENERATION_STARTED});
}

static void fail(struct generation_feed *feed, enum status status, const char *reason)
{
    struct error error;
    error_set(&error, status, "%s", reason != NULL ? reason : status_text(status));
    give(feed,
         (struct generation_event){.kind = GENERATION_FAILED, .end_token = -1, .error = &error});
}

bool generation_feed_token(struct generation_feed *feed, size_t index, int32_t token,
                           const json_t *data)
{
    struct generation_event event = {.kind = GENERATION_TOKEN, .index = index, .token = token};
    const json_t *usage = json_object_get(data, "usage");
    const json_t *logprob = json_object_get(data, "logprob");
    if (feed->ended)
        return false;
    if (token < 0 || !read_text(json_object_get(data, "text"), &feed->text, &event.text) ||
        (logprob != NULL && !request_float_read(logprob, &event.logprob)) ||
        !read_top(json_object_get(data, "top"), feed->top, &event.n_top) ||
        (usage != NULL && !read_usage(usage, &feed->usage))) {
        fail(feed, STATUS_INVALID, "the machine that answers sent a token that cannot be read");
        return false;
    }
    event.top = feed->top;
    start(feed);
    feed->usage.n_output = index + 1;
    give(feed, event);
    return !feed->ended;
}

static bool read_end(struct generation_feed *feed, const json_t *data,
                     struct generation_event *event)
{
    const char *reason = json_string_value(json_object_get(data, "reason"));
    int64_t end_token;
    size_t r = 0;
    while (reason != NULL && r < ARRAY_COUNT(reasons) && strcmp(reason, reasons[r]) != 0)
        r++;
    if (reason == NULL || r == ARRAY_COUNT(reasons) ||
        !request_integer_read(json_object_get(data, "end_token"), -1, INT32_MAX, &end_token) ||
        !read_text(json_object_get(data, "text"), &feed->text, &event->text) ||
        !read_text(json_object_get(data, "stop"), &feed->stop, &event->stop))
        return false;
    event->reason = (enum finish_reason)r;
    event->end_token = (int32_t)end_token;
    return read_usage(json_object_get(data, "usage"), &feed->usage);
}

void generation_feed_end(struct generation_feed *feed, enum status status, const char *reason,
                         const json_t *data)
{
    struct generation_event event = {.kind = GENERATION_FINISHED};
    struct generation_usage usage;
    if (feed->ended)
        return;
    if (status != STATUS_OK) {
        if (read_usage(json_object_get(data, "usage"), &usage))
            feed->usage = usage;
        fail(feed, status, reason);
    } else if (!read_end(feed, data, &event)) {
        fail(feed, STATUS_INVALID, "the machine that answers sent an end that cannot be read");
    } else {
        if (event.reason != FINISH_CANCELLED)
            start(feed);
        give(feed, event);
    }
}

void generation_feed_cancel(struct generation_feed *feed)
{
    if (!feed->ended)
        give(feed, (struct generation_event){
                       .kind = GENERATION_FINISHED, .reason = FINISH_CANCELLED, .end_token = -1});
}

void generation_feed_free(struct generation_feed *feed)
{
    buffer_free(&feed->text);
    buffer_free(&feed->stop);
}
