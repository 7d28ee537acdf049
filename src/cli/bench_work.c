/* What a step reads and computes, counted from the shapes of the weights, and what that takes at
 * least. */
#include "cli/bench.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* The layer in "blk.N.", or -1. */
static long layer_of(const char *name)
{
    return strncmp(name, "blk.", 4) == 0 ? strtol(name + 4, NULL, 10) : -1;
}

static void add_products(struct bench_work *work, enum quant_format format, double products)
{
    bool floats = format == QUANT_F32 || format == QUANT_F16 || format == QUANT_BF16;
    *(floats ? &work->floats : &work->codes) += products;
}

/* One step over n_tokens, n_logits of them with logits. Of the token embedding a row each is read,
 * unless it is the output matrix as well. */
static void add_weights(struct bench_work *work, const struct engine *engine, double n_tokens,
                        double n_logits)
{
    const struct weights *weights = engine->weights;
    const struct model_desc *desc = model_description(engine->model);
    double used = desc->n_experts > 0 ? (double)desc->n_experts_used / desc->n_experts : 1;
    double touched = 1 - pow(1 - used, n_tokens);
    bool tied = weights_find(weights, "output.weight") == NULL;
    for (size_t i = 0; i < weights_tensor_count(weights); i++) {
        const struct weights_tensor *tensor = weights_tensor_at(weights, i);
        double size = (double)tensor->size_bytes;
        double numbers =
            (double)tensor->shape[0] * (double)tensor->shape[1] * (double)tensor->shape[2];
        bool embedding = strcmp(tensor->name, "token_embd.weight") == 0;
        if (layer_of(tensor->name) >= (long)desc->n_layers)
            continue; /* a head for speculative decoding */
        if (embedding && !(tied && n_logits > 0)) {
            work->bytes += MIN(size, size / (double)tensor->shape[1] * n_tokens);
        } else if (embedding || strcmp(tensor->name, "output.weight") == 0) {
            work->bytes += n_logits > 0 ? size : 0;
            add_products(work, tensor->format, numbers * n_logits);
        } else if (strstr(tensor->name, "_exps.") != NULL) {
            work->bytes += size * touched;
            add_products(work, tensor->format, numbers * used * n_tokens);
        } else {
            work->bytes += size;
            if (tensor->n_dims > 1)
                add_products(work, tensor->format, numbers * n_tokens);
        }
    }
}

uint32_t bench_step_tokens(const struct bench_run *run, size_t batch_limit, uint32_t done)
{
    size_t limit = run->decode ? 1 : MAX(batch_limit / run->batch, (size_t)1);
    return (uint32_t)model_even_share(run->tokens - done, limit);
}

struct bench_work bench_work(const struct engine *engine, const struct bench_run *run)
{
    const struct model_desc *desc = model_description(engine->model);
    struct bench_work work = {0};
    for (uint32_t done = 0, n; done < run->tokens; done += n) {
        uint64_t length = (uint64_t)run->context + done;
        n = bench_step_tokens(run, model_batch_limit(engine->model), done);
        bool last = done + n == run->tokens;
        add_weights(&work, engine, (double)n * run->batch,
                    run->decode || last ? (double)run->batch : 0);
        work.bytes += (double)model_kv_read_bytes(desc, length + n, cli_kv_format()) * run->batch;
        for (uint32_t i = 1; i <= n; i++)
            work.floats += (double)model_attention_products(desc, length + i) * run->batch;
    }
    return work;
}

static double ratio(double a, double b)
{
    return b > 0 ? a / b : 0;
}

struct bench_share bench_share(const struct bench_limits *limits, const struct bench_run *run)
{
    double tokens = (double)run->tokens * run->batch;
    double rate = run->read_rate > 0 ? run->read_rate : limits->bytes;
    double memory_s = ratio(run->work.bytes, rate);
    double arithmetic_s =
        ratio(run->work.codes, limits->codes) + ratio(run->work.floats, limits->floats);
    double seconds = ratio(tokens, run->median);
    return (struct bench_share){
        .limit = ratio(tokens, MAX(memory_s, arithmetic_s)),
        .share = ratio(MAX(memory_s, arithmetic_s), seconds),
        .read_rate = rate,
        .memory_share = ratio(memory_s, seconds),
        .arithmetic_share = ratio(arithmetic_s, seconds),
        .bound = memory_s >= arithmetic_s ? BENCH_MEMORY : BENCH_ARITHMETIC,
    };
}
