/* Who asks, and whether they may. */
#include "gateway/gateway_internal.h"

#include <openssl/crypto.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <time.h>

/* ---- The keys in memory ---------------------------------------------------------------------- */

struct known_key *known_key_copy(const struct key *row)
{
    struct known_key *key = calloc(1, sizeof *key);
    char *models = strdup(row->models);
    size_t size = strlen(row->name);
    if (key == NULL || models == NULL) {
        free(key);
        free(models);
        return NULL;
    }
    memcpy(key->name, row->name, MIN(size, sizeof key->name - 1));
    memcpy(key->hash, row->hash.data, sizeof key->hash);
    key->models = models;
    key->expires_s = row->expires_s;
    key->revoked_s = row->revoked_s;
    key->limits = row->limits;
    return key;
}

struct key known_key_row(const struct known_key *key)
{
    return (struct key){.name = key->name,
                        .hash = {(const char *)key->hash, sizeof key->hash},
                        .models = key->models,
                        .expires_s = key->expires_s,
                        .revoked_s = key->revoked_s,
                        .limits = key->limits};
}

static bool keep_row(void *context, const struct key *row)
{
    struct known_key ***last = context;
    struct known_key *key = known_key_copy(row);
    if (key == NULL) {
        *last = NULL;
        return false;
    }
    **last = key;
    *last = &key->next;
    return true;
}

enum status known_keys_read(struct known_key **out, struct sqlite3 *database, struct error *error)
{
    struct known_key **last = out;
    *out = NULL;
    enum status status = keys_each(database, keep_row, &last, error);
    if (status == STATUS_OK && last == NULL)
        status = error_memory(error, sizeof **out);
    if (status != STATUS_OK) {
        known_keys_free(*out);
        *out = NULL;
    }
    return status;
}

void known_keys_free(struct known_key *keys)
{
    while (keys != NULL) {
        struct known_key *next = keys->next;
        free(keys->models);
        free(keys);
        keys = next;
    }
}

/* The key with that hash. All are compared, each in a time that does not tell where they differ. */
static struct known_key *find_key(const struct gateway *gateway, const unsigned char *hash)
{
    struct known_key *found = NULL;
    for (struct known_key *key = gateway->keys; key != NULL; key = key->next)
        if (CRYPTO_memcmp(key->hash, hash, KEY_HASH_BYTES) == 0)
            found = key;
    return found;
}

static void add_key(struct gateway *gateway, struct known_key *key)
{
    key->number = ++gateway->n_keys;
    key->next = gateway->keys;
    gateway->keys = key;
    gateway->asks = true;
}

/* Requests point to keys, so those that are known stay where they are. */
static void take_keys(void *context, struct known_key *keys)
{
    struct gateway *gateway = context;
    for (struct known_key *key = gateway->keys; key != NULL; key = key->next)
        key->listed = key->built_in;
    while (keys != NULL) {
        struct known_key *key = keys, *known = find_key(gateway, key->hash);
        keys = key->next;
        key->next = NULL;
        if (known == NULL) {
            add_key(gateway, key);
            known = key;
        } else {
            known->revoked_s = known->revoked_s != 0 ? known->revoked_s : key->revoked_s;
            known_keys_free(key);
        }
        known->listed = true;
    }
    if (gateway->started && gateway->options.keys_changed != NULL)
        gateway->options.keys_changed(gateway->options.keys_context);
}

void gateway_each_key(const struct gateway *gateway, keys_row *row, void *context)
{
    for (const struct known_key *key = gateway->keys; key != NULL; key = key->next) {
        const struct key told = known_key_row(key);
        if (!key->built_in && key->listed && !row(context, &told))
            return;
    }
}

void gateway_adopt_key(struct gateway *gateway, const struct key *key)
{
    struct known_key *known = find_key(gateway, (const unsigned char *)key->hash.data);
    bool news = known == NULL || (known->revoked_s == 0 && key->revoked_s != 0);
    if (key->hash.size != KEY_HASH_BYTES || !news)
        return;
    if (known == NULL) {
        known = known_key_copy(key);
        if (known == NULL)
            return;
        known->listed = true;
        add_key(gateway, known);
    }
    known->revoked_s = key->revoked_s;
    records_adopt(gateway->records, key);
}

/* ---- Life cycle ------------------------------------------------------------------------------ */

