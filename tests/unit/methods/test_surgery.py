import pytest
import torch
from torch import Tensor
from torchjd.aggregation import PCGrad

from unlearn.methods.surgery import clip_to_norm, project, project_reference

SHAPES = [(3, 4), (3, 4), (5,), (2, 2, 2), (6,), (6,)]
LAYERS = [7, 7, 2, 2, 7, 9]
GRANULARITIES = {
    "tensor": [[0], [1], [2], [3], [4], [5]],
    "layer": [[0, 1, 4], [2, 3], [5]],
    "network": [[0, 1, 2, 3, 4, 5]],
}


def gradients(seed: int, dtype: torch.dtype = torch.float64) -> tuple[list[Tensor], list[Tensor]]:
    """Two random lists; the second leans against the first, so that most tensors conflict."""
    generator = torch.Generator().manual_seed(seed)
    g_u = [torch.randn(shape, generator=generator, dtype=dtype) for shape in SHAPES]
    g_r = [torch.randn(shape, generator=generator, dtype=dtype) for shape in SHAPES]
    return g_u, [r - 0.1 * u for u, r in zip(g_u, g_r, strict=True)]


def joined(tensors: list[Tensor], group: list[int]) -> Tensor:
    return torch.cat([tensors[i].flatten() for i in group])


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_project_matches_a_plain_reference(granularity: str, seed: int) -> None:
    g_u, g_r = gradients(seed)
    projected, stats = project(g_u, g_r, strength=0.7, granularity=granularity, layers=LAYERS)
    groups = GRANULARITIES[granularity]
    conflicts, removed = 0, 0.0
    for group in groups:
        u, r = joined(g_u, group), joined(g_r, group)
        inner = float(u @ r)
        expected = u - 0.7 * inner / float(r @ r) * r if inner < 0 else u
        torch.testing.assert_close(joined(projected, group), expected)
        conflicts += inner < 0
        removed += float((u - expected).square().sum())
    u, r = joined(g_u, list(range(6))), joined(g_r, list(range(6)))
    assert stats.cosine.item() == pytest.approx(float(torch.cosine_similarity(u, r, dim=0)))
    assert stats.conflicting.item() == pytest.approx(conflicts / len(groups))
    assert stats.norm_removed.item() == pytest.approx(removed**0.5 / float(u.norm()))


def test_the_gradients_used_here_have_groups_of_both_kinds() -> None:
    for granularity in ("tensor", "layer"):
        shares = [
            project(*gradients(seed), granularity=granularity, layers=LAYERS)[1].conflicting
            for seed in range(4)
        ]
        assert any(0 < share < 1 for share in shares)
    assert any(project(*gradients(s), granularity="network")[1].conflicting for s in range(4))


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_full_strength_leaves_no_conflict_and_is_idempotent(granularity: str) -> None:
    g_u, g_r = gradients(0)
    kwargs = {"granularity": granularity, "layers": LAYERS}
    projected, stats = project(g_u, g_r, **kwargs)
    assert stats.conflicting > 0
    for group in GRANULARITIES[granularity]:
        assert joined(projected, group) @ joined(g_r, group) > -1e-12
    torch.testing.assert_close(project(projected, g_r, **kwargs)[0], projected)


def test_groups_without_conflict_are_returned_unchanged() -> None:
    g_u, g_r = gradients(1)
    projected, _ = project(g_u, g_r)
    agreeing = [i for i in range(6) if (g_u[i] * g_r[i]).sum() >= 0]
    assert 0 < len(agreeing) < 6
    for i in range(6):
        assert torch.equal(projected[i], g_u[i]) == (i in agreeing)


def test_strength_zero_removes_nothing_and_inputs_are_left_alone() -> None:
    g_u, g_r = gradients(0)
    copies = [x.clone() for x in (*g_u, *g_r)]
    projected, stats = project(g_u, g_r, strength=0.0)
    project(g_u, g_r)
    assert all(torch.equal(p, u) for p, u in zip(projected, g_u, strict=True))
    assert all(torch.equal(x, c) for x, c in zip((*g_u, *g_r), copies, strict=True))
    assert stats.norm_removed == 0
    assert stats.conflicting > 0


@pytest.mark.parametrize("seed", range(6))
def test_project_matches_torchjd(seed: int) -> None:
    """PCGrad of two rows is P(u|r) + P(r|u). P(u|r) does not see r's scale and P(r|u) is linear
    in it, so 2 PCGrad(u, r) - PCGrad(u, 2r) = P(u|r)."""
    generator = torch.Generator().manual_seed(seed)
    u, r = torch.randn(2, 5, generator=generator, dtype=torch.float64).unbind()
    r = r - u * (seed % 2)
    (projected,), _ = project([u], [r])
    pcgrad = PCGrad()
    alone = 2 * pcgrad(torch.stack([u, r])) - pcgrad(torch.stack([u, 2 * r]))
    torch.testing.assert_close(projected, alone)
    (other,), _ = project([r], [u])
    torch.testing.assert_close(projected + other, pcgrad(torch.stack([u, r])))
    if seed % 2:
        assert not torch.allclose(projected, u)


