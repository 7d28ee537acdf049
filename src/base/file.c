#include "base/base.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

static enum status file_fail(struct error *error, const char *verb, const char *path)
{
    enum status code = errno == ENOENT ? STATUS_NOT_FOUND : STATUS_IO;
    return error_set(error, code, "cannot %s %s: %s", verb, path, strerror(errno));
}

enum status file_map_open(struct file_map *map, const char *path, struct error *error)
{
    *map = (struct file_map){0};
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return file_fail(error, "open", path);
    enum status status = STATUS_OK;
    struct stat info;
    if (fstat(fd, &info) != 0) {
        status = file_fail(error, "inspect", path);
        goto done;
    }
    if (!S_ISREG(info.st_mode)) {
        status = error_set(error, STATUS_INVALID, "%s is not a regular file", path);
        goto done;
    }
    if (info.st_size == 0)
        goto done;
    void *data = mmap(NULL, (size_t)info.st_size, PROT_READ, MAP_SHARED, fd, 0);
    if (data == MAP_FAILED) {
        status = file_fail(error, "map", path);
        goto done;
    }
#if defined(MADV_HUGEPAGE)
    /* File systems that can hold the file in huge pages then do, and weights are read up to a fifth
     * faster with few translations of addresses. */
    madvise(data, (size_t)info.st_size, MADV_HUGEPAGE);
#endif
    map->data = data;
    map->size = (size_t)info.st_size;
done:
    close(fd);
    return status;
}

void file_map_close(struct file_map *map)
{
    if (map->data != NULL)
        munmap((void *)map->data, map->size);
    *map = (struct file_map){0};
}

void file_map_bring(const uint8_t *data, size_t size)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE), before = (uintptr_t)data % page;
#if defined(MADV_POPULATE_READ)
    /* A kernel that does not know it says so; any other error would come again, as a signal. */
    if (madvise((void *)(data - before), size + before, MADV_POPULATE_READ) == 0 || errno != EINVAL)
        return;
#endif
    for (size_t i = 0; i < size + before; i += page)
        (void)*(const volatile uint8_t *)(data - before + i);
}

void file_map_release(const uint8_t *data, size_t size)
{
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE), begin = (uintptr_t)data;
    uintptr_t first = (begin + page - 1) / page * page, end = (begin + size) / page * page;
    if (first < end)
        madvise((void *)first, end - first, MADV_DONTNEED);
}

enum status file_read(const char *path, size_t limit_bytes, struct buffer *out, struct error *error)
{
    FILE *file = strcmp(path, "-") == 0 ? stdin : fopen(path, "rb");
    if (file == NULL)
        return file_fail(error, "open", path);
    enum status status = STATUS_OK;
    char chunk[65536];
    size_t n;
    size_t begin = out->size;
    while ((n = fread(chunk, 1, sizeof chunk, file)) > 0) {
        if (n > limit_bytes - (out->size - begin)) {
            status =
                error_set(error, STATUS_LIMIT, "%s is larger than %zu bytes", path, limit_bytes);
            goto done;
        }
        if (!buffer_append(out, chunk, n)) {
            status = error_memory(error, n);
            goto done;
        }
    }
    if (ferror(file))
        status = file_fail(error, "read", path);
    else if (!buffer_reserve(out, 0))
        status = error_memory(error, 1);
    else
        out->data[out->size] = '\0';
done:
    if (file != stdin)
        fclose(file);
    return status;
}

/* Whole huge pages: a file that is written in such pieces stays in them. */
#define WRITER_BLOCK ((size_t)4 << 20)

struct file_writer {
    FILE *file;
    char *block;     /* of WRITER_BLOCK bytes: what was not written yet */
    char *path;      /* without links */
    char *temporary; /* where the bytes go; equal to path when nothing is renamed */
    uint64_t written;
    bool renames;
};

