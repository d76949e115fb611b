"""The routing of a detector: by the gates of its backbone, or by confidence in its scores."""

import json
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from keras_dsnet.detection.confidence import CONFIDENCES
from keras_dsnet.detection.detector_weights import weights_config
from keras_dsnet.detection.fssd_arguments import one_of
from keras_dsnet.models import DynamicSlimmableNetwork
from keras_dsnet.models.routing import SectionRunner
from keras_dsnet.models.routing_settings import RoutingSettings, check_routing


class DetectorRouting(RoutingSettings):
    """The part of a detector that chooses a path for each image. The detector inherits from it.

    Routes and trained gates are those of the backbone. The detector has its own settings of routing
    by confidence, since a backbone has no scores.
    """

    backbone: DynamicSlimmableNetwork
    class_names: Any
    _runner: SectionRunner
    _images: Any

    @property
    def routes(self) -> tuple[int, ...]:
        """The candidate widths of every gate, those of the backbone. Settable."""
        return self.backbone.routes

    @routes.setter
    def routes(self, routes: Sequence[int]) -> None:
        self.backbone.routes = routes

    def replace_routes(self, routes: Iterable[int]) -> None:
        """Sets `routes` without a warning; see `RoutingSettings.replace_routes`.

        Args:
            routes: Iterable of ints, candidate widths in ascending order.
        """
        self.backbone.replace_routes(routes)

    def reset_gates(self) -> None:
        """Makes all widths routes and marks the gates as untrained, as in a new detector."""
        self.backbone.reset_gates()
        super().reset_gates()

    @property
    def gates_trained(self) -> bool:
        """Whether the slimming heads of the backbone were trained. Settable."""
        return self.backbone.gates_trained

    @gates_trained.setter
    def gates_trained(self, trained: bool) -> None:
        self.backbone.gates_trained = trained

    @property
    def confidence(self) -> str:
        """What routing by confidence reads from the scores, the name of a confidence. Settable."""
        return self._confidence

    @confidence.setter
    def confidence(self, confidence: str) -> None:
        self._confidence = one_of("confidence", confidence, tuple(CONFIDENCES))

    def save_own_variables(self, store: Any) -> None:
        # Weights files hold the settings too. Those of the backbone are beside its weights.
        facts = {**self.confidence_config(), "class_names": self.class_names}
        facts["detector"] = weights_config(self)
        store["facts"] = np.frombuffer(json.dumps(facts).encode(), "uint8")

    def load_own_variables(self, store: Any) -> None:
        facts = json.loads(bytes(np.array(store["facts"])))
        for name in ("confidence_steps", "thresholds", "routing", "confidence"):
            setattr(self, name, facts[name])
        if facts["class_names"] is not None:
            self.class_names = facts["class_names"]

    def confidence_config(self) -> dict:
        """Returns the settings that are not the backbone's as arguments of the constructor.

        Steps and thresholds that have their defaults are None.
        """
        config = self.routing_config()
        steps = self.confidence_steps if config["thresholds"] else config["confidence_steps"]
        return {
            "routing": self.routing,
            "confidence_steps": steps,
            "thresholds": config["thresholds"],
            "confidence": self.confidence,
        }

    def run_routed(
        self,
        images: tf.Tensor,
        routing: str | None = None,
        steps: Sequence[int] | None = None,
        thresholds: Sequence[float] | None = None,
        run_last: bool = True,
    ) -> tuple[dict[str, tf.Tensor], tf.Tensor, tf.Tensor]:
        """Runs a batch by any routing, and returns where each image started and ended.

        Args:
            images: Tensor `[batch, height, width, 3]` in the compute dtype of the detector.
            routing: "gate", "confidence" or "gate+confidence". Defaults to the detector's.
            steps: Tuple of ints. Defaults to the detector's `confidence_steps`.
            thresholds: Tuple of floats. Defaults to the detector's, or to 0.7 each if `steps` are
                given.
            run_last: Bool. False leaves out the last step, which decides nothing.

        Returns:
            `(outputs, paths, starts)`: the outputs of a call, and int32 `[batch, num_gates]`, the
            path of the outputs and the path that ran first.
        """
        routing = check_routing(routing or self.routing, self.include_top)
        if routing == "gate":
            outputs, paths = self._runner.route(images, self.gate_candidates())
            return in_float32(outputs), paths, paths
        steps, thresholds = self.resolve_steps(steps, thresholds)
        routes = None if routing == "confidence" else self.gate_candidates()
        outputs, paths, starts = self._runner.route_by_confidence(
            images, steps, thresholds, routes, run_last, confidence=self._confidence_of
        )
        return in_float32(outputs), paths, starts

    def _confidence_of(self, outputs):
        return CONFIDENCES[self.confidence](outputs["scores"])

    def route(self, inputs: Any) -> tf.Tensor:
        """Returns the path of each image, int32 `[batch, num_gates]`.

        Args:
            inputs: float32 `[batch, height, width, 3]`, preprocessed.
        """
        images = self._images(inputs)
        if self.routing == "gate":
            return self._runner.choose_widths(images, self.gate_candidates())
        return self.run_routed(images, run_last=False)[1]


def in_float32(outputs: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    """Returns the outputs of a detector in float32.

    Offsets and logits in half precision lose digits that decoding needs.

    Args:
        outputs: Dict of `"boxes"` and `"scores"`.
    """
    return {name: tf.cast(value, tf.float32) for name, value in outputs.items()}
