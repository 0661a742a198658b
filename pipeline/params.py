"""Typed, frozen models that mirror params.yaml: one section a stage, of the same name.

A stage receives its own section and nothing else. The root keys `seed` and `execution` are copied
into every section when the file is read, `recipe` into `prepare`.
"""

import json
import re
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args
from urllib.parse import urlsplit

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)

from pipeline.errors import InputError
from pipeline.hashing import digest_json

_MAX_PARAMS_BYTES = 1 << 17

Fraction = Annotated[float, Field(gt=0.0, lt=1.0)]
Strength = Annotated[float, Field(ge=0.0, le=1.0)]
RecipeName = Literal["auto", "none"]
TransformName = Literal["flip", "flip_vertical", "translate", "rotate", "scale"]
_HUB_ID = (
    r"^[A-Za-z0-9_][A-Za-z0-9_.-]*/[A-Za-z0-9_][A-Za-z0-9_.-]*(@[A-Za-z0-9_][A-Za-z0-9_./-]*)?$"
)
BaselineName = Literal[
    "real",
    "real_balanced",
    "class_weighted",
    "logit_adjusted",
    "focal",
    "real_augmented",
    "real_augmented_strong",
    "mixup",
    "cutmix",
    "smote",
    "pseudo_labels",
    "pseudo_labels_soft",
    "retrieval",
    "base_images",
]
SyntheticArmName = Literal[
    "mixed",
    "mixed_plain",
    "mixed_strong",
    "mixed_mixup",
    "mixed_cutmix",
    "mixed_downweighted",
    "mixed_pool",
    "mixed_base",
    "pretrained",
    "synthetic_only",
]
ArmName = BaselineName | SyntheticArmName
BASELINES: tuple[BaselineName, ...] = get_args(BaselineName)
ARMS: tuple[ArmName, ...] = (*BASELINES, *get_args(SyntheticArmName))
BY_USER = "_mixed"  # ends the name of a user's script that sees synthetic rows
DEFAULT_ARMS: tuple[ArmName, ...] = (
    *(name for name in BASELINES if name != "real_balanced"),
    "mixed",
    "mixed_strong",
    "mixed_mixup",
    "mixed_cutmix",
    "mixed_downweighted",
    "mixed_pool",
    "mixed_base",
    "pretrained",
    "synthetic_only",
)
# Baselines of images that are not there in every run.
ELSEWHERE: tuple[BaselineName, ...] = (
    "pseudo_labels",
    "pseudo_labels_soft",
    "retrieval",
    "base_images",
)
# Arms that see other images too, and the baseline that sees these alone: without it a gain might be
# theirs.
ON_TOP_OF: dict[str, str] = {
    "mixed_pool": "pseudo_labels_soft",
    "mixed_base": "base_images",
}
HEAD_MARGIN_POINTS = 2.0
# In the order in which they are asked.
FilterName = Literal[
    "copies", "near_copies", "artefacts", "labels", "realism", "off_class", "typical", "repeats"
]
DEFAULT_FILTERS: tuple[FilterName, ...] = (
    "copies",
    "near_copies",
    "artefacts",
    "labels",
    "off_class",
    "repeats",
)


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Execution(_Frozen):
    """Where and how the work runs; no result depends on it, but another device rounds otherwise."""

    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="auto takes a CUDA device where there is one"
    )
    workers: int = Field(
        0, ge=0, le=256, description="parallel workers for sampling and comparison; 0 = one a core"
    )
    backend: Literal["inline", "processes", "prefect", "ray"] = Field(
        "inline",
        description="who samples: threads of this process, processes that stay warm (one a GPU), "
        "Prefect workers of a pool, or a Ray cluster; the last two in flows alone",
    )
    train_processes: int = Field(
        1,
        ge=1,
        le=64,
        description="processes of this machine that train together, by `accelerate launch`; one a "
        "GPU",
    )
    work_pool: str = Field(
        "replenish-gpu",
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$",
        description="Prefect work pool whose workers sample, for backend = prefect",
    )
    shared_url: str | None = Field(
        None,
        min_length=1,
        description="URL where workers of prefect or ray leave their shards (s3://bucket/shards); "
        "null = the artifacts folder, which they then need under the same path",
    )
    silent_seconds: float = Field(
        60.0,
        ge=10.0,
        le=3600.0,
        description="a worker of prefect or ray that gives no sign of life for so long is lost; "
        "its shards go to another",
    )
    ray_address: str | None = Field(
        None, description="Ray cluster for backend = ray; null starts one on this machine"
    )
    batch_images: Literal["auto"] | Annotated[int, Field(ge=1, le=65_536)] = Field(
        "auto", description="images of one call in sampling; auto = the fastest of those that fit"
    )
    memory_mib: int | None = Field(
        None, ge=16, description="memory of one worker's batches; null = a share of what is free"
    )


