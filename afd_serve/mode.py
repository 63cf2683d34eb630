"""The rollout modes: what AFD does for a picture. Nothing here needs torch."""

from enum import StrEnum

from afd_serve.errors import ConfigError

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
    def of(cls, choice: "Mode | str | bool") -> "Mode":
        """A mode, the one of this name, or the one that a switch stands for: on protects.

        Raises:
            ConfigError: There is no such mode.
        """
        if choice in (True, False):
            return cls.PROTECT if choice else cls.OFF
        try:
            return cls(str(choice))
        except ValueError:
            raise ConfigError(f"the mode is {', '.join(cls)}, True or False, not {choice!r}") from None
