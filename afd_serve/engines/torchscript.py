"""TorchScript: what is saved runs anywhere; what is loaded for a CPU is rewritten for it.

Note [Packed kernels]
    torch's convolution brings its kernel into the layout that oneDNN wants on every call, which at batch size 1 takes
    as long as a third of the products, and passes over the features once more for the activation. oneDNN's own operator
    takes a kernel that was laid out before, and applies the activation on its way. A laid-out kernel depends on the
    processor and cannot be saved. So the file holds plain convolutions, for GPUs and foreign servers too, and loading
    rewrites them. EfficientNet-Lite0 then takes 9 instead of 11 ms in float32, 6 instead of 9 in bfloat16. What it says
    differs in the last bits at most.

    Which layout it wants depends on the features' height and width as well; a kernel in another one is brought into it
    on every call, which for one convolution has taken longer than for all others together. The graph does not know
    these sizes, so a copy of it that notes them runs once with an example.
"""

import io
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from threading import Lock
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrize import is_parametrized

from afd_serve.errors import CheckpointError, ExportError

__all__ = [
    "Packed",
    "freeze",
    "freeze_or",
    "freeze_or_record",
    "load",
    "precisions",
    "quiet",
    "record",
    "to_bytes",
]

_CPU: Final = torch.device("cpu")


@contextmanager
def quiet() -> Iterator[None]:
    """TorchScript is past its active life and says so at every call; the README says what that means here."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"`torch\.jit\.", category=DeprecationWarning)
        warnings.filterwarnings("ignore", message=r"`torch\.jit\.", category=FutureWarning)
        yield


def freeze(module: nn.Module) -> torch.jit.ScriptModule:
    """Script and freeze a module in evaluation mode, its kernels in the layout that pictures arrive in.

    Raises:
        ExportError: A value is computed by ``torch.nn.utils.parametrize``: that compiles, but to a graph that only
            raises, or crashes the process.
        Exception: Whatever else the compiler dislikes; it has no class of its own for that.
    """
    computed = [name for name, part in module.named_modules() if is_parametrized(part)]
    if computed:
        raise ExportError(f"TorchScript cannot run the parametrizations of {', '.join(computed)}")
    for value in (*module.parameters(), *module.buffers()):
        if value.dim() == 4:  # `module.to` would convert those of five dimensions too, which it cannot
            value.data = value.data.contiguous(memory_format=torch.channels_last)
    with quiet(), torch.no_grad():
        frozen: torch.jit.ScriptModule = torch.jit.freeze(torch.jit.script(module.eval()))
    return frozen


def freeze_or(module: nn.Module, recorded: Callable[[], nn.Module]) -> torch.jit.ScriptModule:
    """Freeze a module, or what ``recorded`` makes of it where the TorchScript compiler refuses it."""
    with suppress(Exception):  # there is no telling what the compiler dislikes in third-party code
        return freeze(module)
    with quiet(), torch.no_grad():
        other = recorded()
    return freeze(other)


def freeze_or_record(module: nn.Module, example: Sequence[Tensor]) -> torch.jit.ScriptModule:
    """Freeze a module that decides nothing by what it sees, recorded where the TorchScript compiler refuses it."""
    return freeze_or(module, lambda: record(module, example))


def record(module: nn.Module, example: Sequence[Tensor]) -> nn.Module:
    """What a module does with an example; whatever it decides by what it sees is decided for good."""
    recorded: nn.Module = torch.jit.trace(module, tuple(example), check_trace=False)  # type: ignore[no-untyped-call]
    return recorded


def to_bytes(module: torch.jit.ScriptModule) -> bytes:
    """The content of a file that `load` reads.

    Not ``module.save``: where a disk is full, it ends the whole process (SIGABRT).
    """
    data: bytes = module.save_to_buffer()
    return data


class Packed:
    """A frozen module whose kernels are packed for the CPU; called as the module is.

    oneDNN's layouts depend on the number of threads, and a kernel in the layout for another number is brought into the
    right one on every call, which may take ten times as long as all else. So a change of torch's number of threads is
    noticed here, and the kernels are packed anew; make it while nothing runs.

    Args:
        module: the module.
        example: inputs of the size to pack for, which pass through every branch; how many pictures they hold does not
            matter. Other sizes are right as well, but may take longer.

    Attributes:
        graph: what is computed.
        threads: for how many threads its kernels are laid out.
    """

    def __init__(self, module: torch.jit.ScriptModule, example: Sequence[Tensor]) -> None:
        self.graph = module.graph.copy()
        self._sizes = _pack(self.graph, example)
        self._run = _function(self.graph) if self._sizes else module
        self.threads = torch.get_num_threads()
        self._packing = Lock()

    def __call__(self, *inputs: Tensor) -> Any:
        """The module's outputs."""
        if torch.get_num_threads() != self.threads:  # asking also gives a thread that is new to torch this number
            self._pack_anew()
        return self._run(*inputs)

    def _pack_anew(self) -> None:
        with self._packing:
            packed = [node for node in _nodes(self.graph) if node.kind() == _PACKED]
            for node, size in zip(packed, self._sizes, strict=True):
                _pack_kernel_anew(node, size)
            if packed:
                self._run = _function(self.graph)
            self.threads = torch.get_num_threads()


