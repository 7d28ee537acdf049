#include "net/net.h"

#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum {
    N_THREADS = 4,
    N_POSTS = 5000,
};

static struct net_loop *open_loop(void)
{
    struct net_loop *loop;
    struct error error;
    if (net_loop_open(&loop, &error) != STATUS_OK)
        fail_msg("%s", error.text);
    return loop;
}

static void stop(void *context)
{
    net_loop_stop(context);
}

/* ---- Posts ---- */

struct poster;

struct post {
    struct poster *poster;
    size_t number;
};

struct poster {
    struct net_loop *loop;
    pthread_t thread;
    struct post posts[N_POSTS];
    size_t next; /* of the loop's thread, as the next two */
    bool in_order;
    size_t *left;
};

static void take_post(void *context)
{
    struct post *post = context;
    struct poster *poster = post->poster;
    poster->in_order = poster->in_order && post->number == poster->next;
    poster->next++;
    if (--*poster->left == 0)
        net_loop_stop(poster->loop);
}

static void *post_all(void *context)
{
    struct poster *poster = context;
    for (size_t i = 0; i < N_POSTS; i++) {
        poster->posts[i] = (struct post){poster, i};
        if (!net_loop_post(poster->loop, take_post, &poster->posts[i]))
            break;
    }
    return NULL;
}

static void test_net_posts_from_threads(void **state)
{
    (void)state;
    struct net_loop *loop = open_loop();
    struct poster *posters = calloc(N_THREADS, sizeof *posters);
    size_t left = (size_t)N_THREADS * N_POSTS;
    for (size_t i = 0; i < N_THREADS; i++) {
        posters[i].loop = loop;
        posters[i].in_order = true;
        posters[i].left = &left;
        assert_int_equal(pthread_create(&posters[i].thread, NULL, post_all, &posters[i]), 0);
    }
    net_loop_run(loop);
    for (size_t i = 0; i < N_THREADS; i++) {
        pthread_join(posters[i].thread, NULL);
        assert_true(posters[i].in_order);
        assert_int_equal(posters[i].next, N_POSTS);
    }
    net_loop_close(loop);
    free(posters);
}

static void test_net_stop(void **state)
{
    (void)state;
    struct net_loop *loop = open_loop();
    /* A stop before the run counts; the loop may run again. */
    for (size_t i = 0; i < 2; i++) {
        net_loop_stop(loop);
        net_loop_run(loop);
    }
    assert_true(net_loop_post(loop, stop, loop));
    net_loop_run(loop);
    /* What nobody ran is dropped. */
    assert_true(net_loop_post(loop, stop, loop));
    net_loop_close(loop);
    net_loop_close(NULL);
}

/* ---- Timers and signals ---- */

struct letters {
    struct net_loop *loop;
    struct letter {
        struct letters *all;
        char letter;
    } letter[3];
    char seen[4];
};

static void take_letter(void *context)
{
    struct letter *letter = context;
    char text[2] = {letter->letter, '\0'};
    strcat(letter->all->seen, text);
    if (letter->letter == 'c')
        net_loop_stop(letter->all->loop);
}

static void test_net_timers(void **state)
{
    (void)state;
    struct letters letters = {.loop = open_loop()};
    for (size_t i = 0; i < 3; i++)
        letters.letter[i] = (struct letter){&letters, (char)('a' + i)};
    assert_non_null(net_loop_after(letters.loop, 30, take_letter, &letters.letter[2]));
    struct net_timer *never = net_loop_after(letters.loop, 10, take_letter, &letters.letter[1]);
    assert_non_null(never);
    assert_non_null(net_loop_after(letters.loop, 0, take_letter, &letters.letter[0]));
    net_timer_cancel(never);
    net_timer_cancel(NULL);
    net_loop_run(letters.loop);
    assert_string_equal(letters.seen, "ac");
    assert_non_null(net_loop_after(letters.loop, 600000, take_letter, &letters.letter[1]));
    net_loop_close(letters.loop);
}

