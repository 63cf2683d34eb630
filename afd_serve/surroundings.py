"""The default type and the CPU's autocast of an application, kept away from classifiers that it loads and asks."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["in_float32", "inference"]


@contextmanager
def in_float32() -> Iterator[None]:
    """What is built here is in float32, whatever the application's default type and its `torch.autocast` for CPUs say.

    Decorates functions as well.
    """
    kind = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with torch.autocast("cpu", enabled=False):
            yield
    finally:
        torch.set_default_dtype(kind)


@contextmanager
def inference() -> Iterator[None]:
    """Answers are the classifier's own, bit for bit, also under the application's `torch.autocast` for CPUs."""
    with torch.inference_mode(), torch.autocast("cpu", enabled=False):
        yield
