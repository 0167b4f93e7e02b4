"""A calibration inside a network: the last Dense layer's kernel and bias, changed once and for good.

The network ends in a Dense unit with a sigmoid, sigmoid(w . x + b). Calibrated, it is sigmoid(slope * (w . x + b) +
intercept), which is the same layer with kernel slope * w and bias slope * b + intercept. So patches, dense evaluation
and the exported signatures give the same calibrated number, and nothing else knows of it.
"""

from __future__ import annotations

import keras

from femur_tf.calibration import Calibration


def fold(model: keras.Sequential, calibration: Calibration) -> None:
    """Calibrate a network, in place.

    Args:
      model: a network whose last layer is Dense, of one unit, with a bias and a sigmoid.
      calibration: slope and intercept of its logits.

    Raises:
      ValueError: another last layer.
    """
    last = model.layers[-1]
    fits = isinstance(last, keras.layers.Dense) and last.units == 1 and last.use_bias
    if not fits or last.activation is not keras.activations.sigmoid:
        raise ValueError(f"expected a last layer Dense(1, activation='sigmoid') with a bias. Received: {last}")
    last.kernel.assign(last.kernel * calibration.slope)
    last.bias.assign(last.bias * calibration.slope + calibration.intercept)
