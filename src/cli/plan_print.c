/* Placements for people and for scripts. */
#include "cli/plan_print.h"

#include <math.h>
#include <string.h>

/* ---- Cost ------------------------------------------------------------------------------------ */

/* What the machines of a plan cost. Power and prices are known for all of them or not at all. */
struct bill {
    struct plan_bill bill;
    double capex;
    bool has_power, has_price;
};

static struct bill bill_of(const struct plan_report *report, const struct plan *plan)
{
    const struct plan_costs *costs = &report->room->costs;
    struct bill out = {.has_power = true, .has_price = true};
    struct plan_power power = {0};
    for (uint32_t i = 0; i < plan->n_shards; i++) {
        const struct plan_machine *machine = &report->room->node_machines[plan->shards[i].node];
        power.idle_w += machine->power.idle_w;
        power.peak_w += machine->power.peak_w;
        power.sleep_w += machine->power.sleep_w;
        out.capex += machine->price;
        out.has_power = out.has_power && machine->power.peak_w > 0;
        out.has_price = out.has_price && machine->price > 0;
    }
    if (costs->capex > 0) {
        out.capex = costs->capex;
        out.has_price = true;
    }
    out.bill = plan_cost(costs, &power, out.capex, plan->all_rate);
    out.has_price = out.has_price && (out.has_power || costs->kwh_price == 0);
    return out;
}

/* ---- For people ------------------------------------------------------------------------------ */

static void describe(const struct plan *plan, const struct plan_node *nodes, char *text,
                     size_t size)
{
    if (plan->kind == PLAN_ONE_NODE)
        snprintf(text, size, "%s alone", nodes[plan->shards[0].node].name);
    else if (plan->kind == PLAN_GROUPS)
        snprintf(text, size, "pipeline of %u groups, %u nodes", plan->n_stages, plan->n_shards);
    else
        snprintf(text, size, "%s, %u nodes", plan_kind_text(plan->kind), plan->n_shards);
}

static const char *rate_text(char text[32], double rate)
{
    if (rate <= 0)
        return "-";
    snprintf(text, 32, rate < 1000 ? "%.1f" : "%.0f", rate);
    return text;
}

static const char *seconds_text(char text[32], double seconds)
{
    if (seconds <= 0)
        return "-";
    snprintf(text, 32, seconds < 10 ? "%.2f s" : "%.1f s", seconds);
    return text;
}

/* "51.0 GiB of 56.0 GiB" of the node that is fullest. */
static void fullest(const struct plan_report *report, const struct plan *plan, char *text,
                    size_t size)
{
    char need[32], has[32];
    double most = -1;
    for (uint32_t i = 0; i < plan->n_shards; i++) {
        const struct plan_shard *shard = &plan->shards[i];
        uint64_t limit = report->in->nodes[shard->node].memory_bytes;
        double full = (double)shard->need_bytes / (double)limit;
        if (full > most) {
            most = full;
            snprintf(text, size, "%s of %s", size_text(need, (double)shard->need_bytes),
                     size_text(has, (double)limit));
        }
    }
}

static void print_row(const struct plan_report *report, size_t index)
{
    const struct plan *plan = &report->result->plans[index];
    char name[96], memory[80], a[32], b[32], c[32], d[32];
    describe(plan, report->in->nodes, name, sizeof name);
    fullest(report, plan, memory, sizeof memory);
    cli_printf("%2zu  %-36s  %10s  ", index + 1, name, rate_text(a, plan->stream_rate));
    if (report->in->work.streams > 1)
        cli_printf("%10s  ", rate_text(b, plan->all_rate));
    cli_printf("%8s  %11s  %s\n", rate_text(c, plan->prefill_rate),
               seconds_text(d, plan->first_token_s), memory);
}

