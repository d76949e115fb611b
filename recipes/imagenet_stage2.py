r"""Stage II: trains the slimming gates of a supernet by Sandwich Gate Sparsification.

As in the paper (10 epochs, lr 0.05 at batch 512, times 0.9 in every epoch):

    python recipes/imagenet_stage2.py --supernet=runs/imagenet --data_dir=/data/tfds \
        --workdir=runs/imagenet_gate --batch_size=512 --variant=S

The network is that of the supernet, which is frozen; only its slimming heads learn. --variant sets
the routes of DS-MobileNet and DS-EfficientNet and the loss weights of DS-ResNet (Table 6).

Gates learn from images that the supernet has not memorised: keep the augmentation of stage I, or
hold images out of it (--train_split). The share of easy images, which the slimmest route gets
right, is printed: near 1 there is nothing to learn. The work directory gets what stage I's gets,
and model.keras, the network with its gates. As there, more --epochs train longer. The classes
of the data set must be those of the supernet. At the end a line warns where a width that the routes
leave out is clearly better than they are. Batches, augmentation and Gumbel noise are functions of
--seed and the step.
"""

import pathlib

import commands
import common
from absl import flags
from flag_types import define_number, define_numbers, define_path, define_widths
from model_settings import choose_variant, variant_routes
from start import start
from trained_model import check_model, find_model

FLAGS = flags.FLAGS
common.define_data_flags()
define_path("workdir", None, "Folder of the run: all that it writes.", required=True)
define_path("supernet", None, "Work directory of a stage, or a .keras file.", required=True)
flags.DEFINE_enum("variant", None, ["S", "M", "L"], "The paper's routes and loss weights.")
define_widths("routes", "Candidate widths, as 0,1,2,3; none: of --variant.")
flags.DEFINE_enum(
    "gate_strategy", "try_best", ["try_best", "give_up"], "For hard images (Table 6)."
)
flags.DEFINE_enum(
    "slimming_head", None, ["one_hot", "scalar"], "Design of the gate (Table 7); none: as it is."
)
flags.DEFINE_bool("share_encoder", None, "Both heads share W1 (Table 7); none: as it is.")
define_numbers("loss_weights", 3, "Classification, complexity, SGS (Eq. 12); none: of --variant.")
define_number("temperature", 1.0, "Of the Gumbel-softmax.", above=0)
flags.DEFINE_enum(
    "estimator", "straight_through", ["straight_through", "exact"], "Of the choice's gradient."
)
flags.DEFINE_integer("batch_size", 512, "Images per step, of all replicas.", lower_bound=1)
flags.DEFINE_integer("epochs", 10, "Epochs.", lower_bound=1)
define_number("learning_rate", 0.05, "At batch 512; it is multiplied by --batch_size / 512.", low=0)


def find_supernet():
    """Returns the path of the saved network that --supernet names."""
    return find_model(FLAGS.supernet, "supernet", ("supernet.keras", "model.keras"))


def check_flags():
    """Raises an error for what the flags name and is not there."""
    common.check_flags()
    if find_supernet().parent.resolve() == pathlib.Path(FLAGS.workdir).resolve():
        raise ValueError(
            f"--workdir={FLAGS.workdir} is the folder of --supernet, whose run stays there: name "
            "another folder"
        )
    saved = check_model(find_supernet(), "supernet")
    classes = saved.get("classes")
    if FLAGS.classes is not None and FLAGS.classes != classes:
        raise ValueError(
            f"--classes must be that of --supernet={FLAGS.supernet}: {classes}, or left out. "
            f"Received: --classes={FLAGS.classes}"
        )
    if FLAGS.loss_weights is not None and not any(FLAGS.loss_weights):
        raise ValueError("--loss_weights must not all be 0. Received: --loss_weights=0,0,0")


def load_supernet():
    """Loads the network of stage I, with the gate and the precision that the flags ask for."""
    import keras

    from keras_dsnet.models import DynamicSlimmableNetwork, with_dtype, with_slimming_head

    model = keras.models.load_model(find_supernet())
    if not isinstance(model, DynamicSlimmableNetwork):
        raise ValueError(f"--supernet={FLAGS.supernet} is a {type(model).__name__}, no supernet")
    model = with_slimming_head(model, FLAGS.slimming_head, FLAGS.share_encoder)
    # A saved network has the policy that it was trained with.
    return with_dtype(model, keras.config.dtype_policy())


def choose_image_size(model):
    """Returns `(height, width)` of the images: what the supernet takes, where that is fixed."""
    fixed = model.input_shape[1:3]
    if FLAGS.image_size is None and None not in fixed:
        return fixed
    size = (common.image_size(),) * 2
    common.check_image_size(model, size, "supernet")
    return size


