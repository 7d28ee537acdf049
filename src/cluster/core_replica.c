/* Replicas: a model that fits one machine is opened by the server of each node that holds it, for
 * itself and without an instance. Whoever takes a request may have another one answer it.
 *
 *   replicas  {list: [[sha, waiting, [prefix]]]}    with a beat, where it changed
 *
 * waiting: requests that are answered there or wait for it. A prefix is a number of 63 bits that
 * stands for the first 64 * 2^k tokens of a prompt that was computed there lately, mixed with the
 * cluster's key; no text and no token can be read from it.
 *
 * A request goes where it costs least, counted in tokens to be computed before its first one:
 *
 *     tokens of the prompt after the longest prefix that is known there + waiting * WAIT_TOKENS
 *
 * So a cached prefix counts until the queue there is longer by one request for each WAIT_TOKENS
 * tokens of it. Another node must be better by AWAY_TOKENS, because the way there costs, too. What
 * is sent to a node counts as waiting there until it tells anew, so that not all go there at once.
 *
 * A replica that is lost, or does not have the model open any more, is no loss: the request goes on
 * with the tokens that it has at this node's own one, or else as any request of a model does.
 */
#include "cluster/core_internal.h"

#define WAIT_TOKENS 512
#define AWAY_TOKENS 64

uint32_t cluster_core_prefixes(const struct cluster_core *core, const char *sha,
                               const int32_t *tokens, size_t n_tokens,
                               uint64_t out[CLUSTER_PREFIX_LEVELS])
{
    uint64_t hash = hash_mix(hash_text(core->keys[0].secret) ^ hash_text(sha));
    uint32_t n = 0;
    size_t border = CLUSTER_PREFIX_TOKENS;
    for (size_t i = 0; i < n_tokens && n < CLUSTER_PREFIX_LEVELS; i++) {
        hash = hash_mix(hash ^ (uint32_t)tokens[i]);
        if (i + 1 != border)
            continue;
        out[n++] = hash >> 1;
        border *= 2;
    }
    return n;
}

static struct replica *replica_of(struct node *node, const char *sha)
{
    for (uint32_t i = 0; i < node->n_replicas; i++)
        if (strcmp(node->replicas[i].sha, sha) == 0)
            return &node->replicas[i];
    return NULL;
}

bool replica_here(struct cluster_core *core, const char *sha)
{
    return replica_of(&core->nodes[0], sha) != NULL;
}

/* The latest first. */
static void note_prefix(struct replica *replica, uint64_t prefix)
{
    uint32_t at = 0;
    while (at < replica->n_prefixes && replica->prefixes[at] != prefix)
        at++;
    if (at == replica->n_prefixes && replica->n_prefixes < CLUSTER_MAX_PREFIXES)
        replica->n_prefixes++;
    at = MIN(at, (uint32_t)CLUSTER_MAX_PREFIXES - 1);
    memmove(replica->prefixes + 1, replica->prefixes, at * sizeof replica->prefixes[0]);
    replica->prefixes[0] = prefix;
}

void cluster_core_note_prefixes(struct cluster_core *core, const char *sha,
                                const uint64_t *prefixes, uint32_t n)
{
    struct replica *replica = replica_of(&core->nodes[0], sha);
    for (uint32_t i = 0; replica != NULL && i < n; i++)
        note_prefix(replica, prefixes[i]);
    core->replicas_dirty = true;
}

void cluster_core_set_replicas(struct cluster_core *core, const struct cluster_replica *list,
                               size_t n)
{
    struct node *self = &core->nodes[0];
    struct replica *before = malloc(sizeof self->replicas);
    uint32_t n_before = self->n_replicas;
    if (before == NULL)
        return;
    memcpy(before, self->replicas, sizeof self->replicas);
    self->n_replicas = (uint32_t)MIN(n, (size_t)CLUSTER_MAX_REPLICAS);
    core->replicas_dirty |= self->n_replicas != n_before;
    for (uint32_t i = 0; i < self->n_replicas; i++) {
        struct replica *replica = &self->replicas[i];
        *replica = (struct replica){.waiting = list[i].waiting};
        text_copy(replica->sha, sizeof replica->sha, list[i].sha);
        uint32_t k = 0;
        while (k < n_before && strcmp(before[k].sha, replica->sha) != 0)
            k++;
        core->replicas_dirty |= k == n_before || before[k].waiting != replica->waiting;
        if (k == n_before)
            continue;
        replica->n_prefixes = before[k].n_prefixes;
        memcpy(replica->prefixes, before[k].prefixes, sizeof replica->prefixes);
    }
    free(before);
}

