"""Attention by a diagonal state space in plain PyTorch: what a chunk needs of the system, documents, the final state.

    y_ti = q_t (sum_{j <= i} K_{i-j} k_j v_j^T + C Abar^(i+1) H)     place i of a chunk, H the state before it

Letters: z chunks, i and j places in a chunk (a query's and a key's), c places of a chunk; a and e channels of a key and
of a value, both p. States of all chunks are (h, a, e, b, z, n), complex.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import einsum, rearrange, repeat
from torch import Tensor

from hybridlm.ops.chunks import bits, fold, pieces
from hybridlm.ops.diagonal_ssm.reference import System, coordinates, doubled, functionals, orbit
from hybridlm.ops.long_conv.reference import LongConv
from hybridlm.ops.lti import one_token
from hybridlm.ops.toeplitz_attention.by_chunk import ByChunk
from hybridlm.ops.toeplitz_attention.flops import NARROW, tokens_of


def toeplitz_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    system: System,
    logs: Tensor | None,
    D: Tensor,
    state: Tensor | None,
    lengths: Tensor | None,
    document: Tensor | None,
    chunk: int | None,
) -> tuple[Tensor, Tensor | None]:
    """logs: of Abar, (h, n) complex128, where they are known."""
    if v.shape[1] == 1:
        return step(q, k, v, system, D, state, lengths, document)
    wide = torch.promote_types(torch.float32, v.dtype)
    c = min(chunk or tokens_of(v.shape[-1]), v.shape[1])
    tables = Tables.of(system, powers_of(system, logs, c), D, wide)
    y, state = chunked(*(x.to(wide) for x in (q, k, v)), tables, state, lengths, document)
    return y.to(v.dtype), state


# ----------------------------------------------------------------------------------------------------------- one token
def step(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    system: System,
    D: Tensor,
    state: Tensor | None,
    lengths: Tensor | None,
    document: Tensor | None,
) -> tuple[Tensor, Tensor | None]:
    """One token: the recurrence itself, entries of k v^T as rows of h channels each."""
    p = v.shape[-1]
    kv = rearrange(k.double()[..., None] * v.double()[..., None, :], "b 1 h a e -> (b a e) 1 h")
    h = None if state is None else rearrange(state, "b h a e n two -> (b a e) h n two")
    lengths = None if lengths is None else repeat(lengths, "b -> (b r)", r=p * p)
    document = None if document is None else repeat(document, "b t -> (b r) t", r=p * p)
    y, h = one_token(kv, system, D, h, lengths, document)
    y = (q.double()[..., None] * rearrange(y, "(b a e) t h -> b t h a e", a=p, e=p)).sum(dim=-2)
    if h is None:
        return y.to(v.dtype), None
    return y.to(v.dtype), rearrange(h.to(state.dtype), "(b a e) h n two -> b h a e n two", a=p, e=p)


# ----------------------------------------------------------------------------------------------------------- the system
class Tables(NamedTuple):
    """What c tokens at once need of the system, N = 2 n real coordinates for n couples.

    within:  U_ji = K_{i-j}, the transpose of T with D on its diagonal; 0 for i < j: (h, c, c).
    write:   Bbar, faded from after place j to the chunk's end: (h, c, N).
    read:    C Abar^(i+1), which reads the state before the chunk at place i: (h, N, c).
    through: Abar^c, as real pairs: (h, n, 2).
    powers:  Abar^i, i < c: (h, c, n, 2).
    """

    within: Tensor
    write: Tensor
    read: Tensor
    through: Tensor
    powers: Tensor

    @classmethod
    def of(cls, system: System, powers: Tensor, D: Tensor, dtype: torch.dtype) -> "Tables":
        """Of Abar^i for i <= c. Computed in float64, given in `dtype`."""
        _, B, C = system
        before, after = powers[:, :-1], powers[:, 1:]
        kernel = (coordinates(before) @ functionals(C * B)[..., None]).squeeze(-1)
        kernel = kernel + F.pad(D.double()[:, None], (0, kernel.shape[1] - 1))
        write, read = coordinates(B[:, None] * before.flip(1)), functionals(C[:, None] * after).mT
        tables = upper(kernel), write, read, torch.view_as_real(after[:, -1]), torch.view_as_real(before)
        return cls(*(table.to(dtype) for table in tables))


def powers_of(system: System, logs: Tensor | None, c: int) -> Tensor:
    """Abar^i for i <= c, (h, c + 1, n) complex128: by doubling, or at once where logarithms are known."""
    if logs is not None:
        return torch.exp(torch.arange(c + 1, device=logs.device, dtype=torch.float64)[:, None] * logs[:, None])
    return orbit(torch.ones_like(system.E)[:, None], doubled(system.E, bits(c)))[:, : c + 1]


def upper(kernel: Tensor) -> Tensor:
    """K (h, c) -> the Toeplitz matrix U_ji = K_{i-j}, 0 for i < j: every row one place further to the right."""
    c = kernel.shape[1]
    rows = repeat(F.pad(kernel, (0, c)), "h l -> h (j l)", j=c)
    return rows[:, : c * (2 * c - 1)].unflatten(1, (c, 2 * c - 1))[..., :c]


# --------------------------------------------------------------------------------------------------------- many tokens
def chunked(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tables: Tables,
    state: Tensor | None,
    lengths: Tensor | None,
    document: Tensor | None,
) -> tuple[Tensor, Tensor | None]:
    """Many tokens of one dtype. The last chunk is filled up with zeros."""
    (b, t), c = v.shape[:2], tables.within.shape[1]
    H = None if state is None else rearrange(state.to(v.dtype), "b h a e n two -> h a e b n two")
    queries, keys, keep, within = q, k, None, tables.within
    if document is not None:
        seams = Seams.of(document, c)
        queries, keys = (torch.where(x[..., None, None], y, 0) for x, y in ((seams.sees, q), (seams.joins, k)))
        keep, within = seams.keep, None
    ends = torch.full((b,), t, device=v.device) if lengths is None else lengths
    system = within, tables.write, tables.read, tables.through
    y, H = ByChunk.apply(*(lay(x, c) for x in (queries, keys, v)), *system, H, None if H is None else ends // c, keep)
    y = unlay(y)[:, :t] if document is None else unlay(y)[:, :t] + inside(q, k, v, tables, document)[:, :t]
    if state is None:
        return y, None
    if lengths is not None or pieces(t, c) * c != t:
        H = final_state(k, v, tables, H, ends, document)
    return y, rearrange(H, "h a e b n two -> b h a e n two").to(state.dtype)


def lay(x: Tensor, c: int) -> Tensor:
    """(b, t, h, p) -> (h, p, b, z, c), as the transpose of one matrix."""
    x = fold(x, c)
    b, z, _, h, p = x.shape
    return x.reshape(b * z * c, h * p).t().contiguous().reshape(h, p, b, z, c)


def unlay(x: Tensor) -> Tensor:
    """(h, p, b, z, c) -> (b, z c, h, p)."""
    h, p, b, z, c = x.shape
    return x.reshape(h * p, b * z * c).t().contiguous().reshape(b, z * c, h, p)


# ----------------------------------------------------------------------------------------------------------- documents
class Seams(NamedTuple):
    """Where documents lie in chunks.

    sees:  whether a token is in the document of the state before its chunk, (b, t).
    joins: whether it is in that of its chunk's last place, (b, t).
    keep:  whether these two are one document, so that the state goes through the chunk, (b, z).
    """

    sees: Tensor
    joins: Tensor
    keep: Tensor

    @classmethod
    def of(cls, document: Tensor, c: int) -> "Seams":
        """Of document (b, t). What the last chunk is filled up with goes into no state that is read."""
        t, places = document.shape[1], fold(document, c)
        end = places[..., -1]
        before = F.pad(end[:, :-1], (1, 0))
        sees, joins = ((places == x[..., None]).flatten(1)[:, :t] for x in (before, end))
        return cls(sees, joins, before == end)


def inside(q: Tensor, k: Tensor, v: Tensor, tables: Tables, document: Tensor) -> Tensor:
    """y of each chunk by itself, where tokens of two documents never meet."""
    q, k, v, document = (fold(x, tables.within.shape[1]) for x in (q, k, v, document))
    run = convolved if v.shape[-1] < NARROW else scored
    return run(q, k, v, tables.within, document).flatten(1, 2)


def scored(q: Tensor, k: Tensor, v: Tensor, within: Tensor, document: Tensor) -> Tensor:
    """q, k, v (b, z, c, h, p), document (b, z, c): as attention, with a score for every two places."""
    one = document[:, :, None, :, None] == document[:, :, None, None, :]
    scores = einsum(q, k, "b z i h p, b z j h p -> b z h j i") * torch.where(one, within, 0)
    return einsum(scores, v, "b z h j i, b z j h p -> b z i h p")


def convolved(q: Tensor, k: Tensor, v: Tensor, within: Tensor, document: Tensor) -> Tensor:
    """The same, every entry of k v^T by itself: where these are fewer than scores."""
    b, p = v.shape[0], v.shape[-1]
    kv = rearrange(k[..., None] * v[..., None, :], "b z c h a e -> (b z a e) c h")
    y = LongConv.apply(kv, within[:, 0], None, repeat(document, "b z c -> (b z r) c", r=p * p))
    return (q[..., None] * rearrange(y, "(b z a e) c h -> b z c h a e", b=b, a=p, e=p)).sum(dim=-2)


# ----------------------------------------------------------------------------------------------------- the final state
def final_state(k: Tensor, v: Tensor, tables: Tables, H: Tensor, lengths: Tensor, document: Tensor | None) -> Tensor:
    """H (h, a, e, b, n, 2) at the end of each row's last full chunk -> after its last token.

    The tokens between, fewer than c, are moved to the right end of a chunk.
    """
    c, rest = tables.within.shape[1], lengths % tables.within.shape[1]
    source = torch.arange(-c, 0, device=v.device) + lengths[:, None]
    taken, source = source >= (lengths - rest)[:, None], source.clamp(min=0)
    if document is not None:
        last, place = document[:, -1:], (lengths - rest)[:, None] - 1
        taken = taken & (document.gather(1, source) == last)
        owner = torch.where(place < 0, 0, document.gather(1, place.clamp(min=0)))
        H = torch.where((owner == last)[..., None], H, 0)
    index = repeat(source, "b j -> b j h p", h=v.shape[2], p=v.shape[3])
    k = torch.where(taken[..., None, None], k.gather(1, index), 0)
    kv = k[..., None] * v.gather(1, index)[..., None, :]
    added = einsum(kv, tables.write, "b j h a e, h j m -> h a e b m")
    faded = torch.view_as_complex(tables.powers)[:, None, None, rest] * torch.view_as_complex(H.contiguous())
    return torch.view_as_real(faded) + added.unflatten(-1, (-1, 2))
