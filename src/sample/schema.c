#include "sample/schema_internal.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- Faults and paths ------------------------------------------------------------------------ */

void schema_fail(struct schema *schema, const char *keyword, const char *format, ...)
{
    char text[160];
    va_list arguments;
    if (schema->failed)
        return;
    schema->failed = true;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    error_set(schema->error, STATUS_INVALID, "schema #%.120s%s%s: %s",
              schema->path.size > 0 ? schema->path.data : "", keyword != NULL ? "/" : "",
              keyword != NULL ? keyword : "", text);
}

void schema_refuse(struct schema *schema, const char *keyword)
{
    schema_fail(schema, keyword, "%s cannot be enforced", keyword);
}

size_t schema_enter(struct schema *schema, const char *keyword, const char *name)
{
    size_t mark = schema->path.size;
    buffer_printf(&schema->path, "/%s%s%s", keyword, name != NULL ? "/" : "",
                  name != NULL ? name : "");
    if (++schema->depth > SCHEMA_MAX_DEPTH)
        schema_fail(schema, NULL, "schemas are nested deeper than %d", SCHEMA_MAX_DEPTH);
    return mark;
}

void schema_leave(struct schema *schema, size_t mark)
{
    schema->depth--;
    schema->path.size = mark;
    if (schema->path.data != NULL)
        schema->path.data[mark] = '\0';
}

uint32_t schema_count(struct schema *schema, const json_t *value, const char *keyword,
                      uint32_t otherwise)
{
    const json_t *count = json_object_get(value, keyword);
    double number = json_number_value(count);
    if (count == NULL)
        return otherwise;
    if (!json_is_number(count) || number < 0 || number != (double)(int64_t)number) {
        schema_fail(schema, keyword, "it must be a whole number");
    } else if (number > GRAMMAR_MAX_REPEAT) {
        if (strncmp(keyword, "max", 3) == 0)
            return GRAMMAR_NO_LIMIT == otherwise ? GRAMMAR_MAX_REPEAT : otherwise;
        schema_fail(schema, keyword, "at most %u is possible", GRAMMAR_MAX_REPEAT);
    }
    return schema->failed ? 0 : (uint32_t)number;
}

/* ---- Shared rules ---------------------------------------------------------------------------- */

/* Space that makes a text readable, and not more of it. */
static const char shared_source[] =
    "root ::= value\n"
    "space ::= (\" \" | \"\\n\" (\" \"{0,32} | \"\\t\"{1,8}))?\n"
    "hex ::= [0-9a-fA-F]\n"
    "plain ::= [^\"\\\\\\x00-\\x1F]\n"
    "character ::= plain | \"\\\\\" ([\"\\\\/bfnrt] | \"u\" (\n"
    "    [1-9a-cA-CefEF] hex{3} | [dD] [0-7] hex{2} | \"0\" ([1-9a-fA-F] hex{2} |\n"
    "    \"0\" ([1-9a-fA-F] hex | \"0\" [1-9a-fA-F])) |\n"
    "    [dD] [89abAB] hex{2} \"\\\\u\" [dD] [c-fC-F] hex{2}))\n"
    "string ::= \"\\\"\" character* \"\\\"\"\n"
    "number ::= \"-\"? (\"0\" | [1-9] [0-9]{0,14}) (\".\" [0-9]{1,15})? ([eE] [+-]? [0-9]{1,2})?\n"
    "value ::= object | array | string | number | \"true\" | \"false\" | \"null\"\n"
    "pair ::= string space \":\" space value\n"
    "object ::= \"{\" space (pair (space \",\" space pair)* space)? \"}\"\n"
    "array ::= \"[\" space (value (space \",\" space value)* space)? \"]\"\n";

static const char *const shared_names[SCHEMA_N_RULES] = {"space",  "plain", "character", "string",
                                                         "number", "value", "object",    "array"};

