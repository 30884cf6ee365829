"""Find phrases that the project does not use, with their replacements; `make language` runs it.

    python tests/language.py [PATH...]

Checks the prose of files and folders: Markdown without code and quotations, docstrings, comments and string
literals of Python (only docstrings in tests/), comments of YAML, Makefile, TOML, cfg, Docker and shell files,
and the text of HTML templates. language.yaml lists the phrases, and exemptions with a reason. Prints
`file:line: "phrase": use "..."` for each hit, then their number per package. Exit code 1 if there is any.
"""

from __future__ import annotations

import ast
import io
import re
import sys
import tokenize
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
LIST = Path(__file__).with_name("language.yaml")
DEFAULT = (
    *(
        "README.md",
        "SECURITY.md",
        "CONTRIBUTING.md",
        "CHANGELOG.md",
        "docs",
        "medcl3d",
        "benchmarks",
        "tools",
        "tests",
    ),
    *("configs", "docker", ".ci", "Makefile", "setup.cfg", "pyproject.toml"),
)
CODE = "\N{OBJECT REPLACEMENT CHARACTER}"  # replaces each character of code, so that offsets remain valid
REGEX = re.compile(r"\\[bBdDsSwW(\[.|]|\(\?|\[\^")  # matches literals that are regular expressions


@dataclass(frozen=True)
class Rule:
    """A phrase to avoid.

    pattern   regular expression; a blank matches any white space, `{code}` inline code; case is ignored
    use       replacement
    why       reason
    found     an example that matches
    passed    examples that do not match
    """

    pattern: str
    use: str
    why: str
    found: str
    passed: tuple[str, ...] = ()

    @property
    def regex(self) -> re.Pattern[str]:
        """The pattern, compiled."""
        return re.compile(self.pattern.replace(" ", r"\s+").replace("{code}", f"{CODE}+"), re.IGNORECASE)


@dataclass(frozen=True)
class Exemption:
    """Allowed phrases: all in files that match the glob `path`, or those inside occurrences of `text`."""

    path: str
    why: str
    text: str | None = None

    def covers(self, hit: Hit) -> bool:
        """Whether the exemption applies to a hit."""
        if not fnmatch(hit.path, self.path):
            return False
        if self.text is None:
            return True
        words = r"\s+".join(map(re.escape, self.text.split()))
        return any(found.start() <= hit.start < found.end() for found in re.finditer(words, hit.prose))


@dataclass(frozen=True)
class Prose:
    """A text with the line of each of its characters: `line(offset)`."""

    text: str
    line: Callable[[int], int]


@dataclass(frozen=True)
class Hit:
    """A phrase in a file: its line, its offset in the prose around it, and its replacement."""

    path: str
    line: int
    phrase: str
    use: str
    prose: str
    start: int


def read_list(path: Path = LIST) -> tuple[list[Rule], list[Exemption]]:
    """Rules and exemptions of a YAML file."""
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    rules = [Rule(**{**row, "passed": tuple(row.get("passed", ()))}) for row in content["phrases"]]
    return rules, [Exemption(**row) for row in content["exempt"]]


def mask(pattern: str, text: str, flags: int = 0) -> str:
    """Replace matches by `CODE`, character by character, and keep line breaks."""
    return re.sub(pattern, lambda found: re.sub(r"[^\n]", CODE, found[0]), text, flags=flags)


def inline_code(text: str) -> str:
    """Mask `code` and ``code``, across a line break too, within one paragraph."""
    return mask(r"(?<!`)(`+)(?!`)(?:(?!\n\s*\n)[^`])+?(?<!`)\1(?!`)", text)


def numbered(text: str, first: int = 1) -> Prose:
    """Prose whose line breaks are those of the file."""
    return Prose(text, lambda offset: first + text.count("\n", 0, offset))


def markdown(text: str) -> Iterator[Prose]:
    """Text without code blocks, quotations, tables of messages, HTML comments and addresses."""
    table, comment = r"<!-- table -->.*?<!-- end of table -->", r"<!--.*?-->"
    for pattern in (r"^ *```.*?^ *```[^\n]*$", r"^>[^\n]*$", table, comment):
        text = mask(pattern, text, re.DOTALL | re.MULTILINE)
    yield numbered(mask(r"(?<=\])\([^)\s]*\)|https?://\S+", inline_code(text)))


def docstrings(tree: ast.AST) -> dict[int, ast.Constant]:
    """The docstrings of a module, its classes and functions, by `id`."""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    first = [node.body[0] for node in ast.walk(tree) if isinstance(node, kinds) and node.body]
    values = [statement.value for statement in first if isinstance(statement, ast.Expr)]
    constants = [value for value in values if isinstance(value, ast.Constant)]
    return {id(constant): constant for constant in constants if isinstance(constant.value, str)}


def literals(tree: ast.AST, skip: Iterable[int]) -> Iterator[tuple[str, ast.expr]]:
    """String literals of several words, without regular expressions; fields of f-strings become code."""
    inside = set(skip)
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            inside |= {id(part) for part in node.values}
    for node in ast.walk(tree):
        text: Any = None
        if isinstance(node, ast.JoinedStr):
            text = "".join(part.value if isinstance(part, ast.Constant) else CODE for part in node.values)
        elif isinstance(node, ast.Constant) and id(node) not in inside:
            text = node.value
        if isinstance(text, str) and len(text.split()) > 1 and not REGEX.search(text):
            yield text, node  # type: ignore[misc]


