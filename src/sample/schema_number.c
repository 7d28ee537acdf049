/* Numbers between bounds, as texts of digits. Bounds are compared digit by digit: what stays equal
 * to a bound so far is tight against it, and behind the first digit that differs all digits are
 * free. */
#include "sample/schema_internal.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_DIGITS 15  /* what a double holds exactly */
#define MAX_FRACTION 6 /* digits behind the point, beside bounds */
#define LARGEST 999999999999999LL

/* A bound: digits before and behind the point. */
struct decimal {
    char digits[MAX_DIGITS + 2]; /* of the whole part, without leading zeros */
    char fraction[MAX_FRACTION + 1];
    bool negative, strict, absent;
};

static struct expression *digit(struct schema *schema, char first, char last)
{
    const struct code_range range = {(uint32_t)first, (uint32_t)last};
    return expression_ranges(schema->rules, &range, first <= last);
}

static struct expression *free_digits(struct schema *schema, size_t min, size_t max)
{
    return expression_repeat(schema->rules, digit(schema, '0', '9'), (uint32_t)min, (uint32_t)max);
}

/* ---- Fractions ------------------------------------------------------------------------------- */

static char digit_at(const char *digits, size_t at)
{
    return at < strlen(digits) ? digits[at] : '0';
}

static bool zeros_from(const char *digits, size_t at)
{
    return at >= strlen(digits) || strspn(digits + at, "0") == strlen(digits + at);
}

/* The digits from `at` on, or none of them, where those before were equal to the bound that is
 * given (NULL: not tight). Where nothing is possible, an empty choice. */
static struct expression *fraction_rest(struct schema *schema, size_t at, const struct decimal *low,
                                        const struct decimal *high)
{
    struct rules *rules = schema->rules;
    if (low == NULL && high == NULL)
        return free_digits(schema, 0, MAX_FRACTION - at);
    struct expression *choice = expression_list(rules, EXPRESSION_CHOICE);
    bool above = low == NULL || (zeros_from(low->fraction, at) && !low->strict);
    bool below = high == NULL || !zeros_from(high->fraction, at) || !high->strict;
    if (above && below)
        expression_add(choice, expression_list(rules, EXPRESSION_SEQUENCE));
    if (at == MAX_FRACTION)
        return choice;
    char least = low != NULL ? digit_at(low->fraction, at) : '0';
    char most = high != NULL ? digit_at(high->fraction, at) : '9';
    for (char d = least; d <= most; d++) {
        const struct decimal *still_low = low != NULL && d == least ? low : NULL;
        const struct decimal *still_high = high != NULL && d == most ? high : NULL;
        expression_add(choice, expression_sequence_of(
                                   rules, digit(schema, d, d),
                                   fraction_rest(schema, at + 1, still_low, still_high), NULL));
    }
    return choice;
}

/* A point and digits, or nothing. */
static struct expression *fraction(struct schema *schema, const struct decimal *low,
                                   const struct decimal *high)
{
    struct rules *rules = schema->rules;
    struct expression *choice = expression_list(rules, EXPRESSION_CHOICE);
    bool above = low == NULL || (zeros_from(low->fraction, 0) && !low->strict);
    bool below = high == NULL || !zeros_from(high->fraction, 0) || !high->strict;
    if (above && below)
        expression_add(choice, expression_list(rules, EXPRESSION_SEQUENCE));
    char least = low != NULL ? digit_at(low->fraction, 0) : '0';
    char most = high != NULL ? digit_at(high->fraction, 0) : '9';
    for (char d = least; d <= most; d++) {
        const struct decimal *still_low = low != NULL && d == least ? low : NULL;
        const struct decimal *still_high = high != NULL && d == most ? high : NULL;
        expression_add(
            choice, expression_sequence_of(rules, expression_text(rules, "."), digit(schema, d, d),
                                           fraction_rest(schema, 1, still_low, still_high), NULL));
    }
    return choice;
}

/* ---- Whole parts ----------------------------------------------------------------------------- */

struct span {
    struct schema *schema;
    const struct decimal *low, *high; /* of the same number of digits in the whole part */
    bool whole;                       /* no fraction */
};

