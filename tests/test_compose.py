"""Composition: the shipped configs compose, and every mistake is one sentence with the value and the closest right word."""

import pytest

from gopher.errors import UsageError
from sweeps.compose import compose, groups, hydra_session, known_keys


@pytest.fixture(autouse=True)
def session():  # type: ignore[no-untyped-def]
    with hydra_session():
        yield


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("optim.lrr=1", "unknown key 'optim.lrr'; did you mean 'optim.lr'"),
        ("swep=demo", "unknown key 'swep'; did you mean 'sweep'"),
        ("sweep=dmo", "sweep=dmo is not a known choice; did you mean 'demo'"),
        ("precision=fp8", "precision has bfloat16_sr, float32, mixed"),
        ("demo", "'demo' is not an override; write key=value"),
        ("model.d_modle=64", "did you mean 'model.d_model'"),
        ("data=../model/54k", "data=../model/54k is not a known choice"),
        ("cluster=../sweep/demo", "(cluster has local, ray)"),
        ("sweep=[demo,demo_lr]", "sweep=[demo,demo_lr] is not a known choice"),
        ("data=null", "data=null is not a known choice"),
        ("+data@optim=local", "unknown key 'data@optim'"),
        ("~tokens", "~tokens would take a part of the config away; give tokens another value"),
        ("~optim", "~optim would take a part of the config away"),
        ("~axes", "~axes would take a part of the config away"),
        ("axes=5", "axes is 5 but has keys of its own"),
        ("placement=5", "as in placement.workers=..."),
        ("data.weights=5", "data.weights is 5 but has keys of its own"),
        ("data.subsets=5", "data.subsets is 5; give a list of values"),
        ("launch={foo: 1}", "unknown key 'launch.foo'"),
        ("launch={max_attempt: 1}", "did you mean 'launch.max_attempts'"),
        ("extra_seeds.54k=[1]", "write 'extra_seeds={54k: [1]}'"),
        ("tracking.uri=http://a/b?x=y", "quote the value: 'tracking.uri=\"...\"'"),
        ("optim.lr=1,2", "write axes.optim.lr=[...]"),
        ("parent=", "parent is given without a value; leave it out, or give one (null where it may be none)"),
        ("+chat.draft=", "chat.draft is given without a value"),
    ],
)
def test_mistakes_are_one_sentence_with_the_cure(override: str, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        compose([override])
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_every_rung_has_the_same_keys() -> None:
    """So that a composition need not be looked through once per rung."""
    first, *others = (known_keys((f"model={rung}",)).keys() for rung in groups()["model"])
    assert all(keys == first for keys in others)


def test_values_may_be_quoted_and_sections_given_as_mappings() -> None:
    tree = compose(['tracking.uri="http://a/b?x=y"', "launch={max_attempts: 7}", "~axes.seed"]).tree
    assert tree["tracking"]["uri"] == "http://a/b?x=y" and tree["axes"] == {}
    assert tree["launch"]["max_attempts"] == 7 and tree["launch"]["hang_seconds"] == 900


def test_every_choice_of_every_group_composes() -> None:
    for group, choices in groups().items():
        for choice in choices:
            extra = ["data.path=x"] if (group, choice) == ("data", "local") else []
            extra += ["tracking.uri=http://127.0.0.1:5000"] if (group, choice) == ("tracking", "server") else []
            assert compose([f"{group}={choice}", *extra]).tree["name"]


def test_free_form_keys_need_no_plus() -> None:
    tree = compose(["axes.optim.lr=[0.01,0.02]", "columns.loss=val", "extra_seeds={54k: [5]}", "pinned.E=1.69"]).tree
    assert tree["axes"]["optim"]["lr"] == [0.01, 0.02]
    assert tree["columns"] == {"loss": "val"} and tree["extra_seeds"]["54k"] == [5] and tree["pinned"] == {"E": 1.69}


def test_a_mistake_is_not_blamed_on_keys_of_the_chosen_groups() -> None:
    with pytest.raises(UsageError, match="unknown key 'optim.lrr'"):
        compose(["data=local", "data.path=x", "optim.lrr=1"])


def test_extra_seeds_of_another_rung_are_added() -> None:
    assert compose(["extra_seeds={54k: [], 121k: [7]}"]).tree["extra_seeds"]["121k"] == [7]


def test_numbers_keep_their_types() -> None:
    """YAML 1.1 reads 6e-4 as a string; the configs must not."""
    for rung in groups()["model"]:
        tree = compose(["sweep=gopher", f"model={rung}"]).tree
        assert isinstance(tree["optim"]["lr"], float) and isinstance(tree["tokens"], float)


def test_command_line_wins_over_sweep_and_model() -> None:
    tree = compose(["sweep=gopher", "model=280b", "optim.lr=1.0e-3", "tokens=1000", "precision=float32"]).tree
    assert (tree["optim"]["lr"], tree["tokens"], tree["precision"]["compute"]) == (1e-3, 1000, "float32")


def test_interpolated_keys_are_known() -> None:
    assert "tokenizer.vocab_size" in compose([]).interpolated
