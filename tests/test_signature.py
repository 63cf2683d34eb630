"""The signature of an exported classifier: plain JSON, read as it was written or not at all."""

import json
from typing import Any

import pytest

from afd_serve.errors import CheckpointError
from afd_serve.models.backbones import Preprocessing
from afd_serve.signature import FORMAT, Signature, TensorSpec

SIGNATURE = Signature(
    name="mine",
    backbone="file:mine.py",
    preset="full",
    fingerprint="1" * 64,
    sha256="2" * 64,
    format=FORMAT,
    version="1.0",
    torch="2.13.0",
    preprocessing=Preprocessing(64, 0.875, "bilinear", (120.0, 115.0, 105.0), (60.0, 58.0, 57.0)),
    inputs=(TensorSpec("rgb", "uint8", (-1, 3, 64, 64)), TensorSpec("gate", "float32", (-1,))),
    outputs=(TensorSpec("logits", "float32", (-1, 2)),),
    labels=("cat", "dog"),
    precision="bfloat16",
    engine="openvino",
    parity=1e-3,
    features_sha256="3" * 64,
)


def written(*without: str, **changes: Any) -> str:
    """The file with other values, or without some keys."""
    values = json.loads(SIGNATURE.to_json()) | changes
    return json.dumps({key: value for key, value in values.items() if key not in without})


def unsigned(*without: str, **changes: Any) -> str:
    """The same as earlier versions wrote it, without a digest."""
    return written("signature_sha256", *without, **changes)


@pytest.mark.parametrize("text", [SIGNATURE.to_json(), unsigned()])
def test_what_is_written_is_read(text: str) -> None:
    assert Signature.from_json(text) == SIGNATURE
    assert json.loads(text)["preset"] == "full"


def test_another_order_of_the_keys_is_the_same_signature() -> None:
    assert Signature.from_json(json.dumps(json.loads(SIGNATURE.to_json()), sort_keys=True)) == SIGNATURE


@pytest.mark.parametrize("change", [{"labels": ["dog", "cat"]}, {"engine": "torchscript"}, {"later": 1}])
def test_what_was_changed_by_hand_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(CheckpointError, match="not the one that was exported"):
        Signature.from_json(written(**change))


def test_preprocessing_that_was_changed_by_hand_is_refused() -> None:
    preprocessing = json.loads(SIGNATURE.to_json())["preprocessing"] | {"crop_fraction": 0.5}
    with pytest.raises(CheckpointError, match="not the one that was exported"):
        Signature.from_json(written(preprocessing=preprocessing))


def test_earlier_versions_wrote_fewer_keys_and_later_ones_may_write_more() -> None:
    earlier = Signature.from_json(unsigned("precision", "engine", "parity", "features_sha256", later=1))
    assert (earlier.precision, earlier.engine, earlier.parity, earlier.features_sha256) == (
        "float32",
        "torchscript",
        0.0,
        "",
    )
    assert earlier.labels == SIGNATURE.labels


def test_a_later_format_is_refused_by_its_number() -> None:
    with pytest.raises(CheckpointError, match="has format 2, this version reads 1"):
        Signature.from_json(written(format=2))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{",
        b"\xff",
        "[" * 10**5,
        unsigned("backbone"),
        unsigned("inputs"),
        unsigned(labels=None),
        unsigned(preprocessing={"size": 64, "mean": [0.0] * 3, "std": [1.0] * 3}),
        unsigned(preprocessing=json.loads(SIGNATURE.to_json())["preprocessing"] | {"size": 1.5}),
    ],
)
def test_what_is_no_signature_is_refused(text: str | bytes) -> None:
    with pytest.raises(CheckpointError, match="no signature of an exported classifier"):
        Signature.from_json(text)
