#include "net/http_parse.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static const struct http_limits limits = {.header_bytes = 1024, .body_bytes = 64};

static void append_slice(struct buffer *out, const struct http_request *request,
                         struct http_slice slice)
{
    struct view text = http_request_slice(request, slice);
    buffer_append(out, text.data, text.size);
}

static void append_pairs(struct buffer *out, const struct http_request *request,
                         const struct http_pairs *pairs, const char *between)
{
    for (size_t i = 0; i < pairs->count; i++) {
        buffer_append_text(out, " ");
        append_slice(out, request, pairs->items[i].name);
        buffer_append_text(out, between);
        append_slice(out, request, pairs->items[i].value);
    }
}

/* Everything a request says, as one text: "METHOD PATH 1.MINOR[ keep][ continue] name=value... |
 * Field:value... | body", or "STATUS" of a refusal, or "more". */
static void append_summary(struct buffer *out, const struct http_request *request)
{
    if (request->stage == HTTP_FAILED) {
        buffer_printf(out, "%d", request->error_status);
        return;
    }
    if (request->stage != HTTP_DONE) {
        buffer_append_text(out, "more");
        return;
    }
    append_slice(out, request, request->method);
    buffer_append_text(out, " ");
    append_slice(out, request, request->path);
    buffer_printf(out, " 1.%u%s%s", request->minor_version, request->keep_alive ? " keep" : "",
                  request->expects_continue ? " continue" : "");
    append_pairs(out, request, &request->parameters, "=");
    buffer_append_text(out, " |");
    append_pairs(out, request, &request->fields, ":");
    buffer_append_text(out, " | ");
    buffer_append(out, request->body.data, request->body.size);
}

/* Feeds data[size] in the pieces that end before first and second, and what remains; then says what
 * became of it and how many bytes are left over. */
static void parse_split(struct buffer *out, const char *data, size_t size, size_t first,
                        size_t second)
{
    struct http_request request = {0};
    http_request_begin(&request, &limits);
    const size_t ends[] = {first, second, size};
    size_t used = 0;
    for (size_t i = 0; i < ARRAY_COUNT(ends); i++)
        if (request.stage < HTTP_DONE && ends[i] > used) {
            /* A copy of its own, so that a read beyond the piece is seen by the sanitizers. */
            char *piece = malloc(ends[i] - used);
            memcpy(piece, data + used, ends[i] - used);
            size_t taken = http_request_feed(&request, piece, ends[i] - used);
            free(piece);
            used += taken;
        }
    buffer_clear(out);
    append_summary(out, &request);
    if (request.stage == HTTP_DONE && used < size)
        buffer_printf(out, " +%zu", size - used);
    http_request_free(&request);
}

/* Checks the summary of data[size] for every split into two and every single byte cut out. */
static void expect_of(const char *data, size_t size, const char *expected)
{
    struct buffer found = {0};
    for (size_t i = 0; i <= size; i++)
        for (size_t width = 0; width < 3 && i + width <= size; width++) {
            parse_split(&found, data, size, i, i + width);
            if (strcmp(found.data, expected) != 0)
                fail_msg("%s\nsplit at %zu and %zu gives\n%s\nexpected\n%s", data, i, i + width,
                         found.data, expected);
        }
    buffer_free(&found);
}

static void expect(const char *text, const char *expected)
{
    expect_of(text, strlen(text), expected);
}

/* A whole request around one request line or one field. */
static void expect_line(const char *line, const char *expected)
{
    struct buffer text = {0};
    buffer_printf(&text, "%s\r\nHost: h\r\n\r\n", line);
    expect(text.data, expected);
    buffer_free(&text);
}

static void expect_fields(const char *method, const char *fields, const char *expected)
{
    struct buffer text = {0};
    buffer_printf(&text, "%s / HTTP/1.1\r\nHost: h\r\n%s", method, fields);
    expect(text.data, expected);
    buffer_free(&text);
}

