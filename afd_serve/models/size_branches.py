"""Branches on sizes in a classifier's forward, which `torch.fx` cannot record: decided once, for its one input size."""

import inspect
import operator
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any, Final

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_aggregate

from afd_serve.errors import AttachError
from afd_serve.models.attach import grey_picture
from afd_serve.models.recording import ArgumentTracer, apart, not_recorded, trace

__all__ = ["decide_size_branches"]

_FORM: Final = frozenset({"shape", "ndim", "dtype", "device", "layout", "is_cuda", "requires_grad"})
_FORM_METHODS: Final = frozenset({"size", "dim", "ndimension", "numel", "nelement", "is_floating_point"})
"""Attributes and methods that tell of a tensor's form and not of its values."""


@torch.no_grad()  # inference mode would make tensors that nothing can learn through
def decide_size_branches(module: nn.Module, size: int) -> None:
    """Let a classifier that branches on sizes take, from now on, the branches for inputs of ``size`` pixels.

    Sizes, data types and devices are all that is decided on. A classifier that `torch.fx` can record stays as it is.

    Args:
        module: RGB float ``[N, 3, size, size]`` to logits, in eval mode; changed in place, its tensors are not.
        size: side of the input in pixels.

    Raises:
        AttachError: it branches on values or on the number of pictures, or does something else that cannot be recorded.
    """
    if _can_be_recorded(module):
        return
    name = type(module).__name__
    pictures = torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(0)).to(grey_picture(module, size))
    before = _answers(module, pictures, f"{name} cannot take one picture or three")
    obstacles = [_decide(part, arguments) for part, arguments in _calls(module, pictures[:2]).items()]
    if not _can_be_recorded(module):
        raise not_recorded(module, next(filter(None, obstacles), "a part takes inputs of several sizes"))
    after = _answers(module, pictures, f"{name} cannot do without branching on sizes")
    if not all(map(torch.equal, before, after)):
        raise AttachError(f"{name} branches on how many pictures it is given")


def _answers(module: nn.Module, pictures: Tensor, failure: str) -> list[Tensor]:
    """For the first picture and for all, which together take other branches than the two that decide."""
    try:
        return [module(pictures[:1]), module(pictures)]
    except Exception as error:  # there is no telling with what a third party's code refuses a number of pictures
        raise AttachError(f"{failure}: {error}") from error


def _can_be_recorded(module: nn.Module) -> bool:
    try:
        trace(module)
    except AttachError:
        return False
    return True


