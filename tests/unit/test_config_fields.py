"""Every key of a configuration is read by something: a key that nothing reads is a false promise.

The package's source is walked with just enough type inference to tell whose field ``x.field`` is:
annotated parameters and class fields, ``self.name``, aliases, unpacked tuples, loops, and calls of
functions whose result is annotated.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel

import forkpoint
from forkpoint.config import RunConfig, evaluation, rewards, stages, tracking
from forkpoint.config.stages import Stage

PACKAGE = Path(forkpoint.__file__).parent
MODELS: dict[str, type[Stage]] = {
    name: value
    for name, value in {
        **vars(stages),
        **vars(rewards),
        **vars(evaluation),
        **vars(tracking),
        "RunConfig": RunConfig,
    }.items()
    if isinstance(value, type) and issubclass(value, Stage)
}
UNIONS = {**vars(stages), **vars(rewards)}
"""``TaskConfig``, ``RewardConfig``: names of several classes."""
RESOLVED_IN_CONFIG = {
    "type",  # a union's tag: pydantic reads it to choose the class
    "preset",  # config.presets fills in what it stands for
}

Types = frozenset[type[BaseModel]]
NONE: Types = frozenset()


def models_in(annotation: Any) -> Types:
    """The configuration classes that occur in a field's annotation."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return frozenset({annotation})
    return NONE.union(*map(models_in, get_args(annotation)))


def models_named(annotation: ast.expr | None) -> Types:
    """The same for an annotation in the source, such as ``RunConfig | None`` or ``TaskConfig``."""
    found = NONE
    for word in re.findall(r"\w+", ast.unparse(annotation)) if annotation else []:
        found |= models_in(MODELS.get(word) or UNIONS.get(word))
    return found


def results(modules: list[ast.Module]) -> dict[str, Types]:
    """Function name -> the configuration classes it returns."""
    return {
        node.name: models_named(node.returns)
        for module in modules
        for node in ast.walk(module)
        if isinstance(node, ast.FunctionDef)
    }


class Reader(ast.NodeVisitor):
    """Notes every (class, field) that a module reads."""

    def __init__(self, results: dict[str, Types], read: set[tuple[type[BaseModel], str]]) -> None:
        self.results = results
        self.read = read
        self.names: dict[str, Types] = {}
        self.own: dict[str, Types] = {}  # attributes of ``self``

    def types(self, node: ast.expr) -> Types:
        """The configuration classes an expression may be of."""
        match node:
            case ast.Name(id=name):
                return self.names.get(name, NONE)
            case ast.Attribute(value=ast.Name(id="self"), attr=name):
                return self.own.get(name, NONE)
            case ast.Attribute(value=value, attr=name):
                owners = [m for m in self.types(value) if name in m.model_fields]
                return NONE.union(*(models_in(m.model_fields[name].annotation) for m in owners))
            case ast.Call(func=ast.Name(id=name)):
                return self.results.get(name, NONE)
        return NONE

    def visit_Attribute(self, node: ast.Attribute) -> None:
        if isinstance(node.ctx, ast.Load):
            owners = [m for m in self.types(node.value) if node.attr in m.model_fields]
            self.read |= {(owner, node.attr) for owner in owners}
        self.generic_visit(node)

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        outer, self.own = self.own, {}
        for _ in range(2):  # a method may stand before the one that sets an attribute
            self.generic_visit(node)
        self.own = outer

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        outer, self.names = self.names, dict(self.names)
        for argument in [*node.args.args, *node.args.kwonlyargs]:
            self.names[argument.arg] = models_named(argument.annotation)
        self.generic_visit(node)
        self.names = outer

    def visit_Assign(self, node: ast.Assign) -> None:
        self.generic_visit(node)
        for target in node.targets:
            self.bind(target, node.value)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        self.generic_visit(node)
        match node.target:
            case ast.Name(id=name):
                self.names[name] = self.own[name] = models_named(node.annotation)
            case ast.Attribute(value=ast.Name(id="self"), attr=name):
                self.own[name] = models_named(node.annotation)

    def visit_For(self, node: ast.For) -> None:
        self.bind(node.target, node.iter)
        self.generic_visit(node)

    def visit_ListComp(
        self, node: ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp
    ) -> None:
        for loop in node.generators:
            self.bind(loop.target, loop.iter)
        self.generic_visit(node)

    visit_SetComp = visit_DictComp = visit_GeneratorExp = visit_ListComp

    def bind(self, target: ast.expr, value: ast.expr) -> None:
        match target, value:
            case ast.Tuple(elts=targets), ast.Tuple(elts=values):
                for one, other in zip(targets, values, strict=False):
                    self.bind(one, other)
            case ast.Name(id=name), _:
                self.names[name] = self.types(value)
            case ast.Attribute(value=ast.Name(id="self"), attr=name), _:
                self.own[name] = self.types(value) or self.own.get(name, NONE)


def fields_read(modules: list[ast.Module]) -> set[tuple[type[BaseModel], str]]:
    read: set[tuple[type[BaseModel], str]] = set()
    known = results(modules)
    for module in modules:
        Reader(known, read).visit(module)
    return read


def sources() -> Iterator[Path]:
    return (p for p in PACKAGE.rglob("*.py") if p.relative_to(PACKAGE).parts[0] != "config")


def test_every_field_is_read() -> None:
    modules = [ast.parse(path.read_text(encoding="utf-8")) for path in sources()]
    read = {f"{model.__name__}.{field}" for model, field in fields_read(modules)}
    promised = {
        f"{model.__name__}.{field}"
        for model in MODELS.values()
        if not model.__subclasses__()  # a base class is no section
        for field in model.model_fields
        if field not in RESOLVED_IN_CONFIG
    }
    assert len(promised) > 80
    assert promised - read == set()


def test_the_reader_tells_a_read_from_what_looks_like_one() -> None:
    module = ast.parse(
        """
class Part:
    stage: OptimConfig

    def early(self): return self._config.every

    def __init__(self, config: "RunConfig | None", other):
        self._config = config.checkpoint
        self.steps = other.steps
        config.training.steps = 3 if other.lr else self.stage.beta1

def make() -> RunConfig: ...

def f(task: TaskConfig, seed):
    c, s = make(), seed
    loss = c.loss
    print(loss.clip_low, s.samples, [r.weight for r in c.rewards], task.chat)
"""
    )
    found = {(model.__name__, field) for model, field in fields_read([module])}
    sections = {("RunConfig", name) for name in ("checkpoint", "loss", "rewards", "training")}
    rewards = models_in(RunConfig.model_fields["rewards"].annotation)
    assert found == sections | {(model.__name__, "weight") for model in rewards} | {
        ("CheckpointConfig", "every"),
        ("OptimConfig", "beta1"),
        ("LossConfig", "clip_low"),
        ("GymTaskConfig", "chat"),
        ("DataTaskConfig", "chat"),
    }
