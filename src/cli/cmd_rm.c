/* consort rm: names out of the store, with the files that no other name has, and the slices of the
 * model on the nodes of the cluster. */
#include "cli/remote.h"
#include "cluster/cluster.h"
#include "store/store.h"

#include <limits.h>
#include <string.h>

static bool unfinished;

/* The digest of what only this name has; "" where another one has it too. STATUS_NOT_FOUND: there
 * is no such name. */
static enum status find_digest(const struct store *store, const char *name,
                               char out[STORE_DIGEST_BYTES], struct error *error)
{
    struct store_model *model;
    struct store_list list;
    out[0] = '\0';
    enum status status = store_find(store, name, &model, error);
    if (status != STATUS_OK)
        return status;
    size_t n_same = 0;
    if (store_list(store, &list, error) == STATUS_OK) {
        for (size_t i = 0; i < list.n_models; i++)
            n_same += strcmp(list.models[i]->digest, model->digest) == 0;
        store_list_free(&list);
    }
    if (n_same == 1)
        memcpy(out, model->digest, STORE_DIGEST_BYTES);
    store_model_free(model);
    return STATUS_OK;
}

/* Has the slices of a model, by its name or digest, removed on all nodes; without a server here, on
 * this one. STATUS_NOT_FOUND: there are none, or no cluster; others: the cluster refuses. */
static enum status forget(const char *model, struct error *error)
{
    struct server_presence server;
    json_t *reply = NULL;
    enum status status = cli_remote_find(&server, error);
    if (status == STATUS_NOT_FOUND && cluster_slices_remove(model) > 0)
        return STATUS_OK;
    if (status != STATUS_OK)
        return STATUS_NOT_FOUND;
    json_t *fields = json_pack("{s:s, s:s}", "do", "forget", "model", model);
    status = cli_remote_ask(&server, "/consort/cluster", fields, &reply, error);
    json_decref(fields);
    json_decref(reply);
    server_presence_free(&server);
    return status;
}

static enum status remove_one(const struct store *store, const char *name, uint64_t *freed_bytes,
                              struct error *error)
{
    char digest[STORE_DIGEST_BYTES];
    struct error told = {.code = STATUS_NOT_FOUND};
    enum status found = find_digest(store, name, digest, error), forgotten = STATUS_NOT_FOUND;
    if (found == STATUS_NOT_FOUND)
        forgotten = forget(name, &told);
    else if (digest[0] != '\0')
        forgotten = forget(digest, &told);
    if (forgotten != STATUS_OK && forgotten != STATUS_NOT_FOUND) {
        *error = told;
        return forgotten;
    }
    if (found == STATUS_NOT_FOUND && forgotten == STATUS_OK)
        return STATUS_OK;
    return store_remove(store, name, freed_bytes, error);
}

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
        freed_bytes = 0;
        if (remove_one(store, operands[i], &freed_bytes, &error) != STATUS_OK)
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
    .summary = "Removes names from the store, the files that no other name has, and what the nodes "
               "of the cluster keep of the model.",
    .groups = {&group, &cli_remote_group},
    .min_operands = 0,
    .max_operands = INT_MAX,
    .run = run,
};
