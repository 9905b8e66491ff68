"""Configs: made from the schema, read from variants, resolved and checked before any work."""

from __future__ import annotations

import collections
import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from edf_jax.config.schema import AUTO, FREE, SCHEMA, Key
from edf_jax.data.coresets import BASELINES
from edf_jax.methods import dsa
from edf_jax.methods.family import METHODS, parametrisation
from edf_jax.methods.soft_labels import LABEL_REGIMES
from edf_jax.models import build_network, network_names
from edf_jax.models.choose import MATCHED, expand
from edf_jax.runtime.errors import UserError

__all__ = [
    "AUTO",
    "FREE",
    "METHODS",
    "SCHEMA",
    "Key",
    "Variant",
    "autos",
    "baseline_names",
    "baseline_rates",
    "check_against_data",
    "default_config",
    "flatten",
    "label_regimes",
    "network_list",
    "parse_variant",
    "reckoned",
    "resolve",
    "set_keys",
    "unknown_key",
]


_EPOCHS = (
    "experts.epochs",
    "distill.expert_epochs",
    "distill.min_start_epoch",
    "distill.current_max_start_epoch",
    "distill.max_start_epoch",
)


@dataclasses.dataclass(frozen=True)
class Variant:
    """What a config file says of a variant; a config holds it as `variant` until it is resolved.

    Attributes:
        of_methods: by method, dotted keys and values that are for it; they precede its own.
        values: those for any other method; what comes with a method precedes them.
    """

    of_methods: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    values: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def default_config(**values: Any):
    """A config with every default, and dotted keys set: `default_config(**{"distill.ipc": 1})`.

    A number that goes by the method is None until one is set; `resolve` fills it.
    """
    flat = {
        name: _placeholder(key.kind) if _goes_by_method(name) else key.default
        for name, key in SCHEMA.items()
    }
    config = _nested(flat)
    set_keys(config, values)
    return config


def _goes_by_method(name: str) -> bool:
    """Whether a key is a number that comes with a method. Of parts the default says so: 'auto'."""
    return SCHEMA[name].default != AUTO and any(name in own for own in METHODS.values())


def _nested(flat: Mapping[str, Any]):
    nested: dict[str, Any] = {}
    for name, value in flat.items():
        group, _, leaf = name.rpartition(".")
        (nested.setdefault(group, {}) if group else nested)[leaf] = value
    import ml_collections

    return ml_collections.ConfigDict(nested)


def _placeholder(kind: type) -> Any:
    """A config's value that is not set yet, of a type."""
    # Imported where it is used: benchmarks run where there is no ml_collections.
    from ml_collections import config_dict

    return config_dict.placeholder(kind)


def set_keys(config, values: Mapping[str, Any]) -> None:
    """Sets dotted keys.

    Raises:
        UserError: a key isn't in the schema, or a value isn't of its type.
    """
    for name, value in values.items():
        if name not in SCHEMA:
            raise UserError(unknown_key(name))
        group, _, leaf = name.rpartition(".")
        value = SCHEMA[name].of_text(value)
        try:
            if value is None:
                raise TypeError
            (config[group] if group else config)[leaf] = _as_kind(name, value)
        except (TypeError, ValueError):
            kind = SCHEMA[name].kind.__name__
            raise UserError(f"config key {name}={value!r} must be of type {kind}") from None


def _as_kind(name: str, value: Any) -> Any:
    return float(value) if SCHEMA[name].kind is float and type(value) is int else value


def unknown_key(name: str) -> str:
    """The line about a key that there isn't, with the nearest one."""
    near = difflib.get_close_matches(name, SCHEMA, 1, 0.5)
    if not near and "." not in name:
        leaves = {key.rpartition(".")[2]: key for key in SCHEMA}
        near = [leaves[leaf] for leaf in difflib.get_close_matches(name, leaves, 1, 0.7)]
    hint = f"; did you mean {near[0]}?" if near else "; see docs/configs.md for all keys"
    return f"config has no key {name}{hint}"


