"""Where a picture has drifted: a map to look at, and what is known of the picture's compressions.

The map compares the features of the two trunks, the bare backbone and the one with AFD, after the last block at the
block grid's stride. It is thus defined for every preset, whatever AFD attaches and where. It is AFD's own estimate of
the drift: `relative_distance` to a clean picture's features, where there is one, is the truth (`afd-serve evaluate`
shows both).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from afd_serve.engines import Engine
from afd_serve.export import load_features
from afd_serve.pipeline import Pipeline
from afd_serve.preprocess import Buffer, PreparedPicture, stack
from afd_serve.results import Prediction
from afd_serve.surroundings import inference

__all__ = ["Explainer", "Explanation", "relative_distance"]


@dataclass(frozen=True)
class Explanation:
    """What AFD found in one picture.

    Attributes:
        map: float32 [G', G'], >= 0, row by row from the top: how far AFD moved each cell's features, relative to their
            length; all zero where the gate is closed. G' is the side of the block grid where the backbone has a block
            at stride 8.
        resaved: Whether the coefficients show a compression that was heavier than the picture's own tables: at least
            one earlier compression.
        prediction: `Pipeline.predict`'s answer, with the estimated quality, the drift score and the gate.
        rgb: uint8 [S, S, 3], the model's crop, which the map lies over.
    """

    map: NDArray[np.float32]
    resaved: bool
    prediction: Prediction
    rgb: NDArray[np.uint8]

    def lines(self) -> tuple[str, ...]:
        """Everything but the map and the prediction, for people."""
        prediction = self.prediction
        if prediction.estimated_quality is None:
            quality = "no quantization tables"
        else:
            source = ", from its coefficients" if self.resaved else ""
            quality = f"estimated quality {prediction.estimated_quality}{source}"
        earlier = "at least one earlier compression" if self.resaved else "no earlier compression found"
        if prediction.protected:
            gate = f"gate open: features moved by {self.map.mean():.0%} on average, {self.map.max():.0%} at most"
        else:
            gate = "gate closed: the picture passes as good, nothing is corrected"
        return f"{quality}; {earlier}", f"drift score {prediction.drift:.2f}; {gate}"


class Explainer:
    """A pipeline whose classifier's features can be looked at. Thread-safe: nothing changes after loading.

    Args:
        pipeline: Prepares and classifies.
        features: What `load_features` gives for the pipeline's model.
    """

    def __init__(self, pipeline: Pipeline, features: Engine) -> None:
        self.pipeline = pipeline
        self._features = features

    @classmethod
    def load(cls, source: str | Path = "efficientnet-lite0") -> "Explainer":
        """Load a classifier and its features; arguments and errors as of `Pipeline.load` and `load_features`."""
        return cls(Pipeline.load(source), load_features(source))

    def explain(self, data: Buffer, *, top_k: int = 5, crop: bool = True) -> Explanation:
        """Map where a picture has drifted.

        Args:
            data: The picture's bytes.
            top_k: How many classes to name; all of them where there are fewer.
            crop: False takes the picture as the model's crop already.

        Raises:
            InputError: A subclass says what is wrong with the picture.
        """
        picture = self.pipeline.prepare(data, crop=crop)
        opened = not picture.good
        prediction = self.pipeline.classify(picture, protect=opened, top_k=top_k)
        bare = self.features(picture, protected=False)
        features = self.features(picture, protected=True) if opened else bare
        moved = relative_distance(features, bare).numpy()
        return Explanation(moved, picture.history.resaved, prediction, picture.rgb)

    def features(self, picture: PreparedPicture, *, protected: bool) -> Tensor:
        """The mapped features, float32 [C, G', G'], of one picture, through one of the two trunks."""
        with inference():
            features: Tensor = self._features(*stack([picture], [protected]))[0]
        return features[0]


def relative_distance(features: Tensor, reference: Tensor) -> Tensor:
    """How far each cell's features are from the reference's, relative to the reference's length there.

    Args:
        features: [C, H, W].
        reference: [C, H, W].

    Returns:
        [H, W], >= 0; zero where the features are equal.
    """
    lengths = torch.linalg.vector_norm(reference, dim=0)
    # A cell with next to no features (after a ReLU, say) would outshine the rest of the map.
    floor = (_LEAST_LENGTH * lengths.mean()).clamp_min(_TINY)
    distances: Tensor = torch.linalg.vector_norm(features - reference, dim=0)
    return distances / torch.maximum(lengths, floor)


_LEAST_LENGTH: Final = 0.1
"""Of a cell's features, as a share of the mean length over the picture."""

_TINY: Final = 1e-12
