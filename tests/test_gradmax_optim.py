"""GradMax-Optim: as good as the closed form where there is one, better than GradMax where there is none, no copies."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import regrow as rg
from golden import CASES, Golden
from regrow.growing.gradmax_optim import ascend, polar
from test_gradmax import _normed


def after_growth(golden: Golden, method: Any) -> tuple[Tensor, Tensor]:
    """∂L/∂W_in of two new units, and their outgoing weights."""
    structure = rg.analyze(golden.net, golden.x)
    edit = rg.grow_(structure["0"], 2, method, loss=golden.loss, generator=torch.Generator().manual_seed(1))
    golden.loss().backward()
    sent = golden.net[-1].weight.detach()[:, edit.new].transpose(0, 1).flatten(1)
    return golden.net[0].weight.grad[edit.new].flatten(1), sent


@pytest.mark.parametrize("case", CASES)
def test_it_reaches_the_closed_form_without_collapse(case: str) -> None:
    best, _ = after_growth(Golden.read(case, "gradmax"), rg.GradMax("naive"))
    found, sent = after_growth(Golden.read(case, "gradmax"), rg.GradMaxOptim("naive"))
    assert found.norm() >= 0.95 * best.norm()
    assert abs(float(torch.cosine_similarity(sent[0], sent[1], dim=0))) <= 0.5
    # The reference's own ascent, at its defaults, hardly leaves its random start; converged, its units are copies.
    theirs = Golden.read(case, "gradmaxopt").weight("gradafter__first__kernel")[-2:].norm()
    assert found.norm() > 1.05 * theirs


@pytest.mark.parametrize("order", ["norm first", "relu first", "pooled"])
def test_through_batch_norm_it_finds_more_than_the_linearised_form(order: str) -> None:
    found = {}
    for method in (rg.GradMax(), rg.GradMaxOptim()):
        total = 0.0
        for seed in range(3):
            torch.manual_seed(seed)
            model, x = _normed(order), torch.nn.functional.avg_pool2d(torch.randn(32, 3, 14, 14), 3, 1)
            target = torch.randn_like(model(x))
            loss = lambda: (model(x) - target).square().mean()  # noqa: B023, E731
            before = loss().item()
            edit = rg.grow_(rg.analyze(model, x)["0"], 4, method, loss=loss)
            assert loss().item() == before
            loss().backward()
            total += float(model[-2].weight.grad[:, edit.new].norm())
        found[method.name] = total
    assert found["gradmax-optim"] > found["gradmax"]


def test_the_polar_factor_is_the_nearest_matrix_with_orthonormal_rows() -> None:
    rows = torch.randn(3, 7, generator=torch.Generator().manual_seed(0)).double()
    nearest = polar(rows)
    torch.testing.assert_close(nearest @ nearest.T, torch.eye(3).double())
    for seed in range(20):
        other = torch.linalg.qr(torch.randn(7, 3, generator=torch.Generator().manual_seed(seed)).double())[0].T
        assert (rows - nearest).norm() <= (rows - other).norm()


def test_ascent_never_goes_down() -> None:
    matrix = torch.randn(6, 9, generator=torch.Generator().manual_seed(0)).double()
    values = []

    def objective(rows: Tensor) -> tuple[float, Tensor]:
        product = rows @ matrix
        values.append(float(product.norm()))
        return values[-1], product @ matrix.T / product.norm()

    start = torch.randn(2, 6, generator=torch.Generator().manual_seed(1)).double()
    end = ascend(objective, start, 30)
    singular = torch.linalg.svdvals(matrix)
    assert float((end @ matrix).norm()) == pytest.approx(float(singular[:2].norm()), rel=1e-3)
    assert max(values) == pytest.approx(float((end @ matrix).norm()))
