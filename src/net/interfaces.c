/* The network interfaces of this machine, and what the system knows of them. */
#include "net/address.h"
#include "net/internal.h"

#include <errno.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#ifdef __APPLE__
#include <net/if_media.h>
#include <net/if_types.h>
#include <sys/ioctl.h>
#include <sys/sockio.h>
#endif

enum { MAX_INTERFACES = 64 };

const char *net_interface_kind_text(enum net_interface_kind kind)
{
    static const char *const texts[] = {
        [NET_INTERFACE_ETHERNET] = "Ethernet",       [NET_INTERFACE_WIFI] = "Wi-Fi",
        [NET_INTERFACE_THUNDERBOLT] = "Thunderbolt", [NET_INTERFACE_LOOPBACK] = "loopback",
        [NET_INTERFACE_VIRTUAL] = "virtual",         [NET_INTERFACE_OTHER] = "other",
    };
    return texts[kind];
}

#if defined(__APPLE__)

/* What macOS names itself: the bridge over all Thunderbolt ports, and what has no cable. */
static enum net_interface_kind kind_of_name(const char *name)
{
    static const char *const no_cable[] = {"utun", "awdl", "llw",    "ap",    "anpi",
                                           "gif",  "stf",  "bridge", "vmenet"};
    if (strcmp(name, "bridge0") == 0)
        return NET_INTERFACE_THUNDERBOLT;
    for (size_t i = 0; i < ARRAY_COUNT(no_cable); i++)
        if (strncmp(name, no_cable[i], strlen(no_cable[i])) == 0)
            return NET_INTERFACE_VIRTUAL;
    return NET_INTERFACE_ETHERNET;
}

static void ask_system(struct net_interface *out)
{
    struct ifmediareq media = {0};
    int fd = socket(AF_INET, SOCK_DGRAM, 0);
    out->kind = kind_of_name(out->name);
    snprintf(media.ifm_name, sizeof media.ifm_name, "%s", out->name);
    if (fd >= 0 && out->kind == NET_INTERFACE_ETHERNET && ioctl(fd, SIOCGIFMEDIA, &media) == 0 &&
        IFM_TYPE(media.ifm_current) == IFM_IEEE80211)
        out->kind = NET_INTERFACE_WIFI;
    if (fd >= 0)
        close(fd);
}

void net_interface_bind(int fd, int family, const char *name)
{
    int index = (int)if_nametoindex(name);
    if (family == AF_INET6)
        setsockopt(fd, IPPROTO_IPV6, IPV6_BOUND_IF, &index, sizeof index);
    else
        setsockopt(fd, IPPROTO_IP, IP_BOUND_IF, &index, sizeof index);
}

static void ask_entry(struct net_interface *out, const struct ifaddrs *entry)
{
    const struct if_data *data = entry->ifa_data;
    if (entry->ifa_addr->sa_family == AF_LINK && data != NULL && data->ifi_baudrate != UINT32_MAX)
        out->speed_mbit = data->ifi_baudrate / 1000000;
}

#else

/* /sys/class/net/NAME/LEAF. */
static void system_path(char path[128], const char *name, const char *leaf)
{
    snprintf(path, 128, "/sys/class/net/%s/%s", name, leaf);
}

static bool system_has(const char *name, const char *leaf)
{
    char path[128];
    system_path(path, name, leaf);
    return access(path, F_OK) == 0;
}

/* -1 where the system says nothing. */
static long system_number(const char *name, const char *leaf)
{
    char path[128];
    long number = -1;
    system_path(path, name, leaf);
    FILE *file = fopen(path, "re");
    if (file == NULL)
        return -1;
    if (fscanf(file, "%ld", &number) != 1)
        number = -1;
    fclose(file);
    return number;
}

static bool driver_is(const char *name, const char *driver)
{
    char path[128], target[256];
    system_path(path, name, "device/driver");
    ssize_t size = readlink(path, target, sizeof target - 1);
    if (size <= 0)
        return false;
    target[size] = '\0';
    const char *slash = strrchr(target, '/');
    return strcmp(slash != NULL ? slash + 1 : target, driver) == 0;
}

static void ask_system(struct net_interface *out)
{
    enum { ETHERNET_HARDWARE = 1 };
    long speed = system_number(out->name, "speed");
    out->speed_mbit = speed > 0 && speed < UINT32_MAX ? (uint32_t)speed : 0;
    if (system_has(out->name, "wireless") || system_has(out->name, "phy80211"))
        out->kind = NET_INTERFACE_WIFI;
    else if (driver_is(out->name, "thunderbolt-net"))
        out->kind = NET_INTERFACE_THUNDERBOLT;
    else if (!system_has(out->name, "device"))
        out->kind = NET_INTERFACE_VIRTUAL;
    else if (system_number(out->name, "type") == ETHERNET_HARDWARE)
        out->kind = NET_INTERFACE_ETHERNET;
    else
        out->kind = NET_INTERFACE_OTHER;
}

