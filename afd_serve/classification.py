# ruff: noqa: PLC0415
"""What ``afd-serve classify`` does: ask the model here or a server, show the answers, draw a drift map.

Torch is imported only where the model runs here: asking a server stays quick, and needs the extra ``client`` alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from afd_serve.errors import RequestRefusedError
from afd_serve.mode import Mode
from afd_serve.request import Options
from afd_serve.response import ModelInfo, failure_to_dict, prediction_to_dict
from afd_serve.results import Failure, Prediction, Shadow

if TYPE_CHECKING:
    from afd_serve.client import Client, Server
    from afd_serve.explain import Explainer
    from afd_serve.pipeline import Pipeline

__all__ = ["Here", "Model", "There", "show", "wire_format"]


class Model(Protocol):
    """Something that classifies pictures, and draws where they have drifted."""

    def classify(
        self, pictures: Sequence[bytes], options: Options
    ) -> tuple[list[Prediction | Failure], ModelInfo | None]:
        """The answers, and which model gives them where that is known."""

    def check_draws(self) -> None:
        """Find out, before anything is classified, whether `draw` will do; raises what `draw` would."""

    def draw(self, picture: bytes, options: Options) -> tuple[bytes, str]:
        """A picture's drift map as a PNG, and what it says of the picture's compressions, for people."""


@dataclass(frozen=True)
class Here:
    """A model that runs in this process; errors as of `Pipeline` and `Explainer`."""

    source: str

    def classify(self, pictures: Sequence[bytes], options: Options) -> tuple[list[Prediction | Failure], ModelInfo]:
        """See `Model.classify`."""
        mode = options.mode or Mode.PROTECT
        results = self._pipeline.predict(pictures, top_k=options.top_k, afd=mode, crop=options.crop)
        return results, ModelInfo(self._pipeline.signature.name, self._pipeline.signature.version)

    def check_draws(self) -> None:
        """See `Model.check_draws`."""
        _ = self._explainer

    def draw(self, picture: bytes, options: Options) -> tuple[bytes, str]:
        """See `Model.draw`."""
        from afd_serve.overlay import render

        explanation = self._explainer.explain(picture, top_k=options.top_k, crop=options.crop)
        return render(explanation), "".join(f"  {line}\n" for line in explanation.lines())

    @cached_property
    def _pipeline(self) -> "Pipeline":
        from afd_serve.pipeline import Pipeline

        return Pipeline.load(self.source)

    @cached_property
    def _explainer(self) -> "Explainer":
        from afd_serve.explain import Explainer
        from afd_serve.export import load_features

        return Explainer(self._pipeline, load_features(self.source))


@dataclass(frozen=True)
class There:
    """Whichever server is at a URL; attributes and errors as of `Client` and `detect_server`.

    Attributes:
        url: The server's.
        name: The name that the server knows the model by; the usual one where None.
        token: The key for inference, where the server, or a proxy before it, asks for one.
        ca: In TLS, the certificates that vouch for the server.
    """

    url: str
    name: str | None = None
    token: str | None = None
    ca: Path | None = None

    def classify(self, pictures: Sequence[bytes], options: Options) -> tuple[list[Prediction | Failure], None]:
        """See `Model.classify`."""
        with self._connect() as client:
            return client.classify_many(pictures, options), None

    def check_draws(self) -> None:
        """See `Model.check_draws`."""
        with self._connect() as client:
            client.check_explains()

    def draw(self, picture: bytes, options: Options) -> tuple[bytes, str]:
        """See `Model.draw`; a server's words are in its drawing."""
        with self._connect() as client:
            drawing = client.explain(picture, options)
        if isinstance(drawing, Failure):
            raise RequestRefusedError.of(drawing)
        return drawing, ""

    def probe(self, timeout: float) -> Prediction:
        """What the server makes of the sample picture; see `Client.probe`."""
        with self._connect() as client:
            return client.probe(timeout=timeout)

    def _connect(self) -> "Client":
        from afd_serve.client import Client

        return Client(self.url, server=self._server, model=self.name, token=self.token, ca=self.ca)

    @cached_property
    def _server(self) -> "Server":
        from afd_serve.client import detect_server

        return detect_server(self.url, ca=self.ca, token=self.token)


def wire_format(results: Sequence[Prediction | Failure], model: ModelInfo | None) -> list[dict[str, Any]]:
    """The answers as a server would send them; those that came from a server do not say again which model it has."""
    answers = [
        failure_to_dict(result)
        if isinstance(result, Failure)
        else prediction_to_dict(result, model or ModelInfo("", ""))
        for result in results
    ]
    return answers if model else [{key: value for key, value in answer.items() if key != "model"} for answer in answers]


def show(path: Path, result: Prediction) -> str:
    """One picture's answer for people, several lines."""
    quality = "no tables" if result.estimated_quality is None else f"estimated quality {result.estimated_quality}"
    gate = "corrected" if result.protected else "not corrected"
    classes = zip(result.labels, result.probabilities, strict=True)
    lines = (f"  {probability:7.2%}  {label}" for label, probability in classes)
    shadow = [_show_shadow(result.shadow)] if isinstance(result.shadow, Shadow) else []
    return "\n".join([f"{path}: {quality}, drift {result.drift:.2f}, {gate}", *lines, *shadow])


def _show_shadow(shadow: Shadow) -> str:
    verdict = "another class" if shadow.disagrees else "the same class"
    return f"  with AFD: {verdict} first, its probability {shadow.confidence_change:+.2%}"
