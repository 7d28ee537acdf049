/* Requests: from the gateway node that holds a client to the owner of an instance, and tokens back.
 *
 *   gateway -> owner
 *     submit     {request, attempt, model, payload, tokens, direct}
 *                     tokens: those it has already; direct: for the node's replica (core_replica.c)
 *     cancel     {request, attempt}
 *     still      {request, attempt}        are you at it? asked after five seconds without a token
 *   owner -> gateway
 *     tokens     {list: [[request, attempt, index, token, data]]}
 *     end        {request, attempt, n, status, reason, data}
 *     elsewhere  {request, attempt, owner}  who has the instance
 *     gone       {request, attempt}         not known here (any more)
 *
 * The gateway node is where a request lives: it keeps the payload and the tokens that came. When
 * the owner is lost it submits the request to the next one, with these tokens, and that one
 * continues after them. Each submission has a number (attempt); what belongs to an older one is
 * dropped, and indexes have no gaps. So a client gets each token once and in order, and one end,
 * whatever happens between. The owner does the same with the tokens it produced when its instance
 * begins anew.
 */
#include "cluster/core_internal.h"

#define OUTBOX_MOST 64
#define REDIRECTS_MOST 4

/* ---- Tokens ---------------------------------------------------------------------------------- */

static bool tokens_append(struct tokens *tokens, int32_t token)
{
    if (tokens->n == tokens->capacity) {
        uint32_t capacity = MAX(tokens->capacity * 2, 64u);
        int32_t *ids = realloc(tokens->ids, capacity * sizeof *ids);
        if (ids == NULL || tokens->n >= CLUSTER_MAX_TOKENS)
            return false;
        tokens->ids = ids;
        tokens->capacity = capacity;
    }
    tokens->ids[tokens->n++] = token;
    return true;
}

static json_t *tokens_json(const struct tokens *tokens)
{
    json_t *list = json_array();
    for (uint32_t i = 0; i < tokens->n; i++)
        json_array_append_new(list, json_integer(tokens->ids[i]));
    return list;
}

/* ---- At the gateway node --------------------------------------------------------------------- */

static struct ask *ask_find(struct cluster_core *core, uint64_t request)
{
    struct ask *ask = &core->asks[request % CLUSTER_MAX_REQUESTS];
    return ask->used && ask->id == request ? ask : NULL;
}

static void ask_free(struct ask *ask)
{
    json_decref(ask->payload);
    free(ask->tokens.ids);
    memset(ask, 0, sizeof *ask);
}

/* The client is told, once; within cluster_core_submit a little later. */
static void ask_end(struct cluster_core *core, struct ask *ask, enum status status,
                    const char *reason, const json_t *data)
{
    if (core->hold_ends) {
        ask->ended = true;
        ask->status = status;
        text_copy(ask->reason, sizeof ask->reason, reason);
        return;
    }
    char text[CLUSTER_REASON_BYTES];
    text_copy(text, sizeof text, reason);
    uint64_t request = ask->id;
    ask_free(ask);
    core->env.end(core->env.context, request, status, text, data);
}

/* Tries again after wait_ms; owner may be none. */
static void ask_again(struct cluster_core *core, struct ask *ask, struct cluster_id owner,
                      uint64_t wait_ms)
{
    ask->sent = false;
    ask->owner = owner;
    ask->retry_ms = core->now_ms + wait_ms;
}

/* What a replica did not do is done by this node's own one, or else by an instance. */
static void ask_leave_replica(struct cluster_core *core, struct ask *ask)
{
    ask->direct =
        !cluster_id_equal(ask->owner, core->nodes[0].id) && replica_here(core, ask->model.sha);
    ask_again(core, ask, ask->direct ? core->nodes[0].id : (struct cluster_id){0, 0}, 0);
}

static void ask_failed(struct cluster_core *core, struct ask *ask, const char *reason)
{
    ask->failures++;
    if (ask->direct) {
        ask_leave_replica(core, ask);
        return;
    }
    if (ask->failures > ROUTE_FAILURES) {
        ask_end(core, ask, STATUS_IO, reason, NULL);
        return;
    }
    uint64_t wait_ms = ask->failures == 1 ? 0 : core_jitter(core, ROUTE_RETRY_MS * ask->failures);
    ask_again(core, ask, (struct cluster_id){0, 0}, wait_ms);
}

