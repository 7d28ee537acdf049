/* consort logits: the numbers behind the next token, for comparison with other programs. */
#include "cli/cli.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>

#define MAX_TOKENS_BYTES ((size_t)256 << 20)
#define LOGITS_BYTES ((size_t)64 << 20) /* of one step */

static struct {
    const char *tokens, *out;
} args;

static enum status parse_tokens(const char *text, struct token_list *out, struct error *error)
{
    for (;;) {
        text += strspn(text, " \t\r\n,");
        if (*text == '\0')
            break;
        size_t length = strcspn(text, " \t\r\n,");
        char word[16];
        uint64_t id;
        snprintf(word, sizeof word, "%.*s", (int)MIN(length, sizeof word - 1), text);
        if (length >= sizeof word || !cli_parse_u64(word, 0, INT32_MAX, &id))
            return error_set(error, STATUS_INVALID, "%s: '%s' is not a token id", args.tokens,
                             word);
        if (!token_list_append(out, (int32_t)id))
            return error_memory(error, sizeof(int32_t));
        text += length;
    }
    if (out->count == 0)
        return error_set(error, STATUS_INVALID, "%s holds no token ids", args.tokens);
    return STATUS_OK;
}

static enum status read_tokens(struct token_list *out, struct error *error)
{
    struct buffer text = {0};
    enum status status = file_read(args.tokens, MAX_TOKENS_BYTES, &text, error);
    if (status == STATUS_OK && text.size > 0 && memchr(text.data, '\0', text.size) != NULL)
        status = error_set(error, STATUS_INVALID, "%s is not text", args.tokens);
    if (status == STATUS_OK)
        status = parse_tokens(text.size > 0 ? text.data : "", out, error);
    buffer_free(&text);
    return status;
}

static enum status write_logits(struct model *model, const struct token_list *tokens,
                                struct file_writer *writer, struct error *error)
{
    size_t n_vocab = model_description(model)->n_vocab;
    size_t rows = MAX(LOGITS_BYTES / (n_vocab * sizeof(float)), 1);
    rows = MIN(MIN(rows, model_batch_limit(model)), tokens->count);
    float *logits = malloc(rows * n_vocab * sizeof *logits);
    if (logits == NULL)
        return error_memory(error, rows * n_vocab * sizeof *logits);
    struct sequence *sequence = NULL;
    struct cli_progress progress = cli_progress_begin("logits", tokens->count);
    enum status status = sequence_open(&sequence, model, error);
    for (size_t done = 0; status == STATUS_OK && done < tokens->count;) {
        size_t n = MIN(rows, tokens->count - done);
        struct step_segment segment = {sequence, tokens->ids + done, n, n};
        status = model_step(model, &segment, 1, logits, error);
        if (status == STATUS_OK)
            status = file_write(writer, logits, n * n_vocab * sizeof *logits, error);
        if (status == STATUS_OK && cli_interrupted())
            status = error_set(error, STATUS_CANCELLED, "interrupted");
        done += n;
        cli_progress_show(&progress, done, "");
    }
    cli_progress_end(&progress);
    sequence_close(sequence);
    free(logits);
    return status;
}

static enum status write_vector(struct model *model, const struct token_list *tokens,
                                struct file_writer *writer, struct error *error)
{
    const struct model_desc *desc = model_description(model);
    size_t n = desc->pooling == MODEL_POOLING_RANK ? 1 : desc->n_embd;
    float *vector = calloc(desc->n_embd, sizeof *vector);
    if (vector == NULL)
        return error_memory(error, desc->n_embd * sizeof *vector);
    enum status status =
        model_embed(model, tokens->ids, tokens->count, MODEL_POOLING_NONE, false, vector, error);
    if (status == STATUS_OK)
        status = file_write(writer, vector, n * sizeof *vector, error);
    free(vector);
    return status;
}

static int run(const struct cli_command *command, char **operands, int n_operands)
{
    (void)n_operands;
    if (args.tokens == NULL || args.out == NULL)
        return cli_usage(command, "logits needs --tokens FILE and --out FILE");
    struct error error;
    int code;
    if (!cli_ranks_lead(command, operands[0], &code))
        return code;
    struct token_list tokens = {0};
    struct engine *engine = NULL;
    struct file_writer *writer = NULL;
    enum status status = read_tokens(&tokens, &error);
    struct model_options options = cli_model_options();
    if (options.n_ctx == 0)
        options.n_ctx = (uint32_t)tokens.count;
    if (cli_model_args.kv_type == NULL)
        options.kv_format = QUANT_F32;
    if (status == STATUS_OK)
        status = cli_open_engine(&engine, operands[0], ENGINE_MODEL, &options, &error);
    if (status == STATUS_OK)
        status = file_create(&writer, args.out, &error);
    if (status == STATUS_OK) {
        const struct model_desc *desc = model_description(engine->model);
        bool embeds = !desc->causal || desc->pooling != MODEL_POOLING_NONE;
        status = embeds ? write_vector(engine->model, &tokens, writer, &error)
                        : write_logits(engine->model, &tokens, writer, &error);
        if (status == STATUS_OK)
            status = file_commit(writer, &error);
        else
            file_discard(writer);
    }
    engine_close(engine);
    token_list_free(&tokens);
    code = status == STATUS_OK ? CLI_DONE : cli_fail(&error);
    cli_ranks_leave(status, &error);
    return code;
}

static const struct cli_option options[] = {
    {.name = "tokens",
     .metavar = "FILE",
     .help = "decimal token ids, used as given (required)",
     .type = CLI_TEXT,
     .value = &args.tokens},
    {.letter = 'o',
     .name = "out",
     .metavar = "FILE",
     .help = "where the numbers go (required)",
     .type = CLI_TEXT,
     .value = &args.out},
};
static const struct cli_group group = CLI_GROUP("options", options);

const struct cli_command cli_logits = {
    .name = "logits",
    .operands = "MODEL",
    .summary = "Writes the logits of every position, or the pooled vector of an embedding model.",
    .description = "FILE becomes raw little-endian float32, [tokens, vocabulary]. The KV cache is "
                   "F32 unless --kv-type says otherwise.",
    .groups = {&group, &cli_model_group, &cli_ranks_group},
    .min_operands = 1,
    .max_operands = 1,
    .run = run,
};
