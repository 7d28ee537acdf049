/* consort render: a chat template and its variables to text. */
#include "cli/cli.h"

#include <ctype.h>
#include <string.h>
#include <time.h>

#define MAX_TEMPLATE_BYTES ((size_t)16 << 20)
#define MAX_CASE_BYTES ((size_t)256 << 20)

static struct {
    const char *input;
    int64_t now_s;
    bool now_given;
} args;

/* ---- ISO 8601 -------------------------------------------------------------------------------- */

/* Days from 1970-01-01 in the proleptic Gregorian calendar. */
static int64_t days_from_date(int64_t year, int month, int day)
{
    static const int before_month[] = {0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334};
    bool leap = (year % 4 == 0 && year % 100 != 0) || year % 400 == 0;
    int64_t past = year - 1;
    return past * 365 + past / 4 - past / 100 + past / 400 - 719162 + before_month[month - 1] +
           (leap && month > 2) + day - 1;
}

/* Exactly count digits. */
static bool take_number(const char **text, int count, int min, int max, int *out)
{
    int value = 0;
    for (int i = 0; i < count; i++, (*text)++) {
        if (!isdigit((unsigned char)**text))
            return false;
        value = value * 10 + (**text - '0');
    }
    *out = value;
    return value >= min && value <= max;
}

static bool take_character(const char **text, const char *any_of)
{
    bool found = **text != '\0' && strchr(any_of, **text) != NULL;
    *text += found;
    return found;
}

/* YYYY-MM-DD[THH:MM[:SS]][Z|+HH:MM|-HH:MM]; UTC where nothing else is said. */
static bool parse_iso(const char *text, int64_t *out)
{
    int year, month, day, hour = 0, minute = 0, second = 0, zone_h = 0, zone_m = 0;
    if (!take_number(&text, 4, 1, 9999, &year) || !take_character(&text, "-") ||
        !take_number(&text, 2, 1, 12, &month) || !take_character(&text, "-") ||
        !take_number(&text, 2, 1, 31, &day))
        return false;
    if (take_character(&text, "T ")) {
        if (!take_number(&text, 2, 0, 23, &hour) || !take_character(&text, ":") ||
            !take_number(&text, 2, 0, 59, &minute))
            return false;
        if (take_character(&text, ":") && !take_number(&text, 2, 0, 60, &second))
            return false;
        if (take_character(&text, "."))
            text += strspn(text, "0123456789");
    }
    int sign = *text == '-' ? -1 : 1;
    if (!take_character(&text, "Z") && take_character(&text, "+-")) {
        if (!take_number(&text, 2, 0, 23, &zone_h))
            return false;
        take_character(&text, ":");
        if (!take_number(&text, 2, 0, 59, &zone_m))
            return false;
    }
    *out = days_from_date(year, month, day) * 86400 + hour * 3600 + minute * 60 + second -
           sign * (zone_h * 3600 + zone_m * 60);
    return *text == '\0';
}

static bool parse_now(const char *text, struct buffer *reason)
{
    args.now_given = parse_iso(text, &args.now_s);
    if (!args.now_given)
        buffer_printf(reason, "'%s' is not a time like 2026-01-02T03:04:05", text);
    return args.now_given;
}

/* ---- The command ----------------------------------------------------------------------------- */

static enum status load_variables(json_t **out, struct error *error)
{
    struct buffer text = {0};
    enum status status = file_read(args.input, MAX_CASE_BYTES, &text, error);
    json_error_t reason;
    *out = NULL;
    if (status == STATUS_OK) {
        *out = json_loadb(text.size > 0 ? text.data : "", text.size, JSON_ALLOW_NUL, &reason);
        if (*out == NULL)
            status = error_set(error, STATUS_INVALID, "%s is not JSON: line %d: %s", args.input,
                               reason.line, reason.text);
        else if (!json_is_object(*out))
            status =
                error_set(error, STATUS_INVALID,
                          "%s must hold a JSON object: its members are the variables", args.input);
    }
    buffer_free(&text);
    return status;
}

static int run(const struct cli_command *command, char **operands, int n_operands)
{
    (void)n_operands;
    if (args.input == NULL)
        return cli_usage(command, "render needs --input CASE.json");
    struct error error;
    struct buffer source = {0}, text = {0};
    struct chat_template *chat_template = NULL;
    json_t *variables = NULL;
    enum status status = file_read(operands[0], MAX_TEMPLATE_BYTES, &source, &error);
    if (status == STATUS_OK)
        status = load_variables(&variables, &error);
    if (status == STATUS_OK)
        status =
            chat_template_open(&chat_template, (struct view){source.data, source.size}, &error);
    if (status == STATUS_OK)
        status =
            chat_template_render(chat_template, variables,
                                 args.now_given ? args.now_s : (int64_t)time(NULL), &text, &error);
    if (status == STATUS_OK)
        cli_write(text.data, text.size);
    chat_template_close(chat_template);
    json_decref(variables);
    buffer_free(&source);
    buffer_free(&text);
    return status == STATUS_OK ? CLI_DONE : cli_fail(&error);
}

static const struct cli_option options[] = {
    {.name = "input",
     .metavar = "CASE.json",
     .help = "a JSON object whose members are the template's variables (required)",
     .type = CLI_TEXT,
     .value = &args.input},
    {.name = "now",
     .metavar = "TIME",
     .help = "what strftime_now sees, ISO 8601 (default: the clock)",
     .type = CLI_CALL,
     .parse = parse_now},
};
static const struct cli_group group = CLI_GROUP("options", options);

const struct cli_command cli_render = {
    .name = "render",
    .operands = "TEMPLATE.jinja",
    .summary = "Renders a chat template and prints the text and nothing else.",
    .groups = {&group},
    .min_operands = 1,
    .max_operands = 1,
    .run = run,
};
