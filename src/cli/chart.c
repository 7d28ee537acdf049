/* The picture is made of text, polylines and circles alone, so that every viewer shows it. */
#include "cli/chart.h"

#include <math.h>
#include <stdio.h>

#define WIDTH 1000
#define TOP 64 /* title and subtitle */
#define ROW_HEIGHT 350
#define PANEL_WIDTH 500
#define LEGEND_HEIGHT 30
#define PLOT_LEFT 64
#define PLOT_TOP 62 /* below the legend and the panel's title */
#define PLOT_WIDTH 410
#define PLOT_HEIGHT 228
#define MAX_TICKS 8 /* of y */

/* Colours of medium lightness, from cold to warm, stand out on white and on black. */
static const uint8_t ramp[][3] = {
    {0x4a, 0x6f, 0xe3}, {0x12, 0x9c, 0xb5}, {0x2f, 0x9e, 0x4f},
    {0xb5, 0x8a, 0x12}, {0xdb, 0x4f, 0x4f},
};

static const char style[] =
    "<style>\n"
    "text { font: 12px system-ui, sans-serif; fill: #333 }\n"
    ".title { font-size: 18px; font-weight: 600 } .name { font-size: 14px; font-weight: 600 }\n"
    ".end { text-anchor: end } .middle { text-anchor: middle }\n"
    ".back { fill: #fff } .grid { stroke: #e2e2e2 } .axis { stroke: #777 }\n"
    ".line { fill: none; stroke-width: 2 } .limit { fill: none; stroke-dasharray: 4 4 }\n"
    "@media (prefers-color-scheme: dark) {\n"
    "text { fill: #ddd } .back { fill: #16181d } .grid { stroke: #33363d } .axis { stroke: #999 }\n"
    "}\n"
    "</style>\n";

static void add_escaped(struct buffer *out, const char *text)
{
    for (; *text != '\0'; text++)
        switch (*text) {
        case '&':
            buffer_append_text(out, "&amp;");
            break;
        case '<':
            buffer_append_text(out, "&lt;");
            break;
        case '>':
            buffer_append_text(out, "&gt;");
            break;
        case '"':
            buffer_append_text(out, "&quot;");
            break;
        default: /* other control characters are not allowed in XML */
            buffer_append(out, (unsigned char)*text < ' ' ? " " : text, 1);
        }
}

static void add_text(struct buffer *out, double x, double y, const char *class, const char *text)
{
    buffer_printf(out, "<text x=\"%.1f\" y=\"%.1f\" class=\"%s\">", x, y, class);
    add_escaped(out, text);
    buffer_append_text(out, "</text>\n");
}

/* "#rrggbb" of series i of n. */
static const char *colour(char text[8], size_t i, size_t n)
{
    double at = n > 1 ? (double)i / (double)(n - 1) * (ARRAY_COUNT(ramp) - 1) : 0;
    size_t from = MIN((size_t)at, ARRAY_COUNT(ramp) - 2);
    unsigned rgb[3];
    for (int c = 0; c < 3; c++)
        rgb[c] = (unsigned)lround(ramp[from][c] +
                                  (at - (double)from) * (ramp[from + 1][c] - ramp[from][c]));
    snprintf(text, 8, "#%02x%02x%02x", rgb[0] & 255, rgb[1] & 255, rgb[2] & 255);
    return text;
}

/* "4096" is "4k" to save room. */
static const char *tick_text(char text[16], uint32_t tick)
{
    snprintf(text, 16, tick >= 1024 && tick % 1024 == 0 ? "%uk" : "%u",
             tick >= 1024 && tick % 1024 == 0 ? tick / 1024 : tick);
    return text;
}

static double value_at(const struct chart_values *values, size_t tick, size_t series)
{
    return values->at[tick * values->tick_stride + series * values->series_stride];
}

/* The distance of ticks, 1, 2 or 5 times a power of ten, so that at most MAX_TICKS are needed. */
static double tick_step(double most)
{
    double power = pow(10, floor(log10(most / MAX_TICKS)));
    static const double steps[] = {1, 2, 5, 10};
    for (size_t i = 0; i < ARRAY_COUNT(steps); i++)
        if (steps[i] * power * MAX_TICKS >= most)
            return steps[i] * power;
    return 10 * power;
}

/* Where a panel's numbers lie in the picture. */
struct frame {
    double left, top, bottom; /* of the plot */
    double x_step, y_scale;
};

static double x_of(const struct frame *frame, size_t tick)
{
    return frame->left + ((double)tick + 0.5) * frame->x_step;
}

static double y_of(const struct frame *frame, double value)
{
    return frame->bottom - value * frame->y_scale;
}

static struct frame frame_of(const struct chart_panel *panel, double left, double top, double *step)
{
    double most = 0;
    for (size_t t = 0; t < panel->n_ticks; t++)
        for (size_t s = 0; s < panel->n_series; s++)
            most = MAX(most, MAX(value_at(&panel->value, t, s), value_at(&panel->limit, t, s)));
    most = most > 0 ? most : 1;
    *step = tick_step(most);
    return (struct frame){
        .left = left + PLOT_LEFT,
        .top = top + PLOT_TOP,
        .bottom = top + PLOT_TOP + PLOT_HEIGHT,
        .x_step = (double)PLOT_WIDTH / (double)MAX(panel->n_ticks, (size_t)1),
        .y_scale = PLOT_HEIGHT / (ceil(most / *step) * *step),
    };
}

