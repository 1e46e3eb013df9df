"""The policy after a bad loss: what counts as trouble, that healthy noise never does, replay first and skip second, and its bounds."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gopher.stability import MAX_REWINDS, MAX_SKIPS, SPIKE_STEPS, WINDOW_STEPS, Watch, plan, skipped_before, skips_of


def watch_after(steps: int = WINDOW_STEPS, loss: float = 3.0) -> Watch:
    watch, draw = Watch(), random.Random(0)
    for _ in range(steps):
        assert watch.trouble(draw.gauss(loss, 0.05), 1.0) is None
    return watch


@pytest.mark.parametrize(("loss", "norm"), [(math.nan, 1.0), (math.inf, 1.0), (3.0, math.nan), (3.0, math.inf)])
def test_what_is_not_finite_is_trouble_at_once(loss: float, norm: float) -> None:
    trouble = Watch().trouble(loss, norm)
    assert trouble is not None and not trouble.spike and f"loss {loss}" in trouble.sentence


def test_a_spike_is_many_high_losses_in_a_row_and_one_is_none() -> None:
    watch = watch_after()
    assert watch.trouble(9.0, 1.0) is None and watch.trouble(3.0, 1.0) is None
    found = [watch.trouble(4.5, 1.0) for _ in range(SPIKE_STEPS)]
    assert found[:-1] == [None] * (SPIKE_STEPS - 1)
    assert found[-1] is not None and found[-1].spike and "far above the usual" in found[-1].sentence


def test_no_spike_is_called_before_it_is_known_what_is_usual() -> None:
    watch = watch_after(WINDOW_STEPS - SPIKE_STEPS - 1)
    assert [watch.trouble(9.0, 1.0) for _ in range(SPIKE_STEPS)] == [None] * SPIKE_STEPS


@given(st.integers(0, 2**32))
def test_a_falling_noisy_loss_is_no_spike(seed: int) -> None:
    watch, draw = Watch(), random.Random(seed)
    losses = (10 * (s + 1) ** -0.2 + draw.gauss(0, 0.1) for s in range(400))
    assert all(watch.trouble(loss, 1.0) is None for loss in losses)


def rewound(step: int) -> dict:
    return {"kind": "rewind", "step": step}


def test_the_same_batches_are_tried_once_more_and_then_passed_over() -> None:
    assert plan([], 40, spike=False).skip is False
    assert plan([rewound(40)], 40, spike=False).skip is True
    assert plan([rewound(40)], 41, spike=False).skip is False  # other trouble
    skip = {"kind": "skip", "step": 30, "sequences": 88}
    assert plan([rewound(40), skip], 40, spike=False).skip is False  # other batches stand there now
    assert plan([{"kind": "warning", "step": 40}], 40, spike=False).skip is False


def test_a_skip_takes_in_those_that_stood_behind_its_beginning() -> None:
    events = [{"kind": "skip", "step": step, "sequences": n} for step, n in ((10, 48), (20, 16), (20, 32), (5, 144))]
    assert skips_of(events[:3]) == ((10, 48), (20, 16), (20, 32)) and skips_of(events) == ((5, 144),)
    assert skipped_before(skips_of(events[:3]), 20) == 96


def test_a_checkpoint_that_gives_trouble_at_once_is_left_behind() -> None:
    """Once may be the step's own fault; twice, the checkpoint itself is doubted."""
    back = {"kind": "rewind", "step": 15, "to": 15}
    assert plan([], 15, spike=False).latest == 15
    assert plan([back], 15, spike=False).latest == 14 and plan([back], 15, spike=False).skip
    assert plan([back | {"to": 10}], 15, spike=False).latest == 15


def test_a_spike_goes_back_behind_its_beginning() -> None:
    assert plan([], 40, spike=False).latest == 40
    assert plan([], 40, spike=True).latest < 40 - SPIKE_STEPS
    assert plan([], 3, spike=True).latest == 0


def test_patience_ends() -> None:
    skips = [{"kind": "skip", "step": 1, "sequences": 8}] * MAX_SKIPS
    assert plan([*skips, rewound(5)], 5, spike=False).hopeless == f"batches were skipped {MAX_SKIPS} times already"
    assert plan([*skips], 5, spike=False).hopeless is None
    assert plan([rewound(i) for i in range(MAX_REWINDS)], 99, spike=False).hopeless is not None


def test_skips_shift_the_order_from_their_step_on() -> None:
    skips = skips_of(
        [rewound(3), {"kind": "skip", "step": 4, "sequences": 16}, {"kind": "skip", "step": 9, "sequences": 8}]
    )
    assert [skipped_before(skips, step) for step in (0, 3, 4, 8, 9)] == [0, 0, 16, 16, 24]
