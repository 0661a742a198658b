import socket

import pytest

from pipeline import doctor
from pipeline.doctor import examine, port_problem


@pytest.fixture
def findings(monkeypatch, tmp_path):
    monkeypatch.setattr(doctor, "cache_file", lambda: tmp_path / "precision.json")
    monkeypatch.setattr(doctor, "pick_precision", lambda wanted, device: f"{wanted}-of-this-one")

    def look(**ports):
        found = examine(tmp_path / "not" / "yet", ports)
        return {finding.topic: finding for finding in found}

    return look


def test_every_topic_has_one_finding_and_nothing_is_bad_here(findings):
    found = findings()
    for topic in ("python", "torch", "albumentationsx", "device", "memory", "disk", "git command"):
        assert found[topic].text
    assert [one for one in found.values() if one.state == "bad"] == []


def test_the_precision_of_this_machine_is_told_with_where_it_is_kept(findings, tmp_path):
    found = findings()["precision"]
    assert found.state == "ok"
    assert found.text == (
        f"auto means auto-of-this-one, measured here; kept in {tmp_path / 'precision.json'}"
    )


def test_a_device_that_is_not_there_is_told(findings, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert findings()["device"].text.endswith("(torch sees no CUDA device)")


def test_a_missing_package_is_bad_and_a_missing_program_a_warning(findings, monkeypatch):
    monkeypatch.setattr(doctor, "_PACKAGES", ("no-such-package",))
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None)
    monkeypatch.setattr(doctor.sys, "executable", "/nowhere/python")
    found = findings()
    assert found["no-such-package"].state == "bad"
    assert found["no-such-package"].text.startswith("not installed; run")
    assert found["dvc command"].state == "warn"
    assert found["dvc command"].text == "not found; `make repro` needs dvc"


def test_thin_memory_and_disk_are_warnings(findings, monkeypatch):
    monkeypatch.setattr(doctor, "_LEAST_DISK_GIB", 1e9)
    monkeypatch.setattr(doctor, "_LEAST_MEMORY_GIB", 1e9)
    found = findings()
    assert (found["disk"].state, found["memory"].state) == ("warn", "warn")


def test_a_port_in_use_is_a_warning(findings):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert port_problem(port) == "Address already in use"
        found = findings(mlflow=port)[f"port {port}"]
    assert found.state == "warn"
    assert found.text.startswith("Address already in use; `make ui` needs it for mlflow")
    assert port_problem(port) is None