static void test_http_parse_requests(void **state)
{
    (void)state;
    expect("GET / HTTP/1.1\r\nHost: a\r\n\r\n", "GET / 1.1 keep | Host:a | ");
    expect("GET / HTTP/1.0\r\n\r\n", "GET / 1.0 | | ");
    expect("GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n",
           "GET / 1.0 keep | Connection:Keep-Alive | ");
    expect_fields("GET", "Connection: x, CLOSE\r\n\r\n",
                  "GET / 1.1 | Host:h Connection:x, CLOSE | ");
    expect("\r\nGET / HTTP/1.1\r\nHost:\r\n\r\n", "GET / 1.1 keep | Host: | ");
    expect_fields("PATCH", "A:\t b c \t\r\nb:\xC3\xA9\r\n\r\n",
                  "PATCH / 1.1 keep | Host:h A:b c b:\xC3\xA9 | ");
    expect("GET / HTTP/1.1\r\nHost: a\r\n\r\nGET /", "GET / 1.1 keep | Host:a |  +5");
    expect("GET / HTTP/1.1\r\nHost: a\r\n", "more");
    expect("", "more");
}

static void test_http_parse_targets(void **state)
{
    (void)state;
    expect_line("GET /a%20b%2Fc?x=1&y=a+b%26&&z&=q&p=%zz HTTP/1.1",
                "GET /a b/c 1.1 keep x=1 y=a b& z= =q p=%zz | Host:h | ");
    expect_line("OPTIONS * HTTP/1.1", "OPTIONS * 1.1 keep | Host:h | ");
    expect_line("GET http://other:1/x?a=b HTTP/1.1", "GET /x 1.1 keep a=b | Host:other:1 | ");
    expect_line("GET HTTPS://other HTTP/1.1", "GET  1.1 keep | Host:other | ");
    expect_line("GET http://other?a HTTP/1.1", "GET  1.1 keep a= | Host:other | ");
    expect_line("GET /%C3%A9\xC3\xA9 HTTP/1.1", "GET /\xC3\xA9\xC3\xA9 1.1 keep | Host:h | ");
    static const char *const broken[] = {
        "GET * HTTP/1.1",         "GET x HTTP/1.1",           "GET  HTTP/1.1",
        "GET /%4 HTTP/1.1",       "GET /%g0 HTTP/1.1",        "GET /%00 HTTP/1.1",
        "GET /%0a HTTP/1.1",      "GET /%ff HTTP/1.1",        "GET /a#b HTTP/1.1",
        "GET /a\tb HTTP/1.1",     "GET /\x7F HTTP/1.1",       "GET ?a HTTP/1.1",
        "GET http:///x HTTP/1.1", "GET http://a@b/ HTTP/1.1", "GET ftp://a/ HTTP/1.1",
    };
    for (size_t i = 0; i < ARRAY_COUNT(broken); i++)
        expect_line(broken[i], "400");
}

static void test_http_parse_request_lines(void **state)
{
    (void)state;
    static const char *const broken[] = {
        "GET /",
        "GET / HTTP/1.1 ",
        "GET  / HTTP/1.1",
        " GET / HTTP/1.1",
        "GET / HTTP/1",
        "GET / HTTP/1.10",
        "GET / http/1.1",
        "GET / HTTP/1.x",
        "G\xC3T / HTTP/1.1",
        "GET\t/ HTTP/1.1",
        "G(T / HTTP/1.1",
        "/ HTTP/1.1",
        "\x16\x03\x01",
        "\r",
    };
    for (size_t i = 0; i < ARRAY_COUNT(broken); i++)
        expect_line(broken[i], "400");
    expect_line("GET / HTTP/2.0", "505");
    expect_line("PRI * HTTP/2.0", "505");
    expect_line("GET / HTTP/0.9", "505");
    expect_line("CONNECT a:1 HTTP/1.1", "501");
    expect_line("ABCDEFGHIJKLMNOPQRSTUVWXYZABCDEFG / HTTP/1.1", "501");
    expect("\r\n\r\nGET / HTTP/1.1\r\nHost: h\r\n\r\n", "400");
    expect("GET / HTTP/1.1\nHost: h\n\n", "400");
    expect("\n", "400");
}

static void test_http_parse_fields(void **state)
{
    (void)state;
    static const char *const broken[] = {
        "A : b\r\n\r\n",   " A: b\r\n\r\n",   "A: b\r\n c\r\n\r\n", "A: b\r\n\tc\r\n\r\n",
        "A\r\n\r\n",       ": b\r\n\r\n",     "A: b\n\r\n",         "A: b\r\n\n",
        "A: b\rc\r\n\r\n", "A: \x01\r\n\r\n", "A: \x7F\r\n\r\n",    "A(: b\r\n\r\n",
        "Host: h\r\n\r\n", "\xC3: b\r\n\r\n", "A: b\r\r\n\r\n",
    };
    for (size_t i = 0; i < ARRAY_COUNT(broken); i++)
        expect_fields("GET", broken[i], "400");
    static const char zero[] = "GET / HTTP/1.1\r\nHost: h\r\nA: \0\r\n\r\n";
    expect_of(zero, sizeof zero - 1, "400");
    expect("GET / HTTP/1.1\r\n\r\n", "400");
    expect("GET / HTTP/1.1\r\nHost: a b\r\n\r\n", "400");
    expect("GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", "400");
    expect_fields("GET", "Expect: 200-maybe\r\n\r\n", "417");
}

