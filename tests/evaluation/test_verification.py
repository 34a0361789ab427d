"""Verification: LFW's protocol to the letter, rates as scikit-learn has them, every pair accounted for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score, roc_curve
from sklearn.model_selection import LeaveOneGroupOut

from facerec.errors import SourceError
from facerec.evaluation import pairs as pairs_module
from facerec.evaluation.pairs import Pairs, Photograph, all_pairs, given_pairs, hardest, locate, read_pairs
from facerec.evaluation.verification import bootstrap, fold_accuracy, verify

PEOPLE = np.repeat([f"person {i}" for i in range(20)], 8)


def test_an_ideal_embedder_verifies_perfectly() -> None:
    result = verify(all_pairs(np.repeat(np.eye(20), 8, axis=0), PEOPLE, 0), 50, 0)
    assert (result["genuine_pairs"], result["impostor_pairs"]) == (20 * 28, 190 * 64)
    assert result["accuracy"]["mean"] == result["area_under_roc"] == 1.0
    assert result["equal_error_rate"] == 0.0
    assert result["equal_error_interval"] == [0.0, 0.0]
    supported = [row for row in result["true_accepts"] if row["tar"] is not None]
    assert [row["far"] for row in supported] == [1e-1, 1e-2, 1e-3]
    assert all(row["tar"] == 1.0 and row["interval"] == [1.0, 1.0] for row in supported)
    assert "at least 100000 are needed" in result["true_accepts"][3]["refused"]


def test_a_random_embedder_verifies_by_chance_within_its_intervals() -> None:
    vectors = np.random.default_rng(4).normal(size=(160, 64))
    result = verify(all_pairs(vectors, PEOPLE, 0), 100, 0)
    low, high = result["accuracy"]["interval"]
    assert low <= 0.5 <= high
    assert result["equal_error_interval"][0] <= 0.5 <= result["equal_error_interval"][1]
    for row in result["true_accepts"][:3]:
        assert row["interval"][0] <= row["far"] <= row["interval"][1]


def test_the_curve_is_scikit_learns_also_with_ties_and_photographs_without_a_face() -> None:
    rng = np.random.default_rng(5)
    same = rng.random(3000) < 0.3
    distances = np.round(rng.normal(np.where(same, 1.0, 1.6), 0.4), 2).clip(0)
    distances[::50] = np.inf
    left = np.arange(3000) % 60
    pairs = Pairs(
        left, np.where(same, left, (left + 1) % 60), np.arange(3000) // 600, distances, (left, left)
    )
    result = verify(pairs, 20, 0)
    oracle = np.where(np.isinf(distances), 99.0, distances)
    fars, tars, _ = roc_curve(same, -oracle, drop_intermediate=False)
    assert abs(result["area_under_roc"] - roc_auc_score(same, -oracle)) < 1e-9
    for row in result["roc"]:
        assert abs(row["tar"] - tars[fars <= row["far"] + 1e-12].max()) < 1e-9
    assert result["genuine_without_face"] + result["impostor_without_face"] == 60
    assert result["genuine_pairs"] + result["impostor_pairs"] == 3000
    assert sum(result["histogram"]["genuine"]) == same.sum() - result["genuine_without_face"]


def test_the_threshold_of_a_fold_comes_from_the_others() -> None:
    rng = np.random.default_rng(6)
    same, folds = np.tile([True, False], 300), np.repeat(np.arange(6), 100)
    distances = rng.normal(np.where(same, 1.0, 1.5), 0.4)
    values = []
    for others, inside in LeaveOneGroupOut().split(distances, same, folds):
        cuts = np.unique(np.r_[distances, 9])
        right = [np.mean((distances[others] < cut) == same[others]) for cut in cuts]
        best = [
            np.mean((distances[inside] < cut) == same[inside])
            for cut, share in zip(cuts, right, strict=True)
            if share == max(right)
        ]
        values.append((min(best), max(best)))
    result = fold_accuracy(distances, same, folds)
    accuracies = np.array([row["accuracy"] for row in result["folds"]])
    for accuracy, (low, high) in zip(accuracies, values, strict=True):
        assert low - 0.02 <= accuracy <= high + 0.02
    assert abs(result["mean"] - accuracies.mean()) < 1e-9
    assert abs(result["standard_error"] - accuracies.std(ddof=1) / np.sqrt(6)) < 1e-9


def test_a_threshold_chosen_on_the_scored_fold_would_show() -> None:
    """Two folds on scales of their own: each is told apart perfectly by its own threshold, and by chance by the other's."""
    same, folds = np.tile([True, False], 20), np.repeat([0, 1], 20)
    distances = np.where(folds == 0, np.where(same, 0.1, 0.2), np.where(same, 1.1, 1.2))
    assert fold_accuracy(distances, same, folds)["mean"] == 0.5


def test_one_fold_has_no_others_and_is_refused() -> None:
    same = np.tile([True, False], 20)
    assert (
        "threshold must come from others"
        in fold_accuracy(np.where(same, 0.1, 1), same, np.zeros(40))["refused"]
    )


def test_the_bootstrap_draws_people_not_pairs() -> None:
    """One person of ten has all the wrong pairs. Drawing pairs would say 0.1 within a hair; drawing people cannot."""
    left = np.repeat(np.arange(10), 100)
    genuine = Pairs(left, left, np.full(1000, -1), np.where(left == 0, 3.0, 0.0), (left, left))
    other = Pairs(left, (left + 1) % 10, np.full(1000, -1), np.full(1000, 2.0), (left, left))
    both = Pairs(
        *(
            np.concatenate([getattr(genuine, f), getattr(other, f)])
            for f in ("left", "right", "fold", "distances")
        ),
        rows=(np.tile(left, 2), np.tile(left, 2)),
    )
    _, (interval,), used = bootstrap(both, [0.1], 400, 0)
    assert used > 390
    # The person is drawn k times of ten with binomial chances; 1 - k/10 at the 2.5th and 97.5th percentile.
    assert interval == [pytest.approx(0.7), pytest.approx(1.0)]


