/* Reads a YAML file with a command's options under their own names. The tables of options serve the
 * file as well: what the command line takes, the file takes, and in the same words. */
#include "cli/config.h"

#include <string.h>
#include <strings.h>

#define FILE_BYTES ((size_t)1 << 20)

static int fail_at(const char *path, const struct yaml_node *at, const char *reason)
{
    struct error error;
    error_set(&error, STATUS_INVALID, "%s:%zu:%zu: %s", path, at->line, at->column, reason);
    return cli_fail(&error);
}

/* ---- Options --------------------------------------------------------------------------------- */

static bool take_text(const struct cli_option *option, const struct yaml_node *value,
                      struct buffer *reason)
{
    if (value->kind != YAML_TEXT) {
        buffer_printf(reason, "%s takes one value", option->name);
        return false;
    }
    if (option->type != CLI_FLAG)
        return cli_option_take(option, value->text, reason);
    if (strcasecmp(value->text, "true") == 0)
        return cli_option_take(option, NULL, reason);
    if (strcasecmp(value->text, "false") == 0)
        return true;
    buffer_printf(reason, "%s is true or false, not '%s'", option->name, value->text);
    return false;
}

/* An option that may be given often takes a list as well. */
static bool take_option(const struct cli_option *option, const struct yaml_node *value,
                        const struct yaml_node **at, struct buffer *reason)
{
    if (cli_option_given(option))
        return true; /* the command line has the last word */
    if (option->type != CLI_CALL || value->kind != YAML_LIST)
        return take_text(option, value, reason);
    for (const struct yaml_node *entry = value->first; entry != NULL; entry = entry->next) {
        *at = entry;
        if (!take_text(option, entry, reason))
            return false;
    }
    return true;
}

/* data_interface is data-interface. */
static bool is_name(const char *option, const char *key)
{
    while (*option != '\0' && (*option == *key || (*option == '-' && *key == '_')))
        option++, key++;
    return *option == *key;
}

static const struct cli_option *find_option(const struct cli_command *command, const char *name)
{
    for (size_t g = 0; g < CLI_MAX_GROUPS && command->groups[g] != NULL; g++)
        for (size_t i = 0; i < command->groups[g]->n_options; i++)
            if (is_name(command->groups[g]->options[i].name, name))
                return &command->groups[g]->options[i];
    return NULL;
}

/* ---- The file -------------------------------------------------------------------------------- */

static void unknown_key(const struct cli_command *command, const struct cli_config_key *keys,
                        size_t n_keys, const char *word, struct buffer *reason)
{
    const char *names[128];
    size_t n = 0;
    for (size_t i = 0; i < n_keys && n < ARRAY_COUNT(names); i++)
        names[n++] = keys[i].name;
    for (size_t g = 0; g < CLI_MAX_GROUPS && command->groups[g] != NULL; g++)
        for (size_t i = 0; i < command->groups[g]->n_options && n < ARRAY_COUNT(names); i++)
            names[n++] = command->groups[g]->options[i].name;
    const char *closest = cli_closest(word, names, n);
    buffer_printf(reason, "unknown key '%.60s'", word);
    if (closest != NULL)
        buffer_printf(reason, ", did you mean %s?", closest);
    else
        buffer_printf(reason, ": keys are the options of consort %s, without the dashes",
                      command->name);
}

static int take_entry(const struct cli_command *command, const char *path,
                      const struct cli_config_key *keys, size_t n_keys,
                      const struct yaml_node *entry)
{
    struct buffer reason = {0};
    const struct yaml_node *at = entry;
    const char *name = entry->key->text;
    const struct cli_option *option = find_option(command, name);
    size_t k = 0;
    while (k < n_keys && strcmp(keys[k].name, name) != 0)
        k++;
    bool good = false;
    if (k < n_keys)
        good = keys[k].read(entry, &at, &reason);
    else if (option != NULL && strcmp(name, "config") != 0)
        good = take_option(option, entry, &at, &reason);
    else {
        at = entry->key;
        unknown_key(command, keys, n_keys, name, &reason);
    }
    int code =
        good ? CLI_DONE : fail_at(path, at, reason.size > 0 ? reason.data : "not understood");
    buffer_free(&reason);
    return code;
}

