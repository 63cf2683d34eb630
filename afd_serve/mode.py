"""The rollout modes: what AFD does for a picture. Nothing here needs torch."""

from enum import StrEnum

__all__ = ["Mode"]


class Mode(StrEnum):
    """What AFD does for a picture whose gate opens; a picture whose gate stays closed is answered alike in all modes.

    Attributes:
        PROTECT: It answers.
        OFF: Nothing: the bare classifier answers.
        SHADOW: The bare classifier answers; AFD runs as well, and how far its answer differs goes to the metrics.
    """

    PROTECT = "protect"
    OFF = "off"
    SHADOW = "shadow"

    @classmethod
    def of(cls, choice: "Mode | bool") -> "Mode":
        """A mode, or the one that a switch stands for: on protects."""
        return choice if isinstance(choice, cls) else cls.PROTECT if choice else cls.OFF
