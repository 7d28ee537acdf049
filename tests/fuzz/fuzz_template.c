/* The input is a template, then after a zero byte its variables as JSON. */
#include "text/text.h"

#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const uint8_t *zero = size > 0 ? memchr(data, 0, size) : NULL;
    size_t source_size = zero != NULL ? (size_t)(zero - data) : size;
    struct chat_template *chat_template = NULL;
    struct error error;
    struct view source = {(const char *)data, source_size};
    if (chat_template_open(&chat_template, source, &error) != STATUS_OK)
        return 0;
    json_t *variables = NULL;
    if (zero != NULL)
        variables =
            json_loadb((const char *)zero + 1, size - source_size - 1, JSON_ALLOW_NUL, NULL);
    if (variables == NULL || !json_is_object(variables)) {
        json_decref(variables);
        variables = json_pack("{s:[{s:s,s:s},{s:s,s:s}],s:b,s:s}", "messages", "role", "user",
                              "content", "hi \xC3\xA9", "role", "assistant", "content", "yes",
                              "add_generation_prompt", 1, "bos_token", "<s>");
    }
    struct buffer out = {0};
    chat_template_render(chat_template, variables, 1767323045, &out, &error);
    buffer_free(&out);
    json_decref(variables);
    chat_template_close(chat_template);
    return 0;
}
