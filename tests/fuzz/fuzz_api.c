/* The input's first byte chooses a reader; the rest is the body of a request. */
#include "api/api.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const struct {
        enum status (*read)(struct api_call **out, enum api_operation operation, struct view body,
                            struct api_error *error);
        enum api_operation operation;
    } readers[] = {
        {openai_read, API_CHAT},       {openai_read, API_COMPLETION},
        {openai_read, API_EMBEDDINGS}, {responses_read, API_CHAT},
        {anthropic_read, API_CHAT},    {ollama_read, API_CHAT},
        {ollama_read, API_COMPLETION}, {ollama_read, API_EMBEDDINGS},
        {llama_read, API_COMPLETION},  {llama_read_infill, API_COMPLETION},
        {llama_read, API_DETOKENIZE},  {rerank_read, API_RERANK},
    };
    struct api_call *call;
    struct api_error error;
    if (size == 0)
        return 0;
    size_t reader = data[0] % ARRAY_COUNT(readers);
    const struct view body = {(const char *)data + 1, size - 1};
    if (readers[reader].read(&call, readers[reader].operation, body, &error) != STATUS_OK)
        return 0;
    json_t *history = json_pack("[{s:s, s:s}]", "role", "user", "content", "a");
    if (call->input != NULL)
        responses_follow(call, history, &error);
    json_decref(history);
    api_call_free(call);
    return 0;
}
