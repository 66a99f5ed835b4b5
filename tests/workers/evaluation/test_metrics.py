"""Metrics against slow words of their definitions, and against scikit-learn."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.cluster import KMeans
from sklearn.metrics import normalized_mutual_info_score, roc_auc_score
from sklearn.neighbors import KNeighborsClassifier

from workers.evaluation import bootstrap, labels, retrieval, separation
from workers.evaluation.questions import Questions

RNG = np.random.default_rng(0)


def unit(n: int, d: int = 6) -> np.ndarray:
    vectors = RNG.normal(size=(n, d)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def questions(answers: list[list[int]], documents: int, itself: list[int] | None = None, **more) -> Questions:
    n = len(answers)
    return Questions(
        queries=np.arange(n),
        documents=np.arange(documents),
        distractors=np.arange(0),
        asking=np.repeat(np.arange(n), [len(each) for each in answers]),
        answers=np.concatenate([np.array(each) for each in answers]),
        itself=np.array(itself or [-1] * n),
        groups=np.arange(n),
        rows=np.arange(n),
        labels=more.get("labels"),
    )


def ranked(scores: np.ndarray, right: list[int], itself: int) -> list[bool]:
    """Whether each document, best first, is right."""
    order = sorted((document for document in range(len(scores)) if document != itself), key=lambda d: -scores[d])
    return [document in right for document in order]


def test_retrieval_is_what_its_definitions_say() -> None:
    answers = [[0], [1, 5], [2, 3, 4], list(range(6, 30))]
    itself = [-1, 0, 7, 31]
    asked = questions(answers, 40, itself)
    queries, documents = unit(4), unit(40)
    found = retrieval.places(queries, documents, asked)
    lists = [ranked(queries[q] @ documents.T, answers[q], itself[q]) for q in range(4)]

    for k in (1, 5, 10):
        expected = [sum(each[:k]) / sum(each) for each in lists]
        assert retrieval.recall(found, asked, k) == pytest.approx(expected)
    assert retrieval.reciprocal_rank(found, asked) == pytest.approx([1 / (each.index(True) + 1) for each in lists])
    gains = [sum(hit / math.log2(place + 2) for place, hit in enumerate(each[:10])) for each in lists]
    ideal = [sum(1 / math.log2(place + 2) for place in range(min(10, sum(each)))) for each in lists]
    assert retrieval.ndcg(found, asked) == pytest.approx(np.array(gains) / np.array(ideal))
    precisions = []
    for each in lists:
        r = sum(each)
        precisions.append(sum(sum(each[: i + 1]) / (i + 1) for i in range(r) if each[i]) / r)
    assert retrieval.average_precision_at_r(found, asked) == pytest.approx(precisions)


def test_an_encoder_that_gives_all_texts_one_vector_finds_nothing() -> None:
    asked = questions([[0], [1]], 50)
    same = np.ones((50, 4), dtype=np.float32) / 2

    assert retrieval.places(same[:2], same, asked).tolist() == [50, 50]


def test_many_queries_are_searched_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = questions([[index] for index in range(30)], 30)
    queries, documents = unit(30), unit(30)
    at_once = retrieval.places(queries, documents, asked)
    monkeypatch.setattr(retrieval, "_BLOCK", 100)

    assert retrieval.places(queries, documents, asked).tolist() == at_once.tolist()


def test_auc_is_scikit_learns() -> None:
    right, wrong = RNG.normal(1, 1, 200).round(1), RNG.normal(0, 1, 300).round(1)
    expected = roc_auc_score([1] * 200 + [0] * 300, np.concatenate([right, wrong]))

    assert separation.chances(right, wrong).mean() == pytest.approx(expected)


def test_wrong_pairs_are_never_right_ones_nor_a_text_with_itself() -> None:
    asked = questions([[0, 1], [2], [3]], 5, [2, 0, -1])
    pairs = separation.drawn_pairs(asked, seed=0)

    right = set(zip(asked.asking.tolist(), asked.answers.tolist(), strict=True))
    wrong = set(map(tuple, pairs.wrong.tolist()))
    assert wrong
    assert not wrong & (right | {(0, 2), (1, 0)})


def test_neighbours_are_scikit_learns() -> None:
    centres = unit(4) * 3
    numbers = np.repeat(np.arange(4), 15).astype(np.int32)
    vectors = (centres[numbers] + RNG.normal(size=(60, 6))).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    everything = [[other for other in range(60) if other != i and numbers[other] == numbers[i]] for i in range(60)]
    asked = questions(everything, 60, list(range(60)), labels=numbers)

    theirs = []
    for i in range(60):
        others = np.delete(np.arange(60), i)
        model = KNeighborsClassifier(labels.K, weights=lambda d: 1 + (1 - d**2 / 2) / (4 * labels.K))
        theirs.append(model.fit(vectors[others], numbers[others]).predict(vectors[[i]])[0] == numbers[i])
    assert labels.neighbours_agree(vectors, asked).astype(bool).tolist() == theirs


def test_clusters_and_their_information_are_scikit_learns() -> None:
    numbers = np.repeat(np.arange(4), 15)
    vectors = (np.eye(6)[numbers] + RNG.normal(scale=0.2, size=(60, 6))).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)

    ours = labels.clusters(vectors, 4, seed=0)
    sklearns = KMeans(4, n_init=10, random_state=0).fit(vectors).labels_
    assert normalized_mutual_info_score(ours, sklearns) == pytest.approx(1.0)
    shuffled = RNG.permutation(ours)
    for assigned in (ours, shuffled):
        expected = normalized_mutual_info_score(numbers, assigned)
        assert labels.mutual_information(numbers, assigned) == pytest.approx(expected)


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    rng = np.random.default_rng(1)
    covered = 0
    for seed in range(200):
        differences = rng.normal(0.1, 1.0, 60)
        low, high = bootstrap.of_means(differences, np.arange(60), seed=seed)
        covered += low <= 0.1 <= high
    assert 0.88 <= covered / 200 <= 0.99


def test_a_mean_has_the_same_interval_by_how_often_each_example_is_drawn() -> None:
    rng = np.random.default_rng(3)
    differences, groups = rng.normal(size=50), rng.integers(12, size=50)

    weighted = bootstrap.of_weighted(lambda times: float((times * differences).sum() / times.sum()), groups, seed=4)

    assert weighted == pytest.approx(bootstrap.of_means(differences, groups, seed=4))


def test_examples_of_one_group_count_as_one() -> None:
    differences = np.repeat(np.random.default_rng(2).normal(size=20), 10)
    alone = bootstrap.of_means(differences, np.arange(200), seed=0)
    grouped = bootstrap.of_means(differences, np.repeat(np.arange(20), 10), seed=0)

    assert grouped.high - grouped.low > 2 * (alone.high - alone.low)
