"""The paper's CIFAR-10 protocol on one device, with torch, torchvision and pyarrow alone: Parquet in, measured protection out.

`python pipeline/reproduce.py --data FOLDER --minutes 9`, again and again until it ends with 0, does it in pieces of under ten minutes.
Exit codes: 0 done, 1 it failed, 2 wrong usage, 3 the time was up: run the same command again.
"""

from __future__ import annotations

import argparse
import logging
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

if __name__ == "__main__":  # nothing needs to be installed: the project is where this file is
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from pipeline.reproduction import card, resident
from pipeline.reproduction.pieces import Clock, TimeIsUp, save_json
from pipeline.reproduction.protocol import Run, Settings
from pipeline.reproduction.stages import STAGES
from sep.execution import Kernels, Precision, resolve, use_cpu
from sep.methods.registry import METHODS
from sep.models import NetworkName

log = logging.getLogger(__name__)

CARD = "card"
ENSEMBLES = [name for name, kind in METHODS.items() if kind.surrogate or name == "noise"]  # the protocol has no other methods


def parser() -> argparse.ArgumentParser:
    """Every flag; defaults are the paper's."""
    flags = argparse.ArgumentParser(
        prog="reproduce.py", usage="%(prog)s --data FOLDER [flags]", description=__doc__, formatter_class=Help, allow_abbrev=False
    )
    add = flags.add_argument
    add("--data", type=Path, required=True, metavar="FOLDER", help="folder with train-*.parquet and test-*.parquet")
    add("--out", type=Path, default=Path("runs/reproduce"), metavar="FOLDER", help="holds everything; goes on where it stopped")
    add("--stages", nargs="+", choices=(*STAGES, CARD), metavar="STAGE", help=f"any of {', '.join(STAGES)}, {CARD}; all if not given")
    add("--minutes", type=float, metavar="N", help="begin nothing that would end later than this; unlimited if not given")
    add(
        "--eps-levels",
        type=int,
        nargs="+",
        default=(2, 8),
        metavar="LEVELS",
        help="budgets, in grey levels of 255; more can be added later",
    )
    add(
        "--method",
        choices=ENSEMBLES,
        default="sep-fa-vr",
        help="how the perturbation is made",
    )
    add("--checkpoints", type=int, metavar="N", help="ensemble size N; the paper's if not given: 30, and 15 of sep-fa-vr")
    add("--inner-steps", type=int, metavar="N", help="inner steps M of sep-fa-vr; N if not given")
    add("--steps", type=int, default=30, metavar="N", help="outer steps T, one grey level each")
    add("--network", choices=get_args(NetworkName), default="resnet18", help="of the surrogate and of the victims")
    add("--epochs", type=int, default=120, metavar="N", help="of the surrogate")
    add("--victim-epochs", type=int, metavar="N", help="of each victim; as many as the surrogate's if not given")
    add("--victim-seeds", type=int, nargs="+", default=(0,), metavar="SEED", help="trainings of each victim; more can be added later")
    add(
        "--batch-size",
        type=batch_size,
        default="auto",
        metavar="N",
        help="images per gradient while crafting: a number, or what fits memory",
    )
    add("--chunk-images", type=int, default=1000, metavar="N", help="protected images per file, which is a piece of work; can be changed")
    add("--precision", choices=get_args(Precision), default="auto", help="arithmetic; auto: bf16 on a GPU that has it, float32 on a CPU")
    add("--kernels", choices=get_args(Kernels), default="fused", help="of the gradients; plain: networks as trained; can be changed")
    add("--limit-train", type=int, metavar="N", help="use the first so many training images only")
    add("--limit-test", type=int, metavar="N", help="use the first so many test images only")
    add("--seed", type=int, default=0, metavar="N", help="everything random derives from it")
    add("--device", choices=("auto", "cuda", "cpu"), default="auto", help="auto: a GPU if there is one")
    return flags


class Help(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """Shows defaults, where there are any, and lines as they are."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default in (None, argparse.SUPPRESS) else super()._get_help_string(action)


def batch_size(text: str) -> int | None:
    """`auto`, which is None, or a number.

    Raises:
        ValueError: it is neither.
    """
    if text == "auto":
        return None
    number = int(text)
    if number < 1:
        raise ValueError(f"expected auto or a number from 1, got {text}")
    return number


def plan(given: argparse.Namespace, clock: Clock) -> Run:
    """The run that a command line asks for.

    Raises:
        ValueError: values are out of range or do not fit together, or there is no such device.
    """
    if given.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda needs a GPU that torch can use, and it finds none: give --device cpu, or leave it out")
    device = given.device if given.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    settings = Settings(
        data=resident.digest(given.data),
        device=device,
        limit_train=given.limit_train,
        limit_test=given.limit_test,
        network=given.network,
        epochs=given.epochs,
        victim_epochs=given.epochs if given.victim_epochs is None else given.victim_epochs,
        method=given.method,
        checkpoints=METHODS[given.method].usual if given.checkpoints is None else given.checkpoints,
        inner_steps=given.inner_steps,
        steps=given.steps,
        precision=resolve(given.precision, torch.device(device)),
        seed=given.seed,
    )
    for levels in given.eps_levels:
        settings.craft(levels)
    budgets, seeds = (tuple(dict.fromkeys(values)) for values in (given.eps_levels, given.victim_seeds))
    return Run(
        settings=settings,
        out=given.out,
        source=given.data,
        eps_levels=budgets,
        victim_seeds=seeds,
        batch_size=given.batch_size,
        chunk_images=given.chunk_images,
        kernels=given.kernels,
        clock=clock,
    )


def work(run: Run, stages: Sequence[str], arguments: Sequence[str]) -> int:
    """Run the stages in order and write the card of what there is then; the exit code.

    Raises:
        ValueError: a stage cannot do its work.
        OSError: a file cannot be read or written.
    """
    run.settle()
    code = 0
    try:
        for name, stage in STAGES.items():
            if name in stages:
                stage(run)
    except TimeIsUp:
        code = 3
    if CARD in stages and (code == 0 or (run.out / "data.pt").exists()):
        made = card.make(run, arguments)
        save_json(run.out / "card.json", made)
        print(f"{card.table(made)}\ncard: {run.out / 'card.json'}")
        code = code if made["missing"] else 0  # the time was up after the very last piece
    return code


def _stop(number: int, frame: Any) -> None:
    raise KeyboardInterrupt(signal.Signals(number).name)


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, do the work, and turn what went wrong into one line and an exit code."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    flags = parser()
    given = flags.parse_args(arguments)
    try:
        run = plan(given, Clock(given.minutes))
    except (ValueError, OSError) as error:
        flags.error(str(error))
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stderr, force=True)
    signal.signal(signal.SIGTERM, _stop)
    # Batches have a handful of shapes, and cuDNN times its algorithms once for each. Which one wins can differ from start to start, and
    # with it the last bits of what is computed.
    torch.backends.cudnn.benchmark = True
    use_cpu(torch.get_num_threads())
    try:
        code = work(run, given.stages or (*STAGES, CARD), arguments)
    except (ValueError, OSError) as error:
        log.error("failed: %s", error)
        return 1
    except KeyboardInterrupt:
        log.error("stopped: what is finished is kept, and the same command goes on from there")
        return 1
    if code == 3:
        log.info("the %g minutes are used up: run the same command again", given.minutes)
    return code


if __name__ == "__main__":
    sys.exit(main())
