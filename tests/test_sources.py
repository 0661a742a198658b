from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline import sources
from pipeline.sources import ROOT, import_closure


def test_the_closure_is_transitive_and_exists() -> None:
    files = import_closure("pipeline.data.store")
    assert {
        "pipeline/__init__.py",
        "pipeline/data/__init__.py",
        "pipeline/data/images.py",
        "pipeline/data/store.py",
        "pipeline/errors.py",
        "pipeline/hashing.py",
    } <= set(files)
    assert "pipeline/params.py" not in files
    assert list(files) == sorted(files)
    assert all((ROOT / name).is_file() for name in files)


def test_prepare_depends_on_its_readers_and_not_on_training() -> None:
    files = import_closure("pipeline.stages.prepare")
    assert {"pipeline/readers/listing.py", "pipeline/checks/facts.py"} <= set(files)
    assert not [name for name in files if "diffusion" in name or "report" in name]


def test_foreign_modules_are_no_part_of_it() -> None:
    assert import_closure("numpy.linalg") == ()


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    root = tmp_path / "pipeline"
    root.mkdir()
    (root / "__init__.py").write_text("")
    (root / "a.py").write_text("def f():\n    from pipeline import b\n    return b\n")
    (root / "b.py").write_text("import numpy\n")
    (root / "c.py").write_text("")
    monkeypatch.setattr(sources, "_PACKAGE", root)
    monkeypatch.setattr(sources, "ROOT", tmp_path)
    sources.closure_digest.cache_clear()
    yield root
    sources.closure_digest.cache_clear()


def test_imports_inside_functions_and_templates_count(package: Path) -> None:
    assert import_closure("pipeline.a") == (
        "pipeline/__init__.py",
        "pipeline/a.py",
        "pipeline/b.py",
    )
    (package / "page.html.j2").write_text("x")
    assert "pipeline/page.html.j2" in import_closure("pipeline.a")


def test_the_digest_follows_the_closure_alone(package: Path) -> None:
    before = sources.closure_digest("pipeline.a")
    sources.closure_digest.cache_clear()
    (package / "c.py").write_text("x = 1\n")
    assert sources.closure_digest("pipeline.a") == before
    sources.closure_digest.cache_clear()
    (package / "b.py").write_text("x = 1\n")
    assert sources.closure_digest("pipeline.a") != before
