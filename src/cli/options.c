/* The table-driven option parser, and the help that comes from the same tables. */
#include "cli/cli.h"

#include <ctype.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#define HELP_COLUMN 32 /* where an option's explanation begins */
#define HELP_WIDTH 96

/* ---- Numbers --------------------------------------------------------------------------------- */

bool cli_parse_u64(const char *text, uint64_t min, uint64_t max, uint64_t *out)
{
    if (!isdigit((unsigned char)text[0])) /* strtoull would take a sign and spaces */
        return false;
    char *end;
    errno = 0;
    unsigned long long value = strtoull(text, &end, 10);
    if (errno != 0 || *end != '\0' || value < min || (max != 0 && value > max))
        return false;
    *out = value;
    return true;
}

bool cli_parse_f32(const char *text, float *out)
{
    if (text[0] == '\0' || isspace((unsigned char)text[0]) || strpbrk(text, "xX") != NULL)
        return false;
    char *end;
    float value = strtof(text, &end);
    if (*end != '\0' || isnan(value))
        return false;
    *out = value;
    return true;
}

bool cli_parse_u32_list(const char *text, uint32_t min, uint32_t *out, size_t limit, size_t *n)
{
    char number[16];
    for (*n = 0; *n < limit;) {
        size_t length = strcspn(text, ",");
        uint64_t value;
        if (length >= sizeof number)
            return false;
        memcpy(number, text, length);
        number[length] = '\0';
        if (!cli_parse_u64(number, min, UINT32_MAX, &value))
            return false;
        out[(*n)++] = (uint32_t)value;
        if (text[length] == '\0')
            return true;
        text += length + 1;
    }
    return false;
}

/* ---- Did you mean ---------------------------------------------------------------------------- */

/* Edits (insert, delete, replace, swap neighbours) that turn a into b; words are at most 31 long.
 */
static unsigned edit_distance(const char *a, const char *b)
{
    enum { LIMIT = 32 };
    size_t n = strlen(a), m = strlen(b);
    unsigned d[LIMIT + 1][LIMIT + 1];
    if (n >= LIMIT || m >= LIMIT)
        return LIMIT;
    for (size_t i = 0; i <= n; i++)
        for (size_t j = 0; j <= m; j++) {
            if (i == 0 || j == 0) {
                d[i][j] = (unsigned)(i + j);
                continue;
            }
            unsigned best = d[i - 1][j - 1] + (a[i - 1] != b[j - 1]);
            best = MIN(best, d[i - 1][j] + 1);
            best = MIN(best, d[i][j - 1] + 1);
            if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1])
                best = MIN(best, d[i - 2][j - 2] + 1);
            d[i][j] = best;
        }
    return d[n][m];
}

const char *cli_closest(const char *word, const char *const *names, size_t n)
{
    const char *best = NULL;
    unsigned best_distance = strlen(word) < 4 ? 2 : 3; /* must be below it */
    for (size_t i = 0; i < n; i++) {
        unsigned distance = edit_distance(word, names[i]);
        size_t length = strlen(word);
        if (length >= 3 && strncmp(word, names[i], length) == 0)
            distance = 1; /* the beginning of a name */
        if (distance < best_distance) {
            best_distance = distance;
            best = names[i];
        }
    }
    return best;
}

/* ---- Parsing --------------------------------------------------------------------------------- */

static const struct cli_option *find_option(const struct cli_command *command, const char *name,
                                            size_t length, char letter)
{
    for (size_t g = 0; g < CLI_MAX_GROUPS && command->groups[g] != NULL; g++)
        for (size_t i = 0; i < command->groups[g]->n_options; i++) {
            const struct cli_option *option = &command->groups[g]->options[i];
            if (name == NULL
                    ? option->letter == letter && letter != '\0'
                    : strlen(option->name) == length && memcmp(option->name, name, length) == 0)
                return option;
        }
    return NULL;
}

static int unknown_option(const struct cli_command *command, const char *argument)
{
    const char *names[64];
    size_t n = 0;
    char word[32];
    snprintf(word, sizeof word, "%.*s", (int)strcspn(argument + 2, "="), argument + 2);
    for (size_t g = 0; g < CLI_MAX_GROUPS && command->groups[g] != NULL; g++)
        for (size_t i = 0; i < command->groups[g]->n_options && n < ARRAY_COUNT(names); i++)
            names[n++] = command->groups[g]->options[i].name;
    const char *closest = strncmp(argument, "--", 2) == 0 ? cli_closest(word, names, n) : NULL;
    if (closest != NULL)
        return cli_usage(command, "unknown option %s, did you mean --%s?", argument, closest);
    return cli_usage(command, "unknown option %s", argument);
}

