"""The saved network that a flag names."""

import pytest
from keras_dsnet_recipes.lib.checks import find_model


@pytest.mark.parametrize(
    ("saved", "filenames", "expected"),
    [
        (["model.keras"], ("model.keras", "supernet.keras"), "model.keras"),
        (["supernet.keras"], ("model.keras", "supernet.keras"), "supernet.keras"),
        (["model.keras", "supernet.keras"], ("model.keras", "supernet.keras"), "model.keras"),
        (["model.keras", "supernet.keras"], ("supernet.keras", "model.keras"), "supernet.keras"),
    ],
)
def test_the_first_network_of_a_work_directory_is_taken(saved, filenames, expected, tmp_path):
    for name in saved:
        (tmp_path / name).touch()
    assert find_model(tmp_path, filenames=filenames) == tmp_path / expected
    assert find_model(tmp_path / saved[-1], filenames=filenames) == tmp_path / saved[-1]


def test_a_work_directory_without_a_network_is_told_by_its_flag(tmp_path):
    with pytest.raises(FileNotFoundError, match=rf"--supernet={tmp_path} is no \.keras file"):
        find_model(tmp_path, "supernet")
