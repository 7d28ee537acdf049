/* The desired state: a small document that all nodes agree on.
 *
 *   state         {entries: [[key, value or null, time, node]],    those that changed, at once; and
 *                  ask: [bucket]}                                  answers to the below
 *   state_digest  {buckets: [digest]}                              where digests of beats differ
 *
 * Each entry carries the time of a hybrid logical clock and the node that set it. Of two versions
 * the later one stays, by time and then by node; but an API key that is revoked in one of them is
 * revoked in both. What was removed stays as an entry without a value, for RETAIN_MS. So merging is
 * commutative, associative and idempotent, and all nodes come to the same document in whatever
 * order they hear of changes.
 *
 * A change goes to all links at once, and each node passes on what was new to it. Beats carry a
 * digest; where two differ, one side sends a digest for each bucket of keys, and the other answers
 * with its entries of those that differ, and asks for the first one's.
 *
 * A node that was away may have missed changes. So what it saved begins no model before another
 * node has the same document, or none was found for STATE_ALONE_MS.
 */
#include "cluster/core_internal.h"

#define TIME_MOST ((uint64_t)1 << 59) /* in the year 2248 */
#define RETAIN_MS ((uint64_t)30 * 86400 * 1000)
#define SAVED_VERSION 1

/* ---- The document ---------------------------------------------------------------------------- */

static void entry_free(struct entry *entry)
{
    json_decref(entry->value);
    free(entry);
}

void state_close(struct state *state)
{
    for (size_t i = 0; i < state->n; i++)
        entry_free(state->entries[i]);
    free(state->entries);
    memset(state, 0, sizeof *state);
}

static uint64_t entry_hash(const struct entry *entry)
{
    uint64_t hash = hash_mix(hash_text(entry->key) ^ (entry->revoked ? 1 : 0));
    hash = hash_mix(hash ^ entry->time);
    return hash_mix(hash_mix(hash ^ entry->node.high) ^ entry->node.low) >> 1;
}

static size_t bucket_of(const char *key)
{
    return hash_mix(hash_text(key)) % STATE_BUCKETS;
}

uint64_t state_digest(const struct state *state)
{
    uint64_t digest = 0;
    for (size_t i = 0; i < STATE_BUCKETS; i++)
        digest ^= state->buckets[i];
    return digest;
}

/* Where key is, or would be. */
static size_t place_of(const struct state *state, const char *key)
{
    size_t begin = 0, end = state->n;
    while (begin < end) {
        size_t middle = begin + (end - begin) / 2;
        if (strcmp(state->entries[middle]->key, key) < 0)
            begin = middle + 1;
        else
            end = middle;
    }
    return begin;
}

struct entry *state_find(const struct state *state, const char *key)
{
    size_t place = place_of(state, key);
    return place < state->n && strcmp(state->entries[place]->key, key) == 0 ? state->entries[place]
                                                                            : NULL;
}

static void state_remove(struct state *state, size_t place)
{
    struct entry *entry = state->entries[place];
    state->buckets[bucket_of(entry->key)] ^= entry_hash(entry);
    entry_free(entry);
    memmove(state->entries + place, state->entries + place + 1,
            (--state->n - place) * sizeof *state->entries);
}

/* The oldest removed entry makes room. */
static bool state_make_room(struct state *state)
{
    size_t oldest = state->n;
    for (size_t i = 0; i < state->n; i++)
        if (state->entries[i]->value == NULL && !state->entries[i]->revoked &&
            (oldest == state->n || state->entries[i]->time < state->entries[oldest]->time))
            oldest = i;
    if (oldest == state->n)
        return false;
    state_remove(state, oldest);
    return true;
}

