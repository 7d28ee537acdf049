/* consort up: this machine as a server. */
#include "cli/cli.h"
#include "cli/config.h"
#include "server/server.h"
#include "store/store.h"

#include <ctype.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <time.h>
#include <unistd.h>

#define DEFAULT_ADDRESS "127.0.0.1:4000"
#define MAX_TEMPLATE_BYTES ((size_t)16 << 20)

static struct server_options server_args = {.keep_alive_ms = 300000};
static struct {
    uint32_t keep_alive_s, n_parallel, n_queued, n_cache;
    uint32_t max_tokens, keep_responses_days;
    const char *template_path, *config;
    bool json_log, models_from_file;
    char *model_names[SERVER_MAX_MODELS];
    struct store_model *stored[SERVER_MAX_MODELS]; /* NULL: a file */
} args = {.keep_alive_s = 300, .n_cache = 65536, .keep_responses_days = 30};

/* ---- Options --------------------------------------------------------------------------------- */

static bool take_address(const char *text, struct buffer *reason)
{
    if (server_args.n_addresses == SERVER_MAX_ADDRESSES) {
        buffer_printf(reason, "at most %d addresses", SERVER_MAX_ADDRESSES);
        return false;
    }
    server_args.addresses[server_args.n_addresses++] = text;
    return true;
}

static bool take_peer(const char *text, struct buffer *reason)
{
    const char *colon = strrchr(text, ':');
    if (server_args.n_peers == CLUSTER_MAX_PEER_OPTIONS)
        buffer_printf(reason, "at most %d peers", CLUSTER_MAX_PEER_OPTIONS);
    else if (colon == NULL || colon == text || colon[1] == '\0')
        buffer_printf(reason, "'%s' is not HOST:PORT", text);
    else
        server_args.peers[server_args.n_peers++] = text;
    return reason->size == 0;
}

static bool take_origin(const char *text, struct buffer *reason)
{
    const char *host = strstr(text, "://");
    bool good = strcmp(text, "*") == 0 ||
                (host != NULL && host[3] != '\0' && strchr(host + 3, '/') == NULL);
    if (!good)
        buffer_printf(reason, "'%s' is no origin, such as https://chat.example", text);
    else if (server_args.n_origins == SERVER_MAX_ORIGINS)
        buffer_printf(reason, "at most %d origins", SERVER_MAX_ORIGINS);
    else
        server_args.origins[server_args.n_origins++] = text;
    return reason->size == 0;
}

/* "models/llama-3.gguf" is called llama-3; a part of several is called without its number. */
static char *name_of(const char *path)
{
    const char *slash = strrchr(path, '/'), *file = slash != NULL ? slash + 1 : path;
    char *name = strdup(file);
    char *end = name != NULL ? strstr(name, ".gguf") : NULL;
    if (end != NULL && end > name && end[5] == '\0')
        *end = '\0';
    char *part = name != NULL ? strstr(name, "-00001-of-") : NULL;
    if (part != NULL && part > name)
        *part = '\0';
    return name;
}

static bool take_model(const char *text, struct buffer *reason)
{
    const char *equals = strchr(text, '='), *path = equals != NULL ? equals + 1 : text;
    size_t n = server_args.n_models;
    if (n == SERVER_MAX_MODELS || path[0] == '\0' || equals == text) {
        buffer_printf(
            reason, n == SERVER_MAX_MODELS ? "at most %d models" : "FILE or NAME=FILE is expected",
            SERVER_MAX_MODELS);
        return false;
    }
    struct error error;
    struct store_model *stored;
    if (cli_find_model(path, &stored, &error) != STATUS_OK) {
        buffer_printf(reason, "%s", error.text);
        return false;
    }
    args.stored[n] = stored;
    if (equals != NULL)
        args.model_names[n] = strndup(text, (size_t)(equals - text));
    else if (stored != NULL)
        args.model_names[n] = strndup(stored->name, store_name_short(stored->name));
    else
        args.model_names[n] = name_of(path);
    if (args.model_names[n] == NULL) {
        buffer_printf(reason, "out of memory");
        return false;
    }
    if (stored != NULL)
        path = equals != NULL ? stored->path : NULL; /* under its own name it is the store's */
    server_args.models[server_args.n_models++] = (struct server_model){args.model_names[n], path};
    return true;
}

