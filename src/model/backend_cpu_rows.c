/* Operations of the CPU backend that work on each row alone. */
#include "model/backend_cpu.h"

#include <math.h>
#include <string.h>

static void embed_rows(const struct op *op, size_t begin, size_t end)
{
    const struct device_matrix *table = &op->embed.table;
    const unsigned char *rows = cpu_data(table->data);
    const int32_t *ids = cpu_data(op->embed.ids);
    float *y = cpu_data(op->embed.y);
    for (size_t i = begin; i < end; i++) {
        float *row = y + i * table->n_cols;
        quant_decode(table->format, rows + (size_t)ids[i] * table->row_bytes, row, table->n_cols);
        if (op->embed.scale != 1.0f)
            for (size_t c = 0; c < table->n_cols; c++)
                row[c] *= op->embed.scale;
    }
}

static void gather_rows(const struct op *op, size_t begin, size_t end)
{
    const float *x = cpu_data(op->gather.x);
    const int32_t *rows = cpu_data(op->gather.rows);
    float *y = cpu_data(op->gather.y);
    size_t n_cols = op->gather.n_cols;
    for (size_t i = begin; i < end; i++)
        memcpy(y + i * op->gather.y_stride,
               x + (rows != NULL ? (size_t)rows[i] : i) * op->gather.x_stride, n_cols * sizeof *y);
}

#define SUMS 8 /* chains of a sum: each number waits for one of them only */

/* The sum of x[c] - mean, or of their squares. In double: a row is short next to a product, and the
 * error of a norm spreads to all. */
static double sum_of(const float *x, size_t n, double mean, bool squares)
{
    double sum[SUMS] = {0}, total = 0;
    size_t c = 0;
    for (; c + SUMS <= n; c += SUMS)
        for (size_t k = 0; k < SUMS; k++) {
            double value = (double)x[c + k] - mean;
            sum[k] += squares ? value * value : value;
        }
    for (size_t k = 0; c < n; c++, k++)
        sum[k] += squares ? ((double)x[c] - mean) * ((double)x[c] - mean) : (double)x[c] - mean;
    for (size_t k = 0; k < SUMS; k++)
        total += sum[k];
    return total;
}

static void norm_row(const struct op *op, const float *x, float *y, const float *weight,
                     const float *bias)
{
    size_t n = op->norm.n_cols;
    double mean = op->norm.norm == MODEL_NORM_LAYER ? sum_of(x, n, 0, false) / (double)n : 0;
    double square = sum_of(x, n, mean, true);
    float shift = (float)mean;
    float scale = (float)(1.0 / sqrt(square / (double)n + (double)op->norm.eps));
    for (size_t c = 0; c < n; c++) {
        float value = (x[c] - shift) * scale;
        if (weight != NULL)
            value *= weight[c];
        y[c] = bias != NULL ? value + bias[c] : value;
    }
}

static void norm_rows(const struct op *op, size_t begin, size_t end)
{
    const float *x = cpu_data(op->norm.x), *weight = cpu_data(op->norm.weight);
    const float *bias = cpu_data(op->norm.bias);
    float *y = cpu_data(op->norm.y);
    for (size_t r = begin; r < end; r++) {
        size_t w = r % op->norm.n_weight_rows * op->norm.n_cols;
        norm_row(op, x + r * op->norm.x_stride, y + r * op->norm.y_stride,
                 weight != NULL ? weight + w : NULL, bias != NULL ? bias + w : NULL);
    }
}

static void rope_head(float *x, const float *cosines, const float *sines, size_t n_freqs,
                      enum model_rope rope)
{
    size_t step = rope == MODEL_ROPE_PAIRS ? 2 : 1;
    size_t other = rope == MODEL_ROPE_PAIRS ? 1 : n_freqs;
    for (size_t i = 0; i < n_freqs; i++) {
        float a = x[i * step], b = x[i * step + other];
        x[i * step] = a * cosines[i] - b * sines[i];
        x[i * step + other] = a * sines[i] + b * cosines[i];
    }
}

