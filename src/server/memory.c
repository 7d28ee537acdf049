/* Who gets how much of the memory this server may use.
 *
 * An open model counts with all it may come to use: its weights, although they are mapped, because
 * they must stay in memory to be fast; its whole KV cache, although pages are taken as they are
 * written; its activations. A model that is to be opened gets a context as large as possible, but
 * others are closed for it, or waited for, only where the context would else be small. */
#include "server/server_internal.h"

#include <string.h>
#include <sys/stat.h>

#define MIN_WORK_BYTES ((uint64_t)16 << 20)

uint64_t memory_default_limit(void)
{
    struct machine machine;
    machine_query(&machine);
    return machine_usable_bytes(machine.memory_bytes);
}

uint64_t memory_used(const struct server *server)
{
    uint64_t used = 0;
    for (size_t i = 0; i < server->n_models; i++)
        used += server->models[i].memory_bytes;
    return used;
}

struct memory_room memory_room(const struct server *server)
{
    struct machine machine;
    struct memory_room room = {0};
    uint64_t idle = 0, used = memory_used(server);
    machine_query(&machine);
    for (size_t i = 0; i < server->n_models; i++)
        if (server->models[i].state == MODEL_OPEN && server->models[i].n_users == 0)
            idle += server->models[i].memory_bytes;
    /* Mapped weights count as free for the system, what models have written does not. */
    room.whole = MIN(server->memory_limit, machine.memory_free_bytes + machine.memory_own_bytes);
    room.left = room.whole - MIN(used, room.whole);
    room.with_idle = room.whole - MIN(used - idle, room.whole);
    return room;
}

enum memory_plan memory_plan(const struct memory_room *room, const struct weights *weights,
                             struct model_options *options, struct error *error)
{
    static const uint32_t contexts[] = {32768, 4096,
                                        1}; /* worth closing others; waiting for them */
    const struct {
        uint64_t bytes;
        enum memory_plan plan;
    } ways[] = {
        {room->left, MEMORY_OPEN},
        {room->with_idle, MEMORY_CLOSE_IDLE},
        {room->whole, MEMORY_WAIT},
    };
    uint32_t n_ctx;
    if (options->ignore_memory)
        return MEMORY_OPEN;
    for (size_t c = 0; c < ARRAY_COUNT(contexts); c++)
        for (size_t w = 0; w < ARRAY_COUNT(ways); w++) {
            if (c == 0 && ways[w].plan == MEMORY_WAIT)
                continue;
            options->n_ctx_least = contexts[c];
            options->memory_bytes = MAX(ways[w].bytes, (uint64_t)1);
            enum status status = model_plan(weights, options, &n_ctx, error);
            if (status == STATUS_OK)
                return ways[w].plan;
            if (status != STATUS_MEMORY)
                return MEMORY_REFUSE;
        }
    return MEMORY_REFUSE;
}

uint64_t memory_file_bytes(const char *path)
{
    struct stat facts;
    return path != NULL && stat(path, &facts) == 0 ? (uint64_t)facts.st_size : 0;
}

void memory_suggest(const struct served_model *model, const struct http_exchange *exchange,
                    struct api_error *error)
{
    const struct server *server = model->server;
    struct memory_room room = memory_room(server);
    size_t size = strlen(error->text), n = 0;
    for (size_t i = 0; i < server->n_models && n < 5; i++) {
        const struct served_model *other = &server->models[i];
        uint64_t bytes = memory_file_bytes(other->path);
        /* The KV cache of a short context and the activations take a part of the weights' size. */
        if (other == model || !models_visible(other, exchange) || bytes == 0 ||
            bytes + MAX(bytes / 16, MIN_WORK_BYTES) > room.whole)
            continue;
        size += (size_t)snprintf(
            error->text + size, sizeof error->text - size, "%s%s",
            n++ > 0 ? ", " : ". Of the other models these would fit: ", other->name);
        size = MIN(size, sizeof error->text - 1);
    }
}
