/* The cluster's key, and how it changes without anyone being locked out.
 *
 * A new key is an entry of the desired state, so it reaches each node over links that the old key
 * made. Each node then accepts both, tells in its facts which it has, and asks for the new one when
 * it dials a node that has it. Once all nodes that it knows have the new key, also those that are
 * away now, a node accepts the old one no more. A node that will never come back holds this up
 * until it is removed. Meanwhile the old key serves known nodes only (key_allows in
 * core_members.c).
 */
#include "cluster/core_internal.h"

bool keys_hold(const struct cluster_core *core, const char *id)
{
    for (uint32_t i = 0; i < core->n_keys; i++)
        if (strcmp(core->keys[i].id, id) == 0)
            return true;
    return false;
}

static bool node_holds(const struct node *node, const char *id)
{
    for (uint32_t i = 0; i < node->n_keys; i++)
        if (strcmp(node->keys[i], id) == 0)
            return true;
    return false;
}

/* The key to dial a node with: the wanted one where the node has it, else the oldest. Where that
 * failed the next in turn, for what the node has may have changed while it was away. */
const char *keys_for(const struct cluster_core *core, const struct node *node, uint32_t failures)
{
    uint32_t first = node_holds(node, core->keys[0].id) ? 0 : core->n_keys - 1;
    return core->keys[(first + failures) % core->n_keys].id;
}

static void tell(struct cluster_core *core)
{
    core->facts_dirty = core->saved_dirty = true;
    core->env.keys(core->env.context, core->keys, core->n_keys);
}

void keys_changed(struct cluster_core *core, const json_t *value)
{
    struct cluster_key key = {.id = ""};
    struct message message = message_over(value);
    message_text(&message, "id", key.id, sizeof key.id);
    message_text(&message, "secret", key.secret, sizeof key.secret);
    if (message.failed || key.id[0] == 0) {
        core_log(core, "a new key of the cluster cannot be read: %s", message.fault);
        return;
    }
    if (strcmp(core->keys[0].id, key.id) == 0)
        return;
    uint32_t at = 0;
    while (at < core->n_keys && strcmp(core->keys[at].id, key.id) != 0)
        at++;
    if (at == core->n_keys) { /* where there are too many, the one before the oldest goes */
        if (core->n_keys < CLUSTER_MAX_KEYS)
            core->n_keys++;
        else
            core->keys[CLUSTER_MAX_KEYS - 2] = core->keys[CLUSTER_MAX_KEYS - 1];
        at = core->n_keys - 1;
    }
    memmove(core->keys + 1, core->keys, at * sizeof core->keys[0]);
    core->keys[0] = key;
    core_log(core, "the cluster's key changes to %s", key.id);
    tell(core);
}

void keys_tick(struct cluster_core *core)
{
    if (core->n_keys == 1)
        return;
    NODE_EACH(core, node)
    if (node->state != NODE_NONE && node->state != NODE_SELF && !node_holds(node, core->keys[0].id))
        return;
    core->n_keys = 1;
    memset(core->keys + 1, 0, sizeof core->keys - sizeof core->keys[0]);
    core_log(core, "all nodes have the key %s; the old one is not accepted any more",
             core->keys[0].id);
    tell(core);
}

enum status cluster_core_rotate(struct cluster_core *core, const struct cluster_key *key,
                                struct error *error)
{
    char id[CLUSTER_KEY_ID_BYTES], secret[CLUSTER_KEY_SECRET_BYTES];
    text_copy(id, sizeof id, key->id);
    text_copy(secret, sizeof secret, key->secret);
    if (id[0] == 0 || strcmp(id, key->id) != 0 || strcmp(secret, key->secret) != 0 ||
        keys_hold(core, id))
        return error_set(error, STATUS_INVALID, "the new key is no new key");
    if (core->n_keys > 1)
        return error_set(error, STATUS_BUSY,
                         "the key is being changed already; see the status for the nodes that are "
                         "waited for");
    json_t *value = json_pack("{s:s, s:s}", "id", key->id, "secret", key->secret);
    enum status status = cluster_core_put(core, "cluster/key", value, error);
    json_decref(value);
    return status;
}
