/* Ranks of one instance in one process, over wires on loopback, and requests that reach the owner
 * as JSON: they are answered as by one engine, go on elsewhere when a rank is lost, and never hang.
 * The model is tiny and random. */
#include "../support/slow.h"
#include "../support/tokenizer_vocabularies.h"
#include "cluster/comm_links.h"
#include "cluster/rank.h"
#include "tiny_model.h"

#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <unistd.h>

#include <cmocka.h>

#define N_CTX 512
#define N_LAYERS 4
#define MAX_RANKS 4
#define MAX_TOKENS 256
#define MAX_TEXT (4 * MAX_TOKENS)
#define END_TOKEN 'E'

static const struct net_link_key key = {"consort-link/1:test:1", {1, 2, 3}};
static char model_path[64];
static uint32_t n_vocab;

/* ---- The model ------------------------------------------------------------------------------- */

static void put_layers(struct tiny_gguf *gguf)
{
    static const struct {
        const char *suffix;
        uint64_t n_cols, n_rows;
    } tensors[] = {
        {"attn_norm", 64, 1},  {"attn_q", 64, 64},      {"attn_k", 64, 32},
        {"attn_v", 64, 32},    {"attn_output", 64, 64}, {"ffn_norm", 64, 1},
        {"ffn_gate", 64, 128}, {"ffn_up", 64, 128},     {"ffn_down", 128, 64},
    };
    for (int layer = 0; layer < N_LAYERS; layer++)
        for (size_t i = 0; i < ARRAY_COUNT(tensors); i++) {
            char name[64];
            snprintf(name, sizeof name, "blk.%d.%s.weight", layer, tensors[i].suffix);
            tiny_tensor(gguf, name, tensors[i].n_cols, tensors[i].n_rows, 1);
        }
}

/* A llama with four heads and two KV heads, and a vocabulary of bytes. */
static void write_model(void)
{
    struct tiny_gguf gguf = {0};
    struct small_vocabulary v;
    small_bytes(&v, "gpt-2");
    n_vocab = (uint32_t)v.config.n_tokens;
    tiny_string(&gguf, "general.architecture", "llama");
    tiny_u32(&gguf, "llama.block_count", N_LAYERS);
    tiny_u32(&gguf, "llama.embedding_length", 64);
    tiny_u32(&gguf, "llama.context_length", 4096);
    tiny_u32(&gguf, "llama.attention.head_count", 4);
    tiny_u32(&gguf, "llama.attention.head_count_kv", 2);
    tiny_f32(&gguf, "llama.attention.layer_norm_rms_epsilon", 1e-5f);
    tiny_string(&gguf, "tokenizer.ggml.model", "gpt2");
    tiny_string(&gguf, "tokenizer.ggml.pre", "gpt-2");
    tiny_strings(&gguf, "tokenizer.ggml.tokens", v.tokens, v.config.n_tokens);
    tiny_i32s(&gguf, "tokenizer.ggml.token_type", v.types, v.config.n_tokens);
    tiny_strings(&gguf, "tokenizer.ggml.merges", v.merges, v.config.n_merges);
    tiny_u32(&gguf, "tokenizer.ggml.eos_token_id", END_TOKEN);
    tiny_tensor(&gguf, "token_embd.weight", 64, n_vocab, 1);
    tiny_tensor(&gguf, "output_norm.weight", 64, 1, 1);
    put_layers(&gguf);
    tiny_write(&gguf, model_path);
}

static struct model_options model_options(void)
{
    return (struct model_options){.n_ctx = N_CTX, .kv_format = QUANT_F16, .n_threads = 1};
}

/* ---- Answers --------------------------------------------------------------------------------- */

/* What came of one request. The mutex of the room guards it, where it is in one. */
struct answer {
    struct generation_feed feed;
    int32_t tokens[MAX_TOKENS];
    size_t n_tokens;
    char text[MAX_TEXT];
    size_t n_text;
    double logprobs; /* their sum, with the ids of the alternatives */
    bool done;
    struct generation_event last; /* its pointers are not to be followed */
    char stop[64], error[320];
};

