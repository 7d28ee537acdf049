#include "net/http_internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

enum {
    MAX_WAITING_INPUT = 64 << 10,  /* pipelined bytes that are read ahead of an answer */
    MAX_WAITING_OUTPUT = 64 << 10, /* answers not taken yet, beyond which the next request waits */
    LINGER_MS = 2000,
    PROBE_FIRST_MS = 1,
    PROBE_LAST_MS = 128,
    BODY_BYTES_A_SECOND = 16 << 10,
};

static void on_readable(evutil_socket_t fd, short what, void *context);
static void on_writable(evutil_socket_t fd, short what, void *context);

/* ---- Opening and closing ---- */

static void go_idle(struct connection *c, unsigned timeout_ms)
{
    c->state = CONNECTION_IDLE;
    c->idle_since_ms = server_now_ms();
    c->deadline_ms = c->idle_since_ms + timeout_ms;
    server_add_idle(c->server, c);
}

static void note_peer(struct connection *c, const struct sockaddr *peer)
{
    c->peer_family = peer->sa_family;
    if (peer->sa_family == AF_INET) {
        const struct sockaddr_in *v4 = (const struct sockaddr_in *)peer;
        c->peer_port = ntohs(v4->sin_port);
        memcpy(c->peer_address, &v4->sin_addr, 4);
    } else if (peer->sa_family == AF_INET6) {
        const struct sockaddr_in6 *v6 = (const struct sockaddr_in6 *)peer;
        c->peer_port = ntohs(v6->sin6_port);
        memcpy(c->peer_address, &v6->sin6_addr, 16);
    }
}

bool connection_open(struct http_server *server, int fd, const struct sockaddr *peer)
{
    struct connection *c = calloc(1, sizeof *c);
    if (c == NULL) {
        evutil_closesocket(fd);
        return false;
    }
    if (!net_stream_open(&c->stream, server->base, fd, server->tls, on_readable, on_writable, c)) {
        free(c);
        return false;
    }
    c->server = server;
    note_peer(c, peer);
    c->next = server->connections;
    if (c->next != NULL)
        c->next->previous = c;
    server->connections = c;
    server->n_connections++;
    go_idle(c, server->options.request_timeout_ms);
    return true;
}

/* The exchange goes on without its client. */
static void orphan(struct http_exchange *exchange)
{
    exchange->connection->server->body_bytes -= exchange->counted_bytes;
    exchange->counted_bytes = 0;
    exchange->connection = NULL;
}

void connection_close(struct connection *c)
{
    struct http_server *server = c->server;
    struct http_exchange *exchange = c->exchange;
    bool answering = c->state == CONNECTION_ANSWERING;
    server_remove_idle(server, c);
    if (exchange != NULL) {
        orphan(exchange);
        if (!answering)
            exchange_free(exchange);
    }
    if (c->next != NULL)
        c->next->previous = c->previous;
    if (c->previous != NULL)
        c->previous->next = c->next;
    else
        server->connections = c->next;
    server->n_connections--;
    net_timer_cancel(c->probe);
    net_stream_close(&c->stream);
    buffer_free(&c->input);
    free(c);
    server_connection_left(server);
    if (exchange != NULL && answering && exchange->gone != NULL) {
        net_fn *gone = exchange->gone;
        exchange->gone = NULL;
        gone(exchange->gone_context);
    }
}

void connection_doom(struct connection *c)
{
    c->doomed = true;
    net_stream_wake(&c->stream);
}

static void linger(struct connection *c)
{
    c->state = CONNECTION_LINGERING;
    c->deadline_ms = server_now_ms() + LINGER_MS;
    net_stream_shutdown(&c->stream);
    net_stream_set_reading(&c->stream, true);
    if (c->half_closed)
        connection_doom(c);
}

