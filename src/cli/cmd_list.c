/* consort list: the models in the store. */
#include "cli/cli.h"
#include "store/store.h"

#include <string.h>
#include <time.h>

static bool as_json;

static json_t *model_json(const struct store_model *model)
{
    json_t *files = json_array();
    for (size_t i = 0; i < model->n_files; i++)
        json_array_append_new(files, json_pack("{s:s, s:s+, s:I}", "name", model->files[i].name,
                                               "digest", "sha256:", model->files[i].digest, "size",
                                               (json_int_t)model->files[i].size_bytes));
    return json_pack("{s:s, s:s+, s:I, s:I, s:s, s:s, s:o}", "name", model->name, "digest",
                     "sha256:", model->digest, "size", (json_int_t)model->size_bytes, "modified",
                     (json_int_t)model->modified_s, "source", model->source, "path", model->path,
                     "files", files);
}

static int print_json(const struct store_list *list)
{
    json_t *models = json_array();
    for (size_t i = 0; i < list->n_models; i++)
        json_array_append_new(models, model_json(list->models[i]));
    return cli_print_json(models);
}

static void print_table(const struct store_list *list)
{
    size_t width = sizeof "NAME" - 1;
    for (size_t i = 0; i < list->n_models; i++)
        width = MAX(width, strlen(list->models[i]->name));
    if (list->n_models > 0)
        cli_printf("%-*s  %-12s  %10s  %s\n", (int)width, "NAME", "DIGEST", "SIZE", "MODIFIED");
    for (size_t i = 0; i < list->n_models; i++) {
        const struct store_model *model = list->models[i];
        char size[32], when[32] = "";
        struct tm parts;
        time_t modified = (time_t)model->modified_s;
        if (localtime_r(&modified, &parts) != NULL)
            strftime(when, sizeof when, "%Y-%m-%d %H:%M", &parts);
        cli_printf("%-*s  %.12s  %10s  %s\n", (int)width, model->name, model->digest,
                   cli_size_text(size, (double)model->size_bytes), when);
    }
}

static void note_abandoned(const struct store *store)
{
    struct store_abandoned left;
    struct error error;
    char size[32];
    if (store_abandoned(store, &left, &error) == STATUS_OK && left.n_files > 0)
        cli_note("%zu unfinished download%s (%s): the same consort pull goes on, consort rm "
                 "--unfinished removes",
                 left.n_files, left.n_files == 1 ? "" : "s",
                 cli_size_text(size, (double)left.size_bytes));
}

static int run(const struct cli_command *command, char **operands, int n_operands)
{
    (void)command, (void)operands, (void)n_operands;
    struct error error;
    struct store *store;
    struct store_list list = {0};
    int code = CLI_DONE;
    enum status status = store_open(&store, NULL, &error);
    if (status == STATUS_OK)
        status = store_list(store, &list, &error);
    if (status != STATUS_OK)
        code = cli_fail(&error);
    else if (as_json)
        code = print_json(&list);
    else
        print_table(&list);
    if (status == STATUS_OK && list.n_models == 0 && !as_json)
        cli_note("no models in %s yet: consort pull brings one", store_path(store));
    if (status == STATUS_OK)
        note_abandoned(store);
    if (list.n_broken > 0)
        code = cli_fail(&list.broken);
    store_list_free(&list);
    store_close(store);
    return code;
}

static const struct cli_option options[] = {
    {.name = "json", .help = "print a JSON array", .type = CLI_FLAG, .value = &as_json},
};
static const struct cli_group group = CLI_GROUP("options", options);

const struct cli_command cli_list = {
    .name = "list",
    .operands = "",
    .summary = "Lists the models in the store.",
    .groups = {&group},
    .run = run,
};
