r"""Stage II: trains the slimming gates of a supernet by Sandwich Gate Sparsification.

As in the paper (10 epochs, lr 0.05 at batch 512, times 0.9 in every epoch):

    python recipes/imagenet_stage2.py --supernet=runs/imagenet --data_dir=/data/tfds \
        --workdir=runs/imagenet_gate --batch_size=512 --variant=S

The network is that of the supernet, which is frozen; only its slimming heads learn. --variant sets
the routes of DS-MobileNet and DS-EfficientNet and the loss weights of DS-ResNet (Table 6).

Gates learn from images that the supernet has not memorised: keep the augmentation of stage I, or
hold images out of it (--train_split). The share of easy images, which the slimmest route gets
right, is printed: near 1 there is nothing to learn. The work directory gets what stage I's gets,
and model.keras, the network with its gates. Batches, augmentation and Gumbel noise are functions of
--seed and the step.
"""

import common
from absl import flags
from model_settings import choose_variant, variant_routes
from start import start
from trained_model import check_model, find_model

FLAGS = flags.FLAGS
common.define_data_flags()
flags.DEFINE_string("workdir", None, "Folder of the run: all that it writes.", required=True)
flags.DEFINE_string("supernet", None, "Work directory of a stage, or a .keras file.", required=True)
flags.DEFINE_enum("variant", None, ["S", "M", "L"], "The paper's routes and loss weights.")
flags.DEFINE_list("routes", None, "Candidate widths, as 0,1,2,3; none: of --variant.")
flags.DEFINE_enum(
    "gate_strategy", "try_best", ["try_best", "give_up"], "For hard images (Table 6)."
)
flags.DEFINE_enum(
    "slimming_head", None, ["one_hot", "scalar"], "Design of the gate (Table 7); none: as it is."
)
flags.DEFINE_bool("share_encoder", None, "Both heads share W1 (Table 7); none: as it is.")
flags.DEFINE_list(
    "loss_weights",
    None,
    "Classification, complexity, SGS (Eq. 12); none: of --variant.",
)
flags.DEFINE_float("temperature", 1.0, "Of the Gumbel-softmax.")
flags.DEFINE_enum(
    "estimator", "straight_through", ["straight_through", "exact"], "Of the choice's gradient."
)
flags.DEFINE_integer("batch_size", 512, "Images per step, of all replicas.", lower_bound=1)
flags.DEFINE_integer("epochs", 10, "Epochs.", lower_bound=1)
flags.DEFINE_float("learning_rate", 0.05, "At batch 512; scaled linearly by the batch.")


def find_supernet():
    """Returns the path of the saved network that --supernet names."""
    return find_model(FLAGS.supernet, "supernet", ("supernet.keras", "model.keras"))


def check_flags():
    """Raises an error for what the flags name and is not there."""
    common.check_flags()
    check_model(find_supernet(), "supernet")


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
    if any(own not in (None, side) for own, side in zip(fixed, size)):
        raise ValueError(
            f"--image_size must fit --supernet={FLAGS.supernet}, which takes images of "
            f"{model.input_shape[1:]}. Received: --image_size={FLAGS.image_size}"
        )
    return size


def choose_routes(model):
    """Returns the candidate widths of --routes, of --variant, or of the supernet."""
    if FLAGS.routes is None:
        return variant_routes(model, FLAGS.variant) or model.routes
    try:
        return tuple(int(width) for width in FLAGS.routes)
    except ValueError:
        raise ValueError(
            f"--routes must be widths such as 0,1,2,3. Received: {','.join(FLAGS.routes)}"
        ) from None


def choose_loss_weights(model):
    """Returns the weights of the three losses, of --loss_weights or of --variant."""
    variant = choose_variant(model, FLAGS.variant)
    if FLAGS.loss_weights is None:
        return variant.loss_weights
    try:
        return tuple(float(weight) for weight in FLAGS.loss_weights)
    except ValueError:
        raise ValueError(
            "--loss_weights must be numbers such as 1,0.5,1. "
            f"Received: {','.join(FLAGS.loss_weights)}"
        ) from None


def make_trainer(model, steps_per_epoch):
    """Builds the trainer with the paper's optimizer and schedule."""
    import keras

    from keras_dsnet.training import GateTrainer, exponential_schedule, scaled_learning_rate

    trainer = GateTrainer(
        model,
        routes=choose_routes(model),
        strategy=FLAGS.gate_strategy,
        loss_weights=choose_loss_weights(model),
        temperature=FLAGS.temperature,
        estimator=FLAGS.estimator,
        seed=FLAGS.seed,
    )
    rate = scaled_learning_rate(FLAGS.learning_rate, FLAGS.batch_size)
    schedule = exponential_schedule(rate, steps_per_epoch)
    trainer.compile(keras.optimizers.SGD(schedule, momentum=0.9, nesterov=True))
    return trainer


def main(_):
    from keras_dsnet.training import (
        TrainingRun,
        WorkDir,
        describe_gates,
        evaluate_paths,
        read_log,
    )

    config, exempt = common.config()
    with common.prepare_machine():
        model = load_supernet()
        size = choose_image_size(model)
        train, evaluation = common.load_sources()
        workdir = WorkDir(FLAGS.workdir, config, exempt)
        steps_per_epoch = train.steps_per_epoch(FLAGS.batch_size)
        trainer = make_trainer(model, steps_per_epoch)
        model.gates_trained = True
    run_ = TrainingRun(
        trainer,
        workdir,
        lambda step: common.training_dataset(train, step, size),
        batch_size=FLAGS.batch_size,
        steps_per_epoch=steps_per_epoch,
        epochs=FLAGS.epochs,
        checkpoint_steps=FLAGS.checkpoint_steps,
        evaluate=lambda: evaluate_paths(
            model, common.evaluation_dataset(evaluation, size), [], True
        ),
        evaluate_epochs=FLAGS.evaluate_epochs,
        progress_names=["loss", "accuracy", "gate_accuracy", "easy", "madds", "learning_rate"],
    )
    run_.fit()
    common.save_model(model, workdir.path / "model.keras")
    rows = evaluate_paths(model, common.evaluation_dataset(evaluation, size))
    common.report(model, rows, workdir)
    # From the log: a run that was finished before has trained nothing now.
    easy = float(read_log(workdir.log)[-1]["easy"])
    print(f"{easy:.1%} of the last epoch's images were easy\n{describe_gates(rows)}")


if __name__ == "__main__":
    start(main, check_flags)