def flatten(config) -> dict[str, Any]:
    """A config as `{dotted key: value}`."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        if hasattr(value, "items"):
            flat.update({f"{name}.{leaf}": v for leaf, v in flatten(value).items()})
        else:
            flat[name] = value
    return flat


def parse_variant(
    text: str,
    variants: Mapping[str, Mapping[str, Any]],
    config_name: str,
    of_methods: Mapping[str, Mapping[str, Mapping[str, Any]]] | None = None,
):
    """The config of `<variant>[,key=value...]`; of a key the last part will do if no other has it.

    Args:
        text: what follows the colon in `--config=file.py:text`.
        variants: dotted keys and their values, by variant.
        config_name: the file's name, for messages.
        of_methods: by method and variant, values that were published for another method than the
            variant's own.

    Raises:
        UserError: there is no such variant or key, or a value isn't of its key's type.
    """
    name, *pairs = text.split(",")
    if name not in variants:
        near = difflib.get_close_matches(name, variants, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        known = ", ".join(list(variants)[:12]) + (" ..." if len(variants) > 12 else "")
        raise UserError(f"configs/{config_name}.py has no variant {name!r} (it has {known}){hint}")
    values = variants[name]
    others = {m: v[name] for m, v in (of_methods or {}).items() if name in v}
    for said in others.values():
        default_config(**said)  # refuses what can't be
    config = default_config(**values)
    for key in {"published", *filter(_goes_by_method, values)}.union(*others.values()):
        _leave_open(config, key)
    published = {m: {**said, "published": True} for m, said in others.items()}
    of = {config.method: values, **published}
    config.variant = Variant(of, {**values, "published": False})
    given = {}
    for pair in pairs:
        key, separator, value = pair.partition("=")
        if not separator:
            raise UserError(f"config variant {text!r}: write {pair!r} as key=value")
        key = _whole_name(key)
        given[key] = _parse_value(key, value)
    set_keys(config, given)
    return config


def _leave_open(config, name: str) -> None:
    """Takes a key's value away, for `resolve` to decide; its type stays."""
    group, _, leaf = name.rpartition(".")
    node = config[group] if group else config
    # A reference is not replaced but set.
    del node[leaf]
    node[leaf] = _placeholder(SCHEMA[name].kind)


def _whole_name(name: str) -> str:
    """A key by its last part, where only one ends so: `ipc` is `distill.ipc`."""
    whole = [key for key in SCHEMA if key.endswith(f".{name}")]
    return whole[0] if name not in SCHEMA and len(whole) == 1 else name


def _parse_value(name: str, text: str) -> Any:
    if name not in SCHEMA:
        raise UserError(unknown_key(name))
    kind = SCHEMA[name].kind
    try:
        if SCHEMA[name].of_text(text) != text:
            return SCHEMA[name].of_text(text)
        if kind is bool:
            return {"true": True, "false": False}[text.lower()]
        return kind(text)
    except (ValueError, KeyError):
        raise UserError(f"config key {name}={text!r} must be of type {kind.__name__}") from None


def resolve(config, **changes: Any):
    """A checked copy in which everything that was left open is decided.

    What goes by the method has the value that was given for it (a flag, behind the variant, by
    hand), else what the variant says for the method, else the method's own, else what the variant
    says for any method, else the schema's default.

    Args:
        config: not changed.
        **changes: dotted keys and values that stand instead of the config's.

    Raises:
        UserError: a key is unknown, or a value impossible by itself or beside the others.
    """
    flat = {**flatten(config), **changes}
    variant = flat.pop("variant", Variant())
    for name in flat:
        if name not in SCHEMA:
            raise UserError(unknown_key(name))
    flat = _of_text(flat)
    for name in ("method", *changes):
        _check_value(name, flat)
    method = flat["method"]
    defaults = {name: key.default for name, key in SCHEMA.items()}
    layers = collections.ChainMap(
        *(variant.of_methods.get(method, {}), METHODS[method], variant.values, defaults)
    )
    flat |= {
        name: layers[name]
        for name, value in flat.items()
        if value is None or (value == AUTO and name != "cam.method")
    }
    flat |= _best_maps(_of_text(flat))
    for name in SCHEMA:
        _check_value(name, flat)
    if flat["distill.alpha_step"] == AUTO:
        flat["distill.alpha_step"] = "log" if "distill.lr_lr" in autos(flat) else "plain"
    _check_epochs(flat)
    _check_together(flat)
    return _nested({name: _as_kind(name, flat[name]) for name in SCHEMA})


def _of_text(flat: Mapping[str, Any]) -> dict[str, Any]:
    return {name: SCHEMA[name].of_text(value) for name, value in flat.items()}


