/* Disks and what file systems can do beyond reading and writing. */
#include "base/base.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#if defined(__APPLE__)
#include <sys/clonefile.h>
#include <sys/mount.h>
#include <sys/param.h>
#else
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/sysmacros.h>
#include <sys/vfs.h>
#endif

/* ---- Where a folder lies --------------------------------------------------------------------- */

#if defined(__APPLE__)

static enum disk_kind kind_of(const char *path)
{
    struct statfs facts;
    if (statfs(path, &facts) != 0)
        return DISK_LOCAL;
    if (!(facts.f_flags & MNT_LOCAL))
        return DISK_NETWORK;
#if defined(MNT_REMOVABLE)
    if (facts.f_flags & MNT_REMOVABLE)
        return DISK_USB;
#endif
    return DISK_LOCAL;
}

#else

/* Whether the device that holds path hangs on a USB port, as the kernel's tree of devices says. */
static bool on_usb(const char *path)
{
    struct stat facts;
    char link[64], target[4096];
    if (stat(path, &facts) != 0)
        return false;
    snprintf(link, sizeof link, "/sys/dev/block/%u:%u", major(facts.st_dev), minor(facts.st_dev));
    ssize_t size = readlink(link, target, sizeof target - 1);
    target[MAX(size, 0)] = '\0';
    return strstr(target, "/usb") != NULL;
}

static enum disk_kind kind_of(const char *path)
{
    static const uint32_t network[] = {
        0x6969,     /* NFS */
        0x517b,     /* SMB */
        0xff534d42, /* CIFS */
        0xfe534d42, /* SMB2 */
        0x01021997, /* 9P */
        0x00c36400, /* Ceph */
        0x5346414f, /* AFS */
        0x65735546, /* FUSE: sshfs and its like */
        0x0bd00bd0, /* Lustre */
        0x01161970, /* GFS2 */
    };
    struct statfs facts;
    if (statfs(path, &facts) != 0)
        return DISK_LOCAL;
    for (size_t i = 0; i < ARRAY_COUNT(network); i++)
        if ((uint32_t)facts.f_type == network[i])
            return DISK_NETWORK;
    return on_usb(path) ? DISK_USB : DISK_LOCAL;
}

#endif

enum status disk_query(const char *path, struct disk *out, struct error *error)
{
    struct statvfs facts;
    if (statvfs(path, &facts) != 0)
        return error_set(error, STATUS_IO, "cannot ask for the free space of %s: %s", path,
                         strerror(errno));
    out->free_bytes = (uint64_t)facts.f_bavail * facts.f_frsize;
    out->kind = kind_of(path);
    return STATUS_OK;
}

/* ---- Copies without bytes -------------------------------------------------------------------- */

bool file_clone(const char *from, const char *to)
{
#if defined(__APPLE__)
    return clonefile(from, to, 0) == 0;
#elif defined(FICLONE)
    int in = open(from, O_RDONLY | O_CLOEXEC);
    int out = in >= 0 ? open(to, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600) : -1;
    bool cloned = out >= 0 && ioctl(out, FICLONE, in) == 0;
    if (out >= 0) {
        close(out);
        if (!cloned)
            unlink(to);
    }
    if (in >= 0)
        close(in);
    return cloned;
#else
    (void)from, (void)to;
    return false;
#endif
}

/* ---- Locks ----------------------------------------------------------------------------------- */

/* Whether path still leads to the open file. */
static bool is_there(int fd, const char *path)
{
    struct stat opened, there;
    return fstat(fd, &opened) == 0 && stat(path, &there) == 0 && opened.st_dev == there.st_dev &&
           opened.st_ino == there.st_ino;
}

enum status file_lock(int *out, const char *path, bool wait, struct error *error)
{
    for (*out = -1; *out < 0;) {
        int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600), result;
        if (fd < 0)
            return error_set(error, STATUS_IO, "cannot open %s: %s", path, strerror(errno));
        do
            result = flock(fd, wait ? LOCK_EX : LOCK_EX | LOCK_NB);
        while (result != 0 && errno == EINTR);
        if (result != 0) {
            enum status code = errno == EWOULDBLOCK ? STATUS_BUSY : STATUS_IO;
            error_set(error, code, "cannot lock %s: %s", path, strerror(errno));
            close(fd);
            return code;
        }
        if (is_there(fd, path))
            *out = fd;
        else
            close(fd); /* removed by the one who held it: another try */
    }
    return STATUS_OK;
}

void file_unlock(int lock)
{
    if (lock >= 0)
        close(lock);
}