static void rope_rows(const struct op *op, size_t begin, size_t end)
{
    float *x = cpu_data(op->rope.x);
    const int32_t *positions = cpu_data(op->rope.positions);
    const float *freqs = cpu_data(op->rope.freqs);
    float cosines[MODEL_MAX_ROPE_DIMS / 2], sines[MODEL_MAX_ROPE_DIMS / 2];
    size_t n_freqs = op->rope.n_freqs;
    for (size_t i = begin; i < end; i++) {
        for (size_t f = 0; f < n_freqs; f++) {
            double angle = (double)positions[i] * (double)freqs[f];
            cosines[f] = (float)cos(angle) * op->rope.magnitude;
            sines[f] = (float)sin(angle) * op->rope.magnitude;
        }
        for (size_t h = 0; h < op->rope.n_heads; h++)
            rope_head(x + i * op->rope.token_stride + h * op->rope.head_stride, cosines, sines,
                      n_freqs, op->rope.rope);
    }
}

#define GATE_BLOCK 256

/* y = activation(gate) * up over n <= GATE_BLOCK numbers, all by way of sigmoids: silu(x) =
 * x sigmoid(x), and the tanh form of gelu is x sigmoid(2 u). y may be gate, and is no other. */
static void gate_sigmoid(float *factor, const float *gate, const float *up, float *y, size_t n)
{
    quant_sigmoid(factor, n);
    for (size_t i = 0; i < n; i++)
        factor[i] *= gate[i];
    for (size_t i = 0; i < n; i++)
        y[i] = up != NULL ? factor[i] * up[i] : factor[i];
}

static void gate_silu(const float *gate, const float *up, float *y, size_t n)
{
    float factor[GATE_BLOCK];
    memcpy(factor, gate, n * sizeof *factor);
    gate_sigmoid(factor, gate, up, y, n);
}

static void gate_gelu(const float *gate, const float *up, float *y, size_t n)
{
    float factor[GATE_BLOCK];
    for (size_t i = 0; i < n; i++)
        factor[i] = 1.5957691216057308f * gate[i] * (1.0f + 0.044715f * gate[i] * gate[i]);
    gate_sigmoid(factor, gate, up, y, n);
}

static void gate_swiglu_oai(const float *gate, const float *up, float *y, size_t n)
{
    float x[GATE_BLOCK], factor[GATE_BLOCK];
    for (size_t i = 0; i < n; i++)
        x[i] = fminf(gate[i], 7.0f);
    for (size_t i = 0; i < n; i++)
        factor[i] = 1.702f * x[i];
    quant_sigmoid(factor, n);
    for (size_t i = 0; i < n; i++)
        y[i] = x[i] * factor[i] * (up != NULL ? fminf(fmaxf(up[i], -7.0f), 7.0f) + 1.0f : 1.0f);
}

static void gate_block(enum model_activation activation, const float *gate, const float *up,
                       float *y, size_t n)
{
    switch (activation) {
    case MODEL_ACTIVATION_SILU:
        gate_silu(gate, up, y, n);
        break;
    case MODEL_ACTIVATION_GELU:
        gate_gelu(gate, up, y, n);
        break;
    case MODEL_ACTIVATION_SWIGLU_OAI:
        gate_swiglu_oai(gate, up, y, n);
        break;
    }
}

static void gate_rows(const struct op *op, size_t begin, size_t end)
{
    const float *gate = cpu_data(op->gate.gate), *up = cpu_data(op->gate.up);
    float *y = cpu_data(op->gate.y);
    size_t n_cols = op->gate.n_cols;
    for (size_t i = begin; i < end; i++)
        for (size_t c = 0; c < n_cols; c += GATE_BLOCK)
            gate_block(op->gate.activation, gate + i * op->gate.gate_stride + c,
                       up != NULL ? up + i * op->gate.up_stride + c : NULL, y + i * n_cols + c,
                       MIN(n_cols - c, (size_t)GATE_BLOCK));
}

