"""Functions that are timed against each other take turns, and none always follows the same one."""

import itertools

import pytest
from keras_dsnet_recipes.benchmarks.timing import low_and_middle, ratios, take_turns


def test_every_function_runs_once_a_round_and_none_always_follows_the_same():
    calls = []
    runs = {name: lambda name=name: calls.append(name) for name in "abc"}
    times = take_turns(runs, rounds=100, warm_up=1)
    text = "".join(calls)
    assert text.startswith("abc")  # the warm-up
    rounds = {text[start : start + 3] for start in range(3, len(text), 3)}
    assert rounds == {"".join(order) for order in itertools.permutations("abc")}
    assert {name: len(values) for name, values in times.items()} == dict.fromkeys("abc", 100)


def test_what_is_compared_comes_one_after_the_other():
    calls = []
    runs = {name: lambda name=name: calls.append(name) for name in ("a1", "b1", "a2", "b2")}
    take_turns(runs, rounds=200, warm_up=1, group=lambda name: name[1])
    rounds = {tuple(calls[start : start + 4]) for start in range(4, len(calls), 4)}
    ones, twos = itertools.permutations(("a1", "b1")), itertools.permutations(("a2", "b2"))
    pairs = list(itertools.product(ones, twos))
    assert rounds == {one + two for one, two in pairs} | {two + one for one, two in pairs}


def test_a_turn_lasts_as_long_as_is_asked_whatever_a_call_takes(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    calls = {"slow": 0, "fast": 0}

    def run(name, seconds):
        calls[name] += 1
        now[0] += seconds

    runs = {"slow": lambda: run("slow", 0.25), "fast": lambda: run("fast", 0.125)}
    times = take_turns(runs, rounds=2, seconds_per_turn=0.5, warm_up=1)
    assert calls == {"slow": 2 + 2 * 2, "fast": 2 + 2 * 4}
    assert times == {"slow": [250.0, 250.0], "fast": [125.0, 125.0]}


def test_ratios_compare_the_minima_and_round_by_round():
    assert low_and_middle([3.0, 1.0, 2.0]) == (1.0, 2.0)
    assert ratios([2.0, 8.0, 6.0], [1.0, 2.0, 3.0]) == pytest.approx((2.0, 2.0))
