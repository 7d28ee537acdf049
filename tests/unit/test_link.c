/* Links between two sides on one loop, and wires on threads of their own. */
#include "net/link_internal.h"

#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <arpa/inet.h>
#include <netinet/in.h>
#include <openssl/ssl.h>
#include <sys/socket.h>

#include <cmocka.h>

enum {
    GUARD_MS = 60000,
    N_LINKS = 64,
};

static const struct net_link_key good_key = {"consort-link/1:test:1", {1, 2, 3}};

/* One side of a link, as the test sees it. */
struct side {
    struct fixture *fixture;
    struct net_link *link;
    struct net_hello hello; /* the other side's */
    struct buffer got;      /* types and messages */
    struct net_wire *wire;
    size_t messages, message_bytes;
    int ups, downs;
    enum net_link_fault fault;
    char text[256];
};

struct fixture {
    struct net_loop *loop;
    struct net_link_server *server;
    char address[NET_ADDRESS_BYTES];
    struct net_hello hello;
    size_t pending_bytes, frame_bytes;
    unsigned timeout_ms;
    bool detach;           /* the server takes every link as a wire */
    bool close_in_message; /* the server closes at the first message */
    bool echo;
    struct side accepted[N_LINKS];
    size_t n_accepted;
    int refusals;
    enum net_link_fault refusal;
    /* What net_loop_run waits for; true ends it. */
    bool (*until)(struct fixture *fixture);
    struct side client;
    int passed;
};

static void check(struct fixture *fixture)
{
    if (fixture->until != NULL && fixture->until(fixture))
        net_loop_stop(fixture->loop);
}

static void too_late(void *context)
{
    (void)context;
    fail_msg("the test took too long");
}

static void run_until(struct fixture *fixture, bool (*until)(struct fixture *fixture))
{
    fixture->until = until;
    if (until(fixture))
        return;
    struct net_timer *guard = net_loop_after(fixture->loop, GUARD_MS, too_late, NULL);
    net_loop_run(fixture->loop);
    net_timer_cancel(guard);
    fixture->until = NULL;
}

/* ---- Callbacks ---- */

static void take_up(struct side *side, struct net_link *link, const struct net_hello *hello)
{
    side->link = link;
    side->hello = *hello;
    side->ups++;
}

static void take_message(struct side *side, struct net_link *link, uint8_t type,
                         struct view message)
{
    struct fixture *fixture = side->fixture;
    assert_ptr_equal(side->link, link);
    side->messages++;
    side->message_bytes += message.size;
    buffer_printf(&side->got, "%u:", type);
    buffer_append(&side->got, message.data, MIN(message.size, (size_t)32));
    buffer_append_text(&side->got, "\n");
    if (fixture->close_in_message && side != &fixture->client) {
        side->link = NULL;
        net_link_close(link);
    } else if (fixture->echo && side != &fixture->client) {
        assert_true(net_link_send(link, type, message));
    }
    check(fixture);
}

static void take_down(struct side *side, enum net_link_fault fault, const char *text)
{
    side->link = NULL;
    side->downs++;
    side->fault = fault;
    snprintf(side->text, sizeof side->text, "%s", text);
    check(side->fixture);
}

static void client_up(void *context, struct net_link *link, const struct net_hello *hello)
{
    take_up(context, link, hello);
    check(((struct side *)context)->fixture);
}

static void on_message(void *context, struct net_link *link, uint8_t type, struct view message)
{
    (void)context;
    take_message(net_link_context(link), link, type, message);
}

static void on_down(void *context, struct net_link *link, enum net_link_fault fault,
                    const char *text)
{
    (void)link;
    take_down(context, fault, text);
}

static void server_up(void *context, struct net_link *link, const struct net_hello *hello)
{
    struct fixture *fixture = context;
    assert_in_range(fixture->n_accepted, 0, N_LINKS - 1);
    struct side *side = &fixture->accepted[fixture->n_accepted++];
    assert_true(net_link_accepted(link));
    assert_ptr_equal(net_link_context(link), fixture);
    side->fixture = fixture;
    take_up(side, link, hello);
    net_link_set_context(link, side);
    if (fixture->detach) {
        side->wire = net_link_detach(link);
        assert_non_null(side->wire);
        side->link = NULL;
    }
    check(fixture);
}

static void server_refused(void *context, const char *peer, enum net_link_fault fault,
                           const char *text)
{
    struct fixture *fixture = context;
    assert_non_null(strstr(text, peer));
    fixture->refusals++;
    fixture->refusal = fault;
    check(fixture);
}

static const struct net_link_events client_events = {client_up, on_message, on_down, NULL};
static const struct net_link_events server_events = {server_up, on_message, on_down,
                                                     server_refused};

static bool find_key(void *context, struct view identity, uint8_t secret[NET_SECRET_BYTES])
{
    (void)context;
    if (!view_equal(identity, view_of(good_key.identity)))
        return false;
    memcpy(secret, good_key.secret, NET_SECRET_BYTES);
    return true;
}

/* ---- Fixture ---- */

static struct net_hello make_hello(const char *node, enum net_purpose purpose, const char *info)
{
    struct net_hello hello = {.incarnation = 0x1122334455667788u, .purpose = purpose};
    memcpy(hello.node, node, strlen(node));
    snprintf(hello.info, sizeof hello.info, "%s", info);
    return hello;
}

