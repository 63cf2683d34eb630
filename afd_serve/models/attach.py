"""Attaching to a backbone that is not ours: its graph is copied, its modules are shared, nothing in it is changed.

`torch.fx` records the backbone's forward pass as a graph of calls to its own submodules. Attach sites are extra calls
in that graph, so the backbone object stays as it was (detaching is dropping the graph) and the result is scriptable.
"""

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from afd_serve.errors import AttachError
from afd_serve.models.recording import Trace, trace

__all__ = [
    "Insertion",
    "KernelChange",
    "SiteShape",
    "attach",
    "conv_arguments",
    "convolutions",
    "graph_module",
    "grey_picture",
    "has_hooks",
    "owns_kernel",
    "probe_shapes",
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
    recorded = trace(backbone)
    graph, outputs = recorded.graph, recorded.outputs
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
        _return_also(graph, outputs, taps, None if embedding is None else (embedding, named.get(embedding)))
    if until is not None:
        _cut_after(graph, _node(outputs, until))
    graph.lint()
    return graph_module(backbone, recorded, modules)


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


def _return_also(
    graph: fx.Graph, outputs: Mapping[str, fx.Node], taps: Sequence[str], last: tuple[str, nn.Module | None] | None
) -> None:
    """Return the outputs of taps, and what a last layer, given with its name, reads."""
    output = next(node for node in graph.nodes if node.op == "output")
    results = [output.args[0], *(_node(outputs, tap) for tap in taps)]
    if last is not None:
        name, layer = last
        pool = _pooled if isinstance(layer, nn.Conv2d) else _pooled_last
        with graph.inserting_before(output):
            results.append(graph.call_function(pool, tuple(_node(outputs, name).all_input_nodes[:1])))
    output.args = (tuple(results),)


def _pooled(x: Tensor) -> Tensor:
    """The embedding [N, D] in a feature map [N, D, H, W] that a convolution reads."""
    return x.mean(dim=(2, 3))


def _pooled_last(x: Tensor) -> Tensor:
    """The embedding [N, D] in what a linear layer reads: that itself, tokens [N, T, D], or a map [N, H, W, D]."""
    return x.flatten(1, -2).mean(dim=1) if x.dim() > 2 else x


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
