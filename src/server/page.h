/* The page in the browser: its bytes, built from web/ and embedded by tools/embed-page, and how it
 * is served. */
#ifndef CONSORT_SERVER_PAGE_H
#define CONSORT_SERVER_PAGE_H

#include "net/net.h"

extern const unsigned char page_html[];
extern const size_t page_html_size;
extern const unsigned char page_gzip[]; /* the same, compressed */
extern const size_t page_gzip_size;

/* What goes with the page in every answer. */
struct page_head {
    char etag[64];
    char policy[768]; /* Content-Security-Policy, which lets only the page's own script run */
};

void page_prepare(struct page_head *head);
/* Answers with the page, or with 304 where the client has it. */
void page_reply(const struct page_head *head, struct http_exchange *exchange);

#endif
