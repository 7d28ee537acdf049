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
#define MAX_STEP 100 /* of multiples, without the zeros at its end: a rule for each remainder */

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

/* ---- Multiples ------------------------------------------------------------------------------- */

/* What whole numbers are multiples of. free[n][r]: the rule, plus one, of n digits that lead from
 * the remainder r to none. */
struct steps {
    struct schema *schema;
    uint32_t step;
    uint32_t free[MAX_DIGITS + 1][MAX_STEP];
};

static uint32_t remainder_after(const struct steps *steps, uint32_t remainder, char digit)
{
    return (remainder * 10 + (uint32_t)(digit - '0')) % steps->step;
}

/* Whether n more digits can lead from the remainder to none. */
static bool leads_to_none(const struct steps *steps, size_t n, uint32_t remainder)
{
    uint64_t power = 1;
    for (size_t i = 0; i < n; i++)
        power *= 10;
    uint64_t lacks = (steps->step - remainder * power % steps->step) % steps->step;
    return lacks < power;
}

/* n digits that make the whole a multiple. */
static struct expression *free_multiple(struct steps *steps, size_t n, uint32_t remainder)
{
    struct rules *rules = steps->schema->rules;
    uint32_t *known = &steps->free[n][remainder];
    if (n == 0)
        return expression_list(rules, remainder == 0 ? EXPRESSION_SEQUENCE : EXPRESSION_CHOICE);
    if (*known > 0)
        return expression_rule(rules, *known - 1);
    struct expression *choice = expression_list(rules, EXPRESSION_CHOICE);
    for (char d = '0'; d <= '9' && !rules->failed; d++) {
        uint32_t next = remainder_after(steps, remainder, d);
        if (leads_to_none(steps, n - 1, next))
            expression_add(choice, expression_sequence_of(rules, digit(steps->schema, d, d),
                                                          free_multiple(steps, n - 1, next), NULL));
    }
    uint32_t rule;
    struct expression *node = schema_as_rule(steps->schema, choice, &rule);
    *known = node != NULL ? rule + 1 : 0;
    return node;
}

/* ---- Whole parts ----------------------------------------------------------------------------- */

struct span {
    struct schema *schema;
    const struct decimal *low, *high; /* of the same number of digits in the whole part */
    bool whole;                       /* no fraction */
    struct steps *steps;              /* of whole ones, or NULL */
};

static struct expression *behind(const struct span *span, const struct decimal *low,
                                 const struct decimal *high)
{
    return span->whole ? expression_list(span->schema->rules, EXPRESSION_SEQUENCE)
                       : fraction(span->schema, low, high);
}

static struct expression *whole_rest(const struct span *span, size_t at, uint32_t remainder,
                                     const struct decimal *low, const struct decimal *high);

/* One of these digits, and what may follow. */
static struct expression *digits_and_rest(const struct span *span, size_t at, uint32_t remainder,
                                          char first, char last, const struct decimal *low,
                                          const struct decimal *high)
{
    struct rules *rules = span->schema->rules;
    if (span->steps == NULL)
        return expression_sequence_of(rules, digit(span->schema, first, last),
                                      whole_rest(span, at + 1, 0, low, high), NULL);
    struct expression *choice = expression_list(rules, EXPRESSION_CHOICE);
    for (char d = first; d <= last; d++) {
        uint32_t next = remainder_after(span->steps, remainder, d);
        expression_add(choice,
                       expression_sequence_of(rules, digit(span->schema, d, d),
                                              whole_rest(span, at + 1, next, low, high), NULL));
    }
    return choice;
}

/* The digits from `at` on and what stands behind the point. remainder: of those before, where
 * multiples are wanted. */
static struct expression *whole_rest(const struct span *span, size_t at, uint32_t remainder,
                                     const struct decimal *low, const struct decimal *high)
{
    struct rules *rules = span->schema->rules;
    size_t n = strlen(span->low->digits);
    if (span->steps != NULL && ((low == NULL && high == NULL) || at == n))
        return free_multiple(span->steps, n - at, remainder);
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
        expression_add(choice, digits_and_rest(span, at, remainder, least, least, low, high));
        return choice;
    }
    if (low != NULL)
        expression_add(choice, digits_and_rest(span, at, remainder, least, least, low, NULL));
    if (high != NULL && most > least)
        expression_add(choice, digits_and_rest(span, at, remainder, most, most, NULL, high));
    if (inner_first <= inner_last)
        expression_add(choice,
                       digits_and_rest(span, at, remainder, inner_first, inner_last, NULL, NULL));
    return choice;
}

static int compare_whole(const struct decimal *a, const struct decimal *b)
{
    size_t n = strlen(a->digits), m = strlen(b->digits);
    return n != m ? (n < m ? -1 : 1) : strcmp(a->digits, b->digits);
}