static bool has_valid_key(const struct gateway *gateway)
{
    for (const struct known_key *key = gateway->keys; key != NULL; key = key->next)
        if (key->revoked_s == 0 && (key->expires_s == 0 || key->expires_s > time(NULL)))
            return true;
    return false;
}

static enum status add_built_in(struct gateway *gateway, struct error *error)
{
    struct known_key *key = calloc(1, sizeof *key);
    if (key == NULL)
        return error_memory(error, sizeof *key);
    strcpy(key->name, KEY_COMMAND_LINE);
    key_hash(view_of(gateway->options.api_key), key->hash);
    key->listed = key->built_in = true;
    add_key(gateway, key);
    return STATUS_OK;
}

static enum status check_addresses(const struct gateway *gateway, struct error *error)
{
    const struct gateway_options *options = &gateway->options;
    if (options->open || has_valid_key(gateway))
        return STATUS_OK;
    for (size_t i = 0; i < options->n_addresses; i++)
        if (!host_is_loopback(host_of(view_of(options->addresses[i]))))
            return error_set(error, STATUS_INVALID,
                             "%.100s can be reached from other machines: make a key with consort "
                             "key create NAME, give one with --api-key, or let anyone in with "
                             "--open",
                             options->addresses[i]);
    return STATUS_OK;
}

static void audit_server(struct gateway *gateway, const char *event)
{
    struct buffer addresses = {0};
    for (size_t i = 0; i < gateway->options.n_addresses; i++)
        buffer_printf(&addresses, "%s%s", i > 0 ? ", " : "", gateway->options.addresses[i]);
    records_audit(gateway->records, event, "", addresses.size > 0 ? addresses.data : "");
    buffer_free(&addresses);
}

enum status gateway_open(struct gateway **out, const struct gateway_options *options,
                         struct error *error)
{
    *out = NULL;
    struct gateway *gateway = calloc(1, sizeof *gateway);
    if (gateway == NULL)
        return error_memory(error, sizeof *gateway);
    gateway->options = *options;
    const struct records_options records = {.loop = options->loop,
                                            .changed = take_keys,
                                            .context = gateway,
                                            .log = options->log,
                                            .log_context = options->log_context};
    enum status status = STATUS_OK;
    if (options->api_key != NULL)
        status = add_built_in(gateway, error);
    if (status == STATUS_OK)
        status = records_open(&gateway->records, &records, error);
    if (status == STATUS_OK)
        status = check_addresses(gateway, error);
    if (status != STATUS_OK) {
        gateway_close(gateway);
        return status;
    }
    gateway->started = true;
    audit_server(gateway, "server started");
    *out = gateway;
    return STATUS_OK;
}

void gateway_close(struct gateway *gateway)
{
    if (gateway == NULL)
        return;
    if (gateway->started)
        audit_server(gateway, "server stopped");
    records_close(gateway->records);
    known_keys_free(gateway->keys);
    free(gateway);
}

/* ---- Requests -------------------------------------------------------------------------------- */

static struct view given_key(const struct http_exchange *exchange)
{
    struct view bearer = http_header(exchange, "Authorization");
    if (bearer.size > 7 && strncasecmp(bearer.data, "Bearer ", 7) == 0)
        return (struct view){bearer.data + 7, bearer.size - 7};
    return http_header(exchange, "x-api-key");
}

static bool refuse_key(struct api_error *error, const char *format, ...) BASE_PRINTF(2, 3);

static bool refuse_key(struct api_error *error, const char *format, ...)
{
    va_list arguments;
    *error = (struct api_error){
        .http_status = 401, .type = "authentication_error", .code = "invalid_api_key"};
    va_start(arguments, format);
    vsnprintf(error->text, sizeof error->text, format, arguments);
    va_end(arguments);
    return false;
}

static bool admit_key(const struct gateway *gateway, struct http_exchange *exchange,
                      struct api_error *error)
{
    unsigned char hash[KEY_HASH_BYTES];
    struct view text = given_key(exchange);
    if (text.data == NULL)
        return refuse_key(error, "this server needs an API key: send it as \"Authorization: Bearer "
                                 "KEY\" or \"x-api-key: KEY\"");
    key_hash(text, hash);
    struct known_key *key = find_key(gateway, hash);
    if (key == NULL || !key->listed)
        return refuse_key(error, "this API key is not known here: look for a piece that is missing "
                                 "or was added, or ask for a new one");
    if (key->expires_s != 0 && key->expires_s <= time(NULL)) {
        struct buffer date = {0};
        api_put_time(&date, key->expires_s);
        refuse_key(error, "the API key '%s' expired at %s: ask for a new one", key->name,
                   date.size > 0 ? date.data : "");
        buffer_free(&date);
        return false;
    }
    if (key->revoked_s != 0)
        return refuse_key(error, "the API key '%s' was revoked or replaced: ask for a new one",
                          key->name);
    http_set_context(exchange, key);
    return true;
}

