/* consort run: one answer, or a chat. */
#include "cli/cli.h"
#include "cli/lines.h"
#include "store/store.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MAX_PROMPT_BYTES ((size_t)256 << 20)
#define MAX_GRAMMAR_BYTES ((size_t)16 << 20)

static struct {
    const char *prompt, *file, *system, *grammar, *schema;
    uint32_t max_tokens;
    bool raw, json;
} args = {.max_tokens = UINT32_MAX};

enum stop { STOP_END, STOP_LENGTH, STOP_CONTEXT, STOP_INTERRUPTED };

static const char *const stop_names[] = {"end", "length", "context", "interrupted"};

struct chat {
    struct engine *engine, *draft; /* draft: the draft model's, or NULL */
    struct session *session;
    struct store_model *stored; /* what the store says of the model; NULL: a file */
    struct cli_stored settings;
    struct sampling sampling;
    uint32_t max_tokens;
    struct grammar *grammar; /* what answers follow, or NULL */
    json_t *messages;
    struct token_list tokens; /* of the prompt */
    struct buffer answer;
    /* Of the last answer, and over all. */
    enum stop stop;
    size_t n_prompt, n_answer, total_prompt, total_answer;
    uint64_t prompt_ns, answer_ns, total_prompt_ns, total_answer_ns;
    struct session_draft_counts total_drafts;
};

/* ---- One answer ------------------------------------------------------------------------------ */

static bool show_prefill(void *context, size_t done, size_t total)
{
    (void)total;
    cli_progress_show(context, done, "");
    return !cli_interrupted();
}

static enum status begin_answer(struct chat *chat, struct error *error)
{
    struct cli_progress progress = cli_progress_begin("reading", chat->tokens.count);
    struct session_prompt prompt = {.tokens = chat->tokens.ids,
                                    .n_tokens = chat->tokens.count,
                                    .sampling = &chat->sampling,
                                    .grammar = chat->grammar,
                                    .strip_space = !args.raw,
                                    .progress = show_prefill,
                                    .context = &progress};
    uint64_t begin_ns = clock_now_ns();
    enum status status = session_begin(chat->session, &prompt, error);
    cli_progress_end(&progress);
    chat->prompt_ns = clock_now_ns() - begin_ns;
    chat->n_prompt = chat->tokens.count - session_reused(chat->session);
    return status;
}

/* Prints the answer up to end, of which *shown bytes were. */
static void print_new(const struct chat *chat, size_t *shown, size_t end)
{
    if (!args.json && end > *shown) {
        cli_write(chat->answer.data + *shown, end - *shown);
        cli_flush();
    }
    *shown = MAX(*shown, end);
}

/* Whether a text that ends answers stands in this one, which is then cut there; else *certain is up
 * to where none may begin. */
static bool stop_found(struct chat *chat, size_t from, size_t *certain)
{
    struct buffer *answer = &chat->answer;
    size_t cut = answer->size;
    bool found = false;
    *certain = answer->size;
    for (size_t s = 0; s < chat->settings.n_stops; s++) {
        struct view stop = view_of(chat->settings.stops[s]);
        for (size_t i = from; i < cut; i++) {
            size_t n = MIN(stop.size, answer->size - i);
            if (memcmp(answer->data + i, stop.data, n) != 0)
                continue;
            if (n < stop.size)
                *certain = MIN(*certain, i);
            else
                cut = i;
            found |= n == stop.size;
            break;
        }
    }
    if (found)
        answer->size = cut;
    return found;
}

