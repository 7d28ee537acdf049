/* A server for tests/net and bench: every path does one thing.
 *
 *   http_echo [--tls CERTIFICATE KEY] [--idle-ms N] [--request-ms N] [--write-ms N] [--connections
 * N]
 *             [--body-bytes N] [--pending-bytes N]
 *
 * Listens on a free port of 127.0.0.1, prints "PORT", and ends on SIGTERM once what runs is
 * answered (or after 5 s), or when its standard input ends. On standard error it tells of clients
 * that left.
 */
#include "net/net.h"

#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct program {
    struct net_loop *loop;
    struct http_server *server;
    struct http_exchange *held[64]; /* by /hold, for /release */
    size_t n_held, n_gone, n_handled;
    size_t high_pending; /* of /flood */
    pid_t parent;
};

static struct program program;

static const char *const text_plain = "text/plain";

static size_t number(const struct http_exchange *exchange, const char *name, size_t otherwise)
{
    struct view value = http_query(exchange, name);
    char digits[24] = "";
    if (value.data == NULL || value.size >= sizeof digits)
        return otherwise;
    memcpy(digits, value.data, value.size);
    return strtoull(digits, NULL, 10);
}

/* "METHOD PATH PEER TLS", the header field X-Test, the query parameter q, the body, a line each. */
static void echo(struct http_exchange *exchange)
{
    struct buffer out = {0};
    struct view parts[] = {http_method(exchange), http_path(exchange),
                           http_header(exchange, "x-TEST"), http_query(exchange, "q"),
                           http_body(exchange)};
    for (size_t i = 0; i < ARRAY_COUNT(parts); i++) {
        if (parts[i].data == NULL)
            buffer_append_text(&out, "-");
        else
            buffer_append(&out, parts[i].data, parts[i].size);
        buffer_append_text(&out, "\n");
    }
    buffer_append_text(&out, http_is_tls(exchange) ? "tls " : "plain ");
    buffer_append_text(&out, http_peer(exchange));
    static const struct http_field extra[] = {{"X-Extra", "one\r\ntwo"}, {NULL, NULL}};
    http_reply(exchange, 200, text_plain, (struct view){out.data, out.size}, extra);
    buffer_free(&out);
}

/* ---- Streams ---- */

struct flood {
    struct http_exchange *exchange;
    size_t left; /* bytes */
    bool heeds;  /* waits until the client has read */
};

static void flood_more(void *context);

static void flood_gone(void *context)
{
    struct flood *flood = context;
    program.n_gone++;
    http_stream_end(flood->exchange);
    free(flood);
}

static void flood_more(void *context)
{
    static char block[64 << 10];
    struct flood *flood = context;
    memset(block, 'x', sizeof block);
    while (flood->left > 0) {
        size_t size = MIN(flood->left, sizeof block);
        http_stream_write(flood->exchange, (struct view){block, size});
        flood->left -= size;
        size_t pending = http_stream_pending(flood->exchange);
        program.high_pending = MAX(program.high_pending, pending);
        if (flood->heeds && pending > sizeof block) {
            http_on_drained(flood->exchange, sizeof block / 2, flood_more, flood);
            return;
        }
    }
    http_stream_end(flood->exchange);
    free(flood);
}

static void begin_flood(struct http_exchange *exchange, bool heeds)
{
    struct flood *flood = malloc(sizeof *flood);
    *flood = (struct flood){exchange, number(exchange, "bytes", 1 << 20), heeds};
    http_stream_begin(exchange, 200, text_plain, NULL);
    http_on_gone(exchange, flood_gone, flood);
    flood_more(flood);
}

/* ---- Answers from another thread ---- */

static void reply_later(void *context)
{
    http_reply(context, 200, text_plain, view_of("later"), NULL);
}

static void *other_thread(void *context)
{
    if (!net_loop_post(program.loop, reply_later, context))
        fprintf(stderr, "nothing could be posted\n");
    return NULL;
}

static void answer_from_thread(struct http_exchange *exchange)
{
    pthread_t thread;
    if (pthread_create(&thread, NULL, other_thread, exchange) == 0)
        pthread_detach(thread);
    else
        http_abort(exchange);
}

/* ---- Answers that wait for another request ---- */

static void held_gone(void *context)
{
    struct http_exchange *exchange = context;
    size_t i = 0;
    while (i < program.n_held && program.held[i] != exchange)
        i++;
    if (i < program.n_held)
        program.held[i] = program.held[--program.n_held];
    program.n_gone++;
    http_abort(exchange);
}

static void hold(struct http_exchange *exchange, bool streamed)
{
    if (program.n_held == ARRAY_COUNT(program.held)) {
        http_reply(exchange, 503, NULL, (struct view){0}, NULL);
        return;
    }
    program.held[program.n_held++] = exchange;
    if (streamed) {
        http_stream_begin(exchange, 200, text_plain, NULL);
        http_stream_write(exchange, view_of("first "));
    }
    http_on_gone(exchange, held_gone, exchange);
}

