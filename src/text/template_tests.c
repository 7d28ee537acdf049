/* The tests of Jinja2: "x is divisibleby 3". */
#include "text/template.h"

#include <string.h>

static struct value test_defined(struct run *run, struct value self, struct call *call)
{
    (void)run, (void)call;
    return value_bool(self.kind != KIND_UNDEFINED);
}

static struct value test_undefined(struct run *run, struct value self, struct call *call)
{
    (void)run, (void)call;
    return value_bool(self.kind == KIND_UNDEFINED);
}

static struct value test_none(struct run *run, struct value self, struct call *call)
{
    (void)run, (void)call;
    return value_bool(self.kind == KIND_NONE);
}

static struct value test_boolean(struct run *run, struct value self, struct call *call)
{
    (void)run, (void)call;
    return value_bool(self.kind == KIND_BOOL);
}

static struct value test_true(struct run *run, struct value self, struct call *call)
{
    (void)run, (void)call;
    return value_bool(self.kind == KIND_BOOL && self.boolean);
}

static struct value test_false(struct run *run, struct value self, struct call *call)
{
    (void)run, (void)call;
    return value_bool(self.kind == KIND_BOOL && !self.boolean);
}

static struct value test_integer(struct run *run, struct value self, struct call *call)
{
    (void)run, (void)call;
    return value_bool(self.kind == KIND_INT);
}

static struct value test_float(struct run *run, struct value self, struct call *call)
{
    (void)run, (void)call;
    return value_bool(self.kind == KIND_FLOAT);
}

static struct value test_number(struct run *run, struct value self, struct call *call)
{
    (void)run, (void)call;
    return value_bool(value_is_number(self));
}

static struct value test_string(struct run *run, struct value self, struct call *call)
{
    (void)run, (void)call;
    return value_bool(self.kind == KIND_STRING);
}

static struct value test_mapping(struct run *run, struct value self, struct call *call)
{
    (void)run, (void)call;
    return value_bool(self.kind == KIND_DICT);
}

static struct value test_sequence(struct run *run, struct value self, struct call *call)
{
    size_t length;
    (void)run, (void)call;
    return value_bool(self.kind != KIND_VIEW && value_length(self, &length));
}

static struct value test_iterable(struct run *run, struct value self, struct call *call)
{
    (void)run, (void)call;
    return value_bool(value_iterable(self));
}

static struct value test_callable(struct run *run, struct value self, struct call *call)
{
    (void)run, (void)call;
    switch (self.kind) {
    case KIND_UNDEFINED: /* has a __call__, which fails */
    case KIND_MACRO:
    case KIND_METHOD:
    case KIND_BUILTIN:
    case KIND_LOOP:
    case KIND_JOINER:
        return value_bool(true);
    default:
        return value_bool(false);
    }
}

static struct value test_escaped(struct run *run, struct value self, struct call *call)
{
    (void)run, (void)call;
    return value_bool(self.kind == KIND_STRING && self.string->safe);
}

static struct value test_odd(struct run *run, struct value self, struct call *call)
{
    (void)call;
    struct value rest = template_binary(run, '%', self, value_int(2));
    return value_bool(!run->failed && value_equal(run, rest, value_int(1)));
}

static struct value test_even(struct run *run, struct value self, struct call *call)
{
    (void)call;
    struct value rest = template_binary(run, '%', self, value_int(2));
    return value_bool(!run->failed && value_equal(run, rest, value_int(0)));
}

static struct value test_divisibleby(struct run *run, struct value self, struct call *call)
{
    struct value rest = template_binary(run, '%', self, call->bound[0]);
    return value_bool(!run->failed && value_equal(run, rest, value_int(0)));
}

static struct value test_equal(struct run *run, struct value self, struct call *call)
{
    return value_bool(value_equal(run, self, call->bound[0]));
}

static struct value test_unequal(struct run *run, struct value self, struct call *call)
{
    return value_bool(!value_equal(run, self, call->bound[0]));
}

static struct value test_greater(struct run *run, struct value self, struct call *call)
{
    bool unordered;
    return value_bool(value_compare(run, self, call->bound[0], &unordered) > 0 && !unordered);
}

static struct value test_greater_equal(struct run *run, struct value self, struct call *call)
{
    bool unordered;
    return value_bool(value_compare(run, self, call->bound[0], &unordered) >= 0 && !unordered);
}

static struct value test_less(struct run *run, struct value self, struct call *call)
{
    bool unordered;
    return value_bool(value_compare(run, self, call->bound[0], &unordered) < 0 && !unordered);
}