static void on_event(void *context, const struct generation_event *event)
{
    struct answer *answer = context;
    assert_false(answer->done);
    assert_true(event->text.size < MAX_TEXT - answer->n_text);
    memcpy(answer->text + answer->n_text, event->text.size > 0 ? event->text.data : "",
           event->text.size);
    answer->n_text += event->text.size;
    if (event->kind == GENERATION_TOKEN) {
        assert_int_equal(event->index, answer->n_tokens);
        assert_true(answer->n_tokens < MAX_TOKENS);
        answer->tokens[answer->n_tokens++] = event->token;
        answer->logprobs += event->logprob;
        for (size_t i = 0; i < event->n_top; i++)
            answer->logprobs += event->top[i].token;
    }
    if (event->kind != GENERATION_FINISHED && event->kind != GENERATION_FAILED)
        return;
    answer->last = *event;
    if (event->kind == GENERATION_FAILED)
        snprintf(answer->error, sizeof answer->error, "%s", event->error->text);
    else if (event->reason == FINISH_STOP)
        snprintf(answer->stop, sizeof answer->stop, "%.*s", (int)event->stop.size,
                 event->stop.data);
    answer->done = true;
}

/* ---- A room with ranks ----------------------------------------------------------------------- */

struct room;

struct seat {
    struct room *room;
    uint32_t number;
    struct comm_mesh *mesh;
    struct cluster_rank *rank;
    /* Guarded by the room's mutex. */
    unsigned n_opened, n_broken;
    enum status status;
    char reason[320];
    bool closed;
};

struct room {
    struct net_loop *loop;
    struct net_link_server *server;
    pthread_t loop_thread;
    struct model_placement placement;
    uint32_t n_ranks, owner;
    struct seat seats[MAX_RANKS];

    pthread_mutex_t mutex;
    pthread_cond_t changed;
    struct answer *answers[64]; /* by work */
};

static void lock(struct room *room)
{
    pthread_mutex_lock(&room->mutex);
}

static void unlock(struct room *room)
{
    pthread_cond_broadcast(&room->changed);
    pthread_mutex_unlock(&room->mutex);
}

static void on_opened(void *context, enum status status, const char *reason)
{
    struct seat *seat = context;
    lock(seat->room);
    assert_false(seat->closed);
    seat->n_opened++;
    seat->status = status;
    snprintf(seat->reason, sizeof seat->reason, "%s", reason != NULL ? reason : "");
    unlock(seat->room);
}

static void on_broken(void *context, enum status status, const char *reason)
{
    struct seat *seat = context;
    lock(seat->room);
    assert_false(seat->closed);
    assert_non_null(reason);
    assert_int_equal(status, STATUS_LOST); /* nothing but losses is tested here */
    assert_int_equal(seat->n_opened, 1);
    seat->n_broken++;
    unlock(seat->room);
}

/* What another machine reads of it. */
static json_t *carried(json_t *json)
{
    if (json == NULL)
        return NULL;
    char *text = json_dumps(json, JSON_COMPACT);
    json_t *read = json_loads(text, 0, NULL);
    assert_non_null(read);
    free(text);
    json_decref(json);
    return read;
}

static void on_token(void *context, uint64_t work, uint32_t index, int32_t token, json_t *data)
{
    struct seat *seat = context;
    json_t *read = carried(data);
    lock(seat->room);
    assert_false(seat->closed);
    struct answer *answer = seat->room->answers[work];
    assert_true(generation_feed_token(&answer->feed, index, token, read));
    unlock(seat->room);
    json_decref(read);
}

static void on_end(void *context, uint64_t work, enum status status, const char *reason,
                   json_t *data)
{
    struct seat *seat = context;
    json_t *read = carried(data);
    lock(seat->room);
    assert_false(seat->closed);
    generation_feed_end(&seat->room->answers[work]->feed, status, reason, read);
    unlock(seat->room);
    json_decref(read);
}

static const struct cluster_rank_events rank_events = {on_opened, on_broken, on_token, on_end};

/* A wire from one rank to another: "to from". It may come when the mesh was given up already. */
static void take_wire(void *context, struct net_link *link, const struct net_hello *hello)
{
    struct room *room = context;
    unsigned to = 0, from = 0;
    assert_int_equal(sscanf(hello->info, "%u %u", &to, &from), 2);
    assert_true(to < room->n_ranks);
    struct net_wire *wire = net_link_detach(link);
    assert_non_null(wire);
    enum status status = comm_mesh_add(room->seats[to].mesh, from, wire, NULL);
    assert_true(status == STATUS_OK || status == STATUS_LOST);
}

