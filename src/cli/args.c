/* Options that several commands take. */
#include "cli/cli.h"

#include <stdlib.h>
#include <string.h>
#include <strings.h>

/* ---- The model ------------------------------------------------------------------------------- */

struct cli_model_args cli_model_args;

static const struct cli_option model_options[] = {
    {.letter = 'c',
     .name = "ctx",
     .metavar = "N",
     .help = "tokens of context (default: what the model was trained on and memory allows)",
     .type = CLI_U32,
     .min = 1,
     .value = &cli_model_args.n_ctx},
    {.name = "kv-type",
     .metavar = "f16|f32|q8_0",
     .help = "number format of the KV cache (default: f16)",
     .type = CLI_CHOICE,
     .value = &cli_model_args.kv_type},
    {.letter = 't',
     .name = "threads",
     .metavar = "N",
     .help = "compute threads (default: the machine's cores)",
     .type = CLI_U32,
     .min = 1,
     .max = 1024,
     .value = &cli_model_args.n_threads},
    {.name = "ignore-memory",
     .help = "load even what needs more memory than is free",
     .type = CLI_FLAG,
     .value = &cli_model_args.ignore_memory},
};

const struct cli_group cli_model_group = CLI_GROUP("model", model_options);

/* The same but for the context, which some commands define in their own way. */
const struct cli_group cli_compute_group = {"model", model_options + 1,
                                            ARRAY_COUNT(model_options) - 1};

enum quant_format cli_kv_format(void)
{
    enum quant_format format = QUANT_F16;
    if (cli_model_args.kv_type != NULL)
        quant_find(cli_model_args.kv_type, &format);
    return format;
}

struct model_options cli_model_options(void)
{
    struct model_options options = {.n_ctx = cli_model_args.n_ctx,
                                    .kv_format = cli_kv_format(),
                                    .n_threads = cli_model_args.n_threads,
                                    .ignore_memory = cli_model_args.ignore_memory};
    cli_ranks_add(&options);
    return options;
}

/* ---- Sampling -------------------------------------------------------------------------------- */

#define MAX_BIASES 1024

struct sampling cli_sampling_args;
static struct logit_bias biases[MAX_BIASES];
static size_t n_biases;
static bool seed_given;

static bool parse_bias(const char *text, struct buffer *reason)
{
    char id[16];
    size_t length = strcspn(text, "=");
    uint64_t token;
    float bias;
    if (n_biases == MAX_BIASES) {
        buffer_printf(reason, "more than %d biases", MAX_BIASES);
        return false;
    }
    bool good = length < sizeof id && text[length] == '=';
    if (good) {
        memcpy(id, text, length);
        id[length] = '\0';
        good = cli_parse_u64(id, 0, INT32_MAX, &token) && cli_parse_f32(text + length + 1, &bias) &&
               bias != INFINITY;
    }
    if (!good) {
        buffer_printf(reason, "'%s' is not ID=BIAS, as in 13=-2.5 or 13=-inf", text);
        return false;
    }
    biases[n_biases++] = (struct logit_bias){.token = (int32_t)token, .bias = bias};
    return true;
}

static bool parse_seed(const char *text, struct buffer *reason)
{
    seed_given = cli_parse_u64(text, 0, INT64_MAX, &cli_sampling_args.seed); /* JSON has no more */
    if (!seed_given)
        buffer_printf(reason, "'%s' is not a whole number from 0 to %llu", text,
                      (unsigned long long)INT64_MAX);
    return seed_given;
}

#define NUMBER(option, field, least, most, text)                                                   \
    {                                                                                              \
        .name = option, .metavar = "X", .help = text, .type = CLI_F32, .min = least, .max = most,  \
        .value = &cli_sampling_args.field                                                          \
    }
#define WHOLE(option, field, text)                                                                 \
    {                                                                                              \
        .name = option, .metavar = "N", .help = text, .type = CLI_U32,                             \
        .value = &cli_sampling_args.field                                                          \
    }

static const struct cli_option sampling_options[] = {
    NUMBER("temp", temperature, 0, 1000, "temperature; 0 takes the likeliest token (default: 0.8)"),
    WHOLE("top-k", top_k, "sample from the K likeliest tokens; 0: from all (default: 40)"),
    NUMBER("top-p", top_p, 0, 1,
           "sample from the likeliest with this total probability (default: 0.95)"),
    NUMBER("min-p", min_p, 0, 1,
           "drop tokens less likely than this share of the best (default: 0.05)"),
    NUMBER("typical", typical_p, 0, 1,
           "locally typical sampling with this total (default: 1, off)"),
    NUMBER("repeat-penalty", repeat_penalty, 0.01, 100,
           "penalty on recent tokens (default: 1, off)"),
    WHOLE("repeat-last-n", repeat_last_n, "tokens the penalties look back on (default: 64)"),
    NUMBER("presence-penalty", presence_penalty, -100, 100,
           "subtracted from the logit of tokens that occurred (default: 0)"),
    NUMBER("frequency-penalty", frequency_penalty, -100, 100,
           "subtracted once for every time they occurred (default: 0)"),
    {.name = "logit-bias",
     .metavar = "ID=BIAS",
     .help = "adds to a token's logit; -inf forbids it; may be repeated",
     .type = CLI_CALL,
     .parse = parse_bias},
    NUMBER("dry-multiplier", dry_multiplier, 0, 100,
           "strength of DRY, a penalty on repeated phrases (default: 0, off)"),
    NUMBER("dry-base", dry_base, 1, 100, "growth of DRY with each repeated token (default: 1.75)"),
    WHOLE("dry-allowed-length", dry_allowed_length,
          "repetitions shorter than this are left alone by DRY (default: 2)"),
    WHOLE("dry-last-n", dry_last_n, "tokens DRY looks back on; 0: all (default: 0)"),
    NUMBER("xtc-probability", xtc_probability, 0, 1,
           "chance to exclude the top choices (default: 0, off)"),
    NUMBER("xtc-threshold", xtc_threshold, 0, 1,
           "top choices are those at least this likely (default: 0.1)"),
    {.name = "seed",
     .metavar = "N",
     .help = "same seed, same text (default: a new one, said on stderr)",
     .type = CLI_CALL,
     .parse = parse_seed},
};

