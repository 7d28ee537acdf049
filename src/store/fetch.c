/* GET over HTTP and HTTPS with libcurl: one attempt, and small documents with several. */
#include "store/internal.h"

#include <curl/curl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#define MAX_REDIRECTS 5L
#define CONNECT_S 30L
#define STALL_BYTES 1024L /* a second: what stays below it for the time of a stall has stalled */
#define STALL_S 30L
#define TRIES 8 /* without a byte between them */
#define FIRST_WAIT_MS 250u
#define LONGEST_WAIT_MS 30000u

/* ---- URLs ------------------------------------------------------------------------------------ */

bool url_is(const char *text)
{
    return strncasecmp(text, "http://", 7) == 0 || strncasecmp(text, "https://", 8) == 0;
}

int url_shown(const char *url)
{
    return (int)strcspn(url, "?#");
}

static bool is_https(const char *url)
{
    return strncasecmp(url, "https://", 8) == 0;
}

/* Secrets go over encrypted connections, or do not leave this machine. */
static bool may_carry_secret(const char *url)
{
    static const char *const own[] = {"http://127.0.0.1", "http://localhost", "http://[::1]"};
    if (is_https(url))
        return true;
    for (size_t i = 0; i < ARRAY_COUNT(own); i++) {
        size_t size = strlen(own[i]);
        if (strncasecmp(url, own[i], size) == 0 && strchr(":/", url[size]) != NULL)
            return true;
    }
    return false;
}

bool url_append(struct buffer *url, const char *path)
{
    static const char plain[] = "-._~/";
    for (const unsigned char *at = (const unsigned char *)path; *at != '\0'; at++) {
        bool keep = (*at >= '0' && *at <= '9') || (*at >= 'A' && *at <= 'Z') ||
                    (*at >= 'a' && *at <= 'z') || strchr(plain, *at) != NULL;
        if (keep ? !buffer_append(url, at, 1) : !buffer_printf(url, "%%%02X", *at))
            return false;
    }
    return true;
}

/* ---- One attempt ----------------------------------------------------------------------------- */

static void set_up_curl(void)
{
    curl_global_init(CURL_GLOBAL_DEFAULT);
}

/* The value of a header line of that name, without white space; NULL: another one. */
static char *header_value(char *line, const char *name)
{
    size_t size = strlen(name);
    if (strncasecmp(line, name, size) != 0 || line[size] != ':')
        return NULL;
    char *value = line + size + 1 + strspn(line + size + 1, " \t");
    value[strcspn(value, "\r\n")] = '\0';
    return value;
}

/* Takes what matters of one header line. A redirect has headers of its own; only what its server
 * says of the file that it leads to is kept beyond it. */
static size_t take_header(char *data, size_t one, size_t size, void *context)
{
    struct fetch *fetch = context;
    char line[1024];
    unsigned long long begin, total;
    const char *value;
    snprintf(line, sizeof line, "%.*s", (int)MIN(size, sizeof line - 1), data);
    if (strncmp(line, "HTTP/", 5) == 0) {
        fetch->etag[0] = '\0';
        fetch->ranged = fetch->started = false;
        fetch->total_bytes = 0;
    } else if ((value = header_value(line, "ETag")) != NULL) {
        snprintf(fetch->etag, sizeof fetch->etag, "%s", value);
    } else if ((value = header_value(line, "X-Linked-Etag")) != NULL) {
        char digest[STORE_DIGEST_BYTES];
        value += value[0] == '"';
        snprintf(digest, sizeof digest, "%s", value);
        if (digest_valid(digest))
            memcpy(fetch->digest, digest, sizeof digest);
    } else if ((value = header_value(line, "Content-Range")) != NULL) {
        fetch->ranged = sscanf(value, "bytes %llu-%*u/%llu", &begin, &total) == 2;
        if (fetch->ranged) {
            fetch->range_begin = begin;
            fetch->total_bytes = total;
        }
    } else if ((value = header_value(line, "Content-Length")) != NULL && !fetch->ranged) {
        fetch->total_bytes = strtoull(value, NULL, 10);
    }
    return one * size;
}

static size_t take_body(char *data, size_t one, size_t size, void *context)
{
    struct fetch *fetch = context;
    long code = 0;
    curl_easy_getinfo(fetch->curl, CURLINFO_RESPONSE_CODE, &code);
    if (code != 200 && code != 206)
        return one * size; /* the text of an error is not wanted */
    if (!fetch->started && !fetch->begin(fetch, fetch->error))
        return 0;
    fetch->started = true;
    fetch->got_bytes += size;
    return fetch->take(fetch, data, size, fetch->error) ? one * size : 0;
}