static void test_http_parse_bodies(void **state)
{
    (void)state;
    expect_fields("POST", "content-LENGTH: 5\r\n\r\nhello",
                  "POST / 1.1 keep | Host:h content-LENGTH:5 | hello");
    expect_fields("POST", "Content-Length: 005\r\n\r\nhelloGET",
                  "POST / 1.1 keep | Host:h Content-Length:005 | hello +3");
    expect_fields("POST", "Content-Length: 0\r\n\r\n",
                  "POST / 1.1 keep | Host:h Content-Length:0 | ");
    expect_fields("POST", "Content-Length: 5\r\n\r\nhell", "more");
    expect_fields("POST", "\r\n", "POST / 1.1 keep | Host:h | ");
    expect_fields("POST", "Expect: 100-Continue\r\nContent-Length: 1\r\n\r\nx",
                  "POST / 1.1 keep continue | Host:h Expect:100-Continue Content-Length:1 | x");
    expect("POST / HTTP/1.0\r\n\r\n", "411");
    expect("POST / HTTP/1.0\r\nContent-Length: 1\r\n\r\nx", "POST / 1.0 | Content-Length:1 | x");
    expect_fields("POST", "Content-Length: 64\r\n\r\n", "more");
    expect_fields("POST", "Content-Length: 65\r\n\r\n", "413");
    expect_fields("POST", "Content-Length: 99999999999999999999999999\r\n\r\n", "413");
    static const char *const broken[] = {
        "Content-Length: -1\r\n\r\n",
        "Content-Length: +1\r\n\r\n",
        "Content-Length: 1, 1\r\n\r\n",
        "Content-Length:\r\n\r\n",
        "Content-Length: 0x1\r\n\r\n",
        "Content-Length: 1\r\nContent-Length: 1\r\n\r\nx",
        "Content-Length: 1 1\r\n\r\n",
        "Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        "Transfer-Encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n",
    };
    for (size_t i = 0; i < ARRAY_COUNT(broken); i++)
        expect_fields("POST", broken[i], "400");
}

#define CHUNKED "Transfer-Encoding: chunked\r\n\r\n"

static void test_http_parse_chunks(void **state)
{
    (void)state;
    static const char fields[] = "POST / 1.1 keep | Host:h Transfer-Encoding:chunked | ";
    char expected[128];
    snprintf(expected, sizeof expected, "%shello world", fields);
    expect_fields("POST", CHUNKED "5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n", expected);
    expect_fields("POST", CHUNKED "05;a=b;c=\"d\"\r\nhello\r\n006 ;x\r\n world\r\n00\r\n\r\n",
                  expected);
    expect_fields("POST", CHUNKED "b\r\nhello world\r\n0\r\nTrailer: x\r\n\r\n", expected);
    snprintf(expected, sizeof expected, "%s +4", fields);
    expect_fields("POST", CHUNKED "0\r\n\r\nGET ", expected);
    expect_fields("POST", CHUNKED "0\r\n", "more");
    expect_fields("POST", CHUNKED "40\r\n", "more");
    expect_fields("POST", CHUNKED "41\r\n", "413");
    expect_fields("POST", CHUNKED "ffffffffffffffff\r\n", "413");
    expect_fields("POST", CHUNKED "100000000000000000000000000005\r\nhello\r\n", "413");
    expect_fields("POST",
                  CHUNKED
                  "3f\r\n"
                  "0123456789012345678901234567890123456789012345678901234567890ab\r\n2\r\n",
                  "413");
    static const char *const broken[] = {
        CHUNKED "\r\n",           CHUNKED "x\r\n",           CHUNKED "5 \r\nhello\r\n",
        CHUNKED "5\nhello\r\n",   CHUNKED "5\r\nhello0\r\n", CHUNKED "5\r\nhello\n0\r\n",
        CHUNKED " 5\r\nhello",    CHUNKED "0x5\r\nhello",    CHUNKED "-5\r\nhello",
        CHUNKED "0\r\n A: b\r\n", CHUNKED "0\r\nA\r\n\r\n",  CHUNKED "5;\x01\r\nhello",
        CHUNKED "5\r\nhelloxx",   CHUNKED "5\r\r\nhello",
    };
    for (size_t i = 0; i < ARRAY_COUNT(broken); i++)
        expect_fields("POST", broken[i], "400");
    expect_fields("POST", "Transfer-Encoding: gzip, chunked\r\n\r\n", "501");
    expect_fields("POST", "Transfer-Encoding: identity\r\n\r\n", "501");
    expect("POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", "400");
}

