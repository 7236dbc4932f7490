"""What makes a step size or a rate positive."""

import torch.nn.functional as F
from torch import Tensor


def softplus(x: Tensor) -> Tensor:
    """log(1 + e^x), exact in float64 too: PyTorch's own leaves out e^-x from x = 20 on, which is 1e-10 of it there."""
    return F.softplus(x, threshold=40.0)