static void open_server(struct fixture *fixture)
{
    struct error error;
    struct net_link_server_options options = {
        .link = {.events = &server_events,
                 .context = fixture,
                 .hello = fixture->hello,
                 .timeout_ms = fixture->timeout_ms,
                 .frame_bytes = fixture->frame_bytes,
                 .pending_bytes = fixture->pending_bytes},
        .find_key = find_key,
    };
    fixture->client.fixture = fixture;
    if (net_loop_open(&fixture->loop, &error) != STATUS_OK ||
        net_link_server_open(&fixture->server, fixture->loop, "127.0.0.1:0", &options, &error) !=
            STATUS_OK)
        fail_msg("%s", error.text);
    snprintf(fixture->address, sizeof fixture->address, "127.0.0.1:%u",
             net_link_server_port(fixture->server));
}

static void close_server(struct fixture *fixture)
{
    net_link_close(fixture->client.link);
    for (size_t i = 0; i < fixture->n_accepted; i++) {
        net_link_close(fixture->accepted[i].link);
        net_wire_close(fixture->accepted[i].wire);
        buffer_free(&fixture->accepted[i].got);
    }
    buffer_free(&fixture->client.got);
    net_link_server_close(fixture->server);
    net_loop_close(fixture->loop);
}

static void connect_with(struct fixture *fixture, struct side *side, const char *address,
                         const struct net_link_key *key, enum net_purpose purpose)
{
    struct error error;
    struct net_link_options options = {.events = &client_events,
                                       .context = side,
                                       .hello = make_hello("client", purpose, "{\"a\":1}"),
                                       .timeout_ms = fixture->timeout_ms,
                                       .frame_bytes = fixture->frame_bytes,
                                       .pending_bytes = fixture->pending_bytes};
    side->fixture = fixture;
    if (net_link_connect(&side->link, fixture->loop, address, key, &options, &error) != STATUS_OK)
        fail_msg("%s", error.text);
}

static bool both_up(struct fixture *fixture)
{
    return fixture->client.ups == 1 && fixture->n_accepted == 1;
}

static void connect_client(struct fixture *fixture)
{
    connect_with(fixture, &fixture->client, fixture->address, &good_key, NET_CONTROL);
    run_until(fixture, both_up);
}

static bool client_down(struct fixture *fixture)
{
    return fixture->client.downs == 1;
}

static bool server_down(struct fixture *fixture)
{
    return fixture->accepted[0].downs == 1;
}

static bool both_refused(struct fixture *fixture)
{
    return fixture->client.downs == 1 && fixture->refusals == 1;
}

static bool one_refused(struct fixture *fixture)
{
    return fixture->refusals == 1;
}

/* ---- Links ---- */

static bool three_messages(struct fixture *fixture)
{
    return fixture->client.messages == 3;
}

static void test_link_messages(void **state)
{
    (void)state;
    struct fixture fixture = {.echo = true, .hello = make_hello("server", 0, "{\"b\":2}")};
    open_server(&fixture);
    connect_client(&fixture);
    struct side *server = &fixture.accepted[0], *client = &fixture.client;
    assert_string_equal(server->hello.info, "{\"a\":1}");
    assert_string_equal(client->hello.info, "{\"b\":2}");
    assert_memory_equal(server->hello.node, "client", 7);
    assert_memory_equal(client->hello.node, "server", 7);
    assert_int_equal(client->hello.purpose, NET_CONTROL);
    assert_true(client->hello.incarnation == 0x1122334455667788u);
    assert_string_equal(net_link_identity(server->link), good_key.identity);
    assert_string_equal(net_link_peer(client->link), fixture.address);
    assert_false(net_link_accepted(client->link));

    assert_true(net_link_send(client->link, 1, view_of("one")));
    assert_true(net_link_send(client->link, 255, view_of("")));
    assert_true(net_link_send(client->link, 7, view_of("three")));
    assert_false(net_link_send(client->link, HELLO_TYPE, view_of("no")));
    run_until(&fixture, three_messages);
    assert_string_equal(client->got.data, "1:one\n255:\n7:three\n");
    assert_string_equal(server->got.data, client->got.data);
    close_server(&fixture);
}

static bool large_back(struct fixture *fixture)
{
    return fixture->client.message_bytes == 4 * (size_t)NET_FRAME_BYTES;
}

static void test_link_large_messages(void **state)
{
    (void)state;
    struct fixture fixture = {.echo = true};
    char *large = calloc(1, NET_FRAME_BYTES + 1);
    open_server(&fixture);
    connect_client(&fixture);
    /* Four messages of the largest size are less than may be pending. */
    for (size_t i = 0; i < 4; i++)
        assert_true(net_link_send(fixture.client.link, 1, (struct view){large, NET_FRAME_BYTES}));
    assert_false(net_link_send(fixture.client.link, 1, (struct view){large, NET_FRAME_BYTES + 1}));
    run_until(&fixture, large_back);
    close_server(&fixture);
    free(large);
}

static bool longer_back(struct fixture *fixture)
{
    return fixture->client.message_bytes == 3 * (size_t)NET_FRAME_BYTES;
}

static void test_link_longer_messages(void **state)
{
    (void)state;
    struct fixture fixture = {.echo = true, .frame_bytes = 3 * (size_t)NET_FRAME_BYTES};
    char *large = calloc(1, fixture.frame_bytes + 1);
    open_server(&fixture);
    connect_client(&fixture);
    struct net_link *link = fixture.client.link;
    assert_true(net_link_send(link, 1, (struct view){large, fixture.frame_bytes}));
    assert_false(net_link_send(link, 1, (struct view){large, fixture.frame_bytes + 1}));
    run_until(&fixture, longer_back);
    close_server(&fixture);
    free(large);
}

