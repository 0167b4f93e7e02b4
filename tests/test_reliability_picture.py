"""femur_tf.reliability_picture: a curve for each table, in its own colour, with its error in the legend."""

import io

import numpy as np
import pytest
from matplotlib.image import imread

from femur_tf.calibration import Reliability
from femur_tf.reliability_picture import COLOURS, reliability_png

TABLE = Reliability(np.array([0.1, 0.6, 0.9]), np.array([0.05, 0.4, 0.95]), np.array([1000, 10, 100]))


def has_colour(png, colour):
    pixels = (imread(io.BytesIO(png))[..., :3] * 255).round().astype(int)
    wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return bool((np.abs(pixels - wanted).max(axis=-1) <= 12).any())


@pytest.mark.parametrize("names", [("before",), ("before", "after")])
def test_each_table_has_a_curve(names):
    png = reliability_png(dict.fromkeys(names, TABLE))
    assert [has_colour(png, colour) for colour in COLOURS[:3]] == [i < len(names) for i in range(3)]


@pytest.mark.parametrize("count", [0, 5])
def test_the_number_of_tables_is_limited(count):
    with pytest.raises(ValueError, match="expected one to 4 tables"):
        reliability_png({str(i): TABLE for i in range(count)})


def test_one_bin_is_enough():
    one = Reliability(np.array([0.0]), np.array([0.0]), np.array([7]))
    assert has_colour(reliability_png({"all": one}), COLOURS[0])
