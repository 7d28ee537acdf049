/* consort stop: lets a running server close a model. */
#include "cli/remote.h"

#include <string.h>

static int run(const struct cli_command *command, char **operands, int n_operands)
{
    struct server_presence server;
    struct error error;
    json_t *reply, *body = json_pack("{s:s}", "model", operands[0]);
    int code = CLI_DONE;
    (void)command, (void)n_operands;
    if (body == NULL) {
        error_set(&error, STATUS_INVALID, "the name of a model is valid UTF-8");
        return cli_fail(&error);
    }
    enum status status = cli_remote_find(&server, &error);
    if (status == STATUS_OK) {
        status = cli_remote_ask(&server, "/consort/stop", body, &reply, &error);
        server_presence_free(&server);
    }
    json_decref(body);
    if (status != STATUS_OK)
        return cli_fail(&error);
    const char *state = json_string_value(json_object_get(reply, "state"));
    if (state != NULL && strcmp(state, "stopping") == 0)
        cli_note("%s is closed when its requests have ended", operands[0]);
    else
        cli_note("%s is %s", operands[0], state != NULL ? state : "closed");
    json_decref(reply);
    return code;
}

const struct cli_command cli_stop = {
    .name = "stop",
    .operands = "MODEL",
    .summary = "Closes a model of a running server, when its requests have ended.",
    .groups = {&cli_remote_group},
    .min_operands = 1,
    .max_operands = 1,
    .run = run,
};
