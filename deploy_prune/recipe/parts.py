"""The recipe: what one run does, as frozen data; every value is checked here, ``recipe.file`` adds file and line."""

from __future__ import annotations

import math
import re
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo, field_validator

from deploy_prune.errors import BudgetError, perhaps
from deploy_prune.recipe.budgets import parse_budget as parse_budget
from deploy_prune.recipe.budgets import require_distinct
from deploy_prune.recipe.data import DATA_SETS as DATA_SETS
from deploy_prune.recipe.data import Augment as Augment
from deploy_prune.recipe.data import DataPart as DataPart
from deploy_prune.recipe.data import Part as Part
from deploy_prune.recipe.data import distinct, known_source
from deploy_prune.recipe.model import BUILT_IN_NETWORKS as BUILT_IN_NETWORKS
from deploy_prune.recipe.model import LIBRARIES as LIBRARIES
from deploy_prune.recipe.model import ModelPart as ModelPart
from deploy_prune.types import Budget, Metric, Precision

SEARCH_METHODS: Final = ("dap", "gate", "gumbel", "uniform", "random", "magnitude", "bn_scale", "taylor", "obs")
TASK_SCORES: Final = {
    "classification": ("accuracy",), "detection": ("mAP50-95", "mAP50"), "segmentation": ("mIoU",),
}  # fmt: skip
"""Task -> what its networks can be judged by; the first one, if a recipe doesn't say."""
TASK_NAMES: Final = tuple(TASK_SCORES)
EXPORT_FORMATS: Final = {
    "onnx": "onnxruntime", "ort": "onnxruntime", "tensorrt": "tensorrt", "litert": "litert",
    "executorch": "executorch", "ncnn": "ncnn", "coreml": "coreml", "openvino": "openvino",
    "mnn": "mnn",
}  # fmt: skip
"""Formats, and the runtime of each."""

_NAME: Final = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
_DEVICE: Final = r"^(auto|cpu|cuda(:[0-9]+)?)$"


def _checked_budget(text: str) -> str:
    try:
        parse_budget(text, "latency")
    except BudgetError as error:
        raise ValueError(str(error)) from error
    return text


def _one_of(word: str, known: tuple[str, ...], what: str) -> str:
    if word not in known:
        message = f"there is no {what} {word!r}; known: {', '.join(known)}.{perhaps(word, known)}"
        raise ValueError(message)
    return word


def _checked_drop(value: object) -> object:
    """One sentence for what would be two kinds' errors."""
    if isinstance(value, str) and re.fullmatch(r"[0-9]+(\.[0-9]*)? ?%", value):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf:
        return float(value)
    message = f"it should be a number of 0 or more, in the score's own unit, or a share like '5%', not {value!r}"
    raise ValueError(message)


Steps = Annotated[int, Field(ge=0, le=10_000_000)]
Rate = Annotated[float, Field(gt=0, le=1000)]
Share = Annotated[float, Field(ge=0, le=1)]
BatchSize = Annotated[int, Field(ge=2)]
Drop = Annotated[float | str, BeforeValidator(_checked_drop)]
WeightDecay = Annotated[float, Field(ge=0)]
Seconds = Annotated[float, Field(gt=0)]
BudgetText = Annotated[str, AfterValidator(_checked_budget)]


RETRAIN_LR: Final = (
    "Peak learning rate (AdamW) of the last layer. Default for detection: 0.01; for other tasks: null. null: 0.001 if "
    "weights and classes are kept, else 0.005."
)
RETRAIN_DISTILL: Final = (
    "Share of the loss (0 to 1) that compares the output with the dense network's; the rest is the task's own loss. "
    "Default for detection: 0.5; for other tasks: 0.9."
)
SEARCH_LR: Final = (
    "Learning rate of the weights, which are trained together with the gates. Default by task: 0.02 for "
    "classification, 0.001 for detection, 0.005 for segmentation, 0.002 for one of your own."
)


class TrainPart(Part):
    """How the dense network is trained on the source classes, if no weights are given."""

    steps: Steps = Field(default=300, description="Training steps.")
    batch_size: BatchSize = Field(default=64, description="Examples of a batch.")
    lr: Rate = Field(default=0.05, description="Peak learning rate.")
    weight_decay: WeightDecay = Field(default=5e-4, description="Weight decay.")


