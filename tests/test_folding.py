"""femur_tf.folding: a calibrated network gives the calibrated number, patch by patch and densely."""

import keras
import networks
import numpy as np
import pytest

from femur_tf import calibration, dense, folding
from femur_tf.calibration import Calibration

SETTINGS = Calibration(0.8, -1.3)
EXACT = 1e-5
"""float32 sums of a Dense layer in another scale."""


@pytest.mark.parametrize("how", ["patches", "dense"])
def test_the_folded_network_gives_calibrated_probabilities(how):
    grid, network = networks.volume(), networks.spread()

    def found() -> np.ndarray:
        if how == "patches":
            return networks.one_by_one(network, grid, networks.RULE)
        return networks.everywhere(dense.convert(network, networks.RULE), grid)

    expected = calibration.apply(found(), SETTINGS)
    folding.fold(network, SETTINGS)
    assert np.ptp(expected) > 0.2  # there is something to tell apart
    np.testing.assert_allclose(found(), expected, atol=EXACT)


def test_no_calibration_changes_no_weight():
    network = networks.spread()
    before = [w.numpy().copy() for w in network.weights]
    folding.fold(network, Calibration())
    for one, other in zip(before, network.weights, strict=True):
        np.testing.assert_array_equal(one, other.numpy())


@pytest.mark.parametrize(
    "last",
    [
        keras.layers.Dense(1),
        keras.layers.Dense(2, activation="sigmoid"),
        keras.layers.Dense(1, activation="sigmoid", use_bias=False),
        keras.layers.Activation("sigmoid"),
    ],
    ids=["no sigmoid", "two units", "no bias", "no Dense"],
)
def test_another_last_layer_is_refused(last):
    with pytest.raises(ValueError, match="expected a last layer Dense"):
        folding.fold(keras.Sequential([keras.Input((3,)), last]), SETTINGS)
