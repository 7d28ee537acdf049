#include "net/link_tls.h"

#include <errno.h>
#include <openssl/crypto.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>

/* Alerts the other side sent are reasons from here on. */
enum { ALERT = SSL_AD_REASON_OFFSET };

/* ---- Words ----------------------------------------------------------------------------------- */

static const struct {
    const char *word, *sentence;
} faults[] = {
#define FAULT_TEXT(name, word, sentence) {word, sentence},
    NET_LINK_FAULT_LIST(FAULT_TEXT)
#undef FAULT_TEXT
};

const char *net_link_fault_word(enum net_link_fault fault)
{
    return faults[fault].word;
}

enum net_link_fault link_connect_fault(int reason)
{
    switch (reason) {
    case ECONNREFUSED:
        return NET_LINK_REFUSED;
    case ETIMEDOUT:
        return NET_LINK_TIMEOUT;
    case ECONNRESET:
    case EPIPE:
        return NET_LINK_RESET;
    case EMFILE:
    case ENFILE:
    case ENOMEM:
    case ENOBUFS:
        return NET_LINK_LOCAL;
    default:
        return NET_LINK_UNREACHABLE;
    }
}

void link_fault_text(char text[256], const char *peer, enum net_link_fault fault, int reason)
{
    if (reason != 0)
        snprintf(text, 256, "%s: %s (%s)", peer, faults[fault].sentence, strerror(reason));
    else
        snprintf(text, 256, "%s: %s", peer, faults[fault].sentence);
}

void link_version_text(char text[256], const char *peer, unsigned version)
{
    snprintf(
        text, 256,
        "%s: the other side speaks version %u of the protocol, this node version %d; update the "
        "older one",
        peer, version, NET_PROTOCOL_VERSION);
}

/* ---- Keys ------------------------------------------------------------------------------------ */

/* A secret in the form in which TLS takes it: a session that never was. */
static SSL_SESSION *session_of(SSL *ssl, const uint8_t secret[NET_SECRET_BYTES])
{
    static const unsigned char aes128_gcm_sha256[] = {0x13, 0x01};
    const SSL_CIPHER *cipher = SSL_CIPHER_find(ssl, aes128_gcm_sha256);
    SSL_SESSION *session = SSL_SESSION_new();
    if (cipher != NULL && session != NULL &&
        SSL_SESSION_set1_master_key(session, secret, NET_SECRET_BYTES) == 1 &&
        SSL_SESSION_set_cipher(session, cipher) == 1 &&
        SSL_SESSION_set_protocol_version(session, TLS1_3_VERSION) == 1)
        return session;
    SSL_SESSION_free(session);
    return NULL;
}

static int use_key(SSL *ssl, const EVP_MD *digest, const unsigned char **identity,
                   size_t *identity_size, SSL_SESSION **session)
{
    struct link_tls *tls = SSL_get_app_data(ssl);
    (void)digest;
    *identity = (const unsigned char *)tls->key.identity;
    *identity_size = strlen(tls->key.identity);
    *session = session_of(ssl, tls->key.secret);
    return *session != NULL;
}

static int find_key(SSL *ssl, const unsigned char *identity, size_t identity_size,
                    SSL_SESSION **session)
{
    struct link_tls *tls = SSL_get_app_data(ssl);
    uint8_t secret[NET_SECRET_BYTES];
    *session = NULL;
    tls->offered = true;
    if (identity_size >= NET_IDENTITY_BYTES || memchr(identity, 0, identity_size) != NULL ||
        !tls->find_key(tls->context, (struct view){(const char *)identity, identity_size}, secret))
        return 1;
    memcpy(tls->key.identity, identity, identity_size);
    tls->key.identity[identity_size] = '\0';
    *session = session_of(ssl, secret);
    OPENSSL_cleanse(secret, sizeof secret);
    return *session != NULL;
}

/* ---- Contexts -------------------------------------------------------------------------------- */

/* What all links of the process share: settings, and no secret. */
static SSL_CTX *settings;
static pthread_once_t settings_once = PTHREAD_ONCE_INIT;