static struct entry *state_insert(struct state *state, const char *key)
{
    if (state->n >= CLUSTER_MAX_MERGED && !state_make_room(state)) {
        state->full = true;
        return NULL;
    }
    if (state->n == state->capacity) {
        size_t capacity = MAX(state->capacity * 2, (size_t)16);
        struct entry **entries = realloc(state->entries, capacity * sizeof *entries);
        if (entries == NULL)
            return NULL;
        state->entries = entries;
        state->capacity = capacity;
    }
    struct entry *entry = calloc(1, sizeof *entry);
    if (entry == NULL)
        return NULL;
    text_copy(entry->key, sizeof entry->key, key);
    size_t place = place_of(state, key);
    memmove(state->entries + place + 1, state->entries + place,
            (state->n - place) * sizeof *state->entries);
    state->entries[place] = entry;
    state->n++;
    return entry;
}

static bool is_key(const char *key)
{
    return strncmp(key, "key/", 4) == 0;
}

/* Whether a is what stays of two versions of one entry. */
static bool entry_wins(const struct entry *a, const struct entry *b)
{
    if (a->revoked != b->revoked)
        return a->revoked;
    if (a->time != b->time)
        return a->time > b->time;
    return cluster_id_compare(a->node, b->node) > 0;
}

/* Takes over value. True: the document changed. */
static bool state_merge(struct state *state, struct entry *incoming)
{
    incoming->revoked =
        is_key(incoming->key) &&
        (incoming->value == NULL || json_is_true(json_object_get(incoming->value, "revoked")));
    state->time = MAX(state->time, incoming->time);
    struct entry *entry = state_find(state, incoming->key);
    if (entry != NULL && !entry_wins(incoming, entry)) {
        json_decref(incoming->value);
        return false;
    }
    uint64_t *bucket = &state->buckets[bucket_of(incoming->key)];
    if (entry != NULL)
        *bucket ^= entry_hash(entry);
    else if ((entry = state_insert(state, incoming->key)) == NULL) {
        json_decref(incoming->value);
        return false;
    }
    json_decref(entry->value);
    *entry = *incoming;
    *bucket ^= entry_hash(entry);
    return true;
}

/* ---- Commands -------------------------------------------------------------------------------- */

const json_t *cluster_core_get(const struct cluster_core *core, const char *key)
{
    const struct entry *entry = state_find(&core->state, key);
    return entry != NULL ? entry->value : NULL;
}

void cluster_core_each(const struct cluster_core *core, cluster_entry *each, void *context)
{
    for (size_t i = 0; i < core->state.n; i++) {
        const struct entry *entry = core->state.entries[i];
        if (entry->value != NULL && !each(context, entry->key, entry->value))
            return;
    }
}

static const struct entry *find_key(const struct cluster_core *core, const char *hash)
{
    char key[CLUSTER_ENTRY_KEY_BYTES];
    if ((size_t)snprintf(key, sizeof key, "key/%s", hash) >= sizeof key)
        return NULL;
    return state_find(&core->state, key);
}

bool cluster_core_key_known(const struct cluster_core *core, const char *hash)
{
    return find_key(core, hash) != NULL;
}

bool cluster_core_key_revoked(const struct cluster_core *core, const char *hash)
{
    const struct entry *entry = find_key(core, hash);
    return entry != NULL && entry->revoked;
}

/* What an entry that changed means for the rest. */
static void entry_changed(struct cluster_core *core, const struct entry *changed)
{
    /* What follows may change the document, so nothing of it is borrowed. */
    char key[CLUSTER_ENTRY_KEY_BYTES];
    text_copy(key, sizeof key, changed->key);
    json_t *value = json_incref(changed->value);
    core->saved_dirty = true;
    struct cluster_id id;
    if (core->env.changed != NULL && strncmp(key, "cluster/", 8) != 0)
        core->env.changed(core->env.context, key, value);
    if (strncmp(key, "removed/", 8) == 0 && cluster_id_parse(&id, key + 8))
        members_removed(core, id, value);
    else if (strncmp(key, "model/", 6) == 0)
        instance_desired(core, key + 6, value);
    else if (strcmp(key, "cluster/key") == 0 && value != NULL)
        keys_changed(core, value);
    json_decref(value);
}

