"""lstm and gru: configs, initial values, cost, and stacks under vmap. The laws and the oracles do the rest."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from hybridlm.errors import SpecError
from hybridlm.layers.gru import GRU, GRUConfig
from hybridlm.layers.init import Streams
from hybridlm.layers.lstm import LSTM, LSTMConfig
from hybridlm.ops.backend import use
from tests.layers.common import assert_trains_stacked

MIXERS = {"lstm": (LSTM, LSTMConfig), "gru": (GRU, GRUConfig)}


@pytest.fixture(params=MIXERS)
def parts(request):
    """The mixer's class and its config's."""
    return MIXERS[request.param]


def test_bad_widths_are_refused(parts):
    for hidden in (0, -3, 2.0, True, 1 << 30):
        with pytest.raises(SpecError, match=f"hidden: {hidden} is"):
            parts[1](hidden=hidden).resolve(64)


@pytest.mark.parametrize("d_model", [32, 33, 127, 512])
def test_defaults_have_as_many_weights_as_mamba2(parts, d_model):
    made = parts[0](parts[1](), d_model)
    matrices = sum(parameter.numel() for parameter in made.parameters() if parameter.ndim == 2)
    assert 5.75 * d_model**2 < matrices < 6.3 * d_model**2


def test_initial_values(parts):
    made = parts[0](parts[1](hidden=300), 400)
    made.reset_parameters(Streams(0))
    for weight in (made.weight_ih, made.weight_hh, made.out_proj.weight):
        assert abs(weight.std() * (3 * weight.shape[1]) ** 0.5 - 1) < 0.02
    assert not made.bias_hh.any()
    ones = made.bias_ih.nonzero().flatten().tolist()
    assert ones == (list(range(300, 600)) if parts[0] is LSTM else [])  # the forget gate's
    assert set(made.bias_ih.tolist()) <= {0.0, 1.0}


@pytest.mark.parametrize("hidden", [None, 5])
@pytest.mark.parametrize("d_model", [32, 37])
def test_cost_is_exact(parts, d_model, hidden):
    mixer, config = parts[0], parts[1](hidden=hidden).resolve(d_model)
    made, cost = mixer(config, d_model), mixer.cost(config, d_model)
    assert cost.parameters == sum(parameter.numel() for parameter in made.parameters())
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        assert cost.state(99, dtype.itemsize).total == made.init_state(1, 99, dtype=dtype).nbytes
    for t in (1, 2, 65):
        with use("reference"), FlopCounterMode(display=False) as counter, torch.no_grad():
            made(torch.randn(1, t, d_model))
        assert cost.forward(t, 0).matmul == counter.get_total_flops()


@pytest.mark.parametrize("t", [1, 9])
def test_stacked_models_train_under_vmap(parts, t):
    models, x = [parts[0](parts[1](hidden=5), 12).double() for _ in range(2)], torch.randn(2, t, 12).double()
    assert_trains_stacked(models, x)


@pytest.mark.usefixtures("compiler")
def test_torch_compile_takes_the_loop_as_one_op():
    x, module = torch.randn(2, 9, 32), LSTM(LSTMConfig(), 32)
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    parameters = list(module.parameters())
    ours, true = (torch.autograd.grad(run(x)[0].square().sum(), parameters) for run in (compiled, module))
    for one, two in zip(ours, true, strict=True):
        torch.testing.assert_close(one, two)