static void no_message(void *context, struct net_link *link, uint8_t type, struct view message)
{
    (void)context, (void)link, (void)type, (void)message;
    fail_msg("no messages here");
}

static void no_down(void *context, struct net_link *link, enum net_link_fault fault,
                    const char *text)
{
    (void)context, (void)link, (void)fault;
    fail_msg("%s", text);
}

static bool find_key(void *context, struct view identity, uint8_t secret[NET_SECRET_BYTES])
{
    (void)context;
    memcpy(secret, key.secret, NET_SECRET_BYTES);
    return view_equal(identity, view_of(key.identity));
}

static void *run_loop(void *context)
{
    net_loop_run(context);
    return NULL;
}

static void open_network(struct room *room)
{
    static const struct net_link_events events = {take_wire, no_message, no_down, NULL};
    struct net_link_server_options options = {.link = {.events = &events, .context = room},
                                              .find_key = find_key};
    assert_int_equal(net_loop_open(&room->loop, NULL), STATUS_OK);
    assert_int_equal(net_link_server_open(&room->server, room->loop, "127.0.0.1:0", &options, NULL),
                     STATUS_OK);
    for (uint32_t r = 0; r < room->n_ranks; r++)
        assert_int_equal(comm_mesh_open(&room->seats[r].mesh, r, room->n_ranks, NULL), STATUS_OK);
    assert_int_equal(pthread_create(&room->loop_thread, NULL, run_loop, room->loop), 0);
}

static void connect_ranks(struct room *room)
{
    char address[NET_ADDRESS_BYTES];
    snprintf(address, sizeof address, "127.0.0.1:%u", net_link_server_port(room->server));
    for (uint32_t from = 1; from < room->n_ranks; from++)
        for (uint32_t to = 0; to < from; to++) {
            struct error error = {0};
            struct net_wire_options options = {.hello = {.purpose = NET_DATA}};
            snprintf(options.hello.info, sizeof options.hello.info, "%u %u", to, from);
            options.deadline_ns = clock_now_ns() + 60000000000u;
            struct net_wire *wire;
            if (net_wire_connect(&wire, address, &key, &options, NULL, NULL, &error) != STATUS_OK ||
                comm_mesh_add(room->seats[from].mesh, to, wire, &error) != STATUS_OK)
                fail_msg("%s", error.text);
        }
}

static void open_rank(struct room *room, uint32_t r, const char *path)
{
    struct error error = {0};
    struct seat *seat = &room->seats[r];
    struct cluster_rank_options options = {.path = path,
                                           .placement = room->placement,
                                           .rank = r,
                                           .owner = r == room->owner,
                                           .mesh = seat->mesh,
                                           .model = model_options(),
                                           .events = &rank_events,
                                           .context = seat};
    if (cluster_rank_open(&seat->rank, &options, &error) != STATUS_OK)
        fail_msg("%s", error.text);
}

static void prepare_room(struct room *room, const struct model_placement *placement)
{
    memset(room, 0, sizeof *room);
    pthread_mutex_init(&room->mutex, NULL);
    pthread_cond_init(&room->changed, NULL);
    room->placement = *placement;
    room->n_ranks = model_placement_ranks(placement);
    room->owner = model_placement_owner(placement);
    assert_true(room->n_ranks <= MAX_RANKS);
    for (uint32_t r = 0; r < room->n_ranks; r++)
        room->seats[r] = (struct seat){.room = room, .number = r};
    if (room->n_ranks > 1)
        open_network(room);
}

static void wait_opened(struct room *room)
{
    lock(room);
    for (uint32_t r = 0; r < room->n_ranks; r++)
        while (room->seats[r].n_opened == 0)
            pthread_cond_wait(&room->changed, &room->mutex);
    unlock(room);
}