static void print_head(const struct plan_report *report)
{
    char all[32];
    snprintf(all, sizeof all, "all %u", report->in->work.streams);
    cli_printf("%2s  %-36s  %10s  ", "", "placement, tokens a second", "one stream");
    if (report->in->work.streams > 1)
        cli_printf("%10s  ", all);
    cli_printf("%8s  %11s  %s\n", "prompt", "first token", "memory of the fullest node");
}

static void print_nodes(const struct plan_report *report, size_t index)
{
    const struct plan *plan = &report->result->plans[index];
    char name[96], weights[32], kv[32], need[32], has[32];
    describe(plan, report->in->nodes, name, sizeof name);
    cli_printf("\n%zu: %s\n", index + 1, name);
    if (plan->n_batches > 1)
        cli_printf("streams go through in %u batches\n", plan->n_batches);
    cli_printf("%-24s  %-9s  %6s  %10s  %10s  %10s  %10s\n", "node", "layers", "share", "weights",
               "KV cache", "needs", "of");
    for (uint32_t s = 0; s < plan->n_stages; s++) {
        const struct plan_stage *stage = &plan->stages[s];
        double total = 0;
        for (uint32_t i = 0; i < stage->n_shards; i++)
            total += plan->shards[stage->first_shard + i].share;
        for (uint32_t i = 0; i < stage->n_shards; i++) {
            const struct plan_shard *shard = &plan->shards[stage->first_shard + i];
            const struct plan_node *node = &report->in->nodes[shard->node];
            char layers[32];
            snprintf(layers, sizeof layers, "%u-%u", stage->first_layer, stage->end_layer - 1);
            cli_printf(
                "%-24s  %-9s  %4.0f %%  %10s  %10s  %10s  %10s\n", node->name, layers,
                100.0 * shard->share / total, size_text(weights, (double)shard->weight_bytes),
                size_text(kv, (double)shard->kv_bytes), size_text(need, (double)shard->need_bytes),
                size_text(has, (double)node->memory_bytes));
        }
    }
}

static void print_bill(const struct plan_report *report, const struct plan *plan)
{
    const struct plan_costs *costs = &report->room->costs;
    struct bill bill = bill_of(report, plan);
    if (bill.has_power)
        cli_printf("energy: %.0f kWh a year, busy %.0f %% of it\n", bill.bill.kwh_year,
                   100 * costs->busy);
    if (!bill.has_price)
        return;
    cli_printf("cost: %.0f to buy, %.0f a year", bill.capex, bill.bill.year);
    if (bill.bill.per_mtok > 0)
        cli_printf(", %.2f a million tokens", bill.bill.per_mtok);
    cli_printf("\n");
    if (bill.bill.months > 0)
        cli_printf("against a cloud for %.0f a month it has paid for itself after %.1f months\n",
                   costs->cloud_month, bill.bill.months);
    else if (bill.bill.months < 0)
        cli_printf("against a cloud for %.0f a month it never pays for itself\n",
                   costs->cloud_month);
}

/* The one of its kind that says most: the fastest, or what would have needed the least more. */
static const struct plan_rejection *telling(const struct plan_result *result, enum plan_kind kind,
                                            bool fits, size_t *count)
{
    const struct plan_rejection *best = NULL;
    *count = 0;
    for (size_t i = 0; i < result->n_rejections; i++) {
        const struct plan_rejection *rejection = &result->rejections[i];
        if (rejection->kind != kind || rejection->fits != fits)
            continue;
        ++*count;
        if (best == NULL ||
            (fits ? rejection->all_rate > best->all_rate : rejection->n_nodes > best->n_nodes))
            best = rejection;
    }
    return best;
}

