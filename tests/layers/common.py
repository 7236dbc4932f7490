"""What the tests of several layers need: random parameters, entries exchanged, decoding in pieces, models stacked."""

import copy

import torch


@torch.no_grad()
def moved(module, by=0.2):
    """The module with every parameter random, so that nothing hides behind a zero or a one."""
    for parameter in module.parameters():
        parameter.add_(by * torch.randn_like(parameter))
    return module


@torch.no_grad()
def exchanged(module, name):
    """A copy in which the entries of one parameter stand in other places: a comparison that counts must see it."""
    wrong = copy.deepcopy(module)
    parameter = wrong.get_parameter(name)
    assert parameter.numel() > 1
    parameter.copy_(parameter.flatten().roll(1).view_as(parameter))
    return wrong


@torch.no_grad()
def in_pieces(mixer, x, sizes):
    """x (b, t, d) read from an empty state, so many tokens a call -> y."""
    state, pieces = mixer.init_state(len(x), x.shape[1]), []
    for part in x.split(sizes, dim=1):
        y, state = mixer(part, state)
        pieces.append(y)
    return torch.cat(pieces, dim=1)


def worst_token(found, truth):
    """Of pairs of outputs the worst token: RMS(err) / RMS(ref)."""
    scale = truth[0].square().mean().sqrt()
    pairs = zip(found, truth, strict=True)
    return max((one - true).square().mean(-1).sqrt().max() / scale for one, true in pairs).item()


def assert_trains_stacked(models, x):
    """Several models as one, torch.func style: gradients of each equal those of each alone."""
    stacked, _ = torch.func.stack_module_state(models)

    def loss(parameters):
        return torch.func.functional_call(models[0], parameters, (x,))[0].square().mean()

    gradients = torch.func.vmap(torch.func.grad(loss))(stacked)
    for i, model in enumerate(models):
        alone = torch.func.grad(loss)({name: p.detach() for name, p in model.named_parameters()})
        for name, gradient in alone.items():
            torch.testing.assert_close(gradients[name][i], gradient, rtol=1e-9, atol=1e-12)
