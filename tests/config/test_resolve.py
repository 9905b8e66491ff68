"""The schema, resolving, variants, and the page of all keys."""

from __future__ import annotations

import pathlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edf_jax.config import docs
from edf_jax.config.resolve import (
    AUTO,
    METHODS,
    SCHEMA,
    check_against_data,
    default_config,
    flatten,
    parse_variant,
    resolve,
    set_keys,
    unknown_key,
)
from edf_jax.runtime.errors import UserError

ROOT = pathlib.Path(__file__).resolve().parents[2]


def resolved(**values):
    return flatten(resolve(default_config(**values)))


def test_defaults_resolve_and_leave_no_part_open():
    flat = resolved()
    for part in METHODS["edf"]:
        assert flat[part] != AUTO


@pytest.mark.parametrize("method", METHODS)
def test_a_method_chooses_its_parts(method):
    flat = resolved(method=method)
    assert {key: flat[key] for key in METHODS[method]} == METHODS[method]


def test_a_part_that_is_given_stands_against_the_method():
    assert resolved(method="mtt", **{"distill.labels": "soft_learned"})["distill.labels"] == (
        "soft_learned"
    )


def test_resolving_leaves_the_given_config_alone():
    config = default_config()
    resolve(config)
    assert config.distill.labels == AUTO


def test_resolving_twice_changes_nothing():
    once = resolve(default_config(method="datm"))
    assert flatten(resolve(once)) == flatten(once)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("distill.drop", 1.0, "distill.drop=1.0 must be >= 0 and < 1"),
        ("distill.drop", -0.1, "must be >= 0 and < 1"),
        ("distill.ipc", 0, "distill.ipc=0 must be >= 1"),
        ("distill.lr_img", float("nan"), "must be a finite number"),
        ("experts.lr", 0.0, "experts.lr=0.0 must be > 0"),
        ("data.resolution", -1, "data.resolution=-1 must be >= 0"),
        ("data.difficulty", 1.5, "must be >= 0 and <= 1"),
        ("model.depth", 10**9, "must be >= 0 and <= 100"),
        ("data.resize", "sqash", "did you mean 'squash'?"),
        ("method", "edff", "did you mean 'edf'?"),
        ("precision", "float16", "must be one of float32, tf32, bfloat16"),
        ("model.name", "CovNet", "model.name: unknown network 'CovNet': did you mean ConvNet"),
        ("evaluate.networks", "ConvNet,ResNet19", "unknown network 'ResNet19'"),
        ("evaluate.networks", "ConvNet,,VGG11", "comma-separated names"),
        ("evaluate.baseline_rates", "0.1,-1", "positive numbers"),
        ("augment.strategy", "color_crp", "there is no op 'crp'"),
        ("distill.max_start_epoch", 100, "need experts of 101 epochs, but experts.epochs=100"),
        ("experts.epochs", 20, "need experts of 41 epochs, but experts.epochs=20"),
        ("distill.expert_epochs", 90, "need experts of 129 epochs"),
        ("distill.current_max_start_epoch", 41, "is over distill.max_start_epoch=40"),
        ("distill.min_start_epoch", 20, "leaves no start epoch below"),
        ("cam.network", "imported", "needs cam.weights=FILE"),
        ("cam.classes", "official", "an ImageNet network, and there is none"),
        ("parallel.trajectory", 2, "must divide distill.trajectories=1"),
    ],
)
def test_an_impossible_value_is_refused_with_what_would_do(key, value, said):
    with pytest.raises(UserError, match=r"^[^\n]+$") as refusal:
        resolve(default_config(**{key: value}))
    assert said in str(refusal.value)


def test_the_first_bound_of_start_epochs_matters_only_where_the_bound_grows():
    values = {"distill.current_max_start_epoch": 30, "distill.max_start_epoch": 4}
    resolve(default_config(**values, **{"distill.start_schedule": "fixed"}))
    with pytest.raises(UserError, match="current_max_start_epoch"):
        resolve(default_config(**values))