static struct expression *behind(const struct span *span, const struct decimal *low,
                                 const struct decimal *high)
{
    return span->whole ? expression_list(span->schema->rules, EXPRESSION_SEQUENCE)
                       : fraction(span->schema, low, high);
}

/* The digits from `at` on and what stands behind the point. */
static struct expression *whole_rest(const struct span *span, size_t at, const struct decimal *low,
                                     const struct decimal *high)
{
    struct rules *rules = span->schema->rules;
    size_t n = strlen(span->low->digits);
    if (low == NULL && high == NULL)
        return expression_sequence_of(rules, free_digits(span->schema, n - at, n - at),
                                      behind(span, NULL, NULL), NULL);
    if (at == n)
        return behind(span, low, high);
    struct expression *choice = expression_list(rules, EXPRESSION_CHOICE);
    char least = low != NULL ? low->digits[at] : '0', most = high != NULL ? high->digits[at] : '9';
    char inner_first = low != NULL ? (char)(least + 1) : least;
    char inner_last = high != NULL ? (char)(most - 1) : most;
    if (least == most) {
        expression_add(choice, expression_sequence_of(rules, digit(span->schema, least, least),
                                                      whole_rest(span, at + 1, low, high), NULL));
        return choice;
    }
    if (low != NULL)
        expression_add(choice, expression_sequence_of(rules, digit(span->schema, least, least),
                                                      whole_rest(span, at + 1, low, NULL), NULL));
    if (high != NULL && most > least)
        expression_add(choice, expression_sequence_of(rules, digit(span->schema, most, most),
                                                      whole_rest(span, at + 1, NULL, high), NULL));
    if (inner_first <= inner_last)
        expression_add(choice,
                       expression_sequence_of(rules, digit(span->schema, inner_first, inner_last),
                                              whole_rest(span, at + 1, NULL, NULL), NULL));
    return choice;
}

static int compare_whole(const struct decimal *a, const struct decimal *b)
{
    size_t n = strlen(a->digits), m = strlen(b->digits);
    return n != m ? (n < m ? -1 : 1) : strcmp(a->digits, b->digits);
}

/* Numbers from low to high, neither negative. */
static struct expression *magnitudes(struct schema *schema, const struct decimal *low,
                                     const struct decimal *high, bool whole)
{
    struct expression *choice = expression_list(schema->rules, EXPRESSION_CHOICE);
    if (compare_whole(low, high) > 0)
        return choice;
    for (size_t n = strlen(low->digits); n <= strlen(high->digits); n++) {
        struct decimal least = {.digits = "1"}, most = {.digits = ""};
        bool first = n == strlen(low->digits), last = n == strlen(high->digits);
        for (size_t i = 0; i < n; i++) {
            least.digits[i] = i == 0 ? '1' : '0';
            most.digits[i] = '9';
        }
        if (first)
            least = *low;
        if (last)
            most = *high;
        if (n == 1 && first && low->digits[0] == '0' && !last)
            least.digits[0] = '0';
        const struct span span = {schema, &least, &most, whole};
        expression_add(choice, whole_rest(&span, 0, first ? low : &least, last ? high : &most));
    }
    return choice;
}

/* ---- Bounds ---------------------------------------------------------------------------------- */

static void copy_digits(char *out, size_t size, const char *digits)
{
    size_t n = MIN(strlen(digits), size - 1);
    memcpy(out, digits, n);
    out[n] = '\0';
}

/* The shortest text that reads as number, as digits. False where it has too many of them. */
static bool to_decimal(double number, struct decimal *out)
{
    char text[64];
    int precision = 0;
    for (; precision <= MAX_FRACTION; precision++) {
        snprintf(text, sizeof text, "%.*f", precision, fabs(number));
        if (strtod(text, NULL) == fabs(number))
            break;
    }
    if (precision > MAX_FRACTION || !(fabs(number) <= (double)LARGEST))
        return false;
    char *point = strchr(text, '.');
    if (point != NULL)
        *point++ = '\0';
    copy_digits(out->digits, sizeof out->digits, text);
    copy_digits(out->fraction, sizeof out->fraction, point != NULL ? point : "");
    out->negative = number < 0;
    return true;
}

