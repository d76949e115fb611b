"""The flags of the programs that train; flags.py has those that other programs share too.

Nothing here imports TensorFlow.
"""

from absl import flags
from keras_dsnet_recipes.lib import flags as shared

FLAGS = flags.FLAGS


def define_front_and_strides(unset="Cannot be combined with --output_stride."):
    """Defines --front_alpha and --strides, which scale a network for small images.

    Args:
        unset: Str, the last sentence of the help about --strides.
    """
    help = "Multiplier of the channel counts before the gate. Defaults to --alpha."
    shared.define_number("front_alpha", None, help, above=0)
    shared.define_strides(
        "strides",
        f"Strides of the stem and of each stage, each 1 or 2. {unset}",
    )


def define_schedule(epochs, learning_rate, unset=""):
    """Defines --batch_size, --epochs and --learning_rate of a stage.

    Args:
        epochs: Int.
        learning_rate: Float or None.
        unset: Str, the sentence of the help about a learning rate of None. Defaults to none.
    """
    shared.define_batch_size(512, "Images per step, summed over all replicas.")
    define_epochs(epochs)
    help = f"Learning rate at batch 512, which is multiplied by --batch_size / 512.{unset}"
    shared.define_number("learning_rate", learning_rate, help, low=0)


def define_epochs(default):
    """Defines --epochs.

    Args:
        default: Int.
    """
    flags.DEFINE_integer("epochs", default, "Number of epochs.", lower_bound=1)


def define_warmup_and_decay(weight_decay=1e-4):
    """Defines --warmup_epochs and --weight_decay.

    Args:
        weight_decay: Float, the default.
    """
    shared.define_number("warmup_epochs", 0.0, "Number of epochs of linear warm-up.", low=0)
    help = "L2 penalty, added to the gradient. The gates have none."
    shared.define_number("weight_decay", weight_decay, help, low=0)


def define_gate_design(head, sharing, encoder):
    """Defines --slimming_head, --share_encoder and --gate_encoder, which default to None.

    Args:
        head: Str, the meaning of None for --slimming_head.
        sharing: Str, the meaning of None for --share_encoder.
        encoder: Str, the meaning of None for --gate_encoder.
    """
    flags.DEFINE_enum(
        "slimming_head",
        None,
        ["one_hot", "scalar"],
        f"Design of the slimming head (Table 7 of the paper). Defaults to {head}.",
    )
    flags.DEFINE_bool(
        "share_encoder",
        None,
        "Share the first layer W1 between both heads of a gate (Table 7 of the paper). Defaults to "
        f"{sharing}.",
    )
    flags.DEFINE_enum(
        "gate_encoder",
        None,
        ["global", "regions"],
        "What the slimming head sees of the features: the mean of all positions, or also those of "
        f"four quadrants and of the centre. Defaults to {encoder}.",
    )


def define_variant(help):
    """Defines --variant, one of the paper's configurations.

    Args:
        help: Str.
    """
    flags.DEFINE_enum("variant", None, ["S", "M", "L"], help)


def define_temperature(help):
    """Defines --temperature.

    Args:
        help: Str.
    """
    shared.define_number("temperature", 1.0, help, above=0)


def define_training():
    """Defines the flags of data set, augmentation and machine that both stages have."""
    shared.define_source("imagenet2012")
    shared.define_train_split()
    shared.define_eval_split()
    shared.define_evaluation()
    shared.define_crop_fraction()
    shared.define_image_size(
        "Side of the images in pixels. Defaults to that of --supernet, else to 32 for digits, "
        "cifar10 and cifar100, else to that of --weights, else to 224."
    )
    shared.define_classes(None, "Number of classes. Defaults to that of the data set.", 2)
    flags.DEFINE_enum(
        "augmentation",
        None,
        ["none", "cifar", "imagenet"],
        "Augmentation: cifar pads, crops and flips; imagenet does the Inception crop and flips. "
        "By default digits have none, cifar10 and cifar100 have cifar, other data sets have "
        "imagenet.",
    )
    flags.DEFINE_bool(
        "hflip",
        None,
        "Mirror images at random; --nohflip keeps letters and signs as they are. Defaults to true "
        "with augmentation, except for digits.",
    )
    flags.DEFINE_integer(
        "randaugment", 0, "Number of RandAugment operations per image.", lower_bound=0
    )
    shared.define_number(
        "randaugment_magnitude", 0.5, "Strength of RandAugment, from 0 to 1.", low=0, high=1
    )
    flags.DEFINE_enum("auto_augment", None, ["imagenet", "cifar10"], "AutoAugment policy.")
    shared.define_number(
        "color_jitter", 0.0, "Largest change of brightness, contrast and saturation.", low=0, high=1
    )
    shared.define_number(
        "random_erasing", 0.0, "Probability of erasing a rectangle.", low=0, high=1
    )
    define_machine()


def define_machine():
    """Defines the flags of precision, strategy, seed, checkpoints and evaluations of a run."""
    flags.DEFINE_enum(
        "mixed_precision", "none", ["none", "bfloat16", "float16"], "Type of mixed precision."
    )
    flags.DEFINE_enum(
        "strategy",
        "default",
        ["default", "mirrored", "multi_worker"],
        "tf.distribute strategy: mirrored for the GPUs of one machine, multi_worker for several "
        "machines, which TF_CONFIG or SLURM names.",
    )
    shared.define_number(
        "start_timeout",
        3600,
        "Seconds that --strategy=multi_worker waits for all workers to start.",
        above=0,
    )
    shared.define_number(
        "worker_timeout",
        30,
        "Seconds without a sign of life after which --strategy=multi_worker counts a worker as "
        "lost.",
        low=3,
    )
    shared.define_seed("Seed of weights, order of images, augmentation and random widths.")
    flags.DEFINE_integer(
        "checkpoint_steps", 500, "Number of steps between checkpoints.", lower_bound=1
    )
    flags.DEFINE_integer(
        "evaluate_epochs", 1, "Number of epochs between evaluations.", lower_bound=1
    )
    flags.DEFINE_bool(
        "deterministic",
        False,
        "Use TensorFlow's op determinism: runs are reproducible bit for bit, but slower.",
    )


def define_sandwich(alone_help):
    """Defines --num_random, --alone and --decay_norms_and_biases of the training of all widths.

    Args:
        alone_help: Str, the help of --alone.
    """
    flags.DEFINE_integer("num_random", 2, "Number of random sub-networks per step.", lower_bound=0)
    flags.DEFINE_integer("alone", None, alone_help, lower_bound=0)
    flags.DEFINE_bool(
        "decay_norms_and_biases", False, "Also apply the weight decay to norms and biases."
    )


def define_target(targets, help):
    """Defines --target, what the narrower sub-networks learn from.

    Args:
        targets: List of str.
        help: Str.
    """
    flags.DEFINE_enum("target", targets[-1], targets, help)


def define_recalibration():
    """Defines --recalibration_steps."""
    help = "Number of batches that the batch-norm statistics are computed from."
    flags.DEFINE_integer("recalibration_steps", 100, help, lower_bound=1)
