/* chart: panels of lines as an SVG picture, readable on light and on dark backgrounds. */
#ifndef CONSORT_CLI_CHART_H
#define CONSORT_CLI_CHART_H

#include "base/base.h"

#define CHART_PANELS 4

/* One number a (tick, series) pair, at tick * tick_stride + series * series_stride. 0: none. */
struct chart_values {
    const double *at;
    size_t tick_stride, series_stride;
};

/* Ticks stand at equal distances; y begins at zero. */
struct chart_panel {
    const char *title;  /* with the unit of y */
    const char *x_name; /* with its unit */
    const uint32_t *ticks;
    size_t n_ticks;
    const char *series_name;
    const uint32_t *series;
    size_t n_series;
    struct chart_values value, limit; /* limits are dashed */
};

struct chart {
    const char *title, *subtitle;
    struct chart_panel panels[CHART_PANELS]; /* two a row, which share their series */
    size_t n_panels;
};

/* False when memory is out. */
bool chart_svg(struct buffer *out, const struct chart *chart);

#endif