class Servers(_Frozen):
    """What `make ui` starts; no stage reads it and no result depends on it."""

    prefect_port: int = Field(4200, ge=1, le=65_535, description="of Prefect's page, on 127.0.0.1")
    mlflow_port: int = Field(5000, ge=1, le=65_535, description="of MLflow's page, on 127.0.0.1")
    database: SecretStr | None = Field(
        None,
        description="PostgreSQL server for both, postgresql://user@host:port/; null = SQLite files",
    )

    @field_validator("database")
    @classmethod
    def _is_a_server_of_postgres(cls, value: SecretStr | None) -> SecretStr | None:
        # The messages never repeat the value: it may hold a password.
        if value is None:
            return None
        try:
            parts = urlsplit(value.get_secret_value())
            known = bool(parts.username and parts.hostname) and parts.port != 0
        except ValueError:  # a port that is no number, a bracket that is not closed
            known = False
            parts = urlsplit("")
        if not known or parts.scheme not in ("postgresql", "postgres"):
            raise ValueError("must look like postgresql://user@host:5432/")
        if parts.path not in ("", "/"):
            raise ValueError(
                "names one database, but Prefect and MLflow each get their own, `prefect` and "
                "`mlflow`; end it after the host and port"
            )
        if parts.query or parts.fragment:
            raise ValueError(
                "must end after the host and port; set options as libpq's variables, such as "
                "PGSSLMODE=verify-full"
            )
        return value


class Section(_Frozen):
    """What every stage's section has, copied from the root of params.yaml."""

    seed: int = Field(0, ge=0, lt=2**31, description="root seed")
    execution: Execution = Execution()

    def identity(self) -> dict[str, Any]:
        """Return what decides the stage's result, as plain data: all but `execution`."""
        plain: dict[str, Any] = self.model_dump(mode="json", exclude={"execution"})
        return plain


class Imbalance(_Frozen):
    """A long tail: class sizes fall geometrically from `max` to `min` training images."""

    max: int = Field(ge=1, description="training images of the largest class")
    min: int = Field(ge=1, description="training images of the smallest class")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min > self.max:
            raise ValueError(f"min ({self.min}) must not exceed max ({self.max})")
        return self


class Columns(_Frozen):
    """Which column of a table holds what; those that a table lacks are not used."""

    path: str = Field("path", min_length=1, description="file, relative to the table; or the image")
    label: str = Field("label", min_length=1, description="name or number of the class")
    split: str = Field("split", min_length=1, description="train, validation or test; may be blank")
    group: str = Field("group", min_length=1, description="what must stay on one side of a split")
    time: str = Field("time", min_length=1, description="ISO 8601 or a number, for split_by = time")
    mask: str = Field("mask", min_length=1, description="file of a mask; what is not black counts")
    text: str = Field("text", min_length=1, description="caption")


SourceName = Literal[
    "auto",
    "digits",
    "folder",
    "manifest",
    "idx",
    "npz",
    "huggingface",
    "webdataset",
    "coco",
    "voc",
]


class PrepareParams(Section):
    """Read the images, check them, split them, write the sample store."""

    recipe: RecipeName = Field("auto", description="choose settings by the set? Said by prepare")
    source: SourceName = Field(
        "digits",
        description="digits (embedded), or the format of `path`; auto = as recognised; "
        "`replenish check PATH` tells which",
    )
    path: str = Field(
        "data/raw",
        min_length=1,
        description="folder or file of the labelled images, or hub:owner/name for `huggingface`",
    )
    columns: Columns = Field(
        Columns(), description="names of the columns of a manifest or a Hugging Face data set"
    )
    pool_path: str = Field(
        "data/pool",
        min_length=1,
        description="folder of unlabelled images, for a base of the pool; may be empty or missing",
    )
    image_size_px: int | None = Field(
        None, ge=8, le=128, multiple_of=4, description="side in px; null = from the data"
    )
    image_mode: Literal["auto", "L", "RGB"] = Field("auto", description="grey, colour, or seen")
    fit: Literal["pad", "crop"] = Field("pad", description="how other shapes become square")
    validation_fraction: Fraction = Field(
        0.15,
        description="share of each class's distinct images; where the source brings its own test "
        "images, share of the others",
    )
    test_fraction: Fraction = Field(
        0.25,
        description="share of each class's distinct images; ignored where the source brings its "
        "own test images",
    )
    split_by: Literal["class", "time"] = Field(
        "class",
        description="class = by chance, class by class, groups whole; time = the latest images are "
        "the test",
    )
    fold: int = Field(
        0,
        ge=0,
        le=99,
        description="another test set of the same images: the tests of folds 0, 1, ... have no "
        "image in common while (fold + 1) * test_fraction is at most 1; for `replenish pool`",
    )
    near_duplicates: Literal["auto", "off"] = Field(
        "auto", description="look for near duplicates, and keep them on one side of each split?"
    )
    label_issues: Literal["auto", "off"] = Field(
        "auto", description="look for images that are likely to be labelled wrongly?"
    )
    drop_label_issues: bool = Field(
        False,
        description="quarantine images that are likely to be labelled wrongly? Scores on what is "
        "left are too good",
    )
    imbalance: Literal["auto"] | Imbalance | None = Field(
        "auto",
        description="thin the training rows to a long tail; auto = the embedded digits alone, "
        "60 to 6 a class; null = never",
    )
    keep_pool: bool = Field(True, description="keep what thinning leaves as unlabelled rows")
    max_image_pixels: int = Field(
        50_000_000, ge=64, description="larger images are quarantined before decoding, in pixels"
    )
    max_file_bytes: int = Field(
        64 * 1024 * 1024, ge=64, description="larger files are quarantined unread, in bytes"
    )
    max_rows: int = Field(5_000_000, ge=1, description="larger sets are refused, in images")
    max_classes: int = Field(1_000, ge=2, le=100_000, description="more classes are refused")

    @model_validator(mode="after")
    def _leave_training_rows(self) -> Self:
        if self.validation_fraction + self.test_fraction > 0.9:
            raise ValueError(
                "validation_fraction + test_fraction must be at most 0.9, "
                "so that training rows remain"
            )
        return self


