/* From rules to states and edges over bytes. First every expression becomes states joined by bytes,
 * calls of rules and empty moves (Thompson's construction); then the empty moves are taken out, and
 * so is what leads nowhere. */
#include "sample/grammar_internal.h"

#include <stdlib.h>
#include <string.h>

enum arc_kind { ARC_EMPTY, ARC_BYTES, ARC_CALL };

struct arc {
    uint32_t next; /* of the same state; + 1 */
    uint32_t target, rule;
    uint8_t kind, first, last;
};

struct builder {
    const struct rules *rules;
    struct program *program;
    uint32_t *heads; /* [n_states] the first arc of a state, + 1 */
    uint32_t n_states, state_capacity;
    struct arc *arcs;
    uint32_t n_arcs, arc_capacity;
    bool *nullable;          /* [n_rules] */
    uint32_t *begins, *ends; /* [n_rules] */

    /* While empty moves are taken out. */
    uint32_t *numbers;        /* [n_states] in the program, + 1 */
    uint32_t *kept;           /* [n_kept] the other way round */
    uint32_t *stamps, *queue; /* [n_states] */
    uint32_t stamp, n_kept;
    uint32_t n_edges, n_calls, edge_capacity, call_capacity;
    bool failed, too_large;
};

/* ---- Building -------------------------------------------------------------------------------- */

/* Room for one more in an array that doubles. */
static bool reserve(struct builder *b, void **array, uint32_t *capacity, uint32_t n, size_t size,
                    size_t limit)
{
    if (n < *capacity)
        return true;
    if (n >= limit) {
        b->too_large = b->failed = true;
        return false;
    }
    uint32_t wanted = MAX(2 * *capacity, 256u);
    void *grown = realloc(*array, wanted * size);
    if (grown == NULL) {
        b->failed = true;
        return false;
    }
    *array = grown;
    *capacity = wanted;
    return true;
}

static uint32_t add_state(struct builder *b)
{
    if (!reserve(b, (void **)&b->heads, &b->state_capacity, b->n_states, sizeof *b->heads,
                 PROGRAM_MAX_STATES))
        return 0;
    b->heads[b->n_states] = 0;
    return b->n_states++;
}

static void add_arc(struct builder *b, uint32_t from, struct arc arc)
{
    if (b->failed || !reserve(b, (void **)&b->arcs, &b->arc_capacity, b->n_arcs, sizeof *b->arcs,
                              PROGRAM_MAX_EDGES))
        return;
    arc.next = b->heads[from];
    b->arcs[b->n_arcs++] = arc;
    b->heads[from] = b->n_arcs;
}

static void add_empty(struct builder *b, uint32_t from, uint32_t to)
{
    add_arc(b, from, (struct arc){.target = to, .kind = ARC_EMPTY});
}

static void add_bytes(struct builder *b, uint32_t from, uint32_t to, uint8_t first, uint8_t last)
{
    add_arc(b, from, (struct arc){.target = to, .kind = ARC_BYTES, .first = first, .last = last});
}

/* tails[k]: the state before any k bytes that continue a character and lead to the end. */
struct tails {
    uint32_t state[4];
    bool made[4];
};

static uint32_t tail(struct builder *b, struct tails *tails, size_t k)
{
    if (!tails->made[k]) {
        tails->made[k] = true;
        tails->state[k] = add_state(b);
        add_bytes(b, tails->state[k], tail(b, tails, k - 1), 0x80, 0xBF);
    }
    return tails->state[k];
}

static bool all_are(const uint8_t *bytes, size_t n, uint8_t value)
{
    for (size_t i = 0; i < n; i++)
        if (bytes[i] != value)
            return false;
    return true;
}