/* The root's body is set later. */
static enum status add_shared(struct schema *schema)
{
    struct rules *rules = schema->rules;
    enum status status = gbnf_parse(rules, view_of(shared_source), schema->error);
    for (uint32_t r = 0; status == STATUS_OK && r < rules->count; r++)
        for (size_t s = 0; s < SCHEMA_N_RULES; s++)
            if (view_equal(rules->list[r].name, view_of(shared_names[s])))
                schema->shared[s] = r;
    return status;
}

void schema_avoid_tags(struct schema *schema)
{
    static const struct code_range ranges[] = {
        {0x20, 0x21}, {0x23, '<' - 1}, {'<' + 1, 0x5B}, {0x5D, 0x10FFFF}};
    schema->tagged = true;
    schema->rules->list[schema->shared[SCHEMA_PLAIN]].body =
        expression_ranges(schema->rules, ranges, ARRAY_COUNT(ranges));
}

struct expression *schema_shared(struct schema *schema, enum schema_rule rule)
{
    return expression_rule(schema->rules, schema->shared[rule]);
}

struct expression *schema_as_rule(struct schema *schema, struct expression *body, uint32_t *rule)
{
    *rule = rules_add(schema->rules, view_of("of the schema"));
    if (*rule == UINT32_MAX)
        return NULL;
    schema->rules->list[*rule].body = body;
    return expression_rule(schema->rules, *rule);
}

struct expression *schema_literal(struct schema *schema, const json_t *value)
{
    char *text = json_dumps(value, JSON_COMPACT | JSON_ENCODE_ANY);
    if (text == NULL) {
        schema->rules->failed = true;
        return NULL;
    }
    struct expression *node = expression_text(schema->rules, text);
    free(text);
    return node;
}

/* ---- Keywords -------------------------------------------------------------------------------- */

bool schema_describes(const char *keyword)
{
    static const char *const words[] = {
        "title",         "description",      "default",         "examples",      "deprecated",
        "readOnly",      "writeOnly",        "$schema",         "$id",           "$comment",
        "$defs",         "definitions",      "$anchor",         "example",       "strict",
        "discriminator", "contentMediaType", "contentEncoding", "contentSchema", "$vocabulary",
        "name"};
    for (size_t i = 0; i < ARRAY_COUNT(words); i++)
        if (strcmp(keyword, words[i]) == 0)
            return true;
    return false;
}

/* Those that restrict, but not in a way that is known here. Elsewhere unknown words describe. */
static void refuse_keywords(struct schema *schema, const json_t *value)
{
    static const char *const words[] = {
        "then",         "else",     "dependentRequired", "dependentSchemas",
        "dependencies", "contains", "$dynamicRef",       "$recursiveRef"};
    for (size_t i = 0; i < ARRAY_COUNT(words); i++)
        if (json_object_get(value, words[i]) != NULL)
            schema_refuse(schema, words[i]);
}

/* Whether anything but the keyword restricts the schema. */
static bool stands_alone(const json_t *value, const char *keyword)
{
    const char *key;
    json_t *member;
    json_object_foreach((json_t *)value, key, member)
    {
        if (strcmp(key, keyword) != 0 && !schema_describes(key))
            return false;
    }
    return true;
}

/* ---- References ------------------------------------------------------------------------------ */

/* The next part of a JSON pointer, without its escapes. */
static void read_part(const char **at, struct buffer *part)
{
    buffer_clear(part);
    while (**at != '\0' && **at != '/') {
        char c = *(*at)++;
        unsigned code;
        if (c == '%' && sscanf(*at, "%2x", &code) == 1 && strlen(*at) >= 2) {
            c = (char)code;
            *at += 2;
        }
        if (c == '~' && (**at == '0' || **at == '1'))
            c = *(*at)++ == '0' ? '~' : '/';
        buffer_append(part, &c, 1);
    }
    buffer_reserve(part, 1);
}

