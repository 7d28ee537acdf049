/* Keys, beacons, tokens, and joining over a link. */
#include "cluster/key_internal.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

enum { NOW = 1800000000, GUARD_MS = 60000 };

static const uint64_t now_ms = (uint64_t)NOW * 1000;

/* A home folder of this test's own. */
static char home[] = "/tmp/consort-key-XXXXXX";

static int open_home(void **state)
{
    (void)state;
    return mkdtemp(home) != NULL && setenv("CONSORT_HOME", home, 1) == 0 ? 0 : -1;
}

static void home_path(char out[256], const char *name)
{
    snprintf(out, 256, "%s/cluster/%s", home, name);
}

static int close_home(void **state)
{
    static const char *const names[] = {"key.json", "tokens.json", "tokens.lock", ""};
    char path[256];
    (void)state;
    for (size_t i = 0; i < ARRAY_COUNT(names); i++) {
        home_path(path, names[i]);
        if (names[i][0] != '\0')
            unlink(path);
        else
            rmdir(path);
    }
    return rmdir(home);
}

static struct cluster_key make_key(void)
{
    struct cluster_key key;
    assert_int_equal(cluster_key_make(&key, NULL), STATUS_OK);
    return key;
}

/* ---- Derivation ---- */

/* RFC 5869, test cases 1 and 3, the first 32 bytes. */
static void test_hkdf(void **state)
{
    (void)state;
    static const uint8_t salt[] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12};
    static const char info[] = "\xf0\xf1\xf2\xf3\xf4\xf5\xf6\xf7\xf8\xf9";
    uint8_t secret[22], out[32];
    char digits[65];
    memset(secret, 0x0b, sizeof secret);
    assert_int_equal(secret_derive((struct view){(const char *)salt, sizeof salt}, secret,
                                   sizeof secret, info, out, NULL),
                     STATUS_OK);
    secret_hex(out, 32, digits);
    assert_string_equal(digits, "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf");
    assert_int_equal(secret_derive((struct view){"", 0}, secret, sizeof secret, "", out, NULL),
                     STATUS_OK);
    secret_hex(out, 32, digits);
    assert_string_equal(digits, "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d");
}

static void test_hex(void **state)
{
    (void)state;
    static const char *const wrong[] = {NULL, "", "0", "00f", "00fg", "00F0", "00f00"};
    uint8_t out[2];
    char text[5];
    assert_true(secret_unhex("0af9", out, 2));
    secret_hex(out, 2, text);
    assert_string_equal(text, "0af9");
    for (size_t i = 0; i < ARRAY_COUNT(wrong); i++)
        assert_false(secret_unhex(wrong[i], out, 2));
}

static void test_key_derived(void **state)
{
    (void)state;
    struct cluster_key keys[2] = {make_key(), make_key()}, unknown = make_key();
    struct net_link_key link, again, other;
    struct cluster_beacon_key beacon;
    uint8_t secret[NET_SECRET_BYTES];
    char id[CLUSTER_KEY_ID_BYTES];
    assert_int_equal(strlen(keys[0].id), 32);
    assert_int_equal(strlen(keys[0].secret), 64);
    assert_int_equal(cluster_key_link(&keys[0], &link, NULL), STATUS_OK);
    assert_int_equal(cluster_key_link(&keys[0], &again, NULL), STATUS_OK);
    assert_memory_equal(&link, &again, sizeof link);
    assert_int_equal(strncmp(link.identity, "consort-link/1:", 15), 0);
    assert_string_equal(link.identity + 15, keys[0].id);
    assert_int_equal(cluster_beacon_key(&keys[0], &beacon, NULL), STATUS_OK);
    assert_memory_not_equal(link.secret, beacon.secret, 32);
    /* One of several keys is found by its name. */
    assert_int_equal(cluster_key_link(&keys[1], &other, NULL), STATUS_OK);
    assert_memory_not_equal(link.secret, other.secret, 32);
    assert_true(cluster_key_find(keys, 2, view_of(other.identity), secret));
    assert_memory_equal(secret, other.secret, sizeof secret);
    assert_false(cluster_key_find(keys, 1, view_of(other.identity), secret));
    assert_int_equal(cluster_key_link(&unknown, &other, NULL), STATUS_OK);
    assert_false(cluster_key_find(keys, 2, view_of(other.identity), secret));
    assert_false(cluster_key_find(keys, 2, view_of(""), secret));
    assert_true(cluster_key_id(link.identity, id));
    assert_string_equal(id, keys[0].id);
    assert_false(cluster_key_id("consort-join/1:00112233445566778899aabbccddeeff", id));
    assert_false(cluster_key_id("consort-link/1:00", id));
}

