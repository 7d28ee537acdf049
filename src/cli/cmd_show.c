/* consort show: what is in a model file and what it needs. */
#include "cli/cli.h"

#include <stdlib.h>
#include <string.h>

static struct {
    bool tensors, json;
} args;

/* ---- Facts ----------------------------------------------------------------------------------- */

struct facts {
    const struct weights *weights;
    const struct model_desc *desc;
    uint64_t format_bytes[QUANT_FORMAT_COUNT], tensor_bytes;
    struct view tokenizer, pre;
    bool has_template;
    uint32_t n_ctx;
    uint64_t kv_bytes, needed_bytes;
    uint32_t heads[2], kv_heads[2]; /* least and most of all layers */
};

static enum status gather(struct facts *facts, struct error *error)
{
    const struct weights *weights = facts->weights;
    const struct model_desc *desc = facts->desc;
    struct view chat_template = {0};
    enum status status = weights_string(weights, "tokenizer.ggml.model", &facts->tokenizer, error);
    if (status == STATUS_OK)
        status = weights_string(weights, "tokenizer.ggml.pre", &facts->pre, error);
    if (status == STATUS_OK)
        status = weights_string(weights, "tokenizer.chat_template", &chat_template, error);
    if (status == STATUS_OK && desc->causal)
        status = model_check_kv_format(desc, cli_kv_format(), error);
    if (status != STATUS_OK)
        return status;
    facts->has_template = chat_template.size > 0;
    for (size_t i = 0; i < weights_tensor_count(weights); i++) {
        const struct weights_tensor *tensor = weights_tensor_at(weights, i);
        facts->format_bytes[tensor->format] += tensor->size_bytes;
        facts->tensor_bytes += tensor->size_bytes;
    }
    facts->n_ctx = cli_model_args.n_ctx != 0 ? cli_model_args.n_ctx : desc->n_ctx_train;
    facts->kv_bytes = desc->causal ? model_kv_bytes(desc, facts->n_ctx, cli_kv_format()) : 0;
    facts->needed_bytes = facts->tensor_bytes + facts->kv_bytes;
    facts->heads[0] = facts->kv_heads[0] = UINT32_MAX;
    for (uint32_t i = 0; i < desc->n_layers; i++) {
        const struct model_layer_desc *layer = &desc->layers[i];
        facts->heads[0] = MIN(facts->heads[0], layer->n_heads);
        facts->heads[1] = MAX(facts->heads[1], layer->n_heads);
        facts->kv_heads[0] = MIN(facts->kv_heads[0], layer->n_kv_heads);
        facts->kv_heads[1] = MAX(facts->kv_heads[1], layer->n_kv_heads);
    }
    return STATUS_OK;
}

/* The format with the most bytes not yet in shown, or QUANT_FORMAT_COUNT. */
static enum quant_format next_format(const struct facts *facts, uint32_t shown)
{
    enum quant_format best = QUANT_FORMAT_COUNT;
    for (unsigned f = 0; f < QUANT_FORMAT_COUNT; f++)
        if (!(shown & (1u << f)) && facts->format_bytes[f] > 0 &&
            (best == QUANT_FORMAT_COUNT || facts->format_bytes[f] > facts->format_bytes[best]))
            best = (enum quant_format)f;
    return best;
}

/* ---- For people ------------------------------------------------------------------------------ */

static void print_shape(const struct weights_tensor *tensor)
{
    char shape[96];
    size_t at = 0;
    for (uint32_t d = 0; d < tensor->n_dims; d++)
        at += (size_t)snprintf(shape + at, sizeof shape - at, "%s%llu", d > 0 ? " x " : "",
                               (unsigned long long)tensor->shape[d]);
    cli_printf("%-48s %-8s %s\n", tensor->name, quant_info(tensor->format)->name, shape);
}

