/* Ollama's Modelfile (github.com/ollama/ollama/blob/main/docs/modelfile.md):
 *
 *     # a comment
 *     FROM llama3.2
 *     PARAMETER temperature 0.7
 *     SYSTEM """several
 *     lines"""
 *     MESSAGE user Hello
 */
#include "store/internal.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#define MAX_BYTES ((size_t)1 << 20)

struct modelfile {
    struct store_model *model;
    struct view text;
    size_t at, line;
    const char **from;
};

static const char *copy(struct modelfile *file, struct view text)
{
    const char *out = arena_copy(file->model->arena, text.data, text.size);
    return out != NULL ? out : "";
}

static void skip_spaces(struct modelfile *file)
{
    while (file->at < file->text.size && strchr(" \t", file->text.data[file->at]) != NULL)
        file->at++;
}

static struct view word(struct modelfile *file)
{
    size_t begin = file->at;
    while (file->at < file->text.size && !isspace((unsigned char)file->text.data[file->at]))
        file->at++;
    struct view out = {file->text.data + begin, file->at - begin};
    skip_spaces(file);
    return out;
}

/* The rest of the line, or what stands in quotes, which in """ goes over lines. */
static enum status value(struct modelfile *file, struct view *out, struct error *error)
{
    static const struct view quotes[] = {{"\"\"\"", 3}, {"\"", 1}};
    struct view rest = {file->text.data + file->at, file->text.size - file->at};
    size_t line = view_find(rest, 0, view_of("\n"));
    for (size_t i = 0; i < ARRAY_COUNT(quotes); i++) {
        size_t size = quotes[i].size;
        if (rest.size < size || memcmp(rest.data, quotes[i].data, size) != 0)
            continue;
        size_t end = view_find(rest, size, quotes[i]);
        if (end >= rest.size || (size == 1 && end > line))
            return error_set(error, STATUS_INVALID, "line %zu: the quotes are not closed",
                             file->line);
        *out = (struct view){rest.data + size, end - size};
        file->at += end + size;
        for (size_t k = 0; k < out->size; k++)
            file->line += out->data[k] == '\n';
        return STATUS_OK;
    }
    while (line > 0 && isspace((unsigned char)rest.data[line - 1]))
        line--;
    *out = (struct view){rest.data, line};
    file->at += line;
    return STATUS_OK;
}

/* A number or a truth value where it is one. */
static json_t *parameter(const char *text)
{
    char *end;
    double number = strtod(text, &end);
    if (strcasecmp(text, "true") == 0 || strcasecmp(text, "false") == 0)
        return json_boolean(tolower((unsigned char)text[0]) == 't');
    if (text[0] == '\0' || *end != '\0' || !(number >= -1e15 && number <= 1e15))
        return json_string(text);
    if (strpbrk(text, ".eE") == NULL)
        return json_integer((json_int_t)number);
    return json_real(number);
}

static enum status take_parameter(struct modelfile *file, struct view name, struct view text,
                                  struct error *error)
{
    const char *key = copy(file, name);
    bool stop = strcmp(key, "stop") == 0;
    json_t *given = stop ? json_stringn(text.data, text.size) : parameter(copy(file, text));
    if (stop) {
        if (json_object_get(file->model->parameters, key) == NULL)
            json_object_set_new(file->model->parameters, key, json_array());
        json_array_append_new(json_object_get(file->model->parameters, key), given);
    } else {
        json_object_set_new(file->model->parameters, key, given);
    }
    return given != NULL ? STATUS_OK
                         : error_set(error, STATUS_INVALID, "line %zu is not UTF-8", file->line);
}

static enum status take(struct modelfile *file, const char *instruction, struct error *error)
{
    struct store_model *model = file->model;
    const struct {
        const char *name;
        const char **to;
    } texts[] = {{"FROM", file->from},
                 {"SYSTEM", &model->system},
                 {"TEMPLATE", &model->chat_template},
                 {"LICENSE", &model->license}};
    struct view first = {0}, text = {0};
    bool message = strcasecmp(instruction, "MESSAGE") == 0;
    bool with_name = message || strcasecmp(instruction, "PARAMETER") == 0;
    if (strcasecmp(instruction, "ADAPTER") == 0)
        return error_set(error, STATUS_UNSUPPORTED,
                         "line %zu: adapters (LoRA) are not applied; merge it into the model",
                         file->line);
    if (with_name)
        first = word(file);
    enum status status = value(file, &text, error);
    if (status != STATUS_OK)
        return status;
    if (message) {
        json_array_append_new(model->messages,
                              json_pack("{s:s%, s:s%}", "role", first.data, first.size, "content",
                                        text.data, text.size));
        return STATUS_OK;
    }
    if (with_name)
        return take_parameter(file, first, text, error);
    for (size_t i = 0; i < ARRAY_COUNT(texts); i++)
        if (strcasecmp(instruction, texts[i].name) == 0) {
            *texts[i].to = copy(file, text);
            if (texts[i].to == &model->chat_template)
                model->template_wins = model->chat_template[0] != '\0';
            return STATUS_OK;
        }
    return error_set(error, STATUS_INVALID,
                     "line %zu begins with '%.40s'; FROM, PARAMETER, TEMPLATE, SYSTEM, LICENSE or "
                     "MESSAGE is expected",
                     file->line, instruction);
}

enum status store_modelfile_read(struct store_model *model, struct view text, const char **from,
                                 struct error *error)
{
    struct modelfile file = {.model = model, .text = text, .line = 1, .from = from};
    enum status status = STATUS_OK;
    if (text.size > MAX_BYTES || !utf8_valid(text.data, text.size) ||
        memchr(text.data, '\0', text.size) != NULL)
        return error_set(error, STATUS_INVALID, "a Modelfile is UTF-8 text of at most %zu bytes",
                         MAX_BYTES);
    while (status == STATUS_OK && file.at < text.size) {
        char c = text.data[file.at];
        if (isspace((unsigned char)c)) {
            file.line += c == '\n';
            file.at++;
        } else if (c == '#') {
            file.at = view_find(text, file.at, view_of("\n"));
        } else {
            status = take(&file, copy(&file, word(&file)), error);
        }
    }
    return status;
}
