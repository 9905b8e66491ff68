"""Configs: made from the schema, read from variants, resolved and checked before any work."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from edf_jax.config.schema import AUTO, FREE, SCHEMA, Key
from edf_jax.data.coresets import BASELINES
from edf_jax.methods import dsa
from edf_jax.methods.family import METHODS
from edf_jax.models import build_network, network_names
from edf_jax.models.choose import MATCHED, expand
from edf_jax.runtime.errors import UserError

__all__ = [
    "AUTO",
    "FREE",
    "METHODS",
    "SCHEMA",
    "Key",
    "autos",
    "baseline_names",
    "baseline_rates",
    "check_against_data",
    "copy_config",
    "default_config",
    "flatten",
    "network_list",
    "parse_variant",
    "reckoned",
    "resolve",
    "set_keys",
    "unknown_key",
    "use_method",
    "with_values",
]


_EPOCHS = (
    "experts.epochs",
    "distill.expert_epochs",
    "distill.min_start_epoch",
    "distill.current_max_start_epoch",
    "distill.max_start_epoch",
)


def default_config(**values: Any):
    """A config with every default, and dotted keys set: `default_config(**{"distill.ipc": 1})`.

    A `method` comes with its own numbers, unless they are given too.
    """
    import ml_collections

    config = ml_collections.ConfigDict()
    for name, key in SCHEMA.items():
        group, _, leaf = name.rpartition(".")
        if group and group not in config:
            config[group] = ml_collections.ConfigDict()
        (config[group] if group else config)[leaf] = key.default
    if "method" in values:
        use_method(config, values["method"], given=values)
    set_keys(config, values)
    return config


# The attribute of a config: the method whose numbers it has, and what they took the place of.
_REPLACED = "_replaced_by_method"


def copy_config(config):
    """A config of its own that can be given another method."""
    import ml_collections

    copied = ml_collections.ConfigDict(config.to_dict())
    object.__setattr__(copied, _REPLACED, getattr(config, _REPLACED, ("", {})))
    return copied


def use_method(config, method: str, given: Collection[str] = ()) -> None:
    """Sets a config's method, and the numbers that come with it.

    Those that the method before brought become again what they were, if the config is the one that
    it was set on, or a `copy_config` of it (other copies don't know what they were).

    Args:
        config: changed in place; its parts are left to `resolve`.
        method: a name in `METHODS`; another name is set as it is, for `resolve` to refuse.
        given: dotted keys whose values stand, whatever the method says.
    """
    flat = flatten(config)
    before, values = getattr(config, _REPLACED, ("", {}))
    brought = METHODS.get(before, {})
    replaced = {
        k: v for k, v in values.items() if k not in given and flat[k] == brought.get(k)
    }
    set_keys(config, {**replaced, "method": method})
    own = {
        k: v
        for k, v in METHODS.get(method, {}).items()
        if SCHEMA[k].default != AUTO and k not in given
    }
    object.__setattr__(config, _REPLACED, (method, {k: {**flat, **replaced}[k] for k in own}))
    set_keys(config, own)


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
        if SCHEMA[name].kind is float and type(value) is int:
            value = float(value)
        try:
            (config[group] if group else config)[leaf] = value
        except (TypeError, ValueError):
            kind = SCHEMA[name].kind.__name__
            raise UserError(f"config key {name}={value!r} must be of type {kind}") from None


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


def parse_variant(text: str, variants: Mapping[str, Mapping[str, Any]], config_name: str):
    """The config of `<variant>[,key=value...]`.

    Args:
        text: what follows the colon in `--config=file.py:text`.
        variants: dotted keys and their values, by variant.
        config_name: the file's name, for messages.

    Raises:
        UserError: there is no such variant or key, or a value isn't of its key's type.
    """
    name, *pairs = text.split(",")
    if name not in variants:
        near = difflib.get_close_matches(name, variants, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        known = ", ".join(list(variants)[:12]) + (" ..." if len(variants) > 12 else "")
        raise UserError(f"configs/{config_name}.py has no variant {name!r} (it has {known}){hint}")
    config = default_config(**variants[name])
    values = {}
    for pair in pairs:
        key, separator, value = pair.partition("=")
        if not separator:
            raise UserError(f"config variant {text!r}: write {pair!r} as key=value")
        values[key] = _parse_value(key, value)
    if "method" in values:
        use_method(config, values["method"], given=values)
    set_keys(config, values)
    return config


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


def resolve(config):
    """A checked copy in which every part that was 'auto' is what the method says.

    Raises:
        UserError: a key is unknown, or a value impossible by itself or beside the others.
    """
    flat = flatten(config)
    for name in flat:
        if name not in SCHEMA:
            raise UserError(unknown_key(name))
    for name, key in SCHEMA.items():
        if name not in flat:
            raise UserError(f"config key {name} is missing")
        fault = key.fault(flat[name])
        if fault:
            raise UserError(f"config key {name}={flat[name]!r} {fault}")
    for name, part in METHODS[flat["method"]].items():
        if flat[name] == AUTO:
            flat[name] = part
    if flat["distill.alpha_step"] == AUTO:
        flat["distill.alpha_step"] = "log" if "distill.lr_lr" in autos(flat) else "plain"
    _check_epochs(flat)
    _check_together(flat)
    return default_config(**flat)


def autos(flat: Mapping[str, Any]) -> tuple[str, ...]:
    """The keys of a flat config whose numbers are to be found from the data."""
    return tuple(name for name, value in flat.items() if SCHEMA[name].is_auto(value))


def with_values(config, values: Mapping[str, Any]):
    """A resolved copy with other values under some dotted keys."""
    return resolve(default_config(**{**flatten(config), **values}))


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
    return with_values(config, values)


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
    if flat["cam.network"] == "imported" and not flat["cam.weights"]:
        raise UserError("cam.network=imported needs cam.weights=FILE (a ResNet-18 state dict)")
    if flat["cam.weights"] and flat["cam.network"] not in (AUTO, "imported"):
        raise UserError(
            f"cam.weights is given, but cam.network={flat['cam.network']} doesn't read it: "
            "set cam.network=imported or leave cam.weights out"
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
    ipc = config.distill.ipc
    smallest = min(range(len(class_counts)), key=lambda label: class_counts[label])
    if class_counts[smallest] < ipc:
        raise UserError(
            f"distill.ipc={ipc} is more than the {class_counts[smallest]} training images of class "
            f"{class_names[smallest]!r}: set distill.ipc={class_counts[smallest]} or lower"
        )
