/* YAML by libyaml's events, as a tree in an arena. What a settings file has no need of is refused:
 * anchors and aliases (a few lines of them become gigabytes), tags, keys that are no plain text, a
 * key twice, a second document. */
#include "base/base.h"

#include <string.h>
#include <yaml.h>

#define MAX_BYTES ((size_t)1 << 20)
#define MAX_DEPTH 16
#define MAX_NODES 65536

struct reader {
    yaml_parser_t parser;
    struct arena *arena;
    const char *name;
    size_t n_nodes;
    struct error *error;
};

static enum status fail(struct reader *reader, yaml_mark_t mark, const char *text)
{
    return error_set(reader->error, STATUS_INVALID, "%s:%zu:%zu: %s", reader->name, mark.line + 1,
                     mark.column + 1, text);
}

static enum status next_event(struct reader *reader, yaml_event_t *event)
{
    if (yaml_parser_parse(&reader->parser, event))
        return STATUS_OK;
    const char *problem = reader->parser.problem;
    if (reader->parser.error == YAML_MEMORY_ERROR)
        return error_memory(reader->error, 1);
    return fail(reader, reader->parser.problem_mark,
                problem != NULL ? problem : "this is not valid YAML");
}

static enum status make_node(struct reader *reader, const yaml_event_t *event, enum yaml_kind kind,
                             struct yaml_node **out)
{
    if (reader->n_nodes++ == MAX_NODES)
        return fail(reader, event->start_mark, "there are too many values");
    struct yaml_node *node = arena_alloc(reader->arena, sizeof *node);
    if (node == NULL)
        return error_memory(reader->error, sizeof *node);
    node->kind = kind;
    node->line = event->start_mark.line + 1;
    node->column = event->start_mark.column + 1;
    *out = node;
    return STATUS_OK;
}

static enum status read_scalar(struct reader *reader, const yaml_event_t *event,
                               struct yaml_node **out)
{
    const char *text = (const char *)event->data.scalar.value;
    size_t size = event->data.scalar.length;
    if (event->data.scalar.anchor != NULL || event->data.scalar.tag != NULL)
        return fail(reader, event->start_mark, "anchors and tags are not possible here");
    if (memchr(text, '\0', size) != NULL)
        return fail(reader, event->start_mark, "a text holds a zero byte");
    enum status status = make_node(reader, event, YAML_TEXT, out);
    if (status != STATUS_OK)
        return status;
    (*out)->text = arena_copy(reader->arena, text, size);
    (*out)->plain = event->data.scalar.style == YAML_PLAIN_SCALAR_STYLE;
    return (*out)->text != NULL ? STATUS_OK : error_memory(reader->error, size);
}

static enum status read_value(struct reader *reader, yaml_event_t *event, unsigned depth,
                              struct yaml_node **out);

static enum status check_key(struct reader *reader, const yaml_event_t *event,
                             const struct yaml_node *map, const struct yaml_node *key)
{
    for (const struct yaml_node *entry = map->first; entry != NULL; entry = entry->next)
        if (strcmp(entry->key->text, key->text) == 0)
            return fail(reader, event->start_mark, "this key was there before");
    return STATUS_OK;
}

/* The entries of a list or a map, up to its end. */
static enum status read_entries(struct reader *reader, struct yaml_node *parent, unsigned depth)
{
    struct yaml_node **last = &parent->first;
    for (;;) {
        yaml_event_t event;
        struct yaml_node *key = NULL, *entry = NULL;
        enum status status = next_event(reader, &event);
        if (status != STATUS_OK)
            return status;
        bool ends = event.type == YAML_SEQUENCE_END_EVENT || event.type == YAML_MAPPING_END_EVENT;
        if (!ends && parent->kind == YAML_MAP) {
            status = event.type == YAML_SCALAR_EVENT
                         ? read_scalar(reader, &event, &key)
                         : fail(reader, event.start_mark, "a key is a plain text");
            if (status == STATUS_OK)
                status = check_key(reader, &event, parent, key);
            yaml_event_delete(&event);
            if (status == STATUS_OK)
                status = next_event(reader, &event);
            if (status != STATUS_OK)
                return status;
        }
        if (!ends)
            status = read_value(reader, &event, depth + 1, &entry);
        yaml_event_delete(&event);
        if (ends || status != STATUS_OK)
            return status;
        entry->key = key;
        *last = entry;
        last = &entry->next;
    }
}

/* The value that begins with the event. */
static enum status read_value(struct reader *reader, yaml_event_t *event, unsigned depth,
                              struct yaml_node **out)
{
    enum status status;
    if (depth > MAX_DEPTH)
        return fail(reader, event->start_mark, "values are nested too deeply");
    switch (event->type) {
    case YAML_SCALAR_EVENT:
        return read_scalar(reader, event, out);
    case YAML_SEQUENCE_START_EVENT:
        if (event->data.sequence_start.anchor != NULL || event->data.sequence_start.tag != NULL)
            break;
        status = make_node(reader, event, YAML_LIST, out);
        return status == STATUS_OK ? read_entries(reader, *out, depth) : status;
    case YAML_MAPPING_START_EVENT:
        if (event->data.mapping_start.anchor != NULL || event->data.mapping_start.tag != NULL)
            break;
        status = make_node(reader, event, YAML_MAP, out);
        return status == STATUS_OK ? read_entries(reader, *out, depth) : status;
    default:
        break;
    }
    return fail(reader, event->start_mark, "anchors, aliases and tags are not possible here");
}

/* The one document of the stream. */
static enum status read_stream(struct reader *reader, struct yaml_node **out)
{
    bool ends = false;
    while (!ends) {
        yaml_event_t event;
        enum status status = next_event(reader, &event);
        if (status != STATUS_OK)
            return status;
        ends = event.type == YAML_STREAM_END_EVENT;
        if (event.type == YAML_DOCUMENT_START_EVENT && *out != NULL)
            status = fail(reader, event.start_mark, "a second document begins here");
        else if (!ends && event.type != YAML_STREAM_START_EVENT &&
                 event.type != YAML_DOCUMENT_START_EVENT && event.type != YAML_DOCUMENT_END_EVENT)
            status = read_value(reader, &event, 1, out);
        yaml_event_delete(&event);
        if (status != STATUS_OK)
            return status;
    }
    return STATUS_OK;
}

enum status yaml_read(struct yaml_node **out, struct arena *arena, struct view text,
                      const char *name, struct error *error)
{
    struct reader reader = {.arena = arena, .name = name, .error = error};
    *out = NULL;
    if (text.size > MAX_BYTES)
        return error_set(error, STATUS_LIMIT, "%s has more than %zu KiB", name, MAX_BYTES >> 10);
    if (!yaml_parser_initialize(&reader.parser))
        return error_memory(error, 1);
    yaml_parser_set_input_string(&reader.parser, (const unsigned char *)text.data, text.size);
    yaml_parser_set_encoding(&reader.parser, YAML_UTF8_ENCODING);
    enum status status = read_stream(&reader, out);
    yaml_parser_delete(&reader.parser);
    if (status != STATUS_OK)
        *out = NULL;
    return status;
}
