"""A classifier that branches on sizes takes the branches for its one input size, and is otherwise as it was."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from afd_serve.errors import AttachError
from afd_serve.models.attach import Insertion, attach
from afd_serve.models.size_branches import decide_size_branches

SIDE = 16


class Part(nn.Module):
    """A convolution and what a forward does with its output besides."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)


class Pooled(Part):
    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return y if y.shape[-1] < 10 else F.avg_pool2d(y, 2)


class Asserting(Part):
    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        assert channels == 3, "colour pictures"
        assert (height, width) == (SIDE, SIDE), "of one size"
        return self.conv(x).view(batch, 4, height * width).mean(2)[:, :, None, None]


class Looping(Part):
    def forward(self, x: Tensor) -> Tensor:
        rows = [self.conv(x)[:, :, row] for row in range(x.shape[2])]
        return torch.stack(rows[: int(x.size(3) / 2)], dim=2)


class Chunking(Part):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.conv(half) for half in x.chunk(2, 2)], 2) * max(*x.shape[2:])


class Asking(Part):
    def forward(self, x: Tensor) -> Tensor:
        if x.dim() != 4 or len(x.shape) != 4 or x.dtype == torch.float16 or x.device.type == "meta":
            return -x
        return self.conv(x)


class Padded(Part):
    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, max(20 - x.shape[3], 0))))


class Positioned(Part):
    def forward(self, x: Tensor) -> Tensor:
        ramp = torch.arange(int(x.shape[3]), dtype=torch.float32)
        return self.conv(x) * ramp


class Sized(Part):
    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        y = self.conv(x if x.shape[1] == 3 else x[:, :3])
        return y.flatten(2).view(-1, 4, width, height)


class Scaled(Part):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.full((1,), 3.0))

    def forward(self, x: Tensor) -> Tensor:
        self.kept = self.conv(x) * self.scale
        return self.kept if x.shape[2] == SIDE else -self.kept


class Optional(Part):
    def forward(self, x: Tensor, mask: Tensor | None = None, scale: float = 2.0, negate: bool = False) -> Tensor:
        y = self.conv(x if x.shape[1] == 3 else x[:, :3]) * scale
        y = y if mask is None else y * mask
        return -y if negate else y


class Nested(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Pooled()

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) if x.shape[2] == SIDE else x


class Network(nn.Module):
    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part
        self.classifier = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.part(x).mean((2, 3)))


class Masking(Network):
    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.part(x, x[:, :1] > 0, negate=True).mean((2, 3)))


class Passing(Network):
    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.part(x, x.shape[2], x.shape[3]).mean((2, 3)))


class Twice(Network):
    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.part(x).mean((2, 3)) + self.part(x[:, :, ::2, ::2]).mean((2, 3)))


