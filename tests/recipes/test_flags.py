"""Every program checks its whole command line before it imports TensorFlow."""

import pathlib
import subprocess
import sys

import pytest
import saved_network
from light_programs import run_light_program

RECIPES = pathlib.Path(__file__).resolve().parents[2] / "recipes"
BENCHMARKS = ("confidence", "input", "mobile", "routing", "slicing", "training")
PROGRAMS = (
    "calibrate.py",
    "demo.py",
    "early_exit.py",
    "evaluate.py",
    "evaluate_int8.py",
    "export_mobile.py",
    "imagenet_stage1.py",
    "imagenet_stage2.py",
    "split_frames.py",
    "reproduce.py",
    "voc_fssd.py",
    "voc_fssd_confidence.py",
    "voc_fssd_gates.py",
    "benchmarks/cross_fit.py",
    "benchmarks/measure_all_reduce.py",
    "benchmarks/plan_scale.py",
    "benchmarks/soak.py",
    *(f"benchmarks/benchmark_{name}.py" for name in BENCHMARKS),
)
RUN, MOBILE, ROUTING, SLICING, TRAINING = "--workdir={tmp}/run", *PROGRAMS[-4:]
# The shortest command line that each program accepts.
VALID = {
    "calibrate.py": (RUN, "--model={tmp}/trained", "--max_drop=0.01"),
    "demo.py": (RUN,),
    "early_exit.py": (RUN, "--dataset=digits"),
    "benchmarks/cross_fit.py": (RUN,),
    "benchmarks/measure_all_reduce.py": (RUN, "--part=worker"),
    "benchmarks/plan_scale.py": (RUN,),
    "benchmarks/soak.py": (RUN, "--parts=predictions"),
    "evaluate.py": (RUN, "--model={tmp}/trained"),
    "evaluate_int8.py": (RUN, "--model={tmp}/trained"),
    "export_mobile.py": ("--output={tmp}/m.tflite", "--model={tmp}/trained"),
    "imagenet_stage1.py": (RUN, "--dataset=digits"),
    "imagenet_stage2.py": (RUN, "--dataset=digits", "--supernet={tmp}/trained"),
    # Without --collect_only it would train first, in programs of their own.
    "reproduce.py": (RUN, "--table=5", "--quick", "--collect_only"),
    "split_frames.py": (RUN, "--dataset={tmp}"),
    "voc_fssd.py": (RUN,),
    "voc_fssd_confidence.py": (RUN, "--detector={tmp}/detector"),
    "voc_fssd_gates.py": (RUN, "--detector={tmp}/detector"),
    **{f"benchmarks/benchmark_{name}.py": (RUN,) for name in BENCHMARKS},
}
# Program, one more argument or several, part of the message.
MISTAKES = [
    ("calibrate.py", "--max_madds=1e6", "exactly one of --max_drop and --max_madds"),
    ("calibrate.py", "--max_drop=1.5", "a finite number >= 0 and <= 1"),
    ("calibrate.py", "--steps=0,4", "from 0 to 3 of --model="),
    ("calibrate.py", "--steps=2", "must be two or more ascending widths such as 0,13"),
    ("calibrate.py", "--steps=0,3 --propose_steps=2", "--steps and --propose_steps exclude"),
    ("calibrate.py", "--workdir={tmp}/trained", "is the folder of --model"),
    ("calibrate.py", "--dataset=./nowhere", "--dataset=./nowhere: there is no such folder"),
    ("demo.py", "--quick=maybe", "--quick=maybe"),
    ("early_exit.py", "--exits=9,5", "must be ascending blocks such as 5,9"),
    ("early_exit.py", "--strides=1,2", "--strides must be 6 numbers for --model=ds_mobilenet"),
    ("early_exit.py", "--warmup_epochs=150", "--warmup_epochs must be below --epochs=150"),
    ("early_exit.py", "--strategy=mirrored", "trains in float32 on one device"),
    ("evaluate.py", "--steps=0,1,3 --thresholds=0.5", "--thresholds must be 2 of them"),
    ("evaluate.py", "--thresholds=0.5,1.5", "must be numbers from 0 to 1 such as 0.7"),
    ("evaluate.py", "--paths=0,x", "must be paths such as 0,4,8,13"),
    ("evaluate.py", "--paths=0,4", "must be a width from 0 to 3 for --model="),
    ("evaluate.py", "--paths=0-1", "must be a width from 0 to 3 for --model="),
    ("evaluate.py", "--image_size=0", "--image_size=0"),
    ("evaluate.py", "--image_size=64", "images of (32, 32, 3). Received: --image_size=64"),
    ("evaluate.py", "--eval_batch_size=0", "--eval_batch_size=0"),
    ("evaluate.py", "--dataset=./nowhere", "--dataset=./nowhere: there is no such folder"),
    ("evaluate.py", "--data_dir=nowhere", "--data_dir=nowhere: there is no such folder"),
    ("evaluate.py", "--model=nowhere", "--model=nowhere is no .keras file and no work directory"),
    ("evaluate_int8.py", "--routes=0,4", "from 0 to 3 of --model="),
    ("evaluate_int8.py", "--routes=1,0", "must be ascending widths such as 0,4,8,13"),
    ("evaluate_int8.py", "--images=0", "--images=0"),
    ("evaluate_int8.py", "--representative_images=501", "in the range [1, 500]"),
    ("evaluate_int8.py", "--model={tmp}/open", "takes images of any size"),
    ("evaluate_int8.py", "--data_dir=nowhere", "--data_dir=nowhere: there is no such folder"),
    ("export_mobile.py", "--routes=0,4", "from 0 to 3 of --model="),
    ("export_mobile.py", "--weights=imagenet", "exactly one of --model and --weights"),
    ("benchmarks/cross_fit.py", "--steps=0,14", "ascending widths from 0 to 13"),
    ("benchmarks/cross_fit.py", "--shares=half", "numbers such as 0.5,0.002"),
    ("benchmarks/cross_fit.py", "--splits=0", "--splits=0"),
    ("benchmarks/cross_fit.py", "--model=nowhere", "--model=nowhere is no .keras file"),
    ("export_mobile.py", "--routing=gate --thresholds=0.5", "--thresholds is for routing by con"),
    ("export_mobile.py", "--thresholds=0.5", "the routing of --model="),
    ("export_mobile.py", "--path=1 --routing=confidence", "--path=1 asks for one sub-network"),
    ("export_mobile.py", "--path=4", "must be a width from 0 to 3 for --model="),
    ("export_mobile.py", "--path=0,1", "must be a width from 0 to 3 for --model="),
    ("export_mobile.py", "--path=wide", "must be slimmest, widest, largest, a width"),
    ("export_mobile.py", "--path=1 --routes=0,1", "--path=1 asks for one sub-network"),
    ("export_mobile.py", "--model={tmp}/open", "any size: choose one by --image_size"),
    ("export_mobile.py", "--output={tmp}/no/m.tflite", "there is no folder"),
    ("export_mobile.py", "--output={tmp}/m.lite", "must name a file that ends in .tflite"),
    ("export_mobile.py", "--quantize=int4", "should be one of <none|float16|dynamic|int8>"),
    ("export_mobile.py", "--train_split=train", "Only --quantize=int8 is measured on images"),
    ("imagenet_stage1.py", "--alone=14", "--alone must be a width from 0 to 13"),
    ("imagenet_stage1.py", "--topology=plain --alone=1", "--alone must be a width from 0 to 0"),
    ("imagenet_stage1.py", "--topology=plain --model=ds_resnet50", "ds_mobilenet and ds_effic"),
    ("imagenet_stage1.py", "--topology=plain --variant=S", "has one width: leave --variant"),
    ("imagenet_stage1.py", "--topology=plain --weights=cifar10", "has several widths"),
    ("imagenet_stage1.py", "--activation=gelu", "should be one of <swish|relu>"),
    ("imagenet_stage1.py", "--weights=nowhere.h5", "there is no such file"),
    ("imagenet_stage1.py", "--dataset=./nowhere", "there is no such folder"),
    ("imagenet_stage1.py", "--strategy=multi_worker", "needs the environment variable TF_CONFIG"),
    ("imagenet_stage1.py", "--worker_timeout=2", "--worker_timeout=2"),
    ("imagenet_stage2.py", "--routes=0,4", "from 0 to 3 of --supernet="),
    ("imagenet_stage2.py", "--routes=0,b", "must be ascending widths such as 0,4,8,13"),
    ("imagenet_stage2.py", "--variant=M", "--variant=M has 8 widths; this network has 4"),
    ("imagenet_stage2.py", "--image_size=64", "images of (32, 32, 3). Received: --image_size=64"),
    ("imagenet_stage2.py", "--classes=11", "--classes must be that of --supernet="),
    ("imagenet_stage2.py", "--loss_weights=0,0,0", "must not all be 0"),
    ("imagenet_stage2.py", "--loss_weights=1,2", "3 finite numbers"),
    ("imagenet_stage2.py", "--workdir={tmp}/trained", "is the folder of --supernet"),
    ("imagenet_stage2.py", "--gates_from=nowhere", "--gates_from=nowhere is no .keras file"),
    ("imagenet_stage2.py", "--gates_from={tmp}/trained", "has no trained gates"),
    ("imagenet_stage1.py", "--weights={tmp}/trained --model=ds_resnet50", "of another network"),
    ("imagenet_stage2.py", "--supernet=nowhere", "--supernet=nowhere is no .keras file"),
    ("reproduce.py", "--table=11", "must be some of 5,10,9,6,7,3,beyond,8,2"),
    ("reproduce.py", "--arms=us_net", "must be some of in_place,ema,ensemble"),
    ("reproduce.py", "--seeds=0,x", "whole numbers such as 0,1"),
    ("reproduce.py", "--table=3 --arms=from_scratch --seeds=2", "that these arms of --table=3"),
    ("split_frames.py", "--dataset=./nowhere", "--dataset=./nowhere: there is no such folder"),
    ("split_frames.py", "--ranges=nowhere.txt", "--ranges=nowhere.txt: there is no such file"),
    ("split_frames.py", "--block=0", "--block=0"),
    ("split_frames.py", "--fraction=0.6", "--fraction=0.6"),
    ("voc_fssd.py", "--dataset=nowhere.json", "--dataset=nowhere.json: there is no such file"),
    ("voc_fssd.py", "--dataset=./nowhere", "--dataset=./nowhere: there is no such folder"),
    ("voc_fssd.py", "--ranges=nowhere.txt", "--ranges=nowhere.txt: there is no such file"),
    ("voc_fssd.py", "--backbone=nowhere", "--backbone=nowhere is no .keras file"),
    ("voc_fssd.py", "--backbone={tmp}/trained --alpha=0.5", "--alpha is that of --backbone="),
    ("voc_fssd.py", "--backbone={tmp}/trained --alone=4", "--alone must be a width from 0 to 3"),
    ("voc_fssd.py", "--backbone={tmp}/trained --paths=0,4", "must be a width from 0 to 3"),
    ("voc_fssd.py", "--paths=14", "--paths must be widths from 0 to 13"),
    ("voc_fssd.py", "--alone=14", "--alone must be a width from 0 to 13"),
    ("voc_fssd.py", "--strides=1,1", "--strides must be 6 numbers"),
    ("voc_fssd.py", "--epochs=3 --warmup_epochs=3", "--warmup_epochs must be below --epochs=3"),
    ("voc_fssd.py", "--decay_epochs=9,3", "--decay_epochs must ascend"),
    ("voc_fssd.py", "--scales=0.2,0.1", "must be positive numbers in ascending order"),
    ("voc_fssd.py", "--negative_ratio=0", "--negative_ratio=0"),
    ("voc_fssd.py", "--metric=ap", "--metric=ap"),
    ("voc_fssd.py", "--head=small", "--head=small"),
    ("voc_fssd.py", "--image_size=16", "--image_size=16"),
    ("voc_fssd_confidence.py", "--workdir={tmp}/detector", "is the folder of --detector"),
    ("voc_fssd_confidence.py", "--steps=0,4", "--steps must be widths from 0 to 3 of --detector="),
    ("voc_fssd_confidence.py", "--steps=0,1,3", "--steps must be two widths"),
    ("voc_fssd_confidence.py", "--measure=low_entropy", "--measure needs --max_madds"),
    ("voc_fssd_gates.py", "--detector={tmp}/trained", "no work directory with detector.keras"),
    ("voc_fssd_gates.py", "--detector={tmp}/trained/model.keras", "model.keras holds no detector"),
    ("voc_fssd_gates.py", "--detector={tmp}/gates_detector", "must have one gate. Received: 2"),
    ("voc_fssd_gates.py", "--workdir={tmp}/detector", "is the folder of --detector"),
    ("voc_fssd_gates.py", "--routes=0,4", "--routes must be widths from 0 to 3 of --detector="),
    ("voc_fssd_gates.py", "--loss_weights=0,0,0", "must not all be 0"),
    ("voc_fssd_gates.py", "--score_threshold=1", "--score_threshold=1"),
    (MOBILE, "missing.tflite", "There is no file missing.tflite"),
    (MOBILE, "{tmp}/trained/config.json", "is not a TFLite file"),
    (MOBILE, "--routes=0,14", "from 0 to 13 of --model=ds_mobilenet"),
    (MOBILE, "--model={tmp}/trained --routes=0,4", "from 0 to 3 of --model="),
    (MOBILE, "--model=nowhere", "and none of ds_mobilenet, ds_resnet50, ds_efficientnet_b0"),
    (MOBILE, "--loads=0", "--loads=0"),
    (MOBILE, "--device=", "--device must name this device"),
    (ROUTING, "--paths=0,14", "widths each, from 0 to 13"),
    (ROUTING, "--batch_size=3", "--batch_size must be at least the 4 paths"),
    (ROUTING, "--model=vgg", "--model=vgg"),
    ("benchmarks/benchmark_confidence.py", "--image_size=31", "--image_size=31"),
    ("benchmarks/benchmark_input.py", "--photographs=32", "--batch_size must be at most 28"),
    ("benchmarks/benchmark_input.py", "--batches=1", "--batches=1"),
    ("benchmarks/measure_all_reduce.py", "--image_size=16", "--image_size=16"),
    ("benchmarks/plan_scale.py", "--gpus=8,1", "must be ascending numbers such as 1,8,64"),
    ("benchmarks/plan_scale.py", "--utilization=1.5", "--utilization must be at most 1"),
    ("benchmarks/plan_scale.py", "--network_gbit=0", "--network_gbit=0"),
    ("benchmarks/soak.py", "--parts=threads", "should be one of <predictions|kills|workers|disk>"),
    ("benchmarks/soak.py", "--kills=-1", "--kills=-1"),
    ("benchmarks/soak.py", "--model=nowhere", "--model=nowhere is no .keras file"),
    (SLICING, "--image_size=31", "--image_size=31"),
    (SLICING, "--engine=onnx", "--engine=onnx"),
    (TRAINING, "--setting=64x64", "--setting=64x64"),
    (TRAINING, "--batch_size=0", "--batch_size=0"),
]


