"""Objectives of training: the weight of a batch in its step, and its loss."""

from abc import ABC, abstractmethod
from collections.abc import Callable

from torch import Tensor

from cobra.models.vlms import CobraVLM
from cobra.training.batches import Batch, count_targets
from cobra.util.errors import lookup


class Objective(ABC):
    """Objective of training.

    The loss of an optimiser step is the sum of :meth:`loss` over the batches of all processes and forward passes,
    divided by the sum of :meth:`weigh`; so it does not depend on how the rows are spread. A step without weight changes
    nothing. Held-out rows are measured in the same way.

    Attributes:
        row_fields: Numbers that every row of the annotation file holds beside its conversation, as `reward`; they are
            in the batch under the same name, (rows,) float32.
    """

    row_fields: tuple[str, ...] = ()

    def prepare(self, vlm: CobraVLM, batch: Batch) -> Batch:
        """Return the batch that is trained on in place of one of the data, with sampled answers say.

        Called before the batch is weighed, with gradients enabled in training and without on held-out rows; every
        process calls it equally often.
        """
        return batch

    @abstractmethod
    def weigh(self, batch: Batch) -> Tensor:
        """Return the batch's weight, a scalar of at least 0; 0 where no row has a label."""

    @abstractmethod
    def loss(self, vlm: CobraVLM, batch: Batch) -> Tensor:
        """Return the weighted sum of the batch's losses, a scalar; connected to the parameters whatever the weight.

        Where the model is sharded, every process has to run it equally often.
        """


class NextToken(Objective):
    """Cross-entropy of the next token: each label that enters the loss weighs 1."""

    def weigh(self, batch: Batch) -> Tensor:
        """Return the number of labels that enter the loss, a scalar int64."""
        return count_targets(batch["labels"], batch["multimodal_indices"])

    def loss(self, vlm: CobraVLM, batch: Batch) -> Tensor:
        """Return the sum of the cross-entropy over the labels, a scalar in fp32."""
        loss = vlm(**batch, loss_reduction="sum", return_logits=False).loss
        assert isinstance(loss, Tensor)
        return loss


# By the name that --objective takes; a program of one's own adds to it before it calls `pretrain`.
OBJECTIVES: dict[str, Callable[[], Objective]] = {"next-token": NextToken}


def find_objective(name: str) -> Callable[[], Objective]:
    """Return what builds the objective of that name.

    Raises:
        UserError: It is unknown; the known ones are listed.
    """
    return lookup(OBJECTIVES, name, "the objective")