def ready(network: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return network.eval().requires_grad_(False)


@pytest.mark.parametrize(
    "network",
    [
        *(
            Network(part())
            for part in (Pooled, Asserting, Looping, Chunking, Asking, Padded, Positioned, Scaled, Optional, Nested)
        ),
        Masking(Optional()),
        Passing(Sized()),
        nn.Sequential(Pooled(), Network(nn.Conv2d(4, 4, 1))),
    ],
    ids=lambda network: f"{type(network).__name__}-{type(next(network.children())).__name__}",
)
def test_what_branches_on_sizes_answers_as_before_and_can_be_recorded(network: nn.Module) -> None:
    original = ready(network)
    with pytest.raises(AttachError):
        attach(original)
    decided = copy.deepcopy(original)
    decide_size_branches(decided, SIDE)
    recorded = attach(decided)
    for pictures in (torch.randn(1, 3, SIDE, SIDE), torch.randn(4, 3, SIDE, SIDE)):
        expected = original(pictures)
        assert decided(pictures).equal(expected)
        assert recorded(pictures).equal(expected)


@pytest.mark.parametrize("kind", [Pooled, Positioned, Scaled])
def test_only_what_branches_is_changed_and_is_still_called_what_it_was(kind: type[Part]) -> None:
    network = ready(Network(kind()))
    part, before = network.part, {name: id(value) for name, value in network.state_dict(keep_vars=True).items()}
    decide_size_branches(network, SIDE)
    assert network.part is part
    assert isinstance(part, kind)
    assert (type(part).__module__, type(part).__name__) == (kind.__module__, kind.__name__)
    assert type(part) is not kind
    assert type(network) is Network
    assert {name: id(value) for name, value in network.state_dict(keep_vars=True).items()} == before
    assert not any(isinstance(value, fx.Proxy) for value in vars(part).values()), "nothing recorded is kept"


def test_the_class_of_what_branches_stays_as_it_was() -> None:
    decide_size_branches(ready(Network(Pooled())), SIDE)
    assert Pooled()(torch.ones(1, 3, 4, 4)).shape == (1, 4, 4, 4)


def test_pictures_of_other_sizes_take_the_same_branches() -> None:
    network, sized = ready(Network(Pooled())), ready(Passing(Sized()))
    decide_size_branches(network, SIDE)
    decide_size_branches(sized, SIDE)
    assert network.part(torch.ones(1, 3, 8, 8)).shape == (1, 4, 4, 4)
    assert attach(sized, until="part")(torch.ones(1, 3, 8, 4)).shape == (1, 4, 4, 8)


def test_what_can_be_recorded_stays_as_it_is() -> None:
    network = ready(Network(nn.Conv2d(3, 4, 1)))
    decide_size_branches(network, SIDE)
    assert type(network) is Network


@pytest.mark.parametrize("last", ["part", "part.inner", "part.inner.conv"])
def test_modules_keep_their_names(last: str) -> None:
    class Double(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * x

    network = ready(Network(Nested()))
    decide_size_branches(network, SIDE)
    pictures = torch.randn(2, 3, SIDE, SIDE)
    doubled = attach(network, [Insertion(last, Double(), ())])(pictures)
    bias = network.classifier.bias
    torch.testing.assert_close(doubled - bias, 2 * (network(pictures) - bias))


def test_tensors_that_a_forward_made_let_others_learn() -> None:
    network = ready(Network(Positioned()))
    decide_size_branches(network, SIDE)
    scale = torch.ones(1, requires_grad=True)
    attach(network)(torch.ones(1, 3, SIDE, SIDE) * scale).sum().backward()
    assert scale.grad is not None


class Brightness(Part):
    """Asks a network's picture, or what ``of`` makes of it."""

    def __init__(self, of: Callable[[Tensor], object] = lambda x: x.mean().item() > 0) -> None:
        super().__init__()
        self.of = of

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) if self.of(x) and x.shape[2] == SIDE else self.conv(-x)


def _bare_assertion(x: Tensor) -> object:
    if not isinstance(x, Tensor):
        raise AssertionError  # noqa: TRY004 - as a bare assert does, which pytest would give words
    return True


class Assigning(Part):
    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x if x.shape[2] == SIDE else -x)
        y[:, :, : int(x.shape[2]) // 2] = 0
        return y


@pytest.mark.parametrize(
    ("network", "reason"),
    [
        (Network(Brightness()), "Brightness: branches on the values of tensors"),
        (Network(Brightness(lambda x: x.mT.sum() > 0)), "Brightness: branches on the values of tensors"),
        (Network(Brightness(lambda x: int(x.sum()))), "Brightness: branches on the values of tensors"),
        (Network(Brightness(lambda x: range(x.argmax()))), "Brightness: branches on the values of tensors"),
        (Network(Brightness(_bare_assertion)), "Brightness: AssertionError"),
        (Network(Assigning()), "Assigning: .* does not support item assignment"),
        (Twice(Pooled()), "a part takes inputs of several sizes"),
    ],
)
def test_what_cannot_be_decided_is_left_as_it_is_and_refused_with_the_reason(network: nn.Module, reason: str) -> None:
    kind = type(ready(network).part)
    advice = "torch.cat or torch.where" if "assignment" in reason else "not on their values"
    with pytest.raises(AttachError, match=rf"cannot be recorded as a graph \({reason}\); .*{advice}"):
        decide_size_branches(network, SIDE)
    assert type(network.part) is kind


class Counting(Part):
    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) if len(x) == 1 else -self.conv(x)


class CountingFurther(Part):
    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) if len(x) < 3 else -self.conv(x)


class Baking(Part):
    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).reshape(torch.zeros(int(x.shape[0]), 4, SIDE, SIDE).shape)


class OnlyTwo(Part):
    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x if x.shape[2] == SIDE else -x).view(2, 4, SIDE, SIDE)


@pytest.mark.parametrize(
    ("part", "reason"),
    [
        (Counting(), "branches on how many pictures"),
        (CountingFurther(), "branches on how many pictures"),
        (Baking(), "cannot do without branching"),
        (OnlyTwo(), "cannot take one picture or three"),
    ],
)
def test_what_depends_on_the_number_of_pictures_is_refused(part: nn.Module, reason: str) -> None:
    with pytest.raises(AttachError, match=f"Network {reason}"):
        decide_size_branches(ready(Network(part)), SIDE)