const json_t *schema_resolve(struct schema *schema, const char *reference)
{
    const json_t *target = schema->root;
    struct buffer part = {0};
    const char *at = reference;
    bool local = at[0] == '#' && (at[1] == '\0' || at[1] == '/');
    for (at += local; local && target != NULL && *at == '/';) {
        at++;
        read_part(&at, &part);
        const char *name = part.size > 0 ? part.data : "";
        target = json_is_array(target) ? json_array_get(target, (size_t)atol(name))
                                       : json_object_get(target, name);
    }
    buffer_free(&part);
    if (local && target != NULL)
        return target;
    schema_fail(schema, "$ref",
                local ? "%.60s leads nowhere" : "%.60s is not within this schema (\"#/…\")",
                reference);
    return NULL;
}

const json_t *schema_follow(struct schema *schema, const json_t *value)
{
    for (unsigned n = 0; n < SCHEMA_MAX_DEPTH && !schema->failed; n++) {
        const char *reference = json_string_value(json_object_get(value, "$ref"));
        if (reference == NULL || !stands_alone(value, "$ref"))
            return value;
        value = schema_resolve(schema, reference);
    }
    schema_fail(schema, "$ref", "it leads back to itself");
    return NULL;
}

/* Each target is a rule, so that schemas may contain themselves. */
static struct expression *reference(struct schema *schema, const char *text)
{
    const json_t *target = schema_resolve(schema, text);
    if (target == NULL)
        return NULL;
    for (size_t i = 0; i < schema->n_references; i++)
        if (schema->references[i].target == target)
            return expression_rule(schema->rules, schema->references[i].rule);
    uint32_t rule;
    if (schema->n_references == SCHEMA_MAX_REFERENCES) {
        schema_fail(schema, "$ref", "more than %d schemas are referred to", SCHEMA_MAX_REFERENCES);
        return NULL;
    }
    struct expression *node = schema_as_rule(schema, NULL, &rule);
    if (node == NULL)
        return NULL;
    schema->references[schema->n_references++] = (struct schema_reference){target, rule};
    struct expression *body = schema_value(schema, target);
    if (schema->failed || schema->rules->failed)
        return NULL;
    schema->rules->list[rule].body = body;
    return node;
}

/* ---- Alternatives ---------------------------------------------------------------------------- */

/* A copy of value without keyword, kept alive; NULL when memory is out. */
static const json_t *without(struct schema *schema, const json_t *value, const char *keyword)
{
    json_t *copy = json_copy((json_t *)value);
    if (copy == NULL || json_array_append_new(schema->merged, copy) != 0) {
        schema->rules->failed = true;
        return NULL;
    }
    json_object_del(copy, keyword);
    return copy;
}

static struct expression *all_of(struct schema *schema, const json_t *value)
{
    const json_t *parts = json_object_get(value, "allOf");
    const json_t *all = without(schema, value, "allOf");
    if (!json_is_array(parts))
        schema_fail(schema, "allOf", "it must be a list of schemas");
    for (size_t i = 0; i < json_array_size(parts) && all != NULL; i++)
        all = schema_merge(schema, all, json_array_get(parts, i));
    return all != NULL && !schema->failed ? schema_value(schema, all) : NULL;
}

/* Exactly one alternative must hold, so no two may hold together. */
static void check_disjoint(struct schema *schema, const json_t *alternatives)
{
    size_t n = json_array_size(alternatives);
    for (size_t i = 0; i < n; i++)
        for (size_t j = i + 1; j < n && !schema->failed; j++)
            if (!schema_disjoint(schema, json_array_get(alternatives, i),
                                 json_array_get(alternatives, j)))
                schema_fail(schema, "oneOf",
                            "%zu and %zu may both hold, which cannot be avoided: use anyOf, or a "
                            "required property with another const in each",
                            i, j);
}