static bool choice_holds(const char *choices, const char *text)
{
    size_t length = strlen(text);
    while (length > 0) {
        size_t n = strcspn(choices, "|");
        if (n == length && strncasecmp(choices, text, n) == 0)
            return true;
        if (choices[n] == '\0')
            return false;
        choices += n + 1;
    }
    return false;
}

static bool bad_number(const struct cli_option *option, const char *text, struct buffer *reason)
{
    const char *kind = option->type == CLI_F32 ? "a number" : "a whole number";
    double max = option->max;
    if (max == 0 && option->type != CLI_F32)
        max = option->type == CLI_U32 ? (double)UINT32_MAX : (double)UINT64_MAX;
    if (max == 0)
        buffer_printf(reason, "%s takes %s from %g on, not '%s'", option->name, kind, option->min,
                      text);
    else
        buffer_printf(reason, "%s takes %s from %.10g to %.20g, not '%s'", option->name, kind,
                      option->min, max, text);
    return false;
}

static bool take_number(const struct cli_option *option, const char *text, struct buffer *reason)
{
    uint64_t whole = 0, most = option->type == CLI_U32 ? UINT32_MAX : 0;
    float number = 0;
    bool good;
    if (option->type == CLI_F32)
        good = cli_parse_f32(text, &number) && !isinf(number) && number >= (float)option->min &&
               (option->max == 0 || number <= (float)option->max);
    else
        good = cli_parse_u64(text, (uint64_t)option->min,
                             option->max > 0 ? (uint64_t)option->max : most, &whole);
    if (!good)
        return bad_number(option, text, reason);
    if (option->type == CLI_F32)
        *(float *)option->value = number;
    else if (option->type == CLI_U32)
        *(uint32_t *)option->value = (uint32_t)whole;
    else
        *(uint64_t *)option->value = whole;
    return true;
}

static bool call_parser(const struct cli_option *option, const char *text, struct buffer *reason)
{
    struct buffer said = {0};
    bool good = option->parse(text, &said);
    if (!good)
        buffer_printf(reason, "%s: %s", option->name, said.size > 0 ? said.data : "not understood");
    buffer_free(&said);
    return good;
}

bool cli_option_take(const struct cli_option *option, const char *text, struct buffer *reason)
{
    switch (option->type) {
    case CLI_FLAG:
        *(bool *)option->value = true;
        return true;
    case CLI_TEXT:
        *(const char **)option->value = text;
        return true;
    case CLI_CHOICE:
        if (!choice_holds(option->metavar, text)) {
            buffer_printf(reason, "%s takes one of %s, not '%s'", option->name, option->metavar,
                          text);
            return false;
        }
        *(const char **)option->value = text;
        return true;
    case CLI_CALL:
        return call_parser(option, text, reason);
    default:
        return take_number(option, text, reason);
    }
}

/* Options that the command line has given. */
static const struct cli_option *given[128];
static size_t n_given;

bool cli_option_given(const struct cli_option *option)
{
    for (size_t i = 0; i < n_given; i++)
        if (given[i] == option)
            return true;
    return false;
}

static int take_value(const struct cli_command *command, const struct cli_option *option,
                      const char *text)
{
    struct buffer reason = {0};
    int code = CLI_DONE;
    if (n_given < ARRAY_COUNT(given) && !cli_option_given(option))
        given[n_given++] = option;
    if (!cli_option_take(option, text, &reason))
        code = cli_usage(command, "--%s", reason.size > 0 ? reason.data : option->name);
    buffer_free(&reason);
    return code;
}

