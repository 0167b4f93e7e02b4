"""No benchmark scores a run on cases that it has learned from, as after the split was changed."""

import functools

import bright
import pytest
import tiny

from benchmarks import averaging, between_slices, crf, dense, other_scans, recipes, results, strided
from femur_tf import bundle, config, files, lineage, study
from femur_tf.errors import DataError

WAYS = {
    "averaging": lambda work, run: averaging.groups(averaging.AveragingArguments(work)),
    "between_slices": lambda work, run: between_slices.score(between_slices.BetweenArguments(work)),
    "crf": lambda work, run: crf.read_scans(crf.CrfArguments(work)),
    "dense": lambda work, run: dense.dice_changes(bundle.load(run), work),
    "other_scans": lambda work, run: other_scans.main(other_scans.ScansArguments(work)),
    "recipes": lambda work, run: recipes.of_study(work, "default"),
    "results": lambda work, run: results.main(results.ResultsArguments(work, run, "3,4")),
    "results --beside": lambda work, run: results.unseen(run, [study.Case("hip_03", "", "", "test")]),
    "strided": lambda work, run: strided.main(strided.StridedArguments(work)),
}
"""What scores the run `default` of a study."""


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A study whose validation case was a training case when its run was trained."""
    work = tmp_path_factory.mktemp("work")
    tiny.write_study(work, rule=bright.RULE)
    run = bright.save_run(study.run_path(work, "default"))
    seen = tuple(lineage.Seen(name, "train", "") for name in ("hip_01", "hip_03"))
    files.write_json(run / lineage.NAME, config.to_dict(lineage.Lineage(seen)))
    return work


@pytest.mark.parametrize("way", WAYS)
def test_a_run_that_has_seen_the_cases_is_refused(work, way):
    score = functools.partial(WAYS[way], work, study.run_path(work, "default"))
    with pytest.raises(
        DataError, match=r"expected a run that has not seen the \w+ cases\. Received: one made with hip_03"
    ):
        score()


def test_a_model_is_not_scored_on_the_cases_that_chose_its_recipe(tmp_path):
    model = bright.save_run(tmp_path / "run")
    with pytest.raises(DataError, match="made with hip_03"):
        results.unseen(model, [study.Case("hip_03", "", "", "test")])