/* Answers chat->tokens; the text goes to stdout as it comes, and into chat->answer. */
static enum status give_answer(struct chat *chat, struct error *error)
{
    buffer_clear(&chat->answer);
    chat->n_answer = 0;
    chat->answer_ns = 0;
    enum status status = begin_answer(chat, error);
    if (status == STATUS_CANCELLED) {
        chat->stop = STOP_INTERRUPTED;
        return STATUS_OK;
    }
    if (status != STATUS_OK)
        return status;
    uint64_t begin_ns = clock_now_ns();
    size_t shown = 0;
    bool stopped = false;
    for (chat->stop = STOP_LENGTH; chat->n_answer < chat->max_tokens; chat->n_answer++) {
        size_t from = chat->answer.size, certain;
        int32_t token;
        if (cli_interrupted() || cli_output_lost()) {
            chat->stop = STOP_INTERRUPTED;
            break;
        }
        status = session_next(chat->session, &token, &chat->answer, error);
        if (status == STATUS_LIMIT) {
            chat->stop = STOP_CONTEXT;
            break;
        }
        if (status != STATUS_OK)
            return status;
        if (tokenizer_ends_generation(chat->engine->tokenizer, token)) {
            chat->stop = STOP_END;
            chat->answer.size = from;
            chat->n_answer++;
            break;
        }
        stopped = stop_found(chat, shown, &certain);
        if (stopped) {
            chat->stop = STOP_END;
            chat->n_answer++;
            break;
        }
        print_new(chat, &shown, certain);
    }
    if (!stopped)
        session_finish(chat->session, &chat->answer);
    print_new(chat, &shown, chat->answer.size);
    chat->answer_ns = clock_now_ns() - begin_ns;
    chat->total_prompt += chat->n_prompt;
    chat->total_answer += chat->n_answer;
    chat->total_prompt_ns += chat->prompt_ns;
    chat->total_answer_ns += chat->answer_ns;
    struct session_draft_counts drafts = session_drafted(chat->session);
    chat->total_drafts.drafted += drafts.drafted;
    chat->total_drafts.accepted += drafts.accepted;
    return STATUS_OK;
}

static double per_second(size_t count, uint64_t ns)
{
    return ns > 0 ? (double)count * 1e9 / (double)ns : 0;
}

/* Ends the answer on stdout: a line end, or the JSON object. */
static int end_answer(const struct chat *chat)
{
    struct session_draft_counts drafts = session_drafted(chat->session);
    if (args.json)
        return cli_print_json(json_pack(
            "{s:o, s:s, s:I, s:I, s:I, s:f, s:f, s:I, s:I, s:I}", "text",
            json_stringn_nocheck(chat->answer.size > 0 ? chat->answer.data : "", chat->answer.size),
            "stop", stop_names[chat->stop], "prompt_tokens", (json_int_t)chat->tokens.count,
            "reused_tokens", (json_int_t)session_reused(chat->session), "answer_tokens",
            (json_int_t)chat->n_answer, "prompt_tokens_per_s",
            per_second(chat->n_prompt, chat->prompt_ns), "answer_tokens_per_s",
            per_second(chat->n_answer, chat->answer_ns), "drafted_tokens",
            (json_int_t)drafts.drafted, "accepted_tokens", (json_int_t)drafts.accepted, "seed",
            (json_int_t)chat->sampling.seed));
    cli_write("\n", 1);
    cli_flush();
    return CLI_DONE;
}

static void note_stop(const struct chat *chat)
{
    if (chat->stop == STOP_CONTEXT)
        cli_note("the context of %u tokens is full", model_n_ctx(chat->engine->model));
}

/* ---- Prompts --------------------------------------------------------------------------------- */

static json_t *text_value(const char *text, size_t size)
{
    json_t *value = json_stringn(text, size);
    return value != NULL ? value : json_stringn_nocheck(text, size); /* not UTF-8 */
}

static bool add_message(struct chat *chat, const char *role, const char *text, size_t size)
{
    json_t *message = json_pack("{s:s, s:o}", "role", role, "content", text_value(text, size));
    return message != NULL && json_array_append_new(chat->messages, message) == 0;
}

/* Begins a conversation anew, with the system prompt where there is one, and what the store has
 * behind it. */
static bool clear_messages(struct chat *chat, const char *system)
{
    json_decref(chat->messages);
    chat->messages = json_array();
    return chat->messages != NULL &&
           (system == NULL || system[0] == '\0' ||
            add_message(chat, "system", system, strlen(system))) &&
           (chat->stored == NULL || json_array_extend(chat->messages, chat->stored->messages) == 0);
}

/* As the command line has it, or the store. */
static const char *system_text(const struct chat *chat)
{
    return args.system == NULL && chat->stored != NULL ? chat->stored->system : args.system;
}

static enum status answer_messages(struct chat *chat, struct error *error)
{
    struct buffer text = {0};
    chat->tokens.count = 0;
    enum status status = engine_render(chat->engine, chat->messages, NULL, &text, error);
    if (status == STATUS_OK)
        status =
            engine_encode(chat->engine, (struct view){text.data, text.size}, &chat->tokens, error);
    buffer_free(&text);
    return status == STATUS_OK ? give_answer(chat, error) : status;
}