/* Who closes is seen on the other side as closed; what was sent before arrives. */
static void test_link_close(void **state)
{
    (void)state;
    struct fixture fixture = {0};
    open_server(&fixture);
    connect_client(&fixture);
    assert_true(net_link_send(fixture.client.link, 3, view_of("last words")));
    net_link_close(fixture.client.link);
    fixture.client.link = NULL;
    run_until(&fixture, server_down);
    assert_string_equal(fixture.accepted[0].got.data, "3:last words\n");
    assert_int_equal(fixture.accepted[0].fault, NET_LINK_CLOSED);
    assert_int_equal(fixture.client.downs, 0);
    close_server(&fixture);
}

static void test_link_close_in_callback(void **state)
{
    (void)state;
    struct fixture fixture = {.close_in_message = true};
    open_server(&fixture);
    connect_client(&fixture);
    for (size_t i = 0; i < 3; i++)
        assert_true(net_link_send(fixture.client.link, 1, view_of("x")));
    run_until(&fixture, client_down);
    assert_int_equal(fixture.accepted[0].messages, 1);
    assert_int_equal(fixture.accepted[0].downs, 0);
    close_server(&fixture);
}

/* A connection that ends without a goodbye is broken, not closed; half of one, too. */
static void test_link_reset(void **state)
{
    (void)state;
    static const int ways[] = {SHUT_RDWR, SHUT_WR};
    for (size_t i = 0; i < ARRAY_COUNT(ways); i++) {
        struct fixture fixture = {0};
        open_server(&fixture);
        connect_client(&fixture);
        shutdown(fixture.accepted[0].link->stream.fd, ways[i]);
        run_until(&fixture, client_down);
        assert_int_equal(fixture.client.fault, NET_LINK_RESET);
        assert_string_equal(net_link_fault_word(fixture.client.fault), "connection lost");
        close_server(&fixture);
    }
}

/* ---- What does not become a link ---- */

static void test_link_refused(void **state)
{
    (void)state;
    struct fixture fixture = {0};
    struct error error;
    open_server(&fixture);
    net_link_server_close(fixture.server);
    fixture.server = NULL;
    connect_with(&fixture, &fixture.client, fixture.address, &good_key, NET_CONTROL);
    assert_int_equal(fixture.client.downs, 0);
    run_until(&fixture, client_down);
    assert_int_equal(fixture.client.fault, NET_LINK_REFUSED);
    assert_non_null(strstr(fixture.client.text, fixture.address));
    struct net_link_options options = {.events = &client_events,
                                       .hello = make_hello("c", NET_CONTROL, "")};
    struct net_link *link;
    static const char *const wrong[] = {"localhost:1", "127.0.0.1", "127.0.0.1:0", "", ":4"};
    for (size_t i = 0; i < ARRAY_COUNT(wrong); i++)
        assert_int_equal(
            net_link_connect(&link, fixture.loop, wrong[i], &good_key, &options, &error),
            STATUS_INVALID);
    close_server(&fixture);
}

static void test_link_other_key(void **state)
{
    (void)state;
    struct net_link_key keys[] = {good_key, good_key};
    keys[0].secret[31] ^= 1;
    keys[1].identity[0] ^= 1;
    for (size_t i = 0; i < ARRAY_COUNT(keys); i++) {
        struct fixture fixture = {0};
        open_server(&fixture);
        connect_with(&fixture, &fixture.client, fixture.address, &keys[i], NET_CONTROL);
        run_until(&fixture, both_refused);
        assert_int_equal(fixture.client.fault, NET_LINK_KEY);
        assert_int_equal(fixture.refusal, NET_LINK_KEY);
        assert_int_equal(fixture.n_accepted, 0);
        close_server(&fixture);
    }
}

/* A plain socket to the server, or one that listens. */
static int raw_socket(const char *address, bool listens, char bound[NET_ADDRESS_BYTES])
{
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    socklen_t size = sizeof to;
    assert_true(fd >= 0);
    if (listens) {
        assert_int_equal(bind(fd, (struct sockaddr *)&to, sizeof to), 0);
        assert_int_equal(listen(fd, 8), 0);
        assert_int_equal(getsockname(fd, (struct sockaddr *)&to, &size), 0);
        snprintf(bound, NET_ADDRESS_BYTES, "127.0.0.1:%u", ntohs(to.sin_port));
    } else {
        to.sin_port = htons((uint16_t)atoi(strrchr(address, ':') + 1));
        assert_int_equal(connect(fd, (struct sockaddr *)&to, sizeof to), 0);
    }
    return fd;
}

static void test_link_garbage_to_server(void **state)
{
    (void)state;
    static const char garbage[] = "GET / HTTP/1.1\r\nHost: x\r\n\r\n";
    struct fixture fixture = {0};
    open_server(&fixture);
    int fd = raw_socket(fixture.address, false, NULL);
    assert_int_equal(send(fd, garbage, sizeof garbage - 1, 0), sizeof garbage - 1);
    run_until(&fixture, one_refused);
    assert_int_equal(fixture.refusal, NET_LINK_STRANGER);
    close(fd);
    /* One who leaves in the middle. */
    fixture.refusals = 0;
    fd = raw_socket(fixture.address, false, NULL);
    assert_int_equal(send(fd, "\x16\x03\x01\x01\x00\x01", 6, 0), 6);
    shutdown(fd, SHUT_WR);
    run_until(&fixture, one_refused);
    assert_int_equal(fixture.refusal, NET_LINK_RESET);
    close(fd);
    close_server(&fixture);
}

