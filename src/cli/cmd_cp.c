/* consort cp: one more name for a model in the store. */
#include "cli/cli.h"
#include "store/store.h"

static int run(const struct cli_command *command, char **operands, int n_operands)
{
    (void)command, (void)n_operands;
    struct error error;
    struct store *store;
    enum status status = store_open(&store, NULL, &error);
    if (status == STATUS_OK)
        status = store_copy(store, operands[0], operands[1], &error);
    store_close(store);
    return status == STATUS_OK ? CLI_DONE : cli_fail(&error);
}

const struct cli_command cli_cp = {
    .name = "cp",
    .operands = "NAME NEW_NAME",
    .summary = "Gives a model in the store one more name.",
    .description = "Its files are shared, not copied. A name that exists gets the other model.",
    .min_operands = 2,
    .max_operands = 2,
    .run = run,
};
