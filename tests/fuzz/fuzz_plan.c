/* Files of machines: any bytes are a room or a sentence with a place. What a room has is planned,
 * each model over all nodes: nothing gets more than it holds, and all layers have a place. */
#include "plan/plan.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define MODELS 3 /* of a file are planned */

static void check_plan(const struct plan_input *input, const struct plan *plan)
{
    uint32_t layer = 0;
    for (uint32_t s = 0; s < plan->n_stages; s++) {
        const struct plan_stage *stage = &plan->stages[s];
        if (plan->kind == PLAN_REPLICAS)
            layer = 0;
        if (stage->first_layer != layer || stage->end_layer <= layer)
            abort();
        layer = stage->end_layer;
    }
    if (layer != input->model->n_layers)
        abort();
    for (uint32_t i = 0; i < plan->n_shards; i++)
        if (plan->shards[i].share == 0 ||
            plan->shards[i].need_bytes > input->nodes[plan->shards[i].node].memory_bytes)
            abort();
}

static void plan_shape(const struct plan_room *room, const struct plan_shape *shape,
                       enum plan_objective objective)
{
    static struct plan_layer layers[PLAN_MAX_LAYERS];
    struct plan_model model;
    struct plan_result *result;
    struct error error;
    plan_shape_model(&model, layers, shape, 2);
    struct plan_input input = {room->nodes, room->n_nodes, room->links, &model, {0}};
    input.work = (struct plan_work){1000, 3, 300, objective, 10};
    if (plan_make(&result, &input, &error) != STATUS_OK)
        return;
    for (size_t i = 0; i < result->n_plans; i++)
        check_plan(&input, &result->plans[i]);
    if ((result->n_plans == 0) != (result->refusal[0] != '\0'))
        abort();
    plan_free(result);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct plan_room room = {0};
    struct error error = {0};
    enum status status =
        plan_room_read(&room, (struct view){(const char *)data, size}, "f", &error);
    if (status != STATUS_OK && error.text[0] == '\0')
        abort();
    for (size_t i = 0; status == STATUS_OK && i < room.n_shapes && i < MODELS; i++)
        if (room.n_nodes > 0)
            plan_shape(&room, &room.shapes[i], (enum plan_objective)(size % 3));
    plan_room_free(&room);
    return 0;
}