static enum status read_prompt(struct buffer *out, struct error *error)
{
    const char *path = args.file;
    if (args.prompt != NULL && strcmp(args.prompt, "-") == 0)
        path = "-";
    if (path != NULL)
        return file_read(path, MAX_PROMPT_BYTES, out, error);
    return buffer_append_text(out, args.prompt) ? STATUS_OK
                                                : error_memory(error, strlen(args.prompt));
}

static int run_once(struct chat *chat)
{
    struct error error;
    struct buffer prompt = {0};
    enum status status = read_prompt(&prompt, &error);
    struct view text = {prompt.size > 0 ? prompt.data : "", prompt.size};
    if (status == STATUS_OK && args.raw) {
        status = engine_encode(chat->engine, text, &chat->tokens, &error);
        if (status == STATUS_OK)
            status = give_answer(chat, &error);
    } else if (status == STATUS_OK) {
        while (text.size > 0 && (args.file != NULL || strcmp(args.prompt, "-") == 0) &&
               text.data[text.size - 1] == '\n')
            text.size--;
        status = clear_messages(chat, system_text(chat)) &&
                         add_message(chat, "user", text.data, text.size)
                     ? answer_messages(chat, &error)
                     : error_memory(&error, text.size);
    }
    buffer_free(&prompt);
    if (status != STATUS_OK)
        return cli_fail(&error);
    int code = end_answer(chat);
    note_stop(chat);
    if (chat->stop == STOP_INTERRUPTED && !cli_output_lost()) {
        error_set(&error, STATUS_CANCELLED, "interrupted");
        code = cli_fail(&error);
    }
    return code;
}

/* ---- Chat ------------------------------------------------------------------------------------ */

static const char chat_help[] =
    "/help            this list\n"
    "/clear           begin a new conversation\n"
    "/system TEXT     begin a new one with this system prompt (none: without)\n"
    "/retry           answer the last question again\n"
    "/exit            end (also Ctrl-D)\n"
    "Ctrl-C stops an answer. A line that ends with \\ goes on in the next.";

/* Whether the last message is of this role. */
static bool last_role_is(const struct chat *chat, const char *role)
{
    size_t n = json_array_size(chat->messages);
    const json_t *last = n > 0 ? json_array_get(chat->messages, n - 1) : NULL;
    const char *found = json_string_value(json_object_get(last, "role"));
    return found != NULL && strcmp(found, role) == 0;
}

/* Takes the last answer back, with another seed for the next. False when nothing was asked. */
static bool take_back(struct chat *chat)
{
    if (last_role_is(chat, "assistant"))
        json_array_remove(chat->messages, json_array_size(chat->messages) - 1);
    chat->sampling.seed++;
    return last_role_is(chat, "user");
}

/* Handles a line that begins with a slash. False ends the chat. */
static bool run_chat_command(struct chat *chat, const char *line, struct buffer *system,
                             bool *answer)
{
    size_t word = strcspn(line, " ");
    const char *rest = line + word + strspn(line + word, " ");
#define IS(name) (word == strlen(name) && strncmp(line, name, word) == 0)
    if (IS("/exit") || IS("/quit") || IS("/bye"))
        return false;
    if (IS("/clear")) {
        clear_messages(chat, system->data);
    } else if (IS("/system")) {
        buffer_clear(system);
        buffer_append_text(system, rest);
        clear_messages(chat, system->data);
    } else if (IS("/retry")) {
        *answer = take_back(chat);
    } else {
        if (!IS("/help") && !IS("/?"))
            cli_note("unknown command %.*s", (int)word, line);
        cli_note("%s", chat_help);
    }
#undef IS
    return true;
}

/* Answers the last message and prints it. An error ends the turn, not the chat. */
static int chat_turn(struct chat *chat)
{
    struct error error;
    cli_clear_interrupt();
    enum status status = answer_messages(chat, &error);
    if (status != STATUS_OK) {
        json_array_remove(chat->messages, json_array_size(chat->messages) - 1);
        return cli_fail(&error);
    }
    int code = end_answer(chat);
    note_stop(chat);
    cli_clear_interrupt();
    if (chat->stop == STOP_INTERRUPTED && chat->answer.size == 0) {
        json_array_remove(chat->messages, json_array_size(chat->messages) - 1);
        return code; /* the question is taken back: templates expect an answer to each */
    }
    add_message(chat, "assistant", chat->answer.size > 0 ? chat->answer.data : "",
                chat->answer.size);
    return code;
}

