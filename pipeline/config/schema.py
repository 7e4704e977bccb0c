"""The configuration of a run: one tree of frozen dataclasses, a section for each stage."""

from __future__ import annotations

from typing import Annotated, Any, Literal, cast, get_args

from pydantic import ConfigDict, TypeAdapter
from pydantic.dataclasses import dataclass
from typing_extensions import Doc

from pipeline.config.ensemble import check_ensemble
from pipeline.config.initial import Initial, is_file
from pipeline.config.known_names import known_countermeasures, known_methods, known_views
from pipeline.config.marks import Mark, marked, without
from pipeline.config.sight import check_sight
from sep.choices import NetworkName
from sep.countermeasures import registry as countermeasures
from sep.craft_config import CraftConfig
from sep.methods.registry import Method
from sep.train_config import TrainConfig
from sep.views import registry as views

StageName = Literal["pack", "surrogate", "protect", "victim", "report"]
STAGES: tuple[StageName, ...] = get_args(StageName)
SplitName = Literal["train", "test"]
SPLITS: tuple[SplitName, ...] = get_args(SplitName)
STRICT = ConfigDict(extra="forbid")
UNTRACKED = "none"  # the tracking URI of a run that is not logged


def _each_once(section: str, *, required: bool = True, **lists: tuple[Any, ...]) -> None:
    for name, values in lists.items():
        if (required and not values) or len(set(values)) < len(values):
            needs = "one value or more, none of them twice" if required else "each value once"
            raise ValueError(f"{section}.{name} needs {needs}; got {', '.join(map(str, values)) or 'none'}")


@dataclass(frozen=True, kw_only=True, config=STRICT)
class PackConfig:
    """Stage 1: any image source becomes clean shards."""

    size: int | None = None
    """side in pixels: the short side is resized to it and the centre cut out; without it, all images must have the same size, unless
    --input-size is given"""
    test_fraction: float = 0.0
    """share of each class set aside for testing, where the source has no test images; protected and released like the others, and
    measured on the clean copies"""
    shard_images: int = 250
    """maximum number of images per shard; one task protects one shard; shards of large images at their own size have fewer"""
    max_pixels: int = 64_000_000
    """larger images are quarantined instead of decoded"""
    classes: tuple[str, ...] = ()
    """pack only these: names, indices in the source's order, or a text file with one name or index per line; all if not given"""
    max_train_images: int | None = None
    """keep at most this many training images, evenly over the classes"""
    max_test_images: int | None = None
    """keep at most this many test images, evenly over the classes"""

    def __post_init__(self) -> None:
        """Refuse what cannot be packed.

        Raises:
            ValueError: a number is out of range.
        """
        if not 0 <= self.test_fraction < 1:
            raise ValueError(f"pack.test-fraction must be from 0 up to, not including, 1; got {self.test_fraction}")
        for name in ("size", "shard_images", "max_pixels", "max_train_images", "max_test_images"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"pack.{name.replace('_', '-')} must be at least 1, got {value}")


