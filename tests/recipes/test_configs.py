"""The flag files of published experiments, and those of the settings of the paper."""

import json
import math
import pathlib
import re
import zipfile

import pytest
from light_programs import run_light_program
from programs import run_program

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
CONFIGS = sorted((REPOSITORY / "recipes" / "configs").glob("*.cfg"))
STAGE_2 = {path.stem for path in CONFIGS if "_stage2" in path.stem}
GATES_OF_DETECTORS = {"fod_a_gates"}
DETECTION = {
    path.stem for path in CONFIGS if path.stem.startswith(("voc", "fod_a", "bccd"))
} - GATES_OF_DETECTORS

# Epochs, epochs of warm-up, batch size, highest learning rate, weight decay.
STAGE_1_RUNS = {
    "cifar10_stage1": (80, 2, 64, 0.05, 5e-4),
    "cifar10_table5": (15, 1, 64, 0.05, 5e-4),
    "cifar10_table8": (15, 1, 64, 0.05, 5e-4),
    "cifar10_ds_resnet_supernet": (45, 1, 64, 0.05, 5e-4),
    "cifar10_ds_resnet_transfer": (14, 3, 64, 0.04375, 5e-4),
    "tiny_imagenet_ds_resnet_supernet": (12, 1, 64, 0.05, 1e-4),
    "tiny_imagenet_at_48": (15, 1, 64, 0.05, 1e-4),
    "tiny_imagenet_stage1": (2, 0, 64, 0.02, 1e-4),
    "tiny_imagenet_table5": (12, 1, 64, 0.05, 1e-4),
    "cifar10_efficientnet_stage1": (12, 1, 64, 0.05, 5e-4),
    # Sec. 4 and the appendix; the warm-up on ImageNet is that of Goyal et al.
    "imagenet_ds_mobilenet_stage1": (150, 5, 512, 0.08, 1e-4),
    "imagenet_ds_resnet50_stage1": (150, 5, 512, 0.2, 1e-4),
    "imagenet_ds_efficientnet_b0_stage1": (150, 5, 512, 0.2, 1e-4),
    "cifar10_transfer": (70, 15, 1024, 0.7, 1e-4),
}
NETWORKS = {
    "cifar10_stage1": ("DSMobileNet", 0.325, 0.75, None, [1, 1, 2, 1, 2, 2]),
    "cifar10_table5": ("DSMobileNet", 0.25, 0.75, None, [1, 1, 2, 1, 2, 2]),
    "cifar10_ds_resnet_supernet": ("DSResNet50", 0.25, 1, None, [1, 2, 1, 2, 2, 2]),
    "cifar10_ds_resnet_transfer": ("DSResNet50", 0.25, 1, None, [2, 2, 1, 2, 2, 2]),
    "tiny_imagenet_ds_resnet_supernet": ("DSResNet50", 0.25, 1, None, [2, 2, 1, 2, 2, 2]),
    "tiny_imagenet_at_48": ("DSMobileNet", 0.5, 0.75, None, [2, 1, 2, 1, 2, 2]),
    "tiny_imagenet_stage1": ("DSMobileNet", 0.5, 0.75, None, [2, 1, 2, 1, 2, 2]),
    "tiny_imagenet_table5": ("DSMobileNet", 0.5, 0.75, None, [2, 1, 2, 1, 2, 2]),
    "cifar10_table8": ("DSEfficientNetB0", 0.5, 1, None, [2, 1, 2, 1, 2, 1, 2, 1]),
    "cifar10_efficientnet_stage1": ("DSEfficientNetB0", 0.5, 1, None, [2, 1, 2, 1, 2, 1, 2, 1]),
    "imagenet_ds_mobilenet_stage1": ("DSMobileNet", None, None, None, None),
    "imagenet_ds_resnet50_stage1": ("DSResNet50", None, None, None, None),
    "imagenet_ds_efficientnet_b0_stage1": ("DSEfficientNetB0", None, None, None, None),
    "cifar10_transfer": ("DSResNet50", None, None, None, None),
}
# Epochs, batch size, first learning rate, routes, loss weights.
STAGE_2_RUNS = {
    "cifar10_stage2": (16, 128, 0.05, [0, 13], [1, 0.025, 0]),
    "cifar10_gates_stage2": (8, 128, 0.05, [0, 1, 2, 3], [1, 0.5, 1]),
    "cifar10_ds_resnet_transfer_stage2": (8, 128, 0.05, [0, 1, 2, 3], [1, 0.5, 1]),
    "tiny_imagenet_gates_stage2": (8, 128, 0.05, [0, 1, 2, 3], [1, 0.5, 1]),
    "cifar10_efficientnet_stage2": (3, 256, 0.2, [0, 19], [3, 0.05, 0.1]),
    # Sec. 4, appendix A, Tables 6 and 8.
    "imagenet_ds_mobilenet_stage2_S": (10, 512, 0.05, [*range(4)], [1, 0.5, 1]),
    "imagenet_ds_mobilenet_stage2_M": (10, 512, 0.05, [*range(8)], [1, 0.5, 1]),
    "imagenet_ds_mobilenet_stage2_L": (10, 512, 0.05, [*range(14)], [1, 0.5, 1]),
    "imagenet_ds_resnet50_stage2_S": (10, 512, 0.05, [*range(4)], [0, 0.5, 1]),
    "imagenet_ds_resnet50_stage2_M": (10, 512, 0.05, [*range(4)], [1, 0.5, 1]),
    "imagenet_ds_resnet50_stage2_L": (10, 512, 0.05, [*range(4)], [0, 0, 1]),
    "imagenet_ds_efficientnet_b0_stage2_S": (10, 512, 0.05, [*range(5)], [1, 0.5, 1]),
    "imagenet_ds_efficientnet_b0_stage2_L": (10, 512, 0.05, [*range(10)], [1, 0.5, 1]),
}


