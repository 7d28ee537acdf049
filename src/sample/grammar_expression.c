#include "sample/grammar_internal.h"

#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

uint32_t rules_add(struct rules *rules, struct view name)
{
    if (rules->count == GRAMMAR_MAX_RULES) {
        rules->failed = true;
        return UINT32_MAX;
    }
    if (rules->count == rules->capacity) {
        uint32_t capacity = MAX(2 * rules->capacity, 32u);
        struct rule *list = arena_array(rules->arena, capacity, sizeof *list);
        if (list == NULL) {
            rules->failed = true;
            return UINT32_MAX;
        }
        if (rules->count > 0)
            memcpy(list, rules->list, rules->count * sizeof *list);
        rules->list = list;
        rules->capacity = capacity;
    }
    rules->list[rules->count] = (struct rule){.name = name};
    return rules->count++;
}

static struct expression *add_node(struct rules *rules, enum expression_kind kind)
{
    struct expression *node = NULL;
    if (rules->n_nodes < GRAMMAR_MAX_NODES)
        node = arena_alloc(rules->arena, sizeof *node);
    rules->failed |= node == NULL;
    if (node == NULL)
        return NULL;
    rules->n_nodes++;
    node->kind = kind;
    return node;
}

struct expression *expression_bytes(struct rules *rules, struct view bytes)
{
    struct expression *node = add_node(rules, EXPRESSION_BYTES);
    if (node == NULL)
        return NULL;
    node->bytes = (struct view){arena_copy(rules->arena, bytes.data, bytes.size), bytes.size};
    rules->failed |= node->bytes.data == NULL;
    return node;
}

struct expression *expression_text(struct rules *rules, const char *text)
{
    return expression_bytes(rules, view_of(text));
}

struct expression *expression_ranges(struct rules *rules, const struct code_range *ranges, size_t n)
{
    struct expression *node = add_node(rules, EXPRESSION_RANGES);
    struct code_range *copy = arena_array(rules->arena, MAX(n, (size_t)1), sizeof *copy);
    if (node == NULL || copy == NULL) {
        rules->failed = true;
        return NULL;
    }
    if (n > 0)
        memcpy(copy, ranges, n * sizeof *copy);
    node->ranges = copy;
    node->n_ranges = n;
    return node;
}

struct expression *expression_set(struct rules *rules, const char *set)
{
    struct code_range ranges[16];
    size_t n = 0;
    for (; *set != '\0' && n < ARRAY_COUNT(ranges); set++) {
        uint32_t first = (unsigned char)*set, last = first;
        if (set[1] == '-' && set[2] != '\0') {
            last = (unsigned char)set[2];
            set += 2;
        }
        ranges[n++] = (struct code_range){first, last};
    }
    return expression_ranges(rules, ranges, n);
}

struct expression *expression_list(struct rules *rules, enum expression_kind kind)
{
    return add_node(rules, kind);
}

void expression_add(struct expression *list, struct expression *child)
{
    if (list == NULL || child == NULL)
        return;
    *(list->last != NULL ? &list->last->next : &list->child) = child;
    list->last = child;
}

struct expression *expression_repeat(struct rules *rules, struct expression *child, uint32_t min,
                                     uint32_t max)
{
    struct expression *node = add_node(rules, EXPRESSION_REPEAT);
    if (node == NULL)
        return NULL;
    node->child = child;
    node->min = min;
    node->max = max;
    return node;
}

struct expression *expression_rule(struct rules *rules, uint32_t rule)
{
    struct expression *node = add_node(rules, EXPRESSION_RULE);
    if (node != NULL)
        node->rule = rule;
    return node;
}

static struct expression *list_of(struct rules *rules, enum expression_kind kind, va_list list)
{
    struct expression *node = add_node(rules, kind), *child;
    while ((child = va_arg(list, struct expression *)) != NULL)
        expression_add(node, child);
    return node;
}

struct expression *expression_sequence_of(struct rules *rules, ...)
{
    va_list list;
    va_start(list, rules);
    struct expression *node = list_of(rules, EXPRESSION_SEQUENCE, list);
    va_end(list);
    return node;
}

struct expression *expression_choice_of(struct rules *rules, ...)
{
    va_list list;
    va_start(list, rules);
    struct expression *node = list_of(rules, EXPRESSION_CHOICE, list);
    va_end(list);
    return node;
}

/* ---- Ranges ---------------------------------------------------------------------------------- */

static int compare_ranges(const void *a, const void *b)
{
    uint32_t left = ((const struct code_range *)a)->first;
    uint32_t right = ((const struct code_range *)b)->first;
    return (left > right) - (left < right);
}

size_t ranges_normalise(struct code_range *ranges, size_t n)
{
    size_t kept = 0;
    if (n > 0)
        qsort(ranges, n, sizeof *ranges, compare_ranges);
    for (size_t i = 0; i < n; i++) {
        if (kept > 0 && ranges[i].first <= ranges[kept - 1].last + 1)
            ranges[kept - 1].last = MAX(ranges[kept - 1].last, ranges[i].last);
        else
            ranges[kept++] = ranges[i];
    }
    return kept;
}

size_t ranges_invert(const struct code_range *ranges, size_t n, struct code_range *out)
{
    uint32_t next = 0;
    size_t count = 0;
    for (size_t i = 0; i < n; i++) {
        if (ranges[i].first > next)
            out[count++] = (struct code_range){next, ranges[i].first - 1};
        next = ranges[i].last + 1;
    }
    if (next <= 0x10FFFF)
        out[count++] = (struct code_range){next, 0x10FFFF};
    return count;
}