/* The name of a key that ended is no secret, what was sent instead of a key might be one. */
static void note_failure(struct gateway *gateway, struct http_exchange *exchange)
{
    unsigned char hash[KEY_HASH_BYTES];
    char detail[200];
    struct view text = given_key(exchange);
    const struct known_key *key = NULL;
    if (text.data != NULL) {
        key_hash(text, hash);
        key = find_key(gateway, hash);
    }
    const char *why = text.data == NULL ? "no key" : key == NULL ? "unknown key" : "ended key";
    if (logins_note(&gateway->logins, clock_now_ns(), http_peer(exchange), why, detail,
                    sizeof detail))
        records_audit(gateway->records, "login failed", key != NULL ? key->name : "", detail);
}

bool gateway_admit(struct gateway *gateway, struct http_exchange *exchange, struct api_error *error)
{
    if (gateway->asks) {
        bool admitted = admit_key(gateway, exchange, error);
        if (!admitted)
            note_failure(gateway, exchange);
        return admitted;
    }
    struct view origin = http_header(exchange, "Origin"), host = http_header(exchange, "Host");
    bool own = gateway->options.open && origin_is_own(origin, host);
    bool foreign =
        (origin.data != NULL && !own && !host_is_loopback(host_of(origin))) ||
        (!gateway->options.open && host.data != NULL && !host_is_loopback(host_of(host)));
    if (!foreign)
        return true;
    *error = (struct api_error){.http_status = 403,
                                .type = "permission_error",
                                .code = "foreign_origin",
                                .text = "without API keys this server answers only to localhost: "
                                        "Host and Origin must name it"};
    return false;
}

/* ---- What a key may use ---------------------------------------------------------------------- */

const char *gateway_owner(const struct http_exchange *exchange)
{
    const struct known_key *key = http_context(exchange);
    return key != NULL ? key->name : "";
}

bool gateway_allows(const struct http_exchange *exchange, const char *model)
{
    const struct known_key *key = http_context(exchange);
    if (key == NULL || key->models == NULL || key->models[0] == '\0')
        return true;
    size_t size = strlen(model);
    for (const char *at = key->models; *at != '\0'; at += *at == ',') {
        size_t length = strcspn(at, ",");
        if (length == size && memcmp(at, model, size) == 0)
            return true;
        at += length;
    }
    return false;
}

void gateway_forbid(const struct http_exchange *exchange, const char *model,
                    struct api_error *error)
{
    const struct known_key *key = http_context(exchange);
    *error = (struct api_error){
        .http_status = 403, .type = "permission_error", .code = "model_not_allowed"};
    snprintf(error->text, sizeof error->text,
             "the API key '%s' may not use '%.100s'; it may use: %.200s", key->name, model,
             key->models);
}

/* ---- What a key has used --------------------------------------------------------------------- */

bool gateway_begin(struct gateway *gateway, struct http_exchange *exchange, struct gateway_use *use,
                   struct api_error *error)
{
    *use = (struct gateway_use){.key = http_context(exchange)};
    return use->key == NULL ||
           limits_take(&gateway->options.shared, use, exchange, clock_now_ns(), error);
}

void gateway_end(struct gateway *gateway, const struct gateway_use *use)
{
    char day[USAGE_DAY_BYTES];
    if (use->key != NULL)
        limits_give_back(&gateway->options.shared, use);
    if (use->model == NULL)
        return;
    usage_day(day, (int64_t)time(NULL));
    const struct usage usage = {.day = day,
                                .key = use->key != NULL ? use->key->name : "",
                                .model = use->model,
                                .n_requests = 1,
                                .prompt_tokens = (int64_t)use->prompt_tokens,
                                .cached_tokens = (int64_t)use->cached_tokens,
                                .answer_tokens = (int64_t)use->answer_tokens};
    records_use(gateway->records, &usage);
}

uint64_t gateway_client(const struct gateway_use *use)
{
    return use->key != NULL ? use->key->number : 0;
}
