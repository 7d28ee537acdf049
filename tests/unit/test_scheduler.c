/* Many requests at once over a tiny random model, whose first 96 tokens are the bytes 0 to 95. What
 * each is answered must be what a session of its own answers. */
#include "../support/tokenizer_vocabularies.h"
#include "engine/scheduler_internal.h"
#include "fake_comm.h"
#include "../support/slow.h"
#include "tiny_model.h"

#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <unistd.h>

#include <cmocka.h>

#define PAGE MODEL_KV_PAGE_TOKENS
#define MAX_TEXT 1024
#define END_TOKEN 'E'

/* The tests run on one machine, and over several ranks. */
static const char *placement_text;

/* ---- Fixture --------------------------------------------------------------------------------- */

/* Keeps the engine thread from steps while it is closed. mutex guards the rest. */
struct gate {
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    bool reached, open;
};

struct fixture {
    struct small_vocabulary vocabulary;
    struct engine engine;
    struct scheduler *scheduler;
    struct gate gate;
    struct model_placement placement;
    struct fake_ranks ranks; /* where there are several */
};

static void open_engine(struct fixture *fixture, uint32_t n_ctx, enum quant_format kv_format)
{
    struct tiny_gguf gguf = {0};
    struct engine *engine = &fixture->engine;
    struct error error = {0};
    struct model_options options = {.n_ctx = n_ctx, .kv_format = kv_format, .n_threads = 2};
    char path[64];
    memset(fixture, 0, sizeof *fixture);
    pthread_mutex_init(&fixture->gate.mutex, NULL);
    pthread_cond_init(&fixture->gate.changed, NULL);
    tiny_llama_keys(&gguf, 2);
    tiny_llama_tensors(&gguf);
    tiny_write(&gguf, path);
    enum status status = weights_open(&engine->weights, path, &error);
    unlink(path);
    small_bytes(&fixture->vocabulary, "gpt-2");
    fixture->vocabulary.config.eos = END_TOKEN;
    if (status == STATUS_OK)
        status = tokenizer_open(&engine->tokenizer, &fixture->vocabulary.config, &error);
    if (status == STATUS_OK && placement_text == NULL) {
        status = model_open(&engine->model, engine->weights, &options, &error);
    } else if (status == STATUS_OK) {
        fixture->placement = fake_placement(placement_text, TINY_LAYERS);
        options.placement = &fixture->placement;
        status = fake_ranks_open(&fixture->ranks, engine->weights, &options, false, NULL, &error);
        engine->model = fixture->ranks.owner;
    }
    if (status != STATUS_OK)
        fail_msg("%s", error.text);
}

static void open_scheduler(struct fixture *fixture, const struct scheduler_options *options)
{
    struct error error = {0};
    if (scheduler_open(&fixture->scheduler, &fixture->engine, options, &error) != STATUS_OK)
        fail_msg("%s", error.text);
}

static void close_fixture(struct fixture *fixture)
{
    scheduler_close(fixture->scheduler);
    assert_int_equal(model_pages_free(fixture->engine.model),
                     model_page_count(fixture->engine.model));
    pthread_cond_destroy(&fixture->gate.changed);
    pthread_mutex_destroy(&fixture->gate.mutex);
    if (placement_text == NULL)
        model_close(fixture->engine.model);
    else
        assert_int_equal(fake_ranks_close(&fixture->ranks), STATUS_OK);
    tokenizer_close(fixture->engine.tokenizer);
    weights_close(fixture->engine.weights);
}

/* ---- Answers --------------------------------------------------------------------------------- */

struct order {
    int names[16];
    size_t n;
};

/* What the events of a request said. mutex guards done; the rest is the engine thread's till then.
 */
struct answered {
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    bool done;

    struct fixture *fixture;
    uint64_t id;
    size_t cancel_at; /* cancels itself at this token; 0: never */
    int name;
    struct order *order; /* where it writes its name when it starts; may be NULL */

    bool started;
    int32_t tokens[MAX_TEXT];
    float logprobs[MAX_TEXT];
    float scores[MAX_TEXT]; /* of the prompt */
    int32_t scored[MAX_TEXT];
    size_t n_scored;
    size_t n_tokens;
    struct token_logprob top[4];
    char text[MAX_TEXT], stop[64];
    size_t n_text;
    struct generation_event last; /* its pointers are not to be followed */
    struct error error;
};

static void on_event(void *context, const struct generation_event *event)
{
    struct answered *answered = context;
    assert_false(answered->done);
    memcpy(answered->text + answered->n_text, event->text.size > 0 ? event->text.data : "",
           event->text.size);
    answered->n_text += event->text.size;
    switch (event->kind) {
    case GENERATION_PROMPT:
        assert_false(answered->started);
        assert_int_equal(event->index, answered->n_scored);
        answered->scores[answered->n_scored] = event->logprob;
        answered->scored[answered->n_scored++] = event->token;
        return;
    case GENERATION_STARTED:
        assert_false(answered->started);
        answered->started = true;
        if (answered->order != NULL)
            answered->order->names[answered->order->n++] = answered->name;
        return;
    case GENERATION_TOKEN:
        assert_true(answered->started);
        assert_int_equal(event->index, answered->n_tokens);
        assert_true(event->n_top <= 4);
        if (event->n_top > 0)
            memcpy(answered->top, event->top, event->n_top * sizeof *event->top);
        answered->logprobs[answered->n_tokens] = event->logprob;
        answered->tokens[answered->n_tokens++] = event->token;
        if (answered->n_tokens == answered->cancel_at)
            scheduler_cancel(answered->fixture->scheduler, event->id);
        return;
    case GENERATION_FAILED:
        answered->error = *event->error;
        break;
    case GENERATION_FINISHED:
        if (event->reason == FINISH_STOP)
            snprintf(answered->stop, sizeof answered->stop, "%.*s", (int)event->stop.size,
                     event->stop.data);
        break;
    }
    pthread_mutex_lock(&answered->mutex);
    answered->last = *event;
    answered->done = true;
    pthread_cond_signal(&answered->changed);
    pthread_mutex_unlock(&answered->mutex);
}

