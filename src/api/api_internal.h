/* What the files of src/api share. */
#ifndef CONSORT_API_INTERNAL_H
#define CONSORT_API_INTERNAL_H

#include "api/api.h"

/* ---- Reading fields -------------------------------------------------------------------------- */

/* FIELD_LIMIT: a whole number, or a negative one for no limit, which is kept as UINT32_MAX. */
enum field_type { FIELD_BOOL, FIELD_U32, FIELD_LIMIT, FIELD_F32 };

/* A field of a request that goes straight into struct api_call. null counts as absent. */
struct field {
    const char *name;
    enum field_type type;
    size_t offset; /* in struct api_call */
    double min, max;
};

#define CALL(field) offsetof(struct api_call, field)

/* Takes the fields of a table that object has. */
enum status read_fields(struct api_call *call, const json_t *object, const struct field *fields,
                        size_t n_fields, struct api_error *error);
/* Refuses an object that has one of the names, but as null, false, 0 or an empty text or list. */
enum status read_refused(const json_t *object, const char *const *names, size_t n_names,
                         struct api_error *error);

extern const struct field sampling_fields[];
extern const size_t n_sampling_fields;

/* NULL where absent or null; STATUS_INVALID where the type is another. */
enum status read_string(const json_t *object, const char *name, const char **out,
                        struct api_error *error);

enum status api_out_of_memory(struct api_error *error);

/* ---- The parts of a call --------------------------------------------------------------------- */

/* What an API reads of a call's body, besides the model's name. */
typedef enum status call_part(struct api_call *call, struct api_error *error);

/* A call over a JSON object, with what part (NULL: nothing more) reads of it; the error says where
 * the JSON breaks. */
enum status call_read(struct api_call **out, const struct api_format *format,
                      enum api_operation operation, struct view body, call_part *part,
                      struct api_error *error);
enum status read_stops(struct api_call *call, const json_t *object, const char *name,
                       struct api_error *error);
/* What all that write text have in the body: the refused names, the samplers, the fields of a
 * table, the seed, the biases and "stop". */
enum status read_generation(struct api_call *call, const char *const *refused, size_t n_refused,
                            const struct field *fields, size_t n_fields, struct api_error *error);
/* A grammar in GBNF in the body; beside another form of output it is refused. */
enum status read_grammar(struct api_call *call, struct api_error *error);
/* A schema for what is written; param names the field it came from. */
enum status take_schema(struct api_call *call, const json_t *schema, const char *param,
                        struct api_error *error);
enum status read_seed(struct api_call *call, const json_t *object, struct api_error *error);
enum status read_messages(struct api_call *call, const json_t *messages, struct api_error *error);
/* logit_bias in the body: an object whose keys are token ids; of llama-server's requests also
 * texts, and a list of pairs. */
enum status read_biases(struct api_call *call, struct api_error *error);
/* OpenAI's list in the body, and what the template sees of it and of the body's other fields. */
enum status read_tools(struct api_call *call, struct api_error *error);
enum status read_variables(struct api_call *call, struct api_error *error);
/* Refuses a verbosity other than the usual one; param names the field. */
enum status read_verbosity(const json_t *object, const char *param, struct api_error *error);
/* response_format in the body. */
enum status read_output(struct api_call *call, struct api_error *error);
/* A text, a list of texts, token ids, or a list of these, in the body. */
enum status read_prompts(struct api_call *call, const char *field, struct api_error *error);
/* The call, which is a completion of its only prompt, fills the gap between that and suffix. */
enum status read_suffix(struct api_call *call, struct view suffix, struct api_error *error);
struct view text_of(const json_t *string);

/* Before the ids of tool calls. */
#define ANTHROPIC_CALL_PREFIX "toolu_"

/* ---- Writing --------------------------------------------------------------------------------- */

void put_text(struct buffer *out, const char *text); /* as a JSON string */
void put_json(const json_t *value, struct buffer *out);
/* "timings":{…} */
void put_timings(const struct generation_usage *usage, struct buffer *out);
void put_vector(const float *vector, size_t n, struct buffer *out);
void openai_error(const struct api_error *error, bool streaming, struct buffer *out);
struct view all_of(const struct buffer *buffer);

extern const struct api_format openai_chat_format, openai_completion_format;
extern const struct api_format anthropic_format, llama_format, responses_format;
extern const struct api_format ollama_chat_format, ollama_generate_format, ollama_embedding_format;

#endif
