"""The training of stage I in JAX: In-place Ensemble Bootstrapping (Section 3.1 of the paper).

A step is that of `keras_dsnet.training.SupernetTrainer`, with the same losses, gradients,
optimizer, schedule and teacher; a test compares both. Shuffling, augmentation and random widths are
functions of the seed and the step too, but of JAX's generator, so that they are other ones.

Nothing here imports TensorFlow.
"""

import jax
import jax.numpy as jnp
import numpy as np
from keras_dsnet_recipes.lib.jax_training.network import JaxNetwork

# What random numbers are drawn for, so that one seed gives independent ones.
_WIDTHS, _ORDER, _IMAGES = range(3)
# Settings in which tasks that are trained together may differ.
OWN = ("seed", "temperature", "scale_distillation", "label_path", "label_name", "step")


class JaxSupernet:
    """Trains the networks of one task or of several of the same kind.

    Several networks run as one batch, so that a step of all of them needs as many kernels as that
    of one.

    Args:
        tasks: List of dicts of arrays and, under "settings", a dict, from `files.read`. Their
            settings are equal but for `OWN`.
        images: uint8 array `[images, height, width, 3]`.
        labels: int array `[images]`.

    Attributes:
        state: Dict of arrays, whose first axis is that of the tasks.
    """

    def __init__(self, tasks, images, labels):
        task = tasks[0]
        self.settings = task["settings"]
        self.own = [{name: task["settings"][name] for name in OWN} for task in tasks]
        self.network = JaxNetwork(self.settings["steps"])
        self.images = jnp.asarray(images)
        self.labels = jnp.asarray(labels, jnp.int32)
        self.rates = jnp.asarray(task["learning_rates"], jnp.float32)
        self.scale, self.offset = (jnp.asarray(task[name]) for name in ("scale", "offset"))
        names = [f"variable/{i}" for i in range(self.settings["num_variables"])]
        # Of these only the values of variables that do not change are used below.
        self._fixed = [np.asarray(task[name]) for name in names]
        self._layout()
        self._constant = [
            {i: np.asarray(each[f"variable/{i}"]) for i in self._unchanged()} for each in tasks
        ]
        states = [self._start(each) for each in tasks]
        self.state = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
        self._shuffled = jax.jit(jax.vmap(self._shuffled, in_axes=(0, None)))
        run = jax.vmap(self._run, in_axes=(0, 0, None, None, None))
        self._run = jax.jit(run, donate_argnums=0)

    def _unchanged(self):
        """Returns the places of the variables that the training does not change."""
        moved = {norm[n] for norm in self.network.norms for n in ("moving_mean", "moving_variance")}
        changed = moved | set(self.settings["trained"])
        return [i for i in range(self.settings["num_variables"]) if i not in changed]

    def _layout(self):
        """Finds where the variables are in the vectors of the state.

        The trained variables are one vector, and the moving statistics of all norms are one table
        for the front and one for the rest, so that updates take few kernels.
        """
        trained = self.settings["trained"]
        sizes = [self._fixed[i].size for i in trained]
        self._ends = np.cumsum(sizes)
        decays = np.zeros(self._ends[-1], np.float32)
        for index, end, size in zip(trained, self._ends, sizes):
            decays[end - size : end] = index in self.settings["decayed"]
        self._decay = decays * self.settings["weight_decay"]

    def _flat(self, arrays):
        return jnp.concatenate([jnp.ravel(jnp.asarray(a, jnp.float32)) for a in arrays])

    def _parts(self, flat):
        parts = jnp.split(flat, self._ends[:-1])
        return [p.reshape(self._fixed[i].shape) for p, i in zip(parts, self.settings["trained"])]

    def _start(self, task):
        trained, settings = self.settings["trained"], task["settings"]
        variables = [task[f"variable/{i}"] for i in range(self.settings["num_variables"])]
        scaled = settings["scale_distillation"]
        state = {
            "step": jnp.asarray(settings["step"], jnp.int32),
            "seed": jnp.asarray(settings["seed"], jnp.int32),
            "temperature": jnp.asarray(settings["temperature"], jnp.float32),
            "factor": jnp.float32(settings["temperature"] ** 2 if scaled else 1.0),
            "label_path": jnp.asarray(settings["label_path"], jnp.int32),
            "weights": self._flat([variables[i] for i in trained]),
            "momentum": self._flat([task[f"momentum/{n}"] for n in range(len(trained))]),
            "statistics": self._tables(variables),
            # As an argument: a compiled constant of this size takes long to fold.
            "decay": jnp.asarray(self._decay),
        }
        if self.settings["target"] != "in_place":
            average = [
                np.asarray(task[f"teacher/{i}"]) for i in range(self.settings["num_variables"])
            ]
            state["teacher"] = self._flat([average[i] for i in trained])
            state["teacher_statistics"] = self._tables(average)
        return state

    def _tables(self, variables):
        """Returns the moving means and variances, one table per section of one width or several."""
        tables = {}
        for front in (True, False):
            norms = [norm for norm in self.network.norms if (norm["section"] == 0) == front]
            for name in ("moving_mean", "moving_variance"):
                rows = [variables[norm[name]] for norm in norms]
                if rows:
                    joined = np.concatenate([np.asarray(r) for r in rows], axis=1)
                    tables[f"{name}/{'front' if front else 'rest'}"] = jnp.asarray(joined)
        return tables

    def variables(self, weights, statistics):
        """Returns all variables of the network, in its order, with some weights and statistics."""
        variables = list(self._fixed)
        for index, part in zip(self.settings["trained"], self._parts(weights)):
            variables[index] = part
        for front in (True, False):
            start = 0
            for norm in self.network.norms:
                if (norm["section"] == 0) != front:
                    continue
                end = start + norm["options"][-1]
                for name in ("moving_mean", "moving_variance"):
                    table = statistics[f"{name}/{'front' if front else 'rest'}"]
                    variables[norm[name]] = table[:, start:end]
                start = end
        return variables

    def draw_widths(self, seed, step):
        """Draws the random paths of a step, as `SupernetTrainer.draw_widths` does.

        Args:
            seed: Int scalar.
            step: Int scalar.

        Returns:
            int32 array `[num_random, gates]`.
        """
        settings = self.settings
        widths, gates = settings["num_widths"], settings["num_gates"]
        interior = gates == 1 and widths > 2
        low, high = (1, widths - 1) if interior else (0, widths)
        key = _key(seed, _WIDTHS, step)
        return jax.random.randint(key, (settings["num_random"], gates), low, high, jnp.int32)

    def gradients(self, state, images, labels, draws):
        """Runs the sub-networks of a step, and returns the gradient of the sum of Eqs. 5.

        Args:
            state: The state of one task.
            images: float32 `[batch, height, width, 3]`, inputs of the network.
            labels: int32 `[batch]`.
            draws: int32 `[num_random, gates]`.

        Returns:
            `(gradient, (losses, logits, moments, widths))`: the gradient of the vector of weights,
            the losses of the label path, the random paths and the slimmest, the logits of the label
            path, the moments of the norms, and the widths `[sub-networks, sections]`.
        """
        settings = self.settings
        paths = [state["label_path"][None]]
        if settings["sandwich"]:
            paths += [draws, jnp.zeros((1, settings["num_gates"]), jnp.int32)]
        paths = jnp.concatenate(paths)
        widths = jnp.pad(paths, ((0, 0), (1, 0)))
        teacher = self._teach(state, images, widths)

        def loss_of(weights):
            variables = self.variables(weights, state["statistics"])
            logits, moments = self.network.logits(variables, images, widths)
            losses = self._losses(state, logits, labels, teacher)
            return losses.sum(), (losses, logits[0], moments, widths)

        return jax.grad(loss_of, has_aux=True)(state["weights"])

    def _teach(self, state, images, widths):
        """Returns the probabilities of the sub-networks that teach, or None without a teacher."""
        settings = self.settings
        if settings["target"] == "in_place" or not settings["sandwich"]:
            return None
        variables = self.variables(state["teacher"], state["teacher_statistics"])
        widths = widths[:-1] if settings["target"] == "ensemble" else widths[:1]
        logits, _ = self.network.logits(variables, images, widths, training=False)
        return jax.lax.stop_gradient(jax.nn.softmax(logits / state["temperature"]))

    def _losses(self, state, logits, labels, teacher):
        """Returns the losses of Eqs. 5 `[sub-networks]`."""
        settings = self.settings
        classes, smoothing = logits.shape[-1], settings["label_smoothing"]
        targets = jax.nn.one_hot(labels, classes) * (1.0 - smoothing) + smoothing / classes
        label_loss = _cross_entropy(targets, logits[:1])
        if not settings["sandwich"]:
            return label_loss
        temperature, factor = state["temperature"], state["factor"]
        if teacher is None:
            teacher = jax.lax.stop_gradient(jax.nn.softmax(logits[:1] / temperature))
        random = _cross_entropy(teacher[:1], logits[1:-1] / temperature) * factor
        slimmest = _cross_entropy(teacher.mean(0), logits[-1:] / temperature) * factor
        return jnp.concatenate([label_loss, random, slimmest])

    def update(self, state, gradient, moments, widths):
        """Returns the state after a step of the optimizer, of the statistics and of the teacher."""
        rate = self.rates[state["step"]]
        gradient = gradient + state["decay"] * state["weights"]
        momentum = self.settings["momentum"] * state["momentum"] - rate * gradient
        # Nesterov's step, as Keras takes it.
        change = self.settings["momentum"] * momentum - rate * gradient
        state = {
            **state,
            "step": state["step"] + 1,
            "weights": state["weights"] + (change if self.settings["nesterov"] else momentum),
            "momentum": momentum,
            "statistics": self._moved(state["statistics"], moments, widths),
        }
        if "teacher" not in state:
            return state
        steps = state["step"].astype(jnp.float32)
        kept = jnp.float32(self.settings["ema_momentum"])
        if self.settings["ema_warmup"]:
            kept = jnp.minimum(kept, steps / (9.0 + steps))

        def follow(average, value):
            return average - (1.0 - kept) * (average - value)

        state["teacher"] = follow(state["teacher"], state["weights"])
        state["teacher_statistics"] = jax.tree.map(
            follow, state["teacher_statistics"], state["statistics"]
        )
        return state

    def _moved(self, statistics, moments, widths):
        """Returns the moving statistics after a step, in which every sub-network moves its row."""
        statistics = dict(statistics)
        pairs = list(zip(self.network.norms, moments, strict=True))
        for place, (name, end) in enumerate(
            (name, end) for end in ("front", "rest") for name in ("moving_mean", "moving_variance")
        ):
            norms = [(n, m[place % 2]) for n, m in pairs if (n["section"] == 0) == (end == "front")]
            if not norms:
                continue
            table = statistics[f"{name}/{end}"]
            new = jnp.concatenate([moment for _, moment in norms], axis=1)
            kept = norms[0][0]["momentum"]
            if end == "front":
                # All sub-networks share these layers, which ran once, and move them alike.
                table = _move_rows(table, norms, new[0], widths[0], kept ** len(widths))
            else:
                for path in reversed(range(len(widths))):
                    table = _move_rows(table, norms, new[path], widths[path], kept)
            statistics[f"{name}/{end}"] = table
        return statistics

    def _prepared(self, images, key):
        """Crops and mirrors images at random, and returns them as inputs of the network."""
        padding = self.settings["padding"]
        crop_key, flip_key = jax.random.split(key)
        if padding:
            height, width = images.shape[1:3]
            padded = jnp.pad(images, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
            starts = jax.random.randint(crop_key, (2, len(images)), 0, 2 * padding + 1)

            def crop(image, top, left):
                return jax.lax.dynamic_slice(image, (top, left, 0), (height, width, 3))

            images = jax.vmap(crop)(padded, *starts)
        if self.settings["hflip"]:
            mirrored = jax.random.bernoulli(flip_key, 0.5, (len(images), 1, 1, 1))
            images = jnp.where(mirrored, images[:, :, ::-1], images)
        return images.astype(jnp.float32) * self.scale + self.offset

    def _shuffled(self, seed, epoch):
        return jax.random.permutation(_key(seed, _ORDER, epoch), len(self.labels))

    def _run(self, state, order, images, labels, count):
        """Runs `count` steps of an epoch, and returns the state and the sums of their metrics."""
        settings = self.settings
        batch, epoch_steps = settings["batch_size"], settings["steps_per_epoch"]

        def body(_, carry):
            state, sums = carry
            place = state["step"] % epoch_steps
            chosen = jax.lax.dynamic_slice(order, (place * batch,), (batch,))
            key = _key(state["seed"], _IMAGES, state["step"])
            inputs, targets = self._prepared(images[chosen], key), labels[chosen]
            draws = self.draw_widths(state["seed"], state["step"])
            gradient, (losses, logits, moments, widths) = self.gradients(
                state, inputs, targets, draws
            )
            right = (logits.argmax(-1) == targets).mean()
            sums = sums + jnp.concatenate([losses, right[None]])
            return self.update(state, gradient, moments, widths), sums

        paths = settings["num_random"] + 2 if settings["sandwich"] else 1
        return jax.lax.fori_loop(0, count, body, (state, jnp.zeros(paths + 1)))

    def run_epoch(self, chunk=200):
        """Trains to the end of the present epoch.

        Args:
            chunk: Int, number of steps between looks at the losses.

        Returns:
            List of dicts, the row of the log of each task.

        Raises:
            FloatingPointError: If a loss is not finite.
        """
        settings = self.settings
        step, per_epoch = int(self.state["step"][0]), settings["steps_per_epoch"]
        epoch, done = divmod(step, per_epoch)
        order, total = self._shuffled(self.state["seed"], epoch), 0.0
        while done < per_epoch:
            count = min(chunk, per_epoch - done)
            self.state, sums = self._run(self.state, order, self.images, self.labels, count)
            total, done = total + np.asarray(sums), done + count
            if not np.isfinite(total).all():
                raise FloatingPointError(
                    f"A loss is not finite in epoch {epoch + 1}: training has diverged. Try a "
                    "lower learning rate"
                )
        means = total / (per_epoch - step % per_epoch)
        rate = float(self.rates[epoch * per_epoch + per_epoch - 1])
        return [self._row(epoch, each, own, rate) for each, own in zip(means, self.own)]

    def _row(self, epoch, means, own, rate):
        *losses, right = map(float, means)
        row = {"epoch": epoch + 1, "loss": sum(losses), f"{own['label_name']}_loss": losses[0]}
        if self.settings["sandwich"]:
            row["slimmest_loss"] = losses[-1]
        if self.settings["num_random"]:
            row["random_loss"] = sum(losses[1:-1]) / self.settings["num_random"]
        return row | {f"{own['label_name']}_accuracy": right, "learning_rate": rate}

    def arrays(self, number):
        """Returns the state of a task as a dict of arrays, with the names of a task.

        Args:
            number: Int, the place of the task.
        """
        state = jax.tree.map(lambda leaf: np.asarray(leaf[number]), self.state)

        def named(name, weights, statistics):
            variables = self.variables(weights, statistics)
            constant = self._constant[number]
            return {f"{name}/{i}": constant.get(i, np.asarray(v)) for i, v in enumerate(variables)}

        arrays = named("variable", state["weights"], state["statistics"])
        momenta = self._parts(state["momentum"])
        arrays |= {f"momentum/{n}": np.asarray(v) for n, v in enumerate(momenta)}
        if "teacher" in state:
            arrays |= named("teacher", state["teacher"], state["teacher_statistics"])
        return arrays


def _key(seed, purpose, number):
    """Returns the key of a purpose at a step or an epoch."""
    key = jax.random.fold_in(jax.random.key(seed), purpose)
    return jax.random.fold_in(key, number)


def _cross_entropy(probabilities, logits):
    """Returns the mean cross entropy of each sub-network `[sub-networks]`."""
    return -(probabilities * jax.nn.log_softmax(logits)).sum(-1).mean(-1)


def _move_rows(table, norms, new, widths, kept):
    """Moves the channels that a sub-network has, in the rows of its widths.

    Args:
        table: float32 `[rows, channels of all norms]`.
        norms: List of pairs, the norms first.
        new: float32 `[channels of all norms]`, moments of the batch.
        widths: int32 `[sections]`.
        kept: Float, the share of the old statistics.
    """
    channels, sections = [], []
    for norm, _ in norms:
        options = np.array(norm["options"])
        width = widths[norm["section"]]
        count = jnp.asarray(options)[width] if len(options) > 1 else options[0]
        channels.append(np.arange(options[-1]) < count)
        sections.append(np.full(options[-1], norm["section"]))
    used, rows = jnp.concatenate(channels), widths[np.concatenate(sections)]
    columns = jnp.arange(table.shape[1])
    old = table[rows, columns]
    return table.at[rows, columns].set(jnp.where(used, old * kept + new * (1 - kept), old))
