/* Limits of API keys, which hold for all nodes together although each decides alone.
 *
 *   usage  {seq, keys: [[hash, requests, tokens, running, busy, owed requests, owed tokens,
 *          first]]}      first: what the node has of the key since before the link is up
 *   usage_heard  {seq, keys}    the answer to it, with news of the same keys
 *
 * Each node counts for the whole cluster: it has a bucket for each key and kind (requests and
 * tokens a minute), from which it takes what it lets through itself and what the others say that
 * they let through (requests and tokens are sums since a node began, so nothing is counted twice).
 * What the others have not heard of yet they cannot count; therefore a node may be ahead of them by
 * its share only:
 *
 *     a request is let through where the bucket holds one, and what this node took and not all
 *     others have heard of stays within  share * what all others believe is left,
 *     or is one;     share = own weight / sum of the weights of this node and those that are up
 *
 * A node that let a request of the key through, or refused one, within DEMAND_MS is busy with the
 * key and has weight BUSY, others have 1. It uses the higher weight once all others have heard of
 * it, and the lower one before it tells: so shares never sum to more than one, whoever has heard
 * what. Requests that run at once are shared in the same way: what is free is the limit without all
 * that run as they were told; what began here and is not heard of stays within the share.
 *
 * News go out at once where a node has used half of what it may be ahead, otherwise with the next
 * tick; of each key one message is under way at a time. Who answers one adds what it has not told
 * itself: so a node that may go on, because all have heard of what it took, has heard of what they
 * took until then. A node that is alone busy gets nearly all, in steps that take as long as a
 * message and its answer; and where all ask for more than there is, each gets what comes back in
 * the order in which requests come.
 *
 * Bounds, for n nodes and a limit of L a minute, over any time of t minutes:
 *   - all together let L + t * L + n requests through at most: n is the "or is one". It is not one
 *     more each time, for what was too much is owed. L + t * L is what one node alone lets through;
 *   - at most (parallel limit) + n - 1 requests run at once;
 *   - tokens are known when a request ends, so a key is ahead by what its running requests take, as
 *     on one node.
 *   - A node that is lost keeps, in the eyes of the others, one part in n (held), for
 *     HELD_SILENT_MS where it fell silent and HELD_CLOSED_MS where its link was closed, as links of
 *     processes are that ended. So each side of a partition goes on with as many parts as it has
 *     nodes, but one a minute at least, all together with no more than the limit; for longer than
 *     that, each side has the whole of it. Once, as they part, it can be L / 2 more: what the nodes
 *     of one side took before they noticed is told among them, and only in part set against what
 *     they keep.
 *   - A node that starts knows nothing of the last minute until a link is up; each start can let
 *     through once more what one node may: L.
 */
#include "cluster/core_internal.h"

#include <math.h>

#define BUSY 8.0
#define DEMAND_MS 5000
#define FORGET_MS 120000 /* a key that nobody uses; longer than any bucket takes to fill */
#define HELD_SILENT_MS 600000
#define HELD_CLOSED_MS 5000
#define RETRY_S 1 /* for what other nodes may give back at any time */
#define TOLD_MOST ((uint64_t)1 << 53)
#define RUNNING_MOST (1 << 24)

enum { REQUESTS = CLUSTER_LIMIT_REQUESTS, TOKENS = CLUSTER_LIMIT_TOKENS, N_RATES };

/* What is told of this node. */
struct reading {
    uint64_t taken[N_RATES];
    uint32_t running;
    bool busy;
};

/* What another node told, by its place in core->nodes. */
struct told_meter {
    struct reading reading;
    bool heard;  /* since its link is up */
    double held; /* of the limit, while it is lost */
};