/* Fills path and temporary. Devices and pipes are written as they are: a rename would put a file in
 * their place. A link stays, and what it points to is replaced. */
static enum status writer_name(struct file_writer *writer, const char *path, struct error *error)
{
    struct stat info;
    bool exists = stat(path, &info) == 0;
    if (exists && S_ISDIR(info.st_mode))
        return error_set(error, STATUS_IO, "cannot write %s: it is a folder", path);
    writer->renames = !exists || S_ISREG(info.st_mode);
    writer->path = exists && writer->renames ? realpath(path, NULL) : NULL;
    if (writer->path == NULL)
        writer->path = strdup(path);
    size_t bytes = writer->path != NULL ? strlen(writer->path) + 32 : 0;
    writer->temporary = bytes > 0 ? malloc(bytes) : NULL;
    if (writer->temporary == NULL)
        return error_memory(error, strlen(path) + 32);
    if (writer->renames)
        snprintf(writer->temporary, bytes, "%s.tmp-%ld", writer->path, (long)getpid());
    else
        snprintf(writer->temporary, bytes, "%s", writer->path);
    return STATUS_OK;
}

enum status file_create(struct file_writer **out, const char *path, struct error *error)
{
    *out = NULL;
    struct file_writer *writer = calloc(1, sizeof *writer);
    if (writer == NULL)
        return error_memory(error, sizeof *writer);
    enum status status = writer_name(writer, path, error);
    if (status == STATUS_OK) {
        writer->block = malloc(WRITER_BLOCK);
        writer->file = writer->block != NULL ? fopen(writer->temporary, "wb") : NULL;
        if (writer->block == NULL)
            status = error_memory(error, WRITER_BLOCK);
        else if (writer->file == NULL)
            status = file_fail(error, "create", writer->temporary);
        else
            setvbuf(writer->file, writer->block, _IOFBF, WRITER_BLOCK);
    }
    if (status != STATUS_OK) {
        writer->renames = false; /* nothing was made */
        file_discard(writer);
        return status;
    }
    *out = writer;
    return STATUS_OK;
}

enum status file_write(struct file_writer *writer, const void *data, size_t size,
                       struct error *error)
{
    if (size > 0 && fwrite(data, 1, size, writer->file) != size)
        return file_fail(error, "write", writer->temporary);
    writer->written += size;
    return STATUS_OK;
}

uint64_t file_written(const struct file_writer *writer)
{
    return writer->written;
}

enum status file_commit(struct file_writer *writer, struct error *error)
{
    enum status status = STATUS_OK;
    /* Only files can be synced. */
    bool flushed =
        fflush(writer->file) == 0 && (!writer->renames || fsync(fileno(writer->file)) == 0);
    if (fclose(writer->file) != 0 || !flushed)
        status = file_fail(error, "write", writer->temporary);
    else if (writer->renames && rename(writer->temporary, writer->path) != 0)
        status = file_fail(error, "create", writer->path);
    writer->file = NULL;
    if (status == STATUS_OK)
        writer->renames = false;
    file_discard(writer);
    return status;
}

void file_discard(struct file_writer *writer)
{
    if (writer == NULL)
        return;
    if (writer->file != NULL)
        fclose(writer->file);
    if (writer->temporary != NULL && writer->renames)
        unlink(writer->temporary);
    free(writer->block);
    free(writer->temporary);
    free(writer->path);
    free(writer);
}

int64_t file_modified_ns(const struct stat *facts)
{
#ifdef __APPLE__
    struct timespec time = facts->st_mtimespec;
#else
    struct timespec time = facts->st_mtim;
#endif
    return (int64_t)time.tv_sec * 1000000000 + time.tv_nsec;
}

bool file_write_all(int fd, const void *data, size_t size)
{
    for (const char *at = data; size > 0;) {
        ssize_t n = write(fd, at, size);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return false;
        at += n;
        size -= (size_t)n;
    }
    return true;
}
