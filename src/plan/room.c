/* Reads what a file says of machines, links and models. The entries of a list are structs, which
 * tables of fields describe. */
#include "plan/internal.h"

#include <ctype.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define GB 1e9
#define ARENA_BYTES ((size_t)64 << 20)

enum field_type { FIELD_NAME, FIELD_NUMBER, FIELD_WHOLE, FIELD_FLAG };

struct field {
    const char *name;
    enum field_type type;
    size_t offset;
    double min, max;
    bool required;
};

struct reader {
    const char *name;
    struct error *error;
};

static enum status fail(const struct reader *reader, const struct yaml_node *at, const char *format,
                        ...) BASE_PRINTF(3, 4);

static enum status fail(const struct reader *reader, const struct yaml_node *at, const char *format,
                        ...)
{
    char text[200];
    va_list values;
    va_start(values, format);
    vsnprintf(text, sizeof text, format, values);
    va_end(values);
    return error_set(reader->error, STATUS_INVALID, "%s:%zu:%zu: %s", reader->name, at->line,
                     at->column, text);
}

/* ---- Values ---------------------------------------------------------------------------------- */

static enum status read_name(const struct reader *reader, const struct yaml_node *value, char *out)
{
    if (value->kind != YAML_TEXT || value->text[0] == '\0')
        return fail(reader, value, "a name is expected");
    if (strlen(value->text) >= PLAN_NAME_BYTES)
        return fail(reader, value, "a name has at most %d bytes", PLAN_NAME_BYTES - 1);
    for (const char *c = value->text; *c != '\0'; c++)
        if ((unsigned char)*c < ' ' || *c == 0x7f)
            return fail(reader, value, "a name holds a control character");
    snprintf(out, PLAN_NAME_BYTES, "%s", value->text);
    return STATUS_OK;
}

static enum status read_number(const struct reader *reader, const struct yaml_node *value,
                               const struct field *field, double *out)
{
    char *end = NULL;
    bool text = value->kind == YAML_TEXT &&
                (isdigit((unsigned char)value->text[0]) || value->text[0] == '.');
    double number = text ? strtod(value->text, &end) : 0;
    if (!text || *end != '\0' || !isfinite(number))
        return fail(reader, value, "%s is a number", field->name);
    if (number < field->min || number > field->max)
        return fail(reader, value, "%s is between %g and %g", field->name, field->min, field->max);
    if (field->type == FIELD_WHOLE && number != floor(number))
        return fail(reader, value, "%s is a whole number", field->name);
    *out = number;
    return STATUS_OK;
}

static enum status read_field(const struct reader *reader, const struct yaml_node *value,
                              const struct field *field, void *record)
{
    void *out = (char *)record + field->offset;
    if (field->type == FIELD_NAME)
        return read_name(reader, value, out);
    if (field->type != FIELD_FLAG)
        return read_number(reader, value, field, out);
    bool yes = value->kind == YAML_TEXT && strcmp(value->text, "true") == 0;
    if (!yes && (value->kind != YAML_TEXT || strcmp(value->text, "false") != 0))
        return fail(reader, value, "%s is true or false", field->name);
    *(bool *)out = yes;
    return STATUS_OK;
}

/* The entries of a map into a record; keys that are in skip (ending with NULL) are others'. */
static enum status read_record(const struct reader *reader, const struct yaml_node *map,
                               const struct field *fields, size_t n_fields, const char *const *skip,
                               void *record)
{
    if (map->kind != YAML_MAP)
        return fail(reader, map, "keys with values are expected, as {%s: ...}", fields[0].name);
    uint64_t seen = 0;
    for (const struct yaml_node *entry = map->first; entry != NULL; entry = entry->next) {
        const char *key = entry->key->text;
        size_t f = 0, s = 0;
        while (f < n_fields && strcmp(fields[f].name, key) != 0)
            f++;
        while (skip != NULL && skip[s] != NULL && strcmp(skip[s], key) != 0)
            s++;
        if (f == n_fields && skip != NULL && skip[s] != NULL)
            continue;
        if (f == n_fields)
            return fail(reader, entry->key, "unknown key '%.40s'", key);
        enum status status = read_field(reader, entry, &fields[f], record);
        if (status != STATUS_OK)
            return status;
        seen |= (uint64_t)1 << f;
    }
    for (size_t f = 0; f < n_fields; f++)
        if (fields[f].required && !(seen >> f & 1))
            return fail(reader, map, "%s is missing", fields[f].name);
    return STATUS_OK;
}