/* ---- The file ---- */

static void test_key_file(void **state)
{
    (void)state;
    struct cluster_key key = make_key(), loaded;
    struct error error;
    struct stat facts;
    char path[256];
    home_path(path, "key.json");
    assert_int_equal(cluster_key_load(&loaded, &error), STATUS_NOT_FOUND);
    assert_non_null(strstr(error.text, "consort init"));
    assert_int_equal(cluster_key_save(&key, &error), STATUS_OK);
    assert_int_equal(stat(path, &facts), 0);
    assert_int_equal(facts.st_mode & 0777, 0600);
    assert_int_equal(cluster_key_load(&loaded, &error), STATUS_OK);
    assert_memory_equal(&loaded, &key, sizeof key);

    assert_int_equal(chmod(path, 0640), 0);
    assert_int_equal(cluster_key_load(&loaded, &error), STATUS_INVALID);
    assert_non_null(strstr(error.text, "chmod"));
    assert_int_equal(chmod(path, 0600), 0);
    assert_int_equal(truncate(path, 20), 0);
    assert_int_equal(cluster_key_load(&loaded, &error), STATUS_INVALID);
    assert_non_null(strstr(error.text, "damaged"));

    assert_int_equal(cluster_key_save(&key, &error), STATUS_OK);
    assert_int_equal(cluster_key_load(&loaded, &error), STATUS_OK);
    assert_int_equal(cluster_key_remove(&error), STATUS_OK);
    assert_int_equal(cluster_key_remove(&error), STATUS_OK);
    assert_int_equal(cluster_key_load(&loaded, &error), STATUS_NOT_FOUND);
}

static void test_key_text(void **state)
{
    (void)state;
    static const char id[] = "00112233445566778899aabbccddeeff";
    static const char secret[] = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";
    static const char *const good = "{\"id\":\"%s\",\"secret\":\"%s\"}";
    static const char *const wrong[] = {
        "{\"id\":\"%s0\",\"secret\":\"%s\"}",
        "{\"id\":\"%s\",\"secret\":\"0%s\"}",
        "{\"id\":\"%s\",\"secret\":\"%.63s\"}",
        "{\"id\":\"%s\",\"secret\":\"%.62sAB\"}",
        "{\"id\":\"%s\"}",
        "[\"%s\",\"%s\"]",
        "",
    };
    struct cluster_key key;
    char text[256];
    snprintf(text, sizeof text, good, id, secret);
    assert_int_equal(cluster_key_read(&key, view_of(text), NULL), STATUS_OK);
    assert_string_equal(key.id, id);
    assert_string_equal(key.secret, secret);
    for (size_t i = 0; i < ARRAY_COUNT(wrong); i++) {
        snprintf(text, sizeof text, wrong[i], id, secret);
        assert_int_equal(cluster_key_read(&key, view_of(text), NULL), STATUS_INVALID);
    }
}

/* ---- Beacons ---- */

static struct cluster_beacon make_beacon(const struct cluster_key *key)
{
    struct cluster_beacon beacon = {.node = {9, 8},
                                    .incarnation = 0x0102030405060708u,
                                    .time_ms = now_ms,
                                    .port = 4001,
                                    .name = "studio-\xc3\xbc"};
    memcpy(beacon.key_id, key->id, sizeof beacon.key_id);
    return beacon;
}

static struct cluster_beacon_key beacon_key(const struct cluster_key *key)
{
    struct cluster_beacon_key made;
    assert_int_equal(cluster_beacon_key(key, &made, NULL), STATUS_OK);
    return made;
}

