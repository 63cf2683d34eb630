"""What commands of several kinds share: options, and statuses to exit with."""

from typing import Annotated, Final

import typer

__all__ = ["BAD_INPUT", "DEFAULT_MODEL", "FAILED", "INTERRUPTED", "ModelOption"]

BAD_INPUT: Final = 1
FAILED: Final = 2
INTERRUPTED: Final = 130

DEFAULT_MODEL: Final = "efficientnet-lite0"

ModelOption = Annotated[
    str, typer.Option("--model", help="A shipped model's name, a fitted run's folder or an exported model's folder.")
]
