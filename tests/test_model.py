"""Proves: the model has exactly the published shapes' parameters, its loss is cross-entropy, its gradients are right.

Parameter counts of all six rungs on the meta device; the loss pass against torch's own; float64 gradients against
finite differences through the whole model; initial values do not depend on who fills them.
"""

import logging
import math

import pytest
import torch
import torch.nn.functional as F

from gopher.model import LOSS_TOKENS, Norm, Transformer, block_loss, initial_std, initialise, summed_loss
from gopher.size import params_total
from gopher.spec import ModelSpec

torch.set_num_threads(1)
RUNGS = {  # layers, heads, d_head, d_model (Rae et al. 2021, Table 1) -> parameters with a vocabulary of 32,000
    "44M": (8, 16, 32, 512, 43_663_872),
    "117M": (12, 12, 64, 768, 116_626_176),
    "417M": (12, 12, 128, 1536, 417_277_440),
    "1.4B": (24, 16, 128, 2048, 1_374_357_504),
    "7.1B": (32, 32, 128, 4096, 7_110_922_240),
    "280B": (80, 128, 128, 16384, 279_702_421_504),
}
GOLDEN_LOSS = 4.101598368962633
TINY = ModelSpec(n_layers=2, n_heads=2, d_head=8, d_model=16, vocab_size=50, context=24)


def tiny(dtype: torch.dtype = torch.float32, recompute: str = "none", attention: str = "auto") -> Transformer:
    model = Transformer(TINY, attention, recompute).to(dtype)
    initialise(((name, p.detach(), 0) for name, p in model.named_parameters()), TINY, seed=5)
    return model


def batch(sequences: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    tokens = torch.randint(
        0, TINY.vocab_size, (sequences, TINY.context + 1), generator=torch.Generator().manual_seed(1)
    )
    return tokens[:, :-1], tokens[:, 1:].clone()


@pytest.mark.parametrize("rung", RUNGS)
def test_published_parameter_counts(rung: str) -> None:
    layers, heads, d_head, d_model, parameters = RUNGS[rung]
    spec = ModelSpec(n_layers=layers, n_heads=heads, d_head=d_head, d_model=d_model, vocab_size=32_000, context=2048)
    with torch.device("meta"):
        model = Transformer(spec)
    assert sum(p.numel() for p in model.parameters()) == parameters == params_total(spec)


def test_loss_is_the_cross_entropy_of_the_logits() -> None:
    model, (inputs, targets) = tiny(), batch()
    targets[2, 7:] = -100
    logits = model(inputs)
    assert logits.shape == (3, TINY.context, TINY.vocab_size) and logits.dtype == torch.float32
    expected = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-100, reduction="sum")
    torch.testing.assert_close(model(inputs, targets), expected)
    with torch.no_grad():
        torch.testing.assert_close(model(inputs, targets), expected.detach())


def test_loss_gradients_equal_those_of_torch() -> None:
    generator = torch.Generator().manual_seed(0)
    x, embedding = (torch.randn(n, 8, generator=generator).requires_grad_() for n in (2 * LOSS_TOKENS["cpu"] + 5, 40))
    targets = torch.randint(0, 40, (len(x),), generator=generator)
    targets[3:9] = -100
    ours = torch.autograd.grad(summed_loss(x, embedding, targets) / 7, (x, embedding))
    theirs = torch.autograd.grad(F.cross_entropy(x @ embedding.T, targets, reduction="sum") / 7, (x, embedding))
    torch.testing.assert_close(ours, theirs)


def test_narrow_logits_lose_nothing_more_in_the_loss() -> None:
    """Loss and probabilities of bfloat16 logits are those of the same numbers in float64."""
    generator = torch.Generator().manual_seed(0)
    scores = (3 * torch.randn(50, 400, generator=generator)).to(torch.bfloat16)
    targets = torch.randint(0, 400, (50,), generator=generator)
    nats, p = block_loss(scores, targets)
    assert nats.item() == pytest.approx(F.cross_entropy(scores.double(), targets, reduction="sum").item(), rel=1e-6)
    torch.testing.assert_close(p.double(), torch.softmax(scores.double(), dim=-1), rtol=1e-5, atol=1e-9)


def test_loss_survives_a_target_of_probability_zero() -> None:
    """A logit gap of 200 nats: the probability underflows, the loss does not."""
    x, embedding = torch.tensor([[200.0]], requires_grad=True), torch.tensor([[1.0], [0.0]])
    assert summed_loss(x, embedding, torch.tensor([1])).item() == pytest.approx(200.0)


def test_gradients_equal_finite_differences_through_the_whole_model() -> None:
    model, (inputs, targets) = tiny(torch.float64), batch(1)
    generator = torch.Generator().manual_seed(2)
    for p in model.parameters():  # away from u = v = 0 and gains = 1
        p.data += 0.1 * torch.randn(p.shape, generator=generator, dtype=torch.float64)
    model(inputs, targets).backward()
    for name, p in model.named_parameters():
        assert p.grad is not None
        direction = torch.randn(p.shape, generator=generator, dtype=torch.float64)
        values = []
        for sign in (1, -1):
            p.data += sign * 1e-5 * direction
            with torch.no_grad():
                values.append(model(inputs, targets).item())
            p.data -= sign * 1e-5 * direction
        slope = (values[0] - values[1]) / 2e-5
        assert slope == pytest.approx((p.grad * direction).sum().item(), rel=1e-5, abs=1e-6), name


