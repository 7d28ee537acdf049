/* What machines cost in a year, and when they have paid for themselves. */
#include "plan/plan.h"

#define HOURS_YEAR 8760.0

struct plan_bill plan_cost(const struct plan_costs *costs, const struct plan_power *power,
                           double capex, double rate)
{
    struct plan_bill bill = {0};
    double watts = power->peak_w * costs->busy + power->idle_w * (costs->awake - costs->busy) +
                   power->sleep_w * (1 - costs->awake);
    bill.kwh_year = watts * HOURS_YEAR / 1000;
    double running = bill.kwh_year * costs->kwh_price + costs->admin_hours * costs->rate;
    bill.year = capex * (1 - costs->residual) / costs->years + running;
    double mtok_year = rate * 3600 * HOURS_YEAR * costs->busy / 1e6;
    bill.per_mtok = mtok_year > 0 ? bill.year / mtok_year : 0;
    double saved = costs->cloud_month - running / 12;
    if (costs->cloud_month > 0)
        bill.months = saved > 0 ? capex / saved : -1;
    return bill;
}
