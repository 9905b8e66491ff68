"""A network as functions of one flat parameter vector."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import traverse_util

from edf_jax.models import initialisation

# Where a leaf lies in the Linen module's variables, and its shape.
Entry = tuple[tuple[str, ...], tuple[int, ...]]


class Classifier(nn.Module):
    """A body that makes a feature map and a head that makes logits of it."""

    body: nn.Module
    head: nn.Module

    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        return self.head(self.body(images, train))

    def features(self, images: jax.Array) -> jax.Array:
        return self.body(images, False)

    def stage(self, maps: jax.Array, number: int) -> jax.Array:
        return self.body(maps, False, stage=number)

    def classify(self, features: jax.Array) -> jax.Array:
        return self.head(features)


@dataclasses.dataclass(frozen=True)
class Network:
    """A classifier whose parameters are one vector `theta [P]`.

    `theta` holds the parameters in forward order, which is PyTorch's parameter order, each
    raveled in its own layout (convolutions HWIO, linear kernels `[in, out]`). Parameters are
    float32 unless the caller casts `theta`; in float64, with float64 images, everything is. Two
    networks with the same settings are equal, and a network is a valid static argument of
    `jax.jit`.

    Attributes:
        name: the registry's name.
        module: the Linen module; its parameters are `unravel(theta)`.
        num_classes: C, the number of logits.
        image_shape: `(H, W, C)` of the images.
        draw: makes initial parameters, one of `initialisation`'s functions.
    """

    name: str = dataclasses.field(compare=False)
    module: nn.Module
    num_classes: int
    image_shape: tuple[int, int, int]
    draw: Callable[..., jax.Array] = initialisation.torch_default

    @property
    def param_table(self) -> tuple[Entry, ...]:
        """`(path, shape)` of every parameter, in forward order."""
        return _tables(self.module, self.image_shape)[0]

    @property
    def stats_table(self) -> tuple[Entry, ...]:
        """The same of the batch-norm statistics; empty where the network has none."""
        return _tables(self.module, self.image_shape)[1]

    @property
    def feature_shape(self) -> tuple[int, int, int]:
        """`(h, w, c)` of the feature map of one image."""
        return _feature_shape(self.module.body, self.image_shape)

    @property
    def num_params(self) -> int:
        """P, the length of `theta`."""
        return sum(math.prod(shape) for _, shape in self.param_table)

    @property
    def has_batch_stats(self) -> bool:
        """Whether the network keeps running batch-norm statistics."""
        return bool(self.stats_table)

    def init(self, key: jax.Array) -> tuple[jax.Array, dict]:
        """Draws initial parameters: PyTorch's default, or for a ViT a transformer's own.

        Args:
            key: a PRNG key; may be mapped over with `jax.vmap`.

        Returns:
            `theta [P]` in float32, and the initial batch-norm statistics (`{}` where none).
        """
        return _init(self, key)

    def apply(
        self,
        theta: jax.Array,
        images: jax.Array,
        batch_stats: dict | None = None,
        *,
        train: bool = False,
        rng: jax.Array | None = None,
    ) -> jax.Array:
        """Logits `[n, C]` of `images [n, H, W, C]`, in the dtype of `theta`.

        Args:
            theta: `[P]`.
            images: `[n, H, W, C]`, normalised.
            batch_stats: running statistics; needed where the network has them, unless `train`.
            train: use the batch's own statistics; their update is dropped.
            rng: a key for layers that draw random numbers in training.
        """
        variables = self._variables(theta, {} if train else self._running(batch_stats))
        logits: Any = self.module.apply(variables, images, train, rngs=_rngs(rng))
        return logits.astype(theta.dtype)

    def apply_and_update(
        self,
        theta: jax.Array,
        images: jax.Array,
        batch_stats: dict,
        *,
        rng: jax.Array | None = None,
    ) -> tuple[jax.Array, dict]:
        """Logits in training mode, and the statistics moved by this batch (`{}` stays `{}`)."""
        if not self.has_batch_stats:
            return self.apply(theta, images, train=True, rng=rng), {}
        logits, updated = self.module.apply(
            self._variables(theta, self._running(batch_stats)),
            images,
            True,
            rngs=_rngs(rng),
            mutable=["batch_stats"],
        )
        return logits.astype(theta.dtype), updated["batch_stats"]

    def features(
        self, theta: jax.Array, images: jax.Array, batch_stats: dict | None = None
    ) -> jax.Array:
        """The feature map `[n, h, w, c]` that class activation maps are made of.

        The last pooling layer's output of a ConvNet, AlexNet, LeNet or VGG, `layer4` of a ResNet,
        the patch tokens of a ViT as a grid, and the images themselves for an MLP.
        """
        variables = self._variables(theta, self._running(batch_stats))
        features: Any = self.module.apply(variables, images, method="features")
        return features.astype(theta.dtype)

    @property
    def num_stages(self) -> int:
        """How many stages `stage` has: a ConvNet's blocks, a ResNet's four, else one."""
        return getattr(self.module.body, "cam_stages", 1)

    def stage(
        self, number: int, theta: jax.Array, maps: jax.Array, batch_stats: dict | None = None
    ) -> jax.Array:
        """The maps `[n, h, w, c]` after a stage, of those before it; `features` is all in a row.

        Args:
            number: from 0, which takes the images.
            theta: `[P]`.
            maps: `[n, h, w, c]`.
            batch_stats: as in `apply`.
        """
        if self.num_stages == 1:
            return self.features(theta, maps, batch_stats)
        variables = self._variables(theta, self._running(batch_stats))
        made: Any = self.module.apply(variables, maps, number, method="stage")
        return made.astype(theta.dtype)

    def classify(
        self, theta: jax.Array, features: jax.Array, batch_stats: dict | None = None
    ) -> jax.Array:
        """Logits `[n, C]` of `features [n, h, w, c]`; `apply` is `classify` of `features`."""
        variables = self._variables(theta, batch_stats)
        logits: Any = self.module.apply(variables, features, method="classify")
        return logits.astype(theta.dtype)

    def unravel(self, theta: jax.Array) -> dict:
        """The parameters of the Linen module, as a nested dict, of `theta [P]`."""
        if theta.shape != (self.num_params,):
            raise ValueError(
                f"{self.name} has {self.num_params} parameters, the vector's shape is {theta.shape}"
            )
        ends, end = [], 0
        for _, shape in self.param_table:
            end += math.prod(shape)
            ends.append(end)
        # jnp.split and not slices: its transpose is one concatenation.
        leaves = jnp.split(theta, ends[:-1])
        return traverse_util.unflatten_dict(
            {
                path: leaf.reshape(shape)
                for leaf, (path, shape) in zip(leaves, self.param_table)
            }
        )

    def ravel(self, params: dict) -> jax.Array:
        """`theta [P]` of the Linen module's parameters."""
        flat = traverse_util.flatten_dict(params)
        return jnp.concatenate([jnp.ravel(flat[path]) for path, _ in self.param_table])

    def _running(self, batch_stats: dict | None) -> dict:
        if self.has_batch_stats and not batch_stats:
            raise ValueError(f"{self.name} needs its running batch-norm statistics here")
        return batch_stats or {}

    def _variables(self, theta: jax.Array, batch_stats: dict | None) -> dict[str, Any]:
        variables = {"params": self.unravel(theta)}
        if batch_stats:
            variables["batch_stats"] = batch_stats
        return variables


