r"""Stage II: trains the slimming gates of a supernet by Sandwich Gate Sparsification.

The flag files in recipes/configs/ hold the settings of the published runs. That of CIFAR-10 trains
the gate of the weights that come with the package (docs/results/cifar10.md):

    python recipes/imagenet_stage2.py --flagfile=recipes/configs/cifar10_stage2.cfg \
        --data_dir=/data/tfds --supernet=runs/cifar10 --workdir=runs/cifar10_gate_0 --seed=0

ImageNet with the settings of the paper: 10 epochs with a learning rate of 0.05 at batch 512, which
is multiplied by 0.9 after each epoch. This run has not been made with this package.

    python recipes/imagenet_stage2.py --data_dir=/data/tfds --supernet=runs/imagenet \
        --flagfile=recipes/configs/imagenet_ds_mobilenet_stage2_S.cfg --workdir=runs/imagenet_gate

The network of --supernet is frozen, and only its slimming heads are trained. --variant sets the
routes of DS-MobileNet and DS-EfficientNet and the loss weights of DS-ResNet (Table 6). The data set
must have the classes of the supernet.

Gates learn from images that the supernet has not memorised: keep the augmentation of stage I, or
hold images out of stage I by --train_split. The program prints the share of easy images, which the
slimmest route classifies correctly. If this share is close to 1, the gates have nothing to learn.

--gates_from starts from the slimming heads of another run, as in the paper's transfer to CIFAR-10
(Table 3): pretrain both stages, fine-tune the supernet by stage I with --weights, then train the
gates of the fine-tuned supernet with --gates_from. With --learning_rate=0 they stay as they came.

The program writes into the work directory the files that stage I writes, and model.keras, the
network with its gates. As in stage I, the same command with more --epochs trains longer. At the end
the program warns if a width outside the routes is clearly better than the routes. Batches,
augmentation and Gumbel noise are functions of --seed and the step.
"""

import pathlib

from absl import flags
from keras_dsnet_recipes.lib import checks, data, report, run, training_flags
from keras_dsnet_recipes.lib import flags as shared
from keras_dsnet_recipes.lib.model_settings import (
    check_saved_variant,
    choose_variant,
    variant_routes,
)
from keras_dsnet_recipes.lib.start import start

FLAGS = flags.FLAGS
training_flags.define_training()
shared.define_workdir()
shared.define_saved_model("supernet", help="Work directory of a finished stage, or a .keras file.")
shared.define_path(
    "gates_from",
    None,
    "Work directory of a finished stage II, or a .keras file, whose slimming heads are the start. "
    "Defaults to new ones.",
)
training_flags.define_variant("Variant of the paper whose routes and loss weights are used.")
shared.define_routes(
    "Candidate widths, such as 0,1,2,3. Defaults to those of --variant, of --gates_from, or of "
    "--supernet."
)
_DESIGN = "that of --gates_from, else of --supernet"
training_flags.define_gate_design(_DESIGN, _DESIGN, _DESIGN)
training_flags.define_schedule(10, 0.05)
training_flags.define_temperature("Temperature of the Gumbel-softmax.")
flags.DEFINE_enum(
    "gate_strategy",
    "try_best",
    ["try_best", "give_up"],
    "Target for hard images (Table 6 of the paper).",
)
flags.DEFINE_bool(
    "soft_targets",
    False,
    "Let the SGS target be how sure the slimmest route is, not whether it is right.",
)
shared.define_numbers(
    "loss_weights",
    3,
    "Weights of the classification, complexity and SGS losses (Eq. 12 of the paper). Defaults to "
    "those of --variant.",
)
flags.DEFINE_enum(
    "estimator",
    "straight_through",
    ["straight_through", "exact"],
    "Estimator of the gradient through the choice of a width.",
)


def find_supernet():
    """Returns the path of the saved network that --supernet names."""
    return checks.find_model(FLAGS.supernet, "supernet", ("supernet.keras", "model.keras"))


def find_gates():
    """Returns the path of the saved network that --gates_from names."""
    return checks.find_model(FLAGS.gates_from, "gates_from", ("model.keras",))


