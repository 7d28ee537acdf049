/* What consort plan says of placements. */
#ifndef CONSORT_CLI_PLAN_PRINT_H
#define CONSORT_CLI_PLAN_PRINT_H

#include "cli/cli.h"
#include "plan/plan.h"

struct plan_report {
    const struct plan_input *in;
    const struct plan_result *result;
    const struct plan_room *room; /* machines of the nodes, costs */
    const char *kv_type;
    bool all; /* every placement with its nodes, and every reason */
};

void plan_print_text(const struct plan_report *report);
int plan_print_json(const struct plan_report *report);
/* The machines, links and models that a room knows. */
void plan_print_room(const struct plan_room *room);

#endif