static void open_room(struct room *room, const struct model_placement *placement)
{
    prepare_room(room, placement);
    for (uint32_t r = 0; r < room->n_ranks; r++)
        open_rank(room, r, model_path);
    if (room->n_ranks > 1)
        connect_ranks(room);
    wait_opened(room);
    for (uint32_t r = 0; r < room->n_ranks; r++)
        if (room->seats[r].status != STATUS_OK)
            fail_msg("rank %u: %s", r, room->seats[r].reason);
}

static void close_rank(struct seat *seat)
{
    cluster_rank_close(seat->rank);
    seat->rank = NULL;
    lock(seat->room);
    seat->closed = true;
    unlock(seat->room);
}

static void close_room(struct room *room)
{
    if (room->n_ranks > 1) { /* first: a wire that still comes would look for its rank's mesh */
        net_loop_stop(room->loop);
        pthread_join(room->loop_thread, NULL);
        net_link_server_close(room->server);
        net_loop_close(room->loop);
    }
    for (uint32_t r = 0; r < room->n_ranks; r++)
        close_rank(&room->seats[r]);
    pthread_cond_destroy(&room->changed);
    pthread_mutex_destroy(&room->mutex);
}

/* ---- Work ------------------------------------------------------------------------------------ */

static struct answer *new_answer(void)
{
    struct answer *answer = calloc(1, sizeof *answer);
    assert_non_null(answer);
    answer->feed = (struct generation_feed){.callback = on_event, .context = answer};
    return answer;
}

static void free_answer(struct answer *answer)
{
    generation_feed_free(&answer->feed);
    free(answer);
}

/* Gives the owner a request; what was drawn of it before is in the answer. */
static void start(struct room *room, uint64_t work, const json_t *payload, struct answer *answer)
{
    struct error error = {0};
    lock(room);
    room->answers[work] = answer;
    unlock(room);
    if (cluster_rank_start(room->seats[room->owner].rank, work, payload, answer->tokens,
                           answer->n_tokens, &error) != STATUS_OK)
        fail_msg("%s", error.text);
}

static void wait_tokens(struct room *room, const struct answer *answer, size_t n)
{
    lock(room);
    while (!answer->done && answer->n_tokens < n)
        pthread_cond_wait(&room->changed, &room->mutex);
    unlock(room);
}

static void wait_done(struct room *room, const struct answer *answer)
{
    wait_tokens(room, answer, SIZE_MAX);
}

/* The number-th of some requests, no two alike. */
static json_t *make_payload(uint64_t number, uint32_t max_tokens)
{
    static const struct view stops[] = {{"AA", 2}, {"\n", 1}, {"Q\0", 2}};
    int32_t tokens[300];
    size_t n = 1 + rng_u64(number, 0, 3) % 280;
    for (size_t i = 0; i < n; i++)
        tokens[i] = (int32_t)(rng_u64(number % 3, i, 4) % 256); /* some begin alike */
    struct generation_request *request = generation_request_open(tokens, n);
    assert_non_null(request);
    request->sampling.seed = number;
    request->sampling.temperature = number % 3 == 0 ? 0 : 1;
    request->sampling.repeat_penalty = 1.1f;
    request->max_tokens = max_tokens;
    request->ignore_end = number % 2 == 0;
    request->want_logprobs = number % 4 == 1;
    request->n_top_logprobs = 2;
    if (number % 5 == 2) {
        request->stops = stops;
        request->n_stops = ARRAY_COUNT(stops);
    }
    if (number % 5 == 3)
        request->grammar_asked = json_pack("{s:s}", "gbnf", "root ::= ([a-f]{3} \"-\")+ [0-9]{8}");
    if (number % 5 == 4)
        request->grammar_asked =
            json_loads("{\"schema\": {\"type\": \"array\", \"items\": {\"type\": \"integer\"}},"
                       " \"chat\": true}",
                       0, NULL);
    json_t *payload = carried(generation_request_write(request));
    generation_request_close(request);
    return payload;
}

