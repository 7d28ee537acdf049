/* One exchange that is answered by a model: read on the worker, the model opened, rendered,
 * tokenized and submitted on the worker, then events from the engine's thread until the end.
 *
 * `mutex` guards what stands below it in struct generation. Each part that still needs the
 * generation holds a reference: the exchange, work that is posted, each request in the engine. */
#include "server/server_internal.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define HOLD_HEADERS_MS 5000 /* an error that comes sooner gets its own status code */
#define PING_MS 9000         /* at most this long without a byte; with delays under 10 s */

struct generation_choice {
    struct generation *generation;
    size_t index;
    uint64_t id;
    bool sent; /* another node's replica computes it; the loop's, as id */
};

struct generation {
    struct server *server;
    struct http_exchange *exchange; /* NULL once it has ended */
    call_reader *read;
    enum api_operation operation;
    struct view body;
    char owner[KEY_NAME_BYTES]; /* the key's name, or empty */
    struct api_call *call;
    struct served_model *model;
    bool acquired; /* the model, to be released */
    bool away;     /* the cluster computes it */
    bool shared;   /* open here, and other nodes may answer too */
    struct generation_choice *choices;
    json_t *grammar_asked;   /* what all choices must follow, or NULL */
    struct grammar *grammar; /* the same, compiled */
    struct net_timer *timer;
    struct gateway_use use; /* what its key pays for, while it runs the engine thread's */
    bool reading;           /* the worker reads the body, which lives as long as the exchange */
    bool streaming;         /* the head of a stream is out */
    uint64_t begin_ns, written_ns;
    struct buffer last; /* the bytes that end the answer */

    pthread_mutex_t mutex;
    size_t n_references;
    struct api_answer *answer;
    struct buffer out; /* bytes that wait for the loop */
    bool flush_posted, failed, gone;
    bool whole; /* out is the answer of an operation that writes no text */
    struct api_error failure;
    size_t n_submitted;
};

/* ---- References ------------------------------------------------------------------------------ */

static void free_generation(void *context)
{
    struct generation *generation = context;
    server_busy(generation->server, false);
    gateway_end(generation->server->gateway, &generation->use);
    grammar_release(generation->grammar);
    json_decref(generation->grammar_asked);
    if (generation->acquired)
        models_release(generation->model);
    if (generation->model != NULL)
        generation->model->n_holders--;
    api_answer_close(generation->answer);
    api_call_free(generation->call);
    buffer_free(&generation->out);
    buffer_free(&generation->last);
    pthread_mutex_destroy(&generation->mutex);
    free(generation->choices);
    free(generation);
}

static void hold(struct generation *generation)
{
    pthread_mutex_lock(&generation->mutex);
    generation->n_references++;
    pthread_mutex_unlock(&generation->mutex);
}

static bool drop(struct generation *generation)
{
    pthread_mutex_lock(&generation->mutex);
    bool last = --generation->n_references == 0;
    pthread_mutex_unlock(&generation->mutex);
    return last;
}

/* Any thread; the last one has it freed on the loop. */
static void let_go(struct generation *generation)
{
    if (drop(generation))
        net_loop_post(generation->server->loop, free_generation, generation);
}

/* On the loop: what the generation held is free before the client's next request is looked at. */
static void let_go_here(struct generation *generation)
{
    if (drop(generation))
        free_generation(generation);
}

static void fail(struct generation *generation, const struct api_error *error)
{
    pthread_mutex_lock(&generation->mutex);
    if (!generation->failed)
        generation->failure = *error;
    generation->failed = true;
    pthread_mutex_unlock(&generation->mutex);
}

static void cancel_all(struct generation *generation)
{
    pthread_mutex_lock(&generation->mutex);
    size_t n = generation->n_submitted;
    pthread_mutex_unlock(&generation->mutex);
    struct cluster_node *node = generation->server->node;
    for (size_t i = 0; i < n; i++)
        if (generation->away || generation->choices[i].sent) {
            if (node != NULL) /* else all ended when it was closed */
                cluster_node_cancel(node, generation->choices[i].id);
        } else
            scheduler_cancel(generation->model->scheduler, generation->choices[i].id);
}

