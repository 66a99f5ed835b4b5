from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from workers.training.losses import NonFiniteEmbeddingsError, NTXentLoss, NTXentResult

FEW_EXAMPLES = settings(max_examples=40, deadline=None)


def on_circle(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Six unit vectors with three, two and one of a label."""
    angles = torch.deg2rad(torch.tensor([0, 10, 20, 50, 60, 80], dtype=torch.float64))
    embeddings = torch.stack([angles.cos(), angles.sin()], dim=1).to(dtype)
    return embeddings.requires_grad_(), torch.tensor([0, 0, 0, 1, 1, 2])


def random_batch(seed: int, n: int = 12, d: int = 5, labels: int = 4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    embeddings = torch.randn(n, d, generator=generator, dtype=torch.float64)
    return embeddings.requires_grad_(), torch.randint(labels, (n,), generator=generator)


def pair_terms(embeddings: Tensor, labels: Tensor, temperature: float) -> dict[tuple[int, int], float]:
    """The definition, pair by pair, with Python's floats."""
    rows, names = embeddings.tolist(), labels.tolist()

    def similarity(i: int, j: int) -> float:
        dot = sum(a * b for a, b in zip(rows[i], rows[j], strict=True))
        return dot / (math.hypot(*rows[i]) * math.hypot(*rows[j])) / temperature

    terms = {}
    for i in range(len(rows)):
        negatives = [math.exp(similarity(i, n)) for n in range(len(rows)) if names[n] != names[i]]
        for p in range(len(rows)):
            if p != i and names[p] == names[i]:
                positive = math.exp(similarity(i, p))
                terms[i, p] = -math.log(positive / (positive + sum(negatives)))
    return terms


def supcon(embeddings: Tensor, labels: Tensor, temperature: float) -> float:
    """Khosla et al. 2020, L_out: every other row in the denominator, averaged over anchors with positives."""
    z = (embeddings / embeddings.norm(dim=1, keepdim=True)).detach()
    s = z @ z.T / temperature
    anchors = []
    for i in range(len(z)):
        others = [j for j in range(len(z)) if j != i]
        log_total = torch.logsumexp(s[i, others], dim=0)
        terms = [log_total - s[i, j] for j in others if labels[j] == labels[i]]
        if terms:
            anchors.append(sum(terms) / len(terms))
    return float(sum(anchors) / len(anchors))


# Reference values


def test_known_value_and_gradient_on_the_circle():
    embeddings, labels = on_circle()
    value = NTXentLoss(temperature=0.1)(embeddings, labels)
    value.backward()
    assert value.item() == pytest.approx(0.298143100644, abs=1e-12)
    assert embeddings.grad.norm().item() == pytest.approx(1.2827954301, abs=1e-10)


def test_the_oracles_know_the_published_values_of_their_own():
    embeddings, labels = on_circle()
    by_anchor: dict[int, list[float]] = {}
    for (anchor, _), term in pair_terms(embeddings, labels, 0.1).items():
        by_anchor.setdefault(anchor, []).append(term)
    per_anchor = [sum(terms) / len(terms) for terms in by_anchor.values()]
    assert sum(per_anchor) / len(per_anchor) == pytest.approx(0.352942415717, abs=1e-12)
    assert supcon(embeddings, labels, 0.1) == pytest.approx(0.720060445082, abs=1e-12)


def test_with_two_rows_a_label_it_is_supcon():
    torch.manual_seed(0)
    embeddings, labels = torch.randn(6, 100, dtype=torch.float64), torch.tensor([0, 1, 0, 3, 3, 1])
    value = NTXentLoss()(embeddings, labels).item()
    assert value == pytest.approx(3.143318995067249, abs=1e-14)
    assert value == pytest.approx(supcon(embeddings, labels, 0.07), abs=1e-13)


@pytest.mark.parametrize("temperature", [0.01, 0.07, 1.0])
@pytest.mark.parametrize("n", [1, 2, 7])
def test_views_that_all_point_one_way_cost_log_of_2n_minus_1(n, temperature):
    embeddings = torch.tensor([[3.0, 4.0]], dtype=torch.float64).repeat(2 * n, 1)
    value = NTXentLoss(temperature)(embeddings, torch.arange(n).repeat(2))
    assert value.item() == pytest.approx(math.log(2 * n - 1), abs=1e-12)


@pytest.mark.parametrize("temperature", [0.05, 0.07, 0.5])
@pytest.mark.parametrize("seed", range(5))
def test_equals_the_definition_pair_by_pair(seed, temperature):
    embeddings, labels = random_batch(seed)
    terms = pair_terms(embeddings, labels, temperature)
    value = NTXentLoss(temperature)(embeddings, labels)
    assert value.item() == pytest.approx(sum(terms.values()) / len(terms), abs=1e-12)


def test_other_positives_are_not_in_the_denominator():
    # Three equal rows and a negative at a right angle: each pair costs as if there were no third.
    loss = NTXentLoss(temperature=1.0)
    rows = torch.tensor([[1.0, 0, 0], [1, 0, 0], [1, 0, 0], [0, 0, 1]], dtype=torch.float64)
    assert loss(rows, torch.tensor([0, 0, 0, 1])).item() == pytest.approx(math.log1p(math.exp(-1)), abs=1e-12)


def test_gradient_is_that_of_the_value():
    embeddings, labels = random_batch(seed=3, n=8)
    assert torch.autograd.gradcheck(NTXentLoss(temperature=0.2), (embeddings, labels))
    assert torch.autograd.gradgradcheck(NTXentLoss(temperature=0.5), (embeddings, labels))


# What must not matter


@FEW_EXAMPLES
@given(seed=st.integers(0, 10_000), exponents=st.lists(st.integers(-8, 25), min_size=12, max_size=12))
def test_scaling_rows_changes_nothing(seed, exponents):
    embeddings, labels = random_batch(seed)
    scales = torch.tensor([10.0**exponent for exponent in exponents], dtype=torch.float64)[:, None]
    scaled = (embeddings * scales).float()
    value = NTXentLoss()(scaled, labels).item()
    assert value == pytest.approx(NTXentLoss()(embeddings, labels).item(), rel=1e-5, abs=1e-5)


@FEW_EXAMPLES
@given(seed=st.integers(0, 10_000), order=st.permutations(range(12)))
def test_the_order_of_rows_changes_nothing(seed, order):
    embeddings, labels = random_batch(seed)
    value = NTXentLoss()(embeddings, labels).item()
    assert NTXentLoss()(embeddings[order], labels[order]).item() == pytest.approx(value, abs=1e-12)


@FEW_EXAMPLES
@given(
    seed=st.integers(0, 10_000),
    names=st.lists(st.integers(-(2**63), 2**63 - 1), min_size=4, max_size=4, unique=True),
)
def test_only_equality_of_labels_matters(seed, names):
    embeddings, labels = random_batch(seed)
    renamed = torch.tensor(names)[labels]
    assert NTXentLoss()(embeddings, renamed).item() == NTXentLoss()(embeddings, labels).item()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32])
