#include "sample/schema_internal.h"

#define MAX_ONCE 8 /* values of a list whose items differ */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static struct expression *text(struct schema *schema, const char *string)
{
    return expression_text(schema->rules, string);
}

static struct expression *space(struct schema *schema)
{
    return schema_shared(schema, SCHEMA_SPACE);
}

static struct expression *comma(struct schema *schema)
{
    return expression_sequence_of(schema->rules, space(schema), text(schema, ","), space(schema),
                                  NULL);
}

static struct expression *bracketed(struct schema *schema, const char *open,
                                    struct expression *inner, const char *close)
{
    return expression_sequence_of(schema->rules, text(schema, open), space(schema), inner,
                                  space(schema), text(schema, close), NULL);
}

static struct expression *nothing(struct schema *schema)
{
    return expression_list(schema->rules, EXPRESSION_SEQUENCE);
}

/* min to max of item with commas between. */
static struct expression *list_of(struct schema *schema, struct expression *item, uint32_t min,
                                  uint32_t max)
{
    uint32_t rule;
    struct rules *rules = schema->rules;
    struct expression *first = schema_as_rule(schema, item, &rule);
    if (max == 0 || first == NULL)
        return nothing(schema);
    struct expression *more =
        expression_sequence_of(rules, comma(schema), expression_rule(rules, rule), NULL);
    uint32_t rest = max == GRAMMAR_NO_LIMIT ? max : max - 1;
    struct expression *list = expression_sequence_of(
        rules, first, expression_repeat(rules, more, min > 0 ? min - 1 : 0, rest), NULL);
    return min == 0 ? expression_repeat(rules, list, 0, 1) : list;
}

/* ---- Arrays ---------------------------------------------------------------------------------- */

static struct expression *part(struct schema *schema, const json_t *value, const char *keyword,
                               const char *name)
{
    size_t mark = schema_enter(schema, keyword, name);
    struct expression *node = schema->failed ? NULL : schema_value(schema, value);
    schema_leave(schema, mark);
    return node;
}

/* Each of few values once at most: a rule for each set of those that were written. */
static struct expression *once_each(struct schema *schema, const json_t *items, uint32_t min,
                                    uint32_t max)
{
    struct rules *rules = schema->rules;
    const json_t *list = json_object_get(items, "enum");
    size_t n = json_array_size(list);
    uint32_t values[MAX_ONCE];
    if (list == NULL || n > MAX_ONCE) {
        schema_fail(schema, "uniqueItems",
                    "it can only be enforced of the values of an enum, %d of them", MAX_ONCE);
        return NULL;
    }
    for (size_t i = 0; i < n; i++) {
        json_t *one = json_copy((json_t *)items);
        bool kept =
            one != NULL && json_array_append_new(schema->merged, one) == 0 &&
            json_object_set_new(one, "enum", json_pack("[O]", json_array_get(list, i))) == 0;
        for (size_t j = 0; j < i; j++)
            if (json_equal(json_array_get(list, i), json_array_get(list, j)))
                schema_fail(schema, "items", "a value stands in the enum twice");
        if (!kept || schema->failed ||
            schema_as_rule(schema, part(schema, one, "items", NULL), &values[i]) == NULL)
            return NULL;
    }
    uint32_t first = rules->count;
    for (size_t set = 0; set < (size_t)1 << n; set++)
        rules_add(rules, view_of("set"));
    for (uint32_t set = 0; set < 1u << n && !rules->failed; set++) {
        struct expression *choice = expression_list(rules, EXPRESSION_CHOICE);
        uint32_t count = 0;
        for (size_t i = 0; i < n; i++)
            count += set >> i & 1;
        if (count >= min)
            expression_add(choice, nothing(schema));
        for (size_t i = 0; i < n && count < max; i++)
            if ((set >> i & 1) == 0)
                expression_add(choice, expression_sequence_of(
                                           rules, count > 0 ? comma(schema) : nothing(schema),
                                           expression_rule(rules, values[i]),
                                           expression_rule(rules, first + (set | 1u << i)), NULL));
        rules->list[first + set].body = choice;
    }
    return rules->failed ? NULL : bracketed(schema, "[", expression_rule(rules, first), "]");
}

