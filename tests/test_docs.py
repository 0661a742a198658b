"""What the documents say is true: the tree is the real tree, the commands exist."""

import re
import subprocess
from importlib import import_module
from pathlib import Path

import pytest
from dvc.cli.parser import get_main_parser
from typer.main import get_command

from pipeline.__main__ import ELSEWHERE, app

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
HIDDEN = {".dvcignore", ".gitignore", "dvc.lock"}


def tracked():
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    return [name for name in listed if (ROOT / name).exists()]


def tree():
    """Return the paths of the README's tree."""
    block = (ROOT / "README.md").read_text().split("## Where things are")[1].split("```")[1]
    paths, parent = set(), ""
    for line in filter(None, block.splitlines()):
        name = line.split()[0]
        if line.startswith("  "):
            name = parent + name
        elif name.endswith("/"):
            parent = name
        paths.add(name.rstrip("/"))
    return paths


def test_the_tree_is_the_real_tree():
    names = [name.split("/") for name in tracked()]
    top = {parts[0] for parts in names} - HIDDEN
    packages = {"/".join(p[:2]) for p in names if p[0] == "pipeline" and len(p) > 2}
    assert tree() == top | packages


def commands():
    for document in DOCUMENTS:
        for line in document.read_text().splitlines():
            found = re.match(r"(?:    |`)((?:make|replenish|dvc) [^#`]*)", line)
            if found:
                yield pytest.param(found[1].split(), id=found[1].strip())


@pytest.mark.parametrize("words", list(commands()))
def test_every_command_exists(words):
    program, name, *rest = words
    if program == "make":
        targets = re.findall(r"^([a-z.]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert name in targets
    elif program == "replenish":
        known = get_command(app).commands
        assert name in known
        command = known[name]
        if name in ELSEWHERE:  # its options are those of a module of flows
            command = get_command(import_module(ELSEWHERE[name][0]).app)
        options = {o for p in command.params for o in (*p.opts, *p.secondary_opts)}
        assert {word for word in rest if word.startswith("--")} <= options
    else:
        actions = get_main_parser()._actions
        choices = [one.choices for one in actions if one.dest == "cmd"]
        assert choices
        assert name in choices[0]


def test_links_lead_somewhere():
    for document in DOCUMENTS:
        for target in re.findall(r"\]\(([^)#]+)\)", document.read_text()):
            if not target.startswith("http"):
                assert (document.parent / target).exists(), f"{document.name}: {target}"