/* Strings of n bytes from low to high, all of them the ends of characters or whole ones. */
static void add_span(struct builder *b, struct tails *tails, uint32_t from, const uint8_t *low,
                     const uint8_t *high, size_t n)
{
    static const uint8_t least[3] = {0x80, 0x80, 0x80}, most[3] = {0xBF, 0xBF, 0xBF};
    uint8_t first = low[0], last = high[0];
    bool low_full = all_are(low + 1, n - 1, 0x80), high_full = all_are(high + 1, n - 1, 0xBF);
    if (first == last && !(low_full && high_full)) {
        uint32_t middle = add_state(b);
        add_bytes(b, from, middle, first, first);
        add_span(b, tails, middle, low + 1, high + 1, n - 1);
        return;
    }
    if (!low_full) {
        uint32_t middle = add_state(b);
        add_bytes(b, from, middle, first, first);
        add_span(b, tails, middle, low + 1, most, n - 1);
        first++;
    }
    if (!high_full) {
        uint32_t middle = add_state(b);
        add_bytes(b, from, middle, last, last);
        add_span(b, tails, middle, least, high + 1, n - 1);
        last--;
    }
    if (first <= last)
        add_bytes(b, from, tail(b, tails, n - 1), first, last);
}

static void add_range(struct builder *b, struct tails *tails, uint32_t from,
                      struct code_range range)
{
    static const struct code_range lengths[] = {
        {0, 0x7F}, {0x80, 0x7FF}, {0x800, 0xD7FF}, {0xE000, 0xFFFF}, {0x10000, 0x10FFFF}};
    for (size_t i = 0; i < ARRAY_COUNT(lengths); i++) {
        uint32_t first = MAX(range.first, lengths[i].first);
        uint32_t last = MIN(range.last, lengths[i].last);
        char low[4], high[4];
        if (first > last)
            continue;
        size_t n = utf8_encode(first, low);
        utf8_encode(last, high);
        add_span(b, tails, from, (const uint8_t *)low, (const uint8_t *)high, n);
    }
}

static void emit(struct builder *b, const struct expression *node, uint32_t from, uint32_t to);

static void emit_repeat(struct builder *b, const struct expression *node, uint32_t from,
                        uint32_t to)
{
    uint32_t at = from;
    for (uint32_t i = 0; i < node->min && !b->failed; i++) {
        uint32_t next = add_state(b);
        emit(b, node->child, at, next);
        at = next;
    }
    if (node->max == GRAMMAR_NO_LIMIT) {
        uint32_t loop = add_state(b);
        add_empty(b, at, loop);
        emit(b, node->child, loop, loop);
        add_empty(b, loop, to);
        return;
    }
    for (uint32_t i = node->min; i < node->max && !b->failed; i++) {
        uint32_t next = add_state(b);
        add_empty(b, at, to);
        emit(b, node->child, at, next);
        at = next;
    }
    add_empty(b, at, to);
}

/* Adds what leads from one state to another by reading what node allows. Expressions nest as deep
 * as their parsers let them, GRAMMAR_MAX_DEPTH. */
static void emit(struct builder *b, const struct expression *node, uint32_t from, uint32_t to)
{
    if (b->failed || node == NULL)
        return;
    struct tails tails = {.state = {to}, .made = {true}};
    uint32_t at = from;
    switch (node->kind) {
    case EXPRESSION_BYTES:
        for (size_t i = 0; i < node->bytes.size; i++) {
            uint32_t next = i + 1 < node->bytes.size ? add_state(b) : to;
            uint8_t byte = (uint8_t)node->bytes.data[i];
            add_bytes(b, at, next, byte, byte);
            at = next;
        }
        if (node->bytes.size == 0)
            add_empty(b, from, to);
        break;
    case EXPRESSION_RANGES:
        for (size_t i = 0; i < node->n_ranges; i++)
            add_range(b, &tails, from, node->ranges[i]);
        break;
    case EXPRESSION_SEQUENCE:
        for (const struct expression *c = node->child; c != NULL; c = c->next) {
            uint32_t next = c->next != NULL ? add_state(b) : to;
            emit(b, c, at, next);
            at = next;
        }
        if (node->child == NULL)
            add_empty(b, from, to);
        break;
    case EXPRESSION_CHOICE:
        for (const struct expression *c = node->child; c != NULL; c = c->next)
            emit(b, c, from, to);
        break;
    case EXPRESSION_REPEAT:
        emit_repeat(b, node, from, to);
        break;
    case EXPRESSION_RULE:
        add_arc(b, from, (struct arc){.target = to, .rule = node->rule, .kind = ARC_CALL});
        if (b->nullable[node->rule])
            add_empty(b, from, to);
        break;
    }
}