def check_gates(supernet):
    """Raises an error unless --gates_from names trained gates for the supernet.

    Args:
        supernet: `checks.SavedNetwork` of --supernet.
    """
    if FLAGS.gates_from is None:
        return
    gates = checks.check_model(find_gates(), "gates_from")
    if not gates.gates_trained:
        raise ValueError(
            f"--gates_from={FLAGS.gates_from} has no trained gates: name a run of stage II"
        )
    sizes = [(network.num_gates, network.num_widths) for network in (gates, supernet)]
    if sizes[0] != sizes[1]:
        raise ValueError(
            f"--gates_from must have the {sizes[1][0]} gates of {sizes[1][1]} widths of "
            f"--supernet={FLAGS.supernet}. Received: {sizes[0][0]} gates of {sizes[0][1]} widths "
            f"in --gates_from={FLAGS.gates_from}"
        )


def check_flags():
    """Raises an error for a missing file, and for a value that does not fit the supernet."""
    checks.check_run()
    supernet = find_supernet()
    if supernet.parent.resolve() == pathlib.Path(FLAGS.workdir).resolve():
        raise ValueError(
            f"--workdir={FLAGS.workdir} is the folder of --supernet, which keeps its own run: "
            "name another folder"
        )
    saved = checks.check_model(supernet, "supernet")
    if FLAGS.classes is not None and FLAGS.classes != saved.classes:
        raise ValueError(
            f"--classes must be that of --supernet={FLAGS.supernet}, which is {saved.classes}. "
            f"Received: --classes={FLAGS.classes}"
        )
    check_gates(saved)
    saved.check_widths(FLAGS.routes, "routes")
    is_fixed = None not in saved.image_size
    saved.check_image_size(FLAGS.image_size if is_fixed else data.image_size())
    check_saved_variant(saved, FLAGS.variant)
    if FLAGS.loss_weights is not None and not any(FLAGS.loss_weights):
        raise ValueError("--loss_weights must not all be 0. Received: --loss_weights=0,0,0")


def load_supernet():
    """Returns the network of stage I, with the gates and the precision of the flags."""
    import keras

    from keras_dsnet.models import (
        DynamicSlimmableNetwork,
        copy_slimming_heads,
        with_dtype,
        with_slimming_head,
    )

    model = keras.models.load_model(find_supernet())
    if not isinstance(model, DynamicSlimmableNetwork):
        raise ValueError(f"--supernet={FLAGS.supernet} is a {type(model).__name__}, not a supernet")
    names = ("slimming_head", "share_encoder", "gate_encoder")
    design = {name: FLAGS[name].value for name in names}
    gates = None if FLAGS.gates_from is None else keras.models.load_model(find_gates())
    if gates is not None:
        given = {name: value for name, value in design.items() if value is not None}
        design = {name: getattr(gates.spec, name) for name in design} | given
    model = with_slimming_head(model, **design)
    if gates is not None:
        copy_slimming_heads(gates, model)
        # The scores of the other widths were never trained.
        model.routes = gates.routes
    if model.routing != "gate":
        print(
            f"note: --supernet={FLAGS.supernet} routes by {model.routing}. The network of this run "
            "routes by its gates; calibrate.py chooses thresholds",
            flush=True,
        )
        model.routing = "gate"
    # A saved network has the dtype policy that it was trained with.
    return with_dtype(model, keras.config.dtype_policy())


def choose_image_size(model):
    """Returns `(height, width)` of the images; a size that the supernet fixes comes first."""
    fixed = model.input_shape[1:3]
    if FLAGS.image_size is None and None not in fixed:
        return fixed
    return (data.image_size(),) * 2


def choose_routes(model):
    """Returns the candidate widths, from --routes, --variant, --gates_from or the supernet."""
    return tuple(FLAGS.routes or variant_routes(model, FLAGS.variant) or model.routes)


def choose_loss_weights(model):
    """Returns the weights of the three losses, from --loss_weights or --variant."""
    variant = choose_variant(model, FLAGS.variant)
    return tuple(FLAGS.loss_weights or variant.loss_weights)


def check_classes(model, source):
    """Raises a ValueError if the data set has other classes than the supernet."""
    names, given = model.class_names, source.class_names
    if source.num_classes > model.classes:
        raise ValueError(
            f"{source.name} has {source.num_classes} classes, but --supernet={FLAGS.supernet} has "
            f"{model.classes}: the gates need a supernet that was trained on these classes. Train "
            "one by stage I, which can start from the weights of this supernet"
        )
    if names is None or given is None or names == given:
        return
    if len(names) != len(given):
        different = f"{len(given)} classes, not the {len(names)} of"
    else:
        index = next(i for i, pair in enumerate(zip(names, given)) if pair[0] != pair[1])
        different = f"class {index} {given[index]!r}, not {names[index]!r} as"
    raise ValueError(
        f"{source.name} has {different} --supernet={FLAGS.supernet}: the gates need the classes "
        "that the supernet was trained on, in their order"
    )