static void test_link_silent_client(void **state)
{
    (void)state;
    struct fixture fixture = {.timeout_ms = 50};
    open_server(&fixture);
    int fd = raw_socket(fixture.address, false, NULL);
    run_until(&fixture, one_refused);
    assert_int_equal(fixture.refusal, NET_LINK_TIMEOUT);
    close(fd);
    close_server(&fixture);
}

static void test_link_silent_server(void **state)
{
    (void)state;
    struct fixture fixture = {.timeout_ms = 50};
    char address[NET_ADDRESS_BYTES];
    open_server(&fixture);
    int fd = raw_socket(NULL, true, address);
    connect_with(&fixture, &fixture.client, address, &good_key, NET_CONTROL);
    run_until(&fixture, client_down);
    assert_int_equal(fixture.client.fault, NET_LINK_TIMEOUT);
    close(fd);
    close_server(&fixture);
}

static void *answer_garbage(void *context)
{
    int fd = accept(*(int *)context, NULL, NULL);
    char data[1024];
    if (fd >= 0 && recv(fd, data, sizeof data, 0) > 0 &&
        send(fd, "HTTP/1.1 400 Bad Request\r\n\r\n", 28, 0) == 28)
        while (recv(fd, data, sizeof data, 0) > 0)
            continue;
    close(fd);
    return NULL;
}

static void test_link_stranger_answers(void **state)
{
    (void)state;
    struct fixture fixture = {0};
    char address[NET_ADDRESS_BYTES];
    pthread_t thread;
    open_server(&fixture);
    int fd = raw_socket(NULL, true, address);
    assert_int_equal(pthread_create(&thread, NULL, answer_garbage, &fd), 0);
    connect_with(&fixture, &fixture.client, address, &good_key, NET_CONTROL);
    run_until(&fixture, client_down);
    assert_int_equal(fixture.client.fault, NET_LINK_STRANGER);
    pthread_join(thread, NULL);
    close(fd);
    close_server(&fixture);
}

/* ---- What may follow a good handshake ---- */

/* A client that speaks TLS with our key and then sends data[size] in place of a HELLO. */
struct odd_client {
    const char *address;
    const void *data;
    size_t size;
    char got[HELLO_OUR_BYTES];
    size_t got_bytes;
    bool stays; /* until the server closes */
};

static void *run_odd_client(void *context)
{
    struct odd_client *odd = context;
    struct link_tls tls = {.key = good_key};
    enum net_link_fault fault;
    int fd = raw_socket(odd->address, false, NULL);
    assert_int_equal(link_tls_open(&tls, fd, NULL), STATUS_OK);
    assert_int_equal(link_tls_handshake(&tls, &fault), LINK_DONE);
    assert_int_equal(SSL_write(tls.ssl, odd->data, (int)odd->size), odd->size);
    int n = SSL_read(tls.ssl, odd->got, sizeof odd->got);
    odd->got_bytes = n > 0 ? (size_t)n : 0;
    while (odd->stays && n > 0)
        n = SSL_read(tls.ssl, odd->got, sizeof odd->got);
    link_tls_close(&tls);
    close(fd);
    return NULL;
}

static void run_odd(struct fixture *fixture, struct odd_client *odd,
                    bool (*until)(struct fixture *fixture))
{
    pthread_t thread;
    odd->address = fixture->address;
    assert_int_equal(pthread_create(&thread, NULL, run_odd_client, odd), 0);
    run_until(fixture, until);
    pthread_join(thread, NULL);
}

static void test_link_other_version(void **state)
{
    (void)state;
    struct fixture fixture = {0};
    struct net_hello hello = make_hello("odd", NET_CONTROL, "");
    uint8_t bytes[HELLO_OUR_BYTES];
    struct odd_client odd = {.data = bytes, .size = hello_write(&hello, bytes)};
    bytes[FRAME_HEAD_BYTES + 4] = 77;
    open_server(&fixture);
    run_odd(&fixture, &odd, one_refused);
    assert_int_equal(fixture.refusal, NET_LINK_VERSION);
    /* The other side learns our version too. */
    unsigned version = 0;
    assert_true(odd.got_bytes > FRAME_HEAD_BYTES);
    assert_int_equal(
        hello_read(&hello, odd.got + FRAME_HEAD_BYTES, odd.got_bytes - FRAME_HEAD_BYTES, &version),
        HELLO_GOOD);
    assert_int_equal(version, NET_PROTOCOL_VERSION);
    close_server(&fixture);
}

