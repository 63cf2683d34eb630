"""Find attach sites of a classifier of any family in its graph: where one feature map is all that goes on."""

from collections.abc import Mapping

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from afd_serve.models.attach import Trace, trace

__all__ = ["find_bottlenecks"]


def find_bottlenecks(module: nn.Module, size: int) -> list[str]:
    """The module at the end of each step, in order of execution.

    A step has a convolution and ends with a feature map ``[N, C, H, W]`` that nothing bypasses: a convolution and its
    norm, a residual or dense block, or a fork with its join.

    Args:
        module: RGB float ``[N, 3, size, size]`` to logits, in eval mode; left as it was.
        size: side of the input in pixels.

    Raises:
        AttachError: It cannot be recorded as a graph.
    """
    recorded = trace(module)
    modules = dict(module.named_modules())
    shapes = _Shapes(module, recorded).of_nodes(size)
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


class _Shapes(fx.Interpreter):
    """Runs a recorded graph on a grey picture and remembers the shapes of the tensors that it computes."""

    def __init__(self, module: nn.Module, recorded: Trace) -> None:
        super().__init__(module, graph=recorded.graph)
        self._constants = recorded.constants
        self._found: dict[fx.Node, torch.Size] = {}

    @torch.inference_mode()
    def of_nodes(self, size: int) -> dict[fx.Node, torch.Size]:
        first = next(self.module.parameters(), torch.zeros(()))
        self.run(torch.zeros(1, 3, size, size, dtype=first.dtype, device=first.device))
        return self._found

    def run_node(self, n: fx.Node) -> object:
        """Run a node as the base class does."""
        result = super().run_node(n)
        if isinstance(result, Tensor) and n.op != "get_attr":
            self._found[n] = result.shape
        return result

    def fetch_attr(self, target: str) -> object:
        """Find what a node reads from the module."""
        return self._constants[target] if target in self._constants else super().fetch_attr(target)


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
    """Whether it is [N, C, H, W] of a square picture; transformers that keep channels last have [N, H, W, C]."""
    return len(shape) == 4 and shape[2] == shape[3] > 1


def _is_normalized_next(node: fx.Node, modules: Mapping[str, nn.Module]) -> bool:
    reader, *others = node.users
    return not others and reader.op == "call_module" and isinstance(modules[str(reader.target)], nn.BatchNorm2d)