class SearchPart(Part):
    """Which method scores the channels, and for how long."""

    method: str = Field(
        default="gate",
        description="What scores the channels: a learned method (gate, dap, gumbel) or a baseline.",
        json_schema_extra={"enum": [*SEARCH_METHODS]},
    )
    steps: Steps = Field(default=200, description="Training steps of the search.")
    batch_size: BatchSize = Field(default=64, description="Examples of a batch.")
    lr: Rate = Field(default=0.02, description=SEARCH_LR)
    lr_gates: Rate | None = Field(
        default=None,
        description="Learning rate of the gates. null: chosen so that a gate's logit can move by 30 in all steps.",
    )
    max_step: Annotated[float, Field(gt=0)] | None = Field(
        default=None,
        description="How far one step's gradient may move the weights, as a share of their norm, whatever the learning "
        "rate and the unit of the loss. null: as far as it does.",
    )
    options: dict[str, Any] = Field(default={}, description="Options of the method, as in {derivative: sigmoid}.")

    @field_validator("method")
    @classmethod
    def _known_method(cls, method: str) -> str:
        return _one_of(method, SEARCH_METHODS, "method")


class SourceSearchPart(SearchPart):
    """Which method scores the channels, and for how long. The dense network is the teacher."""

    distill: Share = Field(
        default=0.9,
        description="Share of the loss (0 to 1) that compares the output with the dense network's; the rest is the "
        "task's own loss.",
    )
    temperature: Rate = Field(default=2.0, description="Temperature of that comparison.")


class RetrainPart(Part):
    """How the slim network is trained after the cut. The dense network is the teacher."""

    steps: Steps | None = Field(
        default=None,
        description="Training steps. null: 20 passes over the examples, but at least 400 steps and at most 4000.",
    )
    batch_size: BatchSize = Field(default=64, description="Examples of a batch.")
    lr: Rate | None = Field(default=None, description=RETRAIN_LR)
    first_layer_lr: Annotated[float, Field(gt=0, le=1)] = Field(
        default=1.0,
        description="The first layer's learning rate as a share of the last layer's; it grows from layer to layer.",
    )
    weight_decay: WeightDecay = Field(default=5e-4, description="Weight decay.")
    distill: Share = Field(default=0.9, description=RETRAIN_DISTILL)
    temperature: Rate = Field(default=2.0, description="Temperature of that comparison.")
    features: Annotated[float, Field(ge=0, le=1e6)] | None = Field(
        default=None,
        description="Weight of the distance to the dense network's features, at the channels that stay. null: 10 if "
        "weights are kept, else 0.",
    )
    repair: bool | None = Field(
        default=None,
        description="Before training, compute weights anew by least squares, so that each layer gives what the dense "
        "network's does for some hundred inputs; no labels are needed. null: if the search trained no weights "
        "(uniform, random, magnitude, bn_scale, taylor, obs), or fewer than 100 steps follow. With steps: 0 that is "
        "all of the retraining.",
    )
    init: Literal["inherit", "fresh"] = Field(
        default="inherit",
        description="inherit: begin with the weights of the channels that stay. fresh: draw new weights.",
    )
    batchnorm: Literal["reestimate", "running", "freeze"] = Field(
        default="reestimate",
        description="Batch-norm statistics. reestimate: computed again after training. running: as training leaves "
        "them. freeze: as they were before.",
    )
    mix: Literal["none", "mixup", "cutmix"] = Field(
        default="none", description="Mix training examples with each other: mixup or cutmix."
    )
    ema: Annotated[float, Field(ge=0, lt=1)] | None = Field(
        default=None,
        description="Decay of a moving average of the weights, which is then the result. null: the last weights are.",
    )
    hold_out: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.0,
        description="Share of the examples that is not trained on; its loss decides which step's weights stay and when "
        "to stop. 0: all steps are done, and the last weights stay.",
    )


class PrunePart(Part):
    """Which channel groups may be pruned, by patterns of their names, as in layer4.* (`check` lists the names)."""

    only: list[str] = Field(
        default=[], description="Prune only groups whose name matches one of these patterns. Empty: all groups."
    )
    skip: list[str] = Field(default=[], description="Don't prune groups whose name matches one of these patterns.")
    min_channels: Annotated[int, Field(ge=1)] = Field(
        default=1, description="Every group keeps at least so many channels."
    )
    depth: bool | None = Field(
        default=None,
        description="Whole branches may go, too: what the network adds to a value and works without, as residual "
        "blocks. `check` lists them as NAME:branch. The method must be one that learns gates (dap, gate, gumbel). "
        "null: with such a method, if narrower layers alone can't meet a budget.",
    )
    trace_timeout_s: Seconds = Field(
        default=300.0, description="Time limit for tracing the network and finding its groups."
    )