static struct api_error out_of_memory(void)
{
    return (struct api_error){.http_status = 503, .type = "server_error", .text = "out of memory"};
}

/* ---- The answer, on the loop ----------------------------------------------------------------- */

static void log_end(struct generation *generation, int status)
{
    const struct api_answer *answer = generation->answer;
    struct view path = http_path(generation->exchange);
    const char *client = http_peer(generation->exchange);
    const char *model = generation->model != NULL ? generation->model->name : "-";
    size_t prompt = answer != NULL ? answer->prompt_tokens : 0;
    size_t cached = answer != NULL ? answer->cached_tokens : 0;
    size_t written = answer != NULL ? answer->completion_tokens : 0;
    double seconds = (double)(clock_now_ns() - generation->begin_ns) / 1e9;
    json_t *fields =
        json_pack("{s:s, s:s, s:s%, s:i, s:s, s:I, s:I, s:I, s:f}", "event", "request", "client",
                  client, "path", path.data, path.size, "status", status, "model", model,
                  "prompt_tokens", (json_int_t)prompt, "cached_tokens", (json_int_t)cached,
                  "output_tokens", (json_int_t)written, "seconds", seconds);
    server_log_fields(generation->server, fields,
                      "%s %.*s %d %s prompt %zu (%zu cached) answer %zu tokens %.2f s", client,
                      (int)path.size, path.data, status, model, prompt, cached, written, seconds);
}

/* The exchange has been ended. */
static void exchange_over(struct generation *generation)
{
    net_timer_cancel(generation->timer);
    generation->timer = NULL;
    generation->exchange = NULL;
    let_go_here(generation);
}

static void keep_open(void *context);

static void set_timer(struct generation *generation, uint64_t delay_ms)
{
    net_timer_cancel(generation->timer);
    generation->timer = net_loop_after(generation->server->loop, delay_ms, keep_open, generation);
}

static void write_stream(struct generation *generation, struct view data)
{
    if (!generation->streaming) {
        static const struct http_field fields[] = {
            {"Cache-Control", "no-cache"}, {"X-Accel-Buffering", "no"}, {NULL, NULL}};
        http_stream_begin(generation->exchange, 200, generation->call->format->stream_type, fields);
        generation->streaming = true;
    }
    http_stream_write(generation->exchange, data);
    generation->written_ns = clock_now_ns();
}

/* A stream that has been silent gets a sign of life. */
static void keep_open(void *context)
{
    struct generation *generation = context;
    generation->timer = NULL;
    uint64_t silent_ms = (clock_now_ns() - generation->written_ns) / 1000000;
    bool due = !generation->streaming || silent_ms >= PING_MS;
    if (due)
        write_stream(generation, view_of(generation->call->format->ping));
    set_timer(generation, due ? PING_MS : PING_MS - silent_ms);
}

static void post_work(struct generation *generation, net_fn *fn);

static void end_failed(struct generation *generation, const struct api_error *error)
{
    const struct api_format *format = generation->call != NULL ? generation->call->format : NULL;
    if (generation->streaming) {
        struct buffer text = {0};
        format->error(error, true, &text);
        http_stream_write(generation->exchange, (struct view){text.data, text.size});
        log_end(generation, error->http_status);
        http_stream_end(generation->exchange);
        buffer_free(&text);
    } else {
        reply_error(generation->server, generation->exchange, format, error);
    }
    exchange_over(generation);
}

/* The last of the answer is known, and kept where it is to be. */
static void end_answered(void *context)
{
    struct generation *generation = context;
    struct view last = {generation->last.size > 0 ? generation->last.data : "",
                        generation->last.size};
    if (generation->exchange != NULL) {
        log_end(generation, 200);
        if (generation->call->stream) {
            write_stream(generation, last);
            http_stream_end(generation->exchange);
        } else {
            http_reply(generation->exchange, 200, "application/json", last, NULL);
        }
        exchange_over(generation);
    }
    let_go_here(generation);
}

