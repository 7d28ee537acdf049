#include "cli/cli.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

const struct cli_command *const cli_commands[] = {
    &cli_run,     &cli_up,
    &cli_key,     &cli_usage_command,
    &cli_audit,   &cli_ps,
    &cli_stop,    &cli_down,
    &cli_pull,    &cli_list,
    &cli_show,    &cli_cp,
    &cli_rm,      &cli_init,
    &cli_token,   &cli_join,
    &cli_leave,   &cli_status,
    &cli_doctor,  &cli_load,
    &cli_unload,  &cli_remove,
    &cli_rotate,  &cli_quantize,
    &cli_imatrix, &cli_perplexity,
    &cli_embed,   &cli_bench,
    &cli_plan,    &cli_tokenize,
    &cli_render,  &cli_logits,
    &cli_help,    NULL,
};

static const struct cli_command *find_command(const char *name)
{
    for (size_t i = 0; cli_commands[i] != NULL; i++)
        if (strcmp(cli_commands[i]->name, name) == 0)
            return cli_commands[i];
    return NULL;
}

static int unknown_command(const char *name)
{
    const char *names[ARRAY_COUNT(cli_commands)];
    size_t n = 0;
    for (; cli_commands[n] != NULL; n++)
        names[n] = cli_commands[n]->name;
    const char *closest = cli_closest(name, names, n);
    if (closest != NULL)
        return cli_usage(NULL, "unknown command '%s', did you mean %s?", name, closest);
    return cli_usage(NULL, "unknown command '%s'", name);
}

static int run_help(const struct cli_command *command, char **operands, int n_operands)
{
    (void)command;
    if (n_operands == 0) {
        cli_print_overview(stdout);
        return CLI_DONE;
    }
    const struct cli_command *wanted = find_command(operands[0]);
    if (wanted == NULL)
        return unknown_command(operands[0]);
    cli_print_help(wanted, stdout);
    return CLI_DONE;
}

const struct cli_command cli_help = {
    .name = "help",
    .operands = "[COMMAND]",
    .summary = "Explains a command, or lists them.",
    .max_operands = 1,
    .run = run_help,
};

/* A descriptor that was closed by the caller would be given to the first file that is opened, and
 * messages would land in it. A closed stdout gets a read-only one, so that writing to it still
 * fails. */
static void fill_standard_descriptors(void)
{
    for (int fd = 0; fd <= 2; fd++)
        if (fcntl(fd, F_GETFD) == -1)
            (void)!open("/dev/null", fd == 2 ? O_WRONLY : O_RDONLY);
}

static int run_command(const struct cli_command *command, int argc, char **argv)
{
    char **operands = calloc((size_t)argc + 1, sizeof *operands);
    if (operands == NULL) {
        struct error error;
        error_memory(&error, (size_t)argc * sizeof *operands);
        return cli_fail(&error);
    }
    int n_operands;
    bool shown_help;
    int code = cli_parse(command, argc, argv, operands, &n_operands, &shown_help);
    if (code == CLI_DONE && !shown_help)
        code = command->run(command, operands, n_operands);
    free(operands);
    return code;
}

int main(int argc, char **argv)
{
    fill_standard_descriptors();
    cli_catch_signals(false);
    cli_sampling_args = SAMPLING_DEFAULTS;
    if (argc < 2) {
        cli_print_overview(stderr);
        return CLI_USAGE;
    }
    if (strcmp(argv[1], "--version") == 0) {
        cli_printf("consort %s\n", CONSORT_VERSION);
        return cli_close_output(CLI_DONE);
    }
    if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0) {
        cli_print_overview(stdout);
        return cli_close_output(CLI_DONE);
    }
    if (argv[1][0] == '-' && argv[1][1] != '\0')
        return cli_usage(NULL, "unknown option %s", argv[1]);
    const struct cli_command *command = find_command(argv[1]);
    if (command == NULL)
        return unknown_command(argv[1]);
    return cli_close_output(run_command(command, argc - 2, argv + 2));
}
