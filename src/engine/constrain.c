/* From what is asked of an answer to the grammar that it follows. */
#include "engine/engine.h"

static bool good_tools(const json_t *tools)
{
    for (size_t i = 0; i < json_array_size(tools); i++)
        if (!json_is_string(
                json_object_get(json_object_get(json_array_get(tools, i), "function"), "name")))
            return false;
    return json_is_array(tools);
}

enum status engine_grammar(const struct engine *engine, const json_t *asked, struct grammar **out,
                           struct error *error)
{
    const json_t *gbnf = json_object_get(asked, "gbnf");
    const json_t *schema = json_object_get(asked, "schema");
    const json_t *tools = json_object_get(asked, "tools");
    const json_t *tool = json_object_get(asked, "tool");
    struct reply_syntax syntax;
    *out = NULL;
    if ((gbnf != NULL) + (schema != NULL) + (tools != NULL) != 1 ||
        (gbnf != NULL && !json_is_string(gbnf)) || (tools != NULL && !good_tools(tools)) ||
        (tool != NULL && !json_is_string(tool)))
        return error_set(error, STATUS_INVALID,
                         "an answer follows one of a GBNF, a JSON Schema, and a list of tools");
    struct grammar_spec spec = {.schema = schema,
                                .tools = tools,
                                .tool = json_string_value(tool),
                                .single_call = json_is_true(json_object_get(asked, "single_call")),
                                .may_call = json_is_true(json_object_get(asked, "may_call"))};
    if (gbnf != NULL)
        spec.gbnf = (struct view){json_string_value(gbnf), json_string_length(gbnf)};
    if (json_is_true(json_object_get(asked, "chat")) && engine->reply_format != NULL) {
        syntax = reply_syntax_of(engine->reply_format, engine->template_source);
        spec.syntax = &syntax;
        spec.thinking = json_is_true(json_object_get(asked, "thinking"));
    }
    if (tools != NULL && spec.syntax == NULL)
        return error_set(error, STATUS_INVALID, "only the answer of a chat can call tools");
    return grammar_cache_get(engine->grammars, &spec, out, error);
}
