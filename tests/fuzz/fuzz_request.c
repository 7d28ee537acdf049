/* The input's first byte chooses what the rest, a JSON text, is read as: a request, whose grammar
 * is compiled too, the token of an answer, or its end. What is taken is written as it was read. */
#include "../support/tokenizer_vocabularies.h"
#include "engine/engine.h"

#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check(bool good)
{
    if (!good)
        abort();
}

static void compile(const json_t *asked)
{
    struct small_vocabulary *vocabulary = malloc(sizeof *vocabulary);
    struct engine engine = {.template_source = view_of("<tool_call> <think>")};
    struct tokenizer *tokenizer = NULL;
    struct grammar *grammar = NULL;
    struct error error;
    if (vocabulary == NULL)
        return;
    small_bytes(vocabulary, "gpt-2");
    engine.reply_format = reply_format_of(engine.template_source);
    if (tokenizer_open(&tokenizer, &vocabulary->config, &error) == STATUS_OK &&
        grammar_cache_open(&engine.grammars, tokenizer, tokenizer_count(tokenizer), &error) ==
            STATUS_OK)
        engine_grammar(&engine, asked, &grammar, &error);
    grammar_release(grammar);
    grammar_cache_close(engine.grammars);
    tokenizer_close(tokenizer);
    free(vocabulary);
}

static void read_request(const json_t *json)
{
    struct generation_request *request, *again;
    struct error error;
    if (generation_request_read(&request, json, &error) != STATUS_OK)
        return;
    check(request->n_drawn < request->n_tokens);
    json_t *written = generation_request_write(request);
    check(generation_request_read(&again, written, &error) == STATUS_OK);
    json_t *twice = generation_request_write(again);
    check(json_equal(written, twice));
    if (request->grammar_asked != NULL)
        compile(request->grammar_asked);
    json_decref(written);
    json_decref(twice);
    generation_request_close(request);
    generation_request_close(again);
}

static void on_event(void *context, const struct generation_event *event)
{
    json_t **written = context;
    json_decref(*written);
    *written = NULL;
    if (event->kind == GENERATION_TOKEN)
        *written = generation_token_write(event, NULL);
    else if (event->kind == GENERATION_FINISHED)
        *written = generation_end_write(event);
    check(utf8_valid(event->text.data != NULL ? event->text.data : "", event->text.size));
}

static void read_event(const json_t *json, bool last)
{
    json_t *written = NULL, *twice = NULL;
    struct generation_feed first = {.callback = on_event, .context = &written};
    struct generation_feed second = {.callback = on_event, .context = &twice};
    if (last)
        generation_feed_end(&first, STATUS_OK, NULL, json);
    else
        generation_feed_token(&first, 3, 4, json);
    if (written != NULL && last)
        generation_feed_end(&second, STATUS_OK, NULL, written);
    else if (written != NULL)
        generation_feed_token(&second, 3, 4, written);
    check(written == NULL || json_equal(written, twice));
    generation_feed_free(&first);
    generation_feed_free(&second);
    json_decref(written);
    json_decref(twice);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size == 0)
        return 0;
    json_t *json = json_loadb((const char *)data + 1, size - 1, 0, NULL);
    if (json == NULL)
        return 0;
    if (data[0] % 3 == 0)
        read_request(json);
    else
        read_event(json, data[0] % 3 == 1);
    json_decref(json);
    return 0;
}
