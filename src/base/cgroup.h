/* What Linux's control groups leave to this process; and the files of the kernel that say so. */
#ifndef CONSORT_BASE_CGROUP_H
#define CONSORT_BASE_CGROUP_H

#include <stdbool.h>
#include <stdint.h>

/* Lowers *total and *available to what the control groups of this process allow, its own and those
 * above (v2, else v1). root is the folder that holds proc and sys, "" for the system's. */
void cgroup_apply(const char *root, uint64_t *total, uint64_t *available);

/* Reads a number from a file of the kernel's; false where there is none ("max" included). */
bool cgroup_read_number(const char *path, uint64_t *out);
/* The number behind "field" or "field:" in a file of one to a line; 0 where there is none. */
uint64_t cgroup_read_field(const char *path, const char *field);

#endif
