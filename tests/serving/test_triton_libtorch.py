"""The repository for Triton's own PyTorch backend, with a stand-in for the backend."""

import asyncio
from pathlib import Path

import numpy as np
import pytest
import torch

from afd_serve.client import AsyncClient, Client, Mode, Options
from afd_serve.engines.torchscript import quiet
from afd_serve.errors import RequestRefusedError, ServerUnavailableError
from afd_serve.export import Deployed
from afd_serve.packaging.triton import TritonLimits, package_triton
from afd_serve.pipeline import Failure, Pipeline, Prediction
from afd_serve.servers import triton
from afd_serve.servers.triton import TritonPorts
from tests.serving.pictures import BAD, GOOD

pytestmark = pytest.mark.serving

Result = Prediction | Failure


STAND_IN = """
import torch
import triton_python_backend_utils as pb_utils

NAMES = ("rgb__0", "dequantized__1", "quant_tables__2", "geometry__3", "gate__4")

class TritonPythonModel:
    def initialize(self, args):
        torch.set_num_threads(1)
        self.module = torch.jit.load(f"{args['model_repository']}/{args['model_version']}/model.pt")

    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        tensors = [torch.from_numpy(pb_utils.get_input_tensor_by_name(request, n).as_numpy()) for n in NAMES]
        with torch.inference_mode():
            said = self.module(*tensors)
        outputs = [pb_utils.Tensor(n, t.numpy()) for n, t in zip(("logits__0", "drift__1"), said)]
        return pb_utils.InferenceResponse(output_tensors=outputs)
"""


def as_saved(exported: Path, pipeline: Pipeline) -> Pipeline:
    """The pipeline on the file as it is: our own loading packs kernels, which a foreign server's does not."""
    with quiet():
        return Pipeline(Deployed(torch.jit.load(exported / "model.pt"), pipeline.signature))


def test_the_libtorch_repository_with_a_stand_in_for_its_backend_and_small_queues(
    exported: Path, pipeline: Pipeline, triton_python: Path, tmp_path: Path
) -> None:
    """This server has no libtorch backend: a Python model takes its place, with its names and its way to call."""
    limits = TritonLimits(max_queue_size=2)
    repository = package_triton(exported, tmp_path / "repository", platform="pytorch_libtorch", limits=limits)
    config = repository / "afd_classifier" / "config.pbtxt"
    config.write_text(config.read_text().replace('platform: "pytorch_libtorch"', 'backend: "python"'))
    (config.parent / "1" / "model.py").write_text(STAND_IN)
    server = triton.start(repository, tmp_path / "state", python=triton_python, ports=TritonPorts.free())
    try:
        mixed = [GOOD["sample"], BAD["random"], GOOD["png"]]
        with Client(server.grpc_url) as client:
            assert [client.classify(picture) for picture in mixed] == as_saved(exported, pipeline).predict(mixed)
            with pytest.raises(RequestRefusedError, match=r"afd is one of protect, off"):
                client.classify(GOOD["sample"], Options(Mode.SHADOW))
            together = client.classify_many(mixed)
        assert together[1] == pipeline.predict([BAD["random"]])[0]
        for ours, theirs in zip(together, pipeline.predict(mixed), strict=True):
            if isinstance(ours, Prediction) and isinstance(theirs, Prediction):
                assert ours.labels[0] == theirs.labels[0]
                np.testing.assert_allclose(ours.probabilities, theirs.probabilities, rtol=1e-3)

        async def crowd(attempts: int) -> list[Result | BaseException]:
            async with AsyncClient(server.grpc_url, attempts=attempts, timeout=60) as client:
                asked = [client.classify(GOOD["sample"]) for _ in range(40)]
                return await asyncio.gather(*asked, return_exceptions=True)

        once = asyncio.run(crowd(1))
        refused = [answer for answer in once if not isinstance(answer, Prediction)]
        assert 0 < len(refused) < 40
        assert all(isinstance(answer, ServerUnavailableError) for answer in refused)
        assert all(isinstance(answer, Prediction) for answer in asyncio.run(crowd(60)))
    finally:
        triton.Triton.stop(tmp_path / "state")
