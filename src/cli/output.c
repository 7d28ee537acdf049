/* stdout, stderr, signals and the progress line. */
#include "cli/cli.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define PROGRESS_DELAY_NS 500000000u  /* short work shows no progress */
#define PROGRESS_PERIOD_NS 100000000u /* between two drawings */

/* ---- Messages -------------------------------------------------------------------------------- */

int cli_fail(const struct error *error)
{
    fprintf(stderr, "consort: %s\n", error->text);
    return CLI_FAILED;
}

int cli_usage(const struct cli_command *command, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    fputs("consort: ", stderr);
    vfprintf(stderr, format, args);
    va_end(args);
    fprintf(stderr, "\nconsort help%s%s says more\n", command != NULL ? " " : "",
            command != NULL ? command->name : "");
    return CLI_USAGE;
}

void cli_note(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    vfprintf(stderr, format, args);
    va_end(args);
    fputc('\n', stderr);
}

/* ---- stdout ---------------------------------------------------------------------------------- */

/* Not through stdio, which loses what a signal interrupts: Ctrl-C ends an answer, not its text. */
#define OUTPUT_BYTES ((size_t)1 << 16) /* kept back at most */

static struct buffer output;
static int output_errno; /* of the first write that failed */

bool cli_flush(void)
{
    size_t done = 0;
    while (done < output.size && output_errno == 0) {
        ssize_t n = write(STDOUT_FILENO, output.data + done, output.size - done);
        if (n >= 0)
            done += (size_t)n;
        else if (errno != EINTR || cli_terminated())
            output_errno = errno;
    }
    buffer_clear(&output);
    if (fflush(stdout) != 0 && output_errno == 0) /* help texts */
        output_errno = errno;
    return output_errno == 0;
}

/* What is in the buffer goes out when it is long, and on a terminal by the line. */
static bool output_grown(size_t before)
{
    static int terminal = -1;
    if (terminal < 0)
        terminal = isatty(STDOUT_FILENO);
    if (output.failed && output_errno == 0)
        output_errno = ENOMEM;
    bool line = terminal && memchr(output.data + before, '\n', output.size - before) != NULL;
    return line || output.size > OUTPUT_BYTES ? cli_flush() : output_errno == 0;
}

bool cli_write(const void *data, size_t size)
{
    size_t before = output.size;
    if (size == 0)
        return output_errno == 0;
    buffer_append(&output, data, size);
    return output_grown(before);
}

bool cli_printf(const char *format, ...)
{
    char *text = NULL;
    va_list args;
    va_start(args, format);
    int size = vasprintf(&text, format, args);
    va_end(args);
    if (size < 0) {
        output_errno = output_errno != 0 ? output_errno : ENOMEM;
        return false;
    }
    bool good = cli_write(text, (size_t)size);
    free(text);
    return good;
}

bool cli_output_lost(void)
{
    return output_errno != 0;
}

int cli_print_json(json_t *value)
{
    char *text = value != NULL ? json_dumps(value, JSON_COMPACT | JSON_REAL_PRECISION(9)) : NULL;
    json_decref(value);
    if (text == NULL) {
        struct error error;
        error_memory(&error, 1);
        return cli_fail(&error);
    }
    cli_printf("%s\n", text);
    free(text);
    return CLI_DONE;
}

int cli_close_output(int code)
{
    cli_flush();
    buffer_free(&output);
    if (output_errno == 0)
        return code;
    if (output_errno == EPIPE) /* the reader has seen enough */
        return code;
    struct error error;
    error_set(&error, STATUS_IO, "cannot write to standard output: %s", strerror(output_errno));
    return code == CLI_DONE ? cli_fail(&error) : code;
}

/* ---- Signals --------------------------------------------------------------------------------- */

static volatile sig_atomic_t interrupts;
static volatile sig_atomic_t terminated;
static volatile sig_atomic_t signals_interactive;

static void on_signal(int number)
{
    if (number == SIGTERM || number == SIGHUP)
        terminated = 1;
    if (interrupts > 0 && !signals_interactive)
        _exit(128 + number);
    interrupts = 1;
}

void cli_catch_signals(bool interactive)
{
    signals_interactive = interactive;
    struct sigaction action = {.sa_handler = on_signal}; /* no SA_RESTART: reads must wake up */
    sigemptyset(&action.sa_mask);
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
    /* A closed terminal must not leave half a file behind; nohup asks for it to be ignored. */
    struct sigaction before;
    if (sigaction(SIGHUP, NULL, &before) == 0 && before.sa_handler != SIG_IGN)
        sigaction(SIGHUP, &action, NULL);
    struct sigaction ignore = {.sa_handler = SIG_IGN};
    sigemptyset(&ignore.sa_mask);
    sigaction(SIGPIPE, &ignore, NULL); /* seen as EPIPE instead */
    sigaction(SIGXFSZ, &ignore, NULL); /* as EFBIG */
}

bool cli_interrupted(void)
{
    return interrupts != 0;
}

bool cli_terminated(void)
{
    return terminated != 0;
}

void cli_clear_interrupt(void)
{
    interrupts = terminated;
}

/* ---- Progress -------------------------------------------------------------------------------- */

struct cli_progress cli_progress_begin(const char *label, uint64_t total)
{
    return (struct cli_progress){.label = label, .begin_ns = clock_now_ns(), .total = total};
}

void cli_progress_show(struct cli_progress *progress, uint64_t done, const char *extra)
{
    uint64_t now_ns = clock_now_ns(), spent_ns = now_ns - progress->begin_ns;
    if (spent_ns < PROGRESS_DELAY_NS || now_ns - progress->drawn_ns < PROGRESS_PERIOD_NS ||
        done <= progress->skipped || progress->total == 0 || !isatty(STDERR_FILENO))
        return;
    enum { WIDTH = 24 };
    char bar[WIDTH + 1];
    double share = MIN((double)done / (double)progress->total, 1.0);
    for (int i = 0; i < WIDTH; i++)
        bar[i] = i < (int)(share * WIDTH) ? '#' : '.';
    bar[WIDTH] = '\0';
    double left_s = (double)spent_ns / 1e9 *
                    (double)(progress->total - MIN(done, progress->total)) /
                    (double)(done - progress->skipped);
    fprintf(stderr, "\r\033[K%s [%s] %3.0f %%, %.0f:%02.0f left%s%s", progress->label, bar,
            share * 100, floor(left_s / 60), fmod(floor(left_s), 60), extra[0] != '\0' ? ", " : "",
            extra);
    fflush(stderr);
    progress->drawn_ns = now_ns;
    progress->visible = true;
}

void cli_progress_end(struct cli_progress *progress)
{
    if (progress->visible)
        fputs("\r\033[K", stderr);
    progress->visible = false;
}