static const struct yaml_node *entry_of(const struct yaml_node *map, const char *key)
{
    const struct yaml_node *entry = map->first;
    while (entry != NULL && strcmp(entry->key->text, key) != 0)
        entry = entry->next;
    return entry;
}

/* ---- Lists ----------------------------------------------------------------------------------- */

#define MACHINE(field) offsetof(struct plan_machine, field)
static const struct field machine_fields[] = {
    {"name", FIELD_NAME, MACHINE(name), 0, 0, true},
    {"memory-gb", FIELD_NUMBER, MACHINE(memory_gb), 0.001, 1e6, true},
    {"bandwidth-gbs", FIELD_NUMBER, MACHINE(nominal_gbs), 0.001, 1e6, false},
    {"read-gbs", FIELD_NUMBER, MACHINE(read_gbs), 0.001, 1e6, false},
    {"tflops", FIELD_NUMBER, MACHINE(tflops), 0.0001, 1e6, false},
    {"overhead-us", FIELD_NUMBER, MACHINE(overhead_us), 0, 1e5, false},
    {"idle-w", FIELD_NUMBER, MACHINE(power.idle_w), 0, 1e5, false},
    {"peak-w", FIELD_NUMBER, MACHINE(power.peak_w), 0, 1e5, false},
    {"sleep-w", FIELD_NUMBER, MACHINE(power.sleep_w), 0, 1e5, false},
    {"price", FIELD_NUMBER, MACHINE(price), 0, 1e9, false},
};

#define KIND(field) offsetof(struct plan_link_kind, field)
static const struct field kind_fields[] = {
    {"name", FIELD_NAME, KIND(name), 0, 0, true},
    {"latency-us", FIELD_NUMBER, KIND(latency_us), 0, 1e7, true},
    {"gb-per-s", FIELD_NUMBER, KIND(gbs), 1e-6, 1e6, true},
    {"collective-us", FIELD_NUMBER, KIND(collective_us), 0, 1e7, false},
};

#define SHAPE(field) offsetof(struct plan_shape, field)
static const struct field shape_fields[] = {
    {"name", FIELD_NAME, SHAPE(name), 0, 0, true},
    {"size-gb", FIELD_NUMBER, SHAPE(size_gb), 1e-4, 1e6, true},
    {"layers", FIELD_WHOLE, SHAPE(layers), 1, PLAN_MAX_LAYERS, true},
    {"embedding", FIELD_WHOLE, SHAPE(embedding), 1, 1e6, true},
    {"heads", FIELD_WHOLE, SHAPE(heads), 1, 1e5, true},
    {"kv-heads", FIELD_WHOLE, SHAPE(kv_heads), 1, 1e5, false},
    {"head-size", FIELD_WHOLE, SHAPE(head_size), 1, 1e5, true},
    {"ff", FIELD_WHOLE, SHAPE(ff), 0, 1e7, false},
    {"vocabulary", FIELD_WHOLE, SHAPE(vocabulary), 1, 1e7, true},
    {"experts", FIELD_WHOLE, SHAPE(experts), 0, 1e5, false},
    {"experts-used", FIELD_WHOLE, SHAPE(experts_used), 0, 1e5, false},
    {"expert-ff", FIELD_WHOLE, SHAPE(expert_ff), 0, 1e7, false},
    {"shared-ff", FIELD_WHOLE, SHAPE(shared_ff), 0, 1e7, false},
    {"dense-layers", FIELD_WHOLE, SHAPE(dense_layers), 0, PLAN_MAX_LAYERS, false},
    {"q-rank", FIELD_WHOLE, SHAPE(q_rank), 0, 1e5, false},
    {"kv-rank", FIELD_WHOLE, SHAPE(kv_rank), 0, 1e5, false},
    {"rope-dims", FIELD_WHOLE, SHAPE(rope_dims), 0, 1e5, false},
    {"block", FIELD_WHOLE, SHAPE(block), 1, 1e5, false},
    {"tied", FIELD_FLAG, SHAPE(tied), 0, 0, false},
};