def _rngs(rng: jax.Array | None) -> dict | None:
    return None if rng is None else {"dropout": rng}


def _one_image(image_shape: tuple[int, int, int]) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)


@functools.lru_cache(maxsize=256)
def _feature_shape(body: nn.Module, image_shape: tuple[int, int, int]) -> tuple[int, int, int]:
    # The key is made within, for outside it would be computed, and its program compiled.
    features, _ = jax.eval_shape(
        lambda x: body.init_with_output(jax.random.key(0), x), _one_image(image_shape)
    )
    return features.shape[1:]


@functools.lru_cache(maxsize=256)
def _tables(
    module: nn.Module, image_shape: tuple[int, int, int]
) -> tuple[tuple[Entry, ...], tuple[Entry, ...]]:
    tables: dict[str, tuple[Entry, ...]] = {}

    def trace(key: jax.Array, images: jax.Array) -> None:
        # Read inside the trace: JAX sorts the keys of a dict that it returns, and the order in
        # which the layers made them is the forward order.
        variables = module.init(key, images)
        for collection in ("params", "batch_stats"):
            flat = traverse_util.flatten_dict(dict(variables.get(collection, {})))
            tables[collection] = tuple((path, leaf.shape) for path, leaf in flat.items())

    jax.eval_shape(lambda x: trace(jax.random.key(0), x), _one_image(image_shape))
    return tables["params"], tables["batch_stats"]


@functools.partial(jax.jit, static_argnums=0)
def _init(network: Network, key: jax.Array) -> tuple[jax.Array, dict]:
    theta = network.draw(key, network.param_table)
    batch_stats = traverse_util.unflatten_dict(
        {
            path: jnp.full(shape, float(path[-1] == "var"), jnp.float32)
            for path, shape in network.stats_table
        }
    )
    return theta, batch_stats
