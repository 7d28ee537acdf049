/* Asking a running server, for the commands that operate one. */
#ifndef CONSORT_CLI_REMOTE_H
#define CONSORT_CLI_REMOTE_H

#include "cli/cli.h"
#include "server/server.h"

#include <jansson.h>

extern const struct cli_group cli_remote_group; /* --server --api-key */

/* The server that the options name, or the only one of this user on this machine; an error lists
 * them where there are more. token is NULL where it is another's. */
enum status cli_remote_find(struct server_presence *out, struct error *error);

/* Asks it; body NULL: GET, else POST. *reply is what it answers, to be released; a refusal becomes
 * an error. */
enum status cli_remote_ask(const struct server_presence *server, const char *path,
                           const json_t *body, json_t **reply, struct error *error);

/* A member of a reply: "" or 0 where there is none of that type. */
const char *cli_json_text(const json_t *object, const char *key);
double cli_json_number(const json_t *object, const char *key);

#endif
