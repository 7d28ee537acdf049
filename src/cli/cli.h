/* cli: the command line. One file a command; this header is what they share.
 *
 * stdout carries only the answer or the data; notes, progress and errors go to stderr. A command
 * returns the exit code. Options are tables: the parser, the help and the checks all read the same
 * one. Values land in static variables, because a process runs one command.
 */
#ifndef CONSORT_CLI_H
#define CONSORT_CLI_H

#include "engine/engine.h"

#include <stdio.h>

enum cli_exit { CLI_DONE = 0, CLI_FAILED = 1, CLI_USAGE = 2 };

/* ---- Options and commands -------------------------------------------------------------------- */

enum cli_option_type {
    CLI_FLAG,   /* bool */
    CLI_TEXT,   /* const char * */
    CLI_CHOICE, /* const char *, one of the words of metavar, "a|b|c", in any case */
    CLI_U32,    /* uint32_t */
    CLI_U64,    /* uint64_t */
    CLI_F32,    /* float */
    CLI_CALL,   /* parse() takes the text */
};

struct cli_option {
    const char *name;    /* without the dashes */
    const char *metavar; /* NULL for flags */
    const char *help;
    enum cli_option_type type;
    char letter;     /* 0: none */
    double min, max; /* of numbers; max 0: no limit but the type's */
    void *value;
    /* CLI_CALL: false and a reason when text is not good. */
    bool (*parse)(const char *text, struct buffer *reason);
};

struct cli_group {
    const char *title;
    const struct cli_option *options;
    size_t n_options;
};

#define CLI_GROUP(heading, table)                                                                  \
    {                                                                                              \
        heading, table, ARRAY_COUNT(table)                                                         \
    }
#define CLI_MAX_GROUPS 4

struct cli_command {
    const char *name;
    const char *operands; /* as the usage line shows them */
    const char *summary;
    const char *description; /* paragraphs, or NULL */
    const struct cli_group *groups[CLI_MAX_GROUPS];
    int min_operands, max_operands;
    int (*run)(const struct cli_command *command, char **operands, int n_operands);
};

/* Every command, ending with NULL. */
extern const struct cli_command *const cli_commands[];

extern const struct cli_command cli_run, cli_up, cli_key, cli_usage_command, cli_audit, cli_ps,
    cli_stop, cli_down, cli_pull, cli_list, cli_show, cli_cp, cli_rm, cli_quantize, cli_imatrix,
    cli_perplexity, cli_embed, cli_bench, cli_tokenize, cli_render, cli_logits, cli_help,
    cli_doctor, cli_init, cli_token, cli_join, cli_leave, cli_status, cli_load, cli_unload,
    cli_remove, cli_rotate, cli_plan;

/* Splits arguments into options and operands. *shown_help when --help was asked for and answered.
 * Returns CLI_DONE or CLI_USAGE (said on stderr). */
int cli_parse(const struct cli_command *command, int argc, char **argv, char **operands,
              int *n_operands, bool *shown_help);

/* Gives an option its value (NULL: of a flag); false with the reason where text is not good. */
bool cli_option_take(const struct cli_option *option, const char *text, struct buffer *reason);
/* Whether the command line has given it. */
bool cli_option_given(const struct cli_option *option);

void cli_print_help(const struct cli_command *command, FILE *out);
void cli_print_overview(FILE *out);

/* The closest of names[n], or NULL when none is close. */
const char *cli_closest(const char *word, const char *const *names, size_t n);

/* One number out of text, all of it, in [min, max] (max 0: no limit). */
bool cli_parse_u64(const char *text, uint64_t min, uint64_t max, uint64_t *out);
bool cli_parse_f32(const char *text, float *out); /* also inf and -inf; not nan */

/* "30d", as the time now_s + 30 days: a number of m, h, d, w or y. */
bool cli_parse_duration(const char *text, int64_t now_s, int64_t *out);

/* "4096,512": up to limit numbers from min on. */
bool cli_parse_u32_list(const char *text, uint32_t min, uint32_t *out, size_t limit, size_t *n);

/* A model as users name it: a file, then *out is NULL, or a name in the store. The caller frees it.
 */
struct store_model;
enum status cli_find_model(const char *model, struct store_model **out, struct error *error);
/* engine_open and weights_open of a model as users name it. */
enum status cli_open_engine(struct engine **out, const char *model, unsigned parts,
                            const struct model_options *options, struct error *error);
enum status cli_open_weights(struct weights **out, const char *model, struct error *error);

/* ---- What several commands take -------------------------------------------------------------- */