#define COST(field) offsetof(struct plan_costs, field)
static const struct field cost_fields[] = {
    {"busy", FIELD_NUMBER, COST(busy), 0, 1, false},
    {"awake", FIELD_NUMBER, COST(awake), 0, 1, false},
    {"kwh-price", FIELD_NUMBER, COST(kwh_price), 0, 1e6, false},
    {"years", FIELD_NUMBER, COST(years), 0.1, 100, false},
    {"residual", FIELD_NUMBER, COST(residual), 0, 1, false},
    {"admin-hours", FIELD_NUMBER, COST(admin_hours), 0, 1e6, false},
    {"admin-rate", FIELD_NUMBER, COST(rate), 0, 1e6, false},
    {"cloud-month", FIELD_NUMBER, COST(cloud_month), 0, 1e12, false},
    {"capex", FIELD_NUMBER, COST(capex), 0, 1e12, false},
};

/* A list of records that begin with their name: each is added, or replaces that of the name. */
struct table {
    const char *key;
    const struct field *fields;
    size_t n_fields, record_bytes;
    enum status (*check)(const struct reader *reader, const struct yaml_node *at,
                         const void *record);
};

static enum status add_record(const struct table *table, void **records, size_t *n,
                              const void *record, const struct reader *reader,
                              const struct yaml_node *at)
{
    size_t i = 0;
    while (i < *n && strcmp((char *)*records + i * table->record_bytes, record) != 0)
        i++;
    if (i == PLAN_MAX_ENTRIES)
        return fail(reader, at, "there are more than %d %s", PLAN_MAX_ENTRIES, table->key);
    if (i == *n) {
        void *grown = realloc(*records, (*n + 1) * table->record_bytes);
        if (grown == NULL)
            return error_memory(reader->error, (*n + 1) * table->record_bytes);
        *records = grown;
        ++*n;
    }
    memcpy((char *)*records + i * table->record_bytes, record, table->record_bytes);
    return STATUS_OK;
}

static enum status read_table(const struct reader *reader, const struct yaml_node *root,
                              const struct table *table, void **records, size_t *n)
{
    const struct yaml_node *list = entry_of(root, table->key);
    union {
        struct plan_machine machine;
        struct plan_link_kind kind;
        struct plan_shape shape;
    } record;
    if (list == NULL)
        return STATUS_OK;
    if (list->kind != YAML_LIST)
        return fail(reader, list, "%s is a list", table->key);
    for (const struct yaml_node *entry = list->first; entry != NULL; entry = entry->next) {
        memset(&record, 0, sizeof record);
        enum status status =
            read_record(reader, entry, table->fields, table->n_fields, NULL, &record);
        if (status == STATUS_OK && table->check != NULL)
            status = table->check(reader, entry, &record);
        if (status == STATUS_OK)
            status = add_record(table, records, n, &record, reader, entry);
        if (status != STATUS_OK)
            return status;
    }
    return STATUS_OK;
}

static enum status check_machine(const struct reader *reader, const struct yaml_node *at,
                                 const void *record)
{
    const struct plan_machine *machine = record;
    if (machine->read_gbs == 0 && machine->nominal_gbs == 0)
        return fail(reader, at, "bandwidth-gbs or read-gbs is missing");
    return STATUS_OK;
}

static enum status check_shape(const struct reader *reader, const struct yaml_node *at,
                               const void *record)
{
    const struct plan_shape *shape = record;
    if (shape->kv_rank == 0 && (shape->kv_heads == 0 || shape->kv_heads > shape->heads))
        return fail(reader, at, "kv-heads is between 1 and the number of heads");
    if (shape->kv_rank > 0 && shape->rope_dims >= shape->head_size)
        return fail(reader, at, "rope-dims is less than head-size");
    if (shape->experts > 0 &&
        (shape->experts_used == 0 || shape->experts_used > shape->experts || shape->expert_ff == 0))
        return fail(reader, at, "experts need expert-ff, and experts-used, at most as many");
    return STATUS_OK;
}