/* On the worker, before the client learns the end and can ask for what is kept. */
static void keep_answer(void *context)
{
    struct generation *generation = context;
    response_keep(generation->server, generation->owner, generation->answer);
    if (!net_loop_post(generation->server->loop, end_answered, generation))
        let_go(generation);
}

/* Takes what the events have left. */
static void flush(void *context)
{
    struct generation *generation = context;
    pthread_mutex_lock(&generation->mutex);
    struct buffer out = generation->out;
    generation->out = (struct buffer){0};
    generation->flush_posted = false;
    bool failed = generation->failed || out.failed;
    bool done =
        generation->whole || (generation->answer != NULL && api_answer_done(generation->answer));
    struct api_error failure = generation->failure;
    pthread_mutex_unlock(&generation->mutex);

    if (out.failed)
        failure = out_of_memory();
    struct view data = {out.size > 0 ? out.data : "", out.size};
    if (generation->exchange != NULL) {
        if (failed) {
            end_failed(generation, &failure);
            if (generation->choices != NULL)
                cancel_all(generation);
        } else if (done) {
            generation->last = out;
            out = (struct buffer){0};
            if (generation->call->store) {
                post_work(generation, keep_answer);
            } else {
                hold(generation);
                end_answered(generation);
            }
        } else if (data.size > 0) {
            write_stream(generation, data);
        }
    }
    buffer_free(&out);
    let_go_here(generation);
}

/* Any thread, which has the mutex. Has the loop take what there is, where there is news; a caller
 * that leaves has no reference any more when the loop does: who has read the answer finds its place
 * free. */
static void unlock_and_tell(struct generation *generation, bool news, bool leaves)
{
    struct net_loop *loop = generation->server->loop;
    bool post = news && !generation->flush_posted;
    generation->flush_posted |= post;
    generation->n_references += post;
    generation->n_references -= leaves;
    bool over = generation->n_references == 0;
    pthread_mutex_unlock(&generation->mutex);
    if (post || over)
        net_loop_post(loop, post ? flush : free_generation, generation);
}

/* Any thread. */
static void post_flush(struct generation *generation)
{
    pthread_mutex_lock(&generation->mutex);
    unlock_and_tell(generation, true, false);
}

static void client_gone(void *context)
{
    struct generation *generation = context;
    pthread_mutex_lock(&generation->mutex);
    generation->gone = true;
    pthread_mutex_unlock(&generation->mutex);
    if (generation->reading)
        return; /* call_is_read ends it */
    if (generation->choices != NULL)
        cancel_all(generation);
    server_logf(generation->server, "%s left before its answer ended",
                http_peer(generation->exchange));
    http_abort(generation->exchange);
    exchange_over(generation);
}

/* ---- Events, on the engine's thread ---------------------------------------------------------- */

/* Counts for the key, also where nobody reads the answer any more. Choices share their prompt. */
static void count_use(struct generation *generation, size_t choice,
                      const struct generation_usage *usage)
{
    if (choice % generation->call->n_choices == 0) {
        generation->use.prompt_tokens += usage->n_prompt;
        generation->use.cached_tokens += usage->n_cached;
    }
    generation->use.answer_tokens += usage->n_output;
}

static void on_event(void *context, const struct generation_event *event)
{
    struct generation_choice *choice = context;
    struct generation *generation = choice->generation;
    bool last = event->kind == GENERATION_FINISHED || event->kind == GENERATION_FAILED;
    pthread_mutex_lock(&generation->mutex);
    if (last)
        count_use(generation, choice->index, &event->usage);
    bool wanted = !generation->gone && !generation->failed;
    if (wanted && event->kind == GENERATION_FAILED) {
        api_error_from(&generation->failure, event->error);
        generation->failed = true;
    } else if (wanted && event->kind == GENERATION_FINISHED && event->reason == FINISH_CANCELLED) {
        generation->failure = (struct api_error){
            .http_status = 503, .type = "server_error", .text = "the server is shutting down"};
        generation->failed = true;
    } else if (wanted) {
        api_answer_event(generation->answer, choice->index, event, &generation->out);
    }
    unlock_and_tell(generation, wanted && (generation->out.size > 0 || last), last);
}

/* ---- Reading and submitting ------------------------------------------------------------------ */