static void test_beacon(void **state)
{
    (void)state;
    const uint64_t skew = CLUSTER_BEACON_SKEW_MS;
    struct cluster_key key = make_key(), other = make_key();
    struct cluster_beacon_key keys[2] = {beacon_key(&other), beacon_key(&key)};
    struct cluster_beacon beacon = make_beacon(&key), got;
    uint8_t packet[CLUSTER_BEACON_BYTES];
    unsigned version = 0;
    size_t size = cluster_beacon_write(&beacon, &keys[1], packet);
    struct view view = {(const char *)packet, size};
    assert_true(size > 0);
    assert_int_equal(cluster_beacon_read(&got, view, keys, 2, now_ms, &version),
                     CLUSTER_BEACON_GOOD);
    assert_int_equal(version, 1);
    assert_memory_equal(&got, &beacon, sizeof got);
    /* Other keys. */
    assert_int_equal(cluster_beacon_read(&got, view, keys, 1, now_ms, &version),
                     CLUSTER_BEACON_OTHER_KEY);
    assert_string_equal(got.name, beacon.name);
    memcpy(keys[0].key_id, key.id, sizeof keys[0].key_id);
    assert_int_equal(cluster_beacon_read(&got, view, keys, 1, now_ms, &version),
                     CLUSTER_BEACON_FORGED);
    /* Other times. */
    assert_int_equal(cluster_beacon_read(&got, view, keys + 1, 1, now_ms + skew, &version),
                     CLUSTER_BEACON_GOOD);
    assert_int_equal(cluster_beacon_read(&got, view, keys + 1, 1, now_ms + skew + 1, &version),
                     CLUSTER_BEACON_OLD);
    assert_int_equal(cluster_beacon_read(&got, view, keys + 1, 1, now_ms - skew - 1, &version),
                     CLUSTER_BEACON_OLD);
    packet[4] = 2;
    assert_int_equal(cluster_beacon_read(&got, view, keys + 1, 1, now_ms, &version),
                     CLUSTER_BEACON_OTHER_VERSION);
    assert_int_equal(version, 2);
}

/* No byte may be changed, cut off or added. */
static void test_beacon_changed(void **state)
{
    (void)state;
    struct cluster_key key = make_key();
    struct cluster_beacon_key signer = beacon_key(&key);
    struct cluster_beacon beacon = make_beacon(&key), got;
    uint8_t packet[CLUSTER_BEACON_BYTES];
    unsigned version = 0;
    size_t size = cluster_beacon_write(&beacon, &signer, packet);
    for (size_t i = 0; i < size; i++) {
        struct view whole = {(char *)packet, size}, cut = {(char *)packet, i};
        packet[i] ^= 0x41;
        assert_int_not_equal(cluster_beacon_read(&got, whole, &signer, 1, now_ms, &version),
                             CLUSTER_BEACON_GOOD);
        packet[i] ^= 0x41;
        assert_int_equal(cluster_beacon_read(&got, cut, &signer, 1, now_ms, &version),
                         CLUSTER_BEACON_GARBAGE);
    }
    packet[size] = 0;
    assert_int_equal(cluster_beacon_read(&got, (struct view){(char *)packet, size + 1}, &signer, 1,
                                         now_ms, &version),
                     CLUSTER_BEACON_GARBAGE);
}

static void test_beacon_names(void **state)
{
    (void)state;
    static const char *const wrong[] = {"", "a\nb", "\x7f", "\xc2\x85", "\xff", "\xc3"};
    struct cluster_key key = make_key();
    struct cluster_beacon_key signer = beacon_key(&key);
    struct cluster_beacon beacon = make_beacon(&key), got;
    uint8_t packet[CLUSTER_BEACON_BYTES];
    unsigned version;
    for (size_t i = 0; i < ARRAY_COUNT(wrong); i++) {
        snprintf(beacon.name, sizeof beacon.name, "%s", wrong[i]);
        assert_int_equal(cluster_beacon_write(&beacon, &signer, packet), 0);
    }
    memset(beacon.name, 'x', sizeof beacon.name);
    assert_int_equal(cluster_beacon_write(&beacon, &signer, packet), 0);
    beacon.name[CLUSTER_NAME_BYTES - 1] = '\0';
    size_t size = cluster_beacon_write(&beacon, &signer, packet);
    assert_in_range(size, 1, CLUSTER_BEACON_BYTES);
    assert_int_equal(cluster_beacon_read(&got, (struct view){(char *)packet, size}, &signer, 1,
                                         now_ms, &version),
                     CLUSTER_BEACON_GOOD);
    assert_string_equal(got.name, beacon.name);
    signer.key_id[3] = 'x';
    assert_int_equal(cluster_beacon_write(&beacon, &signer, packet), 0);
}

