"""Steps and rates in plain PyTorch."""

import torch
import torch.nn.functional as F
from torch import Tensor


def softplus(x: Tensor) -> Tensor:
    """log(1 + e^x), exact in float64 too: PyTorch's own leaves out e^-x from x = 20 on, which is 1e-10 of it there.

    Compiled it is another op: of the gradient of this one torch.compile expects the strides of x, eager gives those of
    what came in, and where the two differ a view of it fails. Exported it is itself, as ONNX has it, to all its digits.
    """
    if torch.compiler.is_dynamo_compiling():  # in 2.11 is_exporting() is true here as well
        return -F.logsigmoid(-x)
    return F.softplus(x, threshold=40.0)


def steps_and_rates(dt: Tensor, bias: Tensor | None, A_log: Tensor) -> tuple[Tensor, Tensor]:
    wide = torch.promote_types(dt.dtype, torch.float32)
    dt = dt.to(wide) if bias is None else dt.to(wide) + bias.to(wide)
    return softplus(dt), -torch.exp(A_log.to(wide))
