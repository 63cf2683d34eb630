"""What fitting minimizes: distances to the frozen backbone's features on the clean picture, each in natural units.

No labels and no logits take part: KL on logits moves clean pictures, distances of features do not.
"""

from collections.abc import Sequence

from torch import Tensor, nn

__all__ = ["FeatureLoss"]


class FeatureLoss(nn.Module):
    """Squared error of the embedding and of intermediate feature maps, each over its variance on clean pictures.

    Args:
        tap_variances: Per tap, the variance of each channel, [C].
        embedding_variance: [D].
        embedding_weight: Weight of the embedding's distance; the taps share a weight of one.
    """

    embedding_scale: Tensor

    def __init__(self, tap_variances: Sequence[Tensor], embedding_variance: Tensor, embedding_weight: float) -> None:
        super().__init__()
        self.embedding_weight = embedding_weight
        # One scale for the whole embedding: rarely active channels would dominate if each had its own.
        self.register_buffer("embedding_scale", 1 / embedding_variance.mean())
        for index, variance in enumerate(tap_variances):
            self.register_buffer(f"tap_scale_{index}", (1 / variance.clamp_min(1e-6))[:, None, None])

    def embedding_distance(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Per picture [N]: mean squared distance of embeddings [N, D], in units of their variance."""
        return (student.float() - teacher.float()).square().mean(dim=1) * self.embedding_scale

    def forward(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
        """The loss; both arguments are (*taps [N, C, H, W], embedding [N, D])."""
        *student_taps, student_embedding = student
        *teacher_taps, teacher_embedding = teacher
        loss = self.embedding_weight * self.embedding_distance(student_embedding, teacher_embedding).mean()
        for index, (ours, theirs) in enumerate(zip(student_taps, teacher_taps, strict=True)):
            error = (ours.float() - theirs.float()).square() * self.get_buffer(f"tap_scale_{index}")
            loss = loss + error.mean() / len(student_taps)
        return loss