/* The biases of token ids, and those of the tokens of texts. */
static bool copy_biases(const struct generation *generation, struct generation_request *request)
{
    const struct api_call *call = generation->call;
    const struct tokenizer *tokenizer = generation->model->engine->tokenizer;
    struct token_list tokens = {0};
    struct error error;
    size_t n = call->sampling.n_biases, *ends = NULL;
    bool good = true;
    if (call->n_biases > 0) {
        ends = arena_array(request->arena, call->n_biases, sizeof *ends);
        good = ends != NULL;
    }
    for (size_t i = 0; i < call->n_biases && good; i++) {
        good = tokenizer_encode(tokenizer, call->biases[i].text, 0, &tokens, &error) == STATUS_OK;
        ends[i] = tokens.count;
    }
    struct logit_bias *biases = arena_array(request->arena, n + tokens.count, sizeof *biases);
    good = good && (biases != NULL || n + tokens.count == 0);
    if (good && n > 0)
        memcpy(biases, call->sampling.biases, n * sizeof *biases);
    for (size_t i = 0, t = 0; i < call->n_biases && good; i++)
        for (; t < ends[i]; t++)
            biases[n + t] = (struct logit_bias){tokens.ids[t], call->biases[i].bias};
    request->sampling.biases = biases;
    request->sampling.n_biases = n + tokens.count;
    token_list_free(&tokens);
    return good;
}

static struct generation_request *make_request(const struct generation *generation,
                                               const struct token_list *tokens, size_t choice)
{
    const struct api_call *call = generation->call;
    struct generation_request *request = generation_request_open(tokens->ids, tokens->count);
    if (request == NULL)
        return NULL;
    request->sampling = call->sampling;
    struct view *stops = arena_array(request->arena, call->n_stops, sizeof *stops);
    if ((stops == NULL && call->n_stops > 0) || !copy_biases(generation, request)) {
        generation_request_close(request);
        return NULL;
    }
    for (size_t i = 0; i < call->n_stops; i++) {
        size_t size = strlen(call->stops[i]);
        stops[i] = (struct view){arena_copy(request->arena, call->stops[i], size), size};
    }
    request->sampling.seed =
        (call->has_seed ? call->sampling.seed : rng_entropy()) + choice % call->n_choices;
    request->client = gateway_client(&generation->use);
    request->grammar = generation->grammar;
    if (generation->away || generation->shared)
        /* a copy of its own: references are not counted across threads */
        request->grammar_asked = json_deep_copy(generation->grammar_asked);
    request->max_tokens = call->max_tokens;
    request->stops = stops;
    request->n_stops = call->n_stops;
    request->strip_space = call->operation == API_CHAT && !prompt_continues(call);
    request->show_control = call->operation == API_CHAT &&
                            reply_format_shows_control(generation->model->engine->reply_format);
    request->ignore_end = call->ignore_end;
    request->want_logprobs = call->want_logprobs;
    request->n_top_logprobs = call->n_top_logprobs;
    request->score_prompt = call->echo && call->want_logprobs;
    request->no_answer = call->no_answer;
    return request;
}

static void explain_refusal(const struct generation *generation, const struct error *error,
                            size_t n_tokens, struct api_error *out)
{
    api_error_from(out, error);
    if (error->code == STATUS_LIMIT) {
        out->code = "context_length_exceeded";
        out->prompt_tokens = n_tokens;
        out->context_tokens = models_n_ctx(generation->model);
    } else if (error->code == STATUS_BUSY) {
        out->http_status = 503;
        out->type = "server_error";
        out->retry_after_s = 1;
    }
}

/* A request on its way to the cluster or to one of several replicas, which is the loop's matter. */
struct away_request {
    struct generation_choice *choice;
    struct generation_request *request;
};

/* The loop's part of submit_choice. */
static enum status submit_here_or_there(struct generation_choice *choice,
                                        struct generation_request *request, struct error *error)
{
    struct generation *generation = choice->generation;
    size_t n_tokens = request->n_tokens;
    struct api_error told;
    if (generation->away)
        return cluster_submit(generation->model, request, on_event, choice, &choice->id, error);
    enum status status = replica_submit(generation->model, request, on_event, choice, &choice->id,
                                        &choice->sent, error);
    if (status != STATUS_OK) {
        explain_refusal(generation, error, n_tokens, &told);
        fail(generation, &told);
        post_flush(generation);
    }
    return status;
}

