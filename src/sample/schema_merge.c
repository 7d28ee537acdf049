#include "sample/schema_internal.h"

#include <math.h>
#include <string.h>

/* ---- Merging --------------------------------------------------------------------------------- */

static bool lists_text(const json_t *list, const char *text)
{
    for (size_t i = 0; i < json_array_size(list); i++) {
        const char *one = json_string_value(json_array_get(list, i));
        if (one != NULL && strcmp(one, text) == 0)
            return true;
    }
    return false;
}

bool schema_names_type(const json_t *type, const char *word)
{
    if (json_is_string(type))
        return strcmp(json_string_value(type), word) == 0;
    return lists_text(type, word);
}

/* The types in both; an integer is a number. */
static json_t *merge_types(const json_t *a, const json_t *b)
{
    static const char *const words[] = {"object", "array",   "string", "integer",
                                        "number", "boolean", "null"};
    json_t *both = json_array();
    for (size_t i = 0; i < ARRAY_COUNT(words); i++) {
        bool integer = strcmp(words[i], "integer") == 0;
        bool in_a = schema_names_type(a, words[i]) || (integer && schema_names_type(a, "number"));
        bool in_b = schema_names_type(b, words[i]) || (integer && schema_names_type(b, "number"));
        bool covered = integer && schema_names_type(a, "number") && schema_names_type(b, "number");
        if (in_a && in_b && !covered)
            json_array_append_new(both, json_string(words[i]));
    }
    return both;
}

static json_t *merge_lists(const json_t *a, const json_t *b)
{
    json_t *all = json_copy((json_t *)a);
    for (size_t i = 0; i < json_array_size(b); i++) {
        const char *text = json_string_value(json_array_get(b, i));
        if (text == NULL || !lists_text(all, text))
            json_array_append(all, json_array_get(b, i));
    }
    return all;
}

static json_t *common_values(const json_t *a, const json_t *b)
{
    json_t *both = json_array();
    for (size_t i = 0; i < json_array_size(a); i++)
        for (size_t j = 0; j < json_array_size(b); j++)
            if (json_equal(json_array_get(a, i), json_array_get(b, j)))
                json_array_append(both, json_array_get(a, i));
    return both;
}

/* Of two whole numbers that are not too large; else NULL. */
static json_t *common_multiple(const json_t *a, const json_t *b)
{
    double left = json_number_value(a), right = json_number_value(b);
    if (!(left >= 1 && left <= 1e6 && right >= 1 && right <= 1e6) || left != floor(left) ||
        right != floor(right))
        return NULL;
    int64_t x = (int64_t)left, y = (int64_t)right;
    while (y != 0) {
        int64_t rest = x % y;
        x = y;
        y = rest;
    }
    return json_integer((int64_t)left / x * (int64_t)right);
}

static json_t *merge_properties(const json_t *a, const json_t *b)
{
    json_t *all = json_copy((json_t *)a), *member;
    const char *key;
    json_object_foreach((json_t *)b, key, member)
    {
        json_t *known = json_object_get(all, key);
        if (known == NULL)
            json_object_set(all, key, member);
        else if (!json_equal(known, member))
            json_object_set_new(all, key, json_pack("{s:[O,O]}", "allOf", known, member));
    }
    return all;
}

/* What both members of a keyword mean together; NULL where that is not known. */
static json_t *merge_members(const char *keyword, const json_t *a, const json_t *b)
{
    static const char *const least[] = {"minimum", "exclusiveMinimum", "minLength", "minItems",
                                        "minProperties"};
    static const char *const most[] = {"maximum", "exclusiveMaximum", "maxLength", "maxItems",
                                       "maxProperties"};
    if (json_equal(a, b))
        return json_incref((json_t *)a);
    for (size_t i = 0; i < ARRAY_COUNT(least); i++) {
        bool a_larger = json_number_value(a) > json_number_value(b);
        if (strcmp(keyword, least[i]) == 0)
            return json_incref((json_t *)(a_larger ? a : b));
        if (strcmp(keyword, most[i]) == 0)
            return json_incref((json_t *)(a_larger ? b : a));
    }
    if (strcmp(keyword, "type") == 0)
        return merge_types(a, b);
    if (strcmp(keyword, "multipleOf") == 0)
        return common_multiple(a, b);
    if (strcmp(keyword, "required") == 0)
        return merge_lists(a, b);
    if (strcmp(keyword, "enum") == 0)
        return common_values(a, b);
    if (strcmp(keyword, "properties") == 0)
        return merge_properties(a, b);
    if (strcmp(keyword, "items") == 0 && json_is_object(a) && json_is_object(b))
        return json_pack("{s:[O,O]}", "allOf", a, b);
    if (strcmp(keyword, "allOf") == 0)
        return merge_lists(a, b);
    return NULL;
}

