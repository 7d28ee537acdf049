#include "sample/schema_internal.h"

#include <string.h>

/* ---- Characters ------------------------------------------------------------------------------ */

/* The escape of a character that may not stand in a string as it is. */
static struct expression *escaped(struct schema *schema, uint32_t code)
{
    static const char plain[] = "\"\\\b\f\n\r\t", letters[] = "\"\\bfnrt";
    const char *found = code != 0 && code < 0x80 ? strchr(plain, (int)code) : NULL;
    char text[] = "\\u0000";
    if (found != NULL) {
        text[1] = letters[found - plain];
        text[2] = '\0';
    } else {
        text[4] = "0123456789abcdef"[code >> 4 & 15];
        text[5] = "0123456789abcdef"[code & 15];
    }
    return expression_text(schema->rules, text);
}

static const struct code_range bare_ranges[] = {{1, '<' - 1}, {'<' + 1, 0x10FFFF}};

struct expression *schema_any_character(struct schema *schema)
{
    return schema->bare ? expression_ranges(schema->rules, bare_ranges, ARRAY_COUNT(bare_ranges))
                        : schema_shared(schema, SCHEMA_CHARACTER);
}

struct expression *schema_characters(struct schema *schema, const struct code_range *ranges,
                                     size_t n)
{
    struct expression *choice = expression_list(schema->rules, EXPRESSION_CHOICE);
    for (size_t i = 0; i < n && schema->bare; i++)
        for (size_t w = 0; w < ARRAY_COUNT(bare_ranges); w++) {
            struct code_range both = {MAX(ranges[i].first, bare_ranges[w].first),
                                      MIN(ranges[i].last, bare_ranges[w].last)};
            if (both.first <= both.last)
                expression_add(choice, expression_ranges(schema->rules, &both, 1));
        }
    for (size_t i = 0; i < n && !schema->bare; i++) {
        static const struct code_range whole[] = {
            {0x20, 0x21}, {0x23, '<' - 1}, {'<' + 1, 0x5B}, {0x5D, 0x10FFFF}, {'<', '<'}};
        for (size_t w = 0; w < ARRAY_COUNT(whole) - schema->tagged; w++) {
            struct code_range both = {MAX(ranges[i].first, whole[w].first),
                                      MIN(ranges[i].last, whole[w].last)};
            if (both.first <= both.last)
                expression_add(choice, expression_ranges(schema->rules, &both, 1));
        }
        for (uint32_t code = MAX(ranges[i].first, 1u); code <= MIN(ranges[i].last, (uint32_t)'\\');
             code++)
            if (code < 0x20 || code == '"' || code == '\\' || (code == '<' && schema->tagged))
                expression_add(choice, escaped(schema, code));
    }
    return choice;
}

/* ---- Formats --------------------------------------------------------------------------------- */

#define YEAR "[12][0-9]{3}"
#define DATE                                                                                       \
    "(" YEAR "-(0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])|" YEAR                                    \
    "-(0[469]|11)-(0[1-9]|[12][0-9]|30)|" YEAR "-02-(0[1-9]|1[0-9]|2[0-8])|"                       \
    "[12][0-9](0[48]|[2468][048]|[13579][26])-02-29|(12|16|20|24|28)00-02-29)"
#define TIME                                                                                       \
    "([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\\.[0-9]{1,6})?(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9]" \
    ")"
#define OCTET "(25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
#define LABEL "[a-zA-Z0-9]([a-zA-Z0-9-]{0,28}[a-zA-Z0-9])?"
#define HOST LABEL "(\\." LABEL "){0,3}"
#define PATH_CHARS "[a-zA-Z0-9._~!$&'()*+,;=:@-]"

