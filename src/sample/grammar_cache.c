#include "sample/grammar_internal.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#define KEPT_GRAMMARS 16

struct kept_grammar {
    struct buffer key;
    struct grammar *grammar;
};

/* mutex guards what stands below it. */
struct grammar_cache {
    const struct tokenizer *tokenizer;
    size_t n_vocab;
    pthread_mutex_t mutex;
    struct grammar_vocabulary *vocabulary;   /* NULL until a grammar is asked for */
    struct kept_grammar kept[KEPT_GRAMMARS]; /* the one used last comes first */
    size_t n_kept;
};

enum status grammar_cache_open(struct grammar_cache **out, const struct tokenizer *tokenizer,
                               size_t n_vocab, struct error *error)
{
    struct grammar_cache *cache = calloc(1, sizeof *cache);
    *out = cache;
    if (cache == NULL)
        return error_memory(error, sizeof *cache);
    cache->tokenizer = tokenizer;
    cache->n_vocab = n_vocab;
    pthread_mutex_init(&cache->mutex, NULL);
    return STATUS_OK;
}

static void drop(struct kept_grammar *kept)
{
    buffer_free(&kept->key);
    grammar_release(kept->grammar);
}

void grammar_cache_close(struct grammar_cache *cache)
{
    if (cache == NULL)
        return;
    for (size_t i = 0; i < cache->n_kept; i++)
        drop(&cache->kept[i]);
    vocabulary_close(cache->vocabulary);
    pthread_mutex_destroy(&cache->mutex);
    free(cache);
}

static int append_json(const char *text, size_t size, void *context)
{
    return buffer_append(context, text, size) ? 0 : -1;
}

static void write_json(const json_t *value, struct buffer *out)
{
    if (value != NULL)
        json_dump_callback(value, append_json, out, JSON_COMPACT | JSON_ENCODE_ANY);
    buffer_append(out, "", 1);
}

/* Equal for specs that give the same grammar. Of the syntax, whose pieces are constants, it is
 * enough where they are. */
static void write_key(const struct grammar_spec *spec, struct buffer *out)
{
    buffer_append(out, spec->gbnf.data, spec->gbnf.size);
    buffer_append(out, "", 1);
    write_json(spec->schema, out);
    write_json(spec->tools, out);
    buffer_printf(out, "%s:%d:%d:%d", spec->tool != NULL ? spec->tool : "", spec->single_call,
                  spec->may_call, spec->thinking);
    if (spec->syntax != NULL)
        buffer_printf(out, ":%d:%p:%p", spec->syntax->channels, (const void *)spec->syntax->think,
                      (const void *)spec->syntax->prefix);
}

/* Under the mutex. Takes key and grammar over. */
static void keep(struct grammar_cache *cache, struct buffer *key, struct grammar *grammar)
{
    if (cache->n_kept == KEPT_GRAMMARS)
        drop(&cache->kept[--cache->n_kept]);
    memmove(cache->kept + 1, cache->kept, cache->n_kept * sizeof *cache->kept);
    cache->kept[0] = (struct kept_grammar){*key, grammar};
    cache->n_kept++;
}

/* Under the mutex. NULL where it is not known. */
static struct grammar *find(struct grammar_cache *cache, const struct buffer *key)
{
    for (size_t i = 0; i < cache->n_kept; i++) {
        struct kept_grammar found = cache->kept[i];
        if (found.key.size != key->size || memcmp(found.key.data, key->data, key->size) != 0)
            continue;
        memmove(cache->kept + 1, cache->kept, i * sizeof *cache->kept);
        cache->kept[0] = found;
        return found.grammar;
    }
    return NULL;
}

enum status grammar_cache_get(struct grammar_cache *cache, const struct grammar_spec *spec,
                              struct grammar **out, struct error *error)
{
    enum status status = STATUS_OK;
    struct buffer key = {0};
    write_key(spec, &key);
    *out = NULL;
    if (key.failed || !buffer_reserve(&key, 1)) {
        buffer_free(&key);
        return error_memory(error, key.size);
    }
    pthread_mutex_lock(&cache->mutex);
    struct grammar *grammar = find(cache, &key);
    if (grammar == NULL) {
        if (cache->vocabulary == NULL)
            status = vocabulary_open(&cache->vocabulary, cache->tokenizer, cache->n_vocab, error);
        if (status == STATUS_OK)
            status = grammar_open(&grammar, cache->vocabulary, spec, error);
        if (status == STATUS_OK) {
            keep(cache, &key, grammar);
            key = (struct buffer){0};
        }
    }
    *out = grammar_hold(grammar);
    pthread_mutex_unlock(&cache->mutex);
    buffer_free(&key);
    return status;
}
