/* consort rm: names out of the store, with the files that no other name has. */
#include "cli/cli.h"
#include "store/store.h"

#include <limits.h>

static bool unfinished;

static int run(const struct cli_command *command, char **operands, int n_operands)
{
    if (n_operands == 0 && !unfinished)
        return cli_usage(command, "it needs NAME, or --unfinished");
    struct error error;
    struct store *store;
    uint64_t freed_bytes = 0, all_bytes = 0;
    int code = CLI_DONE;
    if (store_open(&store, NULL, &error) != STATUS_OK)
        return cli_fail(&error);
    for (int i = 0; i < n_operands; i++) {
        if (store_remove(store, operands[i], &freed_bytes, &error) != STATUS_OK)
            code = cli_fail(&error);
        all_bytes += freed_bytes;
    }
    struct store_abandoned dropped = {0};
    if (unfinished && store_drop_abandoned(store, &dropped, &error) != STATUS_OK)
        code = cli_fail(&error);
    all_bytes += dropped.size_bytes;
    if (all_bytes > 0) {
        char size[32];
        cli_note("%s are free again", cli_size_text(size, (double)all_bytes));
    }
    store_close(store);
    return code;
}

static const struct cli_option options[] = {
    {.name = "unfinished",
     .help = "also remove what downloads have left that were never finished",
     .type = CLI_FLAG,
     .value = &unfinished},
};
static const struct cli_group group = CLI_GROUP("options", options);

const struct cli_command cli_rm = {
    .name = "rm",
    .operands = "[NAME...]",
    .summary = "Removes names from the store, and the files that no other name has.",
    .groups = {&group},
    .min_operands = 0,
    .max_operands = INT_MAX,
    .run = run,
};