static const struct table machine_table = {"machines", machine_fields, ARRAY_COUNT(machine_fields),
                                           sizeof(struct plan_machine), check_machine};
static const struct table kind_table = {"link-kinds", kind_fields, ARRAY_COUNT(kind_fields),
                                        sizeof(struct plan_link_kind), NULL};
static const struct table shape_table = {"models", shape_fields, ARRAY_COUNT(shape_fields),
                                         sizeof(struct plan_shape), check_shape};

/* The record of that name, or NULL. */
static const void *find_record(const void *records, size_t n, size_t record_bytes, const char *name)
{
    for (size_t i = 0; i < n; i++)
        if (strcmp((const char *)records + i * record_bytes, name) == 0)
            return (const char *)records + i * record_bytes;
    return NULL;
}

const struct plan_machine *plan_find_machine(const struct plan_room *room, const char *name)
{
    return find_record(room->machines, room->n_machines, sizeof *room->machines, name);
}

const struct plan_link_kind *plan_find_kind(const struct plan_room *room, const char *name)
{
    return find_record(room->kinds, room->n_kinds, sizeof *room->kinds, name);
}

const struct plan_shape *plan_find_shape(const struct plan_room *room, const char *name)
{
    return find_record(room->shapes, room->n_shapes, sizeof *room->shapes, name);
}

/* ---- Nodes ----------------------------------------------------------------------------------- */

double plan_read_rate(double nominal)
{
    return nominal * NOMINAL_SHARE;
}

struct plan_node plan_machine_node(const struct plan_machine *machine)
{
    struct plan_node node = {
        .memory_bytes =
            machine_usable_bytes((uint64_t)(machine->memory_gb * (double)((uint64_t)1 << 30))),
        .read_rate = machine->read_gbs > 0 ? machine->read_gbs * GB
                                           : plan_read_rate(machine->nominal_gbs * GB),
        .flops = machine->tflops * 1e12,
        .layer_overhead_s =
            machine->overhead_us > 0 ? machine->overhead_us * 1e-6 : PLAN_LAYER_OVERHEAD_S,
    };
    snprintf(node.name, sizeof node.name, "%s", machine->name);
    return node;
}

struct plan_link plan_kind_link(const struct plan_link_kind *kind)
{
    return (struct plan_link){kind->latency_us * 1e-6, kind->gbs * GB, kind->collective_us * 1e-6};
}

static enum status add_node(struct plan_room *room, const struct reader *reader,
                            const struct yaml_node *at, const struct plan_machine *machine,
                            const char *name)
{
    if (room->n_nodes == PLAN_MAX_NODES)
        return fail(reader, at, "there are more than %d nodes", PLAN_MAX_NODES);
    for (uint32_t i = 0; i < room->n_nodes; i++)
        if (strcmp(room->nodes[i].name, name) == 0)
            return fail(reader, at, "there are two nodes with the name %s: give one a name", name);
    struct plan_node *node = &room->nodes[room->n_nodes];
    room->node_machines[room->n_nodes++] = *machine;
    *node = plan_machine_node(machine);
    snprintf(node->name, sizeof node->name, "%s", name);
    return STATUS_OK;
}

/* The name of a machine, or a map: of one in the library, changed by its other keys, or all its
 * facts. */
