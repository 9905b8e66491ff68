"""A distilled set in the forms of other tools."""

from edf_jax.export.write import FORMATS, export, export_run

__all__ = ["FORMATS", "export", "export_run"]