/* Tokens of the prompt that would have to be computed first. */
static uint64_t cost_at(const struct replica *replica, const uint64_t *prefixes, uint32_t n,
                        size_t n_tokens)
{
    size_t cached = 0;
    for (uint32_t level = 0; level < n; level++)
        for (uint32_t i = 0; i < replica->n_prefixes; i++)
            if (replica->prefixes[i] == prefixes[level])
                cached = (size_t)CLUSTER_PREFIX_TOKENS << level;
    return n_tokens - MIN(cached, n_tokens) + (uint64_t)replica->waiting * WAIT_TOKENS;
}

enum cluster_route cluster_core_replica(struct cluster_core *core, const char *sha,
                                        const uint64_t *prefixes, uint32_t n, size_t n_tokens,
                                        struct cluster_id *out)
{
    struct replica *best = replica_of(&core->nodes[0], sha);
    enum cluster_route way = best != NULL ? CLUSTER_HERE : CLUSTER_NOWHERE;
    uint64_t least = UINT64_MAX;
    if (best != NULL) {
        least = cost_at(best, prefixes, n, n_tokens);
        least = least > AWAY_TOKENS ? least - AWAY_TOKENS : 0;
    }
    NODE_EACH(core, node)
    {
        struct replica *replica = node->state == NODE_UP ? replica_of(node, sha) : NULL;
        uint64_t cost = replica != NULL ? cost_at(replica, prefixes, n, n_tokens) : UINT64_MAX;
        if (cost >= least)
            continue;
        least = cost;
        best = replica;
        way = CLUSTER_THERE;
        *out = node->id;
    }
    if (way == CLUSTER_NOWHERE)
        return way;
    best->waiting += best->waiting < INT32_MAX;
    for (uint32_t i = 0; i < n; i++) /* they will be there */
        note_prefix(best, prefixes[i]);
    core->replicas_dirty |= way == CLUSTER_HERE;
    return way;
}

void replicas_tell(struct cluster_core *core, bool all)
{
    const struct node *self = &core->nodes[0];
    if (!core->replicas_dirty && !all)
        return;
    core->replicas_dirty = false;
    json_t *list = json_array();
    for (uint32_t i = 0; i < self->n_replicas; i++) {
        const struct replica *replica = &self->replicas[i];
        json_t *prefixes = json_array();
        for (uint32_t k = 0; k < replica->n_prefixes; k++)
            json_array_append_new(prefixes, json_u64(replica->prefixes[k]));
        json_array_append_new(
            list, json_pack("[s, o, o]", replica->sha, json_u64(replica->waiting), prefixes));
    }
    core_send_all(core, json_pack("{s:s, s:o}", "type", "replicas", "list", list), NULL);
}

static void read_replica(struct message *item, struct replica *out)
{
    *out = (struct replica){.waiting = 0};
    item_text(item, 0, out->sha, sizeof out->sha);
    out->waiting = (uint32_t)item_u64(item, 1, INT32_MAX);
    const json_t *list = json_array_get(item->json, 2);
    size_t n = json_array_size(list);
    if (!json_is_array(list) || n > CLUSTER_MAX_PREFIXES)
        message_fail(item, "its prefixes are missing or too many");
    struct message prefixes = message_over(list);
    for (size_t i = 0; i < n && !item->failed; i++)
        out->prefixes[i] = item_u64(&prefixes, i, INT64_MAX);
    message_take(item, &prefixes);
    out->n_prefixes = item->failed ? 0 : (uint32_t)n;
}

void on_replicas(struct cluster_core *core, struct node *from, struct message *message)
{
    size_t n;
    const json_t *list = message_list(message, "list", CLUSTER_MAX_REPLICAS, &n);
    (void)core;
    from->n_replicas = 0;
    for (size_t i = 0; i < n && !message->failed; i++) {
        struct message item = message_item(list, i);
        read_replica(&item, &from->replicas[i]);
        message_take(message, &item);
    }
    from->n_replicas = message->failed ? 0 : (uint32_t)n;
}
