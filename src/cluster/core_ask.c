/* One question to one node, and its answer, for what only that node knows:
 *
 *   ask     {question, what, query}
 *   answer  {question, body}          body null: it has no answer to that
 *
 * The control plane does not read them. A question ends once: with the answer, or without one when
 * the node is lost or ANSWER_MS have passed. Answers to questions that ended are dropped.
 */
#include "cluster/core_internal.h"

#define ANSWER_MS 10000

enum status cluster_core_ask(struct cluster_core *core, struct cluster_id id, const char *what,
                             const json_t *query, uint64_t *question, struct error *error)
{
    core_begin(core);
    struct question *place = NULL;
    struct node *node = core_node(core, id);
    if (node == NULL || node->state != NODE_UP)
        return error_set(error, STATUS_NOT_FOUND, "the node is not connected");
    for (size_t i = 0; i < CLUSTER_MAX_QUESTIONS && place == NULL; i++)
        if (core->questions[i].id == 0)
            place = &core->questions[i];
    if (place == NULL)
        return error_set(error, STATUS_BUSY, "too many questions are under way");
    *place = (struct question){
        .id = ++core->next_question, .node = id, .deadline_ms = core->now_ms + ANSWER_MS};
    *question = place->id;
    core_send(core, node,
              json_pack("{s:s, s:o, s:s, s:O}", "type", "ask", "question", json_u64(place->id),
                        "what", what, "query", query));
    core_end(core);
    return STATUS_OK;
}

static void end(struct cluster_core *core, struct question *question, const json_t *body,
                const char *reason)
{
    uint64_t id = question->id;
    *question = (struct question){.id = 0};
    core->env.answered(core->env.context, id, body, reason);
}

void on_ask(struct cluster_core *core, struct node *from, struct message *message)
{
    char what[CLUSTER_NAME_BYTES];
    uint64_t question = message_u64(message, "question", INT64_MAX);
    message_text(message, "what", what, sizeof what);
    const json_t *query = message_any(message, "query");
    if (message->failed)
        return;
    if (core->env.ask != NULL && core->env.ask(core->env.context, from->id, question, what, query))
        return;
    core_send(
        core, from,
        json_pack("{s:s, s:o, s:n}", "type", "answer", "question", json_u64(question), "body"));
}

void cluster_core_answer(struct cluster_core *core, struct cluster_id to, uint64_t question,
                         const json_t *body)
{
    core_begin(core);
    struct node *node = core_node_here(core, to);
    if (node != NULL && node->state == NODE_UP)
        core_send(core, node,
                  json_pack("{s:s, s:o, s:O?}", "type", "answer", "question", json_u64(question),
                            "body", body));
    core_end(core);
}

void on_answer(struct cluster_core *core, struct node *from, struct message *message)
{
    uint64_t id = message_u64(message, "question", INT64_MAX);
    const json_t *body = message_any(message, "body");
    for (size_t i = 0; i < CLUSTER_MAX_QUESTIONS && !message->failed && id != 0; i++) {
        struct question *question = &core->questions[i];
        if (question->id == id && cluster_id_equal(question->node, from->id))
            end(core, question, json_is_null(body) ? NULL : body, "it has no answer to that");
    }
}

void questions_node_lost(struct cluster_core *core, const struct node *node)
{
    for (size_t i = 0; i < CLUSTER_MAX_QUESTIONS; i++) {
        struct question *question = &core->questions[i];
        if (question->id != 0 && cluster_id_equal(question->node, node->id))
            end(core, question, NULL, "it was lost");
    }
}

void questions_tick(struct cluster_core *core)
{
    for (size_t i = 0; i < CLUSTER_MAX_QUESTIONS; i++) {
        struct question *question = &core->questions[i];
        if (question->id != 0 && core->now_ms >= question->deadline_ms)
            end(core, question, NULL, "it did not answer");
    }
}
