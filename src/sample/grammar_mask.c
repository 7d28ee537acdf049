/* Which tokens may follow a state, by walking the tree of tokens beside the automaton.
 *
 * Most of it depends only on the upper part of the stacks: within a JSON string nearly every token
 * is allowed or not, wherever the string stands. So a state is cut (automaton_cut), and the mask of
 * what is left is found once; the tokens that lead out of it, into what was cut off, are kept as a
 * small tree of their own (open), which is walked again for each whole state. Where too many
 * tokens lead out the cut is made deeper. */
#include "sample/grammar_internal.h"

#include <stdlib.h>
#include <string.h>

#define MAX_OPEN_TOKENS 1500 /* of one cut, unless it is the deepest */
#define MAX_CUT_DEPTH 8
#define KEPT_MASKS 256 /* of whole states */

struct local_mask {
    uint64_t *allowed;
    struct token_tree open;
    bool too_open;
};

struct masks {
    const struct grammar_vocabulary *vocabulary;
    struct automaton *automaton;
    struct local_mask *locals;
    uint32_t n_locals, local_capacity;
    uint64_t *kept[KEPT_MASKS]; /* taken in turn */
    uint32_t owners[KEPT_MASKS];
    uint32_t turn;
    size_t bytes;
};

/* ---- Walking --------------------------------------------------------------------------------- */

struct walk {
    const struct grammar_vocabulary *vocabulary;
    struct automaton *automaton;
    uint64_t *allowed;
    struct token_tree *open; /* NULL: no token can lead out */
    size_t n_open, max_open;
    uint32_t states[VOCABULARY_MAX_TOKEN_BYTES + 1]; /* by depth */
    bool left[VOCABULARY_MAX_TOKEN_BYTES + 1];       /* what was cut off may begin before it */
    uint32_t copies[VOCABULARY_MAX_TOKEN_BYTES + 1]; /* the node in open, + 1 */
    size_t n_copied;                                 /* of the path */
};

/* The path has become shorter than depth nodes. */
static void close_copies(struct walk *walk, size_t depth)
{
    for (; walk->n_copied >= depth && walk->n_copied > 0; walk->n_copied--)
        walk->open->nodes[walk->copies[walk->n_copied]].end = walk->open->n_nodes;
}

/* Copies the token at the end of the path to the open ones. */
static bool keep_open(struct walk *walk, const uint8_t *path, size_t depth, int32_t token)
{
    for (size_t d = walk->n_copied + 1; d <= depth; d++) {
        walk->copies[d] = walk->open->n_nodes;
        if (!token_tree_add(walk->open, (struct token_node){.token = TOKEN_NONE,
                                                            .depth = (uint16_t)d,
                                                            .byte = path[d - 1]}))
            return false;
        walk->n_copied = d;
    }
    walk->open->nodes[walk->copies[depth]].token = token;
    return ++walk->n_open <= walk->max_open;
}

static void allow(struct walk *walk, int32_t token)
{
    for (; token != TOKEN_NONE; token = walk->vocabulary->same[token])
        walk->allowed[token / 64] |= (uint64_t)1 << token % 64;
}

/* Allows the tokens of tree that the automaton reads from state on. False where too many are open,
 * or memory is out. */
static bool walk_tree(struct walk *walk, const struct token_tree *tree, uint32_t state)
{
    uint8_t path[VOCABULARY_MAX_TOKEN_BYTES];
    walk->states[0] = state;
    walk->left[0] = walk->open != NULL && automaton_get(walk->automaton, state)->escapes;
    for (uint32_t i = 0; i < tree->n_nodes;) {
        const struct token_node *node = &tree->nodes[i];
        size_t depth = node->depth;
        uint32_t next = automaton_step(walk->automaton, walk->states[depth - 1], node->byte);
        bool was_left = walk->left[depth - 1];
        if (next == STATE_DEAD && !was_left) {
            i = node->end;
            continue;
        }
        if (next == STATE_UNKNOWN)
            return false;
        walk->states[depth] = next;
        path[depth - 1] = node->byte;
        if (walk->open != NULL) {
            walk->left[depth] = was_left || automaton_get(walk->automaton, next)->escapes;
            close_copies(walk, depth);
        }
        if (node->token != TOKEN_NONE && next != STATE_DEAD)
            allow(walk, node->token);
        else if (node->token != TOKEN_NONE && !keep_open(walk, path, depth, node->token))
            return false;
        i++;
    }
    if (walk->open != NULL)
        close_copies(walk, 1);
    return true;
}

/* ---- Local masks ----------------------------------------------------------------------------- */

