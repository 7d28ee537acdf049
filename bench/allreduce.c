/* What two nodes need to exchange the halves of an all-reduce over a link on this machine, beside
 * what the system takes for bare TCP in the same run.
 *
 *     allreduce [ROUNDS]
 *
 * Two threads, each on a core of its own, exchange messages over loopback. The ways take turns, so
 * that a drifting machine does not favour one of them; a line shows the median of the rounds.
 *
 *     round trip   one sends, the other sends it back: bare sockets, asked until they answer
 *     exchange     both send, then both receive: bare sockets, the same
 *     trusted      net_wire_exchange without encryption
 *     encrypted    net_wire_exchange with TLS 1.3 (AES-128-GCM) */
#include "net/net.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#ifdef __linux__
#include <sched.h>
#endif

enum {
    SMALL_BYTES = 8192,
    LARGEST_BYTES = 16 << 20,
    MAX_ROUNDS = 1001,
    ROUND_NS = 5000000, /* about what one way takes in one round */
};

enum way { ROUND_TRIP, EXCHANGE, TRUSTED, ENCRYPTED, N_WAYS };

static const char *const way_names[N_WAYS] = {"round trip", "exchange", "trusted", "encrypted"};
static const size_t sizes[] = {1024,   SMALL_BYTES, 16384,   65536,
                               262144, 1 << 20,     4 << 20, LARGEST_BYTES};

static const struct net_link_key key = {"consort-link/1:bench:1", {1}};

/* One end of everything, owned by one thread. */
struct end {
    int number;
    int fd;
    struct net_wire *wires[N_WAYS];
    char *out, *in;
    size_t n_rounds;
    double times[ARRAY_COUNT(sizes)][N_WAYS][MAX_ROUNDS]; /* seconds of one exchange */
};

static struct end ends[2];

static void fail(const char *what)
{
    fprintf(stderr, "allreduce: %s\n", what);
    exit(1);
}

/* ---- The ways -------------------------------------------------------------------------------- */

static void bare(int fd, const char *out, size_t out_bytes, char *in, size_t in_bytes)
{
    while (out_bytes > 0 || in_bytes > 0) {
        ssize_t n = out_bytes > 0 ? send(fd, out, out_bytes, 0) : 0;
        if (n < 0 && errno != EAGAIN)
            fail("a bare socket broke");
        if (n > 0) {
            out += n;
            out_bytes -= (size_t)n;
        }
        n = in_bytes > 0 ? recv(fd, in, in_bytes, 0) : 0;
        if (n == 0 && in_bytes > 0)
            fail("a bare socket ended");
        if (n > 0) {
            in += n;
            in_bytes -= (size_t)n;
        }
    }
}

static void once(struct end *end, enum way way, size_t size)
{
    struct net_transfer transfer = {end->wires[way], end->out, size, end->in, size};
    struct error error;
    switch (way) {
    case ROUND_TRIP:
        if (end->number == 0)
            bare(end->fd, end->out, size, NULL, 0);
        bare(end->fd, NULL, 0, end->in, size);
        if (end->number == 1)
            bare(end->fd, end->out, size, NULL, 0);
        break;
    case EXCHANGE:
        bare(end->fd, end->out, size, end->in, size);
        break;
    default:
        if (net_wire_exchange(&transfer, 1, 0, &error) != STATUS_OK)
            fail(error.text);
    }
}

/* How often one way is taken in a round: the same on both ends. */
static size_t repeats(size_t size)
{
    double guess_ns = 10000 + (double)size * 1.2;
    return (size_t)MAX(ROUND_NS / guess_ns, 2.0);
}

static void pin(int core)
{
#ifdef __linux__
    cpu_set_t all, one;
    CPU_ZERO(&one);
    if (sched_getaffinity(0, sizeof all, &all) != 0)
        return;
    for (int i = 0; i < CPU_SETSIZE; i++)
        if (CPU_ISSET(i, &all) && core-- == 0)
            CPU_SET(i, &one);
    sched_setaffinity(0, sizeof one, &one);
#else
    (void)core;
#endif
}

static void *run_end(void *context)
{
    struct end *end = context;
    pin(end->number);
    memset(end->out, 1, LARGEST_BYTES);
    memset(end->in, 1, LARGEST_BYTES);
    for (size_t round = 0; round < end->n_rounds; round++)
        for (size_t k = 0; k < ARRAY_COUNT(sizes); k++)
            for (int way = 0; way < N_WAYS; way++) {
                size_t n = repeats(sizes[k]);
                once(end, (enum way)way, sizes[k]); /* both ends are here */
                uint64_t start = clock_now_ns();
                for (size_t i = 0; i < n; i++)
                    once(end, (enum way)way, sizes[k]);
                end->times[k][way][round] = (double)(clock_now_ns() - start) / 1e9 / (double)n;
            }
    return NULL;
}

/* ---- Connecting ------------------------------------------------------------------------------ */

