#include "sample/grammar_internal.h"

#include <stdlib.h>
#include <string.h>

#define MAX_PLACES 8192    /* of one state: beyond it a grammar is too ambiguous */
#define MAX_CUT_FRAMES 256 /* looked at for one cut */
#define MAX_BYTES ((size_t)128 << 20)

/* Where a rule returns to. What is no state of the program marks the two special stacks. */
#define RETURN_END UINT32_MAX
#define RETURN_BOTTOM (UINT32_MAX - 1)

struct stack {
    uint32_t first_frame, n_frames;
};

/* A growing list of numbers that never shrinks. */
struct places {
    struct place *items;
    uint32_t count, capacity;
};

/* A hash table of things that lie elsewhere: numbers + 1, 0 is free. */
struct table {
    uint32_t *slots;
    uint32_t mask, count;
};

struct automaton {
    const struct program *program;
    struct places frames; /* of all stacks: state is where to return, stack what is below */
    struct stack *stacks;
    uint32_t n_stacks, stack_capacity;
    struct table stack_table;

    struct places places; /* of all states */
    struct automaton_state *states;
    uint32_t n_states, state_capacity;
    struct table state_table;
    uint32_t *rows; /* [n_rows][n_classes] */
    uint32_t n_rows, row_capacity;
    bool failed;

    /* While the places of a state are found. */
    struct places work, entered, sorted;
    struct table seen;
    struct frame_list {
        uint32_t next; /* + 1 */
        struct place frame;
    } * waiting;
    uint32_t n_waiting, waiting_capacity;
    uint32_t *first_waiting; /* [n_rules] frames of rules to enter, + 1 */
    uint32_t *to_enter;      /* [n_to_enter] */
    uint32_t n_to_enter, n_cut;
    bool accepts, escapes;
};

/* ---- Lists and tables ------------------------------------------------------------------------ */

static bool grow(struct automaton *a, void **array, uint32_t *capacity, uint32_t n, size_t size)
{
    if (n < *capacity)
        return true;
    uint32_t wanted = MAX(2 * *capacity, 64u);
    void *grown = wanted > *capacity ? realloc(*array, wanted * size) : NULL;
    a->failed |= grown == NULL;
    if (grown == NULL)
        return false;
    *array = grown;
    *capacity = wanted;
    return true;
}

static void push(struct automaton *a, struct places *list, struct place place)
{
    if (grow(a, (void **)&list->items, &list->capacity, list->count, sizeof place))
        list->items[list->count++] = place;
}

static uint32_t hash_places(const struct place *items, uint32_t n, uint32_t extra)
{
    uint64_t hash = 0x9E3779B97F4A7C15u + extra;
    for (uint32_t i = 0; i < n; i++) {
        hash ^= (uint64_t)items[i].state << 32 | items[i].stack;
        hash *= 0xD6E8FEB86659FD93u;
        hash ^= hash >> 32;
    }
    return (uint32_t)hash;
}

/* Room for one more; the table is then at most half full. */
static bool table_reserve(struct automaton *a, struct table *table,
                          uint32_t (*hash_of)(const struct automaton *, uint32_t))
{
    if (table->slots != NULL && 2 * (table->count + 1) <= table->mask)
        return true;
    uint32_t size = table->slots != NULL ? 2 * (table->mask + 1) : 256;
    uint32_t *slots = calloc(size, sizeof *slots);
    a->failed |= slots == NULL;
    if (slots == NULL)
        return false;
    for (uint32_t i = 0; table->slots != NULL && i <= table->mask; i++) {
        if (table->slots[i] == 0)
            continue;
        uint32_t at = hash_of(a, table->slots[i] - 1) & (size - 1);
        while (slots[at] != 0)
            at = (at + 1) & (size - 1);
        slots[at] = table->slots[i];
    }
    free(table->slots);
    table->slots = slots;
    table->mask = size - 1;
    return true;
}

