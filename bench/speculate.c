/* What drafts out of the text bring: tokens a second with and without, in turns, and their ratio.
 *
 *   build/bench/speculate MODEL [TOKENS [REPEATS [SAMPLES]]]    of each answer (default 64, 3, all)
 *
 * A model with random weights repeats nothing by itself. Therefore each answer (to a random prompt,
 * the likeliest tokens) is computed once without drafts, and then stands, as it is or changed, in
 * the text that the n-grams see, as if the prompt had held it: the model computes all that it would
 * compute for a real copy, and accepts what it would accept. The lines:
 *
 *   copy       the answer repeats the text word by word (quotations)
 *   edit N     but for a token in N, as in edited code
 *   other      the answer's tokens in another order: nothing to find but chance
 *   right N %  no n-grams: each drafted token is right with that chance
 *   own        no help: the n-grams of prompt and answer themselves
 *
 * Every run begins without knowledge of times and acceptance, and must give the same tokens. */
#include "engine/speculate.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define N_PROMPT 128
#define MAX_TOKENS 4096
#define MAX_REPEATS 99

enum kind { KIND_SEEN, KIND_OTHER, KIND_RIGHT, KIND_OWN };

static const struct sample {
    const char *name;
    enum kind kind;
    unsigned parameter; /* one token in so many is changed; percent */
} samples[] = {
    {"copy", KIND_SEEN, 0},           {"edit 20", KIND_SEEN, 20},
    {"edit 5", KIND_SEEN, 5},         {"other", KIND_OTHER, 0},
    {"right 100 %", KIND_RIGHT, 100}, {"right 50 %", KIND_RIGHT, 50},
    {"right 0 %", KIND_RIGHT, 0},     {"own", KIND_OWN, 0},
};

/* What a draft may be made of. */
struct source {
    const struct sample *sample;
    struct ngrams ngrams;
    int32_t text[2 * MAX_TOKENS]; /* what stood there, then the answer so far */
    int32_t answer[MAX_TOKENS];
    size_t n_answer;
    uint32_t n_vocab;
};

static void prepare(struct source *source, const struct sample *sample)
{
    size_t n = source->n_answer;
    source->sample = sample;
    ngrams_forget(&source->ngrams);
    memcpy(source->text, source->answer, n * sizeof *source->text);
    for (size_t i = 0; sample->kind == KIND_SEEN && sample->parameter > 0 && i < n; i++)
        if (rng_u64(5, i, 0) % sample->parameter == 0)
            source->text[i] = (int32_t)(rng_u64(6, i, 0) % source->n_vocab);
    for (size_t i = n; sample->kind == KIND_OTHER && i > 1; i--) {
        size_t k = rng_u64(8, i, 0) % i;
        int32_t swapped = source->text[k];
        source->text[k] = source->text[i - 1];
        source->text[i - 1] = swapped;
    }
}

static void propose(void *context, const int32_t *text, size_t n, size_t limit, struct draft *out)
{
    struct source *source = context;
    size_t done = n - N_PROMPT, n_seen = source->n_answer;
    out->count = 0;
    if (source->sample->kind == KIND_RIGHT) {
        for (; out->count < limit && done + out->count < n_seen; out->count++) {
            size_t at = done + out->count;
            bool right = rng_u64(7, at, 0) % 100 < source->sample->parameter;
            out->tokens[out->count] =
                right ? source->answer[at] : (source->answer[at] + 1) % (int32_t)source->n_vocab;
            out->classes[out->count] = 3;
        }
        return;
    }
    memcpy(source->text + n_seen, text + N_PROMPT, done * sizeof *text);
    if (ngrams_update(&source->ngrams, source->text, n_seen + done))
        ngrams_propose(&source->ngrams, source->text, limit, out);
}

static void fail(const struct error *error)
{
    fprintf(stderr, "%s\n", error->text);
    exit(1);
}