class ExportPart(Part):
    """How artifacts are written."""

    opset: Annotated[int, Field(ge=18, le=23)] = Field(default=18, description="ONNX operator set.")
    dynamic_batch: bool = Field(default=False, description="Leave the batch size of the artifact's input open.")
    timeout_s: Seconds = Field(default=600.0, description="Time limit for writing one artifact.")
    max_memory_gb: Annotated[float, Field(gt=0)] = Field(
        default=8.0, description="Memory limit (1e9 bytes) of the process that writes artifacts."
    )
    calibration_examples: Annotated[int, Field(ge=1)] = Field(
        default=256, description="Training examples that int8 is calibrated on."
    )
    max_score_drop: Drop = Field(
        default=0.02,
        description="How much worse an fp16 or int8 artifact may score than the network that it was made from. A "
        "number is in the score's own unit: 0.02 is two percentage points of accuracy, mAP or mIoU. '5%' is a share of "
        "the network's score. The run advises to take the fastest network that scores at most this below dense.",
    )
    on_refusal: Literal["fail", "fp16"] = Field(
        default="fail",
        description="What happens if an int8 artifact fails its check. fail: that budget fails. fp16: the artifact is "
        "written in fp16, if the format has it, and results and report say so.",
    )

    def content(self) -> dict[str, Any]:
        """What a file's content depends on: all but the limits."""
        return self.model_dump(exclude={"timeout_s", "max_memory_gb", "max_score_drop"})

    def allowed_drop(self, score: float) -> float:
        """How much worse than this score an artifact's may be, in the score's unit."""
        drop = self.max_score_drop
        return abs(score) * float(drop.rstrip("% ")) / 100 if isinstance(drop, str) else drop


class MeasurePart(Part):
    """How latency is measured, and how near to its budget it must be."""

    runs: Annotated[int, Field(ge=10)] = Field(default=300, description="Timed inferences per artifact.")
    warmup: Annotated[int, Field(ge=0)] = Field(default=30, description="Inferences before them that are not timed.")
    tolerance: Annotated[float, Field(gt=0, lt=1)] = Field(
        default=0.03, description="How far measured latency may be from the budget, as a share of it."
    )
    max_corrections: Annotated[int, Field(ge=0, le=50)] = Field(
        default=6, description="How often channel counts are chosen again after a measured candidate missed the budget."
    )