class GeneratorParams(Section):
    """What pretrain and train share: the network and how it is fitted.

    Written in the section `train` alone; `pretrain` takes its values from there, so that a base
    fits the network that is trained from it.
    """

    batch_images: int = Field(64, ge=1, le=65_536, description="images a step")
    micro_batch_images: int | None = Field(
        None, ge=1, description="images of one pass, to save memory; null = the whole batch"
    )
    preset: Literal["auto", "small", "medium", "large"] = Field(
        "auto", description="size of the network; auto = by image size and number of images"
    )
    base_channels: int | None = Field(
        None, ge=8, le=512, multiple_of=8, description="width of the network; null = the preset's"
    )
    learning_rate: float = Field(1.0e-3, gt=0.0, le=1.0, description="peak rate of AdamW")
    warmup_steps: int = Field(100, ge=0, description="linear warm-up")
    weight_decay: float = Field(0.01, ge=0.0, le=1.0)
    gradient_clip_norm: float = Field(1.0, gt=0.0, description="largest gradient norm")
    schedule: Literal["linear", "cosine", "sigmoid", "lognormal"] = Field(
        "cosine", description="noise levels: a schedule of T = 1000, or EDM's log-normal sigma"
    )
    prediction: Literal["noise", "velocity", "sample", "edm"] = Field(
        "velocity", description="what the network predicts; edm = preconditioned as in EDM"
    )
    zero_terminal_snr: bool = Field(False, description="is the last noise level pure noise?")
    weighting: Literal["min_snr", "uniform", "edm"] = Field(
        "min_snr", description="weight of the loss by noise level"
    )
    min_snr_gamma: float = Field(5.0, gt=0.0, description="cap of the signal-to-noise ratio")
    augment: tuple[TransformName, ...] = Field(
        (),
        strict=False,  # a list of YAML is taken for the tuple; its items are still checked
        description="transforms that keep the label; the network is told of them, so they do not "
        "leak into its images",
    )
    augment_probability: float = Field(
        0.12, ge=0.0, le=1.0, description="chance of each transform for each image"
    )
    dropout: float | None = Field(
        None, ge=0.0, le=0.9, description="in the network; null = the more, the fewer the images"
    )
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="auto = bfloat16 autocast where this machine is faster with it"
    )
    compile: Literal["auto", "always", "never"] = Field(
        "auto", description="torch.compile; auto = on CUDA, in runs long enough to pay for it"
    )
    checkpoint_every_steps: int = Field(100, ge=1, description="an interrupted run resumes here")

    @model_validator(mode="after")
    def _terminal_level_can_be_predicted(self) -> Self:
        if self.zero_terminal_snr and self.prediction == "noise":
            raise ValueError(
                "prediction noise says nothing of a level that is pure noise; "
                "use velocity, sample or edm with zero_terminal_snr"
            )
        return self


class PretrainParams(GeneratorParams):
    """Find or make the base that the class-conditional model is fine-tuned from."""

    base: Literal["auto", "none", "pool", "folder", "hub", "run"] = Field(
        "auto", description="where the base comes from; auto = none or pool, as the recipe chose"
    )
    path: str = Field("data/base", min_length=1, description="folder of `folder` and `run`")
    hub_id: str | None = Field(
        None,
        max_length=200,
        pattern=_HUB_ID,
        description="owner/name or owner/name@revision of `hub`",
    )
    steps: int | None = Field(
        None, ge=1, le=10_000_000, description="optimiser steps of `pool`; null = by pool images"
    )
    sheet_images: int = Field(36, ge=1, le=400, description="images on the sample sheet of `pool`")

    @model_validator(mode="after")
    def _hub_has_an_id(self) -> Self:
        if self.base == "hub" and self.hub_id is None:
            raise ValueError("base hub needs hub_id, such as owner/name")
        return self