/* ---- Tokens ---- */

static void test_token_text(void **state)
{
    (void)state;
    struct cluster_token token = {.secret = {1, 2, 3, 255},
                                  .expires = NOW + 600,
                                  .n_addresses = 4,
                                  .addresses = {{"10.0.0.7:4001"},
                                                {"[fd00::7]:65535"},
                                                {"mac-studio.local:1"},
                                                {"[fe80::1%eth0]:4001"}}};
    struct cluster_token got;
    char text[CLUSTER_TOKEN_TEXT_BYTES], loose[2 * CLUSTER_TOKEN_TEXT_BYTES];
    struct error error;
    assert_int_equal(cluster_token_write(&token, text, &error), STATUS_OK);
    assert_int_equal(cluster_token_read(&got, view_of(text), &error), STATUS_OK);
    assert_memory_equal(&got, &token, sizeof got);
    /* As people write it. */
    size_t n = 0;
    loose[n++] = '\n';
    for (size_t i = 0; text[i] != '\0'; i++) {
        bool letters = i >= 10;
        char letter = text[i];
        loose[n++] = (char)(letter >= 'a' && letter <= 'z' ? letter - 32 : letter);
        if (letters && letter == '0')
            loose[n - 1] = 'O';
        if (letters && letter == '1')
            loose[n - 1] = 'l';
        if (letters && i % 6 == 0)
            loose[n++] = i % 4 == 0 ? ' ' : '-';
    }
    loose[n++] = '\n';
    assert_int_equal(cluster_token_read(&got, (struct view){loose, n}, &error), STATUS_OK);
    assert_memory_equal(&got, &token, sizeof got);
    /* One address of IPv4 makes a short one. */
    token.n_addresses = 1;
    assert_int_equal(cluster_token_write(&token, text, &error), STATUS_OK);
    assert_int_equal(strlen(text), 10 + 52);
    assert_int_equal(strncmp(text, "consort-1-", 10), 0);
}

static void test_token_longest(void **state)
{
    (void)state;
    struct cluster_token token = {.expires = UINT32_MAX, .n_addresses = 4}, got;
    char text[CLUSTER_TOKEN_TEXT_BYTES];
    for (size_t i = 0; i < 4; i++) {
        memset(token.addresses[i].text, 'x', NET_ADDRESS_BYTES - 1);
        memcpy(token.addresses[i].text + NET_ADDRESS_BYTES - 7, ":65535", 6);
    }
    assert_int_equal(cluster_token_write(&token, text, NULL), STATUS_OK);
    assert_int_equal(cluster_token_read(&got, view_of(text), NULL), STATUS_OK);
    assert_memory_equal(&got, &token, sizeof got);
}

static void test_token_wrong(void **state)
{
    (void)state;
    struct cluster_token token = {.expires = NOW, .n_addresses = 1, .addresses = {{"1.2.3.4:5"}}};
    struct cluster_token got;
    char text[CLUSTER_TOKEN_TEXT_BYTES];
    struct error error;
    assert_int_equal(cluster_token_write(&token, text, &error), STATUS_OK);
    size_t size = strlen(text);
    for (size_t i = 10; i < size; i++) {
        char letter = text[i];
        text[i] = letter == 'x' ? 'y' : 'x';
        assert_int_equal(cluster_token_read(&got, view_of(text), &error), STATUS_INVALID);
        text[i] = letter;
        assert_int_equal(cluster_token_read(&got, (struct view){text, i}, &error), STATUS_INVALID);
    }
    static const char *const none[] = {"",        "consort",    "consort-",    "consort-x",
                                       "sk-1234", "consort-1-", "consort-1-u", "consort-1-abc!"};
    for (size_t i = 0; i < ARRAY_COUNT(none); i++)
        assert_int_equal(cluster_token_read(&got, view_of(none[i]), &error), STATUS_INVALID);
    assert_int_equal(cluster_token_read(&got, view_of("consort-2-abc"), &error),
                     STATUS_UNSUPPORTED);
    static const char *const addresses[] = {"", "x", "x:", ":1", "x:0", "x:65536", "x y:1", "x:1a"};
    for (size_t i = 0; i < ARRAY_COUNT(addresses); i++) {
        snprintf(token.addresses[0].text, NET_ADDRESS_BYTES, "%s", addresses[i]);
        assert_int_equal(cluster_token_write(&token, text, &error), STATUS_INVALID);
    }
}

