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
    these sizes, so they are seen in a run of the plain convolutions with an example.
"""

import io
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from threading import Lock
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from afd_serve.errors import CheckpointError

__all__ = ["Packed", "compiled", "freeze", "load", "quiet", "to_bytes"]

_CPU: Final = torch.device("cpu")


@contextmanager
def quiet() -> Iterator[None]:
    """TorchScript is past its active life and says so at every call; the README says what that means here."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"`torch\.jit\.", category=DeprecationWarning)
        warnings.filterwarnings("ignore", message=r"`torch\.jit\.", category=FutureWarning)
        yield


def freeze(module: nn.Module) -> torch.jit.ScriptModule:
    """Script and freeze a module in evaluation mode, its kernels in the layout that pictures arrive in."""
    laid_out = module.eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    with quiet(), torch.no_grad():
        frozen: torch.jit.ScriptModule = torch.jit.freeze(torch.jit.script(laid_out))
    return frozen


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
        self._sizes = _pack(self.graph, _feature_sizes(module, example))
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


def compiled(module: nn.Module, example: Sequence[Tensor]) -> Packed:
    """A module as it runs where it is deployed on the CPU; ``example`` as in `Packed`."""
    return Packed(freeze(module), example)


_Sizes = dict[int, list[int]]
"""The shapes of what convolutions read, one picture of it, by the addresses of their kernels."""


class _SeeSizes(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.sizes: _Sizes = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.ops.aten.conv2d.default, torch.ops.aten.convolution.default):
            x, kernel = args[:2]
            self.sizes[kernel.data_ptr()] = [1, *x.shape[1:]]
        return func(*args, **(kwargs or {}))


def _feature_sizes(module: torch.jit.ScriptModule, example: Sequence[Tensor]) -> _Sizes:
    seen = _SeeSizes()
    unplanned = torch.jit.optimized_execution(False)  # type: ignore[attr-defined]  # planning takes six times as long
    with torch.inference_mode(), unplanned, seen:
        module(*example)
    return seen.sizes


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


class _Convolution:
    """A node of a graph that calls ``aten::conv2d``, with the activation behind it where nothing else reads between.

    Attributes:
        kernel: its value; None where the graph computes it.
        size: the shape of what oneDNN's operator reads in its place, where that is known.
    """

    def __init__(self, graph: Any, node: Any, sizes: _Sizes) -> None:
        self._graph = graph
        self._node = node
        inputs = list(node.inputs())
        self._x, self._kernel, self._bias, *self._geometry = inputs
        self._stride, self._padding, self._dilation, self._groups = (_value(value) for value in self._geometry)
        self.kernel: Tensor | None = _value(self._kernel)
        self._sides = self._padding_instead_of_pad()
        self.size = self._size(sizes)
        users = [use.user for use in node.output().uses()]
        self._activation = users[0] if len(users) == 1 and users[0].kind() in _ACTIVATIONS else None
        self._last = self._activation or self._node

    def packable(self) -> bool:
        """Whether oneDNN's operator can take its place on this processor."""
        if isinstance(self._padding, str) or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
            return False
        # What a computed kernel will be is not known here.
        return torch.bfloat16 in _precisions() if self.kernel is None else self.kernel.dtype in _precisions()

    def pack(self) -> None:
        """Put oneDNN's operator in its place."""
        stride, padding, dilation, groups = self._geometry
        sides = self._sides
        if sides:
            self._x, padding = self._x.node().inputsAt(0), self._constant(sides)
        name = _ACTIVATIONS[self._activation.kind()] if self._activation else "none"
        bounds = list(self._activation.inputs())[1:] if self._activation else []
        geometry = [padding, stride, dilation, groups]
        inputs = [self._x, self._laid_out(), self._bias, *geometry, self._constant(name), self._range(bounds)]
        packed = self._create(_PACKED, [*inputs, self._constant("")])
        packed.output().setType(self._last.output().type())
        self._last.output().replaceAllUsesWith(packed.output())
        self._last.destroy()
        if self._activation:
            self._node.destroy()

    def _size(self, sizes: _Sizes) -> list[int] | None:
        seen = None if self.kernel is None else sizes.get(self.kernel.data_ptr())
        if seen is None or not self._sides:
            return seen
        *batch, height, width = seen
        top, left = self._sides
        return [*batch, height - (2 * top - 1), width - (2 * left - 1)]  # without the pad

    def _laid_out(self) -> Any:
        """The kernel as the operator takes it; in place of a pad it gets a row and a column of zeros."""
        if self.kernel is None:
            return self._pad_computed_kernel() if self._sides else self._kernel
        kernel = F.pad(self.kernel, _ZEROS) if self._sides else self.kernel
        constant = self._create("prim::ConstantMKLDNNTensor", [])
        geometry = [self._sides or self._padding, self._stride, self._dilation, self._groups]
        _set_kernel(constant, kernel, geometry, self.size)
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


def _pack(graph: Any, sizes: _Sizes) -> list[list[int] | None]:
    """Rewrite a frozen module's convolutions, see Note [Packed kernels].

    One that oneDNN lacks leaves all as it is, and so does a module that has kept attributes.

    Returns:
        For each packed convolution the size that it was packed for, in the graph's order.
    """
    nodes = [node for node in _nodes(graph) if node.kind() == _CONVOLUTION]
    keeps_attributes = list(graph.inputs())[_RECEIVER].uses()
    if keeps_attributes or not all(_Convolution(graph, node, sizes).packable() for node in nodes):
        return []
    packed_for = []
    for node in nodes:  # looked at anew, because packing the one before changes what a node reads
        convolution = _Convolution(graph, node, sizes)
        convolution.pack()
        packed_for.append(convolution.size)
    torch._C._jit_pass_dce(graph)
    return packed_for


def _set_kernel(constant: Any, kernel: Tensor, geometry: Sequence[Any], size: list[int] | None) -> None:
    """Lay a kernel out; ``geometry`` is padding, stride, dilation and groups, ``size`` the shape of what it reads."""
    constant.t_("value", torch.ops.mkldnn._reorder_convolution_weight(kernel, *geometry, size))


def _pack_kernel_anew(node: Any, size: list[int] | None) -> None:
    _, kernel, _, *geometry = list(node.inputs())[:7]
    if kernel.node().kind() == "prim::ConstantMKLDNNTensor":
        plain = kernel.node().t("value").to_dense()
        _set_kernel(kernel.node(), plain, [_value(value) for value in geometry], size)


def _precisions() -> set[torch.dtype]:
    has_bfloat16 = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return {torch.float32, torch.bfloat16} if has_bfloat16 else {torch.float32}


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