static void ask_send(struct cluster_core *core, struct ask *ask, struct node *owner)
{
    ask->sent = true;
    ask->owner = owner->id;
    ask->attempt++;
    ask->heard_ms = core->now_ms;
    core_send(core, owner,
              json_pack("{s:s, s:o, s:o, s:o, s:O, s:o, s:b}", "type", "submit", "request",
                        json_u64(ask->id), "attempt", json_u64(ask->attempt), "model",
                        json_model(&ask->model), "payload", ask->payload, "tokens",
                        tokens_json(&ask->tokens), "direct", (int)ask->direct));
}

static void ask_route(struct cluster_core *core, struct ask *ask)
{
    bool exists;
    struct node *owner = core_node_here(core, ask->owner);
    if (owner == NULL && ask->direct) {
        ask_leave_replica(core, ask);
        owner = core_node_here(core, ask->owner);
    }
    if (owner == NULL)
        owner = instance_owner(core, ask->model.sha, &exists);
    if (owner != NULL)
        ask_send(core, ask, owner);
    else if (core->now_ms - ask->begun_ms > ROUTE_GIVE_UP_MS)
        ask_end(core, ask, STATUS_BUSY, "no node of the cluster can run models now", NULL);
    else
        ask_again(core, ask, (struct cluster_id){0, 0}, ROUTE_RETRY_MS);
}

enum status cluster_core_submit(struct cluster_core *core, const struct cluster_model *model,
                                const json_t *payload, uint64_t *request, struct error *error)
{
    return cluster_core_submit_to(core, (struct cluster_id){0, 0}, model, payload, request, error);
}

enum status cluster_core_submit_to(struct cluster_core *core, struct cluster_id node,
                                   const struct cluster_model *model, const json_t *payload,
                                   uint64_t *request, struct error *error)
{
    core_begin(core);
    if (!sha_valid(model->sha))
        return error_set(error, STATUS_INVALID, "a model is named by its SHA-256");
    uint32_t slot = 0;
    while (slot < CLUSTER_MAX_REQUESTS && core->asks[slot].used)
        slot++;
    if (slot == CLUSTER_MAX_REQUESTS)
        return error_set(error, STATUS_BUSY, "this node has %d requests under way already",
                         CLUSTER_MAX_REQUESTS);
    core->n_asks = MAX(core->n_asks, slot + 1);
    struct ask *ask = &core->asks[slot];
    *ask = (struct ask){.used = true,
                        .direct = !cluster_id_none(node),
                        .model = *model,
                        .owner = node,
                        .begun_ms = core->now_ms};
    text_copy(ask->model.name, sizeof ask->model.name, ask->model.name);
    ask->id = ++core->next_request * CLUSTER_MAX_REQUESTS + slot;
    ask->payload = json_deep_copy(payload);
    if (ask->payload == NULL) {
        ask_free(ask);
        return error_set(error, STATUS_MEMORY, "no memory for the request");
    }
    *request = ask->id;
    core->hold_ends = true;
    ask_route(core, ask);
    core_end(core);
    core->hold_ends = false;
    return STATUS_OK;
}

static json_t *about(const char *type, uint64_t request, uint32_t attempt)
{
    return json_pack("{s:s, s:o, s:o}", "type", type, "request", json_u64(request), "attempt",
                     json_u64(attempt));
}

void cluster_core_cancel(struct cluster_core *core, uint64_t request)
{
    core_begin(core);
    struct ask *ask = ask_find(core, request);
    if (ask == NULL)
        return;
    struct node *owner = ask->sent ? core_node_here(core, ask->owner) : NULL;
    if (owner != NULL)
        core_send(core, owner, about("cancel", ask->id, ask->attempt));
    ask_free(ask);
    core_end(core);
}

