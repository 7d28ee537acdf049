/* The file of a page of a KV cache: any bytes are the page that it should be, or removed. */
#include "engine/kv_disk.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define SIZE 100 /* of a page */
#define HEADER 56

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static struct kv_disk *disk;
static struct kv_key key;
static char folder[64], path[256];

static void clean_up(void)
{
    char lock[80];
    kv_disk_close(disk);
    snprintf(lock, sizeof lock, "%s/lock", folder);
    unlink(lock);
    unlink(path);
    rmdir(folder);
}

static void open_disk(void)
{
    static const int32_t tokens[MODEL_KV_PAGE_TOKENS] = {1, 2, 3};
    struct error error;
    snprintf(folder, sizeof folder, "/tmp/consort-fuzz-XXXXXX");
    if (mkdtemp(folder) == NULL ||
        kv_disk_open(&disk, folder, 1 << 20, NULL, NULL, &error) != STATUS_OK ||
        !kv_disk_root(&key, view_of("a model")) || !kv_disk_key(&key, &key, tokens))
        abort();
    int n = snprintf(path, sizeof path, "%s/", folder);
    for (size_t i = 0; i < KV_KEY_BYTES; i++)
        n += snprintf(path + n, sizeof path - (size_t)n, "%02x", key.bytes[i]);
    atexit(clean_up);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    unsigned char page[SIZE];
    if (disk == NULL)
        open_disk();
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    if (fd < 0 || write(fd, data, size) != (ssize_t)size || close(fd) != 0)
        abort();
    bool good = kv_disk_read(disk, &key, 0, page, sizeof page);
    if (good != (access(path, F_OK) == 0))
        abort();
    if (good && (size != HEADER + SIZE || memcmp(page, data + HEADER, SIZE) != 0 ||
                 memcmp(data + 8, key.bytes, KV_KEY_BYTES) != 0))
        abort();
    return 0;
}
