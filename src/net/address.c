#include "net/address.h"

#include <arpa/inet.h>
#include <net/if.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdio.h>
#include <string.h>

bool address_split(const char *address, char host[ADDRESS_HOST_BYTES], unsigned *port)
{
    const char *colon = strrchr(address, ':');
    if (colon == NULL)
        return false;
    const char *digits = colon + 1;
    size_t n_digits = strspn(digits, "0123456789");
    if (n_digits == 0 || n_digits > 5 || digits[n_digits] != '\0')
        return false;
    *port = 0;
    for (size_t i = 0; i < n_digits; i++)
        *port = *port * 10 + (unsigned)(digits[i] - '0');
    size_t size = (size_t)(colon - address);
    if (size > 0 && address[0] == '[') {
        if (size < 3 || address[size - 1] != ']')
            return false;
        address++;
        size -= 2;
    } else if (memchr(address, ':', size) != NULL) {
        return false;
    }
    if (size >= ADDRESS_HOST_BYTES || *port > ADDRESS_MAX_PORT)
        return false;
    memcpy(host, address, size);
    host[size] = '\0';
    return true;
}

bool address_numeric(const char *host, unsigned port, struct sockaddr_storage *out, socklen_t *size)
{
    struct addrinfo hints = {.ai_family = AF_UNSPEC,
                             .ai_socktype = SOCK_STREAM,
                             .ai_flags = AI_NUMERICHOST | AI_NUMERICSERV};
    struct addrinfo *found = NULL;
    char digits[16];
    snprintf(digits, sizeof digits, "%u", port);
    if (host[0] == '\0' || getaddrinfo(host, digits, &hints, &found) != 0)
        return false;
    memset(out, 0, sizeof *out);
    memcpy(out, found->ai_addr, found->ai_addrlen);
    *size = found->ai_addrlen;
    freeaddrinfo(found);
    return true;
}

unsigned address_port(const struct sockaddr *address)
{
    if (address->sa_family == AF_INET6)
        return ntohs(((const struct sockaddr_in6 *)address)->sin6_port);
    if (address->sa_family == AF_INET)
        return ntohs(((const struct sockaddr_in *)address)->sin_port);
    return 0;
}

/* The name of the interface that an address of one link belongs to, with its sign; or nothing. */
static void scope_text(const struct sockaddr_in6 *address, char out[IF_NAMESIZE + 1])
{
    out[0] = '\0';
    if (!IN6_IS_ADDR_LINKLOCAL(&address->sin6_addr) || address->sin6_scope_id == 0)
        return;
    out[0] = '%';
    if (if_indextoname(address->sin6_scope_id, out + 1) == NULL)
        snprintf(out + 1, IF_NAMESIZE, "%u", (unsigned)address->sin6_scope_id);
}

void address_text(const struct sockaddr *address, bool with_port, char out[NET_ADDRESS_BYTES])
{
    char host[INET6_ADDRSTRLEN], scope[IF_NAMESIZE + 1] = "";
    bool six = address->sa_family == AF_INET6;
    const void *bytes = six ? (const void *)&((const struct sockaddr_in6 *)address)->sin6_addr
                            : (const void *)&((const struct sockaddr_in *)address)->sin_addr;
    if ((!six && address->sa_family != AF_INET) ||
        inet_ntop(address->sa_family, bytes, host, sizeof host) == NULL) {
        snprintf(out, NET_ADDRESS_BYTES, "?");
        return;
    }
    if (six)
        scope_text((const struct sockaddr_in6 *)address, scope);
    if (!with_port)
        snprintf(out, NET_ADDRESS_BYTES, "%s%s", host, scope);
    else if (six)
        snprintf(out, NET_ADDRESS_BYTES, "[%s%s]:%u", host, scope, address_port(address));
    else
        snprintf(out, NET_ADDRESS_BYTES, "%s:%u", host, address_port(address));
}

/* ---- Numeric addresses ----------------------------------------------------------------------- */

