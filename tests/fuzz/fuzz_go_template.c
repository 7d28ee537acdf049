/* Any text as a Go template. What it becomes is Jinja that opens, and rendering it ends. */
#include "text/text.h"

#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct buffer jinja = {0}, out = {0};
    struct error error;
    struct chat_template *chat_template = NULL;
    struct view source = {(const char *)data, size};
    if (chat_template_from_go(source, &jinja, &error) == STATUS_OK &&
        utf8_valid(source.data, source.size)) {
        json_t *variables = json_pack("{s:[{s:s,s:s},{s:s,s:s},{s:s,s:s}]}", "messages", "role",
                                      "system", "content", "s", "role", "user", "content", "hi",
                                      "role", "assistant", "content", "yes");
        struct view made = {jinja.data, jinja.size};
        if (chat_template_open(&chat_template, made, &error) != STATUS_OK)
            abort();
        chat_template_render(chat_template, variables, 1767323045, &out, &error);
        json_decref(variables);
    }
    chat_template_close(chat_template);
    buffer_free(&jinja);
    buffer_free(&out);
    return 0;
}
