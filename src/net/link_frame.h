/* The bytes of links, without sockets. */
#ifndef CONSORT_NET_LINK_FRAME_H
#define CONSORT_NET_LINK_FRAME_H

#include "net/net.h"

enum {
    FRAME_HEAD_BYTES = 5,
    HELLO_FIXED_BYTES = 36,
    HELLO_MAX_BYTES = 4096, /* the payload of a HELLO of any version */
    HELLO_OUR_BYTES = FRAME_HEAD_BYTES + HELLO_FIXED_BYTES + NET_HELLO_INFO_BYTES,
    HELLO_TYPE = 0, /* the type of a HELLO's frame, and of no other */
};

void frame_head_write(uint8_t head[FRAME_HEAD_BYTES], size_t size, uint8_t type);
void frame_head_read(const uint8_t head[FRAME_HEAD_BYTES], size_t *size, uint8_t *type);

/* Returns the bytes of the frame; 0 where the hello is not one that may be sent. */
size_t hello_write(const struct net_hello *hello, uint8_t out[HELLO_OUR_BYTES]);

enum hello_verdict { HELLO_GOOD, HELLO_GARBAGE, HELLO_OTHER_VERSION };

/* Reads the payload of a HELLO. *version is set but for garbage, *out for a good one. */
enum hello_verdict hello_read(struct net_hello *out, const void *data, size_t size,
                              unsigned *version);

/* Collects the one frame of a HELLO, and not a byte more. {0} is empty. */
struct hello_reader {
    size_t size;
    uint8_t data[FRAME_HEAD_BYTES + HELLO_MAX_BYTES];
};
/* How many bytes to read next, to data + size; 0 where it is whole. False: it is no HELLO. */
bool hello_reader_wants(const struct hello_reader *reader, size_t *wanted);

/* Cuts a stream of bytes into frames. {0} with a limit is empty. */
struct frame_reader {
    size_t limit; /* of a message */
    struct buffer in;
    size_t used; /* bytes of in that were given out */
};

enum frame_result { FRAME_THERE, FRAME_LATER, FRAME_BROKEN, FRAME_NO_MEMORY };

enum frame_result frame_reader_feed(struct frame_reader *reader, const void *data, size_t size);
/* The next whole frame, whose bytes live until the next feed. */
enum frame_result frame_reader_next(struct frame_reader *reader, uint8_t *type,
                                    struct view *message);
void frame_reader_free(struct frame_reader *reader);

#endif
