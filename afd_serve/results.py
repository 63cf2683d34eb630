"""What one picture's answer is, here or from a server: a prediction or a failure. Nothing here needs torch."""

from dataclasses import dataclass, field

__all__ = ["Failure", "Prediction", "Shadow"]


@dataclass(frozen=True)
class Failure:
    """Why one picture has no answer: a code of `afd_serve.errors`, and a reason for people."""

    code: str
    reason: str


@dataclass(frozen=True)
class Shadow:
    """How the answer that AFD would have given differs from the bare classifier's.

    Attributes:
        disagrees: Whether the first class is another.
        confidence_change: The first class's probability with AFD less the first class's without, -1..1.
    """

    disagrees: bool
    confidence_change: float


@dataclass(frozen=True)
class Prediction:
    """The answer for one picture.

    Attributes:
        indices: Classes by falling probability, top-k of them.
        labels: Their names.
        probabilities: Their probabilities, 0..1.
        estimated_quality: QF of the heaviest compression found, 1..100; None where nothing tells (a PNG, say).
        drift: Expected squared distance of the unprotected embedding from the clean picture's, in variances; >= 0.
        protected: Whether the gate was open.
        shadow: In shadow mode, what AFD would have changed, or why that is not known; None where the gate stays closed
            and in other modes. It never travels, and it is no part of the answer.
    """

    indices: tuple[int, ...]
    labels: tuple[str, ...]
    probabilities: tuple[float, ...]
    estimated_quality: int | None
    drift: float
    protected: bool
    shadow: Shadow | Failure | None = field(default=None, compare=False)

    def summary(self) -> str:
        """Everything but the indices in one line, for people."""
        ranked = ", ".join(f"{name} {p:.1%}" for name, p in zip(self.labels, self.probabilities, strict=True))
        gate = "open" if self.protected else "closed"
        return f"{ranked}  (estimated quality {self.estimated_quality}, drift {self.drift:.2f}, gate {gate})"