struct meter {
    char hash[CLUSTER_SHA_TEXT];
    uint32_t limits[CLUSTER_N_LIMITS]; /* 0: none */
    struct bucket buckets[N_RATES];
    struct reading own, told, known; /* told: last; known: heard of by all that are up */
    uint64_t told_seq;               /* of the message that is under way; 0: none is */
    uint64_t wanted_ms;              /* last */
    bool hasty;                      /* to be told before the next tick */
    bool again;                      /* to be told though nothing changed */
    uint32_t low_before, low;        /* of own.running as it was sent, lowest: between known and
                                        told, since told */
    struct told_meter others[CLUSTER_MAX_NODES];
};

/* ---- Shares ---------------------------------------------------------------------------------- */

static double weight(bool busy)
{
    return busy ? BUSY : 1;
}

static double own_weight(const struct meter *meter)
{
    return weight(meter->own.busy && meter->told.busy && meter->known.busy);
}

/* Of this node and those that are up. */
static double all_weights(const struct cluster_core *core, const struct meter *meter)
{
    double sum = own_weight(meter);
    for (size_t i = 1; i < CLUSTER_MAX_NODES; i++)
        if (core->nodes[i].state == NODE_UP)
            sum += weight(meter->others[i].reading.busy);
    return sum;
}

/* What lost nodes leave of the limit. */
static double left_by_lost(const struct meter *meter)
{
    double left = 1;
    for (size_t i = 1; i < CLUSTER_MAX_NODES; i++)
        left -= meter->others[i].held;
    return fmax(left, 0.001);
}

/* Of a minute, while lost nodes keep their parts; one at least, or nothing would ever pass. */
static double rate_of(const struct meter *meter, int kind)
{
    return meter->limits[kind] > 0 ? fmax(1, left_by_lost(meter) * meter->limits[kind]) : 0;
}

static uint64_t unheard(const struct meter *meter, int kind)
{
    return meter->own.taken[kind] - meter->known.taken[kind];
}

/* What this node may be ahead of the others. */
static double room(const struct cluster_core *core, const struct meter *meter, int kind)
{
    double left = meter->buckets[kind].level + (double)unheard(meter, kind);
    return fmax(1, left * own_weight(meter) / all_weights(core, meter));
}

/* Requests that may run here at once. */
static uint32_t room_to_run(const struct cluster_core *core, const struct meter *meter)
{
    uint32_t limit = meter->limits[CLUSTER_LIMIT_PARALLEL], elsewhere = 0;
    uint64_t lost = 0;
    for (size_t i = 1; i < CLUSTER_MAX_NODES; i++) {
        const struct told_meter *other = &meter->others[i];
        if (core->nodes[i].state == NODE_UP)
            elsewhere += other->reading.running;
        else if (other->held > 0)
            lost += MAX(other->reading.running, (uint32_t)(other->held * limit));
    }
    limit = lost < limit ? limit - (uint32_t)lost : 1;
    uint32_t heard = MIN(meter->known.running, MIN(meter->low_before, meter->low));
    if (elsewhere >= limit)
        return 0;
    double free_here = fmax(0, (double)limit - elsewhere - heard);
    double share = fmax(1, floor(free_here * own_weight(meter) / all_weights(core, meter)));
    return MIN(limit - elsewhere, heard + (uint32_t)share);
}

/* ---- Table ----------------------------------------------------------------------------------- */

static void fill(struct cluster_core *core, struct meter *meter)
{
    for (int kind = 0; kind < N_RATES; kind++)
        bucket_fill(&meter->buckets[kind], rate_of(meter, kind), core->now_ms * 1000000);
}

static uint32_t limit_in(const json_t *value, const char *name)
{
    json_int_t limit = json_integer_value(json_object_get(value, name));
    return (uint32_t)MIN(MAX(limit, 0), (json_int_t)UINT32_MAX);
}

static bool read_limits(const struct cluster_core *core, const char *hash,
                        uint32_t limits[CLUSTER_N_LIMITS])
{
    char key[CLUSTER_ENTRY_KEY_BYTES];
    snprintf(key, sizeof key, "key/%.100s", hash);
    const json_t *value = cluster_core_get(core, key);
    limits[CLUSTER_LIMIT_REQUESTS] = limit_in(value, "requests_per_minute");
    limits[CLUSTER_LIMIT_TOKENS] = limit_in(value, "tokens_per_minute");
    limits[CLUSTER_LIMIT_PARALLEL] = limit_in(value, "parallel");
    return value != NULL;
}