def make_trainer(model, size):
    """Returns the trainer that the flags describe, not compiled yet.

    Args:
        model: The supernet.
        size: `(height, width)` of the images.
    """
    from keras_dsnet.training import GateTrainer

    routes = choose_routes(model)
    excluded = model.num_widths - len(routes)
    print(
        f"routes {','.join(map(str, routes))} of {model.num_gates} "
        f"{'gate' if model.num_gates == 1 else 'gates'}: {len(routes)} of {model.num_widths} widths"
        + (f"; the gates never choose the other {excluded}" if excluded else ""),
        flush=True,
    )
    return GateTrainer(
        model,
        routes=routes,
        strategy=FLAGS.gate_strategy,
        soft_targets=FLAGS.soft_targets,
        loss_weights=choose_loss_weights(model),
        temperature=FLAGS.temperature,
        estimator=FLAGS.estimator,
        seed=FLAGS.seed,
        input_shape=(*size, 3),
    )


def compile_trainer(trainer, steps_per_epoch):
    """Compiles the trainer with the paper's optimizer and schedule."""
    import keras

    from keras_dsnet.training import exponential_schedule, scaled_learning_rate

    rate = scaled_learning_rate(FLAGS.learning_rate, FLAGS.batch_size)
    run.print_learning_rate(FLAGS.learning_rate, rate)
    schedule = exponential_schedule(rate, steps_per_epoch)
    trainer.compile(keras.optimizers.SGD(schedule, momentum=0.9, nesterov=True))


def print_end(workdir, model):
    """Prints the files that were written and the next command."""
    output = workdir.path / "model.tflite"
    following = run.command(
        "export", f"--model={FLAGS.workdir}", "--quantize=int8", f"--output={output}"
    )
    files = ["model.keras", "labels.txt", "log.csv", "tables", "plots"]
    run.print_end(
        [workdir.path / name for name in files],
        f"write a TFLite file for a phone{run.routes_hint(model)}",
        following,
    )


def main(_):
    from keras_dsnet.runs import read_log
    from keras_dsnet.training import describe_gates, evaluate_paths

    run.open_workdir(check_only=True)
    with run.prepare_machine():
        model = load_supernet()
        size = choose_image_size(model)
        trainer = make_trainer(model, size)
        train, evaluation = data.load_sources()
        for source in (train, evaluation):
            check_classes(model, source)
        if model.class_names is None and train.num_classes == model.classes:
            print(
                f"note: --supernet={FLAGS.supernet} does not name its classes: this run assumes "
                "those of the data set, in the same order",
                flush=True,
            )
            model.class_names = train.class_names
        model.crop_fraction = data.crop_of_flags()
        workdir = run.open_workdir()
        steps_per_epoch = train.steps_per_epoch(FLAGS.batch_size)
        compile_trainer(trainer, steps_per_epoch)
        model.gates_trained = True
    training = run.make_training(
        trainer,
        workdir,
        lambda step, **shard: data.training_dataset(model, train, step, size, **shard),
        train,
        lambda: evaluate_paths(
            model,
            data.evaluation_dataset(model, evaluation, size),
            [],
            True,
            routings=(),
        ),
        progress_names=["loss", "accuracy", "gate_accuracy", "easy", "madds", "learning_rate"],
    )

    def save():
        run.write_labels(model, workdir.path)
        run.save_model(model, workdir.path / "model.keras")

    if not run.fit(training, save):
        return
    batches = data.evaluation_dataset(model, evaluation, size)
    rows = evaluate_paths(model, batches, verbose=True)
    report.write_report(
        model, rows, evaluation, size, workdir.path, data.crop_of_flags(), workdir.log
    )
    # The log has this figure also if the run had ended before and has trained nothing now.
    easy = float(read_log(workdir.log)[-1]["easy"])
    print(f"{easy:.1%} of the last epoch's images were easy\n{describe_gates(rows)}")
    report.warn_of_better_widths(
        rows,
        model.routes,
        evaluation.num_examples,
        "train the gates in another --workdir with --routes that have it",
    )
    print_end(workdir, model)


if __name__ == "__main__":
    start(main, check_flags)
