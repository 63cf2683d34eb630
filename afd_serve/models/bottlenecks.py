"""Find attach sites of a classifier of any family in its graph: where one feature map is all that goes on."""

from collections.abc import Mapping

import torch
from torch import fx, nn
from torch.fx.passes.shape_prop import ShapeProp, TensorMetadata
from torch.nn import functional as F

from afd_serve.models.attach import graph_module, grey_picture
from afd_serve.models.recording import Trace

__all__ = ["find_bottlenecks"]


def find_bottlenecks(module: nn.Module, recorded: Trace, size: int) -> list[str]:
    """The module at the end of each step, in order of execution.

    A step has a convolution and ends with a feature map ``[N, C, H, W]`` that nothing bypasses: a convolution and its
    norm, a residual or dense block, or a fork with its join.

    Args:
        module: RGB float ``[N, 3, size, size]`` to logits, in eval mode; left as it was.
        recorded: what `trace` makes of it.
        size: side of the input in pixels.
    """
    modules = dict(module.named_modules())
    shapes = _shapes(module, recorded, size)
    names = _names(recorded.outputs, modules)
    places = {node: place for place, node in enumerate(recorded.graph.nodes)}
    found: list[str] = []
    has_convolved, last_read = False, 0
    for node, place in places.items():
        has_convolved |= _is_convolution(node, modules)
        if node not in shapes:
            continue
        alone = node.users and last_read <= place and _is_map(shapes[node])
        if has_convolved and alone and node in names and not _is_normalized_next(node, modules):
            found.append(names[node])
            has_convolved = False
        last_read = max(last_read, *(places[reader] for reader in node.users), place)
    return found


@torch.inference_mode()
def _shapes(module: nn.Module, recorded: Trace, size: int) -> dict[fx.Node, torch.Size]:
    """Of the tensors that a graph computes from a picture."""
    ShapeProp(graph_module(module, recorded, {})).propagate(grey_picture(module, size))
    found = {node: node.meta.get("tensor_meta") for node in recorded.graph.nodes if node.op != "get_attr"}
    return {node: meta.shape for node, meta in found.items() if isinstance(meta, TensorMetadata)}


def _names(outputs: Mapping[str, fx.Node], modules: Mapping[str, nn.Module]) -> dict[fx.Node, str]:
    """By which module's name a node is known: the innermost with a convolution in it, or else the innermost."""
    names: dict[fx.Node, str] = {}
    holds: dict[fx.Node, bool] = {}
    for name, node in outputs.items():  # inner ones end first
        has_convolution = any(isinstance(part, nn.Conv2d) for part in modules[name].modules())
        if node not in names or (has_convolution and not holds[node]):
            names[node], holds[node] = name, has_convolution
    return names


def _is_convolution(node: fx.Node, modules: Mapping[str, nn.Module]) -> bool:
    """Whether it is one, also where its kernel is computed anew at each call."""
    if node.op == "call_module":
        return isinstance(modules[str(node.target)], nn.Conv2d)
    return node.target is F.conv2d


def _is_map(shape: torch.Size) -> bool:
    """Whether it is [N, C, H, W] of a square picture, N being 1 here; windows of a picture count as several.

    Transformers that keep channels last have [N, H, W, C].
    """
    return len(shape) == 4 and shape[0] == 1 and shape[2] == shape[3] > 1


def _is_normalized_next(node: fx.Node, modules: Mapping[str, nn.Module]) -> bool:
    reader, *others = node.users
    return not others and reader.op == "call_module" and isinstance(modules[str(reader.target)], nn.BatchNorm2d)
