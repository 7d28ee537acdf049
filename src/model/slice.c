/* Which part of a model a rank has. */
#include "model/model_internal.h"

uint32_t model_placement_ranks(const struct model_placement *placement)
{
    uint32_t n = 0;
    for (uint32_t s = 0; s < placement->n_stages; s++)
        n += placement->stages[s].n_shards;
    return n;
}

uint32_t model_placement_owner(const struct model_placement *placement)
{
    uint32_t last = placement->n_stages - 1;
    return model_placement_ranks(placement) - placement->stages[last].n_shards;
}
