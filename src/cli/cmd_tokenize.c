/* consort tokenize: text to ids. */
#include "cli/cli.h"

#define MAX_TEXT_BYTES ((size_t)1 << 30)

static bool no_special;

static int run(const struct cli_command *command, char **operands, int n_operands)
{
    (void)command, (void)n_operands;
    struct error error;
    struct engine *engine;
    struct buffer text = {0};
    struct token_list tokens = {0};
    if (cli_open_engine(&engine, operands[0], ENGINE_TOKENIZER, NULL, &error) != STATUS_OK)
        return cli_fail(&error);
    enum status status = file_read("-", MAX_TEXT_BYTES, &text, &error);
    unsigned flags = no_special ? 0 : TOKENIZER_ADD_SPECIAL | TOKENIZER_PARSE_SPECIAL;
    if (status == STATUS_OK)
        status = tokenizer_encode(engine->tokenizer, (struct view){text.data, text.size}, flags,
                                  &tokens, &error);
    if (status == STATUS_OK) {
        for (size_t i = 0; i < tokens.count; i++)
            cli_printf("%s%d", i > 0 ? " " : "", tokens.ids[i]);
        cli_printf("\n");
    }
    token_list_free(&tokens);
    buffer_free(&text);
    engine_close(engine);
    return status == STATUS_OK ? CLI_DONE : cli_fail(&error);
}

static const struct cli_option options[] = {
    {.name = "no-special",
     .help = "add neither BOS nor EOS, and read the text of control tokens as ordinary text",
     .type = CLI_FLAG,
     .value = &no_special},
};
static const struct cli_group group = CLI_GROUP("options", options);

const struct cli_command cli_tokenize = {
    .name = "tokenize",
    .operands = "MODEL",
    .summary = "Prints the token ids of the text on standard input.",
    .description =
        "The text is taken as it is, its last line end included; the ids come on one line.",
    .groups = {&group},
    .min_operands = 1,
    .max_operands = 1,
    .run = run,
};
