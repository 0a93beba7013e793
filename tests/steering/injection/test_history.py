"""What was decided is kept by pass, in memory of its own, and is found by position."""

import torch

from steering.injection.rows import SteeringHistory

VERDICTS = torch.tensor([[0, 1], [0, -1], [1, 1], [-1, 1], [1, -1]], dtype=torch.int8)
PROMPT = 3


def history() -> SteeringHistory:
    """Three prompt positions in one pass, then two of one position, each next to the positions of other requests."""
    found = SteeringHistory(PROMPT)
    for rows in (VERDICTS[:3], VERDICTS[3:4], VERDICTS[4:]):
        of_all = torch.zeros(1000, 8, dtype=torch.int8)
        of_all[5 : 5 + len(rows), :2] = rows
        found.add_verdicts(of_all[5 : 5 + len(rows), :2])
    for strength in (0.5, 0.25, 0.125):
        found.add_strengths(torch.full((32, 4), strength)[7:8])
    return found


def test_decisions_are_found_by_position() -> None:
    kept = history()
    for _ in range(2):
        assert torch.equal(kept.verdicts_at(0, 5), VERDICTS)
        assert torch.equal(kept.verdicts_at(3, 1), VERDICTS[3:4])
        expected = [[0, 0], [0, 0], [0, 0], [1, 1], [-1, 1]]
        assert kept.verdicts_before(0, 5).tolist() == expected
        assert kept.verdicts_before(2, 2).tolist() == expected[2:4]
        assert kept.strengths_at(1, 2, 3).tolist() == [0.5, 0.25, 0.125]
        assert kept.strengths_at(1, 3, 1).tolist() == [0.25]
    kept.add_verdicts(VERDICTS[:1])
    assert torch.equal(kept.verdicts_at(4, 2), torch.cat([VERDICTS[4:], VERDICTS[:1]]))


def test_the_tensors_of_a_pass_are_not_kept() -> None:
    kept = history()
    assert kept.verdicts_at(0, 5).untyped_storage().nbytes() == VERDICTS.numel()
    assert kept.strengths_at(0, 2, 3).untyped_storage().nbytes() == 3 * 4 * 4
    alone = SteeringHistory(PROMPT)
    alone.add_verdicts(torch.zeros(1000, 8, dtype=torch.int8)[2:3])
    assert alone.verdicts_at(0, 1).untyped_storage().nbytes() == 8
