"""One token for every row in as few torch calls as possible: small rungs spend their decoding time on calls, not on numbers.

The same formulas as `gopher.cache.Reader.read`, for the usual case of decoding: one new token a row, no shared prefix,
no trees, and scores in the dtype of the weights.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from gopher.matrix import Matrix
from gopher.model import Block, Transformer, rms_norm

HIDDEN = -1e30  # score of a key that must not be seen; finite, so that a row of padding stays finite too


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Weights:
    """A block's parameters as a step reads them: attention biases are stacked and scaled."""

    gain_1: torch.Tensor
    qkv: Matrix
    biases: torch.Tensor  # (2, H, 1, d_head): u, v
    output: Matrix
    gain_2: torch.Tensor
    up: Matrix
    down: Matrix


def weights_of(model: Transformer) -> list[Weights]:
    return [block_weights(block) for block in model.blocks if isinstance(block, Block)]


def block_weights(block: Block) -> Weights:
    biases = torch.stack([block.u, block.v]).detach()[:, :, None] / math.sqrt(block.d_head)
    norms, products = (block.norm_1, block.norm_2), (block.qkv, block.output, block.up, block.down)
    gain_1, gain_2 = (norm.gain.detach() for norm in norms)
    qkv, output, up, down = (Matrix(product.weight) for product in products)
    return Weights(gain_1=gain_1, qkv=qkv, biases=biases, output=output, gain_2=gain_2, up=up, down=down)


def step(
    layers: list[Weights], x: torch.Tensor, store: torch.Tensor, length: int, tables: torch.Tensor, starts: Any
) -> torch.Tensor:
    """The last block's output (B, d_model) of inputs `x` (B, d_model); keys and values go to column `length` of `store`.

    `tables` are those of `Reader.cover`; row b does not see columns before `starts[b]`.
    """
    n_layers, _, n_heads, batch, _, width = store.shape
    seen, scale = length + 1, 1 / math.sqrt(width)
    columns = store.select(4, length).unbind(0)
    spans = store.view(n_layers, 2, n_heads * batch, -1, width)[:, :, :, :seen]
    all_keys, all_values = spans[:, 0].transpose(2, 3).unbind(0), spans[:, 1].unbind(0)
    hidden = None if starts is None else (torch.arange(seen, device=x.device) < starts[:, None]).to(x.dtype) * HIDDEN
    by_distance = tables[:, :, -seen - 1 : -1].transpose(2, 3).unbind(0)
    for w, table, column, keys, values in zip(layers, by_distance, columns, all_keys, all_values, strict=True):
        q, k_v = w.qkv.of(rms_norm(x, w.gain_1)).view(batch, n_heads, 3, width).permute(2, 1, 0, 3).split((1, 2))
        column.copy_(k_v)
        query_u, query_v = torch.add(w.biases, q, alpha=scale).unbind(0)
        scores = torch.bmm(query_v, table)
        if hidden is not None:
            scores += hidden
        scores = torch.baddbmm(scores.view(-1, 1, seen), query_u.reshape(-1, 1, width), keys)
        mixed = torch.bmm(torch.softmax(scores, dim=-1), values)
        x = w.output.added_to(x, mixed.view(n_heads, batch, width).transpose(0, 1).reshape(batch, -1))
        x = w.down.added_to(x, F.gelu(w.up.of(rms_norm(x, w.gain_2))))
    return x