def test_the_best_maps_come_only_where_they_are_asked_for():
    def maps(**values):
        cam = resolve(default_config(**values)).cam
        return cam.method, cam.network

    assert maps() == ("grad_cam", "auto")
    assert maps(**{"cam.method": "auto"}) == ("layer_cam", "experts")
    assert maps(**{"cam.method": "auto", "cam.network": "expert"}) == ("layer_cam", "expert")
    imported = {"cam.method": "auto", "cam.weights": "resnet18.pth"}
    assert maps(**imported) == ("layer_cam", "auto")
    # Resolved once more, as a comparison does.
    again = resolve(resolve(default_config(**{"cam.method": "auto"})))
    assert again.cam.network == "experts"


def test_combined_network_names_are_known():
    resolve(default_config(**{"evaluate.networks": "ConvNetD4W64BN, resnet18_ap"}))


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("distil.lr_img", "distill.lr_img"),
        ("distill.lr_imgs", "distill.lr_img"),
        ("lr_img", "distill.lr_img"),
        ("ipc", "distill.ipc"),
        ("expert.num", "experts.num"),
        ("sead", "seed"),
    ],
)
def test_a_mistyped_key_suggests_the_nearest(typed, meant):
    assert unknown_key(typed).endswith(f"did you mean {meant}?")


def test_a_key_like_none_points_to_the_page_of_keys():
    assert "docs/configs.md" in unknown_key("zzz")


VARIANTS = {"small": {"distill.ipc": 1}, "large": {"distill.ipc": 50, "method": "datm"}}


def test_a_variant_takes_further_keys():
    config = parse_variant("small,distill.lr_img=7,data.zca=true,method=mtt", VARIANTS, "test")
    assert (config.distill.ipc, config.distill.lr_img, config.data.zca) == (1, 7.0, True)
    assert config.method == "mtt"


def test_another_method_takes_its_predecessors_numbers_away():
    variants = {"small": {"distill.threshold": 1.2, "distill.min_start_epoch": 3}}
    config = parse_variant("small,method=mtt", variants, "test")
    resolved = resolve(config)
    assert (resolved.distill.threshold, resolved.distill.min_start_epoch) == (0.0, 0)
    config.distill.min_start_epoch = 1  # by hand, so it stands
    config.method = "ftd"
    resolved = resolve(config)
    assert (resolved.distill.threshold, resolved.distill.average) == (0.0, 0.9995)
    config.method = "edf"
    resolved = resolve(config)
    assert resolved.distill.threshold == 1.2
    assert resolved.distill.average == SCHEMA["distill.average"].default
    assert resolved.distill.min_start_epoch == 1
    given = parse_variant("small,method=mtt,distill.threshold=0.5", variants, "test")
    given.method = "datm"
    assert resolve(given).distill.threshold == 0.5


_TWO = {"small": {"distill.lr_img": 9.0, "distill.threshold": 1.2, "published": True}}
_OF_METHODS = {
    "mtt": {
        "small": {"distill.lr_img": 3.0, "distill.threshold": 0.7, "distill.labels": "soft_fixed"}
    }
}


def _two(text, **changes):
    return resolve(parse_variant(text, _TWO, "test", _OF_METHODS), **changes)


def test_what_was_published_for_a_method_precedes_its_own_and_is_no_others():
    edf, mtt, ftd = (_two(f"small,method={method}") for method in ("edf", "mtt", "ftd"))
    assert [c.distill.lr_img for c in (edf, mtt, ftd)] == [9.0, 3.0, 9.0]
    assert [c.distill.threshold for c in (edf, mtt, ftd)] == [1.2, 0.7, 0.0]
    assert [c.distill.labels for c in (edf, mtt, ftd)] == ["soft_learned", "soft_fixed", "hard"]
    assert [c.published for c in (edf, mtt, ftd)] == [True, True, False]


@pytest.mark.parametrize("method", ["edf", "mtt", "ftd"])
def test_what_is_given_stands_for_every_method_even_where_it_is_the_variants_value(method):
    text = f"small,distill.lr_img=9.0,distill.threshold=1.2,method={method}"
    config = _two(text)
    assert (config.distill.lr_img, config.distill.threshold) == (9.0, 1.2)
    changed = _two("small", method=method, **{"distill.lr_img": 5})
    assert changed.distill.lr_img == 5.0


