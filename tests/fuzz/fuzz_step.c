/* The input is what an owner sends to a rank that follows it: whatever that is, it is computed or
 * refused. The rank is the first stage of two of a tiny random model. */
#include "model/comm.h"
#include "model/model.h"
#include "weights/gguf.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { EMBD = 32, VOCAB = 16, FF = 32, LAYERS = 2, TERMS = 256 };

static struct weights *weights;
static struct model_placement placement = {2, {{0, 1, 1, {1}}, {1, LAYERS, 1, {1}}}};
static unsigned char terms[TERMS]; /* that the owner sends first */

struct input {
    struct comm comm;
    bool owner, opened;
    const uint8_t *data;
    size_t size;
};

/* The owner's first message is kept, and nobody answers. The other gets that, then the input. */
static enum status exchange(struct comm *comm, const struct comm_transfer *transfers, size_t n,
                            struct error *error)
{
    struct input *input = (struct input *)comm;
    for (size_t i = 0; i < n; i++) {
        size_t size = transfers[i].in_bytes;
        if (input->owner && transfers[i].out_bytes <= TERMS)
            memcpy(terms, transfers[i].out, transfers[i].out_bytes);
        if (input->owner)
            return error_set(error, STATUS_LOST, "nobody is there");
        if (size > 0 && !input->opened) {
            memcpy(transfers[i].in, terms, size);
            input->opened = true;
        } else if (size > 0) {
            if (size > input->size)
                return error_set(error, STATUS_LOST, "the input has ended");
            memcpy(transfers[i].in, input->data, size);
            input->data += size;
            input->size -= size;
        }
    }
    return STATUS_OK;
}

static enum status open_rank(struct model **model, struct input *input, struct error *error)
{
    struct model_options options = {.n_ctx = 256,
                                    .n_cache = 1024,
                                    .kv_format = QUANT_F32,
                                    .n_threads = 1,
                                    .placement = &placement,
                                    .comm = &input->comm};
    input->comm = (struct comm){.rank = input->owner ? 1 : 0, .n_ranks = 2, .exchange = exchange};
    return model_open(model, weights, &options, error);
}

struct tensor {
    char name[64];
    uint64_t shape[2];
};

static size_t list_tensors(struct tensor *tensors)
{
    static const struct tensor of_layer[] = {
        {"attn_norm", {EMBD, 1}}, {"attn_q", {EMBD, EMBD}},      {"attn_k", {EMBD, EMBD}},
        {"attn_v", {EMBD, EMBD}}, {"attn_output", {EMBD, EMBD}}, {"ffn_norm", {EMBD, 1}},
        {"ffn_gate", {EMBD, FF}}, {"ffn_up", {EMBD, FF}},        {"ffn_down", {FF, EMBD}},
    };
    size_t n = 0;
    tensors[n++] = (struct tensor){"token_embd.weight", {EMBD, VOCAB}};
    tensors[n++] = (struct tensor){"output_norm.weight", {EMBD, 1}};
    for (unsigned layer = 0; layer < LAYERS; layer++)
        for (size_t i = 0; i < ARRAY_COUNT(of_layer); i++) {
            tensors[n] = of_layer[i];
            snprintf(tensors[n++].name, sizeof tensors->name, "blk.%u.%s.weight", layer,
                     of_layer[i].name);
        }
    return n;
}

static void put_key(struct buffer *out, const char *key, uint32_t type, const void *value)
{
    gguf_put_string(out, key);
    gguf_put_number(out, type, 4);
    buffer_append(out, value, 4);
}

static void put_tensor(struct buffer *out, struct buffer *data, const struct tensor *tensor)
{
    gguf_put_string(out, tensor->name);
    gguf_put_number(out, 2, 4);
    gguf_put_number(out, tensor->shape[0], 8);
    gguf_put_number(out, tensor->shape[1], 8);
    gguf_put_number(out, gguf_format_number(QUANT_F32), 4);
    gguf_put_number(out, data->size, 8);
    for (uint64_t i = 0; i < tensor->shape[0] * tensor->shape[1]; i++) {
        float number = (float)rng_uniform(data->size, i, 0) - 0.5f;
        buffer_append(data, &number, sizeof number);
    }
}

/* A GGUF file of whole alignments. */
static void put_model(struct buffer *out)
{
    static const struct {
        const char *key;
        uint32_t value;
    } keys[] = {
        {"llama.block_count", LAYERS},        {"llama.embedding_length", EMBD},
        {"llama.context_length", 256},        {"llama.attention.head_count", 2},
        {"llama.attention.head_count_kv", 2},
    };
    struct tensor tensors[2 + 9 * LAYERS];
    size_t n = list_tensors(tensors);
    struct buffer data = {0};
    float epsilon = 1e-5f;
    buffer_append_text(out, GGUF_MAGIC);
    gguf_put_number(out, GGUF_VERSION, 4);
    gguf_put_number(out, n, 8);
    gguf_put_number(out, ARRAY_COUNT(keys) + 2, 8);
    gguf_put_string(out, "general.architecture");
    gguf_put_number(out, WEIGHTS_STRING, 4);
    gguf_put_string(out, "llama");
    put_key(out, "llama.attention.layer_norm_rms_epsilon", WEIGHTS_F32, &epsilon);
    for (size_t i = 0; i < ARRAY_COUNT(keys); i++)
        put_key(out, keys[i].key, WEIGHTS_U32, &keys[i].value);
    for (size_t i = 0; i < n; i++)
        put_tensor(out, &data, &tensors[i]);
    while (out->size % GGUF_ALIGNMENT != 0)
        gguf_put_number(out, 0, 1);
    buffer_append(out, data.data, data.size);
    buffer_free(&data);
}

static void prepare(void)
{
    static struct buffer file; /* as long as the process */
    struct error error = {0};
    struct model *model;
    struct input owner = {.owner = true};
    put_model(&file);
    if (weights_open_memory(&weights, "tiny", file.data, file.size, &error) != STATUS_OK ||
        open_rank(&model, &owner, &error) != STATUS_LOST) {
        fprintf(stderr, "%s\n", error.text);
        abort();
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct input input = {.data = data, .size = size};
    struct error error = {0};
    struct model *model;
    if (weights == NULL)
        prepare();
    if (open_rank(&model, &input, &error) != STATUS_OK)
        abort();
    if (model_follow(model, &error) != STATUS_OK && error.text[0] == '\0')
        abort();
    model_close(model);
    return 0;
}
