"""The corpus is deterministic; its programs run, and its mistakes fail as recorded."""

import importlib
import random
import warnings

import numpy as np
import pytest

from env.tables.registry import REGISTRY
from env.tasks import prompts
from models.stand_in import corpus, mistakes
from models.stand_in.grammar import runs_together, sample_program
from models.stand_in.mistakes import error_texts, sample_mistake
from models.stand_in.programs import MODULES, Call, names_in, render


def test_documents_follow_from_the_seed():
    first, again, other = (list(corpus.documents(seed, 60)) for seed in (3, 3, 4))
    assert first == again
    assert first != other
    assert first[:20] == list(corpus.documents(3, 20))


def test_documents_show_every_table_in_both_kinds_of_prompt():
    documents = list(corpus.documents(0, 2000))
    shown = [document.prompt for document in documents if document.prompt]
    assert all(prompt.count(prompts.FILL_ME) == 1 for prompt in shown)
    for entry in REGISTRY.values():
        size = f"({prompts.shown_rows(entry.shape[0])}, {entry.shape[1]})"
        own = [p for p in shown if f" a {entry.description} Prediction" in p and size in p]
        reflective = [p for p in own if "An error was reported" in p]
        assert 0 < len(reflective) < len(own), entry.name
    assert any(not document.prompt for document in documents)


def test_shares_of_the_corpus():
    documents = [d for d in corpus.documents(1, 3000) if d.prompt]
    reflective = [d for d in documents if "An error was reported" in d.prompt]
    share = len(reflective) / len(documents)
    assert share == pytest.approx(corpus.SHARES.reflective, abs=0.03)


def test_programs_are_many():
    rng = random.Random(0)
    bodies = [render(sample_program(rng)) for _ in range(64)]
    assert len(set(bodies)) >= 58


def test_every_class_is_where_programs_import_it_from():
    for name, module in MODULES.items():
        assert hasattr(importlib.import_module(f"sklearn.{module}"), name)


def test_sampled_programs_run():
    rng = random.Random(2)
    for _ in range(15):
        _execute(render(sample_program(rng)))


def test_every_kind_of_mistake_changes_the_program_and_has_an_error_text():
    rng = random.Random(5)
    seen = set()
    unknown = 0
    for _ in range(3000):
        program = sample_program(rng)
        mistake = sample_mistake(rng, program)
        assert mistake.body != render(program), mistake.key
        seen.add(mistake.key.split()[0])
        if mistake.key not in error_texts():
            unknown += 1
            continue
        is_syntax = error_texts()[mistake.key].startswith(("SyntaxError", "IndentationError"))
        if is_syntax:
            with pytest.raises(SyntaxError):
                compile(prompts.program(mistake.body), "body", "exec")
        else:
            compile(prompts.program(mistake.body), "body", "exec")
    assert unknown < 30
    assert seen >= {"undefined", "import", "argument", "value", "probabilities", "unfitted"}
    assert seen >= {"labels", "class", "method", "returns", "forbidden", "syntax", "sparse"}
    assert len(mistakes._KINDS) == 22


def test_mistakes_raise_the_recorded_type_of_error():
    rng = random.Random(8)
    left = {"NameError", "ImportError", "ModuleNotFoundError", "TypeError", "AttributeError"}
    left |= {"ValueError", "InvalidParameterError", "NotFittedError", "SyntaxError"}
    left |= {"IndentationError"}
    while left:
        mistake = sample_mistake(rng, sample_program(rng))
        kind, _, message = error_texts().get(mistake.key, "").partition(": ")
        if kind not in left:
            continue
        left.remove(kind)
        with pytest.raises(Exception) as caught:  # noqa: PT011 - the type is what is compared
            _execute(mistake.body)
        assert type(caught.value).__name__ == kind, mistake
        # The wording before what varies between versions and machines.
        assert str(caught.value).split(" ")[0] == message.split(" ")[0], mistake


def test_steps_that_do_not_suit_each_other():
    bins = Call("KBinsDiscretizer", (("n_bins", "3"),))
    dense = bins.replace("encode", "'ordinal'")
    assert not runs_together((bins, Call("GaussianNB")))
    assert runs_together((dense, Call("GaussianNB")))
    assert runs_together((bins, Call("LogisticRegression")))
    assert not runs_together((Call("StandardScaler"), Call("MultinomialNB")))
    nested = Call("VotingClassifier", (("", (("nb", Call("GaussianNB")),)),))
    assert not runs_together((bins, nested))


def test_replacing_an_argument_keeps_its_place():
    call = Call("A", (("", "x"), ("", "y"), ("b", "1"), ("c", "2")))
    expected = (("", "x"), ("", "y"), ("b", "3"), ("c", "2"))
    assert call.replace("b", "3").arguments == expected
    assert call.replace("d", "4").arguments == (*call.arguments, ("d", "4"))


def test_held_out_programs_are_unseen():
    known = {render(sample_program(random.Random(7)))}
    held_out = corpus.held_out(7, 10, known)
    assert len(set(held_out)) == 10
    assert not {prompts.program(body) for body in known} & set(held_out)
    assert held_out == corpus.held_out(7, 10, known)


def test_names_of_nested_calls_are_found():
    assert names_in(
        Call("BaggingClassifier", (("", Call("GaussianNB")), ("n_estimators", "5")))
    ) == ["BaggingClassifier", "GaussianNB"]


def _execute(body: str) -> None:
    """Programs of the grammar train on a table of four columns and three classes."""
    rng = np.random.default_rng(0)
    x = rng.integers(1, 6, (60, 4)).astype(float)
    y = np.digitize(x[:, 0] * x[:, 1] - x[:, 2] * x[:, 3], [-3, 3])
    scope: dict = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exec(compile(prompts.program(body), "body", "exec"), scope)
        scores = scope["build_model"](x, y).predict_proba(x)
    assert scores.shape == (60, 3)
