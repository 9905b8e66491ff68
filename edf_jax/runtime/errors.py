"""The one exception that is the user's to mend."""

from __future__ import annotations


class UserError(Exception):
    """A mistake in a command, config, file or folder, told in one line.

    The message says what is wrong, where, and what would do. `edf_jax.main` prints it without a
    traceback and exits with status 2.
    """


class Preempted(Exception):
    """The run was asked to stop, and all that it needs to continue is on disk."""
