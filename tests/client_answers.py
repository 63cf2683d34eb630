"""Answers for the client's tests, as they are and as servers send them."""

import json
from typing import Any

from afd_serve.client.channels import Reply
from afd_serve.response import ModelInfo, failure_to_dict, prediction_to_dict
from afd_serve.results import Failure, Prediction

CLOCK = Prediction((892, 409), ("wall clock", "analog clock"), (0.75, 0.125), 10, 0.5, True)
CUT = Failure("truncated_jpeg", "the data ends: too early")
Result = Prediction | Failure
DRAWING = b"\x89PNG\r\n\x1a\n and so on"


def wire(result: Result) -> dict[str, Any]:
    if isinstance(result, Failure):
        return failure_to_dict(result)
    return prediction_to_dict(result, ModelInfo("afd", "1"))


def answers(*results: Result) -> Reply:
    return Reply(200, json.dumps({"outputs": [{"data": [json.dumps(wire(result)) for result in results]}]}).encode())