/* Numbers from low to high, neither negative. */
static struct expression *magnitudes(struct schema *schema, const struct decimal *low,
                                     const struct decimal *high, bool whole, struct steps *steps)
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
        const struct span span = {schema, &least, &most, whole, steps};
        expression_add(choice, whole_rest(&span, 0, 0, first ? low : &least, last ? high : &most));
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
                                  bool whole, struct steps *steps)
{
    struct rules *rules = schema->rules;
    struct expression *choice = expression_list(rules, EXPRESSION_CHOICE);
    const struct decimal zero = {.digits = "0"}, above_zero = {.digits = "0", .strict = true};
    const struct decimal one = {.digits = "1"};
    if (low.negative) {
        const struct decimal *least = high.negative || is_zero(&high) ? &high : NULL;
        const struct decimal *nearest = whole ? &one : &above_zero;
        expression_add(choice,
                       expression_sequence_of(
                           rules, expression_text(rules, "-"),
                           magnitudes(schema, least != NULL && high.negative ? least : nearest,
                                      &low, whole, steps),
                           NULL));
    }
    if (!high.negative)
        expression_add(choice,
                       magnitudes(schema, low.negative ? &zero : &low, &high, whole, steps));
    return choice;
}

/* The multiple of step that is the bound's nearest within it, in steps. */
static void divide_bound(struct decimal *bound, bool lower, int64_t step)
{
    int64_t number = strtoll(bound->digits, NULL, 10);
    bool towards_zero = lower == bound->negative;
    number = towards_zero ? number / step : (number + step - 1) / step;
    snprintf(bound->digits, sizeof bound->digits, "%lld", (long long)number);
    bound->negative = bound->negative && number > 0;
}

/* Multiples of step, a whole number, between whole bounds. The zeros at its end
 * stand behind each of them but 0; the rest is done by remainders. */
static struct expression *multiples(struct schema *schema, struct decimal low, struct decimal high,
                                    int64_t step)
{
    struct rules *rules = schema->rules;
    char zeros[MAX_DIGITS + 1] = "";
    int64_t power = 1;
    while (step % 10 == 0) {
        step /= 10;
        power *= 10;
        zeros[strlen(zeros)] = '0';
    }
    if (step >= MAX_STEP) {
        schema_fail(schema, "multipleOf",
                    "a number of %d or more (without zeros at its end) cannot be enforced",
                    MAX_STEP);
        return NULL;
    }
    divide_bound(&low, true, power);
    divide_bound(&high, false, power);
    bool has_zero = (low.negative || is_zero(&low)) && !high.negative;
    struct steps *steps = calloc(1, sizeof *steps);
    if (steps == NULL) {
        rules->failed = true;
        return NULL;
    }
    *steps = (struct steps){.schema = schema, .step = (uint32_t)step};
    struct expression *others = expression_list(rules, EXPRESSION_CHOICE);
    const struct decimal one = {.digits = "1"}, minus_one = {.digits = "1", .negative = true};
    if (low.negative)
        expression_add(others, between(schema, low, high.negative ? high : minus_one, true, steps));
    if (!high.negative && !is_zero(&high))
        expression_add(
            others, between(schema, low.negative || is_zero(&low) ? one : low, high, true, steps));
    free(steps);
    others = expression_sequence_of(rules, others, expression_text(rules, zeros), NULL);
    return has_zero ? expression_choice_of(rules, expression_text(rules, "0"), others, NULL)
                    : others;
}

/* The step of multipleOf where it is a whole one, 0 where there is none. */
static int64_t read_step(struct schema *schema, const json_t *value)
{
    const json_t *step = json_object_get(value, "multipleOf");
    double number = json_number_value(step);
    if (step == NULL)
        return 0;
    if (!json_is_number(step) || !(number > 0))
        schema_fail(schema, "multipleOf", "it must be a number above 0");
    else if (number != floor(number) || number > (double)LARGEST)
        schema_fail(schema, "multipleOf", "only whole numbers can be enforced");
    return schema->failed ? 0 : (int64_t)number;
}

struct expression *schema_number(struct schema *schema, const json_t *value, bool integer)
{
    struct decimal low = read_bound(schema, value, "minimum", "exclusiveMinimum", true);
    struct decimal high = read_bound(schema, value, "maximum", "exclusiveMaximum", false);
    int64_t step = read_step(schema, value);
    if (schema->failed)
        return NULL;
    integer = integer || step > 0;
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
    low = low.absent ? below : low;
    high = high.absent ? far : high;
    return step > 1 ? multiples(schema, low, high, step)
                    : between(schema, low, high, integer, NULL);
}
