"""Small models with every weight off its initial value, and prompts for them."""

import torch

import hybridlm as hl

V = 48


def build(pattern="MA", dtype=torch.float64, **spec):
    model = hl.build(pattern=pattern, d_model=32, vocab_size=V, seed=1, dtype=dtype, **spec)
    shake(model)
    return model.eval()


def shake(model):
    noise = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=noise))


def prompts_of(lengths, seed=3):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, V, (length,), generator=generator) for length in lengths]
