"""dvc.yaml, params.yaml and the registry say the same."""

from pathlib import Path

import yaml

from pipeline.dag import dvc_file
from pipeline.params import SECTIONS, Params, load_params
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
        assert stage["params"] == ["seed", name]
        sources = [d for d in stage["deps"] if d.endswith((".py", ".j2"))]
        assert tuple(sources) == import_closure(stage_module(name))
        inputs = [d for d in stage["deps"] if d.startswith("artifacts/")]
        assert inputs == [f"artifacts/{i}" for i in STAGES[name].inputs]


def test_a_stage_reads_only_stages_before_it():
    for i, name in enumerate(SECTIONS):
        assert set(STAGES[name].inputs) <= set(SECTIONS[:i])


def test_params_yaml_is_the_defaults_and_names_every_key():
    path = ROOT / "params.yaml"
    assert load_params(path) == Params()
    document = yaml.safe_load(path.read_text())
    for name in SECTIONS:
        model = type(getattr(Params(), name))
        assert set(document[name]) == set(model.model_fields) - {"seed", "execution"}


def test_every_key_of_params_yaml_has_a_comment():
    for line in (ROOT / "params.yaml").read_text().splitlines():
        if line.startswith("  ") and ":" in line:
            assert "#" in line, line


def test_examples_are_valid_params():
    for path in (ROOT / "examples").glob("*.yaml"):
        load_params(path)
