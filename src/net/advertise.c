/* A service of this machine, told to the networks around it by DNS-SD (RFC 6763): by the system's
 * own daemon, which macOS has, and Debian as Avahi. What asks the daemon may wait for it, so it
 * runs on a thread of its own; answers come by a descriptor, which the loop watches. */
#include "net/internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifdef CONSORT_DNS_SD

#include <arpa/inet.h>
#include <dns_sd.h>
#include <event2/event.h>
#include <event2/event_struct.h>
#include <pthread.h>

enum { MAX_SERVICES = 4, TXT_BYTES = 512 };

struct service {
    struct net_advertisement *of;
    char type[64];
    DNSServiceRef ref; /* NULL: not registered */
    struct event event;
    bool watched;
};

struct net_advertisement {
    struct net_loop *loop;
    pthread_t thread;
    net_told *told;
    void *context;
    char name[64];
    unsigned port;
    uint8_t txt[TXT_BYTES];
    size_t txt_bytes;
    struct service services[MAX_SERVICES]; /* the thread's until it posted them */
    size_t n_services;
    DNSServiceErrorType fault;
    bool posted;                /* the thread's, until it is joined */
    bool taken, closed, failed; /* the loop's */
};

static void withdraw(struct net_advertisement *advertisement)
{
    for (size_t i = 0; i < advertisement->n_services; i++) {
        struct service *service = &advertisement->services[i];
        if (service->watched)
            event_del(&service->event);
        if (service->ref != NULL)
            DNSServiceRefDeallocate(service->ref);
        service->ref = NULL;
        service->watched = false;
    }
}

/* Once: there is nothing to be done about it. */
static void fail(struct net_advertisement *advertisement, DNSServiceErrorType fault)
{
    char line[128];
    if (advertisement->failed)
        return;
    advertisement->failed = true;
    snprintf(line, sizeof line,
             "is not advertised by DNS-SD: the system's daemon does not answer (%d)", (int)fault);
    advertisement->told(advertisement->context, line);
}

/* From DNSServiceProcessResult. */
static void answered(DNSServiceRef ref, DNSServiceFlags flags, DNSServiceErrorType fault,
                     const char *name, const char *type, const char *domain, void *context)
{
    struct service *service = context;
    char line[256];
    (void)ref, (void)flags;
    if (!service->watched) { /* from within DNSServiceRegister, on the thread */
        if (fault != kDNSServiceErr_NoError)
            service->of->fault = fault;
        return;
    }
    if (fault != kDNSServiceErr_NoError) {
        fail(service->of, fault);
        return;
    }
    snprintf(line, sizeof line, "advertised as %.63s in %.64s%.64s", name, type, domain);
    service->of->told(service->of->context, line);
}

static void on_readable(evutil_socket_t fd, short what, void *context)
{
    struct service *service = context;
    (void)fd, (void)what;
    DNSServiceErrorType fault = DNSServiceProcessResult(service->ref);
    if (fault == kDNSServiceErr_NoError)
        return;
    fail(service->of, fault); /* the daemon ended */
    withdraw(service->of);
}

/* On the loop: what the thread registered. */
static void take(void *context)
{
    struct net_advertisement *advertisement = context;
    for (size_t i = 0; i < advertisement->n_services && !advertisement->closed; i++) {
        struct service *service = &advertisement->services[i];
        if (service->ref == NULL)
            continue;
        event_assign(&service->event, net_loop_base(advertisement->loop),
                     DNSServiceRefSockFD(service->ref), EV_READ | EV_PERSIST, on_readable, service);
        service->watched = event_add(&service->event, NULL) == 0;
    }
    advertisement->taken = true;
    if (advertisement->closed) {
        withdraw(advertisement);
        free(advertisement);
    } else if (advertisement->fault != kDNSServiceErr_NoError) {
        fail(advertisement, advertisement->fault);
    }
}

static void *advertise(void *context)
{
    struct net_advertisement *advertisement = context;
    for (size_t i = 0; i < advertisement->n_services; i++) {
        struct service *service = &advertisement->services[i];
        DNSServiceErrorType fault = DNSServiceRegister(
            &service->ref, 0, kDNSServiceInterfaceIndexAny, advertisement->name, service->type,
            NULL, NULL, htons((uint16_t)advertisement->port), (uint16_t)advertisement->txt_bytes,
            advertisement->txt, answered, service);
        if (fault == kDNSServiceErr_NoError)
            continue;
        service->ref = NULL;
        advertisement->fault = fault;
    }
    advertisement->posted = net_loop_post(advertisement->loop, take, advertisement);
    return NULL;
}

/* Length and text, as a TXT record has them. */
static void add_text(struct net_advertisement *advertisement, const char *text)
{
    size_t size = strlen(text);
    if (size == 0 || size > UINT8_MAX || advertisement->txt_bytes + 1 + size > TXT_BYTES)
        return;
    advertisement->txt[advertisement->txt_bytes++] = (uint8_t)size;
    memcpy(advertisement->txt + advertisement->txt_bytes, text, size);
    advertisement->txt_bytes += size;
}

enum status net_advertise_open(struct net_advertisement **out, struct net_loop *loop,
                               const struct net_service *service, net_told *told, void *context,
                               struct error *error)
{
    struct net_advertisement *advertisement = calloc(1, sizeof *advertisement);
    *out = NULL;
    if (advertisement == NULL)
        return error_memory(error, sizeof *advertisement);
    advertisement->loop = loop;
    advertisement->told = told;
    advertisement->context = context;
    advertisement->port = service->port;
    snprintf(advertisement->name, sizeof advertisement->name, "%s", service->name);
    for (size_t i = 0; i < MAX_SERVICES && service->types[i] != NULL; i++) {
        struct service *at = &advertisement->services[advertisement->n_services++];
        at->of = advertisement;
        snprintf(at->type, sizeof at->type, "%s", service->types[i]);
    }
    for (size_t i = 0; service->texts != NULL && service->texts[i] != NULL; i++)
        add_text(advertisement, service->texts[i]);
    setenv("AVAHI_COMPAT_NOWARN", "1", 1); /* it advises programs to use another interface */
    if (!thread_start(&advertisement->thread, advertise, advertisement)) {
        free(advertisement);
        return error_set(error, STATUS_MEMORY, "cannot start a thread");
    }
    *out = advertisement;
    return STATUS_OK;
}

void net_advertise_close(struct net_advertisement *advertisement)
{
    if (advertisement == NULL)
        return;
    pthread_join(advertisement->thread, NULL);
    advertisement->closed = true;
    if (advertisement->posted && !advertisement->taken)
        return; /* what was posted frees it */
    withdraw(advertisement);
    free(advertisement);
}

#else

enum status net_advertise_open(struct net_advertisement **out, struct net_loop *loop,
                               const struct net_service *service, net_told *told, void *context,
                               struct error *error)
{
    (void)loop, (void)service, (void)told, (void)context;
    *out = NULL;
    return error_set(error, STATUS_UNSUPPORTED, "this build has no DNS-SD");
}

void net_advertise_close(struct net_advertisement *advertisement)
{
    (void)advertisement;
}

#endif