static void test_link_bad_hello(void **state)
{
    (void)state;
    struct net_hello hello = make_hello("odd", NET_CONTROL, "{}");
    uint8_t good[HELLO_OUR_BYTES], bytes[HELLO_OUR_BYTES];
    size_t size = hello_write(&hello, good);
    static const struct {
        size_t at;
        uint8_t value;
    } wrong[] = {
        {0, 255},                    /* longer than it is: the rest never comes */
        {2, 1},                      /* longer than allowed */
        {4, 9},                      /* another type */
        {FRAME_HEAD_BYTES, 'X'},     /* magic */
        {FRAME_HEAD_BYTES + 6, 0},   /* purpose */
        {FRAME_HEAD_BYTES + 6, 5},   /* purpose */
        {FRAME_HEAD_BYTES + 7, 2},   /* flags */
        {FRAME_HEAD_BYTES + 7, 1},   /* trusted, which control is not */
        {FRAME_HEAD_BYTES + 32, 1},  /* what is zero */
        {FRAME_HEAD_BYTES + 34, 1},  /* info size */
        {FRAME_HEAD_BYTES + 36, 0},  /* a zero in info */
        {FRAME_HEAD_BYTES + 36, 255} /* no UTF-8 */
    };
    for (size_t i = 0; i < ARRAY_COUNT(wrong); i++) {
        struct fixture fixture = {.timeout_ms = i == 0 ? 100 : 0};
        struct odd_client odd = {.data = bytes, .size = size};
        memcpy(bytes, good, size);
        bytes[wrong[i].at] = wrong[i].value;
        open_server(&fixture);
        run_odd(&fixture, &odd, one_refused);
        assert_int_equal(fixture.refusal, i == 0 ? NET_LINK_TIMEOUT : NET_LINK_BROKEN);
        close_server(&fixture);
    }
}

/* Frames that break the rules, behind a good HELLO and a good message. */
static void test_link_bad_frames(void **state)
{
    (void)state;
    static const uint8_t bad[][FRAME_HEAD_BYTES] = {
        {1, 0, 16, 0, 1}, {255, 255, 255, 255, 1}, {0, 0, 0, 0, HELLO_TYPE}};
    struct net_hello hello = make_hello("odd", NET_CONTROL, "{}");
    for (size_t i = 0; i < ARRAY_COUNT(bad); i++) {
        struct fixture fixture = {0};
        uint8_t bytes[HELLO_OUR_BYTES + 64];
        size_t size = hello_write(&hello, bytes);
        frame_head_write(bytes + size, 2, 9);
        memcpy(bytes + size + FRAME_HEAD_BYTES, "hi", 2);
        size += FRAME_HEAD_BYTES + 2;
        memcpy(bytes + size, bad[i], FRAME_HEAD_BYTES);
        struct odd_client odd = {.data = bytes, .size = size + FRAME_HEAD_BYTES, .stays = true};
        open_server(&fixture);
        run_odd(&fixture, &odd, server_down);
        assert_int_equal(fixture.accepted[0].fault, NET_LINK_BROKEN);
        assert_string_equal(fixture.accepted[0].got.data, "9:hi\n");
        close_server(&fixture);
    }
}

/* One that does not read is given up, and nothing grows without bound. */
static void test_link_slow_reader(void **state)
{
    (void)state;
    struct fixture fixture = {.pending_bytes = 2 << 20};
    struct net_hello hello = make_hello("slow", NET_CONTROL, "{}");
    uint8_t bytes[HELLO_OUR_BYTES];
    char *large = calloc(1, NET_FRAME_BYTES);
    struct link_tls tls = {.key = good_key};
    enum net_link_fault fault;
    open_server(&fixture);
    int fd = raw_socket(fixture.address, false, NULL);
    evutil_make_socket_nonblocking(fd);
    assert_int_equal(link_tls_open(&tls, fd, NULL), STATUS_OK);
    while (link_tls_handshake(&tls, &fault) != LINK_DONE) {
        struct net_timer *soon =
            net_loop_after(fixture.loop, 1, (net_fn *)net_loop_stop, fixture.loop);
        assert_non_null(soon);
        net_loop_run(fixture.loop);
    }
    assert_true(SSL_write(tls.ssl, bytes, (int)hello_write(&hello, bytes)) > 0);
    bool (*accepted)(struct fixture *) = both_up;
    fixture.client.ups = 1;
    run_until(&fixture, accepted);
    size_t sent = 0;
    while (net_link_send(fixture.accepted[0].link, 1, (struct view){large, NET_FRAME_BYTES}))
        assert_true(++sent < 256);
    assert_true(net_link_pending(fixture.accepted[0].link) <= fixture.pending_bytes + 16);
    run_until(&fixture, server_down);
    assert_int_equal(fixture.accepted[0].fault, NET_LINK_SLOW);
    link_tls_close(&tls);
    close(fd);
    close_server(&fixture);
    free(large);
}

static bool all_echoed(struct fixture *fixture)
{
    return fixture->passed == N_LINKS;
}

static void count_echo(void *context, struct net_link *link, uint8_t type, struct view message)
{
    struct side *side = context;
    (void)link, (void)type;
    assert_int_equal(message.size, 5);
    side->fixture->passed++;
    check(side->fixture);
}

static void send_five(void *context, struct net_link *link, const struct net_hello *hello)
{
    take_up(context, link, hello);
    assert_true(net_link_send(link, 1, view_of("hello")));
}

static void test_link_many(void **state)
{
    (void)state;
    static const struct net_link_events events = {send_five, count_echo, on_down, NULL};
    struct fixture *fixture = calloc(1, sizeof *fixture);
    struct side *sides = calloc(N_LINKS, sizeof *sides);
    struct error error;
    fixture->echo = true;
    open_server(fixture);
    for (size_t i = 0; i < N_LINKS; i++) {
        struct net_link_options options = {.events = &events,
                                           .context = &sides[i],
                                           .hello = make_hello("many", NET_CONTROL, ""),
                                           .timeout_ms = GUARD_MS};
        sides[i].fixture = fixture;
        assert_int_equal(net_link_connect(&sides[i].link, fixture->loop, fixture->address,
                                          &good_key, &options, &error),
                         STATUS_OK);
    }
    run_until(fixture, all_echoed);
    assert_int_equal(fixture->n_accepted, N_LINKS);
    for (size_t i = 0; i < N_LINKS; i++)
        net_link_close(sides[i].link);
    close_server(fixture);
    free(sides);
    free(fixture);
}