static int compare_places(const void *a, const void *b)
{
    const struct place *left = a, *right = b;
    if (left->state != right->state)
        return left->state < right->state ? -1 : 1;
    return (left->stack > right->stack) - (left->stack < right->stack);
}

static bool same_places(const struct place *a, const struct place *b, uint32_t n)
{
    return n == 0 || memcmp(a, b, n * sizeof *a) == 0;
}

/* Puts a list in order, each place once. */
static void sort_places(struct places *list)
{
    uint32_t kept = 0;
    if (list->count > 1)
        qsort(list->items, list->count, sizeof *list->items, compare_places);
    for (uint32_t i = 0; i < list->count; i++)
        if (kept == 0 || compare_places(&list->items[kept - 1], &list->items[i]) != 0)
            list->items[kept++] = list->items[i];
    list->count = kept;
}

/* ---- Stacks ---------------------------------------------------------------------------------- */

static uint32_t hash_stack(const struct automaton *a, uint32_t stack)
{
    const struct stack *s = &a->stacks[stack];
    return hash_places(a->frames.items + s->first_frame, s->n_frames, 0);
}

/* The number of the stack with these frames on top, which are put in order. */
static uint32_t intern_stack(struct automaton *a, struct places *frames)
{
    sort_places(frames);
    if (!table_reserve(a, &a->stack_table, hash_stack))
        return STACK_BOTTOM;
    struct table *table = &a->stack_table;
    uint32_t at = hash_places(frames->items, frames->count, 0) & table->mask;
    for (; table->slots[at] != 0; at = (at + 1) & table->mask) {
        const struct stack *s = &a->stacks[table->slots[at] - 1];
        if (s->n_frames == frames->count && memcmp(a->frames.items + s->first_frame, frames->items,
                                                   frames->count * sizeof *frames->items) == 0)
            return table->slots[at] - 1;
    }
    if (!grow(a, (void **)&a->stacks, &a->stack_capacity, a->n_stacks, sizeof *a->stacks))
        return STACK_BOTTOM;
    a->stacks[a->n_stacks] = (struct stack){a->frames.count, frames->count};
    for (uint32_t i = 0; i < frames->count; i++)
        push(a, &a->frames, frames->items[i]);
    table->slots[at] = ++a->n_stacks;
    table->count++;
    return a->n_stacks - 1;
}

/* ---- States ---------------------------------------------------------------------------------- */

static uint32_t state_extra(bool accepts, bool escapes)
{
    return (accepts ? 1u : 0u) + (escapes ? 2u : 0u);
}

static uint32_t hash_state(const struct automaton *a, uint32_t state)
{
    const struct automaton_state *s = &a->states[state];
    return hash_places(a->places.items + s->first_place, s->n_places,
                       state_extra(s->accepts, s->escapes));
}

static uint32_t add_state(struct automaton *a, const struct places *places)
{
    a->failed |= automaton_bytes(a) > MAX_BYTES;
    if (!grow(a, (void **)&a->states, &a->state_capacity, a->n_states, sizeof *a->states))
        return STATE_UNKNOWN;
    a->states[a->n_states] = (struct automaton_state){.first_place = a->places.count,
                                                      .n_places = places->count,
                                                      .accepts = a->accepts,
                                                      .escapes = a->escapes};
    for (uint32_t i = 0; i < places->count; i++)
        push(a, &a->places, places->items[i]);
    return a->n_states++;
}

/* The state of these places, which are put in order. */
static uint32_t intern_state(struct automaton *a, struct places *places)
{
    sort_places(places);
    if (places->count == 0 && !a->accepts && !a->escapes)
        return STATE_DEAD;
    if (a->failed || !table_reserve(a, &a->state_table, hash_state))
        return STATE_UNKNOWN;
    struct table *table = &a->state_table;
    uint32_t extra = state_extra(a->accepts, a->escapes);
    uint32_t at = hash_places(places->items, places->count, extra) & table->mask;
    for (; table->slots[at] != 0; at = (at + 1) & table->mask) {
        const struct automaton_state *s = &a->states[table->slots[at] - 1];
        if (s->n_places == places->count && s->accepts == a->accepts && s->escapes == a->escapes &&
            same_places(a->places.items + s->first_place, places->items, places->count))
            return table->slots[at] - 1;
    }
    uint32_t state = add_state(a, places);
    if (a->failed)
        return STATE_UNKNOWN;
    table->slots[at] = state + 1;
    table->count++;
    return state;
}

