"""Measures in closed form: cosines, the dynamic degree's rule, intervals that cover what they say."""

import numpy as np
import pytest

from videomaker.evaluation import metrics
from videomaker.evaluation.intervals import estimate, mean_over_subjects, paired_difference, widened_tail
from videomaker.evaluation.published import table, table_names


def test_cosines_of_known_angles():
    """At 0°, 60°, 90° and 180°, of any length; negative ones stay negative."""
    root = np.sqrt(3)
    embeddings = np.array([[2.0, 0.0], [1.0, root], [0.0, 5.0], [-3.0, 0.0]])
    np.testing.assert_allclose(metrics.cosines(embeddings, np.array([7.0, 0.0])), [1, 0.5, 0, -1], atol=1e-15)
    np.testing.assert_allclose(metrics.consecutive_cosines(embeddings), [0.5, root / 2, 0], atol=1e-15)
    np.testing.assert_array_equal(
        metrics.consecutive_cosines(np.ones((4, 3))), metrics.cosines(np.ones((3, 3)), np.ones(3))
    )


@pytest.mark.parametrize(
    ("pixels", "pairs", "moves"), [(11.9, 15, False), (12.1, 4, True), (12.1, 3, False), (12.0, 15, False)]
)
def test_dynamic_degree_at_its_thresholds(pixels, pairs, moves):
    """512×512: a pair moves above 12 px, a video of 16 frames with 4 of its 15 pairs."""
    flows = np.zeros(15)
    flows[:pairs] = pixels
    assert metrics.flow_threshold(512, 768) == 12.0
    assert metrics.is_dynamic(flows, height=512, width=768) is moves


def test_dynamic_degree_of_other_lengths():
    """round(4·N/16) pairs of N frames: 2 of 8 frames, 1 of few."""
    assert not metrics.is_dynamic(np.array([9.0, 0, 0, 0, 0, 0, 0]), height=256, width=256)
    assert metrics.is_dynamic(np.array([9.0, 0, 0, 0, 0, 0, 9.0]), height=256, width=256)
    assert metrics.is_dynamic(np.array([9.0]), height=256, width=256)
    assert not metrics.is_dynamic(np.array([0.0]), height=256, width=256)


def test_only_the_fastest_twentieth_counts():
    field = np.zeros((20, 50))
    field.ravel()[:50] = np.arange(50)
    assert metrics.top_flow(field) == np.arange(50).mean()
    assert metrics.top_flow(np.full((2, 2), 3.0)) == 3.0  # at least one pixel


@pytest.mark.parametrize(
    ("fps", "rate", "stride"), [(8, 8, 1), (11, 8, 1), (24, 8, 3), (5, 8, 1), (30, 8, 4), (24, 0, 1)]
)
def test_the_stride_goes_by_the_frame_rate(fps, rate, stride):
    assert metrics.flow_stride(fps, rate) == stride


def test_the_mean_is_of_subjects_not_of_videos():
    groups = {"a": [1.0, 1.0, 1.0], "b": [0.0]}
    assert mean_over_subjects(groups) == 0.5
    found = estimate(groups)
    assert (found.mean, found.count) == (0.5, 4)
    assert (found.low, found.high) == (0.0, 1.0)
    assert estimate({"b": [0.25, 0.25], "a": [0.25]}) == estimate({"a": [0.25], "b": [0.25, 0.25]})  # the order is none


def test_uneven_groups_resample_as_a_loop_would():
    """The vectorised draw against its words: subjects, then of each as many videos as it has."""
    groups = {"a": [0.1, 0.9, 0.4], "b": [0.3], "c": [0.8, 0.2]}
    rng = np.random.default_rng(5)
    values = list(groups.values())
    means = []
    for _ in range(4000):
        chosen = [values[index] for index in rng.integers(3, size=3)]
        means.append(np.mean([np.mean(rng.choice(of_one, len(of_one))) for of_one in chosen]))
    found = estimate(groups, resamples=4000)
    tail = widened_tail(0.025, 3)
    np.testing.assert_allclose([found.low, found.high], np.quantile(means, [tail, 1 - tail]), atol=0.03)


def test_few_subjects_widen_the_interval():
    """Of 16, Student's quantile is 2.1314 and √(16/15) 1.0328: Φ(-2.2013) = .01386; of many, nothing changes."""
    assert widened_tail(0.025, 16) == pytest.approx(0.01386, abs=5e-5)  # its series: t to .001
    assert widened_tail(0.025, 10**6) == pytest.approx(0.025, abs=1e-6)
    assert widened_tail(0.025, 1) == 0.025


def test_the_interval_covers_what_it_says():
    """16 subjects of 25 videos, as in the paper; subjects differ as much as their videos. 95 % ± 2 %.

    Videos taken as independent would cover far less.
    """
    rng = np.random.default_rng(1)
    worlds, inside, naive = 1500, 0, 0
    for world in range(worlds):
        subjects = rng.normal(0.7, 0.1, size=(16, 1))
        videos = subjects + rng.normal(0, 0.1, size=(16, 25))
        found = estimate({str(i): row for i, row in enumerate(videos)}, resamples=400, seed=world)
        inside += found.low <= 0.7 <= found.high
        half = 1.96 * videos.std(ddof=1) / np.sqrt(videos.size)
        naive += abs(videos.mean() - 0.7) <= half
    assert 0.93 <= inside / worlds <= 0.97
    assert naive / worlds < 0.6


def test_paired_differences_see_what_unpaired_ones_do_not():
    rng = np.random.default_rng(0)
    ours = {
        s: {str(v): rng.normal(subject, 0.3) for v in range(10)}
        for s, subject in zip("abcd", rng.normal(0, 1, 4), strict=True)
    }
    others = {s: {v: value - 0.05 for v, value in videos.items()} for s, videos in ours.items()}
    found = paired_difference(ours, others)
    assert found.low == pytest.approx(0.05) == found.high
    alone = estimate({s: list(videos.values()) for s, videos in ours.items()})
    assert alone.high - alone.low > 0.2
    del others["a"]["3"], others["b"]
    assert paired_difference(ours, others).count == 29
    assert paired_difference(ours, {"z": {"1": 0.0}}) is None


def test_the_papers_tables_are_held_and_marked():
    assert table_names() == ["people", "people-unseen", "objects"]
    rows = {row["method"]: row["metrics"] for row in table("people")["rows"]}
    assert rows["VideoMaker"] == {
        "clip_t": 0.2586, "face": 0.8047, "clip_i": 0.8285, "dino_i": 0.7119, "t_cons": 0.9818, "dd": 0.3725,
    }  # fmt: skip
    assert "2412.19645" in table("objects")["source"] and "face" not in table("objects")["rows"][0]["metrics"]
    with pytest.raises(ValueError, match="choose from people, people-unseen, objects"):
        table("ablation")
