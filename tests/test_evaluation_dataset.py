"""Labelled sets from folders and CSV files."""

import os
import unicodedata
from pathlib import Path

import pytest

from afd_serve.errors import ConfigError
from afd_serve.evaluation.dataset import load_labelled
from afd_serve.labels import imagenet_labels
from afd_serve.preprocess import PICTURE_SUFFIXES

LABELS = ("tabby cat", "Dog", "wall clock")


def make_folders(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).mkdir(parents=True)
        for index in range(4):
            (root / name / f"{index}.JPEG").write_bytes(b"")
        (root / name / "notes.txt").write_text("no picture")
    return root


def test_folders_named_by_label_or_index(tmp_path: Path) -> None:
    pictures = load_labelled(make_folders(tmp_path, "Tabby_Cat", "dog", "2"), LABELS)
    assert [(p.id, p.label) for p in pictures[::4]] == [("2/0.JPEG", 2), ("Tabby_Cat/0.JPEG", 0), ("dog/0.JPEG", 1)]
    assert len(pictures) == 12
    assert all(p.path.is_file() for p in pictures)


def test_folders_may_have_their_accents_apart(tmp_path: Path) -> None:
    folder = unicodedata.normalize("NFD", "Krähe")
    assert folder != "Krähe"
    assert {picture.label for picture in load_labelled(make_folders(tmp_path, folder), ("Elster", "Krähe"))} == {1}


def test_pictures_of_every_format_that_is_served_are_found(tmp_path: Path) -> None:
    (tmp_path / "dog").mkdir()
    for suffix in PICTURE_SUFFIXES:
        (tmp_path / "dog" / f"picture{suffix.upper()}").write_bytes(b"")
    assert len(load_labelled(tmp_path, LABELS)) == len(PICTURE_SUFFIXES)


def test_only_files_are_pictures_and_missing_ones_are_not_passed_over(tmp_path: Path) -> None:
    root = make_folders(tmp_path, "dog")
    os.mkfifo(root / "dog" / "pipe.jpg")
    (root / "dog" / "more.jpg").mkdir()
    (root / "dog" / "more.jpg" / "a.png").write_bytes(b"")
    (root / "dog" / "lost.jpg").symlink_to(root / "nowhere")
    names = {p.id.removeprefix("dog/") for p in load_labelled(root, LABELS)}
    assert names == {"0.JPEG", "1.JPEG", "2.JPEG", "3.JPEG", "more.jpg/a.png", "lost.jpg"}


def test_links_below_a_class_are_followed_and_other_classes_are_not_entered(tmp_path: Path) -> None:
    root = make_folders(tmp_path / "set", "dog", "2")
    make_folders(tmp_path / "elsewhere", "more")
    (root / "dog" / "linked").symlink_to(tmp_path / "elsewhere")
    (root / "dog" / "around").symlink_to(root)
    (root / "dog" / "again").symlink_to(root / "dog")
    found = load_labelled(root, LABELS)
    assert [p.id for p in found if p.label == 1] == [
        *(f"dog/{index}.JPEG" for index in range(4)),
        *(f"dog/linked/more/{index}.JPEG" for index in range(4)),
    ]
    assert len(found) == 12
    assert all(p.path == root / p.id for p in found)


def test_what_is_no_regular_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "set.csv").write_text("file,label\npipe.jpg,dog\n")
    (picture,) = load_labelled(tmp_path / "set.csv", LABELS)
    with pytest.raises(OSError, match=r"pipe\.jpg' is no regular file"):
        picture.read()


def test_folders_named_by_wnid(tmp_path: Path) -> None:
    pictures = load_labelled(make_folders(tmp_path, "n01484850", "n01440764"), imagenet_labels())
    assert [p.label for p in pictures] == [0] * 4 + [2] * 4


def test_a_number_that_is_a_classs_name_is_no_index(tmp_path: Path) -> None:
    labels = ("1", "10", "2", "eleven")  # as sorted folders give them
    pictures = load_labelled(make_folders(tmp_path, "1", "2", "10", "eleven"), labels)
    assert [(p.id[:-7], p.label) for p in pictures[::4]] == [("1", 0), ("10", 1), ("2", 2), ("eleven", 3)]
    with pytest.raises(ConfigError, match="'0' is none"):
        load_labelled(make_folders(tmp_path, "0"), labels)