static struct expression *alternatives(struct schema *schema, const json_t *value,
                                       const char *keyword)
{
    const json_t *list = json_object_get(value, keyword);
    const json_t *rest = stands_alone(value, keyword) ? NULL : without(schema, value, keyword);
    struct expression *choice = expression_list(schema->rules, EXPRESSION_CHOICE);
    if (!json_is_array(list) || json_array_size(list) == 0)
        schema_fail(schema, keyword, "it must be a list of schemas");
    if (strcmp(keyword, "oneOf") == 0 && !schema->failed)
        check_disjoint(schema, list);
    for (size_t i = 0; i < json_array_size(list) && !schema->failed; i++) {
        char index[24];
        const json_t *one = json_array_get(list, i);
        snprintf(index, sizeof index, "%zu", i);
        size_t mark = schema_enter(schema, keyword, index);
        if (rest != NULL)
            one = schema_merge(schema, rest, one);
        if (one != NULL && !schema->failed)
            expression_add(choice, schema_value(schema, one));
        schema_leave(schema, mark);
    }
    return choice;
}

/* ---- Values ---------------------------------------------------------------------------------- */

static bool has_type(const json_t *value, const char *type)
{
    static const struct {
        const char *name;
        json_type types[2];
    } names[] = {{"object", {JSON_OBJECT, JSON_OBJECT}}, {"array", {JSON_ARRAY, JSON_ARRAY}},
                 {"string", {JSON_STRING, JSON_STRING}}, {"integer", {JSON_INTEGER, JSON_INTEGER}},
                 {"number", {JSON_INTEGER, JSON_REAL}},  {"boolean", {JSON_TRUE, JSON_FALSE}},
                 {"null", {JSON_NULL, JSON_NULL}}};
    for (size_t i = 0; i < ARRAY_COUNT(names); i++)
        if (strcmp(names[i].name, type) == 0)
            return json_typeof(value) == names[i].types[0] ||
                   json_typeof(value) == names[i].types[1];
    return false;
}

/* Whether the schema's type, a word or a list, allows value. */
static bool type_allows(const json_t *type, const json_t *value)
{
    if (type == NULL)
        return true;
    if (json_is_string(type))
        return has_type(value, json_string_value(type));
    for (size_t i = 0; i < json_array_size(type); i++) {
        const char *name = json_string_value(json_array_get(type, i));
        if (name != NULL && has_type(value, name))
            return true;
    }
    return false;
}

/* enum or const. */
static struct expression *values(struct schema *schema, const json_t *value, const char *keyword)
{
    const json_t *list = json_object_get(value, keyword), *type = json_object_get(value, "type");
    bool is_enum = strcmp(keyword, "enum") == 0;
    struct expression *choice = expression_list(schema->rules, EXPRESSION_CHOICE);
    const char *key;
    json_t *member;
    if (is_enum && !json_is_array(list))
        schema_fail(schema, keyword, "it must be a list of values");
    json_object_foreach((json_t *)value, key, member)
    {
        if (strcmp(key, keyword) != 0 && strcmp(key, "type") != 0 && !schema_describes(key))
            schema_fail(schema, key, "beside %s it cannot be enforced", keyword);
    }
    for (size_t i = 0; i < (is_enum ? json_array_size(list) : 1) && !schema->failed; i++) {
        const json_t *one = is_enum ? json_array_get(list, i) : list;
        if (type_allows(type, one))
            expression_add(choice, schema_literal(schema, one));
    }
    return choice;
}

static bool contains(const json_t *list, const json_t *value)
{
    for (size_t i = 0; i < json_array_size(list); i++)
        if (json_equal(json_array_get(list, i), value))
            return true;
    return false;
}

/* The values of an enum or const that are not in another. */
static json_t *other_values(const json_t *value, const json_t *denied)
{
    const json_t *list = json_object_get(value, "enum"), *one = json_object_get(value, "const");
    const json_t *denied_list = json_object_get(denied, "enum"),
                 *denied_one = json_object_get(denied, "const");
    json_t *rest = json_array();
    for (size_t i = 0; i < (one != NULL ? 1 : json_array_size(list)); i++) {
        json_t *each = one != NULL ? (json_t *)one : json_array_get(list, i);
        if (!contains(denied_list, each) && (denied_one == NULL || !json_equal(denied_one, each)))
            json_array_append(rest, each);
    }
    return rest;
}