static int run_chat(struct chat *chat)
{
    struct error error;
    struct lines *lines;
    struct buffer line = {0}, system = {0};
    int code = CLI_DONE;
    if (lines_open(&lines, &error) != STATUS_OK)
        return cli_fail(&error);
    cli_catch_signals(lines_on_terminal(lines));
    if (system_text(chat) != NULL)
        buffer_append_text(&system, system_text(chat));
    clear_messages(chat, system_text(chat));
    if (lines_on_terminal(lines))
        cli_note("/help lists commands, Ctrl-C stops an answer, Ctrl-D ends");
    while (!cli_output_lost() && !cli_terminated()) {
        enum lines_result result = lines_read(lines, &line);
        if (result == LINES_INTERRUPTED && lines_on_terminal(lines) && !cli_terminated()) {
            cli_clear_interrupt();
            cli_note("%s", "");
            continue;
        }
        if (result != LINES_READ) {
            if (lines_on_terminal(lines))
                cli_note("%s", "");
            break;
        }
        bool answer = line.size > 0 && line.data[0] != '/';
        if (answer && !add_message(chat, "user", line.data, line.size))
            break;
        if (line.size > 0 && line.data[0] == '/' &&
            !run_chat_command(chat, line.data, &system, &answer))
            break;
        if (answer) {
            int turn = chat_turn(chat);
            code = lines_on_terminal(lines) ? CLI_DONE : MAX(code, turn);
        }
    }
    buffer_free(&line);
    buffer_free(&system);
    lines_close(lines);
    return code;
}

/* ---- The command ----------------------------------------------------------------------------- */

static void note_model(const struct engine *engine, bool chat)
{
    const struct model_desc *desc = model_description(engine->model);
    char parameters[32], memory[32];
    cli_note("%s%s%s, %s parameters, context %u tokens, %s, %u threads (%s)", desc->name,
             desc->name[0] != '\0' ? ", " : "", desc->architecture,
             cli_count_text(parameters, (double)desc->n_params), model_n_ctx(engine->model),
             cli_size_text(memory, (double)model_memory_bytes(engine->model)),
             model_n_threads(engine->model), quant_isa());
    if (desc->n_ctx_train > 0 && model_n_ctx(engine->model) > desc->n_ctx_train)
        cli_note("the model was trained on %u tokens: beyond them its answers may be poor",
                 desc->n_ctx_train);
    if (chat && engine->template_is_default)
        cli_note("the file carries no chat template: ChatML is used");
}

static void note_speed(const struct chat *chat)
{
    if (chat->total_prompt == 0 && chat->total_answer == 0)
        return;
    char drafts[64] = "";
    if (chat->total_drafts.drafted > 0)
        snprintf(drafts, sizeof drafts, "; drafts %zu of %zu accepted", chat->total_drafts.accepted,
                 chat->total_drafts.drafted);
    cli_note("prompt %zu tokens, %.1f/s; answer %zu tokens, %.1f/s%s; seed %llu",
             chat->total_prompt, per_second(chat->total_prompt, chat->total_prompt_ns),
             chat->total_answer, per_second(chat->total_answer, chat->total_answer_ns), drafts,
             (unsigned long long)chat->sampling.seed);
}

/* The grammar that the options name, if any. */
static enum status open_grammar(struct chat *chat, struct error *error)
{
    const char *path = args.grammar != NULL ? args.grammar : args.schema;
    struct buffer text = {0};
    json_error_t fault;
    if (path == NULL)
        return STATUS_OK;
    enum status status = file_read(path, MAX_GRAMMAR_BYTES, &text, error);
    struct grammar_spec spec = {.gbnf = {text.size > 0 ? text.data : "", text.size}};
    json_t *schema = NULL;
    if (status == STATUS_OK && args.grammar == NULL) {
        schema = json_loadb(spec.gbnf.data, text.size, JSON_DECODE_ANY, &fault);
        spec = (struct grammar_spec){.schema = schema};
        if (schema == NULL)
            status = error_set(error, STATUS_INVALID, "%.100s is no JSON: line %d: %s", path,
                               fault.line, fault.text);
    }
    if (status == STATUS_OK)
        status = grammar_cache_get(chat->engine->grammars, &spec, &chat->grammar, error);
    json_decref(schema);
    buffer_free(&text);
    return status;
}