/* Whether a forbids properties that b speaks of. */
static bool forbids(const json_t *a, const json_t *b)
{
    const json_t *others = json_object_get(a, "additionalProperties");
    const json_t *known = json_object_get(a, "properties");
    const char *key;
    json_t *member;
    if (others == NULL || json_is_true(others))
        return false;
    json_object_foreach(json_object_get(b, "properties"), key, member)
    {
        if (json_object_get(known, key) == NULL)
            return true;
    }
    return false;
}

const json_t *schema_merge(struct schema *schema, const json_t *a, const json_t *b)
{
    const char *key;
    json_t *member;
    a = schema_follow(schema, a);
    b = schema_follow(schema, b);
    if (schema->failed || json_is_false(a) || json_is_true(b))
        return a;
    if (json_is_false(b) || json_is_true(a))
        return b;
    if (!json_is_object(a) || !json_is_object(b) || forbids(a, b) || forbids(b, a)) {
        schema_fail(schema, "allOf",
                    "additionalProperties forbids what another part speaks of, or a part is no "
                    "schema");
        return NULL;
    }
    json_t *both = json_copy((json_t *)a);
    bool full = json_array_size(schema->merged) >= SCHEMA_MAX_MERGED;
    if (full || both == NULL || json_array_append_new(schema->merged, both) != 0) {
        schema->rules->failed = true;
        return NULL;
    }
    json_object_foreach((json_t *)b, key, member)
    {
        json_t *known = json_object_get(both, key);
        json_t *merged = json_incref(member);
        if (known != NULL && !schema_describes(key)) {
            json_decref(merged);
            merged = merge_members(key, known, member);
        }
        if (merged == NULL) {
            schema_fail(schema, "allOf", "two parts with %.40s cannot be enforced together", key);
            return NULL;
        }
        json_object_set_new(both, key, merged);
    }
    return both;
}

/* ---- Disjoint -------------------------------------------------------------------------------- */

/* The values that a schema lists, as a new list; NULL where it lists none. */
static json_t *listed(const json_t *schema)
{
    json_t *constant = json_object_get(schema, "const"), *list = json_object_get(schema, "enum");
    if (constant != NULL)
        return json_pack("[O]", constant);
    return json_is_array(list) ? json_incref(list) : NULL;
}

static bool values_disjoint(const json_t *a, const json_t *b)
{
    json_t *left = listed(a), *right = listed(b), *both = NULL;
    bool disjoint = false;
    if (left != NULL && right != NULL) {
        both = common_values(left, right);
        disjoint = both != NULL && json_array_size(both) == 0;
    }
    json_decref(left);
    json_decref(right);
    json_decref(both);
    return disjoint;
}

/* a requires a property that b forbids, or allows it only other values. */
static bool requires_else(struct schema *schema, const json_t *a, const json_t *b)
{
    const json_t *required = json_object_get(a, "required");
    const json_t *a_properties = json_object_get(a, "properties");
    const json_t *b_properties = json_object_get(b, "properties");
    for (size_t i = 0; i < json_array_size(required); i++) {
        const char *name = json_string_value(json_array_get(required, i));
        const json_t *left = name != NULL ? json_object_get(a_properties, name) : NULL;
        const json_t *right = name != NULL ? json_object_get(b_properties, name) : NULL;
        if (name == NULL)
            continue;
        if (right == NULL && json_is_false(json_object_get(b, "additionalProperties")))
            return true;
        if (left == NULL || right == NULL || !lists_text(json_object_get(b, "required"), name))
            continue;
        left = schema_follow(schema, left);
        right = schema_follow(schema, right);
        if (left != NULL && right != NULL && values_disjoint(left, right))
            return true;
    }
    return false;
}

bool schema_disjoint(struct schema *schema, const json_t *a, const json_t *b)
{
    a = schema_follow(schema, a);
    b = schema_follow(schema, b);
    if (a == NULL || b == NULL || json_is_false(a) || json_is_false(b))
        return true;
    const json_t *left = json_object_get(a, "type"), *right = json_object_get(b, "type");
    if (left != NULL && right != NULL) {
        json_t *both = merge_types(left, right);
        bool none = both != NULL && json_array_size(both) == 0;
        json_decref(both);
        if (none)
            return true;
    }
    return values_disjoint(a, b) || requires_else(schema, a, b) || requires_else(schema, b, a);
}
