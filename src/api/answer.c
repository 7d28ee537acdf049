/* From the events of generations to the answer a client gets, whatever the API. */
#include "api/api_internal.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

void api_json_string(struct buffer *out, struct view text)
{
    if (text.size == 0) { /* and perhaps no data */
        buffer_append_text(out, "\"\"");
        return;
    }
    buffer_append(out, "\"", 1);
    size_t done = 0, at = 0;
    while (at < text.size) {
        unsigned char byte = (unsigned char)text.data[at];
        uint32_t code_point;
        size_t length = byte < 0x80 ? 1 : utf8_decode(text.data + at, text.size - at, &code_point);
        if (length > 0 && byte >= 0x20 && byte != '"' && byte != '\\') {
            at += length;
            continue;
        }
        buffer_append(out, text.data + done, at - done);
        if (length == 0)
            buffer_append_text(out, "\xEF\xBF\xBD");
        else if (byte == '\n')
            buffer_append_text(out, "\\n");
        else if (byte < 0x20)
            buffer_printf(out, "\\u%04x", byte);
        else
            buffer_printf(out, "\\%c", byte);
        at += MAX(length, (size_t)1);
        done = at;
    }
    buffer_append(out, text.data + done, at - done);
    buffer_append(out, "\"", 1);
}

void put_text(struct buffer *out, const char *text)
{
    api_json_string(out, view_of(text));
}

struct view all_of(const struct buffer *buffer)
{
    return (struct view){buffer->size > 0 ? buffer->data : "", buffer->size};
}

void put_json(const json_t *value, struct buffer *out)
{
    char *text = json_dumps(value, JSON_COMPACT | JSON_ENCODE_ANY | JSON_ENSURE_ASCII |
                                       JSON_REAL_PRECISION(9));
    buffer_append_text(out, text != NULL ? text : "null");
    free(text);
}

void put_vector(const float *vector, size_t n, struct buffer *out)
{
    for (size_t i = 0; i < n; i++)
        buffer_printf(out, "%s%.9g", i > 0 ? "," : "[", (double)vector[i]);
    buffer_append_text(out, "]");
}

void api_put_time(struct buffer *out, int64_t time_s)
{
    struct tm parts;
    time_t time = (time_t)time_s;
    char text[32] = "";
    if (gmtime_r(&time, &parts) != NULL)
        strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%SZ", &parts);
    buffer_append_text(out, text);
}

const struct api_format *api_format_of(struct view path)
{
    static const struct {
        const char *begin;
        const struct api_format *format;
    } formats[] = {
        {"/api/", &ollama_chat_format},    {"/v1/responses", &responses_format},
        {"/responses", &responses_format}, {"/v1/messages", &anthropic_format},
        {"/messages", &anthropic_format},
    };
    for (size_t i = 0; i < ARRAY_COUNT(formats); i++) {
        size_t size = strlen(formats[i].begin);
        if (path.size >= size && memcmp(path.data, formats[i].begin, size) == 0)
            return formats[i].format;
    }
    return &openai_chat_format;
}

enum status api_answer_open(struct api_answer **out, const struct api_call *call,
                            const struct tokenizer *tokenizer, const char *model,
                            uint64_t id_number, int64_t created_s, struct error *error)
{
    size_t n_choices = MAX(call->n_prompts, (size_t)1) * call->n_choices;
    struct api_answer *answer = calloc(1, sizeof *answer);
    struct api_choice *choices = calloc(n_choices, sizeof *choices);
    *out = NULL;
    if (answer == NULL || choices == NULL) {
        free(answer);
        free(choices);
        return error_memory(error, n_choices * sizeof *choices);
    }
    *answer = (struct api_answer){.call = call,
                                  .tokenizer = tokenizer,
                                  .model = model,
                                  .id_number = id_number,
                                  .created_s = created_s,
                                  .choices = choices,
                                  .n_choices = n_choices};
    snprintf(answer->id, sizeof answer->id, "%s%016llx", call->format->id_prefix,
             (unsigned long long)id_number);
    *out = answer;
    return STATUS_OK;
}

void api_answer_close(struct api_answer *answer)
{
    if (answer == NULL)
        return;
    for (size_t i = 0; i < answer->n_choices; i++) {
        buffer_free(&answer->choices[i].content);
        buffer_free(&answer->choices[i].reasoning);
        json_decref(answer->choices[i].logprobs);
        token_list_free(&answer->choices[i].tokens);
        reply_parser_close(answer->choices[i].parser);
        for (size_t c = 0; c < answer->choices[i].n_calls; c++) {
            free(answer->choices[i].calls[c].name);
            free(answer->choices[i].calls[c].arguments);
        }
        free(answer->choices[i].calls);
        free(answer->choices[i].blocks);
    }
    free(answer->choices);
    free(answer);
}

bool api_answer_done(const struct api_answer *answer)
{
    return answer->n_finished == answer->n_choices;
}