/* The model, and what the store says of it. */
static enum status open_chat(struct chat *chat, const char *model, struct error *error)
{
    struct model_options options = cli_model_options();
    unsigned parts = ENGINE_TOKENIZER | ENGINE_MODEL | (args.raw ? 0 : ENGINE_TEMPLATE);
    enum status status = cli_find_model(model, &chat->stored, error);
    if (status == STATUS_OK)
        status = cli_take_stored(chat->stored, &chat->settings, error);
    if (status == STATUS_OK)
        status = engine_open(&chat->engine, chat->stored != NULL ? chat->stored->path : model,
                             parts, &options, error);
    if (status == STATUS_OK && chat->stored != NULL && !args.raw)
        status = engine_set_go_template(chat->engine, chat->stored->chat_template,
                                        chat->stored->template_wins, error);
    chat->sampling = chat->settings.sampling;
    chat->max_tokens = args.max_tokens < UINT32_MAX || chat->settings.max_tokens == 0
                           ? args.max_tokens
                           : chat->settings.max_tokens;
    if (status != STATUS_OK || model_description(chat->engine->model)->causal)
        return status;
    return error_set(error, STATUS_UNSUPPORTED,
                     "%s is an embedding model and writes no text: use consort embed", model);
}

static int run(const struct cli_command *command, char **operands, int n_operands)
{
    (void)n_operands;
    if (args.prompt != NULL && args.file != NULL)
        return cli_usage(command, "--prompt and --file cannot be given together");
    if (args.grammar != NULL && args.schema != NULL)
        return cli_usage(command, "--grammar and --json-schema cannot be given together");
    bool once = args.prompt != NULL || args.file != NULL;
    if (args.raw && !once)
        return cli_usage(command, "--raw needs a prompt (-p or -f)");
    if (!cli_check_speculate(command))
        return CLI_USAGE;
    struct error error;
    struct chat chat = {0};
    int code = CLI_FAILED;
    if (open_chat(&chat, operands[0], &error) != STATUS_OK ||
        session_open(&chat.session, chat.engine, &error) != STATUS_OK ||
        cli_speculate(chat.session, chat.engine, &chat.draft, &error) != STATUS_OK ||
        open_grammar(&chat, &error) != STATUS_OK) {
        cli_fail(&error);
    } else {
        note_model(chat.engine, !args.raw);
        code = once ? run_once(&chat) : run_chat(&chat);
        note_speed(&chat);
    }
    json_decref(chat.messages);
    token_list_free(&chat.tokens);
    buffer_free(&chat.answer);
    session_close(chat.session);
    grammar_release(chat.grammar);
    engine_close(chat.draft);
    engine_close(chat.engine);
    cli_free_stored(&chat.settings);
    store_model_free(chat.stored);
    return code;
}

static const struct cli_option options[] = {
    {.letter = 'p',
     .name = "prompt",
     .metavar = "TEXT",
     .help = "answer this and end; - reads standard input (default: a chat)",
     .type = CLI_TEXT,
     .value = &args.prompt},
    {.letter = 'f',
     .name = "file",
     .metavar = "FILE",
     .help = "the prompt is in FILE",
     .type = CLI_TEXT,
     .value = &args.file},
    {.name = "system",
     .metavar = "TEXT",
     .help = "system prompt",
     .type = CLI_TEXT,
     .value = &args.system},
    {.name = "raw",
     .help = "no chat template: the prompt is continued as it is",
     .type = CLI_FLAG,
     .value = &args.raw},
    {.letter = 'n',
     .name = "max-tokens",
     .metavar = "N",
     .help = "tokens an answer may have (default: until it ends or the context is full)",
     .type = CLI_U32,
     .value = &args.max_tokens},
    {.name = "grammar",
     .metavar = "FILE",
     .help = "answers follow the grammar in FILE, in GBNF",
     .type = CLI_TEXT,
     .value = &args.grammar},
    {.name = "json-schema",
     .metavar = "FILE",
     .help = "answers are JSON by the JSON Schema in FILE",
     .type = CLI_TEXT,
     .value = &args.schema},
    {.name = "json",
     .help = "print a JSON object for each answer",
     .type = CLI_FLAG,
     .value = &args.json},
};
static const struct cli_group group = CLI_GROUP("options", options);

const struct cli_command cli_run = {
    .name = "run",
    .operands = "MODEL",
    .summary = "Answers a prompt, or chats.",
    .description =
        "Without a prompt it is a chat: on a terminal with line editing and history, from a pipe "
        "one question a line. The answer goes to standard output, notes to standard error.",
    .groups = {&group, &cli_model_group, &cli_sampling_group, &cli_speculate_group},
    .min_operands = 1,
    .max_operands = 1,
    .run = run,
};