@pytest.fixture(scope="module")
def tmp(tmp_path_factory):
    folder = tmp_path_factory.mktemp("flags")
    saved_network.save(folder / "trained")
    saved_network.save_detector(folder / "detector")
    saved_network.save_detector(folder / "gates_detector", gates=2)
    saved_network.save(folder / "open", input_shape=[None, None, 3])
    return folder


@pytest.fixture
def run(tmp):
    def run(program, *arguments):
        """Runs a program where TensorFlow, Keras and keras_dsnet cannot be imported."""
        return run_light_program(
            RECIPES / program, *(part.format(tmp=tmp) for part in arguments), folder=tmp
        )

    return run


def error_of(done):
    """Returns the one line that a program wrote before it ended with exit code 1."""
    assert done.returncode == 1, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    return line


def test_every_program_is_in_this_test():
    starting = [p for p in RECIPES.rglob("*.py") if "\n    start(main" in p.read_text()]
    # The flags after `--` are those of another program; test_workers.py tests it.
    others = {"launch.py"}
    assert {str(path.relative_to(RECIPES)) for path in starting} == {*PROGRAMS, *others}


# The demo imports nothing: it starts the other programs.
@pytest.mark.parametrize("program", [name for name in PROGRAMS if name != "demo.py"])
def test_a_valid_command_line_goes_on_to_import_what_it_needs(program, run, tmp):
    arguments = [argument.replace("{tmp}/run", "{tmp}/valid") for argument in VALID[program]]
    # Its memory is measured in a process that may import everything.
    arguments += ["--nomemory"] if program == TRAINING else []
    done = run(program, *arguments)
    assert done.returncode == 1
    assert "\nModuleNotFoundError: " in done.stderr


