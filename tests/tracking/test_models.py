"""Logged models for real: into a store, out of it in another process, through the gate."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from tracking.full_run import CLASSES, verdict, write_run, write_stage

from pipeline.data.images import to_model
from pipeline.diffusion.checkpoints import GeneratorSpec, save_generator
from pipeline.diffusion.unet import Preset, build_unet
from pipeline.features.networks import NetworkSpec, build_network, load_network, save_network
from pipeline.folders import write_json, write_manifest
from pipeline.tracking.facts import log_results
from pipeline.tracking.mlflow import MlflowClient, default_tracking_uri
from pipeline.tracking.models import CLASSIFIER, GENERATOR, run_models
from pipeline.tracking.recording import track_run

PREDICT = """
import sys, json, numpy, mlflow
mlflow.set_tracking_uri(sys.argv[1])
model = mlflow.pyfunc.load_model(sys.argv[2])
numpy.save(sys.argv[3], model.predict(model.input_example))
print(json.dumps(model.metadata.metadata))
"""


def write_models(artifacts):
    """Add two classifiers and a generator, all tiny and untrained, to finished folders."""
    spec = NetworkSpec("small_cnn", None, None, 1, len(CLASSES), 8, 4)
    for seed, side in enumerate(("baseline", "synthetic")):
        model = build_network(spec, seed)
        torch.nn.init.normal_(model.head.weight, generator=torch.Generator().manual_seed(seed))
        extra = {"classes": list(CLASSES), "image_size_px": 8, "image_mode": "L", "arm": side}
        save_network(model, spec, artifacts / "evaluate" / "classifiers" / side, extra)
    network = build_unet(8, "L", len(CLASSES), Preset(16, 1), seed=0)
    described = GeneratorSpec(CLASSES, 8, "L", "cosine", "velocity", False, "r" * 64, None)
    save_generator(artifacts / "train" / "generator", described, network)
    told = {"generator": "teacher", "sampler": "ddim", "sampler_steps": 3, "guidance_weight": 1.5}
    write_json(artifacts / "synthesize" / "summary.json", told)
    for stage in ("evaluate", "train", "synthesize"):
        write_manifest(artifacts / stage, stage, "k", {}, {})
    return artifacts


@pytest.fixture
def artifacts(root):
    return write_models(write_run(root / "artifacts"))


def record(root, digest="d" * 64):
    problems = []
    folder = root / "artifacts"
    with track_run(folder, digest, "demo", "run", warn=problems.append, root=root) as tracker:
        log_results(folder, tracker, root=root)
    assert problems == []
    return MlflowClient(default_tracking_uri(root)), tracker.run_id


def test_a_run_has_two_classifiers_and_a_generator(artifacts):
    models = {model.name: model for model in run_models(artifacts)}
    assert sorted(models) == ["classifier-baseline", "classifier-synthetic", "generator"]
    assert models["classifier-baseline"].registry == ""
    assert models["classifier-synthetic"].registry == CLASSIFIER
    assert models["generator"].config == {"sampler": "ddim", "steps": 3, "guidance": 1.5}
    tags = models["classifier-synthetic"].tags
    assert (tags["decision"], tags["gain_points"], tags["gain_low_points"]) == ("use", "3.0", "1.0")
    assert (tags["dataset_digest"], tags["generator_digest"]) == ("e" * 64, "9" * 64)
    assert models["generator"].facts["classes"] == list(CLASSES)


def test_without_a_verdict_there_is_no_model_and_a_damaged_one_is_left_out(artifacts):
    (artifacts / "evaluate/classifiers/synthetic/network.json").write_text("{")
    (artifacts / "train/generator/generator.json").write_text('{"image_mode": "L"}')
    assert [model.name for model in run_models(artifacts)] == ["classifier-baseline"]
    (artifacts / "evaluate" / "manifest.json").unlink()
    assert run_models(artifacts) == []


def test_models_hold_signature_example_and_safetensors_and_nothing_pickled(root, artifacts):
    client, run_id = record(root)
    run = client.get_run(run_id)
    found = client.search_logged_models([run.info.experiment_id])
    assert {(model.name, str(model.status)) for model in found} == {
        ("classifier-baseline", "READY"),
        ("classifier-synthetic", "READY"),
        ("generator", "READY"),
    }
    outputs = {output.model_id for output in run.outputs.model_outputs}
    assert outputs == {model.model_id for model in found}
    files = [path for path in (root / "mlartifacts").rglob("*") if path.is_file()]
    assert sum(path.suffix == ".safetensors" for path in files) == 3
    assert sum(path.name == "input_example.json" for path in files) == 3
    assert not [path for path in files if path.suffix in {".pkl", ".pickle", ".pt", ".bin", ".py"}]
    for path in files:
        if path.name == "MLmodel":
            assert "signature:" in path.read_text()
            assert "loader_module: pipeline.serving" in path.read_text()


@pytest.mark.slow
@pytest.mark.parametrize("name", [CLASSIFIER, GENERATOR])
def test_a_registered_model_predicts_in_a_fresh_process(root, artifacts, name):
    record(root)
    command = [sys.executable, "-W", "ignore", "-c", PREDICT]
    arguments = [default_tracking_uri(root), f"models:/{name}@candidate", str(root / "said.npy")]
    done = subprocess.run(
        [*command, *arguments], capture_output=True, text=True, check=False, cwd=root, timeout=300
    )
    assert done.returncode == 0, done.stderr
    said = np.load(root / "said.npy")
    assert json.loads(done.stdout.splitlines()[-1])["classes"] == list(CLASSES)
    if name == GENERATOR:
        assert (said.shape, said.dtype) == ((2, 8, 8, 1), np.uint8)
        assert said.std() > 0
        return
    (model,) = [one for one in run_models(artifacts) if one.registry == CLASSIFIER]
    with torch.inference_mode():
        logits = load_network(model.folder)(to_model(model.example))
    np.testing.assert_allclose(said, torch.softmax(logits, 1).numpy(), atol=1e-6)
    assert np.ptp(said) > 0.01  # not merely uniform


def test_a_run_that_is_joined_again_enters_no_model_twice(root, artifacts):
    client, first = record(root)
    client.set_terminated(first, "FAILED")
    _, again = record(root)
    assert again == first
    for name in (CLASSIFIER, GENERATOR):
        (version,) = client.search_model_versions(f"name = '{name}'")
        assert version.run_id == first
    experiment = client.get_run(first).info.experiment_id
    assert len(client.search_logged_models([experiment])) == 3


def test_aliases_follow_the_gate_in_a_real_registry(root, artifacts):
    client, first = record(root)
    worse = {"verdict.json": verdict(gain_points=0.5, interval_points=[0.1, 0.9])}
    write_stage(root / "artifacts", "evaluate", worse)
    _, second = record(root)
    assert second != first
    for name in (CLASSIFIER, GENERATOR):
        assert client.get_model_version_by_alias(name, "candidate").run_id == second
        champion = client.get_model_version_by_alias(name, "champion")
        assert champion.run_id == first
        assert champion.tags["gate"] == "moved: the first with the verdict use"
        assert champion.tags["decision"] == "use"
        newest = client.get_model_version(name, "2")
        assert newest.tags["gate"].startswith("not moved: the gain, 0.50 points, is below")