def _settings(program, configs, folder):
    """Returns what a program sets up for each flag file: one process for all."""
    probe = REPOSITORY / "tests" / "config_runs.py"
    done = run_program(probe, REPOSITORY / "recipes" / program, folder, *configs)
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "settings.json").read_text())


@pytest.fixture(scope="module")
def stage_1(tmp_path_factory):
    others = STAGE_2 | DETECTION | GATES_OF_DETECTORS
    configs = [path for path in CONFIGS if path.stem not in others]
    return _settings("imagenet_stage1.py", configs, tmp_path_factory.mktemp("stage_1"))


@pytest.fixture(scope="module")
def stage_2(tmp_path_factory):
    configs = [path for path in CONFIGS if path.stem in STAGE_2]
    return _settings("imagenet_stage2.py", configs, tmp_path_factory.mktemp("stage_2"))


def _cosine(epoch, epochs, warmup, rate):
    if epoch < warmup:
        return rate * epoch / warmup
    part = (epoch - warmup) / (epochs - warmup)
    return rate * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * part)))


@pytest.mark.long
def test_every_config_has_expectations_here(stage_1, stage_2):
    assert set(stage_1) == set(STAGE_1_RUNS) == set(NETWORKS)
    assert set(stage_2) == set(STAGE_2_RUNS) == STAGE_2


@pytest.mark.slow
@pytest.mark.parametrize("name", STAGE_1_RUNS)
def test_stage_1_has_its_schedule_and_optimizer(name, stage_1):
    epochs, warmup, batch_size, rate, weight_decay = STAGE_1_RUNS[name]
    run = stage_1[name]
    assert (run["epochs"], run["batch_size"]) == (epochs, batch_size)
    expected = [_cosine(epoch, epochs, warmup, rate) for epoch in range(epochs + 1)]
    assert run["rates"] == pytest.approx(expected, rel=1e-5)
    assert run["rates"][0] == (0 if warmup else pytest.approx(rate))
    assert run["rates"][math.ceil(warmup)] == pytest.approx(rate, rel=0.01)
    assert run["rates"][-1] == pytest.approx(0.01 * rate)
    assert run["optimizer"] == ["L2SGD", 0.9, True]
    assert run["weight_decay"] == weight_decay
    # Kernels have weight decay; layers of gates, norms and biases have none.
    decayed = run["decayed"]
    assert decayed
    assert all(path.endswith("kernel") and "gate" not in path for path in decayed)
    # Table 5 found in-place distillation the best on small photographs.
    in_place = "ds_resnet_" in name or name in (
        "cifar10_stage1",
        "tiny_imagenet_at_48",
        "tiny_imagenet_stage1",
    )
    assert run["trainer"]["target"] == ("in_place" if in_place else "ensemble")
    assert run["trainer"]["label_smoothing"] == 0
    assert run["trainer"]["num_random"] == (
        2 if name.startswith("imagenet") or name == "cifar10_transfer" else 1
    )
    assert run["trainer"]["seed"] == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_stage_1_has_its_network_and_augmentation(name, stage_1):
    application, alpha, front_alpha, output_stride, strides = NETWORKS[name]
    run, options = stage_1[name], stage_1[name]["options"]
    assert run["application"] == application
    assert (options["alpha"], options["front_alpha"]) == (alpha, front_alpha)
    assert (options["output_stride"], options["strides"]) == (output_stride, strides)
    assert options["dropout"] == 0
    of_paper = name.startswith("imagenet") or name == "cifar10_transfer"
    is_large = name.startswith("tiny") or name == "cifar10_ds_resnet_transfer"
    side = 224 if of_paper else 64 if is_large else 32
    side = 48 if name == "tiny_imagenet_at_48" else side
    assert options["input_shape"] == [side, side, 3]
    augmentation = run["augmentation"]
    assert augmentation["augmentation"] == ("imagenet" if of_paper else "cifar")
    assert augmentation["auto_augment"] == ("imagenet" if name.startswith("imagenet") else None)
    assert augmentation["randaugment"] == augmentation["color_jitter"] == 0
    if name.startswith("imagenet"):
        gate = {key: options[key] for key in ("attention", "slimming_head", "share_encoder")}
        assert gate == {"attention": "tanh", "slimming_head": "one_hot", "share_encoder": True}