/* The request that an owner speaks of; NULL: it is over, or another's, or an older attempt's. */
static struct ask *ask_spoken_of(struct cluster_core *core, const struct node *from,
                                 struct message *message)
{
    uint64_t request = message_u64(message, "request", INT64_MAX);
    uint64_t attempt = message_u64(message, "attempt", UINT32_MAX);
    struct ask *ask = message->failed ? NULL : ask_find(core, request);
    if (ask == NULL || !ask->sent || ask->ended || ask->attempt != attempt ||
        !cluster_id_equal(ask->owner, from->id))
        return NULL;
    ask->heard_ms = core->now_ms;
    return ask;
}

static void ask_token(struct cluster_core *core, const struct node *from, struct message *item)
{
    uint64_t request = item_u64(item, 0, INT64_MAX);
    uint64_t attempt = item_u64(item, 1, UINT32_MAX);
    uint64_t index = item_u64(item, 2, CLUSTER_MAX_TOKENS);
    uint64_t token = item_u64(item, 3, INT32_MAX);
    struct ask *ask = item->failed ? NULL : ask_find(core, request);
    if (ask == NULL || !ask->sent || ask->attempt != attempt ||
        !cluster_id_equal(ask->owner, from->id) || index < ask->tokens.n)
        return;
    if (index > ask->tokens.n) {
        message_fail(item, "token %d is missing", (int)ask->tokens.n);
        return;
    }
    ask->heard_ms = core->now_ms;
    ask->failures = ask->redirects = 0;
    if (!tokens_append(&ask->tokens, (int32_t)token)) {
        ask_end(core, ask, STATUS_LIMIT, "the answer is too long", NULL);
        return;
    }
    const json_t *data = json_array_get(item->json, 4);
    core->env.token(core->env.context, request, (uint32_t)index, (int32_t)token,
                    json_is_null(data) ? NULL : data);
}

void on_tokens(struct cluster_core *core, struct node *from, struct message *message)
{
    size_t n;
    const json_t *list = message_list(message, "list", OUTBOX_MOST, &n);
    for (size_t i = 0; i < n && !message->failed; i++) {
        struct message item = message_item(list, i);
        ask_token(core, from, &item);
        message_take(message, &item);
    }
}

void on_end(struct cluster_core *core, struct node *from, struct message *message)
{
    char reason[CLUSTER_REASON_BYTES];
    uint64_t n = message_u64(message, "n", CLUSTER_MAX_TOKENS);
    uint64_t status = message_u64(message, "status", UINT32_MAX);
    message_text(message, "reason", reason, sizeof reason);
    const json_t *data = message_any(message, "data");
    struct ask *ask = ask_spoken_of(core, from, message);
    if (ask == NULL)
        return;
    /* Where this node's own replica is busy, another instance would not help. */
    bool refused =
        status == STATUS_NOT_FOUND || (status == STATUS_BUSY && from->state != NODE_SELF);
    if (ask->direct && refused)
        ask_leave_replica(core, ask);
    else if (status == STATUS_OK && n != ask->tokens.n)
        message_fail(message, "an answer of %d tokens ended after %d", (int)n, (int)ask->tokens.n);
    else
        ask_end(core, ask, (enum status)MIN(status, (uint64_t)STATUS_BUSY), reason, data);
}

void on_gone(struct cluster_core *core, struct node *from, struct message *message)
{
    struct ask *ask = ask_spoken_of(core, from, message);
    if (ask != NULL)
        ask_failed(core, ask, "the owner of the model dropped the request");
}

void on_elsewhere(struct cluster_core *core, struct node *from, struct message *message)
{
    struct cluster_id owner = message_id(message, "owner");
    struct ask *ask = ask_spoken_of(core, from, message);
    if (ask == NULL)
        return;
    if (++ask->redirects <= REDIRECTS_MOST)
        ask_again(core, ask, owner, 0);
    else
        ask_failed(core, ask, "nodes do not agree who runs the model");
}

/* ---- At the owner ---------------------------------------------------------------------------- */

static struct work *work_find(struct cluster_core *core, uint64_t id)
{
    struct work *work = &core->works[id % CLUSTER_MAX_REQUESTS];
    return work->used && work->id == id ? work : NULL;
}