struct numeric {
    int family; /* AF_UNSPEC: it is none */
    uint8_t bytes[sizeof(struct in6_addr)];
    char host[INET6_ADDRSTRLEN]; /* without the interface */
    char scope[IF_NAMESIZE + 1]; /* the interface, or nothing */
    unsigned port;
};

static bool read_host(struct numeric *out, const char *host)
{
    size_t size = strcspn(host, "%");
    if (size >= sizeof out->host || strlen(host + size) > sizeof out->scope)
        return false;
    memcpy(out->host, host, size);
    out->host[size] = '\0';
    if (host[size] == '%')
        memcpy(out->scope, host + size + 1, strlen(host + size));
    if (inet_pton(AF_INET, out->host, out->bytes) == 1)
        out->family = AF_INET;
    else if (inet_pton(AF_INET6, out->host, out->bytes) == 1)
        out->family = AF_INET6;
    return out->family != AF_UNSPEC;
}

static struct numeric numeric_of(const char *address)
{
    struct numeric out = {.family = AF_UNSPEC};
    char host[ADDRESS_HOST_BYTES];
    if (!read_host(&out, address) && address_split(address, host, &out.port))
        read_host(&out, host);
    return out;
}

bool net_address_near(const char *a, const char *b, unsigned prefix)
{
    struct numeric x = numeric_of(a), y = numeric_of(b);
    if (x.family == AF_UNSPEC || x.family != y.family)
        return false;
    unsigned bits = MIN(prefix, x.family == AF_INET ? 32u : 128u);
    if (memcmp(x.bytes, y.bytes, bits / 8) != 0)
        return false;
    uint8_t differs = bits % 8 != 0 ? x.bytes[bits / 8] ^ y.bytes[bits / 8] : 0;
    return differs >> (8 - bits % 8) == 0;
}

bool net_address_same(const char *a, const char *b)
{
    return net_address_near(a, b, 128);
}

bool net_address_of_link(const char *address)
{
    return net_address_near(address, "fe80::", 10);
}

bool net_address_host(const char *address, const char *interface, char out[NET_ADDRESS_BYTES])
{
    struct numeric at = numeric_of(address);
    if (interface != NULL && net_address_of_link(at.host))
        snprintf(out, NET_ADDRESS_BYTES, "%s%%%.*s", at.host, IF_NAMESIZE, interface);
    else
        snprintf(out, NET_ADDRESS_BYTES, "%s", at.host);
    return at.family != AF_UNSPEC;
}

void net_address_join(const char *host, unsigned port, char out[NET_ADDRESS_BYTES])
{
    const char *format = strchr(host, ':') != NULL ? "[%.70s]:%u" : "%.70s:%u";
    snprintf(out, NET_ADDRESS_BYTES, format, host, port);
}

unsigned net_address_port(const char *address)
{
    return numeric_of(address).port;
}

enum status net_resolve(const char *address, struct net_address *out, size_t max, size_t *n,
                        struct error *error)
{
    char host[ADDRESS_HOST_BYTES], digits[16];
    unsigned port = 0;
    *n = 0;
    if (!address_split(address, host, &port) || host[0] == '\0' || port == 0)
        return error_set(error, STATUS_INVALID,
                         "%s is no address: write host:port, such as mac-studio.local:4001 or "
                         "10.0.0.7:4001",
                         address);
    struct addrinfo hints = {.ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM};
    struct addrinfo *found = NULL;
    snprintf(digits, sizeof digits, "%u", port);
    int fault = getaddrinfo(host, digits, &hints, &found);
    if (fault != 0)
        return error_set(error, STATUS_NOT_FOUND, "the name %s is not known: %s", host,
                         gai_strerror(fault));
    for (const struct addrinfo *one = found; one != NULL && *n < max; one = one->ai_next)
        address_text(one->ai_addr, true, out[(*n)++].text);
    freeaddrinfo(found);
    return STATUS_OK;
}