static int is_unwanted(void *context, curl_off_t a, curl_off_t b, curl_off_t c, curl_off_t d)
{
    struct fetch *fetch = context;
    (void)a, (void)b, (void)c, (void)d;
    return pull_tell(fetch->pull, fetch->error) != STATUS_OK;
}

static void set_options(CURL *curl, struct fetch *fetch, char *range)
{
    const struct pull *pull = fetch->pull;
    curl_easy_setopt(curl, CURLOPT_URL, fetch->url);
    curl_easy_setopt(curl, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(curl, CURLOPT_USERAGENT, "consort/" CONSORT_VERSION);
    curl_easy_setopt(curl, CURLOPT_FOLLOWLOCATION, 1L);
    curl_easy_setopt(curl, CURLOPT_MAXREDIRS, MAX_REDIRECTS);
    curl_easy_setopt(curl, CURLOPT_DISALLOW_USERNAME_IN_URL, 1L);
#if LIBCURL_VERSION_NUM >= 0x075500
    curl_easy_setopt(curl, CURLOPT_PROTOCOLS_STR, "http,https");
    curl_easy_setopt(curl, CURLOPT_REDIR_PROTOCOLS_STR,
                     is_https(fetch->url) ? "https" : "http,https");
#else
    curl_easy_setopt(curl, CURLOPT_PROTOCOLS, (long)(CURLPROTO_HTTP | CURLPROTO_HTTPS));
    curl_easy_setopt(curl, CURLOPT_REDIR_PROTOCOLS,
                     (long)(CURLPROTO_HTTPS | (is_https(fetch->url) ? 0 : CURLPROTO_HTTP)));
#endif
    curl_easy_setopt(curl, CURLOPT_CONNECTTIMEOUT, CONNECT_S);
    curl_easy_setopt(curl, CURLOPT_LOW_SPEED_LIMIT, STALL_BYTES);
    curl_easy_setopt(curl, CURLOPT_LOW_SPEED_TIME,
                     pull->options->stall_s > 0 ? (long)pull->options->stall_s : STALL_S);
    curl_easy_setopt(curl, CURLOPT_HEADERFUNCTION, take_header);
    curl_easy_setopt(curl, CURLOPT_HEADERDATA, fetch);
    curl_easy_setopt(curl, CURLOPT_WRITEFUNCTION, take_body);
    curl_easy_setopt(curl, CURLOPT_WRITEDATA, fetch);
    curl_easy_setopt(curl, CURLOPT_NOPROGRESS, 0L);
    curl_easy_setopt(curl, CURLOPT_XFERINFOFUNCTION, is_unwanted);
    curl_easy_setopt(curl, CURLOPT_XFERINFODATA, fetch);
    if (fetch->from_bytes > 0) {
        snprintf(range, 32, "%llu-", (unsigned long long)fetch->from_bytes);
        curl_easy_setopt(curl, CURLOPT_RANGE, range);
    }
    if (fetch->with_token && pull->token != NULL && may_carry_secret(fetch->url)) {
        /* libcurl keeps it from other hosts that a redirect leads to. */
        curl_easy_setopt(curl, CURLOPT_HTTPAUTH, CURLAUTH_BEARER);
        curl_easy_setopt(curl, CURLOPT_XOAUTH2_BEARER, pull->token);
    }
}

/* What came of a response that was received whole. */
static enum status judge(struct fetch *fetch, long code, struct error *error)
{
    const char *advice = "";
    enum status status = STATUS_IO;
    if (code == 200 || code == 206)
        return STATUS_OK;
    if (code == 404 || code == 410) {
        status = STATUS_NOT_FOUND;
        advice = "; is the name right?";
    } else if (code == 401 || code == 403) {
        advice = "; this may need a token (HF_TOKEN) or someone's permission";
    }
    fetch->again = code >= 500 || code == 408 || code == 429;
    return error_set(error, status, "%.*s: the server says %ld%s", url_shown(fetch->url),
                     fetch->url, code, advice);
}

static enum status explain(struct fetch *fetch, CURLcode result, const char *text,
                           struct error *error)
{
    static const CURLcode passing[] = {
        CURLE_COULDNT_RESOLVE_HOST, CURLE_COULDNT_CONNECT,   CURLE_OPERATION_TIMEDOUT,
        CURLE_PARTIAL_FILE,         CURLE_RECV_ERROR,        CURLE_SEND_ERROR,
        CURLE_GOT_NOTHING,          CURLE_SSL_CONNECT_ERROR, CURLE_HTTP2,
        CURLE_HTTP2_STREAM,
    };
    if (result == CURLE_WRITE_ERROR || result == CURLE_ABORTED_BY_CALLBACK)
        return error->code; /* said where it went wrong */
    for (size_t i = 0; i < ARRAY_COUNT(passing); i++)
        fetch->again |= result == passing[i];
    return error_set(error, STATUS_IO, "%.*s: %s", url_shown(fetch->url), fetch->url,
                     text[0] != '\0' ? text : curl_easy_strerror(result));
}

enum status fetch_once(struct fetch *fetch, struct error *error)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    char text[CURL_ERROR_SIZE] = "", range[32], *condition = NULL;
    struct curl_slist *headers = NULL;
    long code = 0;
    curl_off_t wait_s = 0;
    pthread_once(&once, set_up_curl);
    CURL *curl = curl_easy_init();
    if (curl == NULL)
        return error_memory(error, 1);
    fetch->curl = curl;
    fetch->error = error;
    fetch->again = fetch->started = false;
    fetch->wait_ms = 0;
    fetch->got_bytes = 0;
    *error = (struct error){.code = STATUS_IO, .text = "the download failed"};
    set_options(curl, fetch, range);
    curl_easy_setopt(curl, CURLOPT_ERRORBUFFER, text);
    if (fetch->from_bytes > 0 && fetch->if_range[0] != '\0' &&
        asprintf(&condition, "If-Range: %s", fetch->if_range) > 0)
        headers = curl_slist_append(headers, condition);
    curl_easy_setopt(curl, CURLOPT_HTTPHEADER, headers);
    CURLcode result = curl_easy_perform(curl);
    curl_easy_getinfo(curl, CURLINFO_RESPONSE_CODE, &code);
    curl_easy_getinfo(curl, CURLINFO_RETRY_AFTER, &wait_s);
    enum status status =
        result == CURLE_OK ? judge(fetch, code, error) : explain(fetch, result, text, error);
    fetch->code = code;
    fetch->wait_ms = wait_s > 0 ? (unsigned)MIN(wait_s * 1000, (curl_off_t)LONGEST_WAIT_MS) : 0;
    if (status == STATUS_OK && !fetch->started && !fetch->begin(fetch, error)) /* an empty body */
        status = error->code;
    curl_slist_free_all(headers);
    free(condition);
    curl_easy_cleanup(curl);
    fetch->curl = NULL;
    return status;
}

