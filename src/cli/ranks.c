/* --mpi: one model over the processes that mpirun started, each with an equal part. Every rank runs
 * the same command; the owner does what it is for, the others compute for it. Builds without
 * MPI=1 say how to get one that can. */
#include "cli/cli.h"
#include "model/comm.h"
#ifdef CONSORT_MPI
#include "cluster/comm_mpi.h"
#endif

#include <strings.h>

static struct {
    bool mpi;
    const char *placement;
} args;

static struct comm *comm; /* NULL: --mpi was not given */
static uint32_t n_sharing = 1;
static struct model_placement placement;

static const struct cli_option options[] = {
    {.name = "mpi",
     .help = "run the model on all ranks that mpirun started, each with an equal part of it (only "
             "in a build with make MPI=1)",
     .type = CLI_FLAG,
     .value = &args.mpi},
    {.name = "placement",
     .metavar = "pipeline|tensor",
     .help = "each rank has some of the layers, or a part of every layer (default: tensor)",
     .type = CLI_CHOICE,
     .value = &args.placement},
};
const struct cli_group cli_ranks_group = CLI_GROUP("ranks", options);

/* ---- MPI ------------------------------------------------------------------------------------- */

#ifdef CONSORT_MPI

static enum status join(struct error *error)
{
    return comm_mpi_open(&comm, &n_sharing, error);
}

static void leave(const char *reason)
{
    comm_mpi_close(comm, reason);
    comm = NULL;
}

#else

static enum status join(struct error *error)
{
    return error_set(
        error, STATUS_UNSUPPORTED,
        "this program was built without MPI: make MPI=1 builds build/mpi/consort, which "
        "has it, where Open MPI is installed");
}

static void leave(const char *reason)
{
    (void)reason;
}

#endif

/* ---- Placement ------------------------------------------------------------------------------- */

static bool is_pipeline(void)
{
    return args.placement != NULL && strcasecmp(args.placement, "pipeline") == 0;
}

/* Also where the model does not fit the ranks. */
static uint32_t owner_of(uint32_t n_ranks)
{
    return is_pipeline() ? n_ranks - 1 : 0;
}

static enum status place(uint32_t n_ranks, uint32_t n_layers, struct error *error)
{
    placement = (struct model_placement){.n_stages = 1};
    if (!is_pipeline()) {
        placement.stages[0] = (struct model_stage){.end_layer = n_layers, .n_shards = n_ranks};
        return STATUS_OK;
    }
    uint32_t most = MIN(n_layers, (uint32_t)MODEL_MAX_STAGES);
    if (n_ranks > most)
        return error_set(error, STATUS_UNSUPPORTED,
                         "%u ranks are too many for a pipeline: a model with %u layers has %u "
                         "stages at most",
                         n_ranks, n_layers, most);
    placement.n_stages = n_ranks;
    for (uint32_t s = 0; s < n_ranks; s++)
        placement.stages[s] = (struct model_stage){.first_layer = n_layers * s / n_ranks,
                                                   .end_layer = n_layers * (s + 1) / n_ranks,
                                                   .n_shards = 1};
    return STATUS_OK;
}

static enum status place_model(const char *model, struct error *error)
{
    struct weights *weights = NULL;
    struct model_desc *desc = NULL;
    enum status status = cli_open_weights(&weights, model, error);
    if (status == STATUS_OK)
        status = model_describe(&desc, weights, error);
    if (status == STATUS_OK)
        status = place(comm->n_ranks, desc->n_layers, error);
    model_desc_free(desc);
    weights_close(weights);
    return status;
}

/* ---- Ranks ----------------------------------------------------------------------------------- */

static enum status follow(const char *model, struct error *error)
{
    struct engine *engine = NULL;
    struct model_options all = cli_model_options();
    enum status status = cli_open_engine(&engine, model, ENGINE_MODEL, &all, error);
    if (status == STATUS_OK)
        status = model_follow(engine->model, error);
    engine_close(engine);
    return status;
}

bool cli_ranks_lead(const struct cli_command *command, const char *model, int *code)
{
    struct error error;
    if (!args.mpi && args.placement != NULL) {
        *code = cli_usage(command, "--placement is for --mpi");
        return false;
    }
    if (!args.mpi)
        return true;
    if (join(&error) != STATUS_OK) {
        *code = cli_fail(&error);
        return false;
    }
    bool leads = comm->rank == owner_of(comm->n_ranks);
    enum status status = place_model(model, &error);
    if (status == STATUS_OK && leads)
        return true;
    if (status == STATUS_OK)
        status = follow(model, &error);
    *code = status == STATUS_OK ? CLI_DONE : CLI_FAILED;
    if (status != STATUS_OK && leads)
        cli_fail(&error);
    cli_ranks_leave(status, &error);
    return false;
}

void cli_ranks_leave(enum status status, const struct error *error)
{
    leave(status == STATUS_OK ? NULL : error->text);
}

void cli_ranks_add(struct model_options *all)
{
    struct machine machine;
    if (comm == NULL)
        return;
    all->placement = &placement;
    all->comm = comm;
    if (all->n_threads == 0 && n_sharing > 1) {
        machine_query(&machine);
        all->n_threads = MAX(machine.physical_cores / n_sharing, 1);
    }
}

bool cli_ranks_asked(void)
{
    return args.mpi;
}

uint32_t cli_ranks(void)
{
    return comm != NULL ? comm->n_ranks : 0;
}

const char *cli_ranks_placement(void)
{
    return is_pipeline() ? "pipeline" : "tensor";
}
