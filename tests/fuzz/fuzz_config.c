/* Files of settings: any bytes are a tree within its limits, or a sentence with a place. */
#include "base/base.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static size_t count(const struct yaml_node *node, unsigned depth)
{
    size_t n = 1;
    if (depth > 16 || (node->kind == YAML_TEXT) != (node->text != NULL) || node->line == 0)
        abort();
    for (const struct yaml_node *entry = node->first; entry != NULL; entry = entry->next) {
        if ((node->kind == YAML_MAP) != (entry->key != NULL))
            abort();
        n += count(entry, depth + 1);
    }
    return n;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct arena *arena = arena_open((size_t)64 << 20);
    struct yaml_node *root;
    struct error error;
    if (arena == NULL)
        return 0;
    enum status status =
        yaml_read(&root, arena, (struct view){(const char *)data, size}, "f", &error);
    if (status == STATUS_OK ? root != NULL && count(root, 1) > 65536
                            : root != NULL || error.text[0] == '\0')
        abort();
    arena_close(arena);
    return 0;
}
