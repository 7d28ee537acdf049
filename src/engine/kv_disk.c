#include "engine/kv_disk.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <openssl/evp.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define PENDING_BYTES ((size_t)256 << 20) /* handed over and not written yet */
#define SPARE_BYTES ((uint64_t)1 << 30)   /* of the disk, that stay free */
#define USE_S 60                          /* times of use within so long are the same */
#define NAME_BYTES (2 * KV_KEY_BYTES)     /* a key in hexadecimal */
#define NEW_NAME ".new"                   /* behind the name while a file is written */
#define LOCK_NAME "lock"                  /* one process at a time */
#define PATH_BYTES (NAME_BYTES + sizeof NEW_NAME)
#define DEPTH_NS 400 /* with MODEL_MAX_CTX they are less than a second */

_Static_assert(MODEL_MAX_CTX / MODEL_KV_PAGE_TOKENS < 999999999 / DEPTH_NS, "a second has room");

/* The last byte of the magic is the version. */
struct header {
    char magic[8];
    struct kv_key key;
    uint64_t size_bytes; /* of the page */
    uint64_t sum;        /* of the page */
};
_Static_assert(sizeof(struct header) == 56, "as it lies in the file");
static const char magic[8] = "CKVPAGE1";

struct pending {
    struct pending *next;
    struct kv_key key;
    size_t depth, size;
    void *data;
};

struct kv_disk {
    uint64_t limit_bytes;
    kv_disk_log *log; /* NULL: none */
    void *log_context;
    char *path;
    int folder, lock; /* open files; negative: none */
    pthread_t thread;
    bool started;

    uint64_t total_bytes; /* the writer's, as the next: at least what the files take */
    bool failing;         /* the last page could not be written, and the log has said so */

    pthread_mutex_t mutex; /* guards what stands below */
    pthread_cond_t changed;
    struct pending *first, **last;
    size_t pending_bytes;
    bool closing;
};

static void say(const struct kv_disk *disk, const char *format, ...) BASE_PRINTF(2, 3);

static void say(const struct kv_disk *disk, const char *format, ...)
{
    char line[512];
    va_list arguments;
    if (disk->log == NULL)
        return;
    va_start(arguments, format);
    vsnprintf(line, sizeof line, format, arguments);
    va_end(arguments);
    disk->log(disk->log_context, line);
}

/* ---- Keys and sums --------------------------------------------------------------------------- */

static bool hash(struct kv_key *out, const void *data, size_t size)
{
    unsigned n = 0;
    return EVP_Digest(data, size, out->bytes, &n, EVP_sha256(), NULL) == 1 && n == KV_KEY_BYTES;
}

bool kv_disk_root(struct kv_key *out, struct view identity)
{
    return hash(out, identity.data, identity.size);
}

bool kv_disk_key(struct kv_key *out, const struct kv_key *before, const int32_t *tokens)
{
    struct {
        struct kv_key before;
        int32_t tokens[MODEL_KV_PAGE_TOKENS];
    } text = {.before = *before};
    memcpy(text.tokens, tokens, sizeof text.tokens);
    return hash(out, &text, sizeof text);
}

static void name_of(const struct kv_key *key, char name[PATH_BYTES])
{
    for (size_t i = 0; i < KV_KEY_BYTES; i++)
        snprintf(name + 2 * i, 3, "%02x", key->bytes[i]);
}

static bool is_name(const char *name)
{
    return strspn(name, "0123456789abcdef") == NAME_BYTES;
}

static uint64_t mix(uint64_t sum, uint64_t word)
{
    sum ^= word;
    return (sum << 29 | sum >> 35) * 0x9E3779B97F4A7C15u;
}

/* Against accidents: only its owner can write the file. One word that is wrong always shows. */
static uint64_t sum_of(const void *data, size_t size)
{
    uint64_t lanes[4] = {1, 2, 3, 4}, sum = size;
    const char *bytes = data;
    size_t i = 0;
    for (; size - i >= sizeof lanes; i += sizeof lanes) {
        uint64_t words[4];
        memcpy(words, bytes + i, sizeof words);
        for (size_t lane = 0; lane < ARRAY_COUNT(lanes); lane++)
            lanes[lane] = mix(lanes[lane], words[lane]);
    }
    for (; i < size; i++)
        sum = mix(sum, (unsigned char)bytes[i]);
    for (size_t lane = 0; lane < ARRAY_COUNT(lanes); lane++)
        sum = mix(sum, lanes[lane]);
    return sum;
}

