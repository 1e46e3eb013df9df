"""The transformer of Rae et al. 2021: pre-norm RMSNorm, Transformer-XL relative attention, GELU MLP, tied embeddings.

No biases on linear maps; u and v per layer; W_R (d_model -> H * d_head) per layer. Its parameter count is
`gopher.size.params_total` exactly.
"""

import logging
import math
from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from gopher.attention import choose, relative_attention, sinusoids
from gopher.draws import Place, fill_normal, stream_key
from gopher.spec import ModelSpec

LOG = logging.getLogger("gopher.model")
NORM_EPS = 1e-6
LOSS_TOKENS = {
    "cpu": 128,
    "cuda": 4096,
}  # per block of the loss: its logits stay in cache, or fill a GPU; (B, T, V) never exists


class Norm(nn.Module):
    """RMSNorm (Zhang and Sennrich 2019) with a gain."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.empty(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return rms_norm(x, self.gain)


def rms_norm(x: torch.Tensor, gain: torch.Tensor) -> torch.Tensor:
    """Vectors (..., width) of root mean square 1 (but for `NORM_EPS`), times the gain."""
    if x.is_cuda or x.dtype in (torch.bfloat16, torch.float16):
        return F.rms_norm(x, gain.shape, gain, NORM_EPS)
    # a function of autograd costs twice what it computes for one vector, also where no gradient is wanted
    return PlainNorm.apply(x, gain) if torch.is_grad_enabled() else x * inverse_rms(x) * gain


def inverse_rms(x: torch.Tensor) -> torch.Tensor:
    """What the vectors of `x` (..., width) are multiplied with for a root mean square of 1: (..., 1)."""
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return norm.square_().mul_(1 / x.size(-1)).add_(NORM_EPS).rsqrt_()


class PlainNorm(torch.autograd.Function):
    """RMSNorm in half the passes of torch's CPU version, which is a chain of single operations."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, gain: torch.Tensor) -> torch.Tensor:
        inverse = inverse_rms(x)
        unit = x * inverse
        ctx.save_for_backward(unit, inverse, gain)
        return unit * gain

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        unit, inverse, gain = ctx.saved_tensors
        by_gain = (grad * unit).view(-1, gain.numel())
        along = torch.mv(by_gain, gain).mul_(1 / gain.numel()).view(inverse.shape)
        return (grad * gain).addcmul_(unit, along, value=-1).mul_(inverse), by_gain.sum(0)


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, spec: ModelSpec, recompute: str) -> None:
        super().__init__()
        d = spec.d_model
        self.d_head, self.recompute = spec.d_head, recompute
        self.own_heads = (
            all_heads  # of an attention bias (H, d_head), those of this rank: see `gopher.shard.split_heads`
        )
        self.norm_1 = Norm(d)
        self.qkv = nn.Linear(d, 3 * d, bias=False)
        self.position = nn.Linear(d, d, bias=False)  # W_R
        self.u = nn.Parameter(torch.empty(spec.n_heads, spec.d_head))
        self.v = nn.Parameter(torch.empty(spec.n_heads, spec.d_head))
        self.output = nn.Linear(d, d, bias=False)
        self.norm_2 = Norm(d)
        self.up = nn.Linear(d, spec.d_ff, bias=False)
        self.down = nn.Linear(spec.d_ff, d, bias=False)

    def forward(self, x: torch.Tensor, table: torch.Tensor, attention: str) -> torch.Tensor:
        """The block's output from its input (B, T, d_model), the sinusoids (T, d_model) and one of `IMPLEMENTATIONS`."""
        if self.recompute == "none" or not torch.is_grad_enabled():
            return self.compute(x, table, attention)
        context: Any = {"context_fn": keep_products} if self.recompute == "selective" else {}
        return checkpoint(self.compute, x, table, attention, use_reentrant=False, preserve_rng_state=False, **context)

    def compute(self, x: torch.Tensor, table: torch.Tensor, attention: str) -> torch.Tensor:
        q, k, v = self.project(x)
        u, v_bias = self.own_heads(self.u), self.own_heads(self.v)
        scale = 1 / math.sqrt(self.d_head)
        return self.finish(x, relative_attention(q, k, v, self.distances(table), u, v_bias, scale, attention))

    def project(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Queries, keys and values (B, H, T, d_head) of the block's input; with tensor parallelism of this rank's heads."""
        q, k, v = self.qkv(self.norm_1(x)).view(*x.shape[:2], -1, 3, self.d_head).permute(3, 0, 2, 1, 4)
        return q, k, v

    def distances(self, table: torch.Tensor) -> torch.Tensor:
        """W_R r of the distances of `table`, (H, T, d_head)."""
        return self.position(table).view(len(table), -1, self.d_head).transpose(0, 1)

    def finish(self, x: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
        """The block's output from its input and the attended values (B, H, T, d_head)."""
        x = x + self.output(attended.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm_2(x))))


