"""What both frameworks are given: parameters, images, batches and the draws of augmentation.

Random numbers come from the calls that `edf_jax` makes with the keys that `benchmarks.ours` gives
it, so that PyTorch's side repeats them without JAX.
"""

from __future__ import annotations

import pathlib
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.sizes import CLASSES, VARIANTS, Sizes
from edf_jax.config import schema
from edf_jax.matching import gradient as matching
from edf_jax.methods import dsa
from edf_jax.methods.family import METHODS
from edf_jax.models import Network, build_network, torch_layout
from edf_jax.models.convolution import choose_convolution
from edf_jax.plan import costs
from edf_jax.runtime import devices

# A gradient is worth three forward passes, a step of GSAM two gradients, a step of matching a
# gradient forwards and a gradient of jvp backwards.
_GRADIENT, _GSAM, _MATCHING = 3, 6, 9
_IMAGENET_CLASSES = 1000
_TEST_BATCH = 256


def config(sizes: Sizes) -> SimpleNamespace:
    """The parts of a config that the functions under test read: EDF's, with these sizes."""
    changes = {
        **METHODS["edf"],
        "precision": sizes.precision,
        "model.convolution": sizes.convolution,
        "distill.ipc": sizes.ipc,
        "distill.syn_steps": sizes.syn_steps,
        "distill.batch_syn": sizes.batch,
        "distill.trajectories": sizes.networks,
        "distill.drop": sizes.drop,
        "distill.threshold": 0.0,
        "distill.alpha_step": "plain",
        "distill.store": sizes.store,
        "experts.batch": sizes.batch,
        "cam.method": sizes.method,
    }
    root = SimpleNamespace()
    for name, key in schema.SCHEMA.items():
        *parents, leaf = name.split(".")
        node = root
        for parent in parents:
            if not hasattr(node, parent):
                setattr(node, parent, SimpleNamespace())
            node = getattr(node, parent)
        setattr(node, leaf, changes.get(name, key.default))
    return root


def convnet(sizes: Sizes) -> Network:
    """The network of students, experts and evaluation."""
    return _network(sizes, "ConvNet", CLASSES, width=sizes.width, depth=sizes.depth)


def cam_network(sizes: Sizes) -> Network:
    """The network that maps are made with."""
    if sizes.cam == "ConvNet":
        return convnet(sizes)
    return _network(sizes, sizes.cam, _IMAGENET_CLASSES)


def _network(sizes: Sizes, name: str, num_classes: int, **options: Any) -> Network:
    return build_network(
        name,
        num_classes=num_classes,
        image_shape=(sizes.resolution, sizes.resolution, 3),
        convolution=choose_convolution(sizes.convolution),
        dtype=devices.compute_dtype(sizes.precision),
        **options,
    )


def key_of(variant: int) -> jax.Array:
    """The key of one variant of the work."""
    return jax.random.fold_in(jax.random.key(0), variant)


def network_keys(key: jax.Array, count: int) -> jax.Array:
    """A key for each network that is trained."""
    return jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(count))


def prepare(name: str, sizes: Sizes, folder: pathlib.Path) -> dict[str, Any]:
    """Writes a benchmark's problem; returns the device at hand and the work's size."""
    device = "cpu" if jax.default_backend() == "cpu" else "gpu"
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        arrays, stage, forward, passes = _PREPARE[name](sizes)
    np.savez(folder / "problem.npz", **{k: np.asarray(v) for k, v in arrays.items()})  # type: ignore[arg-type]
    return {"device": device, "stage": stage, "forward": forward, "work": forward * passes}


def _images(sizes: Sizes, count: int) -> np.ndarray:
    """Smooth random pictures, normalised: `[count, H, W, 3]`."""
    generator = np.random.default_rng(1)
    coarse = generator.standard_normal((count, 8, 8, 3), np.float32)
    side = sizes.resolution
    rows = np.arange(side) * 8 // side
    fine = generator.standard_normal((count, side, side, 3), np.float32)
    return coarse[:, rows][:, :, rows] + 0.3 * fine


