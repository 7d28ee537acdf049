/* Which slices together are another one: pure questions about the names of objects.
 *
 * "SHA" is a whole model, and "SHA/FIRST-END.SHARD.SHARDS.SHARES" what one shard of a stage needs
 * of it, as "SHA/0-8.1.2.1_1". The bytes of a slice can be made from those of others that overlap
 * it (model_slice_merge): a whole model holds all, a slice itself, slices of one shard hold their
 * layers, and so do all shards of one stage together. Some shards of a stage may hold what a shard
 * of another one needs; that is not counted on.
 */
#ifndef CONSORT_CORE_SLICES_H
#define CONSORT_CORE_SLICES_H

#include "cluster/core.h"

#define SLICES_MAX_HELD (CLUSTER_MAX_NODES * (CLUSTER_MAX_OBJECTS + 1))

struct slice_range {
    uint32_t first_layer, end_layer, shard, n_shards;
    const char *shares; /* within the name */
};

/* False: a whole model, metadata, or no object. */
bool slice_parse(const char *object, struct slice_range *out);
bool slice_of_model(const char *object, const char *sha); /* or the model itself */
/* Whether held[n_held] hold all of wanted; used[n_held], unless NULL: those that do it. */
bool slices_cover(const char *const *held, size_t n_held, const char *wanted, bool *used);
/* "layers 0 to 8 of big", "shard 1 of 2 of layers 0 to 8 of big". */
void slice_text(const char *object, const char *model, char out[CLUSTER_REASON_BYTES]);

#endif
