"""What a JPEG's header, tables and coefficients say, for people and as JSON."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from afd_serve import jpeg
from afd_serve.dct import dequantize
from afd_serve.errors import EmptyInputError, NotAnImageError
from afd_serve.quality import CompressionHistory, compression_history, harmless_from

__all__ = ["Inspection", "inspect_jpeg", "print_inspection", "to_dict"]


@dataclass(frozen=True)
class Inspection:
    """A decoded JPEG, its size in bytes, and what is known of its compressions."""

    size: int
    image: jpeg.JpegImage
    history: CompressionHistory


def inspect_jpeg(path: Path) -> Inspection:
    """Decode a JPEG; damage that still leaves a picture becomes a warning.

    Raises:
        InputError: the file is empty, no JPEG, or nothing of it can be decoded.
        OSError: the file cannot be read.
    """
    data = path.read_bytes()
    if not data:
        raise EmptyInputError(f"{path} is empty")
    if not jpeg.is_jpeg(data):
        raise NotAnImageError(f"{path} is no JPEG; only JPEGs have coefficients and tables to show")
    image = jpeg.read(data, tolerant=True)
    luma = image.components[0]
    history = compression_history(dequantize(luma.coefficients, luma.quant_table), luma.quant_table)
    return Inspection(len(data), image, history)


def to_dict(inspection: Inspection) -> dict[str, Any]:
    """Everything that is shown, as JSON takes it; tables are lists of 8 rows in natural order."""
    image, history = inspection.image, inspection.history
    return {
        "bytes": inspection.size,
        "width": image.width,
        "height": image.height,
        "color_space": image.color_space,
        "progressive": image.progressive,
        "arithmetic": image.arithmetic,
        "restart_interval": image.restart_interval,
        "orientation": image.orientation,
        "estimated_quality": history.quality,
        "resaved": history.resaved,
        "harmless_from": harmless_from(history.quality),
        "components": [
            {
                "component_id": component.component_id,
                "h": component.h,
                "v": component.v,
                "width_in_blocks": component.width_in_blocks,
                "height_in_blocks": component.height_in_blocks,
                "quant_table": component.quant_table.tolist(),
            }
            for component in image.components
        ],
        "warnings": list(image.warnings),
    }


def print_inspection(inspection: Inspection, console: Console) -> None:
    """Print the header's facts, the judgement, the components and each quantization table once."""
    image = inspection.image
    facts = Table.grid(padding=(0, 2))
    for name, value in _facts(inspection):
        facts.add_row(name, value)
    console.print(facts)
    components = Table("component", "sampling (h, v)", "blocks (width x height)", "table")
    tables: list[list[list[int]]] = []
    for component in image.components:
        table = component.quant_table.tolist()
        if table not in tables:
            tables.append(table)
        blocks = f"{component.width_in_blocks} x {component.height_in_blocks}"
        sampling = f"({component.h}, {component.v})"
        components.add_row(str(component.component_id), sampling, blocks, str(tables.index(table)))
    console.print(components)
    for index, table in enumerate(tables):
        console.print(f"quantization table {index}:")
        console.print("\n".join(" ".join(f"{step:5d}" for step in row) for row in table), highlight=False)


def _facts(inspection: Inspection) -> list[tuple[str, str]]:
    image, history = inspection.image, inspection.history
    coding = "arithmetic" if image.arithmetic else "Huffman"
    reduction = harmless_from(history.quality)
    verdict = f"compressed: AFD acts unless the model sees it reduced {reduction:.1f} times or more"
    source = "its coefficients; it was saved again since" if history.resaved else "its table"
    facts = [
        ("size", f"{image.width} x {image.height} pixels, {inspection.size} bytes"),
        ("colours", image.color_space),
        ("process", f"{'progressive' if image.progressive else 'sequential'}, {coding}"),
        ("restart interval", f"{image.restart_interval} MCUs" if image.restart_interval else "none"),
        ("EXIF orientation", str(image.orientation)),
        ("estimated quality", f"{history.quality} (from {source})"),
        ("judgement", verdict if reduction else "good: the gate stays closed"),
    ]
    return facts + [("warning", warning) for warning in image.warnings]
