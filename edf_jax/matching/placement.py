"""Where an outer iteration's work is placed: decided once from the config, then handed on."""

from __future__ import annotations

import dataclasses

import jax
from jax.sharding import Mesh

from edf_jax.models import Network
from edf_jax.runtime import devices
from edf_jax.runtime.errors import UserError
from edf_jax.training import microbatch, parallel

# Fewer images than this on a core aren't worth another one.
_LEAST_SHARE = 4


@dataclasses.dataclass(frozen=True)
class Placement:
    """Devices, shares and microbatches of an outer iteration. None of it changes its result.

    Attributes:
        batch: images of a student's batch.
        trajectory: devices over which trajectories are spread.
        data: devices over which a student's batch is split.
        microbatches: parts in which a device computes its share, one after the other.
        together: trajectories that a device matches at once, by `vmap`.
        remat: what the backward sweep finds stored of a step (`gradient.REMAT`).
    """

    batch: int
    trajectory: int = 1
    data: int = 1
    microbatches: int = 1
    together: int = 1
    remat: str = "nothing"

    @property
    def share(self) -> int:
        """Images of a batch on one device."""
        return -(-self.batch // self.data)

    @property
    def axis(self) -> str | None:
        """The mesh axis along which a batch is split; None where it isn't."""
        return parallel.DATA if self.data > 1 else None

    @property
    def cuts_batches(self) -> bool:
        """Whether a student's loss is a sum over parts of its batch."""
        return self.data > 1 or self.microbatches > 1

    def mesh(self) -> Mesh | None:
        """The devices; None where one is enough.

        Raises:
            UserError: there are fewer, or they don't spread evenly over processes.
        """
        return parallel.matching_mesh(self.trajectory, self.data)


def place(config, network: Network, num_images: int, batch: int | None = None) -> Placement:
    """Places an iteration of a config; nothing is stored of its steps (see `plan.memory`).

    Args:
        config: resolved. `parallel.data=0` takes all of a CPU's cores that trajectories leave,
            where the rest of the settings allow it, and elsewhere one device.
        network: the student's.
        num_images: n, synthetic.
        batch: another `distill.batch_syn`.
    """
    batch = min(batch or config.distill.batch_syn, num_images)
    trajectory, data = config.parallel.trajectory, config.parallel.data
    if not data:
        alone = (
            devices.platform() != "cpu"
            or jax.process_count() > 1
            or network.has_batch_stats
            or config.distill.store not in ("auto", "nothing")
        )
        cores = len(devices.all_devices()) // trajectory
        data = 1 if alone else max(1, min(cores, batch // _LEAST_SHARE))
    microbatches = microbatch.count_parts(network, -(-batch // data))
    # Mapped convolutions are grouped ones: no faster on a CPU, and K times the memory.
    own = config.distill.trajectories // trajectory
    together = config.parallel.together or (own if devices.platform() == "tpu" else 1)
    return Placement(batch, trajectory, data, microbatches, min(together, own))


def check_batches(placement: Placement, network: Network, num_images: int) -> None:
    """Refuses a student's batches that its network can't have.

    Raises:
        UserError: they would have to be padded or split, and batch norm looks at all of one.
    """
    if network.has_batch_stats and (num_images % placement.batch or placement.data > 1):
        raise UserError(
            f"{network.name} has batch norm, so its student's batches can't be padded or split: "
            f"take a distill.batch_syn that divides the {num_images} synthetic images (now "
            f"{placement.batch}) and parallel.data=1"
        )
