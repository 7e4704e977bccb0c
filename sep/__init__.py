"""Self-Ensemble Protection in pure torch: tensors in, tensors out.

Chen et al., "Self-Ensemble Protection: Training Checkpoints Are Good Data Protectors", ICLR 2023, arXiv 2211.12005.
Images are grey levels 0..255 everywhere, `(B, C, H, W)`; networks normalise inside.

Public names are imported when they are first asked for, so that `import sep` loads no torch. The function `craft` of the
module `craft` is public as `craft_images`, because `sep.craft` is the module.
"""

from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # for type checkers; at run time, HOMES decides
    from sep.budget import Budget as Budget
    from sep.budget import check_budget as check_budget
    from sep.countermeasures.registry import COUNTERMEASURES as COUNTERMEASURES
    from sep.craft import craft_images as craft_images
    from sep.craft_config import CraftConfig as CraftConfig
    from sep.ensemble import Member as Member
    from sep.ensemble import class_sums as class_sums
    from sep.ensemble import equally_spaced as equally_spaced
    from sep.ensemble import freeze as freeze
    from sep.fitting import optimiser as optimiser
    from sep.fitting import train_epoch as train_epoch
    from sep.methods.registry import METHODS as METHODS
    from sep.methods.request import Request as Request
    from sep.methods.request import protect as protect
    from sep.models import Network as Network
    from sep.models import build as build
    from sep.objective import choose_targets as choose_targets
    from sep.objective import shifted as shifted
    from sep.train_config import TrainConfig as TrainConfig

HOMES = {
    "COUNTERMEASURES": "sep.countermeasures.registry",
    "METHODS": "sep.methods.registry",
    "Budget": "sep.budget",
    "CraftConfig": "sep.craft_config",
    "Member": "sep.ensemble",
    "Network": "sep.models",
    "Request": "sep.methods.request",
    "TrainConfig": "sep.train_config",
    "build": "sep.models",
    "check_budget": "sep.budget",
    "choose_targets": "sep.objective",
    "class_sums": "sep.ensemble",
    "craft_images": "sep.craft",
    "equally_spaced": "sep.ensemble",
    "freeze": "sep.ensemble",
    "optimiser": "sep.fitting",
    "protect": "sep.methods.request",
    "shifted": "sep.objective",
    "train_epoch": "sep.fitting",
}
__all__ = list(HOMES)


def __getattr__(name: str) -> Any:
    """Import a public name from its home (PEP 562)."""
    if name not in HOMES:
        raise AttributeError(f"module 'sep' has no attribute {name!r}")
    return resolve_name(f"{HOMES[name]}:{name}")