/* What one engine answers. */
static struct answer *answer_alone(const json_t *payload)
{
    struct engine *engine;
    struct scheduler *scheduler;
    struct generation_request *request;
    struct error error = {0};
    struct model_options options = model_options();
    struct answer *answer = new_answer();
    assert_int_equal(engine_open(&engine, model_path,
                                 ENGINE_MODEL | ENGINE_TOKENIZER | ENGINE_TEMPLATE, &options,
                                 &error),
                     STATUS_OK);
    assert_int_equal(scheduler_open(&scheduler, engine, NULL, &error), STATUS_OK);
    assert_int_equal(generation_request_read(&request, payload, &error), STATUS_OK);
    struct grammar *grammar = NULL;
    if (request->grammar_asked != NULL)
        assert_int_equal(engine_grammar(engine, request->grammar_asked, &grammar, &error),
                         STATUS_OK);
    request->grammar = grammar;
    assert_int_equal(scheduler_submit(scheduler, request, on_event, answer, NULL, &error),
                     STATUS_OK);
    struct scheduler_metrics metrics;
    do {
        usleep(1000);
        scheduler_metrics(scheduler, &metrics);
    } while (metrics.n_finished + metrics.n_failed == 0);
    scheduler_close(scheduler);
    grammar_release(grammar);
    engine_close(engine);
    assert_true(answer->done);
    return answer;
}

static void compare(const struct answer *a, const struct answer *b)
{
    assert_int_equal(a->last.kind, GENERATION_FINISHED);
    assert_int_equal(a->n_tokens, b->n_tokens);
    assert_memory_equal(a->tokens, b->tokens, a->n_tokens * sizeof *a->tokens);
    assert_int_equal(a->n_text, b->n_text);
    assert_memory_equal(a->text, b->text, a->n_text);
    assert_int_equal(a->last.reason, b->last.reason);
    assert_int_equal(a->last.end_token, b->last.end_token);
    assert_string_equal(a->stop, b->stop);
    assert_int_equal(a->last.usage.n_prompt, b->last.usage.n_prompt);
    assert_int_equal(a->last.usage.n_output, b->last.usage.n_output);
    double difference = a->logprobs - b->logprobs;
    assert_true(difference < 0.01 && difference > -0.01);
}

/* ---- Placements ------------------------------------------------------------------------------ */

static struct model_placement stages_of(uint32_t n_stages, uint32_t n_shards)
{
    struct model_placement placement = {.n_stages = n_stages};
    for (uint32_t s = 0; s < n_stages; s++) {
        struct model_stage *stage = &placement.stages[s];
        stage->first_layer = s * N_LAYERS / n_stages;
        stage->end_layer = (s + 1) * N_LAYERS / n_stages;
        stage->n_shards = n_shards;
        for (uint32_t i = 0; i < n_shards; i++)
            stage->shares[i] = (uint16_t)(3 + i % 2);
    }
    return placement;
}

/* ---- Tests ----------------------------------------------------------------------------------- */

static void answers_as_alone(const struct model_placement *placement)
{
    enum { MOST = 10 };
    uint64_t n = test_every() > 2 ? 4 : MOST;
    struct room room;
    struct answer *answers[MOST];
    open_room(&room, placement);
    for (uint64_t i = 0; i < n; i++) {
        json_t *payload = make_payload(i, 40);
        answers[i] = new_answer();
        start(&room, i, payload, answers[i]);
        if (i % 4 == 0)
            wait_done(&room, answers[i]);
        json_decref(payload);
    }
    uint64_t steps;
    bool waiting = true;
    for (uint64_t i = 0; i < n; i++) {
        json_t *payload = make_payload(i, 40);
        wait_done(&room, answers[i]);
        struct answer *alone = answer_alone(payload);
        compare(answers[i], alone);
        free_answer(alone);
        free_answer(answers[i]);
        json_decref(payload);
    }
    for (uint32_t r = 0; r < room.n_ranks; r++) {
        while (waiting) { /* nothing is asked for any more */
            cluster_rank_steps(room.seats[r].rank, &steps, &waiting);
            usleep(waiting ? 1000 : 0);
        }
        cluster_rank_steps(room.seats[r].rank, &steps, &waiting);
        assert_true(steps > 40);
        waiting = true;
        lock(&room);
        assert_int_equal(room.seats[r].n_broken, 0);
        unlock(&room);
    }
    close_room(&room);
}

static void test_rank_alone(void **state)
{
    (void)state;
    struct model_placement placement = stages_of(1, 1);
    answers_as_alone(&placement);
}

static void test_rank_stages(void **state)
{
    (void)state;
    struct model_placement placement = stages_of(2, 1);
    answers_as_alone(&placement);
    placement = stages_of(3, 1);
    answers_as_alone(&placement);
}

