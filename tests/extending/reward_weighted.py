"""An objective from outside the package, for `--objective reward-weighted`: rows count as much as their `reward`."""

from torch import Tensor

from cobra.models.vlms import CobraVLM
from cobra.training.batches import Batch, count_targets
from cobra.training.objective import OBJECTIVES, Objective


class RewardWeighted(Objective):
    """Negative log-likelihood of the answers, times the reward of their row; a mean over the labelled tokens."""

    row_fields = ("reward",)

    def weigh(self, batch: Batch) -> Tensor:
        """Return the number of labels that enter the loss."""
        return count_targets(batch["labels"], batch["multimodal_indices"])

    def loss(self, vlm: CobraVLM, batch: Batch) -> Tensor:
        """Return the sum over the rows."""
        inputs = {name: value for name, value in batch.items() if name not in self.row_fields}
        losses = vlm(**inputs, loss_reduction="rows", return_logits=False).loss
        return (losses * batch["reward"]).sum()


OBJECTIVES["reward-weighted"] = RewardWeighted
