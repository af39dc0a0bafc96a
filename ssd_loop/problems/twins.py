"""Twins of problems: the same task under other names, to tell whether a gain hangs on the wording.

A model that has learned a panel by heart loses on its twins what it gained on the originals; one that has
learned to program does not. Source: renaming and rewording of HumanEval as in ReCode (arXiv 2212.10264) and
DyCodeEval (arXiv 2503.04149); here names alone change, so every twin is judged by its original's tests.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from hashlib import blake2b

from ssd_loop.problems import Problem
from ssd_loop.programs import parse

PANEL = "twin"

CONSONANTS, DIGITS = "bdfghjkmnprstvz", "23456789"  # without what is read as something else
# Code that looks names up by their text: what it finds under a new name cannot be told from its source.
BY_NAME = frozenset({"eval", "exec", "locals", "globals", "vars"})
# English words of two letters; what else has two letters is a name.
SHORT_WORDS = re.compile("an|at|be|by|do|go|he|it|me|my|no|of|on|so|to|up|us|we")
# Short forms that have a vowel and are no words of English all the same.
SHORT_FORMS = frozenset({"arr", "dict", "idx", "int", "num", "nums", "obj", "str", "val", "vals"})
BODY = f"\n{' ' * 12}pass\n"  # for a signature that has no body yet, as in `preamble_of`

_STRING = r"""(?<![\w"'])(?:"[^"\n]*"|'[^'\n]*')(?!\w)"""
_SPAN = re.compile(r"`[^`]+`")
_QUOTED = re.compile(r"(?s)\A(\w*)(\"\"\"|'''|\"|')(.*)\2\Z")
_PROMPT_LINE, _MORE_LINE = re.compile(r"\s*>>>(?:\s|\Z)"), re.compile(r"\s*\.\.\.(?:\s|\Z)")

Function = ast.FunctionDef | ast.AsyncFunctionDef


class _Unsafe(Exception):
    """A text whose names cannot be changed without doubt about what it then means."""


def twins(problems: Iterable[Problem]) -> tuple[Problem, ...]:
    """The twins of those problems that have one, as the panel "twin"; a twin keeps its original's id."""
    found = (twin(problem) for problem in problems)
    return tuple(replace(problem, panel=PANEL) for problem in found if problem is not None)


def twin(problem: Problem) -> Problem | None:
    """The problem with a neutral name for its function and its parameters, or None where that is not safe.

    Renamed together: signature, body, examples and mentions in prompt, starter code and solution, calls and
    keywords in tests, probes and check. The rest stays, strings above all. An ordinary word that happens to
    be a name ("Return the median") is renamed where it stands for the name alone: in backticks, before a
    parenthesis, in a formula. The same problem has the same twin everywhere: the function's new name is
    drawn from the id, parameters become ``arg_1``, ``arg_2`` and so on.

    None: no function; a prompt that is not code; a method; a new name that the problem has already; code that
    looks names up by their text or binds them in ways that are not followed.
    """
    if problem.kind not in ("function", "check"):
        return None
    entry_point = _name(problem.id)
    try:
        keywords = _parameters(_definition(_tree(problem.prompt)[0], problem.entry_point))
        rename = _Names(problem.entry_point, entry_point, keywords)
        texts = [problem.prompt, problem.starter_code, problem.preamble, problem.solution, problem.source]
        prompt, starter_code, preamble, solution, source = map(rename.source, texts)
        calls = [rename.source(call) for call, _ in problem.tests]
        renamed = replace(
            problem,
            entry_point=entry_point,
            prompt=prompt,
            starter_code=starter_code,
            preamble=preamble,
            solution=solution,
            source=source,
            tests=tuple((call, want) for call, (_, want) in zip(calls, problem.tests, strict=True)),
            probes=tuple(rename.source(call) for call in problem.probes),
            check=rename.source(problem.check),
        )
    except _Unsafe:
        return None
    shown = f"{renamed.prompt}\n{renamed.starter_code}"
    if not _ordinary(problem.entry_point) and _mentions(problem.entry_point, shown):
        return None
    return renamed


def _name(problem_id: str) -> str:
    """A name that says nothing and can be read aloud."""
    one, two, three, four = blake2b(problem_id.encode(), digest_size=4).digest()
    letters = [CONSONANTS[byte % len(CONSONANTS)] for byte in (one, three)]
    digits = [DIGITS[byte % len(DIGITS)] for byte in (two, four)]
    return f"task_{letters[0]}{digits[0]}{letters[1]}{digits[1]}"


def _ordinary(name: str) -> bool:
    """Whether a name may be a word of English where it stands in prose."""
    if len(name) <= 2:
        return name == "a" or SHORT_WORDS.fullmatch(name) is not None
    return bool(re.fullmatch(r"(?=.*[aeiouy])[a-z]+", name)) and name not in SHORT_FORMS


def _mentions(name: str, text: str) -> bool:
    return re.search(rf"\b{re.escape(name)}\b", text) is not None


def _tree(source: str) -> tuple[ast.Module, str]:
    """The syntax tree and the text it is of, with a body where the source ends without one."""
    for text in (source, source + BODY):
        tree = parse(text)
        if tree is not None:
            return tree, text
    raise _Unsafe


def _definition(tree: ast.Module, name: str) -> Function:
    found = [node for node in tree.body if isinstance(node, Function) and node.name == name]
    if len(found) != 1:
        raise _Unsafe
    return found[0]


def _parameters(function: Function) -> dict[str, str]:
    """New names by old ones, numbered in the order of the signature."""
    return {argument.arg: f"arg_{number}" for number, argument in enumerate(_arguments(function.args), 1)}


def _arguments(args: ast.arguments) -> list[ast.arg]:
    listed = [*args.posonlyargs, *args.args, args.vararg, *args.kwonlyargs, args.kwarg]
    return [argument for argument in listed if argument is not None]


@dataclass(frozen=True)
class _Names:
    """What is renamed: the function, and its parameters as keywords of calls to it.

    Attributes:
        old: The function's name.
        new: Its new name.
        keywords: New parameter names by those of the prompt.
    """

    old: str
    new: str
    keywords: Mapping[str, str]

    def source(self, source: str) -> str:
        """Python source with the new names.

        Raises:
            _Unsafe: it is no Python, or may mean something else with them.
        """
        if not source.strip():
            return source
        tree, text = _tree(source)
        functions = [node for node in tree.body if isinstance(node, Function) and node.name == self.old]
        # A solution may call its parameters something else than the prompt does.
        parameters = _parameters(functions[0]) if functions else {}
        if len(functions) > 1 or any(
            _mentions(name, source) for name in (self.new, *self.keywords.values(), *parameters.values())
        ):
            raise _Unsafe
        comments = _comments(tree, text)
        inside = range(functions[0].lineno, (functions[0].end_lineno or 0) + 1) if functions else range(0)
        code = _Code(self, parameters, text)
        expected = ast.dump(code.visit(tree))
        # What the edits make of the text is held against what renaming makes of the tree.
        renamed = parse(_edited(text, code.edits))
        if code.unsafe or renamed is None or ast.dump(renamed) != expected:
            raise _Unsafe
        prose = {
            (start, end): _prose(text[start:end], self, parameters if line in inside else {})
            for line, start, end in comments
        }
        written = _edited(text, {**code.edits, **prose})
        return written.removesuffix(BODY) if text != source else written


class _Code(ast.NodeTransformer):
    """Renames in the tree and keeps the edit of the text that does the same."""

    def __init__(self, names: _Names, parameters: Mapping[str, str], text: str) -> None:
        self.edits: dict[tuple[int, int], str] = {}
        self.unsafe = False
        self._names, self._parameters, self._place = names, parameters, _Place(text)
        self._local: Mapping[str, str] = {}  # the parameters, while their function's body is visited
        self._rebound: set[str] = set()  # parameters of inner functions that are renamed along
        self._kept: set[str] = set()  # keywords of other calls

    def _new(self, name: str) -> str | None:
        return self._names.new if name == self._names.old else self._local.get(name)

    def _rename(self, name: str, new: str, line: int, column: int) -> None:
        start = self._place(line, column)
        self.edits[start, start + len(name)] = new

    def visit_Name(self, node: ast.Name) -> ast.AST:
        new = self._new(node.id)
        if new is not None:
            self._rename(node.id, new, node.lineno, node.col_offset)
            node.id = new
        self.unsafe |= node.id in BY_NAME
        return node

    def visit_arg(self, node: ast.arg) -> ast.AST:
        new = self._local.get(node.arg)
        self.unsafe |= node.arg == self._names.old
        if new is not None:
            self._rename(node.arg, new, node.lineno, node.col_offset)
            self._rebound.add(node.arg)
            node.arg = new
        return self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> ast.AST:
        callee = node.func.id if isinstance(node.func, ast.Name) else ""
        to_entry = callee in (self._names.old, "candidate")  # `check` has the function as its argument
        for keyword in node.keywords:
            new = self._names.keywords.get(keyword.arg or "") if to_entry else None
            if new is not None and keyword.arg is not None:
                self._rename(keyword.arg, new, keyword.lineno, keyword.col_offset)
                keyword.arg = new
            elif keyword.arg is not None:
                self._kept.add(keyword.arg)
        return self.generic_visit(node)

    def visit_Module(self, node: ast.Module) -> ast.AST:
        for position, statement in enumerate(node.body):
            if isinstance(statement, Function) and statement.name == self._names.old:
                self._entry(statement)
            else:
                node.body[position] = self.visit(statement)
        self.unsafe |= bool(self._rebound & self._kept)
        return node

    def _entry(self, node: Function) -> None:
        """The function itself: its signature belongs to the module around it, its body to the parameters."""
        self.unsafe |= self._names.old in self._parameters
        start = self._place.after_def(node)
        self.edits[start, start + len(node.name)] = node.name = self._names.new
        node.decorator_list = [self.visit(decorator) for decorator in node.decorator_list]
        node.returns = self.visit(node.returns) if node.returns else None
        node.args = self.visit(node.args)
        self._local = self._parameters
        for argument in _arguments(node.args):
            new = self._parameters[argument.arg]
            self._rename(argument.arg, new, argument.lineno, argument.col_offset)
            argument.arg = new
        node.body = [self.visit(statement) for statement in node.body]
        self._local = {}

    def generic_visit(self, node: ast.AST) -> ast.AST:
        """Names that nodes hold as bare text have no place of their own: to meet one is not safe."""
        if isinstance(node, Function | ast.ClassDef):
            bound = [node.name]
            self.unsafe |= isinstance(node, ast.ClassDef) and bool(self._local)
        elif isinstance(node, ast.Global | ast.Nonlocal):
            bound = node.names
        elif isinstance(node, ast.alias):
            bound = [node.name, node.asname or ""]
        elif isinstance(node, ast.ExceptHandler | ast.MatchAs | ast.MatchStar):
            bound = [node.name or ""]
        elif isinstance(node, ast.MatchMapping):
            bound = [node.rest or ""]
        else:
            bound = []
        self.unsafe |= any(self._new(name) is not None for name in bound)
        return super().generic_visit(node)


class _Place:
    """Where in a text something is that `ast` or `tokenize` gives by line and column."""

    def __init__(self, text: str) -> None:
        self._text, self._lines = text, text.split("\n")
        self._starts = [0]
        for line in self._lines:
            self._starts.append(self._starts[-1] + len(line) + 1)

    def __call__(self, line: int, column: int) -> int:
        """The place of a column in UTF-8 bytes, as `ast` counts."""
        return self.of_character(line, len(self._lines[line - 1].encode()[:column].decode(errors="ignore")))

    def of_character(self, line: int, column: int) -> int:
        """The place of a column in characters, as `tokenize` counts."""
        return self._starts[line - 1] + column

    def after_def(self, node: Function) -> int:
        """Where the name in a definition begins."""
        start = self(node.lineno, node.col_offset)
        found = re.compile(rf"(?:async\s+)?def\s+(?={node.name}\b)").match(self._text, start)
        if found is None:
            raise _Unsafe
        return found.end()


def _edited(text: str, edits: Mapping[tuple[int, int], str]) -> str:
    for (start, end), new in sorted(edits.items(), reverse=True):
        text = text[:start] + new + text[end:]
    return text


def _comments(tree: ast.Module, text: str) -> list[tuple[int, int, int]]:
    """Line, begin and end of all that is said to people: docstrings and comments."""
    place = _Place(text)
    found = []
    for node in ast.walk(tree):
        if isinstance(node, Function | ast.ClassDef | ast.Module) and ast.get_docstring(node) is not None:
            said = node.body[0]
            end = place(said.end_lineno or said.lineno, said.end_col_offset or 0)
            found.append((said.lineno, place(said.lineno, said.col_offset), end))
    try:
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type == tokenize.COMMENT:
                line, column = token.start
                start = place.of_character(line, column)
                found.append((line, start, start + len(token.string)))
    except (tokenize.TokenError, IndentationError):
        raise _Unsafe from None
    return found


def _prose(text: str, names: _Names, parameters: Mapping[str, str]) -> str:
    """A docstring or comment with the new names, its examples and backticked code among it."""
    quoted = _QUOTED.match(text)
    if quoted:
        prefix, quotes, inner = quoted.groups()
        return f"{prefix}{quotes}{_said(inner, names, parameters)}{quotes}"
    return _said(text, names, parameters)


def _said(text: str, names: _Names, parameters: Mapping[str, str]) -> str:
    parts: list[str] = []
    told: list[str] = []  # lines of prose, which backticks and sentences may go across
    in_session = False

    def tell() -> None:
        parts.append(_told("".join(told), names, parameters))
        told.clear()

    for line in text.splitlines(keepends=True):
        if _PROMPT_LINE.match(line) or (in_session and _MORE_LINE.match(line)):
            tell()
            parts.append(_example(line, names))
            in_session = True
        elif in_session and line.strip():
            parts.append(line)  # what the example gives
        else:
            in_session = False
            told.append(line)
    tell()
    return "".join(parts)


def _example(line: str, names: _Names) -> str:
    """A line of an example session: the function and its keywords, but no other name."""
    renamed = _outside_strings(line, rf"(?<![.\w]){names.old}(?!\w)", {names.old: names.new})
    if renamed == line:
        return line
    keywords = "|".join(sorted(names.keywords, key=len, reverse=True))
    return _outside_strings(renamed, rf"(?<=[(,\s])(?:{keywords})(?=\s*=(?!=))", names.keywords)


def _told(text: str, names: _Names, parameters: Mapping[str, str]) -> str:
    """Prose and the code in backticks that is part of its sentences."""
    new = {names.old: names.new, **parameters}
    mentions = "|".join(_mention(name, name == names.old) for name in sorted(new, key=len, reverse=True))
    pieces = []
    end = 0
    for span in _SPAN.finditer(text):
        pieces.append(_outside_strings(text[end : span.start()], mentions, new, named=True))
        pieces.append(_outside_strings(span[0], r"(?<![.\w])[^\W\d]\w*", new))
        end = span.end()
    pieces.append(_outside_strings(text[end:], mentions, new, named=True))
    return "".join(pieces)


def _mention(name: str, is_function: bool) -> str:
    """Where a name in prose stands for itself and not for a word of English.

    An article stands before a word that is not "and", "or", "is" and the like. Other words are names before a
    parenthesis, in a formula or comparison, and very short ones at the end of a list.
    """
    bare = rf"(?<![\w'\u2019]){re.escape(name)}(?!\w)"
    if not _ordinary(name):
        return bare
    if name == "a":
        return rf"{bare}(?!\s+(?!(?:and|are|by|if|in|is|or|to|with)\b)[A-Za-z])"
    if is_function:
        return rf"{bare}(?=\()"
    behind = r"\s*[=\[<>]|\s[*+/^%]\s" + (r"|\s*[,)]" if SHORT_WORDS.fullmatch(name) else "")
    return rf"{bare}(?={behind})|(?<=[=<>*+/^%]\s){bare}|(?<=len\(){bare}"


def _outside_strings(text: str, pattern: str, new: Mapping[str, str], named: bool = False) -> str:
    """Replaces what matches where it is not in quotes: a text that examples take or give is data.

    Args:
        text: Where to replace.
        pattern: What to replace.
        new: By what; words that are not in it stay.
        named: Whether a parameter may stand in quotes by itself, as in "Given an array 'arr'".
    """

    def choose(found: re.Match[str]) -> str:
        if not found["string"]:
            return new.get(found[0], found[0])
        name = found[0][1:-1]
        around = text[found.start() - 1 : found.start()] + text[found.end() : found.end() + 1]
        alone = named and len(name) > 1 and not around.strip(" \n.,;:")
        return found[0].replace(name, new.get(name, name)) if alone else found[0]

    return re.sub(rf"(?P<string>{_STRING})|(?:{pattern})", choose, text)
