/* What differs between operating systems, in one place. */
#include "base/base.h"
#include "base/cgroup.h"

#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#if defined(__APPLE__)
#include <mach/mach.h>
#include <sys/sysctl.h>
#else
#include <sched.h>
#endif
#if defined(__linux__) && defined(__aarch64__)
#include <sys/auxv.h>
#endif
#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__linux__) && defined(__x86_64__)
#include <sys/syscall.h>
#endif

uint64_t clock_now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

bool thread_start(pthread_t *thread, void *(*run)(void *), void *context)
{
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, &before);
    bool started = pthread_create(thread, NULL, run, context) == 0;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return started;
}

#if defined(MADV_HUGEPAGE)

#define HUGE_BYTES ((size_t)2 << 20)       /* the usual size of huge pages */
#define HUGE_FROM_BYTES ((size_t)64 << 20) /* what is smaller would waste much of its pages */

/* Long caches are read faster with few translations of addresses. But a page that comes as a whole
 * takes the system a while, and the caches of all layers grow alike: so each begins elsewhere in
 * one (by the golden ratio, which spreads any number of them), and they take new ones in turns. */
static void *huge_pages_alloc(size_t size_bytes)
{
    static atomic_uint n_before;
    size_t small = (size_t)sysconf(_SC_PAGESIZE);
    size_t size = (size_bytes + small - 1) / small * small, all = size + 2 * HUGE_BYTES;
    unsigned char *pages =
        mmap(NULL, all, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANON | MAP_NORESERVE, -1, 0);
    if (pages == MAP_FAILED)
        return NULL;
    uint32_t part = atomic_fetch_add(&n_before, 1) * 2654435769u;
    size_t place = (size_t)((uint64_t)part * HUGE_BYTES >> 32) / small * small;
    size_t before = (HUGE_BYTES - (uintptr_t)pages % HUGE_BYTES) % HUGE_BYTES + place;
    if (before > 0)
        munmap(pages, before);
    munmap(pages + before + size, all - before - size);
    madvise(pages + before, size, MADV_HUGEPAGE);
    return pages + before;
}

#endif

void *pages_alloc(size_t size_bytes)
{
    if (size_bytes == 0)
        return NULL;
#if defined(MADV_HUGEPAGE)
    if (size_bytes >= HUGE_FROM_BYTES)
        return huge_pages_alloc(size_bytes);
#endif
    void *pages = mmap(NULL, size_bytes, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANON
#if defined(MAP_NORESERVE)
                           | MAP_NORESERVE
#endif
                       ,
                       -1, 0);
    return pages == MAP_FAILED ? NULL : pages;
}

void pages_free(void *pages, size_t size_bytes)
{
    if (pages != NULL)
        munmap(pages, size_bytes);
}

#define MIN_RESERVE_BYTES ((uint64_t)2 << 30)
#define MAX_RESERVE_BYTES ((uint64_t)8 << 30)

uint64_t machine_usable_bytes(uint64_t memory_bytes)
{
    uint64_t reserve = MIN(MAX(memory_bytes / 8, MIN_RESERVE_BYTES), MAX_RESERVE_BYTES);
    return memory_bytes - MIN(reserve, memory_bytes / 4);
}

#if defined(__APPLE__)

static uint64_t sysctl_number(const char *name)
{
    uint64_t value = 0;
    size_t size = sizeof value;
    if (sysctlbyname(name, &value, &size, NULL, 0) != 0)
        return 0;
    if (size == sizeof(uint32_t)) {
        uint32_t narrow;
        memcpy(&narrow, &value, sizeof narrow);
        return narrow;
    }
    return value;
}

void machine_query(struct machine *out)
{
    uint64_t cores = sysctl_number("hw.perflevel0.physicalcpu");
    if (cores == 0)
        cores = sysctl_number("hw.physicalcpu");
    out->physical_cores = cores > 0 ? (unsigned)cores : 1;
    out->processors = 0; /* all of them */
    out->memory_bytes = sysctl_number("hw.memsize");
    out->memory_free_bytes = out->memory_bytes / 2;

    vm_statistics64_data_t stats;
    mach_msg_type_number_t count = HOST_VM_INFO64_COUNT;
    if (host_statistics64(mach_host_self(), HOST_VM_INFO64, (host_info64_t)&stats, &count) ==
        KERN_SUCCESS) {
        uint64_t pages = (uint64_t)stats.free_count + stats.inactive_count + stats.purgeable_count;
        out->memory_free_bytes = pages * (uint64_t)getpagesize();
    }

    task_vm_info_data_t own;
    count = TASK_VM_INFO_COUNT;
    out->memory_own_bytes = 0;
    if (task_info(mach_task_self(), TASK_VM_INFO, (task_info_t)&own, &count) == KERN_SUCCESS)
        out->memory_own_bytes = own.phys_footprint;
}

