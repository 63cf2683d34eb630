"""TorchServe handler: hands a dynamic batch to the `Service`, and its replies back.

It stands on its own instead of extending ``BaseHandler``, whose ``handle`` looks at the first request of a batch only:
there, a client's ``describe`` header would answer all its neighbours with the model's description.
"""

import json
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import Any

from ts.context import Context
from ts.metrics.metric_cache_errors import MetricsCacheKeyError
from ts.metrics.metric_type_enum import MetricTypes

from afd_serve.explanations import ExplanationService
from afd_serve.export import load_features
from afd_serve.mode import Mode
from afd_serve.packaging.seal import check_seal
from afd_serve.pipeline import Pipeline
from afd_serve.request import read_mode
from afd_serve.response import ModelInfo, Reply
from afd_serve.sample import sample_picture
from afd_serve.service import Call, Service
from afd_serve.telemetry import METRICS, Metric, Series, Tally, first_series
from afd_serve.worker_log import hold_back


class AfdHandler:
    """Loads the exported classifier once per worker and answers batches of requests."""

    def initialize(self, context: Context) -> None:
        """Load the archive's model on one thread and run it once, so that the first client does not wait."""
        model_dir = Path(context.system_properties["model_dir"])
        check_seal(model_dir)
        # Else TorchServe parses what calls itself JSON, before anything bounds it: seconds and gigabytes for 30 MB.
        os.environ["TS_DECODE_INPUT_REQUEST"] = "false"
        model = ModelInfo(context.model_name, context.manifest["model"]["modelVersion"])
        self._model = context.model_name
        self._counters = {name: _counter(context, name, metric) for metric in METRICS for name in metric.series}
        self._tally = Tally(self._count, first_series())
        pipeline = Pipeline.load(model_dir, threads=1)
        pipeline.warm_up()
        signature = json.loads(pipeline.signature.to_json())
        self._description = json.dumps({"model": model.to_dict(), "signature": signature}).encode()
        mode = read_mode(context.model_yaml_config.get("afd", {}).get("mode", Mode.PROTECT.value))
        self._service = Service(pipeline, model, mode)
        self._explanations = ExplanationService(pipeline, partial(load_features, model_dir), model)
        (reply,) = self._service.answer([Call({"body": sample_picture()}, {})]).replies
        if reply.status is not HTTPStatus.OK:
            raise RuntimeError(f"the model cannot classify the sample picture: {reply.body.decode()}")
        hold_back(logging.getLogger(), sys.stdout)

    def handle(self, data: Sequence[Mapping[str, Any]], context: Context) -> list[bytes]:
        """One body per request, each with its own status."""
        calls = [Call(parts, context.get_all_request_header(index)) for index, parts in enumerate(data)]
        replies = {index: self._control(call) for index, call in enumerate(calls)}
        pictures = [index for index, reply in replies.items() if reply is None]
        answers = self._service.answer([calls[index] for index in pictures])
        replies.update(zip(pictures, answers.replies, strict=True))
        self._tally.record(answers.samples)
        return [_send(context, index, reply) for index, reply in replies.items() if reply is not None]

    def _control(self, call: Call) -> Reply | None:
        """The reply to what is no prediction: the management API's describe call, and explanations.

        The frontend says by headers of its own which of its routes was asked; a client's of the same names are lost.
        """
        if not call.parts and call.headers.get("describe") == "True":
            return Reply(HTTPStatus.OK, self._description)
        if call.headers.get("explain") != "True":
            return None
        reply, samples = self._explanations.answer(call)
        self._tally.record(samples)
        return reply

    def _count(self, series: Series, value: float) -> None:
        self._counters[series.name].add_or_update(round(value, 6), [self._model, *series.labels])


def _counter(context: Context, name: str, metric: Metric) -> Any:
    """A counter as ``metrics.yaml`` declares it, or of our own on a server whose ``metrics_config`` is another file.

    Such a server publishes it where its settings say ``model_metrics_auto_detect=true``, and else drops it.
    """
    try:
        return context.metrics.get_metric(name, MetricTypes.COUNTER)
    except MetricsCacheKeyError:
        return context.metrics.add_metric_to_cache(name, metric.unit, ["ModelName", *metric.labels])


def _send(context: Context, index: int, reply: Reply) -> bytes:
    context.set_response_status(reply.status.value, reply.status.phrase, index)
    context.set_response_content_type(index, reply.content_type)
    # The frontend drops the worker where an answer to StreamPredictions does not say whether it is the last. Over HTTP
    # that word would take the answer's head away, so only gRPC gets it: it alone brings no header that is text.
    if not any(isinstance(value, str) for value in context.get_all_request_header(index).values()):
        context.set_response_header(index, "ts_stream_next", "false")
    return reply.body
