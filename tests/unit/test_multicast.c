/* Interfaces of this machine, and datagrams to everyone who listens on it. */
#include "net/net.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

enum { GUARD_MS = 60000, N_LISTENERS = 2, AGAIN_MS = 50 };

static const struct net_interface *loopback(const struct net_interface *all, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (all[i].kind == NET_INTERFACE_LOOPBACK)
            return &all[i];
    return NULL;
}

static void test_interfaces(void **state)
{
    (void)state;
    struct net_interface *all;
    size_t n;
    struct error error;
    if (net_interfaces(&all, &n, &error) != STATUS_OK)
        fail_msg("%s", error.text);
    const struct net_interface *found = loopback(all, n);
    assert_non_null(found);
    assert_true(found->index > 0);
    assert_true(found->multicast);
    assert_true(found->running);
    bool four = false;
    for (size_t i = 0; i < found->n_addresses; i++)
        four = four || (strcmp(found->addresses[i], "127.0.0.1") == 0 && found->prefixes[i] == 8);
    assert_int_equal(net_interface_check(found->name, &error), STATUS_OK);
    assert_int_equal(net_interface_check("nowhere", &error), STATUS_NOT_FOUND);
    assert_non_null(strstr(error.text, found->name));
    assert_true(four);
    for (size_t i = 0; i < n; i++) {
        assert_true(all[i].n_addresses > 0);
        assert_true(strlen(net_interface_kind_text(all[i].kind)) > 0);
        for (size_t k = 0; k < i; k++)
            assert_string_not_equal(all[i].name, all[k].name);
    }
    free(all);
}

/* ---- Multicast ---- */

struct listener {
    struct party *party;
    size_t heard, others;
    char from[NET_ADDRESS_BYTES];
};

struct party {
    struct net_loop *loop;
    struct net_multicast *multicasts[N_LISTENERS];
    struct listener listeners[N_LISTENERS];
    char message[64];
    struct net_timer *again;
    bool close_when_heard;
};

static void hear(void *context, struct view datagram, const char *from)
{
    struct listener *listener = context;
    struct party *party = listener->party;
    if (!view_equal(datagram, view_of(party->message))) {
        listener->others++;
        return;
    }
    listener->heard++;
    snprintf(listener->from, sizeof listener->from, "%s", from);
    if (party->close_when_heard) {
        size_t i = (size_t)(listener - party->listeners);
        net_multicast_close(party->multicasts[i]);
        party->multicasts[i] = NULL;
    }
    for (size_t i = 0; i < N_LISTENERS; i++)
        if (party->listeners[i].heard == 0)
            return;
    net_loop_stop(party->loop);
}

/* A datagram may get lost. */
static void say_again(void *context)
{
    struct party *party = context;
    for (size_t i = 0; i < N_LISTENERS; i++)
        if (party->multicasts[i] != NULL)
            net_multicast_send(party->multicasts[i], view_of(party->message));
    party->again = net_loop_after(party->loop, AGAIN_MS, say_again, party);
}

static void too_late(void *context)
{
    (void)context;
    fail_msg("nobody heard the datagram");
}

static void hold_party(struct party *party, const char *group4, const char *group6)
{
    struct error error;
    /* Several test runs on one machine do not understand each other. */
    snprintf(party->message, sizeof party->message, "hello %016llx",
             (unsigned long long)rng_entropy());
    assert_int_equal(net_loop_open(&party->loop, &error), STATUS_OK);
    for (size_t i = 0; i < N_LISTENERS; i++) {
        struct net_multicast_options options = {.group4 = group4,
                                                .group6 = group6,
                                                .port = 47123,
                                                .refresh_ms = 20,
                                                .received = hear,
                                                .context = &party->listeners[i]};
        party->listeners[i] = (struct listener){.party = party};
        if (net_multicast_open(&party->multicasts[i], party->loop, &options, &error) != STATUS_OK)
            fail_msg("%s", error.text);
    }
    assert_true(net_multicast_joined(party->multicasts[0]) > 0);
    struct net_timer *guard = net_loop_after(party->loop, GUARD_MS, too_late, NULL);
    say_again(party);
    net_loop_run(party->loop);
    net_timer_cancel(guard);
    net_timer_cancel(party->again);
}

static void end_party(struct party *party)
{
    for (size_t i = 0; i < N_LISTENERS; i++)
        net_multicast_close(party->multicasts[i]);
    net_loop_close(party->loop);
}

static void test_multicast(void **state)
{
    (void)state;
    struct party party = {0};
    hold_party(&party, "239.255.71.23", "ff02::7123");
    assert_true(strlen(party.listeners[0].from) > 0);
    char large[NET_DATAGRAM_BYTES + 1] = {0};
    assert_int_equal(net_multicast_send(party.multicasts[0], (struct view){large, sizeof large}),
                     0);
    end_party(&party);
}

static void test_multicast_closed_while_heard(void **state)
{
    (void)state;
    struct party party = {.close_when_heard = true};
    hold_party(&party, "239.255.71.24", NULL);
    assert_null(party.multicasts[0]);
    assert_null(party.multicasts[1]);
    end_party(&party);
}

static void test_multicast_none(void **state)
{
    (void)state;
    struct net_loop *loop;
    struct net_multicast *multicast;
    struct error error;
    assert_int_equal(net_loop_open(&loop, &error), STATUS_OK);
    struct net_multicast_options options = {.group4 = "no group", .port = 47123, .received = hear};
    assert_int_equal(net_multicast_open(&multicast, loop, &options, &error), STATUS_IO);
    net_multicast_close(NULL);
    net_loop_close(loop);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_interfaces),
        cmocka_unit_test(test_multicast),
        cmocka_unit_test(test_multicast_closed_while_heard),
        cmocka_unit_test(test_multicast_none),
    };
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
