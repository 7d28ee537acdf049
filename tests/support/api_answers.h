/* Reading a request and answering it from made-up events, for the tests of src/api. Include after
 * cmocka.h. */
#ifndef CONSORT_TESTS_API_ANSWERS_H
#define CONSORT_TESTS_API_ANSWERS_H

#include "api/api.h"
#include "tokenizer_vocabularies.h"

typedef enum status reader(struct api_call **out, enum api_operation operation, struct view body,
                           struct api_error *error);

static inline struct api_call *read_good(reader *read, enum api_operation operation,
                                         const char *body)
{
    struct api_call *call = NULL;
    struct api_error error = {0};
    if (read(&call, operation, view_of(body), &error) != STATUS_OK)
        fail_msg("%s: %s", body, error.text);
    return call;
}

struct bad_case {
    reader *read;
    enum api_operation operation;
    const char *body, *told;
};

static inline void check_refused(const struct bad_case *cases, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        struct api_call *call = NULL;
        struct api_error error = {0};
        enum status status =
            cases[i].read(&call, cases[i].operation, view_of(cases[i].body), &error);
        if (status != STATUS_INVALID || call != NULL || error.http_status != 400 ||
            strstr(error.text, cases[i].told) == NULL)
            fail_msg("%s: %s", cases[i].body, error.text);
    }
}

/* An answer to one request; out has what its client got. */
struct fixture {
    struct small_vocabulary vocabulary;
    struct tokenizer *tokenizer;
    struct api_call *call;
    struct api_answer *answer;
    struct buffer out;
};

static inline void open_answer(struct fixture *fixture, reader *read, enum api_operation operation,
                               const char *body)
{
    struct error error;
    memset(fixture, 0, sizeof *fixture);
    small_bytes(&fixture->vocabulary, "gpt-2");
    assert_int_equal(tokenizer_open(&fixture->tokenizer, &fixture->vocabulary.config, &error),
                     STATUS_OK);
    fixture->call = read_good(read, operation, body);
    assert_int_equal(
        api_answer_open(&fixture->answer, fixture->call, fixture->tokenizer, "m", 1, 9, &error),
        STATUS_OK);
    fixture->answer->load_ns = 5;
}

static inline void close_answer(struct fixture *fixture)
{
    api_answer_close(fixture->answer);
    api_call_free(fixture->call);
    tokenizer_close(fixture->tokenizer);
    buffer_free(&fixture->out);
}

#endif