static void test_rank_shards(void **state)
{
    (void)state;
    struct model_placement placement = stages_of(1, 2);
    answers_as_alone(&placement);
    placement = stages_of(1, 3);
    answers_as_alone(&placement);
    placement = stages_of(2, 2);
    answers_as_alone(&placement);
}

static void wait_broken(struct room *room)
{
    lock(room);
    for (uint32_t r = 0; r < room->n_ranks; r++)
        while (room->seats[r].n_broken == 0)
            pthread_cond_wait(&room->changed, &room->mutex);
    unlock(room);
}

/* Answers begin with one set of ranks, which is lost when some of them have `at` tokens, and end
 * with another. */
static void lose(const struct model_placement *before, const struct model_placement *after,
                 uint32_t lost, size_t at)
{
    enum { N = 3, LENGTH = 120 };
    struct room rooms[2];
    struct answer *answers[N];
    json_t *payloads[N];
    open_room(&rooms[0], before);
    for (uint64_t i = 0; i < N; i++) {
        payloads[i] = make_payload(6 * i, LENGTH);
        answers[i] = new_answer();
        start(&rooms[0], i, payloads[i], answers[i]);
    }
    wait_tokens(&rooms[0], answers[1], at);
    if (lost == UINT32_MAX)
        close_rank(&rooms[0].seats[rooms[0].owner]); /* as when its machine is gone */
    else
        cluster_rank_abort(rooms[0].seats[lost].rank);
    if (lost != UINT32_MAX) {
        wait_broken(&rooms[0]);
        struct answer none = {0};
        start(&rooms[0], 9, payloads[0], &none); /* is taken, and never ends */
        for (uint32_t r = 0; r < rooms[0].n_ranks; r++)
            assert_int_equal(rooms[0].seats[r].n_broken, 1);
        assert_false(none.done);
    }
    close_room(&rooms[0]);
    open_room(&rooms[1], after);
    for (uint64_t i = 0; i < N; i++)
        if (!answers[i]->done)
            start(&rooms[1], 20 + i, payloads[i], answers[i]);
    for (uint64_t i = 0; i < N; i++) {
        wait_done(&rooms[1], answers[i]);
        struct answer *alone = answer_alone(payloads[i]);
        compare(answers[i], alone);
        free_answer(alone);
        free_answer(answers[i]);
        json_decref(payloads[i]);
    }
    close_room(&rooms[1]);
}

static void test_rank_closes_at_work(void **state)
{
    (void)state;
    struct model_placement one = stages_of(1, 1);
    lose(&one, &one, UINT32_MAX, 1);
    lose(&one, &one, UINT32_MAX, 30);
}

static void test_rank_is_lost(void **state)
{
    (void)state;
    struct model_placement one = stages_of(1, 1), two = stages_of(2, 1), shards = stages_of(1, 3);
    lose(&two, &one, 0, 20);
    lose(&shards, &two, 2, 1);
    lose(&shards, &shards, 0, 60);
    lose(&two, &shards, UINT32_MAX, 33);
}

static void test_rank_cancels(void **state)
{
    (void)state;
    enum { N = 8 };
    struct room room;
    struct answer *answers[N];
    struct model_placement placement = stages_of(1, 1);
    open_room(&room, &placement);
    for (uint64_t i = 0; i < N; i++) {
        json_t *payload = make_payload(6 * i, 100);
        answers[i] = new_answer();
        start(&room, i, payload, answers[i]);
        json_decref(payload);
        if (i % 4 == 1) /* at once, else in the middle */
            cluster_rank_cancel(room.seats[0].rank, i);
    }
    wait_tokens(&room, answers[3], 10);
    cluster_rank_cancel(room.seats[0].rank, 3);
    cluster_rank_cancel(room.seats[0].rank, 3);
    cluster_rank_cancel(room.seats[0].rank, 63); /* names nothing */
    for (uint64_t i = 0; i < N; i++)
        if (i % 4 != 1 && i != 3)
            wait_done(&room, answers[i]);
    bool waiting = true;
    uint64_t steps;
    while (waiting) {
        cluster_rank_steps(room.seats[0].rank, &steps, &waiting);
        usleep(1000);
    }
    close_room(&room);
    for (uint64_t i = 0; i < N; i++) {
        assert_int_equal(answers[i]->done, i % 4 != 1 && i != 3);
        free_answer(answers[i]);
    }
}

