"""What both ends of the Triton path agree on: names, and how a failure travels in an error's message."""

import re
from typing import Final

__all__ = [
    "ANSWER",
    "ENSEMBLE",
    "MODEL_CPU_METRIC",
    "OK",
    "PICTURE",
    "STATUS",
    "error_message",
    "read_error",
]

ENSEMBLE: Final = "afd_classify"
"""The model that clients call, and by whose name answers and metrics go."""

PICTURE: Final = "picture"
"""Its input: encoded pictures, STRING [N, 1]."""

ANSWER: Final = "answer"
"""Its output in the wire format of `afd_serve.response`: STRING [N, 1]."""

STATUS: Final = "status"
"""Its output that says what became of each picture: `OK` or a failure's code, STRING [N, 1]."""

OK: Final = "ok"
"""The status of a picture that has a prediction."""

MODEL_CPU_METRIC: Final = "afd_model_cpu_seconds_total"
"""CPU time in the classifier alone: what is left of the processes' CPU time is the serving's own."""

_MESSAGE: Final = re.compile(r"(?:in ensemble '[^']*', )?([a-z][a-z0-9_]*): (.*)", re.DOTALL)


def error_message(code: str, reason: str) -> str:
    """The message of an error response."""
    return f"{code}: {reason}"


def read_error(message: str) -> tuple[str, str] | None:
    """Code and reason of what `error_message` wrote, with what Triton puts before it; None for Triton's own words."""
    found = _MESSAGE.fullmatch(message)
    return (found[1], found[2]) if found else None
