/* What a token reads of the weights, beside what it has to read.
 *
 *   build/bench/experts MODEL [TOKENS]    of the answer (default 16)
 *
 * Before each token the marks that the processor leaves on pages it reads are taken from the
 * mapping of the file; after it, the marked pages are counted. To be read are all experts that the
 * router chose, the whole of every other matrix, and of an embedding matrix that is not the output
 * matrix too one row. A dense model shows how exact this is. Linux only. */
#include "engine/engine.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define N_PROMPT 8
#define MAX_TOKENS 1024

static _Noreturn void fail(const char *text)
{
    fprintf(stderr, "%s\n", text);
    exit(1);
}

static bool ends(const char *name, const char *end)
{
    size_t a = strlen(name), b = strlen(end);
    return a >= b && strcmp(name + a - b, end) == 0;
}

static uint64_t bytes_to_read(const struct weights *weights, const struct model_desc *desc)
{
    bool tied = weights_find(weights, "output.weight") == NULL;
    uint64_t bytes = 0;
    for (size_t i = 0; i < weights_tensor_count(weights); i++) {
        const struct weights_tensor *tensor = weights_tensor_at(weights, i);
        if (ends(tensor->name, "_exps.weight"))
            bytes += tensor->size_bytes / desc->n_experts * desc->n_experts_used;
        else if (strcmp(tensor->name, "token_embd.weight") == 0 && !tied)
            bytes += tensor->size_bytes / tensor->shape[1];
        else
            bytes += tensor->size_bytes;
    }
    return bytes;
}

/* Of the mapping that holds `at`: where it lies and how much of it carries marks. */
static void mapping_of(const void *at, uintptr_t *begin, uintptr_t *end, uint64_t *marked_bytes)
{
    char line[512];
    bool inside = false;
    FILE *file = fopen("/proc/self/smaps", "r");
    if (file == NULL)
        fail("/proc/self/smaps is not there: this needs Linux");
    while (fgets(line, sizeof line, file) != NULL) {
        uintptr_t from, to;
        uint64_t kib;
        if (sscanf(line, "%" SCNxPTR "-%" SCNxPTR " ", &from, &to) == 2) {
            inside = from <= (uintptr_t)at && (uintptr_t)at < to;
            if (inside) {
                *begin = from;
                *end = to;
            }
        } else if (inside && sscanf(line, "Referenced: %" SCNu64, &kib) == 1) {
            *marked_bytes = kib * 1024;
        }
    }
    fclose(file);
}

/* Takes the marks away, and from the processor what it remembers of them. */
static void unmark(const void *at)
{
    uintptr_t begin = 0, end = 0;
    uint64_t marked;
    FILE *file = fopen("/proc/self/clear_refs", "w");
    if (file == NULL || fputs("1", file) < 0 || fclose(file) != 0)
        fail("/proc/self/clear_refs cannot be written");
    mapping_of(at, &begin, &end, &marked);
    if (mprotect((void *)begin, end - begin, PROT_NONE) != 0 ||
        mprotect((void *)begin, end - begin, PROT_READ) != 0)
        fail("the mapping cannot be protected");
}

static void begin_answer(struct session *session, uint32_t n_vocab)
{
    struct error error;
    struct sampling sampling = SAMPLING_DEFAULTS;
    int32_t prompt[N_PROMPT];
    for (size_t i = 0; i < N_PROMPT; i++)
        prompt[i] = (int32_t)(rng_u64(1, i, 0) % n_vocab);
    struct session_prompt asked = {.tokens = prompt, .n_tokens = N_PROMPT, .sampling = &sampling};
    if (session_begin(session, &asked, &error) != STATUS_OK)
        fail(error.text);
}

int main(int argc, char **argv)
{
    struct engine *engine;
    struct session *session;
    struct error error;
    if (argc < 2) {
        fprintf(stderr, "usage: %s MODEL [TOKENS]\n", argv[0]);
        return 2;
    }
    size_t n_tokens = argc > 2 ? strtoul(argv[2], NULL, 10) : 16;
    n_tokens = MAX(MIN(n_tokens, (size_t)MAX_TOKENS), (size_t)1);
    struct model_options options = {.n_ctx = 2 * MAX_TOKENS, .kv_format = QUANT_F16};
    if (engine_open(&engine, argv[1], ENGINE_TOKENIZER | ENGINE_MODEL, &options, &error) !=
            STATUS_OK ||
        session_open(&session, engine, &error) != STATUS_OK)
        fail(error.text);
    const struct model_desc *desc = model_description(engine->model);
    const void *weights = weights_tensor_at(engine->weights, 0)->data;
    uintptr_t begin = 0, end = 0;
    uint64_t marked = 0, sum = 0, least = bytes_to_read(engine->weights, desc);
    struct buffer piece = {0};
    int32_t token;
    /* Huge pages would be marked as a whole. */
    mapping_of(weights, &begin, &end, &marked);
#ifdef MADV_NOHUGEPAGE
    if (madvise((void *)begin, end - begin, MADV_NOHUGEPAGE) != 0)
        fail("the mapping cannot be kept to small pages");
#endif
    if (madvise((void *)begin, end - begin, MADV_DONTNEED) != 0)
        fail("the mapping cannot be emptied");
    begin_answer(session, desc->n_vocab);
    for (size_t i = 0; i < n_tokens + 2; i++) {
        unmark(weights);
        if (session_next(session, &token, &piece, &error) != STATUS_OK)
            fail(error.text);
        mapping_of(weights, &begin, &end, &marked);
        if (i >= 2) /* the first comes out of the prompt's step; reading ahead may go on */
            sum += marked;
    }
    double read = (double)sum / (double)n_tokens;
    printf("a token read %.1f MiB of %.1f MiB, and had to read %.1f MiB: %.3f times\n",
           read / 1048576, (double)weights_size_bytes(engine->weights) / 1048576,
           (double)least / 1048576, read / (double)least);
    buffer_free(&piece);
    session_close(session);
    engine_close(engine);
    return 0;
}
