/* What downloads that were never finished have left in partial/: it serves the same pull for some
 * time, and then nobody. */
#include "store/internal.h"

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define ABANDONED_S (14 * 86400)

static const char *const ends[] = {".state", ".lock"};

static void add_file(const char *path, const char *end, struct store_abandoned *to, int64_t *newest)
{
    struct buffer file = {0};
    struct stat facts;
    if (buffer_printf(&file, "%s%s", path, end) && stat(file.data, &facts) == 0) {
        to->size_bytes += (uint64_t)facts.st_size;
        *newest = MAX(*newest, (int64_t)facts.st_mtime);
    }
    buffer_free(&file);
}

static void remove_file(const char *path, const char *end)
{
    struct buffer file = {0};
    if (buffer_printf(&file, "%s%s", path, end))
        unlink(file.data);
    buffer_free(&file);
}

/* Looks at one download, and removes it where it is old enough: what has come, and what was said of
 * it. Those that somebody works on hold their lock. */
static void look_at(const char *path, uint64_t age_s, bool remove, struct store_abandoned *out)
{
    struct buffer lock_path = {0};
    struct error error;
    struct store_abandoned found = {0};
    int64_t newest_s = 0;
    int lock = -1;
    if (!buffer_printf(&lock_path, "%s.lock", path) ||
        file_lock(&lock, lock_path.data, false, &error) != STATUS_OK) {
        buffer_free(&lock_path);
        return;
    }
    add_file(path, "", &found, &newest_s);
    add_file(path, ends[0], &found, &newest_s);
    bool old = newest_s > 0 && newest_s + (int64_t)age_s <= (int64_t)time(NULL);
    if (old) {
        out->n_files++;
        out->size_bytes += found.size_bytes;
    }
    if (old && remove) {
        remove_file(path, ends[0]);
        remove_file(path, "");
    }
    unlink(lock_path.data);
    file_unlock(lock);
    buffer_free(&lock_path);
}

/* The download that a file belongs to: without its end. */
static size_t key_size(const char *name)
{
    size_t size = strlen(name);
    for (size_t i = 0; i < ARRAY_COUNT(ends); i++) {
        size_t end = strlen(ends[i]);
        if (size > end && strcmp(name + size - end, ends[i]) == 0)
            return size - end;
    }
    return size;
}

static enum status look_at_all(const struct store *store, uint64_t age_s, bool remove,
                               struct store_abandoned *out, struct error *error)
{
    struct buffer folder_path = {0}, path = {0};
    const struct dirent *entry;
    json_t *seen = json_object();
    *out = (struct store_abandoned){0};
    DIR *folder =
        store_path_of(store, "partial", "", &folder_path) ? opendir(folder_path.data) : NULL;
    enum status status = STATUS_OK;
    if (folder == NULL || seen == NULL)
        status =
            error_set(error, STATUS_IO, "cannot read %.150s: %s",
                      folder_path.data != NULL ? folder_path.data : "partial", strerror(errno));
    while (status == STATUS_OK && (entry = readdir(folder)) != NULL) {
        char key[256];
        snprintf(key, sizeof key, "%.*s", (int)key_size(entry->d_name), entry->d_name);
        if (key[0] == '.' || json_object_get(seen, key) != NULL)
            continue;
        json_object_set_new(seen, key, json_true());
        if (store_path_of(store, "partial", key, &path))
            look_at(path.data, age_s, remove, out);
    }
    if (folder != NULL)
        closedir(folder);
    json_decref(seen);
    buffer_free(&folder_path);
    buffer_free(&path);
    return status;
}

enum status store_abandoned(const struct store *store, struct store_abandoned *out,
                            struct error *error)
{
    return look_at_all(store, 0, false, out, error);
}

enum status store_drop_abandoned(const struct store *store, struct store_abandoned *dropped,
                                 struct error *error)
{
    return look_at_all(store, 0, true, dropped, error);
}

void store_drop_old(const struct store *store)
{
    struct store_abandoned ignored;
    struct error error;
    look_at_all(store, ABANDONED_S, true, &ignored, &error);
}
