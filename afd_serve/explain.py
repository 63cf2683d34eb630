"""Where a picture has drifted: a map to look at, and what is known of the picture's compressions.

The map compares the features of the two trunks, the bare backbone and the one with AFD, after the last block at the
block grid's stride. It is thus defined for every preset, whatever AFD attaches and where. It is AFD's own estimate of
the drift: `relative_distance` to a clean picture's features, where there is one, is the truth (`afd-serve evaluate`
shows both).
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from afd_serve.checkpoint import find_weights, load_afd, read_config
from afd_serve.dct import BLOCK
from afd_serve.errors import ConfigError
from afd_serve.export import SIGNATURE_NAME
from afd_serve.jpeg import JpegLimits
from afd_serve.models.afd import AfdNet
from afd_serve.models.attach import attach, probe_shapes
from afd_serve.models.backbones import Backbone, load_backbone
from afd_serve.models.classifier import Normalize, protected_trunk
from afd_serve.pipeline import make_prediction
from afd_serve.preprocess import Buffer, PreparedPicture, prepare, stack
from afd_serve.results import Prediction

__all__ = ["Explainer", "Explanation", "explain", "map_site", "relative_distance"]


@dataclass(frozen=True)
class Explanation:
    """What AFD found in one picture.

    Attributes:
        map: float32 [G', G'], >= 0, row by row from the top: how far AFD moved each cell's features, relative to their
            length; all zero where the gate is closed. G' is the side of the block grid where the backbone has a block
            at stride 8.
        quality: QF of the heaviest compression found, 1..100; None where nothing tells.
        resaved: Whether the coefficients show a compression that was heavier than the picture's own tables: at least
            one earlier compression.
        protected: Whether the gate was open.
        drift: The drift score, >= 0.
        prediction: The answer, equal to `Pipeline.predict`'s up to rounding.
        rgb: uint8 [S, S, 3], the model's crop, which the map lies over.
    """

    map: NDArray[np.float32]
    quality: int | None
    resaved: bool
    protected: bool
    drift: float
    prediction: Prediction
    rgb: NDArray[np.uint8]

    def lines(self) -> tuple[str, ...]:
        """Everything but the map and the prediction, for people."""
        if self.quality is None:
            quality = "no quantization tables"
        else:
            quality = f"estimated quality {self.quality}" + (", from its coefficients" if self.resaved else "")
        earlier = "at least one earlier compression" if self.resaved else "no earlier compression found"
        if self.protected:
            gate = f"gate open: features moved by {self.map.mean():.0%} on average, {self.map.max():.0%} at most"
        else:
            gate = "gate closed: the picture passes as good, nothing is corrected"
        return f"{quality}; {earlier}", f"drift score {self.drift:.2f}; {gate}"


class Explainer:
    """A classifier whose features can be looked at. Thread-safe: nothing changes after loading.

    Args:
        backbone: The classifier; shared, not changed.
        afd: The module for this backbone.
        limits: On what one picture may cost.
    """

    def __init__(self, backbone: Backbone, afd: AfdNet, limits: JpegLimits | None = None) -> None:
        self._backbone, self._afd = backbone, afd
        self._limits = limits or JpegLimits()
        self._normalize = Normalize(backbone.preprocessing)
        site = map_site(backbone)
        self._bare = attach(backbone.module, taps=[site])
        self._protected = protected_trunk(backbone, afd, taps=[site])

    @classmethod
    def load(cls, source: str | Path = "efficientnet-lite0") -> "Explainer":
        """Load fitted weights.

        Args:
            source: A shipped model's name, a run's folder or a weights file.

        Raises:
            ConfigError: It is an exported model, whose features cannot be reached any more.
            CheckpointError: There are no such weights, or they are another backbone's.
        """
        if (Path(source) / SIGNATURE_NAME).is_file():
            raise ConfigError(f"{source} is an exported model, which shows no features; name the run it was made from")
        weights = find_weights(source)
        backbone = load_backbone(read_config(weights).backbone)
        afd = load_afd(weights, backbone)
        afd.reparameterize()
        return cls(backbone, afd)

    def explain(self, data: Buffer, *, top_k: int = 5, crop: bool = True) -> Explanation:
        """Map where a picture has drifted.

        Args:
            data: The picture's bytes.
            top_k: How many classes to name.
            crop: False takes the picture as the model's crop already.

        Raises:
            InputError: A subclass says what is wrong with the picture.
        """
        picture = self.prepare(data, crop=crop)
        opened, resaved = not picture.good, picture.history.resaved
        logits, bare = self.features(picture, protected=False)
        features = bare
        if opened:
            logits, features = self.features(picture, protected=True)
        drift = self._drift(picture)
        prediction = make_prediction(
            logits.softmax(dim=0),
            drift,
            labels=self._backbone.labels,
            top_k=min(top_k, len(self._backbone.labels)),
            estimated_quality=picture.estimated_quality,
            protected=opened,
        )
        moved = relative_distance(features, bare).numpy()
        return Explanation(moved, picture.estimated_quality, resaved, opened, drift, prediction, picture.rgb)

    def prepare(self, data: Buffer, *, crop: bool = True) -> PreparedPicture:
        """What comes before the model, as in `Pipeline.prepare`."""
        return prepare(data, self._backbone.preprocessing, crop=crop, limits=self._limits)

    @torch.inference_mode()
    def features(self, picture: PreparedPicture, *, protected: bool) -> tuple[Tensor, Tensor]:
        """Logits [K] and the mapped features [C, G', G'] of one picture, through one of the two trunks."""
        inputs = stack([picture], [protected])
        x = self._normalize(inputs.rgb)
        if protected:
            descriptor = self._afd.describe(*inputs[1:4])
            logits, features = self._protected(x, *self._afd.guide(descriptor, inputs.dequantized), descriptor)
        else:
            logits, features = self._bare(x)
        return logits[0].float(), features[0].float()

    @torch.inference_mode()
    def _drift(self, picture: PreparedPicture) -> float:
        return float(self._afd.drift_score(self._afd.describe(*stack([picture], [True])[1:4])))


def explain(
    data: Buffer, source: str | Path = "efficientnet-lite0", *, top_k: int = 5, crop: bool = True
) -> Explanation:
    """Map where one picture has drifted; for several, load an `Explainer` once. Arguments and errors as there."""
    return Explainer.load(source).explain(data, top_k=top_k, crop=crop)


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


def map_site(backbone: Backbone) -> str:
    """The module whose output is mapped: the last block at stride 8, or at the stride nearest to it.

    The stem, where the backbone has no blocks that put out feature maps.
    """
    if not backbone.blocks:
        return backbone.stem
    shapes = probe_shapes(backbone.module, backbone.blocks, backbone.preprocessing.size)
    away = {block: abs(math.log2(shapes[block].stride / BLOCK)) for block in backbone.blocks}
    nearest = min(away.values())
    return [block for block in backbone.blocks if away[block] == nearest][-1]