static struct answered *new_answered(struct fixture *fixture)
{
    struct answered *answered = calloc(1, sizeof *answered);
    assert_non_null(answered);
    answered->fixture = fixture;
    pthread_mutex_init(&answered->mutex, NULL);
    pthread_cond_init(&answered->changed, NULL);
    return answered;
}

static void wait_done(struct answered *answered)
{
    pthread_mutex_lock(&answered->mutex);
    while (!answered->done)
        pthread_cond_wait(&answered->changed, &answered->mutex);
    pthread_mutex_unlock(&answered->mutex);
}

static void free_answered(struct answered *answered)
{
    pthread_cond_destroy(&answered->changed);
    pthread_mutex_destroy(&answered->mutex);
    free(answered);
}

/* A request for at most max_tokens of a random text, sampled with its seed; end tokens count
 * not. */
static struct generation_request *make_request(const int32_t *tokens, size_t n_tokens,
                                               uint32_t max_tokens, uint64_t seed)
{
    struct generation_request *request = generation_request_open(tokens, n_tokens);
    assert_non_null(request);
    request->max_tokens = max_tokens;
    request->sampling.seed = seed;
    request->sampling.repeat_penalty = 1.1f;
    request->ignore_end = true;
    return request;
}

static void submit(struct answered *answered, struct generation_request *request)
{
    struct error error = {0};
    if (scheduler_submit(answered->fixture->scheduler, request, on_event, answered, &answered->id,
                         &error) != STATUS_OK)
        fail_msg("%s", error.text);
}

static enum status refused(struct fixture *fixture, struct generation_request *request,
                           struct error *error)
{
    return scheduler_submit(fixture->scheduler, request, on_event, NULL, NULL, error);
}

static void make_text(int32_t *tokens, size_t n, uint64_t seed)
{
    for (size_t i = 0; i < n; i++)
        tokens[i] = (int32_t)(rng_u64(seed, i, 7) % TINY_VOCAB);
}

/* What a session alone answers to the same request. */
static void expect_alone(const struct generation_request *request, int32_t *answer,
                         enum quant_format kv_format)
{
    struct fixture alone;
    struct error error = {0};
    struct session *session;
    struct buffer text = {0};
    struct session_prompt prompt = {.tokens = request->tokens,
                                    .n_tokens = request->n_tokens,
                                    .sampling = &request->sampling,
                                    .grammar = request->grammar};
    open_engine(&alone, 2048, kv_format);
    assert_int_equal(session_open(&session, &alone.engine, &error), STATUS_OK);
    assert_int_equal(session_begin(session, &prompt, &error), STATUS_OK);
    for (uint32_t i = 0; i < request->max_tokens; i++)
        assert_int_equal(session_next(session, &answer[i], &text, &error), STATUS_OK);
    buffer_free(&text);
    session_close(session);
    close_fixture(&alone);
}

static void wait_at_gate(struct engine *engine, void *context)
{
    struct gate *gate = context;
    assert_non_null(engine->model);
    pthread_mutex_lock(&gate->mutex);
    gate->reached = true;
    pthread_cond_broadcast(&gate->changed);
    while (!gate->open)
        pthread_cond_wait(&gate->changed, &gate->mutex);
    pthread_mutex_unlock(&gate->mutex);
}

static void close_gate(struct fixture *fixture)
{
    struct gate *gate = &fixture->gate;
    struct error error = {0};
    pthread_mutex_lock(&gate->mutex);
    gate->open = gate->reached = false;
    pthread_mutex_unlock(&gate->mutex);
    assert_int_equal(scheduler_call(fixture->scheduler, wait_at_gate, gate, &error), STATUS_OK);
    pthread_mutex_lock(&gate->mutex);
    while (!gate->reached)
        pthread_cond_wait(&gate->changed, &gate->mutex);
    pthread_mutex_unlock(&gate->mutex);
}

static void open_gate(struct fixture *fixture)
{
    struct gate *gate = &fixture->gate;
    pthread_mutex_lock(&gate->mutex);
    gate->open = true;
    pthread_cond_broadcast(&gate->changed);
    pthread_mutex_unlock(&gate->mutex);
}

/* The metrics with all that was done in them. */
static void read_metrics(struct fixture *fixture, struct scheduler_metrics *metrics)
{
    close_gate(fixture);
    scheduler_metrics(fixture->scheduler, metrics);
    open_gate(fixture);
}

/* ---- Tests ----------------------------------------------------------------------------------- */

enum { N_MANY = 24 };

struct submitter {
    struct fixture *fixture;
    struct answered **answered;
    size_t begin, end;
};

static struct generation_request *request_number(size_t i)
{
    int32_t tokens[MAX_TEXT];
    size_t n = 1 + rng_u64(5, i, 0) % 400;
    make_text(tokens, n, i % 5); /* some have the same beginning */
    return make_request(tokens, n, 1 + (uint32_t)(rng_u64(5, i, 1) % 40), i);
}

static void *submit_some(void *argument)
{
    struct submitter *submitter = argument;
    for (size_t i = submitter->begin; i < submitter->end; i++) {
        submit(submitter->answered[i], request_number(i));
        if (i % 4 == 0)
            wait_done(submitter->answered[i]); /* the next ones join later */
    }
    return NULL;
}