static struct value test_less_equal(struct run *run, struct value self, struct call *call)
{
    bool unordered;
    return value_bool(value_compare(run, self, call->bound[0], &unordered) <= 0 && !unordered);
}

static struct value test_in(struct run *run, struct value self, struct call *call)
{
    return value_bool(value_contains(run, call->bound[0], self));
}

/* The same object. Small numbers are one object in Python, and so are the constants. */
static struct value test_sameas(struct run *run, struct value self, struct call *call)
{
    struct value other = call->bound[0];
    if (self.kind != other.kind)
        return value_bool(false);
    switch (self.kind) {
    case KIND_NONE:
    case KIND_BOOL:
    case KIND_INT:
    case KIND_STRING:
        return value_bool(value_equal(run, self, other));
    case KIND_FLOAT:
    case KIND_UNDEFINED:
        return value_bool(false);
    default:
        return value_bool(self.list == other.list);
    }
}

/* Whether str(self) has letters and all of them are of one case. */
static struct value has_case(struct run *run, struct value self, bool upper)
{
    struct value text = value_string(run, self);
    bool found = false;
    uint32_t c;
    if (run->failed || !template_spend(run, text.string->size / 8))
        return text;
    for (size_t i = 0, size; i < text.string->size; i += size) {
        size = utf8_decode(text.string->data + i, text.string->size - i, &c);
        if (size == 0 || (upper ? character_lower(c) : character_upper(c)))
            return value_bool(false);
        found |= upper ? character_upper(c) : character_lower(c);
    }
    return value_bool(found);
}

static struct value test_lower(struct run *run, struct value self, struct call *call)
{
    (void)call;
    return has_case(run, self, false);
}

static struct value test_upper(struct run *run, struct value self, struct call *call)
{
    (void)call;
    return has_case(run, self, true);
}

/* What is looked up by its hash, as names are. */
static void check_hashable(struct run *run, struct value value)
{
    if (value.kind == KIND_LIST || value.kind == KIND_DICT)
        template_fail(run, STATUS_INVALID, "a %s is not the name of a filter or test",
                      value_type(value));
}

static struct value test_filter(struct run *run, struct value self, struct call *call)
{
    (void)call;
    check_hashable(run, self);
    return value_bool(template_find_filter(value_view(self)) != NULL);
}

static struct value test_test(struct run *run, struct value self, struct call *call)
{
    (void)call;
    check_hashable(run, self);
    return value_bool(template_find_test(value_view(self)) != NULL);
}

const struct builtin *template_find_test(struct view name)
{
    static const struct builtin tests[] = {
        {"defined", test_defined, "", 0},
        {"undefined", test_undefined, "", 0},
        {"none", test_none, "", 0},
        {"boolean", test_boolean, "", 0},
        {"true", test_true, "", 0},
        {"false", test_false, "", 0},
        {"integer", test_integer, "", 0},
        {"float", test_float, "", 0},
        {"number", test_number, "", 0},
        {"string", test_string, "", 0},
        {"mapping", test_mapping, "", 0},
        {"sequence", test_sequence, "", 0},
        {"iterable", test_iterable, "", 0},
        {"callable", test_callable, "", 0},
        {"escaped", test_escaped, "", 0},
        {"odd", test_odd, "", 0},
        {"even", test_even, "", 0},
        {"divisibleby", test_divisibleby, "num", 1},
        {"==", test_equal, "other", 1},
        {"eq", test_equal, "other", 1},
        {"equalto", test_equal, "other", 1},
        {"!=", test_unequal, "other", 1},
        {"ne", test_unequal, "other", 1},
        {">", test_greater, "other", 1},
        {"gt", test_greater, "other", 1},
        {"greaterthan", test_greater, "other", 1},
        {">=", test_greater_equal, "other", 1},
        {"ge", test_greater_equal, "other", 1},
        {"<", test_less, "other", 1},
        {"lt", test_less, "other", 1},
        {"lessthan", test_less, "other", 1},
        {"<=", test_less_equal, "other", 1},
        {"le", test_less_equal, "other", 1},
        {"in", test_in, "seq", 1},
        {"sameas", test_sameas, "other", 1},
        {"lower", test_lower, "", 0},
        {"upper", test_upper, "", 0},
        {"filter", test_filter, "", 0},
        {"test", test_test, "", 0},
    };
    return template_find_in(tests, ARRAY_COUNT(tests), name);
}