/* More than may be under way: the others wait for their turn. */
static void test_link_queue(void **state)
{
    (void)state;
    struct fixture fixture = {.echo = true};
    struct net_link_server *narrow;
    struct error error;
    struct side sides[8];
    static const struct net_link_events events = {send_five, count_echo, on_down, NULL};
    struct net_link_server_options options = {
        .link = {.events = &server_events, .context = &fixture}, .find_key = find_key, .links = 2};
    open_server(&fixture);
    assert_int_equal(net_link_server_open(&narrow, fixture.loop, "127.0.0.1:0", &options, &error),
                     STATUS_OK);
    char address[NET_ADDRESS_BYTES];
    snprintf(address, sizeof address, "127.0.0.1:%u", net_link_server_port(narrow));
    memset(sides, 0, sizeof sides);
    for (size_t i = 0; i < ARRAY_COUNT(sides); i++) {
        struct net_link_options link_options = {.events = &events,
                                                .context = &sides[i],
                                                .hello = make_hello("many", NET_CONTROL, ""),
                                                .timeout_ms = GUARD_MS};
        sides[i].fixture = &fixture;
        assert_int_equal(net_link_connect(&sides[i].link, fixture.loop, address, &good_key,
                                          &link_options, &error),
                         STATUS_OK);
    }
    fixture.passed = N_LINKS - (int)ARRAY_COUNT(sides);
    run_until(&fixture, all_echoed);
    for (size_t i = 0; i < ARRAY_COUNT(sides); i++)
        net_link_close(sides[i].link);
    net_link_server_close(narrow);
    close_server(&fixture);
}

/* ---- Wires ---- */

struct wire_client {
    const char *address;
    bool trusted;
    void (*run)(struct wire_client *client);
    struct net_wire *wire;
    struct net_hello peer;
    uint64_t key_records;
    atomic_bool enough;
};

static void *run_wire_client(void *context)
{
    struct wire_client *client = context;
    struct error error = {0};
    struct net_wire_options options = {.hello = make_hello("wire", NET_DATA, "{\"rank\":1}"),
                                       .from = "127.0.0.1"};
    options.hello.trusted = client->trusted;
    if (net_wire_connect(&client->wire, client->address, &good_key, &options, &client->peer, NULL,
                         &error) != STATUS_OK)
        fail_msg("%s", error.text);
    if (client->key_records != 0)
        client->wire->key_records = client->key_records;
    client->run(client);
    net_wire_close(client->wire);
    return NULL;
}

static bool one_accepted(struct fixture *fixture)
{
    return fixture->n_accepted == 1;
}

/* Starts a client on a thread, and returns the server's wire to it. */
static struct net_wire *open_wires(struct fixture *fixture, struct wire_client *client,
                                   pthread_t *thread)
{
    fixture->detach = true;
    open_server(fixture);
    client->address = fixture->address;
    assert_int_equal(pthread_create(thread, NULL, run_wire_client, client), 0);
    run_until(fixture, one_accepted);
    assert_string_equal(fixture->accepted[0].hello.info, "{\"rank\":1}");
    return fixture->accepted[0].wire;
}

static uint8_t pattern(size_t i, unsigned seed)
{
    return (uint8_t)(i * 131 + (i >> 8) * 7 + seed);
}

/* Both sides send and receive the same size at once, with an odd seed for one of them. */
static void exchange_pattern(struct net_wire *wire, size_t size, unsigned seed)
{
    uint8_t *out = malloc(size + 1), *in = calloc(1, size + 1);
    struct error error = {0};
    for (size_t i = 0; i < size; i++)
        out[i] = pattern(i, seed);
    struct net_transfer transfer = {wire, out, size, in, size};
    if (net_wire_exchange(&transfer, 1, clock_now_ns() + 60000000000u, &error) != STATUS_OK)
        fail_msg("%s", error.text);
    for (size_t i = 0; i < size; i++)
        if (in[i] != pattern(i, seed ^ 1))
            fail_msg("byte %zu of %zu is wrong", i, size);
    free(out);
    free(in);
}

static const size_t exchange_sizes[] = {1, 8192, 16384, 0, 100003, 24 << 20, 3};

static void exchange_all(struct wire_client *client)
{
    for (size_t i = 0; i < ARRAY_COUNT(exchange_sizes); i++)
        exchange_pattern(client->wire, exchange_sizes[i], 1);
}

static void test_wire_exchange(void **state)
{
    (void)state;
    for (unsigned i = 0; i < 4; i++) {
        bool ours = (i & 1) != 0, theirs = (i & 2) != 0;
        struct fixture fixture = {.hello = make_hello("server", NET_DATA, "{\"s\":1}")};
        struct wire_client client = {.trusted = theirs, .run = exchange_all};
        pthread_t thread;
        fixture.hello.trusted = ours;
        struct net_wire *wire = open_wires(&fixture, &client, &thread);
        assert_int_equal(net_wire_encrypted(wire), !(ours && theirs));
        for (size_t k = 0; k < ARRAY_COUNT(exchange_sizes); k++)
            exchange_pattern(wire, exchange_sizes[k], 0);
        pthread_join(thread, NULL);
        assert_string_equal(client.peer.info, "{\"s\":1}");
        close_server(&fixture);
    }
}

