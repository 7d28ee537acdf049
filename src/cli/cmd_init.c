/* consort init: the key of a new cluster. */
#include "cli/cli.h"
#include "cluster/cluster.h"

static int run(const struct cli_command *command, char **operands, int n_operands)
{
    struct cluster_key key;
    struct error error;
    (void)command, (void)operands, (void)n_operands;
    enum status status = cluster_key_load(&key, &error);
    if (status == STATUS_OK)
        status = error_set(&error, STATUS_INVALID,
                           "this machine is in a cluster already: consort token lets another "
                           "machine in, consort leave leaves the cluster");
    else if (status == STATUS_NOT_FOUND)
        status = cluster_key_make(&key, &error);
    if (status == STATUS_OK)
        status = cluster_key_save(&key, &error);
    if (status != STATUS_OK)
        return cli_fail(&error);
    cli_note("this machine is the first of a new cluster. Next:\n"
             "    consort up       serve, and find the other machines\n"
             "    consort token    print what consort join needs on another machine");
    return CLI_DONE;
}

const struct cli_command cli_init = {
    .name = "init",
    .operands = "",
    .summary = "Begins a cluster: makes the key that its machines will share.",
    .run = run,
};
