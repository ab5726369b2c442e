"""Plans of runs: batches, memory, disk and time, from the configuration and the data at hand."""

from typing import TYPE_CHECKING

from cobra.training.planning.config import PlanConfig
from cobra.util.lazy import lazy_names

if TYPE_CHECKING:
    from cobra.training.planning.estimates import Plan
    from cobra.training.planning.plan import make_plan, show_plan

__all__ = ["Plan", "PlanConfig", "make_plan", "show_plan"]

__getattr__ = lazy_names(
    __name__,
    {
        "Plan": "cobra.training.planning.estimates",
        "make_plan": "cobra.training.planning.plan",
        "show_plan": "cobra.training.planning.plan",
    },
)
