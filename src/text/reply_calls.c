/* Tool calls as the families write them. The marks are those of their published chat templates. */
#include "text/reply_calls.h"

#include <stdlib.h>
#include <string.h>

static bool is_space(char c)
{
    return c == ' ' || c == '\n' || c == '\r' || c == '\t';
}

struct view reply_trim(struct view text)
{
    while (text.size > 0 && is_space(text.data[0])) {
        text.data++;
        text.size--;
    }
    while (text.size > 0 && is_space(text.data[text.size - 1]))
        text.size--;
    return text;
}

static struct view part_of(struct view text, size_t begin, size_t end)
{
    return (struct view){text.data + begin, end - begin};
}

/* Cuts text at mark: *before is what stands before it, text what stands behind. */
static bool cut(struct view *text, const char *mark, struct view *before)
{
    size_t at = view_find(*text, 0, view_of(mark));
    if (at == text->size)
        return false;
    *before = part_of(*text, 0, at);
    *text = part_of(*text, at + strlen(mark), text->size);
    return true;
}

/* Drops mark from the beginning. */
static bool drop(struct view *text, const char *mark)
{
    struct view begin = {text->data, MIN(strlen(mark), text->size)};
    if (!view_equal(begin, view_of(mark)))
        return false;
    *text = part_of(*text, begin.size, text->size);
    return true;
}

bool reply_add_call(struct reply_calls *calls, struct view name, json_t *arguments)
{
    json_t *call = json_array();
    bool good =
        name.size > 0 && memchr(name.data, '\0', name.size) == NULL && json_is_object(arguments) &&
        call != NULL && json_array_append_new(call, json_stringn(name.data, name.size)) == 0 &&
        json_array_append(call, arguments) == 0 && json_array_append(calls->list, call) == 0;
    json_decref(call);
    json_decref(arguments);
    return good;
}

/* ---- JSON ------------------------------------------------------------------------------------ */

static bool add_object(struct reply_calls *calls, const json_t *object)
{
    const json_t *inner = json_object_get(object, "function");
    if (json_is_object(inner))
        object = inner;
    const char *name = json_string_value(json_object_get(object, "name"));
    if (name == NULL)
        name = json_string_value(json_object_get(object, "tool_name"));
    json_t *arguments = json_object_get(object, "arguments");
    if (arguments == NULL)
        arguments = json_object_get(object, "parameters");
    if (name == NULL)
        return false;
    if (json_is_string(arguments)) /* JSON in a string */
        return reply_add_call(calls, view_of(name),
                              json_loads(json_string_value(arguments), 0, NULL));
    return reply_add_call(calls, view_of(name),
                          arguments != NULL ? json_incref(arguments) : json_object());
}

bool reply_read_json(struct reply_calls *calls, struct view text)
{
    text = reply_trim(text);
    bool any = false;
    while (text.size > 0) {
        json_error_t end;
        json_t *value = json_loadb(text.data, text.size, JSON_DISABLE_EOF_CHECK, &end);
        bool good = json_is_object(value) ? add_object(calls, value) : json_is_array(value);
        for (size_t i = 0; good && i < json_array_size(value); i++)
            good = add_object(calls, json_array_get(value, i));
        json_decref(value);
        if (!good)
            return false;
        any = true;
        text = reply_trim(part_of(text, (size_t)end.position, text.size));
        if (drop(&text, ";") || drop(&text, ","))
            text = reply_trim(text);
    }
    return any;
}

/* ---- A name, then JSON ----------------------------------------------------------------------- */

/* "functions.get_weather:0" is called get_weather. */
static struct view bare_name(struct view name)
{
    drop(&name, "functions.");
    size_t colon = view_find(name, 0, (struct view){":", 1});
    return part_of(name, 0, colon);
}

bool reply_read_named(struct reply_calls *calls, struct view text)
{
    static const char *const separators[] = {"<｜tool▁sep｜>", "<|tool_call_argument_begin|>",
                                             "[ARGS]", "[CALL_ID]"};
    struct view name, word;
    text = reply_trim(text);
    if (text.size > 0 && text.data[0] == '[')
        return reply_read_json(calls, text);
    size_t brace = view_find(text, 0, (struct view){"{", 1});
    name = part_of(text, 0, brace);
    text = part_of(text, brace, text.size);
    for (size_t i = 0; i < ARRAY_COUNT(separators); i++) {
        struct view rest = name;
        if (!cut(&rest, separators[i], &word))
            continue;
        /* DeepSeek V3 writes "function", the separator, the name, and ```json. */
        bool kind_first = view_equal(reply_trim(word), view_of("function"));
        name = kind_first ? rest : word;
        break;
    }
    struct view line = name;
    if (cut(&line, "\n", &word))
        name = word;
    size_t last = text.size;
    while (last > 0 && text.data[last - 1] != '}')
        last--;
    return reply_add_call(calls, bare_name(reply_trim(name)), json_loadb(text.data, last, 0, NULL));
}

