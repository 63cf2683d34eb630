"""Attaching to a backbone that is not ours: its graph is copied, its modules are shared, nothing in it is changed.

`torch.fx` records the backbone's forward pass as a graph of calls to its own submodules. Attach sites are extra calls
in that graph, so the backbone object stays as it was (detaching is dropping the graph) and the result is scriptable.
"""

import copy
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from afd_serve.errors import AttachError

__all__ = [
    "ArgumentTracer",
    "Insertion",
    "KernelChange",
    "SiteShape",
    "apart",
    "attach",
    "conv_arguments",
    "convolutions",
    "graph_module",
    "grey_picture",
    "has_hooks",
    "not_recorded",
    "owns_kernel",
    "probe_shapes",
    "trace",
]


@dataclass(frozen=True)
class Insertion:
    """A module to call on the output of the backbone's module ``site``.

    ``inputs`` names the graph's extra inputs that the call receives after the features.
    """

    site: str
    module: nn.Module
    inputs: tuple[str, ...]


@dataclass(frozen=True)
class KernelChange:
    """A module ``(kernel, bias) -> (kernel, bias)`` to call on those of the backbone's convolution ``site``."""

    site: str
    module: nn.Module


@dataclass(frozen=True)
class SiteShape:
    """What leaves a module: ``channels`` at ``stride`` input pixels per feature cell, of one picture in ``windows``."""

    channels: int
    stride: int
    windows: int = 1


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
    """A tracer that remembers which node holds the output of each module, leaf or not.

    A backbone's optional arguments keep their defaults: nobody passes them, and none may come before added inputs.
    """

    def __init__(self) -> None:
        super().__init__()
        self.outputs: dict[str, fx.Node] = {}

    def given(self, argument: fx.Proxy) -> Any:
        if not argument.node.args:
            return argument
        default = argument.node.args[0]
        self.graph.erase_node(argument.node)
        return default

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        out = super().call_module(m, forward, args, kwargs)
        if isinstance(out, fx.Proxy):
            self.outputs[self.path_of_module(m)] = out.node
        return out


class Trace(NamedTuple):
    """A backbone as recorded.

    Attributes:
        graph: Calls of its modules.
        outputs: The node that holds the output of each of its modules, leaf or not.
        constants: Tensors that the graph may read from the backbone itself and that are no parameters or buffers.
    """

    graph: fx.Graph
    outputs: dict[str, fx.Node]
    constants: dict[str, Tensor]


def trace(backbone: nn.Module) -> Trace:
    """Record a backbone's forward pass.

    Raises:
        AttachError: The backbone cannot be recorded.
    """
    tracer = _SiteTracer()
    try:
        copied = apart(backbone)
        graph = tracer.trace(copied)
    except (fx.proxy.TraceError, TypeError, RuntimeError) as error:
        raise not_recorded(backbone, error) from error
    # Constants inside a forward have become attributes of what was recorded.
    constants = {name: value for name, value in vars(copied).items() if isinstance(value, Tensor)}
    return Trace(graph, tracer.outputs, constants)


def not_recorded(backbone: nn.Module, obstacle: object) -> AttachError:
    """What to raise where `torch.fx` meets an obstacle in the backbone or in a part of it."""
    reason = str(obstacle).partition("\n")[0]  # older versions of torch go on for lines
    return AttachError(
        f"{type(backbone).__name__} cannot be recorded as a graph ({reason}); its forward may branch on the sizes of "
        "tensors, not on their values"
    )


def apart(backbone: nn.Module) -> nn.Module:
    """A copy with the same tensors: a forward that keeps results for its next call must not keep what is recorded."""
    tensors = [value for module in backbone.modules() for value in vars(module).values() if isinstance(value, Tensor)]
    shared = (*backbone.parameters(), *backbone.buffers(), *tensors)
    return copy.deepcopy(backbone, {id(value): value for value in shared})


def _node(outputs: Mapping[str, fx.Node], site: str) -> fx.Node:
    if site not in outputs:
        near = [name for name in outputs if site.rsplit(".", 1)[0] in name] or list(outputs)
        raise AttachError(f"the backbone calls no module named {site!r}; candidates: {', '.join(near[:40])}")
    return outputs[site]