def test_an_unchosen_method_leaves_nothing_behind():
    config = parse_variant("small", _TWO, "test", _OF_METHODS)
    before = flatten(config)
    for method in ("mtt", "ftd", "edf"):
        config.method = method
    assert flatten(config) == before


def test_a_value_for_a_method_that_cannot_be_is_refused():
    for said, told in (({"distill.lr_imag": 1}, "lr_img"), ({"distill.ipc": "ten"}, "type int")):
        with pytest.raises(UserError, match=told):
            parse_variant("small", _TWO, "test", {"mtt": {"small": said}})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("smal", "has no variant 'smal' (it has small, large); did you mean small?"),
        ("", "has no variant ''"),
        ("small,distill.ipc", "write 'distill.ipc' as key=value"),
        ("small,distill.ipcc=3", "did you mean distill.ipc?"),
        ("small,distill.ipc=three", "must be of type int"),
        ("small,data.zca=maybe", "must be of type bool"),
    ],
)
def test_a_wrong_variant_is_refused(text, said):
    with pytest.raises(UserError) as refusal:
        parse_variant(text, VARIANTS, "test")
    assert said in str(refusal.value)


def test_a_value_of_another_type_is_refused_where_it_is_set():
    with pytest.raises(UserError, match="distill.ipc='ten' must be of type int"):
        default_config(**{"distill.ipc": "ten"})


def test_whole_numbers_are_fine_where_a_number_is_wanted():
    config = default_config()
    set_keys(config, {"distill.lr_img": 5})
    assert resolve(config).distill.lr_img == 5.0


def test_a_missing_key_is_named():
    config = default_config().copy_and_resolve_references()
    with config.unlocked():
        del config.distill.ipc
    with pytest.raises(UserError, match="distill.ipc is missing"):
        resolve(config)


def test_more_synthetic_than_real_images_of_a_class_is_refused_by_the_class():
    config = resolve(default_config(**{"distill.ipc": 10}))
    check_against_data(config, [10, 12], ["cat", "dog"])
    with pytest.raises(UserError, match="more than the 9 training images of class 'dog'"):
        check_against_data(config, [10, 9], ["cat", "dog"])
    with pytest.raises(UserError, match="two or more"):
        check_against_data(config, [10], ["cat"])


def test_grids_of_more_images_than_a_class_has_are_refused():
    def check(ipc, fewest, **values):
        grid = {"distill.parametrisation": "multi_formation", "distill.ipc": ipc, **values}
        check_against_data(resolve(default_config(**grid)), [50, fewest], ["cat", "dog"])

    check(2, 8)
    with pytest.raises(UserError, match="times 4 real images in each .* set distill.ipc=1 or"):
        check(2, 7)
    with pytest.raises(UserError, match="of 9 real ones, and class 'dog' has 8: lower"):
        check(1, 8, **{"distill.parametrisation_factor": 3})
    baselines = {"distill.parametrisation": "pixels", "evaluate.baselines": "random,downsampled"}
    with pytest.raises(UserError, match="takes 8 real images of a class, and 'dog' has 7: leave"):
        check(2, 7, **baselines)


_ANY = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from([choice for key in SCHEMA.values() for choice in key.choices]),
)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(sorted(SCHEMA)), _ANY)
def test_any_value_resolves_or_ends_in_one_line(name, value):
    try:
        config = default_config(**{name: value})
        assert flatten(resolve(config))[name] is not None
    except UserError as refusal:
        assert "\n" not in str(refusal)


def test_every_default_is_allowed_by_its_own_key():
    faults = {name: key.fault(key.default) for name, key in SCHEMA.items()}
    assert not any(faults.values())


def test_the_page_of_keys_is_current():
    assert (ROOT / "docs" / "configs.md").read_text("utf-8") == docs.page(), (
        "run: python -m edf_jax.config.docs > docs/configs.md"
    )