/* Tokens a second of the greedy answer to the prompt, which goes to out. */
static double decode(struct session *session, const int32_t *prompt, size_t n_tokens, int32_t *out)
{
    struct error error;
    struct buffer piece = {0};
    struct sampling greedy = SAMPLING_DEFAULTS;
    greedy.temperature = 0;
    struct session_prompt asked = {.tokens = prompt, .n_tokens = N_PROMPT, .sampling = &greedy};
    if (session_begin(session, &asked, &error) != STATUS_OK)
        fail(&error);
    uint64_t begin_ns = clock_now_ns();
    for (size_t i = 0; i < n_tokens; i++)
        if (session_next(session, &out[i], &piece, &error) != STATUS_OK)
            fail(&error);
    double seconds = (double)(clock_now_ns() - begin_ns) / 1e9;
    buffer_free(&piece);
    return (double)n_tokens / seconds;
}

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void measure(struct session *plain, struct session *drafting, const int32_t *prompt,
                    struct source *source, const struct sample *sample, size_t repeats)
{
    double speeds[3][MAX_REPEATS]; /* without, with, their ratio */
    int32_t found[MAX_TOKENS];
    struct error error;
    struct session_speculation options = {.drafts = SESSION_DRAFTS_NGRAM};
    bool same = true;
    for (size_t r = 0; r < repeats; r++) {
        speeds[0][r] = decode(plain, prompt, source->n_answer, source->answer);
        if (session_speculate(drafting, &options, &error) != STATUS_OK)
            fail(&error);
        if (sample->kind != KIND_OWN) {
            prepare(source, sample);
            session_speculation(drafting)->propose = propose;
            session_speculation(drafting)->context = source;
        }
        speeds[1][r] = decode(drafting, prompt, source->n_answer, found);
        speeds[2][r] = speeds[1][r] / speeds[0][r];
        same = same && memcmp(found, source->answer, source->n_answer * sizeof *found) == 0;
    }
    struct session_draft_counts counts = session_drafted(drafting);
    for (size_t i = 0; i < ARRAY_COUNT(speeds); i++)
        qsort(speeds[i], repeats, sizeof **speeds, compare);
    printf("%-12s %9.2f %9.2f   %5.2f (%.2f to %.2f) %7zu %8zu  %s\n", sample->name,
           speeds[0][repeats / 2], speeds[1][repeats / 2], speeds[2][repeats / 2], speeds[2][0],
           speeds[2][repeats - 1], counts.drafted, counts.accepted,
           same ? "same text" : "ANOTHER TEXT");
    fflush(stdout);
    if (getenv("SHOW_STEPS") == NULL)
        return;
    for (size_t rows = 1; rows <= SPECULATE_MAX + 1; rows++)
        if (session_speculation(drafting)->pay.step_ns[rows] > 0)
            printf("    %zu rows %.2f ms\n", rows,
                   session_speculation(drafting)->pay.step_ns[rows] / 1e6);
}

static size_t number(int argc, char **argv, int i, size_t standard, size_t most)
{
    size_t value = i < argc ? strtoul(argv[i], NULL, 10) : standard;
    return MAX(MIN(value, most), (size_t)1);
}

int main(int argc, char **argv)
{
    static struct source source;
    static int32_t prompt[N_PROMPT];
    struct engine *engine;
    struct session *plain, *drafting;
    struct error error;
    if (argc < 2) {
        fprintf(stderr, "usage: %s MODEL [TOKENS [REPEATS [SAMPLES]]]\n", argv[0]);
        return 2;
    }
    source.n_answer = number(argc, argv, 2, 64, MAX_TOKENS);
    size_t repeats = number(argc, argv, 3, 3, MAX_REPEATS);
    size_t n_samples = number(argc, argv, 4, ARRAY_COUNT(samples), ARRAY_COUNT(samples));
    struct model_options options = {
        .n_ctx = (uint32_t)(2 * (N_PROMPT + source.n_answer + MODEL_KV_PAGE_TOKENS)),
        .kv_format = QUANT_F16};
    if (engine_open(&engine, argv[1], ENGINE_TOKENIZER | ENGINE_MODEL, &options, &error) !=
            STATUS_OK ||
        session_open(&plain, engine, &error) != STATUS_OK ||
        session_open(&drafting, engine, &error) != STATUS_OK)
        fail(&error);
    source.n_vocab = model_description(engine->model)->n_vocab;
    for (size_t i = 0; i < N_PROMPT; i++)
        prompt[i] = (int32_t)(rng_u64(1, i, 0) % source.n_vocab);
    /* Brings the weights in; and both have the prompt, so its last token is computed alone. */
    decode(plain, prompt, 4, source.answer);
    decode(drafting, prompt, 4, source.answer);
    printf("%zu tokens, %u threads (%s)\n", source.n_answer, model_n_threads(engine->model),
           quant_isa());
    printf("answer         without    drafts   ratio (least to most) drafted accepted\n");
    for (size_t i = 0; i < n_samples; i++)
        measure(plain, drafting, prompt, &source, &samples[i], repeats);
    ngrams_free(&source.ngrams);
    session_close(drafting);
    session_close(plain);
    engine_close(engine);
    return 0;
}
