"""Mistakes in the stand-in's programs, each with a key for the text of its error.

A mistake changes a program that runs, which is then the right answer to the error. Two mistakes
with the same key raise the same error, so that a few hundred texts cover the whole corpus.
`models.stand_in.record` made the table of texts by execution: with it the corpus is the same
wherever it is built, and building it executes nothing.
"""

import dataclasses
import functools
import json
import pathlib
import random
import re
from collections.abc import Callable, Mapping

from models.stand_in import grammar, slips
from models.stand_in.programs import MODULES, Call, Program, names_in, render, render_call

ERRORS = pathlib.Path(__file__).with_name("errors.json")


@dataclasses.dataclass(frozen=True)
class Mistake:
    """A body that fails.

    Attributes:
      body: source text.
      key: name of the error that it raises, in `error_texts`.
    """

    body: str
    key: str


@functools.cache
def error_texts() -> Mapping[str, str]:
    """`Mistake.key` to the error that the executor reports, a line `Type: message`."""
    texts: Mapping[str, str] = json.loads(ERRORS.read_text())
    return texts


def sample_mistake(rng: random.Random, program: Program) -> Mistake:
    """A program that runs, changed by one mistake that is possible in it."""
    while True:
        mistake = grammar.pick(rng, _KINDS)(rng, program)
        if mistake is not None:
            return mistake


def _is_pipeline(program: Program) -> bool:
    return program.form in ("make_pipeline", "Pipeline")


def _outermost(program: Program) -> str:
    return "Pipeline" if _is_pipeline(program) else program.estimator.name


def _used_names(program: Program) -> list[str]:
    return [name for _, names in program.imports for name in names]


def _with_estimator(program: Program, estimator: Call) -> Program:
    """The program with another estimator, imported in the place of the old one's import."""
    old = set(names_in(program.estimator))
    kept = {name for step in program.transformers for name in names_in(step)}
    imports: list[tuple[str, tuple[str, ...]]] = []
    is_imported = False
    for module, names in program.imports:
        if old & set(names) and not is_imported:
            imports += [(MODULES[name], (name,)) for name in names_in(estimator)]
            is_imported = True
        rest = tuple(name for name in names if name not in old or name in kept)
        if rest:
            imports.append((module, rest))
    return dataclasses.replace(program, estimator=estimator, imports=tuple(imports))


def _rename(program: Program, old: str, new: str, *, in_imports: bool) -> str:
    body = render(program)
    *imports, rest = re.split(r"(?<=\n)(?=    (?!from ))", body, maxsplit=1)
    word = re.compile(rf"\b{old}\b")
    head = "".join(imports)
    return (word.sub(new, head) if in_imports else head) + word.sub(new, rest)


def _missing_import(rng: random.Random, program: Program) -> Mistake | None:
    dropped = rng.choice(_used_names(program))
    left = [(module, tuple(n for n in names if n != dropped)) for module, names in program.imports]
    imports = tuple((module, names) for module, names in left if names)
    body = render(dataclasses.replace(program, imports=imports))
    return Mistake(body, f"undefined {dropped}")


def _wrong_module(rng: random.Random, program: Program) -> Mistake | None:
    module, names = rng.choice(program.imports)
    if len(names) > 1 or module not in slips.WRONG_MODULES:
        return None
    wrong = rng.choice(slips.WRONG_MODULES[module])
    imports = tuple((wrong if m == module else m, n) for m, n in program.imports)
    body = render(dataclasses.replace(program, imports=imports))
    return Mistake(body, f"import {wrong} {names[0]}")


def _wrong_name(rng: random.Random, program: Program) -> Mistake | None:
    name = rng.choice(_used_names(program))
    if name not in slips.WRONG_NAMES:
        return None
    wrong = rng.choice(slips.WRONG_NAMES[name])
    if rng.random() < 0.6:
        body = _rename(program, name, wrong, in_imports=True)
        return Mistake(body, f"import {MODULES[name]} {wrong}")
    return Mistake(_rename(program, name, wrong, in_imports=False), f"undefined {wrong}")


def _wrong_argument(rng: random.Random, program: Program) -> Mistake | None:
    call = rng.choice([*program.transformers, program.estimator, program.estimator])
    names = [name for name, _ in call.arguments if name in slips.WRONG_ARGUMENTS]
    if not names:
        return None
    name = rng.choice(names)
    wrong = rng.choice(slips.WRONG_ARGUMENTS[name])
    renamed = Call(call.name, tuple((wrong if n == name else n, v) for n, v in call.arguments))
    return Mistake(render(_replace_call(program, call, renamed)), f"argument {call.name} {wrong}")


