"""Networks, their registry, and PyTorch's layout of their parameters."""

from edf_jax.models.network import Network
from edf_jax.models.registry import (
    build_network,
    network_names,
    open_options,
    register_network,
)

__all__ = ["Network", "build_network", "network_names", "open_options", "register_network"]
