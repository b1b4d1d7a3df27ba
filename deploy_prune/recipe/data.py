"""The recipe's part about data, and what all parts have in common."""

from __future__ import annotations

import re
from typing import Annotated, Any, Final, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, field_validator

from deploy_prune.errors import perhaps

DATA_SETS: Final = ("digits", "cifar10", "cifar100", "npz", "idx", "folder")
BOX_SETS: Final = ("scenes", "coco", "voc", "yolo")
MASK_SETS: Final = ("scenes", "folders", "voc", "coco")
_SETS: Final = {"classification": DATA_SETS, "detection": BOX_SETS, "segmentation": MASK_SETS}
MIN_SIZE, MAX_SIZE = 8, 4096
"""Of the input's sides, in pixels."""
MAX_CLASSES: Final = 4096
"""Of boxes; of masks there are 255, as 255 is what has no class."""

Augment = Literal["none", "shift", "shift_flip", "affine", "crop_flip", "crop_flip_colour"]
Fit = Literal["letterbox", "stretch", "cut"]
MaskAugment = Literal["none", "flip", "flip_crop", "flip_crop_colour"]
Objects = Literal["boxes", "masks", "keypoints"]
BoxAugment = Literal["none", "flip", "flip_crop", "flip_crop_colour", "mosaic"]

_CALLABLE: Final = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")


class Part(BaseModel):
    """A part of a recipe: frozen, and strict about unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


PartT = TypeVar("PartT", bound=Part)


def distinct(items: list[Any] | None) -> list[Any] | None:
    """The list, if no item is in it twice."""
    again = [item for i, item in enumerate(items or []) if item in (items or [])[:i]]
    if again:
        message = f"{again[0]!r} is given twice; remove one"
        raise ValueError(message)
    return items


def known_source(word: str, built_in: tuple[str, ...], prefixes: tuple[str, ...], what: str) -> str:
    """A built-in name, PREFIX:NAME or module:callable."""
    prefix, colon, name = word.partition(":")
    forms = [*built_in, *(f"{p}:NAME" for p in prefixes), "module:callable"]
    message = None
    if prefix in prefixes and not name.strip():
        message = f"{word!r} needs a name after a colon, as in '{prefix}:NAME'"
    elif not colon and word not in built_in:
        hint = f" One of {prefixes[0]} is written '{prefixes[0]}:{word}'." if prefixes else ""
        message = f"there is no {what} {word!r}; known: {', '.join(forms)}.{hint}{perhaps(word, built_in)}"
    elif colon and prefix not in prefixes and not _CALLABLE.fullmatch(word):
        message = f"{word!r} is not of the form module:callable, as in 'my_package.my_module:make'"
    if message:
        raise ValueError(message)
    return word


def _known_set(source: str, task: str) -> str:
    """A data set of the task's, or module:callable."""
    others = [other for other, names in _SETS.items() if source in names]
    if others and task not in others:
        message = f"{source!r} is a data set for task: {' or '.join(others)}, and the task is {task}; {task} has "
        message += f"{', '.join(_SETS[task])} and module:callable"
        raise ValueError(message)
    return known_source(source, _SETS[task], (), "data set")


def one_per_channel(values: list[float] | None, channels: int) -> list[float] | None:
    """The numbers, if there is one for each channel; ``channels``: 0 where that is not known."""
    if values is not None and channels and len(values) != channels:
        message = f"it needs one number per channel: data.channels is {channels}, not {len(values)}"
        raise ValueError(message)
    return values


def _checked_shots(value: object) -> object:
    """One sentence for what would be two kinds' errors."""
    if value is None or (type(value) is int and value >= 1):
        return value
    message = f"it should be a number of examples above 0, or null (all), not {value!r}"
    raise ValueError(message)


def _checked_size(value: object) -> object:
    """One sentence for what would be several kinds' errors. Of several sizes the largest comes first."""
    several = isinstance(value, list) and bool(value) and all(isinstance(one, list) for one in value)
    sizes: list[Any] = value if isinstance(value, list) and several else [value]
    if value is not None and not all(map(_is_size, sizes)):
        message = f"it should be a side in pixels ({MIN_SIZE} to {MAX_SIZE}), [height, width], a list of several such "
        message += f"pairs, or null, not {value!r}"
        raise ValueError(message)
    if not several:
        return value
    if len(sizes) == 1:
        return sizes[0]
    return distinct(sorted(sizes, key=lambda size: -size[0] * size[1]))


def _is_size(value: Any) -> bool:
    sides = value if isinstance(value, list) and len(value) == 2 else [value]
    return all(type(side) is int and MIN_SIZE <= side <= MAX_SIZE for side in sides)


ImageSize = Annotated[int | list[int] | list[list[int]] | None, BeforeValidator(_checked_size)]
"""The side of a square, or height and width, in pixels; or several such pairs, the largest first."""
SEVERAL_SIZES: Final = (
    " Several pairs, as in [[224, 224], [160, 160]]: every budget, a share of the dense network at the largest, is "
    "planned at each of these sizes, and the network that scores best is delivered."
)
Classes = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1), AfterValidator(distinct)]
Workers = Annotated[int, Field(ge=0, le=128)]
Shots = Annotated[int | None, BeforeValidator(_checked_shots)]