static void test_token_once(void **state)
{
    (void)state;
    struct net_address address = {"127.0.0.1:4001"};
    struct cluster_token first, second;
    struct net_link_key link, other;
    uint8_t secret[NET_SECRET_BYTES];
    struct error error;
    char path[256];
    struct buffer file = {0};
    assert_int_equal(cluster_token_issue(&first, &address, 1, NOW, 600, &error), STATUS_OK);
    assert_int_equal(cluster_token_issue(&second, &address, 1, NOW, 10, &error), STATUS_OK);
    assert_int_equal(cluster_token_link(&first, &link, &error), STATUS_OK);
    assert_int_equal(cluster_token_link(&second, &other, &error), STATUS_OK);
    struct view identity = view_of(link.identity);
    assert_true(cluster_token_find(identity, NOW, secret));
    assert_memory_equal(secret, link.secret, sizeof secret);
    assert_true(cluster_token_find(view_of(other.identity), NOW + 9, secret));
    /* Expiry. */
    assert_false(cluster_token_find(view_of(other.identity), NOW + 10, secret));
    assert_int_equal(cluster_token_claim(view_of(other.identity), NOW + 10, &error),
                     STATUS_NOT_FOUND);
    assert_false(cluster_token_find(identity, NOW + 600, secret));
    /* The file does not hold the token. */
    char digits[2 * CLUSTER_TOKEN_SECRET_BYTES + 1];
    secret_hex(first.secret, sizeof first.secret, digits);
    home_path(path, "tokens.json");
    assert_int_equal(secret_read(path, &file, &error), STATUS_OK);
    assert_null(strstr(file.data, digits));
    buffer_free(&file);
    /* Once. */
    assert_int_equal(cluster_token_claim(identity, NOW + 1, &error), STATUS_OK);
    assert_int_equal(cluster_token_claim(identity, NOW + 1, &error), STATUS_NOT_FOUND);
    assert_false(cluster_token_find(identity, NOW + 1, secret));
    static const char *const strange[] = {"", "consort-join/1:", "consort-join/1:xyz", "a"};
    for (size_t i = 0; i < ARRAY_COUNT(strange); i++)
        assert_false(cluster_token_find(view_of(strange[i]), NOW, secret));
    assert_int_equal(cluster_token_issue(&first, &address, 1, NOW, UINT64_MAX, &error),
                     STATUS_LIMIT);
}

/* ---- Joining ---- */

struct issuer {
    struct net_loop *loop;
    struct net_link_server *server;
    struct cluster_key key;
    char address[NET_ADDRESS_BYTES];
    int answered, refused;
    const struct net_link_key *known; /* lets in without looking */
};

static void answer(void *context, struct net_link *link, const struct net_hello *hello)
{
    struct issuer *issuer = context;
    assert_int_equal(hello->purpose, NET_JOIN);
    if (cluster_join_answer(link, &issuer->key, NOW, NULL) == STATUS_OK)
        issuer->answered++;
    else
        issuer->refused++;
}

static void no_message(void *context, struct net_link *link, uint8_t type, struct view message)
{
    (void)context, (void)link, (void)type, (void)message;
}

static void no_down(void *context, struct net_link *link, enum net_link_fault fault,
                    const char *text)
{
    (void)context, (void)link, (void)fault, (void)text;
}

static bool find_token(void *context, struct view identity, uint8_t secret[NET_SECRET_BYTES])
{
    struct issuer *issuer = context;
    if (issuer->known == NULL)
        return cluster_token_find(identity, NOW, secret);
    memcpy(secret, issuer->known->secret, NET_SECRET_BYTES);
    return true;
}

static void *run_loop(void *context)
{
    net_loop_run(context);
    return NULL;
}

static void open_issuer(struct issuer *issuer)
{
    static const struct net_link_events events = {answer, no_message, no_down, NULL};
    struct net_link_server_options options = {.link = {.events = &events, .context = issuer},
                                              .find_key = find_token};
    *issuer = (struct issuer){.key = make_key()};
    assert_int_equal(net_loop_open(&issuer->loop, NULL), STATUS_OK);
    assert_int_equal(
        net_link_server_open(&issuer->server, issuer->loop, "127.0.0.1:0", &options, NULL),
        STATUS_OK);
    snprintf(issuer->address, sizeof issuer->address, "127.0.0.1:%u",
             net_link_server_port(issuer->server));
}

