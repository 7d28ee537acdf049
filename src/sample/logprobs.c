#include "sample/sample.h"

/* Puts a token at its place among the n best so far, of which there may be limit. */
static size_t insert(struct token_logprob *top, size_t n, size_t limit, struct token_logprob token)
{
    size_t place = n < limit ? n : limit - 1;
    for (; place > 0 && token.logprob > top[place - 1].logprob; place--)
        top[place] = top[place - 1];
    top[place] = token;
    return n < limit ? n + 1 : n;
}

size_t sample_logprobs(const float *logits, size_t n_vocab, struct token_logprob *top, size_t n,
                       double *log_total)
{
    float max = -INFINITY;
    for (size_t id = 0; id < n_vocab; id++)
        max = logits[id] > max ? logits[id] : max;
    double sum = 0;
    size_t n_top = 0;
    for (size_t id = 0; id < n_vocab; id++) {
        if (!(logits[id] > -INFINITY))
            continue;
        sum += expf(logits[id] - max);
        if (n_top < n || (n > 0 && logits[id] > top[n - 1].logprob))
            n_top = insert(top, n_top, n, (struct token_logprob){(int32_t)id, logits[id]});
    }
    *log_total = max + log(sum);
    for (size_t i = 0; i < n_top; i++)
        top[i].logprob = (float)(top[i].logprob - *log_total);
    return n_top;
}
