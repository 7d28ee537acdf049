/* Where everything takes a hundred times longer (sanitizers, emulation), some of a test's cases
 * have to do: tests/run-suites says so. */
#ifndef CONSORT_TESTS_SLOW_H
#define CONSORT_TESTS_SLOW_H

#include <stdbool.h>
#include <stdlib.h>

static inline bool test_is_slow(void)
{
    return getenv("CONSORT_TEST_SLOW") != NULL;
}

/* What to add to a loop's counter: there every second case, or fourth, is enough. */
static inline int test_every(void)
{
    const char *slow = getenv("CONSORT_TEST_SLOW");
    int n = slow != NULL ? atoi(slow) : 1;
    return n > 0 ? n : 1;
}

#endif