/* ---- Rules that end and begin ---------------------------------------------------------------- */

static uint32_t hash_work(const struct automaton *a, uint32_t index)
{
    return hash_places(&a->work.items[index], 1, 0);
}

/* Adds a place to work unless it is there. */
static void work_add(struct automaton *a, struct place place)
{
    if (!table_reserve(a, &a->seen, hash_work))
        return;
    uint32_t at = hash_places(&place, 1, 0) & a->seen.mask;
    for (; a->seen.slots[at] != 0; at = (at + 1) & a->seen.mask)
        if (compare_places(&a->work.items[a->seen.slots[at] - 1], &place) == 0)
            return;
    push(a, &a->work, place);
    a->seen.slots[at] = a->work.count;
    a->seen.count++;
}

static void work_clear(struct automaton *a)
{
    if (a->seen.count > 0)
        memset(a->seen.slots, 0, ((size_t)a->seen.mask + 1) * sizeof *a->seen.slots);
    a->seen.count = 0;
    a->work.count = 0;
}

/* Where rules have ended the text goes on behind their calls. */
static void leave_rules(struct automaton *a)
{
    for (uint32_t i = 0; i < a->work.count && a->work.count <= MAX_PLACES; i++) {
        struct place place = a->work.items[i];
        if (!a->program->states[place.state].final)
            continue;
        struct stack stack = a->stacks[place.stack];
        for (uint32_t f = 0; f < stack.n_frames; f++) {
            struct place frame = a->frames.items[stack.first_frame + f];
            if (frame.state == RETURN_END)
                a->accepts = true;
            else if (frame.state == RETURN_BOTTOM)
                a->escapes = true;
            else
                work_add(a, frame);
        }
    }
    a->failed |= a->work.count > MAX_PLACES;
}

static void wait_for(struct automaton *a, uint32_t rule, struct place frame)
{
    if (!grow(a, (void **)&a->waiting, &a->waiting_capacity, a->n_waiting, sizeof *a->waiting))
        return;
    if (a->first_waiting[rule] == 0)
        a->to_enter[a->n_to_enter++] = rule;
    a->waiting[a->n_waiting] = (struct frame_list){a->first_waiting[rule], frame};
    a->first_waiting[rule] = ++a->n_waiting;
}

/* Notes the rules that are called from a place. A call that is the last thing in its own rule
 * returns to where that one returns, so that lists written by recursion need no deep stack. */
static void call_rules(struct automaton *a, struct place place)
{
    const struct program_state *state = &a->program->states[place.state];
    for (uint32_t c = state[0].first_call; c < state[1].first_call; c++) {
        const struct program_call *call = &a->program->calls[c];
        const struct program_state *target = &a->program->states[call->target];
        bool is_last = target->final && target[0].first_edge == target[1].first_edge &&
                       target[0].first_call == target[1].first_call;
        if (!is_last) {
            wait_for(a, call->rule, (struct place){call->target, place.stack});
            continue;
        }
        struct stack stack = a->stacks[place.stack];
        for (uint32_t f = 0; f < stack.n_frames; f++)
            wait_for(a, call->rule, a->frames.items[stack.first_frame + f]);
    }
}

/* Takes out of those that wait the rule that no other one of them calls. */
static uint32_t next_rule(struct automaton *a)
{
    uint32_t best = 0;
    for (uint32_t i = 1; i < a->n_to_enter; i++)
        if (a->program->ranks[a->to_enter[i]] < a->program->ranks[a->to_enter[best]])
            best = i;
    uint32_t rule = a->to_enter[best];
    a->to_enter[best] = a->to_enter[--a->n_to_enter];
    return rule;
}

