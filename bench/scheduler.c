/* scheduler: what many requests at once get out of one model.
 *
 *   build/bench/scheduler MODEL [STREAMS,... [ANSWER [PROMPT [SEEN]]]]
 *
 * Tokens per second of that many texts together (ANSWER tokens each); the time between two tokens
 * of eight texts, alone and while a prompt of PROMPT tokens comes in; the time to the first token
 * of a prompt of SEEN tokens, the first time and again. Zero leaves a part out. */
#include "engine/engine.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_STREAMS 64
#define MAX_TOKENS 4096
#define N_SHORT 8  /* tokens of a short prompt */
#define N_OTHERS 8 /* texts beside the long prompt */

static const uint32_t default_streams[] = {1, 2, 4, 8, 16};

/* One request. mutex guards all of it. */
struct stream {
    uint64_t id, submitted_ns, started_ns, ended_ns;
    uint64_t token_ns[MAX_TOKENS];
    size_t n_tokens, n_cached;
};

static struct {
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    struct engine *engine;
    struct scheduler *scheduler;
    struct stream streams[MAX_STREAMS];
    uint64_t last_seed;
} bench = {.mutex = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER};

static _Noreturn void fail(const char *text)
{
    fprintf(stderr, "scheduler: %s\n", text);
    exit(1);
}

static void on_event(void *context, const struct generation_event *event)
{
    struct stream *stream = context;
    uint64_t now = clock_now_ns();
    pthread_mutex_lock(&bench.mutex);
    if (event->kind == GENERATION_STARTED) {
        stream->started_ns = now;
        stream->n_cached = event->usage.n_cached;
    } else if (event->kind == GENERATION_TOKEN && stream->n_tokens < MAX_TOKENS) {
        stream->token_ns[stream->n_tokens++] = now;
    } else if (event->kind == GENERATION_FINISHED) {
        stream->ended_ns = now;
    } else if (event->kind == GENERATION_FAILED) {
        fail(event->error->text);
    }
    pthread_cond_signal(&bench.changed);
    pthread_mutex_unlock(&bench.mutex);
}

/* Random tokens: other ones each time, unless same is the seed of an earlier time. */
static uint64_t submit(struct stream *stream, size_t n_prompt, uint32_t n_answer, uint64_t same)
{
    struct error error;
    uint64_t seed = same > 0 ? same : ++bench.last_seed;
    int32_t *tokens = calloc(n_prompt, sizeof *tokens);
    if (tokens == NULL)
        fail("out of memory");
    uint32_t n_vocab = model_description(bench.engine->model)->n_vocab;
    for (size_t i = 0; i < n_prompt; i++)
        tokens[i] = (int32_t)(rng_u64(seed, i, 0) % n_vocab);
    struct generation_request *request = generation_request_open(tokens, n_prompt);
    free(tokens);
    if (request == NULL)
        fail("out of memory");
    request->max_tokens = n_answer;
    request->ignore_end = true;
    *stream = (struct stream){.submitted_ns = clock_now_ns()};
    if (scheduler_submit(bench.scheduler, request, on_event, stream, &stream->id, &error) !=
        STATUS_OK)
        fail(error.text);
    return seed;
}

/* Waits until a stream has so many tokens, or has ended where n_tokens is 0. */
static void wait_for(struct stream *stream, size_t n_tokens)
{
    pthread_mutex_lock(&bench.mutex);
    while (stream->ended_ns == 0 && (n_tokens == 0 || stream->n_tokens < n_tokens))
        pthread_cond_wait(&bench.changed, &bench.mutex);
    pthread_mutex_unlock(&bench.mutex);
}

static size_t count_tokens(const struct stream *stream)
{
    pthread_mutex_lock(&bench.mutex);
    size_t n = stream->n_tokens;
    pthread_mutex_unlock(&bench.mutex);
    return n;
}

/* ---- Parts ----------------------------------------------------------------------------------- */

/* From where all have begun to where the first has ended. */
static void measure_rate(uint32_t n_streams, uint32_t n_answer)
{
    uint64_t begin = 0, end = UINT64_MAX;
    size_t n = 0;
    for (uint32_t i = 0; i < n_streams; i++)
        submit(&bench.streams[i], N_SHORT, n_answer, 0);
    for (uint32_t i = 0; i < n_streams; i++)
        wait_for(&bench.streams[i], 0);
    for (uint32_t i = 0; i < n_streams; i++) {
        begin = MAX(begin, bench.streams[i].token_ns[0]);
        end = MIN(end, bench.streams[i].ended_ns);
    }
    for (uint32_t i = 0; i < n_streams; i++)
        for (size_t t = 0; t < bench.streams[i].n_tokens; t++)
            n += bench.streams[i].token_ns[t] > begin && bench.streams[i].token_ns[t] <= end;
    printf("%2u streams %10.2f tokens/s\n", n_streams, (double)n * 1e9 / (double)(end - begin));
}