#else

static uint64_t meminfo_bytes(const char *field)
{
    return cgroup_read_field("/proc/meminfo", field) * 1024;
}

/* CPUs this process may run on that are the first of their core; *processors: a hash (FNV-1a) of
 * which it may run on. */
static unsigned physical_cores(uint64_t *processors)
{
    cpu_set_t allowed;
    *processors = 14695981039346656037u;
    if (sched_getaffinity(0, sizeof allowed, &allowed) != 0)
        return 1;
    unsigned cores = 0, cpus = 0;
    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++) {
        if (!CPU_ISSET(cpu, &allowed))
            continue;
        cpus++;
        *processors = (*processors ^ (uint64_t)cpu) * 1099511628211u;
        char path[96];
        uint64_t first;
        snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu%d/topology/thread_siblings_list",
                 cpu);
        if (!cgroup_read_number(path, &first) || first == (uint64_t)cpu)
            cores++;
    }
    return cores > 0 ? cores : MAX(cpus, 1);
}

/* /proc/self/statm counts pages: size, resident, and those of them that are files'. */
static uint64_t own_memory_bytes(void)
{
    FILE *file = fopen("/proc/self/statm", "r");
    unsigned long long resident = 0, shared = 0;
    if (file == NULL)
        return 0;
    if (fscanf(file, "%*s %llu %llu", &resident, &shared) != 2 || shared > resident)
        resident = shared = 0;
    fclose(file);
    return (resident - shared) * (uint64_t)sysconf(_SC_PAGESIZE);
}

void machine_query(struct machine *out)
{
    out->physical_cores = physical_cores(&out->processors);
    out->memory_bytes = meminfo_bytes("MemTotal");
    out->memory_free_bytes = meminfo_bytes("MemAvailable");
    cgroup_apply("", &out->memory_bytes, &out->memory_free_bytes);
    out->memory_own_bytes = own_memory_bytes();
}

#endif

#if defined(__x86_64__)

/* Whether a bit of a register of CPUID leaf 7 is set: 0 to 3 for EAX to EDX. */
static bool cpu_leaf7(unsigned subleaf, int reg, int bit)
{
    unsigned out[4] = {0};
    return __get_cpuid_count(7, subleaf, &out[0], &out[1], &out[2], &out[3]) &&
           (out[reg] >> bit & 1) != 0;
}

/* The system must save the tiles (XCR0), and on Linux a process must ask for that: the state is
 * large, and grows the signal frames of threads that use it. */
static bool tiles_allowed(void)
{
    const uint32_t tile_state = 3 << 17;
    uint32_t low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    (void)high;
    if ((low & tile_state) != tile_state)
        return false;
#if defined(__linux__)
    const long arch_req_xcomp_perm = 0x1023, xfeature_xtiledata = 18;
    return syscall(SYS_arch_prctl, arch_req_xcomp_perm, xfeature_xtiledata) == 0;
#else
    return false; /* no CPU that macOS runs on has tiles */
#endif
}

/* The compiler's own test covers the registers that the system saves (XCR0) as well, but does not
 * know AMX everywhere. */
unsigned machine_cpu_features(void)
{
    unsigned features = 0;
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
        features |= CPU_AVX2;
    if (features != 0 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vnni"))
        features |= CPU_AVX512;
    if ((features & CPU_AVX512) != 0 && cpu_leaf7(1, 0, 5))
        features |= CPU_AVX512_BF16;
    if ((features & CPU_AVX512) != 0 && cpu_leaf7(0, 3, 22) && cpu_leaf7(0, 3, 24) &&
        tiles_allowed())
        features |= CPU_AMX_BF16;
    return features;
}

#elif defined(__aarch64__) && defined(__APPLE__)

unsigned machine_cpu_features(void)
{
    return sysctl_number("hw.optional.arm.FEAT_DotProd") != 0 ? CPU_ARM_DOTPROD : 0;
}

#elif defined(__aarch64__) && defined(__linux__)

unsigned machine_cpu_features(void)
{
    return getauxval(AT_HWCAP) & HWCAP_ASIMDDP ? CPU_ARM_DOTPROD : 0;
}

#else

unsigned machine_cpu_features(void)
{
    return 0;
}

#endif