/* One option, at argv[*i]; *i moves past the value where that is an argument of its own. */
static int take_option(const struct cli_command *command, int argc, char **argv, int *i)
{
    const char *argument = argv[*i], *value = NULL;
    const struct cli_option *option;
    if (argument[1] == '-') {
        size_t length = strcspn(argument + 2, "=");
        option = find_option(command, argument + 2, length, '\0');
        if (argument[2 + length] == '=')
            value = argument + 3 + length;
    } else {
        option = find_option(command, NULL, 0, argument[1]);
        if (argument[2] != '\0')
            value = argument + 2;
    }
    if (option == NULL)
        return unknown_option(command, argument);
    if (option->type == CLI_FLAG && value != NULL)
        return cli_usage(command, "--%s takes no value", option->name);
    if (option->type != CLI_FLAG && value == NULL) {
        if (*i + 1 >= argc)
            return cli_usage(command, "--%s needs a value (%s)", option->name, option->metavar);
        value = argv[++*i];
    }
    return take_value(command, option, value);
}

int cli_parse(const struct cli_command *command, int argc, char **argv, char **operands,
              int *n_operands, bool *shown_help)
{
    bool options_end = false;
    *n_operands = 0;
    *shown_help = false;
    for (int i = 0; i < argc; i++) {
        if (!options_end && strcmp(argv[i], "--") == 0) {
            options_end = true;
        } else if (!options_end &&
                   (strcmp(argv[i], "--help") == 0 ||
                    (strcmp(argv[i], "-h") == 0 && !find_option(command, NULL, 0, 'h')))) {
            cli_print_help(command, stdout);
            *shown_help = true;
            return CLI_DONE;
        } else if (!options_end && argv[i][0] == '-' && argv[i][1] != '\0') {
            int code = take_option(command, argc, argv, &i);
            if (code != CLI_DONE)
                return code;
        } else if (*n_operands >= command->max_operands) {
            return cli_usage(command, "unexpected argument '%s'", argv[i]);
        } else {
            operands[(*n_operands)++] = argv[i];
        }
    }
    if (*n_operands < command->min_operands)
        return cli_usage(command, "%s needs %s", command->name, command->operands);
    return CLI_DONE;
}

/* ---- Help ------------------------------------------------------------------------------------ */

/* Prints text wrapped at words; later lines begin at column, the first is there already. */
static void print_wrapped(FILE *out, const char *text, size_t column)
{
    size_t at = column;
    while (*text != '\0') {
        size_t word = strcspn(text, " \n");
        if (at > column && at + 1 + word > HELP_WIDTH) {
            fprintf(out, "\n%*s", (int)column, "");
            at = column;
        }
        at += (size_t)fprintf(out, "%s%.*s", at > column ? " " : "", (int)word, text);
        text += word;
        for (; *text == ' ' || *text == '\n'; text++)
            if (*text == '\n') {
                fprintf(out, "\n%*s", (int)column, "");
                at = column;
            }
    }
    fputc('\n', out);
}

static void print_option(FILE *out, const struct cli_option *option)
{
    char left[96];
    snprintf(left, sizeof left, "  %c%c%c --%s%s%s", option->letter ? '-' : ' ',
             option->letter ? option->letter : ' ', option->letter ? ',' : ' ', option->name,
             option->metavar != NULL ? " " : "", option->metavar != NULL ? option->metavar : "");
    fprintf(out, "%-*s", HELP_COLUMN, left);
    if (strlen(left) >= HELP_COLUMN - 1)
        fprintf(out, "\n%*s", HELP_COLUMN, "");
    print_wrapped(out, option->help, HELP_COLUMN);
}

void cli_print_help(const struct cli_command *command, FILE *out)
{
    bool options = command->groups[0] != NULL;
    fprintf(out, "usage: consort %s%s%s%s\n\n", command->name, command->operands[0] ? " " : "",
            command->operands, options ? " [options]" : "");
    print_wrapped(out, command->summary, 0);
    if (command->description != NULL) {
        fputc('\n', out);
        print_wrapped(out, command->description, 0);
    }
    for (size_t g = 0; g < CLI_MAX_GROUPS && command->groups[g] != NULL; g++) {
        fprintf(out, "\n%s:\n", command->groups[g]->title);
        for (size_t i = 0; i < command->groups[g]->n_options; i++)
            print_option(out, &command->groups[g]->options[i]);
    }
}

void cli_print_overview(FILE *out)
{
    fputs("usage: consort COMMAND ...\n\ncommands:\n", out);
    for (size_t i = 0; cli_commands[i] != NULL; i++)
        fprintf(out, "  %-12s%s\n", cli_commands[i]->name, cli_commands[i]->summary);
    fputs("\nconsort help COMMAND explains one; consort --version prints the version.\n", out);
}