/* ---- Several attempts ------------------------------------------------------------------------ */

enum status fetch_retry(struct fetch *fetch, unsigned *tries, enum status status,
                        struct error *error)
{
    unsigned most = fetch->pull->options->tries > 0 ? fetch->pull->options->tries : TRIES;
    if (!fetch->again)
        return status;
    *tries = fetch->got_bytes > 0 ? 1 : *tries + 1;
    if (*tries >= most) {
        struct error last = *error;
        return error_set(error, status, "%.180s, after %u tries; the same pull goes on later",
                         last.text, most);
    }
    unsigned ms = MIN(FIRST_WAIT_MS << MIN(*tries - 1, 10u), LONGEST_WAIT_MS);
    struct store_progress at = fetch->pull->at;
    fetch->pull->at.trouble = error->text;
    status = pull_tell(fetch->pull, error);
    fetch->pull->at = at;
    return status == STATUS_OK ? pull_wait(fetch->pull, MAX(ms, fetch->wait_ms), error) : status;
}

/* ---- Small documents ------------------------------------------------------------------------- */

struct document {
    struct fetch fetch;
    struct buffer *out;
    size_t limit_bytes;
};

static bool begin_document(struct fetch *fetch, struct error *error)
{
    (void)error;
    buffer_clear(((struct document *)fetch)->out);
    return true;
}

static bool take_document(struct fetch *fetch, const char *data, size_t size, struct error *error)
{
    struct document *document = (struct document *)fetch;
    if (size > document->limit_bytes - MIN(document->limit_bytes, document->out->size)) {
        error_set(error, STATUS_LIMIT, "%.*s is larger than %zu bytes", url_shown(fetch->url),
                  fetch->url, document->limit_bytes);
        return false;
    }
    if (!buffer_append(document->out, data, size)) {
        error_memory(error, size);
        return false;
    }
    return true;
}

enum status fetch_document(struct pull *pull, const char *url, bool with_token, size_t limit_bytes,
                           struct buffer *out, struct error *error)
{
    struct document document = {.fetch = {.pull = pull,
                                          .url = url,
                                          .with_token = with_token,
                                          .if_range = "",
                                          .begin = begin_document,
                                          .take = take_document},
                                .out = out,
                                .limit_bytes = limit_bytes};
    unsigned tries = 0;
    for (;;) {
        enum status status = fetch_once(&document.fetch, error);
        if (status == STATUS_OK)
            return buffer_reserve(out, 0) ? STATUS_OK : error_memory(error, 1);
        document.fetch.got_bytes = 0; /* each try begins anew */
        status = fetch_retry(&document.fetch, &tries, status, error);
        if (status != STATUS_OK)
            return status;
    }
}
