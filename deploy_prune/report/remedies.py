"""What frees a layer that is left whole: one row for each kind of reason that surgery gives."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, kw_only=True)
class Remedy:
    """A kind of reason, and what to change in the network or recipe. ``says``: what its reasons contain (a pattern)."""

    title: str
    says: str
    change: str


REMEDIES: Final = (
    Remedy(
        title="The recipe leaves it out",
        says=r"^prune\.(only|skip) ",
        change="Change prune.only or prune.skip in the recipe.",
    ),
    Remedy(
        title="It is the network's output",
        says=r"^it reaches the network's output$",
        change="Change nothing if these are the answers of the network. To free it, let a layer with weights follow it "
        "(linear, or a 1x1 convolution) that makes the output.",
    ),
    Remedy(
        title="It has one unit",
        says=r"^it has a single unit$",
        change="Give the layer two channels or more; where it is grouped, two groups or more.",
    ),
    Remedy(
        title="Sizes are written in the code",
        says=r"^the network's code has sizes written in it",
        change="Take sizes from the tensor where they are used, as in x.shape[1], or write -1 for them in reshape.",
    ),
    Remedy(
        title="Its gates can't be turned on",
        says=r"^its gates can't be turned on",
        change="Mend the error in brackets: with its weights multiplied by a gate, the network's own code fails.",
    ),
    Remedy(
        title="Its cut is not seen to be right",
        says=r"^(no trial shows whether|cut and masked outputs differ)",
        change="Remove the layer if the output doesn't depend on it. Else write the code after it so that it computes "
        "the same for fewer channels: no means over channels, no factors that follow from their number.",
    ),
    Remedy(
        title="There is no rule for the operator",
        says=r"has no rule: |^there is no rule for the operator |in a form that its rule doesn't know",
        change="Write it with operators that have rules (convolution, linear, norms, arithmetic, reshape, attention); "
        "or leave it out of forward, if it only prepares inputs or reads outputs.",
    ),
    Remedy(
        title="The layer is recurrent",
        says=r"is a recurrent layer|^they are one layer's$",
        change="Prune what is around it. Replace it by convolutions or attention if it costs much.",
    ),
    Remedy(
        title="Its groups don't let channels go",
        says=r"is a grouped transposed convolution|keeps its groups|has whole groups|other positions for each group",
        change="Use groups=1, or as many groups as channels (depthwise).",
    ),
    Remedy(
        title="The weight is computed",
        says=r"is computed, not stored|(scales|normalises) its weight|standardises its weight",
        change="Store the weight itself before you prune, as torch.nn.utils.parametrize.remove_parametrizations does.",
    ),
    Remedy(
        title="The norm has no weight per channel",
        says=r"has no weight of its own per channel|normalises over it$|is shared between heads",
        change="Give the norm a weight per channel (affine or elementwise_affine), over the channels of all heads.",
    ),
    Remedy(
        title="A statistic over several tensors' channels",
        says=r"takes statistics over it and other channels",
        change="Give each tensor a norm of its own.",
    ),
    Remedy(
        title="Its numbers are indices or positions",
        says=r"as (indices|positions)$|is indexed by values|indices that depend on the input|depends on the input$",
        change="Let a layer with weights stand between: what makes the indices stays whole, what is before is free.",
    ),
    Remedy(
        title="Heads share it",
        says=r"shares? it between heads|what all heads share|repeats it for each row of another",
        change="Give each head its own: keys, values or a table of as many heads as there are queries.",
    ),
    Remedy(
        title="A branch that can't go",
        says=r"^branches go with the exported graph",
        change="Take sizes from tensors, not from numbers in the code: the network is exported with a free batch size.",
    ),
    Remedy(
        title="It is tied to channels that stay",
        says=r"can't be cut$|^its block must stay rectangular$|^they are one unit's gates$",
        change="Free those first: they have a line and a reason of their own. Or let a 1x1 convolution or a linear "
        "layer stand between the two.",
    ),
    Remedy(
        title="An operator mixes its channels",
        says=r" (adds|mixes|reduces|sums|joins|picks|lays|repeats|writes|reads) |with a vector|has one output channel",
        change="Let a layer with weights (linear, or a 1x1 convolution) stand before that operator: only its output "
        "stays whole then.",
    ),
)  # fmt: skip
"""In this order: the first whose pattern is found in a reason is its kind."""


def remedy_of(reason: str) -> Remedy | None:
    """What frees a layer that is left whole for this reason; None of a reason that no kind has."""
    return next((one for one in REMEDIES if re.search(one.says, reason)), None)
