/* What a key may use in a minute, and at once.
 *
 * Both kinds of a minute's allowance are buckets: full at first, refilled at an even rate, never
 * more than full. A request takes one of its kind when it comes. Tokens are taken when a request
 * ends, because only then their number is known; who took more than there was waits until the
 * bucket holds some again. So a key never gets more than its rate over time, and what it can be
 * ahead is what its requests that run at the same time take. */
#include "gateway/gateway_internal.h"

#include <math.h>
#include <stdio.h>

#define NS_PER_MINUTE 60e9

void bucket_fill(struct bucket *bucket, uint32_t per_minute, uint64_t now_ns)
{
    double full = per_minute;
    if (!bucket->begun)
        bucket->level = full;
    else
        bucket->level += (double)(now_ns - bucket->filled_ns) * full / NS_PER_MINUTE;
    bucket->level = fmin(bucket->level, full);
    bucket->filled_ns = now_ns;
    bucket->begun = true;
}

double bucket_wait_s(const struct bucket *bucket, uint32_t per_minute, double wanted)
{
    return fmax(0, wanted - bucket->level) * 60 / per_minute;
}

/* "6m0s", "1.5s", "20ms": as OpenAI writes it. */
void put_duration(char text[32], double seconds)
{
    unsigned long long ms = (unsigned long long)ceil(seconds * 1000), minutes = ms / 60000;
    if (ms < 1000)
        snprintf(text, 32, "%llums", ms);
    else if (minutes > 0)
        snprintf(text, 32, "%llum%llus", minutes, ms % 60000 / 1000);
    else
        snprintf(text, 32, "%.3gs", (double)ms / 1000);
}

/* ---- Requests -------------------------------------------------------------------------------- */

enum { REQUESTS, TOKENS, N_KINDS };

static const char *const kinds[N_KINDS] = {"requests", "tokens"};

static uint32_t limit_of(const struct known_key *key, int kind)
{
    return kind == REQUESTS ? key->limits.requests_per_minute : key->limits.tokens_per_minute;
}

static void add_field(struct http_exchange *exchange, const char *what, int kind, const char *value)
{
    char name[48];
    snprintf(name, sizeof name, "x-ratelimit-%s-%s", what, kinds[kind]);
    http_add_field(exchange, name, value);
}

static void add_fields(const struct known_key *key, struct http_exchange *exchange)
{
    for (int kind = 0; kind < N_KINDS; kind++) {
        char text[32];
        const struct bucket *bucket = &key->buckets[kind];
        uint32_t limit = limit_of(key, kind);
        if (limit == 0)
            continue;
        snprintf(text, sizeof text, "%u", limit);
        add_field(exchange, "limit", kind, text);
        snprintf(text, sizeof text, "%.0f", fmax(0, floor(bucket->level)));
        add_field(exchange, "remaining", kind, text);
        put_duration(text, bucket_wait_s(bucket, limit, limit));
        add_field(exchange, "reset", kind, text);
    }
}

static bool refuse(struct api_error *error, double wait_s, const char *text)
{
    *error = (struct api_error){.http_status = 429,
                                .type = "rate_limit_error",
                                .code = "rate_limit_exceeded",
                                .retry_after_s = (unsigned)fmin(fmax(1, ceil(wait_s)), UINT32_MAX)};
    snprintf(error->text, sizeof error->text, "%s; try again in %u s", text, error->retry_after_s);
    return false;
}

static bool limits_allow(const struct known_key *key, struct api_error *error)
{
    char text[200];
    for (int kind = 0; kind < N_KINDS; kind++) {
        uint32_t limit = limit_of(key, kind);
        if (limit == 0 || key->buckets[kind].level >= 1)
            continue;
        snprintf(text, sizeof text, "the API key '%s' may use %u %s a minute, and did", key->name,
                 limit, kinds[kind]);
        return refuse(error, bucket_wait_s(&key->buckets[kind], limit, 1), text);
    }
    if (key->limits.parallel == 0 || key->n_running < key->limits.parallel)
        return true;
    snprintf(text, sizeof text, "the API key '%s' may have %u requests answered at once, and has",
             key->name, key->limits.parallel);
    return refuse(error, 1, text);
}

bool limits_take(struct known_key *key, struct http_exchange *exchange, uint64_t now_ns,
                 struct api_error *error)
{
    for (int kind = 0; kind < N_KINDS; kind++)
        bucket_fill(&key->buckets[kind], limit_of(key, kind), now_ns);
    bool allowed = limits_allow(key, error);
    key->buckets[REQUESTS].level -= allowed;
    key->n_running += allowed;
    add_fields(key, exchange);
    return allowed;
}

void limits_give_back(struct known_key *key, size_t n_tokens)
{
    key->n_running--;
    key->buckets[TOKENS].level -= (double)n_tokens;
}
