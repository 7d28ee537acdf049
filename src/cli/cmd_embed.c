/* consort embed: texts to vectors, or scores for a query. */
#include "cli/cli.h"

#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

static struct {
    const char *pooling, *query;
    bool raw, json;
} args;

struct embedder {
    struct engine *engine;
    enum model_pooling pooling; /* NONE: the file's */
    bool ranks;
    struct token_list tokens;
    float *vector; /* [n_out] */
    size_t n_out, n_texts;
    json_t *list; /* with --json */
};

static json_t *vector_json(const struct embedder *e)
{
    json_t *vector = json_array();
    for (size_t i = 0; i < e->n_out; i++)
        json_array_append_new(vector, json_real(e->vector[i]));
    return vector;
}

static void put_result(struct embedder *e)
{
    if (args.json && e->ranks) {
        json_array_append_new(e->list, json_pack("{s:I, s:f}", "index", (json_int_t)e->n_texts,
                                                 "score", (double)e->vector[0]));
    } else if (args.json) {
        json_array_append_new(e->list, vector_json(e));
    } else {
        for (size_t i = 0; i < e->n_out; i++)
            cli_printf("%s%.8g", i > 0 ? " " : "", e->vector[i]);
        cli_printf("\n");
    }
}

static enum status embed(struct embedder *e, struct view text, struct error *error)
{
    e->tokens.count = 0;
    enum status status =
        e->ranks
            ? engine_encode_pair(e->engine, view_of(args.query), text, &e->tokens, error)
            : tokenizer_encode(e->engine->tokenizer, text,
                               TOKENIZER_ADD_SPECIAL | TOKENIZER_PARSE_SPECIAL, &e->tokens, error);
    size_t n_ctx = model_n_ctx(e->engine->model);
    if (status == STATUS_OK && e->tokens.count == 0)
        status = error_set(error, STATUS_INVALID, "text %zu has no tokens", e->n_texts + 1);
    if (status == STATUS_OK && e->tokens.count > n_ctx)
        status = error_set(error, STATUS_LIMIT, "text %zu has %zu tokens, the context holds %zu",
                           e->n_texts + 1, e->tokens.count, n_ctx);
    if (status == STATUS_OK)
        status = model_embed(e->engine->model, e->tokens.ids, e->tokens.count, e->pooling,
                             !args.raw, e->vector, error);
    if (status == STATUS_OK && cli_interrupted())
        status = error_set(error, STATUS_CANCELLED, "interrupted");
    if (status == STATUS_OK) {
        put_result(e);
        e->n_texts++;
    }
    return status;
}

/* The texts of the command line, or the lines of standard input. */
static enum status embed_all(struct embedder *e, char **texts, int n_texts, struct error *error)
{
    enum status status = STATUS_OK;
    for (int i = 0; i < n_texts && status == STATUS_OK; i++)
        status = embed(e, view_of(texts[i]), error);
    char *line = NULL;
    size_t capacity = 0;
    ssize_t length;
    while (n_texts == 0 && status == STATUS_OK && !cli_output_lost() &&
           (length = getline(&line, &capacity, stdin)) >= 0) {
        while (length > 0 && (line[length - 1] == '\n' || line[length - 1] == '\r'))
            length--;
        status = embed(e, (struct view){line, (size_t)length}, error);
        cli_flush();
    }
    free(line);
    return status;
}

static enum model_pooling pooling_named(const char *name)
{
    if (name == NULL)
        return MODEL_POOLING_NONE;
    return strcasecmp(name, "mean") == 0  ? MODEL_POOLING_MEAN
           : strcasecmp(name, "cls") == 0 ? MODEL_POOLING_CLS
                                          : MODEL_POOLING_LAST;
}

static enum status prepare(struct embedder *e, const char *path, struct error *error)
{
    struct model_options options = cli_model_options();
    enum status status =
        cli_open_engine(&e->engine, path, ENGINE_MODEL | ENGINE_TOKENIZER, &options, error);
    if (status != STATUS_OK)
        return status;
    const struct model_desc *desc = model_description(e->engine->model);
    e->pooling = pooling_named(args.pooling);
    e->ranks = args.query != NULL;
    bool ranks = e->pooling == MODEL_POOLING_NONE && desc->pooling == MODEL_POOLING_RANK;
    if (e->ranks && !ranks)
        return error_set(error, STATUS_UNSUPPORTED,
                         "%s is no reranker: it gives no score for --query", path);
    if (!e->ranks && ranks)
        return error_set(error, STATUS_INVALID, "%s is a reranker: it needs --query TEXT", path);
    if (e->pooling == MODEL_POOLING_NONE && desc->pooling == MODEL_POOLING_NONE)
        return error_set(error, STATUS_INVALID,
                         "%s does not say how to pool: choose --pooling mean, cls or last", path);
    e->n_out = ranks ? 1 : desc->n_embd;
    e->vector = calloc(desc->n_embd, sizeof *e->vector);
    if (e->vector == NULL)
        return error_memory(error, desc->n_embd * sizeof *e->vector);
    return STATUS_OK;
}

static int run(const struct cli_command *command, char **operands, int n_operands)
{
    (void)command;
    struct error error;
    struct embedder e = {.list = json_array()};
    enum status status = prepare(&e, operands[0], &error);
    if (status == STATUS_OK)
        status = embed_all(&e, operands + 1, n_operands - 1, &error);
    int code = CLI_DONE;
    if (status != STATUS_OK)
        code = cli_fail(&error);
    else if (args.json)
        code = cli_print_json(json_pack("{s:O}", e.ranks ? "results" : "embeddings", e.list));
    json_decref(e.list);
    token_list_free(&e.tokens);
    free(e.vector);
    engine_close(e.engine);
    return code;
}

static const struct cli_option options[] = {
    {.name = "pooling",
     .metavar = "mean|cls|last",
     .help = "how the tokens become one vector (default: as the file says)",
     .type = CLI_CHOICE,
     .value = &args.pooling},
    {.name = "no-normalize",
     .help = "leave the vector's length as it is (default: 1)",
     .type = CLI_FLAG,
     .value = &args.raw},
    {.name = "query",
     .metavar = "TEXT",
     .help = "for rerankers: score every text as an answer to this",
     .type = CLI_TEXT,
     .value = &args.query},
    {.name = "json", .help = "print a JSON object", .type = CLI_FLAG, .value = &args.json},
};
static const struct cli_group group = CLI_GROUP("options", options);

const struct cli_command cli_embed = {
    .name = "embed",
    .operands = "MODEL [TEXT...]",
    .summary = "Prints a vector for every text, or with --query a score.",
    .description = "The texts are arguments, or else the lines of standard input; every text gives "
                   "a line of numbers.",
    .groups = {&group, &cli_model_group},
    .min_operands = 1,
    .max_operands = INT_MAX,
    .run = run,
};