class TrainParams(GeneratorParams):
    """Train the class-conditional diffusion model."""

    steps: int | None = Field(
        None, ge=1, le=10_000_000, description="most optimiser steps; null = by training images"
    )
    class_map: dict[str, str] = Field(
        {}, description="our class name -> the base's, where a run's classes were renamed"
    )
    trainable: Literal["all", "inner", "lora"] = Field(
        "all", description="weights that are trained: all, all but the outer blocks, adapters"
    )
    lora_rank: int = Field(8, ge=1, le=256, description="rank of the adapters of `lora`")
    label_dropout: float = Field(
        0.1, ge=0.0, lt=1.0, description="share of labels replaced by the null class"
    )
    class_balance_power: float = Field(
        0.5, ge=0.0, le=1.0, description="classes are drawn with n ** power: 1 as is, 0 equal"
    )
    class_balance_weight: float = Field(
        0.0, ge=0.0, le=10.0, description="CBDM's regulariser; 0 = none; doubles the work"
    )
    ema_length: Literal["auto"] | Annotated[float, Field(ge=0.03, le=0.25)] = Field(
        "auto", description="relative width of the averaged weights; auto = the best of several"
    )
    checks: int = Field(10, ge=1, le=200, description="times the network is looked at on the way")
    check_images: int = Field(
        128, ge=0, le=10_000, description="samples of a check; 0 = loss alone, no copy test"
    )
    copy_limit: float = Field(
        0.01, ge=0.0, le=1.0, description="largest share of copies in a network that is kept"
    )
    patience_checks: int = Field(
        4, ge=0, description="stop after so many checks without improvement; 0 = never"
    )
    sheet_images_per_class: int = Field(6, ge=1, le=64)
    guide: Literal["none", "earlier", "smaller"] = Field(
        "none",
        description="weaker network for autoguidance: none, this one after a fraction of its "
        "steps, or one of half the width",
    )
    distill: Literal["none", "progressive", "consistency"] = Field(
        "none", description="teach a student to sample in few steps, and how"
    )
    distill_steps: Literal[1, 2, 4, 8] = Field(4, description="network evaluations of the student")
    distill_phase_steps: int | None = Field(
        None,
        ge=1,
        le=10_000_000,
        description="optimiser steps of one phase; null = as much work in all as training",
    )
    distill_guidance: float = Field(
        1.5, ge=0.0, le=20.0, description="guidance that the student has within; 1 = none"
    )
    distill_margin_points: float = Field(
        1.0,
        ge=0.0,
        le=100.0,
        description="the student may bring so many points less on validation than its teacher",
    )
    distill_seeds: int = Field(
        4, ge=2, le=100, description="paired classifiers that compare student and teacher"
    )

    @model_validator(mode="after")
    def _student_can_be_taught(self) -> Self:
        if self.distill != "none" and self.prediction == "noise":
            raise ValueError(
                "prediction noise says next to nothing of the image at the noisiest level, where a "
                "student of few steps begins; use velocity or edm with distill"
            )
        if self.distill == "consistency" and self.prediction == "sample":
            raise ValueError(
                "distill consistency needs a network that sees a clean image as it is, which "
                "prediction sample does not warrant; use velocity or edm, or distill progressive"
            )
        return self


