"""The page for those who call the functions: its blocks run as they stand, and what it says of layers is so."""

import dataclasses
import re
from pathlib import Path

import keras
import numpy as np
import pytest
import tiny
from keras import layers
from networks import RULE, sequential

from femur_tf import config, dataset, dense, model, study

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "library.md").read_text(encoding="utf-8")
BLOCKS = [re.sub(r"(?m)^ {4}", "", block) for block in re.findall(r"(?m)(?:^ {4}.+\n|^\n(?=\n* {4}))+", PAGE)]
PER_CASE = 2000
"""Examples of a case: the network of the page has to learn a ball."""


def _table(header):
    """Return the first cells of the table with this header."""
    _, after = PAGE.split(f"| {header} |")
    rows = after.split("\n\n")[0].splitlines()[2:]
    return [row.split(" | ")[0].removeprefix("| ") for row in rows]


@pytest.fixture
def work(tmp_path, monkeypatch):
    """Write a tiny study with records to `work/` of the folder that the process is in."""
    sampling = dataclasses.replace(tiny.SAMPLING, per_case=PER_CASE)
    monkeypatch.setattr(tiny, "DATA", dataclasses.replace(tiny.DATA, sampling=sampling))
    monkeypatch.setattr(tiny, "SHARD_EXAMPLES", PER_CASE)
    tiny.write_all(tmp_path / "work", affine=np.diag([-1.0, -1.0, 2.0, 1.0]))
    monkeypatch.chdir(tmp_path)


@pytest.mark.slow
def test_the_blocks_run_as_they_stand(work, capsys):
    keras.utils.set_random_seed(1)
    found = {}
    for number, block in enumerate(BLOCKS):
        exec(compile(block, f"docs/library.md, block {number}", "exec"), found)
    said = capsys.readouterr().out
    assert len(found["history"].history["val_auc"]) == found["epochs"]
    assert {score.case for score in found["scores"]} == {"hip_04"}
    assert min(found["auc"], found["best_dice"]) > 0.8
    assert found["labels"].shape == found["scan"].shape
    assert found["unusual"].reasons
    assert "Largest difference from patches at 200 random voxels" in said
    assert "layer 'first' (Conv2D): it mixes the planes (early fusion)" in said


def test_every_section_has_its_block():
    assert len(BLOCKS) == PAGE.count("\n## ") + 1  # one for the error


def test_every_layer_that_is_said_to_have_a_dense_form_has_one():
    towers = RULE.channels
    pooled = keras.Sequential([layers.MaxPooling2D(2), layers.Activation("gelu"), layers.Flatten()])
    parts = [
        layers.Rescaling(1 / 255),
        layers.Normalization(mean=0.5, variance=0.1),
        layers.Conv2D(2 * towers, 3, groups=towers),
        model.PlanewiseConv2D(2, 3, towers),
        layers.BatchNormalization(),
        layers.ReLU(),
        layers.LeakyReLU(),
        layers.SpatialDropout2D(0.1),
    ]
    head = [layers.Dropout(0.1), layers.Dense(3, activation="tanh"), layers.Dense(1, activation="sigmoid")]
    centred = model.WithCentre(pooled, keras.Sequential([layers.ReLU()]), 3, 2)
    plain = [layers.AveragePooling2D(2), layers.Flatten()]
    used = {type(layer).__name__ for layer in [*parts, *plain, *pooled.layers, centred, *head]}
    assert {name for cell in _table("layer | which") for name in re.findall(r"`(\w+)`", cell)} == used
    for middle in ([centred], plain):
        dense.convert(sequential(RULE, *(type(p).from_config(p.get_config()) for p in [*parts, *middle, *head])), RULE)


def test_every_message_of_the_page_is_one_of_the_code():
    code = "".join((ROOT / "femur_tf" / f"{name}.py").read_text("utf-8") for name in ("dense", "dense_builder"))
    code += (ROOT / "femur_tf" / "dense_steps.py").read_text("utf-8")
    messages = _table("the message says | do")
    assert len(messages) > 5
    assert not [message for message in messages if message not in code]


@pytest.mark.slow
def test_a_dataset_begun_anew_repeats_itself_and_one_of_all_epochs_does_not(tmp_path):
    manifest = tiny.write_all(tmp_path)
    folder = study.records_path(tmp_path)

    def patches(**options):
        batches = dataset.batches(folder, manifest, "train", batch=60, training=config.AugmentConfig(), **options)
        return [patch for patch, _ in batches.as_numpy_iterator()]

    once, again, both = patches(), patches(), patches(epochs=range(2))
    first, second = both[: len(once)], both[len(once) :]
    assert all(np.array_equal(a, b) for a, b in zip(once, again, strict=True))
    assert not any(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
