import pytest
from pydantic import ValidationError

from flows.form import KEYS, Changes, Comparison, Data, Generator, Synthesis, Where
from pipeline.params import Params, load_params


def fields_of(model, prefix=""):
    for name, field in model.model_fields.items():
        inner = field.annotation
        if hasattr(inner, "model_fields"):
            yield from fields_of(inner, f"{name}.")
        else:
            yield f"{prefix}{name}"


def schema_of(model, dotted):
    """What a field allows: its branches, without null and words for people."""
    schema = model.model_json_schema()
    here = schema
    for name in dotted.split("."):
        here = here["properties"][name]
        if "$ref" in here:
            here = schema["$defs"][here["$ref"].rpartition("/")[2]]
    branches = here.get("anyOf", [here])
    words = ("title", "description", "default")
    plain = [{k: v for k, v in one.items() if k not in words} for one in branches]
    return [one for one in plain if one != {"type": "null"}]


def test_every_field_has_a_key_and_no_key_two_fields():
    assert list(fields_of(Changes)) == list(KEYS)
    assert len(set(KEYS.values())) == len(KEYS)


@pytest.mark.parametrize(("field", "key"), KEYS.items())
def test_a_field_allows_what_its_key_allows(field, key):
    assert schema_of(Changes, field) == schema_of(Params, key)


def test_an_empty_form_changes_nothing():
    assert Changes().overrides() == ()


def test_what_is_filled_in_reaches_the_params(tmp_path):
    (tmp_path / "params.yaml").write_text("{}")
    changes = Changes(
        seed=4,
        data=Data(source="manifest", path="some: [odd] #path", image_size_px=32),
        generator=Generator(base="hub", base_hub_id="someone/unet@v1", steps=5),
        synthesis=Synthesis(images_per_class="planned", guidance="auto", sampler="heun"),
        comparison=Comparison(seeds=7, max_seeds=9, steps=8, horizontal_flip=True),
        where=Where(backend="prefect", work_pool="mine", workers=3),
    )
    params = load_params(tmp_path / "params.yaml", changes.overrides())
    assert params.seed == 4
    assert (params.prepare.source, params.prepare.path) == ("manifest", "some: [odd] #path")
    assert params.prepare.image_size_px == 32
    assert (params.pretrain.base, params.pretrain.hub_id) == ("hub", "someone/unet@v1")
    assert params.train.steps == 5
    synthesize = params.synthesize
    assert (synthesize.images_per_class, synthesize.guidance) == ("planned", "auto")
    assert synthesize.sampler == "heun"
    evaluate = params.evaluate
    assert (evaluate.seeds, evaluate.max_seeds, evaluate.steps) == (7, 9, 8)
    assert evaluate.horizontal_flip is True
    execution = params.execution
    assert (execution.backend, execution.work_pool, execution.workers) == ("prefect", "mine", 3)


@pytest.mark.parametrize(
    "given",
    [
        {"synthesis": {"guidance": 21.0}},
        {"synthesis": {"guidance": "strong"}},
        {"synthesis": {"images_per_class": -1}},
        {"data": {"source": "zip"}},
        {"data": {"unknown": 1}},
        {"comparison": {"seeds": 1}},
        {"where": {"work_pool": "../x"}},
    ],
)
def test_what_the_params_would_refuse_the_form_refuses(given):
    with pytest.raises(ValidationError):
        Changes.model_validate(given)


@pytest.mark.parametrize(("given", "value"), [(2, 2.0), ("auto", "auto"), (0.5, 0.5)])
def test_guidance_is_a_number_or_auto(given, value):
    changes = Changes.model_validate({"synthesis": {"guidance": given}})
    assert changes.synthesis.guidance == value