/* The tighter one of a bound and the one that excludes itself. */
static struct decimal read_bound(struct schema *schema, const json_t *value, const char *keyword,
                                 const char *strict_keyword, bool lower)
{
    struct decimal bound = {.absent = true};
    const json_t *plain = json_object_get(value, keyword);
    const json_t *strict = json_object_get(value, strict_keyword);
    double number = json_number_value(plain);
    if ((plain != NULL && !json_is_number(plain)) || (strict != NULL && !json_is_number(strict))) {
        schema_fail(schema, plain != NULL && !json_is_number(plain) ? keyword : strict_keyword,
                    "it must be a number");
        return bound;
    }
    if (plain == NULL && strict == NULL)
        return bound;
    bool use_strict =
        strict != NULL && (plain == NULL || (lower ? json_number_value(strict) >= number
                                                   : json_number_value(strict) <= number));
    if (use_strict)
        number = json_number_value(strict);
    if (!to_decimal(number, &bound)) {
        schema_fail(schema, use_strict ? strict_keyword : keyword,
                    "numbers with more than %d digits, or %d behind the point, cannot be enforced",
                    MAX_DIGITS, MAX_FRACTION);
        return bound;
    }
    bound.absent = false;
    bound.strict = use_strict;
    return bound;
}

/* The nearest whole number within the bound. */
static void round_bound(struct decimal *bound, bool lower)
{
    double number = strtod(bound->digits, NULL);
    bool between = !zeros_from(bound->fraction, 0);
    double signed_number = bound->negative ? -number : number;
    if (between && lower != bound->negative)
        signed_number += lower ? 1 : -1; /* away from zero */
    else if (!between && bound->strict)
        signed_number += lower ? 1 : -1;
    bool strict = false;
    *bound = (struct decimal){.strict = strict};
    snprintf(bound->digits, sizeof bound->digits, "%.0f", fabs(signed_number));
    bound->negative = signed_number < 0;
}

static bool is_zero(const struct decimal *bound)
{
    return strcmp(bound->digits, "0") == 0 && zeros_from(bound->fraction, 0);
}

/* Numbers between bounds: those below zero, and the others. */
static struct expression *between(struct schema *schema, struct decimal low, struct decimal high,
                                  bool whole)
{
    struct rules *rules = schema->rules;
    struct expression *choice = expression_list(rules, EXPRESSION_CHOICE);
    const struct decimal zero = {.digits = "0"}, above_zero = {.digits = "0", .strict = true};
    const struct decimal one = {.digits = "1"};
    if (low.negative) {
        const struct decimal *least = high.negative || is_zero(&high) ? &high : NULL;
        const struct decimal *nearest = whole ? &one : &above_zero;
        expression_add(
            choice,
            expression_sequence_of(
                rules, expression_text(rules, "-"),
                magnitudes(schema, least != NULL && high.negative ? least : nearest, &low, whole),
                NULL));
    }
    if (!high.negative)
        expression_add(choice, magnitudes(schema, low.negative ? &zero : &low, &high, whole));
    return choice;
}

struct expression *schema_number(struct schema *schema, const json_t *value, bool integer)
{
    const json_t *step = json_object_get(value, "multipleOf");
    struct decimal low = read_bound(schema, value, "minimum", "exclusiveMinimum", true);
    struct decimal high = read_bound(schema, value, "maximum", "exclusiveMaximum", false);
    bool whole_step = json_number_value(step) == 1;
    if (step != NULL && !whole_step)
        schema_refuse(schema, "multipleOf");
    if (schema->failed)
        return NULL;
    integer = integer || whole_step;
    if (low.absent && high.absent && !integer)
        return schema_shared(schema, SCHEMA_NUMBER);
    if (integer && !low.absent)
        round_bound(&low, true);
    if (integer && !high.absent)
        round_bound(&high, false);
    struct decimal far = {.digits = "999999999999999"};
    if (!integer)
        far.digits[9] = '\0'; /* with the fraction no more digits than a double tells apart */
    if (strlen(low.digits) > strlen(far.digits) || strlen(high.digits) > strlen(far.digits)) {
        schema_fail(schema, !low.absent && strlen(low.digits) > 9 ? "minimum" : "maximum",
                    "a bound of a number that is no integer can have %d digits at most", 9);
        return NULL;
    }
    struct decimal below = far;
    below.negative = true;
    return between(schema, low.absent ? below : low, high.absent ? far : high, integer);
}
