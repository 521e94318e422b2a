"""Docstrings under `python -OO`, which strips them. Help texts and the messages of some errors are docstrings."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable
from typing import Any

import typer


def docstring(item: type[Any] | Callable[..., Any]) -> str:
    """The docstring of a class or function, from its source if it was stripped. Without a source: the name."""
    if item.__doc__ is None:
        try:
            node = ast.parse(textwrap.dedent(inspect.getsource(item))).body[0]
        except OSError:
            return item.__name__
        return (isinstance(node, ast.FunctionDef | ast.ClassDef) and ast.get_docstring(node)) or item.__name__
    return inspect.cleandoc(item.__doc__)


def restore_help(app: typer.Typer) -> None:
    """Give each command and command group of this app its docstring, from which Typer makes the help text."""
    callbacks = [command.callback for command in app.registered_commands]
    if app.registered_callback:
        callbacks.append(app.registered_callback.callback)
    for callback in filter(None, callbacks):
        callback.__doc__ = docstring(callback)
    for group in app.registered_groups:
        if group.typer_instance is not None:
            restore_help(group.typer_instance)
