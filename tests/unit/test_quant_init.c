/* The choice of kernels, by many threads that all come first. */
#include "quant/quant.h"

#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define N_THREADS 8

struct caller {
    pthread_t thread;
    pthread_mutex_t *gate; /* closed until all are there */
    enum status status;
    struct error error;
    const char *isa;
};

static void *call(void *context)
{
    struct caller *caller = context;
    pthread_mutex_lock(caller->gate);
    pthread_mutex_unlock(caller->gate);
    caller->status = quant_init(&caller->error);
    caller->isa = quant_isa();
    return NULL;
}

static void call_all(struct caller callers[N_THREADS])
{
    pthread_mutex_t gate = PTHREAD_MUTEX_INITIALIZER;
    pthread_mutex_lock(&gate);
    for (size_t i = 0; i < N_THREADS; i++) {
        callers[i] = (struct caller){.gate = &gate};
        assert_int_equal(pthread_create(&callers[i].thread, NULL, call, &callers[i]), 0);
    }
    pthread_mutex_unlock(&gate);
    for (size_t i = 0; i < N_THREADS; i++)
        pthread_join(callers[i].thread, NULL);
    pthread_mutex_destroy(&gate);
}

static void test_quant_init_threads(void **state)
{
    (void)state;
    struct caller callers[N_THREADS];
    setenv("CONSORT_ISA", "mmx", 1); /* a choice that fails is none */
    call_all(callers);
    for (size_t i = 0; i < N_THREADS; i++) {
        assert_int_equal(callers[i].status, STATUS_UNSUPPORTED);
        assert_non_null(strstr(callers[i].error.text, "CONSORT_ISA"));
    }
    unsetenv("CONSORT_ISA");
    call_all(callers);
    setenv("CONSORT_ISA", "mmx", 1); /* and one that was made stays */
    struct error error;
    assert_int_equal(quant_init(&error), STATUS_OK);
    for (size_t i = 0; i < N_THREADS; i++) {
        assert_int_equal(callers[i].status, STATUS_OK);
        assert_string_equal(callers[i].isa, quant_isa());
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_quant_init_threads)};
    return cmocka_run_group_tests_name("quant_init", tests, NULL, NULL);
}
