"""`afd_serve.engines.torchscript`: what is loaded for the CPU is packed, and says what was saved."""

import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from afd_serve.engines.torchscript import Packed, freeze, load, quiet, to_bytes
from afd_serve.errors import CheckpointError


def compiled(module: nn.Module, example: Sequence[Tensor]) -> Packed:
    return Packed(freeze(module), example)


class PaddedAsTensorFlow(nn.Module):
    """A convolution of stride 2 with one more zero after the picture than before it."""

    def __init__(self, kernel: int, before: int, groups: int = 1) -> None:
        super().__init__()
        self.pad = nn.ZeroPad2d((before, before + 1, before, before + 1))
        self.conv = nn.Conv2d(8, 8, kernel, 2, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, 8, H, W] to [N, 8, H / 2, W / 2]."""
        out: Tensor = self.conv(self.pad(x))
        return F.relu(out)


class OwnKernel(nn.Module):
    """A convolution whose kernel depends on the input, as that of a gated one does."""

    def __init__(self, pad: nn.Module) -> None:
        super().__init__()
        self.pad = pad
        self.kernel = nn.Parameter(torch.randn(8, 8, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, 8, H, W] to the same shape."""
        return F.hardtanh(F.conv2d(self.pad(x), self.kernel * x.mean(), None, stride=2), 0.0, 6.0)


class Shared(nn.Module):
    """A convolution whose output is read before its activation as well."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, 8, H, W] to the same shape."""
        y = self.conv(x)
        return y.relu() - y


class PaddedAsItComes(nn.Module):
    """A convolution behind a padding that depends on the width of what comes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, 8, H, W] to [N, 8, H / 2, W / 2]."""
        out: Tensor = self.conv(F.pad(x, [x.shape[3] % 2, 1, 0, 1]))
        return out


class Counting(nn.Module):
    """A module with a state, which freezing cannot make a constant."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 1)
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, 8, H, W] to the same shape, times the number of calls."""
        self.calls.add_(1)
        out: Tensor = self.conv(x) * self.calls
        return out


def behind(pad: nn.Module, kernel: int | tuple[int, int] = 3, **options: int) -> nn.Module:
    return nn.Sequential(pad, nn.Conv2d(8, 8, kernel, 2, **options))


