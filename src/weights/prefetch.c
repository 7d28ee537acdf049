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
    struct weights_cut *cuts; /* NULL: everything */
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

static void read_range(struct prefetch *prefetch, const struct weights_tensor *tensor)
{
    size_t size = (size_t)tensor->size_bytes;
    for (size_t begin = 0; begin < size && !atomic_load(&prefetch->stop); begin += STEP_BYTES)
        file_map_bring((const uint8_t *)tensor->data + begin, MIN(STEP_BYTES, size - begin));
}

/* Rows of the second matrix on lie apart, and are read with what lies between. Columns are not: the
 * model takes them out at once. */
static void read_tensor(struct prefetch *prefetch, size_t index)
{
    const struct weights_tensor *tensor = &prefetch->weights->tensors[index];
    const struct weights_cut *cut = prefetch->cuts != NULL ? &prefetch->cuts[index] : NULL;
    struct weights_tensor part;
    if (cut == NULL || (cut->needed && cut->n == 0))
        read_range(prefetch, tensor);
    for (uint32_t s = 0; cut != NULL && cut->needed && s < cut->n; s++)
        if (weights_part(tensor, cut->dim, cut->spans[s], &part) &&
            part.row_bytes == quant_row_bytes(part.format, part.shape[0]))
            read_range(prefetch, &part);
}

static void read_tensors(struct prefetch *prefetch, bool of_layers)
{
    const struct weights *weights = prefetch->weights;
    for (size_t i = 0; i < weights->tensor_count && !atomic_load(&prefetch->stop); i++)
        if ((strncmp(weights->tensors[i].name, LAYER_PREFIX, strlen(LAYER_PREFIX)) == 0) ==
            of_layers)
            read_tensor(prefetch, i);
}

static void *read_ahead(void *context)
{
    read_tensors(context, true);
    read_tensors(context, false);
    return NULL;
}

void weights_prefetch(const struct weights *weights, const struct weights_cut *cuts)
{
    struct prefetch *prefetch = weights->prefetch;
    size_t bytes = weights->tensor_count * sizeof *cuts;
    if (atomic_exchange(&prefetch->started, true))
        return;
    if (cuts != NULL && bytes > 0)
        prefetch->cuts = malloc(bytes);
    if (prefetch->cuts != NULL)
        memcpy(prefetch->cuts, cuts, bytes);
    if (cuts == NULL || prefetch->cuts != NULL)
        prefetch->running = thread_start(&prefetch->thread, read_ahead, prefetch);
}

void prefetch_close(struct prefetch *prefetch)
{
    if (prefetch == NULL)
        return;
    atomic_store(&prefetch->stop, true);
    if (prefetch->running)
        pthread_join(prefetch->thread, NULL);
    free(prefetch->cuts);
    free(prefetch);
}
