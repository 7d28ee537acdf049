/* bench: what is measured, and what the machine could do at most (the bench
 * command's own, but for the probe and the rate of products, which plan takes too).
 *
 * A run is a number of steps over one or more texts. Its limit is what reading the weights and the
 * KV cache takes at the machine's read rate, or what the products alone take at the rate of the
 * bare instruction: whichever is longer.
 */
#ifndef CONSORT_CLI_BENCH_H
#define CONSORT_CLI_BENCH_H

#include "cli/cli.h"
#include "cli/drafts.h"

/* What a run reads and computes. Products are one multiplication and one addition each: those of
 * weights in block formats are products of codes, all others, and attention's, of floats. */
struct bench_work {
    double bytes, codes, floats;
};

/* A second. 0: could not be measured. */
struct bench_limits {
    double bytes, codes, floats;
};

struct bench_run {
    bool decode;      /* one token a step and text; else as many as a step takes */
    uint32_t context; /* tokens that each text holds before */
    uint32_t batch;   /* texts */
    uint32_t tokens;  /* for each text */
    struct bench_work work;
    double median, min, max; /* tokens a second, of all texts */
    double read_rate;        /* of decode: the best bytes a second between its repeats */
};

/* Memory to read from. */
struct bench_probe;

struct bench {
    struct engine *engine;
    struct bench_probe *probe; /* NULL: no memory for it */
    struct bench_limits limits;
    struct bench_run *runs;
    size_t n_runs;
    uint32_t repeats;
    struct drafts_result drafts;
};

/* Plain reads by all threads over memory larger than the caches; the best rate of three ways to
 * hand it out, in bytes a second. 0 where probe is NULL, as open is without memory. */
struct bench_probe *bench_probe_open(unsigned n_threads, uint64_t model_bytes);
void bench_probe_close(struct bench_probe *probe);
double bench_probe_read(struct bench_probe *probe);

struct bench_limits bench_measure_limits(const struct engine *engine, struct bench_probe *probe);

/* Products a second of all threads with the tokens of a prompt; 0 without memory. quant_init was
 * called. */
double bench_product_rate(unsigned n_threads, enum quant_format format);

/* Tokens of each text that the step of a run takes which begins after done tokens. */
uint32_t bench_step_tokens(const struct bench_run *run, size_t batch_limit, uint32_t done);

/* Experts count by the expected number of different ones that the tokens of a step choose. */
struct bench_work bench_work(const struct engine *engine, const struct bench_run *run);

enum bench_bound { BENCH_MEMORY, BENCH_ARITHMETIC };

struct bench_share {
    double limit; /* tokens a second, of all texts; 0 where it is not known */
    double share; /* of the limit that was reached */
    double memory_share, arithmetic_share;
    double read_rate; /* bytes a second that memory_share counts with */
    enum bench_bound bound;
};

struct bench_share bench_share(const struct bench_limits *limits, const struct bench_run *run);

/* ---- The sweep's files ----------------------------------------------------------------------- */

struct sweep;

/* PREFIX.csv and PREFIX.svg; they appear when sweep_write has succeeded. Close accepts NULL. */
enum status sweep_open(struct sweep **out, const char *prefix, struct error *error);
enum status sweep_write(struct sweep *sweep, const struct bench *bench, struct error *error);
const char *sweep_csv_path(const struct sweep *sweep);
const char *sweep_svg_path(const struct sweep *sweep);
void sweep_close(struct sweep *sweep);

#endif