/* Requests that join and leave, from several threads, with few pages and many. */
static void many_at_once(uint32_t n_ctx, enum quant_format kv_format,
                         const struct scheduler_options *options, struct scheduler_metrics *metrics)
{
    struct fixture fixture;
    struct answered *answered[N_MANY];
    struct submitter submitters[3];
    pthread_t threads[3];
    open_engine(&fixture, n_ctx, kv_format);
    open_scheduler(&fixture, options);
    for (size_t i = 0; i < N_MANY; i++)
        answered[i] = new_answered(&fixture);
    for (size_t t = 0; t < 3; t++) {
        submitters[t] =
            (struct submitter){&fixture, answered, t * N_MANY / 3, (t + 1) * N_MANY / 3};
        assert_int_equal(pthread_create(&threads[t], NULL, submit_some, &submitters[t]), 0);
    }
    for (size_t t = 0; t < 3; t++)
        pthread_join(threads[t], NULL);
    size_t n_output = 0;
    for (size_t i = 0; i < N_MANY; i++) {
        int32_t expected[MAX_TEXT];
        struct generation_request *request = request_number(i);
        wait_done(answered[i]);
        expect_alone(request, expected, kv_format);
        assert_int_equal(answered[i]->last.kind, GENERATION_FINISHED);
        assert_int_equal(answered[i]->last.reason, FINISH_LENGTH);
        assert_int_equal(answered[i]->n_tokens, request->max_tokens);
        assert_memory_equal(answered[i]->tokens, expected, request->max_tokens * sizeof *expected);
        assert_int_equal(answered[i]->n_text, request->max_tokens); /* a byte each */
        assert_int_equal(answered[i]->last.usage.n_prompt, request->n_tokens);
        assert_int_equal(answered[i]->last.usage.n_output, request->max_tokens);
        n_output += request->max_tokens;
        generation_request_close(request);
        free_answered(answered[i]);
    }
    read_metrics(&fixture, metrics);
    assert_int_equal(metrics->n_accepted, N_MANY);
    assert_int_equal(metrics->n_finished, N_MANY);
    assert_int_equal(metrics->output_tokens, n_output);
    assert_int_equal(metrics->n_running + metrics->n_paused + metrics->n_queued, 0);
    assert_int_equal(metrics->pages_free + metrics->pages_cached, metrics->pages);
    close_fixture(&fixture);
}

static void test_scheduler_many(void **state)
{
    (void)state;
    struct scheduler_metrics metrics;
    struct scheduler_options options = {.max_sequences = 8};
    many_at_once(8192, QUANT_F16, &options, &metrics);
    assert_true(metrics.prefix_hits > 0);
    if (test_every() <= 2)
        many_at_once(8192, QUANT_Q8_0, &options, &metrics);
    options.no_prefix_cache = true;
    options.step_tokens = 20;
    many_at_once(8192, QUANT_F16, &options, &metrics);
    assert_int_equal(metrics.prefix_hits, 0);
}

/* Texts that do not fit together all the same get their answers, one after the other. */
static void test_scheduler_few_pages(void **state)
{
    (void)state;
    struct scheduler_metrics metrics;
    struct scheduler_options options = {.max_sequences = 8};
    many_at_once(4 * PAGE, QUANT_F16, &options, &metrics);
    options.no_prefix_cache = true;
    many_at_once(4 * PAGE, QUANT_F16, &options, &metrics);

    /* Three that grow over the last page together: the youngest pauses. */
    struct fixture fixture;
    struct answered *answered[3];
    int32_t tokens[PAGE], expected[MAX_TEXT];
    open_engine(&fixture, 7 * PAGE, QUANT_F16);
    open_scheduler(&fixture, &options);
    close_gate(&fixture);
    for (size_t i = 0; i < 3; i++) {
        make_text(tokens, 100, 10 + i);
        answered[i] = new_answered(&fixture);
        submit(answered[i], make_request(tokens, 100, 300, i));
    }
    open_gate(&fixture);
    for (size_t i = 0; i < 3; i++) {
        make_text(tokens, 100, 10 + i);
        struct generation_request *request = make_request(tokens, 100, 300, i);
        expect_alone(request, expected, QUANT_F16);
        wait_done(answered[i]);
        assert_int_equal(answered[i]->n_tokens, 300);
        assert_memory_equal(answered[i]->tokens, expected, 300 * sizeof *expected);
        generation_request_close(request);
        free_answered(answered[i]);
    }
    read_metrics(&fixture, &metrics);
    assert_true(metrics.n_pauses > 0);
    close_fixture(&fixture);
}