/* The local mask of a state whose stacks were cut, found where it is new. NULL: memory is out. */
static struct local_mask *local_mask(struct masks *masks, uint32_t state, bool deepest)
{
    uint32_t known = automaton_get(masks->automaton, state)->shared;
    if (known > 0)
        return &masks->locals[known - 1];
    if (masks->n_locals == masks->local_capacity) {
        uint32_t capacity = MAX(2 * masks->local_capacity, 16u);
        struct local_mask *locals = realloc(masks->locals, capacity * sizeof *locals);
        if (locals == NULL)
            return NULL;
        masks->locals = locals;
        masks->local_capacity = capacity;
    }
    struct local_mask local = {.allowed =
                                   calloc(masks->vocabulary->n_words, sizeof *local.allowed)};
    struct walk *walk = calloc(1, sizeof *walk);
    if (local.allowed == NULL || walk == NULL) {
        free(local.allowed);
        free(walk);
        return NULL;
    }
    *walk = (struct walk){.vocabulary = masks->vocabulary,
                          .automaton = masks->automaton,
                          .allowed = local.allowed,
                          .open = &local.open,
                          .max_open = deepest ? SIZE_MAX : MAX_OPEN_TOKENS};
    local.too_open = !walk_tree(walk, &masks->vocabulary->tree, state);
    free(walk);
    if (local.too_open) { /* of no use but to know it */
        free(local.allowed);
        free(local.open.nodes);
        local.allowed = NULL;
        local.open = (struct token_tree){0};
    } else {
        masks->bytes += masks->vocabulary->n_words * sizeof *local.allowed +
                        local.open.capacity * sizeof *local.open.nodes;
    }
    masks->bytes += sizeof local;
    masks->locals[masks->n_locals++] = local;
    automaton_get(masks->automaton, state)->shared = masks->n_locals;
    return &masks->locals[masks->n_locals - 1];
}

/* The local mask of the least deep cut of state that leaves few tokens open. */
static const struct local_mask *shared_mask(struct masks *masks, uint32_t state)
{
    for (unsigned depth = automaton_get(masks->automaton, state)->skips ? MAX_CUT_DEPTH : 0;;
         depth++) {
        bool deepest = depth == MAX_CUT_DEPTH;
        uint32_t cut = deepest ? state : automaton_cut(masks->automaton, state, depth);
        if (cut == STATE_UNKNOWN)
            return NULL;
        const struct local_mask *local = local_mask(masks, cut, deepest);
        if (local == NULL || !local->too_open || deepest)
            return local != NULL && !local->too_open ? local : NULL;
    }
}

/* ---- Whole states ---------------------------------------------------------------------------- */

/* A mask to write to; it belonged to the state whose turn it is. */
static uint64_t *take_kept(struct masks *masks, uint32_t state)
{
    size_t size = masks->vocabulary->n_words * sizeof(uint64_t);
    uint32_t slot = masks->turn;
    masks->turn = (slot + 1) % KEPT_MASKS;
    if (masks->kept[slot] == NULL) {
        masks->kept[slot] = malloc(size);
        masks->bytes += size;
    } else {
        automaton_get(masks->automaton, masks->owners[slot])->mask = 0;
    }
    if (masks->kept[slot] == NULL)
        return NULL;
    masks->owners[slot] = state;
    automaton_get(masks->automaton, state)->mask = slot + 1;
    return masks->kept[slot];
}

const uint64_t *masks_of(struct masks *masks, uint32_t state)
{
    if (state <= STATE_DEAD)
        return NULL;
    uint32_t known = automaton_get(masks->automaton, state)->mask;
    if (known > 0)
        return masks->kept[known - 1];
    const struct local_mask *local = shared_mask(masks, state);
    struct walk *walk = calloc(1, sizeof *walk);
    uint64_t *mask = local != NULL && walk != NULL ? take_kept(masks, state) : NULL;
    if (mask != NULL) {
        memcpy(mask, local->allowed, masks->vocabulary->n_words * sizeof *mask);
        *walk = (struct walk){
            .vocabulary = masks->vocabulary, .automaton = masks->automaton, .allowed = mask};
        if (!walk_tree(walk, &local->open, state))
            mask = NULL;
    }
    free(walk);
    if (mask != NULL && automaton_get(masks->automaton, state)->accepts)
        for (size_t w = 0; w < masks->vocabulary->n_words; w++)
            mask[w] |= masks->vocabulary->ends[w];
    return mask;
}

/* ---- Life ------------------------------------------------------------------------------------ */

enum status masks_open(struct masks **out, const struct grammar_vocabulary *vocabulary,
                       struct automaton *automaton)
{
    struct masks *masks = calloc(1, sizeof *masks);
    *out = masks;
    if (masks == NULL)
        return STATUS_MEMORY;
    masks->vocabulary = vocabulary;
    masks->automaton = automaton;
    return STATUS_OK;
}

void masks_close(struct masks *masks)
{
    if (masks == NULL)
        return;
    for (uint32_t i = 0; i < masks->n_locals; i++) {
        free(masks->locals[i].allowed);
        free(masks->locals[i].open.nodes);
    }
    for (size_t i = 0; i < KEPT_MASKS; i++)
        free(masks->kept[i]);
    free(masks->locals);
    free(masks);
}

size_t masks_bytes(const struct masks *masks)
{
    return masks->bytes;
}
