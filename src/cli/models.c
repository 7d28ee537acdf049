/* Where a command finds its model. */
#include "cli/cli.h"
#include "store/store.h"

#include <string.h>
#include <sys/stat.h>

static bool looks_like_file(const char *model)
{
    size_t size = strlen(model);
    return strchr(model, '/') != NULL || (size > 5 && strcmp(model + size - 5, ".gguf") == 0);
}

enum status cli_find_model(const char *model, struct store_model **out, struct error *error)
{
    char name[STORE_NAME_BYTES];
    struct stat facts;
    struct store *store;
    *out = NULL;
    /* What is no name is a file, also one that is not there: opening it says so. */
    if (stat(model, &facts) == 0 || store_name_parse(model, name, error) != STATUS_OK)
        return STATUS_OK;
    enum status status = store_open(&store, NULL, error);
    if (status != STATUS_OK)
        return looks_like_file(model) ? STATUS_OK : status;
    status = store_find(store, name, out, error);
    store_close(store);
    if (status != STATUS_NOT_FOUND)
        return status;
    if (looks_like_file(model))
        return STATUS_OK;
    return error_set(error, status,
                     "there is no file '%s', and no model of that name in the store: consort list "
                     "shows those that are there, consort pull brings one",
                     model);
}

enum status cli_open_engine(struct engine **out, const char *model, unsigned parts,
                            const struct model_options *options, struct error *error)
{
    struct store_model *stored;
    enum status status = cli_find_model(model, &stored, error);
    if (status == STATUS_OK)
        status = engine_open(out, stored != NULL ? stored->path : model, parts, options, error);
    store_model_free(stored);
    return status;
}

enum status cli_open_weights(struct weights **out, const char *model, struct error *error)
{
    struct store_model *stored;
    enum status status = cli_find_model(model, &stored, error);
    if (status == STATUS_OK)
        status = weights_open(out, stored != NULL ? stored->path : model, error);
    store_model_free(stored);
    return status;
}
