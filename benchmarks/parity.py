"""Served = `Pipeline` = eager: the same pictures through a real TorchServe, the pipeline and the unscripted module.

    python benchmarks/parity.py --images LABELLED [--split dev] [--quality 10] [--model efficientnet-lite0]

Each picture is the model's crop as a JPEG of that quality (protocol A). Served answers must equal the pipeline's to the
last bit; the eager classifier's may differ by float rounding, whose maximum is shown.
"""

import argparse
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from rich.progress import track

from afd_serve.evaluation.dataset import load_labelled
from afd_serve.evaluation.protocols import compress, conditions
from afd_serve.export import eager_classifier
from afd_serve.pipeline import Pipeline, Prediction
from afd_serve.preprocess import stack
from afd_serve.response import ModelInfo, prediction_to_dict
from afd_serve.servers.quickstart import serve_torchserve
from afd_serve.servers.torchserve import Ports, TorchServe


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--split")
    parser.add_argument("--quality", type=int, default=10)
    parser.add_argument("--model", default="efficientnet-lite0")
    arguments = parser.parse_args()
    pipeline = Pipeline.load(arguments.model, threads=1)
    preprocessing = pipeline.signature.preprocessing
    (condition,) = (c for c in conditions(("A",)) if c.level == arguments.quality)
    labelled = load_labelled(arguments.images, pipeline.signature.labels, split=arguments.split)
    items = [compress(p.path.read_bytes(), condition, preprocessing, picture_id=p.id, seed=0) for p in labelled]
    predictions = [pipeline.predict([item], crop=False)[0] for item in track(items, "pipeline")]
    served = ask_server(arguments.model, items)
    same = sum(
        isinstance(ours, Prediction) and prediction_to_dict(ours, ModelInfo("afd", "1.0")) == theirs
        for ours, theirs in zip(predictions, served, strict=True)
    )
    print(f"served = pipeline, bit for bit: {same} of {len(items)}")
    difference = eager_difference(pipeline, arguments.model, items)
    print(f"pipeline against eager, largest difference of a probability: {difference:.2e}")


def ask_server(model: str, items: list[bytes]) -> list[object]:
    with tempfile.TemporaryDirectory() as state:
        server = serve_torchserve(model, Path(state), ports=Ports.free())
        try:
            with ThreadPoolExecutor(4) as clients:
                return list(clients.map(lambda item: answer(server, item), track(items, "server")))
        finally:
            TorchServe.stop(Path(state))


def answer(server: TorchServe, item: bytes) -> object:
    return server.post(item, {"crop": "off", "top_k": "5"}).json()


def eager_difference(pipeline: Pipeline, model: str, items: list[bytes]) -> float:
    classifier = eager_classifier(model)
    largest = 0.0
    for item in track(items, "eager"):
        picture = pipeline.prepare(item, crop=False)
        inputs = stack([picture], [not picture.good])
        with torch.inference_mode():
            eager = classifier(*inputs)[0].softmax(dim=1)
        largest = max(largest, float((eager - pipeline.logits(inputs)[0].softmax(dim=1)).abs().max()))
    return largest


if __name__ == "__main__":
    main()