static void print_range(const char *label, const uint32_t range[2])
{
    if (range[0] == range[1])
        cli_printf("%-16s%u\n", label, range[0]);
    else
        cli_printf("%-16s%u to %u, by layer\n", label, range[0], range[1]);
}

static void print_text(const struct facts *facts)
{
    const struct model_desc *desc = facts->desc;
    char a[32], b[32], c[32];
    if (desc->name[0] != '\0')
        cli_printf("%-16s%s\n", "name", desc->name);
    cli_printf("%-16s%s\n", "architecture", desc->architecture);
    cli_printf("%-16s%s", "parameters", cli_count_text(a, (double)desc->n_params));
    if (desc->n_params_active != desc->n_params)
        cli_printf(", %s of them active", cli_count_text(b, (double)desc->n_params_active));
    cli_printf("\n%-16s%s\n", "size", cli_size_text(a, (double)weights_size_bytes(facts->weights)));
    cli_printf("%-16s", "formats");
    uint32_t shown = 0;
    for (enum quant_format f; (f = next_format(facts, shown)) != QUANT_FORMAT_COUNT;
         shown |= 1u << f)
        cli_printf("%s%s %.1f %%", shown != 0 ? ", " : "", quant_info(f)->name,
                   100.0 * (double)facts->format_bytes[f] / (double)facts->tensor_bytes);
    cli_printf("\n%-16s%u tokens\n", "context", desc->n_ctx_train);
    cli_printf("%-16s%u\n", "layers", desc->n_layers);
    print_range("heads", facts->heads);
    print_range("KV heads", facts->kv_heads);
    cli_printf("%-16s%u\n", "embedding", desc->n_embd);
    if (desc->n_experts > 0)
        cli_printf("%-16s%u, %u used for a token\n", "experts", desc->n_experts,
                   desc->n_experts_used);
    cli_printf("%-16s%u tokens\n", "vocabulary", desc->n_vocab);
    cli_printf("%-16s%.*s%s%.*s\n", "tokenizer",
               facts->tokenizer.size > 0 ? (int)facts->tokenizer.size : 4,
               facts->tokenizer.size > 0 ? facts->tokenizer.data : "none",
               facts->pre.size > 0 ? ", " : "", (int)facts->pre.size,
               facts->pre.size > 0 ? facts->pre.data : "");
    cli_printf("%-16s%s\n", "template", facts->has_template ? "yes" : "no");
    cli_printf("%-16s%s", "memory", cli_size_text(a, (double)facts->needed_bytes));
    if (facts->kv_bytes > 0)
        cli_printf(": weights %s and KV cache %s (%s) for %u tokens",
                   cli_size_text(b, (double)facts->tensor_bytes),
                   cli_size_text(c, (double)facts->kv_bytes), quant_info(cli_kv_format())->name,
                   facts->n_ctx);
    cli_printf("\n");
    if (args.tensors)
        for (size_t i = 0; i < weights_tensor_count(facts->weights); i++)
            print_shape(weights_tensor_at(facts->weights, i));
}

/* ---- For scripts ----------------------------------------------------------------------------- */

static json_t *view_json(struct view view)
{
    return view.size > 0 ? json_stringn_nocheck(view.data, view.size) : json_null();
}

static json_t *tensors_json(const struct weights *weights)
{
    json_t *list = json_array();
    for (size_t i = 0; i < weights_tensor_count(weights); i++) {
        const struct weights_tensor *tensor = weights_tensor_at(weights, i);
        json_t *shape = json_array();
        for (uint32_t d = 0; d < tensor->n_dims; d++)
            json_array_append_new(shape, json_integer((json_int_t)tensor->shape[d]));
        json_array_append_new(list, json_pack("{s:s, s:s, s:o, s:I}", "name", tensor->name,
                                              "format", quant_info(tensor->format)->name, "shape",
                                              shape, "size_bytes", (json_int_t)tensor->size_bytes));
    }
    return list;
}

