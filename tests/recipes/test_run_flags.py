"""Which flags may differ when a run goes on."""

import pytest
from keras_dsnet_recipes.lib import run_flags


@pytest.mark.parametrize(
    ("names", "is_free"), [((), True), (("box_augmentation", "eval_split"), False)]
)
def test_images_of_evaluations_are_free_unless_they_are_left_out_of_training(
    names, is_free, monkeypatch
):
    monkeypatch.setattr(run_flags, "FLAGS", names)
    assert ("eval_split" in run_flags.exempt()) == is_free
    assert {"eval_batch_size", "data_dir"} <= set(run_flags.exempt())