static json_t *entry_json(const struct entry *entry)
{
    return json_pack("[s, o, o, o]", entry->key,
                     entry->value != NULL ? json_incref(entry->value) : json_null(),
                     json_u64(entry->time), json_id(entry->node));
}

static json_t *state_message(json_t *entries, json_t *ask)
{
    json_t *message = json_pack("{s:s, s:o}", "type", "state", "entries", entries);
    if (ask != NULL)
        json_object_set_new(message, "ask", ask);
    return message;
}

/* Keys are text that a terminal may show. */
static bool key_valid(const char *key)
{
    size_t length = strlen(key);
    for (size_t i = 0; i < length; i++)
        if ((unsigned char)key[i] <= ' ' || key[i] == 0x7f)
            return false;
    return length > 0 && length < CLUSTER_ENTRY_KEY_BYTES && utf8_valid(key, length);
}

static bool value_valid(const json_t *value)
{
    return json_is_object(value) &&
           json_dumpb(value, NULL, 0, JSON_COMPACT) <= CLUSTER_ENTRY_VALUE_BYTES;
}

enum status cluster_core_put(struct cluster_core *core, const char *key, const json_t *value,
                             struct error *error)
{
    core_begin(core);
    struct state *state = &core->state;
    if (!key_valid(key) || (value != NULL && !value_valid(value)))
        return error_set(error, STATUS_INVALID, "an entry's key has up to %d bytes, its value %d",
                         CLUSTER_ENTRY_KEY_BYTES - 1, CLUSTER_ENTRY_VALUE_BYTES);
    const struct entry *before = state_find(state, key);
    bool revokes = value == NULL || json_is_true(json_object_get(value, "revoked"));
    if (before != NULL && before->revoked && !revokes)
        return error_set(error, STATUS_INVALID, "the key is revoked and stays so; make another");
    if (before == NULL && value == NULL)
        return STATUS_OK;
    if (before == NULL && state->n >= CLUSTER_MAX_ENTRIES)
        return error_set(error, STATUS_LIMIT,
                         "the cluster keeps %d keys, aliases, models and nodes at most",
                         CLUSTER_MAX_ENTRIES);
    struct entry entry = {.time = core->env.wall_ms(core->env.context) << 16,
                          .node = core->nodes[0].id};
    entry.time = MAX(entry.time, state->time + 1);
    text_copy(entry.key, sizeof entry.key, key);
    entry.value = value != NULL ? json_deep_copy(value) : NULL;
    if (!state_merge(state, &entry))
        return error_set(error, STATUS_MEMORY, "the entry could not be kept");
    const struct entry *kept = state_find(state, key);
    json_t *entries = json_array();
    json_array_append_new(entries, entry_json(kept));
    core_send_all(core, state_message(entries, NULL), NULL);
    entry_changed(core, kept);
    core_end(core);
    return STATUS_OK;
}

/* ---- Messages -------------------------------------------------------------------------------- */

static bool read_entry(struct message *item, struct entry *out)
{
    memset(out, 0, sizeof *out);
    item_text(item, 0, out->key, sizeof out->key);
    json_t *value = json_array_get(item->json, 1);
    out->time = item_u64(item, 2, TIME_MOST);
    out->node = item_id(item, 3);
    if (!item->failed && (!key_valid(out->key) || (!json_is_null(value) && !value_valid(value))))
        message_fail(item, "an entry of the desired state is wrong");
    if (!item->failed && json_is_object(value))
        out->value = json_incref(value);
    return !item->failed;
}