static void test_rank_refuses(void **state)
{
    (void)state;
    struct room room;
    struct error error = {0};
    struct model_placement placement = stages_of(1, 1);
    open_room(&room, &placement);
    json_t *payload = make_payload(0, 10);
    json_object_del(payload, "tokens");
    assert_int_equal(cluster_rank_start(room.seats[0].rank, 1, payload, NULL, 0, &error),
                     STATUS_INVALID);
    json_decref(payload);
    /* What only the engine can say comes as the end. */
    const struct {
        const char *name;
        json_t *value;
        enum status status;
    } cases[] = {
        {"grammar", json_string("{\"gbnf\": \"root ::= [\"}"), STATUS_INVALID},
        {"grammar", json_string("{\"tools\": []}"), STATUS_INVALID},
        {"tokens", json_pack("[i]", n_vocab), STATUS_INVALID},
    };
    for (size_t i = 0; i < ARRAY_COUNT(cases); i++) {
        struct answer *answer = new_answer();
        payload = make_payload(0, 10);
        json_object_set_new(payload, cases[i].name, cases[i].value);
        start(&room, i, payload, answer);
        wait_done(&room, answer);
        assert_int_equal(answer->last.kind, GENERATION_FAILED);
        free_answer(answer);
        json_decref(payload);
    }
    struct answer *answer = new_answer();
    json_t *tokens = json_array();
    for (size_t i = 0; i < N_CTX; i++)
        json_array_append_new(tokens, json_integer(1));
    payload = make_payload(0, 10);
    json_object_set_new(payload, "tokens", tokens);
    start(&room, 9, payload, answer);
    wait_done(&room, answer);
    assert_non_null(strstr(answer->error, "the prompt has 512 tokens"));
    free_answer(answer);
    json_decref(payload);
    close_room(&room);
}

/* Every rank learns that one cannot open; none waits for ever. */
static void test_rank_cannot_open(void **state)
{
    (void)state;
    struct room room;
    struct model_placement placement = stages_of(1, 1);
    prepare_room(&room, &placement);
    open_rank(&room, 0, "/nowhere/model.gguf");
    wait_opened(&room);
    assert_int_equal(room.seats[0].n_opened, 1);
    assert_true(room.seats[0].status != STATUS_OK);
    assert_non_null(strstr(room.seats[0].reason, "/nowhere/model.gguf"));
    struct error error = {0};
    json_t *payload = make_payload(0, 10);
    assert_int_equal(cluster_rank_start(room.seats[0].rank, 1, payload, NULL, 0, &error),
                     STATUS_INVALID);
    json_decref(payload);
    close_room(&room);
    placement = stages_of(1, 3);
    for (uint32_t wrong = 0; wrong < 3; wrong++) {
        prepare_room(&room, &placement);
        for (uint32_t r = 0; r < 3; r++)
            open_rank(&room, r, r == wrong ? "/nowhere/model.gguf" : model_path);
        connect_ranks(&room);
        wait_opened(&room);
        assert_true(room.seats[wrong].status != STATUS_OK);
        assert_true(room.seats[room.owner].status != STATUS_OK);
        lock(&room);
        for (uint32_t r = 0; r < 3; r++) /* one that was done before has lost the others then */
            while (room.seats[r].status == STATUS_OK && room.seats[r].n_broken == 0)
                pthread_cond_wait(&room.changed, &room.mutex);
        unlock(&room);
        close_room(&room);
    }
}

/* Closed while it waits for others, or opens. */
static void test_rank_closes_while_opening(void **state)
{
    (void)state;
    struct room room;
    struct model_placement placement = stages_of(2, 1);
    prepare_room(&room, &placement); /* nobody connects */
    open_rank(&room, 0, model_path);
    open_rank(&room, 1, model_path);
    close_room(&room);
    prepare_room(&room, &placement);
    open_rank(&room, 0, model_path);
    open_rank(&room, 1, model_path);
    connect_ranks(&room);
    close_room(&room);
    prepare_room(&room, &placement);
    open_rank(&room, 0, model_path);
    open_rank(&room, 1, model_path);
    cluster_rank_abort(room.seats[0].rank);
    cluster_rank_abort(room.seats[1].rank);
    wait_opened(&room);
    assert_int_equal(room.seats[0].status, STATUS_LOST);
    close_room(&room);
}

