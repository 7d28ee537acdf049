/* Pages of other sites: what is local, and CORS (fetch.spec.whatwg.org, "HTTP extensions"). */
#include "gateway/gateway_internal.h"

#include <string.h>
#include <strings.h>

/* ---- Names of this machine ------------------------------------------------------------------- */

struct view host_of(struct view text)
{
    const struct view scheme = {"://", 3};
    size_t begin = view_find(text, 0, scheme), end = 0;
    if (begin + scheme.size < text.size)
        text = (struct view){text.data + begin + scheme.size, text.size - begin - scheme.size};
    if (text.size > 0 && text.data[0] == '[')
        while (end < text.size && text.data[end] != ']')
            end++;
    while (end < text.size && text.data[end] != ':' && text.data[end] != '/')
        end++;
    text.size = end;
    return text;
}

bool host_is_loopback(struct view host)
{
    static const char *const names[] = {"localhost", "[::1]", "::1"};
    for (size_t i = 0; i < ARRAY_COUNT(names); i++)
        if (host.size == strlen(names[i]) && strncasecmp(host.data, names[i], host.size) == 0)
            return true;
    if (host.size < 7 || host.size > 15 || memcmp(host.data, "127.", 4) != 0)
        return false;
    for (size_t i = 4; i < host.size; i++) /* a name like 127.evil.example is none of ours */
        if (host.data[i] != '.' && (host.data[i] < '0' || host.data[i] > '9'))
            return false;
    return true;
}

/* An address, a name without dots, or one that only the local network gives. */
static bool is_local_name(struct view host)
{
    const struct view local = {".local", 6};
    bool numbers = true, dots = false;
    for (size_t i = 0; i < host.size; i++) {
        dots |= host.data[i] == '.';
        numbers &= host.data[i] == '.' || (host.data[i] >= '0' && host.data[i] <= '9');
    }
    return numbers || !dots || host.data[0] == '[' ||
           (host.size > local.size &&
            strncasecmp(host.data + host.size - local.size, local.data, local.size) == 0);
}

bool origin_is_own(struct view origin, struct view host)
{
    const struct view scheme = {"://", 3};
    size_t begin = view_find(origin, 0, scheme) + scheme.size;
    return begin < origin.size && host.size > 0 && is_local_name(host_of(host)) &&
           view_equal((struct view){origin.data + begin, origin.size - begin}, host);
}

/* ---- CORS ------------------------------------------------------------------------------------ */

static bool is_named(const struct gateway *gateway, struct view origin)
{
    for (size_t i = 0; i < gateway->options.n_origins; i++) {
        const char *named = gateway->options.origins[i];
        if (strcmp(named, "*") == 0 || view_equal(origin, view_of(named)))
            return true;
    }
    return false;
}

static void add_field(struct http_exchange *exchange, const char *name, struct view value)
{
    struct buffer text = {0};
    if (buffer_append(&text, value.data, value.size))
        http_add_field(exchange, name, text.data);
    buffer_free(&text);
}

bool gateway_cross_origin(struct gateway *gateway, struct http_exchange *exchange)
{
    struct view origin = http_header(exchange, "Origin");
    if (gateway->options.n_origins == 0)
        return false;
    http_add_field(exchange, "Vary", "Origin");
    if (origin.data == NULL || !is_named(gateway, origin))
        return false;
    add_field(exchange, "Access-Control-Allow-Origin", origin);
    http_add_field(exchange, "Access-Control-Expose-Headers",
                   "Retry-After, x-ratelimit-limit-requests, x-ratelimit-limit-tokens, "
                   "x-ratelimit-remaining-requests, x-ratelimit-remaining-tokens, "
                   "x-ratelimit-reset-requests, x-ratelimit-reset-tokens");
    struct view fields = http_header(exchange, "Access-Control-Request-Headers");
    if (!view_equal(http_method(exchange), view_of("OPTIONS")) ||
        http_header(exchange, "Access-Control-Request-Method").data == NULL)
        return false;
    http_add_field(exchange, "Access-Control-Allow-Methods", "GET, HEAD, POST, DELETE");
    http_add_field(exchange, "Access-Control-Max-Age", "600");
    if (fields.data != NULL) /* the key among them; what a server would refuse is none of CORS */
        add_field(exchange, "Access-Control-Allow-Headers", fields);
    http_reply(exchange, 204, NULL, (struct view){"", 0}, NULL);
    return true;
}