static void send_buckets(struct cluster_core *core, struct node *to, uint64_t wanted, json_t *ask)
{
    json_t *entries = json_array();
    for (size_t i = 0; i < core->state.n; i++) {
        const struct entry *entry = core->state.entries[i];
        if ((wanted >> bucket_of(entry->key) & 1) == 0)
            continue;
        json_array_append_new(entries, entry_json(entry));
        if (json_array_size(entries) == STATE_BATCH) {
            core_send(core, to, state_message(entries, NULL));
            entries = json_array();
        }
    }
    core_send(core, to, state_message(entries, ask));
}

void on_state(struct cluster_core *core, struct node *from, struct message *message)
{
    size_t n, n_ask;
    const json_t *list = message_list(message, "entries", STATE_BATCH, &n);
    const json_t *asked = message_list(message, "ask", STATE_BUCKETS, &n_ask);
    uint64_t wanted = 0;
    struct message ask = message_over(asked);
    for (size_t i = 0; i < n_ask; i++)
        wanted |= (uint64_t)1 << item_u64(&ask, i, STATE_BUCKETS - 1);
    message_take(message, &ask);
    json_t *news = json_array();
    for (size_t i = 0; i < n && !message->failed; i++) {
        struct message item = message_item(list, i);
        struct entry entry;
        if (read_entry(&item, &entry) && state_merge(&core->state, &entry))
            json_array_append_new(news, json_string(entry.key));
        message_take(message, &item);
    }
    size_t n_news = json_array_size(news);
    if (n_news > 0) {
        json_t *entries = json_array();
        for (size_t i = 0; i < n_news; i++) {
            const char *key = json_string_value(json_array_get(news, i));
            const struct entry *entry = state_find(&core->state, key);
            if (entry != NULL)
                json_array_append_new(entries, entry_json(entry));
        }
        core_send_all(core, state_message(entries, NULL), from);
    }
    for (size_t i = 0; i < n_news; i++) {
        const struct entry *entry =
            state_find(&core->state, json_string_value(json_array_get(news, i)));
        if (entry != NULL)
            entry_changed(core, entry);
    }
    json_decref(news);
    if (wanted != 0 && !message->failed && node_here(from))
        send_buckets(core, from, wanted, NULL);
}

void state_compare(struct cluster_core *core, struct node *node)
{
    if (node->digest == state_digest(&core->state)) {
        core->believed_ms = 0;
        return;
    }
    if (core->now_ms - node->asked_ms < STATE_ASK_MS)
        return;
    node->asked_ms = core->now_ms;
    json_t *buckets = json_array();
    for (size_t i = 0; i < STATE_BUCKETS; i++)
        json_array_append_new(buckets, json_u64(core->state.buckets[i]));
    core_send(core, node, json_pack("{s:s, s:o}", "type", "state_digest", "buckets", buckets));
}

void on_state_digest(struct cluster_core *core, struct node *from, struct message *message)
{
    size_t n;
    const json_t *list = message_list(message, "buckets", STATE_BUCKETS, &n);
    if (n != STATE_BUCKETS)
        message_fail(message, "\"buckets\" has %zu digests", n);
    struct message digests = message_over(list);
    uint64_t wanted = 0;
    json_t *ask = json_array();
    for (size_t i = 0; i < n; i++)
        if (item_u64(&digests, i, INT64_MAX) != core->state.buckets[i]) {
            wanted |= (uint64_t)1 << i;
            json_array_append_new(ask, json_u64(i));
        }
    message_take(message, &digests);
    if (wanted != 0 && !message->failed)
        send_buckets(core, from, wanted, ask);
    else
        json_decref(ask);
}

/* ---- What outlives the process --------------------------------------------------------------- */

/* {version, keys: [[id, secret]], entries: [...], nodes: [[id, name, [address]]]}; keys[0] is the
 * one wanted. */
