/* Ranking documents for a query, as Jina and Cohere have shaped it (POST /v1/rerank), and as text
 * embeddings inference has: "texts" in, a bare list out. */
#include "api/api_internal.h"

#include <stdlib.h>

/* Documents may be objects with a text. */
static enum status read_documents(struct api_call *call, const json_t *list,
                                  struct api_error *error)
{
    size_t n = json_array_size(list);
    if (n == 0 || n > API_MAX_PROMPTS)
        return api_invalid(error, "documents", "documents must be a list of 1 to %d texts",
                           API_MAX_PROMPTS);
    call->prompts = arena_array(call->arena, n, sizeof *call->prompts);
    if (call->prompts == NULL)
        return api_out_of_memory(error);
    for (size_t i = 0; i < n; i++) {
        const json_t *entry = json_array_get(list, i), *text = json_object_get(entry, "text");
        if (json_is_object(entry))
            entry = text;
        if (!json_is_string(entry))
            return api_invalid(error, "documents", "document %zu is no text", i);
        call->prompts[call->n_prompts++] = (struct api_prompt){.text = text_of(entry)};
    }
    return STATUS_OK;
}

static enum status read_call(struct api_call *call, struct api_error *error)
{
    static const struct field fields[] = {
        {"top_n", FIELD_U32, CALL(n_best), 1, UINT32_MAX},
        {"return_documents", FIELD_BOOL, CALL(with_documents), 0, 0},
        {"return_text", FIELD_BOOL, CALL(with_documents), 0, 0},
    };
    const char *query;
    const json_t *documents = json_object_get(call->body, "documents");
    enum status status = read_fields(call, call->body, fields, ARRAY_COUNT(fields), error);
    if (status == STATUS_OK)
        status = read_string(call->body, "query", &query, error);
    if (status == STATUS_OK && query == NULL)
        return api_invalid(error, "query", "query is missing");
    if (status == STATUS_OK)
        call->query = view_of(query);
    if (documents == NULL)
        documents = json_object_get(call->body, "texts");
    return status == STATUS_OK ? read_documents(call, documents, error) : status;
}

/* ---- The answer ------------------------------------------------------------------------------ */

struct ranked {
    size_t index;
    float score;
};

/* The best first; of equals the one that came first. */
static int compare(const void *left, const void *right)
{
    const struct ranked *a = left, *b = right;
    if (a->score != b->score)
        return a->score < b->score ? 1 : -1;
    return (a->index > b->index) - (a->index < b->index);
}

static void put_ranking(const struct api_call *call, const struct ranked *list, bool bare,
                        struct buffer *out)
{
    size_t n = call->n_best > 0 ? MIN((size_t)call->n_best, call->n_prompts) : call->n_prompts;
    for (size_t i = 0; i < n; i++) {
        struct view text = call->prompts[list[i].index].text;
        buffer_printf(out, "%s{\"index\":%zu,\"%s\":%.9g", i > 0 ? "," : "[", list[i].index,
                      bare ? "score" : "relevance_score", (double)list[i].score);
        if (call->with_documents) {
            buffer_append_text(out, bare ? ",\"text\":" : ",\"document\":{\"text\":");
            api_json_string(out, text);
            buffer_append_text(out, bare ? "" : "}");
        }
        buffer_append_text(out, "}");
    }
    buffer_append_text(out, "]");
}

static void write_result(const struct api_call *call, const struct api_result *result,
                         struct buffer *out)
{
    bool bare = json_object_get(call->body, "documents") == NULL;
    struct ranked *list = arena_array(call->arena, call->n_prompts, sizeof *list);
    if (list == NULL) {
        out->failed = true;
        return;
    }
    for (size_t i = 0; i < call->n_prompts; i++)
        list[i] = (struct ranked){i, result->vectors[i]};
    qsort(list, call->n_prompts, sizeof *list, compare);
    if (!bare) {
        buffer_append_text(out, "{\"object\":\"list\",\"model\":");
        put_text(out, result->model);
        buffer_printf(out, ",\"usage\":{\"prompt_tokens\":%zu,\"total_tokens\":%zu},\"results\":",
                      result->prompt_tokens, result->prompt_tokens);
    }
    put_ranking(call, list, bare, out);
    buffer_append_text(out, bare ? "" : "}");
}

static const struct api_format rerank_format = {
    .id_prefix = "rerank-",
    .result = write_result,
    .error = openai_error,
};

enum status rerank_read(struct api_call **out, enum api_operation operation, struct view body,
                        struct api_error *error)
{
    return call_read(out, &rerank_format, operation, body, read_call, error);
}