def _calls(module: nn.Module, pictures: Tensor) -> dict[nn.Module, dict[str, Any]]:
    """With which arguments the parts that are not torch.nn's are called, where their form is the same each time."""
    seen: dict[nn.Module, dict[str, Any]] = {}
    changing: set[nn.Module] = set()

    def see(part: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        call = inspect.signature(part.forward).bind(*args, **kwargs)
        call.apply_defaults()
        if part in seen and _form(seen[part]) != _form(call.arguments):
            changing.add(part)
        seen[part] = call.arguments

    tracer = fx.Tracer()
    with ExitStack() as hooks:
        for part in module.modules():
            if not tracer.is_leaf_module(part, ""):
                hooks.enter_context(part.register_forward_pre_hook(see, with_kwargs=True))
        module(pictures)
    return {part: arguments for part, arguments in seen.items() if part not in changing}


def _form(value: Any) -> Any:
    return map_aggregate(value, lambda leaf: (leaf.shape, leaf.dtype) if isinstance(leaf, Tensor) else leaf)


def _holds(value: Any, kinds: tuple[type, ...]) -> bool:
    """Whether something of these kinds is in a value, or in the tuples, lists and dictionaries that it is made of."""
    found: list[bool] = []
    map_aggregate(value, lambda leaf: found.append(isinstance(leaf, kinds)))
    return any(found)


def _decide(part: nn.Module, arguments: dict[str, Any]) -> str | None:
    """Let a part do what it does with arguments like these, where it branches; returns what was in the way."""
    recorder = _Recorder(arguments)
    try:
        graph = recorder.trace(apart(part))
    except Exception as error:  # whatever third-party code raises for what is not a tensor
        return f"{type(part).__name__}: {str(error) or type(error).__name__}"
    if recorder.has_decided:
        _take_forward(part, fx.GraphModule(recorder.root, graph))
    return None


def _take_forward(part: nn.Module, decided: fx.GraphModule) -> None:
    """By a class of its own, under the old name: whoever asks the part what it is gets the same answer."""
    kind = type(part)
    part.__class__ = type(kind.__name__, (kind,), {"forward": type(decided).forward, "__module__": kind.__module__})
    for name, constant in decided.named_buffers(recurse=False):
        if not hasattr(part, name):  # the forward made it
            part.register_buffer(name, constant, persistent=False)


class _Recorder(ArgumentTracer):
    """Records the calls that one part makes; what comes out of them for a given input decides its branches.

    Args:
        arguments: of the part's forward.
    """

    def __init__(self, arguments: dict[str, Any]) -> None:
        super().__init__()
        self.has_decided = False
        self._arguments = arguments
        self._values: dict[fx.Node, Any] = {}
        self._of_pictures: set[fx.Node] = set()  # whose values the picture's decide
        self._is_measuring = False

    def is_leaf_module(self, _m: nn.Module, _module_qualified_name: str) -> bool:
        return True

    def given(self, argument: fx.Proxy) -> Any:
        """What is computed stays open; what is left out does not."""
        value = self._values[argument.node] = self._arguments[str(argument.node.target)]
        if _holds(value, (Tensor,)):
            self._of_pictures.add(argument.node)
        return argument if _holds(value, (Tensor, int, float)) else value

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Measured(node, self)

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        return forward(*args, **kwargs) if self._is_measuring else super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        return attr_val if self._is_measuring else super().getattr(attr, attr_val, parameter_proxy_cache)

    def to_bool(self, obj: fx.Proxy) -> bool:
        return bool(self.decide(obj))

    def iter(self, obj: fx.Proxy) -> Iterator[Any]:
        try:
            return super().iter(obj)
        except fx.proxy.TraceError:
            count = len(self.measure(obj))
            return iter([self.create_proxy("call_function", operator.getitem, (obj, i), {}) for i in range(count)])

    def decide(self, proxy: fx.Proxy) -> Any:
        """The value for the given input of something that does not depend on the picture's values."""
        value = self.measure(proxy)
        if proxy.node in self._of_pictures:
            raise fx.proxy.TraceError("branches on the values of tensors")
        return value

    def measure(self, proxy: fx.Proxy) -> Any:
        """The value for the given input, of whose form alone something may be made; computes what is not known yet."""
        self.has_decided = True
        interpreter = fx.Interpreter(self.root, garbage_collect_values=False, graph=self.graph)
        interpreter.env = self._values
        self._is_measuring = True
        try:
            for node in self.graph.nodes:
                if node not in self._values:
                    self._values[node] = interpreter.run_node(node)
                    if not _tells_the_form(node) and not self._of_pictures.isdisjoint(node.all_input_nodes):
                        self._of_pictures.add(node)
        finally:
            self._is_measuring = False
        return self._values[proxy.node]


def _tells_the_form(node: fx.Node) -> bool:
    if node.op == "call_function":
        return node.target is getattr and node.args[1] in _FORM
    return node.op == "call_method" and node.target in _FORM_METHODS


class _Measured(fx.Proxy):
    """Something recorded whose number or length can be told, for ``int``, ``range`` and ``len``."""

    tracer: _Recorder

    def __getattr__(self, name: str) -> Any:
        if name in _FORM:
            return self.tracer.create_proxy("call_function", getattr, (self, name), {})
        return super().__getattr__(name)

    def __index__(self) -> int:
        return int(self.tracer.decide(self))

    def __len__(self) -> int:
        return len(self.tracer.measure(self))