/* A prompt seen before, a conversation that goes on, and a text that fills the whole cache. */
static void prefix_hits(enum quant_format kv_format)
{
    enum { N_PROMPT = 300, N_ANSWER = 50, N_MORE = 20 };
    struct fixture fixture;
    int32_t tokens[MAX_TEXT], expected[MAX_TEXT];
    open_engine(&fixture, 4 * PAGE, kv_format);
    open_scheduler(&fixture, NULL);
    make_text(tokens, N_PROMPT, 1);
    struct answered *first = new_answered(&fixture), *again = new_answered(&fixture);
    submit(first, make_request(tokens, N_PROMPT, N_ANSWER, 9));
    wait_done(first);
    assert_int_equal(first->last.usage.n_cached, 0);
    submit(again, make_request(tokens, N_PROMPT, N_ANSWER, 9));
    wait_done(again);
    assert_int_equal(again->last.usage.n_cached, N_PROMPT - 1);
    assert_memory_equal(again->tokens, first->tokens, N_ANSWER * sizeof *tokens);

    /* The answer's last token was never computed. */
    struct answered *next = new_answered(&fixture);
    memcpy(tokens + N_PROMPT, first->tokens, N_ANSWER * sizeof *tokens);
    make_text(tokens + N_PROMPT + N_ANSWER, N_MORE, 2);
    struct generation_request *request =
        make_request(tokens, N_PROMPT + N_ANSWER + N_MORE, N_ANSWER, 10);
    expect_alone(request, expected, kv_format);
    submit(next, request);
    wait_done(next);
    assert_int_equal(next->last.usage.n_cached, N_PROMPT + N_ANSWER - 1);
    assert_memory_equal(next->tokens, expected, N_ANSWER * sizeof *tokens);

    /* Twice the largest text there can be: the second finds all of it, and no page for a copy. */
    make_text(tokens, 4 * PAGE - 1, 3);
    for (size_t i = 0; i < 2; i++) {
        struct answered *full = new_answered(&fixture);
        submit(full, make_request(tokens, 4 * PAGE - 1, 0, 11));
        wait_done(full);
        assert_int_equal(full->last.kind, GENERATION_FINISHED);
        assert_int_equal(full->last.reason, FINISH_LENGTH);
        assert_int_equal(full->n_tokens, 1);
        assert_int_equal(full->last.usage.n_cached, i == 0 ? 0 : 4 * PAGE - 2);
        free_answered(full);
    }
    struct scheduler_metrics metrics;
    read_metrics(&fixture, &metrics);
    assert_int_equal(metrics.prefix_hits, 3);
    free_answered(first);
    free_answered(again);
    free_answered(next);
    close_fixture(&fixture);
}

static void test_scheduler_prefix(void **state)
{
    (void)state;
    prefix_hits(QUANT_F16);
    prefix_hits(QUANT_Q8_0);
}

/* Answers to one prompt that are asked for at the same time compute it once. */
static void test_scheduler_choices(void **state)
{
    (void)state;
    enum { N_CHOICES = 4, N_PROMPT = 300, N_ANSWER = 20 };
    struct fixture fixture;
    struct answered *answered[N_CHOICES];
    int32_t tokens[N_PROMPT], expected[N_ANSWER];
    size_t n_cached = 0;
    make_text(tokens, N_PROMPT, 1);
    open_engine(&fixture, 4096, QUANT_F16);
    open_scheduler(&fixture, NULL);
    close_gate(&fixture);
    for (size_t i = 0; i < N_CHOICES; i++) {
        answered[i] = new_answered(&fixture);
        submit(answered[i], make_request(tokens, N_PROMPT, N_ANSWER, i));
    }
    open_gate(&fixture);
    for (size_t i = 0; i < N_CHOICES; i++) {
        struct generation_request *request = make_request(tokens, N_PROMPT, N_ANSWER, i);
        expect_alone(request, expected, QUANT_F16);
        wait_done(answered[i]);
        assert_memory_equal(answered[i]->tokens, expected, sizeof expected);
        n_cached += answered[i]->last.usage.n_cached;
        generation_request_close(request);
        free_answered(answered[i]);
    }
    assert_int_equal(n_cached, (N_CHOICES - 1) * (N_PROMPT - 1));
    close_fixture(&fixture);
}

static void test_scheduler_cancels(void **state)
{
    (void)state;
    struct fixture fixture;
    int32_t tokens[64];
    make_text(tokens, 64, 1);
    open_engine(&fixture, 4096, QUANT_F16);
    open_scheduler(&fixture, &(struct scheduler_options){.max_sequences = 1});
    /* While it runs: no token more. */
    struct answered *running = new_answered(&fixture), *waiting = new_answered(&fixture);
    running->cancel_at = 5;
    submit(running, make_request(tokens, 64, 0, 1));
    wait_done(running);
    assert_int_equal(running->last.kind, GENERATION_FINISHED);
    assert_int_equal(running->last.reason, FINISH_CANCELLED);
    assert_int_equal(running->n_tokens, 5);
    assert_int_equal(running->last.usage.n_output, 5);
    /* While it waits: it never starts. */
    struct answered *before = new_answered(&fixture);
    close_gate(&fixture);
    submit(before, make_request(tokens, 64, 3, 1));
    submit(waiting, make_request(tokens, 64, 3, 1));
    scheduler_cancel(fixture.scheduler, waiting->id);
    scheduler_cancel(fixture.scheduler, waiting->id + 1000); /* there is no such request */
    open_gate(&fixture);
    wait_done(waiting);
    wait_done(before);
    assert_int_equal(waiting->last.reason, FINISH_CANCELLED);
    assert_false(waiting->started);
    assert_int_equal(before->last.reason, FINISH_LENGTH);
    scheduler_cancel(fixture.scheduler, before->id); /* has ended */
    free_answered(running);
    free_answered(waiting);
    free_answered(before);
    close_fixture(&fixture);
}

/* Clients take turns, however many requests one has sent before. */
static void test_scheduler_turns(void **state)
{
    (void)state;
    static const uint64_t clients[] = {1, 1, 1, 2, 2, 3, 1, 3};
    static const int expected[] = {0, 3, 5, 1, 4, 7, 2, 6};
    enum { N = ARRAY_COUNT(clients), CANCELLED = N };
    struct fixture fixture;
    struct order order = {.n = 0};
    struct answered *answered[N + 1];
    int32_t token = 1;
    open_engine(&fixture, 4096, QUANT_F16);
    open_scheduler(&fixture, &(struct scheduler_options){.max_sequences = 1});
    close_gate(&fixture);
    for (int i = 0; i <= N; i++) {
        answered[i] = new_answered(&fixture);
        answered[i]->name = i;
        answered[i]->order = &order;
        struct generation_request *request = make_request(&token, 1, 2, 1);
        request->client = i < N ? clients[i] : 4;
        submit(answered[i], request);
    }
    scheduler_cancel(fixture.scheduler, answered[CANCELLED]->id);
    open_gate(&fixture);
    for (int i = 0; i <= N; i++)
        wait_done(answered[i]);
    assert_int_equal(order.n, N);
    assert_memory_equal(order.names, expected, sizeof expected);
    for (int i = 0; i <= N; i++)
        free_answered(answered[i]);
    close_fixture(&fixture);
}

