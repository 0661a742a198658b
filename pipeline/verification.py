"""Check finished folders: digests, lineage, ids, and where synthetic and test rows stand.

Artifacts, a stage's folder and a sample store are checked here, an export in `pipeline.export`.
"""

import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.data.store import (
    INFO,
    SPLITS,
    Samples,
    read_ids,
    read_info,
    read_samples,
    rows_digest,
)
from pipeline.errors import InputError, StageError
from pipeline.export.checking import check_export
from pipeline.export.exporting import LINEAGE_FILES, lineage_files
from pipeline.export.manifests import is_export
from pipeline.export.signing import load_public
from pipeline.folders import MANIFEST, Manifest, made_from, read_manifest
from pipeline.hashing import digest_folder, digest_json, digest_pixels
from pipeline.params import SECTIONS
from pipeline.storage.artifacts import cache_root, fetch_all
from pipeline.storage.locations import is_url, open_location

_SHOWN = 5  # names of one kind of problem that are listed


@dataclass
class Findings:
    """What was checked and what is wrong.

    Attributes:
        checked: one line a thing that was looked at.
        problems: one line a fault; empty when all is well.
    """

    checked: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def verify_at(
    where: str, public_key: Path | None = None, artifacts: Path | None = None
) -> Findings:
    """Do `verify` for a folder's path, or for the URL of artifacts.

    Every object of a URL is fetched anew into a temporary folder in the user's cache: a copy that a
    run left says nothing of the store.

    Raises:
        InputError: see `verify`; or the URL cannot be used, or holds no finished stage.
        StageError: the store fails.
    """
    if not is_url(where):
        return verify(Path(where), public_key, artifacts)
    location = open_location(where)
    if public_key is not None or artifacts is not None:
        raise InputError(
            f"{location.url}: artifacts, so there is no signature and no lineage to check; give a "
            "folder that `replenish export` wrote"
        )
    root = cache_root()
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="verify-", dir=root) as folder:
        fetched, problems = fetch_all(location, Path(folder))
        findings = verify(Path(folder)) if fetched else Findings()
        findings.problems[:0] = problems

        def told(lines: list[str]) -> list[str]:
            return [line.replace(folder, location.url) for line in lines]

        return Findings(told(findings.checked), told(findings.problems))


