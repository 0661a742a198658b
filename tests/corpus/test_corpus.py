"""Each malformed input ends in quarantine with a reason, or in one error that names the thing.

Beside that: no other exception, nothing changed outside the output folder, no code run, and every
good row kept.
"""

import hashlib
import os
import stat
from collections.abc import Iterable
from pathlib import Path

import pytest
import typer
from corpus.case import SHARED, Case
from corpus.everything import corpus
from corpus.running import BASES, CWD, OUT, Ran, good_ids, place, prepare, snapshot

from pipeline.__main__ import _fail
from pipeline.errors import InputError
from pipeline.params import load_params

SECRET = "hf_thisIsASecretOfTheEnvironment"

SHARED_BASES = sorted(SHARED)
LONE = [case for case in corpus() if not case.shared and case.base != "params"]
PARAMS = [case for case in corpus() if case.base == "params"]


class Goods:
    """The good sets, each written once."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._paths: dict[str, tuple[Path, Path]] = {}

    def get(self, base: str) -> tuple[Path, Path]:
        """Return the folder of a good set, and what is to be read relative to it."""
        if base not in self._paths:
            folder = self._root / base.replace(" ", "-")
            path = BASES[base][1](folder)
            self._paths[base] = folder, path.relative_to(folder)
        return self._paths[base]


@pytest.fixture(scope="module")
def goods(tmp_path_factory: pytest.TempPathFactory) -> Goods:
    """Return the good sets, after each has been read once: libraries are loaded by then."""
    made = Goods(tmp_path_factory.mktemp("goods"))
    for base in {BASES[base]: base for base in BASES}.values():
        folder, path = made.get(base)
        ran = prepare(base, folder / path, tmp_path_factory.mktemp("read"))
        assert ran.error is None
        assert ran.reasons == {}
        assert set(ran.ids) == good_ids()
    return made


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.setenv(name, SECRET)
    return tmp_path / "case"


def shown(error: object, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return what the command line shows of an error, after a look at its harmlessness."""
    lines: list[str] = []
    # What a terminal would get: into a pipe, escapes would be taken out on the way.
    monkeypatch.setattr(typer, "echo", lambda line, err: lines.append(line))
    with pytest.raises(SystemExit) as ended:
        _fail(error, 2)
    assert ended.value.code == 2
    assert lines
    for line in lines:
        assert line.startswith("error: ")
        assert line.isprintable()
    return "\n".join(lines)


def check_texts(ran: Ran, root: Path) -> None:
    assert str(root.parent) not in ran.texts
    assert SECRET not in ran.texts
    assert all(name.isprintable() for name in ran.reasons)


def test_the_corpus_is_large_and_its_inputs_are_distinct(goods: Goods, tmp_path: Path) -> None:
    cases = corpus()
    assert len({case.name for case in cases}) == len(cases)
    assert len(cases) >= 800
    inputs: list[str] = []
    for number, base in enumerate(SHARED_BASES):
        folder = place(goods.get(base)[0], tmp_path / str(number))
        before = snapshot(folder)
        for case in (one for one in cases if one.base == base):
            case.build(folder)
            after = snapshot(folder)
            inputs.append(_content(path for path in after if after[path] != before.get(path)))
            before = after
    assert len(set(inputs)) == len(inputs) >= 500


def _content(paths: Iterable[str]) -> str:
    state = hashlib.sha256()
    for path in sorted(paths):
        status = os.lstat(path)
        state.update(os.fsencode(path) + bytes([stat.S_IFMT(status.st_mode) >> 12]))
        if stat.S_ISREG(status.st_mode) and status.st_size < 1 << 24:
            state.update(Path(path).read_bytes())
        elif stat.S_ISLNK(status.st_mode):
            state.update(os.fsencode(os.readlink(path)))  # noqa: PTH115
    return state.hexdigest()


@pytest.mark.timeout(30, func_only=True)  # against a hang
@pytest.mark.parametrize("base", SHARED_BASES)
def test_bad_items_are_set_aside_and_good_ones_kept(
    base: str, goods: Goods, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cases = [case for case in corpus() if case.base == base]
    good, path = goods.get(base)
    folder = place(good, root)
    monkeypatch.chdir(root / CWD)
    names = {case.name: str(case.build(folder)) for case in cases}
    before = snapshot(root)
    ran = prepare(base, folder / path, root)
    assert snapshot(root) == before
    assert ran.error is None
    for case in cases:
        found = ran.reasons.get(names[case.name])
        if case.expects == "quarantine":
            assert found, case
            assert any(case.says in reason for reason in found), case
        elif case.expects == "kept":
            assert found is None, case
    assert set(ran.reasons) <= set(names.values())
    assert good_ids() <= set(ran.ids)
    stood = sum(c.expects == "either" and names[c.name] not in ran.reasons for c in cases)
    assert len(ran.ids) == len(good_ids()) + sum(c.more for c in cases) + stood
    check_texts(ran, root)


@pytest.mark.timeout(5, func_only=True)  # against a hang
@pytest.mark.parametrize("case", LONE, ids=lambda case: case.name)
def test_a_damaged_set_is_one_error_or_read_whole(
    case: Case,
    goods: Goods,
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    good, path = goods.get(case.base)
    folder = place(good, root)
    monkeypatch.chdir(root / CWD)
    given = case.build(folder)
    before = snapshot(root)
    ran = prepare(case.base, folder / path if given is None else given, root)
    assert snapshot(root) == before
    if case.expects == "error":
        assert ran.error is not None
        assert case.says in ran.error
        assert SECRET not in shown(ran.error, monkeypatch)
        assert not (root / OUT / "prepare").exists()
    else:
        assert ran.error is None
        assert set(ran.ids) == good_ids()
        check_texts(ran, root)


@pytest.mark.timeout(5, func_only=True)  # against a hang
@pytest.mark.parametrize("case", PARAMS, ids=lambda case: case.name)
def test_damaged_params_are_one_error(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case.build(tmp_path)
    monkeypatch.chdir(tmp_path)
    before = snapshot(tmp_path)
    with pytest.raises(InputError) as raised:
        load_params(tmp_path / "params.yaml")
    assert case.says in shown(raised.value, monkeypatch)
    assert snapshot(tmp_path) == before
