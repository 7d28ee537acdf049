/* What a key may use in a minute, and at once.
 *
 * Both kinds of a minute's allowance are buckets: full at first, refilled at an even rate, never
 * more than full. A request takes one of its kind when it comes. Tokens are taken when a request
 * ends, because only then their number is known; who took more than there was waits until the
 * bucket holds some again. So a key never gets more than its rate over time, and what it can be
 * ahead is what its requests that run at the same time take.
 *
 * That is so on a server that is alone. Where several share the limits, as the nodes of a cluster
 * do, gateway_shared decides by the same rule for all of them together. */
#include "gateway/gateway_internal.h"

#include <math.h>
#include <stdio.h>

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

/* ---- What is told ---------------------------------------------------------------------------- */

#define N_KINDS 2 /* KEY_LIMIT_REQUESTS, KEY_LIMIT_TOKENS */

static const char *const kinds[N_KINDS] = {"requests", "tokens"};

static uint32_t limit_of(const struct known_key *key, int kind)
{
    return kind == KEY_LIMIT_REQUESTS ? key->limits.requests_per_minute
                                      : key->limits.tokens_per_minute;
}

static void add_field(struct http_exchange *exchange, const char *what, int kind, const char *value)
{
    char name[48];
    snprintf(name, sizeof name, "x-ratelimit-%s-%s", what, kinds[kind]);
    http_add_field(exchange, name, value);
}

static void add_fields(const struct known_key *key, const struct key_allowance *allowance,
                       struct http_exchange *exchange)
{
    for (int kind = 0; kind < N_KINDS; kind++) {
        char text[32];
        const struct bucket bucket = {.level = allowance->left[kind]};
        uint32_t limit = limit_of(key, kind);
        if (limit == 0)
            continue;
        snprintf(text, sizeof text, "%u", limit);
        add_field(exchange, "limit", kind, text);
        snprintf(text, sizeof text, "%.0f", fmax(0, floor(bucket.level)));
        add_field(exchange, "remaining", kind, text);
        put_duration(text, bucket_wait_s(&bucket, limit, limit));
        add_field(exchange, "reset", kind, text);
    }
}

static bool refuse(const struct known_key *key, const struct key_allowance *allowance,
                   struct api_error *error)
{
    char text[200];
    int kind = (int)allowance->refused_by;
    if (allowance->refused_by == KEY_LIMIT_PARALLEL)
        snprintf(text, sizeof text,
                 "the API key '%s' may have %u requests answered at once, and has", key->name,
                 key->limits.parallel);
    else if (allowance->left[kind] >= 1)
        snprintf(text, sizeof text,
                 "the API key '%s' may use %u %s a minute, and did use what this node may give out "
                 "until the others have heard of it",
                 key->name, limit_of(key, kind), kinds[kind]);
    else
        snprintf(text, sizeof text, "the API key '%s' may use %u %s a minute, and did", key->name,
                 limit_of(key, kind), kinds[kind]);
    *error = (struct api_error){.http_status = 429,
                                .type = "rate_limit_error",
                                .code = "rate_limit_exceeded",
                                .retry_after_s =
                                    (unsigned)fmin(fmax(1, ceil(allowance->wait_s)), UINT32_MAX)};
    snprintf(error->text, sizeof error->text, "%s; try again in %u s", text, error->retry_after_s);
    return false;
}

/* ---- This server alone ----------------------------------------------------------------------- */

static bool allow(const struct known_key *key, struct key_allowance *out)
{
    for (int kind = 0; kind < N_KINDS; kind++) {
        uint32_t limit = limit_of(key, kind);
        if (limit == 0 || key->buckets[kind].level >= 1)
            continue;
        out->refused_by = (enum key_limit)kind;
        out->wait_s = bucket_wait_s(&key->buckets[kind], limit, 1);
        return false;
    }
    if (key->limits.parallel == 0 || key->n_running < key->limits.parallel)
        return true;
    out->refused_by = KEY_LIMIT_PARALLEL;
    out->wait_s = 1;
    return false;
}

static void take(struct known_key *key, uint64_t now_ns, struct key_allowance *out)
{
    for (int kind = 0; kind < N_KINDS; kind++)
        bucket_fill(&key->buckets[kind], limit_of(key, kind), now_ns);
    out->allowed = allow(key, out);
    key->buckets[KEY_LIMIT_REQUESTS].level -= out->allowed;
    key->n_running += out->allowed;
    for (int kind = 0; kind < N_KINDS; kind++)
        out->left[kind] = key->buckets[kind].level;
}

/* ---- Requests -------------------------------------------------------------------------------- */

bool limits_take(const struct gateway_shared *shared, struct gateway_use *use,
                 struct http_exchange *exchange, uint64_t now_ns, struct api_error *error)
{
    struct key_allowance allowance = {.allowed = false};
    const struct key key = known_key_row(use->key);
    use->shared = shared->take != NULL && shared->take(shared->context, &key, &allowance);
    if (!use->shared)
        take(use->key, now_ns, &allowance);
    add_fields(use->key, &allowance, exchange);
    return allowance.allowed || refuse(use->key, &allowance, error);
}

void limits_give_back(const struct gateway_shared *shared, const struct gateway_use *use)
{
    size_t n_tokens = use->prompt_tokens + use->answer_tokens;
    const struct key key = known_key_row(use->key);
    if (use->shared) {
        shared->give_back(shared->context, &key, n_tokens);
    } else {
        use->key->n_running--;
        use->key->buckets[KEY_LIMIT_TOKENS].level -= (double)n_tokens;
    }
}