static struct meter *find(const struct cluster_core *core, const char *hash)
{
    for (size_t i = 0; i < core->n_meters; i++)
        if (strcmp(core->meters[i]->hash, hash) == 0)
            return core->meters[i];
    return NULL;
}

static unsigned n_here(const struct cluster_core *core)
{
    unsigned n = 0;
    for (size_t i = 0; i < CLUSTER_MAX_NODES; i++)
        n += node_here(&core->nodes[i]);
    return n;
}

/* Lost nodes hold their parts of a key that comes into use after they were lost, too. */
static void hold_for_lost(const struct cluster_core *core, struct meter *meter)
{
    unsigned n = n_here(core);
    for (size_t i = 1; i < CLUSTER_MAX_NODES; i++)
        n += core->nodes[i].held_until_ms != 0;
    for (size_t i = 1; i < CLUSTER_MAX_NODES; i++)
        if (core->nodes[i].held_until_ms != 0)
            meter->others[i].held = 1.0 / n;
}

/* NULL where memory is out. */
static struct meter *meter_for(struct cluster_core *core, const char *hash,
                               const uint32_t limits[CLUSTER_N_LIMITS])
{
    struct meter *meter = find(core, hash);
    if (meter != NULL)
        return meter;
    if (core->n_meters == core->meters_capacity) {
        size_t capacity = MAX(core->meters_capacity * 2, (size_t)16);
        struct meter **meters = realloc(core->meters, capacity * sizeof(struct meter *));
        if (meters == NULL)
            return NULL;
        core->meters = meters;
        core->meters_capacity = capacity;
    }
    meter = calloc(1, sizeof *meter);
    if (meter == NULL)
        return NULL;
    text_copy(meter->hash, sizeof meter->hash, hash);
    memcpy(meter->limits, limits, sizeof meter->limits);
    meter->wanted_ms = core->now_ms;
    hold_for_lost(core, meter);
    fill(core, meter);
    core->meters[core->n_meters++] = meter;
    return meter;
}

static bool forgettable(struct cluster_core *core, struct meter *meter)
{
    if (core->now_ms - meter->wanted_ms < FORGET_MS || meter->own.running > 0)
        return false;
    for (size_t i = 1; i < CLUSTER_MAX_NODES; i++)
        if (meter->others[i].reading.running > 0 || meter->others[i].reading.busy)
            return false;
    fill(core, meter);
    for (int kind = 0; kind < N_RATES; kind++)
        if (meter->limits[kind] > 0 && meter->buckets[kind].level < rate_of(meter, kind))
            return false;
    return true;
}

void limits_close(struct cluster_core *core)
{
    for (size_t i = 0; i < core->n_meters; i++)
        free(core->meters[i]);
    free(core->meters);
}

/* ---- Telling --------------------------------------------------------------------------------- */

static bool same(const struct reading *a, const struct reading *b)
{
    return a->taken[REQUESTS] == b->taken[REQUESTS] && a->taken[TOKENS] == b->taken[TOKENS] &&
           a->running == b->running && a->busy == b->busy;
}

/* Whether all that are up have answered a message. */
static bool heard_by_all(const struct cluster_core *core, uint64_t seq)
{
    for (size_t i = 1; i < CLUSTER_MAX_NODES; i++)
        if (core->nodes[i].state == NODE_UP && core->nodes[i].usage_heard < seq)
            return false;
    return true;
}

static void note_heard(const struct cluster_core *core, struct meter *meter)
{
    if (meter->told_seq == 0 || !heard_by_all(core, meter->told_seq))
        return;
    meter->known = meter->told;
    meter->low_before = meter->low;
    meter->told_seq = 0;
}

