/* Ollama's answers: one JSON object, or one a line in a stream; times in nanoseconds. */
#include "api/api_internal.h"

#include <string.h>

static bool is_chat(const struct api_call *call)
{
    return call->format == &ollama_chat_format;
}

/* {"model":…,"created_at":…, */
static void put_head(const char *model, int64_t created_s, struct buffer *out)
{
    buffer_append_text(out, "{\"model\":");
    put_text(out, model);
    buffer_append_text(out, ",\"created_at\":\"");
    api_put_time(out, created_s);
    buffer_append_text(out, "\",");
}

/* Clients expect the name that they asked for. */
static const char *model_name(const struct api_answer *answer)
{
    return answer->call->model != NULL ? answer->call->model : answer->model;
}

static void put_call(const char *id, size_t index, const char *name, struct view arguments,
                     struct buffer *out)
{
    buffer_printf(out, "{\"id\":\"%s\",\"function\":{\"index\":%zu,\"name\":", id, index);
    put_text(out, name);
    buffer_append_text(out, ",\"arguments\":");
    buffer_append(out, arguments.data, arguments.size); /* the parser gives an object */
    buffer_append_text(out, "}}");
}

/* What the model wrote, as a chat's message or as a text; the opened object of a message is closed
 * by end_message. */
static void put_message(const struct api_call *call, struct view content, struct view thinking,
                        struct buffer *out)
{
    buffer_append_text(out, is_chat(call) ? "\"message\":{\"role\":\"assistant\",\"content\":"
                                          : "\"response\":");
    api_json_string(out, content);
    if (thinking.size > 0) {
        buffer_append_text(out, ",\"thinking\":");
        api_json_string(out, thinking);
    }
}

static void end_message(const struct api_call *call, struct buffer *out)
{
    buffer_append_text(out, is_chat(call) ? "}," : ",");
}

static void put_done(const struct api_answer *answer, struct buffer *out)
{
    buffer_printf(out,
                  "\"done\":true,\"done_reason\":\"%s\",\"total_duration\":%llu,"
                  "\"load_duration\":%llu,\"prompt_eval_count\":%zu,\"prompt_eval_duration\":%llu,"
                  "\"eval_count\":%zu,\"eval_duration\":%llu}",
                  answer->choices[0].reason == FINISH_LENGTH ? "length" : "stop",
                  (unsigned long long)(answer->load_ns + answer->queue_ns + answer->prompt_ns +
                                       answer->completion_ns),
                  (unsigned long long)answer->load_ns, answer->prompt_tokens,
                  (unsigned long long)answer->prompt_ns, answer->completion_tokens,
                  (unsigned long long)answer->completion_ns);
}

static void write_nothing(struct api_answer *answer, size_t choice, struct buffer *out)
{
    (void)answer;
    (void)choice;
    (void)out;
}

static void write_delta(struct api_answer *answer, size_t choice, const struct api_delta *delta,
                        struct buffer *out)
{
    (void)choice; /* there is one */
    static const struct view none = {"", 0};
    put_head(model_name(answer), answer->created_s, out);
    put_message(answer->call, delta->kind == REPLY_CONTENT ? delta->text : none,
                delta->kind == REPLY_REASONING ? delta->text : none, out);
    if (delta->kind == REPLY_CALL) {
        buffer_append_text(out, ",\"tool_calls\":[");
        put_call(delta->call_id, delta->call, delta->call_name, delta->text, out);
        buffer_append_text(out, "]");
    }
    end_message(answer->call, out);
    buffer_append_text(out, "\"done\":false}\n");
}

static void write_end(struct api_answer *answer, struct buffer *out)
{
    static const struct view none = {"", 0};
    put_head(model_name(answer), answer->created_s, out);
    put_message(answer->call, none, none, out);
    end_message(answer->call, out);
    put_done(answer, out);
    buffer_append_text(out, "\n");
}

static void write_whole(struct api_answer *answer, struct buffer *out)
{
    const struct api_choice *choice = &answer->choices[0];
    put_head(model_name(answer), answer->created_s, out);
    put_message(answer->call, all_of(&choice->content), all_of(&choice->reasoning), out);
    for (size_t i = 0; i < choice->n_calls; i++) {
        const struct api_tool_call *call = &choice->calls[i];
        buffer_append_text(out, i > 0 ? "," : ",\"tool_calls\":[");
        put_call(call->id, i, call->name, view_of(call->arguments), out);
    }
    buffer_append_text(out, choice->n_calls > 0 ? "]" : "");
    end_message(answer->call, out);
    put_done(answer, out);
}

static void write_error(const struct api_error *error, bool streaming, struct buffer *out)
{
    buffer_append_text(out, "{\"error\":");
    put_text(out, error->text);
    buffer_append_text(out, streaming ? "}\n" : "}");
}

/* The model was opened, or is to be closed. */
static void write_loaded(const struct api_call *call, const struct api_result *result,
                         struct buffer *out)
{
    static const struct view none = {"", 0};
    put_head(call->model != NULL ? call->model : result->model, result->created_s, out);
    put_message(call, none, none, out);
    end_message(call, out);
    buffer_printf(out, "\"done\":true,\"done_reason\":\"%s\"}",
                  call->has_keep_alive && call->keep_alive_ms == 0 ? "unload" : "load");
}

static void write_result(const struct api_call *call, const struct api_result *result,
                         struct buffer *out)
{
    if (call->operation != API_EMBEDDINGS) {
        write_loaded(call, result, out);
        return;
    }
    buffer_append_text(out, "{\"model\":");
    put_text(out, call->model != NULL ? call->model : result->model);
    for (size_t i = 0; i < call->n_prompts; i++) {
        buffer_append_text(out, i > 0 ? "," : ",\"embeddings\":[");
        put_vector(result->vectors + i * result->n_numbers, result->n_numbers, out);
    }
    buffer_printf(out,
                  "],\"total_duration\":%llu,\"load_duration\":%llu,\"prompt_eval_count\":%zu}",
                  (unsigned long long)result->total_ns, (unsigned long long)result->load_ns,
                  result->prompt_tokens);
}

static void write_embedding(const struct api_call *call, const struct api_result *result,
                            struct buffer *out)
{
    (void)call; /* it has one text */
    buffer_append_text(out, "{\"embedding\":");
    put_vector(result->vectors, result->n_numbers, out);
    buffer_append_text(out, "}");
}

/* A line that is no object breaks clients, so nothing keeps a silent stream open but its head. The
 * last object of a stream ends the only choice, so that finish has nothing to say. */
#define OLLAMA_FORMAT(to_result)                                                                   \
    {                                                                                              \
        .id_prefix = "", .stream_type = "application/x-ndjson", .ping = "",                        \
        .begin = write_nothing, .delta = write_delta, .finish = write_nothing, .end = write_end,   \
        .whole = write_whole, .result = (to_result), .error = write_error                          \
    }

const struct api_format ollama_chat_format = OLLAMA_FORMAT(write_result);
const struct api_format ollama_generate_format = OLLAMA_FORMAT(write_result);
const struct api_format ollama_embedding_format = OLLAMA_FORMAT(write_embedding);
