#include "cluster/core_message.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#define SHA_DIGITS 64

struct message message_over(const json_t *json)
{
    return (struct message){.json = json};
}

void message_fail(struct message *message, const char *format, ...)
{
    if (message->failed)
        return;
    message->failed = true;
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(message->fault, sizeof message->fault, format, arguments);
    va_end(arguments);
}

static void fail_field(struct message *message, const char *key, size_t place)
{
    if (key != NULL)
        message_fail(message, "\"%s\" is missing or wrong", key);
    else
        message_fail(message, "item %zu of a list is missing or wrong", place);
}

/* key NULL: the place-th of an array. */
static const json_t *field(const struct message *message, const char *key, size_t place)
{
    if (message->failed)
        return NULL;
    return key != NULL ? json_object_get(message->json, key) : json_array_get(message->json, place);
}

static uint64_t read_u64(struct message *message, const char *key, size_t place, uint64_t most)
{
    const json_t *value = field(message, key, place);
    json_int_t number = json_integer_value(value);
    if (json_is_integer(value) && number >= 0 && (uint64_t)number <= most)
        return (uint64_t)number;
    fail_field(message, key, place);
    return 0;
}

static double read_real(struct message *message, const char *key, size_t place)
{
    const json_t *value = field(message, key, place);
    double number = json_number_value(value);
    if (json_is_number(value) && isfinite(number) && number >= 0)
        return number;
    fail_field(message, key, place);
    return 0;
}

static void read_text(struct message *message, const char *key, size_t place, char *out,
                      size_t size)
{
    const json_t *value = field(message, key, place);
    size_t length = json_string_length(value);
    bool good = json_is_string(value) && length < size;
    for (size_t i = 0; good && i < length; i++) {
        unsigned char byte = (unsigned char)json_string_value(value)[i];
        good = byte >= 0x20 && byte != 0x7f;
    }
    out[0] = 0;
    if (good)
        memcpy(out, json_string_value(value), length + 1);
    else
        fail_field(message, key, place);
}

static struct cluster_id read_id(struct message *message, const char *key, size_t place)
{
    struct cluster_id id = {0, 0};
    char text[CLUSTER_ID_TEXT];
    read_text(message, key, place, text, sizeof text);
    if (!message->failed && !cluster_id_parse(&id, text))
        fail_field(message, key, place);
    return id;
}

uint64_t message_u64(struct message *message, const char *key, uint64_t most)
{
    return read_u64(message, key, 0, most);
}

double message_real(struct message *message, const char *key)
{
    return read_real(message, key, 0);
}

bool message_flag(struct message *message, const char *key)
{
    return json_is_true(field(message, key, 0));
}

void message_text(struct message *message, const char *key, char *out, size_t size)
{
    read_text(message, key, 0, out, size);
}

struct cluster_id message_id(struct message *message, const char *key)
{
    return read_id(message, key, 0);
}

struct cluster_model message_model(struct message *message, const char *key)
{
    struct cluster_model model = {.sha = ""};
    struct message item = message_over(field(message, key, 0));
    if (!json_is_array(item.json))
        message_fail(&item, "\"%s\" is missing or wrong", key);
    item_text(&item, 0, model.sha, sizeof model.sha);
    item_text(&item, 1, model.name, sizeof model.name);
    model.size_bytes = item_u64(&item, 2, INT64_MAX);
    if (!item.failed && !sha_valid(model.sha))
        message_fail(&item, "\"%s\" has no SHA-256", key);
    message_take(message, &item);
    return model;
}

const json_t *message_list(struct message *message, const char *key, size_t most, size_t *n)
{
    const json_t *list = field(message, key, 0);
    *n = json_array_size(list);
    if (list == NULL || (json_is_array(list) && *n <= most))
        return list;
    *n = 0;
    message_fail(message, "\"%s\" is no list, or longer than %zu", key, most);
    return NULL;
}

const json_t *message_any(const struct message *message, const char *key)
{
    return field(message, key, 0);
}

uint64_t item_u64(struct message *message, size_t place, uint64_t most)
{
    return read_u64(message, NULL, place, most);
}

double item_real(struct message *message, size_t place)
{
    return read_real(message, NULL, place);
}

