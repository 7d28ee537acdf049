/* The logits of a model over ranks that are threads of this process.
 *
 *   ranks_logits MODEL TOKENS tensor|pipeline N OUT
 *
 * TOKENS has decimal token ids; OUT becomes raw float32, [tokens, vocabulary], of one step. What
 * other ways for ranks to talk come to is compared with it. */
#include "fake_comm.h"
#include "reference.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_TOKENS 96 /* one step takes them all */

static struct model_placement place(const char *way, uint32_t n, uint32_t n_layers)
{
    char text[2 * MODEL_MAX_STAGES + 1] = "1";
    for (uint32_t i = 1; i < n && i < MODEL_MAX_SHARDS; i++)
        strcat(text, strcmp(way, "pipeline") == 0 ? "+1" : ":1");
    return fake_placement(text, n_layers);
}

static enum status compute(struct model *model, const int32_t *tokens, size_t n, const char *path,
                           struct error *error)
{
    size_t n_logits = n * model_description(model)->n_vocab;
    float *logits = malloc(n_logits * sizeof *logits);
    struct sequence *sequence = NULL;
    FILE *file = fopen(path, "wb");
    enum status status = sequence_open(&sequence, model, error);
    struct step_segment segment = {sequence, tokens, n, n};
    if (status == STATUS_OK)
        status = model_step(model, &segment, 1, logits, error);
    if (status == STATUS_OK &&
        (file == NULL || fwrite(logits, sizeof *logits, n_logits, file) != n_logits))
        status = error_set(error, STATUS_IO, "cannot write %s", path);
    if (file != NULL && fclose(file) != 0 && status == STATUS_OK)
        status = error_set(error, STATUS_IO, "cannot write %s", path);
    sequence_close(sequence);
    free(logits);
    return status;
}

int main(int argc, char **argv)
{
    struct error error = {0};
    struct weights *weights = NULL;
    struct model_desc *desc = NULL;
    struct fake_ranks ranks = {0};
    int32_t tokens[MAX_TOKENS];
    if (argc != 6) {
        fprintf(stderr, "usage: ranks_logits MODEL TOKENS tensor|pipeline N OUT\n");
        return 2;
    }
    size_t n = reference_tokens(argv[2], tokens, MAX_TOKENS);
    enum status status = weights_open(&weights, argv[1], &error);
    if (status == STATUS_OK)
        status = model_describe(&desc, weights, &error);
    if (status == STATUS_OK) {
        struct model_placement placement = place(argv[3], (uint32_t)atoi(argv[4]), desc->n_layers);
        struct model_options options = {
            .n_ctx = (uint32_t)n, .kv_format = QUANT_F32, .n_threads = 1, .placement = &placement};
        status = fake_ranks_open(&ranks, weights, &options, false, NULL, &error);
        if (status == STATUS_OK)
            status = compute(ranks.owner, tokens, n, argv[5], &error);
        if (ranks.network != NULL)
            fake_ranks_close(&ranks);
    }
    if (status != STATUS_OK)
        fprintf(stderr, "%s\n", error.text);
    model_desc_free(desc);
    weights_close(weights);
    return status == STATUS_OK ? 0 : 1;
}
