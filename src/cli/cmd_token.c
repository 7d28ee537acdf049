/* consort token: lets one more machine into the cluster. */
#include "cli/remote.h"
#include "cluster/cluster.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

#define DEFAULT_LIFETIME_S 3600
#define MAX_LIFETIME_S (7 * 86400)

static struct {
    int64_t expires_s;
    struct net_address addresses[CLUSTER_TOKEN_ADDRESSES];
    size_t n_addresses;
    bool json;
} args;

static bool take_address(const char *text, struct buffer *reason)
{
    const char *colon = strrchr(text, ':');
    if (args.n_addresses == CLUSTER_TOKEN_ADDRESSES)
        buffer_printf(reason, "at most %d addresses", CLUSTER_TOKEN_ADDRESSES);
    else if (colon == NULL || colon == text || colon[1] == '\0' ||
             strlen(text) >= NET_ADDRESS_BYTES)
        buffer_printf(reason, "'%s' is not HOST:PORT", text);
    else
        strcpy(args.addresses[args.n_addresses++].text, text);
    return reason->size == 0;
}

static bool take_expiry(const char *text, struct buffer *reason)
{
    int64_t now_s = (int64_t)time(NULL);
    if (!cli_parse_duration(text, now_s, &args.expires_s) ||
        args.expires_s - now_s > MAX_LIFETIME_S)
        buffer_printf(reason, "'%s' is not a time like 30m or 12h, at most 7d", text);
    return reason->size == 0;
}

/* Where the server of this user listens for other machines. */
static enum status find_port(unsigned *port, struct error *error)
{
    struct server_presence server;
    enum status status = cli_remote_find(&server, error);
    if (status != STATUS_OK)
        return status;
    *port = (unsigned)json_integer_value(json_object_get(server.facts, "cluster_port"));
    server_presence_free(&server);
    if (*port == 0)
        return error_set(error, STATUS_NOT_FOUND,
                         "the server that runs here listens for no other machines: start it again, "
                         "after consort init");
    return STATUS_OK;
}

/* Those of this machine that others can reach; wired ones first. */
static enum status find_addresses(unsigned port, struct error *error)
{
    struct net_interface *interfaces;
    size_t n;
    enum status status = net_interfaces(&interfaces, &n, error);
    if (status != STATUS_OK)
        return status;
    for (int wifi = 0; wifi < 2; wifi++)
        for (size_t i = 0; i < n; i++) {
            const struct net_interface *at = &interfaces[i];
            if (at->kind == NET_INTERFACE_LOOPBACK || (at->kind == NET_INTERFACE_WIFI) != wifi)
                continue;
            for (size_t k = 0; k < at->n_addresses && args.n_addresses < CLUSTER_TOKEN_ADDRESSES;
                 k++) {
                bool six = strchr(at->addresses[k], ':') != NULL;
                if (strchr(at->addresses[k], '%') ==
                    NULL) /* of one link: means nothing elsewhere */
                    snprintf(args.addresses[args.n_addresses++].text, NET_ADDRESS_BYTES,
                             six ? "[%.60s]:%u" : "%.60s:%u", at->addresses[k], port);
            }
        }
    free(interfaces);
    if (args.n_addresses == 0)
        return error_set(error, STATUS_NOT_FOUND,
                         "this machine has no address that others could reach: connect it to the "
                         "network, or name one with --address");
    return STATUS_OK;
}

static int print(const struct cluster_token *token, const char *text)
{
    json_t *addresses = json_array();
    for (size_t i = 0; i < token->n_addresses; i++)
        json_array_append_new(addresses, json_string(token->addresses[i].text));
    if (args.json)
        return cli_print_json(json_pack("{s:s, s:I, s:o}", "token", text, "expires",
                                        (json_int_t)token->expires, "addresses", addresses));
    json_decref(addresses);
    cli_printf("%s\n", text);
    cli_note("on the other machine, while consort up runs here:\n    consort join TOKEN\n"
             "It lets one machine in, once, and is valid for %lld minutes.",
             (long long)((token->expires - (uint64_t)time(NULL) + 30) / 60));
    return CLI_DONE;
}

static int run(const struct cli_command *command, char **operands, int n_operands)
{
    struct cluster_key key;
    struct cluster_token token;
    struct error error;
    char text[CLUSTER_TOKEN_TEXT_BYTES];
    unsigned port;
    (void)command, (void)operands, (void)n_operands;
    uint64_t now_s = (uint64_t)time(NULL);
    uint64_t lifetime_s =
        args.expires_s > 0 ? (uint64_t)args.expires_s - now_s : DEFAULT_LIFETIME_S;
    enum status status = cluster_key_load(&key, &error);
    if (status == STATUS_NOT_FOUND)
        error_set(&error, status, "this machine is in no cluster: begin one with consort init");
    if (status == STATUS_OK && args.n_addresses == 0) {
        status = find_port(&port, &error);
        if (status == STATUS_OK)
            status = find_addresses(port, &error);
    }
    if (status == STATUS_OK)
        status = cluster_token_issue(&token, args.addresses, args.n_addresses, now_s, lifetime_s,
                                     &error);
    if (status == STATUS_OK)
        status = cluster_token_write(&token, text, &error);
    return status == STATUS_OK ? print(&token, text) : cli_fail(&error);
}

static const struct cli_option options[] = {
    {.name = "address",
     .metavar = "HOST:PORT",
     .help = "where the new machine finds this one, as often as wanted (default: this machine's "
             "addresses, and the port of the server that runs here)",
     .type = CLI_CALL,
     .parse = take_address},
    {.name = "expires",
     .metavar = "TIME",
     .help = "how long the token is valid, as 30m or 12h (default: 1h; at most 7d)",
     .type = CLI_CALL,
     .parse = take_expiry},
    {.name = "json", .help = "print a JSON object", .type = CLI_FLAG, .value = &args.json},
};
static const struct cli_group group = CLI_GROUP("options", options);

const struct cli_command cli_token = {
    .name = "token",
    .operands = "",
    .summary = "Prints a token with which one more machine may join the cluster.",
    .groups = {&group, &cli_remote_group},
    .run = run,
};