struct cli_model_args {
    uint32_t n_ctx;
    const char *kv_type;
    uint32_t n_threads;
    bool ignore_memory;
};

extern struct cli_model_args cli_model_args;
extern const struct cli_group cli_model_group;   /* --ctx --kv-type --threads --ignore-memory */
extern const struct cli_group cli_compute_group; /* the last three */

struct model_options cli_model_options(void);
enum quant_format cli_kv_format(void);

extern struct sampling cli_sampling_args;
extern const struct cli_group cli_sampling_group;
bool cli_seed_given(void); /* before cli_sampling */
/* With the biases, and a seed of the system's where none was given. */
struct sampling cli_sampling(void);

/* Sampling as the command line has it, else as a model's name in the store (NULL: none) says. */
struct api_call;
struct cli_stored {
    struct sampling sampling;
    uint32_t max_tokens; /* 0: not said */
    const char **stops;  /* [n_stops], as long as call lives */
    size_t n_stops;
    struct api_call *call;
};
enum status cli_take_stored(const struct store_model *stored, struct cli_stored *out,
                            struct error *error);
void cli_free_stored(struct cli_stored *stored);

extern const struct cli_group cli_speculate_group; /* --speculate --draft --draft-max */
bool cli_speculate_given(void);                    /* one of the first two */
/* False where they do not go together (said on stderr). */
bool cli_check_speculate(const struct cli_command *command);
/* The session's drafts as the options have it; the draft engine that goes to draft shares the
 * compute threads of engine and is closed before it, after the session. */
enum status cli_speculate(struct session *session, struct engine *engine, struct engine **draft,
                          struct error *error);

/* One model over the processes that mpirun started. A command that has the group calls
 * cli_ranks_lead before it does anything else. True: it goes on, alone (--mpi was not given) or as
 * the owner, for whom cli_model_options has the ranks; when its models are closed it calls
 * cli_ranks_leave. False: the command is over with *code, on a rank that has computed what the
 * owner asked for, or where something failed, which the owner's rank alone has said. */
extern const struct cli_group cli_ranks_group; /* --mpi --placement */
bool cli_ranks_lead(const struct cli_command *command, const char *model, int *code);
void cli_ranks_add(struct model_options *options); /* for cli_model_options */
/* Without --mpi does nothing. error: of the command; status OK: all is well. */
void cli_ranks_leave(enum status status, const struct error *error);
bool cli_ranks_asked(void);            /* --mpi was given */
uint32_t cli_ranks(void);              /* how many there are; 0: alone */
const char *cli_ranks_placement(void); /* "tensor" or "pipeline" */

/* "12.3 GiB" and "1.24 B" into text. */
const char *cli_size_text(char text[32], double bytes);
const char *cli_count_text(char text[32], double count);

/* ---- Output ---------------------------------------------------------------------------------- */

/* "consort: SENTENCE" on stderr; returns CLI_FAILED. */
int cli_fail(const struct error *error);
/* Usage error: the sentence and how to get help; returns CLI_USAGE. */
int cli_usage(const struct cli_command *command, const char *format, ...) BASE_PRINTF(2, 3);
/* A note on stderr. */
void cli_note(const char *format, ...) BASE_PRINTF(1, 2);

/* To stdout. False when it cannot be written; cli_close_output then says so once. */
bool cli_write(const void *data, size_t size);
bool cli_printf(const char *format, ...) BASE_PRINTF(1, 2);
bool cli_flush(void);
/* Prints and releases a JSON value, with a line end. */
int cli_print_json(json_t *value);
/* Flushes stdout and gives the exit code: code itself, or CLI_FAILED with a sentence when output
 * was lost. A reader that left (EPIPE) is no failure. */
int cli_close_output(int code);
bool cli_output_lost(void);

/* ---- Signals, terminal, progress ------------------------------------------------------------- */

/* SIGINT and SIGTERM set a flag; where interactive is false a second SIGINT ends the process. */
void cli_catch_signals(bool interactive);
bool cli_interrupted(void);
bool cli_terminated(void); /* by SIGTERM, which is never cleared */
void cli_clear_interrupt(void);

/* A progress line on stderr with the time left; only where stderr is a terminal. */
struct cli_progress {
    const char *label;
    uint64_t begin_ns, drawn_ns;
    uint64_t total, skipped; /* skipped: what was done before */
    bool visible;            /* something is on the line */
};

struct cli_progress cli_progress_begin(const char *label, uint64_t total);
void cli_progress_show(struct cli_progress *progress, uint64_t done, const char *extra);
void cli_progress_end(struct cli_progress *progress); /* clears the line */

#endif
