"""The gate against a registry in memory; tests/tracking/test_models.py has a real one."""

from types import SimpleNamespace

import pytest

from pipeline.tracking.registry import enter, gate

USE = {"decision": "use", "gain_points": "3.0", "gain_low_points": "1.0", "classes_digest": "c"}


class Missing(Exception):
    error_code = "RESOURCE_DOES_NOT_EXIST"


class Present(Exception):
    error_code = "RESOURCE_ALREADY_EXISTS"


class Registry:
    """The calls of MLflow's client that the gate makes."""

    def __init__(self):
        self.names, self.versions, self.aliases = set(), [], {}
        self.fail_at = None

    def create_registered_model(self, name, description):
        if name in self.names:
            raise Present
        self.names.add(name)

    def search_model_versions(self, _, max_results):
        return list(self.versions)

    def create_model_version(self, name, source, run_id, tags, model_id):
        found = SimpleNamespace(version=len(self.versions) + 1, run_id=run_id, tags=dict(tags))
        self.versions.append(found)
        return found

    def set_registered_model_alias(self, name, alias, version):
        if self.fail_at == alias:
            raise ConnectionError(alias)
        self.aliases[alias] = version

    def get_model_version_by_alias(self, name, alias):
        if alias not in self.aliases:
            raise Missing
        return self.versions[int(self.aliases[alias]) - 1]

    def set_model_version_tag(self, name, version, key, value):
        if self.fail_at == key:
            raise ConnectionError(key)
        self.versions[int(version) - 1].tags[key] = value


@pytest.fixture
def registry():
    return Registry()


def put(registry, run_id, **tags):
    return enter(registry, "m", run_id, f"m-{run_id}", "somewhere", {**USE, **tags})


@pytest.mark.parametrize(
    ("new", "champion", "moves", "reason"),
    [
        ({"decision": "do_not_use"}, None, False, "the verdict is do_not_use"),
        ({"decision": ""}, None, False, "the verdict is missing"),
        ({"gain_points": "nan"}, None, False, "the run has no gain"),
        ({"gain_points": "much"}, None, False, "the run has no gain"),
        ({}, None, True, "the first with the verdict use"),
        ({"decision": "use_with_care"}, None, True, "the first with the verdict use_with_care"),
        ({"gain_points": "1.0"}, USE, True, "1.00 points, is not below 1.00"),
        ({"gain_points": "0.99"}, USE, False, "0.99 points, is below the champion's lower bound"),
        ({"classes_digest": "d"}, USE, False, "the champion knows other classes"),
        ({}, {"classes_digest": "c"}, True, "the champion has recorded no lower bound"),
    ],
)
def test_the_gate(new, champion, moves, reason):
    moved, why = gate({**USE, **new}, champion)
    assert moved is moves
    assert reason in why
    assert why.startswith("moved: " if moves else "not moved: ")


def test_candidate_is_the_newest_and_champion_moves_by_the_gate_alone(registry):
    assert put(registry, "a") == "1"
    assert registry.aliases == {"candidate": "1", "champion": "1"}
    put(registry, "b", gain_points="0.5")
    assert registry.aliases == {"candidate": "2", "champion": "1"}
    put(registry, "c", decision="do_not_use", gain_points="9.0")
    assert registry.aliases == {"candidate": "3", "champion": "1"}
    put(registry, "d", gain_points="2.0", gain_low_points="0.5")
    assert registry.aliases == {"candidate": "4", "champion": "4"}
    gates = [one.tags["gate"].split(":")[0] for one in registry.versions]
    assert gates == ["moved", "not moved", "not moved", "moved"]


def test_a_run_is_entered_once_and_an_older_one_takes_nothing_back(registry):
    put(registry, "a")
    put(registry, "b", gain_points="4.0")
    assert put(registry, "a") == "1"
    assert len(registry.versions) == 2
    assert registry.aliases == {"candidate": "2", "champion": "2"}


@pytest.mark.parametrize("where", ["candidate", "champion", "gate"])
def test_an_interrupted_entry_is_finished_the_next_time(registry, where):
    registry.fail_at = where
    with pytest.raises(ConnectionError):
        put(registry, "a")
    registry.fail_at = None
    put(registry, "a")
    assert len(registry.versions) == 1
    assert registry.aliases == {"candidate": "1", "champion": "1"}
    assert registry.versions[0].tags["gate"].startswith("moved")


def test_another_error_is_not_taken_for_a_missing_model(registry, monkeypatch):
    def broken(*_, **__):
        raise ConnectionError("gone")

    monkeypatch.setattr(registry, "get_model_version_by_alias", broken)
    with pytest.raises(ConnectionError):
        put(registry, "a")
