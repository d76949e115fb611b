"""The Python of docs/networks.md."""

import pathlib
import re

import pytest

TEXT = (pathlib.Path(__file__).parents[2] / "docs/networks.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_examples_run_as_written():
    names = {}
    for code in re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL):
        exec(compile(code, "networks.md", "exec"), names)
    assert (names["released"].num_widths, names["paper"].num_widths) == (14, 18)
    assert names["trainer"].routes == names["variant"].routes == (0, 1, 2, 3)
    assert names["preset"].accuracy["dynamic"] == 0.9178
    assert names["preset"].accuracy[13] == 0.9185


def test_the_ranges_of_channels_are_those_of_the_specs():
    from keras_dsnet.models import MobileNetSpec

    for column, spec in ((1, MobileNetSpec()), (2, MobileNetSpec.paper())):
        for block, stage in (("blocks 6 to 11", 3), ("blocks 12 and 13", 4)):
            cell = re.search(rf"^\| channels of {block} \|(.*)$", TEXT, re.MULTILINE)[1]
            ends, steps = re.fullmatch(
                r".*?(\d+ to \d+) in steps of ([\d or]+)", cell.split("|")[column - 1].strip()
            ).groups()
            channels = spec.stages[stage].channels
            assert ends == f"{channels[0]} to {channels[-1]}"
            found = {b - a for a, b in zip(channels, channels[1:])}
            assert found == set(map(int, steps.split(" or ")))
