"""Typed settings, one home for every key that is saved beside a result."""

import json
import math
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Final

from afd_serve.errors import ConfigError

__all__ = ["AdapterSiteConfig", "AfdConfig", "FeSiteConfig", "FitConfig", "GateSiteConfig"]

PRESETS: Final = ("default", "lite", "full", "paper")

SERVED_PRESET: Final = "default"
"""What a backbone's own name stands for, and what a fit makes if nothing else is said."""

_MOST: Final = 2**14
"""Channels and the like: more than any network has, and few enough that a damaged file asks for no absurd memory."""

_MOST_BLOCKS: Final = 64


def _is_whole(value: object, least: int, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _check_whole(settings: object, name: str, least: int, most: int) -> None:
    if not _is_whole(value := getattr(settings, name), least, most):
        raise ConfigError(f"{name} must be a whole number from {least} to {most}, not {value!r}")


def _check_texts(settings: object, *names: str) -> None:
    for name in names:
        if not isinstance(value := getattr(settings, name), str):
            raise ConfigError(f"{name} must be a text, not {value!r}")


@dataclass(frozen=True)
class GateSiteConfig:
    """A channel gate on the output of the backbone's module ``site``."""

    site: str
    channels: int

    def __post_init__(self) -> None:
        _check_texts(self, "site")
        _check_whole(self, "channels", 1, _MOST)


@dataclass(frozen=True)
class AdapterSiteConfig:
    """A correction to the kernel, of this ``shape`` [O, I, kh, kw], of the backbone's convolution ``site``.

    ``rank`` is that of the correction, seen as a matrix [O, I * kh * kw]; 0 is full rank.
    """

    site: str
    shape: tuple[int, int, int, int]
    rank: int = 0

    def __post_init__(self) -> None:
        _check_texts(self, "site")
        _check_whole(self, "rank", 0, _MOST)
        if len(self.shape) != len("OIhw") or not all(_is_whole(side, 1, _MOST) for side in self.shape):
            raise ConfigError(f"shape must be four whole numbers from 1 to {_MOST}, not {self.shape!r}")


@dataclass(frozen=True)
class FeSiteConfig:
    """An FE-Net on the output of the backbone's module ``site``.

    ``stride`` is the number of picture pixels per feature cell (1, 2, 4 or 8); ``width`` the channels of the RepConv
    blocks; ``low_blocks`` how many of them work at half the block grid's resolution.
    """

    site: str
    channels: int
    stride: int
    width: int = 32
    low_blocks: int = 2

    def __post_init__(self) -> None:
        _check_texts(self, "site")
        for name in ("channels", "width"):
            _check_whole(self, name, 1, _MOST)
        _check_whole(self, "low_blocks", 0, _MOST_BLOCKS)
        if self.stride not in (1, 2, 4, 8):
            raise ConfigError(f"stride must be 1, 2, 4 or 8, not {self.stride!r}")


@dataclass(frozen=True)
class AfdConfig:
    """The shape of an AFD module: everything that its weights cannot tell."""

    preset: str
    backbone: str
    fingerprint: str
    gates: tuple[GateSiteConfig, ...] = ()
    adapters: tuple[AdapterSiteConfig, ...] = ()
    fe: tuple[FeSiteConfig, ...] = ()
    descriptor: int = 20
    fdm_channels: int = 32

    def __post_init__(self) -> None:
        _check_texts(self, "preset", "backbone", "fingerprint")
        for name in ("descriptor", "fdm_channels"):
            _check_whole(self, name, 1, _MOST)
        if not self.gates and not self.adapters and not self.fe:
            raise ConfigError("an AFD module needs an attach site: a channel gate, a kernel adapter or an FE-Net")

    def to_json(self) -> str:
        """One JSON object; `from_json` reads it back."""
        return json.dumps(asdict(self), indent=2)

    @classmethod
    def from_json(cls, text: str) -> "AfdConfig":
        """Read what `to_json` wrote.

        Raises:
            ConfigError: A key is missing, unknown or of the wrong kind.
        """
        try:
            values: dict[str, Any] = json.loads(text)
            values["gates"] = tuple(GateSiteConfig(**gate) for gate in values["gates"])
            adapters = values.get("adapters", ())
            values["adapters"] = tuple(AdapterSiteConfig(**site | {"shape": tuple(site["shape"])}) for site in adapters)
            values["fe"] = tuple(FeSiteConfig(**site) for site in values["fe"])
            return cls(**values)
        except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
            raise ConfigError(f"this is no AFD configuration: {error}") from error


@dataclass(frozen=True)
class FitConfig:
    """One fit: what goes in, how long it runs, and where the result lies.

    ``init`` is a shipped model's name, a run's folder or a weights file to start from instead of from nothing.
    ``bf16`` computes in bfloat16 where the CPU has it.
    """

    backbone: str
    images: tuple[Path, ...]
    out: Path
    preset: str = SERVED_PRESET
    steps: int = 6000
    batch_size: int = 16
    sizes: tuple[int, ...] = (128, 128, 160, 192, 224)
    learning_rate: float = 3e-3
    weight_decay: float = 0.05
    warmup_steps: int = 100
    ema: float = 0.998
    embedding_weight: float = 4.0
    seed: int = 0
    workers: int = 1
    checkpoint_every: int = 200
    bf16: bool = True
    exclude: tuple[Path, ...] = field(default=())
    init: str | None = None

    def __post_init__(self) -> None:
        if self.preset not in PRESETS:
            raise ConfigError(f"no preset is called {self.preset!r}; there are {', '.join(PRESETS)}")
        if self.steps < 1 or self.batch_size < 2:
            raise ConfigError("a fit needs at least one step and batches of at least two pictures")
        if not self.sizes or any(size < 32 or size % 32 for size in self.sizes):
            raise ConfigError(f"crop sizes must be multiples of 32, at least one, not {self.sizes}")
        if not 0 < self.learning_rate < math.inf:
            raise ConfigError(f"the learning rate must be a positive number, not {self.learning_rate}")
        if not 0 <= self.seed < 2**64:
            raise ConfigError(f"the seed must be at least 0 and below 2**64, not {self.seed}")
        if self.workers < 0 or self.warmup_steps < 0 or self.checkpoint_every < 1:
            raise ConfigError("workers and warmup_steps must be at least 0, checkpoint_every at least 1")
        if not 0 <= self.ema < 1:
            raise ConfigError(f"ema, what the average keeps, must be at least 0 and below 1, not {self.ema}")

    def to_json(self) -> str:
        """One JSON object with every key."""
        return json.dumps(asdict(self), indent=2, default=str)

    @classmethod
    def from_json(cls, text: str | bytes) -> "FitConfig":
        """Read what `to_json` wrote.

        Raises:
            ConfigError: A key is missing, unknown or of the wrong kind.
        """
        try:
            values: dict[str, Any] = json.loads(text)
            for name in ("images", "exclude"):
                values[name] = tuple(Path(path) for path in values[name])
            values["out"] = Path(values["out"])
            values["sizes"] = tuple(values["sizes"])
            return cls(**values)
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"this is no fit configuration: {error}") from error

    def resumes(self, other: "FitConfig") -> list[str]:
        """The keys in which a run started with ``other`` cannot go on with these settings."""
        free = {"out", "workers", "checkpoint_every", "images", "exclude"}
        return [f.name for f in fields(self) if f.name not in free and getattr(self, f.name) != getattr(other, f.name)]