/* ---- Names and values in tags ---------------------------------------------------------------- */

/* The type that the tool's schema gives a parameter, or NULL. */
static const char *type_of(const struct reply_calls *calls, struct view tool, const char *key)
{
    for (size_t i = 0; i < json_array_size(calls->tools); i++) {
        const json_t *function = json_object_get(json_array_get(calls->tools, i), "function");
        const char *name = json_string_value(json_object_get(function, "name"));
        const json_t *properties =
            json_object_get(json_object_get(function, "parameters"), "properties");
        if (name != NULL && view_equal(tool, view_of(name)))
            return json_string_value(json_object_get(json_object_get(properties, key), "type"));
    }
    return NULL;
}

/* Values are bare: a text where the schema says so, else JSON where it is JSON. */
static bool set_argument(const struct reply_calls *calls, json_t *arguments, struct view tool,
                         struct view key, struct view value)
{
    json_t *json = NULL;
    char *name = strndup(key.data, key.size);
    if (name == NULL)
        return false;
    const char *type = type_of(calls, tool, name);
    if (type == NULL || strcmp(type, "string") != 0)
        json = json_loadb(value.data, value.size, JSON_DECODE_ANY, NULL);
    if (json == NULL)
        json = json_stringn(value.data, value.size);
    bool good = json_object_set_new(arguments, name, json) == 0;
    free(name);
    return good;
}

/* One line end after the opening and before the closing tag belongs to the format. */
static struct view value_of(struct view text)
{
    if (text.size > 0 && text.data[0] == '\n')
        text = part_of(text, 1, text.size);
    if (text.size > 0 && text.data[text.size - 1] == '\n')
        text.size--;
    return text;
}

/* The words around names and values. */
struct tags {
    const char *key, *key_end, *value_begin, *value_end; /* value_begin NULL: after key_end */
    bool lines;                                          /* a value stands on lines of its own */
};

static bool read_arguments(struct reply_calls *calls, struct view tool, struct view text,
                           const struct tags *tags)
{
    json_t *arguments = json_object();
    struct view key, value, skipped;
    bool good = arguments != NULL;
    while (good && cut(&text, tags->key, &skipped))
        good = cut(&text, tags->key_end, &key) &&
               (tags->value_begin == NULL || cut(&text, tags->value_begin, &skipped)) &&
               cut(&text, tags->value_end, &value) &&
               set_argument(calls, arguments, tool, reply_trim(key),
                            tags->lines ? value_of(value) : value);
    if (!good) {
        json_decref(arguments);
        return false;
    }
    return reply_add_call(calls, tool, arguments);
}

bool reply_read_glm(struct reply_calls *calls, struct view text)
{
    static const struct tags tags = {"<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>",
                                     false};
    text = reply_trim(text);
    if (text.size > 0 && text.data[0] == '{')
        return reply_read_json(calls, text);
    struct view name = reply_trim(part_of(text, 0, view_find(text, 0, view_of(tags.key))));
    for (size_t i = 0; i < name.size; i++)
        if (is_space(name.data[i]))
            return false;
    return read_arguments(calls, name, text, &tags);
}

bool reply_read_qwen(struct reply_calls *calls, struct view text)
{
    static const struct tags tags = {"<parameter=", ">", NULL, "</parameter>", true};
    struct view name, skipped, body;
    text = reply_trim(text);
    if (text.size > 0 && text.data[0] == '{')
        return reply_read_json(calls, text);
    if (!cut(&text, "<function=", &skipped) || !cut(&text, ">", &name))
        return false;
    if (!cut(&text, "</function>", &body))
        body = text;
    return read_arguments(calls, reply_trim(name), body, &tags);
}

bool reply_read_minimax(struct reply_calls *calls, struct view text)
{
    static const struct tags tags = {"<parameter name=\"", "\">", NULL, "</parameter>", false};
    struct view name, skipped, body;
    bool any = false;
    while (cut(&text, "<invoke name=\"", &skipped)) {
        if (!cut(&text, "\">", &name) || !cut(&text, "</invoke>", &body) ||
            !read_arguments(calls, name, body, &tags))
            return false;
        any = true;
    }
    return any;
}
