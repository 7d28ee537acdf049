/* drafts: how much faster a model answers with drafts of coming tokens than without. */
#ifndef CONSORT_CLI_DRAFTS_H
#define CONSORT_CLI_DRAFTS_H

#include "cli/cli.h"

#define DRAFTS_PROMPT 128 /* tokens */

struct drafts_result {
    uint32_t tokens;                    /* of each answer; 0: not measured */
    double plain, drafting;             /* tokens a second, medians */
    double ratio, least, most;          /* of pairs of runs, one after the other */
    struct session_draft_counts counts; /* of the last run */
};

/* Answers, the likeliest tokens after a random passage that is repeated a few times, in turns
 * without drafts and with those of the options. The engine has a model and a tokenizer. */
enum status drafts_measure(struct drafts_result *out, struct engine *engine, uint32_t n_tokens,
                           uint32_t repeats, struct error *error);

void drafts_print(const struct drafts_result *result);
json_t *drafts_json(const struct drafts_result *result);

#endif
