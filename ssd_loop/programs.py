"""What is in an answer: its code, whether that is code at all, and its shape apart from names."""

from __future__ import annotations

import ast
import builtins
import hashlib
import re
import warnings

# An opening fence may name a language; the block ends at a fence on a line of its own or with the text.
_FENCE = re.compile(r"^[ \t]*```[^\n`]*\n(.*?)(?:^[ \t]*```[ \t\r]*$|\Z)", re.DOTALL | re.MULTILINE)
_THINKING_BEGINS, _THINKING_ENDS = "<think>", "</think>"
# GPT-OSS names the channel of each of its messages; the answer is in the final one.
_CHANNEL, _FINAL_BEGINS, _FINAL_ENDS = "<|channel|>", "<|channel|>final<|message|>", "<|end|>"
_BUILTINS = frozenset(dir(builtins))


def extract_code(text: str) -> str | None:
    """The last fenced block after any thinking part, or None where there is none."""
    blocks = _FENCE.findall(final_answer(text))
    return blocks[-1] if blocks else None


def final_answer(text: str) -> str:
    """What is said after thinking: nothing where the thinking part was cut."""
    if _CHANNEL in text:
        _, final, answer = text.rpartition(_FINAL_BEGINS)
        return answer.partition(_FINAL_ENDS)[0] if final else ""
    return text.rpartition(_THINKING_ENDS)[2].partition(_THINKING_BEGINS)[0]


def parse(code: str) -> ast.Module | None:
    """The syntax tree, or None if this is not Python."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes and the like are the sample's affair
            return ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def is_stub(code: str) -> bool:
    """Whether the code does nothing: a single line, or only pass, ..., docstrings or NotImplementedError.

    Source: arXiv 2604.01193 section 3.1 (single-line stubs); the statement rule is ours.
    """
    lines = [line for line in code.splitlines() if line.strip() and not line.strip().startswith("#")]
    if len(lines) <= 1:
        return True
    tree = parse(code)
    return tree is not None and not any(_works(node) for node in _statements(tree))


def _statements(tree: ast.Module) -> list[ast.stmt]:
    containers = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Import, ast.ImportFrom)
    return [n for n in ast.walk(tree) if isinstance(n, ast.stmt) and not isinstance(n, containers)]


def _works(node: ast.stmt) -> bool:
    if isinstance(node, ast.Pass):
        return False
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return False
    raised = node.exc if isinstance(node, ast.Raise) else None
    name = raised.func if isinstance(raised, ast.Call) else raised
    return not (isinstance(name, ast.Name) and name.id == "NotImplementedError")


def canonical_hash(code: str) -> str | None:
    """Hash of the program's structure, or None if it does not parse.

    Names are numbered in order of appearance (attributes and built-ins keep theirs), docstrings and
    annotations are dropped: renaming, comments and layout make no new program.
    """
    tree = parse(code)
    if tree is None:
        return None
    try:
        shape = ast.dump(_Canonical().visit(tree), annotate_fields=False)
    except (RecursionError, ValueError):  # nested too deep, or an integer too long to print
        return None
    return hashlib.sha256(shape.encode()).hexdigest()


class _Canonical(ast.NodeTransformer):
    def __init__(self) -> None:
        self._names: dict[str, str] = {}

    def _name(self, name: str) -> str:
        if name in _BUILTINS:
            return name
        return self._names.setdefault(name, f"n{len(self._names)}")

    def visit_Name(self, node: ast.Name) -> ast.AST:
        return ast.Name(self._name(node.id), node.ctx)

    def visit_arg(self, node: ast.arg) -> ast.AST:
        return ast.arg(self._name(node.arg), None)

    def visit_keyword(self, node: ast.keyword) -> ast.AST:
        # A keyword of a local function is renamed with it; one of a library function names its API.
        name = self._names.get(node.arg, node.arg) if node.arg else None
        return ast.keyword(name, self.visit(node.value))

    def visit_alias(self, node: ast.alias) -> ast.AST:
        return ast.alias(node.name, self._name(node.asname) if node.asname else None)

    def visit_Global(self, node: ast.Global) -> ast.AST:
        return ast.Global([self._name(name) for name in node.names])

    def visit_Nonlocal(self, node: ast.Nonlocal) -> ast.AST:
        return ast.Nonlocal([self._name(name) for name in node.names])

    def visit_ExceptHandler(self, node: ast.ExceptHandler) -> ast.AST:
        node.name = self._name(node.name) if node.name else None
        return self.generic_visit(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST | None:
        if node.value is None:
            return None
        return self.visit(ast.Assign([node.target], node.value))  # type: ignore[no-any-return]

    def visit_Module(self, node: ast.Module) -> ast.AST:
        return self.generic_visit(_without_docstring(node))

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        node.name = self._name(node.name)
        return self.generic_visit(_without_docstring(node))

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.name, node.returns = self._name(node.name), None
        return self.generic_visit(_without_docstring(node))

    visit_AsyncFunctionDef = visit_FunctionDef  # type: ignore[assignment]


def _without_docstring(node: ast.Module | ast.ClassDef | ast.FunctionDef) -> ast.AST:
    first = node.body[0] if node.body else None
    value = first.value if isinstance(first, ast.Expr) else None
    if isinstance(value, ast.Constant) and isinstance(value.value, str):
        node.body = node.body[1:]
    return node