static const struct {
    const char *name, *pattern; /* pattern NULL: known, but not enforced */
} formats[] = {
    {"date", "^" DATE "$"},
    {"time", "^" TIME "$"},
    {"date-time", "^" DATE "T" TIME "$"},
    {"duration",
     "^P([0-9]{1,4}W|([0-9]{1,4}Y([0-9]{1,4}M([0-9]{1,4}D)?)?|[0-9]{1,4}M([0-9]{1,4}D)?|"
     "[0-9]{1,4}D)(T([0-9]{1,4}H([0-9]{1,4}M([0-9]{1,4}S)?)?|[0-9]{1,4}M([0-9]{1,4}S)?|"
     "[0-9]{1,4}S))?|T([0-9]{1,4}H([0-9]{1,4}M([0-9]{1,4}S)?)?|[0-9]{1,4}M([0-9]{1,4}S)?|"
     "[0-9]{1,4}S))$"},
    {"uuid", "^[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}$"},
    {"email", "^[a-zA-Z0-9_%+-]{1,32}(\\.[a-zA-Z0-9_%+-]{1,15})?@" LABEL "(\\." LABEL "){1,3}$"},
    {"hostname", "^" HOST "$"},
    {"ipv4", "^" OCTET "(\\." OCTET "){3}$"},
    {"ipv6", "^(([0-9a-fA-F]{1,4}:){7}[0-9a-fA-F]{1,4}|([0-9a-fA-F]{1,4}:){1,6}:[0-9a-fA-F]{1,4}|"
             "::([0-9a-fA-F]{1,4})?)$"},
    {"uri", "^[a-z][a-z0-9+.-]{0,15}://" HOST "(:[1-9][0-9]{0,3})?(/" PATH_CHARS
            "{0,64}){0,8}(\\?" PATH_CHARS "{0,128})?(#" PATH_CHARS "{0,64})?$"},
    {"uri-reference", "^(/" PATH_CHARS "{1,64}){1,8}(\\?" PATH_CHARS "{0,128})?$"},
    {"json-pointer", "^(/([a-zA-Z0-9 ._-]|~[01]){0,64}){0,16}$"},
    {"idn-email", NULL},
    {"idn-hostname", NULL},
    {"iri", NULL},
    {"iri-reference", NULL},
    {"regex", NULL},
    {"relative-json-pointer", NULL},
    {"uri-template", NULL},
};

/* The content of a string in one of the formats; NULL where the name is no format of JSON Schema,
 * which then only describes. */
static struct expression *formatted(struct schema *schema, const char *name, uint32_t *min,
                                    uint32_t *max)
{
    for (size_t i = 0; i < ARRAY_COUNT(formats); i++) {
        if (strcmp(formats[i].name, name) != 0)
            continue;
        if (formats[i].pattern == NULL)
            schema_fail(schema, "format", "%.40s cannot be enforced", name);
        else
            return schema_pattern(schema, "format", view_of(formats[i].pattern), min, max);
    }
    return NULL;
}

/* ---- Strings --------------------------------------------------------------------------------- */

struct expression *schema_content(struct schema *schema, const json_t *value)
{
    const char *pattern = json_string_value(json_object_get(value, "pattern"));
    const char *format = json_string_value(json_object_get(value, "format"));
    uint32_t min = schema_count(schema, value, "minLength", 0);
    uint32_t max = schema_count(schema, value, "maxLength", GRAMMAR_NO_LIMIT);
    uint32_t least = 0, most = GRAMMAR_NO_LIMIT;
    struct expression *content = NULL;
    if (max < min)
        schema_fail(schema, "maxLength", "it is below minLength");
    if (format != NULL)
        content = formatted(schema, format, &least, &most);
    if (pattern != NULL && content != NULL)
        schema_fail(schema, "pattern", "beside format it cannot be enforced");
    else if (pattern != NULL)
        content = schema_pattern(schema, "pattern", view_of(pattern), &least, &most);
    if (schema->failed)
        return NULL;
    if (content != NULL && (min > least || max < most))
        schema_fail(schema, min > least ? "minLength" : "maxLength",
                    "beside a pattern or format of %u to %u characters it cannot be enforced",
                    least, most);
    if (content == NULL)
        content = expression_repeat(schema->rules, schema_any_character(schema), min, max);
    return content;
}

struct expression *schema_string(struct schema *schema, const json_t *value)
{
    static const char *const keywords[] = {"pattern", "format", "minLength", "maxLength"};
    bool free = true;
    for (size_t i = 0; i < ARRAY_COUNT(keywords); i++)
        free = free && json_object_get(value, keywords[i]) == NULL;
    if (free)
        return schema_shared(schema, SCHEMA_STRING);
    struct expression *content = schema_content(schema, value);
    return content == NULL
               ? NULL
               : expression_sequence_of(schema->rules, expression_text(schema->rules, "\""),
                                        content, expression_text(schema->rules, "\""), NULL);
}