static struct work *work_of(struct cluster_core *core, struct cluster_id gateway, uint64_t request)
{
    for (uint32_t i = 0; i < core->n_works; i++) {
        struct work *work = &core->works[i];
        if (work->used && work->request == request && cluster_id_equal(work->gateway, gateway))
            return work;
    }
    return NULL;
}

/* Each start has an id of its own, so that what the last one still says is known to be late. */
static void work_name(struct cluster_core *core, struct work *work)
{
    uint64_t slot = (uint64_t)(work - core->works);
    work->id = ++core->next_work * CLUSTER_MAX_REQUESTS + slot;
}

static void work_stop(struct cluster_core *core, struct work *work)
{
    if (work->started)
        core->env.cancel(core->env.context, work->id);
    work->started = false;
}

static void work_free(struct cluster_core *core, struct work *work)
{
    work_stop(core, work);
    json_decref(work->payload);
    free(work->tokens.ids);
    memset(work, 0, sizeof *work);
}

static void outbox_flush(struct cluster_core *core, struct node *node)
{
    if (node->outbox == NULL)
        return;
    json_t *list = node->outbox;
    node->outbox = NULL;
    core_send(core, node, json_pack("{s:s, s:o}", "type", "tokens", "list", list));
}

static void answer(struct cluster_core *core, struct node *gateway, json_t *message)
{
    if (gateway == NULL) {
        json_decref(message);
        return;
    }
    outbox_flush(core, gateway);
    core_send(core, gateway, message);
}

static void work_answer(struct cluster_core *core, const struct work *work, json_t *message)
{
    answer(core, core_node_here(core, work->gateway), message);
}

static json_t *end_message(uint64_t request, uint32_t attempt, uint32_t n, enum status status,
                           const char *reason, const json_t *data)
{
    char text[CLUSTER_REASON_BYTES];
    text_copy(text, sizeof text, reason != NULL ? reason : "");
    json_t *message = about("end", request, attempt);
    json_object_set_new(message, "n", json_u64(n));
    json_object_set_new(message, "status", json_u64(status));
    json_object_set_new(message, "reason", json_string(text));
    if (data != NULL)
        json_object_set(message, "data", (json_t *)(uintptr_t)data);
    return message;
}

static void work_end(struct cluster_core *core, struct work *work, enum status status,
                     const char *reason, const json_t *data)
{
    work_answer(core, work,
                end_message(work->request, work->attempt, work->tokens.n, status, reason, data));
    work_free(core, work);
}

/* instance NULL: this node's replica. */
static void work_start(struct cluster_core *core, struct work *work,
                       const struct instance *instance)
{
    work_name(core, work);
    work->started = true;
    const struct cluster_work start = {.instance = instance != NULL ? instance->id : 0,
                                       .epoch = instance != NULL ? instance->epoch : 0,
                                       .sha = work->sha,
                                       .work = work->id,
                                       .payload = work->payload,
                                       .tokens = work->tokens.ids,
                                       .n_tokens = work->tokens.n};
    core->env.start(core->env.context, &start);
}

/* The instance that a new request waits for or is computed by; NULL: it was answered. */
static struct instance *instance_for(struct cluster_core *core, struct node *from,
                                     const struct cluster_model *model, uint64_t request,
                                     uint32_t attempt)
{
    struct instance *instance = instance_of(core, model->sha);
    if (instance != NULL && !instance->draining)
        return instance;
    bool exists;
    struct node *owner = instance_owner(core, model->sha, &exists);
    if (exists && owner->state != NODE_SELF) {
        json_t *message = about("elsewhere", request, attempt);
        json_object_set_new(message, "owner", json_id(owner->id));
        answer(core, from, message);
        return NULL;
    }
    if (instance != NULL)
        return instance; /* whom it gave way to has gone */
    const struct instance *failed = instance_failed(core, model->sha, FAILED_FRESH_MS);
    struct error error = {.code = STATUS_OK};
    if (failed != NULL)
        error_set(&error, failed->status, "%s", failed->reason);
    else
        instance = instance_begin(core, model, false, &error);
    if (instance == NULL)
        answer(core, from, end_message(request, attempt, 0, error.code, error.text, NULL));
    return instance;
}