/* "16G", "512M", or a part of the whole: "80%"; whole 0: no part. */
static bool take_size(const char *text, uint64_t whole, uint64_t *out, struct buffer *reason)
{
    static const char units[] = "KMGT";
    char *end;
    double value = strtod(text, &end);
    const char *unit = *end != '\0' ? strchr(units, toupper((unsigned char)*end)) : NULL;
    bool good = text[0] >= '0' && text[0] <= '9' && end != text && value > 0;
    if (good && whole > 0 && strcmp(end, "%") == 0) {
        value *= (double)whole / 100;
        good = value <= (double)whole;
    } else if (good && unit != NULL) {
        value *= (double)((uint64_t)1 << (10 * (unit - units + 1)));
        good = end[1] == '\0' || strcasecmp(end + 1, "B") == 0 || strcasecmp(end + 1, "iB") == 0;
    } else {
        good = false;
    }
    if (!good || value > 1e18) {
        buffer_printf(reason, "a size as 16G or 512M%s is expected, not '%s'",
                      whole > 0 ? ", or a part as 80%," : "", text);
        return false;
    }
    *out = (uint64_t)value;
    return true;
}

static bool take_memory(const char *text, struct buffer *reason)
{
    struct machine machine;
    machine_query(&machine);
    return take_size(text, machine.memory_bytes, &server_args.memory_bytes, reason);
}

static bool take_kv_disk(const char *text, struct buffer *reason)
{
    return take_size(text, 0, &server_args.kv_disk_bytes, reason);
}

/* ---- The log --------------------------------------------------------------------------------- */

static void write_log(void *context, const char *line, const json_t *fields)
{
    char when[32];
    time_t now = time(NULL);
    struct tm parts;
    (void)context;
    strftime(when, sizeof when, args.json_log ? "%Y-%m-%dT%H:%M:%SZ" : "%H:%M:%S",
             args.json_log ? gmtime_r(&now, &parts) : localtime_r(&now, &parts));
    if (!args.json_log) {
        fprintf(stderr, "%s %s\n", when, line);
        return;
    }
    json_t *entry = json_pack("{s:s, s:s}", "time", when, "message", line);
    json_object_update(entry, (json_t *)fields);
    char *text = json_dumps(entry, JSON_COMPACT);
    fprintf(stderr, "%s\n", text != NULL ? text : "{}");
    free(text);
    json_decref(entry);
}

/* What is said at the start: without the time, but for programs. */
static void note(const char *format, ...) BASE_PRINTF(1, 2);

static void note(const char *format, ...)
{
    char line[1024];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(line, sizeof line, format, arguments);
    va_end(arguments);
    if (args.json_log)
        write_log(NULL, line, NULL);
    else
        cli_note("%s", line);
}

/* ---- The file of settings -------------------------------------------------------------------- */

static bool read_models(const struct yaml_node *value, const struct yaml_node **at,
                        struct buffer *reason)
{
    if (server_args.n_models > 0 && !args.models_from_file)
        return true; /* the command line names its own */
    args.models_from_file = true;
    return cli_config_models(value, at, take_model, reason);
}

/* The file that --config names, or the one in the home folder, where there is one. */
static int read_config(const struct cli_command *command)
{
    static const struct cli_config_key keys[] = {{"models", read_models},
                                                 {"model_list", read_models}};
    struct buffer path = {0};
    struct error error;
    int code = CLI_DONE;
    if (args.config != NULL)
        return cli_config_read(command, args.config, keys, ARRAY_COUNT(keys));
    if (home_directory("", &path, &error) == STATUS_OK &&
        buffer_append_text(&path, "/consort.yaml") && access(path.data, F_OK) == 0)
        code = cli_config_read(command, path.data, keys, ARRAY_COUNT(keys));
    buffer_free(&path);
    return code;
}

/* ---- The command ----------------------------------------------------------------------------- */

static bool store_is_empty(void)
{
    struct store *store;
    struct store_list list;
    bool empty = true;
    if (store_open(&store, NULL, NULL) != STATUS_OK)
        return true;
    if (store_list(store, &list, NULL) == STATUS_OK) {
        empty = list.n_models == 0;
        store_list_free(&list);
    }
    store_close(store);
    return empty;
}

static void note_addresses(const struct server *server)
{
    for (size_t i = 0; i < server_args.n_addresses; i++) {
        const char *colon = strrchr(server_args.addresses[i], ':');
        int host = colon != NULL ? (int)(colon - server_args.addresses[i]) : 0;
        note("ready on http%s://%.*s:%u/v1", server_args.tls_certificate != NULL ? "s" : "", host,
             server_args.addresses[i], server_port(server, i));
    }
    for (size_t i = 0; i < server_args.n_models; i++)
        note("model %s: %s", server_args.models[i].name,
             server_args.models[i].path != NULL ? server_args.models[i].path : "in the store");
    if (server_args.n_models == 0 && store_is_empty())
        note("there are no models yet: bring one in with consort pull FILE, or name one: consort "
             "up MODEL.gguf");
    else if (server_args.n_models == 0)
        note("the models of the store are served; consort list shows them");
}