def load(
    data: bytes, example: Sequence[Tensor], device: torch.device | None = None
) -> "Packed | torch.jit.ScriptModule":
    """Load a frozen module for a device, the CPU where None; for the CPU its kernels are packed, see `Packed`.

    Raises:
        CheckpointError: The bytes are no such module.
    """
    device = device or _CPU
    try:
        with quiet():
            module: torch.jit.ScriptModule = torch.jit.load(  # type: ignore[no-untyped-call]
                io.BytesIO(data), map_location=device
            )
    except RuntimeError as error:
        raise CheckpointError(f"the exported file cannot be read as TorchScript: {error}") from error
    return Packed(module, example) if device.type == "cpu" else module


def _function(graph: Any) -> Any:
    """What computes a frozen module's graph: a function of its own, as a module that has run keeps to its old plan."""
    alone = graph.copy()
    alone.eraseInput(_RECEIVER)
    return torch._C._create_function_from_graph("forward", alone)


_CONVOLUTION: Final = "aten::conv2d"
_PACKED: Final = "mkldnn::_convolution_pointwise"
_ACTIVATIONS: Final = {
    "aten::relu": "relu",
    "aten::relu_": "relu",
    "aten::hardtanh": "hardtanh",
    "aten::hardtanh_": "hardtanh",
}
"""Operators that follow a convolution, by their names in oneDNN; what else they take is the range of the result."""

_RECEIVER: Final = 0
"""The graph's input that is the module itself."""

_ZEROS: Final = [1, 0, 1, 0]
"""How a kernel is padded by a column before it and a row above it."""

_Sizes = dict[int, list[int]]
"""The shapes of what convolutions read, one picture of it, by the addresses of their kernels."""


class _Convolution:
    """A node of a graph that calls ``aten::conv2d``, with the activation behind it where nothing else reads between.

    Attributes:
        kernel: its value; None where the graph computes it.
    """

    def __init__(self, graph: Any, node: Any) -> None:
        self._graph = graph
        self._node = node
        inputs = list(node.inputs())
        self._x, self._kernel, self._bias, *self._geometry = inputs
        self._stride, self._padding, self._dilation, self._groups = (_value(value) for value in self._geometry)
        self.kernel: Tensor | None = _value(self._kernel)
        users = [use.user for use in node.output().uses()]
        self._activation = users[0] if len(users) == 1 and users[0].kind() in _ACTIVATIONS else None
        self._last = self._activation or self._node

    def packable(self) -> bool:
        """Whether oneDNN's operator can take its place on this processor."""
        if isinstance(self._padding, str) or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
            return False
        dtype = torch.bfloat16 if self.kernel is None else self.kernel.dtype  # a computed kernel may be in either
        return dtype in precisions()

    def pack(self, sizes: _Sizes) -> list[int] | None:
        """Put oneDNN's operator in its place; returns the shape of what that reads, where it is known."""
        stride, padding, dilation, groups = self._geometry
        sides = self._padding_instead_of_pad()
        size = None if self.kernel is None else sizes.get(self.kernel.data_ptr())
        if size and sides:
            size = [*size[:2], *(side - (2 * before - 1) for side, before in zip(size[2:], sides, strict=True))]
        if sides:
            self._x, padding = self._x.node().inputsAt(0), self._constant(sides)
        name = _ACTIVATIONS[self._activation.kind()] if self._activation else "none"
        bounds = list(self._activation.inputs())[1:] if self._activation else []
        geometry = [padding, stride, dilation, groups]
        inputs = [
            self._x,
            self._laid_out(sides, size),
            self._bias,
            *geometry,
            self._constant(name),
            self._range(bounds),
        ]
        packed = self._create(_PACKED, [*inputs, self._constant("")])
        packed.output().setType(self._last.output().type())
        self._last.output().replaceAllUsesWith(packed.output())
        self._last.destroy()
        if self._activation:
            self._node.destroy()
        return size

    def _laid_out(self, sides: list[int] | None, size: list[int] | None) -> Any:
        """The kernel as the operator takes it; with ``sides`` it gets the row and the column of zeros."""
        if self.kernel is None:
            return self._pad_computed_kernel() if sides else self._kernel
        kernel = F.pad(self.kernel, _ZEROS) if sides else self.kernel
        constant = self._create("prim::ConstantMKLDNNTensor", [])
        _set_kernel(constant, kernel, [sides or self._padding, self._stride, self._dilation, self._groups], size)
        return constant.output()

    def _pad_computed_kernel(self) -> Any:
        padded = self._create("aten::constant_pad_nd", [self._kernel, self._constant(_ZEROS), self._constant(0)])
        padded.output().setType(self._kernel.type())
        return padded.output()

    def _padding_instead_of_pad(self) -> list[int] | None:
        """The padding that a kernel with a row and a column of zeros before it needs, instead of the pad before it.

        TensorFlow pads a convolution of stride 2 by one more after the picture than before it, for which this operator
        has no argument; copying the features takes as long as the convolution.
        """
        pad = self._x.node()
        if pad.kind() != "aten::pad" or any(self._padding) or any(side != 1 for side in self._dilation):
            return None
        sides, mode, value = (_value(pad.inputsAt(index)) for index in (1, 2, 3))
        if mode != "constant" or value not in (None, 0) or sides is None or None in sides or len(sides) != 4:
            return None
        left, right, top, bottom = sides
        return [top + 1, left + 1] if right == left + 1 and bottom == top + 1 else None

    def _range(self, bounds: Sequence[Any]) -> Any:
        node = self._create("prim::ListConstruct", bounds)
        node.output().setType(torch._C.ListType(torch._C.OptionalType(torch._C.NumberType.get())))
        return node.output()

    def _constant(self, value: str | int | list[int]) -> Any:
        constant = self._graph.insertConstant(value)
        constant.node().moveBefore(self._last)
        return constant

    def _create(self, kind: str, inputs: Sequence[Any]) -> Any:
        return self._graph.create(kind, list(inputs), 1).insertBefore(self._last)


