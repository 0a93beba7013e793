"""A strength that depends on the token: how much of the mean difference each text lacks, read by a learned probe."""

from typing import ClassVar

import torch

from steering.extraction.base import Groups, MeanDifference, Negatives, Positives
from steering.maps import LowRankMap
from steering.vectors import LayerDirection

RIDGE = 0.1
"""Penalty of the regression, as a share of the mean squared length of its rows."""


class Clas(MeanDifference):
    """r' = r + s (c . r + b) kappa d, with c and b learned for a given direction: the form of CLAS (arXiv 2604.24693).

    CLAS learns them by gradient through the model. Here they are fitted in closed form to activations: by ridge regression,
    c . x + b is how far x lies from the positive pole along d, in natural scales: (x+ - x-) . d / kappa for the negative text of
    a pair, (m+ - x-) . d / kappa for one without, and 0 for positives. So strength 1 moves a text as far as its pair says.
    """

    name: ClassVar[str] = "clas"
    min_examples: ClassVar[int] = 4

    @staticmethod
    def fit_map(
        positive: Positives, negative: Negatives, paired: bool, found: LayerDirection, groups: Groups
    ) -> tuple[LowRankMap, float]:
        """See the class. The map is of rank 1 as it is, so the share kept is 1."""
        from sklearn.linear_model import Ridge  # noqa: PLC0415 - takes a second to import

        upper, lower, direction = positive.double(), negative.double(), found.direction.double()
        poles = upper if paired else upper.mean(0)
        lacking = (poles - lower) @ direction / found.scale
        rows, wanted = torch.cat([upper, lower]), torch.cat([torch.zeros(len(upper), dtype=torch.float64), lacking])
        penalty = RIDGE * float((rows - rows.mean(0)).square().sum(1).mean())
        model = Ridge(penalty).fit(rows.numpy(), wanted.numpy())
        read, bias = torch.from_numpy(model.coef_)[None], torch.tensor([model.intercept_])
        return LowRankMap.of(read, found.scale * found.direction[None], bias), 1.0
