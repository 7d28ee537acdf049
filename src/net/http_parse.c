#include "net/http_parse.h"

#include <stdlib.h>
#include <string.h>
#include <strings.h>

/* Capacities that http_request_begin keeps. */
enum {
    KEPT_HEAD_BYTES = 4096,
    KEPT_BODY_BYTES = 16 << 10,
};

/* ---- Characters (RFC 9110, 5.6) ---- */

static bool is_digit(unsigned char c)
{
    return c >= '0' && c <= '9';
}

static int hex_value(unsigned char c)
{
    if (is_digit(c))
        return c - '0';
    c |= 0x20;
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

static bool is_token_char(unsigned char c)
{
    unsigned char lower = c | 0x20;
    return is_digit(c) || (lower >= 'a' && lower <= 'z') ||
           (c > ' ' && c < 0x7F && memchr("!#$%&'*+-.^_`|~", c, 15) != NULL);
}

static bool is_token(struct view text)
{
    for (size_t i = 0; i < text.size; i++)
        if (!is_token_char((unsigned char)text.data[i]))
            return false;
    return text.size > 0;
}

static bool is_space(char c)
{
    return c == ' ' || c == '\t';
}

/* Whether text holds no control characters but tabs. */
static bool is_printable(struct view text)
{
    for (size_t i = 0; i < text.size; i++) {
        unsigned char c = (unsigned char)text.data[i];
        if ((c < ' ' && c != '\t') || c == 0x7F)
            return false;
    }
    return true;
}

static bool equals_ignoring_case(struct view text, const char *word)
{
    return strlen(word) == text.size && strncasecmp(text.data, word, text.size) == 0;
}

/* ---- The request's memory ---- */

static void keep_at_most(struct buffer *buffer, size_t capacity)
{
    if (buffer->capacity > capacity)
        buffer_free(buffer);
    buffer_clear(buffer);
}

void http_request_begin(struct http_request *request, const struct http_limits *limits)
{
    struct http_request fresh = {
        .limits = *limits,
        .head = request->head,
        .body = request->body,
        .parameters = {request->parameters.items, 0, request->parameters.capacity},
        .fields = {request->fields.items, 0, request->fields.capacity},
    };
    *request = fresh;
    keep_at_most(&request->head, KEPT_HEAD_BYTES);
    keep_at_most(&request->body, KEPT_BODY_BYTES);
}

void http_request_free(struct http_request *request)
{
    buffer_free(&request->head);
    buffer_free(&request->body);
    free(request->parameters.items);
    free(request->fields.items);
    *request = (struct http_request){0};
}

void http_request_fail(struct http_request *request, int status, const char *text)
{
    request->stage = HTTP_FAILED;
    request->error_status = status;
    request->error_text = text;
}

static void fail_memory(struct http_request *request)
{
    http_request_fail(request, 503, "The server is out of memory for this request; try again.");
}

struct view http_request_slice(const struct http_request *request, struct http_slice slice)
{
    if (request->head.data == NULL)
        return (struct view){"", 0};
    return (struct view){request->head.data + slice.offset, slice.size};
}

/* text is part of the head. */
static struct http_slice slice_of(const struct http_request *request, struct view text)
{
    return (struct http_slice){(uint32_t)(text.data - request->head.data), (uint32_t)text.size};
}

static bool append_pair(struct http_request *request, struct http_pairs *pairs, struct view name,
                        struct view value)
{
    if (pairs->count == pairs->capacity) {
        size_t capacity = MAX((size_t)16, pairs->capacity * 2);
        struct http_pair *items = realloc(pairs->items, capacity * sizeof *items);
        if (items == NULL) {
            fail_memory(request);
            return false;
        }
        pairs->items = items;
        pairs->capacity = capacity;
    }
    pairs->items[pairs->count++] =
        (struct http_pair){slice_of(request, name), slice_of(request, value)};
    return true;
}

struct view http_request_field(const struct http_request *request, const char *name)
{
    for (size_t i = 0; i < request->fields.count; i++)
        if (equals_ignoring_case(http_request_slice(request, request->fields.items[i].name), name))
            return http_request_slice(request, request->fields.items[i].value);
    return (struct view){0};
}

struct view http_request_parameter(const struct http_request *request, const char *name)
{
    for (size_t i = 0; i < request->parameters.count; i++) {
        const struct http_pair *pair = &request->parameters.items[i];
        if (view_equal(http_request_slice(request, pair->name), view_of(name)))
            return http_request_slice(request, pair->value);
    }
    return (struct view){0};
}

/* ---- Request line ---- */

/* The text before the first c, which is taken from *rest together with c; all of it without one. */
static struct view take_until(struct view *rest, char c)
{
    const char *found = rest->size > 0 ? memchr(rest->data, c, rest->size) : NULL;
    size_t size = found != NULL ? (size_t)(found - rest->data) : rest->size;
    struct view taken = {rest->data, size};
    size_t past = size + (found != NULL);
    *rest = (struct view){rest->data + past, rest->size - past};
    return taken;
}

/* Decodes %XX in place, in a query also + for a space. The result is never longer. A query keeps
 * what is no escape as it is, as browsers do; in a path it is a fault: false. */
static bool decode(struct http_request *request, struct view *text, bool query)
{
    char *to = request->head.data + (text->data - request->head.data);
    char *begin = to;
    for (size_t i = 0; i < text->size; i++) {
        unsigned char c = (unsigned char)text->data[i];
        if (c == '%') {
            int high = i + 1 < text->size ? hex_value((unsigned char)text->data[i + 1]) : -1;
            int low = i + 2 < text->size ? hex_value((unsigned char)text->data[i + 2]) : -1;
            if (high >= 0 && low >= 0) {
                c = (unsigned char)(high << 4 | low);
                i += 2;
            } else if (!query) {
                return false;
            }
        } else if (c == '+' && query) {
            c = ' ';
        }
        *to++ = (char)c;
    }
    text->size = (size_t)(to - begin);
    return true;
}

static void parse_query(struct http_request *request, struct view query)
{
    while (query.size > 0) {
        struct view value = take_until(&query, '&');
        if (value.size == 0)
            continue;
        struct view name = take_until(&value, '=');
        if (request->parameters.count == HTTP_MAX_PARAMETERS) {
            http_request_fail(request, 400, "The query has more than 64 parameters.");
            return;
        }
        decode(request, &name, true);
        decode(request, &value, true);
        if (!append_pair(request, &request->parameters, name, value))
            return;
    }
}

/* Takes "http://host" off an absolute target. */
static void take_authority(struct http_request *request, struct view *target)
{
    size_t scheme = 0;
    if (target->size >= 7 && strncasecmp(target->data, "http://", 7) == 0)
        scheme = 7;
    else if (target->size >= 8 && strncasecmp(target->data, "https://", 8) == 0)
        scheme = 8;
    if (scheme == 0)
        return;
    size_t end = scheme;
    while (end < target->size && memchr("/?", target->data[end], 2) == NULL)
        end++;
    request->authority = slice_of(request, (struct view){target->data + scheme, end - scheme});
    *target = (struct view){target->data + end, target->size - end};
}

static void parse_target(struct http_request *request, struct view target)
{
    struct view method = http_request_slice(request, request->method);
    for (size_t i = 0; i < target.size; i++) {
        unsigned char c = (unsigned char)target.data[i];
        if (c <= ' ' || c == 0x7F || c == '#') {
            http_request_fail(request, 400,
                              "The request target holds a character that must be percent-encoded.");
            return;
        }
    }
    struct view rest = target;
    take_authority(request, &rest);
    struct view path = take_until(&rest, '?');
    bool whole_server = view_equal(target, view_of("*")) && view_equal(method, view_of("OPTIONS"));
    bool absolute = path.data != target.data;
    bool begins_well = path.size > 0 ? path.data[0] == '/' : absolute;
    if ((!begins_well && !whole_server) || (absolute && request->authority.size == 0)) {
        http_request_fail(request, 400, "The request target must begin with a slash.");
        return;
    }
    if (!decode(request, &path, false) || !utf8_valid(path.data, path.size) ||
        !is_printable(path)) {
        http_request_fail(request, 400,
                          "The path has a broken percent-escape, is not UTF-8, or "
                          "holds control characters.");
        return;
    }
    request->path = slice_of(request, path);
    parse_query(request, rest);
}

static void parse_version(struct http_request *request, struct view version)
{
    const char *v = version.data;
    if (version.size != 8 || memcmp(v, "HTTP/", 5) != 0 || !is_digit((unsigned char)v[5]) ||
        v[6] != '.' || !is_digit((unsigned char)v[7]))
        http_request_fail(request, 400,
                          "The request line must be METHOD TARGET HTTP/1.1 with single spaces.");
    else if (v[5] != '1')
        http_request_fail(request, 505, "This server speaks HTTP/1.1 and HTTP/1.0.");
    request->minor_version = version.size == 8 && v[7] != '0';
}

static void parse_request_line(struct http_request *request, struct view line)
{
    if (line.size == 0) {
        if (request->blank_line_came)
            http_request_fail(request, 400, "The request begins with blank lines.");
        request->blank_line_came = true;
        buffer_clear(&request->head);
        return;
    }
    struct view rest = line;
    struct view method = take_until(&rest, ' ');
    struct view target = take_until(&rest, ' ');
    request->method = slice_of(request, method);
    if (!is_token(method)) {
        http_request_fail(request, 400, "The request line does not begin with a method.");
        return;
    }
    parse_version(request, rest);
    if (request->stage == HTTP_FAILED)
        return;
    if (method.size > HTTP_MAX_METHOD || view_equal(method, view_of("CONNECT"))) {
        http_request_fail(request, 501, "The method is not known to this server.");
        return;
    }
    parse_target(request, target);
    if (request->stage != HTTP_FAILED)
        request->stage = HTTP_FIELDS;
}

/* ---- Header fields ---- */

/* Splits and checks a field line; false where it is broken. */
static bool split_field(struct http_request *request, struct view line, struct view *name,
                        struct view *value)
{
    if (is_space(line.data[0])) {
        http_request_fail(request, 400, "A header field goes on in a second line; send it in one.");
        return false;
    }
    *value = line;
    *name = take_until(value, ':');
    while (value->size > 0 && is_space(value->data[0]))
        *value = (struct view){value->data + 1, value->size - 1};
    while (value->size > 0 && is_space(value->data[value->size - 1]))
        value->size--;
    if (name->size == line.size || !is_token(*name) || !is_printable(*value)) {
        http_request_fail(request, 400,
                          "A header field is not of the form Name: value, or holds control "
                          "characters.");
        return false;
    }
    return true;
}

static void parse_field(struct http_request *request, struct view line)
{
    struct view name, value;
    if (!split_field(request, line, &name, &value))
        return;
    if (request->fields.count == HTTP_MAX_FIELDS)
        http_request_fail(request, 431, "The request has more than 128 header fields.");
    else
        append_pair(request, &request->fields, name, value);
}

/* What the fields say about how the message is framed. */
struct framing {
    struct view host, length, coding, expect;
    bool close, keep_alive;
};

static void parse_connection(struct framing *framing, struct view value)
{
    while (value.size > 0) {
        struct view word = take_until(&value, ',');
        while (word.size > 0 && is_space(word.data[0]))
            word = (struct view){word.data + 1, word.size - 1};
        while (word.size > 0 && is_space(word.data[word.size - 1]))
            word.size--;
        framing->close |= equals_ignoring_case(word, "close");
        framing->keep_alive |= equals_ignoring_case(word, "keep-alive");
    }
}

/* Collects the fields that matter here; of those in the table two are a fault. The host of an
 * absolute target takes the place of the field's (RFC 9112, 3.2.2). */
static bool collect_framing(struct http_request *request, struct framing *framing)
{
    const struct {
        const char *name;
        struct view *value;
    } single[] = {
        {"host", &framing->host},
        {"content-length", &framing->length},
        {"transfer-encoding", &framing->coding},
        {"expect", &framing->expect},
    };
    for (size_t i = 0; i < request->fields.count; i++) {
        struct view name = http_request_slice(request, request->fields.items[i].name);
        struct view value = http_request_slice(request, request->fields.items[i].value);
        if (equals_ignoring_case(name, "connection"))
            parse_connection(framing, value);
        for (size_t j = 0; j < ARRAY_COUNT(single); j++) {
            if (!equals_ignoring_case(name, single[j].name))
                continue;
            if (single[j].value->data != NULL) {
                http_request_fail(request, 400,
                                  "Host, Content-Length, Transfer-Encoding or "
                                  "Expect is there twice.");
                return false;
            }
            if (j == 0 && request->authority.size > 0) {
                request->fields.items[i].value = request->authority;
                value = http_request_slice(request, request->authority);
            }
            *single[j].value = value;
        }
    }
    return true;
}

static void check_host(struct http_request *request, struct view host)
{
    if (host.data == NULL && request->minor_version > 0) {
        http_request_fail(request, 400, "The header field Host is missing.");
        return;
    }
    for (size_t i = 0; i < host.size; i++) {
        if (memchr(" \t/\\?#@,\"<>", host.data[i], 11) != NULL) {
            http_request_fail(request, 400, "The header field Host is not of the form name:port.");
            return;
        }
    }
}

static bool parse_length(struct http_request *request, struct view text)
{
    uint64_t length = 0;
    bool digits = text.size > 0;
    for (size_t i = 0; i < text.size && digits; i++)
        digits = is_digit((unsigned char)text.data[i]);
    if (!digits) {
        http_request_fail(request, 400, "Content-Length is not one number.");
        return false;
    }
    for (size_t i = 0; i < text.size && i < HTTP_MAX_LENGTH_DIGITS; i++)
        length = length * 10 + (uint64_t)(text.data[i] - '0');
    if (text.size > HTTP_MAX_LENGTH_DIGITS || length > request->limits.body_bytes) {
        http_request_fail(request, 413, "The body of the request is too large for this server.");
        return false;
    }
    request->left = length;
    return true;
}

/* Decides how the body is framed (RFC 9112, 6.3) and with it the next stage. */
static void frame_body(struct http_request *request, const struct framing *framing)
{
    struct view method = http_request_slice(request, request->method);
    bool has_length = framing->length.data != NULL;
    if (framing->coding.data != NULL) {
        if (has_length)
            http_request_fail(request, 400,
                              "Content-Length and Transfer-Encoding exclude each other.");
        else if (request->minor_version == 0)
            http_request_fail(request, 400, "HTTP/1.0 has no Transfer-Encoding.");
        else if (!equals_ignoring_case(framing->coding, "chunked"))
            http_request_fail(request, 501, "The only Transfer-Encoding known here is chunked.");
        else
            request->stage = HTTP_CHUNK_SIZE;
    } else if (has_length) {
        if (parse_length(request, framing->length))
            request->stage = request->left > 0 ? HTTP_BODY : HTTP_DONE;
    } else if (request->minor_version == 0 &&
               (view_equal(method, view_of("POST")) || view_equal(method, view_of("PUT")))) {
        http_request_fail(request, 411, "A body over HTTP/1.0 needs a Content-Length.");
    } else {
        request->stage = HTTP_DONE;
    }
}

static void finish_head(struct http_request *request)
{
    struct framing framing = {0};
    if (!collect_framing(request, &framing))
        return;
    check_host(request, framing.host);
    if (request->stage == HTTP_FAILED)
        return;
    request->keep_alive = !framing.close && (request->minor_version > 0 || framing.keep_alive);
    if (framing.expect.data != NULL && request->minor_version > 0) {
        request->expects_continue = equals_ignoring_case(framing.expect, "100-continue");
        if (!request->expects_continue) {
            http_request_fail(request, 417, "The only expectation known here is 100-continue.");
            return;
        }
    }
    frame_body(request, &framing);
}

/* ---- Chunks (RFC 9112, 7.1) ---- */

static void parse_chunk_size(struct http_request *request, struct view line)
{
    uint64_t size = 0;
    size_t digits = 0;
    while (digits < line.size && hex_value((unsigned char)line.data[digits]) >= 0)
        digits++;
    size_t i = digits;
    while (i < line.size && is_space(line.data[i]))
        i++;
    bool extension = i < line.size && line.data[i] == ';';
    if (digits == 0 || (digits < line.size && !extension) || !is_printable(line)) {
        http_request_fail(request, 400, "A chunk of the body has no proper size.");
        return;
    }
    for (i = 0; i < digits && i < HTTP_MAX_CHUNK_SIZE_DIGITS; i++)
        size = size << 4 | (uint64_t)hex_value((unsigned char)line.data[i]);
    if (digits > HTTP_MAX_CHUNK_SIZE_DIGITS ||
        size > request->limits.body_bytes - request->body.size) {
        http_request_fail(request, 413, "The body of the request is too large for this server.");
        return;
    }
    request->left = size;
    request->stage = size > 0 ? HTTP_CHUNK_DATA : HTTP_TRAILERS;
}

static void parse_line(struct http_request *request, struct view line)
{
    struct view name, value;
    switch (request->stage) {
    case HTTP_LINE:
        parse_request_line(request, line);
        break;
    case HTTP_FIELDS:
        if (line.size == 0)
            finish_head(request);
        else
            parse_field(request, line);
        break;
    case HTTP_CHUNK_SIZE:
        parse_chunk_size(request, line);
        break;
    case HTTP_CHUNK_END:
        if (line.size == 0)
            request->stage = HTTP_CHUNK_SIZE;
        else
            http_request_fail(request, 400, "A chunk of the body is longer than its size.");
        break;
    case HTTP_TRAILERS:
        if (line.size == 0)
            request->stage = HTTP_DONE;
        else
            split_field(request, line, &name, &value);
        break;
    default:
        break;
    }
}

/* ---- Bytes ---- */

/* How many bytes the line being read may have, and how to refuse a longer one. */
static size_t line_limit(const struct http_request *request, int *status, const char **text)
{
    size_t used = request->line_begin;
    size_t in_head = request->limits.header_bytes - MIN(used, request->limits.header_bytes);
    *status = 431;
    *text = "The header fields of the request are too large for this server.";
    switch (request->stage) {
    case HTTP_LINE:
        *status = 414;
        *text = "The request line is too long for this server.";
        return MIN(in_head, (size_t)HTTP_MAX_LINE);
    case HTTP_CHUNK_SIZE:
        *status = 400;
        *text = "A chunk of the body has too long a size line.";
        return HTTP_MAX_CHUNK_LINE;
    case HTTP_CHUNK_END:
        *status = 400;
        *text = "A chunk of the body is longer than its size.";
        return 2;
    default:
        return in_head;
    }
}

/* The very first byte tells most of what is no HTTP at all. */
static bool check_first_byte(struct http_request *request, char byte)
{
    if (is_token_char((unsigned char)byte) || byte == '\r')
        return true;
    http_request_fail(request, 400,
                      byte == 0x16 ? "This port speaks http, not https."
                                   : "The request line does not begin with a method.");
    return false;
}

/* Takes at most one line. */
static size_t feed_line(struct http_request *request, const char *data, size_t size)
{
    struct buffer *head = &request->head;
    if (request->stage == HTTP_LINE && head->size == 0 && !check_first_byte(request, data[0]))
        return 0;
    int status;
    const char *text;
    size_t room = line_limit(request, &status, &text) - (head->size - request->line_begin);
    const char *newline = memchr(data, '\n', MIN(size, room));
    size_t taken = newline != NULL ? (size_t)(newline - data) + 1 : MIN(size, room);
    if (!buffer_append(head, data, taken)) {
        fail_memory(request);
        return taken;
    }
    if (newline == NULL) {
        if (taken == room)
            http_request_fail(request, status, text);
        return taken;
    }
    struct view line = {head->data + request->line_begin, head->size - request->line_begin - 1};
    if (line.size == 0 || line.data[line.size - 1] != '\r') {
        http_request_fail(request, 400, "A line of the request does not end with CR LF.");
        return taken;
    }
    line.size--;
    bool of_chunk = request->stage == HTTP_CHUNK_SIZE || request->stage == HTTP_CHUNK_END;
    parse_line(request, line);
    if (of_chunk)
        head->size = request->line_begin;
    request->line_begin = head->size;
    return taken;
}

static size_t feed_body(struct http_request *request, const char *data, size_t size)
{
    size_t taken = (size_t)MIN(request->left, (uint64_t)size);
    if (!buffer_append(&request->body, data, taken))
        fail_memory(request);
    request->left -= taken;
    if (request->left == 0 && request->stage != HTTP_FAILED)
        request->stage = request->stage == HTTP_BODY ? HTTP_DONE : HTTP_CHUNK_END;
    return taken;
}

size_t http_request_feed(struct http_request *request, const char *data, size_t size)
{
    size_t used = 0;
    while (used < size && request->stage < HTTP_DONE) {
        bool in_body = request->stage == HTTP_BODY || request->stage == HTTP_CHUNK_DATA;
        used += in_body ? feed_body(request, data + used, size - used)
                        : feed_line(request, data + used, size - used);
    }
    return used;
}