static void print_rejections(const struct plan_report *report)
{
    const struct plan_result *result = report->result;
    if (result->n_rejections == 0)
        return;
    cli_printf("\nnot taken:\n");
    if (report->all) {
        for (size_t i = 0; i < result->n_rejections; i++)
            cli_printf("- %s\n", result->rejections[i].text);
        return;
    }
    for (int fits = 1; fits >= 0; fits--)
        for (int kind = 0; kind < PLAN_KIND_COUNT; kind++) {
            size_t count;
            const struct plan_rejection *rejection =
                telling(result, (enum plan_kind)kind, fits, &count);
            if (rejection == NULL)
                continue;
            cli_printf("- %s", rejection->text);
            if (count > 1)
                cli_printf(" (and %zu more)", count - 1);
            cli_printf("\n");
        }
}

void plan_print_text(const struct plan_report *report)
{
    const struct plan_result *result = report->result;
    const struct plan_work *work = &report->in->work;
    char weights[32], kv[32];
    cli_printf("%s: weights %s, KV cache %s (%s) for %u stream%s of %u tokens\n",
               report->in->model->name, size_text(weights, (double)result->weight_bytes),
               size_text(kv, (double)result->kv_bytes), report->kv_type, work->streams,
               work->streams > 1 ? "s" : "", work->context);
    if (result->n_plans > 0)
        print_head(report);
    for (size_t i = 0; i < result->n_plans; i++)
        print_row(report, i);
    for (size_t i = 0; i < result->n_plans && (i == 0 || report->all); i++) {
        print_nodes(report, i);
        print_bill(report, &result->plans[i]);
    }
    print_rejections(report);
}

/* ---- What a room knows ----------------------------------------------------------------------- */

void plan_print_room(const struct plan_room *room)
{
    cli_printf("%-26s  %8s  %8s  %7s  %6s  %6s  %8s\n", "machine", "memory", "GB/s", "TFLOPS",
               "idle W", "peak W", "price");
    for (size_t i = 0; i < room->n_machines; i++) {
        const struct plan_machine *machine = &room->machines[i];
        cli_printf("%-26s  %5g GB  %8g  %7g  %6g  %6g  %8g\n", machine->name, machine->memory_gb,
                   machine->nominal_gbs > 0 ? machine->nominal_gbs : machine->read_gbs,
                   machine->tflops, machine->power.idle_w, machine->power.peak_w, machine->price);
    }
    cli_printf("\n%-26s  %8s  %8s\n", "link", "us", "GB/s");
    for (size_t i = 0; i < room->n_kinds; i++)
        cli_printf("%-26s  %8g  %8g\n", room->kinds[i].name, room->kinds[i].latency_us,
                   room->kinds[i].gbs);
    cli_printf("\n%-26s  %8s  %8s\n", "model", "GB", "layers");
    for (size_t i = 0; i < room->n_shapes; i++)
        cli_printf("%-26s  %8g  %8g\n", room->shapes[i].name, room->shapes[i].size_gb,
                   room->shapes[i].layers);
}

/* ---- For scripts ----------------------------------------------------------------------------- */

static json_t *known(double value)
{
    return value > 0 && isfinite(value) ? json_real(value) : json_null();
}

static json_t *stages_json(const struct plan_report *report, const struct plan *plan)
{
    json_t *stages = json_array();
    for (uint32_t s = 0; s < plan->n_stages; s++) {
        const struct plan_stage *stage = &plan->stages[s];
        json_t *shards = json_array();
        for (uint32_t i = 0; i < stage->n_shards; i++) {
            const struct plan_shard *shard = &plan->shards[stage->first_shard + i];
            const struct plan_node *node = &report->in->nodes[shard->node];
            json_array_append_new(shards,
                                  json_pack("{s:s, s:i, s:I, s:I, s:I, s:I}", "node", node->name,
                                            "share", (int)shard->share, "weights_bytes",
                                            (json_int_t)shard->weight_bytes, "kv_bytes",
                                            (json_int_t)shard->kv_bytes, "memory_bytes",
                                            (json_int_t)shard->need_bytes, "memory_limit_bytes",
                                            (json_int_t)node->memory_bytes));
        }
        json_array_append_new(stages,
                              json_pack("{s:i, s:i, s:o}", "first_layer", (int)stage->first_layer,
                                        "end_layer", (int)stage->end_layer, "shards", shards));
    }
    return stages;
}

