#include "cli/lines.h"
#include "cli/cli.h"

#include <errno.h>
#include <histedit.h>
#include <locale.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/select.h>
#include <unistd.h>

#define HISTORY_LINES 1000

struct lines {
    EditLine *edit; /* NULL for a pipe */
    History *history;
    bool continued;
};

static char *show_prompt(EditLine *edit)
{
    static char first[] = "> ", next[] = ". ";
    struct lines *lines = NULL;
    el_get(edit, EL_CLIENTDATA, &lines);
    return lines != NULL && lines->continued ? next : first;
}

/* One byte of standard input, as read() does, but a signal that came at any time before ends it.
 * Signals are let in only while it waits, so that none falls between the look at the flag and the
 * wait. */
static ssize_t read_byte(char *out)
{
    sigset_t stop, before;
    sigemptyset(&stop);
    sigaddset(&stop, SIGINT);
    sigaddset(&stop, SIGTERM);
    sigaddset(&stop, SIGHUP);
    sigprocmask(SIG_BLOCK, &stop, &before);
    ssize_t got = -1;
    while (!cli_interrupted()) {
        fd_set input;
        FD_ZERO(&input);
        FD_SET(STDIN_FILENO, &input);
        int ready = pselect(STDIN_FILENO + 1, &input, NULL, NULL, NULL, &before);
        if (ready < 0 && errno == EINTR)
            continue;
        got = ready < 0 ? -1 : read(STDIN_FILENO, out, 1);
        break;
    }
    sigprocmask(SIG_SETMASK, &before, NULL);
    return got;
}

/* libedit's own reader goes on after a signal; this one returns, so that Ctrl-C ends the line. */
static int read_character(EditLine *edit, wchar_t *out)
{
    (void)edit;
    char bytes[4];
    size_t n = 0;
    while (n < sizeof bytes) {
        ssize_t got = read_byte(bytes + n);
        if (got <= 0)
            return (int)got;
        uint32_t code_point;
        if (utf8_decode(bytes, ++n, &code_point) > 0) {
            *out = (wchar_t)code_point;
            return 1;
        }
        if (utf8_complete(bytes, n) > 0) { /* can never become a character */
            *out = 0xFFFD;
            return 1;
        }
    }
    *out = 0xFFFD;
    return 1;
}

enum status lines_open(struct lines **out, struct error *error)
{
    *out = NULL;
    struct lines *lines = calloc(1, sizeof *lines);
    if (lines == NULL)
        return error_memory(error, sizeof *lines);
    if (isatty(STDIN_FILENO)) {
        setlocale(LC_CTYPE, "");
        if (MB_CUR_MAX == 1)
            setlocale(LC_CTYPE, "C.UTF-8");
        lines->edit = el_init("consort", stdin, stderr, stderr);
        lines->history = history_init();
        if (lines->edit == NULL || lines->history == NULL) {
            lines_close(lines);
            return error_set(error, STATUS_IO, "this terminal cannot be used for line editing");
        }
        HistEvent event;
        history(lines->history, &event, H_SETSIZE, HISTORY_LINES);
        el_set(lines->edit, EL_CLIENTDATA, lines);
        el_set(lines->edit, EL_PROMPT, show_prompt);
        el_set(lines->edit, EL_EDITOR, "emacs");
        el_set(lines->edit, EL_HIST, history, lines->history);
        el_set(lines->edit, EL_GETCFN, read_character);
        el_source(lines->edit, NULL);
    }
    *out = lines;
    return STATUS_OK;
}

void lines_close(struct lines *lines)
{
    if (lines == NULL)
        return;
    if (lines->edit != NULL)
        el_end(lines->edit);
    if (lines->history != NULL)
        history_end(lines->history);
    free(lines);
}

bool lines_on_terminal(const struct lines *lines)
{
    return lines->edit != NULL;
}

static enum lines_result read_one(struct lines *lines, struct buffer *line)
{
    if (lines->edit != NULL) {
        int count = 0;
        el_set(lines->edit, EL_PREP_TERM, 1); /* before the prompt: what is typed then is a key */
        const char *typed = el_gets(lines->edit, &count);
        if (cli_interrupted()) {
            el_reset(lines->edit);
            return LINES_INTERRUPTED;
        }
        if (typed == NULL || count <= 0)
            return LINES_END;
        buffer_append(line, typed, strcspn(typed, "\r\n"));
        return LINES_READ;
    }
    int c;
    bool any = false;
    while ((c = getc(stdin)) != EOF && c != '\n') {
        char byte = (char)c;
        any = true;
        buffer_append(line, &byte, 1);
    }
    if (cli_interrupted())
        return LINES_INTERRUPTED;
    return c == EOF && !any ? LINES_END : LINES_READ;
}

enum lines_result lines_read(struct lines *lines, struct buffer *line)
{
    buffer_clear(line);
    enum lines_result result;
    lines->continued = false;
    while ((result = read_one(lines, line)) == LINES_READ && line->size > 0 &&
           line->data[line->size - 1] == '\\') {
        line->data[line->size - 1] = '\n';
        lines->continued = true;
    }
    if (result == LINES_END && lines->continued)
        result = LINES_READ;
    if (result == LINES_READ && lines->history != NULL && line->size > 0) {
        HistEvent event;
        history(lines->history, &event, H_ENTER, line->data);
    }
    return result;
}
