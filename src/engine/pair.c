/* The tokens of a query and a document, as rerankers are trained on them. */
#include "engine/engine.h"

static enum status encode(const struct engine *engine, struct view text, struct token_list *out,
                          struct error *error)
{
    return tokenizer_encode(engine->tokenizer, text,
                            TOKENIZER_ADD_SPECIAL | TOKENIZER_PARSE_SPECIAL, out, error);
}

static bool begins_with(struct view text, struct view word)
{
    return text.size >= word.size && view_equal((struct view){text.data, word.size}, word);
}

/* Decoders are trained on a sentence about both texts, which the file carries: {query} and
 * {document} stand for them. */
static enum status encode_by_template(const struct engine *engine, struct view pair_template,
                                      struct view query, struct view document,
                                      struct token_list *out, struct error *error)
{
    const struct view query_mark = view_of("{query}"), document_mark = view_of("{document}");
    struct buffer text = {0};
    for (struct view rest = pair_template; rest.size > 0;) {
        struct view put = {rest.data, 1}, mark = put;
        if (begins_with(rest, query_mark)) {
            put = query;
            mark = query_mark;
        } else if (begins_with(rest, document_mark)) {
            put = document;
            mark = document_mark;
        }
        buffer_append(&text, put.data, put.size);
        rest = (struct view){rest.data + mark.size, rest.size - mark.size};
    }
    enum status status = text.failed
                             ? error_memory(error, text.size)
                             : encode(engine, (struct view){text.data, text.size}, out, error);
    buffer_free(&text);
    return status;
}

/* [CLS] query [SEP] document [SEP] for WordPiece; with a SentencePiece vocabulary the document's
 * own <s> becomes a second separator: <s> query </s></s> document </s>. */
enum status engine_encode_pair(const struct engine *engine, struct view query, struct view document,
                               struct token_list *out, struct error *error)
{
    const struct tokenizer_config *config = tokenizer_config(engine->tokenizer);
    struct view pair_template = {0};
    enum status status =
        weights_string(engine->weights, "tokenizer.chat_template.rerank", &pair_template, error);
    if (status == STATUS_OK && pair_template.size > 0)
        return encode_by_template(engine, pair_template, query, document, out, error);
    struct token_list second = {0};
    if (status == STATUS_OK)
        status = encode(engine, query, out, error);
    if (status == STATUS_OK)
        status = encode(engine, document, &second, error);
    bool good = true;
    bool opened =
        second.count > 0 && (second.ids[0] == config->bos || second.ids[0] == config->cls);
    if (status == STATUS_OK && opened) {
        int32_t separator = config->separator != TOKEN_NONE ? config->separator : config->eos;
        if (!view_equal(config->model, view_of("bert")) && separator != TOKEN_NONE)
            good = token_list_append(out, separator);
    }
    for (size_t i = opened; i < second.count && good && status == STATUS_OK; i++)
        good = token_list_append(out, second.ids[i]);
    token_list_free(&second);
    return status == STATUS_OK && !good ? error_memory(error, out->count * sizeof *out->ids)
                                        : status;
}