static void make_settings(void)
{
    SSL_CTX *made = SSL_CTX_new(TLS_method());
    if (made == NULL)
        return;
    SSL_CTX_set_options(made, SSL_OP_NO_RENEGOTIATION | SSL_OP_NO_COMPRESSION | SSL_OP_NO_TICKET);
    SSL_CTX_set_mode(made, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER |
                               SSL_MODE_RELEASE_BUFFERS);
    SSL_CTX_set_session_cache_mode(made, SSL_SESS_CACHE_OFF);
    SSL_CTX_set_max_early_data(made, 0);
    SSL_CTX_set_psk_use_session_callback(made, use_key);
    SSL_CTX_set_psk_find_session_callback(made, find_key);
    if (SSL_CTX_set_min_proto_version(made, TLS1_3_VERSION) == 1 &&
        SSL_CTX_set_max_proto_version(made, TLS1_3_VERSION) == 1 &&
        SSL_CTX_set_num_tickets(made, 0) == 1 &&
        SSL_CTX_set_ciphersuites(made, "TLS_AES_128_GCM_SHA256") == 1 &&
        SSL_CTX_set1_groups_list(made, "X25519") == 1)
        settings = made;
    else
        SSL_CTX_free(made);
}

enum status link_tls_open(struct link_tls *tls, int fd, struct error *error)
{
    pthread_once(&settings_once, make_settings);
    ERR_clear_error();
    tls->ssl = settings != NULL ? SSL_new(settings) : NULL;
    if (tls->ssl == NULL || SSL_set_fd(tls->ssl, fd) != 1) {
        SSL_free(tls->ssl);
        tls->ssl = NULL;
        return error_set(error, STATUS_IO,
                         "OpenSSL cannot make links: it must know TLS 1.3 with "
                         "AES-128-GCM and X25519");
    }
    SSL_set_app_data(tls->ssl, tls);
    if (tls->server) {
        SSL_set_accept_state(tls->ssl);
    } else {
        /* Who has a certificate and not our key is a stranger. */
        SSL_set_verify(tls->ssl, SSL_VERIFY_PEER, NULL);
        SSL_set_connect_state(tls->ssl);
    }
    return STATUS_OK;
}

void link_tls_close(struct link_tls *tls)
{
    SSL_free(tls->ssl);
    tls->ssl = NULL;
    OPENSSL_cleanse(tls->key.secret, sizeof tls->key.secret);
}

/* ---- Handshake ------------------------------------------------------------------------------- */

static enum net_link_fault fault_of(const struct link_tls *tls, int reason)
{
    switch (reason) {
    case SSL_R_UNEXPECTED_EOF_WHILE_READING:
        return NET_LINK_RESET;
    case SSL_R_BINDER_DOES_NOT_VERIFY:
    case ALERT + SSL_AD_HANDSHAKE_FAILURE: /* it knows no such identity, */
    case ALERT + SSL_AD_ILLEGAL_PARAMETER: /* or another secret for it */
    case ALERT + SSL_AD_DECRYPT_ERROR:
    case ALERT + SSL_AD_UNKNOWN_PSK_IDENTITY:
        return NET_LINK_KEY;
    default:
        return tls->server && tls->offered ? NET_LINK_KEY : NET_LINK_STRANGER;
    }
}

enum link_step link_tls_handshake(struct link_tls *tls, enum net_link_fault *fault)
{
    ERR_clear_error();
    errno = 0;
    int n = SSL_do_handshake(tls->ssl);
    if (n == 1) {
        SSL_set_app_data(tls->ssl, NULL);
        OPENSSL_cleanse(tls->key.secret, sizeof tls->key.secret);
        if (SSL_session_reused(tls->ssl) == 1)
            return LINK_DONE;
        *fault = NET_LINK_STRANGER;
        return LINK_FAILED;
    }
    switch (SSL_get_error(tls->ssl, n)) {
    case SSL_ERROR_WANT_READ:
        return LINK_WANTS_READ;
    case SSL_ERROR_WANT_WRITE:
        return LINK_WANTS_WRITE;
    case SSL_ERROR_SSL:
        *fault = fault_of(tls, ERR_GET_REASON(ERR_peek_error()));
        break;
    default:
        *fault = NET_LINK_RESET;
    }
    ERR_clear_error();
    return LINK_FAILED;
}