static void submit_to_cluster(void *context)
{
    struct away_request *away = context;
    struct generation_choice *choice = away->choice;
    struct generation *generation = choice->generation;
    struct error error;
    struct generation_event cancelled = {
        .kind = GENERATION_FINISHED, .reason = FINISH_CANCELLED, .end_token = -1};
    struct generation_event failed = {.kind = GENERATION_FAILED, .error = &error};
    /* From now on it can be cancelled (an id of 0 cancels nothing); its last event may free all. */
    pthread_mutex_lock(&generation->mutex);
    bool over = generation->gone || generation->failed;
    generation->n_submitted = MAX(generation->n_submitted, choice->index + 1);
    pthread_mutex_unlock(&generation->mutex);
    if (over) {
        generation_request_close(away->request);
        on_event(choice, &cancelled);
    } else if (submit_here_or_there(choice, away->request, &error) != STATUS_OK) {
        on_event(choice, &failed);
    }
    free(away);
}

static enum status post_to_cluster(struct generation_choice *choice,
                                   struct generation_request *request, struct error *error)
{
    struct away_request *away = malloc(sizeof *away);
    if (away != NULL)
        *away = (struct away_request){choice, request};
    if (away != NULL && net_loop_post(choice->generation->server->loop, submit_to_cluster, away))
        return STATUS_OK;
    free(away);
    generation_request_close(request);
    return error_memory(error, sizeof *away);
}

static bool submit_choice(struct generation *generation, const struct token_list *tokens,
                          size_t index)
{
    struct error error;
    struct api_error told;
    struct generation_choice *choice = &generation->choices[index];
    *choice = (struct generation_choice){.generation = generation, .index = index};
    struct generation_request *request = make_request(generation, tokens, index);
    bool posted = false; /* to the loop, which counts it as submitted */
    enum status status =
        request == NULL ? error_memory(&error, tokens->count * sizeof *tokens->ids) : STATUS_OK;
    hold(generation); /* for the request; its last event lets go */
    if (status == STATUS_OK && generation->away && (request->score_prompt || request->no_answer)) {
        status = error_set(&error, STATUS_UNSUPPORTED,
                           "a model that other machines compute scores no prompts: leave out echo "
                           "or logprobs, and ask for one token at least");
        generation_request_close(request);
    } else if (status == STATUS_OK &&
               (generation->away ||
                (generation->shared && !request->score_prompt && !request->no_answer))) {
        posted = true;
        status = post_to_cluster(choice, request, &error);
    } else if (status == STATUS_OK)
        status = scheduler_submit(generation->model->scheduler, request, on_event, choice,
                                  &choice->id, &error);
    if (status != STATUS_OK) {
        explain_refusal(generation, &error, tokens->count, &told);
        fail(generation, &told);
        let_go(generation);
        return false;
    }
    pthread_mutex_lock(&generation->mutex);
    if (!posted)
        generation->n_submitted = MAX(generation->n_submitted, index + 1);
    bool over = generation->gone || generation->failed;
    pthread_mutex_unlock(&generation->mutex);
    if (over && !posted)
        scheduler_cancel(generation->model->scheduler, choice->id);
    return !over;
}

static enum status encode_prompt(struct generation *generation, size_t prompt,
                                 struct token_list *out, struct error *error)
{
    const struct api_call *call = generation->call;
    const struct engine *engine = generation->model->engine;
    json_t **asked = &generation->grammar_asked;
    enum status status;
    if (call->operation == API_CHAT)
        status = prompt_chat(engine, call, generation->answer, asked, out, error);
    else
        status = prompt_constrain(engine, call, (struct view){0}, asked, error);
    if (status == STATUS_OK && *asked != NULL && generation->grammar == NULL && !generation->away)
        status = engine_grammar(engine, *asked, &generation->grammar, error);
    if (status == STATUS_OK && call->operation != API_CHAT)
        status = prompt_encode(engine, call, &call->prompts[prompt], out, error);
    return status;
}