def python(text: str, *, only_docstrings: bool = False) -> Iterator[Prose]:
    """Docstrings without commands and doctests, then comments and string literals."""
    tree = ast.parse(text)
    known, source = docstrings(tree), text.splitlines()
    for node in known.values():
        doc = mask(
            r"^( *(>>>|\.\.\. |\$ )| {4,}(python|medcl3d|make|torchrun) )[^\n]*$", node.value, re.MULTILINE
        )
        yield numbered(inline_code(doc), node.lineno)
    if only_docstrings:
        return
    comments: list[tuple[int, int, str]] = []
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            comments.append((*token.start, token.string.lstrip("#:! ")))
    yield from joined(comments)
    for literal, node in literals(tree, known):
        last = node.end_lineno or node.lineno
        yield Prose(inline_code(literal), line_in(source, literal, node.lineno, last))


def line_in(source: Sequence[str], literal: str, first: int, last: int) -> Callable[[int], int]:
    """Line of an offset in a literal of several lines: the one that contains the text at the offset."""

    def line(offset: int) -> int:
        for length in (30, 20, 12, 6):
            around = literal[offset : offset + length].split("\n")[0].split(CODE)[0]
            found = [number for number in range(first, last + 1) if around and around in source[number - 1]]
            if found:
                return found[0]
        return first

    return line


def joined(comments: Iterable[tuple[int, int, str]]) -> Iterator[Prose]:
    """Comments as (line, column, text), with those of adjacent lines at the same column joined."""
    block: list[tuple[int, int, str]] = []
    for comment in (*comments, (0, 0, "")):
        if block and (comment[0] != block[-1][0] + 1 or comment[1] != block[-1][1]):
            yield numbered(inline_code("\n".join(text for _, _, text in block)), block[0][0])
            block = []
        block.append(comment)


def hashes(text: str) -> Iterator[Prose]:
    """Comments after #, as in YAML, and help texts after ##, as in the Makefile."""
    comments = []
    for number, line in enumerate(text.splitlines(), 1):
        quoted = re.sub(r"'[^']*'|\"[^\"]*\"", lambda found: "_" * len(found[0]), line)
        found = re.search(r"(?:^|\s)#+ ", quoted)
        if found:
            comments.append((number, found.start(), line[found.end() :]))
    yield from joined(comments)


def template(text: str) -> Iterator[Prose]:
    """Text of an HTML template, and its comments."""
    for pattern in (r"<(script|style)\b.*?</\1>", r"\{\{.*?\}\}", r"\{%.*?%\}", r"<[^>]+>"):
        text = mask(pattern, text, re.DOTALL)
    yield numbered(inline_code(text))


def prose_of(path: Path) -> Iterator[Prose]:
    """The prose of a file, by its name; none of a file of another type."""
    text = partial(path.read_text, encoding="utf-8")
    has_hashes = path.suffix in (".yaml", ".toml", ".cfg") or path.name.startswith(("Makefile", "Dockerfile"))
    if path.name.endswith((".md", ".md.in")):
        yield from markdown(text())
    elif path.suffix == ".py":
        yield from python(text(), only_docstrings=relative(path).startswith("tests/"))
    elif path.suffix == ".j2":
        yield from template(text())
    elif has_hashes or path.parent.name == ".ci":
        yield from hashes(text())


def relative(path: Path) -> str:
    """The path from the top of the checkout, or whole if it is elsewhere."""
    whole = path.resolve()
    return whole.relative_to(ROOT).as_posix() if whole.is_relative_to(ROOT) else whole.as_posix()


def files(paths: Iterable[Path]) -> Iterator[Path]:
    """Files of the given paths, those of folders sorted; in tests/ only Python files."""
    for path in paths:
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            in_tests = relative(file).startswith("tests/")
            if file.is_file() and (file.suffix == ".py" or not in_tests):
                yield file


def find(path: Path, rules: Sequence[Rule]) -> Iterator[Hit]:
    """Hits of a file, sorted by line; of those that overlap the first, or the longest."""
    hits: list[Hit] = []
    for prose in prose_of(path):
        spans = [(found.span(), rule) for rule in rules for found in rule.regex.finditer(prose.text)]
        end = 0
        for span, rule in sorted(spans, key=lambda each: (each[0][0], -each[0][1])):
            if span[0] >= end:
                phrase = " ".join(prose.text[slice(*span)].replace(CODE, "").split())
                hits.append(Hit(relative(path), prose.line(span[0]), phrase, rule.use, prose.text, span[0]))
                end = span[1]
    yield from sorted(hits, key=lambda hit: hit.line)


def package(path: str) -> str:
    """The first two folders of a path in the package, the first one of others."""
    parts = path.split("/")
    return "/".join(parts[: 2 if parts[0] == "medcl3d" and len(parts) > 2 else 1])


def main(arguments: Sequence[str]) -> int:
    """Print hits and unused exemptions; 1 if there is any."""
    rules, exemptions = read_list()
    default = [ROOT / name for name in DEFAULT if (ROOT / name).exists()]
    used: set[Exemption] = set()
    counts: Counter[str] = Counter()
    for path in files(map(Path, arguments) if arguments else default):
        for hit in find(path, rules):
            covering = [exemption for exemption in exemptions if exemption.covers(hit)]
            used.update(covering)
            if not covering:
                counts[package(hit.path)] += 1
                print(f'{hit.path}:{hit.line}: "{hit.phrase}": use "{hit.use}"')
    unused = [] if arguments else [exemption for exemption in exemptions if exemption not in used]
    for exemption in unused:
        print(f"tests/language.yaml: unused exemption: {exemption.path}, {exemption.text}")
    for name, count in sorted(counts.items()):
        print(f"{count:6d}  {name}")
    return int(bool(counts or unused))


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