static void test_scheduler_refuses(void **state)
{
    (void)state;
    struct fixture fixture;
    struct error error = {0};
    struct answered *answered[2];
    static int32_t tokens[MAX_TEXT];
    open_engine(&fixture, 512, QUANT_F16);
    open_scheduler(&fixture, &(struct scheduler_options){.max_queued = 2, .n_ctx = 256});
    assert_int_equal(refused(&fixture, make_request(tokens, 256, 1, 1), &error), STATUS_LIMIT);
    assert_non_null(strstr(error.text, "256 tokens and the context holds 256"));
    assert_int_equal(refused(&fixture, make_request(tokens, 0, 1, 1), &error), STATUS_INVALID);
    tokens[1] = TINY_VOCAB;
    assert_int_equal(refused(&fixture, make_request(tokens, 2, 1, 1), &error), STATUS_INVALID);
    tokens[1] = -1;
    assert_int_equal(refused(&fixture, make_request(tokens, 2, 1, 1), &error), STATUS_INVALID);
    static const struct view bad_stops[] = {{"", 0}, {"\xff", 1}};
    for (size_t i = 0; i < ARRAY_COUNT(bad_stops); i++) {
        struct generation_request *request = make_request(tokens, 1, 1, 1);
        request->stops = &bad_stops[i];
        request->n_stops = 1;
        assert_int_equal(refused(&fixture, request, &error), STATUS_INVALID);
    }
    struct generation_request *hot = make_request(tokens, 1, 1, 1);
    hot->sampling.temperature = -1;
    assert_int_equal(refused(&fixture, hot, &error), STATUS_INVALID);
    assert_non_null(strstr(error.text, "temperature"));
    struct generation_request *curious = make_request(tokens, 1, 1, 1);
    curious->want_logprobs = true;
    curious->n_top_logprobs = GENERATION_MAX_TOP_LOGPROBS + 1;
    assert_int_equal(refused(&fixture, curious, &error), STATUS_INVALID);

    close_gate(&fixture);
    for (size_t i = 0; i < 2; i++) {
        answered[i] = new_answered(&fixture);
        submit(answered[i], make_request(tokens, 1, 1, 1));
    }
    assert_int_equal(refused(&fixture, make_request(tokens, 1, 1, 1), &error), STATUS_BUSY);
    assert_int_equal(scheduler_call(fixture.scheduler, wait_at_gate, NULL, &error), STATUS_BUSY);
    assert_non_null(strstr(error.text, "2 requests are waiting"));
    scheduler_drain(fixture.scheduler);
    assert_int_equal(refused(&fixture, make_request(tokens, 1, 1, 1), &error), STATUS_BUSY);
    assert_int_equal(scheduler_call(fixture.scheduler, wait_at_gate, NULL, &error), STATUS_BUSY);
    open_gate(&fixture);
    for (size_t i = 0; i < 2; i++) {
        wait_done(answered[i]); /* what was accepted goes on */
        assert_int_equal(answered[i]->last.reason, FINISH_LENGTH);
        free_answered(answered[i]);
    }
    struct scheduler_metrics metrics;
    scheduler_metrics(fixture.scheduler, &metrics);
    assert_int_equal(metrics.n_refused, 10);
    close_fixture(&fixture);
}

static void count_job(struct engine *engine, void *context)
{
    assert_non_null(engine->model);
    (*(int *)context)++;
}

/* Calls wait in the same queue as requests, and leave it when they are done. */
static void test_scheduler_queues_calls(void **state)
{
    (void)state;
    struct fixture fixture;
    struct error error = {0};
    struct scheduler_metrics metrics;
    int32_t token = 1;
    int n_done = 0;
    open_engine(&fixture, 512, QUANT_F16);
    open_scheduler(&fixture, &(struct scheduler_options){.max_queued = 2});
    for (int round = 0; round < 3; round++) {
        close_gate(&fixture);
        assert_int_equal(n_done, 2 * round);
        for (int i = 0; i < 2; i++)
            assert_int_equal(scheduler_call(fixture.scheduler, count_job, &n_done, &error),
                             STATUS_OK);
        assert_int_equal(scheduler_call(fixture.scheduler, count_job, &n_done, &error),
                         STATUS_BUSY);
        assert_non_null(strstr(error.text, "2 requests are waiting"));
        assert_int_equal(refused(&fixture, make_request(&token, 1, 1, 1), &error), STATUS_BUSY);
        scheduler_metrics(fixture.scheduler, &metrics);
        assert_int_equal(metrics.n_queued, 2);
        open_gate(&fixture);
        while (metrics.n_queued > 0) {
            sched_yield();
            scheduler_metrics(fixture.scheduler, &metrics);
        }
    }
    close_fixture(&fixture);
}

/* A request whose answer is the given bytes: every token is forced by a bias. */
static struct answered *forced(struct fixture *fixture, struct generation_request *request,
                               int32_t token)
{
    struct answered *answered = new_answered(fixture);
    static struct logit_bias bias;
    bias = (struct logit_bias){token, 1000};
    request->sampling.biases = &bias;
    request->sampling.n_biases = 1;
    submit(answered, request);
    wait_done(answered);
    return answered;
}

