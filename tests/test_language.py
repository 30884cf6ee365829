"""The check of phrases finds every listed phrase in every kind of file, and none in code."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.language import Exemption, files, find, main, package, read_list

RULES, EXEMPTIONS = read_list()
PROSE = {
    "page.md": "# Title\n\n{}.\n",
    "module.py": '"""{}."""\n',
    "function.py": 'def name() -> None:\n    """{}.\n\n    More.\n    """\n',
    "comment.py": "value = 1  # {}\n",
    "message.py": 'raise ValueError("{}")\n',
    "formatted.py": 'raise ValueError(f"{{place}}: {}")\n',
    "config.yaml": "key: value  # {}\n",
    "Makefile": "target: other ## {}\n\tcommand\n",
    "Dockerfile": "# {}\nFROM image\n",
    "page.html.j2": "<p>{{{{ count }}}} runs: {}</p>\n",
}
CODE = {
    "inline.md": "Use `{}` here.\n",
    "block.md": "```\n{}\n```\n",
    "command.py": '"""Title.\n\n    medcl3d list {}\n"""\n',
    "link.md": "[text](page.md#{0})\n",
    "quotation.md": "> {}\n",
    "inline.py": '"""Use `{0}` or ``{0}``."""\n',
    "doctest.py": '"""Example.\n\n>>> call("{}")\n"""\n',
    "regex.py": 'PATTERN = r"\\b{}\\d"\n',
    "quoted.py": 'raise ValueError(f"{{place}}: use `{}`")\n',
    "config.yaml": "key: '{0} # {0}'\n",
    "page.html.j2": "<style>{0}</style>{{{{ call('{0}') }}}}\n",
}


@pytest.mark.parametrize("name", PROSE)
def test_each_phrase_is_found(name: str, tmp_path: Path) -> None:
    for rule in RULES:
        (tmp_path / name).write_text(PROSE[name].format(rule.found))
        assert [hit.use for hit in find(tmp_path / name, [rule])] == [rule.use], rule


@pytest.mark.parametrize("name", CODE)
def test_code_is_skipped(name: str, tmp_path: Path) -> None:
    for rule in RULES:
        code = rule.found.replace("'", "").replace(" ", "-" if name == "link.md" else " ")
        (tmp_path / name).write_text(CODE[name].format(code))
        assert not list(find(tmp_path / name, RULES)), rule


def test_counterexamples_pass() -> None:
    for rule in RULES:
        assert rule.use and rule.why
        assert not [text for text in rule.passed if rule.regex.search(text)], rule


def test_line_is_that_of_the_phrase(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text(
        '"""One.\n\nIt is told\n    apart.\n"""\n\n# two\n# it is said\n'
        'TEXT = (\n    "a longer line "\n    "that stands here"\n)\n'
    )
    lines = [(hit.line, hit.phrase) for hit in find(tmp_path / "a.py", RULES)]
    assert lines == [(3, "told apart"), (8, "said"), (11, "stands")]
    text = "One.\n\n```\ntold\n```\n\nThe reason\nstands\nhere; each is told\napart.\n"
    (tmp_path / "a.md").write_text(text)
    assert [hit.line for hit in find(tmp_path / "a.md", RULES)] == [8, 9]


def test_a_backtick_alone_hides_no_other_paragraph(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("A ` alone.\n\nThe header is spoilt.\n\nAnother ` alone.\n")
    assert [hit.line for hit in find(tmp_path / "a.md", RULES)] == [3]


def test_exemption_covers_its_text_in_its_files(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("What the oracle\nsaid, and what it said.\n")
    first, second = find(tmp_path / "a.md", RULES)
    in_text = Exemption(path="*.md", text="the oracle said", why="a quotation")
    assert in_text.covers(first) and not in_text.covers(second)
    assert Exemption(path="*/a.md", why="generated").covers(second)
    assert not Exemption(path="docs/*", why="generated").covers(first)


def test_command_prints_replacements(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.md").write_text("Fine.\nThe header is spoilt.\n")
    assert main([str(tmp_path)]) == 1
    assert f'{tmp_path}/a.md:2: "spoilt": use "corrupt"' in capsys.readouterr().out
    (tmp_path / "a.md").write_text("Fine.\n")
    assert main([str(tmp_path / "a.md")]) == 0
    assert not capsys.readouterr().out


def test_tests_are_read_for_docstrings_only() -> None:
    here = Path(__file__)
    names = {path.name for path in files([here.parent])}
    assert here.name in names and "language.yaml" not in names
    assert not list(find(here, RULES))


def test_hits_are_counted_per_package() -> None:
    paths = ("medcl3d/data/a.py", "medcl3d/cli.py", "docs/a.md")
    assert [package(path) for path in paths] == ["medcl3d/data", "medcl3d", "docs"]


def test_exemptions_have_reasons() -> None:
    assert all(exemption.why for exemption in EXEMPTIONS)
