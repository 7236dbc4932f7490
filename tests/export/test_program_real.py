"""Complex numbers, transforms and triangular systems as real numbers: the same digits, and none of them are left."""

import pytest
import torch

from hybridlm.errors import ExportError
from hybridlm.export.program.real import Real, needed


class Complex(torch.nn.Module):
    """Some of what S4 and its kin do, with a constant that only the weights make."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(5, 2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        constant = torch.exp(torch.complex(*self.weight.unbind(-1)))
        z = torch.complex(x, 2 * x) * constant
        z = torch.where(x > 0, z + constant, x * z - constant)
        z = torch.cat([z[:, 1:], z[:, :1]], dim=1)
        first, *_, last = z.unbind(1)
        z = torch.addcmul(z, first[:, None], z[:, torch.tensor([3, 1, 1, 0, 2])]) - last[:, None]
        return torch.view_as_real(z + 1)


class Filtered(torch.nn.Module):
    def __init__(self, n: int):
        super().__init__()
        self.n = n
        self.taps = torch.nn.Parameter(torch.randn(5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n = self.n
        return torch.fft.irfft(torch.fft.rfft(x, n=n) * torch.fft.rfft(self.taps, n=n), n=n)


class Solved(torch.nn.Module):
    def __init__(self, unit: bool):
        super().__init__()
        self.unit = unit

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        A = x[..., None, :] * 0.5 + torch.eye(5, dtype=x.dtype)
        return torch.linalg.solve_triangular(A, x[..., None], upper=False, unitriangular=self.unit)


CASES = [(Complex(), torch.float64), (Filtered(12), torch.float64), (Solved(True), torch.float64)]
MORE = [(Complex(), torch.float32), (Filtered(9), torch.float32), (Filtered(16), torch.float64)]
MORE += [(Filtered(9), torch.float64), (Solved(True), torch.float32), (Solved(False), torch.float64)]


@pytest.mark.parametrize(("module", "dtype"), [*CASES, *(pytest.param(*case, marks=pytest.mark.deep) for case in MORE)])
def test_the_same_numbers_without(module, dtype):
    module = module.to(dtype).requires_grad_(False)
    x = torch.randn(4, 5, dtype=dtype)
    program = torch.export.export(module, (x,), strict=False)
    assert needed(program.run_decompositions({}))
    real = Real(None, program)
    again = torch.export.export(real, (x,), strict=False).run_decompositions({})
    assert not needed(again)
    x = torch.randn(4, 5, dtype=dtype)
    torch.testing.assert_close(again.module()(x), module(x))


def test_what_no_rule_says_is_named():
    class Unknown(torch.nn.Module):
        def forward(self, x):
            return torch.complex(x, x).abs()

    program = torch.export.export(Unknown(), (torch.ones(2),), strict=False)
    with pytest.raises(ExportError, match=r"aten\.abs\.default of complex numbers"):
        torch.export.export(Real(None, program), (torch.ones(2),), strict=False)