static enum status read_node(struct plan_room *room, const struct reader *reader,
                             const struct yaml_node *entry)
{
    static const char *const others[] = {"machine", "count", NULL};
    static const struct field count_field = {"count", FIELD_WHOLE, 0, 1, PLAN_MAX_NODES, false};
    struct plan_machine machine = {0};
    const struct yaml_node *of = entry->kind == YAML_TEXT ? entry : NULL, *many = NULL;
    double count = 1;
    if (entry->kind == YAML_MAP) {
        of = entry_of(entry, "machine");
        many = entry_of(entry, "count");
    }
    if (of != NULL) {
        const struct plan_machine *known =
            of->kind == YAML_TEXT ? plan_find_machine(room, of->text) : NULL;
        if (known == NULL)
            return fail(reader, of, "no machine '%.40s' is known; consort plan --list shows them",
                        of->kind == YAML_TEXT ? of->text : "");
        machine = *known;
    }
    struct field fields[ARRAY_COUNT(machine_fields)];
    memcpy(fields, machine_fields, sizeof fields);
    for (size_t f = 0; f < ARRAY_COUNT(fields); f++)
        fields[f].required = fields[f].required && of == NULL;
    enum status status = STATUS_OK;
    if (entry->kind != YAML_TEXT)
        status = read_record(reader, entry, fields, ARRAY_COUNT(fields), others, &machine);
    if (status == STATUS_OK)
        status = check_machine(reader, entry, &machine);
    if (status == STATUS_OK && many != NULL)
        status = read_number(reader, many, &count_field, &count);
    for (uint32_t i = 1; i <= (uint32_t)count && status == STATUS_OK; i++) {
        char name[PLAN_NAME_BYTES];
        int size = count > 1 ? snprintf(name, sizeof name, "%s-%u", machine.name, i)
                             : snprintf(name, sizeof name, "%s", machine.name);
        if (size >= PLAN_NAME_BYTES)
            return fail(reader, entry, "the name is too long for a number at its end");
        status = add_node(room, reader, entry, &machine, name);
    }
    return status;
}

/* ---- Links ----------------------------------------------------------------------------------- */

static enum status find_kind(const struct plan_room *room, const struct reader *reader,
                             const struct yaml_node *value, struct plan_link *out)
{
    const struct plan_link_kind *kind =
        value->kind == YAML_TEXT ? plan_find_kind(room, value->text) : NULL;
    if (kind == NULL)
        return fail(reader, value, "no link '%.40s' is known; consort plan --list shows them",
                    value->kind == YAML_TEXT ? value->text : "");
    *out = plan_kind_link(kind);
    return STATUS_OK;
}

static enum status find_node(const struct plan_room *room, const struct reader *reader,
                             const struct yaml_node *value, uint32_t *out)
{
    for (uint32_t i = 0; i < room->n_nodes && value->kind == YAML_TEXT; i++)
        if (strcmp(room->nodes[i].name, value->text) == 0) {
            *out = i;
            return STATUS_OK;
        }
    return fail(reader, value, "there is no node '%.40s'",
                value->kind == YAML_TEXT ? value->text : "");
}

/* {between: [NODE, NODE, ...], kind: KIND}: between each two of them. */
static enum status read_link(struct plan_room *room, const struct reader *reader,
                             const struct yaml_node *entry)
{
    const struct yaml_node *between = NULL, *kind = NULL;
    if (entry->kind == YAML_MAP) {
        between = entry_of(entry, "between");
        kind = entry_of(entry, "kind");
    }
    if (between == NULL || kind == NULL || between->kind != YAML_LIST)
        return fail(reader, entry, "a link is {between: [NODE, NODE], kind: KIND}");
    for (const struct yaml_node *key = entry->first; key != NULL; key = key->next)
        if (key != between && key != kind)
            return fail(reader, key->key, "unknown key '%.40s'", key->key->text);
    struct plan_link link;
    uint32_t nodes[PLAN_MAX_NODES], n = 0;
    enum status status = find_kind(room, reader, kind, &link);
    for (const struct yaml_node *node = between->first; node != NULL && status == STATUS_OK;
         node = node->next) {
        if (n == PLAN_MAX_NODES)
            return fail(reader, node, "there are more than %d nodes", PLAN_MAX_NODES);
        status = find_node(room, reader, node, &nodes[n++]);
    }
    if (status == STATUS_OK && n < 2)
        return fail(reader, between, "a link is between two nodes or more");
    for (uint32_t a = 0; a < n && status == STATUS_OK; a++)
        for (uint32_t b = 0; b < n; b++)
            if (nodes[a] != nodes[b])
                room->links[(size_t)nodes[a] * room->n_nodes + nodes[b]] = link;
    return status;
}

