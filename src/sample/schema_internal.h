/* What the files that turn a JSON Schema into rules share.
 *
 *   schema.c             which keywords there are, references, alternatives, values
 *   schema_merge.c       allOf: several schemas as one; whether two can hold together
 *   schema_collection.c  objects and arrays
 *   schema_string.c      strings: lengths, formats; schema_pattern.c: patterns
 *   schema_number.c      numbers between bounds
 *
 * What is written always validates. It need not be all that would: properties come in the order of
 * the schema, others only where the schema asks for them, white space is short. */
#ifndef CONSORT_SCHEMA_INTERNAL_H
#define CONSORT_SCHEMA_INTERNAL_H

#include "sample/grammar_internal.h"

#define SCHEMA_MAX_DEPTH 64
#define SCHEMA_MAX_REFERENCES 1024
#define SCHEMA_MAX_MERGED 4096 /* schemas made of several */

/* Rules that many schemas use; UINT32_MAX until one does. */
enum schema_rule {
    SCHEMA_SPACE,
    SCHEMA_PLAIN,     /* a character of a string as it is */
    SCHEMA_CHARACTER, /* of a string, escaped where it must be */
    SCHEMA_STRING,
    SCHEMA_NUMBER,
    SCHEMA_VALUE,
    SCHEMA_OBJECT,
    SCHEMA_ARRAY,
    SCHEMA_N_RULES,
};

/* One compilation. Once failed is set, error says why and all that follows is void. */
struct schema {
    struct rules *rules;
    const json_t *root;
    struct error *error;
    struct buffer path; /* of the schema at hand, as a JSON pointer */
    unsigned depth;
    bool failed;
    bool bare;   /* strings are not within JSON: without quotes and escapes, and without < */
    bool closed; /* objects that name no properties have none */
    bool tagged; /* strings within JSON have < as an escape alone */
    uint32_t shared[SCHEMA_N_RULES];
    struct schema_reference {
        const json_t *target;
        uint32_t rule;
    } references[SCHEMA_MAX_REFERENCES];
    size_t n_references;
    json_t *merged; /* keeps what was made here alive */
};

/* Says what is wrong with a keyword of the schema at hand; the first fault stays. */
void schema_fail(struct schema *schema, const char *keyword, const char *format, ...)
    BASE_PRINTF(3, 4);
/* "KEYWORD cannot be enforced". */
void schema_refuse(struct schema *schema, const char *keyword);

/* Enters the part of a schema that keyword (and index or name, unless NULL) leads to; leaves it. */
size_t schema_enter(struct schema *schema, const char *keyword, const char *name);
void schema_leave(struct schema *schema, size_t mark);

/* What a schema allows: JSON without space around it. */
struct expression *schema_value(struct schema *schema, const json_t *value);
struct expression *schema_shared(struct schema *schema, enum schema_rule rule);
/* An expression as a rule, to be used more than once. */
struct expression *schema_as_rule(struct schema *schema, struct expression *body, uint32_t *rule);
/* One JSON value, written compactly. */
struct expression *schema_literal(struct schema *schema, const json_t *value);

struct expression *schema_object(struct schema *schema, const json_t *value);
struct expression *schema_array(struct schema *schema, const json_t *value);
struct expression *schema_string(struct schema *schema, const json_t *value);
/* What stands between the quotes. */
struct expression *schema_content(struct schema *schema, const json_t *value);
struct expression *schema_any_character(struct schema *schema);
struct expression *schema_number(struct schema *schema, const json_t *value, bool integer);

/* The content of a string by a pattern as ECMA 262 knows them, escaped as JSON; least and most
 * characters to *min and *max. NULL, and a fault is said, where it is beyond what is known. */
struct expression *schema_pattern(struct schema *schema, const char *keyword, struct view pattern,
                                  uint32_t *min, uint32_t *max);
/* One of these characters as it stands in a JSON string. */
struct expression *schema_characters(struct schema *schema, const struct code_range *ranges,
                                     size_t n);

/* A whole number from 0 on; absent gives otherwise. */
uint32_t schema_count(struct schema *schema, const json_t *value, const char *keyword,
                      uint32_t otherwise);

/* The schema of two that must both hold; NULL with a fault said. Borrowed. */
const json_t *schema_merge(struct schema *schema, const json_t *a, const json_t *b);
/* Whether no value can be in both, as far as is easily seen. */
bool schema_disjoint(struct schema *schema, const json_t *a, const json_t *b);
/* What a $ref leads to; a fault is said, and NULL given, where nothing is there. */
const json_t *schema_resolve(struct schema *schema, const char *reference);
/* Follows references that stand alone. */
const json_t *schema_follow(struct schema *schema, const json_t *value);
/* Whether a schema's type, a word or a list, has the word. */
bool schema_names_type(const json_t *type, const char *word);
/* Whether a keyword only describes. */
bool schema_describes(const char *keyword);

/* Begins with empty rules, whose root has no use yet. NULL when memory is out. */
struct schema *schema_open(struct rules *rules, struct error *error);
/* What one schema allows; NULL with schema->failed or rules->failed set. */
struct expression *schema_compile(struct schema *schema, const json_t *root);
/* From now on no string holds what may look like the tag that ends it. */
void schema_avoid_tags(struct schema *schema);
void schema_close(struct schema *schema); /* NULL allowed */

#endif