static json_t *meter_json(const struct meter *meter)
{
    const struct reading *own = &meter->own;
    double owed[N_RATES];
    for (int kind = 0; kind < N_RATES; kind++)
        owed[kind] =
            meter->limits[kind] > 0 ? fmax(0, meter->limits[kind] - meter->buckets[kind].level) : 0;
    return json_pack("[s, o, o, o, b, f, f, b]", meter->hash, json_u64(own->taken[REQUESTS]),
                     json_u64(own->taken[TOKENS]), json_u64(own->running), (int)own->busy,
                     owed[REQUESTS], owed[TOKENS], (int)meter->again);
}

/* Tells what changed and can be told now; hasty: only what does not wait for the tick. */
static void tell(struct cluster_core *core, bool hasty)
{
    json_t *list = NULL;
    for (size_t i = 0; i < core->n_meters; i++) {
        struct meter *meter = core->meters[i];
        note_heard(core, meter);
        bool news = meter->again || !same(&meter->own, &meter->known);
        if (meter->told_seq != 0 || !news || (hasty && !meter->hasty))
            continue;
        list = list != NULL ? list : json_array();
        fill(core, meter);
        json_array_append_new(list, meter_json(meter));
        meter->told = meter->own;
        meter->low_before = MIN(meter->low_before, meter->low);
        meter->low = meter->own.running;
        meter->hasty = meter->again = false;
        meter->told_seq = core->usage_seq + 1;
    }
    if (list == NULL)
        return;
    core->usage_seq++;
    core_send_all(core,
                  json_pack("{s:s, s:o, s:o}", "type", "usage", "seq", json_u64(core->usage_seq),
                            "keys", list),
                  NULL);
    for (size_t i = 0; i < core->n_meters; i++) /* where no other node is up */
        note_heard(core, core->meters[i]);
}

/* After own changed. */
static void changed(struct cluster_core *core, struct meter *meter)
{
    bool hasty = meter->own.busy != meter->told.busy;
    for (int kind = 0; kind < N_RATES; kind++)
        hasty |=
            meter->limits[kind] > 0 && 2 * (double)unheard(meter, kind) >= room(core, meter, kind);
    if (meter->limits[CLUSTER_LIMIT_PARALLEL] > 0)
        hasty |= 2 * meter->own.running >= room_to_run(core, meter);
    meter->hasty |= hasty;
    if (meter->hasty)
        tell(core, true);
}

/* ---- Being told ------------------------------------------------------------------------------ */

/* What a node has taken is taken from the bucket here. Where its earlier sum is not known, either
 * it owes what was owed before the link was up, of which this node may know; or one of the two had
 * forgotten the key, so that no more of the sum counts than is owed. */
static void charge(struct meter *meter, const struct told_meter *other, int kind, uint64_t taken,
                   double owed, bool first)
{
    struct bucket *bucket = &meter->buckets[kind];
    if (other->heard && taken >= other->reading.taken[kind])
        bucket->level -= (double)(taken - other->reading.taken[kind]);
    else if (first)
        bucket->level = fmin(bucket->level, meter->limits[kind] - owed);
    else
        bucket->level -= fmin((double)taken, owed);
}

static void take_told(struct cluster_core *core, size_t place, struct message *item)
{
    char hash[CLUSTER_SHA_TEXT];
    uint32_t limits[CLUSTER_N_LIMITS];
    struct reading told = {.busy = json_is_true(json_array_get(item->json, 4))};
    double owed[N_RATES];
    item_text(item, 0, hash, sizeof hash);
    told.taken[REQUESTS] = item_u64(item, 1, TOLD_MOST);
    told.taken[TOKENS] = item_u64(item, 2, TOLD_MOST);
    told.running = (uint32_t)item_u64(item, 3, RUNNING_MOST);
    owed[REQUESTS] = item_real(item, 5);
    owed[TOKENS] = item_real(item, 6);
    bool first = json_is_true(json_array_get(item->json, 7));
    if (item->failed || !read_limits(core, hash, limits)) /* it tells again, with the next change */
        return;
    struct meter *meter = meter_for(core, hash, limits);
    if (meter == NULL)
        return;
    struct told_meter *other = &meter->others[place];
    fill(core, meter);
    for (int kind = 0; kind < N_RATES; kind++)
        charge(meter, other, kind, told.taken[kind], owed[kind], first);
    other->reading = told;
    other->heard = true;
    if (told.busy)
        meter->wanted_ms = MAX(meter->wanted_ms, core->now_ms - MIN(core->now_ms, DEMAND_MS));
}

