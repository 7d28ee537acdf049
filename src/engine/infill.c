/* Filling a gap between two texts, for models that were trained with marks for it. */
#include "engine/engine_internal.h"

enum mark { MARK_PREFIX, MARK_SUFFIX, MARK_MIDDLE, MARK_REPOSITORY, MARK_FILE };

/* Where a file names the token, and how families spell it: Qwen, StarCoder and Granite, SantaCoder,
 * Codestral, Code Llama, DeepSeek. */
static const struct {
    const char *key;
    const char *texts[6];
} marks[] = {
    [MARK_PREFIX] = {"tokenizer.ggml.fim_pre_token_id",
                     {"<|fim_prefix|>", "<fim_prefix>", "<fim-prefix>", "[PREFIX]", "▁<PRE>",
                      "<｜fim▁begin｜>"}},
    [MARK_SUFFIX] = {"tokenizer.ggml.fim_suf_token_id",
                     {"<|fim_suffix|>", "<fim_suffix>", "<fim-suffix>", "[SUFFIX]", "▁<SUF>",
                      "<｜fim▁hole｜>"}},
    [MARK_MIDDLE] = {"tokenizer.ggml.fim_mid_token_id",
                     {"<|fim_middle|>", "<fim_middle>", "<fim-middle>", "[MIDDLE]", "▁<MID>",
                      "<｜fim▁end｜>"}},
    [MARK_REPOSITORY] = {"tokenizer.ggml.fim_rep_token_id",
                         {"<|repo_name|>", "<repo_name>", "<reponame>"}},
    [MARK_FILE] = {"tokenizer.ggml.fim_sep_token_id", {"<|file_sep|>", "<file_sep>"}},
};

static int32_t find_mark(const struct engine *engine, enum mark mark)
{
    struct error ignored; /* a number of another type counts as absent */
    uint32_t id = UINT32_MAX;
    if (weights_u32(engine->weights, marks[mark].key, &id, &ignored) == STATUS_OK &&
        id < tokenizer_count(engine->tokenizer))
        return (int32_t)id;
    for (size_t i = 0; i < ARRAY_COUNT(marks[mark].texts) && marks[mark].texts[i] != NULL; i++) {
        int32_t found = tokenizer_find(engine->tokenizer, view_of(marks[mark].texts[i]));
        if (found != TOKEN_NONE)
            return found;
    }
    return TOKEN_NONE;
}

/* A mark, where there is one, and a text after it. */
static enum status put(const struct engine *engine, int32_t mark, struct view text,
                       struct token_list *out, struct error *error)
{
    if (mark != TOKEN_NONE && !token_list_append(out, mark))
        return error_memory(error, sizeof mark);
    return text.size > 0 ? tokenizer_encode(engine->tokenizer, text, 0, out, error) : STATUS_OK;
}

/* Other files come first, under their names where the model knows marks for files. */
static enum status put_files(const struct engine *engine, const struct infill *infill,
                             struct token_list *out, struct error *error)
{
    int32_t repository = find_mark(engine, MARK_REPOSITORY), file = find_mark(engine, MARK_FILE);
    bool named = repository != TOKEN_NONE && file != TOKEN_NONE;
    const struct view newline = {"\n", 1};
    enum status status = STATUS_OK;
    if (infill->n_files > 0 && named)
        status = put(engine, repository, view_of("project\n"), out, error);
    for (size_t i = 0; i < infill->n_files && status == STATUS_OK; i++) {
        if (named)
            status = put(engine, file, infill->files[i].name, out, error);
        if (named && status == STATUS_OK)
            status = put(engine, TOKEN_NONE, newline, out, error);
        if (status == STATUS_OK)
            status = put(engine, TOKEN_NONE, infill->files[i].text, out, error);
    }
    if (infill->n_files > 0 && named && status == STATUS_OK)
        status = put(engine, file, view_of("file\n"), out, error);
    return status;
}

/* Models without a mark for the middle were trained on the suffix first. */
enum status engine_encode_infill(const struct engine *engine, const struct infill *infill,
                                 struct token_list *out, struct error *error)
{
    int32_t bos, middle = find_mark(engine, MARK_MIDDLE);
    const struct {
        int32_t mark;
        struct view text;
    } prefix = {find_mark(engine, MARK_PREFIX), infill->prefix},
      suffix = {find_mark(engine, MARK_SUFFIX), infill->suffix};
    if (prefix.mark == TOKEN_NONE || suffix.mark == TOKEN_NONE)
        return error_set(error, STATUS_UNSUPPORTED,
                         "the model has no tokens for the text before and after a gap, so it "
                         "cannot fill one: use a code model that was trained for it");
    enum status status = engine_leading_bos(engine->tokenizer, &bos, error);
    if (status == STATUS_OK && bos != TOKEN_NONE)
        status = put(engine, bos, (struct view){"", 0}, out, error);
    if (status == STATUS_OK)
        status = put_files(engine, infill, out, error);
    if (status == STATUS_OK && middle == TOKEN_NONE)
        status = put(engine, suffix.mark, suffix.text, out, error);
    if (status == STATUS_OK)
        status = put(engine, prefix.mark, prefix.text, out, error);
    if (status == STATUS_OK && middle != TOKEN_NONE)
        status = put(engine, suffix.mark, suffix.text, out, error);
    return status == STATUS_OK ? put(engine, middle, infill->written, out, error) : status;
}
