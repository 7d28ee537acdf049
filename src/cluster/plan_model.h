/* The planner's view of a model file. */
#ifndef CONSORT_CLUSTER_PLAN_MODEL_H
#define CONSORT_CLUSTER_PLAN_MODEL_H

#include "model/model.h"
#include "plan/plan.h"
#include "weights/weights.h"

/* Sums the file's tensors up by how shards hold them, for a cache of kv_format.
 * layers[PLAN_MAX_LAYERS] is the caller's and lives as long as *out. STATUS_UNSUPPORTED for models
 * that write no text. */
enum status cluster_plan_model(struct plan_model *out, struct plan_layer *layers,
                               const struct weights *weights, const struct model_desc *desc,
                               enum quant_format kv_format, struct error *error);

#endif