/* Whether node may be empty, as far as is known of the rules. */
static bool may_be_empty(const struct builder *b, const struct expression *node)
{
    switch (node->kind) {
    case EXPRESSION_BYTES:
        return node->bytes.size == 0;
    case EXPRESSION_RANGES:
        return false;
    case EXPRESSION_SEQUENCE:
        for (const struct expression *c = node->child; c != NULL; c = c->next)
            if (!may_be_empty(b, c))
                return false;
        return true;
    case EXPRESSION_CHOICE:
        for (const struct expression *c = node->child; c != NULL; c = c->next)
            if (may_be_empty(b, c))
                return true;
        return false;
    case EXPRESSION_REPEAT:
        return node->min == 0 || may_be_empty(b, node->child);
    case EXPRESSION_RULE:
        return b->nullable[node->rule];
    }
    return false;
}

static void find_nullable(struct builder *b)
{
    for (bool changed = true; changed;) {
        changed = false;
        for (uint32_t r = 0; r < b->rules->count; r++)
            if (!b->nullable[r] && may_be_empty(b, b->rules->list[r].body)) {
                b->nullable[r] = true;
                changed = true;
            }
    }
}

/* ---- Taking the empty moves out -------------------------------------------------------------- */

/* The number of a state in the program; it is visited later where it is new. */
static uint32_t number_of(struct builder *b, uint32_t state)
{
    if (b->numbers[state] == 0) {
        b->kept[b->n_kept] = state;
        b->numbers[state] = ++b->n_kept;
    }
    return b->numbers[state] - 1;
}

static void add_edge(struct builder *b, struct program_edge edge)
{
    if (reserve(b, (void **)&b->program->edges, &b->edge_capacity, b->n_edges, sizeof edge,
                PROGRAM_MAX_EDGES))
        b->program->edges[b->n_edges++] = edge;
}

static void add_call(struct builder *b, struct program_call call)
{
    if (reserve(b, (void **)&b->program->calls, &b->call_capacity, b->n_calls, sizeof call,
                PROGRAM_MAX_EDGES))
        b->program->calls[b->n_calls++] = call;
}

/* All that one state leads to by empty moves and then something else. Says whether a rule ends. */
static bool gather(struct builder *b, uint32_t state, const bool *is_end)
{
    uint32_t n = 0;
    bool final = false;
    b->stamp++;
    b->queue[n++] = state;
    b->stamps[state] = b->stamp;
    for (uint32_t i = 0; i < n && !b->failed; i++) {
        final |= is_end[b->queue[i]];
        for (uint32_t a = b->heads[b->queue[i]]; a != 0; a = b->arcs[a - 1].next) {
            const struct arc *arc = &b->arcs[a - 1];
            if (arc->kind == ARC_BYTES) {
                add_edge(b,
                         (struct program_edge){number_of(b, arc->target), arc->first, arc->last});
            } else if (arc->kind == ARC_CALL) {
                number_of(b, b->begins[arc->rule]);
                add_call(b, (struct program_call){arc->rule, number_of(b, arc->target)});
            } else if (b->stamps[arc->target] != b->stamp) {
                b->stamps[arc->target] = b->stamp;
                b->queue[n++] = arc->target;
            }
        }
    }
    return final;
}

