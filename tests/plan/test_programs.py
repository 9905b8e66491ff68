"""The programs of every published config lower for GPUs and TPUs, without either."""

from __future__ import annotations

import types
from collections.abc import Iterator
from typing import Any

import jax
import pytest

from edf_jax.config.resolve import resolve
from edf_jax.data import describe_dataset
from edf_jax.models.choose import network_for
from edf_jax.plan import programs
from edf_jax.runtime import devices
from tests.config.test_configs import FILES, load

_ACCELERATOR = types.SimpleNamespace(platform="cuda", process_index=0)


@pytest.fixture(autouse=True)
def _on_an_accelerator():
    with devices.elsewhere([_ACCELERATOR], devices.Device("an accelerator", 1, 2**34)):
        yield


def _published() -> Iterator[tuple[str, Any]]:
    """The published variants whose programs differ in more than sizes."""
    seen = set()
    for path in FILES:
        module = load(path.stem)
        for name in module["VARIANTS"]:
            config = module["get_config"](name)
            config.precision = "bfloat16"
            config = resolve(config)
            if not config.published:
                continue
            data, options = describe_dataset(config.data), config.distill
            padded = options.ipc * data.num_classes % options.batch_syn > 0
            differs = (
                data.image_shape, config.data.zca, config.method, padded, options.loss_mask,
                options.labels, options.pixel_weight, config.experts.optimizer,
            )  # fmt: skip
            if differs not in seen:
                seen.add(differs)
                yield f"{path.stem}-{name}", config


_PUBLISHED = dict(_published())


@pytest.mark.parametrize("name", _PUBLISHED)
def test_programs_lower_for_gpus_and_tpus(name):
    config = _PUBLISHED[name]
    data = describe_dataset(config.data)
    network = network_for(config, data)
    num_images = config.distill.ipc * data.num_classes
    for program in programs.programs(config, data, network, num_images):
        exported = jax.export.export(program.function, platforms=["cuda", "tpu"])
        lowered = exported(*program.arguments)
        assert lowered.platforms == ("cuda", "tpu")
        assert "stablehlo.convolution" in (text := lowered.mlir_module()) and "bf16" in text
