/* The input is a placement as JSON. What is taken is written as it was read. */
#include "cluster/rank.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct model_placement placement, again;
    struct model_options options = {0}, same = {0};
    struct error error;
    json_t *json = json_loadb((const char *)data, size, 0, NULL);
    if (cluster_placement_read(json, &placement, &options, &error) == STATUS_OK) {
        json_t *written = cluster_placement_write(&placement, &options);
        if (cluster_placement_read(written, &again, &same, &error) != STATUS_OK ||
            memcmp(&placement, &again, sizeof again) != 0 || options.n_cache != same.n_cache)
            abort();
        json_decref(written);
    }
    json_decref(json);
    return 0;
}