void connection_finish(struct connection *c)
{
    server_remove_idle(c->server, c);
    c->state = CONNECTION_FLUSHING;
    c->deadline_ms = 0;
    buffer_free(&c->input);
    if (net_stream_pending(&c->stream) == 0)
        linger(c);
    else
        net_stream_set_reading(&c->stream, false);
}

/* ---- Requests ---- */

static struct http_exchange *open_exchange(struct connection *c)
{
    struct http_server *server = c->server;
    struct http_exchange *exchange = server->spare;
    if (exchange != NULL) {
        server->spare = exchange->next_spare;
        server->n_spare--;
        struct http_request request = exchange->request;
        struct buffer fields = exchange->fields;
        buffer_clear(&fields);
        *exchange = (struct http_exchange){.request = request, .fields = fields};
    } else {
        exchange = calloc(1, sizeof *exchange);
        if (exchange == NULL)
            return NULL;
    }
    http_request_begin(&exchange->request, &server->limits);
    exchange->connection = c;
    exchange->tls = c->stream.ssl != NULL;
    exchange->peer_family = c->peer_family;
    exchange->peer_port = c->peer_port;
    memcpy(exchange->peer_address, c->peer_address, sizeof c->peer_address);
    return exchange;
}

static bool begin_request(struct connection *c)
{
    c->exchange = open_exchange(c);
    if (c->exchange == NULL) {
        connection_doom(c);
        return false;
    }
    server_remove_idle(c->server, c);
    c->state = CONNECTION_RECEIVING;
    c->deadline_ms = server_now_ms() + c->server->options.request_timeout_ms;
    if (c->wrong_port)
        http_request_fail(&c->exchange->request, 400, "This port speaks https, not http.");
    return true;
}

/* Answers a request that the handler does not see. */
static void refuse(struct connection *c)
{
    struct http_exchange *exchange = c->exchange;
    const struct http_request *request = &exchange->request;
    const struct http_options *options = &c->server->options;
    struct buffer body = {0};
    if (options->refusal != NULL)
        options->refusal(options->context, exchange, request->error_status, request->error_text,
                         &body);
    else
        buffer_printf(&body, "{\"error\":{\"message\":\"%s\"}}", request->error_text);
    static const struct http_field retry[] = {{"Retry-After", "1"}, {NULL, NULL}};
    c->state = CONNECTION_ANSWERING;
    exchange->close = true;
    exchange->head_only = view_equal(http_method(exchange), view_of("HEAD"));
    http_reply(exchange, request->error_status, "application/json",
               (struct view){body.size > 0 ? body.data : "", body.size},
               request->error_status == 503 ? retry : NULL);
    buffer_free(&body);
}

static void call_handler(struct connection *c)
{
    struct http_exchange *exchange = c->exchange;
    const struct http_options *options = &c->server->options;
    c->state = CONNECTION_ANSWERING;
    c->deadline_ms = 0;
    exchange->head_only = view_equal(http_method(exchange), view_of("HEAD"));
    exchange->close = !exchange->request.keep_alive;
    options->handler(options->context, exchange);
}

static void expect_continue(struct connection *c)
{
    struct http_request *request = &c->exchange->request;
    static const char text[] = "HTTP/1.1 100 Continue\r\n\r\n";
    request->expects_continue = false;
    /* Who sent the body already does not wait for leave. */
    if (request->body.size == 0)
        net_stream_write(&c->stream, &(struct view){text, sizeof text - 1}, 1);
}

/* The memory of all bodies is bounded. */
static void count_body(struct connection *c)
{
    struct http_server *server = c->server;
    struct http_exchange *exchange = c->exchange;
    size_t now = exchange->request.body.size;
    server->body_bytes += now - exchange->counted_bytes;
    exchange->counted_bytes = now;
    if (server->body_bytes > server->options.all_body_bytes && now > 0)
        http_request_fail(&exchange->request, 503,
                          "The requests of all clients together are too large; try again.");
}