@dataclass(frozen=True, kw_only=True, config=STRICT)
class SurrogateConfig(TrainConfig):
    """Stage 2: the network whose checkpoints protect, or several of them."""

    networks: tuple[NetworkName, ...] = ("resnet18",)
    """architectures, trained one after the other; the checkpoints of all of them together make the ensemble"""
    initial: str | None = None
    """pretrained network that the training begins with, against pretrained victims: as victim.initial; random weights if not given"""
    initial_size: int = 96
    """side in pixels to which that network resizes what it sees; larger is better and slower"""
    recorded: Annotated[bool, Mark.SPEED] = TrainConfig.recorded
    """on one GPU, record the training step once and replay it: the host starts one graph instead of some hundreds of kernels"""

    def __post_init__(self) -> None:
        """Refuse missing or repeated names.

        Raises:
            ValueError: a number is out of range, or a network is missing or repeated.
        """
        super().__post_init__()
        _each_once("surrogate", networks=self.networks)

    @property
    def pretrained(self) -> Initial | None:
        """The pretrained network that the training begins with; None for fresh weights."""
        return None if self.initial is None else Initial(self.initial, self.initial_size, "surrogate.initial")

    @property
    def trained(self) -> tuple[str, ...]:
        """Names of the networks that are trained: a pretrained network of a library takes the place of the architecture."""
        return self.networks if self.initial is None or is_file(self.initial) else (self.initial,)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ProtectConfig(CraftConfig):
    """Stage 3: checkpoints and clean shards become protected shards."""

    method: Annotated[Method, Doc(known_methods())] = CraftConfig.method
    classes: tuple[str, ...] = ()
    """protect only the images of these: names, indices of packed classes, or a text file with one name or index per line; the others
    are released as they are; all if not given"""
    share: float = 1.0
    """share of each protected class whose images are protected; the others are released as they are"""
    chosen: Literal["random", "near-mean", "far-mean"] = "random"
    """how that share is chosen; random: by a hash of key and seed; near-mean, far-mean: the images whose features, in the surrogate's last
    checkpoint, are nearest to or farthest from the mean of their class"""
    splits: tuple[SplitName, ...] = ("train",)
    """which images of a source that comes with test images are protected and released: train, or train test"""
    epochs: tuple[int, ...] = ()
    """epochs whose checkpoints make the ensemble, counted from 0, instead of `checkpoints` equally spaced ones"""
    batch_size: Annotated[int | Literal["auto"], Mark.SPEED] = "auto"
    """images whose gradients are taken at once; auto: what fits memory; halved when memory runs out"""
    tasks_per_gpu: Annotated[int, Mark.SPEED] = 1
    """shards crafted on one GPU at a time, each with an equal part of its memory: for small networks, which do not fill it alone"""

    def __post_init__(self) -> None:
        """Refuse what cannot be crafted.

        Raises:
            ValueError: a number is out of range.
        """
        super().__post_init__()
        _each_once("protect", required=False, epochs=self.epochs)
        if "train" not in self.splits:
            raise ValueError(f"protect.splits must be train, or train test; got {', '.join(self.splits) or 'nothing'}")
        _each_once("protect", splits=self.splits)
        if self.epochs and min(self.epochs) < 0:
            raise ValueError(f"protect.epochs are counted from 0, got {min(self.epochs)}")
        if self.epochs and self.kind.checkpoints is not None and len(self.epochs) > self.per_network:
            raise ValueError(f"protect.epochs = {self.epochs} names more checkpoints than {self.method} reads, which is {self.per_network}")
        if self.batch_size != "auto" and self.batch_size < 1:
            raise ValueError(f"protect.batch-size must be at least 1, or auto; got {self.batch_size}")
        if not 0 < self.share <= 1:
            raise ValueError(f"protect.share must be above 0 and at most 1, got {self.share}")
        if self.share < 1 and self.chosen != "random" and not self.kind.surrogate:
            raise ValueError(
                f"protect.chosen = {self.chosen} needs a surrogate's features, and {self.method} has none: take random, or another method"
            )
        if self.tasks_per_gpu < 1:
            raise ValueError(f"protect.tasks-per-gpu must be at least 1, got {self.tasks_per_gpu}")

    def members(self, networks: int) -> int:
        """Return the size of the ensemble for a number of surrogate networks."""
        return networks * (len(self.epochs) or self.per_network)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class VictimConfig(TrainConfig):
    """Stage 4: trainings of an adversary on the release, one trial per network, countermeasure, seed and data."""

    networks: tuple[NetworkName, ...] = ("resnet18",)
    """architectures trained on the clean and on the protected images"""
    countermeasures: Annotated[tuple[str, ...], Doc(known_countermeasures())] = ("none",)
    input_size: int | None = None
    """side in pixels of what victims see, if it differs from the surrogate's; input-size if not given"""
    stored: str = "none"
    """form of the training images, clean and protected, before a victim or its countermeasures see them: jpeg-90, webp-75 or another
    countermeasure that changes stored images, or several joined by +; none: as they are in the release"""
    seeds: tuple[int, ...] = (0,)
    """one training per seed"""
    initial: str = "efficientnet-lite0"
    """what pretrained victims begin with: efficientnet-lite0 (extra [pretrained]), a name of torchvision or timm, or a file of weights"""
    initial_size: int = 96
    """side in pixels to which that network resizes what it sees; larger is better and slower"""
    recorded: Annotated[bool, Mark.SPEED] = TrainConfig.recorded
    """on one GPU, record the training step once and replay it: the host starts one graph instead of some hundreds of kernels"""
    trials_per_gpu: Annotated[int, Mark.SPEED] = 1
    """victims trained on one GPU at a time, each with an equal part of its memory: for small networks, which do not fill it alone"""

    @property
    def pretrained(self) -> Initial:
        """The network that pretrained victims begin with."""
        return Initial(self.initial, self.initial_size, "victim.initial")

    def __post_init__(self) -> None:
        """Refuse unknown or missing names.

        Raises:
            ValueError: a countermeasure is unknown or does not go with another, a list is empty, or a number is out of range.
        """
        super().__post_init__()
        if self.trials_per_gpu < 1:
            raise ValueError(f"victim.trials-per-gpu must be at least 1, got {self.trials_per_gpu}")
        for name in self.countermeasures:
            try:
                countermeasures.plan(name)
            except ValueError as error:
                raise ValueError(f"victim.countermeasures: {error}") from error
        _each_once("victim", networks=self.networks, countermeasures=self.countermeasures, seeds=self.seeds)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class RunConfig:
    """Protect an image data set, and measure the protection."""

    preset: str = "quickstart"
    """the preset that supplies every value you do not give: smoke, quickstart, cifar10-small, cifar10, paper, cifar100,
    imagenet-subset-small, imagenet-subset, photos-small, photos"""
    config: Annotated[str | None, Mark.START] = None
    """YAML file with the same settings; flags override it"""
    data: str = "generated"
    """images: a folder of class folders (with train/ and test/ or val/ inside, or not), of Parquet files, of WebDataset
    tars, a published CIFAR folder, or `generated`"""
    run: str = "runs/quickstart"
    """folder or URI (s3://...) that holds everything about this run"""
    add: Annotated[str | None, Mark.START] = None
    """more images for a protected run: any source that --data accepts except `generated`; images that the run lacks are packed and
    protected into `added/0001`, ..., a run folder of its own, with what that run was protected with"""
    sweep: Annotated[tuple[str, ...], Mark.START] = ()
    """values of protect.* fields, as in protect.steps=5,10 protect.checkpoints=1,5: every combination is protected and measured, in
    `sweep/`, with the pack and surrogate of the run; join several values for a list setting with +"""
    stages: Annotated[tuple[StageName, ...], Mark.START] = STAGES
    """any subset; always run in this order"""
    workers: Annotated[int | None, Mark.SPEED] = None
    """tasks and training ranks at a time; if not given, one per GPU, or without GPUs one task per CPU core and up to 8 ranks"""
    seed: int = 0
    """source of all randomness"""
    views: Annotated[tuple[str, ...], Doc(known_views())] = views.PLAIN
    input_size: int | None = None
    """side in pixels of what networks see, for images of many sizes: they are packed, protected and released at their own size, and
    networks see random crops of them in training and the centre in tests, resized to it; without it, whole images of the same size"""
    keep_going: Annotated[bool, Mark.START] = False
    """protect: if shards fail again and again, finish without them; the run continues, ends with exit code 1, and verify names them"""
    overwrite: Annotated[bool, Mark.START] = False
    """redo stages whose configuration changed, instead of stopping; of victims, only missing ones and ones that no longer fit"""
    tracking_uri: Annotated[str | None, Mark.START] = None
    """MLflow server or database; a SQLite file in the run folder if not given; none: nothing is logged"""
    executor: Annotated[Literal["ray", "local"], Mark.SPEED] = "ray"
    """what runs the work; ray: many processes and machines; local: this process, without Ray, with a further process per core for work that
    needs no GPU"""
    minutes: Annotated[float | None, Mark.START] = None
    """begin no shard, epoch or trial after this many minutes: the run ends with exit code 3, and the same command continues it"""
    memory_limit_mb: Annotated[int, Mark.LIMIT] = 2000
    """data sets up to this size, decoded, are held in memory by each training worker; larger ones stream, in batches of their own"""
    cache_gb: Annotated[float, Mark.SPEED] = 20.0
    """streamed data sets: store up to this many gigabytes of decoded images on each machine's own disk, in the folder for temporary
    files (TMPDIR), and never more than half of what is free there; 0: decode them again in every epoch"""
    pack: PackConfig = PackConfig()
    surrogate: SurrogateConfig = SurrogateConfig()
    protect: ProtectConfig = ProtectConfig()
    victim: VictimConfig = VictimConfig()

    @property
    def needed_stages(self) -> tuple[StageName, ...]:
        """The requested stages in order, without a surrogate that the method does not use."""
        idle = "protect" in self.stages and not self.protect.kind.surrogate
        return tuple(name for name in STAGES if name in self.stages and not (idle and name == "surrogate"))

    @property
    def trains_surrogate(self) -> bool:
        """True if these stages may train networks of `surrogate`: as a surrogate, or against the noise of the method."""
        return "surrogate" in self.needed_stages or ("protect" in self.stages and self.protect.kind.noise_rounds > 0)

    def __post_init__(self) -> None:
        """Check what only the whole tree shows.

        Raises:
            ValueError: values do not fit together.
        """
        if self.workers is not None and self.workers < 1:
            raise ValueError(f"workers must be at least 1, got {self.workers}")
        if not self.stages:
            raise ValueError(f"stages: expected one or more of {', '.join(STAGES)}; got none")
        check_sight(self)
        if self.minutes is not None and not self.minutes > 0:
            raise ValueError(f"minutes must be above 0, got {self.minutes}")
        if self.add and not self.protect.kind.grows:
            raise ValueError(
                f"--add: {self.protect.method} makes the noise of all images together, and has none for images that come later: protect "
                "them all in a new run, or use another method"
            )
        if not self.cache_gb >= 0:
            raise ValueError(f"cache-gb must be at least 0, got {self.cache_gb}")
        check_ensemble(self)


def to_tree(config: Any) -> dict[str, Any]:
    """Return a configuration, or a section of it, as JSON types."""
    return cast(dict[str, Any], TypeAdapter(type(config)).dump_python(config, mode="json"))


def deciding(section: Any) -> dict[str, Any]:
    """Return the tree of a section without the settings that decide only how fast: what a stage records of it."""
    return without(to_tree(section), marked(type(section), Mark.SPEED))
