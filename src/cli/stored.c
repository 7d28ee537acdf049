/* What a name of the store says of sampling, where the command line does not. */
#include "api/api.h"
#include "cli/cli.h"
#include "store/store.h"

#include <string.h>

/* What was given stays: the options' values are fields of cli_sampling_args, by their offsets. */
static void keep_given(struct sampling *sampling)
{
    const char *begin = (const char *)&cli_sampling_args;
    for (size_t i = 0; i < cli_sampling_group.n_options; i++) {
        const struct cli_option *option = &cli_sampling_group.options[i];
        const char *value = option->value;
        if (value < begin || value >= begin + sizeof cli_sampling_args || !cli_option_given(option))
            continue;
        size_t offset = (size_t)(value - begin);
        memcpy((char *)sampling + offset, value,
               sizeof(uint32_t)); /* all of them have four bytes */
    }
}

enum status cli_take_stored(const struct store_model *stored, struct cli_stored *out,
                            struct error *error)
{
    struct api_error told;
    struct api_call *call = NULL;
    bool seeded = cli_seed_given();
    struct sampling given = cli_sampling();
    *out = (struct cli_stored){.sampling = given};
    if (stored == NULL)
        return STATUS_OK;
    enum status status = ollama_read(&call, API_SHOW, view_of("{}"), &told);
    if (status == STATUS_OK)
        status = api_call_defaults(call, "", NULL, stored->parameters, &told);
    if (status != STATUS_OK) {
        api_call_free(call);
        return error_set(error, status, "the parameters of %.80s: %.150s", stored->name, told.text);
    }
    out->sampling = call->sampling;
    keep_given(&out->sampling);
    out->sampling.biases = given.biases;
    out->sampling.n_biases = given.n_biases;
    if (seeded || !call->has_seed)
        out->sampling.seed = given.seed;
    out->max_tokens = call->max_tokens;
    out->stops = call->stops;
    out->n_stops = call->n_stops;
    out->call = call;
    return STATUS_OK;
}

void cli_free_stored(struct cli_stored *stored)
{
    api_call_free(stored->call);
}
