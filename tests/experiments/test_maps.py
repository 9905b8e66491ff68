"""Deletion and insertion by maps: hand-made curves, places, and the page's table."""

from __future__ import annotations

import numpy as np
import pytest

from experiments import maps, rows, tables


def test_the_highest_pixels_come_first_and_equal_ones_at_random():
    made = np.array([[[0.1, 0.9], [0.5, 0.2]], [[0, 0], [0, 1.0]]])
    orders = np.stack([maps.pixel_order(made, np.random.default_rng(k)) for k in range(20)])
    np.testing.assert_array_equal(orders[:, 0], [[1, 2, 3, 0]] * 20)
    assert set(orders[:, 1, 0]) == {3} and set(orders[:, 1, 1]) == {0, 1, 2}


def test_the_first_pixels_of_an_order_are_replaced():
    images, others = np.zeros((2, 2, 2, 3)), np.ones((2, 2, 2, 3))
    order = np.array([[1, 2, 3, 0], [3, 0, 1, 2]])
    found = maps.replaced(images, others, order, 0.5)
    np.testing.assert_array_equal(found[..., 0], [[[0, 1], [1, 0]], [[1, 0], [0, 1]]])
    assert maps.replaced(images, others, order, 1.0).all()
    assert not maps.replaced(images, others, order, 0.0).any()


def test_the_area_is_that_under_the_probability():
    # The judge sees one pixel alone; the orders replace it first, last and after half of the rest.
    images, others = np.ones((3, 5, 5, 1)), np.zeros((3, 5, 5, 1))
    rest = np.arange(24)
    order = np.stack([[24, *rest], [*rest, 24], [*rest[:12], 24, *rest[12:]]])
    found = maps.area(images, others, order, lambda x: x[:, 4, 4, 0])
    # Trapezia between eleven shares: it falls from 1 to 0 in the first, the last, the sixth.
    np.testing.assert_allclose(found, [0.05, 0.95, 0.55])


def test_on_object_is_one_for_its_own_place_and_its_share_for_a_random_order():
    places = np.zeros((50, 10, 10), bool)
    places[:, 2:5, 3:7] = True
    rng = np.random.default_rng(1)
    assert maps.on_object(maps.pixel_order(places.astype(float), rng), places) == 1
    assert maps.on_object(maps.pixel_order(~places + 0.0, rng), places) == 0
    aimless = maps.on_object(maps.pixel_order(np.zeros(places.shape), rng), places)
    assert aimless == pytest.approx(0.12, abs=0.04)


def test_a_set_without_its_images_is_told_in_a_line(monkeypatch, capsys):
    for flags, told in (("--sets=imagenette", "needs --images"), ("--sets=x", "'x' is none of")):
        monkeypatch.setattr("sys.argv", ["maps", flags])
        assert maps.main() == 2
        assert told in capsys.readouterr().err


def test_the_page_shows_a_line_for_each_kind_of_map(tmp_path):
    common = {"score": "12.34", "score_error": "0.56"}
    for data, network, method, on_object in (
        ("digits", "", "random order", "16.0"),
        ("digits", "an expert", "grad_cam", "20.0"),
        ("imagenette", "an expert", "grad_cam", ""),
    ):
        line = {"experiment": f"{data} {method}", "data": data, "network": network}
        line |= {"method": method, "on_object": on_object, **common}
        rows.replace(tmp_path / "maps.csv", line["experiment"], [line])
    made = tables.filled("<!-- maps: digits imagenette -->\n<!-- end -->", tmp_path)
    assert "| none | random order | 16.0 | +12.3 ± 0.6 |  |" in made
    assert "| an expert | grad_cam | 20.0 | +12.3 ± 0.6 | +12.3 ± 0.6 |" in made