/* Whether the next request may be read: its predecessor is answered, and the answers are taken. */
static bool may_process(const struct connection *c)
{
    return c->state <= CONNECTION_RECEIVING && !c->doomed &&
           net_stream_pending(&c->stream) <= MAX_WAITING_OUTPUT;
}

/* Takes requests out of data until one waits for its answer; returns how many bytes that took. An
 * answer given at once lets it go on, without recursion. */
static size_t process(struct connection *c, const char *data, size_t size)
{
    size_t used = 0;
    c->processing = true;
    while (used < size && may_process(c)) {
        if (c->exchange == NULL && !begin_request(c))
            break;
        struct http_request *request = &c->exchange->request;
        bool had_head = request->stage > HTTP_FIELDS;
        used += http_request_feed(request, data + used, size - used);
        if (!had_head && request->stage > HTTP_FIELDS)
            c->deadline_ms = server_now_ms() + c->server->options.request_timeout_ms;
        if (request->stage != HTTP_FAILED)
            count_body(c);
        if (request->expects_continue && request->stage > HTTP_FIELDS &&
            request->stage < HTTP_DONE && used == size)
            expect_continue(c);
        if (request->stage == HTTP_FAILED)
            refuse(c);
        else if (request->stage == HTTP_DONE)
            call_handler(c);
    }
    c->processing = false;
    return used;
}

/* Goes on with what came while an answer was under way or not taken. */
static void process_waiting(struct connection *c)
{
    struct buffer waiting = c->input;
    size_t used = c->input_used;
    c->input = (struct buffer){0};
    c->input_used = 0;
    if (used < waiting.size && may_process(c))
        used += process(c, waiting.data + used, waiting.size - used);
    if (used < waiting.size && c->state <= CONNECTION_ANSWERING) {
        c->input = waiting;
        c->input_used = used;
    } else {
        buffer_free(&waiting);
    }
    size_t left = c->input.size - c->input_used;
    if (c->half_closed && left == 0 && c->state <= CONNECTION_RECEIVING)
        connection_finish(c);
    else if (!c->half_closed && c->state <= CONNECTION_ANSWERING)
        net_stream_set_reading(&c->stream, left < MAX_WAITING_INPUT);
}

void connection_answered(struct connection *c)
{
    struct http_exchange *exchange = c->exchange;
    struct http_server *server = c->server;
    bool last = exchange->close || c->stream.broken;
    server->body_bytes -= exchange->counted_bytes;
    c->exchange = NULL;
    net_timer_cancel(c->probe);
    c->probe = NULL;
    if (server->n_spare < MAX_SPARE) {
        /* Gives back what is large; the next request begins with the rest. */
        http_request_begin(&exchange->request, &server->limits);
        exchange->next_spare = server->spare;
        server->spare = exchange;
        server->n_spare++;
    } else {
        exchange_free(exchange);
    }
    if (last || server->draining)
        connection_finish(c);
    else
        go_idle(c, server->options.idle_timeout_ms);
    if (!c->processing && !last)
        process_waiting(c);
}

/* ---- Half-closed clients ---- */

static void on_probe(void *context)
{
    struct connection *c = context;
    c->probe = NULL;
    if (net_stream_error(&c->stream) != 0) {
        connection_close(c);
        return;
    }
    c->probe_ms = MIN(c->probe_ms * 2, (uint32_t)PROBE_LAST_MS);
    c->probe = net_loop_after(c->server->loop, c->probe_ms, on_probe, c);
    if (c->probe == NULL)
        connection_close(c);
}

/* The client sends nothing more. If it only closed its sending side it still waits for the answer;
 * if it left, its system refuses what we send, and the probe learns of that. */
static void on_end(struct connection *c)
{
    c->half_closed = true;
    net_stream_set_reading(&c->stream, false);
    if (c->state <= CONNECTION_RECEIVING) {
        /* Earlier answers may not be taken yet, and requests may wait for that. */
        if (c->input.size == c->input_used)
            connection_finish(c);
        return;
    }
    if (c->state != CONNECTION_ANSWERING || c->stream.ssl != NULL || !exchange_probe(c->exchange)) {
        connection_close(c);
        return;
    }
    c->probe_ms = PROBE_FIRST_MS;
    c->probe = net_loop_after(c->server->loop, c->probe_ms, on_probe, c);
    if (c->probe == NULL)
        connection_close(c);
}

