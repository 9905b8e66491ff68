"""One key of a config: its default, meaning, source and range."""

from __future__ import annotations

import dataclasses
import difflib
import math
from typing import Any

# The value of a part that the method of the family chooses.
AUTO = "auto"
# What a number holds that says 'auto': it is found from the data (`edf_jax.tune`).
AUTO_NUMBER = -1

_OURS = "this project"


@dataclasses.dataclass(frozen=True)
class Key:
    """One key of a config.

    Attributes:
        default: its value unless a config says otherwise; decides the type too.
        meaning: one line, with units.
        source: where the default comes from.
        choices: the allowed values, where they are few.
        at_least: smallest allowed number.
        at_most: largest allowed number.
        below: numbers must be less than this.
        positive: numbers must be over zero.
        auto: the number that a plan reckons with while the value is 'auto'; None where it can't be.
    """

    default: Any
    meaning: str
    source: str = _OURS
    choices: tuple[str, ...] = ()
    at_least: float | None = None
    at_most: float | None = None
    below: float | None = None
    positive: bool = False
    auto: float | None = None

    @property
    def kind(self) -> type:
        """The type of its values."""
        return type(self.default)

    @property
    def range(self) -> str:
        """The allowed values in words; '' where every value of the type is."""
        if self.choices:
            return ", ".join(self.choices)
        parts = []
        if self.positive:
            parts.append("> 0")
        if self.at_least is not None:
            parts.append(f">= {_figure(self.at_least)}")
        if self.at_most is not None:
            parts.append(f"<= {_figure(self.at_most)}")
        if self.below is not None:
            parts.append(f"< {_figure(self.below)}")
        return " and ".join(parts) + (", or auto" if self.auto is not None else "")

    def is_auto(self, value: Any) -> bool:
        """Whether a number is left to the data."""
        return self.auto is not None and type(value) is not bool and value == AUTO_NUMBER

    def of_text(self, value: Any) -> Any:
        """A value in which a number's 'auto' is what stands for it."""
        return AUTO_NUMBER if self.auto is not None and value == AUTO else value

    def fault(self, value: Any) -> str | None:
        """What is wrong with a value, or None."""
        if self.is_auto(value):
            return None
        if self.kind is bool or isinstance(value, bool):
            if type(value) is not self.kind:
                return f"must be of type {self.kind.__name__}"
        elif self.kind is float:
            if not isinstance(value, (int, float)):
                return "must be a number"
        elif not isinstance(value, self.kind):
            return f"must be of type {self.kind.__name__}"
        if self.choices and value not in self.choices:
            near = difflib.get_close_matches(str(value), self.choices, 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            return f"must be one of {', '.join(self.choices)}{hint}"
        if self.kind in (int, float):
            if not math.isfinite(value):
                return "must be a finite number"
            within = (
                (not self.positive or value > 0)
                and (self.at_least is None or value >= self.at_least)
                and (self.at_most is None or value <= self.at_most)
                and (self.below is None or value < self.below)
            )
            if not within:
                return f"must be {self.range}"
        return None


def share(default: float, meaning: str, source: str = _OURS) -> Key:
    """A key whose values are in [0, 1)."""
    return Key(default, meaning, source, at_least=0, below=1)


def _figure(number: float) -> str:
    return str(int(number)) if number == int(number) else f"{number:g}"
