"""A classifier's forward pass as `torch.fx` records it: a graph of calls of its own submodules."""

import copy
import inspect
import re
from collections import Counter
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from torch import Tensor, fx, nn

from afd_serve.errors import AttachError

__all__ = ["ArgumentTracer", "Trace", "apart", "not_recorded", "trace"]

_ADVICE: Final = {
    r"does not support item assignment": (
        "let its forward make a new tensor, by torch.cat or torch.where, instead of assigning to a part of one"
    ),
    r"\b(zeros|ones|full|empty|eye|rand|randn)\(\)|found element of type Proxy": (
        "let its forward make a tensor of another one's size from that, as x.new_zeros(x.shape[0], 1) does"
    ),
}
"""What to do about obstacles that can be told by the words, here regular expressions, in their errors."""

_ON_BRANCHES: Final = "its forward may branch on the sizes of tensors, not on their values"


class ArgumentTracer(fx.Tracer):
    """A tracer whose `given` says what takes the place of an argument of the forward that is recorded."""

    def given(self, argument: fx.Proxy) -> Any:
        """What the forward gets for an argument."""
        raise NotImplementedError

    def create_args_for_root(
        self,
        root_fn: Callable[..., Any],
        is_module: bool,
        concrete_args: dict[str, Any] | tuple[Any, ...] | None = None,
    ) -> tuple[Any, list[Any]]:
        """Make the forward's arguments, as the base class does but for what `given` says."""
        function, (root, *arguments) = super().create_args_for_root(root_fn, is_module, concrete_args)
        return function, [root, *map(self.given, arguments)]


class _SiteTracer(ArgumentTracer):
    """A tracer that remembers which node holds the output of each module, leaf or not, and how often it is called.

    A backbone's optional arguments keep their defaults: nobody passes them, and none may come before added inputs.
    """

    def __init__(self) -> None:
        super().__init__()
        self.outputs: dict[str, fx.Node] = {}
        self.calls: Counter[str] = Counter()

    def given(self, argument: fx.Proxy) -> Any:
        if not argument.node.args:
            return argument
        default = argument.node.args[0]
        self.graph.erase_node(argument.node)
        return default

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        path = self.path_of_module(m)
        if kwargs and not args and self.is_leaf_module(m, path):
            # Whoever reads the graph looks for a layer's features among the positional arguments.
            call = inspect.signature(m.forward).bind(**kwargs)
            args, kwargs = call.args, call.kwargs
        self.calls[path] += 1
        out = super().call_module(m, forward, args, kwargs)
        if isinstance(out, fx.Proxy):
            self.outputs[path] = out.node
        return out


class Trace(NamedTuple):
    """A backbone as recorded.

    Attributes:
        graph: Calls of its modules.
        outputs: The node that holds the output of each of its modules, leaf or not.
        constants: Tensors that the graph may read from the backbone itself and that are no parameters or buffers.
        calls: How often each of its modules is called, leaf or not.
    """

    graph: fx.Graph
    outputs: dict[str, fx.Node]
    constants: dict[str, Tensor]
    calls: Counter[str]


def trace(backbone: nn.Module) -> Trace:
    """Record a backbone's forward pass.

    Raises:
        AttachError: The backbone cannot be recorded.
    """
    tracer = _SiteTracer()
    try:
        copied = apart(backbone)
        graph = tracer.trace(copied)
    except Exception as error:  # whatever third-party code raises for what is not a tensor
        raise not_recorded(backbone, error) from error
    # Constants inside a forward have become attributes of what was recorded.
    constants = {name: value for name, value in vars(copied).items() if isinstance(value, Tensor)}
    return Trace(graph, tracer.outputs, constants, tracer.calls)


def not_recorded(backbone: nn.Module, obstacle: object) -> AttachError:
    """What to raise where `torch.fx` meets an obstacle in the backbone or in a part of it."""
    # Older versions of torch go on for lines; a bare assert says nothing.
    reason = str(obstacle).partition("\n")[0] or type(obstacle).__name__
    advice = next((advice for words, advice in _ADVICE.items() if re.search(words, reason)), _ON_BRANCHES)
    return AttachError(f"{type(backbone).__name__} cannot be recorded as a graph ({reason}); {advice}")


def apart(backbone: nn.Module) -> nn.Module:
    """A copy with the same tensors: a forward that keeps results for its next call must not keep what is recorded."""
    tensors = [value for module in backbone.modules() for value in vars(module).values() if isinstance(value, Tensor)]
    shared = (*backbone.parameters(), *backbone.buffers(), *tensors)
    return copy.deepcopy(backbone, {id(value): value for value in shared})