def test_folds_of_all_pairs_share_no_person_and_are_balanced() -> None:
    pairs = all_pairs(np.random.default_rng(0).normal(size=(160, 4)), PEOPLE, 0)
    people = [set(pairs.left[pairs.fold == f]) | set(pairs.right[pairs.fold == f]) for f in range(10)]
    assert sum(map(len, people)) == len(set.union(*people)) == 20
    for fold in range(10):
        assert pairs.same[pairs.fold == fold].mean() == 0.5


def test_a_sample_of_the_faces_has_everybody_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pairs_module, "FACES", 60)
    pairs = all_pairs(np.random.default_rng(0).normal(size=(160, 4)), PEOPLE, 0)
    assert len(pairs.left) == 60 * 59 // 2
    assert np.bincount(pairs.left[pairs.same], minlength=20).tolist() == [3] * 20


LINES = ["2\t1", "Ada\t1\t2", "Ada\t1\tBo B\t3", "Bo B\t3\t1", "Bo B\t1\tAda\t2"]


def test_the_hardest_pairs_are_the_worst_ones_that_share_no_face() -> None:
    """On a line: Ada at 0, 1 and 9, Bob at 2 and 5. Face 2 is in Ada's two farthest pairs, and stands in one."""
    places = np.array([[0.0], [1.0], [9.0], [2.0], [5.0]], np.float32)
    names = ["Ada", "Ada", "Ada", "Bob", "Bob"]
    pairs = all_pairs(places, np.array(names), 0)
    found = hardest(pairs, list("abcde"), names)
    shown = {
        kind: [("".join(sorted(face["face_id"] for face in row["faces"])), row["distance"]) for row in rows]
        for kind, rows in found.items()
    }
    assert shown == {"genuine": [("ac", 81.0), ("de", 9.0)], "impostor": [("bd", 1.0), ("ce", 16.0)]}
    assert found["impostor"][0]["faces"][0]["identity"] == "Ada"


def test_lfws_format_is_read_and_every_pair_is_accounted_for(tmp_path: Path) -> None:
    (tmp_path / "pairs.txt").write_text("\n".join(LINES) + "\n")
    listed = read_pairs(str(tmp_path / "pairs.txt"))
    assert (listed.left[1], listed.right[1]) == (Photograph("Ada", 1), Photograph("Bo B", 3))
    assert listed.fold.tolist() == [0, 0, 1, 1]
    uris = ["/x/Ada/Ada_0001.jpg", "s3://b/Ada/Ada_0002.png", "/x/Bo B/Bo B_0003.jpg", "/x/Else/Ada_0001.jpg"]
    rows = locate({*listed.left, *listed.right}, uris, "embeddings")
    assert set(rows.values()) == {0, 1, 2}
    pairs = given_pairs(listed, rows, np.eye(4))
    assert pairs.same.tolist() == [True, False, True, False]
    assert pairs.distances.tolist() == [2.0, 2.0, np.inf, np.inf]


def test_a_failed_detection_is_called_two_people_and_counts() -> None:
    same, folds = np.tile([True, False], 20), np.repeat([0, 1], 20)
    distances = np.where(same, 0.1, 1.0)
    distances[[0, 1, 20, 21]] = np.inf
    result = fold_accuracy(distances, same, folds)
    assert [row["pairs"] for row in result["folds"]] == [20, 20]
    assert [row["accuracy"] for row in result["folds"]] == [0.95, 0.95]


@pytest.mark.parametrize(
    "lines, words",
    [
        ([], "line 1"),
        (["Ada\t1\t2"], "line 1"),
        (LINES[:-1], "says 2 folds of 1 . 1 pairs, which is 4 lines, and has 3"),
        ([*LINES[:2], "Ada\t1", *LINES[3:]], "line 3"),
        ([*LINES[:2], "Ada\tone\t2", *LINES[3:]], "line 3"),
        (None, "does not exist"),
    ],
)
def test_a_bad_pairs_file_is_one_line_that_says_where(
    tmp_path: Path, lines: list[str] | None, words: str
) -> None:
    if lines is not None:
        (tmp_path / "pairs.txt").write_text("\n".join(lines))
    with pytest.raises(SourceError, match=words) as caught:
        read_pairs(str(tmp_path / "pairs.txt"))
    assert "\n" not in str(caught.value)


def test_a_wrong_folder_is_no_failed_detection() -> None:
    with pytest.raises(SourceError, match=r"0 of the 1 photographs .* \(as Ada/Ada_0001.jpg\)"):
        locate({Photograph("Ada", 1)}, ["/x/Bo/Bo_0001.jpg"], "embeddings")


def test_a_photograph_with_two_faces_is_refused() -> None:
    with pytest.raises(SourceError, match="several faces"):
        locate({Photograph("Ada", 1)}, ["/x/Ada/Ada_0001.jpg"] * 2, "embeddings")


def test_the_official_pairs_are_all_read(photographs_of_people: Path) -> None:
    listed = read_pairs(str(photographs_of_people / "lfw_pairs_folds1-5.txt"))
    assert np.bincount(listed.fold).tolist() == [600] * 5
    same = np.array([a.name == b.name for a, b in zip(listed.left, listed.right, strict=True)])
    assert same.sum() == 1500