/* New keys come often, in the middle of traffic both ways. */
static void test_wire_new_keys(void **state)
{
    (void)state;
    struct fixture fixture = {0};
    struct wire_client client = {.run = exchange_all, .key_records = 3};
    pthread_t thread;
    struct net_wire *wire = open_wires(&fixture, &client, &thread);
    wire->key_records = 2;
    for (size_t k = 0; k < ARRAY_COUNT(exchange_sizes); k++)
        exchange_pattern(wire, exchange_sizes[k], 0);
    pthread_join(thread, NULL);
    close_server(&fixture);
}

static void send_frames(struct wire_client *client)
{
    char *large = calloc(1, 100000);
    struct view messages[] = {{"hi", 2}, {"", 0}, {large, 100000}, {large, 1000}, {large, 100000}};
    for (size_t i = 0; i < ARRAY_COUNT(messages) - 1; i++)
        assert_int_equal(net_wire_send_frame(client->wire, (uint8_t)(i + 1), messages[i], 0, NULL),
                         STATUS_OK);
    /* The last is refused by its head, and the other side closes, perhaps before the rest is out.
     * */
    net_wire_send_frame(client->wire, 5, messages[4], 0, NULL);
    char byte;
    assert_int_equal(net_wire_receive(client->wire, &byte, 1, 0, NULL), STATUS_LOST);
    free(large);
}

static void test_wire_frames(void **state)
{
    (void)state;
    struct fixture fixture = {0};
    struct wire_client client = {.run = send_frames};
    struct buffer got = {0};
    struct error error;
    pthread_t thread;
    uint8_t type;
    struct net_wire *wire = open_wires(&fixture, &client, &thread);
    static const size_t sizes[] = {2, 0, 100000, 1000};
    for (size_t i = 0; i < ARRAY_COUNT(sizes); i++) {
        assert_int_equal(net_wire_receive_frame(wire, 100000, &type, &got, 0, &error), STATUS_OK);
        assert_int_equal(type, i + 1);
        assert_int_equal(got.size, sizes[i]);
    }
    assert_int_equal(net_wire_receive_frame(wire, 99999, &type, &got, 0, &error), STATUS_LOST);
    net_wire_close(wire);
    fixture.accepted[0].wire = NULL;
    pthread_join(thread, NULL);
    buffer_free(&got);
    close_server(&fixture);
}

static void wait_forever(struct wire_client *client)
{
    char byte;
    struct error error;
    assert_int_equal(net_wire_receive(client->wire, &byte, 1, 0, &error), STATUS_LOST);
    assert_int_equal(net_wire_send(client->wire, &byte, 1, 0, &error), STATUS_LOST);
}

static void test_wire_lost(void **state)
{
    (void)state;
    struct fixture fixture = {0};
    struct wire_client client = {.run = wait_forever};
    pthread_t thread;
    struct error error;
    char byte;
    struct net_wire *wire = open_wires(&fixture, &client, &thread);
    net_wire_set_spin(wire, 0);
    assert_int_equal(net_wire_receive(wire, &byte, 1, clock_now_ns() + 20000000, &error),
                     STATUS_LOST);
    assert_non_null(strstr(error.text, "no answer in time"));
    /* After one loss there is nothing more. */
    assert_int_equal(net_wire_send(wire, &byte, 1, 0, &error), STATUS_LOST);
    net_wire_close(wire);
    fixture.accepted[0].wire = NULL;
    pthread_join(thread, NULL);
    close_server(&fixture);
}

static void *abort_soon(void *context)
{
    usleep(20000);
    net_wire_abort(context);
    return NULL;
}

/* Neither reads nor leaves until the other side is gone. */
static void do_nothing(struct wire_client *client)
{
    while (!atomic_load(&client->enough))
        usleep(1000);
}

/* Waits end from another thread, those to receive as those to send. */
static void test_wire_abort(void **state)
{
    (void)state;
    for (int sends = 0; sends < 2; sends++) {
        struct fixture fixture = {0};
        struct wire_client client = {.run = do_nothing};
        pthread_t thread, other;
        struct error error;
        size_t size = sends ? (size_t)64 << 20 : 1;
        char *data = calloc(1, size);
        struct net_wire *wire = open_wires(&fixture, &client, &thread);
        struct net_transfer transfer = {wire, data, sends ? size : 0, data, sends ? 0 : size};
        assert_int_equal(pthread_create(&other, NULL, abort_soon, wire), 0);
        assert_int_equal(net_wire_exchange(&transfer, 1, 0, &error), STATUS_LOST);
        assert_non_null(strstr(error.text, "given up"));
        pthread_join(other, NULL);
        atomic_store(&client.enough, true);
        pthread_join(thread, NULL);
        close_server(&fixture);
        free(data);
    }
}

static enum net_link_fault connect_fault(const char *address, const struct net_link_key *key,
                                         uint64_t timeout_ms, const uint8_t *node)
{
    struct net_wire_options options = {.hello = make_hello("wire", NET_DATA, ""),
                                       .node = node,
                                       .deadline_ns = clock_now_ns() + timeout_ms * 1000000};
    struct net_wire *wire;
    enum net_link_fault fault = NET_LINK_LOCAL;
    struct error error;
    assert_int_equal(net_wire_connect(&wire, address, key, &options, NULL, &fault, &error),
                     STATUS_LOST);
    assert_non_null(strstr(error.text, address));
    assert_null(wire);
    return fault;
}