/* The types that value allows and denied does not; NULL where numbers would have to be no integers.
 */
static json_t *other_types(const json_t *value, const json_t *denied)
{
    static const char *const words[] = {"object", "array",   "string", "integer",
                                        "number", "boolean", "null"};
    const json_t *type = json_object_get(value, "type"), *no = json_object_get(denied, "type");
    bool no_number = schema_names_type(no, "number");
    json_t *rest = json_array();
    for (size_t i = 0; i < ARRAY_COUNT(words); i++) {
        bool integer = strcmp(words[i], "integer") == 0;
        bool allowed = type == NULL ? !integer : schema_names_type(type, words[i]);
        bool halved = strcmp(words[i], "number") == 0 && schema_names_type(no, "integer");
        if (allowed && halved && !no_number) {
            json_decref(rest);
            return NULL;
        }
        if (allowed && !schema_names_type(no, words[i]) && !(integer && no_number))
            json_array_append_new(rest, json_string(words[i]));
    }
    return rest;
}

/* Without what "not" takes away: types, or listed values of those that are listed. */
static struct expression *complement(struct schema *schema, const json_t *value)
{
    const json_t *denied = schema_follow(schema, json_object_get(value, "not"));
    const json_t *rest = without(schema, value, "not");
    bool everything = json_is_true(denied) || (json_is_object(denied) && !json_object_size(denied));
    bool listed = json_object_get(value, "enum") != NULL || json_object_get(value, "const") != NULL;
    json_t *kept = NULL;
    if (schema->failed || rest == NULL)
        return NULL;
    if (everything)
        return expression_list(schema->rules, EXPRESSION_CHOICE);
    if (json_is_false(denied))
        return schema_value(schema, rest);
    if (listed && (stands_alone(denied, "enum") || stands_alone(denied, "const"))) {
        kept = other_values(value, denied);
        json_object_del((json_t *)rest, "const");
        json_object_set_new((json_t *)rest, "enum", kept);
    } else if (stands_alone(denied, "type") && json_object_get(denied, "type") != NULL) {
        kept = other_types(value, denied);
        json_object_set_new((json_t *)rest, "type", kept);
    }
    if (kept == NULL)
        schema_refuse(schema, "not");
    return kept != NULL ? schema_value(schema, rest) : NULL;
}

static struct expression *of_type(struct schema *schema, const json_t *value, const char *type)
{
    if (strcmp(type, "object") == 0)
        return schema_object(schema, value);
    if (strcmp(type, "array") == 0)
        return schema_array(schema, value);
    if (strcmp(type, "string") == 0)
        return schema_string(schema, value);
    if (strcmp(type, "integer") == 0 || strcmp(type, "number") == 0)
        return schema_number(schema, value, type[0] == 'i');
    if (strcmp(type, "boolean") == 0)
        return expression_choice_of(schema->rules, expression_text(schema->rules, "true"),
                                    expression_text(schema->rules, "false"), NULL);
    if (strcmp(type, "null") == 0)
        return expression_text(schema->rules, "null");
    schema_fail(schema, "type", "%.40s is no type", type);
    return NULL;
}

/* Without a type: what the keywords speak of. */
static const char *implied_type(const json_t *value)
{
    static const struct {
        const char *keyword, *type;
    } words[] = {{"properties", "object"},
                 {"required", "object"},
                 {"additionalProperties", "object"},
                 {"patternProperties", "object"},
                 {"propertyNames", "object"},
                 {"minProperties", "object"},
                 {"maxProperties", "object"},
                 {"items", "array"},
                 {"prefixItems", "array"},
                 {"minItems", "array"},
                 {"maxItems", "array"},
                 {"uniqueItems", "array"},
                 {"pattern", "string"},
                 {"minLength", "string"},
                 {"maxLength", "string"},
                 {"format", "string"},
                 {"minimum", "number"},
                 {"maximum", "number"},
                 {"exclusiveMinimum", "number"},
                 {"exclusiveMaximum", "number"},
                 {"multipleOf", "number"}};
    for (size_t i = 0; i < ARRAY_COUNT(words); i++)
        if (json_object_get(value, words[i].keyword) != NULL)
            return words[i].type;
    return NULL;
}