static void read_keys(struct cluster_core *core, const struct node *from, struct message *message)
{
    size_t n;
    const json_t *list = message_list(message, "keys", CLUSTER_MAX_MERGED, &n);
    for (size_t i = 0; i < n && !message->failed; i++) {
        struct message item = message_item(list, i);
        take_told(core, (size_t)(from - core->nodes), &item);
        message_take(message, &item);
    }
}

/* What this node has not told of the keys in a message. */
static json_t *news_of(const struct cluster_core *core, const struct message *message)
{
    json_t *news = json_array();
    const json_t *item;
    size_t i;
    json_array_foreach(message_any(message, "keys"), i, item)
    {
        struct meter *meter = find(core, json_string_value(json_array_get(item, 0)));
        if (meter == NULL || same(&meter->own, &meter->told))
            continue;
        json_array_append_new(news, meter_json(meter));
        meter->low = MIN(meter->low, meter->own.running);
    }
    return news;
}

void on_usage(struct cluster_core *core, struct node *from, struct message *message)
{
    uint64_t seq = message_u64(message, "seq", INT64_MAX);
    read_keys(core, from, message);
    if (!message->failed)
        core_send(core, from,
                  json_pack("{s:s, s:o, s:o}", "type", "usage_heard", "seq", json_u64(seq), "keys",
                            news_of(core, message)));
}

void on_usage_heard(struct cluster_core *core, struct node *from, struct message *message)
{
    uint64_t seq = message_u64(message, "seq", INT64_MAX);
    read_keys(core, from, message);
    if (message->failed || seq > core->usage_seq)
        return;
    from->usage_heard = MAX(from->usage_heard, seq);
    for (size_t i = 0; i < core->n_meters; i++) {
        struct meter *meter = core->meters[i];
        bool waited = meter->told_seq != 0;
        note_heard(core, meter);
        if (waited && meter->told_seq == 0 && !same(&meter->own, &meter->known))
            changed(core, meter);
    }
}

/* ---- Nodes that come and go ------------------------------------------------------------------ */

void limits_node_up(struct cluster_core *core, struct node *node)
{
    size_t place = (size_t)(node - core->nodes);
    node->usage_heard = core->usage_seq;
    node->held_until_ms = 0;
    for (size_t i = 0; i < core->n_meters; i++) {
        struct meter *meter = core->meters[i];
        fill(core, meter);
        meter->others[place] = (struct told_meter){.held = 0};
        meter->low_before = MIN(meter->low_before, meter->low);
        meter->known.busy = meter->told.busy = false;
        meter->told_seq = 0;
        meter->hasty = meter->again = true;
    }
    tell(core, true);
}

/* The part of the limit that the node had stays with it. What this node took that it has not heard
 * of is paid from what the others have. */
void limits_node_lost(struct cluster_core *core, struct node *node, bool silent)
{
    size_t place = (size_t)(node - core->nodes);
    node->held_until_ms = core->now_ms + (silent ? HELD_SILENT_MS : HELD_CLOSED_MS);
    for (size_t i = 0; i < core->n_meters; i++) {
        struct meter *meter = core->meters[i];
        struct told_meter *other = &meter->others[place];
        fill(core, meter);
        double before = left_by_lost(meter);
        other->held = before / (n_here(core) + 1);
        double stays = left_by_lost(meter) / before;
        for (int kind = 0; kind < N_RATES; kind++) {
            double ahead = (double)unheard(meter, kind);
            struct bucket *bucket = &meter->buckets[kind];
            bucket->level = fmin(bucket->level, (bucket->level + ahead) * stays - ahead);
        }
    }
}

