"""Sums reach the ledger once, and a request that is computed again has none of those from before."""

import torch

from steering.engine.transformers.steering.dose import NO_BLOCK, DoseLedger, DoseSums, Run
from steering.plan.types import UNSTEERED, Phase


def test_sums_are_moved_once_however_often_they_are_collected() -> None:
    """A collection that failed half way is repeated."""
    ledger = DoseLedger(UNSTEERED, 1)
    sums = DoseSums([(ledger, (0, 0), Run(NO_BLOCK, Phase.GENERATED, 2))], torch.device("cpu"))
    sums.add(torch.tensor([1.0, 0.0]), torch.tensor([2.0, 2.0]), None)
    for _ in range(2):
        sums.collect()
        (found,) = ledger.sums.values()
        assert (found.dose, found.tokens, found.changed) == (0.5, 2.0, 1.0)


def test_a_request_that_is_computed_again_has_lost_nothing() -> None:
    ledger = DoseLedger(UNSTEERED, 1)
    ledger.note((0, 0), Run(NO_BLOCK, Phase.GENERATED, 1), 1.0, 1.0, 1.0)
    ledger.incomplete = True
    assert ledger.report().incomplete
    ledger.reset()
    assert (ledger.sums, ledger.report().incomplete) == ({}, False)