static struct expression *of_types(struct schema *schema, const json_t *value)
{
    const json_t *type = json_object_get(value, "type");
    if (type == NULL) {
        const char *implied = implied_type(value);
        return implied != NULL ? of_type(schema, value, implied)
                               : schema_shared(schema, SCHEMA_VALUE);
    }
    if (json_is_string(type))
        return of_type(schema, value, json_string_value(type));
    struct expression *choice = expression_list(schema->rules, EXPRESSION_CHOICE);
    if (!json_is_array(type))
        schema_fail(schema, "type", "it must be a word or a list of words");
    for (size_t i = 0; i < json_array_size(type) && !schema->failed; i++) {
        const char *word = json_string_value(json_array_get(type, i));
        expression_add(choice, of_type(schema, value, word != NULL ? word : "?"));
    }
    return choice;
}

/* An object with one of the keywords that stand for a schema of their own. */
static struct expression *composed(struct schema *schema, const json_t *value)
{
    const char *text = json_string_value(json_object_get(value, "$ref"));
    if (text != NULL && stands_alone(value, "$ref"))
        return reference(schema, text);
    if (text != NULL) {
        const json_t *target = schema_resolve(schema, text);
        const json_t *rest = without(schema, value, "$ref");
        const json_t *both =
            target != NULL && rest != NULL ? schema_merge(schema, rest, target) : NULL;
        return both != NULL && !schema->failed ? schema_value(schema, both) : NULL;
    }
    if (json_object_get(value, "allOf") != NULL)
        return all_of(schema, value);
    if (json_object_get(value, "anyOf") != NULL)
        return alternatives(schema, value, "anyOf");
    if (json_object_get(value, "oneOf") != NULL)
        return alternatives(schema, value, "oneOf");
    refuse_keywords(schema, value);
    if (json_object_get(value, "not") != NULL)
        return complement(schema, value);
    if (json_object_get(value, "const") != NULL)
        return values(schema, value, "const");
    if (json_object_get(value, "enum") != NULL)
        return values(schema, value, "enum");
    return of_types(schema, value);
}

struct expression *schema_value(struct schema *schema, const json_t *value)
{
    if (schema->failed || schema->rules->failed)
        return NULL;
    if (json_is_true(value))
        return schema_shared(schema, SCHEMA_VALUE);
    if (json_is_false(value)) /* no value at all */
        return expression_list(schema->rules, EXPRESSION_CHOICE);
    if (!json_is_object(value)) {
        schema_fail(schema, NULL, "a schema must be an object, true or false");
        return NULL;
    }
    struct expression *node = NULL;
    if (++schema->depth > SCHEMA_MAX_DEPTH)
        schema_fail(schema, NULL, "schemas are nested deeper than %d", SCHEMA_MAX_DEPTH);
    else
        node = composed(schema, value);
    schema->depth--;
    return node;
}

struct schema *schema_open(struct rules *rules, struct error *error)
{
    struct schema *schema = calloc(1, sizeof *schema);
    json_t *merged = json_array();
    if (schema != NULL && merged != NULL)
        *schema = (struct schema){.rules = rules, .error = error, .merged = merged};
    if (schema == NULL || merged == NULL || add_shared(schema) != STATUS_OK) {
        json_decref(merged);
        free(schema);
        rules->failed = true;
        return NULL;
    }
    return schema;
}

struct expression *schema_compile(struct schema *schema, const json_t *root)
{
    schema->root = root;
    return schema_value(schema, root);
}

void schema_close(struct schema *schema)
{
    if (schema == NULL)
        return;
    buffer_free(&schema->path);
    json_decref(schema->merged);
    free(schema);
}
