/* What a handler sees of an exchange: the request, and the answer. */
#include "net/http_internal.h"

#include <arpa/inet.h>
#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* ---- The request ---- */

struct view http_method(const struct http_exchange *exchange)
{
    return http_request_slice(&exchange->request, exchange->request.method);
}

struct view http_path(const struct http_exchange *exchange)
{
    struct view path = http_request_slice(&exchange->request, exchange->request.path);
    return path.size > 0 ? path : view_of("/");
}

struct view http_query(const struct http_exchange *exchange, const char *name)
{
    return http_request_parameter(&exchange->request, name);
}

struct view http_header(const struct http_exchange *exchange, const char *name)
{
    return http_request_field(&exchange->request, name);
}

struct view http_body(const struct http_exchange *exchange)
{
    const struct buffer *body = &exchange->request.body;
    return (struct view){body->data != NULL ? body->data : "", body->size};
}

void http_body_free(struct http_exchange *exchange)
{
    if (exchange->connection != NULL)
        exchange->connection->server->body_bytes -= exchange->counted_bytes;
    exchange->counted_bytes = 0;
    buffer_free(&exchange->request.body);
}

const char *http_peer(struct http_exchange *exchange)
{
    char host[INET6_ADDRSTRLEN] = "?";
    if (exchange->peer[0] == '\0') {
        bool v6 = exchange->peer_family == AF_INET6;
        inet_ntop(exchange->peer_family, exchange->peer_address, host, sizeof host);
        snprintf(exchange->peer, sizeof exchange->peer, v6 ? "[%s]:%u" : "%s:%u", host,
                 exchange->peer_port);
    }
    return exchange->peer;
}

bool http_is_tls(const struct http_exchange *exchange)
{
    return exchange->tls;
}

void http_set_context(struct http_exchange *exchange, void *context)
{
    exchange->context = context;
}

void *http_context(const struct http_exchange *exchange)
{
    return exchange->context;
}

void exchange_free(struct http_exchange *exchange)
{
    buffer_free(&exchange->fields);
    http_request_free(&exchange->request);
    free(exchange);
}

/* ---- The head of an answer ---- */

static const struct {
    int status;
    const char *reason;
} reasons[] = {
    {200, "OK"},
    {201, "Created"},
    {202, "Accepted"},
    {204, "No Content"},
    {206, "Partial Content"},
    {301, "Moved Permanently"},
    {302, "Found"},
    {303, "See Other"},
    {304, "Not Modified"},
    {307, "Temporary Redirect"},
    {308, "Permanent Redirect"},
    {400, "Bad Request"},
    {401, "Unauthorized"},
    {403, "Forbidden"},
    {404, "Not Found"},
    {405, "Method Not Allowed"},
    {406, "Not Acceptable"},
    {408, "Request Timeout"},
    {409, "Conflict"},
    {410, "Gone"},
    {411, "Length Required"},
    {413, "Content Too Large"},
    {414, "URI Too Long"},
    {415, "Unsupported Media Type"},
    {417, "Expectation Failed"},
    {421, "Misdirected Request"},
    {422, "Unprocessable Content"},
    {429, "Too Many Requests"},
    {431, "Request Header Fields Too Large"},
    {500, "Internal Server Error"},
    {501, "Not Implemented"},
    {502, "Bad Gateway"},
    {503, "Service Unavailable"},
    {504, "Gateway Timeout"},
    {505, "HTTP Version Not Supported"},
    {529, "Overloaded"},
};

static const char *reason_of(int status)
{
    for (size_t i = 0; i < ARRAY_COUNT(reasons); i++)
        if (reasons[i].status == status)
            return reasons[i].reason;
    return "Unknown";
}

static void append_number(struct buffer *out, uint64_t number)
{
    char digits[20];
    size_t at = sizeof digits;
    do
        digits[--at] = (char)('0' + number % 10);
    while ((number /= 10) != 0);
    buffer_append(out, digits + at, sizeof digits - at);
}

static void append_field(struct buffer *out, const char *name, const char *value)
{
    buffer_append_text(out, name);
    buffer_append(out, ": ", 2);
    size_t begin = out->size;
    buffer_append_text(out, value);
    for (size_t i = begin; i < out->size; i++)
        if ((unsigned char)out->data[i] < ' ' || out->data[i] == 0x7F)
            out->data[i] = ' ';
    buffer_append(out, "\r\n", 2);
}

static const char *date_of(struct http_server *server)
{
    time_t now = time(NULL);
    struct tm parts;
    if (now != server->date_time && gmtime_r(&now, &parts) != NULL) {
        static const char days[][4] = {"Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat"};
        static const char months[][4] = {"Jan", "Feb", "Mar", "Apr", "May", "Jun",
                                         "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"};
        char numbers[24];
        strftime(numbers, sizeof numbers, "%Y %H:%M:%S", &parts);
        snprintf(server->date, sizeof server->date, "%s, %02d %s %s GMT", days[parts.tm_wday],
                 parts.tm_mday, months[parts.tm_mon], numbers);
        server->date_time = now;
    }
    return server->date;
}

void http_add_field(struct http_exchange *exchange, const char *name, const char *value)
{
    append_field(&exchange->fields, name, value);
}

/* Writes status line and fields into the server's buffer; length is the body's, or -1 for an answer
 * in pieces. */