void net_interface_bind(int fd, int family, const char *name)
{
    (void)family;
    setsockopt(fd, SOL_SOCKET, SO_BINDTODEVICE, name, (socklen_t)strlen(name) + 1);
}

static void ask_entry(struct net_interface *out, const struct ifaddrs *entry)
{
    (void)out, (void)entry;
}

#endif

/* The interface of that name, which is added where it is new; NULL where there are too many. */
static struct net_interface *find(struct net_interface *all, size_t *n, const struct ifaddrs *entry)
{
    for (size_t i = 0; i < *n; i++)
        if (strcmp(all[i].name, entry->ifa_name) == 0)
            return &all[i];
    if (*n == MAX_INTERFACES || strlen(entry->ifa_name) >= NET_INTERFACE_NAME_BYTES)
        return NULL;
    struct net_interface *out = &all[(*n)++];
    *out = (struct net_interface){.index = if_nametoindex(entry->ifa_name)};
    snprintf(out->name, sizeof out->name, "%s", entry->ifa_name);
    /* Linux has multicast on loopback, too, but does not say so. */
    bool loopback = (entry->ifa_flags & IFF_LOOPBACK) != 0;
    out->multicast = loopback || (entry->ifa_flags & IFF_MULTICAST) != 0;
    out->running = (entry->ifa_flags & IFF_RUNNING) != 0;
    ask_system(out);
    if (loopback)
        out->kind = NET_INTERFACE_LOOPBACK;
    return out;
}

/* The leading ones of a mask. */
static uint8_t prefix_of(const struct sockaddr *mask, int family)
{
    uint8_t bytes[sizeof(struct in6_addr)] = {0};
    size_t size = family == AF_INET6 ? sizeof(struct in6_addr) : sizeof(struct in_addr), bits = 0;
    if (mask == NULL)
        return (uint8_t)(8 * size);
    if (family == AF_INET6)
        memcpy(bytes, &((const struct sockaddr_in6 *)mask)->sin6_addr, size);
    else
        memcpy(bytes, &((const struct sockaddr_in *)mask)->sin_addr, size);
    while (bits < 8 * size && (bytes[bits / 8] >> (7 - bits % 8) & 1) != 0)
        bits++;
    return (uint8_t)bits;
}

enum status net_interfaces(struct net_interface **out, size_t *n, struct error *error)
{
    struct ifaddrs *entries;
    *n = 0;
    *out = calloc(MAX_INTERFACES, sizeof **out);
    if (*out == NULL)
        return error_memory(error, MAX_INTERFACES * sizeof **out);
    if (getifaddrs(&entries) != 0) {
        int reason = errno;
        free(*out);
        *out = NULL;
        return error_set(error, STATUS_IO, "the system does not list its network interfaces: %s",
                         strerror(reason));
    }
    for (const struct ifaddrs *entry = entries; entry != NULL; entry = entry->ifa_next) {
        struct net_interface *one;
        if ((entry->ifa_flags & IFF_UP) == 0 || entry->ifa_addr == NULL ||
            (one = find(*out, n, entry)) == NULL)
            continue;
        ask_entry(one, entry);
        int family = entry->ifa_addr->sa_family;
        if ((family != AF_INET && family != AF_INET6) ||
            one->n_addresses == NET_INTERFACE_ADDRESSES)
            continue;
        one->prefixes[one->n_addresses] = prefix_of(entry->ifa_netmask, family);
        address_text(entry->ifa_addr, false, one->addresses[one->n_addresses++]);
    }
    freeifaddrs(entries);
    size_t kept = 0;
    for (size_t i = 0; i < *n; i++)
        if ((*out)[i].n_addresses > 0)
            (*out)[kept++] = (*out)[i];
    *n = kept;
    return STATUS_OK;
}

enum status net_interface_check(const char *name, struct error *error)
{
    struct net_interface *all;
    char names[160] = "";
    size_t n, used = 0;
    if (if_nametoindex(name) != 0)
        return STATUS_OK;
    enum status status = net_interfaces(&all, &n, error);
    if (status != STATUS_OK)
        return status;
    for (size_t i = 0; i < n && used < sizeof names; i++)
        used += (size_t)snprintf(names + used, sizeof names - used, "%s%s", i > 0 ? ", " : "",
                                 all[i].name);
    free(all);
    return error_set(error, STATUS_NOT_FOUND, "there is no network interface %.32s; there are: %s",
                     name, names);
}
