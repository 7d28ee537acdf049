/* consort plan: where a model would run and how fast, on the cluster, on this machine, or on some
 * that one does not have. */
#include "cli/bench.h"
#include "cli/plan_cluster.h"
#include "cli/plan_print.h"
#include "cli/remote.h"

#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define DEFAULT_CONTEXT 8192
#define MAX_CONTEXT (1 << 28)
#define MAX_STREAMS 65536
#define FILE_BYTES ((size_t)1 << 20)
#define PROBE_ROUNDS 2

static struct {
    uint32_t streams, prompt;
    float reader;
    const char *objective, *nodes;
    bool json, all, list;
} args = {.streams = 1, .reader = 10, .objective = "auto"};

/* What is planned with; it lives as long as the command. */
struct planning {
    struct plan_room room;
    struct weights *weights;
    struct model_desc *desc;
    struct plan_layer *layers;
    struct plan_model model;
    uint32_t n_ctx_train; /* 0: not known */
};

/* ---- The model ------------------------------------------------------------------------------- */

static enum status open_file(struct planning *planning, const char *name, struct error *error)
{
    enum status status = cli_open_weights(&planning->weights, name, error);
    if (status == STATUS_OK)
        status = model_describe(&planning->desc, planning->weights, error);
    if (status == STATUS_OK)
        status = model_check_kv_format(planning->desc, cli_kv_format(), error);
    if (status == STATUS_OK)
        status = cluster_plan_model(&planning->model, planning->layers, planning->weights,
                                    planning->desc, cli_kv_format(), error);
    if (status == STATUS_OK)
        planning->n_ctx_train = planning->desc->n_ctx_train;
    if (status == STATUS_OK && strchr(name, '/') == NULL)
        snprintf(planning->model.name, sizeof planning->model.name, "%s", name);
    return status;
}

/* A file, a model of the store, or else one that the library knows by its shape. */
static enum status open_model(struct planning *planning, const char *name, struct error *error)
{
    struct stat facts;
    const struct plan_shape *shape = plan_find_shape(&planning->room, name);
    planning->layers = calloc(PLAN_MAX_LAYERS, sizeof *planning->layers);
    if (planning->layers == NULL)
        return error_memory(error, PLAN_MAX_LAYERS * sizeof *planning->layers);
    if (shape == NULL || stat(name, &facts) == 0)
        return open_file(planning, name, error);
    const struct quant_info *kv = quant_info(cli_kv_format());
    plan_shape_model(&planning->model, planning->layers, shape,
                     (double)kv->block_bytes / kv->block_len);
    return STATUS_OK;
}

/* ---- The machines ---------------------------------------------------------------------------- */

static enum status read_rooms(struct plan_room *room, struct error *error)
{
    enum status status = plan_room_read(room, plan_library(), "the library", error);
    struct buffer text = {0};
    if (status == STATUS_OK && args.nodes != NULL)
        status = file_read(args.nodes, FILE_BYTES, &text, error);
    if (status == STATUS_OK && args.nodes != NULL)
        status = plan_room_read(room, (struct view){text.size > 0 ? text.data : "", text.size},
                                args.nodes, error);
    buffer_free(&text);
    if (status == STATUS_OK && args.nodes != NULL && room->n_nodes == 0 && !args.list)
        return error_set(error, STATUS_INVALID,
                         "%s names no nodes: a list is expected, as nodes: [mac-studio-m2-ultra]",
                         args.nodes);
    return status;
}

/* The format of most of the weights; of a model that is known by its shape alone, Q4_K. */
static enum quant_format main_format(const struct weights *weights)
{
    uint64_t bytes[QUANT_FORMAT_COUNT] = {0};
    enum quant_format best = QUANT_Q4_K;
    for (size_t i = 0; weights != NULL && i < weights_tensor_count(weights); i++) {
        const struct weights_tensor *tensor = weights_tensor_at(weights, i);
        bytes[tensor->format] += tensor->size_bytes;
        if (bytes[tensor->format] > bytes[best])
            best = tensor->format;
    }
    return best;
}