def test_values_worked_by_hand() -> None:
    """u = (0.5, 0), r = (-1, 1): ⟨u, r⟩ = -0.5, ‖r‖² = 2, so -0.25 r is removed; cos = -1/√2."""
    u, r = torch.tensor([0.5, 0.0]), torch.tensor([-1.0, 1.0])
    (full,), stats = project([u], [r])
    torch.testing.assert_close(full, torch.tensor([0.25, 0.25]))
    torch.testing.assert_close(torch.stack(stats), torch.tensor([-(0.5**0.5), 1.0, 0.5**0.5]))
    (half,), _ = project([u], [r], strength=0.5)
    torch.testing.assert_close(half, torch.tensor([0.375, 0.125]))
    # Without ‖u‖ = 0.5, twice as much is removed: -0.5 r.
    (reference,), stats = project_reference([u], [r])
    torch.testing.assert_close(reference, torch.tensor([0.0, 0.5]))
    torch.testing.assert_close(torch.stack(stats), torch.tensor([-(0.5**0.5), 1.0, 2**0.5]))


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("zero", ["g_u", "g_r", "one of g_r", "tiny g_r", "tiny g_u"])
def test_zero_gradients_stay_finite(zero: str, granularity: str) -> None:
    g_u, g_r = gradients(0, torch.float32)
    if zero == "g_u":
        g_u = [torch.zeros_like(u) for u in g_u]
    elif zero == "g_r":
        g_r = [torch.zeros_like(r) for r in g_r]
    elif zero == "tiny g_r":  # its squared norm underflows
        g_r = [1e-30 * r for r in g_r]
    elif zero == "tiny g_u":
        g_u = [1e-30 * u for u in g_u]
    else:
        g_r[0] = torch.zeros_like(g_r[0])
    results = [project(g_u, g_r, granularity=granularity, layers=LAYERS)]
    results.append(project_reference(g_u, g_r))
    for projected, stats in results:
        assert all(p.isfinite().all() for p in projected)
        assert all(value.isfinite() for value in stats)
        assert stats.cosine.abs() <= 1
        if zero not in ("one of g_r", "tiny g_u"):
            assert all(torch.equal(p, u) for p, u in zip(projected, g_u, strict=True))


def test_bad_granularity_and_layers_are_named() -> None:
    g_u, g_r = gradients(0)
    with pytest.raises(ValueError, match="granularity='row' is not one of tensor, layer, network"):
        project(g_u, g_r, granularity="row")
    with pytest.raises(ValueError, match="needs 6 layers, one a tensor; layers=None"):
        project(g_u, g_r, granularity="layer")
    with pytest.raises(ValueError, match=r"needs 6 layers, one a tensor; layers=\[0, 1\]"):
        project(g_u, g_r, granularity="layer", layers=[0, 1])
    with pytest.raises(ValueError, match="zip"):
        project(g_u, g_r[:-1])


@pytest.mark.parametrize("seed", range(4))
def test_project_reference_matches_a_restatement(seed: int) -> None:
    g_u, g_r = gradients(seed)
    corrected, stats = project_reference(g_u, g_r, 0.5)
    conflicts = 0
    for u, r, result in zip(g_u, g_r, corrected, strict=True):
        cosine = torch.cosine_similarity(u.flatten(), r.flatten(), dim=0)
        unit = torch.nn.functional.normalize(r.flatten(), dim=0).reshape(r.shape)
        torch.testing.assert_close(result, u - 0.5 * cosine.clamp(max=0) * unit)
        conflicts += int(cosine < 0)
    assert stats.conflicting.item() == pytest.approx(conflicts / 6)


def test_project_reference_is_the_projection_of_unit_gradients() -> None:
    g_u, g_r = gradients(0)
    unit = [u / u.norm() for u in g_u]
    torch.testing.assert_close(project_reference(unit, g_r)[0], project(unit, g_r)[0])
    short = [0.1 * u for u in unit]
    assert not torch.allclose(project_reference(short, g_r)[0][0], project(short, g_r)[0][0])


@pytest.mark.parametrize("max_norm", [0.1, 1.0, 1e6])
def test_clip_matches_torch_and_never_scales_up(max_norm: float) -> None:
    grads, _ = gradients(0)
    parameters = [torch.nn.Parameter(torch.zeros_like(grad)) for grad in grads]
    for parameter, grad in zip(parameters, grads, strict=True):
        parameter.grad = grad.clone()
    expected_norm = torch.nn.utils.clip_grad_norm_(parameters, max_norm)
    clipped, norm = clip_to_norm(grads, max_norm)
    torch.testing.assert_close(norm, expected_norm)
    assert expected_norm > 1
    for result, parameter, grad in zip(clipped, parameters, grads, strict=True):
        # torch adds 1e-6 to the norm it divides by.
        torch.testing.assert_close(result, parameter.grad, rtol=1e-6, atol=0)
        assert torch.equal(result, grad) == (max_norm > expected_norm)
    after = torch.cat([x.flatten() for x in clipped]).norm().item()
    assert after == pytest.approx(min(max_norm, norm.item()))


def test_clip_of_zero_is_zero() -> None:
    (clipped,), norm = clip_to_norm([torch.zeros(3)], 1.0)
    assert torch.equal(clipped, torch.zeros(3))
    assert norm == 0


@pytest.mark.parametrize(("scale", "shielded"), [(1e-3, True), (1e-7, False)])
def test_a_relearn_gradient_that_is_rounding_shields_nothing(scale: float, shielded: bool) -> None:
    """‖g_r‖ = scale ‖g_u‖, straight against g_u."""
    g_u, _ = gradients(0)
    projected, stats = project(g_u, [-scale * u for u in g_u])
    for u, c in zip(g_u, projected, strict=True):
        torch.testing.assert_close(c, torch.zeros_like(u) if shielded else u)
    assert stats.conflicting.item() == float(shielded)
