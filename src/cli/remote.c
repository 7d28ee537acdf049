#include "cli/remote.h"

#include <curl/curl.h>
#include <stdlib.h>
#include <string.h>

#define MAX_SERVERS 16
#define REPLY_BYTES ((size_t)16 << 20)
#define TIMEOUT_S 30L

static struct {
    const char *server, *api_key;
} remote_args;

static const struct cli_option remote_options[] = {
    {.name = "server",
     .metavar = "URL",
     .help = "the server that is meant, as http://127.0.0.1:4000 (default: the one of this user on "
             "this machine)",
     .type = CLI_TEXT,
     .value = &remote_args.server},
    {.name = "api-key",
     .metavar = "KEY",
     .help = "a key, for a server of others (default: CONSORT_API_KEY)",
     .type = CLI_TEXT,
     .value = &remote_args.api_key},
};
const struct cli_group cli_remote_group = CLI_GROUP("server", remote_options);

/* ---- Which server ---------------------------------------------------------------------------- */

/* Without the scheme and a slash at the end. */
static struct view place_of(const char *url)
{
    const char *scheme = strstr(url, "://"), *begin = scheme != NULL ? scheme + 3 : url;
    size_t size = strlen(begin);
    while (size > 0 && begin[size - 1] == '/')
        size--;
    return (struct view){begin, size};
}

static enum status several(const struct server_presence *servers, size_t n, struct error *error)
{
    struct buffer urls = {0};
    for (size_t i = 0; i < n; i++)
        buffer_printf(&urls, "%s%s", i > 0 ? ", " : "", servers[i].url);
    error_set(error, STATUS_INVALID, "more than one server runs: name one with --server: %s",
              urls.data);
    buffer_free(&urls);
    return STATUS_INVALID;
}

/* One that has no file here. */
static enum status stranger(struct server_presence *out, struct error *error)
{
    const char *url = remote_args.server, *scheme = strstr(url, "://");
    if (scheme != NULL && strncmp(url, "http://", 7) != 0 && strncmp(url, "https://", 8) != 0)
        return error_set(error, STATUS_INVALID, "%s: a server begins with http:// or https://",
                         url);
    *out = (struct server_presence){
        .facts = json_pack("{s:s+}", "url", scheme != NULL ? "" : "http://", url)};
    out->url = json_string_value(json_object_get(out->facts, "url"));
    return out->url != NULL ? STATUS_OK : error_memory(error, strlen(url));
}

enum status cli_remote_find(struct server_presence *out, struct error *error)
{
    struct server_presence servers[MAX_SERVERS];
    size_t n, chosen = SIZE_MAX;
    enum status status = server_presences(servers, MAX_SERVERS, &n, error);
    if (status != STATUS_OK)
        return status;
    for (size_t i = 0; i < n && remote_args.server != NULL; i++)
        if (view_equal(place_of(servers[i].url), place_of(remote_args.server)))
            chosen = i;
    if (remote_args.server == NULL && n == 1)
        chosen = 0;
    if (chosen != SIZE_MAX)
        *out = servers[chosen];
    else if (remote_args.server != NULL)
        status = stranger(out, error);
    else if (n > 1)
        status = several(servers, n, error);
    else
        status = error_set(error, STATUS_NOT_FOUND,
                           "no server of yours runs on this machine: start one with consort up, or "
                           "name one with --server URL");
    for (size_t i = 0; i < n; i++)
        if (i != chosen)
            server_presence_free(&servers[i]);
    return status;
}

/* ---- Asking ---------------------------------------------------------------------------------- */

static size_t take_reply(char *data, size_t size, size_t count, void *context)
{
    struct buffer *reply = context;
    if (reply->size + size * count > REPLY_BYTES)
        return 0;
    return buffer_append(reply, data, size * count) ? size * count : 0;
}