static enum status read_cluster(struct planning *planning, struct error *error)
{
    struct cluster_mix mix = {{0}};
    if (planning->weights != NULL)
        cluster_plan_mix(&mix, planning->weights, planning->desc);
    else
        mix.bytes[main_format(NULL)] = 1;
    return plan_cluster_read(&planning->room, &mix, error);
}

/* This machine: its memory, and what it reads and computes, measured in about a second. */
static enum status measure_machine(struct planning *planning, struct error *error)
{
    struct machine machine;
    struct plan_node *node = &planning->room.nodes[0];
    machine_query(&machine);
    unsigned n_threads = machine.physical_cores;
    enum status status = quant_init(error);
    if (status != STATUS_OK)
        return status;
    struct bench_probe *probe = bench_probe_open(n_threads, UINT64_MAX);
    double read_rate = 0;
    for (int i = 0; i < PROBE_ROUNDS; i++)
        read_rate = MAX(read_rate, bench_probe_read(probe));
    bench_probe_close(probe);
    if (read_rate <= 0)
        return error_set(error, STATUS_MEMORY, "there is no memory to measure this machine with");
    *node = (struct plan_node){
        .memory_bytes = machine_usable_bytes(machine.memory_bytes),
        .read_rate = read_rate,
        .flops = 2 * bench_product_rate(n_threads, main_format(planning->weights)),
        .layer_overhead_s = PLAN_LAYER_OVERHEAD_S,
    };
    if (gethostname(node->name, sizeof node->name - 1) != 0 || node->name[0] == '\0')
        snprintf(node->name, sizeof node->name, "this machine");
    planning->room.n_nodes = 1;
    return STATUS_OK;
}

/* ---- The command ----------------------------------------------------------------------------- */

static enum plan_objective objective_of(const char *text)
{
    if (strcmp(text, "latency") == 0)
        return PLAN_LATENCY;
    return strcmp(text, "throughput") == 0 ? PLAN_THROUGHPUT : PLAN_AUTO;
}

static struct plan_work work_of(const struct planning *planning)
{
    uint32_t context = cli_model_args.n_ctx;
    if (context == 0)
        context = planning->n_ctx_train != 0 ? MIN(planning->n_ctx_train, DEFAULT_CONTEXT)
                                             : DEFAULT_CONTEXT;
    return (struct plan_work){
        .context = context,
        .streams = args.streams,
        .prompt = args.prompt != 0 ? args.prompt : MIN(512, context),
        .objective = objective_of(args.objective),
        .reader_rate = args.reader,
    };
}

static int report(const struct planning *planning, const struct plan_input *input)
{
    struct error error;
    struct plan_result *result;
    if (plan_make(&result, input, &error) != STATUS_OK)
        return cli_fail(&error);
    struct plan_report report = {
        .in = input,
        .result = result,
        .room = &planning->room,
        .kv_type = quant_info(cli_kv_format())->name,
        .all = args.all,
    };
    int code = CLI_DONE;
    if (args.json)
        code = plan_print_json(&report);
    else if (result->n_plans > 0 || args.all)
        plan_print_text(&report);
    if (result->n_plans == 0) {
        cli_note("consort: %s", result->refusal);
        code = CLI_FAILED;
    }
    plan_free(result);
    return code;
}

static int plan_it(struct planning *planning, const char *model)
{
    struct error error;
    enum status status = open_model(planning, model, &error);
    if (status == STATUS_OK && planning->room.n_nodes == 0)
        status = read_cluster(planning, &error);
    if (status == STATUS_OK && planning->room.n_nodes == 0)
        status = measure_machine(planning, &error);
    if (status != STATUS_OK)
        return cli_fail(&error);
    struct plan_input input = {
        .nodes = planning->room.nodes,
        .n_nodes = planning->room.n_nodes,
        .links = planning->room.links,
        .model = &planning->model,
        .work = work_of(planning),
    };
    if (input.work.prompt > input.work.context)
        return cli_usage(&cli_plan, "a prompt of %u tokens does not fit a context of %u",
                         input.work.prompt, input.work.context);
    return report(planning, &input);
}