def as_sizes(given: int | list[int] | list[list[int]] | None) -> tuple[tuple[int, int], ...]:
    """Heights and widths of a recipe's image_size, the largest first; () if it doesn't say."""
    if given is None:
        return ()
    if isinstance(given, int):
        return ((given, given),)
    pairs = [one for one in given if isinstance(one, list)] or [[side for side in given if isinstance(side, int)]]
    return tuple((high, wide) for high, wide in pairs)


def as_size(given: int | list[int] | list[list[int]] | None) -> tuple[int, int] | None:
    """Height and width of a recipe's image_size, of several the largest."""
    return next(iter(as_sizes(given)), None)


def sizes_of(part: Part) -> tuple[tuple[int, int], ...]:
    """Heights and widths of the input, the largest first; () if the data part doesn't say, or has no such key."""
    return as_sizes(getattr(part, "image_size", None))


def at_size(part: PartT, size: tuple[int, int]) -> PartT:
    """The data part with one input size, (height, width)."""
    high, wide = size
    return part.model_copy(update={"image_size": high if high == wide else [high, wide]})


class DataPart(Part):
    """Which examples. Channels are chosen on the source classes; the slim network learns the target classes."""

    source: str = Field(
        default="digits", description="The data set: digits, cifar10, cifar100, npz, idx, folder or module:callable."
    )
    root: str | None = Field(
        default=None, description="Where its files are; digits has none. null: the variable DEPLOY_PRUNE_DATA."
    )
    image_size: ImageSize = Field(
        default=None,
        description="The network's input in pixels: the side of a square, or [height, width]. null: from the network's "
        "own configuration, or the images' size if all have one size." + SEVERAL_SIZES,
    )
    channels: Literal[1, 3] = Field(default=3, description="1: images are made grey. 3: they are made colour.")
    mean: list[float] | None = Field(
        default=None,
        description="Mean of each channel, of values in 0..1, which is subtracted. null: with weights, from the "
        "network's own configuration; else the data set's own.",
    )
    std: list[Annotated[float, Field(gt=0)]] | None = Field(
        default=None, description="Standard deviation of each channel, which is divided by. null: as for mean."
    )
    shots: Shots = Field(
        default=None, description="Training examples of each target class, drawn with the seed. null: all."
    )
    short_classes: Literal["fail", "use_all"] = Field(
        default="fail", description="What to do if a class has fewer than shots: fail, or use_all that it has."
    )
    unreadable: Literal["fail", "skip"] = Field(
        default="fail",
        description="What to do with what can't be read as an image: fail, or skip and name it.",
    )
    source_classes: Classes | None = Field(
        default=None, description="The classes that channels are chosen on. null: all."
    )
    target_classes: Classes | None = Field(
        default=None, description="The classes that the slim network learns. null: all."
    )
    ways: Annotated[int, Field(ge=2)] | None = Field(
        default=None, description="Learn only so many of the target classes, drawn with the seed. null: all of them."
    )
    augment: Augment = Field(
        default="shift",
        description="How training images are varied: none, shift, shift_flip, affine "
        "(turned, scaled and moved a little), crop_flip or crop_flip_colour (for photographs).",
    )
    workers: Workers = Field(
        default=0,
        description="Processes that look at images (of a folder, or your own Datasets) once before, and then read "
        "training images while others are trained on; batches stay the same. 0: none.",
    )

    @property
    def size(self) -> tuple[int, int] | None:
        """Height and width of the network's input, of several the largest; None if the recipe doesn't say."""
        return as_size(self.image_size)

    @field_validator("source")
    @classmethod
    def _known_source(cls, source: str) -> str:
        return _known_set(source, "classification")

    @field_validator("mean", "std")
    @classmethod
    def _one_per_channel(cls, values: list[float] | None, info: ValidationInfo) -> list[float] | None:
        return one_per_channel(values, info.data.get("channels", 0))

    @field_validator("target_classes")
    @classmethod
    def _few_shots_are_few(cls, target: list[int] | None, info: ValidationInfo) -> list[int] | None:
        """Source classes have all their examples: a target class among them would not be a few-shot class."""
        source = info.data.get("source_classes") or []
        common = set(source) & set(target or [])
        if info.data.get("shots") is not None and common and set(source) != set(target or []):
            message = f"class {min(common)} is a source class too, where it has all its examples; "
            message += "take it out of one list, or write data.shots: null"
            raise ValueError(message)
        return target

    @field_validator("ways")
    @classmethod
    def _few_ways_are_new(cls, ways: int | None, info: ValidationInfo) -> int | None:
        """Some classes of the source task would be no few-shot classes either."""
        source, target = (info.data.get(key) or [] for key in ("source_classes", "target_classes"))
        same = bool(source) and set(source) == set(target)
        if ways is not None and info.data.get("shots") is not None and same and ways < len(source):
            message = "the classes drawn would be source classes too, where they have all their examples; "
            message += "give target_classes of their own, or write data.shots: null"
            raise ValueError(message)
        return ways