def _best_maps(flat: dict[str, Any]) -> dict[str, Any]:
    """A flat config in which `cam.method=auto` is what finds objects best (docs/results.md)."""
    if flat["cam.method"] != AUTO:
        return flat
    network = flat["cam.network"]
    if network == AUTO and not flat["cam.weights"]:
        network = "experts"
    return {**flat, "cam.method": "layer_cam", "cam.network": network}


def _check_value(name: str, flat: Mapping[str, Any]) -> None:
    if name not in flat:
        raise UserError(f"config key {name} is missing")
    fault = SCHEMA[name].fault(flat[name])
    if fault:
        raise UserError(f"config key {name}={flat[name]!r} {fault}")


def autos(flat: Mapping[str, Any]) -> tuple[str, ...]:
    """The keys of a flat config whose numbers are to be found from the data."""
    return tuple(name for name, value in flat.items() if SCHEMA[name].is_auto(value))


def reckoned(config):
    """A copy for plans: a number that is 'auto' is what it would be on small images."""
    flat = flatten(config)
    unknown = autos(flat)
    values = {**flat, **{key: SCHEMA[key].auto for key in unknown}}
    epochs, targets, _, first, last = _EPOCHS
    if epochs in unknown:
        values[epochs] = max(values[epochs], values[last] + values[targets] - 1)
    if targets in unknown:
        values[targets] = min(values[targets], values[epochs])
    if last in unknown:
        values[last] = max(1, min(values[last], values[epochs] - values[targets] + 1))
    if first in unknown:
        values[first] = min(values[first], values[last])
    return resolve(config, **values)


def _check_epochs(flat: Mapping[str, Any]) -> None:
    """Refuses start epochs that the experts don't have; what is 'auto' will be found to fit.

    Raises:
        UserError: says which keys, and what would do.
    """
    if set(_EPOCHS) & set(autos(flat)):
        return
    last = flat["distill.max_start_epoch"] - 1 + flat["distill.expert_epochs"]
    if last > flat["experts.epochs"]:
        raise UserError(
            f"distill.max_start_epoch={flat['distill.max_start_epoch']} and "
            f"distill.expert_epochs={flat['distill.expert_epochs']} need experts of {last} epochs, "
            f"but experts.epochs={flat['experts.epochs']}: lower the one or raise the other"
        )
    bound = "distill.max_start_epoch"
    if flat["distill.start_schedule"] == "sequential":
        first = "distill.current_max_start_epoch"
        if flat[first] > flat[bound]:
            raise UserError(f"{first}={flat[first]} is over {bound}={flat[bound]}: lower it")
        bound = first
    if flat["distill.min_start_epoch"] >= flat[bound]:
        raise UserError(
            f"distill.min_start_epoch={flat['distill.min_start_epoch']} leaves no start epoch "
            f"below {bound}={flat[bound]}: lower it"
        )


def _check_together(flat: Mapping[str, Any]) -> None:
    """Refuses values that can't stand beside each other.

    Raises:
        UserError: says which and what would do.
    """
    dsa.parse_strategy(flat["augment.strategy"])
    _check_network_name("model.name", flat["model.name"])
    for name in network_list(flat["evaluate.networks"]):
        if name != MATCHED:
            _check_network_name("evaluate.networks", name)
    if flat["teacher.network"]:
        _check_network_name("teacher.network", flat["teacher.network"])
    baseline_rates(flat["evaluate.baseline_rates"])
    baseline_names(flat["evaluate.baselines"])
    label_regimes(flat["evaluate.labels"])
    if flat["evaluate.scores"] and flat["evaluate.augment"] == "none":
        raise UserError(
            "evaluate.scores=True weighs what augmentation gives, and evaluate.augment=none takes "
            "it away: leave one of them out"
        )
    if flat["cam.network"] == "imported" and not flat["cam.weights"]:
        raise UserError("cam.network=imported needs cam.weights=FILE (a ResNet-18 state dict)")
    if flat["cam.weights"] and flat["cam.network"] not in (AUTO, "imported"):
        raise UserError(
            f"cam.weights is given, but cam.network={flat['cam.network']} doesn't read it: "
            "set cam.network=imported or leave cam.weights out"
        )
    if flat["cam.classes"] == "official" and not flat["cam.weights"]:
        raise UserError(
            "cam.classes=official is about an ImageNet network, and there is none: give "
            "cam.weights=FILE or leave cam.classes out"
        )
    if flat["distill.select"] == "heldout" and not flat["data.held_out"]:
        raise UserError(
            "distill.select=heldout chooses by held-out training images, and there are none: set "
            "data.held_out, such as 0.1"
        )
    if flat["distill.trajectories"] % flat["parallel.trajectory"]:
        raise UserError(
            f"parallel.trajectory={flat['parallel.trajectory']} must divide "
            f"distill.trajectories={flat['distill.trajectories']}"
        )