def verify(folder: Path, public_key: Path | None = None, artifacts: Path | None = None) -> Findings:
    """Check an export, an artifacts folder, one stage's folder, or a bare sample store.

    Args:
        folder: to check.
        public_key: PEM file of the key that an export has to be signed by; None takes the key that
            the export itself names.
        artifacts: of the run that an export comes from, to see that its generator and its base did
            not learn from the export's test rows.

    Raises:
        InputError: the folder does not exist or is none of these, or a key or artifacts folder is
            given for what is no export, or is not what it should be.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; give an artifacts or stage folder")
    findings = Findings()
    if is_export(folder):
        key = None if public_key is None else load_public(public_key)
        lineage = {} if artifacts is None else _lineage_files(artifacts)
        findings.checked, findings.problems = check_export(folder, key, lineage)
        return findings
    if public_key is not None or artifacts is not None:
        raise InputError(
            f"{folder}: no export, so there is no signature and no lineage to check; give a folder "
            "that `replenish export` wrote"
        )
    if (folder / MANIFEST).is_file():
        _check_stage(folder, findings)
    elif (folder / INFO).is_file():
        _check_store(folder, findings)
    else:
        stages = [folder / name for name in SECTIONS if (folder / name / MANIFEST).is_file()]
        if not stages:
            raise InputError(
                f"{folder}: holds no finished stage and no sample store (no {MANIFEST}, no {INFO})"
            )
        manifests = {}
        for stage in stages:
            manifest = _check_stage(stage, findings)
            if manifest is not None:
                manifests[stage.name] = manifest
        _check_lineage(folder, manifests, findings)
    return findings


def _lineage_files(artifacts: Path) -> dict[str, Path]:
    found = lineage_files(artifacts)
    if not found:
        raise InputError(
            f"{artifacts}: no list of the images that a generator learned from; give the artifacts "
            "folder of the run"
        )
    return found


def _check_stage(folder: Path, findings: Findings) -> Manifest | None:
    try:
        manifest = read_manifest(folder)
    except StageError as error:
        findings.problems.append(str(error))
        return None
    if manifest is None:
        findings.problems.append(f"{folder}: no {MANIFEST}")
        return None
    found = digest_folder(folder)
    found.pop(MANIFEST)
    names = found.keys() | manifest.files.keys()
    faults = {
        "missing": sorted(n for n in names if n not in found),
        "added": sorted(n for n in names if n not in manifest.files),
        "changed": sorted(
            n for n in found.keys() & manifest.files.keys() if found[n] != manifest.files[n]
        ),
    }
    for kind, paths in faults.items():
        if paths:
            findings.problems.append(f"{folder}: {kind}: {_some(paths)}")
    if digest_json(manifest.files) != manifest.digest:
        findings.problems.append(f"{folder / MANIFEST}: the digest is not that of its files")
    findings.checked.append(
        f"{manifest.stage}: {len(manifest.files)} files, {manifest.digest[:12]}"
    )
    for path in sorted(folder.rglob(INFO)):
        _check_store(path.parent, findings)
    return manifest


def _check_store(folder: Path, findings: Findings) -> None:
    try:
        info = read_info(folder)
        samples = read_samples(folder)
    except (InputError, OSError, ValueError) as error:
        findings.problems.append(f"{folder}: not readable: {error}")
        return
    wrong = [
        stated[:12]
        for image, stated in zip(samples.images, samples.ids, strict=True)
        if digest_pixels(image) != stated
    ]
    if wrong:
        findings.problems.append(f"{folder}: pixels are not those of the id: {_some(wrong)}")
    astray = [
        identity[:12]
        for identity, split, origin in zip(
            samples.ids, samples.splits, samples.origins, strict=True
        )
        if origin != "real" and split != "train"
    ]
    if astray:
        findings.problems.append(f"{folder}: synthetic rows outside train: {_some(astray)}")
    for held in ("test", "validation"):
        elsewhere = [_ids(samples, split) for split in SPLITS if split != held]
        crossing = _ids(samples, held) & set().union(*elsewhere)
        if crossing:
            findings.problems.append(
                f"{folder}: images in {held} and in another split: {_some(sorted(crossing))}"
            )
    if rows_digest(samples) != info.digest:
        findings.problems.append(f"{folder}: the rows are not those of {INFO}")
    findings.checked.append(f"{folder}: {len(samples):,} rows, {info.digest[:12]}")


def _check_lineage(root: Path, manifests: dict[str, Manifest], findings: Findings) -> None:
    for name, manifest in manifests.items():
        for needed, (digest, here) in made_from(manifest, manifests).items():
            findings.problems.append(
                f"{root / name}: was made from another {needed} ({digest[:12]}, here "
                f"{here[:12]}); run the stage again"
            )
    store = root / "prepare" / "dataset"
    ids_file = root / LINEAGE_FILES["training_ids"]
    if "prepare" in manifests and "train" in manifests and ids_file.is_file():
        trained = set(ids_file.read_text(encoding="utf-8").split())
        leaked = trained & set(read_ids(store, ("test",)))
        if leaked:
            findings.problems.append(
                f"{root / 'train'}: the generator saw test rows: {_some(sorted(leaked))}"
            )
        strange = trained - set(read_ids(store, ("train",)))
        if strange:
            findings.problems.append(
                f"{ids_file}: rows that are not in {store}: {_some(sorted(strange))}"
            )
        findings.checked.append(f"lineage: {len(trained):,} training rows, none of them in test")
    base_ids = root / LINEAGE_FILES["base_ids"]
    if "prepare" in manifests and "train" in manifests and base_ids.is_file():
        held = set(read_ids(store, ("test", "validation")))
        leaked = held & set(base_ids.read_text(encoding="utf-8").split())
        if leaked:
            findings.problems.append(
                f"{base_ids}: the base saw test or validation rows: {_some(sorted(leaked))}"
            )
        findings.checked.append("lineage: no test or validation row among those of the base")
    networks = [root / "train" / name for name in ("generator", "student")]
    accepted = root / "synthesize" / "accepted"
    if networks[0].is_dir() and (accepted / INFO).is_file():
        digests = [digest_json(digest_folder(one)) for one in networks if one.is_dir()]
        rows = read_samples(accepted)
        found = set(rows.extra.get("generator", []))
        if found - set(digests):
            findings.problems.append(
                f"{accepted}: rows of another generator: {_some(sorted(found - set(digests)))}"
            )
        names = ", ".join(one[:12] for one in digests if one in found) or digests[0][:12]
        findings.checked.append(f"lineage: {len(rows):,} synthetic rows of {names}")


def _ids(samples: Samples, split: str) -> set[str]:
    return {i for i, s in zip(samples.ids, samples.splits, strict=True) if s == split}


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:_SHOWN])
    more = len(names) - _SHOWN
    return f"{shown} and {more} more" if more > 0 else shown
