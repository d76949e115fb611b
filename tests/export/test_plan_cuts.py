"""Where kernels are cut: every plan can be run, holds no more than it may, cuts no more than so."""

import importlib

import pytest

from keras_dsnet.export.plan_cuts import plan_cuts, stored_weights


def weights_of(*widths):
    """Weights that grow with the square of the channels, as those of pointwise convolutions."""
    return {width: (224 + 32 * width) ** 2 for width in widths}


SETS = [
    weights_of(0),
    weights_of(5),
    weights_of(0, 13),
    weights_of(0, 4, 9, 13),
    weights_of(0, 1, 2, 3),
    weights_of(*range(14)),
    # Steps of very different size.
    {0: 10, 1: 11, 2: 1000, 3: 1001},
]


@pytest.fixture(params=SETS, ids=lambda parameters: "-".join(map(str, parameters)))
def parameters(request):
    return request.param


@pytest.mark.parametrize("integer", [False, True])
@pytest.mark.parametrize("layout", ["shared", "fast"])
def test_every_route_extends_the_cuts_of_another_one(parameters, layout, integer):
    plan = plan_cuts(parameters, layout, integer)
    assert list(plan) == list(parameters)
    for route, cuts in plan.items():
        assert cuts[-1] == route
        assert list(cuts) == sorted(set(cuts))
        if len(cuts) > 1:
            assert plan[cuts[-2]] == cuts[:-1]


@pytest.mark.parametrize("integer", [False, True])
def test_a_shared_file_holds_little_more_than_its_widest_route(parameters, integer):
    stored = stored_weights(parameters, plan_cuts(parameters, "shared", integer))
    widest = max(parameters.values())
    spare = 0.2 if integer else 0.008 * (len(parameters) - 1)
    assert widest <= stored <= (1 + spare) * widest


def test_fast_has_no_cuts_and_holds_every_route_whole(parameters):
    plan = plan_cuts(parameters, "fast")
    assert plan == {route: (route,) for route in parameters}
    assert stored_weights(parameters, plan) == sum(parameters.values())


def test_what_is_spared_saves_cuts():
    parameters = weights_of(0, 4, 9, 13)
    cuts, cuts_in_int8 = (
        sum(map(len, plan_cuts(parameters, "shared", integer).values()))
        for integer in (False, True)
    )
    assert cuts_in_int8 < cuts
    assert sum(map(len, plan_cuts(weights_of(*range(14)), "shared").values())) < sum(range(1, 15))


def test_weights_are_counted_once_where_routes_begin_with_the_same_cuts():
    parameters = {0: 10, 1: 20, 2: 50}
    assert stored_weights(parameters, {0: (0,), 1: (0, 1), 2: (0, 1, 2)}) == 50
    # The blocks of route 1 are of no use to route 2, nor the other way round.
    assert stored_weights(parameters, {0: (0,), 1: (0, 1), 2: (0, 2)}) == 60
    assert stored_weights(parameters, {0: (0,), 1: (1,), 2: (0, 2)}) == 70


def test_without_spare_weights_each_is_there_once(monkeypatch):
    module = importlib.import_module("keras_dsnet.export.plan_cuts")
    monkeypatch.setattr(module, "SPARE_PER_ROUTE", 0.0)
    parameters = weights_of(*range(14))
    plan = plan_cuts(parameters, "shared")
    assert plan == {route: tuple(range(route + 1)) for route in range(14)}