/* Answers all that are held: streamed=1 says that they are streams. */
static void release(struct http_exchange *exchange)
{
    bool streamed = number(exchange, "streamed", 0) != 0;
    size_t count = program.n_held;
    program.n_held = 0;
    for (size_t i = 0; i < count; i++) {
        if (streamed) {
            http_stream_write(program.held[i], view_of("second"));
            http_stream_end(program.held[i]);
        } else {
            http_reply(program.held[i], 200, text_plain, view_of("released"), NULL);
        }
    }
    http_reply(exchange, 200, text_plain, view_of("done"), NULL);
}

static void tell_state(struct http_exchange *exchange)
{
    struct buffer out = {0};
    buffer_printf(&out, "connections=%zu held=%zu gone=%zu handled=%zu high=%zu",
                  http_server_connections(program.server), program.n_held, program.n_gone,
                  program.n_handled, program.high_pending);
    http_reply(exchange, 200, text_plain, (struct view){out.data, out.size}, NULL);
    buffer_free(&out);
}

static void stream_pieces(struct http_exchange *exchange)
{
    http_stream_begin(exchange, 200, "text/event-stream", NULL);
    for (size_t i = number(exchange, "n", 3); i > 0; i--)
        http_stream_write(exchange, view_of("piece\n"));
    http_stream_write(exchange, (struct view){0});
    http_stream_end(exchange);
}

static void handle(void *context, struct http_exchange *exchange)
{
    struct view path = http_path(exchange);
    char name[32] = "";
    (void)context;
    program.n_handled++;
    if (path.size < sizeof name)
        memcpy(name, path.data, path.size);
    if (strcmp(name, "/hello") == 0)
        http_reply(exchange, 200, text_plain, view_of("hello"), NULL);
    else if (strcmp(name, "/status") == 0)
        http_reply(exchange, (int)number(exchange, "is", 200), NULL, (struct view){0}, NULL);
    else if (strcmp(name, "/big") == 0 || strcmp(name, "/flood") == 0)
        begin_flood(exchange, name[1] == 'b');
    else if (strcmp(name, "/stream") == 0)
        stream_pieces(exchange);
    else if (strcmp(name, "/thread") == 0)
        answer_from_thread(exchange);
    else if (strcmp(name, "/hold") == 0)
        hold(exchange, false);
    else if (strcmp(name, "/hold-stream") == 0)
        hold(exchange, true);
    else if (strcmp(name, "/release") == 0)
        release(exchange);
    else if (strcmp(name, "/state") == 0)
        tell_state(exchange);
    else if (strcmp(name, "/abort") == 0)
        http_abort(exchange);
    else
        echo(exchange);
}

static void stop(void *context)
{
    (void)context;
    net_loop_stop(program.loop);
}

static void drain(void *context)
{
    (void)context;
    http_server_drain(program.server, 5000, stop, NULL);
}

/* None stays behind a test that crashed. */
static void watch_parent(void *context)
{
    (void)context;
    if (getppid() != program.parent ||
        net_loop_after(program.loop, 1000, watch_parent, NULL) == NULL)
        net_loop_stop(program.loop);
}

static bool read_options(int argc, char **argv, struct http_options *options)
{
    for (int i = 1; i < argc; i++) {
        const char *name = argv[i];
        if (strcmp(name, "--tls") == 0 && i + 2 < argc) {
            options->tls_certificate = argv[++i];
            options->tls_key = argv[++i];
            continue;
        }
        if (++i == argc)
            return false;
        unsigned long value = strtoul(argv[i], NULL, 10);
        if (strcmp(name, "--idle-ms") == 0)
            options->idle_timeout_ms = (unsigned)value;
        else if (strcmp(name, "--request-ms") == 0)
            options->request_timeout_ms = (unsigned)value;
        else if (strcmp(name, "--write-ms") == 0)
            options->write_timeout_ms = (unsigned)value;
        else if (strcmp(name, "--connections") == 0)
            options->connections = value;
        else if (strcmp(name, "--body-bytes") == 0)
            options->body_bytes = value;
        else if (strcmp(name, "--all-body-bytes") == 0)
            options->all_body_bytes = value;
        else if (strcmp(name, "--pending-bytes") == 0)
            options->pending_bytes = value;
        else
            return false;
    }
    return true;
}

int main(int argc, char **argv)
{
    struct http_options options = {.handler = handle};
    struct error error = {.text = "the options are wrong"};
    program.parent = getppid();
    bool good = read_options(argc, argv, &options) &&
                net_loop_open(&program.loop, &error) == STATUS_OK &&
                http_server_open(&program.server, program.loop, &options, &error) == STATUS_OK &&
                http_server_listen(program.server, "127.0.0.1:0", &error) == STATUS_OK &&
                net_loop_on_signal(program.loop, SIGTERM, drain, NULL, &error) == STATUS_OK &&
                net_loop_on_signal(program.loop, SIGINT, stop, NULL, &error) == STATUS_OK;
    if (good) {
        watch_parent(NULL);
        printf("%u\n", http_server_port(program.server, 0));
        fflush(stdout);
        net_loop_run(program.loop);
    } else {
        fprintf(stderr, "error: %s\n", error.text);
    }
    http_server_close(program.server);
    net_loop_close(program.loop);
    return good ? 0 : 1;
}