static void add_axes(struct buffer *out, const struct chart_panel *panel, const struct frame *frame,
                     double step)
{
    char text[32];
    double right = frame->left + PLOT_WIDTH;
    for (int i = 0; y_of(frame, i * step) > frame->top - 0.5; i++) {
        double y = y_of(frame, i * step);
        buffer_printf(out, "<path class=\"%s\" d=\"M%.1f %.1fH%.1f\"/>\n", i == 0 ? "axis" : "grid",
                      frame->left, y, right);
        snprintf(text, sizeof text, "%g", i * step);
        add_text(out, frame->left - 8, y + 4, "end", text);
    }
    for (size_t t = 0; t < panel->n_ticks; t++) {
        buffer_printf(out, "<path class=\"axis\" d=\"M%.1f %.1fv5\"/>\n", x_of(frame, t),
                      frame->bottom);
        add_text(out, x_of(frame, t), frame->bottom + 19, "middle",
                 tick_text(text, panel->ticks[t]));
    }
    add_text(out, frame->left + PLOT_WIDTH / 2.0, frame->bottom + 38, "middle", panel->x_name);
    add_text(out, frame->left, frame->top - 12, "name", panel->title);
}

/* The points of a series that exist; a gap ends no line, because gaps are only at its ends. */
static void add_line(struct buffer *out, const struct chart_panel *panel, const struct frame *frame,
                     const struct chart_values *values, size_t series, const char *class,
                     const char *stroke)
{
    buffer_printf(out, "<polyline class=\"%s\" stroke=\"%s\" points=\"", class, stroke);
    for (size_t t = 0; t < panel->n_ticks; t++) {
        double value = value_at(values, t, series);
        if (value > 0)
            buffer_printf(out, "%.1f,%.1f ", x_of(frame, t), y_of(frame, value));
    }
    buffer_append_text(out, "\"/>\n");
}

static void add_series(struct buffer *out, const struct chart_panel *panel,
                       const struct frame *frame, size_t series)
{
    char stroke[8];
    colour(stroke, series, panel->n_series);
    add_line(out, panel, frame, &panel->limit, series, "limit", stroke);
    add_line(out, panel, frame, &panel->value, series, "line", stroke);
    for (size_t t = 0; t < panel->n_ticks; t++) {
        double value = value_at(&panel->value, t, series);
        if (value > 0)
            buffer_printf(out,
                          "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"3.5\" fill=\"%s\">"
                          "<title>%s %u, %s %u: %.1f (limit %.1f)</title></circle>\n",
                          x_of(frame, t), y_of(frame, value), stroke, panel->x_name,
                          panel->ticks[t], panel->series_name, panel->series[series], value,
                          value_at(&panel->limit, t, series));
    }
}

static void add_legend(struct buffer *out, const struct chart_panel *panel, double top)
{
    char stroke[8], text[16];
    double x = PLOT_LEFT, y = top + 16;
    add_text(out, x, y, "key", panel->series_name);
    x += 24 + 6.5 * (double)utf8_count(panel->series_name, view_of(panel->series_name).size);
    for (size_t s = 0; s < panel->n_series; s++) {
        buffer_printf(out, "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"5\" fill=\"%s\"/>\n", x, y - 4,
                      colour(stroke, s, panel->n_series));
        add_text(out, x + 10, y, "key", tick_text(text, panel->series[s]));
        x += 46;
    }
    buffer_printf(out, "<path class=\"limit axis\" d=\"M%.1f %.1fh28\"/>\n", x + 4, y - 4);
    add_text(out, x + 40, y, "key", "limit of this machine");
}

bool chart_svg(struct buffer *out, const struct chart *chart)
{
    int height = TOP + (int)((chart->n_panels + 1) / 2) * ROW_HEIGHT;
    buffer_printf(out,
                  "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %d %d\" width=\"%d\" "
                  "height=\"%d\" role=\"img\">\n<title>",
                  WIDTH, height, WIDTH, height);
    add_escaped(out, chart->title);
    buffer_append_text(out, "</title>\n");
    buffer_append_text(out, style);
    buffer_append_text(out, "<rect class=\"back\" width=\"100%\" height=\"100%\"/>\n");
    add_text(out, PLOT_LEFT, 30, "title", chart->title);
    add_text(out, PLOT_LEFT, 50, "note", chart->subtitle);
    for (size_t i = 0; i < chart->n_panels; i++) {
        const struct chart_panel *panel = &chart->panels[i];
        double step, top = TOP + (double)(i / 2) * ROW_HEIGHT;
        struct frame frame = frame_of(panel, (double)(i % 2) * PANEL_WIDTH, top, &step);
        if (i % 2 == 0)
            add_legend(out, panel, top);
        add_axes(out, panel, &frame, step);
        for (size_t s = 0; s < panel->n_series; s++)
            add_series(out, panel, &frame, s);
    }
    return buffer_append_text(out, "</svg>\n") && !out->failed;
}
