/* consort doctor: what will hurt on this machine, and in its cluster. */
#include "cli/remote.h"
#include "cluster/cluster.h"
#include "store/store.h"

#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#define SLOW_MBIT 1000
#define SKEW_MS 5000
#define MUCH_FASTER 1.25 /* a way that data does not take, though it is so much faster */
#define SLOW_RATE 118e6  /* bytes a second: a link of 1 Gbit/s carries no more */
#define LITTLE_DISK ((uint64_t)20 << 30)

static struct {
    bool json;
} args;

/* What was found: [{"level": "ok" | "note" | "problem", "about", "text"}] */
struct findings {
    json_t *list;
    size_t n_problems;
};

static void find(struct findings *findings, const char *level, const char *about,
                 const char *format, ...) BASE_PRINTF(4, 5);

static void find(struct findings *findings, const char *level, const char *about,
                 const char *format, ...)
{
    char text[512];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    findings->n_problems += strcmp(level, "problem") == 0;
    json_array_append_new(
        findings->list, json_pack("{s:s, s:s, s:s}", "level", level, "about", about, "text", text));
}

/* ---- This machine ---------------------------------------------------------------------------- */

static void check_memory(struct findings *findings)
{
    struct machine machine;
    char a[32], b[32];
    machine_query(&machine);
    bool little = machine.memory_free_bytes < machine.memory_bytes / 2;
    find(findings, little ? "note" : "ok", "memory", "%s, of which %s are free%s",
         size_text(a, (double)machine.memory_bytes),
         size_text(b, (double)machine.memory_free_bytes),
         little ? ": other programs hold more than half; large models may not fit" : "");
}

static void check_disk(struct findings *findings)
{
    struct error error;
    struct store *store;
    struct disk disk;
    char text[32];
    enum status status = store_open(&store, NULL, &error);
    if (status == STATUS_OK) {
        status = disk_query(store_path(store), &disk, &error);
        store_close(store);
    }
    if (status != STATUS_OK) {
        find(findings, "problem", "store", "%s", error.text);
        return;
    }
    size_text(text, (double)disk.free_bytes);
    if (disk.kind == DISK_NETWORK)
        find(findings, "problem", "store",
             "models lie on a network disk: opening one takes as long as fetching it. Set "
             "CONSORT_HOME to a folder on a disk of this machine");
    else if (disk.kind == DISK_USB)
        find(findings, "note", "store",
             "models lie on a USB disk: opening one is as slow as it is, and it must not be "
             "unplugged");
    find(findings, disk.free_bytes < LITTLE_DISK ? "note" : "ok", "store", "%s of disk are free%s",
         text, disk.free_bytes < LITTLE_DISK ? ": large models will not fit" : "");
}

static void check_sleep(struct findings *findings)
{
    struct wake_lock *lock = wake_lock_open("consort doctor looks whether it can");
    if (lock == NULL)
        find(
            findings, "note", "sleep",
            "the machine cannot be kept awake while it computes: switch sleep off in its settings");
    else
        find(findings, "ok", "sleep", "the machine is kept awake while it computes");
    wake_lock_close(lock);
#ifdef __APPLE__
    find(findings, "note", "network",
         "macOS asks once whether consort may find devices on the local network: allow it in "
         "System Settings, Privacy & Security, Local Network");
#endif
}

static void check_network(struct findings *findings)
{
    struct net_interface *interfaces = NULL;
    struct error error;
    size_t n = 0, n_wired = 0, n_wifi = 0, n_multicast = 0;
    uint32_t fastest = 0;
    if (net_interfaces(&interfaces, &n, &error) != STATUS_OK) {
        find(findings, "problem", "network", "%s", error.text);
        return;
    }
    for (size_t i = 0; i < n; i++) {
        const struct net_interface *at = &interfaces[i];
        if (at->kind == NET_INTERFACE_LOOPBACK)
            continue;
        bool wifi = at->kind == NET_INTERFACE_WIFI;
        n_wifi += wifi;
        n_wired += !wifi;
        n_multicast += at->multicast;
        char speed[32] = "";
        if (at->speed_mbit > 0)
            snprintf(speed, sizeof speed, ", %u Mbit/s", at->speed_mbit);
        fastest = MAX(fastest, wifi ? 0 : at->speed_mbit);
        find(findings, "ok", "network", "%s: %s%s", at->name, net_interface_kind_text(at->kind),
             speed);
    }
    free(interfaces);
    if (n_wired + n_wifi == 0)
        find(findings, "note", "network", "this machine is in no network: no other can join it");
    else if (n_wired == 0)
        find(findings, "problem", "network",
             "Wi-Fi alone: a message takes milliseconds, and a model on several machines answers "
             "slower than on one. Connect them by cable");
    else if (fastest > 0 && fastest <= SLOW_MBIT)
        find(findings, "note", "network",
             "the fastest cable carries %u Mbit/s: good for pipelines; tensor parallel wants 10 "
             "Gbit/s or Thunderbolt",
             fastest);
    if (n_wired + n_wifi > 0 && n_multicast == 0)
        find(findings, "problem", "network",
             "no interface takes multicast, so nodes do not find each other: name them with "
             "consort up --peer HOST:PORT");
}

/* ---- The cluster ----------------------------------------------------------------------------- */