class PicturesPart(Part):
    """What the parts of pictures with boxes and of pictures with masks have in common."""

    source: str = Field(default="scenes", description="The data set.")
    root: str | None = Field(
        default=None, description="Where its files are; scenes has none. null: the variable DEPLOY_PRUNE_DATA."
    )
    classes: Annotated[list[str], Field(min_length=1, max_length=MAX_CLASSES), AfterValidator(distinct)] | None = Field(
        default=None, description="The classes' names, in the order of their numbers. null: those of the data set."
    )
    image_size: ImageSize = Field(
        default=None,
        description="The network's input in pixels: the side of a square, or [height, width]. null: from the network's "
        "own configuration, or the pictures' size if all have one." + SEVERAL_SIZES,
    )
    fit: Fit = Field(
        default="letterbox",
        description="How a picture becomes an input of that size. letterbox: the whole of it, with grey around. "
        "stretch: height and width are scaled on their own. cut: it covers the input, and what is too much is cut off.",
    )
    channels: Literal[1, 3] = Field(default=3, description="1: pictures are made grey. 3: they are made colour.")
    mean: list[float] | None = Field(
        default=None,
        description="Mean of each channel, of values in 0..1, which is subtracted. null: with weights, from the "
        "network's own configuration; else the data set's own.",
    )
    std: list[Annotated[float, Field(gt=0)]] | None = Field(
        default=None, description="Standard deviation of each channel, which is divided by. null: as for mean."
    )
    shots: Annotated[int, Field(ge=1)] | None = Field(
        default=None,
        description="Training pictures are drawn with the seed until each target class has so many objects (boxes), or "
        "is seen in so many pictures (masks). null: all.",
    )
    short_classes: Literal["fail", "use_all"] = Field(
        default="fail", description="What to do if a class has fewer than shots: fail, or use_all that it has."
    )
    broken: Literal["fail", "skip"] = Field(
        default="fail",
        description="What to do with damaged pictures and annotations: fail and name them, or skip, count and name "
        "them.",
    )
    source_classes: Classes | None = Field(
        default=None, description="The classes that channels are chosen on. null: all."
    )
    target_classes: Classes | None = Field(
        default=None, description="The classes that the slim network learns. null: all."
    )
    workers: Workers = Field(
        default=0,
        description="Processes that look at all pictures once before, and then read and vary training pictures while "
        "others are trained on; batches stay the same. 0: none.",
    )

    @field_validator("mean", "std")
    @classmethod
    def _one_per_channel(cls, values: list[float] | None, info: ValidationInfo) -> list[float] | None:
        return one_per_channel(values, info.data.get("channels", 0))

    @property
    def size(self) -> tuple[int, int] | None:
        """Height and width of the network's input, of several the largest; None if the recipe doesn't say."""
        return as_size(self.image_size)


class BoxesPart(PicturesPart):
    """Which pictures with boxes around objects. Channels are chosen on the source classes."""

    source: str = Field(
        default="scenes", description="The data set: scenes (drawn here), coco, voc, yolo or module:callable."
    )
    objects: Objects = Field(
        default="boxes",
        description="What is learned of each object: boxes, masks (its box and which pixels are its own) or keypoints "
        "(its box and named places on it).",
    )
    augment: BoxAugment = Field(
        default="flip",
        description="How training pictures are varied: none, flip (mirrored), flip_crop, flip_crop_colour, or mosaic "
        "(as flip_crop_colour, and every second one put together of four).",
    )

    @field_validator("source")
    @classmethod
    def _known_source(cls, source: str) -> str:
        return _known_set(source, "detection")


class MasksPart(PicturesPart):
    """Which pictures with masks, where each pixel has a class. Channels are chosen on the source classes."""

    source: str = Field(
        default="scenes", description="The data set: scenes (drawn here), folders, voc, coco or module:callable."
    )
    void: Annotated[int, Field(ge=0, le=65535)] | None = Field(
        default=255, description="The masks' value of pixels that have no class and don't count. null: there is none."
    )
    values: (
        Annotated[list[Annotated[int, Field(ge=0, le=65535)]], Field(min_length=2), AfterValidator(distinct)] | None
    ) = Field(
        default=None,
        description="The masks' value of each class, as in [0, 255]. null: the classes' numbers.",
    )
    augment: MaskAugment = Field(
        default="flip",
        description="How training pictures are varied: none, flip (mirrored), flip_crop or flip_crop_colour.",
    )

    @field_validator("source")
    @classmethod
    def _known_source(cls, source: str) -> str:
        return _known_set(source, "segmentation")

    @field_validator("values")
    @classmethod
    def _void_is_no_class(cls, values: list[int] | None, info: ValidationInfo) -> list[int] | None:
        if values is not None and info.data.get("void") in values:
            message = f"{info.data['void']} is data.void, too, whose pixels have no class; write data.void: null, or "
            message += "take it out"
            raise ValueError(message)
        return values