def choose_routes(model):
    """Returns the candidate widths of --routes, of --variant, or of the supernet."""
    if FLAGS.routes is None:
        return variant_routes(model, FLAGS.variant) or model.routes
    if FLAGS.routes[-1] >= model.num_widths:
        raise ValueError(
            f"--routes must be widths from 0 to {model.num_widths - 1} of "
            f"--supernet={FLAGS.supernet}. Received: --routes={','.join(map(str, FLAGS.routes))}"
        )
    return tuple(FLAGS.routes)


def choose_loss_weights(model):
    """Returns the weights of the three losses, of --loss_weights or of --variant."""
    variant = choose_variant(model, FLAGS.variant)
    return tuple(FLAGS.loss_weights or variant.loss_weights)


def check_classes(model, source):
    """Raises a ValueError where the data set has other classes than the supernet."""
    names, given = model.class_names, source.class_names
    if source.num_classes > model.classes:
        raise ValueError(
            f"{source.name} has {source.num_classes} classes, --supernet={FLAGS.supernet} has "
            f"{model.classes}: the gates need a supernet that was trained on these classes "
            "(stage I, from its weights if you like)"
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


def make_trainer(model):
    """Builds the trainer that the flags ask for."""
    from keras_dsnet.training import GateTrainer

    routes = choose_routes(model)
    excluded = model.num_widths - len(routes)
    print(
        f"routes {','.join(map(str, routes))} of {model.num_gates} "
        f"{'gate' if model.num_gates == 1 else 'gates'}: {len(routes)} of {model.num_widths} widths"
        + (f"; the gates never take the other {excluded}" if excluded else ""),
        flush=True,
    )
    return GateTrainer(
        model,
        routes=routes,
        strategy=FLAGS.gate_strategy,
        loss_weights=choose_loss_weights(model),
        temperature=FLAGS.temperature,
        estimator=FLAGS.estimator,
        seed=FLAGS.seed,
    )


def compile_trainer(trainer, steps_per_epoch):
    """Compiles the trainer with the paper's optimizer and schedule."""
    import keras

    from keras_dsnet.training import exponential_schedule, scaled_learning_rate

    rate = scaled_learning_rate(FLAGS.learning_rate, FLAGS.batch_size)
    common.print_learning_rate(FLAGS.learning_rate, rate)
    schedule = exponential_schedule(rate, steps_per_epoch)
    trainer.compile(keras.optimizers.SGD(schedule, momentum=0.9, nesterov=True))


def print_end(workdir):
    """Prints what was written and the command that follows."""
    output = workdir.path / "model.tflite"
    following = commands.command(
        "export", f"--model={FLAGS.workdir}", "--quantize=int8", f"--output={output}"
    )
    files = ["model.keras", "labels.txt", "log.csv", "tables", "plots"]
    commands.print_end(
        [workdir.path / name for name in files], "write a TFLite file for a phone", following
    )


def main(_):
    from keras_dsnet.runs import TrainingRun, read_log
    from keras_dsnet.training import describe_gates, evaluate_paths

    common.open_workdir(check_only=True)
    with common.prepare_machine():
        model = load_supernet()
        trainer = make_trainer(model)
        size = choose_image_size(model)
        train, evaluation = common.load_sources()
        for source in (train, evaluation):
            check_classes(model, source)
        if model.class_names is None and train.num_classes == model.classes:
            print(
                f"note: --supernet={FLAGS.supernet} does not name its classes: they are taken to "
                "be those of the data set, in the same order",
                flush=True,
            )
            model.class_names = train.class_names
        workdir = common.open_workdir()
        steps_per_epoch = train.steps_per_epoch(FLAGS.batch_size)
        compile_trainer(trainer, steps_per_epoch)
        model.gates_trained = True
    training = TrainingRun(
        trainer,
        workdir,
        lambda step: common.training_dataset(model, train, step, size),
        batch_size=FLAGS.batch_size,
        steps_per_epoch=steps_per_epoch,
        epochs=FLAGS.epochs,
        checkpoint_steps=FLAGS.checkpoint_steps,
        evaluate=lambda: evaluate_paths(
            model, common.evaluation_dataset(model, evaluation, size), [], True
        ),
        evaluate_epochs=FLAGS.evaluate_epochs,
        class_names=train.class_names,
        num_images=train.num_examples,
        progress_names=["loss", "accuracy", "gate_accuracy", "easy", "madds", "learning_rate"],
    )

    def save():
        common.write_labels(model, workdir.path)
        common.save_model(model, workdir.path / "model.keras")

    common.fit(training, save)
    batches = common.evaluation_dataset(model, evaluation, size)
    rows = evaluate_paths(model, batches, verbose=True)
    common.report(model, rows, workdir.tables, workdir.plots, workdir.log)
    # From the log: a run that was finished before has trained nothing now.
    easy = float(read_log(workdir.log)[-1]["easy"])
    print(f"{easy:.1%} of the last epoch's images were easy\n{describe_gates(rows)}")
    common.warn_of_better_widths(
        rows,
        model.routes,
        evaluation.num_examples,
        "train the gates in another --workdir with --routes that have it",
    )
    print_end(workdir)


if __name__ == "__main__":
    start(main, check_flags)