static int run(const struct cli_command *command, char **operands, int n_operands)
{
    struct error error;
    struct buffer reason = {0};
    for (int i = 0; i < n_operands; i++)
        if (!take_model(operands[i], &reason)) {
            int wrong = cli_usage(command, "%s: %s", operands[i], reason.data);
            buffer_free(&reason);
            return wrong;
        }
    int code = read_config(command);
    if (code != CLI_DONE)
        return code;
    if ((server_args.tls_certificate != NULL) != (server_args.tls_key != NULL))
        return cli_usage(command, "--tls-cert and --tls-key go together");
    for (size_t i = 0; i < server_args.n_models; i++) {
        struct engine *engine; /* what cannot be opened at all is said at once */
        if (server_args.models[i].path == NULL)
            continue;
        if (engine_open(&engine, server_args.models[i].path, ENGINE_WEIGHTS, NULL, &error) !=
            STATUS_OK)
            return cli_fail(&error);
        engine_close(engine);
    }
    if (server_args.n_addresses == 0)
        server_args.addresses[server_args.n_addresses++] = DEFAULT_ADDRESS;
    server_args.model = cli_model_options();
    server_args.model.n_cache = args.n_cache;
    server_args.keep_alive_ms = (uint64_t)args.keep_alive_s * 1000;
    server_args.scheduler =
        (struct scheduler_options){.max_sequences = args.n_parallel, .max_queued = args.n_queued};
    server_args.keep_responses_s = (uint64_t)args.keep_responses_days * 86400;
    server_args.defaults.max_tokens = args.max_tokens;
    server_args.defaults.has_seed = cli_seed_given();
    server_args.defaults.sampling = cli_sampling();
    struct buffer chat_template = {0};
    if (args.template_path != NULL) {
        if (file_read(args.template_path, MAX_TEMPLATE_BYTES, &chat_template, &error) != STATUS_OK)
            return cli_fail(&error);
        buffer_append(&chat_template, "", 1);
        server_args.chat_template = chat_template.data;
    }
    if (server_args.mirror == NULL)
        server_args.mirror = getenv("CONSORT_MIRROR");
    server_args.log = write_log;
    server_args.announce = true;
    struct server *server;
    if (server_open(&server, &server_args, &error) != STATUS_OK)
        return cli_fail(&error);
    note_addresses(server);
    if (!cli_interrupted()) /* before the server heard signals itself */
        server_run(server);
    server_close(server);
    buffer_free(&chat_template);
    for (size_t i = 0; i < server_args.n_models; i++) {
        store_model_free(args.stored[i]);
        free(args.model_names[i]);
    }
    return CLI_DONE;
}

