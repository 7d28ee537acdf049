/* A process is in one group of each hierarchy. /proc/self/cgroup has a line for each:
 *
 *     0::/user.slice/app.scope         version 2: its files are under /sys/fs/cgroup
 *     9:memory:/docker/4f1c            version 1: under /sys/fs/cgroup/memory
 *
 * A limit of a group holds for all groups below it. In a container the path may be that of the
 * host, of which only the end, or nothing, is to be seen: folders that do not exist are passed. */
#include "base/cgroup.h"
#include "base/base.h"

#include <stdio.h>
#include <string.h>

#define PATH_BYTES 1024

bool cgroup_read_number(const char *path, uint64_t *out)
{
    FILE *file = fopen(path, "r");
    unsigned long long value;
    if (file == NULL)
        return false;
    bool found = fscanf(file, "%llu", &value) == 1;
    fclose(file);
    if (found)
        *out = value;
    return found;
}

uint64_t cgroup_read_field(const char *path, const char *field)
{
    FILE *file = fopen(path, "r");
    char line[256];
    unsigned long long value = 0;
    size_t length = strlen(field);
    while (file != NULL && fgets(line, sizeof line, file) != NULL)
        if (strncmp(line, field, length) == 0 && (line[length] == ':' || line[length] == ' ')) {
            if (sscanf(line + length + 1, "%llu", &value) != 1)
                value = 0;
            break;
        }
    if (file != NULL)
        fclose(file);
    return value;
}

/* The names of one version's files. */
static const struct version {
    const char *controller; /* in /proc/self/cgroup */
    const char *folder, *limit, *used, *caches[2];
} versions[] = {
    {"", "/sys/fs/cgroup", "memory.max", "memory.current", {"active_file", "inactive_file"}},
    {"memory",
     "/sys/fs/cgroup/memory",
     "memory.limit_in_bytes",
     "memory.usage_in_bytes",
     {"total_active_file", "total_inactive_file"}},
};

/* Whether a list "cpu,memory" has that word; "" is the whole of an empty list. */
static bool has_controller(struct view list, const char *word)
{
    size_t length = strlen(word);
    if (length == 0)
        return list.size == 0;
    for (size_t at = 0; at < list.size;) {
        const char *comma = memchr(list.data + at, ',', list.size - at);
        size_t end = comma != NULL ? (size_t)(comma - list.data) : list.size;
        if (end - at == length && memcmp(list.data + at, word, length) == 0)
            return true;
        at = end + 1;
    }
    return false;
}

/* The group of this process in one hierarchy, "/" where that is not known. */
static void group_of(const char *root, const struct version *version, char group[PATH_BYTES])
{
    char path[PATH_BYTES], line[PATH_BYTES];
    snprintf(path, sizeof path, "%s/proc/self/cgroup", root);
    snprintf(group, PATH_BYTES, "/");
    FILE *file = fopen(path, "r");
    while (file != NULL && fgets(line, sizeof line, file) != NULL) {
        char *list = strchr(line, ':'), *place = list != NULL ? strchr(list + 1, ':') : NULL;
        if (place == NULL || place[1] != '/' ||
            !has_controller((struct view){list + 1, (size_t)(place - list - 1)},
                            version->controller))
            continue;
        place[1 + strcspn(place + 1, "\n")] = '\0';
        snprintf(group, PATH_BYTES, "%s", place + 1);
        break;
    }
    if (file != NULL)
        fclose(file);
}

/* The file cache of the group is not counted as used: mapped weights are cache. */
static bool apply_group(const struct version *version, const char *folder, uint64_t *total,
                        uint64_t *available)
{
    char path[3 * PATH_BYTES];
    uint64_t limit, used;
    snprintf(path, sizeof path, "%s/%s", folder, version->limit);
    if (!cgroup_read_number(path, &limit))
        return false;
    *total = MIN(*total, limit);
    *available = MIN(*available, limit);
    snprintf(path, sizeof path, "%s/%s", folder, version->used);
    if (!cgroup_read_number(path, &used))
        return true;
    snprintf(path, sizeof path, "%s/memory.stat", folder);
    for (size_t c = 0; c < ARRAY_COUNT(version->caches); c++)
        used -= MIN(used, cgroup_read_field(path, version->caches[c]));
    *available = MIN(*available, used < limit ? limit - used : 0);
    return true;
}

void cgroup_apply(const char *root, uint64_t *total, uint64_t *available)
{
    for (size_t v = 0; v < ARRAY_COUNT(versions); v++) {
        char group[PATH_BYTES], folder[2 * PATH_BYTES];
        bool found = false;
        group_of(root, &versions[v], group);
        for (char *end = group + strlen(group); end != NULL; end = strrchr(group, '/')) {
            *end = '\0';
            snprintf(folder, sizeof folder, "%s%s%s", root, versions[v].folder, group);
            found |= apply_group(&versions[v], folder, total, available);
        }
        if (found)
            return;
    }
}