class Recipe(Part):
    """One run: search, cut, retrain, export and measure, for every target and budget."""

    name: str = Field(description="The run folder's name.", json_schema_extra={"pattern": _NAME})
    task: str = Field(
        default="classification",
        description=f"What the network is for: {', '.join(TASK_NAMES)}, or module:callable for a task of your own.",
    )
    score: str | None = Field(
        default=None,
        validate_default=True,
        description="What networks are judged by. Detection has mAP50-95 (the default) and mAP50, which asks for an "
        "overlap of 0.5 only; other tasks have one score. null: the task's own.",
    )
    model: ModelPart
    data: DataPart = DataPart()
    train: TrainPart = TrainPart()
    search: SourceSearchPart = SourceSearchPart()
    prune: PrunePart = PrunePart()
    retrain: RetrainPart = RetrainPart()
    export: ExportPart = ExportPart()
    measure: MeasurePart = MeasurePart()
    targets: Annotated[list[str], Field(min_length=1), AfterValidator(distinct)] = Field(
        default=["host"],
        description="The devices: names that `deploy-prune targets` lists, or paths of target files. "
        "NAME@FORMAT:PRECISION, as in pixel-8@litert:int8, asks for another format, precision or both.",
    )
    precision: Annotated[list[Precision], AfterValidator(distinct)] = Field(
        default=[],
        description="Every target is made in each of these precisions, as if it were named NAME@PRECISION for each. "
        "Empty: in its own.",
    )
    metric: Metric = Field(default="latency", description="What a percentage in budgets is of.")
    budgets: Annotated[list[BudgetText], Field(min_length=1)] = Field(
        default=["50%"],
        description="The budgets: '50%' (of the dense network's), '50% macs', '4 ms', '120 MMACs', '3 Mparams' or "
        "'2.5 MB'.",
    )
    target_budgets: dict[str, Annotated[list[BudgetText], Field(min_length=1)]] = Field(
        default={},
        description="Budgets of single targets, instead of those in budgets, as in {pixel-8: ['8 ms']}.",
    )
    seed: Annotated[int, Field(ge=0, lt=2**32)] = Field(default=0, description="Seed of everything that is drawn.")
    device: str = Field(
        default="auto",
        description="Where training runs: auto (a GPU if there is one), cpu, cuda or cuda:N.",
        json_schema_extra={"pattern": _DEVICE},
    )
    mixed_precision: Literal["no", "bf16"] = Field(
        default="no", description="Precision of all training: no is float32."
    )
    gradient_checkpointing: bool = Field(
        default=False,
        description="Whether training keeps only what goes into each block of the network and computes the rest again: "
        "less memory, a quarter to a third more time, the same result.",
    )
    compile: bool = Field(
        default=False,
        description="Whether the dense and the slim network are trained compiled by torch.compile, which takes its "
        "time at the beginning of each stage. The search isn't compiled.",
    )
    accumulate: Annotated[int, Field(ge=1)] = Field(
        default=1, description="Batches whose mean gradient makes one training step."
    )
    processes: Annotated[int, Field(ge=1, le=64)] | Literal["auto"] = Field(
        default=1,
        description="Processes that train together, on one CUDA device each, or on the CPU. Each takes `accumulate` "
        "batches of a step: 2 processes come to what one comes to with twice as many. auto: one for each CUDA device.",
    )
    track: Annotated[list[Literal["tensorboard", "mlflow", "wandb"]], AfterValidator(distinct)] = Field(
        default=[],
        description="Trackers that losses and costs are sent to meanwhile. Their files lie in the run's tracking/.",
    )
    threads: Annotated[int, Field(ge=1)] | None = Field(
        default=None,
        description="CPU threads of training, of each process. null: as many as other programs leave cores; of several "
        "processes, their share of the cores. "
        "Another number adds up in another order, which changes the last digits of a result.",
    )

    @property
    def all_budgets(self) -> tuple[str, ...]:
        """The budgets of all targets, each once."""
        return tuple(dict.fromkeys([*self.budgets, *(b for some in self.target_budgets.values() for b in some)]))

    def budgets_of(self, target: str) -> tuple[Budget, ...]:
        """A target's budgets, by the target's name, in the recipe's order."""
        return tuple(parse_budget(text, self.metric) for text in self.target_budgets.get(target, self.budgets))

    @property
    def loaded_by(self) -> str:
        """What names the examples: the data's source; of a task of your own that is the task, which loads them."""
        return self.data.source

    @field_validator("name")
    @classmethod
    def _fit_for_a_folder(cls, name: str) -> str:
        if not re.fullmatch(_NAME, name) or name.endswith("\n"):
            message = f"{name!r} must begin with a letter or digit and have only letters, digits, '.', '_' and '-'"
            raise ValueError(message)
        return name

    @field_validator("task")
    @classmethod
    def _known_task(cls, task: str) -> str:
        return known_source(task, TASK_NAMES, (), "task")

    @field_validator("score")
    @classmethod
    def _a_score_of_the_task(cls, score: str | None, info: ValidationInfo) -> str | None:
        task = info.data.get("task", "")
        known = TASK_SCORES.get(task, ())
        if score is None or not task:  # a wrong task is told of by itself
            return next(iter(known), None)
        if not known:
            message = f"the task {task} says itself what it is judged by, in its Task; remove this key"
            raise ValueError(message)
        return _one_of(score, known, f"score of {task}")

    @field_validator("device")
    @classmethod
    def _known_device(cls, device: str) -> str:
        if not re.fullmatch(_DEVICE, device):
            message = f"there is no device {device!r}; write auto, cpu, cuda or cuda:N"
            raise ValueError(message)
        return device

    @field_validator("compile")
    @classmethod
    def _compiled_or_checkpointed(cls, value: bool, info: ValidationInfo) -> bool:
        if value and info.data.get("gradient_checkpointing"):
            message = "compile and gradient_checkpointing don't go together; remove one"
            raise ValueError(message)
        return value

    @field_validator("budgets", "target_budgets")
    @classmethod
    def _distinct_budgets(cls, budgets: Any, info: ValidationInfo) -> Any:
        for texts in budgets.values() if isinstance(budgets, dict) else [budgets]:
            require_distinct(texts, info.data.get("metric", "latency"))
        return budgets
