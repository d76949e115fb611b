"""What is said of the gates, and of the widths that they never take."""

from keras_dsnet.training import better_excluded_widths, describe_gates

# The case of a user: routes of other classes, and a width outside of them that is much better.
ROWS = [
    {"path": 0, "madds": 10, "top1": 0.50},
    {"path": 1, "madds": 20, "top1": 0.55},
    {"path": 2, "madds": 30, "top1": 0.56},
    {"path": 3, "madds": 40, "top1": 0.66},
    {"path": "dynamic", "madds": 15.0, "top1": 0.53, "shares": [{0: 1.0}, {0: 0.5, 1: 0.5}]},
]


def better(routes, images=None):
    return [
        (row["path"], widest["path"])
        for row, widest in better_excluded_widths(ROWS, routes, images)
    ]


def test_gates_are_numbered_from_1_as_in_the_plots():
    lines = describe_gates(ROWS).splitlines()
    assert lines[0].startswith("gate 1 collapsed")
    assert lines[1].startswith("gate 2 uses 2 widths")


def test_a_width_outside_the_routes_is_better_by_more_than_chance():
    assert better((0, 1)) == [(3, 1), (2, 1)]
    assert better((0, 1), images=1000) == [(3, 1)]
    assert better((0, 1), images=20) == []
    assert better((0, 3)) == []


def test_a_width_outside_the_routes_that_is_as_good_at_fewer_madds_is_better():
    rows = [{"path": 0, "madds": 10, "top1": 0.7}, {"path": 1, "madds": 20, "top1": 0.7}]
    assert better_excluded_widths(rows, (1,), 100) == [(rows[0], rows[1])]
    assert better_excluded_widths(rows, (0,), 100) == []


def test_paths_of_several_gates_and_missing_routes_are_left_out():
    rows = [{"path": (0, 1), "madds": 10, "top1": 0.9}, {"path": 0, "madds": 10, "top1": 0.5}]
    assert better_excluded_widths(rows, (0,)) == []
    assert better_excluded_widths(rows, (0, 5)) == []
