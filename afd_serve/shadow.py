"""The second pass of a picture in shadow mode: how far AFD's answer is from the bare classifier's, which was given."""

import logging
import math
import traceback
from collections.abc import Callable

from torch import Tensor

from afd_serve.results import Failure, Shadow

__all__ = ["look"]

_log = logging.getLogger(__name__)


def look(given: Tensor, protect: Callable[[], Tensor]) -> list[Shadow | Failure]:
    """Compare answers with those that AFD would have given. Never raises: the answers that were given must go out.

    Args:
        given: The bare classifier's logits [N, K].
        protect: Gives AFD's logits [N, K] for the same pictures; not called when N is 0.

    Returns:
        A comparison for each picture, or why there is none.
    """
    if not len(given):
        return []
    try:
        protected = protect()
        return [_compare(*pair) for pair in zip(given.softmax(dim=1), protected.softmax(dim=1), strict=True)]
    except Exception:
        # In one line, see afd_serve.service.
        _log.error("the shadow pass failed: %s", ascii(traceback.format_exc()))
        return [Failure("internal", "the shadow pass failed; the log has the details")] * len(given)


def _compare(given: Tensor, protected: Tensor) -> Shadow | Failure:
    """Compare two rows of probabilities [K]."""
    confidence_change = float(protected.max() - given.max())
    if not math.isfinite(confidence_change):
        return Failure("internal", "a probability is no number")
    return Shadow(disagrees=bool(given.argmax() != protected.argmax()), confidence_change=confidence_change)