json_t *state_saved(const struct cluster_core *core)
{
    json_t *entries = json_array(), *keys = json_array(), *nodes = json_array();
    uint64_t wall_ms = core->env.wall_ms(core->env.context);
    for (size_t i = 0; i < core->state.n; i++) {
        const struct entry *entry = core->state.entries[i];
        bool old =
            entry->value == NULL && !entry->revoked && (entry->time >> 16) + RETAIN_MS < wall_ms;
        if (!old)
            json_array_append_new(entries, entry_json(entry));
    }
    for (uint32_t i = 0; i < core->n_keys; i++)
        json_array_append_new(keys, json_pack("[s, s]", core->keys[i].id, core->keys[i].secret));
    for (size_t i = 1; i < CLUSTER_MAX_NODES; i++) {
        const struct node *node = &core->nodes[i];
        if (node->state == NODE_NONE)
            continue;
        json_t *addresses = json_array();
        for (uint32_t a = 0; a < node->n_addresses; a++)
            json_array_append_new(addresses, json_string(node->addresses[a]));
        json_array_append_new(nodes,
                              json_pack("[o, s, o]", json_id(node->id), node->name, addresses));
    }
    return json_pack("{s:i, s:o, s:o, s:o}", "version", SAVED_VERSION, "keys", keys, "entries",
                     entries, "nodes", nodes);
}

static void read_saved_node(struct cluster_core *core, struct message *item)
{
    struct cluster_id id = item_id(item, 0);
    char name[CLUSTER_NAME_BYTES], address[CLUSTER_ADDRESS_BYTES];
    item_text(item, 1, name, sizeof name);
    struct message addresses = message_over(json_array_get(item->json, 2));
    if (item->failed || cluster_id_equal(id, core->nodes[0].id))
        return;
    members_add(core, id, name, "");
    for (size_t i = MIN(json_array_size(addresses.json), (size_t)CLUSTER_MAX_ADDRESSES); i-- > 0;) {
        item_text(&addresses, i, address, sizeof address);
        if (!addresses.failed)
            members_add(core, id, name, address);
    }
    message_take(item, &addresses);
}

bool state_read_saved(struct cluster_core *core, const json_t *saved, struct error *error)
{
    struct message message = message_over(saved);
    size_t n_keys, n_entries, n_nodes;
    uint64_t version = message_u64(&message, "version", UINT32_MAX);
    const json_t *keys = message_list(&message, "keys", CLUSTER_MAX_KEYS, &n_keys);
    const json_t *entries = message_list(&message, "entries", CLUSTER_MAX_MERGED, &n_entries);
    const json_t *nodes = message_list(&message, "nodes", CLUSTER_MAX_NODES, &n_nodes);
    if (!message.failed && version != SAVED_VERSION)
        message_fail(&message, "it has version %" PRIu64, version);
    for (size_t i = 0; i < n_keys && !message.failed; i++) {
        struct message item = message_item(keys, i);
        item_text(&item, 0, core->keys[i].id, sizeof core->keys[i].id);
        item_text(&item, 1, core->keys[i].secret, sizeof core->keys[i].secret);
        message_take(&message, &item);
        core->n_keys = (uint32_t)i + 1;
    }
    for (size_t i = 0; i < n_entries && !message.failed; i++) {
        struct message item = message_item(entries, i);
        struct entry entry;
        if (read_entry(&item, &entry))
            state_merge(&core->state, &entry);
        message_take(&message, &item);
    }
    for (size_t i = 0; i < n_nodes && !message.failed; i++) {
        struct message item = message_item(nodes, i);
        read_saved_node(core, &item);
        message_take(&message, &item);
    }
    char key[CLUSTER_ENTRY_KEY_BYTES] = "removed/";
    cluster_id_text(key + strlen(key), core->nodes[0].id);
    core->removed = cluster_core_get(core, key) != NULL;
    core->believed_ms = n_nodes > 0 ? core->now_ms + STATE_ALONE_MS : 0;
    if (message.failed)
        error_set(error, STATUS_INVALID, "the saved state of the cluster cannot be read: %s",
                  message.fault);
    return !message.failed;
}
