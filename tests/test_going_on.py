"""Training goes on with mined examples: from another run's weights, on the records and a mined set."""

import dataclasses

import bright
import numpy as np
import pytest
import tiny

from data_prep import mine
from data_prep.hard_examples import MiningConfig
from femur_tf import bundle, config, mined_records, records, study, train, training
from femur_tf.errors import DataError


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    folder = tmp_path_factory.mktemp("on")
    tiny.write_all(folder, rule=bright.RULE)
    bright.save_run(study.run_path(folder, "default"))
    mine.mine(mine.MineArguments(folder, mining=MiningConfig(per_case=40, margin_mm=0.0)))
    return folder


def settings(work, **options) -> config.RunConfig:
    arguments = train.TrainArguments(work, epochs=1, mined=("default",), **options)
    found = train.settings(arguments, records.read_manifest(study.records_path(work)).data)
    return dataclasses.replace(found, model=bright.SETTINGS.model, data=bright.SETTINGS.data)


@pytest.mark.slow
def test_training_goes_on_with_mined_examples(work, monkeypatch):
    chosen, run = settings(work, start="default"), study.run_path(work, "mined")
    asked = []
    real = mined_records.read_manifest
    monkeypatch.setattr(mined_records, "read_manifest", lambda *a: asked.append(a[1]) or real(*a))
    before = bundle.load(study.run_path(work, "default"))
    network = training._first(run, chosen)
    for one, other in zip(network.get_weights(), before.model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    state = training.train(study.records_path(work), run, chosen)
    assert asked == [("default",)]
    assert state.epoch == 1
    kept = config.load(config.RunConfig, run / bundle.CONFIG).train
    assert (kept.mined, kept.start) == (("default",), "default")


def test_a_run_to_start_from_has_a_name(work):
    with pytest.raises(DataError, match=r"expected the name of a folder in it\. Received: 'default/\.\./x'"):
        training._earlier(study.run_path(work, "x"), settings(work, start="default/../x"))


@pytest.mark.parametrize(
    ("start", "filters", "words"),
    [("missing", (2, 2), r"expected the run to start from \(--start\)"), ("default", (3, 2), "network of this run")],
)
def test_a_run_that_cannot_be_started_from_is_refused(work, start, filters, words):
    chosen = settings(work, start=start)
    chosen = dataclasses.replace(chosen, model=dataclasses.replace(chosen.model, filters=filters))
    with pytest.raises(DataError, match=words):
        training.train(study.records_path(work), study.run_path(work, "refused"), chosen)