static struct curl_slist *headers_for(const struct server_presence *server)
{
    struct buffer line = {0};
    const char *key = server->token != NULL ? server->token : remote_args.api_key;
    if (key == NULL)
        key = getenv("CONSORT_API_KEY");
    struct curl_slist *headers = curl_slist_append(NULL, "Content-Type: application/json");
    if (key != NULL) {
        buffer_printf(&line, "Authorization: Bearer %s", key);
        if (!line.failed)
            headers = curl_slist_append(headers, line.data);
    }
    buffer_free(&line);
    return headers;
}

/* Sends the request; *http_status 0: there was no answer. */
static enum status transfer(const struct server_presence *server, const char *url, const char *body,
                            struct buffer *reply, long *http_status, struct error *error)
{
    char reason[CURL_ERROR_SIZE] = "";
    CURL *curl = curl_easy_init();
    struct curl_slist *headers = headers_for(server);
    *http_status = 0;
    if (curl == NULL || headers == NULL) {
        curl_slist_free_all(headers);
        curl_easy_cleanup(curl);
        return error_memory(error, 1);
    }
    curl_easy_setopt(curl, CURLOPT_URL, url);
    curl_easy_setopt(curl, CURLOPT_NOPROXY, "*");
    curl_easy_setopt(curl, CURLOPT_HTTPHEADER, headers);
    curl_easy_setopt(curl, CURLOPT_TIMEOUT, TIMEOUT_S);
    curl_easy_setopt(curl, CURLOPT_ERRORBUFFER, reason);
    curl_easy_setopt(curl, CURLOPT_WRITEFUNCTION, take_reply);
    curl_easy_setopt(curl, CURLOPT_WRITEDATA, reply);
    if (body != NULL)
        curl_easy_setopt(curl, CURLOPT_POSTFIELDS, body);
    if (server->certificate !=
        NULL) { /* it need not name this address: the file says whose it is */
        curl_easy_setopt(curl, CURLOPT_CAINFO, server->certificate);
        curl_easy_setopt(curl, CURLOPT_SSL_VERIFYHOST, 0L);
    }
    CURLcode code = curl_easy_perform(curl);
    if (code == CURLE_OK)
        curl_easy_getinfo(curl, CURLINFO_RESPONSE_CODE, http_status);
    curl_slist_free_all(headers);
    curl_easy_cleanup(curl);
    if (code == CURLE_OK)
        return STATUS_OK;
    return error_set(error, STATUS_IO, "%s does not answer: %s", server->url,
                     reason[0] != '\0' ? reason : curl_easy_strerror(code));
}

enum status cli_remote_ask(const struct server_presence *server, const char *path,
                           const json_t *body, json_t **reply, struct error *error)
{
    struct buffer url = {0}, text = {0};
    char *sent = body != NULL ? json_dumps(body, JSON_COMPACT) : NULL;
    long http_status = 0;
    const char *message = NULL;
    *reply = NULL;
    buffer_printf(&url, "%.*s%s", (int)strcspn(server->url, " "), server->url, path);
    enum status status = url.failed || (body != NULL && sent == NULL)
                             ? error_memory(error, 1)
                             : transfer(server, url.data, sent, &text, &http_status, error);
    if (status == STATUS_OK)
        *reply = json_loadb(text.data != NULL ? text.data : "", text.size, 0, NULL);
    if (status == STATUS_OK && (http_status != 200 || !json_is_object(*reply))) {
        json_unpack(*reply, "{s:{s:s}}", "error", "message", &message);
        status = error_set(error,
                           http_status == 404   ? STATUS_NOT_FOUND
                           : http_status == 503 ? STATUS_BUSY
                                                : STATUS_INVALID,
                           "%s: %s", server->url,
                           message != NULL ? message : "this is no consort server");
        json_decref(*reply);
        *reply = NULL;
    }
    free(sent);
    buffer_free(&url);
    buffer_free(&text);
    return status;
}

const char *cli_json_text(const json_t *object, const char *key)
{
    const char *text = json_string_value(json_object_get(object, key));
    return text != NULL ? text : "";
}

double cli_json_number(const json_t *object, const char *key)
{
    return json_number_value(json_object_get(object, key));
}
