/* Advertising by DNS-SD, with the system's daemon or without one: it always says what came of it,
 * and never holds the loop up. */
#include "net/net.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

enum { PATIENCE_MS = 60000 };

struct waiting {
    struct net_loop *loop;
    unsigned n_told;
    bool late;
};

static void told(void *context, const char *line)
{
    struct waiting *waiting = context;
    assert_true(strncmp(line, "advertised as ", 14) == 0 || strstr(line, "is not advertised"));
    waiting->n_told++;
    net_loop_stop(waiting->loop);
}

static void too_late(void *context)
{
    struct waiting *waiting = context;
    waiting->late = true;
    net_loop_stop(waiting->loop);
}

static const char *const types[] = {"_consort-test._tcp", NULL};
static const char *const texts[] = {"path=/", "", "version=1", NULL};
static const struct net_service service = {"a test", types, texts, 4999};

/* NULL: this build has none. */
static struct net_advertisement *begin(struct waiting *waiting)
{
    struct net_advertisement *advertisement;
    struct error error;
    assert_int_equal(net_loop_open(&waiting->loop, &error), STATUS_OK);
    enum status status =
        net_advertise_open(&advertisement, waiting->loop, &service, told, waiting, &error);
    if (status == STATUS_OK)
        return advertisement;
    assert_int_equal(status, STATUS_UNSUPPORTED);
    assert_null(advertisement);
    net_loop_close(waiting->loop);
    return NULL;
}

static void test_says_what_came_of_it(void **state)
{
    (void)state;
    struct waiting waiting = {0};
    struct net_advertisement *advertisement = begin(&waiting);
    if (advertisement == NULL) {
        print_message("# this build has no DNS-SD\n");
        skip();
    }
    struct net_timer *timer = net_loop_after(waiting.loop, PATIENCE_MS, too_late, &waiting);
    net_loop_run(waiting.loop);
    assert_false(waiting.late);
    assert_int_equal(waiting.n_told, 1);
    net_timer_cancel(timer);
    net_advertise_close(advertisement);
    net_loop_settle(waiting.loop);
    net_loop_close(waiting.loop);
}

static void test_closed_at_once(void **state)
{
    (void)state;
    struct waiting waiting = {0};
    struct net_advertisement *advertisement = begin(&waiting);
    net_advertise_close(advertisement);
    if (advertisement == NULL)
        skip();
    net_loop_settle(waiting.loop);
    assert_int_equal(waiting.n_told, 0);
    net_loop_close(waiting.loop);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_says_what_came_of_it),
        cmocka_unit_test(test_closed_at_once),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