def _check_network_name(key: str, name: str) -> None:
    known = {known.replace("_", "").upper() for known in network_names()}
    if name.replace("_", "").upper() in known:
        return
    try:
        # Knows the combinations too, and what is near; the size only has to be large enough.
        build_network(name, num_classes=10, image_shape=(512, 512, 3))
    except UserError as error:
        raise UserError(f"config key {key}: {error}") from None


def network_list(text: str) -> tuple[str, ...]:
    """The names of `evaluate.networks`, those of a pool in place of its name; `()` for ''.

    Raises:
        UserError: a name is empty.
    """
    if not text:
        return ()
    names = tuple(name.strip() for name in text.split(","))
    if not all(names):
        raise UserError(f"evaluate.networks={text!r} must be comma-separated names")
    return expand(names)


def label_regimes(text: str) -> tuple[str, ...]:
    """The names of `evaluate.labels`.

    Raises:
        UserError: one isn't known, or there is none.
    """
    names = tuple(name.strip() for name in text.split(","))
    for name in names:
        if name not in (AUTO, *LABEL_REGIMES):
            known = ", ".join((AUTO, *LABEL_REGIMES))
            raise UserError(f"evaluate.labels={text!r}: {name!r} is none of {known}")
    return names


def baseline_names(text: str) -> tuple[str, ...]:
    """The names of `evaluate.baselines`.

    Raises:
        UserError: one isn't known.
    """
    names = tuple(name.strip() for name in text.split(",")) if text else ()
    for name in names:
        if name not in BASELINES:
            raise UserError(
                f"evaluate.baselines={text!r}: {name!r} is none of {', '.join(BASELINES)}"
            )
    return names


def baseline_rates(text: str) -> tuple[float, ...]:
    """The rates of `evaluate.baseline_rates`.

    Raises:
        UserError: it isn't a comma-separated list of positive numbers.
    """
    try:
        rates = tuple(float(rate) for rate in text.split(","))
    except ValueError:
        rates = ()
    if not rates or not all(0 < rate < float("inf") for rate in rates):
        raise UserError(
            f"evaluate.baseline_rates={text!r} must be comma-separated positive numbers"
        )
    return rates


def check_against_data(config, class_counts: Sequence[int], class_names: Sequence[str]) -> None:
    """Refuses what doesn't go with a dataset, once it is loaded.

    Args:
        config: resolved.
        class_counts: training images of each class.
        class_names: by label.

    Raises:
        UserError: names the key, the class and what would do.
    """
    if len(class_counts) < 2:
        raise UserError(
            f"the data has {len(class_counts)} class; distilling needs two or more: see data.path"
        )
    ipc, real = config.distill.ipc, parametrisation(config.distill).real
    smallest = min(range(len(class_counts)), key=lambda label: class_counts[label])
    fewest, name = class_counts[smallest], class_names[smallest]
    if real > max(fewest, 1):
        raise UserError(
            f"distill.parametrisation={config.distill.parametrisation} makes a stored image of "
            f"{real} real ones, and class {name!r} has {fewest}: lower "
            "distill.parametrisation_factor"
        )
    if fewest < ipc * real:
        each = f" times {real} real images in each" if real > 1 else ""
        raise UserError(
            f"distill.ipc={ipc}{each} is more than the {fewest} training images of class "
            f"{name!r}: set distill.ipc={fewest // real} or lower"
        )
    shrunk = ipc * config.distill.parametrisation_factor**2
    if "downsampled" in baseline_names(config.evaluate.baselines) and fewest < shrunk:
        raise UserError(
            f"evaluate.baselines=downsampled takes {shrunk} real images of a class, and {name!r} "
            f"has {fewest}: leave it out, or lower distill.parametrisation_factor"
        )