MODULES = {
    "none": lambda: nn.Conv2d(8, 8, 3, padding=1),
    "no bias": lambda: nn.Sequential(nn.Conv2d(8, 16, 1, bias=False), nn.ReLU()),
    "relu": lambda: nn.Sequential(nn.Conv2d(8, 16, 1), nn.ReLU()),
    "relu in place": lambda: nn.Sequential(nn.Conv2d(8, 16, 1), nn.ReLU(inplace=True)),
    "relu6": lambda: nn.Sequential(nn.Conv2d(8, 16, 3, 2, groups=8), nn.ReLU6()),
    "relu6 in place": lambda: nn.Sequential(nn.Conv2d(8, 16, 3, dilation=2), nn.ReLU6(inplace=True)),
    "another activation": lambda: nn.Sequential(nn.Conv2d(8, 16, 1), nn.SiLU()),
    "padded as TensorFlow does, 3": lambda: PaddedAsTensorFlow(3, 0),
    "padded as TensorFlow does, 5": lambda: PaddedAsTensorFlow(5, 1, groups=8),
    "padded with ones": lambda: behind(nn.ConstantPad2d((0, 1, 0, 1), 1.0)),
    "padded with a mirror image": lambda: behind(nn.ReflectionPad2d((0, 1, 0, 1))),
    "padded by two": lambda: behind(nn.ZeroPad2d((0, 2, 0, 2))),
    "padded twice": lambda: behind(nn.ZeroPad2d((0, 1, 0, 1)), padding=1),
    "padded to the right alone": lambda: behind(nn.ConstantPad1d((0, 1), 0.0)),
    "padded more after than before, horizontally": lambda: behind(nn.ZeroPad2d((0, 1, 1, 1))),
    "padded as TensorFlow does, 5x3": lambda: behind(nn.ZeroPad2d((0, 1, 1, 2)), (5, 3)),
    "padded as TensorFlow does, dilated": lambda: behind(nn.ZeroPad2d((1, 2, 1, 2)), dilation=2),
    "padded as it comes": PaddedAsItComes,
    "a computed kernel": lambda: OwnKernel(nn.ZeroPad2d(1)),
    "a computed kernel, padded as TensorFlow does": lambda: OwnKernel(nn.ZeroPad2d((0, 1, 0, 1))),
    "shared": Shared,
}


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packed_convolutions_say_what_plain_ones_do(name: str, dtype: torch.dtype) -> None:
    torch.manual_seed(1)
    module = MODULES[name]().to(dtype).eval()
    packed = compiled(module, [torch.randn(2, 8, 20, 20).to(dtype)])
    with torch.inference_mode():
        for shape in ((1, 8, 20, 20), (3, 8, 25, 21)):
            x = 4 * torch.randn(shape).to(dtype)  # passes the bounds of activations
            torch.testing.assert_close(packed(x), module(x))


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")
@pytest.mark.parametrize("name", [name for name in MODULES if "computed" in name])
def test_a_computed_kernel_is_packed_where_the_processor_has_bfloat16(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True)
    module = MODULES[name]().eval()
    x = 4 + torch.randn(2, 8, 20, 20)
    packed = compiled(module, [x])
    assert "mkldnn::_convolution_pointwise" in kinds(packed)
    with torch.inference_mode():
        torch.testing.assert_close(packed(x), module(x))


class Choosing(nn.Module):
    """Two convolutions, of which the input chooses one."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, 8, H, W] to [N, 8, H', W']."""
        if bool(x.max() > 0):
            out: Tensor = self.first(x)
        else:
            out = self.second(x)
        return out


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")
def test_convolutions_in_branches_are_packed_whether_the_example_passes_them_or_not() -> None:
    module, x = Choosing().eval(), torch.rand(1, 8, 5, 5)
    packed = compiled(module, [x])
    assert str(packed.graph).count("mkldnn::_convolution_pointwise(") == 2
    with torch.inference_mode():
        torch.testing.assert_close(packed(x), module(x))
        torch.testing.assert_close(packed(-x), module(-x))


def test_a_module_with_a_state_keeps_it() -> None:
    module, x = Counting().eval(), torch.randn(1, 8, 5, 5)
    counting = compiled(module, [x])
    with torch.inference_mode():
        for calls in (1, 2):
            torch.testing.assert_close(counting(x), calls * module.conv(x))


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")
def test_what_runs_after_a_change_of_threads_is_what_was_packed_then(monkeypatch: pytest.MonkeyPatch) -> None:
    module, x = nn.Conv2d(8, 8, 1, bias=False).eval(), torch.randn(1, 8, 20, 20)
    packed, reorder = compiled(module, [x]), torch.ops.mkldnn._reorder_convolution_weight
    monkeypatch.setattr(
        torch.ops.mkldnn, "_reorder_convolution_weight", lambda kernel, *geometry: reorder(2 * kernel, *geometry)
    )
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(before + 1)
        with torch.inference_mode():
            torch.testing.assert_close(packed(x), 2 * module(x))
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_change_of_the_number_of_threads_packs_the_kernels_anew(dtype: torch.dtype) -> None:
    torch.manual_seed(1)
    grouped = PaddedAsTensorFlow(5, 1, groups=8)
    module = nn.Sequential(grouped, nn.Conv2d(8, 256, 1), nn.ReLU(), nn.Conv2d(256, 64, 3)).to(dtype).eval()
    before = torch.get_num_threads()
    x = torch.randn(1, 8, 32, 32).to(dtype)
    packed = compiled(module, [x])
    try:
        with torch.inference_mode():
            expected = packed(x)
            torch.set_num_threads(before + 1)
            torch.testing.assert_close(packed(x), expected)
            assert packed.threads == before + 1
            with ThreadPoolExecutor(1) as pool:
                torch.testing.assert_close(pool.submit(packed, x).result(), expected)
    finally:
        torch.set_num_threads(before)


