"""Blocks of code in README and docs: they compile, and every name and keyword of occfast in them exists."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import shlex
from typing import Any

import pytest
import torch
import typer.main
from torch import nn

import occfast
from occfast.cli import app

from .pages import Block, blocks, commands

PYTHON = list(blocks("python"))
COMMANDS = list(commands())


class Names(ast.NodeVisitor):
    """Resolves what a block takes from occfast, without running it."""

    def __init__(self) -> None:
        self.known: dict[str, Any] = {"occfast": occfast}
        self.wrong: list[str] = []

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            if alias.name.split(".")[0] == "occfast":
                module = importlib.import_module(alias.name)
                self.known[alias.asname or "occfast"] = module if alias.asname else occfast

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        if node.module and node.module.split(".")[0] == "occfast":
            module = importlib.import_module(node.module)
            for alias in node.names:
                try:
                    found = getattr(module, alias.name, None) or importlib.import_module(f"{node.module}.{alias.name}")
                    self.known[alias.asname or alias.name] = found
                except ImportError:
                    self.wrong.append(f"{node.module} has no {alias.name}")

    def resolve(self, node: ast.expr) -> Any:
        """Return the object that a dotted name stands for; None if it is not occfast's."""
        if isinstance(node, ast.Name):
            return self.known.get(node.id)
        if isinstance(node, ast.Attribute) and (owner := self.resolve(node.value)) is not None:
            if not hasattr(owner, node.attr):
                self.wrong.append(f"{ast.unparse(node)} does not exist")
                return None
            return getattr(owner, node.attr)
        return None

    def visit_Attribute(self, node: ast.Attribute) -> None:
        self.resolve(node)
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        target = self.resolve(node.func)
        if callable(target) and not any(isinstance(a, ast.Starred) for a in node.args):
            keywords = {k.arg: None for k in node.keywords if k.arg is not None}
            bind = inspect.signature(target).bind_partial if _open(node) else inspect.signature(target).bind
            try:
                bind(*node.args, **keywords)
            except TypeError as error:
                self.wrong.append(f"{ast.unparse(node.func)}: {error}")
        self.generic_visit(node)


def _open(node: ast.Call) -> bool:
    """Return whether a call leaves arguments out: ``f(a, ...)`` or ``f(**more)``."""
    dots = any(isinstance(a, ast.Constant) and a.value is Ellipsis for a in node.args)
    return dots or any(k.arg is None for k in node.keywords)


def check(text: str) -> list[str]:
    names = Names()
    names.visit(ast.parse(text))
    return sorted(set(names.wrong))


@pytest.mark.parametrize("block", PYTHON, ids=str)
def test_python_names_exist(block: Block) -> None:
    assert check(block.text) == []


def test_wrong_names_are_found() -> None:
    assert check("import occfast\noccfast.occlusion_mop(m)") == ["occfast.occlusion_mop does not exist"]
    assert check("from occfast.data import Floder") == ["occfast.data has no Floder"]
    assert "unexpected keyword argument 'sized'" in check("import occfast\noccfast.NoisyOccluder(sized=3)")[0]
    assert check("import occfast\noccfast.NoisyOccluder((20, 40), 'normal', seed=1)\nother.thing(1)") == []


def test_pages_have_code() -> None:
    assert len(PYTHON) > 12
    assert len(COMMANDS) > 25


@pytest.mark.parametrize("block", COMMANDS, ids=str)
def test_commands_exist_with_their_options(block: Block) -> None:
    line = re.split(r"\s#\s|\s#$", block.text)[0].replace("…", "")
    words = shlex.split(line)
    words = words[words.index("occfast") + 1 :]
    command = typer.main.get_command(app)
    while isinstance(command, typer.core.TyperGroup):
        name = words.pop(0)
        assert name in command.commands, f"no command {name}"
        command = command.commands[name]
    known = {flag for p in command.params for flag in (*p.opts, *p.secondary_opts)} | {"--help", "-h"}
    for word in words:
        if re.match(r"--?[a-z]", word):
            assert word.split("=")[0] in known, f"{block.text}: no option {word}"


def test_readme_runs(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run README's code, with a small network and a loader in place of the reader's own."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    images = torch.rand(6, 1, 48, 48)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(4), nn.Flatten(), nn.Linear(484, 3)).eval()
    with torch.no_grad():
        labels = model(images).argmax(1)
    batches = [(images, labels, torch.arange(6))]
    scope = {"model": model, "images": images, "labels": labels, "loader": batches, "criterion": nn.CrossEntropyLoss()}
    for block in PYTHON:
        if block.page == "README.md":
            exec(compile(block.text, str(block), "exec"), scope)
    assert (tmp_path / "map.html").is_file()
    assert scope["loss"].item() > 0
