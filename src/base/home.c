/* Where consort keeps what it needs between two starts. */
#include "base/base.h"

#include <errno.h>
#include <pwd.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#ifdef __APPLE__
#define UNDER_HOME "/Library/Application Support/consort"
#else
#define UNDER_HOME "/.local/share/consort"
#endif

/* Makes path and what is missing above it. path changes on the way, and is whole at the end. */
static bool make_directories(char *path)
{
    for (char *slash = strchr(path + 1, '/'); slash != NULL; slash = strchr(slash + 1, '/')) {
        *slash = '\0';
        bool made = mkdir(path, 0700) == 0 || errno == EEXIST;
        *slash = '/';
        if (!made)
            return false;
    }
    struct stat facts;
    if (mkdir(path, 0700) != 0 && errno != EEXIST)
        return false;
    if (stat(path, &facts) != 0 || S_ISDIR(facts.st_mode))
        return true;
    errno = ENOTDIR;
    return false;
}

/* NULL where this user has none. */
static const char *user_directory(void)
{
    const char *path = getenv("HOME");
    if (path == NULL || path[0] != '/') {
        const struct passwd *entry = getpwuid(getuid());
        path = entry != NULL ? entry->pw_dir : NULL;
    }
    return path != NULL && path[0] == '/' ? path : NULL;
}

enum status home_directory(const char *folder, struct buffer *out, struct error *error)
{
    const char *given = getenv("CONSORT_HOME"), *user = user_directory();
    buffer_clear(out);
    if (given != NULL && given[0] != '\0')
        buffer_append_text(out, given);
    else if (user != NULL)
        buffer_printf(out, "%s" UNDER_HOME, user);
    else
        return error_set(error, STATUS_NOT_FOUND,
                         "there is no home directory: name a folder with CONSORT_HOME");
    if (folder[0] != '\0')
        buffer_printf(out, "/%s", folder);
    if (out->failed)
        return error_memory(error, out->size);
    if (!make_directories(out->data))
        return error_set(error, STATUS_IO,
                         "cannot make the folder %s: %s; name another one with CONSORT_HOME",
                         out->data, strerror(errno));
    return STATUS_OK;
}
