/* A file with the options of a command. */
#ifndef CONSORT_CLI_CONFIG_H
#define CONSORT_CLI_CONFIG_H

#include "cli/cli.h"

/* A key of the file that is no option. read takes its value, or gives the reason why not and where:
 * at is the value until it is set. */
struct cli_config_key {
    const char *name;
    bool (*read)(const struct yaml_node *value, const struct yaml_node **at, struct buffer *reason);
};

/* Sets the options that the file gives and the command line has not. Returns CLI_DONE, or an exit
 * code (said on stderr, with file, line and column). What it has read stays in memory. */
int cli_config_read(const struct cli_command *command, const char *path,
                    const struct cli_config_key *keys, size_t n_keys);

/* The models of a configuration, in LiteLLM's form or as texts NAME=FILE, one after the other to
 * take. */
bool cli_config_models(const struct yaml_node *list, const struct yaml_node **at,
                       bool (*take)(const char *text, struct buffer *reason),
                       struct buffer *reason);

#endif
