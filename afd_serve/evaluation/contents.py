"""What a comparison was made of, so that rows of other pictures are not joined with it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from afd_serve.evaluation.dataset import LabelledPicture
from afd_serve.picture_files import digest_of, file_size
from afd_serve.training.pictures import pictures_digest

__all__ = ["Contents"]


@dataclass(frozen=True)
class Contents:
    """What a configuration's names stand for, which may change while the names stay as they are.

    Attributes:
        fingerprint: of the backbone.
        fitting_pictures: `pictures_digest` of the unlabelled pictures.
        labelled_pictures: digest of the names, sizes and classes of the labelled pictures; one that is missing is no
            error but a picture that cannot be read.
    """

    fingerprint: str
    fitting_pictures: str
    labelled_pictures: str

    @classmethod
    def of(
        cls,
        fingerprint: str,
        unlabelled: Sequence[Path],
        folders: Sequence[Path],
        labelled: Sequence[LabelledPicture],
    ) -> "Contents":
        """Those of a comparison; ``folders`` are what the unlabelled pictures' names are relative to."""
        return cls(
            fingerprint,
            pictures_digest(unlabelled, folders),
            digest_of((picture.id, file_size(picture.path), picture.label) for picture in labelled),
        )