static void test_net_signals(void **state)
{
    (void)state;
    struct net_loop *loop = open_loop();
    struct error error;
    assert_int_equal(net_loop_on_signal(loop, SIGTERM, stop, loop, &error), STATUS_OK);
    raise(SIGTERM);
    net_loop_run(loop);
    net_loop_close(loop);
}

/* ---- Listening ---- */

static void unused_handler(void *context, struct http_exchange *exchange)
{
    (void)context;
    http_abort(exchange);
}

static struct http_server *open_server(struct net_loop *loop)
{
    struct http_options options = {.handler = unused_handler};
    struct http_server *server;
    struct error error;
    if (http_server_open(&server, loop, &options, &error) != STATUS_OK)
        fail_msg("%s", error.text);
    return server;
}

static void test_net_listen(void **state)
{
    (void)state;
    struct net_loop *loop = open_loop();
    struct http_server *server = open_server(loop);
    struct error error;
    assert_int_equal(http_server_listen(server, "127.0.0.1:0", &error), STATUS_OK);
    assert_int_equal(http_server_listen(server, ":0", &error), STATUS_OK);
    unsigned first = http_server_port(server, 0);
    assert_int_not_equal(first, 0);
    assert_int_not_equal(http_server_port(server, 1), first);
    assert_int_equal(http_server_port(server, 2), 0);

    char taken[32];
    snprintf(taken, sizeof taken, "127.0.0.1:%u", first);
    assert_int_equal(http_server_listen(server, taken, &error), STATUS_IO);
    assert_non_null(strstr(error.text, "taken by another program"));
    static const char *const broken[] = {
        "",          "4000",    "127.0.0.1",    "127.0.0.1:",   "127.0.0.1:65536", "::1:4000",
        "[::1:4000", "[]:4000", "127.0.0.1:4x", "127.0.0.1:-1", "host:123456",
    };
    for (size_t i = 0; i < ARRAY_COUNT(broken); i++)
        assert_int_equal(http_server_listen(server, broken[i], &error), STATUS_INVALID);
    assert_int_equal(http_server_listen(server, "no such name:1", &error), STATUS_NOT_FOUND);
    http_server_close(server);
    http_server_close(NULL);
    net_loop_close(loop);
}

static void test_net_tls_files(void **state)
{
    (void)state;
    struct net_loop *loop = open_loop();
    struct http_options options = {.handler = unused_handler, .tls_certificate = "/nowhere.pem"};
    struct http_server *server;
    struct error error;
    assert_int_equal(http_server_open(&server, loop, &options, &error), STATUS_INVALID);
    assert_non_null(strstr(error.text, "both"));
    options.tls_key = "/nowhere.pem";
    assert_int_equal(http_server_open(&server, loop, &options, &error), STATUS_INVALID);
    assert_non_null(strstr(error.text, "/nowhere.pem"));
    assert_non_null(strstr(error.text, "No such file"));
    net_loop_close(loop);
}

/* ---- Draining ---- */

static void test_net_drain_without_connections(void **state)
{
    (void)state;
    struct net_loop *loop = open_loop();
    struct http_server *server = open_server(loop);
    struct error error;
    assert_int_equal(http_server_listen(server, "127.0.0.1:0", &error), STATUS_OK);
    http_server_drain(server, 600000, stop, loop);
    net_loop_run(loop);
    assert_int_equal(http_server_connections(server), 0);
    http_server_close(server);
    net_loop_close(loop);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_net_posts_from_threads),
        cmocka_unit_test(test_net_stop),
        cmocka_unit_test(test_net_timers),
        cmocka_unit_test(test_net_signals),
        cmocka_unit_test(test_net_listen),
        cmocka_unit_test(test_net_tls_files),
        cmocka_unit_test(test_net_drain_without_connections),
    };
    return cmocka_run_group_tests_name("net", tests, NULL, NULL);
}