static void check_nodes(struct findings *findings, const json_t *status)
{
    const json_t *node, *problem;
    size_t i, n_up = 0;
    json_array_foreach(json_object_get(status, "nodes"), i, node)
    {
        const char *state = json_string_value(json_object_get(node, "state"));
        const char *name = json_string_value(json_object_get(node, "name"));
        double skew_ms = json_number_value(json_object_get(node, "clock_skew_ms"));
        n_up += state != NULL && strcmp(state, "up") == 0;
        if (name != NULL && (skew_ms > SKEW_MS || skew_ms < -SKEW_MS))
            find(findings, "problem", "clock",
                 "the clock of %s is %.0f s away from this one's: set both by NTP", name,
                 skew_ms / 1e3);
    }
    find(findings, n_up > 1 ? "ok" : "note", "cluster", "%zu node%s here", n_up,
         n_up == 1 ? " is" : "s are");
    json_array_foreach(json_object_get(status, "problems"), i, problem)
    {
        const char *text = json_string_value(json_object_get(problem, "text"));
        if (text != NULL)
            find(findings, "problem", "cluster", "%s", text);
    }
}

static const char *name_of(const json_t *status, const char *id)
{
    const json_t *node;
    size_t i;
    json_array_foreach(json_object_get(status, "nodes"), i, node)
    {
        if (strcmp(cli_json_text(node, "id"), id) == 0)
            return cli_json_text(node, "name");
    }
    return id;
}

/* The ways between two nodes, that of data first. */
static void check_link(struct findings *findings, const json_t *status, const json_t *link)
{
    const json_t *paths = json_object_get(link, "paths"), *path;
    const json_t *taken = json_array_get(paths, 0), *fastest = taken;
    const char *from = name_of(status, cli_json_text(link, "from"));
    const char *to = name_of(status, cli_json_text(link, "to"));
    double rate = json_number_value(json_object_get(link, "bandwidth")), best = rate;
    size_t i;
    json_array_foreach(paths, i, path)
    {
        double other = json_number_value(json_object_get(path, "bandwidth"));
        if (other > best) {
            best = other;
            fastest = path;
        }
        if (strcmp(cli_json_text(path, "state"), "dead") == 0)
            find(findings, "note", "link", "%s does not reach %s at %s over %s", from, to,
                 cli_json_text(path, "address"), cli_json_text(path, "interface"));
    }
    if (best > rate * MUCH_FASTER)
        find(
            findings, "note", "link",
            "data between %s and %s goes over %s, as data-interface says, with %.0f MB/s; %s would "
            "carry %.0f MB/s",
            from, to, cli_json_text(taken, "interface"), rate / 1e6,
            cli_json_text(fastest, "interface"), best / 1e6);
    find(findings, rate > 0 && rate <= SLOW_RATE ? "note" : "ok", "link",
         "%s to %s: %.0f MB/s, %.0f us%s", from, to, rate / 1e6,
         json_number_value(json_object_get(link, "latency_us")),
         rate > 0 && rate <= SLOW_RATE ? ": good for pipelines at best" : "");
}

static void check_links(struct findings *findings, const json_t *status)
{
    const json_t *link;
    size_t i;
    json_array_foreach(json_object_get(status, "links"), i, link)
        check_link(findings, status, link);
}

static void check_cluster(struct findings *findings)
{
    struct cluster_key key;
    struct server_presence server;
    struct error error;
    json_t *status = NULL;
    enum status loaded = cluster_key_load(&key, &error);
    if (loaded == STATUS_NOT_FOUND) {
        find(
            findings, "note", "cluster",
            "this machine is in no cluster: consort init begins one, consort join TOKEN joins one");
        return;
    }
    if (loaded != STATUS_OK) {
        find(findings, "problem", "cluster", "%s", error.text);
        return;
    }
    if (cli_remote_find(&server, &error) != STATUS_OK) {
        find(findings, "note", "cluster",
             "no server runs here, so the others cannot be asked: "
             "start one with consort up");
        return;
    }
    if (cli_remote_ask(&server, "/consort/cluster", NULL, &status, &error) == STATUS_OK) {
        check_nodes(findings, status);
        check_links(findings, status);
    } else
        find(findings, "problem", "cluster", "%s", error.text);
    json_decref(status);
    server_presence_free(&server);
}

static int run(const struct cli_command *command, char **operands, int n_operands)
{
    struct findings findings = {.list = json_array()};
    const json_t *finding;
    size_t i;
    (void)command, (void)operands, (void)n_operands;
    check_memory(&findings);
    check_disk(&findings);
    check_sleep(&findings);
    check_network(&findings);
    check_cluster(&findings);
    int code = findings.n_problems > 0 ? CLI_FAILED : CLI_DONE;
    if (args.json) {
        int printed = cli_print_json(findings.list);
        return printed != CLI_DONE ? printed : code;
    }
    json_array_foreach(findings.list, i, finding)
    {
        const char *level = json_string_value(json_object_get(finding, "level"));
        cli_printf("%-7s  %-8s  %s\n", level, json_string_value(json_object_get(finding, "about")),
                   json_string_value(json_object_get(finding, "text")));
    }
    json_decref(findings.list);
    return code;
}

static const struct cli_option options[] = {
    {.name = "json", .help = "print a JSON array", .type = CLI_FLAG, .value = &args.json},
};
static const struct cli_group group = CLI_GROUP("options", options);

const struct cli_command cli_doctor = {
    .name = "doctor",
    .operands = "",
    .summary = "Says what will hurt: memory, disk, sleep, network, clocks, nodes that are missing.",
    .description = "Exits with 1 where there is a problem.",
    .groups = {&group, &cli_remote_group},
    .run = run,
};