static void keep_if_reads(struct automaton *a, struct place place)
{
    const struct program_state *state = &a->program->states[place.state];
    if (state[0].first_edge < state[1].first_edge)
        push(a, &a->sorted, place);
}

/* From the places in work to the state: all that read a byte, before or within called rules. */
static uint32_t close_work(struct automaton *a)
{
    a->accepts = a->escapes = false;
    a->sorted.count = 0;
    leave_rules(a);
    for (uint32_t i = 0; i < a->work.count && !a->failed; i++) {
        keep_if_reads(a, a->work.items[i]);
        call_rules(a, a->work.items[i]);
    }
    while (a->n_to_enter > 0) {
        uint32_t rule = next_rule(a);
        a->entered.count = 0;
        for (uint32_t w = a->first_waiting[rule]; w != 0; w = a->waiting[w - 1].next)
            push(a, &a->entered, a->waiting[w - 1].frame);
        a->first_waiting[rule] = 0;
        struct place place = {a->program->starts[rule], intern_stack(a, &a->entered)};
        keep_if_reads(a, place);
        call_rules(a, place);
    }
    a->n_waiting = 0;
    return intern_state(a, &a->sorted);
}

/* ---- Steps ----------------------------------------------------------------------------------- */

static uint32_t take_step(struct automaton *a, uint32_t state, unsigned class)
{
    const struct automaton_state *s = &a->states[state];
    work_clear(a);
    for (uint32_t i = 0; i < s->n_places; i++) {
        struct place place = a->places.items[s->first_place + i];
        const struct program_state *from = &a->program->states[place.state];
        for (uint32_t e = from[0].first_edge; e < from[1].first_edge; e++) {
            const struct program_edge *edge = &a->program->edges[e];
            if (class >= edge->first && class <= edge->last)
                work_add(a, (struct place){edge->target, place.stack});
        }
    }
    return a->work.count == 0 ? STATE_DEAD : close_work(a);
}

static uint32_t add_row(struct automaton *a)
{
    unsigned n = a->program->n_classes;
    if (!grow(a, (void **)&a->rows, &a->row_capacity, a->n_rows, n * sizeof *a->rows))
        return 0;
    memset(a->rows + (size_t)a->n_rows * n, 0, n * sizeof *a->rows);
    return a->n_rows++;
}

uint32_t automaton_step(struct automaton *a, uint32_t state, uint8_t byte)
{
    if (state <= STATE_DEAD)
        return state;
    unsigned class = a->program->class_of[byte], n = a->program->n_classes;
    if (a->states[state].row == 0) {
        uint32_t row = add_row(a);
        if (row == 0)
            return STATE_UNKNOWN;
        a->states[state].row = row;
    }
    size_t at = (size_t)a->states[state].row * n + class;
    if (a->rows[at] == STATE_UNKNOWN) {
        uint32_t next = take_step(a, state, class);
        a->rows[at] = next;
    }
    return a->rows[at];
}

uint32_t automaton_start(struct automaton *a)
{
    work_clear(a);
    work_add(a, (struct place){a->program->starts[a->program->root], STACK_END});
    return close_work(a);
}

uint32_t automaton_skip_space(struct automaton *a, uint32_t state)
{
    if (state <= STATE_DEAD || a->failed)
        return state;
    struct automaton_state copy = a->states[state];
    uint32_t row = add_row(a);
    if (row == 0 ||
        !grow(a, (void **)&a->states, &a->state_capacity, a->n_states, sizeof *a->states))
        return STATE_UNKNOWN;
    copy.row = row;
    copy.mask = copy.shared = 0;
    copy.skips = true;
    a->rows[(size_t)row * a->program->n_classes + a->program->class_of[' ']] = state;
    a->states[a->n_states] = copy;
    return a->n_states++;
}