static void open_bare(void)
{
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof to;
    int on = 1, listening = socket(AF_INET, SOCK_STREAM, 0);
    if (listening < 0 || bind(listening, (struct sockaddr *)&to, sizeof to) != 0 ||
        listen(listening, 1) != 0 || getsockname(listening, (struct sockaddr *)&to, &size) != 0)
        fail("cannot listen");
    ends[0].fd = socket(AF_INET, SOCK_STREAM, 0);
    if (connect(ends[0].fd, (struct sockaddr *)&to, sizeof to) != 0)
        fail("cannot connect");
    ends[1].fd = accept(listening, NULL, NULL);
    close(listening);
    for (int i = 0; i < 2; i++) {
        setsockopt(ends[i].fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        fcntl(ends[i].fd, F_SETFL, fcntl(ends[i].fd, F_GETFL) | O_NONBLOCK);
    }
}

static bool find_key(void *context, struct view identity, uint8_t secret[NET_SECRET_BYTES])
{
    (void)context, (void)identity;
    memcpy(secret, key.secret, NET_SECRET_BYTES);
    return true;
}

static void take_wire(void *context, struct net_link *link, const struct net_hello *hello)
{
    ends[1].wires[hello->trusted ? TRUSTED : ENCRYPTED] = net_link_detach(link);
    if (ends[1].wires[TRUSTED] != NULL && ends[1].wires[ENCRYPTED] != NULL)
        net_loop_stop(context);
}

static void no_message(void *context, struct net_link *link, uint8_t type, struct view message)
{
    (void)context, (void)link, (void)type, (void)message;
}

static void on_down(void *context, struct net_link *link, enum net_link_fault fault,
                    const char *text)
{
    (void)context, (void)link, (void)fault;
    fail(text);
}

static void *connect_wires(void *context)
{
    struct error error;
    for (int way = TRUSTED; way <= ENCRYPTED; way++) {
        struct net_wire_options options = {
            .hello = {.purpose = NET_DATA, .trusted = way == TRUSTED}};
        if (net_wire_connect(&ends[0].wires[way], context, &key, &options, NULL, NULL, &error) !=
            STATUS_OK)
            fail(error.text);
    }
    return NULL;
}

static void open_wires(void)
{
    static const struct net_link_events events = {take_wire, no_message, on_down, NULL};
    struct net_loop *loop;
    struct net_link_server *server;
    struct error error;
    char address[NET_ADDRESS_BYTES];
    pthread_t thread;
    if (net_loop_open(&loop, &error) != STATUS_OK)
        fail(error.text);
    struct net_link_server_options options = {
        .link = {.events = &events, .context = loop, .hello = {.trusted = true}},
        .find_key = find_key};
    if (net_link_server_open(&server, loop, "127.0.0.1:0", &options, &error) != STATUS_OK)
        fail(error.text);
    snprintf(address, sizeof address, "127.0.0.1:%u", net_link_server_port(server));
    pthread_create(&thread, NULL, connect_wires, address);
    net_loop_run(loop);
    pthread_join(thread, NULL);
    net_link_server_close(server);
    net_loop_close(loop);
}

static void prepare(void)
{
    for (int i = 0; i < 2; i++) {
        ends[i].out = malloc(LARGEST_BYTES);
        ends[i].in = malloc(LARGEST_BYTES);
        if (ends[i].out == NULL || ends[i].in == NULL)
            fail("out of memory");
        for (int way = TRUSTED; way <= ENCRYPTED; way++)
            net_wire_set_spin(ends[i].wires[way], 1000000000);
    }
}

/* ---- Results --------------------------------------------------------------------------------- */

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(size_t k, enum way way)
{
    double sorted[MAX_ROUNDS];
    size_t n = ends[0].n_rounds;
    memcpy(sorted, ends[0].times[k][way], n * sizeof *sorted);
    qsort(sorted, n, sizeof *sorted, compare);
    return sorted[n / 2];
}

static void print_results(void)
{
    printf("| bytes |");
    for (int way = 0; way < N_WAYS; way++)
        printf(" %s, us |", way_names[way]);
    printf(" encrypted / round trip | trusted / exchange | trusted, GB/s | encrypted, GB/s |\n");
    printf("|---|---|---|---|---|---|---|---|---|\n");
    for (size_t k = 0; k < ARRAY_COUNT(sizes); k++) {
        double seconds[N_WAYS];
        printf("| %zu |", sizes[k]);
        for (int way = 0; way < N_WAYS; way++) {
            seconds[way] = median(k, (enum way)way);
            printf(" %.2f |", seconds[way] * 1e6);
        }
        printf(" %.2f | %.2f | %.2f | %.2f |\n", seconds[ENCRYPTED] / seconds[ROUND_TRIP],
               seconds[TRUSTED] / seconds[EXCHANGE], (double)sizes[k] / seconds[TRUSTED] / 1e9,
               (double)sizes[k] / seconds[ENCRYPTED] / 1e9);
    }
}

int main(int argc, char **argv)
{
    pthread_t threads[2];
    size_t n_rounds = argc > 1 ? strtoul(argv[1], NULL, 10) : 51;
    n_rounds = MAX(MIN(n_rounds, (size_t)MAX_ROUNDS), (size_t)1);
    open_bare();
    open_wires();
    prepare();
    for (int i = 0; i < 2; i++) {
        ends[i].number = i;
        ends[i].n_rounds = n_rounds;
        pthread_create(&threads[i], NULL, run_end, &ends[i]);
    }
    for (int i = 0; i < 2; i++)
        pthread_join(threads[i], NULL);
    print_results();
    for (int i = 0; i < 2; i++)
        for (int way = TRUSTED; way <= ENCRYPTED; way++)
            net_wire_close(ends[i].wires[way]);
    return 0;
}
