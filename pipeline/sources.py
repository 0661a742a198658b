"""Which source files a module is made of: its import closure inside `pipeline`.

The closure decides when a stage is stale. dvc.yaml lists it as deps, and the stage's key holds its
digest, so that both drivers re-run a stage after the same edits.
"""

import ast
from functools import cache
from pathlib import Path

from pipeline.hashing import digest_file, digest_json

_PACKAGE = Path(__file__).parent
ROOT = _PACKAGE.parent


def import_closure(module: str) -> tuple[str, ...]:
    """Return the source files, relative to the project root, that importing `module` can run.

    Imports inside functions count; package data (templates) beside a module of the closure counts.
    """
    seen: dict[str, Path] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        path = _module_path(name)
        if path is None or name in seen:
            continue
        seen[name] = path
        waiting += _imports(path)
        if "." in name:
            waiting.append(name.rpartition(".")[0])
    files = set(seen.values())
    files |= {data for path in seen.values() for data in path.parent.glob("*.j2")}
    return tuple(sorted(path.relative_to(ROOT).as_posix() for path in files))


@cache
def closure_digest(module: str) -> str:
    """Return the digest of the sources in the closure of `module`."""
    return digest_json({name: digest_file(ROOT / name) for name in import_closure(module)})


def _module_path(name: str) -> Path | None:
    first, *rest = name.split(".")
    if first != _PACKAGE.name:
        return None
    base = _PACKAGE.joinpath(*rest)
    for candidate in (base.with_suffix(".py"), base / "__init__.py"):
        if candidate.is_file():
            return candidate
    return None


def _imports(path: Path) -> list[str]:
    names: list[str] = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return names
