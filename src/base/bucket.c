#include "base/base.h"

#include <math.h>

#define NS_PER_MINUTE 60e9

void bucket_fill(struct bucket *bucket, double per_minute, uint64_t now_ns)
{
    if (!bucket->begun)
        bucket->level = per_minute;
    else
        bucket->level += (double)(now_ns - bucket->filled_ns) * per_minute / NS_PER_MINUTE;
    bucket->level = fmin(bucket->level, per_minute);
    bucket->filled_ns = now_ns;
    bucket->begun = true;
}

double bucket_wait_s(const struct bucket *bucket, double per_minute, double wanted)
{
    return fmax(0, wanted - bucket->level) * 60 / per_minute;
}
