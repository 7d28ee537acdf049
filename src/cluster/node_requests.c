/* Requests of this node's clients that the cluster answers: what the control plane tells of them
 * becomes the events that a scheduler gives. */
#include "cluster/node_internal.h"

#include <stdlib.h>

struct node_request {
    struct node_request *next;
    size_t n_prompt; /* paid by who leaves before the first token, as where one node computes */
    struct generation_feed feed;
};

static struct node_request **find(struct cluster_node *node, uint64_t id)
{
    struct node_request **link = &node->requests;
    while (*link != NULL && (*link)->feed.id != id)
        link = &(*link)->next;
    return link;
}

/* Out of the list before its last event is given: who gets that may ask again. */
static struct node_request *take(struct node_request **link)
{
    struct node_request *request = *link;
    *link = request->next;
    return request;
}

static void free_request(struct node_request *request)
{
    generation_feed_free(&request->feed);
    free(request);
}

void node_request_token(void *context, uint64_t id, uint32_t index, int32_t token,
                        const json_t *data)
{
    struct node_request **link = find(context, id);
    if (*link != NULL && !generation_feed_token(&(*link)->feed, index, token, data))
        free_request(take(find(context, id))); /* what its owner goes on to tell is let go */
}

void node_request_end(void *context, uint64_t id, enum status status, const char *reason,
                      const json_t *data)
{
    struct node_request **link = find(context, id);
    if (*link == NULL)
        return;
    struct node_request *request = take(link);
    generation_feed_end(&request->feed, status, reason, data);
    free_request(request);
}

enum cluster_route cluster_node_route(struct cluster_node *node, const char *sha,
                                      const struct generation_request *request,
                                      struct cluster_id *out)
{
    uint64_t prefixes[CLUSTER_PREFIX_LEVELS];
    uint32_t n =
        cluster_core_prefixes(node->core, sha, request->tokens, request->n_tokens, prefixes);
    return cluster_core_replica(node->core, sha, prefixes, n, request->n_tokens, out);
}

enum status cluster_node_submit(struct cluster_node *node, const struct cluster_model *model,
                                struct generation_request *request, generation_callback *callback,
                                void *context, uint64_t *id, struct error *error)
{
    return cluster_node_submit_to(node, (struct cluster_id){0, 0}, model, request, callback,
                                  context, id, error);
}

/* The other half of a message is for the tokens that are drawn, where another owner goes on. */
#define MOST_TOKENS ((size_t)1 << 19)
#define MOST_PAYLOAD_BYTES ((size_t)CLUSTER_MESSAGE_BYTES / 2)

/* What is longer than a message would end the link that carries it. */
static enum status write_request(const struct generation_request *request, json_t **out,
                                 struct error *error)
{
    bool fits = request->n_tokens <= MOST_TOKENS;
    if (fits && (*out = generation_request_write(request)) == NULL)
        return error_memory(error, request->n_tokens * sizeof *request->tokens);
    if (fits && json_dumpb(*out, NULL, 0, JSON_COMPACT) <= MOST_PAYLOAD_BYTES)
        return STATUS_OK;
    return error_set(error, STATUS_LIMIT,
                     "a request of %zu tokens with its schema and tools is too long for a model "
                     "that other nodes compute",
                     request->n_tokens);
}

enum status cluster_node_submit_to(struct cluster_node *node, struct cluster_id to,
                                   const struct cluster_model *model,
                                   struct generation_request *request,
                                   generation_callback *callback, void *context, uint64_t *id,
                                   struct error *error)
{
    struct node_request *entry = calloc(1, sizeof *entry);
    json_t *payload = NULL;
    enum status status = write_request(request, &payload, error);
    size_t n_prompt = request->n_tokens - MIN(request->n_drawn, request->n_tokens);
    generation_request_close(request);
    if (status == STATUS_OK && entry == NULL)
        status = error_memory(error, sizeof *entry);
    if (status == STATUS_OK) {
        entry->n_prompt = n_prompt;
        entry->feed = (struct generation_feed){.callback = callback, .context = context};
        status = cluster_core_submit_to(node->core, to, model, payload, &entry->feed.id, error);
    }
    json_decref(payload);
    if (status != STATUS_OK) {
        free(entry);
        return status;
    }
    entry->next = node->requests;
    node->requests = entry;
    *id = entry->feed.id;
    return STATUS_OK;
}

void cluster_node_cancel(struct cluster_node *node, uint64_t id)
{
    struct node_request **link = find(node, id);
    if (*link == NULL)
        return;
    struct node_request *request = take(link);
    cluster_core_cancel(node->core, id);
    if (!request->feed.started)
        request->feed.usage.n_prompt = request->n_prompt;
    generation_feed_cancel(&request->feed);
    free_request(request);
}

void node_requests_close(struct cluster_node *node)
{
    while (node->requests != NULL) {
        struct node_request *request = take(&node->requests);
        generation_feed_end(&request->feed, STATUS_BUSY, "the server is shutting down", NULL);
        free_request(request);
    }
}