/* ---- Cutting --------------------------------------------------------------------------------- */

static uint32_t cut_stack(struct automaton *a, uint32_t stack, unsigned depth)
{
    struct stack s = a->stacks[stack];
    if (stack == STACK_END)
        return STACK_END;
    if (depth == 0 || a->n_cut + s.n_frames > MAX_CUT_FRAMES)
        return STACK_BOTTOM;
    a->n_cut += s.n_frames;
    struct places frames = {0};
    for (uint32_t f = 0; f < s.n_frames; f++) {
        struct place frame = a->frames.items[s.first_frame + f];
        if (frame.state < RETURN_BOTTOM)
            frame.stack = cut_stack(a, frame.stack, depth - 1);
        push(a, &frames, frame);
    }
    uint32_t cut = intern_stack(a, &frames);
    free(frames.items);
    return cut;
}

uint32_t automaton_cut(struct automaton *a, uint32_t state, unsigned depth)
{
    struct automaton_state s = a->states[state];
    struct places places = {0};
    a->n_cut = 0;
    for (uint32_t i = 0; i < s.n_places; i++) {
        struct place place = a->places.items[s.first_place + i];
        place.stack = cut_stack(a, place.stack, depth);
        push(a, &places, place);
    }
    a->accepts = s.accepts;
    a->escapes = s.escapes;
    uint32_t cut = intern_state(a, &places);
    free(places.items);
    return cut;
}

/* ---- Life ------------------------------------------------------------------------------------ */

enum status automaton_open(struct automaton **out, const struct program *program)
{
    struct automaton *a = calloc(1, sizeof *a);
    *out = NULL;
    if (a == NULL)
        return STATUS_MEMORY;
    a->program = program;
    a->first_waiting = calloc(program->n_rules, sizeof *a->first_waiting);
    a->to_enter = calloc(program->n_rules, sizeof *a->to_enter);
    a->failed = a->first_waiting == NULL || a->to_enter == NULL;
    push(a, &a->entered, (struct place){RETURN_END, STACK_END});
    if (!a->failed)
        intern_stack(a, &a->entered);
    a->entered.count = 0;
    push(a, &a->entered, (struct place){RETURN_BOTTOM, STACK_BOTTOM});
    if (!a->failed)
        intern_stack(a, &a->entered);
    /* The numbers of STATE_UNKNOWN and STATE_DEAD, and of no row. */
    const struct places none = {0};
    push(a, &a->places, (struct place){0}); /* so that there is a list to point into */
    add_state(a, &none);
    add_state(a, &none);
    add_row(a);
    if (a->failed) {
        automaton_close(a);
        return STATUS_MEMORY;
    }
    *out = a;
    return STATUS_OK;
}

void automaton_close(struct automaton *a)
{
    if (a == NULL)
        return;
    struct places *lists[] = {&a->frames, &a->places, &a->work, &a->entered, &a->sorted};
    for (size_t i = 0; i < ARRAY_COUNT(lists); i++)
        free(lists[i]->items);
    free(a->stacks);
    free(a->states);
    free(a->rows);
    free(a->stack_table.slots);
    free(a->state_table.slots);
    free(a->seen.slots);
    free(a->waiting);
    free(a->first_waiting);
    free(a->to_enter);
    free(a);
}

struct automaton_state *automaton_get(struct automaton *a, uint32_t state)
{
    return &a->states[state];
}

size_t automaton_bytes(const struct automaton *a)
{
    return a->frames.capacity * sizeof *a->frames.items +
           a->places.capacity * sizeof *a->places.items + a->stack_capacity * sizeof *a->stacks +
           a->state_capacity * sizeof *a->states +
           (size_t)a->row_capacity * a->program->n_classes * sizeof *a->rows +
           ((size_t)a->stack_table.mask + a->state_table.mask) * sizeof(uint32_t);
}
