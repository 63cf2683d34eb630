"""TorchServe handler: hands a dynamic batch to the `Service`, and its replies back.

It stands on its own instead of extending ``BaseHandler``, whose ``handle`` looks at the first request of a batch only:
there, a client's ``describe`` header would answer all its neighbours with the model's description.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from http import HTTPStatus
from pathlib import Path
from typing import Any

from ts.context import Context
from ts.metrics.metric_type_enum import MetricTypes

from afd_serve.mode import Mode
from afd_serve.pipeline import Failure, Pipeline
from afd_serve.request import read_mode
from afd_serve.response import ModelInfo, Reply, refuse
from afd_serve.sample import sample_picture
from afd_serve.service import Call, Service
from afd_serve.telemetry import METRICS, Sample


class AfdHandler:
    """Loads the exported classifier once per worker and answers batches of requests."""

    def initialize(self, context: Context) -> None:
        """Load the archive's model on one thread and run it once, so that the first client does not wait."""
        model_dir = Path(context.system_properties["model_dir"])
        model = ModelInfo(context.model_name, context.manifest["model"]["modelVersion"])
        self._metrics = {m: context.metrics.get_metric(m.name, MetricTypes(m.kind)) for m in METRICS}
        pipeline = Pipeline.load(model_dir, threads=1)
        pipeline.warm_up()
        signature = json.loads(pipeline.signature.to_json())
        self._description = json.dumps({"model": model.to_dict(), "signature": signature}).encode()
        mode = read_mode(context.model_yaml_config.get("afd", {}).get("mode", Mode.PROTECT.value))
        self._service = Service(pipeline, model, len(pipeline.signature.labels), mode)
        (reply,) = self._service.answer([Call({"body": sample_picture()}, {})]).replies
        if reply.status is not HTTPStatus.OK:
            raise RuntimeError(f"the model cannot classify the sample picture: {reply.body.decode()}")

    def handle(self, data: Sequence[Mapping[str, Any]], context: Context) -> list[bytes]:
        """One JSON body per request, each with its own status."""
        headers = [context.get_all_request_header(index) for index in range(len(data))]
        replies = {index: self._control(parts, headers[index]) for index, parts in enumerate(data)}
        pictures = [index for index, reply in replies.items() if reply is None]
        answers = self._service.answer([Call(data[index], headers[index]) for index in pictures])
        replies.update(zip(pictures, answers.replies, strict=True))
        self._record(answers.samples, context)
        return [_send(context, index, reply) for index, reply in replies.items() if reply is not None]

    def _control(self, parts: Mapping[str, Any], headers: Mapping[str, Any]) -> Reply | None:
        """The reply to what is no prediction: the management API's describe call, and explanations."""
        if not parts and headers.get("describe") == "True":
            return Reply(HTTPStatus.OK, self._description)
        if headers.get("explain") == "True":
            return refuse(Failure("not_supported", "this model gives no explanations; use the predictions route"))
        return None

    def _record(self, samples: Iterable[Sample], context: Context) -> None:
        for sample in samples:
            self._metrics[sample.metric].add_or_update(sample.value, [context.model_name, *sample.labels])


def _send(context: Context, index: int, reply: Reply) -> bytes:
    context.set_response_status(reply.status.value, reply.status.phrase, index)
    context.set_response_content_type(index, "application/json")
    return reply.body