def _foreign_argument(rng: random.Random, program: Program) -> Mistake | None:
    name = rng.choice(list(slips.FOREIGN_ARGUMENTS))
    value, classes = slips.FOREIGN_ARGUMENTS[name]
    call = program.estimator
    if call.name not in classes:
        return None
    wrong = Call(call.name, (*call.arguments, (name, value)))
    return Mistake(render(_replace_call(program, call, wrong)), f"argument {call.name} {name}")


def _bad_value(rng: random.Random, program: Program) -> Mistake | None:
    call = program.estimator
    if call.name not in slips.BAD_VALUES:
        return None
    name = rng.choice(list(slips.BAD_VALUES[call.name]))
    value = rng.choice(slips.BAD_VALUES[call.name][name].split())
    if value == "'l1'" and call.get("solver") == "'saga'":
        return None
    solver = f" {call.get('solver') or 'lbfgs'}" if value == "'l1'" else ""
    if name == "shrinkage" and call.get("solver") != "'lsqr'":
        return None
    wrong = _replace_call(program, call, call.replace(name, value))
    return Mistake(render(wrong), f"value {call.name} {name} {value}{solver}")


def _no_probabilities(rng: random.Random, program: Program) -> Mistake | None:
    if program.estimator.name == "VotingClassifier":
        voting = grammar.pick(rng, {"'hard'": 1, "": 1})
        arguments = [item for item in program.estimator.arguments if item[0] != "voting"]
        estimator = Call("VotingClassifier", tuple(arguments))
        wrong = _replace_call(
            program, program.estimator, estimator.replace("voting", voting) if voting else estimator
        )
    else:
        # The pipeline's steps stay, so they must suit the new estimator.
        wrong = _with_estimator(program, grammar.pick(rng, slips.NO_PROBABILITIES))
    return Mistake(render(wrong), f"probabilities {_outermost(wrong)}")


def _undefined_data(rng: random.Random, program: Program) -> Mistake | None:
    arguments = rng.choice(slips.UNDEFINED)
    body = render(dataclasses.replace(program, fit_arguments=arguments))
    known = ("x_train", "y_train")
    return Mistake(body, f"undefined {next(n for n in arguments.split(', ') if n not in known)}")


def _undefined_model(rng: random.Random, program: Program) -> Mistake | None:
    variable = rng.choice(("clf", "classifier", "pipeline", "estimator", "svm"))
    body = render(dataclasses.replace(program, variable=variable))
    if program.fit == "statement" and rng.random() < 0.3:
        body = body.replace(f"\n    {variable}.fit(", "\n    model.fit(")
    return Mistake(body, "undefined model")


def _not_fitted(_: random.Random, program: Program) -> Mistake | None:
    unfitted = dataclasses.replace(program, fit="none")
    return Mistake(render(unfitted), f"unfitted {_outermost(program)}")


def _missing_labels(_: random.Random, program: Program) -> Mistake | None:
    body = render(dataclasses.replace(program, fit_arguments="x_train"))
    if any(step.name == "SelectKBest" for step in program.transformers):
        return Mistake(body, "labels SelectKBest")
    where = " in Pipeline" if _is_pipeline(program) else ""
    return Mistake(body, f"labels {program.estimator.name}{where}")


def _class_not_instance(rng: random.Random, program: Program) -> Mistake | None:
    if not _is_pipeline(program):
        return None
    step = rng.choice(program.transformers)
    body = render(program).replace(render_call(step), step.name)
    return Mistake(body, f"class {step.name}")


def _other_method(rng: random.Random, program: Program) -> Mistake | None:
    method = rng.choice(slips.OTHER_METHODS)
    if method == "fit_transform" and program.estimator.name in slips.TRANSFORMING:
        return None
    body = render(program).replace(".fit(", f".{method}(")
    return Mistake(body, f"method {_outermost(program)} {method}")


def _predictions(rng: random.Random, program: Program) -> Mistake | None:
    method = rng.choice(("predict", "predict_proba"))
    if program.fit == "chained":
        return None
    body = f"{render(program)}\n    model = model.{method}(x_train)"
    return Mistake(body, "returns array")


def _other_package(rng: random.Random, program: Program) -> Mistake | None:
    package = rng.choice(list(slips.OTHER_PACKAGES))
    arguments = (("n_estimators", rng.choice(("10", "20", "50"))),) if rng.random() < 0.6 else ()
    marked = _with_estimator(program, Call("LogisticRegression", arguments))
    body = render(marked).replace("LogisticRegression", slips.OTHER_PACKAGES[package])
    return Mistake(body.replace("from sklearn.linear_model", f"from {package}"), package)