def synthetic_set(sizes: Sizes) -> dict[str, np.ndarray]:
    """Synthetic images `[n, H, W, 3]` and label logits `[n, C]`."""
    labels = np.random.default_rng(2).standard_normal((sizes.num_images, CLASSES), np.float32)
    labels[np.arange(sizes.num_images), np.arange(sizes.num_images) // sizes.ipc] += 4
    return {"images": _images(sizes, sizes.num_images), "labels": labels}


def real_set(sizes: Sizes, count: int) -> dict[str, np.ndarray]:
    """uint8 images `[count, H, W, 3]` and classes `[count]`."""
    images = np.clip(_images(sizes, count) * 50 + 120, 0, 255).astype(np.uint8)
    return {"real_images": images, "real_labels": (np.arange(count) % CLASSES).astype(np.int32)}


def _forward_flops(network: Network) -> int:
    theta, stats = jax.eval_shape(network.init, jax.random.key(0))
    image = jax.ShapeDtypeStruct((1, *network.image_shape), jnp.float32)
    return costs.flops(network.apply, theta, image, stats)


def _draws(keys: jax.Array, batch: int, strategy: str) -> tuple[jax.Array, jax.Array]:
    """The op of each step and its uniform draws `[..., batch, 3]`."""
    draw = lambda key: dsa.draw_dsa(key, batch, strategy=strategy)  # noqa: E731
    for _ in keys.shape:
        draw = jax.vmap(draw)
    draws = draw(keys)
    return draws.op, draws.uniforms


def _both_layouts(network: Network, name: str, thetas: np.ndarray) -> dict[str, np.ndarray]:
    """Vectors `[..., P]` in our layout, and in PyTorch's."""
    flat = thetas.reshape(-1, thetas.shape[-1])
    theirs = np.stack([torch_layout.to_torch_flat(network, jnp.asarray(theta)) for theta in flat])
    return {name: thetas, f"{name}_torch": theirs.reshape(thetas.shape)}


def _matching(sizes: Sizes):
    network = convnet(sizes)
    generator = np.random.default_rng(3)
    keys = network_keys(jax.random.key(4), sizes.networks)
    starts = np.asarray(jax.vmap(lambda key: network.init(key)[0])(keys))
    targets = starts + 0.01 * generator.standard_normal(starts.shape, np.float32)
    found = []
    for variant in range(VARIANTS):
        for key in jax.random.split(key_of(variant), sizes.networks):
            batches = matching.student_batches(
                key, sizes.num_images, sizes.batch, sizes.syn_steps
            )
            ops, uniforms = _draws(
                batches.keys, batches.indices.shape[1], dsa.FULL_STRATEGY
            )
            full = jnp.full(sizes.syn_steps, batches.indices.shape[1])
            counts = full if batches.mask is None else jnp.sum(batches.mask, 1).astype(int)
            if found and len(found) % sizes.networks:
                ops = found[-1][2]  # Trajectories of an iteration share them.
            found.append((batches.indices, counts, ops, uniforms))
    names = ("indices", "counts", "ops", "uniforms")
    draws = {
        name: np.stack(values).reshape(VARIANTS, sizes.networks, *values[0].shape)
        for name, values in zip(names, zip(*found))
    }
    arrays = {
        **synthetic_set(sizes),
        **_both_layouts(network, "starts", starts),
        **_both_layouts(network, "targets", targets),
        **draws,
    }
    seen = sizes.syn_steps * min(sizes.batch, sizes.num_images) * sizes.networks
    return arrays, "distillation", _forward_flops(network), seen * _MATCHING


def _epoch_draws(sizes: Sizes, key: jax.Array, index: int, count: int):
    """The order of an epoch's examples, and each step's op and draws."""
    order_key, step_key = jax.random.split(jax.random.fold_in(key, index))
    size = min(sizes.batch, count)
    steps = jax.random.split(step_key, -(-count // size))
    augment_keys = jax.vmap(lambda step: jax.random.split(step)[0])(steps)
    ops, uniforms = _draws(augment_keys, size, dsa.FULL_STRATEGY)
    return jax.random.permutation(order_key, count), ops, uniforms


def _experts(sizes: Sizes):
    network = convnet(sizes)
    keys = network_keys(jax.random.key(5), sizes.networks)
    thetas = np.asarray(jax.vmap(lambda key: network.init(key)[0])(keys))
    found = [
        _epoch_draws(sizes, key, variant, sizes.images)
        for variant in range(VARIANTS)
        for key in keys
    ]
    arrays = {
        **real_set(sizes, sizes.images),
        **_both_layouts(network, "thetas", thetas),
        **_stacked(found, (VARIANTS, sizes.networks)),
    }
    passes = sizes.networks * sizes.images * _GSAM
    return arrays, "experts", _forward_flops(network), passes


def _stacked(found, leading: tuple[int, ...]) -> dict[str, np.ndarray]:
    return {
        name: np.stack(values).reshape(*leading, *values[0].shape)
        for name, values in zip(("orders", "ops", "uniforms"), zip(*found))
    }


def _evaluation(sizes: Sizes):
    network = convnet(sizes)
    keys = jnp.stack([network_keys(key_of(v), sizes.networks) for v in range(VARIANTS)])
    thetas = np.asarray(jax.vmap(jax.vmap(lambda key: network.init(key)[0]))(keys))
    found = [
        _epoch_draws(sizes, keys[variant, index], epoch, sizes.num_images)
        for variant in range(VARIANTS)
        for index in range(sizes.networks)
        for epoch in range(sizes.epochs)
    ]
    arrays = {
        **synthetic_set(sizes),
        **real_set(sizes, sizes.images),
        **_both_layouts(network, "thetas", thetas),
        **_stacked(found, (VARIANTS, sizes.networks, sizes.epochs)),
    }
    passes = sizes.networks * (sizes.epochs * sizes.num_images * _GRADIENT + sizes.images)
    return arrays, "evaluation", _forward_flops(network), passes


def _maps(sizes: Sizes):
    network = cam_network(sizes)
    theta, stats = network.init(jax.random.key(6))
    arrays = {**synthetic_set(sizes), **_both_layouts(network, "theta", np.asarray(theta))}
    for index, stat in enumerate(torch_layout.stats_to_torch(network, stats)):
        arrays[f"stats_{index:03d}"] = stat
    passes = 1
    if sizes.method != "grad_cam":
        from edf_jax.methods import gradcam

        shape = (gradcam.NOISE_SAMPLES, *arrays["images"].shape)
        noise = [jax.random.normal(key_of(v), shape) * gradcam.NOISE_STD for v in range(VARIANTS)]
        arrays["noise"] = np.stack(noise)
        passes += gradcam.NOISE_SAMPLES
    return arrays, "maps", _forward_flops(network), passes * sizes.num_images


_PREPARE = {
    "matching": _matching,
    "experts": _experts,
    "evaluation": _evaluation,
    "gradcam": _maps,
}