static struct view make_head(struct http_exchange *exchange, int status, const char *content_type,
                             int64_t length, const struct http_field *extra)
{
    struct http_server *server = exchange->connection->server;
    struct buffer *out = &server->head;
    bool old = exchange->request.minor_version == 0;
    exchange->bodiless = status == 204 || status == 304;
    exchange->chunked = length < 0 && !old && !exchange->bodiless;
    exchange->close |= server->draining || (length < 0 && old && !exchange->head_only);
    buffer_clear(out);
    buffer_append_text(out, "HTTP/1.1 ");
    append_number(out, (uint64_t)status);
    buffer_append(out, " ", 1);
    buffer_append_text(out, reason_of(status));
    buffer_append_text(out, "\r\nDate: ");
    buffer_append_text(out, date_of(server));
    buffer_append(out, "\r\n", 2);
    if (content_type != NULL)
        append_field(out, "Content-Type", content_type);
    if (exchange->chunked) {
        buffer_append_text(out, "Transfer-Encoding: chunked\r\n");
    } else if (length >= 0 && !exchange->bodiless) {
        buffer_append_text(out, "Content-Length: ");
        append_number(out, (uint64_t)length);
        buffer_append(out, "\r\n", 2);
    }
    if (exchange->close)
        buffer_append_text(out, "Connection: close\r\n");
    else if (old)
        buffer_append_text(out, "Connection: keep-alive\r\n");
    for (; extra != NULL && extra->name != NULL; extra++)
        append_field(out, extra->name, extra->value);
    buffer_append(out, exchange->fields.data, exchange->fields.size);
    buffer_append(out, "\r\n", 2);
    exchange->begun = true;
    if (out->failed || exchange->fields.failed)
        connection_doom(exchange->connection);
    return (struct view){out->data, out->size};
}

/* ---- The answer ---- */

/* Frees the exchange of a client that is gone; true where that was so. */
static bool end_orphan(struct http_exchange *exchange)
{
    if (exchange->connection != NULL)
        return false;
    exchange_free(exchange);
    return true;
}

void http_reply(struct http_exchange *exchange, int status, const char *content_type,
                struct view body, const struct http_field *extra)
{
    assert(!exchange->begun);
    if (end_orphan(exchange))
        return;
    struct connection *c = exchange->connection;
    struct view parts[2];
    parts[0] = make_head(exchange, status, content_type, (int64_t)body.size, extra);
    parts[1] = body;
    bool with_body = body.size > 0 && !exchange->head_only && !exchange->bodiless;
    if (!c->doomed)
        net_stream_write(&c->stream, parts, with_body ? 2 : 1);
    connection_answered(c);
}

void http_stream_begin(struct http_exchange *exchange, int status, const char *content_type,
                       const struct http_field *extra)
{
    assert(!exchange->begun);
    exchange->begun = true;
    http_body_free(exchange);
    if (exchange->connection == NULL)
        return;
    struct view head = make_head(exchange, status, content_type, -1, extra);
    net_stream_write(&exchange->connection->stream, &head, 1);
}

static bool has_body(const struct http_exchange *exchange)
{
    return exchange->connection != NULL && !exchange->connection->doomed && !exchange->head_only &&
           !exchange->bodiless;
}

void http_stream_write(struct http_exchange *exchange, struct view data)
{
    assert(exchange->begun);
    if (!has_body(exchange) || data.size == 0)
        return;
    struct connection *c = exchange->connection;
    char size_line[20];
    int size = snprintf(size_line, sizeof size_line, "%zx\r\n", data.size);
    struct view parts[] = {{size_line, (size_t)size}, data, {"\r\n", 2}};
    if (exchange->chunked)
        net_stream_write(&c->stream, parts, 3);
    else
        net_stream_write(&c->stream, &data, 1);
    if (net_stream_pending(&c->stream) > c->server->options.pending_bytes)
        connection_doom(c);
}

void http_stream_end(struct http_exchange *exchange)
{
    assert(exchange->begun);
    if (end_orphan(exchange))
        return;
    struct view last = {"0\r\n\r\n", 5};
    if (exchange->chunked && has_body(exchange))
        net_stream_write(&exchange->connection->stream, &last, 1);
    connection_answered(exchange->connection);
}

void http_abort(struct http_exchange *exchange)
{
    if (end_orphan(exchange))
        return;
    struct connection *c = exchange->connection;
    exchange->close = true;
    connection_doom(c);
    connection_answered(c);
}

size_t http_stream_pending(const struct http_exchange *exchange)
{
    return exchange->connection != NULL ? net_stream_pending(&exchange->connection->stream) : 0;
}

void http_on_drained(struct http_exchange *exchange, size_t bytes, net_fn *fn, void *context)
{
    exchange->drained = fn;
    exchange->drained_context = context;
    exchange->drained_bytes = bytes;
    if (fn != NULL && exchange->connection != NULL && http_stream_pending(exchange) <= bytes)
        net_stream_wake_writer(&exchange->connection->stream);
}

void http_on_gone(struct http_exchange *exchange, net_fn *fn, void *context)
{
    exchange->gone = fn;
    exchange->gone_context = context;
    if (fn != NULL && exchange->connection == NULL) {
        exchange->gone = NULL;
        fn(context);
    }
}

bool http_is_gone(const struct http_exchange *exchange)
{
    return exchange->connection == NULL;
}

bool exchange_probe(struct http_exchange *exchange)
{
    static const char interim[] = "HTTP/1.1 100 Continue\r\n\r\n";
    if (exchange->request.minor_version == 0 || (exchange->begun && !exchange->chunked))
        return false;
    struct view text =
        exchange->begun ? (struct view){"0", 1} : (struct view){interim, sizeof interim - 1};
    if (!exchange->begun || !exchange->head_only)
        net_stream_write(&exchange->connection->stream, &text, 1);
    return true;
}
