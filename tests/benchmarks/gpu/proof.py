"""The proof on a GPU: `make gpu-proof`, again and again until it ends with 0 (docs/reproduce.md).

Each start works for eight minutes. Exit codes: 0 done, 1 a piece failed, 2 wrong usage, 3 the time is up: run the same command again.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipeline.storage.records import to_json
from tests import ROOT
from tests.benchmarks.gpu.pieces import RELEASE, Options, Piece, pieces
from tests.benchmarks.gpu.processes import Ended, run
from tests.benchmarks.gpu.targets import compared, shown

FINISHED = ("done", "cut short")
LOG, PROOF = "log.txt", "proof.json"
TRAVELS = 2**20  # bytes of the end of the log
TIME_IS_UP = 3
NOT_RECORDED = re.compile(rb"failed: .*captur", re.IGNORECASE)  # the main job's last words where CUDA refused to capture
LAST_PIECE = 15.0  # seconds before the end from which on a program begins nothing: it counts its minutes from when it is loaded
Card = dict[str, Any]


@dataclass(frozen=True)
class Proof:
    """The folder of a proof, with a card for each piece that was begun.

    Attributes:
        work: the folder.
        pieces: in order.
        miniature: whether sizes are small, for the card.
        plain_steps: whether trainings are not recorded. Where recording failed once, they are not either.
        out: folder for what comes back from the machine, filled as the proof goes on: it may end at any time.
        begun: time of this start.
    """

    work: Path
    pieces: Sequence[Piece]
    miniature: bool = False
    plain_steps: bool = False
    out: Path | None = None
    begun: float = field(default_factory=time.time)

    def card(self, piece: Piece) -> Card:
        """Return the card that earlier starts of the same command left, or that of a piece that is not begun."""
        path = self.work / "cards" / f"{piece.name}.json"
        command = shlex.join([Path(piece.command[0]).name, *piece.command[1:]])
        earlier: Card = json.loads(path.read_text()) if path.exists() else {}
        card = {"title": piece.title, "status": "not begun", "starts": 0, "seconds": 0.0, "plain_steps": False, "found": None}
        return {**card, "command": command, **(earlier if earlier.get("command") == command else {})}

    def _write(self, piece: Piece, card: Card) -> None:
        """Write a card, and the card of the whole proof."""
        _put(self.work / "cards" / f"{piece.name}.json", card)
        cards = {each.name: self.card(each) for each in self.pieces}
        targets = compared({name: each["found"] or {} for name, each in cards.items()})
        _put(self.work / PROOF, {"miniature": self.miniature, "order": [*cards], "pieces": cards, "targets": targets})
        if self.out:
            self._deliver(self.out)

    def _deliver(self, to: Path) -> None:
        """Copy the card of the proof, the end of the log, and the files of the release if this start has made them."""
        to.mkdir(parents=True, exist_ok=True)
        shutil.copy(self.work / PROOF, to)
        if (log := self.work / LOG).exists():
            (to / LOG).write_bytes(log.read_bytes()[-TRAVELS:])
        for file in (self.work / RELEASE).glob("*.parquet"):
            if file.stat().st_mtime >= self.begun and not (to / file.name).exists():
                shutil.copy(file, to)

    def start(self, piece: Piece, seconds: float) -> str:
        """Run a piece for that many seconds at most, and return its status.

        Raises:
            KeyboardInterrupt: this process was interrupted; the card says so.
        """
        card = self.card(piece)
        if why := piece.lacking():
            self._write(piece, {**card, "status": "left out", "why": why})
            print(f"{piece.name}: left out: {why}", flush=True)
            return "left out"
        print(f"\n== {piece.name}: {piece.title}", flush=True)
        if not piece.takes_minutes:
            piece.results.unlink(missing_ok=True)
        card.pop("why", None)
        plain = piece.plain_steps if self.plain_steps or any(self.card(each)["plain_steps"] for each in self.pieces) else ()
        now = datetime.now(UTC).isoformat(timespec="seconds")
        card |= {"status": "running", "starts": card["starts"] + 1, "begun": now, "plain_steps": bool(plain)}
        self._write(piece, card)  # a start that is killed leaves this
        limit = min(seconds, 60 * piece.minutes)
        minutes = ("--minutes", f"{max(limit - LAST_PIECE, 1) / 60:.3f}") if piece.takes_minutes else ()
        begun, status = time.monotonic(), "stopped"

        def so_far() -> None:
            self._write(piece, {**card, "found": piece.found or card["found"]})

        try:
            ended = run((*piece.command, *plain, *minutes), limit, self.work / LOG, {**os.environ, **piece.environment}, so_far)
            card["exit_code"], status = ended.code, _status(piece, ended, limit < seconds)
        except OSError as error:  # there is no such program
            card["why"], status = str(error), "failed"
            print(f"{piece.name}: {error}", flush=True)
            return status
        finally:
            found = piece.found or card["found"]
            self._write(piece, {**card, "status": status, "seconds": round(card["seconds"] + time.monotonic() - begun, 1), "found": found})
        if status == "failed" and piece.plain_steps and not plain and NOT_RECORDED.search(ended.said):
            print(f"{piece.name}: steps cannot be recorded: once more, and from now on, with plain ones", flush=True)
            return replace(self, plain_steps=True).start(piece, max(seconds - ended.seconds, 0))
        return status


def _status(piece: Piece, ended: Ended, by_its_own_limit: bool) -> str:
    if ended.code == 0:
        return "done"
    if ended.interrupted or (piece.takes_minutes and ended.code == TIME_IS_UP):
        return "cut short" if by_its_own_limit else "time is up"
    return "failed"


def _put(path: Path, card: Card) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    building = path.with_suffix(".new")
    building.write_bytes(to_json(card))
    building.replace(path)


def work(proof: Proof, minutes: float, named: Sequence[str] = (), again: bool = False) -> int:
    """Do what is left of the proof, what failed last, and return the exit code.

    Args:
        proof: its pieces and its folder.
        minutes: begin nothing after so many.
        named: only these pieces in this order, if there are any.
        again: do pieces that are finished, too.
    """
    end, up = time.monotonic() + 60 * minutes, False
    known = {piece.name: piece for piece in proof.pieces}
    chosen = [known[name] for name in named] or [piece for piece in proof.pieces if not piece.closes and not piece.asked_for]
    asked = [piece for piece in chosen if again or _left(proof, piece)]
    closing = [piece for piece in proof.pieces if piece.closes and piece not in asked]
    for piece in sorted(asked, key=lambda each: proof.card(each)["status"] == "failed"):
        _close(proof, closing)
        left = end - time.monotonic()
        if up := left <= 0 or proof.start(piece, left) == "time is up":
            break
    _close(proof, closing)
    failed = any(proof.card(piece)["status"] == "failed" for piece in proof.pieces)
    return TIME_IS_UP if up else int(failed)


def _close(proof: Proof, closing: Sequence[Piece]) -> None:
    """Do what comes as soon as its input is there: at the beginning of a start, too, for the one before may have been killed."""
    for piece in closing:
        if _left(proof, piece) and not piece.lacking():
            proof.start(piece, 60 * piece.minutes)


def _left(proof: Proof, piece: Piece) -> bool:
    return proof.card(piece)["status"] not in FINISHED


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, work, and print a table."""
    default, kit = Options(Path(), ""), ROOT / "gpu-kit" / "data"
    parser = argparse.ArgumentParser("gpu-proof", description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--data", default=str(kit), help="CIFAR-10 as Parquet files")
    parser.add_argument("--work", help="folder for the runs and cards; runs/gpu-proof if not given")
    parser.add_argument("--out", type=Path, help="folder for what comes back: cards, log, and once the release at 2/255")
    parser.add_argument("--minutes", type=float, default=8.0, help="begin nothing after so many minutes; ends at most 2 minutes later")
    parser.add_argument("--pieces", nargs="+", default=[], help="only these, in this order")
    parser.add_argument("--again", action="store_true", help="do what is finished once more")
    parser.add_argument("--victims", nargs="+", default=[*default.victims], help="countermeasures of the recipes' victims")
    parser.add_argument("--seeds", type=int, default=default.seeds, help="trainings of each victim")
    parser.add_argument("--plain-steps", action="store_true", help="train without recorded steps, from now on")
    parser.add_argument("--miniature", action="store_true", help="small sizes: it tries the proof and measures nothing")
    parser.add_argument("--no-values", action="store_true", help="let no value count, for a device that computes nothing")
    given = parser.parse_args(arguments)
    folder = _from_here(given.work or f"runs/gpu-proof{'-miniature' if given.miniature else ''}")
    data = given.data if given.data == "generated" else str(_from_here(given.data))
    chosen = Options(folder, data, tuple(given.victims), given.seeds, given.miniature, given.no_values)
    proof = Proof(folder, pieces(chosen), given.miniature, given.plain_steps, given.out)
    if unknown := sorted({*given.pieces} - {piece.name for piece in proof.pieces}):
        parser.error(f"--pieces: unknown {', '.join(unknown)}; there are {', '.join(piece.name for piece in proof.pieces)}")
    if data != "generated" and not Path(data).is_dir():
        parser.error(f"--data: no folder {data}: pack it with `make gpu-kit`, or give --data")
    for piece in proof.pieces:
        piece.check()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # what a shell runs in the background ignores it, and so do its children
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        code = work(proof, given.minutes, given.pieces, given.again)
    except KeyboardInterrupt:
        print("stopped: the same command goes on", file=sys.stderr)
        code = 1
    print(summary(proof, code))
    return code


def _from_here(path: str) -> Path:
    """Return a path within the project from its folder, if that is the working directory: cards are published."""
    whole = Path(path).resolve()
    return whole.relative_to(ROOT) if Path.cwd() == ROOT and whole.is_relative_to(ROOT) else whole


def summary(proof: Proof, code: int) -> str:
    """Return a line for each piece and each target, and what to do next."""
    cards = {piece.name: proof.card(piece) for piece in proof.pieces}
    lines = [f"{name:16} {card['status']:10} {card['seconds']:6.0f} s  {card['title']}" for name, card in cards.items()]
    rows = compared({name: card["found"] or {} for name, card in cards.items()})
    ends = {0: "done", TIME_IS_UP: "the time is up: run the same command again"}
    return "\n".join(["", *lines, *shown(rows), f"cards: {proof.work / PROOF}", ends.get(code, "some of it failed: see the log")])


if __name__ == "__main__":
    sys.exit(main())