/* Fills the program with what the root reaches. */
static void gather_all(struct builder *b)
{
    struct program *program = b->program;
    bool *is_end = calloc(b->n_states, sizeof *is_end);
    b->numbers = calloc(b->n_states, sizeof *b->numbers);
    b->kept = calloc(b->n_states, sizeof *b->kept);
    b->stamps = calloc(b->n_states, sizeof *b->stamps);
    b->queue = calloc(b->n_states, sizeof *b->queue);
    program->states = calloc((size_t)b->n_states + 1, sizeof *program->states);
    b->failed = is_end == NULL || b->numbers == NULL || b->kept == NULL || b->stamps == NULL ||
                b->queue == NULL || program->states == NULL;
    if (!b->failed) {
        for (uint32_t r = 0; r < b->rules->count; r++)
            is_end[b->ends[r]] = true;
        number_of(b, b->begins[b->rules->root]);
        for (uint32_t i = 0; i < b->n_kept && !b->failed; i++) {
            program->states[i].first_edge = b->n_edges;
            program->states[i].first_call = b->n_calls;
            program->states[i].final = gather(b, b->kept[i], is_end);
        }
        program->n_states = b->n_kept;
        program->states[b->n_kept].first_edge = b->n_edges;
        program->states[b->n_kept].first_call = b->n_calls;
        for (uint32_t r = 0; r < b->rules->count; r++) {
            uint32_t number = b->numbers[b->begins[r]];
            program->starts[r] = number > 0 ? number - 1 : UINT32_MAX;
        }
    }
    free(is_end);
}

/* ---- What leads nowhere ---------------------------------------------------------------------- */

static bool leads_on(const struct program *program, const bool *good, uint32_t s)
{
    const struct program_state *state = &program->states[s];
    bool found = state->final;
    for (uint32_t e = state[0].first_edge; e < state[1].first_edge && !found; e++)
        found = good[program->edges[e].target];
    for (uint32_t c = state[0].first_call; c < state[1].first_call && !found; c++)
        found = good[program->calls[c].target] && good[program->starts[program->calls[c].rule]];
    return found;
}

/* Drops the edges and calls from which no rule comes to its end. False when memory is out. */
static bool prune(struct program *program)
{
    bool *good = calloc(program->n_states, sizeof *good);
    if (good == NULL)
        return false;
    for (bool changed = true; changed;) {
        changed = false;
        for (uint32_t s = program->n_states; s-- > 0;)
            if (!good[s] && leads_on(program, good, s))
                good[s] = changed = true;
    }
    uint32_t n_edges = 0, n_calls = 0;
    for (uint32_t s = 0; s < program->n_states; s++) {
        struct program_state *state = &program->states[s];
        uint32_t edge = state->first_edge, call = state->first_call;
        state->first_edge = n_edges;
        state->first_call = n_calls;
        for (; edge < state[1].first_edge; edge++)
            if (good[program->edges[edge].target])
                program->edges[n_edges++] = program->edges[edge];
        for (; call < state[1].first_call; call++)
            if (good[program->calls[call].target] &&
                good[program->starts[program->calls[call].rule]])
                program->calls[n_calls++] = program->calls[call];
    }
    program->states[program->n_states].first_edge = n_edges;
    program->states[program->n_states].first_call = n_calls;
    bool root = good[program->starts[program->root]];
    if (!root)
        program->n_states = 0;
    free(good);
    return true;
}

/* ---- Order of rules and classes of bytes ----------------------------------------------------- */

enum { RANK_NONE, RANK_OPEN, RANK_DONE };

/* Ranks the rules that this one calls before it reads anything, then it. *rank counts down.
 * UINT32_MAX, or the rule that comes to call itself. */
static uint32_t rank_rule(struct program *program, uint8_t *marks, uint32_t rule, uint32_t *rank,
                          unsigned depth)
{
    if (marks[rule] == RANK_DONE)
        return UINT32_MAX;
    if (marks[rule] == RANK_OPEN || depth > 10000)
        return rule;
    marks[rule] = RANK_OPEN;
    const struct program_state *state = &program->states[program->starts[rule]];
    for (uint32_t c = state[0].first_call; c < state[1].first_call; c++) {
        uint32_t culprit = rank_rule(program, marks, program->calls[c].rule, rank, depth + 1);
        if (culprit != UINT32_MAX)
            return culprit;
    }
    marks[rule] = RANK_DONE;
    program->ranks[rule] = --*rank;
    return UINT32_MAX;
}

