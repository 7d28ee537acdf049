/* A device that is none: every operation runs later, on another thread, in memory of its own that
 * is filled with NaN. What passes here does not lean on the CPU backend running at once. */
#ifndef CONSORT_TESTS_FAKE_BACKEND_H
#define CONSORT_TESTS_FAKE_BACKEND_H

#include "model/backend.h"

enum status fake_backend_open(struct backend **out, unsigned n_threads, struct error *error);

#endif