static bool read_tokens(struct message *message, struct tokens *tokens)
{
    size_t n;
    struct message list = message_over(message_list(message, "tokens", CLUSTER_MAX_TOKENS, &n));
    for (size_t i = 0; i < n && !list.failed; i++)
        if (!tokens_append(tokens, (int32_t)item_u64(&list, i, INT32_MAX)))
            message_fail(&list, "out of memory");
    message_take(message, &list);
    return !message->failed;
}

void on_submit(struct cluster_core *core, struct node *from, struct message *message)
{
    uint64_t request = message_u64(message, "request", INT64_MAX);
    uint32_t attempt = (uint32_t)message_u64(message, "attempt", UINT32_MAX);
    struct cluster_model model = message_model(message, "model");
    const json_t *payload = message_any(message, "payload");
    bool direct = message_flag(message, "direct");
    struct tokens tokens = {.n = 0};
    if (payload == NULL)
        message_fail(message, "\"payload\" is missing");
    if (message->failed || !read_tokens(message, &tokens)) {
        free(tokens.ids);
        return;
    }
    struct work *before = work_of(core, from->id, request);
    if (before != NULL)
        work_free(core, before);
    uint32_t slot = 0;
    while (slot < CLUSTER_MAX_REQUESTS && core->works[slot].used)
        slot++;
    struct instance *instance = NULL;
    if (slot == CLUSTER_MAX_REQUESTS)
        answer(core, from,
               end_message(request, attempt, 0, STATUS_BUSY, "the model's queue is full", NULL));
    else if (!direct)
        instance = instance_for(core, from, &model, request, attempt);
    if (slot == CLUSTER_MAX_REQUESTS || (instance == NULL && !direct)) {
        free(tokens.ids);
        return;
    }
    core->n_works = MAX(core->n_works, slot + 1);
    struct work *work = &core->works[slot];
    *work = (struct work){.used = true,
                          .gateway = from->id,
                          .request = request,
                          .attempt = attempt,
                          .instance = direct ? 0 : instance->id,
                          .payload = json_incref((json_t *)(uintptr_t)payload),
                          .tokens = tokens};
    memcpy(work->sha, model.sha, sizeof work->sha);
    work_name(core, work);
    core->replicas_dirty |= direct; /* others count what they sent until they are told anew */
    if (direct || instance->state == INSTANCE_RUNNING)
        work_start(core, work, instance);
}

void on_cancel(struct cluster_core *core, struct node *from, struct message *message)
{
    uint64_t request = message_u64(message, "request", INT64_MAX);
    uint64_t attempt = message_u64(message, "attempt", UINT32_MAX);
    struct work *work = message->failed ? NULL : work_of(core, from->id, request);
    if (work != NULL && work->attempt == attempt)
        work_free(core, work);
}

void on_still(struct cluster_core *core, struct node *from, struct message *message)
{
    uint64_t request = message_u64(message, "request", INT64_MAX);
    uint64_t attempt = message_u64(message, "attempt", UINT32_MAX);
    struct work *work = message->failed ? NULL : work_of(core, from->id, request);
    if (!message->failed && (work == NULL || work->attempt != attempt))
        answer(core, from, about("gone", request, (uint32_t)attempt));
}

void cluster_core_token(struct cluster_core *core, uint64_t id, uint32_t index, int32_t token,
                        const json_t *data)
{
    struct work *work = work_find(core, id);
    if (work == NULL || !work->started || index != work->tokens.n || token < 0)
        return;
    core_begin(core);
    if (!tokens_append(&work->tokens, token)) {
        work_end(core, work, STATUS_LIMIT, "the answer is too long", NULL);
        core_end(core);
        return;
    }
    struct node *gateway = core_node_here(core, work->gateway);
    if (gateway == NULL)
        return;
    if (gateway->outbox == NULL)
        gateway->outbox = json_array();
    json_array_append_new(
        gateway->outbox,
        json_pack("[o, o, o, o, o]", json_u64(work->request), json_u64(work->attempt),
                  json_u64(index), json_integer(token),
                  data != NULL ? json_incref((json_t *)(uintptr_t)data) : json_null()));
    if (json_array_size(gateway->outbox) == OUTBOX_MOST) {
        outbox_flush(core, gateway);
        core_end(core);
    }
}

