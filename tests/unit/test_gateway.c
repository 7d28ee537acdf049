/* Buckets and the limit of recorded logins, with a clock of the test's. */
#include "gateway/gateway_internal.h"

#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

#define SECOND_NS ((uint64_t)1000000000)

static void test_gateway_bucket(void **state)
{
    (void)state;
    struct bucket bucket = {0};
    bucket_fill(&bucket, 60, 5 * SECOND_NS);
    assert_true(bucket.level == 60); /* full at first */
    bucket.level -= 60;
    assert_true(bucket_wait_s(&bucket, 60, 1) == 1);
    assert_true(bucket_wait_s(&bucket, 60, 60) == 60);
    bucket_fill(&bucket, 60, 5 * SECOND_NS + SECOND_NS / 2);
    assert_true(bucket.level == 0.5);
    bucket_fill(&bucket, 60, 6 * SECOND_NS);
    assert_true(bucket.level == 1 && bucket_wait_s(&bucket, 60, 1) == 0);
    bucket.level -= 121; /* more than there was */
    assert_true(bucket_wait_s(&bucket, 60, 1) == 121);
    bucket_fill(&bucket, 60, 126 * SECOND_NS);
    assert_true(bucket.level == 0);
    bucket_fill(&bucket, 60, 100000 * SECOND_NS);
    assert_true(bucket.level == 60); /* never more than full */
}

static void test_gateway_durations(void **state)
{
    (void)state;
    static const struct {
        double seconds;
        const char *text;
    } cases[] = {{0, "0ms"},      {0.0195, "20ms"}, {1, "1s"},    {1.5, "1.5s"},
                 {59.9, "59.9s"}, {360, "6m0s"},    {61, "1m1s"}, {7200, "120m0s"}};
    for (size_t i = 0; i < ARRAY_COUNT(cases); i++) {
        char text[32];
        put_duration(text, cases[i].seconds);
        assert_string_equal(text, cases[i].text);
    }
}

static void test_gateway_logins(void **state)
{
    (void)state;
    struct logins logins = {0};
    char detail[100];
    int n = 0;
    for (int i = 0; i < 100; i++)
        n += logins_note(&logins, SECOND_NS, "[::1]:5000", "no key", detail, sizeof detail);
    assert_int_equal(n, 30);
    assert_string_equal(detail, "from [::1]: no key");
    assert_true(
        logins_note(&logins, 3 * SECOND_NS, "10.0.0.1:1", "ended key", detail, sizeof detail));
    assert_string_equal(detail, "from 10.0.0.1: ended key (70 more before were not recorded)");
    assert_false(
        logins_note(&logins, 3 * SECOND_NS, "10.0.0.1:1", "ended key", detail, sizeof detail));
}

static void test_gateway_hosts(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        bool loopback;
    } cases[] = {
        {"127.0.0.1:4000", true},
        {"localhost", true},
        {"LOCALHOST:1", true},
        {"[::1]:4000", true},
        {"http://[::1]:3000", true},
        {"https://localhost/page", true},
        {"127.0.0.1.evil.example", false},
        {"127.evil", false},
        {"0.0.0.0:4000", false},
        {":4000", false},
        {"evil.example", false},
        {"http://evil.example", false},
        {"null", false},
        {"", false},
    };
    for (size_t i = 0; i < ARRAY_COUNT(cases); i++)
        assert_int_equal(host_is_loopback(host_of(view_of(cases[i].text))), cases[i].loopback);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_gateway_bucket),
        cmocka_unit_test(test_gateway_durations),
        cmocka_unit_test(test_gateway_logins),
        cmocka_unit_test(test_gateway_hosts),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