int cli_config_read(const struct cli_command *command, const char *path,
                    const struct cli_config_key *keys, size_t n_keys)
{
    /* What the options point to lives as long as the process, which runs one command. */
    static struct arena *arena;
    struct buffer text = {0};
    struct error error;
    struct yaml_node *root;
    arena = arena_open(0);
    enum status status =
        arena != NULL ? file_read(path, FILE_BYTES, &text, &error) : error_memory(&error, 1);
    if (status == STATUS_OK)
        status = yaml_read(&root, arena, (struct view){text.size > 0 ? text.data : "", text.size},
                           path, &error);
    buffer_free(&text);
    if (status != STATUS_OK)
        return cli_fail(&error);
    if (root != NULL && root->kind != YAML_MAP && !(root->plain && root->text[0] == '\0'))
        return fail_at(path, root, "a list of keys with values is expected, as keep-alive: 300");
    int code = CLI_DONE;
    for (const struct yaml_node *entry = root != NULL ? root->first : NULL;
         entry != NULL && code == CLI_DONE; entry = entry->next)
        code = take_entry(command, path, keys, n_keys, entry);
    return code;
}

/* ---- Models ---------------------------------------------------------------------------------- */

/* Services that LiteLLM would pass a request on to. */
static const char *const services[] = {
    "openai",     "azure",       "anthropic",    "bedrock",     "vertex_ai",   "gemini",
    "groq",       "mistral",     "cohere",       "deepseek",    "ollama",      "ollama_chat",
    "openrouter", "together_ai", "fireworks_ai", "huggingface", "hosted_vllm", "vllm",
    "xai",        "perplexity",  "replicate",
};

static bool is_service(const char *model)
{
    size_t length = strcspn(model, "/");
    for (size_t i = 0; i < ARRAY_COUNT(services) && model[length] == '/'; i++)
        if (strlen(services[i]) == length && strncmp(services[i], model, length) == 0)
            return true;
    return false;
}

static const struct yaml_node *entry_of(const struct yaml_node *map, const char *key)
{
    const struct yaml_node *entry = map != NULL && map->kind == YAML_MAP ? map->first : NULL;
    while (entry != NULL && strcmp(entry->key->text, key) != 0)
        entry = entry->next;
    return entry;
}

/* The first entry whose key is none of the two; NULL where there is none. */
static const struct yaml_node *stray_entry(const struct yaml_node *map, const char *a,
                                           const char *b)
{
    const struct yaml_node *entry = map->first;
    while (entry != NULL && (strcmp(entry->key->text, a) == 0 || strcmp(entry->key->text, b) == 0))
        entry = entry->next;
    return entry;
}

/* {model_name: NAME, litellm_params: {model: FILE}} */
static bool take_model(const struct yaml_node *map, const struct yaml_node **at,
                       bool (*take)(const char *text, struct buffer *reason), struct buffer *reason)
{
    const struct yaml_node *name = entry_of(map, "model_name"),
                           *params = entry_of(map, "litellm_params"),
                           *model = entry_of(params, "model");
    if (name == NULL || name->kind != YAML_TEXT || model == NULL || model->kind != YAML_TEXT) {
        buffer_printf(reason, "a model is NAME=FILE, or has a model_name and litellm_params with "
                              "a model");
        return false;
    }
    *at = model;
    if (is_service(model->text)) {
        buffer_printf(reason,
                      "%s is with another service; this server runs models of its own: name "
                      "a file",
                      model->text);
        return false;
    }
    const struct yaml_node *stray = stray_entry(map, "model_name", "litellm_params");
    if (stray == NULL)
        stray = stray_entry(params, "model", "model");
    if (stray != NULL) {
        *at = stray->key;
        buffer_printf(reason, "'%.60s' has no meaning for a model of this server",
                      stray->key->text);
        return false;
    }
    /* Options borrow their texts, so this one stays. */
    struct buffer text = {0};
    buffer_printf(&text, "%s=%s", name->text, model->text);
    *at = map;
    return !text.failed && take(text.data, reason);
}

bool cli_config_models(const struct yaml_node *list, const struct yaml_node **at,
                       bool (*take)(const char *text, struct buffer *reason), struct buffer *reason)
{
    if (list->kind != YAML_LIST) {
        buffer_printf(reason, "a list of models is expected");
        return false;
    }
    for (const struct yaml_node *entry = list->first; entry != NULL; entry = entry->next) {
        *at = entry;
        bool good = entry->kind == YAML_TEXT ? take(entry->text, reason)
                                             : take_model(entry, at, take, reason);
        if (!good)
            return false;
    }
    return true;
}