static void *run_loop(void *context)
{
    struct fixture *fixture = context;
    net_loop_run(fixture->loop);
    return NULL;
}

static void test_wire_connect_faults(void **state)
{
    (void)state;
    struct fixture fixture = {0};
    struct net_link_key key = good_key;
    char address[NET_ADDRESS_BYTES];
    pthread_t thread;
    int fd = raw_socket(NULL, true, address);
    assert_int_equal(connect_fault(address, &good_key, 50, NULL), NET_LINK_TIMEOUT);
    close(fd);
    assert_int_equal(connect_fault(address, &good_key, 10000, NULL), NET_LINK_REFUSED);
    assert_int_equal(connect_fault("localhost:1", &good_key, 1000, NULL), NET_LINK_LOCAL);
    open_server(&fixture);
    assert_int_equal(pthread_create(&thread, NULL, run_loop, &fixture), 0);
    key.secret[0]++;
    assert_int_equal(connect_fault(fixture.address, &key, 10000, NULL), NET_LINK_KEY);
    static const uint8_t other[NET_NODE_BYTES] = "nobody's";
    assert_int_equal(connect_fault(fixture.address, &good_key, 10000, other), NET_LINK_STRANGER);
    net_loop_stop(fixture.loop);
    pthread_join(thread, NULL);
    close_server(&fixture);
}

/* ---- Addresses ---- */

static void test_resolve(void **state)
{
    (void)state;
    struct net_address found[4];
    struct error error;
    size_t n;
    assert_int_equal(net_resolve("127.0.0.1:80", found, 4, &n, &error), STATUS_OK);
    assert_int_equal(n, 1);
    assert_string_equal(found[0].text, "127.0.0.1:80");
    assert_int_equal(net_resolve("[::1]:4001", found, 4, &n, &error), STATUS_OK);
    assert_string_equal(found[0].text, "[::1]:4001");
    static const char *const wrong[] = {"", "x", ":80", "[::1]", "::1:80", "1.2.3.4:0", "a:99999"};
    for (size_t i = 0; i < ARRAY_COUNT(wrong); i++)
        assert_int_equal(net_resolve(wrong[i], found, 4, &n, &error), STATUS_INVALID);
}

static void test_numeric_addresses(void **state)
{
    (void)state;
    char text[NET_ADDRESS_BYTES];
    assert_true(net_address_near("10.1.2.3:4001", "10.1.3.9", 23));
    assert_false(net_address_near("10.1.2.3:4001", "10.1.3.9", 24));
    assert_true(net_address_near("10.1.2.3", "99.1.2.3", 0));
    assert_true(net_address_near("[fe80::1%eth0]:1", "fe80::2", 64));
    assert_false(net_address_near("10.1.2.3", "::1", 0));
    assert_false(net_address_near("host:1", "host:1", 8));
    assert_false(net_address_near("", "", 0));
    assert_true(net_address_same("[2001:db8::1]:4001", "2001:db8:0::1"));
    assert_false(net_address_same("10.0.0.1", "10.0.0.2"));
    assert_true(net_address_of_link("fe80::1%eth0") && net_address_of_link("[febf::1]:2"));
    assert_false(net_address_of_link("fec0::1") || net_address_of_link("10.0.0.1"));
    assert_true(net_address_host("[fe80::1]:4001", "en2", text));
    assert_string_equal(text, "fe80::1%en2");
    assert_true(net_address_host("[fe80::1%en9]:4001", NULL, text));
    assert_string_equal(text, "fe80::1");
    assert_true(net_address_host("10.0.0.1:5", "en2", text));
    assert_string_equal(text, "10.0.0.1");
    assert_false(net_address_host("some.where:5", "en2", text));
    net_address_join("10.0.0.1", 5, text);
    assert_string_equal(text, "10.0.0.1:5");
    net_address_join("fe80::1%en2", 5, text);
    assert_string_equal(text, "[fe80::1%en2]:5");
    assert_int_equal(net_address_port("[fe80::1%en2]:5"), 5);
    assert_int_equal(net_address_port("10.0.0.1"), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_numeric_addresses),
        cmocka_unit_test(test_link_messages),
        cmocka_unit_test(test_link_large_messages),
        cmocka_unit_test(test_link_longer_messages),
        cmocka_unit_test(test_link_close),
        cmocka_unit_test(test_link_close_in_callback),
        cmocka_unit_test(test_link_reset),
        cmocka_unit_test(test_link_refused),
        cmocka_unit_test(test_link_other_key),
        cmocka_unit_test(test_link_garbage_to_server),
        cmocka_unit_test(test_link_silent_client),
        cmocka_unit_test(test_link_silent_server),
        cmocka_unit_test(test_link_stranger_answers),
        cmocka_unit_test(test_link_other_version),
        cmocka_unit_test(test_link_bad_hello),
        cmocka_unit_test(test_link_bad_frames),
        cmocka_unit_test(test_link_slow_reader),
        cmocka_unit_test(test_link_many),
        cmocka_unit_test(test_link_queue),
        cmocka_unit_test(test_wire_exchange),
        cmocka_unit_test(test_wire_new_keys),
        cmocka_unit_test(test_wire_frames),
        cmocka_unit_test(test_wire_lost),
        cmocka_unit_test(test_wire_abort),
        cmocka_unit_test(test_wire_connect_faults),
        cmocka_unit_test(test_resolve),
    };
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
