"""The tiny model of the inference tests: random weights everywhere, so that every parameter shows."""

import numpy as np
import torch
from scipy import stats

from gopher.model import Transformer
from gopher.spec import ModelSpec

SPEC = ModelSpec(n_layers=2, n_heads=2, d_head=8, d_model=16, vocab_size=40, context=64)


def model_of(dtype: torch.dtype = torch.float64, spec: ModelSpec = SPEC, seed: int = 0) -> Transformer:
    """A model with N(0, 0.3) weights and gains about 1."""
    model = Transformer(spec).to(torch.float64)
    generator = torch.Generator().manual_seed(seed)
    for name, p in model.named_parameters():
        noise = 0.3 * torch.randn(p.shape, generator=generator, dtype=torch.float64)
        p.data.copy_(noise + 1 if name.endswith("gain") else noise)
    return model.to(dtype).eval()


def chi_square(counts: np.ndarray, expected: np.ndarray) -> float:
    """p-value of observed counts, cells expected at most 5 times pooled into one."""
    keep = expected > 5
    observed, wanted = [*counts[keep]], [*expected[keep]]
    if expected[~keep].sum() > 0:
        observed, wanted = [*observed, counts[~keep].sum()], [*wanted, expected[~keep].sum()]
    return float(stats.chisquare(observed, wanted).pvalue)
