"""Choosing the recipe: what each step is worth, by hand-made maps, and what is never chosen."""

from __future__ import annotations

import numpy as np
import pytest

from femur_tf import metrics, postprocess
from femur_tf.config import RecipeConfig, Step
from femur_tf.recipe import CANDIDATES, GAIN, Sample, choose, count_voxels, first_cutoff, mean_dice, prior

SPACING_MM = (2.0, 2.0, 2.0)


def sample(rng, *, clutter=0.0, hole=False, high=0.8, low=0.2) -> Sample:
    """Return two bars of bone that are likely, in background that is not, with noise of 0.05.

    Args:
      rng: of the noise.
      clutter: probability inside a third block, that is no bone; 0 for none.
      hole: make a cavity of 27 voxels in one bar unlikely.
      high: probability of bone.
      low: probability of background.
    """
    reference = np.zeros((24, 20, 20), bool)
    reference[2:9, 4:16, 4:16] = reference[14:21, 4:16, 4:16] = True
    probability = np.where(reference, high, low) + rng.uniform(-0.05, 0.05, reference.shape)
    if clutter:
        probability[10:13, 6:13, 1:3] = clutter
    if hole:
        probability[4:7, 8:11, 8:11] = low
    return Sample(probability.astype(np.float32), reference, SPACING_MM)


def values(recipe: RecipeConfig) -> dict[str, float]:
    return {step.name: step.value for step in recipe.steps}


def test_a_perfect_map_gets_a_cutoff_between_its_classes(rng):
    choice = choose([sample(rng), sample(rng)])
    assert 0.25 < choice.recipe.cutoff <= 0.8
    assert (choice.auc, choice.raw_dice) == (1.0, 1.0)
    assert choice.dice > 0.99  # an opening takes the bars' edges


def test_a_third_block_is_left_out_by_keeping_two(rng):
    choice = choose([sample(rng, clutter=0.95)])
    assert values(choice.recipe)["largest"] == 2
    assert choice.dice > choice.raw_dice


@pytest.mark.parametrize("parts", [1, 2])
def test_the_search_starts_with_as_many_parts_as_the_references_have(rng, parts):
    samples = []
    for number in (1, parts):
        reference = np.zeros((42, 12, 12), bool)
        for start in range(2, 2 + 8 * number, 8):
            reference[start : start + 6, 3:9, 3:9] = True
        probability = np.where(reference, 0.8, 0.2).astype(np.float32)
        reference[41, 11, 11] = True  # an island is no part
        samples.append(Sample(probability, reference, SPACING_MM))
    assert values(prior(samples))["largest"] == parts
    assert values(choose(samples).recipe)["largest"] == parts


def test_of_many_parts_those_far_smaller_than_the_smallest_are_strays(rng):
    samples, probability = [], np.full((42, 12, 12), 0.2, np.float32)
    for number in (2, 4):
        reference = np.zeros((42, 12, 12), bool)
        for start in range(2, 2 + 8 * number, 8):
            reference[start : start + 6, 3:9, 3:9] = True
        reference[5:8, 3:9, 3:9] = False  # the smallest part: 3 x 6 x 6 voxels
        samples.append(Sample(np.where(reference, 0.8, 0.2).astype(np.float32), reference, SPACING_MM))
    smallest_mm3 = 108 * np.prod(SPACING_MM)
    assert values(prior(samples))["small_clusters"] == pytest.approx(smallest_mm3 / 4)
    assert "largest" not in values(prior(samples))
    recipe = choose(samples).recipe
    for start in range(2, 42, 8):  # a part more than any reference has
        probability[start : start + 6, 3:9, 3:9] = 0.8
    probability[0, 0:4, 0:4] = 0.8
    found = postprocess.apply(probability, recipe, spacing_mm=SPACING_MM)
    assert postprocess.count_parts(found) == 5
    assert not found[0].any()


def test_a_cavity_is_filled(rng):
    samples = [sample(rng, hole=True)]
    choice = choose(samples)
    assert choice.recipe.steps
    filled = postprocess.apply(samples[0].probability, choice.recipe, spacing_mm=SPACING_MM)
    assert filled[5, 9, 9]


def test_the_recipe_has_no_step_of_value_0(rng):
    assert all(step.value > 0 for step in choose([sample(rng)]).recipe.steps)


