"""Which pictures are found, and when a set of them is the same."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from afd_serve.errors import ConfigError
from afd_serve.training.pictures import find_pictures, pictures_digest


def test_pictures_are_found_and_excluded(
    picture_folder: Callable[[int], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = picture_folder(4)
    assert find_pictures([folder]) == [folder / f"{index}.png" for index in range(4)], "in the same order each time"
    assert [path.name for path in find_pictures([folder], [folder / "0.png", folder / "2.png"])] == ["1.png", "3.png"]
    (folder / "deep" / "er").mkdir(parents=True)
    (folder / "2.png").rename(folder / "deep" / "er" / "2.PNG")
    assert len(find_pictures([folder])) == 4
    monkeypatch.chdir(folder.parent)
    relative = [Path(folder.name, "deep"), Path(folder.name, "0.png")]
    assert [path.name for path in find_pictures([folder], relative)] == ["1.png", "3.png"]
    with pytest.raises(ConfigError, match=r"^fitting needs at least two pictures; .*0\.png hold 1$"):
        find_pictures([folder / "0.png"])
    with pytest.raises(ConfigError, match="hold none"):
        find_pictures([folder], [folder])
    with pytest.raises(ConfigError, match="does not exist"):
        find_pictures([folder / "nowhere"])


def test_what_is_no_regular_file_is_no_picture(picture_folder: Callable[[int], Path]) -> None:
    folder = picture_folder(2)
    os.mkfifo(folder / "pipe.jpg")
    (folder / "folder.jpg").mkdir()
    (folder / "lost.jpg").symlink_to("nowhere")
    assert [path.name for path in find_pictures([folder])] == ["0.png", "1.png"]
    with pytest.raises(ConfigError, match="hold none"):
        find_pictures([folder / "pipe.jpg"])


def test_links_to_folders_are_followed_even_if_they_go_round(
    picture_folder: Callable[[int], Path], tmp_path: Path
) -> None:
    folder, chosen = picture_folder(3), tmp_path / "chosen"
    chosen.mkdir()
    (chosen / "linked").symlink_to(folder)
    (folder / "back").symlink_to(chosen)
    expected = [folder / f"{index}.png" for index in range(3)]
    assert find_pictures([chosen]) == expected
    assert find_pictures([folder], [chosen / "linked" / "1.png"]) == [expected[0], expected[2]]


def test_the_digest_tells_other_pictures_and_not_where_the_folder_lies(
    picture_folder: Callable[[int], Path], tmp_path: Path
) -> None:
    folder = picture_folder(3)
    pictures = find_pictures([folder])
    before = pictures_digest(pictures, [folder])
    assert pictures_digest(reversed(pictures), [folder]) == before
    assert pictures_digest(pictures[1:], [folder]) != before
    moved = folder.rename(tmp_path / "moved")
    assert pictures_digest(find_pictures([moved]), [moved]) == before
    (moved / "1.png").write_bytes(b"another picture")
    assert pictures_digest(find_pictures([moved]), [moved]) != before