/* ---- Events ---------------------------------------------------------------------------------- */

/* Where the parts of one choice's reply go. */
struct part_target {
    struct api_answer *answer;
    size_t choice;
};

/* The text of a token, its log probability and its bytes. */
static json_t *token_object(const struct api_answer *answer, int32_t token, float logprob)
{
    struct buffer piece = {0}, text = {0};
    tokenizer_piece(answer->tokenizer, token, true, &piece);
    json_t *bytes = json_array();
    for (size_t i = 0; i < piece.size; i++)
        json_array_append_new(bytes, json_integer((unsigned char)piece.data[i]));
    for (size_t at = 0; at < piece.size;) {
        uint32_t code_point;
        size_t length = utf8_decode(piece.data + at, piece.size - at, &code_point);
        if (length > 0)
            buffer_append(&text, piece.data + at, length);
        else
            buffer_append_text(&text, "\xEF\xBF\xBD");
        at += MAX(length, (size_t)1);
    }
    json_t *number = isnan(logprob) ? json_null() : json_real(fmax((double)logprob, -9999.0));
    json_t *object =
        json_pack("{s:i, s:s%, s:o, s:o}", "id", token, "token", text.size > 0 ? text.data : "",
                  text.size, "logprob", number, "bytes", bytes);
    buffer_free(&piece);
    buffer_free(&text);
    return object;
}

static void collect_logprob(struct api_answer *answer, struct api_choice *choice,
                            const struct generation_event *event)
{
    json_t *token = token_object(answer, event->token, event->logprob), *top = json_array();
    for (size_t i = 0; i < event->n_top; i++)
        json_array_append_new(top,
                              token_object(answer, event->top[i].token, event->top[i].logprob));
    json_object_set_new(token, "top_logprobs", top);
    if (choice->logprobs == NULL)
        choice->logprobs = json_array();
    json_array_append_new(choice->logprobs, token);
}

/* Nine letters and digits, which is what the strictest templates want to see again. */
static void make_call_id(const struct api_answer *answer, size_t choice, size_t call, char id[12])
{
    static const char digits[] = "0123456789abcdefghijklmnopqrstuvwxyz";
    uint64_t number = rng_u64(answer->id_number, choice, (uint32_t)call);
    for (size_t i = 0; i < 9; i++, number /= 36)
        id[i] = digits[number % 36];
    id[9] = '\0';
}

/* Keeps a call; NULL when memory is out. */
static const struct api_tool_call *keep_call(struct api_answer *answer, size_t index,
                                             const struct reply_part *part)
{
    struct api_choice *choice = &answer->choices[index];
    struct api_tool_call *calls =
        realloc(choice->calls, (choice->n_calls + 1) * sizeof *choice->calls);
    if (calls == NULL)
        return NULL;
    choice->calls = calls;
    struct api_tool_call *call = &calls[choice->n_calls];
    *call = (struct api_tool_call){.name = strndup(part->tool_name.data, part->tool_name.size),
                                   .arguments = strndup(part->text.data, part->text.size)};
    make_call_id(answer, index, choice->n_calls, call->id);
    choice->n_calls++;
    return call->name != NULL && call->arguments != NULL ? call : NULL;
}

/* Adds what has come to the block that it belongs to; begins one where it belongs to none. */
static bool keep_block(struct api_answer *answer, struct api_choice *choice,
                       const struct reply_part *part, struct buffer *out)
{
    struct api_block *blocks = choice->blocks;
    size_t n = choice->n_blocks;
    const struct buffer *text =
        part->kind == REPLY_REASONING ? &choice->reasoning : &choice->content;
    if (n == 0 || blocks[n - 1].kind != part->kind || part->kind == REPLY_CALL) {
        if (answer->call->stream && n > 0)
            answer->call->format->block_end(answer, out);
        blocks = realloc(blocks, (n + 1) * sizeof *blocks);
        if (blocks == NULL)
            return false;
        choice->blocks = blocks;
        choice->n_blocks = ++n;
        blocks[n - 1] = (struct api_block){.kind = part->kind,
                                           .begin = part->kind == REPLY_CALL ? choice->n_calls - 1
                                                                             : text->size};
    }
    if (part->kind != REPLY_CALL)
        blocks[n - 1].size += part->text.size;
    return true;
}

