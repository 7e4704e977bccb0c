"""The check that a surrogate has the networks and checkpoints that the method of a run needs."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.config.schema import RunConfig


def check_ensemble(config: RunConfig) -> None:
    """Check the networks of a surrogate, and its checkpoints, against the method.

    Raises:
        ValueError: the networks are too many, or the checkpoints too few.
    """
    networks, several = len(config.surrogate.networks), ", ".join(config.surrogate.networks)
    if config.surrogate.initial is not None and networks > 1:
        begun = f"surrogate.initial = {config.surrogate.initial} begins one network"
        raise ValueError(f"{begun}, but surrogate.networks names {several}: name one")
    if config.protect.kind.noise_rounds and networks > 1:
        needs = f"{config.protect.method} trains one network against its noise"
        raise ValueError(f"{needs}, but surrogate.networks names {several}: name one, or take another --protect.method")
    drawn, members = config.protect.members_per_step, config.protect.members(networks)
    if drawn is not None and drawn > members:
        raise ValueError(f"protect.members-per-step = {drawn} draws more than the ensemble has, which is {members}: draw fewer")
    trained = config.surrogate.epochs
    if config.protect.epochs:
        if max(config.protect.epochs) >= trained:
            raise ValueError(
                f"protect.epochs are counted from 0 to {trained - 1}, as surrogate.epochs = {trained}; got {max(config.protect.epochs)}"
            )
    elif config.protect.per_network > trained:
        usual = f" (the paper's for {config.protect.method})" if config.protect.checkpoints is None else ""
        raise ValueError(
            f"protect.checkpoints = {config.protect.per_network}{usual} needs as many surrogate epochs, but surrogate.epochs = {trained}"
        )