def test_any_integer_type_labels(dtype):
    embeddings, labels = on_circle()
    assert NTXentLoss()(embeddings, labels.to(dtype)).item() == NTXentLoss()(embeddings, labels).item()


def test_labels_may_be_one_object_used_twice():
    embeddings, labels = random_batch(seed=1)
    before = labels.clone()
    NTXentLoss()(embeddings, labels)
    assert torch.equal(labels, before)


# Precision


@pytest.mark.parametrize("temperature", [0.02, 0.07])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_input_keeps_the_gradient(dtype, temperature):
    half = torch.randn(16, 32, generator=torch.Generator().manual_seed(0)).to(dtype).requires_grad_()
    exact = half.detach().double().requires_grad_()
    labels = torch.arange(8).repeat(2)
    value = NTXentLoss(temperature)(half, labels)
    value.backward()
    NTXentLoss(temperature)(exact, labels).backward()
    assert value.dtype == torch.float32
    # The gradient is handed back in the input's own type, whose rounding is all that may be lost.
    rounding = torch.finfo(dtype).eps
    assert (half.grad.double() - exact.grad).norm() < rounding * exact.grad.norm()


def test_autocast_does_not_reach_inside():
    embeddings = torch.randn(16, 32, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(8).repeat(2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = NTXentLoss()(embeddings, labels)
    assert torch.equal(inside, NTXentLoss()(embeddings, labels))


@pytest.mark.parametrize("temperature", [0.005, 0.01, 0.02])
def test_hard_positives_at_low_temperature(temperature):
    # A positive at cosine −1, a negative at 1: logits 2/τ apart, more than exp can hold in float32.
    embeddings = torch.tensor([[1.0, 0], [-1, 0], [1, 0], [-1, 0]]).requires_grad_()
    value = NTXentLoss(temperature)(embeddings, torch.tensor([0, 0, 1, 1]))
    value.backward()
    assert value.item() == pytest.approx(2 / temperature, rel=1e-6)
    assert embeddings.grad.isfinite().all()


def test_easy_positives_keep_their_tiny_loss():
    embeddings = torch.tensor([[1.0, 0], [1, 0], [-1, 0], [-1, 0]])
    value = NTXentLoss(temperature=0.05)(embeddings, torch.tensor([0, 0, 1, 1]))
    assert value.item() == pytest.approx(math.log1p(2 * math.exp(-40)), rel=1e-5)


@pytest.mark.parametrize("temperature", [0.01, 0.02, 0.07])
def test_orthogonal_and_antipodal_classes_have_finite_gradients(temperature):
    axes = torch.eye(4).repeat_interleave(2, dim=0)
    for embeddings in (axes, torch.cat([axes, -axes])):
        leaf = embeddings.clone().requires_grad_()
        NTXentLoss(temperature)(leaf, torch.arange(len(leaf) // 2).repeat_interleave(2)).backward()
        assert leaf.grad.isfinite().all()


# Edges


def test_one_positive_and_one_negative_pair_are_enough():
    rows = torch.tensor([[1.0, 0], [0, 1], [-1, 0]], dtype=torch.float64)
    value = NTXentLoss(temperature=1.0)(rows, torch.tensor([0, 0, 1]))
    expected = (math.log1p(math.exp(-1)) + math.log1p(math.exp(0))) / 2
    assert value.item() == pytest.approx(expected, abs=1e-12)


def without_gradient(result: NTXentResult, embeddings: Tensor) -> bool:
    result.value.backward()
    return result.value.item() == 0 and bool((embeddings.grad == 0).all())


def test_without_positives_it_is_zero_and_says_so():
    embeddings, _ = on_circle()
    result = NTXentLoss().with_statistics(embeddings, torch.arange(6))
    assert without_gradient(result, embeddings)
    assert (result.pairs, result.anchors_without_positives, result.anchors_without_negatives) == (0, 6, 0)
    assert result.positive_cosine is None
    assert result.negative_cosine is not None


def test_with_one_label_it_is_zero_and_says_so():
    embeddings, _ = on_circle()
    result = NTXentLoss().with_statistics(embeddings, torch.zeros(6, dtype=torch.long))
    assert without_gradient(result, embeddings)
    assert (result.pairs, result.anchors_without_positives, result.anchors_without_negatives) == (30, 0, 6)
    assert result.negative_cosine is None


@pytest.mark.parametrize("n", [0, 1])
def test_fewer_than_two_rows_make_no_pair(n):
    embeddings = torch.ones(n, 3, requires_grad=True)
    result = NTXentLoss().with_statistics(embeddings, torch.zeros(n, dtype=torch.long))
    assert without_gradient(result, embeddings)
    assert result.pairs == 0


def test_a_row_of_zeros_is_counted_and_takes_no_gradient():
    embeddings, labels = on_circle(torch.float32)
    with torch.no_grad():
        embeddings[1] = 0
    result = NTXentLoss().with_statistics(embeddings, labels)
    result.value.backward()
    assert result.rows_without_direction == 1
    assert (embeddings.grad[1] == 0).all()
    assert embeddings.grad.isfinite().all()
    assert embeddings.grad.norm() > 0


def test_entries_that_overflow_when_squared_keep_their_direction():
    embeddings, labels = on_circle(torch.float32)
    huge = NTXentLoss().with_statistics(embeddings * 1e37, labels)
    assert huge.rows_without_direction == 0
    assert huge.value.item() == pytest.approx(NTXentLoss()(embeddings, labels).item(), rel=1e-5)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_non_finite_rows_are_named(bad):
    embeddings, labels = on_circle()
    with torch.no_grad():
        embeddings[1, 0] = bad
        embeddings[4, 1] = bad
    with pytest.raises(NonFiniteEmbeddingsError, match="row 1, 4") as caught:
        NTXentLoss()(embeddings, labels)
    assert caught.value.rows == [1, 4]


def test_a_long_list_of_non_finite_rows_is_cut():
    with pytest.raises(NonFiniteEmbeddingsError, match="0, 1, 2, 3, 4, 5, 6, 7 and 12 more"):
        NTXentLoss()(torch.full((20, 2), math.nan), torch.arange(20))


@pytest.mark.parametrize("temperature", [0.0, -0.07, math.nan, math.inf])
def test_refuses_a_temperature_that_is_not_positive(temperature):
    with pytest.raises(ValueError, match="temperature"):
        NTXentLoss(temperature)


@pytest.mark.parametrize("eps", [-1e-9, math.nan, math.inf])
def test_refuses_a_negative_eps(eps):
    with pytest.raises(ValueError, match="eps"):
        NTXentLoss(eps=eps)


@pytest.mark.parametrize("labels", [torch.zeros(5), torch.zeros(6, 1), torch.tensor(0)])
def test_refuses_labels_of_another_shape(labels):
    with pytest.raises(ValueError, match=r"labels must have shape \(6,\)"):
        NTXentLoss()(torch.ones(6, 2), labels.long())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bool, torch.complex64])
def test_refuses_labels_that_are_not_integers(dtype):
    with pytest.raises(TypeError, match="labels must be integers"):
        NTXentLoss()(torch.ones(6, 2), torch.zeros(6, dtype=dtype))


@pytest.mark.parametrize("shape", [(6,), (6, 2, 2), (6, 0)])
def test_refuses_embeddings_that_are_no_table(shape):
    with pytest.raises(ValueError, match="embeddings must have shape"):
        NTXentLoss()(torch.ones(shape), torch.zeros(6, dtype=torch.long))


def test_refuses_integer_embeddings():
    with pytest.raises(TypeError, match="floating point"):
        NTXentLoss()(torch.ones(6, 2, dtype=torch.long), torch.zeros(6, dtype=torch.long))


# Statistics


@FEW_EXAMPLES
@given(seed=st.integers(0, 10_000), labels=st.integers(1, 12))
def test_statistics_are_those_of_the_pairs(seed, labels):
    embeddings, names = random_batch(seed, labels=labels)
    result = NTXentLoss(temperature=0.3).with_statistics(embeddings, names)
    alike = names[:, None] == names[None, :]
    positive = alike & ~torch.eye(len(names), dtype=torch.bool)
    cosines = torch.nn.functional.cosine_similarity(embeddings[:, None], embeddings[None, :], dim=2)
    assert result.pairs == positive.sum()
    assert result.anchors_without_positives == (~positive.any(dim=1)).sum()
    assert result.anchors_without_negatives == alike.all(dim=1).sum()
    assert result.temperature == 0.3
    for mean, chosen in ((result.positive_cosine, positive), (result.negative_cosine, ~alike)):
        assert mean == (pytest.approx(cosines[chosen].mean().item(), abs=1e-12) if chosen.any() else None)


def test_both_call_forms_agree_to_the_bit():
    embeddings, labels = random_batch(seed=2)
    with_statistics = NTXentLoss().with_statistics(embeddings, labels).value
    plain = NTXentLoss()(embeddings, labels)
    assert torch.equal(plain, with_statistics)
    (first,) = torch.autograd.grad(plain, embeddings)
    (second,) = torch.autograd.grad(with_statistics, embeddings)
    assert torch.equal(first, second)


def test_its_repr_names_the_temperature():
    assert repr(NTXentLoss(0.05)) == "NTXentLoss(temperature=0.05, eps=1e-12)"
