import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import InputError
from pipeline.params import GENERATOR_KEYS, SECTIONS, Params, check_params, load_params


def load(tmp_path: Path, text: str, *overrides: str) -> Params:
    path = tmp_path / "params.yaml"
    path.write_text(text, encoding="utf-8")
    return load_params(path, overrides)


def test_an_empty_file_gives_the_defaults(tmp_path: Path) -> None:
    assert load(tmp_path, "") == Params()
    assert load(tmp_path, "# only a comment\n") == Params()


def test_seed_and_execution_reach_every_section(tmp_path: Path) -> None:
    params = load(tmp_path, "seed: 7\nexecution: {device: cpu}\ntrain: {seed: 9}\n")
    assert [getattr(params, name).seed for name in SECTIONS] == [7, 7, 9, 7, 7, 7, 7]
    assert {getattr(params, name).execution.device for name in SECTIONS} == {"cpu"}


def test_the_recipe_reaches_prepare_alone(tmp_path: Path) -> None:
    assert (Params().recipe, Params().prepare.recipe) == ("auto", "auto")
    params = load(tmp_path, "recipe: none\n")
    assert (params.recipe, params.prepare.recipe) == ("none", "none")
    assert [name for name, section in params.identity().items() if "recipe" in section] == [
        "prepare"
    ]
    assert load(tmp_path, "recipe: none\nprepare: {recipe: auto}\n").prepare.recipe == "auto"
    assert Params().pretrain.base == "auto"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tran: {}", r"tran is not a known key; did you mean `train`\? allowed here: .*prepare"),
        ("train: {stepz: 5}", r"train\.stepz is not a known key; did you mean `steps`\?"),
        (
            "prepare: {imbalance: {max: 5, mim: 2}}",
            r"prepare\.imbalance\.mim is not a known key; did you mean `min`\?",
        ),
        (
            "execution: {gpu: 1}",
            r"execution\.gpu is not a known key; allowed here: backend, batch_images, device",
        ),
        ("servers: {mlflow_prt: 1}", r"mlflow_prt is not a known key; did you mean `mlflow_port`"),
        ("servers: {prefect_port: 0}", r"servers\.prefect_port = 0: .*greater than or equal to 1"),
        ("servers: {mlflow_port: 65536}", r"servers\.mlflow_port = 65536: .*equal to 65535"),
        ("servers: {database: 5}", r"servers\.database: input should be a valid string"),
        ("train: {steps: 0}", r"train\.steps = 0: input should be greater than or equal to 1"),
        ('train: {steps: "5"}', r'train\.steps = "5": input should be a valid integer'),
        ("train: {steps: 2.5}", r"train\.steps = 2\.5: input should be a valid integer"),
        ("train: {learning_rate: 1e-4}", r'train\.learning_rate = "1e-4": .* valid number'),
        ("train: {schedule: cubic}", r"train\.schedule = \"cubic\": .*'linear'.*'cosine'"),
        ("prepare: {image_size_px: 30}", r"prepare\.image_size_px = 30: .*multiple of 4"),
        ("prepare: {keep_pool: 1}", r"prepare\.keep_pool = 1: input should be a valid boolean"),
        ("prepare: {imbalance: {max: 2, min: 5}}", r"min \(5\) must not exceed max \(2\)"),
        ("prepare: {imbalance: {max: 2}}", r"prepare\.imbalance\.min"),
        (
            "prepare: {validation_fraction: 0.5, test_fraction: 0.45}",
            r"validation_fraction \+ test_fraction must be at most 0\.9",
        ),
        ("prepare: [1]", r"prepare = \[1\]"),
        ("pretrain: {bas: pool}", r"pretrain\.bas is not a known key; did you mean `base`\?"),
        ("pretrain: {base: magic}", r"pretrain\.base = \"magic\": .*'none'.*'pool'.*'run'"),
        ("pretrain: {base: hub}", "base hub needs hub_id, such as owner/name"),
        ("pretrain: {batch_images: 0}", r"pretrain\.batch_images = 0: "),
        (
            "train: {augment: [flip, spin]}",
            r"train\.augment\.1 = \"spin\": input should be 'flip', 'flip_vertical', 'translate'",
        ),
        ("train: {augment: flip}", r"train\.augment = \"flip\": input should be a valid array"),
        (
            "train: {zero_terminal_snr: true, prediction: noise}",
            "noise says nothing of a level that is pure noise; use velocity, sample or edm",
        ),
        ("train: {ema_length: 0.5}", r"train\.ema_length = 0\.5: .*less than or equal to 0\.25"),
        ("train: {class_map: [a, b]}", r"train\.class_map = \[\"a\", \"b\"\]"),
        ("train: {base_channels: 12}", r"train\.base_channels = 12: .*multiple of 8"),
        ("evaluate: {arms: [mixed]}", "arms needs a baseline"),
        ("evaluate: {arms: [real]}", "arms needs one with real and synthetic images"),
        ("evaluate: {arms: [retrieval, mixed]}", "no baseline but .*; add real_augmented"),
        ("evaluate: {arms: [base_images, real, mixed_base]}", "arms needs one with real and"),
        (
            "evaluate: {arms: [real, mixed, mixed_base]}",
            "arms has mixed_base, which needs base_images",
        ),
        (
            "evaluate: {arms: [real, mixed, mixed_pool]}",
            "mixed_pool, which needs pseudo_labels_soft",
        ),
        ("evaluate: {arms: []}", r"evaluate\.arms = \[\]"),
        ("synthesize: {images_per_class: many}", r"synthesize\.images_per_class = \"many\""),
        ("assemble: {name: ../../etc}", r"assemble\.name = "),
        ("seed: -1", r"seed = -1: input should be greater than or equal to 0"),
        ("recipe: best", r"params\.yaml: recipe = \"best\": input should be 'auto' or 'none'"),
        ("pretrain: {recipe: none}", r"pretrain\.recipe is not a known key"),
        ("train: {learning_rate: .nan}", "without .inf or .nan"),
        ("report: {title: 2020-01-01}", "write dates in quotes"),
        ("- a\n- b\n", "must be a mapping of sections: prepare, pretrain, train"),
        ("5: {}\n", "must be a mapping of sections"),
        ("train: {steps: 5", "not readable as YAML"),
        ("a: &a [*a]\n", r"aliases"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        load(tmp_path, text)
    assert str(caught.value).startswith(str(tmp_path / "params.yaml"))


def test_keys_that_do_not_go_together_are_told_without_the_whole_section(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        load(tmp_path, "evaluate: {arms: [real]}\n")
    assert "params.yaml: evaluate: arms needs one with real and synthetic" in str(caught.value)


def test_every_error_is_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        load(tmp_path, "train: {steps: 0, stepz: 1}\nreport: {examples: -1}\n")
    assert len(str(caught.value).splitlines()) == 3


@pytest.mark.parametrize(
    "values",
    [
        "batch_images: 0",
        "learning_rate: fast",
        "augment: [flip, spin]",
        "schedule: cubic",
        "zero_terminal_snr: true, prediction: noise",
    ],
)
def test_a_fault_in_train_is_told_once_although_pretrain_copies_it(
    tmp_path: Path, values: str
) -> None:
    with pytest.raises(InputError) as caught:
        load(tmp_path, f"train: {{{values}}}\npretrain: {{base: pool}}\n")
    (line,) = str(caught.value).splitlines()
    assert "params.yaml: train" in line


def test_a_fault_that_stands_in_pretrain_too_is_told_there_too(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        load(tmp_path, "train: {batch_images: 0}\npretrain: {batch_images: -1}\n")
    assert [line.split(": ")[1] for line in str(caught.value).splitlines()] == [
        "pretrain.batch_images = -1",
        "train.batch_images = 0",
    ]
    with pytest.raises(InputError) as caught:
        load(tmp_path, "train: {zero_terminal_snr: true}\npretrain: {prediction: noise}\n")
    (line,) = str(caught.value).splitlines()
    assert "params.yaml: pretrain: prediction noise says" in line


def test_pretrain_takes_the_network_of_train_and_may_have_its_own(tmp_path: Path) -> None:
    text = "train: {base_channels: 16, augment: [flip], steps: 7}\npretrain: {learning_rate: 0.5}\n"
    params = load(tmp_path, text, "train.schedule=linear")
    assert (params.pretrain.base_channels, params.pretrain.augment) == (16, ("flip",))
    assert (params.pretrain.schedule, params.train.schedule) == ("linear", "linear")
    assert (params.pretrain.learning_rate, params.train.learning_rate) == (0.5, 1.0e-3)
    assert params.pretrain.steps is None  # its own key, though train has one of the same name
    assert {"batch_images", "augment", "compile"} <= set(GENERATOR_KEYS)
    assert not {"steps", "seed", "execution", "class_map", "base"} & set(GENERATOR_KEYS)


@pytest.mark.parametrize("hub_id", ["google/ddpm-cifar10-32", "a/b@main", "a_1/b.c-d@refs/pr/1"])
def test_hub_ids(tmp_path: Path, hub_id: str) -> None:
    params = load(tmp_path, f"pretrain: {{base: hub, hub_id: {hub_id}}}\n")
    assert params.pretrain.hub_id == hub_id


@pytest.mark.parametrize(
    "hub_id",
    [
        "",
        "name",
        "a/b/c",
        "a/..",
        "../b",
        "a/b@",
        "a/b@../c",
        "/a/b",
        "https://x/y",
        "a b/c",
        "a/b\n",
    ],
)
def test_what_is_no_hub_id(tmp_path: Path, hub_id: str) -> None:
    with pytest.raises(InputError, match=r"pretrain\.hub_id = .*should match pattern"):
        load(tmp_path, f"pretrain: {{base: hub, hub_id: {json.dumps(hub_id)}}}\n")


@pytest.mark.parametrize(
    "tag",
    [
        "!!python/object/apply:os.system ['true']",
        "!!python/name:os.system",
        "!!python/object/new:pathlib.Path ['/']",
        "!!python/tuple [1, 2]",
    ],
)
def test_python_tags_are_refused(tmp_path: Path, tag: str) -> None:
    with pytest.raises(InputError, match="not readable as YAML: could not determine a constr"):
        load(tmp_path, f"train: {tag}\n")
    with pytest.raises(InputError, match="the value is not readable as YAML"):
        load(tmp_path, "", f"train.steps={tag}")


def test_files_that_are_no_params_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such params file; give one with --params"):
        load_params(tmp_path / "absent.yaml")
    with pytest.raises(InputError, match="no such params file"):
        load_params(tmp_path)
    path = tmp_path / "params.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="not readable as YAML"):
        load_params(path)
    path.write_bytes(b"#" * (1 << 20) + b"#")
    with pytest.raises(InputError, match="larger than 131072 bytes"):
        load_params(path)
    path.write_text("[" * 100_000)
    with pytest.raises(InputError, match="not readable as YAML"):
        load_params(path)


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("train.steps=500", 500),
        ("train.learning_rate=1e-4", 1e-4),
        ("train.learning_rate=0.5", 0.5),
        ("prepare.imbalance=null", None),
        ("prepare.keep_pool=false", False),
        ("prepare.path=/data/with=sign", "/data/with=sign"),
        ("evaluate.mixed_shares=[0.25, 0.5]", (0.25, 0.5)),
        ("synthesize.images_per_class=fill", "fill"),
    ],
)
def test_set_changes_one_value(tmp_path: Path, override: str, value: Any) -> None:
    params = load(tmp_path, "train: {batch_images: 8}\n", override)
    section, key = override.partition("=")[0].split(".")
    assert getattr(getattr(params, section), key) == value
    assert params.train.batch_images == 8


def test_set_reaches_deeper_and_the_last_wins(tmp_path: Path) -> None:
    params = load(
        tmp_path,
        "prepare: {imbalance: {max: 9, min: 3}}\n",
        "prepare.imbalance.max=8",
        "prepare.imbalance.max=7",
        "seed=3",
    )
    assert params.prepare.imbalance is not None
    assert (params.prepare.imbalance.max, params.prepare.imbalance.min) == (7, 3)
    assert params.report.seed == 3


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.steps", "write section.key=value, for example --set train.steps=500"),
        ("=5", "write section.key=value"),
        ("train..steps=5", "write section.key=value"),
        ("train.steps.more=5", "`steps` is the value 5, not a section"),
        ("train.steps=[", "the value is not readable as YAML"),
        ("train.stepz=5", r"did you mean `steps`\?"),
        ("train.steps=zero", r'train\.steps = "zero"'),
    ],
)
def test_a_bad_set_is_named(tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load(tmp_path, "train: {steps: 5}\n", override)


def test_the_digest_ignores_execution_and_sees_everything_else() -> None:
    digest = Params().digest()
    same: dict[str, Any] = {
        "execution": {"device": "cpu", "workers": 7},
        "servers": {"prefect_port": 4201, "database": "postgresql://ann@db.example.org/"},
    }
    assert check_params(same, "test").digest() == digest
    others: list[dict[str, Any]] = [
        {"seed": 1},
        {"recipe": "none"},
        {"train": {"steps": 1}},
        {"pretrain": {"base": "pool"}},
        {"prepare": {"imbalance": None}},
        {"report": {"title": "Another"}},
    ]
    assert len({digest, *(check_params(other, "test").digest() for other in others)}) == 7


def test_params_are_frozen_and_flat() -> None:
    params = Params()
    with pytest.raises(ValueError, match="frozen"):
        params.train.steps = 5  # type: ignore[misc]
    flat = params.flat()
    assert (flat["train.augment"], flat["train.class_map"]) == ("[]", "{}")
    assert flat["train.steps"] == params.train.steps
    assert flat["evaluate.mixed_shares"] == "[0.5, 0.25, 0.75]"
    assert not [name for name in flat if "execution" in name or "servers" in name]


def test_a_file_of_nested_aliases_is_refused_at_once(tmp_path):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 30)]
    path = tmp_path / "params.yaml"
    path.write_text("\n".join(lines))
    with pytest.raises(InputError, match=r"aliases \(\*name\) are not allowed"):
        load_params(path)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ("train.label_dropout=0.0", "synthesize.guidance=1.5"),
            "never trains the null class that synthesize.guidance",
        ),
        (("synthesize.sampler=euler",), "synthesize.sampler"),
        (("synthesize.sampler_steps=1001",), "less than or equal to 1000"),
        (("synthesize.strengths=[0.5, 1.5]",), "less than or equal to 1"),
        (("synthesize.sampler_eta=0.5",), "sampler_eta is of sampler ddim"),
        (("synthesize.guidance_low=2", "synthesize.guidance_high=1"), "guidance acts nowhere"),
        (("synthesize.guidance=automatic",), "synthesize.guidance"),
        (("synthesize.guide=weaker",), "set train.guide to earlier or smaller"),
        (("synthesize.guide=weaker", "train.guide=earlier"), "set guidance to 1.5, or to auto"),
        (("synthesize.generator=student",), "set train.distill to progressive or consistency"),
        (
            ("train.distill=progressive", "synthesize.generator=student", "synthesize.mode=edit"),
            "a distilled student does not know",
        ),
        (
            (
                "train.label_dropout=0.0",
                "synthesize.guidance=1",
                "train.distill=consistency",
            ),
            "never trains the null class that train.distill_guidance",
        ),
    ],
)
def test_settings_that_do_not_go_together_are_refused(tmp_path, overrides, message):
    path = tmp_path / "params.yaml"
    path.write_text("seed: 0\n")
    with pytest.raises(InputError, match=message):
        load_params(path, overrides)


