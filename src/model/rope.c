/* Rotation frequencies. Su et al. 2021 (RoPE); Chen et al. 2023 (linear); Peng et al. 2023 (YaRN,
 * section 3.2, "NTK-by-parts"); Ding et al. 2024 (LongRoPE: a factor per frequency). */
#include "model/model_internal.h"

#include <math.h>

/* The index of the frequency that makes `turns` full turns over the trained context. */
static double yarn_index(const struct model_desc *desc, double base, double turns)
{
    return desc->rope_dims * log(desc->rope_ctx_orig / (turns * 2 * 3.14159265358979323846)) /
           (2 * log(base));
}

void rope_frequencies(const struct model_desc *desc, float base, bool scaled, const float *factors,
                      float *freqs)
{
    bool yarn = scaled && desc->rope_scaling == MODEL_ROPE_SCALING_YARN;
    double stretch = scaled ? 1.0 / desc->rope_factor : 1.0, low = 0, high = 0;
    if (yarn) {
        low = fmax(0, floor(yarn_index(desc, base, desc->rope_beta_fast)));
        high = fmin(desc->rope_dims - 1, ceil(yarn_index(desc, base, desc->rope_beta_slow)));
    }
    for (uint32_t i = 0; i < desc->rope_dims / 2; i++) {
        double freq = pow(base, -2.0 * i / desc->rope_dims);
        if (factors != NULL)
            freq /= factors[i];
        /* Fast turns stay as they were trained, slow ones are stretched, with a ramp between. */
        double kept = yarn ? 1 - fmin(1, fmax(0, (i - low) / fmax(0.001, high - low))) : 0;
        freqs[i] = (float)(freq * stretch * (1 - kept) + freq * kept);
    }
}
