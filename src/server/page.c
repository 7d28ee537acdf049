/* Serves the embedded page. It holds no data of anyone, so it is given without a key; what it shows
 * it asks for by the API, with the key that its user enters. */
#include "server/page.h"

#include <openssl/evp.h>
#include <stdio.h>
#include <string.h>

#define DIGEST_BYTES 32
#define BASE64_BYTES 45 /* of a digest, with its zero */

/* The SHA-256 of text in base64. */
static void digest(struct view text, char out[BASE64_BYTES])
{
    unsigned char bytes[DIGEST_BYTES];
    if (EVP_Digest(text.data, text.size, bytes, NULL, EVP_sha256(), NULL) == 1)
        EVP_EncodeBlock((unsigned char *)out, bytes, DIGEST_BYTES);
    else
        out[0] = '\0'; /* a hash that nothing matches */
}

/* What stands in the page between two marks; empty where they are not there. */
static struct view between(struct view page, const char *begin, const char *end)
{
    size_t from = view_find(page, 0, view_of(begin)) + strlen(begin);
    if (from > page.size)
        return (struct view){"", 0};
    size_t to = view_find(page, from, view_of(end));
    return (struct view){page.data + from, to - from};
}

void page_prepare(struct page_head *head)
{
    struct view page = {(const char *)page_html, page_html_size};
    char all[BASE64_BYTES], script[BASE64_BYTES], style[BASE64_BYTES];
    digest(page, all);
    digest(between(page, "<script>", "</script>"), script);
    digest(between(page, "<style>", "</style>"), style);
    snprintf(head->etag, sizeof head->etag, "W/\"%s\"", all);
    snprintf(head->policy, sizeof head->policy,
             "default-src 'none'; script-src 'sha256-%s'; style-src 'sha256-%s'; img-src data:; "
             "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
             "require-trusted-types-for 'script'; trusted-types dompurify",
             script, style);
}

void page_reply(const struct page_head *head, struct http_exchange *exchange)
{
    struct view known = http_header(exchange, "If-None-Match");
    struct view codings = http_header(exchange, "Accept-Encoding");
    bool small = view_contains(codings, "gzip") && !view_contains(codings, "gzip;q=0");
    struct http_field fields[] = {
        {"ETag", head->etag},
        {"Cache-Control", "no-cache"},
        {"Vary", "Accept-Encoding"},
        {"Content-Security-Policy", head->policy},
        {"X-Content-Type-Options", "nosniff"},
        {"Referrer-Policy", "no-referrer"},
        {"Cross-Origin-Opener-Policy", "same-origin"},
        {"Cross-Origin-Resource-Policy", "same-origin"},
        {small ? "Content-Encoding" : NULL, "gzip"},
        {NULL, NULL},
    };
    if (view_contains(known, head->etag)) {
        fields[8].name = NULL;
        http_reply(exchange, 304, NULL, (struct view){"", 0}, fields);
        return;
    }
    struct view body = small ? (struct view){(const char *)page_gzip, page_gzip_size}
                             : (struct view){(const char *)page_html, page_html_size};
    http_reply(exchange, 200, "text/html; charset=utf-8", body, fields);
}
