"""Check an export as a stranger gets it: signatures, files, rows, pixels, marks and lineage.

Nothing in the folder is trusted. Names in manifests are only compared with the files that a walk
found, never opened; links are not followed; every fault is one line, and none ends the check.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.errors import InputError
from pipeline.export.contents import check_contents
from pipeline.export.exporting import LINEAGE
from pipeline.export.manifests import (
    MAX_MANIFEST_BYTES,
    SHARDS,
    ExportManifest,
    FileEntry,
    ShardManifest,
    file_entry,
    parse_model,
    read_bounded,
)
from pipeline.export.names import one_line
from pipeline.export.rows import row_digest
from pipeline.export.signing import SIGNATURE_SUFFIX, fingerprint, is_signed_by
from pipeline.folders import MANIFEST, safe_join
from pipeline.hashing import digest_file, digest_lines, digest_sorted

_SHOWN = 5  # names of one kind of problem that are listed
_HELD_OUT = ("validation", "test")
# File of ids -> splits that none of them may be in.
_NOT_LEARNED_FROM = {"training_ids": ("test",), "base_ids": _HELD_OUT}


@dataclass
class _State:
    """What is known of an export so far."""

    folder: Path
    checked: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    found: set[str] = field(default_factory=set)
    expected: set[str] = field(default_factory=set)
    ids: dict[str, set[bytes]] = field(default_factory=dict)
    parents: set[str] = field(default_factory=set)
    rows: int = 0
    digests: bytearray = field(default_factory=bytearray)
    origins: dict[str, int] = field(default_factory=dict)

    def complain(self, text: str) -> None:
        self.problems.append(f"{self.folder}: {text}")

    def complain_of(self, kind: str, names: list[str]) -> None:
        if names:
            self.complain(f"{kind}: {some(names)}")


def check_export(
    folder: Path, public_key: bytes | None = None, lineage: dict[str, Path] | None = None
) -> tuple[list[str], list[str]]:
    """Return what was checked and what is wrong, one line each.

    Args:
        folder: an export.
        public_key: 32 bytes of the key that has to have signed it; None takes the key inside.
        lineage: name -> file of ids, as in `export`; besides those in the export.
    """
    state = _State(folder)
    state.found.update(_regular_files(state))
    data = _read(state, MANIFEST)
    if data is None:
        return state.checked, state.problems
    manifest = parse_model(ExportManifest, data)
    if isinstance(manifest, str):
        state.complain(f"{MANIFEST} is damaged: {manifest}")
        return state.checked, state.problems
    state.expected.add(MANIFEST)
    signer = _signer(state, manifest, public_key)
    _check_signature(state, MANIFEST, data, signer)
    _check_files(state, manifest.files)
    _check_shards(state, manifest, signer)
    state.complain_of("added", sorted(state.found - state.expected))
    _check_whole(state, manifest)
    _check_lineage(state, lineage or {})
    return state.checked, state.problems


def some(names: list[str]) -> str:
    """Return the first few names, printable, and how many more there are."""
    shown = ", ".join(one_line(name, 120) for name in names[:_SHOWN])
    more = len(names) - _SHOWN
    return f"{shown} and {more} more" if more > 0 else shown


def _regular_files(state: _State) -> Iterator[str]:
    odd: list[str] = []
    for parent, folders, names in os.walk(state.folder, followlinks=False):
        for name in (*folders, *names):
            path = Path(parent) / name
            shown = path.relative_to(state.folder).as_posix()
            if path.is_symlink() or not (path.is_dir() or path.is_file()):
                odd.append(shown)
            elif name in names:
                yield shown
    state.complain_of("links, pipes or devices, which no export holds", sorted(odd))


def _read(state: _State, name: str) -> bytes | None:
    if name not in state.found:
        state.complain(f"missing: {one_line(name, 120)}")
        return None
    try:
        data = read_bounded(state.folder / name)
    except OSError as error:
        state.complain(f"{one_line(name, 120)} cannot be read ({error.strerror})")
        return None
    if data is None:
        state.complain(f"{one_line(name, 120)} is larger than {MAX_MANIFEST_BYTES:,} bytes")
    return data


def _signer(state: _State, manifest: ExportManifest, public_key: bytes | None) -> bytes | None:
    """Return the key that the signatures have to be by, or None where there are to be none."""
    if manifest.public_key is None:
        if public_key is not None:
            state.complain("not signed at all; a signature by the given key was expected")
        elif f"{MANIFEST}{SIGNATURE_SUFFIX}" in state.found:
            state.complain(f"signatures, but no key in {MANIFEST}")
        else:
            state.checked.append(
                "signature: none; the manifests show damage, but not who wrote them"
            )
        return public_key
    inside = bytes.fromhex(manifest.public_key)
    mark = fingerprint(inside)
    if manifest.fingerprint != mark:
        state.complain(f"the fingerprint in {MANIFEST} is not that of its key ({mark})")
    if public_key is None:
        state.checked.append(
            f"signature: by the key inside, {mark}; compare this fingerprint with the maker's, or "
            "give --public-key"
        )
        return inside
    if public_key != inside:
        state.complain(f"signed by another key: {mark}, not the given {fingerprint(public_key)}")
    else:
        state.checked.append(f"signature: by the given key, {mark}")
    return public_key


def _check_signature(state: _State, name: str, data: bytes, signer: bytes | None) -> None:
    if signer is None:
        return
    path = f"{name}{SIGNATURE_SUFFIX}"
    state.expected.add(path)
    signature = _read(state, path)
    if signature is not None and not is_signed_by(signer, signature, data):
        state.complain(f"wrong signature: {one_line(path, 120)}")


def _check_files(state: _State, files: dict[str, FileEntry]) -> None:
    outside, missing, changed = [], [], []
    for name, entry in files.items():
        if not _is_inside(state, name):
            outside.append(name)
        elif name not in state.found:
            missing.append(name)
        elif not _is_same(state.folder / name, entry):
            changed.append(name)
    state.expected.update(files)
    state.complain_of("not a path inside the export", sorted(outside))
    state.complain_of("missing", sorted(missing))
    state.complain_of("changed", sorted(changed))


def _is_inside(state: _State, name: str) -> bool:
    try:
        safe_join(state.folder, name)
    except (InputError, OSError, ValueError, RuntimeError):
        return False
    return True


def _is_same(path: Path, entry: FileEntry) -> bool:
    try:
        return path.stat().st_size == entry.bytes and digest_file(path) == entry.sha256
    except OSError:
        return False


def _check_shards(state: _State, manifest: ExportManifest, signer: bytes | None) -> None:
    inside = [name for name in manifest.shards if name.startswith(f"{SHARDS}/")]
    known = manifest.files.keys() & set(inside)
    strange = [name for name in manifest.shards if name not in known]
    state.complain_of(f"shards that are no file in {SHARDS}/", strange)
    claimed: set[str] = set()
    for name in dict.fromkeys(inside):
        data = _read(state, name)
        if data is None:
            continue
        _check_signature(state, name, data, signer)
        if name in manifest.files and file_entry(data) != manifest.files[name]:
            continue  # listed as changed already; what it says counts no more
        shard = parse_model(ShardManifest, data)
        if isinstance(shard, str):
            state.complain(f"{one_line(name, 120)} is damaged: {shard}")
            continue
        _check_files(state, shard.files)
        _check_rows(state, shard, manifest)
        present = {one for one in shard.files if one in state.found}
        faults = check_contents(state.folder, manifest, shard, present)
        for kind, rows in faults.items():
            state.complain_of(f"{one_line(shard.shard, 120)}: {kind}", rows)
        state.complain_of("files that two shards name", sorted(claimed & set(shard.files)))
        claimed.update(shard.files)


def _check_rows(state: _State, shard: ShardManifest, manifest: ExportManifest) -> None:
    name = one_line(shard.shard, 120)
    digests = [row_digest(shard.split, row.label, row.origin, row.id) for row in shard.rows]
    if digest_lines(digests) != shard.row_digest:
        state.complain(f"{name}: the row digest is not that of its rows")
    state.digests += b"".join(map(bytes.fromhex, digests))
    astray = [row.id[:12] for row in shard.rows if row.origin != "real" and shard.split != "train"]
    state.complain_of("synthetic rows outside train", astray)
    strange = [row.id[:12] for row in shard.rows if row.label >= len(manifest.classes)]
    state.complain_of(f"{name}: labels that are none of the classes", strange)
    counted = {one: sum(row.origin == one for row in shard.rows) for one in ("real", "synthetic")}
    if counted != shard.origins:
        state.complain(f"{name}: its rows are {counted}, not {shard.origins}")
    for origin, count in counted.items():
        state.origins[origin] = state.origins.get(origin, 0) + count
    ids = state.ids.setdefault(shard.split, set())
    ids.update(bytes.fromhex(row.id) for row in shard.rows)
    state.parents.update(row.parent for row in shard.rows if row.parent)
    state.rows += len(shard.rows)


def _check_whole(state: _State, manifest: ExportManifest) -> None:
    if digest_sorted(bytes(state.digests)) != manifest.store_digest:
        state.complain("the rows are not those of the store that it names: some are missing or new")
    if state.origins != {one: n for one, n in manifest.origins.items() if one in state.origins}:
        state.complain(f"its rows are {state.origins}, not {manifest.origins}")
    for held in _HELD_OUT:
        others = set().union(*(ids for split, ids in state.ids.items() if split != held))
        crossing = sorted(one.hex()[:12] for one in state.ids.get(held, set()) & others)
        state.complain_of(f"images in {held} and in another split", crossing)
    synthetic = state.origins.get("synthetic", 0)
    state.checked.append(
        f"export: layout {manifest.layout}, {len(manifest.shards)} shards, {state.rows:,} rows, "
        f"{synthetic:,} of them synthetic, store {manifest.store_digest[:12]}"
    )


def _check_lineage(state: _State, given: dict[str, Path]) -> None:
    held = {one.hex() for split in _HELD_OUT for one in state.ids.get(split, set())}
    state.complain_of(
        "synthetic rows were edited from validation or test rows",
        sorted(one[:12] for one in state.parents & held),
    )
    sources = [(name, state.folder / LINEAGE / f"{name}.txt") for name in _NOT_LEARNED_FROM]
    sources = [(n, p) for n, p in sources if f"{LINEAGE}/{n}.txt" in state.found]
    for name, path in (*sources, *given.items()):
        forbidden = set().union(*(state.ids.get(one, set()) for one in _NOT_LEARNED_FROM[name]))
        leaked, count = [], 0
        try:
            with path.open(encoding="ascii") as file:
                while line := file.readline(1024):  # a line without end is no id
                    count += 1
                    text = line.strip()
                    if len(text) == 64 and bytes.fromhex(text) in forbidden:
                        leaked.append(text[:12])
        except (OSError, ValueError) as error:
            state.complain(f"{path}: no list of ids ({one_line(str(error))})")
            continue
        splits = " or ".join(_NOT_LEARNED_FROM[name])
        who = "the generator" if name == "training_ids" else "its base"
        state.complain_of(f"{who} saw {splits} rows", leaked)
        if not leaked:
            state.checked.append(f"lineage: {who} learned from {count:,} images, none in {splits}")
