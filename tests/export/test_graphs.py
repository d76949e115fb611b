"""The graphs of a routed file: the places they have, and the names that carry features."""

import pytest
import tensorflow as tf
from tiny_families import TINY_EFFICIENTNET, TINY_RESNET, tiny_network

from keras_dsnet.export.convert_graphs import _flatten, _nest
from keras_dsnet.export.graphs import RoutedParts

ROUTES = (0, 2)


@pytest.fixture(scope="module", params=[TINY_EFFICIENTNET, TINY_RESNET], ids=["one", "three"])
def parts(request):
    return RoutedParts(tiny_network(request.param), ROUTES).graphs()


def test_each_graph_comes_after_those_whose_features_it_takes(parts):
    running = list(parts.running())
    producers = {part: [] for part in running}
    for producer, consumers in parts.consumers():
        for consumer in consumers:
            producers[consumer].append(producer)
            assert running.index(producer) < running.index(consumer)
    assert [part for part, own in producers.items() if not own] == [parts.front]


def test_a_section_takes_the_features_of_every_width_before_it(parts):
    producers = {}
    for producer, consumers in parts.consumers():
        for consumer in consumers:
            producers.setdefault(consumer, []).append(producer)
    before = dict.fromkeys(ROUTES, parts.front)
    for section in parts.sections:
        for (width_before, _), entry in section.entries.items():
            assert producers[entry] == [before[width_before]]
        for width, rest in section.rest.items():
            entries = [own for (_, after), own in section.entries.items() if after == width]
            assert producers[rest] == (entries or [parts.front])
        before = section.rest
    assert not set(before.values()) & {producer for producer, _ in parts.consumers()}


def test_results_of_a_map_stand_in_the_places_of_the_graphs(parts):
    names = parts.map(lambda part: part.name)
    assert list(names.running()) == [part.name for part in parts.running()]
    assert (names.front, names.allow, names.choices[0]) == ("front", "allow", "choose_1")
    used = [*names.running(), names.allow, *names.choices]
    assert len(set(used)) == len(used)


def test_features_keep_their_order_through_the_names_of_a_signature():
    tensors = {"features": tuple(range(12)), "scores": -1, "min_width": -2}
    flat = _flatten(tensors)
    assert list(flat)[:2] == ["features_0", "features_1"]
    # A converted file gives names in alphabetical order, where 10 is before 2.
    assert _nest(dict(sorted(flat.items()))) == tensors


def test_the_front_takes_images_of_the_type_and_size_of_the_file():
    network = tiny_network(TINY_EFFICIENTNET)
    for raw, dtype in ((False, tf.float32), (True, tf.uint8)):
        front = RoutedParts(network, ROUTES, raw=raw, shape=(24, 20, 3)).graphs().front
        assert front.inputs == {"image": tf.TensorSpec((1, 24, 20, 3), dtype)}