def attach(
    backbone: nn.Module,
    insertions: Sequence[Insertion] = (),
    *,
    kernels: Sequence[KernelChange] = (),
    inputs: Sequence[str] = (),
    taps: Sequence[str] = (),
    embedding: str | None = None,
    until: str | None = None,
) -> fx.GraphModule:
    """A graph module that runs ``backbone`` with ``insertions`` on its way.

    Args:
        backbone: Any module that takes one float tensor [N, 3, S, S] and that `torch.fx` can record. Not changed.
        insertions: Calls to add, in order; several at one site are chained.
        kernels: Convolutions that run with a changed kernel and bias.
        inputs: Names of the graph's extra inputs, tensors that insertions may ask for.
        taps: Modules whose outputs (after insertions) are returned, for fitting.
        embedding: The classifier's last layer; the mean over places of what it reads is returned after the taps.
        until: A module whose output (after insertions) is returned instead of all else; what comes after it is cut off.

    Returns:
        A module ``(x, *inputs) -> logits``, or ``-> (logits, *taps, embedding)`` when taps or the embedding are asked
        for, or ``-> features`` with ``until``. It holds the added modules as ``afd_0``, ``afd_1``, ... and shares every
        parameter with the backbone.

    Raises:
        AttachError: The backbone cannot be recorded, or a site does not exist; the message names candidates.
    """
    graph, outputs, constants = trace(backbone)
    extra = _add_inputs(graph, inputs)
    modules: dict[str, nn.Module] = {}
    for index, insertion in enumerate(insertions):
        name = f"afd_{index}"
        modules[name] = insertion.module
        _insert(graph, outputs, insertion, name, extra)
    named = dict(backbone.named_modules())
    for index, change in enumerate(kernels, start=len(insertions)):
        modules[f"afd_{index}"] = change.module
        _change_kernel(outputs, _only_call(graph, change.site), named[change.site], f"afd_{index}")
    if taps or embedding is not None:
        _return_also(graph, outputs, taps, embedding)
    if until is not None:
        _cut_after(graph, _node(outputs, until))
    graph.lint()
    return graph_module(backbone, Trace(graph, outputs, constants), modules)


def _add_inputs(graph: fx.Graph, names: Sequence[str]) -> dict[str, fx.Node]:
    last = next(node for node in reversed(graph.nodes) if node.op == "placeholder")
    extra: dict[str, fx.Node] = {}
    for name in names:
        with graph.inserting_after(last):
            last = extra[name] = graph.placeholder(name)
    return extra


def _insert(
    graph: fx.Graph, outputs: dict[str, fx.Node], insertion: Insertion, name: str, extra: Mapping[str, fx.Node]
) -> None:
    node = _node(outputs, insertion.site)
    with graph.inserting_after(node):
        call = graph.call_module(name, (node, *(extra[key] for key in insertion.inputs)))
    node.replace_all_uses_with(call, delete_user_cb=lambda user: user is not call)
    _stand_in(outputs, node, call)


def _stand_in(outputs: dict[str, fx.Node], node: fx.Node, other: fx.Node) -> None:
    """Let later lookups see another node; the same one can be the output of several nested modules."""
    for key, value in outputs.items():
        if value is node:
            outputs[key] = other


def convolutions(backbone: nn.Module) -> dict[str, nn.Conv2d]:
    """The convolutions of a backbone that it calls as modules, exactly once each, in order of execution.

    Those whose kernel is computed anew at each call are left out, see `owns_kernel`.

    Raises:
        AttachError: The backbone cannot be recorded.
    """
    modules = dict(backbone.named_modules())
    calls = [str(node.target) for node in trace(backbone).graph.nodes if node.op == "call_module"]
    found = ((name, modules[name]) for name in calls if calls.count(name) == 1)
    return {name: module for name, module in found if isinstance(module, nn.Conv2d) and owns_kernel(module)}


def owns_kernel(conv: nn.Conv2d) -> bool:
    """Whether the kernel is a parameter, and decides with the bias alone what the convolution gives.

    Where it is the result of a weight norm, a spectral norm or another computation, or where there is a hook, it cannot
    be replaced.
    """
    return "weight" in dict(conv.named_parameters(recurse=False)) and not has_hooks(conv)


def has_hooks(module: nn.Module) -> bool:
    """Whether more than its ``forward`` runs when a module is called, which what takes its place would not do."""
    return bool(module._forward_hooks or module._forward_pre_hooks)  # noqa: SLF001 (no public name tells)


def _only_call(graph: fx.Graph, site: str) -> fx.Node:
    calls: list[fx.Node] = [node for node in graph.nodes if node.op == "call_module" and node.target == site]
    if len(calls) != 1:
        raise AttachError(f"the backbone has no convolution {site!r} that it calls once")
    return calls[0]


def conv_arguments(call: fx.Node, conv: nn.Conv2d) -> tuple[Any, ...]:
    """The arguments with which `torch.nn.functional.conv2d` does what a call of ``conv`` in a graph does.

    Nodes for the kernel and the bias are made at the graph's insertion point.
    """
    kernel = call.graph.get_attr(f"{call.target}.weight")
    bias = None if conv.bias is None else call.graph.get_attr(f"{call.target}.bias")
    return call.args[0], kernel, bias, conv.stride, conv.padding, conv.dilation, conv.groups