static const struct cli_option options[] = {
    {.name = "config",
     .metavar = "FILE",
     .help = "a YAML file with these options under their names, and models (default: consort.yaml "
             "in CONSORT_HOME, where it is there)",
     .type = CLI_TEXT,
     .value = &args.config},
    {.name = "listen",
     .metavar = "HOST:PORT",
     .help = "address to listen on, as often as wanted (default: " DEFAULT_ADDRESS ")",
     .type = CLI_CALL,
     .parse = take_address},
    {.name = "model",
     .metavar = "[NAME=]MODEL",
     .help = "a file, or a model of the store that is to stand first, under the name clients use "
             "(default: its own), as often as wanted",
     .type = CLI_CALL,
     .parse = take_model},
    {.name = "preload",
     .help = "open the models now, not when they are first asked for",
     .type = CLI_FLAG,
     .value = &server_args.preload},
    {.name = "keep-alive",
     .metavar = "SECONDS",
     .help = "close a model that nobody asked for so long (default: 300; 0: never)",
     .type = CLI_U32,
     .value = &args.keep_alive_s},
    {.name = "memory",
     .metavar = "LIMIT",
     .help = "what all models together may take, as 16G or 80% (default: this machine's memory but "
             "for a reserve of at most 8 GiB)",
     .type = CLI_CALL,
     .parse = take_memory},
    {.name = "kv-disk",
     .metavar = "SIZE",
     .help = "keep what was computed of prompts on disk, so much of it at most, as 20G, for after "
             "the next start too (default: nothing)",
     .type = CLI_CALL,
     .parse = take_kv_disk},
    {.name = "memory-wait",
     .metavar = "SECONDS",
     .help = "a request waits so long for memory that models in use hold (default: 60)",
     .type = CLI_U32,
     .min = 1,
     .max = 86400,
     .value = &server_args.wait_s},
    {.name = "drain",
     .metavar = "SECONDS",
     .help = "at the end, what runs may go on for so long (default: 30)",
     .type = CLI_U32,
     .min = 1,
     .max = 86400,
     .value = &server_args.drain_s},
    {.name = "parallel",
     .metavar = "N",
     .help = "answers computed together (default: 32)",
     .type = CLI_U32,
     .min = 1,
     .max = 1024,
     .value = &args.n_parallel},
    {.name = "cache",
     .metavar = "TOKENS",
     .help = "tokens of all answers and of earlier prompts that are kept, as far as memory allows, "
             "and at least one context (default: 65536)",
     .type = CLI_U32,
     .value = &args.n_cache},
    {.name = "queue",
     .metavar = "N",
     .help = "requests that may wait beyond these (default: 1024)",
     .type = CLI_U32,
     .min = 1,
     .value = &args.n_queued},
    {.name = "max-tokens",
     .metavar = "N",
     .help =
         "tokens of an answer where the request does not say (default: what the context leaves)",
     .type = CLI_U32,
     .min = 1,
     .value = &args.max_tokens},
    {.name = "template",
     .metavar = "FILE",
     .help = "a chat template (Jinja) for all models, instead of their own",
     .type = CLI_TEXT,
     .value = &args.template_path},
    {.name = "keep-responses",
     .metavar = "DAYS",
     .help = "how long a stored answer of /v1/responses is kept (default: 30; 0: none is stored)",
     .type = CLI_U32,
     .max = 36500,
     .value = &args.keep_responses_days},
    {.name = "no-thinking",
     .help = "models answer without reasoning first, where a request does not ask for it",
     .type = CLI_FLAG,
     .value = &server_args.defaults.no_thinking},
    {.name = "any-model",
     .help = "requests for a model that is not here go to the first one",
     .type = CLI_FLAG,
     .value = &server_args.any_model},
    {.name = "mirror",
     .metavar = "URL",
     .help = "where Ollama's pull looks names up: a registry or hub of the same layout (default: "
             "CONSORT_MIRROR, else the public ones)",
     .type = CLI_TEXT,
     .value = &server_args.mirror},
    {.name = "cluster-listen",
     .metavar = "HOST:PORT",
     .help =
         "address to listen on for the other nodes of the cluster (default: " CLUSTER_DEFAULT_LISTEN
         ", on all addresses)",
     .type = CLI_TEXT,
     .value = &server_args.cluster_listen},
    {.name = "peer",
     .metavar = "HOST:PORT",
     .help = "a node of the cluster that no beacon reaches, as often as wanted",
     .type = CLI_CALL,
     .parse = take_peer},
    {.name = "node-name",
     .metavar = "NAME",
     .help = "this machine's name in the cluster (default: its host name)",
     .type = CLI_TEXT,
     .value = &server_args.node_name},
    {.name = "data-interface",
     .metavar = "NAME",
     .help = "the network interface that data of the cluster goes over, as eth1 (default: of each "
             "pair of nodes the one that measures best)",
     .type = CLI_TEXT,
     .value = &server_args.data_interface},
    {.name = "no-cluster",
     .help = "serve alone, although this machine is in a cluster",
     .type = CLI_FLAG,
     .value = &server_args.no_cluster},
    {.name = "no-advertise",
     .help = "do not tell the networks that can reach the API of it (DNS-SD, Bonjour)",
     .type = CLI_FLAG,
     .value = &server_args.no_advertise},
    {.name = "api-key",
     .metavar = "KEY",
     .help = "one more key that clients may send, beside those of consort key",
     .type = CLI_TEXT,
     .value = &server_args.api_key},
    {.name = "cors",
     .metavar = "ORIGIN",
     .help = "let pages of this site, or of all (*), read answers, given a key; as often as wanted",
     .type = CLI_CALL,
     .parse = take_origin},
    {.name = "open",
     .help = "let anyone on the network in as long as there is no key",
     .type = CLI_FLAG,
     .value = &server_args.open},
    {.name = "tls-cert",
     .metavar = "FILE",
     .help = "certificate and chain (PEM); with --tls-key",
     .type = CLI_TEXT,
     .value = &server_args.tls_certificate},
    {.name = "tls-key",
     .metavar = "FILE",
     .help = "private key (PEM)",
     .type = CLI_TEXT,
     .value = &server_args.tls_key},
    {.name = "json-log",
     .help = "the log as JSON lines",
     .type = CLI_FLAG,
     .value = &args.json_log},
};
static const struct cli_group group = CLI_GROUP("options", options);

const struct cli_command cli_up = {
    .name = "up",
    .operands = "[MODEL...]",
    .summary = "Serves models over HTTP, as OpenAI's, Ollama's and Anthropic's APIs do.",
    .description =
        "Clients of OpenAI use http://127.0.0.1:4000/v1 as their base URL, those of Ollama "
        "and Anthropic http://127.0.0.1:4000, which in a browser is a page to chat on. All models "
        "of the store are served, also those that come while it runs; a model is opened when it is "
        "first asked for. SIGTERM or Ctrl-C lets what runs finish; a second one ends it. Sampling "
        "options are for requests that do not say.",
    .groups = {&group, &cli_model_group, &cli_sampling_group},
    .min_operands = 0,
    .max_operands = SERVER_MAX_MODELS,
    .run = run,
};
