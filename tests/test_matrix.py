"""Proves: a product with a weight is the same for one row and for many, whichever rows are read together, and copies nothing."""

import pytest
import torch

from gopher.matrix import Matrix

FAR = (2048, 512)  # short rows, a weight that comes from memory


@pytest.mark.parametrize("shape", [FAR, (2052, 512), (64, 32), (512, 1536)])
@pytest.mark.parametrize("lead", [(1,), (1, 1), (3,), (2, 1), ()])
def test_products_are_those_of_float64(shape: tuple[int, int], lead: tuple[int, ...]) -> None:
    draws = torch.Generator().manual_seed(0)
    weight, x = torch.randn(shape, generator=draws), torch.randn(*lead, shape[1], generator=draws)
    exact = x.double() @ weight.double().t()
    torch.testing.assert_close(Matrix(weight).of(x).double(), exact, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("rows", [1, 4])
def test_a_product_is_added(rows: int) -> None:
    draws = torch.Generator().manual_seed(1)
    weight, x, y = (torch.randn(*s, generator=draws) for s in (FAR, (rows, FAR[1]), (rows, FAR[0])))
    exact = y.double() + x.double() @ weight.double().t()
    torch.testing.assert_close(Matrix(weight).added_to(y, x).double(), exact, rtol=1e-4, atol=1e-3)


def test_rows_far_apart_are_a_view_and_only_of_weights_that_gain() -> None:
    weight = torch.empty(FAR)
    far = Matrix(weight).far
    assert far is not None and far.data_ptr() == weight.data_ptr()
    for shape in ((FAR[0] + 4, FAR[1]), (64, 32), (1024, 1024)):  # no multiple of eight, in cache, rows of a page
        assert Matrix(torch.empty(shape)).far is None
    assert Matrix(weight.to(torch.float16)).far is None and Matrix(torch.empty(FAR[::-1]).t()).far is None