static json_t *bill_json(const struct plan_report *report, const struct plan *plan)
{
    struct bill bill = bill_of(report, plan);
    json_t *months = bill.has_price ? known(bill.bill.months) : json_null();
    return json_pack("{s:o, s:o, s:o, s:o, s:o}", "kwh_year",
                     bill.has_power ? json_real(bill.bill.kwh_year) : json_null(), "capex",
                     bill.has_price ? json_real(bill.capex) : json_null(), "year",
                     bill.has_price ? json_real(bill.bill.year) : json_null(), "per_million_tokens",
                     bill.has_price ? known(bill.bill.per_mtok) : json_null(), "break_even_months",
                     months);
}

static json_t *plan_json(const struct plan_report *report, const struct plan *plan)
{
    return json_pack("{s:s, s:i, s:f, s:f, s:o, s:o, s:i, s:o, s:o}", "kind",
                     plan_kind_text(plan->kind), "nodes", (int)plan->n_shards, "tokens_per_second",
                     plan->stream_rate, "tokens_per_second_all", plan->all_rate,
                     "prefill_tokens_per_second", known(plan->prefill_rate), "first_token_s",
                     known(plan->first_token_s), "batches", (int)plan->n_batches, "stages",
                     stages_json(report, plan), "cost", bill_json(report, plan));
}

static json_t *rejection_json(const struct plan_rejection *rejection)
{
    return json_pack("{s:s, s:i, s:b, s:o, s:o, s:s}", "kind", plan_kind_text(rejection->kind),
                     "nodes", (int)rejection->n_nodes, "fits", rejection->fits, "tokens_per_second",
                     known(rejection->stream_rate), "tokens_per_second_all",
                     known(rejection->all_rate), "reason", rejection->text);
}

int plan_print_json(const struct plan_report *report)
{
    static const char *const objectives[] = {"latency", "throughput", "auto"};
    const struct plan_result *result = report->result;
    const struct plan_model *model = report->in->model;
    const struct plan_work *work = &report->in->work;
    json_t *nodes = json_array(), *plans = json_array(), *rejected = json_array();
    for (uint32_t i = 0; i < report->in->n_nodes; i++) {
        const struct plan_node *node = &report->in->nodes[i];
        json_array_append_new(nodes,
                              json_pack("{s:s, s:I, s:f, s:o}", "name", node->name, "memory_bytes",
                                        (json_int_t)node->memory_bytes, "read_bytes_per_second",
                                        node->read_rate, "flops", known(node->flops)));
    }
    for (size_t i = 0; i < result->n_plans; i++)
        json_array_append_new(plans, plan_json(report, &result->plans[i]));
    for (size_t i = 0; i < result->n_rejections; i++)
        json_array_append_new(rejected, rejection_json(&result->rejections[i]));
    json_t *about = json_pack(
        "{s:s, s:I, s:I, s:s, s:f, s:f}", "name", model->name, "weights_bytes",
        (json_int_t)result->weight_bytes, "kv_bytes", (json_int_t)result->kv_bytes, "kv_type",
        report->kv_type, "parameters", model->params, "parameters_active", model->params_active);
    json_t *asked =
        json_pack("{s:i, s:i, s:i, s:s, s:f}", "context", (int)work->context, "streams",
                  (int)work->streams, "prompt", (int)work->prompt, "objective",
                  objectives[work->objective], "reader_tokens_per_second", work->reader_rate);
    json_t *refusal = result->refusal[0] != '\0' ? json_string(result->refusal) : json_null();
    return cli_print_json(json_pack("{s:o, s:o, s:o, s:o, s:o, s:o}", "model", about, "work", asked,
                                    "nodes", nodes, "plans", plans, "rejected", rejected, "refusal",
                                    refusal));
}