static void test_scheduler_ends(void **state)
{
    (void)state;
    struct fixture fixture;
    int32_t token = 1;
    open_engine(&fixture, 512, QUANT_F16);
    open_scheduler(&fixture, NULL);
    /* An end token. */
    struct generation_request *request = make_request(&token, 1, 10, 1);
    request->ignore_end = false;
    struct answered *answered = forced(&fixture, request, END_TOKEN);
    assert_int_equal(answered->last.reason, FINISH_END);
    assert_int_equal(answered->last.end_token, END_TOKEN);
    assert_int_equal(answered->n_tokens + answered->n_text, 0);
    assert_int_equal(answered->last.usage.n_output, 1);
    free_answered(answered);
    /* Ignored. */
    answered = forced(&fixture, make_request(&token, 1, 10, 1), END_TOKEN);
    assert_int_equal(answered->last.reason, FINISH_LENGTH);
    assert_int_equal(answered->last.end_token, TOKEN_NONE);
    assert_string_equal(answered->text, "EEEEEEEEEE");
    free_answered(answered);
    /* A stop text, and what was held back for another that did not come. */
    static const struct view stops[] = {{"AAAAB", 5}, {"AAA", 3}};
    request = make_request(&token, 1, 10, 1);
    request->stops = stops;
    request->n_stops = 2;
    answered = forced(&fixture, request, 'A');
    assert_int_equal(answered->last.reason, FINISH_STOP);
    assert_string_equal(answered->stop, "AAA");
    assert_int_equal(answered->n_tokens, 3);
    assert_int_equal(answered->n_text, 0);
    free_answered(answered);
    request = make_request(&token, 1, 3, 1);
    request->stops = stops;
    request->n_stops = 1;
    answered = forced(&fixture, request, 'A');
    assert_int_equal(answered->last.reason, FINISH_LENGTH);
    assert_string_equal(answered->text, "AAA");
    free_answered(answered);
    /* No token is possible. */
    struct logit_bias *none = calloc(TINY_VOCAB, sizeof *none);
    for (int32_t i = 0; i < TINY_VOCAB; i++)
        none[i] = (struct logit_bias){i, -INFINITY};
    request = make_request(&token, 1, 3, 1);
    request->sampling.biases = none;
    request->sampling.n_biases = TINY_VOCAB;
    answered = new_answered(&fixture);
    submit(answered, request);
    wait_done(answered);
    assert_int_equal(answered->last.kind, GENERATION_FAILED);
    assert_int_equal(answered->error.code, STATUS_INVALID);
    free_answered(answered);
    free(none);
    close_fixture(&fixture);
}

static void test_scheduler_logprobs(void **state)
{
    (void)state;
    struct fixture fixture;
    int32_t tokens[20];
    make_text(tokens, 20, 1);
    open_engine(&fixture, 512, QUANT_F16);
    open_scheduler(&fixture, NULL);
    struct generation_request *request = make_request(tokens, 20, 1, 1);
    request->want_logprobs = true;
    request->n_top_logprobs = 3;
    request->sampling.temperature = 0;
    request->sampling.repeat_penalty = 1;
    struct answered *answered = new_answered(&fixture);
    submit(answered, request);
    wait_done(answered);
    assert_int_equal(answered->last.reason, FINISH_LENGTH);
    assert_int_equal(answered->top[0].token, answered->tokens[0]);
    assert_true(answered->top[0].logprob == answered->logprobs[0]);
    assert_true(answered->top[0].logprob <= 0);
    assert_true(answered->top[0].logprob >= answered->top[1].logprob);
    assert_true(answered->top[1].logprob >= answered->top[2].logprob);
    free_answered(answered);
    close_fixture(&fixture);
}

/* The tokens of a prompt have the log probabilities that they have as an answer to what stands
 * before them, whatever runs beside, whatever the cache knows, and when the stream was paused. */
static void test_scheduler_scores(void **state)
{
    (void)state;
    enum { N = 300, ANSWER = 40 };
    static const struct scheduler_options few = {.max_sequences = 3};
    struct fixture fixture;
    struct answered *answered[4];
    int32_t tokens[N + ANSWER];
    make_text(tokens, N, 5);
    open_engine(&fixture, 512, QUANT_F16);
    open_scheduler(&fixture, &few);
    struct generation_request *request = make_request(tokens, N, ANSWER, 1);
    request->want_logprobs = true;
    request->sampling.temperature = 0;
    answered[0] = new_answered(&fixture);
    submit(answered[0], request);
    wait_done(answered[0]);
    memcpy(tokens + N, answered[0]->tokens, ANSWER * sizeof *tokens);
    for (size_t i = 1; i < 4; i++) { /* more than there are pages for */
        request = make_request(tokens, N + ANSWER, 1, i);
        request->want_logprobs = request->score_prompt = true;
        request->no_answer = i < 3;
        answered[i] = new_answered(&fixture);
        submit(answered[i], request);
    }
    for (size_t i = 1; i < 4; i++) {
        wait_done(answered[i]);
        assert_int_equal(answered[i]->last.reason, FINISH_LENGTH);
        assert_int_equal(answered[i]->n_tokens, i < 3 ? 0 : 1);
        assert_int_equal(answered[i]->n_scored, N + ANSWER);
        assert_int_equal(answered[i]->last.usage.n_cached, 0);
        assert_true(isnan(answered[i]->scores[0]));
        assert_memory_equal(answered[i]->scored, tokens, sizeof tokens);
        for (size_t t = 0; t < ANSWER; t++)
            assert_true(answered[i]->scores[N + t] == answered[0]->logprobs[t]);
        assert_memory_equal(answered[i]->scores + 1, answered[1]->scores + 1,
                            (N + ANSWER - 1) * sizeof(float));
        free_answered(answered[i]);
    }
    free_answered(answered[0]);
    close_fixture(&fixture);
}