/* text, then c as often as makes size bytes, then end. */
static void expect_filled(const char *text, char c, size_t size, const char *end,
                          const char *expected)
{
    struct buffer data = {0};
    buffer_append_text(&data, text);
    while (data.size < size)
        buffer_append(&data, &c, 1);
    buffer_append_text(&data, end);
    expect(data.data, expected);
    buffer_free(&data);
}

static void test_http_parse_limits(void **state)
{
    (void)state;
    /* The whole head may have 1,024 bytes. */
    struct buffer found = {0};
    buffer_append_text(&found, "GET / 1.1 keep | Host:h A:");
    for (size_t i = 0; i < 992; i++)
        buffer_append_text(&found, "x");
    buffer_append_text(&found, " | ");
    expect_filled("GET / HTTP/1.1\r\nHost: h\r\nA: ", 'x', 1020, "\r\n\r\n", found.data);
    buffer_free(&found);
    expect_filled("GET / HTTP/1.1\r\nHost: h\r\nA: ", 'x', 1021, "\r\n\r\n", "431");
    expect_filled("GET / HTTP/1.1\r\nHost: h\r\nA: ", 'x', 2000, "", "431");
    expect_filled("GET /", 'x', 2000, " HTTP/1.1\r\n", "414");
    expect_filled("G", 'x', 2000, "", "414");
    expect_filled("POST / HTTP/1.1\r\nHost: h\r\n" CHUNKED "0\r\nA: ", 'x', 2000, "", "431");
    expect_filled("POST / HTTP/1.1\r\nHost: h\r\n" CHUNKED "5;", 'x', 400, "\r\n", "400");
    struct buffer many = {0};
    for (size_t i = 0; i < HTTP_MAX_FIELDS; i++)
        buffer_append_text(&many, "A:\r\n");
    buffer_append_text(&many, "\r\n");
    expect_fields("GET", many.data, "431");
    buffer_clear(&many);
    buffer_append_text(&many, "GET /?");
    for (size_t i = 0; i <= HTTP_MAX_PARAMETERS; i++)
        buffer_append_text(&many, "a&");
    buffer_append_text(&many, " HTTP/1.1");
    expect_line(many.data, "400");
    buffer_free(&many);
}

static void test_http_parse_lookup(void **state)
{
    (void)state;
    static const char text[] = "GET /?a=1&b=2&a=3 HTTP/1.1\r\nHost: h\r\nX-A: 1\r\nx-a: 2\r\n\r\n";
    struct http_request request = {0};
    /* The second time the request has the memory of the first. */
    for (size_t i = 0; i < 2; i++) {
        http_request_begin(&request, &limits);
        assert_int_equal(http_request_feed(&request, text, sizeof text - 1), sizeof text - 1);
        assert_int_equal(request.stage, HTTP_DONE);
        assert_true(view_equal(http_request_field(&request, "X-a"), view_of("1")));
        assert_null(http_request_field(&request, "X").data);
        assert_true(view_equal(http_request_parameter(&request, "a"), view_of("1")));
        assert_true(view_equal(http_request_parameter(&request, "b"), view_of("2")));
        assert_null(http_request_parameter(&request, "B").data);
    }
    http_request_free(&request);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_http_parse_requests),      cmocka_unit_test(test_http_parse_targets),
        cmocka_unit_test(test_http_parse_request_lines), cmocka_unit_test(test_http_parse_fields),
        cmocka_unit_test(test_http_parse_bodies),        cmocka_unit_test(test_http_parse_chunks),
        cmocka_unit_test(test_http_parse_limits),        cmocka_unit_test(test_http_parse_lookup),
    };
    return cmocka_run_group_tests_name("http_parse", tests, NULL, NULL);
}