@pytest.mark.parametrize("program", PROGRAMS)
def test_an_unknown_flag_is_one_line(program, run):
    assert "Unknown command line flag 'no_such'" in error_of(
        run(program, *VALID[program], "--no_such=1")
    )


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_required_flag_is_asked_for(program, run):
    assert error_of(run(program)).endswith(" must be given")


@pytest.mark.parametrize("program", [name for name in PROGRAMS if name != MOBILE])
def test_an_argument_that_is_no_flag_is_one_line(program, run):
    line = error_of(run(program, *VALID[program], "hat"))
    assert line == "error: unexpected argument 'hat': a flag is written --name=value"


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_ends_a_program_whatever_else_is_wrong(program, flag, run):
    done = run(program, flag)
    assert (done.returncode, done.stderr) == (0, "")
    assert "--[no]debug" in done.stdout


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_folder_that_cannot_be_made_is_one_line(program, run, tmp):
    flag = "--output={tmp}/trained/config.json/m.tflite"
    if "export" not in program:
        flag = "--workdir={tmp}/trained/config.json/run"
    assert f"{tmp}/trained/config.json" in error_of(run(program, *VALID[program], flag))


@pytest.mark.parametrize("program", PROGRAMS)
def test_debug_shows_where_a_check_failed(program, run):
    flag = "--output=" if "export" in program else "--workdir="
    done = run(program, *VALID[program], flag, "--debug")
    assert done.returncode == 1
    assert done.stderr.startswith("Traceback")
    assert "Error: --" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("program", "arguments", "message"), MISTAKES, ids=[f"{p} {a}" for p, a, _ in MISTAKES]
)
def test_a_mistake_is_one_line(program, arguments, message, run, tmp):
    assert message in error_of(run(program, *VALID[program], *arguments.split()))
    assert not (tmp / "run").exists()


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_flag_file_is_checked_and_a_later_flag_wins(program, run, tmp):
    flag = "--output" if "export" in program else "--workdir"
    lines = [part.format(tmp=tmp) for part in VALID[program]]
    lines.append(f"{flag}={tmp}/trained/config.json/x.tflite")
    (tmp / "some.cfg").write_text("# A comment.\n" + "\n".join(lines) + "\n")
    assert f"{tmp}/trained/config.json" in error_of(run(program, "--flagfile={tmp}/some.cfg"))
    later = run(program, "--flagfile={tmp}/some.cfg", f"{flag}={tmp}/x.lite", "--no_such")
    assert "Unknown command line flag 'no_such'" in error_of(later)
    won = run(program, "--flagfile={tmp}/some.cfg", *VALID[program], flag + "=")
    assert f"Received: {flag}=" in error_of(won)


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_flag_file_that_is_missing_is_one_line(program, run):
    line = error_of(run(program, "--flagfile=nowhere.cfg"))
    assert line == "error: --flagfile=nowhere.cfg cannot be read: No such file or directory"