struct expression *schema_array(struct schema *schema, const json_t *value)
{
    const json_t *items = json_object_get(value, "items");
    const json_t *prefix = json_object_get(value, "prefixItems");
    if (json_is_array(items)) { /* as it was before draft 2020-12 */
        prefix = items;
        items = json_object_get(value, "additionalItems");
    }
    size_t n_prefix = json_array_size(prefix);
    uint32_t min = schema_count(schema, value, "minItems", 0);
    uint32_t max = schema_count(schema, value, "maxItems", GRAMMAR_NO_LIMIT);
    struct expression *inner = expression_list(schema->rules, EXPRESSION_SEQUENCE);
    if (max < min)
        schema_fail(schema, "maxItems", "it is below minItems");
    if (json_is_true(json_object_get(value, "uniqueItems")) && max > 1) {
        const json_t *rule = items != NULL ? schema_follow(schema, items) : NULL;
        if (n_prefix > 0 && !schema->failed)
            schema_fail(schema, "uniqueItems", "beside prefixItems it cannot be enforced");
        return schema->failed ? NULL : once_each(schema, rule, min, max);
    }
    n_prefix = MIN(n_prefix, (size_t)max);
    for (size_t i = 0; i < n_prefix && !schema->failed; i++) {
        char index[24];
        snprintf(index, sizeof index, "%zu", i);
        if (i > 0)
            expression_add(inner, comma(schema));
        expression_add(inner, part(schema, json_array_get(prefix, i), "prefixItems", index));
    }
    uint32_t more_min = min > n_prefix ? min - (uint32_t)n_prefix : 0;
    uint32_t more_max = max == GRAMMAR_NO_LIMIT ? max : max - (uint32_t)n_prefix;
    if (items == NULL && n_prefix > 0)
        more_max = more_min; /* others are allowed, but nobody asked for them */
    if (json_is_false(items))
        more_max = 0;
    if (more_max > 0 && !schema->failed) {
        struct expression *item = items != NULL ? part(schema, items, "items", NULL)
                                                : schema_shared(schema, SCHEMA_VALUE);
        struct expression *rest = list_of(schema, item, more_min, more_max);
        if (n_prefix > 0)
            rest = expression_repeat(
                schema->rules,
                expression_sequence_of(schema->rules, comma(schema),
                                       list_of(schema, item, MAX(more_min, 1u), more_max), NULL),
                more_min > 0, 1);
        expression_add(inner, rest);
    }
    if (more_max < more_min)
        return expression_list(schema->rules, EXPRESSION_CHOICE); /* impossible */
    return bracketed(schema, "[", inner, "]");
}

/* ---- Names of properties --------------------------------------------------------------------- */

