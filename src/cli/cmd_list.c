/* consort list: the models in the store, and the slices that are kept for the cluster. */
#include "cli/cli.h"
#include "cluster/cluster.h"
#include "store/store.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

static bool as_json, slices_alone;

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

static const char *day_of(int64_t time_s, char out[32])
{
    struct tm parts;
    time_t time = (time_t)time_s;
    out[0] = '\0';
    if (localtime_r(&time, &parts) != NULL)
        strftime(out, 32, "%Y-%m-%d %H:%M", &parts);
    return out;
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
        char size[32], when[32];
        cli_printf("%-*s  %.12s  %10s  %s\n", (int)width, model->name, model->digest,
                   cli_size_text(size, (double)model->size_bytes), day_of(model->modified_s, when));
    }
}

static int compare_slices(const void *a, const void *b)
{
    const struct cluster_slice *x = a, *y = b;
    return strcmp(x->text, y->text);
}

static size_t find_slices(struct cluster_slice slices[CLUSTER_MAX_OBJECTS])
{
    size_t n = cluster_slices(slices);
    qsort(slices, n, sizeof *slices, compare_slices);
    return n;
}

static void print_slices(void)
{
    struct cluster_slice slices[CLUSTER_MAX_OBJECTS];
    size_t n = find_slices(slices), width = sizeof "SLICE FOR THE CLUSTER" - 1;
    for (size_t i = 0; i < n; i++)
        width = MAX(width, strlen(slices[i].text));
    if (n > 0)
        cli_printf("%-*s  %-12s  %10s  %s\n", (int)width, "SLICE FOR THE CLUSTER", "DIGEST", "SIZE",
                   "USED");
    for (size_t i = 0; i < n; i++) {
        char size[32], when[32];
        cli_printf("%-*s  %.12s  %10s  %s\n", (int)width, slices[i].text, slices[i].sha,
                   cli_size_text(size, (double)slices[i].size_bytes),
                   day_of(slices[i].used_s, when));
    }
}

static int print_slices_json(void)
{
    struct cluster_slice slices[CLUSTER_MAX_OBJECTS];
    size_t n = find_slices(slices);
    json_t *list = json_array();
    for (size_t i = 0; i < n; i++)
        json_array_append_new(list,
                              json_pack("{s:s, s:s+, s:s, s:I, s:I}", "model", slices[i].model,
                                        "digest", "sha256:", slices[i].sha, "slice", slices[i].text,
                                        "size", (json_int_t)slices[i].size_bytes, "used",
                                        (json_int_t)slices[i].used_s));
    return cli_print_json(list);
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
    if (slices_alone && as_json)
        return print_slices_json();
    if (slices_alone) {
        print_slices();
        return CLI_DONE;
    }
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
    else {
        print_table(&list);
        print_slices();
    }
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
    {.name = "slices",
     .help = "only slices of models that are kept here for the cluster",
     .type = CLI_FLAG,
     .value = &slices_alone},
    {.name = "json", .help = "print a JSON array", .type = CLI_FLAG, .value = &as_json},
};
static const struct cli_group group = CLI_GROUP("options", options);

const struct cli_command cli_list = {
    .name = "list",
    .operands = "",
    .summary = "Lists the models in the store, and the slices kept here for the cluster.",
    .groups = {&group},
    .run = run,
};