class SynthesizeParams(Section):
    """Generate, score and accept synthetic images."""

    images_per_class: (
        Literal["auto", "fill", "planned"] | Annotated[int, Field(ge=0, le=1_000_000)]
    ) = Field(
        "auto",
        description="accepted images a class: a number; fill = up to the largest class; "
        "auto = 300, or fewer of more than ten classes; planned = what its learning curve on "
        "validation rows speaks for",
    )
    pilot_images: Annotated[int, Field(ge=4, le=100_000)] | None = Field(
        None, description="accepted images a class that planned tries; null = those of auto"
    )
    plan_budget_images: Annotated[int, Field(ge=0)] | None = Field(
        None, description="most images of the plan, all classes together; null = no limit"
    )
    plan_margin_points: float = Field(
        2.0,
        ge=0.0,
        le=100.0,
        description="recall on validation rows that a plan may take from a head class",
    )
    plan_seeds: int = Field(4, ge=2, le=100, description="classifiers of each size that is tried")
    generator: Literal["auto", "teacher", "student"] = Field(
        "auto", description="auto = the distilled student where train accepted one"
    )
    mode: Literal["generate", "edit", "cross_class", "inpaint"] = Field(
        "generate",
        description="from noise; from a training image of the class; from one of another class; "
        "a training image with a part drawn anew",
    )
    strengths: tuple[Strength, ...] = Field(
        (0.3, 0.5, 0.7),
        min_length=1,
        max_length=20,
        strict=False,  # a list of YAML is taken for the tuple; its items are still checked
        description="of edit and cross_class, drawn evenly: 0 = the image as it is, 1 = anew",
    )
    mask: Literal["box", "border", "user", "own"] = Field(
        "box",
        description="what inpaint draws anew: a box, all but a box, what the user's files show "
        "white, what each image's own mask in the prepared store marks",
    )
    mask_share: Fraction = Field(0.3, description="share of the image that box or border covers")
    mask_path: str = Field(
        "data/masks", min_length=1, description="folder of grey PNG masks of mask = user"
    )
    resample_times: int = Field(
        4, ge=1, le=50, description="passes over each noise level of inpaint (RePaint)"
    )
    sampler: Literal["ddpm", "ddim", "dpmsolver++", "dpmsolver++sde", "unipc", "heun"] = (
        "dpmsolver++"
    )
    sampler_steps: int = Field(
        20, ge=1, le=1000, description="network evaluations an image; guidance adds to them"
    )
    sampler_spacing: Literal["auto", "even", "quadratic", "karras", "logsnr"] = Field(
        "auto", description="of the noise levels; auto = karras for heun, else quadratic"
    )
    sampler_eta: float = Field(
        0.0, ge=0.0, le=1.0, description="noise that ddim adds: 0 none, 1 as much as ddpm"
    )
    guidance: Literal["auto"] | Annotated[float, Field(ge=0.0, le=20.0)] = Field(
        1.0,
        description="weight; 1 = none; auto = the best of a few on validation rows, whose guide "
        "and levels replace the three keys below",
    )
    guidance_low: float = Field(
        0.0, ge=0.0, description="guidance acts above this sigma (noise over signal)"
    )
    guidance_high: float | None = Field(
        None, gt=0.0, description="and up to this one; null = at all larger ones"
    )
    guide: Literal["null_class", "weaker"] = Field(
        "null_class",
        description="what guidance draws away from: the class-free prediction, or train.guide's "
        "weaker network",
    )
    search_images: int = Field(
        256, ge=32, le=100_000, description="samples of each setting that guidance = auto tries"
    )
    compile: bool = Field(False, description="torch.compile; images differ in the last digits")
    shard_images: int = Field(32, ge=1, le=4096, description="candidates of one unit of work")
    max_rounds: int = Field(4, ge=1, le=100, description="generate-score-accept rounds at most")
    precision: Literal["auto", "float32", "bfloat16"] = Field("auto", description="as in train")
    adapt_below: float = Field(
        0.3,
        ge=0.0,
        le=1.0,
        description="acceptance below which a class tries firmer guidance and edits; 0 = never",
    )
    filters: tuple[FilterName, ...] = Field(
        DEFAULT_FILTERS,
        strict=False,  # a list of YAML is taken for the tuple; its items are still checked
        description="rules that reject, beside those against the same pixels",
    )
    select: Literal["first", "diverse", "k_centre"] = Field(
        "first",
        description="which of the good candidates are kept: as they come; those of the largest "
        "determinant; those that leave none far from a kept one",
    )
    select_from: float = Field(
        2.0,
        ge=1.0,
        le=20.0,
        description="good candidates to choose each kept image from, where select is not first",
    )
    encoder: Literal["domain", "selfsupervised", "inception", "timm"] = Field(
        "domain",
        description="features of realism, variety and quality: of the judges; of a network "
        "trained without labels; of InceptionV3; of a timm model",
    )
    encoder_model: str | None = Field(
        None,
        min_length=1,
        description="of timm: model name, or hub id (owner/name); null = as the folder says",
    )
    encoder_image_px: int | None = Field(
        None,
        ge=8,
        le=1024,
        description="side that timm's images are brought to; null = the network's own",
    )
    encoder_path: str = Field(
        "data/encoder",
        min_length=1,
        description="weights of inception or timm: a safetensors file, or a folder with one",
    )
    judge_steps: int = Field(
        250, ge=1, description="optimiser steps of each classifier that checks the labels"
    )
    judge_folds: int = Field(
        3, ge=2, le=20, description="classifiers, each trained without one part of the rows"
    )
    filter_share: float = Field(
        0.03,
        ge=0.0,
        le=0.5,
        description="share of real held-out rows that the filters may reject, all together: what "
        "they may cost in good images",
    )
    typical_share: float = Field(
        0.1, ge=0.0, lt=1.0, description="share of real held-out rows that typical rejects"
    )
    copy_ratio: float = Field(
        1.0 / 3.0,
        ge=0.0,
        le=1.0,
        description="reject where nearest / second-nearest training distance is below this",
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.sampler_eta and self.sampler != "ddim":
            raise ValueError(f"sampler_eta is of sampler ddim; {self.sampler} has none")
        if self.guidance_high is not None and self.guidance_high <= self.guidance_low:
            raise ValueError(
                f"guidance_high ({self.guidance_high:g}) must exceed guidance_low "
                f"({self.guidance_low:g}), or guidance acts nowhere"
            )
        if self.generator == "student" and self.mode != "generate":
            raise ValueError(
                f"mode {self.mode} needs noise levels that a distilled student does not know; "
                "set generator to teacher or auto"
            )
        return self


class UserCommand(_Frozen):
    """A training script of the user's own, as an arm; docs/arms.md has the contract."""

    command: tuple[str, ...] = Field(
        min_length=1,
        max_length=100,
        strict=False,  # a list of YAML is taken for the tuple; its items are still checked
        description="program and arguments, run without a shell",
    )
    timeout_seconds: float = Field(
        3600.0, gt=0.0, le=1.0e6, description="of one run; a slower one fails the stage"
    )


class EvaluateParams(Section):
    """Compare classifiers trained with and without synthetic images."""

    arms: tuple[ArmName, ...] = Field(
        DEFAULT_ARMS,
        min_length=1,
        strict=False,  # a list of YAML is taken for the tuple; its items are still checked
        description="what is compared; pseudo_labels, pseudo_labels_soft, retrieval and "
        "mixed_pool need unlabelled images, base_images and mixed_base the run that the base is "
        "from; they are left out where there are none",
    )
    mixed_shares: tuple[Fraction, ...] = Field(
        (0.5, 0.25, 0.75),
        min_length=1,
        max_length=20,
        strict=False,  # as above
        description="shares of synthetic draws that the search tries; the first one is the start",
    )
    learning_rates: tuple[Annotated[float, Field(gt=0.0, le=1.0)], ...] = Field(
        (3.0e-3, 1.5e-3),
        min_length=1,
        max_length=20,
        strict=False,  # as above
        description="peak rates of AdamW that the search tries for each arm; the first one is the "
        "start",
    )
    search_seeds: int = Field(
        1, ge=0, le=100, description="classifiers of each setting in the search; 0 = no search"
    )
    seeds: int = Field(4, ge=2, le=1000, description="paired repetitions of each arm")
    max_seeds: int | None = Field(
        None,
        ge=2,
        le=1000,
        description="add seeds up to these until the answer is clear; null = as many as seeds",
    )
    steps: int | None = Field(
        None,
        ge=1,
        description="optimiser steps of each classifier, equal for all; null = by training images",
    )
    batch_images: int = Field(64, ge=2, le=65_536)
    weight_decay: float = Field(0.01, ge=0.0, le=1.0)
    classifier: Literal["small_cnn", "resnet", "linear", "timm"] = Field(
        "small_cnn",
        description="network of all arms; linear = a head on the features of `timm_model`, or on "
        "pixels",
    )
    timm_model: str | None = Field(None, max_length=200, description="name of timm's network")
    pretrained: str | None = Field(
        None, max_length=1000, description="weights of timm's network: hub id, or a path"
    )
    base_channels: int = Field(32, ge=4, le=512, description="width of small_cnn and resnet")
    horizontal_flip: bool = Field(
        False, description="may augmentation mirror an image? (a mirrored digit is no digit)"
    )
    pseudo_confidence: float = Field(
        0.9, ge=0.0, le=1.0, description="of a pseudo-label that is believed"
    )
    commands: dict[Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,30}$")], UserCommand] = Field(
        {}, description="the user's own training scripts, each without and with synthetic images"
    )
    confidence: Fraction = Field(0.95, description="level of the interval of the gain")
    bootstrap_resamples: int = Field(2000, ge=100, le=1_000_000)
    head_margin_points: float = Field(
        HEAD_MARGIN_POINTS,
        ge=0.0,
        le=100.0,
        description="a class that surely loses, and more than this, makes `use` a `use_with_care`",
    )
    curve_fractions: tuple[Fraction, ...] = Field(
        (0.25, 0.5, 0.75),
        max_length=20,
        strict=False,  # as above
        description="of the real rows, for the learning curve; none = no curve",
    )

    @model_validator(mode="after")
    def _two_sides(self) -> Self:
        if not any(arm in BASELINES for arm in self.arms):
            raise ValueError(
                "arms needs a baseline, which sees no synthetic image: " + ", ".join(BASELINES)
            )
        if not any(arm in BASELINES and arm not in ELSEWHERE for arm in self.arms):
            raise ValueError(
                f"arms has no baseline but {', '.join(ELSEWHERE)}, which are left out where there "
                "are no such images; add real_augmented"
            )
        if not any(arm not in (*BASELINES, *ON_TOP_OF, "synthetic_only") for arm in self.arms):
            raise ValueError(
                "arms needs one with real and synthetic images, which the verdict is about: mixed, "
                "mixed_plain, mixed_strong, mixed_mixup, mixed_cutmix, mixed_downweighted or "
                "pretrained"
            )
        for arm, baseline in ON_TOP_OF.items():
            if arm in self.arms and baseline not in self.arms:
                raise ValueError(f"arms has {arm}, which needs {baseline} to compare it with")
        return self

    @model_validator(mode="after")
    def _scripts_have_names_of_their_own(self) -> Self:
        taken = {*ARMS, *(f"{name}{BY_USER}" for name in self.commands)}
        both = sorted(taken & set(self.commands))
        if both:
            raise ValueError(
                f"commands.{both[0]}: there is an arm of that name; give the script another one"
            )
        return self

    @model_validator(mode="after")
    def _seeds_grow(self) -> Self:
        if self.max_seeds is not None and self.max_seeds < self.seeds:
            raise ValueError(
                f"max_seeds ({self.max_seeds}) must not be less than seeds ({self.seeds})"
            )
        return self

    @model_validator(mode="after")
    def _timm_has_a_model(self) -> Self:
        if self.classifier == "timm" and self.timm_model is None:
            raise ValueError("classifier timm needs timm_model, such as resnet18")
        return self