static void test_join(void **state)
{
    (void)state;
    struct issuer issuer;
    struct cluster_token token;
    struct cluster_key key = {0};
    struct net_hello hello = {.node = {1}};
    struct error error;
    pthread_t thread;
    open_issuer(&issuer);
    /* The first address is one where nobody is. */
    struct net_address addresses[2] = {{"127.0.0.1:1"}};
    memcpy(addresses[1].text, issuer.address, NET_ADDRESS_BYTES);
    assert_int_equal(cluster_token_issue(&token, addresses, 2, NOW, 600, &error), STATUS_OK);
    assert_int_equal(pthread_create(&thread, NULL, run_loop, issuer.loop), 0);
    assert_int_equal(cluster_join(&token, &hello, NOW + 600, &key, &error), STATUS_INVALID);
    assert_non_null(strstr(error.text, "expired"));
    if (cluster_join(&token, &hello, NOW, &key, &error) != STATUS_OK)
        fail_msg("%s", error.text);
    assert_memory_equal(&key, &issuer.key, sizeof key);
    assert_int_equal(cluster_join(&token, &hello, NOW, &key, &error), STATUS_INVALID);
    assert_non_null(strstr(error.text, "does not know this token"));
    token.n_addresses = 1;
    assert_int_equal(cluster_join(&token, &hello, NOW, &key, &error), STATUS_LOST);
    assert_non_null(strstr(error.text, "nothing listens"));
    net_loop_stop(issuer.loop);
    pthread_join(thread, NULL);
    assert_int_equal(issuer.answered, 1);
    assert_int_equal(issuer.refused, 0);
    net_link_server_close(issuer.server);
    net_loop_close(issuer.loop);
}

/* Two nodes come with one token at the same time: both links hold, one of them gets the key. */
static void test_join_race(void **state)
{
    (void)state;
    struct issuer issuer;
    struct cluster_token token;
    struct net_link_key link;
    struct net_address address;
    struct net_wire_options options = {.hello = {.purpose = NET_JOIN}};
    struct buffer got = {0};
    struct error error;
    pthread_t thread;
    open_issuer(&issuer);
    memcpy(address.text, issuer.address, NET_ADDRESS_BYTES);
    assert_int_equal(cluster_token_issue(&token, &address, 1, NOW, 600, &error), STATUS_OK);
    assert_int_equal(cluster_token_link(&token, &link, &error), STATUS_OK);
    issuer.known = &link;
    assert_int_equal(pthread_create(&thread, NULL, run_loop, issuer.loop), 0);
    for (uint8_t i = 1; i <= 2; i++) {
        struct net_wire *wire;
        uint8_t type = 0;
        assert_int_equal(net_wire_connect(&wire, address.text, &link, &options, NULL, NULL, &error),
                         STATUS_OK);
        assert_int_equal(net_wire_receive_frame(wire, 4096, &type, &got, 0, &error), STATUS_OK);
        assert_int_equal(type, i);
        net_wire_close(wire);
    }
    assert_non_null(strstr(got.data, "used already"));
    struct cluster_key key;
    assert_int_equal(cluster_join(&token, &options.hello, NOW, &key, &error), STATUS_INVALID);
    assert_non_null(strstr(error.text, "used already"));
    net_loop_stop(issuer.loop);
    pthread_join(thread, NULL);
    assert_int_equal(issuer.answered, 1);
    assert_int_equal(issuer.refused, 2);
    net_link_server_close(issuer.server);
    net_loop_close(issuer.loop);
    buffer_free(&got);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_hkdf),           cmocka_unit_test(test_hex),
        cmocka_unit_test(test_key_derived),    cmocka_unit_test(test_key_file),
        cmocka_unit_test(test_key_text),       cmocka_unit_test(test_beacon),
        cmocka_unit_test(test_beacon_changed), cmocka_unit_test(test_beacon_names),
        cmocka_unit_test(test_token_text),     cmocka_unit_test(test_token_longest),
        cmocka_unit_test(test_token_wrong),    cmocka_unit_test(test_token_once),
        cmocka_unit_test(test_join),           cmocka_unit_test(test_join_race),
    };
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, open_home, close_home);
}
