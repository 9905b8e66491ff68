"""Class lists and class names."""

from __future__ import annotations

import json
import pathlib
import re

import pytest

from edf_jax.data.subsets import (
    chosen_subset,
    find_comp_dd,
    find_subset,
    imagenet_classes,
    index_by_wnid,
    read_class_list,
    subset_names,
)
from edf_jax.runtime.errors import UserError
from tests.data_layouts import data_config

LISTS = json.loads((pathlib.Path(__file__).parents[1] / "fixtures" / "SUBSETS.json").read_text())


def _published():
    yield from LISTS["imagenet_subsets"].items()
    for category, halves in LISTS["comp_dd"].items():
        for half, indices in halves.items():
            yield f"{category}_{half}", indices


def test_all_23_class_lists_are_the_published_ones_with_names_for_people():
    published = dict(_published())
    assert len(published) == 23
    for name, indices in published.items():
        subset = find_subset(name)
        assert list(subset.positions) == indices
        assert list(subset.indices) == list(dict.fromkeys(indices))
        assert [index_by_wnid()[wnid] for wnid in subset.wnids] == list(subset.indices)
        assert len(set(subset.class_names)) == len(subset.indices)
        assert all(re.search("[a-z]{2}", n) and "_" not in n for n in subset.class_names)
    assert set(published) | {"imagenet100"} == set(subset_names())


def test_imagenet_has_a_thousand_classes_in_the_order_of_their_wordnet_ids():
    classes = imagenet_classes()
    assert [c.index for c in classes] == list(range(1000))
    assert all(re.fullmatch(r"n\d{8}", c.wnid) for c in classes)
    assert [c.wnid for c in classes] == sorted({c.wnid for c in classes})
    known = {0: "n01440764", 217: "n02102040", 701: "n03888257", 999: "n15075141"}
    assert {i: classes[i].wnid for i in known} == known
    named = {0: "tench", 207: "golden retriever", 420: "banjo", 571: "gas pump", 954: "banana"}
    assert {i: classes[i].name for i in named} == named


def test_music_hard_is_nine_classes_with_a_warning_that_says_why():
    subset = find_subset("music_hard")
    assert len(subset.positions) == 10 and len(subset.indices) == 9
    with pytest.warns(UserWarning, match=r"class 420 \(banjo\) twice.*loaded as 9 classes"):
        subset.warn_of_repetitions()


def test_imagenet100_has_a_hundred_classes_and_can_be_swapped(tmp_path):
    assert len(find_subset("ImageNet100").indices) == 100
    mine = tmp_path / "mine.txt"
    mine.write_text("# two classes\nn01440764\n\n217  # English springer\n")
    subset = chosen_subset(data_config(subset="imagenet100", class_list=str(mine)))
    assert subset.name == "mine" and subset.indices == (0, 217)


@pytest.mark.parametrize(
    ("text", "said"),
    [("n00000000\n", "line 1: 'n00000000'"), ("3\n1000\n", "line 2: '1000'"), ("", "no class")],
)
def test_a_bad_class_list_is_named(tmp_path, text, said):
    path = tmp_path / "list.txt"
    path.write_text(text)
    with pytest.raises(UserError, match=said):
        read_class_list(str(path))


def test_unknown_subsets_are_named():
    with pytest.raises(UserError, match="imagenette, imagewoof"):
        find_subset("imagenett")
    with pytest.raises(UserError, match="/nowhere/list.txt is not a file"):
        read_class_list("/nowhere/list.txt")


@pytest.mark.parametrize("spelling", ["bird", "birds", "Bird"])
def test_comp_dd_categories_may_be_plural(spelling):
    assert find_comp_dd(spelling, "easy") == find_subset("bird_easy")
    assert find_comp_dd("fishes", "hard") == find_subset("fish_hard")


def test_unknown_comp_dd_names_are_named():
    with pytest.raises(UserError, match="bird, car, dog, fish, snake, insect, round, music"):
        find_comp_dd("cat", "easy")
    with pytest.raises(UserError, match="'easy' or 'hard'"):
        find_comp_dd("bird", "medium")