class AssembleParams(Section):
    """Write the dataset that the user takes away."""

    name: str = Field(
        "replenished", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$", description="dataset name"
    )
    rows_per_shard: int = Field(10_000, ge=1, description="rows of one Parquet file")


class ReportParams(Section):
    """Write the HTML page."""

    title: str = Field("Replenish report", min_length=1, max_length=120)
    images_per_class: int = Field(12, ge=1, le=64, description="images a class in contact sheets")
    examples: int = Field(96, ge=0, le=200, description="accepted and rejected examples, each")


StageName = Literal["prepare", "pretrain", "train", "synthesize", "evaluate", "assemble", "report"]
# Keys of `train` that pretrain reads too.
GENERATOR_KEYS = tuple(sorted(set(GeneratorParams.model_fields) - set(Section.model_fields)))
# Keys of the root that decide results; sections that have them take their values from there.
ROOT_KEYS = ("seed", "recipe")


class Params(_Frozen):
    """The whole of params.yaml."""

    seed: int = Field(0, ge=0, lt=2**31)
    recipe: RecipeName = Field(
        "auto", description="choose `pretrain.base: auto` by the set, and say which gain to expect?"
    )
    execution: Execution = Execution()
    servers: Servers = Servers()
    prepare: PrepareParams = PrepareParams()
    pretrain: PretrainParams = PretrainParams()
    train: TrainParams = TrainParams()
    synthesize: SynthesizeParams = SynthesizeParams()
    evaluate: EvaluateParams = EvaluateParams()
    assemble: AssembleParams = AssembleParams()
    report: ReportParams = ReportParams()

    @model_validator(mode="before")
    @classmethod
    def _share_root_keys(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        shared = {key: data[key] for key in (*ROOT_KEYS, "execution") if key in data}
        filled = dict(data)
        for name in SECTIONS:
            section = data.get(name, {})
            if isinstance(section, dict):
                fields = SECTION_TYPES[name].model_fields
                taken = {key: value for key, value in shared.items() if key in fields}
                filled[name] = {**taken, **section}
        train, pretrain = filled.get("train"), filled.get("pretrain")
        if isinstance(train, dict) and isinstance(pretrain, dict):
            also = {key: train[key] for key in GENERATOR_KEYS if key in train}
            filled["pretrain"] = {**also, **pretrain}
        return filled

    @model_validator(mode="after")
    def _guidance_needs_the_null_class(self) -> Self:
        # auto tries what the generator has; autoguidance needs no null class.
        free = self.synthesize.guidance in (1, "auto") or self.synthesize.guide == "weaker"
        if self.train.label_dropout == 0 and not free:
            raise ValueError(
                f"train.label_dropout = 0 never trains the null class that synthesize.guidance = "
                f"{self.synthesize.guidance} needs; set guidance to 1, or label_dropout to 0.1"
            )
        folded = self.train.distill != "none" and self.train.distill_guidance != 1
        if self.train.label_dropout == 0 and folded:
            raise ValueError(
                "train.label_dropout = 0 never trains the null class that train.distill_guidance = "
                f"{self.train.distill_guidance:g} needs; set it to 1, or label_dropout to 0.1"
            )
        return self

    @model_validator(mode="after")
    def _networks_exist(self) -> Self:
        if self.synthesize.guide == "weaker" and self.train.guide == "none":
            raise ValueError(
                "synthesize.guide = weaker needs a weaker network; set train.guide to earlier or "
                "smaller"
            )
        if self.synthesize.guide == "weaker" and self.synthesize.guidance == 1:
            raise ValueError(
                "synthesize.guide = weaker does nothing at synthesize.guidance = 1, which is none; "
                "set guidance to 1.5, or to auto"
            )
        if self.synthesize.generator == "student" and self.train.distill == "none":
            raise ValueError(
                "synthesize.generator = student needs one; set train.distill to progressive or "
                "consistency"
            )
        return self

    def identity(self) -> dict[str, Any]:
        """Return what decides the results, as plain data."""
        return {name: getattr(self, name).identity() for name in SECTIONS}

    def digest(self) -> str:
        """Return the digest of all that decides the results."""
        return digest_json(self.identity())

    def flat(self) -> dict[str, str | int | float | bool | None]:
        """Return `section.key` -> value, for trackers and tables."""
        rows: dict[str, str | int | float | bool | None] = {}
        for name, section in self.identity().items():
            for key, value in section.items():
                plain = isinstance(value, str | int | float | bool) or value is None
                rows[f"{name}.{key}"] = value if plain else json.dumps(value)
        return rows


SECTIONS: tuple[StageName, ...] = (
    "prepare",
    "pretrain",
    "train",
    "synthesize",
    "evaluate",
    "assemble",
    "report",
)
SECTION_TYPES: dict[str, type[BaseModel]] = {
    "prepare": PrepareParams,
    "pretrain": PretrainParams,
    "train": TrainParams,
    "synthesize": SynthesizeParams,
    "evaluate": EvaluateParams,
    "assemble": AssembleParams,
    "report": ReportParams,
    "execution": Execution,
    "servers": Servers,
    "prepare.imbalance": Imbalance,
    "evaluate.commands": UserCommand,
}


def load_params(path: Path, overrides: tuple[str, ...] = ()) -> Params:
    """Read params.yaml, apply `section.key=value` overrides, and check everything.

    Raises:
        InputError: the file is missing, is no YAML mapping, or holds a key or value that is not
            allowed; the message names section, key, value and what is allowed.
    """
    data = _read_yaml(path)
    for override in overrides:
        _apply_override(data, override)
    return check_params(data, str(path))


def check_params(data: dict[str, Any], origin: str) -> Params:
    """Check plain data against the models; `origin` begins each line of the error message.

    Raises:
        InputError: see `load_params`.
    """
    try:
        # By way of JSON, so that nothing but plain data reaches the models.
        return Params.model_validate_json(json.dumps(data, allow_nan=False))
    except (TypeError, ValueError) as error:
        if isinstance(error, ValidationError):
            written = data.get("pretrain")
            own = set(written) if isinstance(written, dict) else set()
            details = _telling(error.errors())
            told = {one["msg"] for one in details if one["loc"] == ("train",)}
            own_faults = [one for one in details if not _is_copy(one, own, told)]
            lines = sorted({_explain(detail, origin) for detail in own_faults})
            raise InputError("\n".join(lines)) from None
        raise InputError(
            f"{origin}: holds a value that is no number, text, list or mapping ({error}); "
            "write dates in quotes and numbers without .inf or .nan"
        ) from None


# PyYAML lets Python's own errors through where a tag or a date is given what it cannot be.
_YAML_FAULTS = (yaml.YAMLError, OSError, ValueError, LookupError, AttributeError, RecursionError)


class _PlainLoader(yaml.SafeLoader):
    """Safe YAML without aliases, which could swell a small file to gigabytes."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases (*name) are not allowed; write the value out")
        return super().compose_node(parent, index)


def _read_yaml(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise InputError(
            f"{path}: no such params file; give one with --params, or run in the folder that has "
            "params.yaml"
        )
    if path.stat().st_size > _MAX_PARAMS_BYTES:
        raise InputError(f"{path}: larger than {_MAX_PARAMS_BYTES} bytes; this is no params file")
    try:
        text = path.read_text(encoding="utf-8")
        data = yaml.load(text, Loader=_PlainLoader)  # noqa: S506 - a safe one
    except _YAML_FAULTS as error:
        detail = _without_secrets(str(error).replace("\n", " "))[:300]
        raise InputError(f"{path}: not readable as YAML: {detail}") from None
    if data is None:
        data = {}
    if not isinstance(data, dict) or not all(isinstance(key, str) for key in data):
        raise InputError(f"{path}: must be a mapping of sections: {', '.join(SECTIONS)}")
    return data


def _apply_override(data: dict[str, Any], override: str) -> None:
    dotted, sign, text = override.partition("=")
    keys = dotted.strip().split(".")
    if not sign or not all(keys):
        raise InputError(
            f"--set {override}: write section.key=value, for example --set train.steps=500"
        )
    try:
        value = yaml.load(text, Loader=_PlainLoader)  # noqa: S506 - a safe one
    except _YAML_FAULTS:
        raise InputError(f"--set {override}: the value is not readable as YAML") from None
    if isinstance(value, str) and value == text.strip():
        # YAML 1.1 reads 1e-4 as text; on a command line a number is what was meant.
        try:
            value = float(value)
        except ValueError:
            pass
    node = data
    for key in keys[:-1]:
        child = node.get(key)
        if child is None:
            child = node[key] = {}
        if not isinstance(child, dict):
            raise InputError(
                f"--set {override}: `{key}` is the value {child!r}, not a section; set the whole "
                f"of it, for example --set 'prepare.imbalance={{max: 80, min: 6}}'"
            )
        node = child
    node[keys[-1]] = value


def _telling(details: Sequence[Any]) -> list[Any]:
    """Drop what a union says of its words where the user gave no word but a number or a mapping."""
    otherwise = {
        ".".join(_location(detail)[:2]) for detail in details if detail["type"] != "literal_error"
    }
    return [
        detail
        for detail in details
        if detail["type"] != "literal_error"
        or isinstance(detail.get("input"), str)
        or ".".join(_location(detail)) not in otherwise
    ]


def _is_copy(detail: Any, written: set[str], told: set[str]) -> bool:
    """Say whether the fault is of keys that were copied to a section: told where they are from."""
    location = detail["loc"]
    if location[1:2] == ("execution",):
        return True
    if location == ("pretrain",):  # of several keys together
        return detail["type"] == "value_error" and detail["msg"] in told
    key = str(location[1]) if len(location) > 1 else ""
    return location[:1] == ("pretrain",) and key in GENERATOR_KEYS and key not in written


def _location(detail: Any) -> list[str]:
    # A union's branches add their type's name as a part; the keys are what the user knows.
    parts = [str(part) for part in detail["loc"]]
    parts = [p for p in parts if not p.startswith(("literal[", "constrained-", "function-after["))]
    while parts and parts[-1] in {"int", "float", "str"}:
        parts.pop()
    return parts


def _explain(detail: Any, origin: str) -> str:
    location = _location(detail)
    name = ".".join(location) or "params"
    if detail["type"] == "extra_forbidden":
        parent = ".".join(location[:-1])
        model = SECTION_TYPES.get(parent, Params)
        allowed = sorted(model.model_fields)
        close = get_close_matches(location[-1], allowed, n=1)
        hint = f"did you mean `{close[0]}`? " if close else ""
        return f"{origin}: {name} is not a known key; {hint}allowed here: {', '.join(allowed)}"
    message = detail["msg"].removeprefix("Value error, ")
    message = f"{message[:1].lower()}{message[1:]}"
    of_several_keys = detail["type"] == "value_error" and isinstance(detail.get("input"), dict)
    if name == "servers.database" or of_several_keys:
        return f"{origin}: {name}: {message}"
    value = _without_secrets(json.dumps(detail.get("input"), default=str))
    if len(value) > 80:
        value = value[:77] + "..."
    return f"{origin}: {name} = {value}: {message}"


def _without_secrets(text: str) -> str:
    return re.sub(r"://[^\s\"']*@", "://***@", text)
