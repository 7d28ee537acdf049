/* Keeping the machine awake while it works for others. */
#include "base/base.h"

#include <stdlib.h>

#if defined(__APPLE__)

#include <IOKit/pwr_mgt/IOPMLib.h>

struct wake_lock {
    IOPMAssertionID assertion;
};

struct wake_lock *wake_lock_open(const char *reason)
{
    struct wake_lock *lock = calloc(1, sizeof *lock);
    CFStringRef text = CFStringCreateWithCString(NULL, reason, kCFStringEncodingUTF8);
    bool held = lock != NULL && text != NULL &&
                IOPMAssertionCreateWithName(kIOPMAssertionTypePreventUserIdleSystemSleep,
                                            kIOPMAssertionLevelOn, text,
                                            &lock->assertion) == kIOReturnSuccess;
    if (text != NULL)
        CFRelease(text);
    if (!held) {
        free(lock);
        lock = NULL;
    }
    return lock;
}

void wake_lock_close(struct wake_lock *lock)
{
    if (lock != NULL)
        IOPMAssertionRelease(lock->assertion);
    free(lock);
}

#else

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <sys/wait.h>
#include <unistd.h>

extern char **environ;

/* systemd-inhibit holds the lock for as long as its child runs: a cat that waits for the end of a
 * pipe whose other end is ours, so that it ends with this process however that ends. */
struct wake_lock {
    pid_t child;
    int pipe;
};

static bool spawn_inhibitor(struct wake_lock *lock, int input, const char *reason)
{
    char why[128];
    snprintf(why, sizeof why, "--why=%s", reason);
    char *words[] = {
        "systemd-inhibit", "--what=idle:sleep", "--who=consort", why, "--mode=block", "cat", NULL};
    posix_spawn_file_actions_t actions;
    posix_spawnattr_t attributes;
    sigset_t signals;
    if (posix_spawn_file_actions_init(&actions) != 0)
        return false;
    if (posix_spawnattr_init(&attributes) != 0) {
        posix_spawn_file_actions_destroy(&actions);
        return false;
    }
    /* Ctrl-C in the terminal is for the server alone: the child gets a process group of its own. */
    sigemptyset(&signals);
    posix_spawnattr_setsigmask(&attributes, &signals);
    posix_spawnattr_setpgroup(&attributes, 0);
    posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETPGROUP);
    posix_spawn_file_actions_adddup2(&actions, input, 0);
    posix_spawn_file_actions_addopen(&actions, 1, "/dev/null", O_WRONLY, 0);
    posix_spawn_file_actions_addopen(&actions, 2, "/dev/null", O_WRONLY, 0);
    bool spawned = posix_spawnp(&lock->child, words[0], &actions, &attributes, words, environ) == 0;
    posix_spawnattr_destroy(&attributes);
    posix_spawn_file_actions_destroy(&actions);
    return spawned;
}

struct wake_lock *wake_lock_open(const char *reason)
{
    int ends[2];
    struct wake_lock *lock = calloc(1, sizeof *lock);
    if (lock == NULL || pipe2(ends, O_CLOEXEC) != 0) {
        free(lock);
        return NULL;
    }
    lock->pipe = ends[1];
    bool spawned = spawn_inhibitor(lock, ends[0], reason);
    close(ends[0]);
    if (spawned)
        return lock;
    close(lock->pipe);
    free(lock);
    return NULL;
}

void wake_lock_close(struct wake_lock *lock)
{
    if (lock == NULL)
        return;
    close(lock->pipe);
    kill(lock->child, SIGKILL); /* it may hang where there is no login manager */
    while (waitpid(lock->child, NULL, 0) < 0 && errno == EINTR)
        ;
    free(lock);
}

#endif