void limits_node_gone(struct cluster_core *core, struct node *node)
{
    size_t place = (size_t)(node - core->nodes);
    node->held_until_ms = 0;
    for (size_t i = 0; i < core->n_meters; i++) {
        fill(core, core->meters[i]);
        core->meters[i]->others[place] = (struct told_meter){.held = 0};
    }
}

void limits_tick(struct cluster_core *core)
{
    NODE_EACH(core, node)
    if (node->held_until_ms != 0 && core->now_ms >= node->held_until_ms)
        limits_node_gone(core, node);
    for (size_t i = core->n_meters; i-- > 0;) {
        struct meter *meter = core->meters[i];
        if (core->now_ms - meter->wanted_ms > DEMAND_MS)
            meter->own.busy = false;
        if (!forgettable(core, meter))
            continue;
        core->meters[i] = core->meters[--core->n_meters];
        free(meter);
    }
    tell(core, false);
}

/* ---- Requests -------------------------------------------------------------------------------- */

static bool refuse(struct cluster_allowance *out, enum cluster_limit by, double wait_s)
{
    out->refused_by = by;
    out->wait_s = wait_s;
    return false;
}

static bool allow(const struct cluster_core *core, const struct meter *meter,
                  struct cluster_allowance *out)
{
    for (int kind = 0; kind < N_RATES; kind++) {
        const struct bucket *bucket = &meter->buckets[kind];
        double rate = rate_of(meter, kind);
        if (meter->limits[kind] == 0)
            continue;
        if (bucket->level < 1)
            return refuse(out, (enum cluster_limit)kind, bucket_wait_s(bucket, rate, 1));
        if ((double)unheard(meter, kind) + 1 > room(core, meter, kind))
            return refuse(out, (enum cluster_limit)kind, RETRY_S);
    }
    bool limited = meter->limits[CLUSTER_LIMIT_PARALLEL] > 0;
    if (limited && meter->own.running >= room_to_run(core, meter))
        return refuse(out, CLUSTER_LIMIT_PARALLEL, RETRY_S);
    return true;
}

bool cluster_core_take(struct cluster_core *core, const char *hash, struct cluster_allowance *out)
{
    uint32_t limits[CLUSTER_N_LIMITS];
    core_begin(core);
    if (strlen(hash) >= CLUSTER_SHA_TEXT || !read_limits(core, hash, limits))
        return false;
    *out = (struct cluster_allowance){.allowed = true};
    if (limits[REQUESTS] == 0 && limits[TOKENS] == 0 && limits[CLUSTER_LIMIT_PARALLEL] == 0)
        return true;
    struct meter *meter = meter_for(core, hash, limits);
    if (meter == NULL)
        return false;
    fill(core, meter);
    out->allowed = allow(core, meter, out);
    if (out->allowed) {
        meter->own.taken[REQUESTS]++;
        meter->own.running++;
        meter->buckets[REQUESTS].level--;
    }
    meter->own.busy = true;
    meter->wanted_ms = core->now_ms;
    for (int kind = 0; kind < N_RATES; kind++)
        out->left[kind] = fmax(0, meter->buckets[kind].level);
    changed(core, meter);
    core_end(core);
    return true;
}

void cluster_core_give_back(struct cluster_core *core, const char *hash, uint64_t n_tokens)
{
    core_begin(core);
    struct meter *meter = find(core, hash);
    if (meter == NULL || meter->own.running == 0)
        return;
    fill(core, meter);
    meter->own.running--;
    meter->own.taken[TOKENS] += n_tokens;
    meter->buckets[TOKENS].level -= (double)n_tokens;
    changed(core, meter);
    core_end(core);
}
