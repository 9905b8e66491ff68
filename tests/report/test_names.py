"""Names of classes and folders are drawn as they are."""

from __future__ import annotations

import io

import matplotlib
import numpy as np
import pytest
from PIL import Image

from edf_jax.report import charts, figures

_ODD = [r"$\frac{1}{0}$", r"$\nosuch$", "a$b$c", r"back\slash", r"\$", "100% & #1 {x}_y^z"]


def _pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


@pytest.mark.parametrize("name", _ODD)
def test_a_name_that_looks_like_a_formula_is_drawn_as_it_is(name):
    drawn = _pixels(charts.bars([name, "other"], [1.0, 2.0], ["", ""], title=name))
    with matplotlib.rc_context({"text.parse_math": False}):
        plainly = _pixels(charts.bars([name, "other"], [1.0, 2.0], ["", ""], title=name))
    np.testing.assert_array_equal(drawn, plainly)
    assert (drawn != 255).any()


@pytest.mark.parametrize("per_class", [1, 8])
def test_the_pictures_take_such_names(per_class):
    images = np.random.default_rng(0).uniform(size=(8 * len(_ODD), 8, 8, 3)).astype(np.float32)
    labels = np.repeat(np.arange(len(_ODD)), 8)
    drawn = figures.before_after(images, images, labels, _ODD, per_class=per_class)
    with matplotlib.rc_context({"text.parse_math": False}):
        plainly = figures.before_after(images, images, labels, _ODD, per_class=per_class)
    np.testing.assert_array_equal(_pixels(drawn), _pixels(plainly))