static enum status read_links(struct plan_room *room, const struct reader *reader,
                              const struct yaml_node *root, const struct yaml_node *nodes)
{
    const struct yaml_node *all = entry_of(root, "link"), *list = entry_of(root, "links");
    struct plan_link link = {0};
    enum status status = STATUS_OK;
    if (room->n_nodes > 1 && all == NULL && list == NULL)
        return fail(reader, nodes, "several nodes need a link, as link: 10gbe");
    if (list != NULL && list->kind != YAML_LIST)
        return fail(reader, list, "links is a list");
    size_t count = (size_t)room->n_nodes * room->n_nodes;
    room->links = calloc(count, sizeof *room->links);
    if (room->links == NULL)
        return error_memory(reader->error, count * sizeof *room->links);
    if (all != NULL)
        status = find_kind(room, reader, all, &link);
    for (size_t i = 0; i < count && status == STATUS_OK; i++)
        room->links[i] = link;
    for (const struct yaml_node *entry = list != NULL ? list->first : NULL;
         entry != NULL && status == STATUS_OK; entry = entry->next)
        status = read_link(room, reader, entry);
    return status;
}

/* ---- The file -------------------------------------------------------------------------------- */

static enum status read_costs(struct plan_room *room, const struct reader *reader,
                              const struct yaml_node *root)
{
    const struct yaml_node *costs = entry_of(root, "costs");
    if (costs == NULL)
        return STATUS_OK;
    if (!room->has_costs)
        room->costs = (struct plan_costs){.awake = 1, .years = 5};
    enum status status =
        read_record(reader, costs, cost_fields, ARRAY_COUNT(cost_fields), NULL, &room->costs);
    room->has_costs = true;
    if (status == STATUS_OK && room->costs.busy > room->costs.awake)
        return fail(reader, costs, "machines cannot be busy more than they are awake");
    return status;
}

static enum status read_root(struct plan_room *room, const struct reader *reader,
                             const struct yaml_node *root)
{
    static const char *const keys[] = {"machines", "link-kinds", "models", "costs",
                                       "nodes",    "link",       "links",  NULL};
    const struct yaml_node *nodes;
    if (root->kind != YAML_MAP)
        return fail(reader, root, "keys with values are expected, as nodes: [...]");
    for (const struct yaml_node *entry = root->first; entry != NULL; entry = entry->next) {
        size_t k = 0;
        while (keys[k] != NULL && strcmp(keys[k], entry->key->text) != 0)
            k++;
        if (keys[k] == NULL)
            return fail(reader, entry->key, "unknown key '%.40s'", entry->key->text);
    }
    void *machines = room->machines, *kinds = room->kinds, *shapes = room->shapes;
    enum status status = read_table(reader, root, &machine_table, &machines, &room->n_machines);
    if (status == STATUS_OK)
        status = read_table(reader, root, &kind_table, &kinds, &room->n_kinds);
    if (status == STATUS_OK)
        status = read_table(reader, root, &shape_table, &shapes, &room->n_shapes);
    room->machines = machines;
    room->kinds = kinds;
    room->shapes = shapes;
    if (status == STATUS_OK)
        status = read_costs(room, reader, root);
    nodes = entry_of(root, "nodes");
    if (status != STATUS_OK || nodes == NULL)
        return status;
    if (nodes->kind != YAML_LIST)
        return fail(reader, nodes, "nodes is a list");
    room->n_nodes = 0;
    free(room->links);
    room->links = NULL;
    for (const struct yaml_node *entry = nodes->first; entry != NULL && status == STATUS_OK;
         entry = entry->next)
        status = read_node(room, reader, entry);
    if (status == STATUS_OK && room->n_nodes == 0)
        return fail(reader, nodes, "there is no node");
    return status == STATUS_OK ? read_links(room, reader, root, nodes) : status;
}

enum status plan_room_read(struct plan_room *room, struct view text, const char *name,
                           struct error *error)
{
    struct reader reader = {name, error};
    struct yaml_node *root;
    struct arena *arena = arena_open(ARENA_BYTES);
    if (arena == NULL)
        return error_memory(error, ARENA_BYTES);
    enum status status = yaml_read(&root, arena, text, name, error);
    if (status == STATUS_OK && root != NULL)
        status = read_root(room, &reader, root);
    arena_close(arena);
    return status;
}

void plan_room_free(struct plan_room *room)
{
    free(room->machines);
    free(room->kinds);
    free(room->shapes);
    free(room->links);
    *room = (struct plan_room){0};
}