def _pack(graph: Any, example: Sequence[Tensor]) -> list[list[int] | None]:
    """Rewrite a frozen module's convolutions, see Note [Packed kernels].

    One that oneDNN lacks leaves all as it is, and so does a module that has kept attributes.

    Returns:
        For each packed convolution the size that it was packed for, in the graph's order.
    """
    nodes = _convolutions(graph)
    keeps_attributes = list(graph.inputs())[_RECEIVER].uses()
    if keeps_attributes or not all(_Convolution(graph, node).packable() for node in nodes):
        return []
    sizes = _feature_sizes(graph, example)
    # Looked at anew, because packing the one before changes what a node reads.
    packed_for = [_Convolution(graph, node).pack(sizes) for node in nodes]
    torch._C._jit_pass_dce(graph)
    return packed_for


def _feature_sizes(graph: Any, example: Sequence[Tensor]) -> _Sizes:
    """Run a copy of the graph that returns what its convolutions read.

    Seeing it from Python, with a TorchDispatchMode, would import 800 modules: 80 MiB and a second for each worker.
    """
    watched = graph.copy()
    nodes = _convolutions(watched)
    seen = watched.prependNode(watched.create("prim::DictConstruct", [], 1)).output()
    seen.setType(torch._C.DictType(torch._C.IntType.get(), torch._C.ListType.ofInts()))
    for index, node in enumerate(nodes):
        size = watched.create("aten::size", [node.inputsAt(0)], 1).insertBefore(node).output()
        size.setType(torch._C.ListType.ofInts())
        key = watched.insertConstant(index)
        key.node().moveBefore(node)
        watched.create("aten::_set_item", [seen, key, size], 0).insertBefore(node)
    while list(watched.outputs()):
        watched.eraseOutput(0)
    watched.registerOutput(seen)
    unplanned = torch.jit.optimized_execution(False)  # type: ignore[attr-defined]  # planning takes longer than the run
    with torch.inference_mode(), unplanned:
        sizes = _function(watched)(*example)
    kernels = {index: _value(nodes[index].inputsAt(1)) for index in sizes}
    return {kernels[index].data_ptr(): [1, *size[1:]] for index, size in sizes.items() if kernels[index] is not None}


def _set_kernel(constant: Any, kernel: Tensor, geometry: Sequence[Any], size: list[int] | None) -> None:
    """Lay a kernel out; ``geometry`` is padding, stride, dilation and groups, ``size`` the shape of what it reads."""
    constant.t_("value", torch.ops.mkldnn._reorder_convolution_weight(kernel, *geometry, size))


def _pack_kernel_anew(node: Any, size: list[int] | None) -> None:
    _, kernel, _, *geometry = list(node.inputs())[:7]
    if kernel.node().kind() == "prim::ConstantMKLDNNTensor":
        plain = kernel.node().t("value").to_dense()
        _set_kernel(kernel.node(), plain, [_value(value) for value in geometry], size)


def precisions() -> set[torch.dtype]:
    """In what this CPU computes by itself; bfloat16 that it lacks is refused or emulated, at several times the cost."""
    has_bfloat16 = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return {torch.float32, torch.bfloat16} if has_bfloat16 else {torch.float32}


def _convolutions(graph: Any) -> list[Any]:
    return [node for node in _nodes(graph) if node.kind() == _CONVOLUTION]


def _nodes(block: Any) -> Iterator[Any]:
    for node in block.nodes():
        yield node
        for inner in node.blocks():
            yield from _nodes(inner)


def _value(value: Any) -> Any:
    """The Python value of a graph's constant; None where it is computed."""
    node = value.node()
    if node.kind() == "prim::ListConstruct":
        return [_value(item) for item in node.inputs()]
    return value.toIValue()