/* Closing ends what runs and what waits. */
static void test_scheduler_closes(void **state)
{
    (void)state;
    enum { N = 6 };
    struct fixture fixture;
    struct answered *answered[N];
    int32_t tokens[300];
    make_text(tokens, 300, 1);
    open_engine(&fixture, 1024, QUANT_F16);
    open_scheduler(&fixture, &(struct scheduler_options){.max_sequences = 2});
    for (size_t i = 0; i < N; i++) {
        answered[i] = new_answered(&fixture);
        submit(answered[i], make_request(tokens, 1 + 50 * i, 0, i));
    }
    scheduler_close(fixture.scheduler);
    fixture.scheduler = NULL;
    for (size_t i = 0; i < N; i++) {
        assert_true(answered[i]->done);
        assert_int_equal(answered[i]->last.kind, GENERATION_FINISHED);
        assert_true(answered[i]->last.reason == FINISH_CANCELLED ||
                    answered[i]->last.reason == FINISH_LENGTH);
        free_answered(answered[i]);
    }
    close_fixture(&fixture);
}

/* Drafts, always verified, leave no trace in a text, its end, or what is kept of it. gbnf: what the
 * text follows, or NULL. */
static void check_drafts(const char *gbnf)
{
    enum { N_PROMPT = 120, N_ANSWER = 200 };
    struct fixture fixture;
    struct error error = {0};
    int32_t tokens[N_PROMPT], expected[N_ANSWER];
    open_engine(&fixture, 8 * PAGE, QUANT_F16);
    struct grammar_cache *cache;
    struct grammar *grammar = NULL;
    const struct grammar_spec spec = {.gbnf = view_of(gbnf != NULL ? gbnf : "")};
    assert_int_equal(grammar_cache_open(&cache, fixture.engine.tokenizer, TINY_VOCAB, &error),
                     STATUS_OK);
    if (gbnf != NULL && grammar_cache_get(cache, &spec, &grammar, &error) != STATUS_OK)
        fail_msg("%s", error.text);
    uint64_t n_right = 0, n_draft = 0;
    size_t every = test_every() > 2 ? 3 : 1;
    for (size_t i = 0; i < 4; i += every) {
        make_text(tokens, N_PROMPT, i);
        memcpy(tokens + N_PROMPT / 2, tokens, N_PROMPT / 2 * sizeof *tokens);
        struct batch batch;
        struct stream *stream;
        const struct scheduler_options options = {0};
        assert_int_equal(batch_open(&batch, &fixture.engine, &options, &error), STATUS_OK);
        batch.speculation.always = true;
        for (size_t again = 0; again < 2; again++) { /* the second finds what the first kept */
            struct answered *answered = new_answered(&fixture);
            struct generation_request *request = make_request(tokens, N_PROMPT, N_ANSWER, i);
            request->sampling.temperature = i % 2 == 0 ? 0 : 0.3f;
            request->sampling.repeat_penalty = 1;
            request->grammar = grammar;
            expect_alone(request, expected, QUANT_F16);
            assert_int_equal(stream_open(&stream, &fixture.engine, 8 * PAGE, request, &error),
                             STATUS_OK);
            stream->callback = on_event;
            stream->context = answered;
            stream->id = 1 + again;
            batch_add(&batch, stream);
            while (batch.ended == NULL)
                batch_step(&batch);
            assert_ptr_equal(batch.ended, stream);
            batch.ended = NULL;
            stream_give_end(stream);
            stream_close(stream);
            assert_int_equal(answered->last.usage.n_cached, again * (N_PROMPT - 1));
            assert_int_equal(answered->n_tokens, N_ANSWER);
            assert_memory_equal(answered->tokens, expected, sizeof expected);
            free_answered(answered);
        }
        n_right += batch.counts.draft_tokens_right;
        n_draft += batch.counts.draft_tokens;
        batch_close(&batch);
    }
    assert_true(n_right > 0 && n_right < n_draft);
    grammar_release(grammar);
    grammar_cache_close(cache);
    close_fixture(&fixture);
}

static void test_scheduler_drafts(void **state)
{
    (void)state;
    check_drafts(NULL);
    check_drafts(
        "root ::= item+ \".\"{9}\nitem ::= \"AB\" [0-9]{1,3} \",\" | \"(\" item* \")\" | [^A]");
    check_drafts("root ::= [A-D]{30} [0-9]*"); /* ends, and is made to go on */
}

/* What a step of many rows needs anyway, in rows. */
static double fixed_rows(void)
{
    return quant_has_panels() ? 128 : 8;
}

/* Steps whose rows cost row_ns each, with what they need anyway. */
static void learn_many(struct step_cost *cost, uint32_t n_texts, size_t n_prompt, double row_ns)
{
    double rows = (double)(n_texts + n_prompt) + fixed_rows();
    for (size_t i = 0; i < 50; i++)
        step_cost_learn(cost, n_texts, n_prompt, 0, (uint64_t)(rows * row_ns));
}

static size_t allows(const struct step_cost *cost, uint32_t n_texts, uint32_t n_prompts,
                     size_t n_waiting)
{
    struct waiting_prompts prompts = {
        .count = n_prompts, .n_tokens = n_waiting, .n_whole = n_waiting};
    return step_cost_allows(cost, n_texts, &prompts);
}