/* On the worker: renders, tokenizes and submits the prompts one after the other. */
static bool submit_prompts(struct generation *generation)
{
    const struct api_call *call = generation->call;
    struct error error;
    struct token_list tokens = {0};
    bool going = true;
    for (size_t p = 0; going && p < MAX(call->n_prompts, (size_t)1); p++) {
        tokens.count = 0;
        if (encode_prompt(generation, p, &tokens, &error) != STATUS_OK) {
            struct api_error told;
            api_error_from(&told, &error);
            fail(generation, &told);
            going = false;
        }
        for (size_t i = 0; going && i < call->n_choices; i++)
            going = submit_choice(generation, &tokens, p * call->n_choices + i);
    }
    token_list_free(&tokens);
    return going;
}

/* ---- Whole answers --------------------------------------------------------------------------- */

/* The answer is out, whole, unless there is an error; the caller lets go of the generation. */
static void end_whole(struct generation *generation, const struct buffer *out, enum status status,
                      const struct error *error)
{
    pthread_mutex_lock(&generation->mutex);
    generation->out = *out;
    generation->whole = status == STATUS_OK;
    if (status != STATUS_OK) {
        api_error_from(&generation->failure, error);
        generation->failed = true;
    }
    unlock_and_tell(generation, true, true);
}

static struct api_result result_of(const struct generation *generation)
{
    return (struct api_result){.model = generation->answer->model,
                               .created_s = time(NULL),
                               .load_ns = generation->answer->load_ns,
                               .total_ns = clock_now_ns() - generation->begin_ns};
}

/* On the engine's thread. */
static void compute_vectors(struct engine *engine, void *context)
{
    struct generation *generation = context;
    struct error error;
    struct buffer out = {0};
    struct api_result result = result_of(generation);
    enum status status = vectors_compute(engine, generation->call, &result, &out, &error);
    generation->use.prompt_tokens = result.prompt_tokens;
    end_whole(generation, &out, status, &error);
}

static bool submit_vectors(struct generation *generation)
{
    struct error error;
    struct api_error told;
    if (generation->away) {
        error_set(&error, STATUS_UNSUPPORTED,
                  "%.100s is computed by several machines together, which only write texts; for "
                  "vectors keep the model on this machine alone",
                  generation->model->name);
        api_error_from(&told, &error);
        fail(generation, &told);
        return false;
    }
    hold(generation);
    if (scheduler_call(generation->model->scheduler, compute_vectors, generation, &error) ==
        STATUS_OK)
        return true;
    explain_refusal(generation, &error, 0, &told);
    fail(generation, &told);
    let_go(generation);
    return false;
}

/* ---- Without a forward pass ------------------------------------------------------------------ */

/* The client may ask for a context, but only the model's file and the server's memory set it. */
static bool context_fits(struct generation *generation)
{
    const struct api_call *call = generation->call;
    struct api_error told;
    size_t n_ctx = models_n_ctx(generation->model);
    if (call->n_ctx <= n_ctx || generation->away)
        return true;
    api_invalid(&told, "num_ctx", "num_ctx is %u; %s was opened with %zu tokens", call->n_ctx,
                generation->model->name, n_ctx);
    fail(generation, &told);
    return false;
}

/* The text or the tokens that the operation gives. */
static enum status work_out(struct generation *generation, struct token_list *tokens,
                            struct buffer *text, struct error *error)
{
    const struct api_call *call = generation->call;
    const struct engine *engine = generation->model->engine;
    const struct api_prompt *prompt = call->n_prompts > 0 ? &call->prompts[0] : NULL;
    unsigned flags = (call->add_special ? TOKENIZER_ADD_SPECIAL : 0u) |
                     (call->parse_special ? TOKENIZER_PARSE_SPECIAL : 0u);
    switch (call->operation) {
    case API_COUNT:
        return prompt_chat(engine, call, generation->answer, NULL, tokens, error);
    case API_RENDER:
        return prompt_render(engine, call, text, error);
    case API_TOKENIZE:
        return tokenizer_encode(engine->tokenizer, prompt->text, flags, tokens, error);
    case API_DETOKENIZE:
        for (size_t i = 0; prompt != NULL && i < prompt->n_tokens; i++)
            tokenizer_piece(engine->tokenizer, prompt->tokens[i], true, text);
        break;
    case API_PROPS:
        buffer_append(text, engine->template_source.data, engine->template_source.size);
        break;
    default:
        break;
    }
    return text->failed ? error_memory(error, text->size) : STATUS_OK;
}

