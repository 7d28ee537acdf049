/* Reading ahead. One thread goes through the file as it will be used: layers in their order, then
 * what lies outside of them, which is above all the vocabulary (of the embedding a few rows are
 * wanted at once, of the output nothing before the last layer). It reads the pages itself instead
 * of advising the system to: then they come in large pieces, which are also quicker to map. */
#include "weights/gguf.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#define STEP_BYTES ((size_t)1 << 20) /* short enough for closing not to wait */
#define LAYER_PREFIX "blk."

struct prefetch {
    const struct weights *weights;
    pthread_t thread;
    bool running;
    atomic_bool started, stop;
};

struct prefetch *prefetch_open(const struct weights *weights)
{
    struct prefetch *prefetch = calloc(1, sizeof *prefetch);
    if (prefetch != NULL)
        prefetch->weights = weights;
    return prefetch;
}

static void read_tensors(struct prefetch *prefetch, bool of_layers)
{
    const struct weights *weights = prefetch->weights;
    for (size_t i = 0; i < weights->tensor_count; i++) {
        const struct weights_tensor *tensor = &weights->tensors[i];
        if ((strncmp(tensor->name, LAYER_PREFIX, strlen(LAYER_PREFIX)) == 0) != of_layers)
            continue;
        size_t size = (size_t)tensor->size_bytes;
        for (size_t begin = 0; begin < size; begin += STEP_BYTES) {
            if (atomic_load(&prefetch->stop))
                return;
            file_map_bring((const uint8_t *)tensor->data + begin, MIN(STEP_BYTES, size - begin));
        }
    }
}

static void *read_ahead(void *context)
{
    read_tensors(context, true);
    read_tensors(context, false);
    return NULL;
}

void weights_prefetch(const struct weights *weights)
{
    struct prefetch *prefetch = weights->prefetch;
    if (!atomic_exchange(&prefetch->started, true))
        prefetch->running = thread_start(&prefetch->thread, read_ahead, prefetch);
}

void prefetch_close(struct prefetch *prefetch)
{
    if (prefetch == NULL)
        return;
    atomic_store(&prefetch->stop, true);
    if (prefetch->running)
        pthread_join(prefetch->thread, NULL);
    free(prefetch);
}