/* How much of a prompt goes into a step follows from what steps were seen to cost. */
static void test_scheduler_cost(void **state)
{
    (void)state;
    enum { LONG = 100000 };
    double texts_ns[17] = {0};
    struct step_cost cost = {.max_texts = 16, .texts_ns = texts_ns, .limit_ns = 200e6};
    assert_true(allows(&cost, 0, 1, LONG) > 1000000);
    size_t unknown = allows(&cost, 1, 1, LONG);
    assert_true(unknown > 0 && unknown < 100);
    learn_many(&cost, 0, 200, 0.5e6);
    for (size_t i = 0; i < 50; i++)
        step_cost_learn(&cost, 4, 0, 0, 30000000);
    for (size_t i = 0; i < 50; i++)
        step_cost_learn(&cost, 16, 0, 0, 60000000);
    /* Few texts wait for all of 200 ms, and a margin; alone: longer steps. */
    size_t few = allows(&cost, 4, 1, LONG), many = allows(&cost, 16, 1, LONG);
    assert_in_range(few, 240, 372);
    assert_true(allows(&cost, 0, 1, LONG) > 3 * few);
    assert_int_equal(allows(&cost, 3, 1, LONG), few + 1);
    /* Many texts beside a long prompt: some more than twice 60 ms. A short one is done at once. */
    assert_in_range(many, 112, 300 - 16);
    assert_true(many < few);
    assert_int_equal(allows(&cost, 16, 1, many + 10), many + 10);
    assert_int_equal(allows(&cost, 100, 1, 1), 4);
    /* Many prompts: longer steps. */
    assert_true(allows(&cost, 16, 4, LONG) > 2 * many);
    assert_true(allows(&cost, 16, 100, LONG) < 700);
    /* One step that waited for something else changes little, many change all. */
    step_cost_learn(&cost, 4, 200, 0, 5000000000);
    assert_in_range(allows(&cost, 4, 1, LONG), few / 2, few);
    learn_many(&cost, 4, 200, 2e6);
    assert_true(allows(&cost, 4, 1, LONG) < few / 3);
    /* Few rows: a token of a prompt costs what it adds. */
    for (size_t i = 0; i < 50; i++)
        step_cost_learn(&cost, 4, 10, 0, 30000000 + 10 * 10000000);
    cost.row_ns = 10e6;
    assert_in_range(allows(&cost, 4, 1, LONG), 14, 17);
    for (size_t i = 0; i < 50; i++)
        step_cost_learn(&cost, 4, 0, 0, 5000000000); /* a slow machine: a prompt still goes on */
    learn_many(&cost, 0, 100, 5e9);
    assert_in_range(allows(&cost, 4, 1, LONG), 1, 32);
    assert_int_equal(allows(&cost, 0, 1, LONG), 32);
}

/* What a step takes of which a row takes 0.2 ms, and 0.1 us more for each token before it. */
static double deep_step_ns(uint32_t n_texts, size_t n_prompt, double depth)
{
    return 0.2e6 * ((double)(n_texts + n_prompt) + fixed_rows()) + 100 * (double)n_prompt * depth;
}

/* Deep in a prompt a token costs more: a step has fewer, and is no longer than at the beginning. */
static void test_scheduler_depth(void **state)
{
    (void)state;
    double texts_ns[5] = {0};
    struct step_cost cost = {.max_texts = 4, .texts_ns = texts_ns, .limit_ns = 200e6};
    size_t n = 256, deepest = 16384;
    for (size_t i = 0; i < 20; i++)
        step_cost_learn(&cost, 4, 0, 0, 20000000);
    for (size_t prompts = 0; prompts < 4; prompts++)
        for (size_t depth = 0; depth < deepest; depth += n)
            step_cost_learn(&cost, 0, n, (double)n * (double)depth,
                            (uint64_t)deep_step_ns(0, n, (double)depth));
    size_t before = SIZE_MAX;
    for (size_t depth = 0; depth < deepest; depth += 1024) {
        struct waiting_prompts prompts = {1, deepest, deepest, (double)depth};
        size_t allowed = step_cost_allows(&cost, 4, &prompts);
        assert_true(allowed < before);
        assert_in_range(deep_step_ns(4, allowed, (double)depth), 150e6, 220e6);
        before = allowed;
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_scheduler_many),    cmocka_unit_test(test_scheduler_few_pages),
        cmocka_unit_test(test_scheduler_prefix),  cmocka_unit_test(test_scheduler_choices),
        cmocka_unit_test(test_scheduler_cancels), cmocka_unit_test(test_scheduler_turns),
        cmocka_unit_test(test_scheduler_refuses), cmocka_unit_test(test_scheduler_queues_calls),
        cmocka_unit_test(test_scheduler_ends),    cmocka_unit_test(test_scheduler_logprobs),
        cmocka_unit_test(test_scheduler_scores),  cmocka_unit_test(test_scheduler_closes),
        cmocka_unit_test(test_scheduler_drafts),  cmocka_unit_test(test_scheduler_cost),
        cmocka_unit_test(test_scheduler_depth),
    };
    /* Where all takes a hundred times longer, the way with most threads is enough. */
    bool slow = test_is_slow();
    int failed = slow ? 0 : cmocka_run_group_tests_name("scheduler", tests, NULL, NULL);
    placement_text = "1:1";
    if (!slow)
        failed += cmocka_run_group_tests_name("scheduler over two shards", tests, NULL, NULL);
    placement_text = "1+1";
    return failed + cmocka_run_group_tests_name("scheduler over two stages", tests, NULL, NULL);
}