void item_text(struct message *message, size_t place, char *out, size_t size)
{
    read_text(message, NULL, place, out, size);
}

struct cluster_id item_id(struct message *message, size_t place)
{
    return read_id(message, NULL, place);
}

struct message message_item(const json_t *list, size_t place)
{
    struct message item = message_over(json_array_get(list, place));
    if (!json_is_array(item.json))
        message_fail(&item, "item %zu is no list", place);
    return item;
}

void message_take(struct message *message, const struct message *item)
{
    if (item->failed)
        message_fail(message, "%s", item->fault);
}

json_t *json_id(struct cluster_id id)
{
    char text[CLUSTER_ID_TEXT];
    return json_string_nocheck(cluster_id_text(text, id));
}

json_t *json_u64(uint64_t value)
{
    return json_integer((json_int_t)MIN(value, (uint64_t)INT64_MAX));
}

json_t *json_model(const struct cluster_model *model)
{
    return json_pack("[s, s, o]", model->sha, model->name, json_u64(model->size_bytes));
}

bool sha_valid(const char *text)
{
    return strspn(text, "0123456789abcdef") == SHA_DIGITS && text[SHA_DIGITS] == 0;
}

void text_copy(char *out, size_t size, const char *text)
{
    size_t length = strlen(text), n = 0;
    while (length > 0) {
        uint32_t code_point;
        size_t taken = utf8_decode(text, length, &code_point);
        bool good = taken > 0 && code_point >= ' ' && code_point != 0x7f;
        size_t written = good ? taken : 1;
        if (n + written > size - 1)
            break;
        if (good)
            memmove(out + n, text, taken);
        else
            out[n] = '?';
        n += written;
        text += MAX(taken, (size_t)1);
        length -= MAX(taken, (size_t)1);
    }
    out[n] = 0;
}

/* FNV-1a, and the finaliser of SplitMix64. */
uint64_t hash_text(const char *text)
{
    uint64_t hash = 0xcbf29ce484222325u;
    for (; *text != 0; text++)
        hash = (hash ^ (unsigned char)*text) * 0x100000001b3u;
    return hash;
}

uint64_t hash_mix(uint64_t value)
{
    value += 0x9e3779b97f4a7c15u;
    value = (value ^ (value >> 30)) * 0xbf58476d1ce4e5b9u;
    value = (value ^ (value >> 27)) * 0x94d049bb133111ebu;
    return value ^ (value >> 31);
}

/* ---- Identities ------------------------------------------------------------------------------ */

bool cluster_id_equal(struct cluster_id a, struct cluster_id b)
{
    return a.high == b.high && a.low == b.low;
}

bool cluster_id_none(struct cluster_id id)
{
    return id.high == 0 && id.low == 0;
}

int cluster_id_compare(struct cluster_id a, struct cluster_id b)
{
    if (a.high != b.high)
        return a.high < b.high ? -1 : 1;
    return a.low < b.low ? -1 : a.low > b.low;
}

const char *cluster_id_text(char text[CLUSTER_ID_TEXT], struct cluster_id id)
{
    static const char digits[] = "0123456789abcdef";
    for (int i = 0; i < 16; i++) {
        text[i] = digits[id.high >> (60 - 4 * i) & 15];
        text[16 + i] = digits[id.low >> (60 - 4 * i) & 15];
    }
    text[32] = 0;
    return text;
}

bool cluster_id_parse(struct cluster_id *out, const char *text)
{
    uint64_t words[2] = {0, 0};
    for (int i = 0; i < 32; i++) {
        char c = text[i];
        if (c >= '0' && c <= '9')
            words[i / 16] = words[i / 16] << 4 | (uint64_t)(c - '0');
        else if (c >= 'a' && c <= 'f')
            words[i / 16] = words[i / 16] << 4 | (uint64_t)(c - 'a' + 10);
        else
            return false;
    }
    if (text[32] != 0 || (words[0] == 0 && words[1] == 0))
        return false;
    *out = (struct cluster_id){words[0], words[1]};
    return true;
}

uint64_t cluster_weight(const char *name, struct cluster_id node)
{
    return hash_mix(hash_mix(hash_mix(hash_text(name)) ^ node.high) ^ node.low);
}
