"""What stands before the tests on a GPU."""

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def gpu():
    """One sentence where there is no GPU, in place of a thousand failures; and no success, as nothing was tested."""
    if not torch.cuda.is_available():
        pytest.exit("tests/gpu: these tests need a GPU, and torch sees none here", returncode=1)