static struct header header_of(const struct kv_key *key, const void *data, size_t size)
{
    struct header header = {.key = *key, .size_bytes = size, .sum = sum_of(data, size)};
    memcpy(header.magic, magic, sizeof magic);
    return header;
}

/* ---- Files ----------------------------------------------------------------------------------- */

static bool read_bytes(int fd, void *data, size_t size)
{
    for (char *at = data; size > 0;) {
        ssize_t n = read(fd, at, size);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return false;
        at += n;
        size -= (size_t)n;
    }
    return true;
}

/* Pages of one text are used together, and those in front count as used a little later: without
 * them the others are worth nothing. */
static struct timespec used_now(size_t depth)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    now.tv_sec -= now.tv_sec % USE_S;
    now.tv_nsec = 999999999 - DEPTH_NS * (long)MIN(depth, (size_t)999999999 / DEPTH_NS);
    return now;
}

bool kv_disk_touch(const struct kv_disk *disk, const struct kv_key *key, size_t depth)
{
    char name[PATH_BYTES];
    struct timespec now = used_now(depth);
    const struct timespec times[] = {now, now};
    name_of(key, name);
    return utimensat(disk->folder, name, times, 0) == 0;
}

bool kv_disk_has(const struct kv_disk *disk, const struct kv_key *key)
{
    char name[PATH_BYTES];
    name_of(key, name);
    return faccessat(disk->folder, name, F_OK, 0) == 0;
}

static bool read_page(int fd, const struct kv_key *key, void *data, size_t size)
{
    struct stat facts;
    struct header found;
    if (fstat(fd, &facts) != 0 || !S_ISREG(facts.st_mode) ||
        (uint64_t)facts.st_size != sizeof found + (uint64_t)size ||
        !read_bytes(fd, &found, sizeof found) || !read_bytes(fd, data, size))
        return false;
    struct header expected = header_of(key, data, size);
    return memcmp(&found, &expected, sizeof found) == 0;
}

