#include "text/tokenizer_internal.h"

#include <stdlib.h>

void merge_work_free(struct merge_work *work)
{
    free(work->symbols);
    free(work->heap);
    *work = (struct merge_work){0};
}

/* memory, grown to at least count elements; NULL, and memory as it was, when there is none. */
static void *grown(void *memory, size_t *capacity, size_t count, size_t element_bytes)
{
    if (memory != NULL && count <= *capacity)
        return memory;
    size_t wanted = MAX(count, *capacity + *capacity / 2), bytes;
    wanted = MAX(wanted, 64);
    void *larger = size_mul(wanted, element_bytes, &bytes) ? realloc(memory, bytes) : NULL;
    if (larger != NULL)
        *capacity = wanted;
    return larger;
}

bool merge_begin(struct merge_work *work, size_t n)
{
    work->n_symbols = 0;
    struct merge_symbol *symbols =
        n < MERGE_END ? grown(work->symbols, &work->symbol_capacity, n, sizeof *symbols) : NULL;
    if (symbols != NULL)
        work->symbols = symbols;
    return symbols != NULL;
}

void merge_add(struct merge_work *work, size_t begin, size_t size, int32_t id)
{
    uint32_t at = (uint32_t)work->n_symbols++;
    work->symbols[at] = (struct merge_symbol){at - 1, at + 1, (uint32_t)begin, (uint32_t)size, id};
}

/* ---- A binary heap, the best candidate on top ---- */

static bool before(const struct merge_candidate *a, const struct merge_candidate *b)
{
    return a->rank != b->rank ? a->rank < b->rank : a->left < b->left;
}

static void heap_sink(struct merge_candidate *heap, size_t count, size_t at)
{
    struct merge_candidate moved = heap[at];
    for (size_t child; (child = 2 * at + 1) < count; at = child) {
        if (child + 1 < count && before(&heap[child + 1], &heap[child]))
            child++;
        if (!before(&heap[child], &moved))
            break;
        heap[at] = heap[child];
    }
    heap[at] = moved;
}

static void heap_rise(struct merge_candidate *heap, size_t at)
{
    struct merge_candidate moved = heap[at];
    for (size_t parent; at > 0 && before(&moved, &heap[parent = (at - 1) / 2]); at = parent)
        heap[at] = heap[parent];
    heap[at] = moved;
}

static struct merge_candidate heap_take(struct merge_work *work)
{
    struct merge_candidate best = work->heap[0];
    work->heap[0] = work->heap[--work->n_heap];
    if (work->n_heap > 0)
        heap_sink(work->heap, work->n_heap, 0);
    return best;
}

/* ---- The loop ---- */

static bool propose(struct merge_work *work, const struct tokenizer *t, const char *text,
                    merge_pair_fn *pair, uint32_t left)
{
    const struct merge_symbol *a = &work->symbols[left];
    if (a->next == MERGE_END)
        return false;
    const struct merge_symbol *b = &work->symbols[a->next];
    struct merge_candidate *candidate = &work->heap[work->n_heap];
    if (!pair(t, text, a, b, &candidate->rank, &candidate->id))
        return false;
    candidate->left = left;
    candidate->size = a->size + b->size;
    work->n_heap++;
    return true;
}

/* Whether the candidate still describes two living neighbours: sizes only grow, so an equal sum
 * means that neither has changed. */
static bool current(const struct merge_work *work, const struct merge_candidate *candidate)
{
    const struct merge_symbol *left = &work->symbols[candidate->left];
    return left->size > 0 && left->next != MERGE_END &&
           left->size + work->symbols[left->next].size == candidate->size;
}

static void join(struct merge_work *work, const struct merge_candidate *candidate)
{
    struct merge_symbol *left = &work->symbols[candidate->left];
    struct merge_symbol *right = &work->symbols[left->next];
    left->size = candidate->size;
    left->id = candidate->id;
    left->next = right->next;
    if (right->next != MERGE_END)
        work->symbols[right->next].prev = candidate->left;
    right->size = 0;
}

bool merge_run(struct merge_work *work, const struct tokenizer *t, const char *text,
               merge_pair_fn *pair)
{
    if (work->n_symbols == 0)
        return true;
    work->symbols[0].prev = MERGE_END;
    work->symbols[work->n_symbols - 1].next = MERGE_END;
    /* A merge takes one candidate out and puts at most two in, and there are fewer merges than
     * symbols: room is needed for two a symbol. */
    struct merge_candidate *heap =
        grown(work->heap, &work->heap_capacity, 2 * work->n_symbols, sizeof *heap);
    if (heap == NULL)
        return false;
    work->heap = heap;
    work->n_heap = 0;
    for (uint32_t i = 0; i + 1 < work->n_symbols; i++)
        propose(work, t, text, pair, i);
    for (size_t i = work->n_heap / 2; i-- > 0;)
        heap_sink(work->heap, work->n_heap, i);
    while (work->n_heap > 0) {
        struct merge_candidate best = heap_take(work);
        if (!current(work, &best))
            continue;
        join(work, &best);
        uint32_t prev = work->symbols[best.left].prev;
        if (prev != MERGE_END && propose(work, t, text, pair, prev))
            heap_rise(work->heap, work->n_heap - 1);
        if (propose(work, t, text, pair, best.left))
            heap_rise(work->heap, work->n_heap - 1);
    }
    return true;
}