static int compare_names(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

/* Characters of names that no schema speaks of; without escapes each has one spelling. */
static const struct code_range name_ranges[] = {{0x20, 0x21}, {0x23, 0x5B}, {0x5D, 0x10FFFF}};

/* The rest of a name that is none of names[n], sorted, which all share their first `at` bytes.
 * They are told apart by their bytes below 0x80; other characters are left to the names. */
static struct expression *other_rest(struct schema *schema, const char **names, size_t n, size_t at)
{
    struct rules *rules = schema->rules;
    struct expression *choice = expression_list(rules, EXPRESSION_CHOICE);
    struct code_range taken[140], free_ranges[141];
    size_t n_taken = 0, i = 0;
    bool ends_here = n > 0 && names[0][at] == '\0';
    if (!ends_here)
        expression_add(choice, nothing(schema));
    taken[n_taken++] = (struct code_range){0, 0x1F};
    taken[n_taken++] = (struct code_range){'"', '"'};
    taken[n_taken++] = (struct code_range){'\\', '\\'};
    for (i += ends_here; i < n;) {
        unsigned char byte = (unsigned char)names[i][at];
        size_t end = i + 1;
        while (end < n && (unsigned char)names[end][at] == byte)
            end++;
        if (byte >= 0x80) {
            taken[n_taken++] = (struct code_range){0x80, 0x10FFFF};
            break;
        }
        taken[n_taken++] = (struct code_range){byte, byte};
        if (byte >= 0x20 && byte != '"' && byte != '\\') {
            char one[2] = {(char)byte, '\0'};
            expression_add(choice, expression_sequence_of(
                                       rules, text(schema, one),
                                       other_rest(schema, names + i, end - i, at + 1), NULL));
        }
        i = end;
    }
    n_taken = ranges_normalise(taken, n_taken);
    size_t n_free = ranges_invert(taken, n_taken, free_ranges);
    struct expression *any = expression_ranges(rules, name_ranges, ARRAY_COUNT(name_ranges));
    expression_add(
        choice, expression_sequence_of(rules, expression_ranges(rules, free_ranges, n_free),
                                       expression_repeat(rules, any, 0, GRAMMAR_NO_LIMIT), NULL));
    return choice;
}

/* The name of a property that the schema does not speak of, in quotes. */
static struct expression *other_name(struct schema *schema, const json_t *properties)
{
    size_t n = json_object_size(properties), i = 0;
    const char **names = calloc(MAX(n, (size_t)1), sizeof *names), *key;
    json_t *member;
    if (names == NULL) {
        schema->rules->failed = true;
        return NULL;
    }
    json_object_foreach((json_t *)properties, key, member) names[i++] = key;
    qsort(names, n, sizeof *names, compare_names);
    bool long_name = n > 0 && strlen(names[0]) > GRAMMAR_MAX_DEPTH / 2;
    for (i = 0; i < n; i++)
        long_name |= strlen(names[i]) > GRAMMAR_MAX_DEPTH / 2;
    if (long_name)
        schema_fail(schema, "additionalProperties", "beside so long a name it cannot be enforced");
    struct expression *node =
        schema->failed
            ? NULL
            : expression_sequence_of(schema->rules, text(schema, "\""),
                                     other_rest(schema, names, n, 0), text(schema, "\""), NULL);
    free(names);
    return node;
}

/* ---- Objects --------------------------------------------------------------------------------- */

static struct expression *pair(struct schema *schema, struct expression *name,
                               struct expression *value)
{
    return expression_sequence_of(schema->rules, name, space(schema), text(schema, ":"),
                                  space(schema), value, NULL);
}

/* What properties beside those that are named may be; NULL: none. */
static struct expression *other_pair(struct schema *schema, const json_t *value)
{
    const json_t *properties = json_object_get(value, "properties");
    const json_t *others = json_object_get(value, "additionalProperties");
    const json_t *patterns = json_object_get(value, "patternProperties");
    const json_t *names = json_object_get(value, "propertyNames");
    bool named = json_object_size(properties) > 0;
    struct expression *name;
    if (json_object_size(patterns) > 0) {
        const char *key = json_object_iter_key(json_object_iter((json_t *)patterns));
        uint32_t min, max;
        if (json_object_size(patterns) > 1 || named || names != NULL || json_is_object(others))
            schema_fail(schema, "patternProperties",
                        "beside other properties or patterns it cannot be enforced");
        name = schema->failed
                   ? NULL
                   : schema_pattern(schema, "patternProperties", view_of(key), &min, &max);
        name = expression_sequence_of(schema->rules, text(schema, "\""), name, text(schema, "\""),
                                      NULL);
        return schema->failed
                   ? NULL
                   : pair(schema, name,
                          part(schema, json_object_get(patterns, key), "patternProperties", key));
    }
    if (json_is_false(others) || (others == NULL && named))
        return NULL;
    if (schema->closed && others == NULL && names == NULL &&
        json_object_get(value, "minProperties") == NULL)
        return NULL;
    if (names != NULL) {
        if (named)
            schema_fail(schema, "propertyNames", "beside properties it cannot be enforced");
        size_t mark = schema_enter(schema, "propertyNames", NULL);
        const json_t *rule = schema_follow(schema, names);
        const json_t *list = rule != NULL ? json_object_get(rule, "enum") : NULL;
        name = schema->failed ? NULL
               : list != NULL ? schema_value(schema, rule)
                              : schema_string(schema, rule);
        schema_leave(schema, mark);
    } else {
        name = named ? other_name(schema, properties) : schema_shared(schema, SCHEMA_STRING);
    }
    bool any = others == NULL || json_is_true(others);
    return pair(schema, name,
                any ? schema_shared(schema, SCHEMA_VALUE)
                    : part(schema, others, "additionalProperties", NULL));
}

/* An object without named properties: min to max pairs. */
static struct expression *map(struct schema *schema, struct expression *others, uint32_t min,
                              uint32_t max)
{
    if (others == NULL)
        return min > 0 ? expression_list(schema->rules, EXPRESSION_CHOICE) /* impossible */
                       : bracketed(schema, "{", nothing(schema), "}");
    if (min > 1)
        schema_fail(schema, "minProperties",
                    "more than 1 cannot be enforced: a name may come twice");
    return bracketed(schema, "{", list_of(schema, others, min, max), "}");
}

struct property {
    const char *name;
    bool required;
    uint32_t pair; /* the rule of its name and value */
};

/* Lists the properties in their order, then those that are only required. How many. */
static size_t list_properties(struct schema *schema, const json_t *value, struct property *list,
                              size_t limit)
{
    const json_t *properties = json_object_get(value, "properties");
    const json_t *required = json_object_get(value, "required");
    const char *key;
    json_t *member;
    size_t n = 0;
    json_object_foreach((json_t *)properties, key, member)
    {
        if (n < limit)
            list[n++] = (struct property){.name = key};
    }
    for (size_t i = 0; i < json_array_size(required); i++) {
        const char *name = json_string_value(json_array_get(required, i));
        size_t p = 0;
        if (name == NULL)
            schema_fail(schema, "required", "it must be a list of names");
        while (name != NULL && p < n && strcmp(list[p].name, name) != 0)
            p++;
        if (name != NULL && p < limit)
            list[p] = (struct property){.name = name, .required = true};
        n = MAX(n, MIN(p + 1, limit));
    }
    return n;
}

static void add_pair(struct schema *schema, const json_t *value, struct property *property)
{
    const json_t *member = json_object_get(json_object_get(value, "properties"), property->name);
    const json_t *others = json_object_get(value, "additionalProperties");
    json_t *name = json_string(property->name);
    if (member == NULL)
        member = others;
    size_t mark = schema_enter(schema, "properties", property->name);
    struct expression *inner =
        member != NULL ? schema_value(schema, member) : schema_shared(schema, SCHEMA_VALUE);
    schema_leave(schema, mark);
    struct expression *body = pair(schema, schema_literal(schema, name), inner);
    schema_as_rule(schema, body, &property->pair);
    json_decref(name);
}

/* The properties in order, each that is optional written or not. after[i]: what may follow when one
 * before the i-th was written. */
static struct expression *properties_in_order(struct schema *schema, const struct property *list,
                                              size_t n, struct expression *others)
{
    struct rules *rules = schema->rules;
    struct expression *choice = expression_list(rules, EXPRESSION_CHOICE);
    uint32_t after, other_rule = 0;
    struct expression *tail = nothing(schema);
    if (others != NULL) {
        others = schema_as_rule(schema, others, &other_rule);
        tail = expression_repeat(rules, expression_sequence_of(rules, comma(schema), others, NULL),
                                 0, GRAMMAR_NO_LIMIT);
    }
    schema_as_rule(schema, tail, &after);
    size_t n_first = 0; /* those that may come first */
    while (n_first < n && !list[n_first].required)
        n_first++;
    n_first = MIN(n_first + 1, n);
    for (size_t i = n; i-- > 0 && !rules->failed;) {
        if (i < n_first)
            expression_add(choice,
                           expression_sequence_of(rules, expression_rule(rules, list[i].pair),
                                                  expression_rule(rules, after), NULL));
        struct expression *more = expression_sequence_of(
            rules, comma(schema), expression_rule(rules, list[i].pair), NULL);
        if (!list[i].required)
            more = expression_repeat(rules, more, 0, 1);
        schema_as_rule(schema,
                       expression_sequence_of(rules, more, expression_rule(rules, after), NULL),
                       &after);
    }
    bool none_required = n_first == n && !list[n - 1].required;
    if (none_required && others != NULL)
        expression_add(
            choice,
            expression_sequence_of(
                rules, expression_rule(rules, other_rule),
                expression_repeat(rules,
                                  expression_sequence_of(rules, comma(schema),
                                                         expression_rule(rules, other_rule), NULL),
                                  0, GRAMMAR_NO_LIMIT),
                NULL));
    if (none_required)
        expression_add(choice, nothing(schema));
    return choice;
}

struct expression *schema_object(struct schema *schema, const json_t *value)
{
    size_t limit = json_object_size(json_object_get(value, "properties")) +
                   json_array_size(json_object_get(value, "required"));
    uint32_t min = schema_count(schema, value, "minProperties", 0);
    uint32_t max = schema_count(schema, value, "maxProperties", GRAMMAR_NO_LIMIT);
    struct expression *others = other_pair(schema, value);
    if (schema->failed)
        return NULL;
    if (limit == 0)
        return map(schema, others, min, max);
    struct property *list = calloc(limit, sizeof *list);
    if (list == NULL) {
        schema->rules->failed = true;
        return NULL;
    }
    size_t n = list_properties(schema, value, list, limit), n_required = 0;
    for (size_t i = 0; i < n; i++)
        n_required += list[i].required;
    if (min > n_required)
        schema_fail(schema, "minProperties", "beside optional properties it cannot be enforced");
    if (max < n || (others != NULL && max != GRAMMAR_NO_LIMIT))
        schema_fail(schema, "maxProperties", "beside optional properties it cannot be enforced");
    for (size_t i = 0; i < n && !schema->failed && !schema->rules->failed; i++)
        add_pair(schema, value, &list[i]);
    struct expression *inner = schema->failed || schema->rules->failed
                                   ? NULL
                                   : properties_in_order(schema, list, n, others);
    free(list);
    return inner != NULL ? bracketed(schema, "{", inner, "}") : NULL;
}
