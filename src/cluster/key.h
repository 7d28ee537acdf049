/* key: the secret that the nodes of a cluster share, and what is made of it: keys of links, signed
 * beacons, and tokens by which one more node joins.
 *
 * All functions but those that name files are pure, take the time as an argument, and may be called
 * from any thread. Those with files take a lock of the file they change. Secrets are never logged.
 *
 *     secret --HKDF-SHA256, salt: the key's id--+--> "consort link 1": key of links
 *                                               +--> "consort beacon 1": key of beacons
 *
 * A cluster has one key; while it is changed, nodes accept the old one as well, so what reads and
 * finds takes a list of keys. */
#ifndef CONSORT_CLUSTER_KEY_H
#define CONSORT_CLUSTER_KEY_H

#include "cluster/core.h"
#include "net/net.h"

enum {
    CLUSTER_ID_BYTES = 16, /* of a key's id, as bytes */
    CLUSTER_TOKEN_ADDRESSES = 4,
    CLUSTER_TOKEN_SECRET_BYTES = 16,
    CLUSTER_TOKEN_TEXT_BYTES = 768, /* with its zero */
    CLUSTER_BEACON_BYTES = 192,     /* at most */
};

/* ---- The key ---- */

/* A new key: an id of 32 and a secret of 64 random hexadecimal digits. The id is no secret. */
enum status cluster_key_make(struct cluster_key *out, struct error *error);

/* As one JSON object: {"id": HEX, "secret": HEX}; for the file and for a node that joins. write
 * appends to out. */
enum status cluster_key_write(const struct cluster_key *key, struct buffer *out,
                              struct error *error);
enum status cluster_key_read(struct cluster_key *out, struct view text, struct error *error);

/* HOME/cluster/key.json, which only its owner may read. STATUS_NOT_FOUND where there is none;
 * STATUS_INVALID where others may read it or it is damaged. */
enum status cluster_key_load(struct cluster_key *out, struct error *error);
enum status cluster_key_save(const struct cluster_key *key, struct error *error);
enum status cluster_key_remove(struct error *error); /* where there is none, too */

/* Of links: "consort-link/1:ID" and its secret. */
enum status cluster_key_link(const struct cluster_key *key, struct net_link_key *out,
                             struct error *error);
/* For find_key of a link server: the secret of the key that identity names. */
bool cluster_key_find(const struct cluster_key *keys, size_t n_keys, struct view identity,
                      uint8_t secret[NET_SECRET_BYTES]);
/* The id in an identity of cluster_key_link, or false. */
bool cluster_key_id(const char *identity, char out[CLUSTER_KEY_ID_BYTES]);

/* ---- Beacons: what a node tells everyone on its network ---- */

struct cluster_beacon {
    char key_id[CLUSTER_KEY_ID_BYTES]; /* of the key that signs it */
    struct cluster_id node;
    uint64_t incarnation;
    uint64_t time_ms; /* Unix time */
    uint16_t port;    /* of its link server; the address is the sender's */
    char name[CLUSTER_NAME_BYTES];
};

/* What signs and checks beacons, made of a key once. */
struct cluster_beacon_key {
    char key_id[CLUSTER_KEY_ID_BYTES];
    uint8_t secret[32];
};

enum cluster_beacon_verdict {
    CLUSTER_BEACON_GOOD,
    CLUSTER_BEACON_GARBAGE,       /* nothing of ours; *out is not set */
    CLUSTER_BEACON_OTHER_VERSION, /* of the packet; *out is not set, *version is */
    CLUSTER_BEACON_OTHER_KEY,     /* as the next one, *out is set but not to be believed */
    CLUSTER_BEACON_FORGED,        /* it names our key, but is signed with another one */
    CLUSTER_BEACON_OLD,           /* signed with our key, but more than CLUSTER_BEACON_SKEW_MS away
                                   * from our clock: sent again by someone, or a clock is wrong */
};

enum { CLUSTER_BEACON_SKEW_MS = 10 * 60 * 1000 };

enum status cluster_beacon_key(const struct cluster_key *key, struct cluster_beacon_key *out,
                               struct error *error);
/* Returns the size of the packet, 0 where beacon.name is no text to show or the key's id is none of
 * cluster_key_make. beacon.key_id is not looked at. */
size_t cluster_beacon_write(const struct cluster_beacon *beacon,
                            const struct cluster_beacon_key *key,
                            uint8_t out[CLUSTER_BEACON_BYTES]);
/* Names are UTF-8 without control characters. *version is set but for garbage. */
enum cluster_beacon_verdict cluster_beacon_read(struct cluster_beacon *out, struct view packet,
                                                const struct cluster_beacon_key *keys,
                                                size_t n_keys, uint64_t now_ms, unsigned *version);

/* ---- Tokens: a node joins with one ---- */

/* As text "consort-1-" and base32. It carries a secret of its own, not the cluster's: the node that
 * made it gives the cluster's key to the first that proves to know the secret before it expires. */
struct cluster_token {
    uint8_t secret[CLUSTER_TOKEN_SECRET_BYTES];
    uint64_t expires; /* Unix time in seconds; up to 2^32 - 1 */
    size_t n_addresses;
    struct net_address addresses[CLUSTER_TOKEN_ADDRESSES]; /* numeric or host names, with port */
};

enum status cluster_token_write(const struct cluster_token *token,
                                char out[CLUSTER_TOKEN_TEXT_BYTES], struct error *error);
/* Spaces, capitals and the letters o, i and l for 0 and 1 do not matter. Tells apart what is no
 * token, a newer kind, and one that was cut off or mistyped. */
enum status cluster_token_read(struct cluster_token *out, struct view text, struct error *error);
/* "consort-join/1:NUMBER", and the secret of the link, both from the token's secret. */
enum status cluster_token_link(const struct cluster_token *token, struct net_link_key *out,
                               struct error *error);

/* Makes a token for these addresses and remembers it in HOME/cluster/tokens.json: what its link
 * needs, and when it expires, but not the token. */
enum status cluster_token_issue(struct cluster_token *out, const struct net_address *addresses,
                                size_t n_addresses, uint64_t now, uint64_t lifetime_s,
                                struct error *error);
/* The secret of the link that identity names, where the token was issued here, was not used, and
 * has not expired. */
bool cluster_token_find(struct view identity, uint64_t now, uint8_t secret[NET_SECRET_BYTES]);
/* Uses the token up. STATUS_NOT_FOUND where cluster_token_find would not find it: of several at
 * once only one is let in. */
enum status cluster_token_claim(struct view identity, uint64_t now, struct error *error);

/* ---- Joining ---- */

/* The node that joins: connects with the token, and gets the key. Takes seconds; any thread but the
 * loop's. *key is the cluster's; it is not saved. */
enum status cluster_join(const struct cluster_token *token, const struct net_hello *hello,
                         uint64_t now, struct cluster_key *key, struct error *error);
/* The node that made the token, from `up` of a link for NET_JOIN: claims the token and sends the
 * key, or why not. The caller closes the link when it goes down. */
enum status cluster_join_answer(struct net_link *link, const struct cluster_key *key, uint64_t now,
                                struct error *error);

#endif