/* The generation is let go of. */
static void answer_directly(struct generation *generation)
{
    const struct api_call *call = generation->call;
    struct error error;
    struct buffer out = {0}, text = {0};
    struct token_list tokens = {0};
    enum status status = work_out(generation, &tokens, &text, &error);
    struct api_result result = result_of(generation);
    result.prompt_tokens = result.n_tokens = tokens.count;
    result.tokens = tokens.ids;
    result.tokenizer = generation->model->engine->tokenizer;
    result.text = (struct view){text.size > 0 ? text.data : "", text.size};
    result.path = generation->model->path;
    result.n_ctx = models_n_ctx(generation->model);
    result.n_slots = models_slots(generation->server);
    if (status == STATUS_OK)
        call->format->result(call, &result, &out);
    token_list_free(&tokens);
    buffer_free(&text);
    end_whole(generation, &out, status, &error);
}

/* On the worker. The file is looked at, and not opened as a model. */
static void show(void *context)
{
    struct generation *generation = context;
    struct error error;
    struct buffer out = {0};
    enum status status = models_show(generation->model, &out, &error);
    end_whole(generation, &out, status, &error);
}

/* On the worker. */
static void submit(void *context)
{
    struct generation *generation = context;
    enum api_operation operation = generation->call->operation;
    bool going = context_fits(generation);
    if (going && operation > API_RERANK) {
        answer_directly(generation);
        return;
    }
    if (going && (operation == API_EMBEDDINGS || operation == API_RERANK))
        going = submit_vectors(generation);
    else if (going)
        going = submit_prompts(generation);
    if (!going)
        post_flush(generation);
    let_go(generation);
}

/* ---- The way there --------------------------------------------------------------------------- */

static void end_early(struct generation *generation, const struct api_error *error)
{
    if (generation->exchange != NULL)
        end_failed(generation, error);
}

static void post_work(struct generation *generation, net_fn *fn)
{
    struct api_error error;
    hold(generation);
    if (worker_post(generation->server->worker, fn, generation))
        return;
    api_error_from(&error, &(struct error){.code = STATUS_MEMORY, .text = "out of memory"});
    end_early(generation, &error);
    let_go(generation);
}

/* Clients that may ask by any name see theirs. */
static const char *shown_name(const struct generation *generation)
{
    const char *asked = generation->call->model;
    return generation->server->options.any_model && asked != NULL ? asked : generation->model->name;
}

/* On the loop, with the reference of the acquisition. */
static void model_is_ready(void *context, const struct api_error *failure)
{
    struct generation *generation = context;
    const struct api_call *call = generation->call;
    struct api_error told;
    struct error error;
    if (failure != NULL) {
        told = *failure;
        /* Other requests, which waited for the same, may name other models. */
        if (generation->model->too_large && generation->exchange != NULL)
            memory_suggest(generation->model, generation->exchange, &told);
        end_early(generation, &told);
        let_go_here(generation);
        return;
    }
    generation->acquired = true;
    generation->away = generation->model->state == MODEL_AWAY;
    generation->shared = replica_is_shared(generation->model);
    if (call->has_keep_alive && !generation->away)
        generation->model->keep_alive_ms = call->keep_alive_ms;
    size_t n_choices = MAX(call->n_prompts, (size_t)1) * call->n_choices;
    generation->choices = calloc(n_choices, sizeof *generation->choices);
    enum status status =
        generation->choices == NULL
            ? error_memory(&error, n_choices * sizeof *generation->choices)
            : api_answer_open(&generation->answer, call, generation->model->engine->tokenizer,
                              shown_name(generation), rng_entropy(), time(NULL), &error);
    if (status != STATUS_OK) {
        api_error_from(&told, &error);
        end_early(generation, &told);
    } else if (generation->exchange != NULL) {
        generation->answer->load_ns = clock_now_ns() - generation->begin_ns;
        post_work(generation, submit);
    }
    let_go_here(generation);
}

