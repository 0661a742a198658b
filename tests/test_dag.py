"""dvc.yaml, params.yaml and the registry say the same."""

import re
from pathlib import Path

import yaml

from pipeline.dag import dvc_file
from pipeline.params import (
    GENERATOR_KEYS,
    ROOT_KEYS,
    SECTIONS,
    Execution,
    Params,
    Servers,
    load_params,
)
from pipeline.sources import import_closure
from pipeline.stages import STAGES, stage_module

ROOT = Path(__file__).parents[1]


def test_dvc_yaml_is_what_the_registry_and_the_imports_want():
    assert (ROOT / "dvc.yaml").read_text() == dvc_file(), "run `make dvc.yaml`"


def test_dvc_yaml_lists_stages_params_deps_and_outs():
    document = yaml.safe_load((ROOT / "dvc.yaml").read_text())
    assert list(document["stages"]) == list(SECTIONS) == list(STAGES)
    for name, stage in document["stages"].items():
        assert stage["cmd"] == f"python -m pipeline {name}"
        assert stage["outs"] == [f"artifacts/{name}"]
        copied = [f"train.{key}" for key in GENERATOR_KEYS] if name == "pretrain" else []
        root = ["seed", "recipe"] if name == "prepare" else ["seed"]
        assert stage["params"] == [*root, name, *copied]
        sources = [d for d in stage["deps"] if d.endswith((".py", ".j2"))]
        assert tuple(sources) == import_closure(stage_module(name))
        wanted: list[str] = []
        for needed in STAGES[name].inputs:
            files = STAGES[name].only.get(needed)
            wanted += [f"artifacts/{needed}/{file}" for file in files] if files else []
            wanted += [] if files else [f"artifacts/{needed}"]
        assert [d for d in stage["deps"] if d.startswith("artifacts/")] == wanted
    assert document["stages"]["prepare"]["deps"][-2:] == [
        "${prepare.path}",
        "${prepare.pool_path}",
    ]


def test_pretrain_depends_on_ids_the_recipe_its_base_and_the_shared_keys():
    stage = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]["pretrain"]
    assert stage["deps"][-3:] == [
        "artifacts/prepare/unlabelled_ids.txt",
        "artifacts/prepare/settings.json",
        "${pretrain.path}",
    ]
    assert "artifacts/prepare" not in stage["deps"]
    assert {"train.base_channels", "train.schedule", "train.augment"} <= set(stage["params"])
    assert not {"train", "train.steps", "train.class_map"} & set(stage["params"])


def test_folders_that_dvc_depends_on_exist_in_a_fresh_checkout():
    params = Params()
    for path in (params.prepare.path, params.prepare.pool_path, params.pretrain.path):
        assert (ROOT / path).is_dir(), path


def test_what_dvc_shows_is_what_stages_say_they_write():
    document = yaml.safe_load((ROOT / "dvc.yaml").read_text())
    assert document["metrics"] == [f"artifacts/{n}/{f}" for n in STAGES for f in STAGES[n].metrics]
    curves = [next(iter(plot)) for plot in document["plots"] if isinstance(plot, dict)]
    assert curves == [f"artifacts/{n}/{f}" for n in STAGES for f in STAGES[n].plots]
    assert "artifacts/train/checks.csv" in curves
    pictures = [plot for plot in document["plots"] if isinstance(plot, str)]
    assert pictures == ["artifacts/pretrain/samples", "artifacts/train/samples"]


def test_every_artifact_has_a_name_that_dvc_takes_and_lies_in_a_stage():
    artifacts = yaml.safe_load((ROOT / "dvc.yaml").read_text())["artifacts"]
    assert list(artifacts) == [
        *("dataset", "prepared", "accepted", "generator", "classifier", "classifier-baseline")
    ]
    for name, artifact in artifacts.items():
        assert re.fullmatch(r"[a-z][a-z0-9-]*[a-z0-9]", name)  # DVC's rule for `artifacts get`
        assert artifact["type"] in ("dataset", "model")
        top, stage, *_ = artifact["path"].split("/")
        assert top == "artifacts"
        assert stage in SECTIONS


def test_a_stage_reads_only_stages_before_it():
    for i, name in enumerate(SECTIONS):
        assert set(STAGES[name].inputs) <= set(SECTIONS[:i])
        assert set(STAGES[name].only) <= set(STAGES[name].inputs)


def test_params_yaml_is_the_defaults_and_names_every_key():
    path = ROOT / "params.yaml"
    assert load_params(path) == Params()
    document = yaml.safe_load(path.read_text())
    for name in SECTIONS:
        model = type(getattr(Params(), name))
        copied = set(GENERATOR_KEYS) if name == "pretrain" else set()
        assert set(document[name]) == set(model.model_fields) - {*ROOT_KEYS, "execution"} - copied
    assert set(document) == {*ROOT_KEYS, "execution", "servers", *SECTIONS}
    assert set(document["servers"]) == set(Servers.model_fields)
    assert set(document["execution"]) == set(Execution.model_fields)


def test_every_key_of_params_yaml_has_a_comment():
    for line in (ROOT / "params.yaml").read_text().splitlines():
        if line.startswith("  ") and ":" in line:
            assert "#" in line, line


def test_examples_are_valid_params():
    for path in (ROOT / "examples").glob("*.yaml"):
        load_params(path)
