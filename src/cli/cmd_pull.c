/* consort pull: a model into the store. */
#include "cli/cli.h"
#include "store/store.h"

#include <stdlib.h>
#include <string.h>

static struct {
    const char *name, *mirror;
    uint32_t tries, stall_s;
    bool json;
} args;

struct display {
    struct cli_progress line;
    char label[48];
    const char *what, *file; /* of the line */
};

/* A label that does not push the bar off the line. */
static void begin_line(struct display *display, const struct store_progress *progress)
{
    enum { WIDTH = 32 };
    cli_progress_end(&display->line);
    snprintf(display->label, sizeof display->label, "%.*s%s", WIDTH, progress->file,
             strlen(progress->file) > WIDTH ? "..." : "");
    display->line = cli_progress_begin(display->label, progress->total_bytes);
    display->line.skipped = progress->begin_bytes;
}

static bool show_progress(void *context, const struct store_progress *progress)
{
    struct display *display = context;
    char rate[32], text[48] = "";
    if (args.json) {
        cli_print_json(store_progress_json(progress));
        return cli_flush() && !cli_interrupted();
    }
    if (progress->trouble[0] != '\0') {
        cli_progress_end(&display->line);
        cli_note("%s", progress->trouble);
    } else if (progress->what != display->what || progress->file != display->file) {
        begin_line(display, progress);
        display->what = progress->what;
        display->file = progress->file;
    } else if (progress->done_bytes > progress->begin_bytes && progress->total_bytes > 0) {
        double s = (double)(clock_now_ns() - display->line.begin_ns) / 1e9;
        double bytes = (double)(progress->done_bytes - progress->begin_bytes);
        snprintf(text, sizeof text, "%s/s", cli_size_text(rate, s > 0 ? bytes / s : 0));
        cli_progress_show(&display->line, progress->done_bytes, text);
    }
    return !cli_interrupted();
}

static void note_disk(const struct store *store)
{
    struct disk disk;
    if (disk_query(store_path(store), &disk, NULL) == STATUS_OK && disk.kind != DISK_LOCAL)
        cli_note(
            "note: %s is on a %s: models open slowly from it; CONSORT_HOME names another folder",
            store_path(store), disk.kind == DISK_USB ? "USB disk" : "network disk");
}

static int run(const struct cli_command *command, char **operands, int n_operands)
{
    (void)command, (void)n_operands;
    struct error error;
    struct store *store;
    struct store_model *model = NULL;
    struct display display = {.line = {.visible = false}};
    struct store_pull pull = {.source = operands[0],
                              .name = args.name,
                              .mirror =
                                  args.mirror != NULL ? args.mirror : getenv("CONSORT_MIRROR"),
                              .tries = args.tries,
                              .stall_s = args.stall_s,
                              .progress = show_progress,
                              .context = &display};
    enum status status = store_open(&store, NULL, &error);
    if (status == STATUS_OK) {
        note_disk(store);
        status = store_pull(store, &pull, &model, &error);
    }
    cli_progress_end(&display.line);
    if (status == STATUS_OK && !args.json) {
        char size[32];
        cli_note("%zu file%s, %s", model->n_files, model->n_files > 1 ? "s" : "",
                 cli_size_text(size, (double)model->size_bytes));
        cli_printf("%.*s\n", (int)store_name_short(model->name), model->name);
    }
    store_model_free(model);
    store_close(store);
    return status == STATUS_OK ? CLI_DONE : cli_fail(&error);
}

static const struct cli_option options[] = {
    {.name = "as",
     .metavar = "NAME",
     .help = "the name it gets in the store (default: that of the source)",
     .type = CLI_TEXT,
     .value = &args.name},
    {.name = "mirror",
     .metavar = "URL",
     .help = "where names are looked up: a registry or hub of the same layout (default: "
             "CONSORT_MIRROR, else the public ones)",
     .type = CLI_TEXT,
     .value = &args.mirror},
    {.name = "tries",
     .metavar = "N",
     .help = "how often a connection is opened that brings nothing, with longer and longer waits "
             "(default: 8)",
     .type = CLI_U32,
     .min = 1,
     .max = 1000,
     .value = &args.tries},
    {.name = "stall",
     .metavar = "SECONDS",
     .help = "a connection that gives nothing for so long is opened anew (default: 30)",
     .type = CLI_U32,
     .min = 1,
     .max = 86400,
     .value = &args.stall_s},
    {.name = "json",
     .help = "print the progress as JSON lines",
     .type = CLI_FLAG,
     .value = &args.json},
};
static const struct cli_group group = CLI_GROUP("options", options);

const struct cli_command cli_pull = {
    .name = "pull",
    .operands = "NAME|URL|FILE",
    .summary = "Brings a model into the store.",
    .description =
        "NAME[:TAG] comes from Ollama's registry, OWNER/REPO[:FORMAT] or OWNER/REPO:FILE from "
        "Hugging "
        "Face (a token goes along from HF_TOKEN), a split model with all its parts. What was "
        "interrupted goes on with the same command. All is verified by its SHA-256. A FILE is "
        "shared with the store where the file system can, so that it takes no room "
        "twice: "
        "do not change it in place then. The name is printed, and is what the other commands and "
        "the clients of a server take from now on.",
    .groups = {&group},
    .min_operands = 1,
    .max_operands = 1,
    .run = run,
};