def test_norm_equals_torch() -> None:
    norm = Norm(12)
    torch.nn.init.normal_(norm.gain, generator=torch.Generator().manual_seed(0))
    x = torch.randn(2, 5, 12, generator=torch.Generator().manual_seed(1), requires_grad=True)
    ours, theirs = norm(x), F.rms_norm(x, (12,), norm.gain, 1e-6)
    probe = torch.linspace(-1, 1, ours.numel()).view_as(ours)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(
        torch.autograd.grad((ours * probe).sum(), (x, norm.gain)),
        torch.autograd.grad((theirs * probe).sum(), (x, norm.gain)),
    )


def test_a_float16_row_of_any_size_has_unit_norm() -> None:
    """Its square leaves float16 at a norm of 256."""
    x = 20 * torch.randn(4, 512, generator=torch.Generator().manual_seed(0))
    norm = Norm(512)
    norm.gain.data.fill_(1.0)
    torch.testing.assert_close(norm.half()(x.half()).float(), F.rms_norm(x, (512,)), rtol=2e-3, atol=1e-3)


def test_blocks_of_a_narrow_model_get_exact_sinusoids() -> None:
    """bfloat16 has 641 of the first 2,048 integers: positions must be counted in wider numbers, and rounded at the end."""
    model = tiny(torch.bfloat16)
    tables = []
    model.blocks[0].register_forward_pre_hook(lambda _block, given: tables.append(given[1]))
    with torch.no_grad():
        model(torch.zeros(1, 2048, dtype=torch.int64))
    rates = 10_000.0 ** (-torch.arange(0, TINY.d_model, 2, dtype=torch.float64) / TINY.d_model)
    angles = torch.arange(2048, dtype=torch.float64)[:, None] * rates
    exact = torch.cat([angles.sin(), angles.cos()], dim=1)
    assert tables[0].dtype == torch.bfloat16 and (tables[0].double() - exact).abs().max() <= 2**-8


@pytest.mark.parametrize("recompute", ["selective", "full"])
def test_activation_checkpointing_changes_no_bit(recompute: str) -> None:
    inputs, targets = batch()
    plain, saving = tiny(), tiny(recompute=recompute)
    for model in (plain, saving):
        model(inputs, targets).backward()
    for (name, a), b in zip(plain.named_parameters(), saving.parameters(), strict=True):
        assert a.grad is not None and b.grad is not None
        assert torch.equal(a.grad, b.grad), name


@pytest.mark.parametrize("attention", ["reference", "sdpa_bias", "chunked"])
def test_attention_choice_is_only_an_implementation(attention: str) -> None:
    inputs, targets = batch()
    torch.testing.assert_close(
        tiny(torch.float64, attention=attention)(inputs, targets), tiny(torch.float64)(inputs, targets)
    )


def test_initial_values_have_the_stated_spread() -> None:
    spec = ModelSpec(n_layers=3, n_heads=4, d_head=16, d_model=64, vocab_size=500, context=32)
    model = Transformer(spec)
    initialise(((name, p.detach(), 0) for name, p in model.named_parameters()), spec, seed=0)
    for name, p in model.named_parameters():
        std = initial_std(name, spec)
        if std is None:
            assert torch.equal(p, torch.full_like(p, 1.0 if name.endswith("gain") else 0.0)), name
        else:
            assert p.std().item() == pytest.approx(std, rel=0.05), name
            assert abs(p.mean().item()) < 5 * std / math.sqrt(p.numel()), name
    with torch.no_grad():
        inputs = torch.randint(0, 500, (4, 32), generator=torch.Generator().manual_seed(0))
        assert model(inputs, inputs.roll(1)).item() / 128 == pytest.approx(math.log(500) + 0.125, abs=0.15)


def test_initial_values_do_not_depend_on_the_cut() -> None:
    whole = torch.empty(40, 16)
    initialise([("blocks.0.up.weight", whole, 0)], TINY, seed=3)
    for rows in (1, 7, 16):
        pieces = [torch.empty(len(part), 16) for part in whole.split(rows)]
        initialise([("blocks.0.up.weight", piece, i * rows * 16) for i, piece in enumerate(pieces)], TINY, seed=3)
        assert torch.equal(torch.cat(pieces), whole)


def test_golden_loss() -> None:
    """The first loss of the tiny model: it moves only when the model, the initialisation or the loss changes."""
    inputs, targets = batch()
    assert tiny(torch.float64)(inputs, targets).item() / targets.numel() == pytest.approx(GOLDEN_LOSS, rel=1e-9)


def test_every_model_logs_its_attention_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "gopher.model"):
        for model in (tiny(), tiny()):
            model(batch()[0])
            model(batch()[0])
    said = "chunked attention for torch.float32 on cpu, 2 heads of width 8 (triton runs on CUDA, not on cpu)"
    assert [r.getMessage() for r in caplog.records] == [said] * 2


@pytest.mark.filterwarnings("ignore")  # of the compiler
@pytest.mark.parametrize("recompute", ["none", "selective"])
def test_compiled_blocks_give_the_same_loss_and_gradients_at_any_length(recompute: str) -> None:
    """Each block is one graph: neither the choice of the attention nor its table breaks it, and lengths may change."""
    plain, compiled = (tiny(recompute=recompute, attention="sdpa_bias") for _ in range(2))
    for block in compiled.blocks:
        block.compile(fullgraph=True, backend="aot_eager")
    for length in (12, 7):
        inputs, targets = (x[:, :length] for x in batch())
        losses = [model(inputs, targets) for model in (plain, compiled)]
        torch.testing.assert_close(*losses)
        for model, loss in zip((plain, compiled), losses, strict=True):
            model.zero_grad()
            loss.backward()
        for ours, theirs in zip(compiled.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(ours.grad, theirs.grad)
