"""What commands of several kinds share: options, and statuses to exit with."""

from typing import Annotated, Final

import typer

__all__ = ["BAD_INPUT", "DEFAULT_MODEL", "FAILED", "INTERRUPTED", "ModelOption", "OptionalModelOption"]

BAD_INPUT: Final = 1
FAILED: Final = 2
INTERRUPTED: Final = 130

DEFAULT_MODEL: Final = "efficientnet-lite0"

_MODEL_HELP: Final = (
    "A shipped model's name, a fitted run's folder or an exported model's folder. A run that was fitted to a file: "
    "backbone executes that file, so look at somebody else's first."
)
ModelOption = Annotated[str, typer.Option("--model", help=_MODEL_HELP)]
OptionalModelOption = Annotated[str | None, typer.Option("--model", help=_MODEL_HELP, show_default=DEFAULT_MODEL)]
"""As `ModelOption`, for commands that must know whether it was given."""