static enum status rank_rules(struct program *program, const struct rules *rules,
                              struct error *error)
{
    uint8_t *marks = calloc(program->n_rules, sizeof *marks);
    uint32_t rank = program->n_rules, culprit = UINT32_MAX;
    if (marks == NULL)
        return error_memory(error, program->n_rules);
    for (uint32_t r = 0; r < program->n_rules && culprit == UINT32_MAX; r++)
        if (program->starts[r] != UINT32_MAX)
            culprit = rank_rule(program, marks, r, &rank, 0);
    free(marks);
    if (culprit == UINT32_MAX)
        return STATUS_OK;
    struct view name = rules->list[culprit].name;
    return error_set(error, STATUS_INVALID,
                     "the rule %.*s calls itself before it reads anything (left recursion): write "
                     "it with a repetition, or with the recursion at its end",
                     (int)MIN(name.size, (size_t)80), name.data);
}

/* From bytes to classes. A space is one of its own (automaton_skip_space). */
static void classify(struct program *program)
{
    bool begins[257] = {[0] = true, [' '] = true, [' ' + 1] = true};
    uint32_t n_edges = program->states[program->n_states].first_edge;
    for (uint32_t e = 0; e < n_edges; e++) {
        begins[program->edges[e].first] = true;
        begins[program->edges[e].last + 1] = true;
    }
    for (unsigned byte = 0; byte < 256; byte++) {
        program->n_classes += begins[byte];
        program->class_of[byte] = (uint8_t)(program->n_classes - 1);
    }
    for (uint32_t e = 0; e < n_edges; e++) {
        program->edges[e].first = program->class_of[program->edges[e].first];
        program->edges[e].last = program->class_of[program->edges[e].last];
    }
}

/* ---- Opening --------------------------------------------------------------------------------- */

static void build(struct builder *b)
{
    find_nullable(b);
    for (uint32_t r = 0; r < b->rules->count && !b->failed; r++) {
        b->begins[r] = add_state(b);
        b->ends[r] = add_state(b);
        emit(b, b->rules->list[r].body, b->begins[r], b->ends[r]);
    }
    if (!b->failed)
        gather_all(b);
    b->failed = b->failed || !prune(b->program);
}

static void free_builder(struct builder *b)
{
    free(b->heads);
    free(b->arcs);
    free(b->nullable);
    free(b->begins);
    free(b->ends);
    free(b->numbers);
    free(b->kept);
    free(b->stamps);
    free(b->queue);
}

enum status program_open(struct program **out, const struct rules *rules, struct error *error)
{
    *out = NULL;
    struct program *program = calloc(1, sizeof *program);
    if (program == NULL)
        return error_memory(error, sizeof *program);
    struct builder b = {.rules = rules, .program = program};
    program->n_rules = rules->count;
    program->root = rules->root;
    b.nullable = calloc(rules->count, sizeof *b.nullable);
    b.begins = calloc(rules->count, sizeof *b.begins);
    b.ends = calloc(rules->count, sizeof *b.ends);
    program->starts = calloc(rules->count, sizeof *program->starts);
    program->ranks = calloc(rules->count, sizeof *program->ranks);
    b.failed = b.nullable == NULL || b.begins == NULL || b.ends == NULL ||
               program->starts == NULL || program->ranks == NULL;
    if (!b.failed)
        build(&b);
    free_builder(&b);
    enum status status = STATUS_OK;
    if (b.too_large)
        status = error_set(error, STATUS_LIMIT,
                           "the grammar is too large: it would have more than %zu states or %zu "
                           "edges; use smaller repetitions",
                           PROGRAM_MAX_STATES, PROGRAM_MAX_EDGES);
    else if (b.failed)
        status = error_memory(error, PROGRAM_MAX_STATES);
    else if (program->n_states == 0)
        status = error_set(error, STATUS_INVALID, "no text is possible by this grammar");
    if (status == STATUS_OK)
        status = rank_rules(program, rules, error);
    if (status != STATUS_OK) {
        program_close(program);
        return status;
    }
    classify(program);
    *out = program;
    return STATUS_OK;
}

void program_close(struct program *program)
{
    if (program == NULL)
        return;
    free(program->states);
    free(program->edges);
    free(program->calls);
    free(program->starts);
    free(program->ranks);
    free(program);
}