/* Where none is named: the first that the key may use. */
static struct served_model *default_model(const struct generation *generation)
{
    struct server *server = generation->server;
    shelf_refresh(server);
    for (size_t i = 0; i < server->n_models; i++)
        if (models_visible(&server->models[i], generation->exchange))
            return &server->models[i];
    return NULL;
}

static bool choose_model(struct generation *generation, struct api_error *error)
{
    const char *name = generation->call->model;
    generation->model =
        name != NULL ? models_find(generation->server, name) : default_model(generation);
    if (generation->model == NULL && generation->server->options.any_model)
        generation->model = default_model(generation);
    if (generation->model == NULL) {
        models_unknown(generation->server, generation->exchange, name, error);
    } else if (!gateway_allows(generation->exchange, generation->model->name)) {
        gateway_forbid(generation->exchange, generation->model->name, error);
        generation->model = NULL;
    } else {
        generation->model->n_holders++;
        generation->use.model = generation->model->name;
        return true;
    }
    return false;
}

/* What the store says of the model, and then the server, where the client says nothing. */
static bool take_defaults(struct generation *generation, struct api_error *error)
{
    const struct store_model *stored = generation->model->stored;
    if (stored != NULL && api_call_defaults(generation->call, stored->system, stored->messages,
                                            stored->parameters, error) != STATUS_OK)
        return false;
    api_call_server_defaults(generation->call, &generation->server->options.defaults);
    return true;
}

/* On the loop, after read_call. */
static void call_is_read(void *context)
{
    struct generation *generation = context;
    struct api_error error;
    generation->reading = false;
    if (http_is_gone(generation->exchange)) {
        client_gone(generation);
    } else if (generation->failed) {
        end_early(generation, &generation->failure);
    } else if (!choose_model(generation, &error) || !take_defaults(generation, &error)) {
        end_early(generation, &error);
    } else if (generation->call->operation == API_SHOW) {
        post_work(generation, show);
    } else {
        http_body_free(generation->exchange);
        if (generation->call->stream)
            set_timer(generation, HOLD_HEADERS_MS);
        hold(generation);
        models_acquire(generation->model, model_is_ready, generation);
    }
    let_go_here(generation);
}

/* On the worker. */
static void read_call(void *context)
{
    struct generation *generation = context;
    struct api_error error;
    enum status status =
        generation->read(&generation->call, generation->operation, generation->body, &error);
    if (status == STATUS_OK && generation->call->input != NULL)
        status = response_follow(generation->server, generation->owner, generation->call, &error);
    if (status != STATUS_OK)
        fail(generation, &error);
    if (!net_loop_post(generation->server->loop, call_is_read, generation))
        let_go(generation);
}

void generate(struct server *server, struct http_exchange *exchange, call_reader *read,
              enum api_operation operation)
{
    struct api_error error = out_of_memory();
    struct gateway_use use;
    struct generation *generation = calloc(1, sizeof *generation);
    if (generation == NULL || !gateway_begin(server->gateway, exchange, &use, &error)) {
        reply_error(server, exchange, NULL, &error);
        free(generation);
        return;
    }
    *generation = (struct generation){.server = server,
                                      .exchange = exchange,
                                      .read = read,
                                      .operation = operation,
                                      .use = use,
                                      .body = http_body(exchange),
                                      .begin_ns = clock_now_ns(),
                                      .written_ns = clock_now_ns(),
                                      .reading = true,
                                      .n_references = 1};
    snprintf(generation->owner, sizeof generation->owner, "%s", gateway_owner(exchange));
    pthread_mutex_init(&generation->mutex, NULL);
    server_busy(server, true);
    http_on_gone(exchange, client_gone, generation);
    post_work(generation, read_call);
}