def all_heads(bias: torch.Tensor) -> torch.Tensor:
    return bias


KEPT = {"aten::mm", "aten::addmm", "gopher::relative_attention"}


def keep_products() -> Any:
    """Selective checkpointing: weight products and fused attention are kept, everything else is computed again."""

    def policy(_ctx: Any, op: Any, *_args: Any, **_kwargs: Any) -> CheckpointPolicy:
        return CheckpointPolicy.MUST_SAVE if op.name() in KEPT else CheckpointPolicy.PREFER_RECOMPUTE

    return create_selective_checkpoint_contexts(policy)


class Transformer(nn.Module):
    """Parameters are uninitialised until `initialise`, so that it can be built on the meta device and sharded first."""

    def __init__(self, spec: ModelSpec, attention: str = "auto", recompute: str = "none") -> None:
        super().__init__()
        self.spec, self.attention = spec, attention
        self.n_heads = spec.n_heads  # of this rank
        self._told: set[str] = set()
        self.embedding = nn.Parameter(torch.empty(spec.vocab_size, spec.d_model))
        self.blocks = nn.ModuleList(Block(spec, recompute) for _ in range(spec.n_layers))
        self.norm = Norm(spec.d_model)

    def forward(self, tokens: torch.Tensor, targets: torch.Tensor | None = None) -> torch.Tensor:
        """float32 logits (B, T, V); with `targets` (B, T) instead the cross-entropy in nats summed over targets >= 0."""
        x = self.hidden(tokens)
        if targets is None:
            return logits(x.flatten(0, 1), self.embedding).view(*tokens.shape, -1).float()
        return summed_loss(x.flatten(0, 1), self.embedding, targets.flatten())

    def hidden(self, tokens: torch.Tensor) -> torch.Tensor:
        """Final hidden states (B, T, d_model) of `tokens` (B, T)."""
        x = self.embed(tokens)
        # chosen and looked up here, once: a compiled block would trace through both caches
        table = sinusoids(x.size(1), self.spec.d_model, x.dtype, x.device)
        attention = self.implementation(x)
        for block in self.blocks:
            x = block(x, table, attention)
        hidden: torch.Tensor = self.norm(x)
        return hidden

    def implementation(self, x: torch.Tensor) -> str:
        """The attention's implementation for block inputs like `x`; logged when it is new to this model."""
        shape = (x.size(0), self.n_heads, x.size(1), self.spec.d_head)
        name, sentence = choose(self.attention, x.device, x.dtype, shape)
        if sentence not in self._told:
            LOG.info(sentence)
            self._told.add(sentence)
        return name

    def embed(self, tokens: torch.Tensor) -> torch.Tensor:
        """The blocks' input, scaled by sqrt(d) as in both public Transformer-XL codes."""
        # otherwise what the blocks write drowns the tied embedding from the start
        return F.embedding(tokens, self.embedding) * math.sqrt(self.spec.d_model)