const struct cli_group cli_sampling_group = CLI_GROUP("sampling", sampling_options);

bool cli_seed_given(void)
{
    return seed_given;
}

struct sampling cli_sampling(void)
{
    if (!seed_given)
        cli_sampling_args.seed = rng_entropy() >> 32; /* short enough to type */
    seed_given = true;
    struct sampling sampling = cli_sampling_args;
    sampling.biases = biases;
    sampling.n_biases = n_biases;
    return sampling;
}

/* ---- Speculation ----------------------------------------------------------------------------- */

static struct {
    const char *mode, *draft;
    uint32_t max;
} speculate_args;

static const struct cli_option speculate_options[] = {
    {.name = "speculate",
     .metavar = "off|ngram|draft|auto",
     .help = "verify drafts of several tokens in one step where that is faster; the text stays the "
             "same. ngram: what followed earlier in the text; draft: by --draft; auto: both "
             "(default: auto)",
     .type = CLI_CHOICE,
     .value = &speculate_args.mode},
    {.name = "draft",
     .metavar = "MODEL",
     .help = "a small model with the same vocabulary, which drafts",
     .type = CLI_TEXT,
     .value = &speculate_args.draft},
    {.name = "draft-max",
     .metavar = "N",
     .help = "tokens a draft may have (default: up to 31, as memory allows)",
     .type = CLI_U32,
     .min = 1,
     .max = SESSION_DRAFT_MAX,
     .value = &speculate_args.max},
};

const struct cli_group cli_speculate_group = CLI_GROUP("speculation", speculate_options);

static enum session_drafts drafts_asked(void)
{
    static const char *const modes[] = {"off", "ngram", "draft", "auto"}; /* as the enum */
    for (size_t i = 0; speculate_args.mode != NULL && i < ARRAY_COUNT(modes); i++)
        if (strcasecmp(speculate_args.mode, modes[i]) == 0)
            return (enum session_drafts)i;
    return SESSION_DRAFTS_AUTO;
}

bool cli_speculate_given(void)
{
    return speculate_args.mode != NULL || speculate_args.draft != NULL;
}

bool cli_check_speculate(const struct cli_command *command)
{
    enum session_drafts drafts = drafts_asked();
    bool by_model = drafts >= SESSION_DRAFTS_MODEL;
    if (drafts == SESSION_DRAFTS_MODEL && speculate_args.draft == NULL)
        cli_usage(command, "--speculate draft needs a draft model (--draft MODEL)");
    else if (!by_model && speculate_args.draft != NULL)
        cli_usage(command, "--draft is of no use with --speculate %s", speculate_args.mode);
    else
        return true;
    return false;
}

enum status cli_speculate(struct session *session, struct engine *engine, struct engine **draft,
                          struct error *error)
{
    struct session_speculation speculation = {.drafts = drafts_asked(),
                                              .max_tokens = speculate_args.max};
    enum status status = STATUS_OK;
    if (speculate_args.draft != NULL) {
        struct model_options options = cli_model_options();
        options.n_ctx = model_n_ctx(engine->model);
        options.backend = model_backend(engine->model);
        status = cli_open_engine(draft, speculate_args.draft, ENGINE_TOKENIZER | ENGINE_MODEL,
                                 &options, error);
        speculation.draft = *draft;
    }
    return status == STATUS_OK ? session_speculate(session, &speculation, error) : status;
}

/* ---- Sizes as text --------------------------------------------------------------------------- */

const char *cli_size_text(char text[32], double bytes)
{
    return size_text(text, bytes);
}

const char *cli_count_text(char text[32], double count)
{
    static const char *const units[] = {"", " thousand", " million", " billion", " trillion"};
    size_t unit = 0;
    for (; count >= 1000 && unit + 1 < ARRAY_COUNT(units); unit++)
        count /= 1000;
    snprintf(text, 32, unit == 0 || count >= 100 ? "%.0f%s" : "%.2f%s", count, units[unit]);
    return text;
}

bool cli_parse_duration(const char *text, int64_t now_s, int64_t *out)
{
    static const struct {
        char letter;
        int64_t seconds;
    } units[] = {{'m', 60}, {'h', 3600}, {'d', 86400}, {'w', 7 * 86400}, {'y', 365 * 86400}};
    char *end;
    unsigned long long number = strtoull(text, &end, 10);
    if (text[0] < '0' || text[0] > '9' || number == 0 || number > 100000)
        return false;
    for (size_t i = 0; i < ARRAY_COUNT(units); i++)
        if (end[0] == units[i].letter && end[1] == '\0') {
            *out = now_s + (int64_t)number * units[i].seconds;
            return true;
        }
    return false;
}