static int compare(const void *a, const void *b)
{
    double x, y;
    memcpy(&x, a, sizeof x);
    memcpy(&y, b, sizeof y);
    return (x > y) - (x < y);
}

/* The gaps between tokens that end from begin to end. */
static double print_gaps(const char *name, uint64_t begin, uint64_t end)
{
    static double gaps[N_OTHERS * MAX_TOKENS];
    size_t n = 0;
    for (size_t i = 0; i < N_OTHERS; i++)
        for (size_t t = 1; t < bench.streams[i].n_tokens; t++)
            if (bench.streams[i].token_ns[t] > begin && bench.streams[i].token_ns[t] <= end)
                gaps[n++] =
                    (double)(bench.streams[i].token_ns[t] - bench.streams[i].token_ns[t - 1]) / 1e6;
    if (n == 0)
        fail("no tokens in the time that was measured");
    qsort(gaps, n, sizeof *gaps, compare);
    double p99 = gaps[(n - 1) * 99 / 100];
    printf("%s: %zu gaps, p50 %.1f ms, p99 %.1f ms, longest %.1f ms\n", name, n, gaps[n / 2], p99,
           gaps[n - 1]);
    return p99;
}

static void measure_gaps(size_t n_prompt)
{
    struct stream *prompt = &bench.streams[N_OTHERS];
    for (size_t i = 0; i < N_OTHERS; i++)
        submit(&bench.streams[i], N_SHORT, MAX_TOKENS - 1, 0);
    for (size_t i = 0; i < N_OTHERS; i++)
        wait_for(&bench.streams[i], 8);
    uint64_t begin = clock_now_ns();
    wait_for(&bench.streams[0], count_tokens(&bench.streams[0]) + 64);
    uint64_t middle = clock_now_ns();
    submit(prompt, n_prompt, 1, 0);
    wait_for(prompt, 0);
    for (size_t i = 0; i < N_OTHERS; i++)
        scheduler_cancel(bench.scheduler, bench.streams[i].id);
    for (size_t i = 0; i < N_OTHERS; i++)
        wait_for(&bench.streams[i], 0);
    double alone = print_gaps("8 streams alone", begin, middle);
    double beside = print_gaps("beside a prompt", middle, prompt->started_ns);
    printf("p99 %.2f times; the prompt of %zu tokens took %.1f s\n", beside / alone, n_prompt,
           (double)(prompt->started_ns - prompt->submitted_ns) / 1e9);
}

static void measure_seen(size_t n_prompt)
{
    double seconds[2];
    uint64_t seed = 0;
    for (size_t i = 0; i < 2; i++) {
        seed = submit(&bench.streams[0], n_prompt, 1, seed);
        wait_for(&bench.streams[0], 0);
        seconds[i] = (double)(bench.streams[0].token_ns[0] - bench.streams[0].submitted_ns) / 1e9;
    }
    printf("first token of %zu tokens: %.3f s; again (%zu of them cached) %.4f s; %.0f times\n",
           n_prompt, seconds[0], bench.streams[0].n_cached, seconds[1], seconds[0] / seconds[1]);
}

int main(int argc, char **argv)
{
    uint32_t streams[16], n_streams = 0, n_answer = argc > 3 ? (uint32_t)atoi(argv[3]) : 64;
    size_t n_prompt = argc > 4 ? (size_t)atol(argv[4]) : 8000;
    size_t n_seen = argc > 5 ? (size_t)atol(argv[5]) : 4000;
    if (argc < 2)
        fail("give it a model file");
    if (argc > 2)
        for (char *word = strtok(argv[2], ","); word != NULL && n_streams < 16;
             word = strtok(NULL, ","))
            streams[n_streams++] = MIN((uint32_t)atoi(word), MAX_STREAMS);
    else
        for (; n_streams < ARRAY_COUNT(default_streams); n_streams++)
            streams[n_streams] = default_streams[n_streams];
    struct error error;
    struct model_options options = {.n_ctx = (uint32_t)(16384 + n_prompt + n_seen),
                                    .kv_format = QUANT_F16};
    if (engine_open(&bench.engine, argv[1], ENGINE_MODEL | ENGINE_TOKENIZER, &options, &error) !=
            STATUS_OK ||
        scheduler_open(&bench.scheduler, bench.engine,
                       &(struct scheduler_options){.max_sequences = MAX_STREAMS},
                       &error) != STATUS_OK)
        fail(error.text);
    submit(&bench.streams[0], 200, 8, 0); /* brings the weights in */
    wait_for(&bench.streams[0], 0);
    for (uint32_t i = 0; i < n_streams; i++)
        if (streams[i] > 0)
            measure_rate(streams[i], MIN(n_answer, MAX_TOKENS));
    if (n_prompt > 0)
        measure_gaps(n_prompt);
    if (n_seen > 0)
        measure_seen(n_seen);
    scheduler_close(bench.scheduler);
    engine_close(bench.engine);
    return 0;
}
