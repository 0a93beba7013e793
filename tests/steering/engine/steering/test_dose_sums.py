"""Sums reach the ledger once, and a request that is computed again has none of those from before."""

import pytest
import torch

from steering.engine.transformers.batch import Segment
from steering.engine.transformers.steering.dose import NO_BLOCK, WHOLE, DoseLedger, DoseSums, Run
from steering.engine.transformers.steering.token_sums import TokenSums
from steering.plan.types import UNSTEERED, Phase
from tests.plans import plan_for, vectors_for
from tests.steering.engine.loop.scheduled import request
from tests.steering.plan.planning import INFO


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


@pytest.mark.parametrize("lengths", [(1, 1, 1), (2, 1)])
def test_rounding_is_no_change(lengths: tuple[int, ...]) -> None:
    """Engine A8: where the guard leaves nothing of a change, its last bits depend on who else is in the batch."""
    ledgers = [DoseLedger(UNSTEERED, 1) for _ in lengths]
    runs = [Run(NO_BLOCK, Phase.GENERATED, length) for length in lengths]
    sums = DoseSums([(one, (0, 0), run) for one, run in zip(ledgers, runs, strict=True)], torch.device("cpu"))
    norms = torch.tensor([300.0, 300.0, 0.01])
    sums.add(norms * torch.tensor([1e-7, 1e-2, 1e-4]), norms, None)
    sums.collect()
    changed = [one.changed for ledger in ledgers for one in ledger.sums.values()]
    assert changed == ([0.0, 1.0, 1.0] if len(lengths) == 3 else [1.0, 1.0])


async def test_rounding_of_all_that_acts_at_a_layer_is_no_change() -> None:
    """The same where several interventions are measured together."""
    row = request(4, 1)
    items = [{"vector": "alpha", "layers": [1]}, {"vector": "beta", "operation": "ablate", "layers": [1]}]
    plan = await plan_for(items, vectors_for(INFO), INFO)
    row.plan, row.dose = plan, DoseLedger(plan, 1)
    sums = TokenSums([Segment(row, 1, 0, 3)], 3, INFO.layer_count, torch.device("cpu"))
    before = torch.full((3, INFO.d_model), 100.0, dtype=torch.float64)
    after = before * (1.0 + torch.tensor([[1e-8], [1e-3], [0.0]], dtype=torch.float64))
    sums.passes = 1
    sums.add(1, (before, after), before.norm(dim=-1).reciprocal(), None, static=True)
    sums.collect()
    assert row.dose.sums[1, WHOLE, Phase.GENERATED].changed == 1.0