static int print_json(const struct facts *facts)
{
    const struct model_desc *desc = facts->desc;
    json_t *formats = json_object();
    uint32_t shown = 0;
    for (enum quant_format f; (f = next_format(facts, shown)) != QUANT_FORMAT_COUNT;
         shown |= 1u << f)
        json_object_set_new(formats, quant_info(f)->name,
                            json_integer((json_int_t)facts->format_bytes[f]));
    json_t *value = json_pack(
        "{s:s, s:s, s:I, s:I, s:I, s:o, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:o, s:o, s:b}",
        "architecture", desc->architecture, "name", desc->name, "parameters",
        (json_int_t)desc->n_params, "parameters_active", (json_int_t)desc->n_params_active,
        "size_bytes", (json_int_t)weights_size_bytes(facts->weights), "format_bytes", formats,
        "context", (json_int_t)desc->n_ctx_train, "layers", (json_int_t)desc->n_layers, "heads",
        (json_int_t)facts->heads[1], "kv_heads", (json_int_t)facts->kv_heads[1], "embedding",
        (json_int_t)desc->n_embd, "experts", (json_int_t)desc->n_experts, "experts_used",
        (json_int_t)desc->n_experts_used, "vocabulary", (json_int_t)desc->n_vocab, "tokenizer",
        view_json(facts->tokenizer), "pre_tokenizer", view_json(facts->pre), "template",
        facts->has_template);
    json_t *memory = json_pack(
        "{s:I, s:s, s:I, s:I, s:I}", "context", (json_int_t)facts->n_ctx, "kv_type",
        quant_info(cli_kv_format())->name, "weights_bytes", (json_int_t)facts->tensor_bytes,
        "kv_bytes", (json_int_t)facts->kv_bytes, "total_bytes", (json_int_t)facts->needed_bytes);
    json_object_set_new(value, "memory", memory);
    if (args.tensors)
        json_object_set_new(value, "tensors", tensors_json(facts->weights));
    return cli_print_json(value);
}

/* ---- The command ----------------------------------------------------------------------------- */

static int run(const struct cli_command *command, char **operands, int n_operands)
{
    (void)command, (void)n_operands;
    struct error error;
    struct weights *weights = NULL;
    struct model_desc *desc = NULL;
    enum status status = cli_open_weights(&weights, operands[0], &error);
    if (status == STATUS_OK)
        status = model_describe(&desc, weights, &error);
    struct facts facts = {.weights = weights, .desc = desc};
    if (status == STATUS_OK)
        status = gather(&facts, &error);
    int code = CLI_DONE;
    if (status != STATUS_OK)
        code = cli_fail(&error);
    else if (args.json)
        code = print_json(&facts);
    else
        print_text(&facts);
    model_desc_free(desc);
    weights_close(weights);
    return code;
}

static const struct cli_option options[] = {
    {.name = "tensors", .help = "list every tensor", .type = CLI_FLAG, .value = &args.tensors},
    {.name = "json", .help = "print a JSON object", .type = CLI_FLAG, .value = &args.json},
};
static const struct cli_group group = CLI_GROUP("options", options);

/* The two model options that change what a model needs. */
static const struct cli_option memory_options[] = {
    {.letter = 'c',
     .name = "ctx",
     .metavar = "N",
     .help = "say the memory needed for this many tokens (default: as trained)",
     .type = CLI_U32,
     .min = 1,
     .value = &cli_model_args.n_ctx},
    {.name = "kv-type",
     .metavar = "f16|f32|q8_0",
     .help = "format of the KV cache to count with (default: f16)",
     .type = CLI_CHOICE,
     .value = &cli_model_args.kv_type},
};
static const struct cli_group memory_group = CLI_GROUP("memory", memory_options);

const struct cli_command cli_show = {
    .name = "show",
    .operands = "MODEL",
    .summary = "Shows what a model file holds and the memory it needs.",
    .groups = {&group, &memory_group},
    .min_operands = 1,
    .max_operands = 1,
    .run = run,
};