def test_limit_is_spread_over_the_classes(tmp_path: Path) -> None:
    folders = make_folders(tmp_path, "0", "1", "2")
    assert [p.label for p in load_labelled(folders, LABELS, limit=3)] == [0, 1, 2]
    assert len(load_labelled(folders, LABELS, limit=100)) == 12


def test_csv_with_split(tmp_path: Path) -> None:
    path = tmp_path / "set.csv"
    path.write_text("file,label,split\nb/2.png,dog,dev\na.png,2,fit\nb/1.png,0,dev\n", encoding="utf-8-sig")
    assert [p.label for p in load_labelled(path, LABELS)] == [2, 0, 1]
    chosen = load_labelled(path, LABELS, split="dev")
    assert [(p.id, p.label, p.path) for p in chosen] == [
        ("b/1.png", 0, tmp_path / "b" / "1.png"),
        ("b/2.png", 1, tmp_path / "b" / "2.png"),
    ]


@pytest.mark.parametrize(
    ("text", "split", "message"),
    [
        ("file,class\na.png,1\n", None, "no column label"),
        ("file,label\na.png,1\n", "dev", "no column split"),
        ("file,label,split\na.png,1,fit\n", "dev", "no labelled pictures.*'dev'"),
        ("file,label\na.png,horse\n", None, "line 2: 'horse' is none of the classifier's 3 classes"),
        ("file,label\na.png,3\n", None, "'3'"),
        ("file,label\na.png\n", None, "line 2: '' is none"),
        (f"file,label\na.png,1\nb.png,{'9' * 5000}\n", None, "line 3: '9+' is none of the classifier's 3 classes"),
        ("file,label\n,1\n", None, "line 2, names no file"),
        ("file,label\na.png,1\nb.png,0\n./a.png,1\n", None, "line 4, names a.png a second time"),
        ("", None, "no column file, label"),
        ("file; label\na.png;1\n", None, "it has 'file; label'; columns are separated by commas"),
        ("file\tlabel\na.png\t1\n", None, "columns are separated by commas"),
        ("\xff\xfe", None, "no CSV file"),
    ],
)
def test_bad_csv_files_are_explained(tmp_path: Path, text: str, split: str | None, message: str) -> None:
    path = tmp_path / "set.csv"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(ConfigError, match=message):
        load_labelled(path, LABELS, split=split)


def test_bad_folders_are_explained(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no labelled pictures; what is taken is a folder per class, or a CSV file"):
        load_labelled(tmp_path, LABELS)
    with pytest.raises(ConfigError, match="neither"):
        load_labelled(tmp_path / "none", LABELS)
    with pytest.raises(ConfigError, match="'horse'"):
        load_labelled(make_folders(tmp_path, "horse"), LABELS)
    with pytest.raises(ConfigError, match="CSV"):
        load_labelled(tmp_path, LABELS, split="dev")


def test_pictures_in_no_classs_folder_are_explained(tmp_path: Path) -> None:
    (tmp_path / "0.jpg").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"those in it are in no class's folder; .* folder per class, or a CSV file"):
        load_labelled(tmp_path, LABELS)


@pytest.mark.parametrize(
    ("labels", "name", "message"),
    [
        (
            imagenet_labels(),
            "Crane",
            r"; names like it: 'crane \(bird\)', 'crane \(machine\)'; .* WordNet ids, indices$",
        ),
        (LABELS, "wal clok", r"; names like it: 'wall clock'; what is taken: names, indices$"),
        (LABELS, "1000", r"'1000' is none of the classifier's 3 classes; what is taken: names, indices$"),
        (("1", "eleven"), "elevn", r"; names like it: 'eleven'; what is taken: names$"),
        (("crane", "Crane"), "crane", r"is the name of several classes; what is taken: names, indices$"),
    ],
)
def test_an_unknown_class_is_answered_with_those_that_may_be_meant(
    tmp_path: Path, labels: tuple[str, ...], name: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        load_labelled(make_folders(tmp_path, name), labels)
