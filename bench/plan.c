/* How long planning takes: rooms of 64 nodes, which is the most, and of 8.
 *
 *   build/bench/plan [ROUNDS]
 *
 * "alike": one machine and one link; "mixed": drawn machines, every pair with a link of its own,
 * the slowest case, for nothing is sorted away. The limit that is aimed at is 10 ms for 64 nodes.
 */
#include "plan/plan.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static double drawn(uint64_t seed, uint32_t at, double least, double most)
{
    return least + (most - least) * rng_uniform(seed, at, 0);
}

static void fill_room(struct plan_node *nodes, struct plan_link *links, uint32_t n, bool mixed)
{
    for (uint32_t i = 0; i < n; i++) {
        nodes[i] = (struct plan_node){
            .memory_bytes = (uint64_t)(mixed ? drawn(1, i, 16e9, 128e9) : 56e9),
            .read_rate = mixed ? drawn(2, i, 40e9, 800e9) : 320e9,
            .flops = mixed ? drawn(3, i, 1e12, 30e12) : 10e12,
            .layer_overhead_s = 50e-6,
        };
        snprintf(nodes[i].name, sizeof nodes[i].name, "node-%u", i + 1);
        for (uint32_t j = 0; j < i; j++) {
            struct plan_link link = {40e-6, 1.1e9, 0};
            if (mixed)
                link = (struct plan_link){drawn(4, i * n + j, 5e-6, 1e-3),
                                          drawn(5, i * n + j, 0.1e9, 6e9), 0};
            links[(size_t)i * n + j] = links[(size_t)j * n + i] = link;
        }
    }
}

static int by_time(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

static int measure(const struct plan_room *room, const char *shape, uint32_t n, bool mixed,
                   int rounds)
{
    static struct plan_layer layers[PLAN_MAX_LAYERS];
    static struct plan_node nodes[PLAN_MAX_NODES];
    static struct plan_link links[PLAN_MAX_NODES * PLAN_MAX_NODES];
    static double times[10000];
    struct plan_model model;
    struct error error;
    plan_shape_model(&model, layers, plan_find_shape(room, shape), 2);
    fill_room(nodes, links, n, mixed);
    struct plan_input input = {nodes, n, links, &model, {8192, 16, 512, PLAN_AUTO, 10}};
    size_t n_plans = 0, n_rejections = 0;
    for (int i = 0; i < rounds; i++) {
        struct plan_result *result;
        uint64_t begin_ns = clock_now_ns();
        if (plan_make(&result, &input, &error) != STATUS_OK) {
            fprintf(stderr, "%s\n", error.text);
            return 1;
        }
        times[i] = (double)(clock_now_ns() - begin_ns) / 1e6;
        n_plans = result->n_plans;
        n_rejections = result->n_rejections;
        plan_free(result);
    }
    qsort(times, (size_t)rounds, sizeof *times, by_time);
    printf("%-16s %5u  %-5s  %8.2f  %8.2f  %8.2f  %6zu  %8zu\n", shape, n,
           mixed ? "mixed" : "alike", times[rounds / 2], times[0], times[rounds - 1], n_plans,
           n_rejections);
    return 0;
}

int main(int argc, char **argv)
{
    static const char *const shapes[] = {"8b-q4_k_m", "70b-q4_k_m", "405b-q4", "r1-671b-q4_k_m"};
    int rounds = argc > 1 ? atoi(argv[1]) : 100, code = 0;
    struct plan_room room = {0};
    struct error error;
    if (rounds < 1 || rounds > 10000 ||
        plan_room_read(&room, plan_library(), "machines.yaml", &error) != STATUS_OK) {
        fprintf(stderr, "usage: %s [ROUNDS], 1 to 10000\n", argv[0]);
        return 2;
    }
    printf("%-16s %5s  %-5s  %8s  %8s  %8s  %6s  %8s\n", "model", "nodes", "", "median ms", "least",
           "most", "plans", "rejected");
    for (size_t s = 0; s < ARRAY_COUNT(shapes) && code == 0; s++)
        for (uint32_t n = 8; n <= PLAN_MAX_NODES && code == 0; n *= 8)
            code = measure(&room, shapes[s], n, false, rounds) != 0 ||
                   measure(&room, shapes[s], n, true, rounds) != 0;
    plan_room_free(&room);
    return code;
}