static void expect_no_placement(const char *text)
{
    struct model_placement placement;
    struct model_options options = {.n_ctx = 7};
    struct error error = {0};
    json_t *json = json_loads(text, 0, NULL);
    assert_non_null(json);
    assert_int_equal(cluster_placement_read(json, &placement, &options, &error), STATUS_INVALID);
    assert_int_equal(options.n_ctx, 7);
    json_decref(json);
}

static void test_rank_placements(void **state)
{
    (void)state;
    struct model_placement placement = stages_of(3, 5), read;
    struct model_options options = {.n_ctx = 4096, .n_cache = 1ull << 33, .kv_format = QUANT_Q8_0};
    struct model_options got = {.n_threads = 3};
    struct error error = {0};
    memset(placement.stages[1].shares, 0, sizeof placement.stages[1].shares);
    json_t *json = carried(cluster_placement_write(&placement, &options));
    assert_int_equal(cluster_placement_read(json, &read, &got, &error), STATUS_OK);
    assert_memory_equal(&placement, &read, sizeof read);
    assert_int_equal(got.n_ctx, 4096);
    assert_true(got.n_cache == 1ull << 33);
    assert_int_equal(got.kv_format, QUANT_Q8_0);
    assert_int_equal(got.n_threads, 3);
    json_decref(json);
#define REST "\"n_ctx\": 1, \"n_cache\": 0, \"kv\": \"F16\"}"
#define STAGE(first, end, shares) "{\"first\": " first ", \"end\": " end ", \"shares\": " shares "}"
    static const char *const wrong[] = {
        "{}",
        "{\"stages\": [], " REST,
        "{\"stages\": {}, " REST,
        "{\"stages\": [1], " REST,
        "{\"stages\": [" STAGE("1", "2", "[1]") "], " REST,
        "{\"stages\": [" STAGE("0", "0", "[1]") "], " REST,
        "{\"stages\": [" STAGE("0", "70000", "[1]") "], " REST,
        "{\"stages\": [" STAGE("0", "2", "[1]") ", " STAGE("1", "3", "[1]") "], " REST,
        "{\"stages\": [" STAGE("0", "2", "[]") "], " REST,
        "{\"stages\": [" STAGE("0", "2", "[1, 0]") "], " REST,
        "{\"stages\": [" STAGE("0", "2", "[65536]") "], " REST,
        "{\"stages\": [" STAGE("0", "2", "[\"1\"]") "], " REST,
        "{\"stages\": [" STAGE("0", "2",
                               "[1]") "], \"n_ctx\": 1, \"n_cache\": 0, \"kv\": \"Q4_0\"}",
        "{\"stages\": [" STAGE("0", "2",
                               "[1]") "], \"n_ctx\": -1, \"n_cache\": 0, \"kv\": \"F16\"}",
        "{\"stages\": [" STAGE("0", "2", "[1]") "], \"n_ctx\": 1, \"kv\": \"F16\"}",
    };
    for (size_t i = 0; i < ARRAY_COUNT(wrong); i++)
        expect_no_placement(wrong[i]);
}

static int prepare_all(void **state)
{
    (void)state;
    write_model();
    return 0;
}

static int remove_all(void **state)
{
    (void)state;
    return unlink(model_path);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rank_placements),
        cmocka_unit_test(test_rank_alone),
        cmocka_unit_test(test_rank_cancels),
        cmocka_unit_test(test_rank_refuses),
        cmocka_unit_test(test_rank_closes_at_work),
        cmocka_unit_test(test_rank_cannot_open),
        cmocka_unit_test(test_rank_stages),
        cmocka_unit_test(test_rank_shards),
        cmocka_unit_test(test_rank_is_lost),
        cmocka_unit_test(test_rank_closes_while_opening),
    };
    return cmocka_run_group_tests_name("rank", tests, prepare_all, remove_all);
}
