# ruff: noqa: PLC0415
"""What ``afd-serve classify`` does: ask the model here or a server, show the answers, draw a drift map.

Torch is imported only where the model runs here: asking a server stays quick, and needs the extra ``client`` alone.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from afd_serve.mode import Mode
from afd_serve.request import Options
from afd_serve.response import ModelInfo, failure_to_dict, prediction_to_dict
from afd_serve.results import Failure, Prediction, Shadow

__all__ = ["ask_server", "draw_explanation", "predict_here", "show", "wire_format"]


def predict_here(
    model: str, pictures: Sequence[bytes], options: Options
) -> tuple[list[Prediction | Failure], ModelInfo]:
    """Classify pictures in this process; arguments and errors as of `Pipeline`."""
    from afd_serve.pipeline import Pipeline

    pipeline = Pipeline.load(model)
    mode = options.mode or Mode.PROTECT
    results = pipeline.predict(pictures, top_k=options.top_k, afd=mode, crop=options.crop)
    return results, ModelInfo(pipeline.signature.name, pipeline.signature.version)


def ask_server(url: str, token: str | None, pictures: Sequence[bytes], options: Options) -> list[Prediction | Failure]:
    """Let a server classify pictures; arguments and errors as of `Client`."""
    from afd_serve.client import Client, detect_server

    with Client(url, server=detect_server(url), token=token) as client:
        return client.classify_many(pictures, options)


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


def draw_explanation(model: str, data: bytes, options: Options, out: Path) -> str:
    """Draw where a picture has drifted, as a PNG; returns what is known of its compressions, for people.

    Raises:
        ConfigError: The model is exported.
        InputError: The picture cannot be used.
        OSError: The file cannot be written.
    """
    from afd_serve.explain import Explainer
    from afd_serve.overlay import render

    explanation = Explainer.load(model).explain(data, top_k=options.top_k, crop=options.crop)
    out.write_bytes(render(explanation))
    return "\n".join(f"  {line}" for line in explanation.lines())
