/* The machines of the cluster that a running server takes part in, for consort plan. */
#ifndef CONSORT_CLI_PLAN_CLUSTER_H
#define CONSORT_CLI_PLAN_CLUSTER_H

#include "cluster/cluster.h"
#include "plan/plan.h"

/* Adds its nodes and links, as they were measured; their memory is all that may be used for models,
 * also what is taken by those that are open now. mix: of the model. None are added where no server
 * runs here, or in no cluster. */
enum status plan_cluster_read(struct plan_room *room, const struct cluster_mix *mix,
                              struct error *error);

#endif
