/* One HTTP/1 request out of bytes that come in pieces of any size; no sockets (RFC 9112).
 *
 *   POST /v1/chat/completions?x=1 HTTP/1.1 CRLF        HTTP_LINE
 *   Host: 127.0.0.1:4000 CRLF                          HTTP_FIELDS
 *   Transfer-Encoding: chunked CRLF
 *   CRLF
 *   4 CRLF                                             HTTP_CHUNK_SIZE   (HTTP_BODY with a length)
 *   {"a" CRLF                                          HTTP_CHUNK_DATA, HTTP_CHUNK_END
 *   0 CRLF                                             HTTP_CHUNK_SIZE
 *   Field: value CRLF                                  HTTP_TRAILERS
 *   CRLF
 *
 * Where two readers of the same bytes could disagree about where a request ends, the request is
 * refused (bare LF, folded lines, space before a colon, both lengths, two lengths). The result
 * depends only on the bytes, not on how they were split. Memory is taken only for bytes that came.
 */
#ifndef CONSORT_HTTP_PARSE_H
#define CONSORT_HTTP_PARSE_H

#include "base/base.h"

enum {
    HTTP_MAX_LINE = 16 << 10,    /* request line, bytes */
    HTTP_MAX_METHOD = 32,        /* bytes */
    HTTP_MAX_FIELDS = 128,       /* header fields */
    HTTP_MAX_PARAMETERS = 64,    /* of the query */
    HTTP_MAX_CHUNK_LINE = 256,   /* size and extensions of a chunk, bytes */
    HTTP_MAX_LENGTH_DIGITS = 18, /* of a Content-Length, leading zeros among them */
    HTTP_MAX_CHUNK_SIZE_DIGITS = 15,
};

struct http_limits {
    size_t header_bytes; /* at most UINT32_MAX */
    size_t body_bytes;
};

enum http_stage {
    HTTP_LINE,
    HTTP_FIELDS,
    HTTP_BODY,
    HTTP_CHUNK_SIZE,
    HTTP_CHUNK_DATA,
    HTTP_CHUNK_END,
    HTTP_TRAILERS,
    HTTP_DONE,
    HTTP_FAILED,
};

/* A part of http_request.head. */
struct http_slice {
    uint32_t offset;
    uint32_t size;
};

struct http_pair {
    struct http_slice name;
    struct http_slice value;
};

struct http_pairs {
    struct http_pair *items;
    size_t count, capacity;
};

struct http_request {
    struct http_limits limits;
    enum http_stage stage;
    int error_status;       /* once HTTP_FAILED: the status to answer with, */
    const char *error_text; /* and a sentence without quotes */

    struct buffer head;   /* the lines as they came, escapes of path and query decoded in place */
    size_t line_begin;    /* in head: of the line that is being read */
    bool blank_line_came; /* one is allowed before a request */
    struct http_slice method;
    struct http_slice path;      /* empty where the target names a host alone */
    struct http_slice authority; /* of an absolute target: what counts as Host */
    struct http_pairs parameters;
    struct http_pairs fields;
    unsigned minor_version; /* HTTP/1.0 or 1.1 */
    bool keep_alive;
    bool expects_continue;

    struct buffer body;
    uint64_t left; /* bytes of the body or chunk that are still to come */
};

/* An all-zero request needs http_request_begin before the first byte. begin again keeps memory of
 * moderate size for the next request; free gives all of it back. */
void http_request_begin(struct http_request *request, const struct http_limits *limits);
void http_request_free(struct http_request *request);

/* Takes bytes until the request is whole (HTTP_DONE) or refused (HTTP_FAILED); returns how many.
 * What is left belongs to the next request, or to nobody. */
size_t http_request_feed(struct http_request *request, const char *data, size_t size);

/* Refuses the request for a reason of the caller. text lives on. */
void http_request_fail(struct http_request *request, int status, const char *text);

struct view http_request_slice(const struct http_request *request, struct http_slice slice);
/* data is NULL where there is none. Names of fields match in any case. */
struct view http_request_field(const struct http_request *request, const char *name);
struct view http_request_parameter(const struct http_request *request, const char *name);

#endif
