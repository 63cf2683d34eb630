"""The signature of an exported classifier: all that a server has to know of it, as one JSON file beside the model."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Final

from afd_serve.errors import BackboneError, CheckpointError
from afd_serve.transforms import Preprocessing

__all__ = ["FORMAT", "SIGNATURE_NAME", "Signature", "TensorSpec"]

SIGNATURE_NAME: Final = "signature.json"
FORMAT: Final = 1
"""The format of the file; a reader refuses any other."""

_DIGEST: Final = "signature_sha256"
"""The key of the SHA-256 of all other keys and values; versions that wrote none are read all the same."""


@dataclass(frozen=True)
class TensorSpec:
    """One input or output: a name, a torch dtype's name, and a shape in which -1 is the batch."""

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Signature:
    """All that a server has to know of an exported classifier.

    ``engine`` and ``precision`` are what it was exported for, ``parity`` the largest difference of a probability from
    the eager float32 classifier's that the export found on real pictures, and ``sha256`` that of its files, joined.
    ``features_sha256`` is that of ``features.pt``. Both digests are empty where it was not exported, the second also by
    versions that wrote no features.
    """

    name: str
    backbone: str
    preset: str
    fingerprint: str
    sha256: str
    format: int
    version: str
    torch: str
    preprocessing: Preprocessing
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    labels: tuple[str, ...]
    precision: str = "float32"
    engine: str = "torchscript"
    parity: float = 0.0
    features_sha256: str = ""

    def to_json(self) -> str:
        """One JSON object; `from_json` reads it back."""
        values = asdict(self)
        return json.dumps(values | {_DIGEST: _digest(values)}, indent=1)

    @classmethod
    def from_json(cls, text: str | bytes) -> "Signature":
        """Read what `to_json` wrote.

        Raises:
            CheckpointError: It is no signature, one of a later format, or not as it was written.
        """
        try:
            values: dict[str, Any] = json.loads(text)
            if values.get("format") != FORMAT:
                raise CheckpointError(f"the signature has format {values.get('format')}, this version reads {FORMAT}")
            if _DIGEST in values and values.pop(_DIGEST) != _digest(values):
                raise CheckpointError("the signature is not the one that was exported; export the model again")
            preprocessing = values["preprocessing"]
            values["preprocessing"] = Preprocessing(
                **preprocessing | {key: tuple(preprocessing[key]) for key in ("mean", "std")}
            )
            for key in ("inputs", "outputs"):
                values[key] = tuple(
                    TensorSpec(spec["name"], spec["dtype"], tuple(spec["shape"])) for spec in values[key]
                )
            values["labels"] = tuple(values["labels"])
            return cls(**{field.name: values[field.name] for field in fields(cls) if field.name in values})
        except (AttributeError, BackboneError, KeyError, RecursionError, TypeError, ValueError) as error:
            words = f"{type(error).__name__}: {error}"  # its repr would have all of the bytes that are no text
            raise CheckpointError(f"this is no signature of an exported classifier: {words}") from error


def _digest(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