def _change_kernel(outputs: dict[str, fx.Node], call: fx.Node, conv: nn.Module, name: str) -> None:
    if not isinstance(conv, nn.Conv2d) or conv.padding_mode != "zeros":
        raise AttachError(f"the kernel of {call.target} cannot be changed: it is no convolution with zero padding")
    graph = call.graph
    with graph.inserting_before(call):
        x, kernel, bias, stride, *settings = conv_arguments(call, conv)
        changed = graph.call_module(name, (kernel, bias))
        arguments = [graph.call_function(operator.getitem, (changed, index)) for index in range(2)]
        if _skips_cells(conv):
            down, right = (slice(None, None, step) for step in stride)
            x, stride = graph.call_function(operator.getitem, (x, (slice(None), slice(None), down, right))), (1, 1)
        replaced = graph.call_function(F.conv2d, (x, *arguments, stride, *settings))
    call.replace_all_uses_with(replaced)
    graph.erase_node(call)
    _stand_in(outputs, call, replaced)


def _skips_cells(conv: nn.Conv2d) -> bool:
    """Whether a 1x1 kernel reads few channels of only some cells, as at RepVGG's stem.

    Without AVX-512 oneDNN writes beyond its memory while it computes such a kernel's gradient, seen in torch 2.13 with
    3 to 6 channels. Where the cells are chosen before, it does not.
    """
    return conv.kernel_size == (1, 1) and conv.padding == (0, 0) and conv.stride != (1, 1) and conv.in_channels < 8


def _return_also(graph: fx.Graph, outputs: Mapping[str, fx.Node], taps: Sequence[str], embedding: str | None) -> None:
    output = next(node for node in graph.nodes if node.op == "output")
    results = [output.args[0], *(_node(outputs, tap) for tap in taps)]
    if embedding is not None:
        last = _node(outputs, embedding)
        with graph.inserting_before(output):
            results.append(graph.call_function(_pooled, last.args[:1]))
    output.args = (tuple(results),)


def _pooled(x: Tensor) -> Tensor:
    """The embedding [N, D] in what the classifier's last layer reads: that itself, or a feature map [N, D, H, W]."""
    return x.mean(dim=(2, 3)) if x.dim() == 4 else x


def _cut_after(graph: fx.Graph, last: fx.Node) -> None:
    *before, output = graph.nodes
    output.args = (last,)
    # From the end, so that nothing is erased before what uses it. Inputs stay: the call is the same for every trunk.
    for node in reversed(before[before.index(last) + 1 :]):
        if node.op != "placeholder":
            graph.erase_node(node)


def graph_module(backbone: nn.Module, recorded: Trace, modules: Mapping[str, nn.Module]) -> fx.GraphModule:
    """A module that runs a graph with the backbone's modules and tensors, and with others under names of their own."""

    class _Root(nn.Module):
        pass

    root = _Root()
    for name, child in backbone.named_children():
        root.add_module(name, child)
    for name, parameter in backbone.named_parameters(recurse=False):
        root.register_parameter(name, parameter)
    for name, buffer in backbone.named_buffers(recurse=False):
        root.register_buffer(name, buffer)
    for name, constant in recorded.constants.items():
        root.register_buffer(name, constant)
    for name, module in modules.items():
        root.add_module(name, module)
    out = fx.GraphModule(root, recorded.graph, class_name=f"{type(backbone).__name__}WithAfd")
    for name in recorded.constants.keys() & dict(out.named_buffers(recurse=False)).keys():
        out.register_buffer(name, recorded.constants[name], persistent=False)
    return out.train(backbone.training)


def grey_picture(backbone: nn.Module, size: int) -> Tensor:
    """An input [1, 3, size, size] of zeros, of the kind and in the place of the backbone's parameters."""
    first = next(backbone.parameters(), torch.zeros(()))
    return torch.zeros(1, 3, size, size, device=first.device, dtype=first.dtype)


def probe_shapes(backbone: nn.Module, sites: Sequence[str], size: int) -> dict[str, SiteShape]:
    """Channels and stride at each site, from one forward pass on a grey picture of ``size`` pixels a side.

    Raises:
        AttachError: A site does not exist, or what leaves it is no feature map [N, C, H, W].
    """
    probe = attach(backbone, taps=sites)
    with torch.inference_mode():
        outputs = probe(grey_picture(backbone, size))
    shapes: dict[str, SiteShape] = {}
    for site, features in zip(sites, outputs[1:], strict=True):
        if not isinstance(features, Tensor) or features.dim() != 4:
            raise AttachError(f"what leaves {site!r} is no feature map [N, C, H, W]; choose a convolution or a block")
        windows, channels, height, _ = features.shape
        shapes[site] = SiteShape(channels, round(size / height), windows)
    return shapes
