"""The names of ImageNet's classes, and how a user's names find them."""

import unicodedata

from afd_serve.labels import imagenet_labels, imagenet_wnids, label_key, label_lookup


def test_labels_are_1000_unique_names_with_their_wnids() -> None:
    labels = imagenet_labels()
    assert len(labels) == len({label.casefold() for label in labels}) == 1000
    assert imagenet_wnids() == tuple(sorted(imagenet_wnids()))
    assert (labels[2], imagenet_wnids()[2]) == ("great white shark", "n01484850")
    lookup = label_lookup(labels)
    assert lookup["great white shark"] == lookup["n01484850"] == 2
    assert label_lookup(["Cat", "cat", "dog_house"]) == {"dog house": 2}


def test_a_name_is_the_same_with_its_accents_apart() -> None:
    apart = unicodedata.normalize("NFD", "Häuser_am Fluß")
    assert apart != "Häuser_am Fluß"
    assert label_key(apart) == label_key("häuser am FLUSS")
    assert label_lookup(["Häuser_am Fluß"]) == label_lookup([apart]) == {label_key(apart): 0}