def kinds(module: torch.jit.ScriptModule | Packed) -> set[str]:
    return {node.kind() for node in module.graph.nodes()}


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")
@pytest.mark.parametrize("name", ["relu6", "padded as TensorFlow does, 3"])
def test_packing_leaves_no_plain_convolution_activation_or_padding(name: str) -> None:
    found = kinds(compiled(MODULES[name](), [torch.randn(1, 8, 20, 20)]))
    assert "prim::ConstantMKLDNNTensor" in found
    assert not {kind for kind in found if kind.startswith("aten::")}


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")
def test_kernels_are_packed_for_one_picture_of_the_examples_size(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes, reorder = [], torch.ops.mkldnn._reorder_convolution_weight

    def seen(*arguments: object) -> Tensor:
        sizes.append(arguments[-1])
        packed: Tensor = reorder(*arguments)
        return packed

    monkeypatch.setattr(torch.ops.mkldnn, "_reorder_convolution_weight", seen)
    module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), PaddedAsTensorFlow(3, 0), nn.Conv2d(8, 8, 1))
    packed = compiled(module, [torch.randn(2, 3, 22, 18)])
    expected = [[1, 3, 22, 18], [1, 8, 20, 16], [1, 8, 10, 8]]
    assert sizes == expected
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(before + 1)
        with torch.inference_mode():
            packed(torch.randn(1, 3, 22, 18))
    finally:
        torch.set_num_threads(before)
    assert sizes == 2 * expected


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")
@pytest.mark.filterwarnings("ignore:Profiler clears events:UserWarning")  # torch 2.10's, of itself
def test_what_runs_is_what_was_packed() -> None:
    x = torch.randn(1, 8, 20, 20)
    packed = compiled(MODULES["relu6"](), [x])
    with torch.inference_mode(), torch.profiler.profile() as profile:
        packed(x)
    ran = {event.key for event in profile.key_averages()}
    assert "mkldnn::_convolution_pointwise" in ran
    assert not {name for name in ran if name.startswith("aten::") and "conv" in name}


def test_what_is_saved_has_plain_convolutions_for_gpus_and_other_servers() -> None:
    data = to_bytes(freeze(MODULES["relu6"]()))
    with quiet():
        plain = torch.jit.load(io.BytesIO(data))
    assert {"aten::conv2d", "aten::hardtanh"} <= kinds(plain)


def test_a_convolution_that_onednn_lacks_leaves_the_module_as_it_is() -> None:
    module = nn.Sequential(nn.Conv2d(8, 8, 3, padding="same"), nn.ReLU()).eval()
    x = torch.randn(1, 8, 9, 9)
    loaded = compiled(module, [x])
    assert "aten::relu" in kinds(loaded)
    with torch.inference_mode():
        torch.testing.assert_close(loaded(x), module(x))


def test_only_what_can_lie_channels_last_is_laid_out_so() -> None:
    class Biased(nn.Module):
        bias: torch.Tensor

        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(8, 8, 3, bias=False)
            self.register_buffer("bias", torch.randn(1, 2, 3, 4, 5))  # as a Swin transformer's attention has it

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.conv(x) + self.bias.mean()

    module, x = Biased().eval(), torch.randn(1, 8, 5, 5)
    with torch.no_grad():
        torch.testing.assert_close(freeze(module)(x), module(x))


def test_bytes_that_are_no_module_are_refused() -> None:
    with pytest.raises(CheckpointError, match="TorchScript"):
        load(b"no archive", [])