/* ---- Events ---- */

static void on_input(struct connection *c, const char *data, size_t size)
{
    struct buffer *input = &c->input;
    size_t used = input->size == 0 && may_process(c) ? process(c, data, size) : 0;
    if (used == size || c->state > CONNECTION_ANSWERING)
        return;
    if (c->input_used > 0) {
        input->size -= c->input_used;
        memmove(input->data, input->data + c->input_used, input->size);
        c->input_used = 0;
    }
    if (!buffer_append(input, data + used, size - used))
        connection_doom(c);
    else if (input->size >= MAX_WAITING_INPUT)
        net_stream_set_reading(&c->stream, false);
}

static void on_readable(evutil_socket_t fd, short what, void *context)
{
    struct connection *c = context;
    (void)fd, (void)what;
    if (c->doomed || c->stream.broken) {
        connection_close(c);
        return;
    }
    if (!c->stream.reading)
        return;
    size_t count = 0;
    switch (net_stream_read(&c->stream, c->server->scratch, SCRATCH_BYTES, &count)) {
    case STREAM_DATA:
        on_input(c, c->server->scratch, count);
        break;
    case STREAM_LATER:
        break;
    case STREAM_END:
        on_end(c);
        break;
    case STREAM_BROKEN:
        connection_close(c);
        break;
    case STREAM_NO_TLS:
        c->wrong_port = true;
        on_input(c, "", 1);
        break;
    }
}

static void on_writable(evutil_socket_t fd, short what, void *context)
{
    struct connection *c = context;
    (void)fd, (void)what;
    net_stream_flush(&c->stream);
    size_t pending = net_stream_pending(&c->stream);
    if (c->state == CONNECTION_FLUSHING && pending == 0 && !c->stream.broken) {
        linger(c);
        return;
    }
    if (c->input.size > 0 && may_process(c))
        process_waiting(c);
    struct http_exchange *exchange = c->exchange;
    if (exchange != NULL && exchange->drained != NULL && pending <= exchange->drained_bytes &&
        !c->stream.broken) {
        net_fn *drained = exchange->drained;
        exchange->drained = NULL;
        drained(exchange->drained_context);
    }
}

/* Whether something is pending and the client took none of it for too long. */
static bool is_stuck(struct connection *c, uint64_t now_ms)
{
    if (net_stream_pending(&c->stream) == 0) {
        c->write_deadline_ms = 0;
    } else if (c->write_deadline_ms == 0 || c->taken != c->stream.taken) {
        c->taken = c->stream.taken;
        c->write_deadline_ms = now_ms + c->server->options.write_timeout_ms;
    }
    return c->write_deadline_ms != 0 && now_ms >= c->write_deadline_ms;
}

void connection_check(struct connection *c, uint64_t now_ms)
{
    uint64_t deadline_ms = c->deadline_ms;
    if (c->state == CONNECTION_RECEIVING)
        deadline_ms += (uint64_t)c->exchange->request.body.size * 1000 / BODY_BYTES_A_SECOND;
    bool late = deadline_ms != 0 && now_ms >= deadline_ms;
    if (is_stuck(c, now_ms) || (late && c->state == CONNECTION_LINGERING)) {
        connection_close(c);
    } else if (late && net_stream_pending(&c->stream) == 0) {
        /* While earlier answers are not taken, only the write deadline counts. */
        if (c->state == CONNECTION_RECEIVING && !c->doomed) {
            http_request_fail(&c->exchange->request, 408, "The request did not come in time.");
            refuse(c);
        } else {
            connection_close(c);
        }
    }
}