/* With a stream the part goes out, and its log probabilities with it; else it is kept. */
static void add_part(struct api_answer *answer, size_t index, const struct reply_part *part,
                     struct buffer *out)
{
    struct api_choice *choice = &answer->choices[index];
    if (part->kind == REPLY_CALL && choice->n_calls > 0 && answer->call->single_call)
        return;
    struct api_delta delta = {.kind = part->kind, .text = part->text, .call = choice->n_calls};
    choice->has_newline |= part->text.size > 0 && memchr(part->text.data, '\n', part->text.size);
    if (part->kind == REPLY_CALL) {
        const struct api_tool_call *call = keep_call(answer, index, part);
        if (call == NULL) {
            out->failed = true;
            return;
        }
        delta.call_id = call->id;
        delta.call_name = call->name;
    }
    bool keep = answer->call->keep_blocks;
    if (keep && !keep_block(answer, choice, part, out)) {
        out->failed = true;
        return;
    }
    if (part->kind != REPLY_CALL && (keep || !answer->call->stream)) {
        buffer_append(part->kind == REPLY_CONTENT ? &choice->content : &choice->reasoning,
                      part->text.data, part->text.size);
    }
    if (answer->call->stream) {
        answer->call->format->delta(answer, index, &delta, out);
        choice->logprobs_offset += utf8_count(part->text.data, part->text.size);
        choice->tokens.count = 0;
        json_array_clear(choice->logprobs);
    }
}

static void take_part(void *context, const struct reply_part *part)
{
    const struct part_target *target = context;
    add_part(target->answer, target->choice, part, target->answer->out);
}

static void add_text(struct api_answer *answer, size_t index, struct view text, struct buffer *out)
{
    answer->out = out; /* for take_part */
    if (text.size == 0)
        return;
    if (answer->choices[index].parser != NULL)
        reply_parser_feed(answer->choices[index].parser, text);
    else
        add_part(answer, index, &(struct reply_part){.kind = REPLY_CONTENT, .text = text}, out);
}

enum status api_answer_parse(struct api_answer *answer, size_t choice,
                             const struct reply_format *format, struct view prompt,
                             struct error *error)
{
    const struct api_call *call = answer->call;
    struct part_target *target = arena_alloc(call->arena, sizeof *target);
    if (target == NULL)
        return error_memory(error, sizeof *target);
    *target = (struct part_target){answer, choice};
    return reply_parser_open(&answer->choices[choice].parser, format, prompt,
                             call->tool_choice != API_TOOLS_NONE ? call->tools : NULL, take_part,
                             target, error);
}

/* Known from the start, and told again at the end. */
static void add_prompt(struct api_answer *answer, size_t index,
                       const struct generation_usage *usage)
{
    struct generation_usage *known = &answer->choices[index].usage;
    if (index % answer->call->n_choices == 0) { /* choices share their prompt */
        answer->prompt_tokens += usage->n_prompt - known->n_prompt;
        answer->cached_tokens += usage->n_cached - known->n_cached;
    }
    *known = *usage;
}

static void add_usage(struct api_answer *answer, size_t index, const struct generation_usage *usage)
{
    add_prompt(answer, index, usage);
    answer->completion_tokens += usage->n_output;
    answer->queue_ns = MAX(answer->queue_ns, usage->queue_ns);
    answer->prompt_ns = MAX(answer->prompt_ns, usage->prefill_ns);
    answer->completion_ns = MAX(answer->completion_ns, usage->decode_ns);
}

static void finish(struct api_answer *answer, size_t index, const struct generation_event *event,
                   struct buffer *out)
{
    const struct api_format *format = answer->call->format;
    struct api_choice *choice = &answer->choices[index];
    choice->reason = event->reason;
    for (size_t i = 0; event->reason == FINISH_STOP && i < answer->call->n_stops; i++)
        if (view_equal(event->stop, view_of(answer->call->stops[i])))
            choice->stop = view_of(answer->call->stops[i]);
    add_usage(answer, index, &event->usage);
    if (answer->call->stream)
        format->finish(answer, index, out);
    answer->n_finished++;
    if (!api_answer_done(answer))
        return;
    if (answer->call->stream)
        format->end(answer, out);
    else
        format->whole(answer, out);
}

void api_answer_event(struct api_answer *answer, size_t index, const struct generation_event *event,
                      struct buffer *out)
{
    struct api_choice *choice = &answer->choices[index];
    if (event->kind == GENERATION_STARTED)
        add_prompt(answer, index, &event->usage);
    if (event->kind == GENERATION_PROMPT)
        collect_logprob(answer, choice, event);
    if (event->kind == GENERATION_PROMPT || event->kind == GENERATION_STARTED ||
        event->kind == GENERATION_FAILED)
        return;
    if (!choice->begun && answer->call->stream)
        answer->call->format->begin(answer, index, out);
    choice->begun = true;
    if (event->kind == GENERATION_TOKEN)
        choice->usage.n_output = event->index + 1;
    if (event->kind == GENERATION_TOKEN && answer->call->want_logprobs)
        collect_logprob(answer, choice, event);
    if (event->kind == GENERATION_TOKEN && answer->call->want_tokens)
        out->failed |= !token_list_append(&choice->tokens, event->token);
    add_text(answer, index, event->text, out);
    if (event->kind != GENERATION_FINISHED)
        return;
    if (choice->parser != NULL && !reply_parser_end(choice->parser))
        out->failed = true;
    finish(answer, index, event, out);
}
