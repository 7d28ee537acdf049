/* Bounded reading of control messages, which are JSON objects.
 *
 * The first field that is missing or not as it should be sets failed and says which; it and all
 * later ones read as zeros. So a handler reads all that it needs, looks at failed once, and then
 * acts. Fields that nobody reads are ignored.
 */
#ifndef CONSORT_CORE_MESSAGE_H
#define CONSORT_CORE_MESSAGE_H

#include "cluster/core.h"

struct message {
    const json_t *json; /* an object, or an array of fields by their place */
    bool failed;
    char fault[128];
};

struct node;
/* from: this node for what it sends to itself. */
typedef void message_handler(struct cluster_core *core, struct node *from, struct message *message);

struct message message_over(const json_t *json);
void message_fail(struct message *message, const char *format, ...) BASE_PRINTF(2, 3);

/* Fields of an object. Text is checked for its length and for control characters. */
uint64_t message_u64(struct message *message, const char *key, uint64_t most);
double message_real(struct message *message, const char *key); /* not negative */
bool message_flag(struct message *message, const char *key);   /* false where it is missing */
void message_text(struct message *message, const char *key, char *out, size_t size);
struct cluster_id message_id(struct message *message, const char *key);
struct cluster_model message_model(struct message *message, const char *key);
/* Missing: NULL, and n is 0. */
const json_t *message_list(struct message *message, const char *key, size_t most, size_t *n);
const json_t *message_any(const struct message *message, const char *key);

/* Fields of an array, by their place. */
uint64_t item_u64(struct message *message, size_t place, uint64_t most);
double item_real(struct message *message, size_t place);
void item_text(struct message *message, size_t place, char *out, size_t size);
struct cluster_id item_id(struct message *message, size_t place);
/* The place-th item of a list, itself an array; its faults end in message. */
struct message message_item(const json_t *list, size_t place);
void message_take(struct message *message, const struct message *item);

/* Writing. Numbers above 2^63 - 1 are not written. */
json_t *json_id(struct cluster_id id);
json_t *json_u64(uint64_t value);
json_t *json_model(const struct cluster_model *model);

bool sha_valid(const char *text);
/* Copies what fits, whole characters only; "?" stands for what is not UTF-8 and for control
 * characters, so that the copy can be sent and shown. out may be text. */
void text_copy(char *out, size_t size, const char *text);
uint64_t hash_text(const char *text);
uint64_t hash_mix(uint64_t value);

#endif
