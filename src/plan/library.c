/* docs/machines.yaml as a part of the program. */
#include "plan/plan.h"

/* Made by tools/embed-text. */
extern const unsigned char plan_library_text[];
extern const size_t plan_library_size;

struct view plan_library(void)
{
    return (struct view){(const char *)plan_library_text, plan_library_size};
}