def test_a_gain_too_small_to_mean_anything_changes_nothing(rng):
    samples = [sample(rng)]
    before = mean_dice(samples, RecipeConfig(choose(samples).recipe.cutoff, prior(samples).steps))
    chosen = values(choose(samples).recipe)
    changed = {step.name for step in prior(samples).steps if step.value > 0 and chosen.get(step.name) != step.value}
    assert not changed or choose(samples).dice > before + GAIN


def test_the_choice_is_never_worse_than_where_the_search_starts(rng):
    for _ in range(3):
        samples = [sample(rng, clutter=rng.uniform(0, 1), hole=True, high=0.6, low=0.45)]
        counts = count_voxels(samples)
        start = RecipeConfig(first_cutoff(counts, "dice", 0.99), tuple(s for s in prior(samples).steps if s.value > 0))
        assert choose(samples).dice >= mean_dice(samples, start)


def test_the_dice_reported_is_that_of_the_recipe(rng):
    samples = [sample(rng, clutter=0.9), sample(rng, hole=True)]
    choice = choose(samples)
    scores = [
        metrics.dice(postprocess.apply(s.probability, choice.recipe, spacing_mm=SPACING_MM), s.reference)
        for s in samples
    ]
    assert choice.dice == pytest.approx(np.mean(scores))
    assert choice.raw_dice == pytest.approx(
        mean_dice(samples, RecipeConfig(first_cutoff(count_voxels(samples), "dice", 0), ()))
    )


@pytest.mark.parametrize(
    ("method", "oracle"),
    [
        ("dice", metrics.best_dice),
        ("youden", metrics.youden),
        ("specificity", lambda counts: metrics.at_specificity(counts, 0.9)),
    ],
)
def test_the_first_cutoff_is_that_of_the_roc(rng, method, oracle):
    counts = count_voxels([sample(rng, high=0.52, low=0.48)])
    found = oracle(counts)
    assert float(np.nextafter(np.float16(found), np.float16(0))) < first_cutoff(counts, method, 0.9) < found


@pytest.mark.parametrize("method", ["dice", "youden", "specificity"])
@pytest.mark.parametrize("high", [0.97884, 0.9999])
def test_a_cutoff_parts_values_between_two_of_float16_as_they_were_counted(method, high):
    """0.97884 is nearest to the float16 0.979004, which is above it; 0.9999 to 1."""
    reference = np.zeros((6, 6, 6), bool)
    reference[1:5, 1:5, 1:5] = True
    one = Sample(np.where(reference, np.float32(high), np.float32(0.1)), reference, SPACING_MM)
    assert choose([one], method=method, specificity=0.99).raw_dice == 1.0


def test_a_case_without_bone_in_mask_and_reference_does_not_end_the_choice(rng):
    empty = Sample(np.full((24, 20, 20), 0.01, np.float32), np.zeros((24, 20, 20), bool), SPACING_MM)
    assert choose([sample(rng, clutter=0.95), empty]).dice > 0.95
    assert np.isnan(mean_dice([empty], RecipeConfig(0.5, ())))


@pytest.mark.parametrize("method", ["youden", "specificity"])
def test_only_largest_dice_moves_the_cutoff_again(rng, method):
    samples = [sample(rng, clutter=0.6, high=0.52, low=0.48)]
    choice = choose(samples, method=method, specificity=0.9)
    assert choice.recipe.cutoff == first_cutoff(count_voxels(samples), method, 0.9)


def test_every_step_of_the_prior_can_be_left_out(rng):
    assert all(0 in CANDIDATES[step.name] for step in prior([sample(rng)]).steps)
    assert all(Step(name, value) for name, found in CANDIDATES.items() for value in found)


def test_voxels_of_all_samples_count(rng):
    counts = count_voxels([sample(rng), sample(rng)])
    assert (counts.positives.sum(), counts.negatives.sum()) == (2 * 2016, 2 * (24 * 20 * 20 - 2016))


def test_an_unreachable_specificity_is_refused(rng):
    with pytest.raises(ValueError, match="expected a specificity of at most 1"):
        choose([sample(rng)], method="specificity", specificity=1.5)


def test_cases_without_bone_are_refused(rng):
    empty = Sample(np.full((4, 4, 4), 0.5, np.float32), np.zeros((4, 4, 4), bool), SPACING_MM)
    with pytest.raises(ValueError, match="expected voxels of bone and of background"):
        choose([empty])