static int run(const struct cli_command *command, char **operands, int n_operands)
{
    struct planning planning = {0};
    struct error error;
    int code = CLI_DONE;
    if (n_operands == 0 && !args.list)
        return cli_usage(command, "plan needs MODEL, or --list");
    if (read_rooms(&planning.room, &error) != STATUS_OK)
        code = cli_fail(&error);
    else if (args.list)
        plan_print_room(&planning.room);
    else
        code = plan_it(&planning, operands[0]);
    model_desc_free(planning.desc);
    weights_close(planning.weights);
    free(planning.layers);
    plan_room_free(&planning.room);
    return code;
}

static const struct cli_option options[] = {
    {.name = "nodes",
     .metavar = "FILE",
     .help =
         "plan for the machines in this YAML file (default: those of the cluster, where a server "
         "runs here; else this machine, measured)",
     .type = CLI_TEXT,
     .value = &args.nodes},
    {.letter = 'c',
     .name = "ctx",
     .metavar = "N",
     .help = "tokens each stream may hold (default: 8192, or fewer where trained for fewer)",
     .type = CLI_U32,
     .min = 1,
     .max = MAX_CONTEXT,
     .value = &cli_model_args.n_ctx},
    {.name = "streams",
     .metavar = "N",
     .help = "answers written at once (default: 1)",
     .type = CLI_U32,
     .min = 1,
     .max = MAX_STREAMS,
     .value = &args.streams},
    {.letter = 'p',
     .name = "prompt",
     .metavar = "N",
     .help = "tokens of a prompt (default: 512)",
     .type = CLI_U32,
     .min = 1,
     .max = MAX_CONTEXT,
     .value = &args.prompt},
    {.name = "objective",
     .metavar = "latency|throughput|auto",
     .help = "the fastest for one stream, for all together, or for each until a reader has enough, "
             "then for all (default: auto)",
     .type = CLI_CHOICE,
     .value = &args.objective},
    {.name = "reader",
     .metavar = "N",
     .help = "tokens a second that are enough for a reader (default: 10)",
     .type = CLI_F32,
     .min = 0,
     .max = 1e6,
     .value = &args.reader},
    {.name = "kv-type",
     .metavar = "f16|f32|q8_0",
     .help = "format of the KV cache to count with (default: f16)",
     .type = CLI_CHOICE,
     .value = &cli_model_args.kv_type},
    {.name = "all",
     .help = "show the nodes of every placement, and every reason",
     .type = CLI_FLAG,
     .value = &args.all},
    {.name = "list",
     .help = "list the machines, links and models that are known by name",
     .type = CLI_FLAG,
     .value = &args.list},
    {.name = "json", .help = "print a JSON object", .type = CLI_FLAG, .value = &args.json},
};
static const struct cli_group group = CLI_GROUP("options", options);

const struct cli_command cli_plan = {
    .name = "plan",
    .operands = "MODEL",
    .summary = "Says where a model would run and how fast, on the cluster or on other machines.",
    .description =
        "MODEL is a file, a name in the store, or one of the models that are known by their shape "
        "(--list), so that machines can be chosen before they are bought. The best placement "
        "comes first; one over more machines is only taken where it is at least 5 % better, and "
        "for all others there is a reason. Rates are predictions; a text is taken to fill half of "
        "its context. Where the machines' power and prices are known, so is what they cost.\n\n"
        "FILE says which machines there are, as nodes: [{machine: mac-studio-m2-ultra, count: 2}], "
        "and what is between them, as link: 10gbe. machines.yaml, which is installed with the "
        "program, shows all that it may say.",
    .groups = {&group, &cli_remote_group},
    .min_operands = 0,
    .max_operands = 1,
    .run = run,
};