bool kv_disk_read(struct kv_disk *disk, const struct kv_key *key, size_t depth, void *data,
                  size_t size)
{
    char name[PATH_BYTES];
    name_of(key, name);
    /* A pipe is not waited for. */
    int fd = openat(disk->folder, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    if (fd < 0 && errno == ENOENT)
        return false;
    bool good = fd >= 0 && read_page(fd, key, data, size);
    if (fd >= 0)
        close(fd);
    if (good)
        kv_disk_touch(disk, key, depth);
    else if (unlinkat(disk->folder, name, 0) == 0)
        say(disk, "removed %s/%.8s...: not the page of a KV cache that it should be", disk->path,
            name);
    return good;
}

/* ---- What is there --------------------------------------------------------------------------- */

struct found {
    char name[NAME_BYTES + 1];
    uint64_t size_bytes;
    int64_t used_ns;
};

struct listing {
    struct found *files;
    size_t n, room;
    uint64_t total_bytes;
};

static bool list_file(struct listing *listing, const char *name, const struct stat *facts)
{
    if (listing->n == listing->room) {
        size_t room = listing->room > 0 ? 2 * listing->room : 256;
        struct found *files = realloc(listing->files, room * sizeof *files);
        if (files == NULL)
            return false;
        listing->files = files;
        listing->room = room;
    }
    struct found *file = &listing->files[listing->n++];
    *file =
        (struct found){.size_bytes = (uint64_t)facts->st_size, .used_ns = file_modified_ns(facts)};
    memcpy(file->name, name, NAME_BYTES);
    listing->total_bytes += file->size_bytes;
    return true;
}

/* Lists the pages. What is left of writing one is removed, what else lies there left alone. False
 * where not all could be listed. */
static bool list(const struct kv_disk *disk, struct listing *listing)
{
    *listing = (struct listing){0};
    int fd = openat(disk->folder, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *folder = fd >= 0 ? fdopendir(fd) : NULL;
    const struct dirent *entry;
    bool good = folder != NULL;
    if (folder == NULL && fd >= 0)
        close(fd);
    while (good && (entry = readdir(folder)) != NULL) {
        struct stat facts;
        const char *name = entry->d_name;
        if (!is_name(name) || fstatat(disk->folder, name, &facts, AT_SYMLINK_NOFOLLOW) != 0 ||
            !S_ISREG(facts.st_mode))
            continue;
        if (strcmp(name + NAME_BYTES, NEW_NAME) == 0)
            unlinkat(disk->folder, name, 0);
        else if (name[NAME_BYTES] == '\0')
            good = list_file(listing, name, &facts);
    }
    if (folder != NULL)
        closedir(folder);
    return good;
}

static int by_use(const void *a, const void *b)
{
    const struct found *left = a, *right = b;
    return (left->used_ns > right->used_ns) - (left->used_ns < right->used_ns);
}

/* Looks at what is there, and where more_bytes have no room beside it, removes the pages that were
 * not used for the longest time: a tenth of the limit more than needed, because looking costs. */
static void make_room(struct kv_disk *disk, uint64_t more_bytes)
{
    struct listing listing;
    uint64_t goal = disk->limit_bytes - disk->limit_bytes / 10;
    bool all = list(disk, &listing);
    if (listing.n > 0)
        qsort(listing.files, listing.n, sizeof *listing.files, by_use);
    if (all && listing.total_bytes + more_bytes <= disk->limit_bytes)
        goal = UINT64_MAX;
    for (size_t i = 0; i < listing.n && listing.total_bytes + more_bytes > goal; i++)
        if (unlinkat(disk->folder, listing.files[i].name, 0) == 0 || errno == ENOENT)
            listing.total_bytes -= listing.files[i].size_bytes;
    disk->total_bytes = all ? listing.total_bytes : UINT64_MAX;
    free(listing.files);
}

/* ---- The writer ------------------------------------------------------------------------------ */

/* Not synced: what a loss of power leaves of a file is found out when it is read. */
static bool write_page(const struct kv_disk *disk, const struct pending *page)
{
    char name[PATH_BYTES], new_name[PATH_BYTES];
    name_of(&page->key, name);
    name_of(&page->key, new_name);
    memcpy(new_name + NAME_BYTES, NEW_NAME, sizeof NEW_NAME);
    int fd =
        openat(disk->folder, new_name, O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (fd < 0)
        return false;
    struct header header = header_of(&page->key, page->data, page->size);
    bool good =
        file_write_all(fd, &header, sizeof header) && file_write_all(fd, page->data, page->size);
    good = close(fd) == 0 && good;
    good = good && renameat(disk->folder, new_name, disk->folder, name) == 0;
    int reason = errno;
    if (good)
        kv_disk_touch(disk, &page->key, page->depth);
    else
        unlinkat(disk->folder, new_name, 0);
    errno = reason;
    return good;
}

static bool disk_has_room(const struct kv_disk *disk, uint64_t bytes)
{
    struct disk facts;
    struct error error;
    return disk_query(disk->path, &facts, &error) == STATUS_OK &&
           facts.free_bytes >= bytes + SPARE_BYTES;
}

static bool fits(const struct kv_disk *disk, uint64_t bytes)
{
    return bytes <= disk->limit_bytes && disk->total_bytes <= disk->limit_bytes - bytes;
}

static void write_next(struct kv_disk *disk, const struct pending *page)
{
    uint64_t bytes = sizeof(struct header) + (uint64_t)page->size;
    const char *reason = NULL;
    if (kv_disk_has(disk, &page->key))
        return;
    if (!fits(disk, bytes))
        make_room(disk, bytes);
    if (!fits(disk, bytes))
        reason = "there is no room that may be taken";
    else if (!disk_has_room(disk, bytes))
        reason = "the disk is almost full";
    else if (!write_page(disk, page))
        reason = strerror(errno);
    else
        disk->total_bytes += bytes;
    if (reason != NULL && !disk->failing)
        say(disk, "pages of KV caches cannot be written to %s: %s", disk->path, reason);
    disk->failing = reason != NULL;
}

static void *writer_main(void *argument)
{
    struct kv_disk *disk = argument;
    pthread_mutex_lock(&disk->mutex);
    while (!disk->closing || disk->first != NULL) {
        struct pending *page = disk->first;
        if (page == NULL) {
            pthread_cond_wait(&disk->changed, &disk->mutex);
            continue;
        }
        disk->first = page->next;
        if (disk->first == NULL)
            disk->last = &disk->first;
        pthread_mutex_unlock(&disk->mutex);
        write_next(disk, page);
        pthread_mutex_lock(&disk->mutex);
        disk->pending_bytes -= page->size;
        free(page->data);
        free(page);
    }
    pthread_mutex_unlock(&disk->mutex);
    return NULL;
}

bool kv_disk_admits(struct kv_disk *disk, size_t size)
{
    char a[32], b[32];
    bool admits = sizeof(struct header) + (uint64_t)size <= disk->limit_bytes;
    if (!admits)
        say(disk, "%s for KV caches on disk are less than one page of this model's takes (%s)",
            size_text(a, (double)disk->limit_bytes), size_text(b, (double)size));
    return admits;
}

bool kv_disk_wants(struct kv_disk *disk, size_t size)
{
    pthread_mutex_lock(&disk->mutex);
    bool wants = disk->pending_bytes == 0 || disk->pending_bytes + size <= PENDING_BYTES;
    pthread_mutex_unlock(&disk->mutex);
    return wants;
}

void kv_disk_write(struct kv_disk *disk, const struct kv_key *key, size_t depth, void *data,
                   size_t size)
{
    struct pending *page = malloc(sizeof *page);
    if (page == NULL) {
        free(data);
        return;
    }
    *page = (struct pending){.key = *key, .depth = depth, .size = size, .data = data};
    pthread_mutex_lock(&disk->mutex);
    *disk->last = page;
    disk->last = &page->next;
    disk->pending_bytes += size;
    pthread_cond_signal(&disk->changed);
    pthread_mutex_unlock(&disk->mutex);
}

/* ---- Opening --------------------------------------------------------------------------------- */

static enum status take_folder(struct kv_disk *disk, const char *path, struct error *error)
{
    char lock_path[4096];
    disk->folder = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (disk->folder < 0)
        return error_set(error, STATUS_IO, "cannot open the folder %s: %s", path, strerror(errno));
    if (snprintf(lock_path, sizeof lock_path, "%s/" LOCK_NAME, path) >= (int)sizeof lock_path)
        return error_set(error, STATUS_LIMIT, "the path %.100s... is too long", path);
    return file_lock(&disk->lock, lock_path, false, error);
}

enum status kv_disk_open(struct kv_disk **out, const char *path, uint64_t limit_bytes,
                         kv_disk_log *log, void *log_context, struct error *error)
{
    *out = NULL;
    struct kv_disk *disk = calloc(1, sizeof *disk);
    if (disk == NULL)
        return error_memory(error, sizeof *disk);
    disk->limit_bytes = limit_bytes;
    disk->log = log;
    disk->log_context = log_context;
    disk->last = &disk->first;
    disk->folder = disk->lock = -1;
    pthread_mutex_init(&disk->mutex, NULL);
    pthread_cond_init(&disk->changed, NULL);
    disk->path = strdup(path);
    enum status status =
        disk->path != NULL ? take_folder(disk, path, error) : error_memory(error, strlen(path));
    if (status == STATUS_OK) {
        make_room(disk, 0);
        disk->started = thread_start(&disk->thread, writer_main, disk);
        if (!disk->started)
            status = error_set(error, STATUS_MEMORY, "cannot start the thread that writes pages");
    }
    if (status != STATUS_OK) {
        kv_disk_close(disk);
        return status;
    }
    *out = disk;
    return STATUS_OK;
}

void kv_disk_close(struct kv_disk *disk)
{
    if (disk == NULL)
        return;
    pthread_mutex_lock(&disk->mutex);
    disk->closing = true;
    pthread_cond_signal(&disk->changed);
    pthread_mutex_unlock(&disk->mutex);
    if (disk->started)
        pthread_join(disk->thread, NULL);
    file_unlock(disk->lock);
    if (disk->folder >= 0)
        close(disk->folder);
    free(disk->path);
    pthread_cond_destroy(&disk->changed);
    pthread_mutex_destroy(&disk->mutex);
    free(disk);
}