void cluster_core_end(struct cluster_core *core, uint64_t id, enum status status,
                      const char *reason, const json_t *data)
{
    core_begin(core);
    struct work *work = work_find(core, id);
    if (work != NULL && work->started) {
        work->started = false; /* nothing is left to cancel */
        work_end(core, work, status, reason, data);
    }
    core_end(core);
}

void cluster_core_flush(struct cluster_core *core)
{
    core_begin(core);
    NODE_EACH(core, node)
    if (node->state != NODE_NONE)
        outbox_flush(core, node);
    core_end(core);
}

/* ---- Instances that begin, stop, end --------------------------------------------------------- */

uint32_t requests_of(const struct cluster_core *core, const struct instance *instance)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < core->n_works; i++)
        if (core->works[i].used && core->works[i].instance == instance->id)
            n++;
    return n;
}

void requests_start(struct cluster_core *core, struct instance *instance)
{
    for (uint32_t i = 0; i < core->n_works; i++)
        if (core->works[i].used && core->works[i].instance == instance->id)
            work_start(core, &core->works[i], instance);
}

void requests_pause(struct cluster_core *core, struct instance *instance)
{
    for (uint32_t i = 0; i < core->n_works; i++)
        if (core->works[i].used && core->works[i].instance == instance->id)
            work_stop(core, &core->works[i]);
}

void requests_fail(struct cluster_core *core, struct instance *instance, enum status status,
                   const char *reason)
{
    for (uint32_t i = 0; i < core->n_works; i++)
        if (core->works[i].used && core->works[i].instance == instance->id)
            work_end(core, &core->works[i], status, reason, NULL);
}

void requests_move(struct cluster_core *core, struct instance *instance, struct cluster_id owner)
{
    for (uint32_t i = 0; i < core->n_works; i++) {
        struct work *work = &core->works[i];
        if (!work->used || work->instance != instance->id)
            continue;
        json_t *message = about("elsewhere", work->request, work->attempt);
        json_object_set_new(message, "owner", json_id(owner));
        work_answer(core, work, message);
        work_free(core, work);
    }
}

void requests_node_lost(struct cluster_core *core, struct node *node)
{
    for (uint32_t i = 0; i < core->n_works; i++)
        if (core->works[i].used && cluster_id_equal(core->works[i].gateway, node->id))
            work_free(core, &core->works[i]);
    for (uint32_t i = 0; i < core->n_asks; i++) {
        struct ask *ask = &core->asks[i];
        if (ask->used && ask->sent && !ask->ended && cluster_id_equal(ask->owner, node->id))
            ask_failed(core, ask, "the nodes that ran the model were lost, one after the other");
    }
}

void requests_close(struct cluster_core *core)
{
    for (uint32_t i = 0; i < CLUSTER_MAX_REQUESTS; i++) {
        json_decref(core->asks[i].payload);
        free(core->asks[i].tokens.ids);
        json_decref(core->works[i].payload);
        free(core->works[i].tokens.ids);
    }
}

void requests_tick(struct cluster_core *core)
{
    for (uint32_t i = 0; i < core->n_asks; i++) {
        struct ask *ask = &core->asks[i];
        if (!ask->used)
            continue;
        if (ask->ended)
            ask_end(core, ask, ask->status, ask->reason, NULL);
        else if (!ask->sent && core->now_ms >= ask->retry_ms)
            ask_route(core, ask);
        else if (ask->sent && core->now_ms - ask->heard_ms > STILL_MS) {
            ask->heard_ms = core->now_ms;
            struct node *owner = core_node_here(core, ask->owner);
            if (owner != NULL)
                core_send(core, owner, about("still", ask->id, ask->attempt));
        }
    }
    NODE_EACH(core, node)
    if (node->state != NODE_NONE)
        outbox_flush(core, node);
}