def summed_loss(x: torch.Tensor, embedding: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Nats of the rows of x @ embedding^T, summed over the targets >= 0."""
    if torch.is_grad_enabled():
        return SummedLoss.apply(x, embedding, targets)
    size = LOSS_TOKENS.get(x.device.type, LOSS_TOKENS["cuda"])
    blocks = zip(x.split(size), targets.split(size), strict=True)
    return torch.stack([block_loss(logits(part, embedding), wanted)[0] for part, wanted in blocks]).sum()


def logits(x: torch.Tensor, embedding: torch.Tensor) -> torch.Tensor:
    """x @ embedding^T, (N, V): float32 for narrow inputs on CUDA, where no gradient is wanted through this product.

    Elsewhere (on a CPU it would take twice the time) in the dtype of `x`: a bfloat16 logit is off by up to 0.4 %.
    """
    if x.is_cuda and x.dtype in (torch.bfloat16, torch.float16) and not torch.is_grad_enabled():
        return torch.mm(x, embedding.t(), out_dtype=torch.float32)
    return F.linear(x, embedding)


def block_loss(scores: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(nats summed over the targets >= 0, probabilities) of logits, float32 or wider."""
    wide = torch.float64 if scores.dtype == torch.float64 else torch.float32  # no copy of narrow logits is made
    p = torch.softmax(scores, dim=-1, dtype=wide)
    # The largest probability is at least 1 / V, so this log-sum-exp is exact and cheaper than a second exponential.
    log_sum = scores.amax(dim=-1).to(wide) - p.amax(dim=-1).log()
    wanted = scores.gather(1, targets.clamp(min=0)[:, None])[:, 0].to(wide)
    return ((log_sum - wanted) * (targets >= 0)).sum(), p


class SummedLoss(torch.autograd.Function):
    """Cross-entropy of x @ embedding^T block by block; both gradients are found in the same pass over the logits."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, embedding: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        grad_x = torch.empty_like(x)
        wide = torch.promote_types(x.dtype, torch.float32)
        grad_embedding = torch.zeros(embedding.shape[::-1], dtype=wide, device=x.device)
        nats = []
        size = LOSS_TOKENS.get(x.device.type, LOSS_TOKENS["cuda"])
        for part, wanted, grad_part in zip(*(t.split(size) for t in (x, targets, grad_x)), strict=True):
            loss, grad = block_loss(logits(part, embedding), wanted)
            nats.append(loss)
            grad.scatter_add_(1, wanted.clamp(min=0)[:, None], -torch.ones_like(grad[:, :1]))
            grad, counted = grad.to(x.dtype), (wanted >= 0).to(x.dtype)[:, None]
            torch.mm(grad, embedding, out=grad_part)
            grad_part *= counted  # a row of x, not of the logits
            columns = (part * counted).t()  # the gradient transposed: the faster order of this product
            if x.dtype == wide:
                grad_embedding.addmm_(columns, grad)
            else:
                grad_embedding += torch.mm(columns, grad)
        ctx.save_for_backward(grad_x, grad_embedding)
        return torch.stack(nats).sum()

    @staticmethod
    def backward(ctx: Any, grad_loss: torch.Tensor) -> Any:
        grad_x, grad_embedding = ctx.saved_tensors
        return grad_x * grad_loss, (grad_embedding.t() * grad_loss).to(grad_x.dtype), None


@torch.no_grad()
def initialise(parts: Iterable[tuple[str, torch.Tensor, Place]], spec: ModelSpec, seed: int) -> None:
    """Fill parameters given as (name, elements held, their place in the whole parameter).

    A value depends on (seed, name, index) alone, not on shards or device. The paper does not give its initialisation.
    Here: linear maps N(0, 1 / fan_in); the two maps that write to the residual stream divided by sqrt(2 L) more
    (Radford et al. 2019); embeddings N(0, 1 / (4 d)), so that tied logits and (scaled by sqrt(d)) inputs start with standard deviation 1/2; gains 1;
    u = v = 0.
    """
    for name, values, place in parts:
        std = initial_std(name, spec)
        if std is None:
            values.fill_(1.0 if name.endswith("gain") else 0.0)
        else:
            fill_normal(values, stream_key(seed, "init", name), std, place)


def initial_std(name: str, spec: ModelSpec) -> float | None:
    """Standard deviation of a weight by its name, None for gains and attention biases."""
    kind = name.split(".")[-2] if name.endswith(".weight") else name
    if kind == "embedding":
        return 0.5 / math.sqrt(spec.d_model)
    if kind in ("output", "down"):
        fan_in = spec.d_model if kind == "output" else spec.d_ff
        return 1 / math.sqrt(fan_in * 2 * spec.n_layers)
    return 1 / math.sqrt(spec.d_model) if kind in ("qkv", "position", "up") else None