@pytest.mark.slow
@pytest.mark.parametrize("name", STAGE_2_RUNS)
def test_stage_2_has_its_schedule_routes_and_losses(name, stage_2):
    epochs, batch_size, rate, routes, loss_weights = STAGE_2_RUNS[name]
    run = stage_2[name]
    assert (run["epochs"], run["batch_size"]) == (epochs, batch_size)
    assert run["rates"] == pytest.approx([rate * 0.9**epoch for epoch in range(epochs + 1)])
    assert run["optimizer"] == ["SGD", 0.9, True]
    assert (run["weight_decay"], run["decayed"]) == (None, [])
    assert run["trainer"]["routes"] == routes
    assert run["trainer"]["loss_weights"] == loss_weights
    assert run["trainer"]["strategy"] == "try_best"
    of_paper = name.startswith("imagenet")
    apart = name == "cifar10_efficientnet_stage2"
    assert run["head"] == [None, False if apart else None]
    exact = name in ("cifar10_stage2", "cifar10_efficientnet_stage2")
    assert run["trainer"]["estimator"] == ("exact" if exact else "straight_through")
    assert run["augmentation"]["auto_augment"] == ("imagenet" if of_paper else None)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_config_leaves_folders_to_the_command_line_and_tells_how_it_is_used(path):
    text = path.read_text(encoding="utf-8")
    for line in text.splitlines():
        assert re.fullmatch(r"(#.*|--\w+(=\S+)?|)", line), line
        assert not re.match(r"--(data_dir|workdir|supernet|weights|strategy)\b", line), line
    program = "imagenet_stage2.py" if path.stem in STAGE_2 else "imagenet_stage1.py"
    program = "voc_fssd.py" if path.stem in DETECTION else program
    program = "voc_fssd_gates.py" if path.stem in GATES_OF_DETECTORS else program
    assert f"python recipes/{program} --flagfile=recipes/configs/{path.name} " in text


@pytest.mark.parametrize("name", sorted(DETECTION))
def test_the_flags_of_a_detector_are_valid(name, tmp_path):
    config = REPOSITORY / "recipes" / "configs" / f"{name}.cfg"
    program = REPOSITORY / "recipes" / "voc_fssd.py"
    arguments = [f"--flagfile={config}", f"--workdir={tmp_path}/run"]
    # The folder of a flag file of this repository is named from the root of the checkout.
    done = run_light_program(program, *arguments, folder=REPOSITORY)
    assert "ModuleNotFoundError: " in done.stderr


@pytest.mark.parametrize("name", sorted(GATES_OF_DETECTORS))
def test_the_flags_of_a_gate_of_a_detector_are_valid(name, tmp_path):
    saved = {"class_name": "DynamicSlimmableNetwork", "config": {}}
    with zipfile.ZipFile(tmp_path / "detector.keras", "w") as archive:
        archive.writestr("config.json", json.dumps(saved))
    config = REPOSITORY / "recipes" / "configs" / f"{name}.cfg"
    program = REPOSITORY / "recipes" / "voc_fssd_gates.py"
    arguments = [f"--flagfile={config}", f"--workdir={tmp_path}/run", f"--dataset={tmp_path}"]
    done = run_light_program(program, *arguments, f"--detector={tmp_path}", folder=REPOSITORY)
    # The flags are checked before the detector, which this one is not.
    assert "--detector: " in done.stderr
    assert "holds no detector" in done.stderr


def test_the_detector_of_the_paper_has_its_schedule():
    text = (REPOSITORY / "recipes" / "configs" / "voc_fssd.cfg").read_text(encoding="utf-8")
    given = dict(re.findall(r"^--(\w+)=(\S+)$", text, re.MULTILINE))
    paper = {
        "dataset": "voc/2007+2012",
        "image_size": "300",
        "batch_size": "128",
        "epochs": "300",
        "learning_rate": "0.004",
        "decay_epochs": "200,250",
        "momentum": "0.9",
        "weight_decay": "5e-4",
    }
    assert paper.items() <= given.items()


def test_docs_name_configs_that_exist_and_every_config_of_a_result():
    pages = [REPOSITORY / "README.md", *(REPOSITORY / "docs").rglob("*.md")]
    text = "".join(page.read_text(encoding="utf-8") for page in pages)
    named = set(re.findall(r"recipes/configs/(\w+)\.cfg", text))
    known = {path.stem for path in CONFIGS}
    assert named <= known
    assert {name for name in known if name.startswith("cifar10")} <= named


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model=ds_resnet50"], "--widths is for --model=ds_mobilenet"),
        (["--alone=18"], "--alone must be a width from 0 to 17"),
    ],
)
def test_the_widths_of_the_paper_are_checked_early(arguments, message, tmp_path):
    program = REPOSITORY / "recipes" / "imagenet_stage1.py"
    done = run_light_program(program, f"--workdir={tmp_path}", "--widths=paper", *arguments)
    assert done.returncode == 1
    assert message in done.stderr
