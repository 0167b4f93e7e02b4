"""Where to look next: new points of the space, near what was good, and not all in one place."""

import math

import numpy as np
import pytest
import searches

from tuning import acquisition
from tuning.acquisition import Known

SPACE = searches.space()
SEED = (1, 2)


def never(values):
    """Nothing was tried."""
    return False


def known(count, seed=0):
    """Return finished trials at random points, with the scores of `searches.score`, smaller is better."""
    rng = np.random.default_rng(seed)
    points = [SPACE.draw(rng) for _ in range(count)]
    return [Known(point, -searches.score(point, SPACE)) for point in points if SPACE.fault(point) is None]


def propose(trials, running=(), **options):
    """Propose with usual settings."""
    return acquisition.propose(SPACE, trials, running, **{"tried": never, "beta": 2.6, "seed": SEED, **options})


def test_scores_are_centred_and_bad_ones_brought_near():
    targets = acquisition._targets([Known({}, score) for score in (1.0, 2.0, 3.0, 1e6, math.nan)])
    assert targets.mean() == pytest.approx(0)
    assert targets.std() == pytest.approx(1)
    assert targets.argsort(kind="stable").tolist() == [0, 1, 2, 3, 4]
    assert targets[3] == targets[4] < 1.5  # as bad as the worst is taken to be, 3 times median to best


@pytest.mark.parametrize(
    ("scores", "limited"),
    [
        ([1.0, 2.0, 3.0, 100.0, math.nan], [1.0, 2.0, 3.0, 7.0, 7.0]),  # median 2.5: up to 2.5 + 3 * 1.5
        ([1.0, 1.0, 1.0, 2.0, 100.0], [1.0, 1.0, 1.0, 2.0, 5.0]),  # most share the best: 2 + 3 * 1
        ([1.0, 1.0, 1.0, 1.5], [1.0, 1.0, 1.0, 1.5]),
        ([1.0, 1.0, math.nan], [1.0, 1.0, 1.0]),  # nothing is known to be worse
    ],
)
def test_scores_that_differ_still_do_when_bounded(scores, limited):
    np.testing.assert_array_equal(acquisition.bounded(np.array(scores)), limited)


def test_equal_scores_say_nothing():
    assert acquisition._targets([Known({}, 0.5)] * 3).tolist() == [0, 0, 0]


def test_places_are_those_of_the_parameters():
    places = acquisition.places(SPACE, [SPACE.default()])
    assert places.shape == (1, len(SPACE.parameters))
    assert places.min() >= 0
    assert places.max() <= 1


@pytest.mark.slow
def test_a_proposal_is_a_point_of_the_space_and_the_same_for_the_same_seed():
    trials = known(12)
    first, again, other = propose(trials), propose(trials), propose(trials, seed=(1, 3))
    assert SPACE.fault(first) is None
    assert first == again == SPACE.canonical(first)
    assert first != other


def test_what_was_tried_is_not_proposed():
    trials = known(12)
    first = propose(trials)
    assert propose(trials, tried=lambda values: values == first) != first


def test_workers_are_sent_to_different_points():
    trials = known(12)
    first = propose(trials, beta=0.5)
    assert propose(trials, running=[first], beta=0.5) != first


def test_without_curiosity_a_proposal_is_better_than_most_trials():
    trials = known(40)
    found = propose(trials, beta=0.0)
    assert -searches.score(found, SPACE) < np.quantile([one.score for one in trials], 0.2)


def test_a_failed_trial_counts_as_the_worst():
    failed = [*known(12), Known(SPACE.default(), math.nan)]
    assert propose(failed, beta=0.0) != SPACE.default()


def test_a_used_up_space_has_no_proposal():
    assert propose(known(6), tried=lambda values: True) is None