def test_a_path_of_several_gates_has_a_width_for_each(run, tmp):
    saved_network.save(tmp / "gates", gates=3)
    arguments = ("--model={tmp}/gates", "--output={tmp}/m.tflite")
    line = error_of(run("export_mobile.py", *arguments, "--path=0,1"))
    assert "a width from 0 to 3, or 3 of them, one per gate, for --model=" in line
    assert line.endswith("Received: --path=0,1")


def test_all_programs_of_a_flag_have_one_definition():
    defining = {}
    for path in RECIPES.rglob("*.py"):
        for part in path.read_text().split("DEFINE_")[1:] if path.parent.name != "lib" else ():
            name = part.split('"')[1]
            defining.setdefault(name, []).append(path.name)
    assert {name: files for name, files in defining.items() if len(files) > 1} == {}


def test_a_program_at_its_old_place_says_so_and_runs(run):
    done = run("benchmark_mobile.py", "--rounds=0")
    warning, error = done.stderr.splitlines()
    assert warning.startswith("warning: recipes/benchmark_mobile.py is deprecated: ")
    assert "recipes/benchmarks/benchmark_mobile.py" in warning
    assert error.startswith("error: flag --rounds=0: ")


def test_a_program_is_not_started_by_keras_dsnet_or_tensorflow(tmp):
    """In a plain process: the modules lie on the path and record that they were imported."""
    for name in ("tensorflow", "keras", "keras_dsnet"):
        (tmp / f"{name}.py").write_text(f"raise SystemExit('{name} was imported')\n")
    done = subprocess.run(
        [sys.executable, RECIPES / "imagenet_stage1.py", f"--workdir={tmp}/run", "--alone=99"],
        env={"PYTHONPATH": str(tmp)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "--alone must be a width from 0 to 13" in error_of(done)