static void add_numbers(const struct op *op, size_t begin, size_t end)
{
    const float *a = cpu_data(op->add.a), *b = cpu_data(op->add.b);
    float *y = cpu_data(op->add.y);
    for (size_t i = begin; i < end; i++)
        y[i] = a[i] + op->add.scale * b[i];
}

static void scale_numbers(const struct op *op, size_t begin, size_t end)
{
    float *x = cpu_data(op->scale.x);
    float scale = op->scale.scale, softcap = op->scale.softcap;
    for (size_t i = begin; i < end; i++)
        x[i] = softcap > 0 ? softcap * tanhf(scale * x[i] / softcap) : scale * x[i];
}

static void scale_each_row(const struct op *op, size_t begin, size_t end)
{
    float *x = cpu_data(op->scale_rows.x);
    const float *factors = cpu_data(op->scale_rows.factors);
    size_t n_cols = op->scale_rows.n_cols;
    for (size_t i = begin; i < end; i++) {
        float factor = op->scale_rows.sigmoid ? 1.0f / (1.0f + expf(-factors[i])) : factors[i];
        for (size_t c = 0; c < n_cols; c++)
            x[i * n_cols + c] *= factor;
    }
}

/* ---- Routing of experts ---- */
/* The same bits on every machine: ranks that share a model must choose the same experts. */

/* n <= MODEL_MAX_EXPERTS. */
static void softmax(float *x, size_t n)
{
    float p[MODEL_MAX_EXPERTS], highest = -INFINITY;
    size_t padded = (n + 15) / 16 * 16;
    memcpy(p, x, n * sizeof *p);
    for (size_t i = n; i < padded; i++)
        p[i] = -INFINITY;
    float sum = quant_exp_sum(p, padded, &highest, NULL);
    for (size_t i = 0; i < n; i++)
        x[i] = p[i] / sum;
}

/* Index of the largest of x[n]; the first of equals. */
static size_t largest(const float *x, size_t n)
{
    size_t best = 0;
    for (size_t i = 1; i < n; i++)
        if (x[i] > x[best])
            best = i;
    return best;
}

/* Removes all but the best groups from scores, a group counting the sum of its two best experts
 * (DeepSeek-V3 technical report, section 2.1.2 and its published code). */
static void keep_best_groups(const struct op *op, float *scores)
{
    size_t n_groups = op->route.n_groups, size = op->route.n_experts / n_groups;
    float groups[MODEL_MAX_EXPERTS];
    for (size_t g = 0; g < n_groups; g++) {
        float *group = scores + g * size, first = -INFINITY, second = -INFINITY;
        for (size_t e = 0; e < size; e++) {
            second = fmaxf(second, fminf(first, group[e]));
            first = fmaxf(first, group[e]);
        }
        groups[g] = size > 1 ? first + second : first;
    }
    bool kept[MODEL_MAX_EXPERTS] = {false};
    for (size_t i = 0; i < op->route.n_groups_used; i++) {
        size_t best = largest(groups, n_groups);
        kept[best] = true;
        groups[best] = -INFINITY;
    }
    for (size_t e = 0; e < op->route.n_experts; e++)
        if (!kept[e / size])
            scores[e] = -INFINITY;
}