def _forbidden(rng: random.Random, program: Program) -> Mistake | None:
    searched = rng.choice(list(slips.GRIDS))
    arguments = (("", Call(searched)), ("", rng.choice(slips.GRIDS[searched])))
    folds = (("cv", rng.choice(("2", "3", "5"))),) if rng.random() < 0.7 else ()
    wrong = _with_estimator(program, Call("GridSearchCV", (*arguments, *folds)))
    return Mistake(render(wrong), "forbidden GridSearchCV")


def _unsuited_steps(rng: random.Random, program: Program) -> Mistake | None:
    """A transformer whose output the next step refuses: sparse for dense, negative for counts."""
    if not _is_pipeline(program) or len(program.transformers) != 1:
        return None
    (old,) = program.transformers
    if program.estimator.name in ("MultinomialNB", "ComplementNB"):
        step = rng.choice((Call("StandardScaler"), Call("RobustScaler")))
        key = f"negative {program.estimator.name}"
    else:
        bins = Call("KBinsDiscretizer", (("n_bins", "3"),))
        step = rng.choice((bins, Call("OneHotEncoder", (("handle_unknown", "'ignore'"),))))
        key = f"sparse {program.estimator.name}"
    if old.name == step.name or grammar.runs_together((step, program.estimator)):
        return None
    imports = tuple(
        (MODULES[step.name] if names == (old.name,) else module,
         tuple(step.name if name == old.name else name for name in names))
        for module, names in program.imports
    )  # fmt: skip
    if any(module != MODULES[name] for module, names in imports for name in names):
        return None
    wrong = dataclasses.replace(program, transformers=(step,), imports=imports)
    return Mistake(render(wrong), key)


def _steps_not_listed(_: random.Random, program: Program) -> Mistake | None:
    if program.form != "Pipeline":
        return None
    body = render(program).replace("Pipeline([", "Pipeline(").replace("])", ")", 1)
    return Mistake(body, f"Pipeline of {len(program.transformers) + 1} arguments")


def _bracket(program: Program, text: str, key: str) -> Mistake | None:
    """A program with `text` in the place of the bracket that closes its model."""
    if program.fit != "statement":
        return None
    before, after = render(program).rsplit(")\n    ", 1)
    return Mistake(f"{before}{text}\n    {after}", key)


def _unclosed(_: random.Random, program: Program) -> Mistake | None:
    return _bracket(program, "", "syntax unclosed")


def _unmatched(_: random.Random, program: Program) -> Mistake | None:
    return _bracket(program, "))", "syntax unmatched")


def _missing_comma(_: random.Random, program: Program) -> Mistake | None:
    if len(program.estimator.arguments) < 2:
        return None
    text = render_call(program.estimator)
    place = text.rindex(", ")
    wrong = text[:place] + text[place + 1 :]
    return Mistake(render(program).replace(text, wrong), "syntax comma")


def _indentation(rng: random.Random, program: Program) -> Mistake | None:
    body = render(program)
    place = body.rindex("\n    ")
    if rng.random() < 0.5:
        return Mistake(body[:place] + "\n  " + body[place + 5 :], "syntax unindent")
    return Mistake(body[:place] + "\n        " + body[place + 5 :], "syntax indent")


def _replace_call(program: Program, old: Call, new: Call) -> Program:
    if old is program.estimator:
        return dataclasses.replace(program, estimator=new)
    steps = tuple(new if step is old else step for step in program.transformers)
    return dataclasses.replace(program, transformers=steps)


_Kind = Callable[[random.Random, Program], Mistake | None]

_KINDS: Mapping[_Kind, float] = {
    _missing_import: 16,
    _wrong_module: 9,
    _wrong_name: 7,
    _wrong_argument: 12,
    _foreign_argument: 20,
    _bad_value: 16,
    _no_probabilities: 14,
    _undefined_data: 6,
    _undefined_model: 5,
    _not_fitted: 5,
    _missing_labels: 3,
    _class_not_instance: 4,
    _other_method: 3,
    _predictions: 2,
    _other_package: 2,
    _forbidden: 3,
    _unsuited_steps: 6,
    _steps_not_listed: 3,
    _unclosed: 2.5,
    _unmatched: 1.5,
    _missing_comma: 2,
    _indentation: 1.5,
}