@pytest.mark.parametrize(
    "overrides",
    [
        ("synthesize.guidance=1",),
        ("synthesize.guidance=auto",),  # tries what the generator has
        ("synthesize.guide=weaker", "train.guide=earlier", "synthesize.guidance=1.5"),
    ],
)
def test_without_a_null_class_there_are_other_guides(tmp_path, overrides):
    path = tmp_path / "params.yaml"
    path.write_text("train: {label_dropout: 0.0}\n")
    assert load_params(path, overrides).train.label_dropout == 0


def test_quotes_keep_a_number_a_text(tmp_path):
    path = tmp_path / "params.yaml"
    path.write_text("seed: 0\n")
    assert load_params(path, ('prepare.path="2024"',)).prepare.path == "2024"


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("mysql://ann:hush@db/", r"must look like postgresql://user@host:5432/$"),
        ("postgresql://:hush@db/", "must look like"),
        ("postgresql://ann:hush@/", "must look like"),
        ("postgresql://ann:hush@db:port/", "must look like"),
        ("postgresql://ann:hush@[::1/", "must look like"),
        ("postgresql://ann:hush@db/mlflow", "names one database, but Prefect and MLflow each"),
        ("postgresql://ann:hush@db/?sslmode=require", "PGSSLMODE=verify-full"),
    ],
)
def test_what_is_no_database_server_is_refused_without_telling_the_password(
    tmp_path: Path, url: str, message: str
) -> None:
    with pytest.raises(InputError, match=message) as refused:
        load(tmp_path, f"servers: {{database: {json.dumps(url)}}}\n")
    assert "servers.database: " in str(refused.value)
    assert "hush" not in str(refused.value)


@pytest.mark.parametrize(
    "text",
    [
        'servers: "postgresql://ann:qqq@db/"\n',
        'servers: {database: ["postgresql://ann:qqq@qqq@db/"]}\n',
        'report: {title: 5, servers: "postgresql://ann:qqq@db/"}\n',
        "servers:\n  database: postgresql://ann:qqq@db/: {\n",
    ],
)
def test_a_password_in_the_wrong_place_is_not_told(tmp_path: Path, text: str) -> None:
    with pytest.raises(InputError) as refused:
        load(tmp_path, text)
    assert "qqq" not in str(refused.value)


def test_a_database_is_kept_secret(tmp_path: Path) -> None:
    servers = load(tmp_path, "servers: {database: 'postgresql://ann:qqq@db:5433/'}\n").servers
    assert servers.database is not None
    assert servers.database.get_secret_value() == "postgresql://ann:qqq@db:5433/"
    assert "qqq" not in repr(servers) + str(servers) + servers.model_dump_json()
