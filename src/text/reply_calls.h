/* From the text between the marks of a tool call to the call (internal to src/text). */
#ifndef CONSORT_TEXT_REPLY_CALLS_H
#define CONSORT_TEXT_REPLY_CALLS_H

#include "text/text.h"

/* Calls found in one marked text. */
struct reply_calls {
    json_t *list;        /* of [name, arguments] */
    const json_t *tools; /* OpenAI's list, for the types of arguments; or NULL */
};

/* Appends the calls in text; false where it is not what the format writes. */
typedef bool reply_reader(struct reply_calls *calls, struct view text);

/* {"name": …, "arguments": {…}}, several one after the other or in a list; "tool_name" and
 * "parameters" too. */
reply_reader reply_read_json;
/* NAME{…}: with DeepSeek's and Kimi's words and Mistral's [ARGS] between the two. */
reply_reader reply_read_named;
/* NAME<arg_key>K</arg_key><arg_value>V</arg_value>…: GLM. */
reply_reader reply_read_glm;
/* <function=NAME><parameter=K>V</parameter>…</function>: Qwen3-Coder; JSON where it begins so. */
reply_reader reply_read_qwen;
/* <invoke name="NAME"><parameter name="K">V</parameter>…</invoke>…: MiniMax. */
reply_reader reply_read_minimax;

/* Appends a call; takes arguments over. */
bool reply_add_call(struct reply_calls *calls, struct view name, json_t *arguments);

struct view reply_trim(struct view text);

#endif
