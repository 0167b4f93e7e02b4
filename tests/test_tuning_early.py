"""Early stopping: the median rule, and the curves it is applied to."""

import hypothesis
import pytest
import searches
from hypothesis import strategies as st

from femur_tf import files
from femur_tf.config import TrainConfig
from tuning import early, trials

OTHERS = [[(0.5, value), (1.0, value + 0.1)] for value in (0.5, 0.6, 0.7, 0.8)]
"""Their median is 0.65 at half time."""


@pytest.mark.parametrize(
    ("curve", "others", "poor"),
    [
        ([(0.5, 0.64)], OTHERS, True),
        ([(0.5, 0.65)], OTHERS, False),  # as good as the median is good enough
        ([(0.3, 0.7), (0.5, 0.1)], OTHERS, False),  # its best value counts
        ([(0.2, 0.0)], OTHERS, False),  # too early to say
        ([(1.0, 0.0)], OTHERS, False),  # nothing is left to save
        ([(0.5, 0.0)], OTHERS[:3], False),  # too few to compare with
        ([(0.4, 0.0)], OTHERS, False),  # none of them had a value by then
        ([(0.9, 0.64)], [*OTHERS[:3], [(0.3, 0.9)]], True),  # a curve that ended counts with its last value
    ],
)
def test_a_trial_below_the_median_of_the_others_is_poor(curve, others, poor):
    assert early.is_poor(curve, others, "max") == poor
    mirrored = [[(share, -value) for share, value in other] for other in others]
    assert early.is_poor([(share, -value) for share, value in curve], mirrored, "min") == poor


@pytest.mark.parametrize(
    ("settings", "seconds", "epochs", "share"),
    [
        (TrainConfig(epochs=4), 99.0, 1, 0.25),
        (TrainConfig(minutes=2.0), 30.0, 7, 0.25),
        (TrainConfig(minutes=2.0), 125.0, 7, 1.0),
    ],
)
def test_the_share_is_that_of_the_minutes_or_of_the_epochs(settings, seconds, epochs, share):
    assert early.share_done(settings, seconds, epochs) == share


@hypothesis.given(st.lists(st.floats(0, 1), min_size=4, max_size=8))
def test_the_best_of_all_is_never_poor(values):
    others = [[(0.5, value)] for value in values]
    assert not early.is_poor([(0.5, max(values))], others, "max")


def test_curves_are_those_of_the_completed_trials(tmp_path):
    searches.write_search(tmp_path)
    for number, status in enumerate((trials.COMPLETED, trials.FAILED, trials.COMPLETED)):
        run = searches.write_trial(tmp_path, number, status, 0.5) / trials.RUN
        files.write_text(run / "history.csv", f"epoch,seconds,val_auc\n1,10,0.{number}\n2,20,0.9\n")
    files.write_text(tmp_path / "trial_2" / trials.RUN / "history.csv", "epoch,sec")
    assert early.finished_curves(tmp_path, "val_auc") == [[(1 / 62, 0.0), (2 / 62, 0.9)]]


def test_a_run_that_is_not_there_has_no_curve(tmp_path):
    assert early.read_curve(tmp_path, "dice") == []
