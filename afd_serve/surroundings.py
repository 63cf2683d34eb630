"""What an application has set for all of torch, kept away from classifiers that are loaded and asked in it."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["in_float32", "inference"]


@contextmanager
def in_float32() -> Iterator[None]:
    """What is built here is in float32, whatever the application's default type, also under its `torch.autocast`.

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
    """Answers are the classifier's own, bit for bit, also under the application's `torch.autocast`."""
    with torch.inference_mode(), torch.autocast("cpu", enabled=False):
        yield