static void route_row(const struct op *op, const float *logits, const float *bias, int32_t *ids,
                      float *weights)
{
    size_t n = op->route.n_experts, n_used = op->route.n_used;
    float p[MODEL_MAX_EXPERTS], scores[MODEL_MAX_EXPERTS];
    memcpy(p, logits, n * sizeof *p);
    if (op->route.routing == MODEL_ROUTING_SIGMOID)
        quant_sigmoid(p, n);
    if (op->route.routing == MODEL_ROUTING_SOFTMAX)
        softmax(p, n);
    for (size_t e = 0; e < n; e++)
        scores[e] = bias != NULL ? p[e] + bias[e] : p[e];
    if (op->route.n_groups > 1)
        keep_best_groups(op, scores);
    float sum = 0;
    for (size_t s = 0; s < n_used; s++) {
        size_t best = largest(scores, n);
        scores[best] = -INFINITY;
        ids[s] = (int32_t)best;
        weights[s] = p[best];
        sum += p[best];
    }
    if (op->route.routing == MODEL_ROUTING_SOFTMAX_CHOSEN)
        softmax(weights, n_used);
    float scale = op->route.scale;
    if (op->route.normalise)
        scale /= fmaxf(sum, 6.103515625e-5f); /* the smallest normal F16 */
    for (size_t s = 0; s < n_used; s++)
        weights[s] *= scale;
}

static void route_rows(const struct op *op, size_t begin, size_t end)
{
    const float *logits = cpu_data(op->route.logits), *bias = cpu_data(op->route.bias);
    int32_t *ids = cpu_data(op->route.ids);
    float *weights = cpu_data(op->route.weights);
    for (size_t i = begin; i < end; i++)
        route_row(op, logits + i * op->route.n_experts, bias, ids + i * op->route.n_used,
                  weights + i * op->route.n_used);
}

static void combine_rows(const struct op *op, size_t begin, size_t end)
{
    const float *x = cpu_data(op->combine.x), *weights = cpu_data(op->combine.weights);
    float *y = cpu_data(op->combine.y);
    size_t n_cols = op->combine.n_cols, n_slots = op->combine.n_slots;
    for (size_t i = begin; i < end; i++)
        for (size_t c = 0; c < n_cols; c++) {
            float sum = 0;
            for (size_t s = 0; s < n_slots; s++)
                sum += x[(i * n_slots + s) * n_cols + c] *
                       (weights != NULL ? weights[i * n_slots + s] : 1.0f);
            y[i * n_cols + c] = sum;
        }
}

/* Rows of n_cols numbers are handed out so that a chunk is worth a thread's while. */
static size_t row_chunk(size_t n_cols)
{
    return MAX(8192 / MAX(n_cols, 1), 1);
}

struct cpu_row_op cpu_row_op(const struct op *op)
{
    switch (op->kind) {
    case OP_EMBED:
        return (struct cpu_row_op){embed_rows, op->embed.n, row_chunk(op->embed.table.n_cols)};
    case OP_GATHER:
        return (struct cpu_row_op){gather_rows, op->gather.n, row_chunk(op->gather.n_cols)};
    case OP_NORM:
        return (struct cpu_row_op){norm_rows, op->norm.n_rows, row_chunk(op->norm.n_cols)};
    case OP_ROPE:
        return (struct cpu_row_op){rope_rows, op->rope.n,
                                   row_chunk(op->rope.n_heads * op->rope.n_freqs * 8)};
    case OP_GATE:
        return (struct cpu_row_op){gate_rows, op->gate.n, row_chunk(op->gate.n_cols * 8)};
    case OP_ADD:
        return (struct cpu_row_op){add_numbers, op->add.n, row_chunk(1)};
    case OP_SCALE:
        return (struct cpu_row_op){scale_numbers, op->scale.n, row_chunk(1)};
    case OP_SCALE_ROWS:
        return (struct cpu_row_op){scale_each_row, op->scale_rows.n,
                                   row_chunk(op->scale_rows.n_cols)};
    case OP_ROUTE:
        return (struct cpu_row_op){route_rows, op->route.n, row_chunk(op->route.n_experts * 16)};
    default:
        return (struct cpu_row_op){combine_rows, op->combine.n,
                                   row_chunk(op->combine.n_cols * op->combine.n_slots)};
    }
}
