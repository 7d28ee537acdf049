/* Joining: one link with the token's secret, over which the cluster's key comes.
 *
 *     joining node                     node that issued the token
 *     TLS with the token's secret, HELLO for joining, both ways
 *                                <---  frame 1: the key, as in its file
 *                                      frame 2: why not, a sentence */
#include "cluster/key_internal.h"

#include <stdlib.h>
#include <string.h>

enum {
    FRAME_KEY = 1,
    FRAME_REFUSED = 2,
    ANSWER_BYTES = 4096,
    MAX_FOUND = 8,
};

static const uint64_t ns_per_ms = 1000000;
static const uint64_t answer_ms = 10000;

/* ---- The node that joins --------------------------------------------------------------------- */

static enum status receive_key(struct net_wire *wire, struct cluster_key *key, struct error *error)
{
    struct buffer answer = {0};
    uint8_t type = 0;
    enum status status = net_wire_receive_frame(wire, ANSWER_BYTES, &type, &answer,
                                                clock_now_ns() + answer_ms * ns_per_ms, error);
    if (status == STATUS_OK && type == FRAME_KEY)
        status = cluster_key_read(key, (struct view){answer.data, answer.size}, error);
    else if (status == STATUS_OK)
        status = error_set(
            error, STATUS_INVALID, "%s did not let this machine in: %.*s", net_wire_peer(wire),
            utf8_valid(answer.data, answer.size) ? (int)answer.size : 0, answer.data);
    secret_wipe_buffer(&answer);
    return status;
}

/* *answered is set once a node was reached that knows the token: another address is no help. */
static enum status join_at(const char *address, const struct net_link_key *link_key,
                           const struct net_hello *hello, struct cluster_key *key, bool *answered,
                           struct error *error)
{
    struct net_wire_options options = {.hello = *hello};
    struct net_wire *wire = NULL;
    enum net_link_fault fault = NET_LINK_LOCAL;
    options.hello.purpose = NET_JOIN;
    options.hello.trusted = false;
    enum status status = net_wire_connect(&wire, address, link_key, &options, NULL, &fault, error);
    if (status == STATUS_OK) {
        *answered = true;
        status = receive_key(wire, key, error);
    } else if (status == STATUS_LOST && fault == NET_LINK_KEY) {
        *answered = true;
        status = error_set(error, STATUS_INVALID,
                           "%s does not know this token: it was used, has expired, or is of "
                           "another machine; make a new one with consort token",
                           address);
    }
    net_wire_close(wire);
    return status;
}

enum status cluster_join(const struct cluster_token *token, const struct net_hello *hello,
                         uint64_t now, struct cluster_key *key, struct error *error)
{
    struct net_link_key link_key;
    bool answered = false;
    if (token->expires <= now)
        return error_set(error, STATUS_INVALID,
                         "the token has expired, or the clock of this machine is wrong; make a new "
                         "one with consort token");
    enum status status = cluster_token_link(token, &link_key, error);
    if (status == STATUS_OK && token->n_addresses == 0)
        status = error_set(error, STATUS_INVALID, "the token names no address to join at");
    for (size_t i = 0; i < token->n_addresses && !answered && !(i > 0 && status == STATUS_OK);
         i++) {
        struct net_address found[MAX_FOUND];
        size_t n = 0;
        status = net_resolve(token->addresses[i].text, found, MAX_FOUND, &n, error);
        for (size_t k = 0; k < n && !answered; k++)
            status = join_at(found[k].text, &link_key, hello, key, &answered, error);
    }
    secret_wipe(&link_key, sizeof link_key);
    return status;
}

/* ---- The node that made the token ------------------------------------------------------------ */

enum status cluster_join_answer(struct net_link *link, const struct cluster_key *key, uint64_t now,
                                struct error *error)
{
    struct buffer text = {0};
    struct error why = {0};
    enum status status = cluster_token_claim(view_of(net_link_identity(link)), now, &why);
    if (status == STATUS_OK)
        status = cluster_key_write(key, &text, &why);
    if (status == STATUS_OK)
        net_link_send(link, FRAME_KEY, (struct view){text.data, text.size});
    else
        net_link_send(link, FRAME_REFUSED, view_of(why.text));
    secret_wipe_buffer(&text);
    return status == STATUS_OK ? STATUS_OK : error_set(error, status, "%s", why.text);
}
