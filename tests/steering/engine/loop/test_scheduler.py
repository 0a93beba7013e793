"""Scheduler: who runs, with which blocks, and what a pass computes."""

from collections.abc import Iterator

import pytest

from steering.engine.options import EngineLimits
from steering.engine.transformers.block_pool import BLOCK
from steering.engine.transformers.request import Request
from steering.engine.transformers.scheduler import BACKGROUND_SECONDS, MOST_OVERTAKEN, WaitingQueue
from tests.steering.engine.loop.scheduled import World, request, text

EMBEDDED_POSITION = 2 * 30 * 3 * 64 * 2
"""Bytes of a position of SmolLM2-135M: keys and values, layers, heads, width, bfloat16."""
EMBEDDED_BLOCKS = (4 << 30) // (EMBEDDED_POSITION * BLOCK)


def test_one_long_answer_does_not_keep_short_ones_from_running_together() -> None:
    """10 prompt tokens and max_tokens 8,000, in a cache that could not hold that much for anybody else."""
    world = World(600)
    world.put([request(10, 8000)])
    world.turn()
    short = [request(30, 60) for _ in range(31)]
    world.put(short)
    world.turn()
    assert len(world.scheduler.running) == 32
    world.finish()
    assert world.scheduler.preemptions == 0
    assert len(world.ended) == 32


def test_sixty_four_requests_of_4000_tokens_in_4_gib_of_the_embedded_model() -> None:
    world = World(EMBEDDED_BLOCKS)
    world.put([request(4000, 128) for _ in range(64)])
    world.finish()
    assert world.most_running >= 40
    assert len(world.ended) == 64
    assert all(sequence.generated == 128 for sequence in world.ended)


def test_a_short_request_overtakes_a_long_one_that_does_not_fit_but_not_for_ever() -> None:
    world = World(40, EngineLimits(max_running=8))
    world.put([request(16 * 18, 60)])
    world.turn()
    long = request(16 * 30, 4)
    world.put([long, request(20, 4)])
    world.turn()
    assert long.overtaken == 1
    assert len(world.scheduler.running) == 2
    turns = 0
    while not long.running:
        world.put([request(20, 2), request(20, 40)])
        world.turn()
        turns += 1
        assert turns < 2000
    assert long.overtaken <= MOST_OVERTAKEN
    world.finish()


def test_keys_are_served_in_turns() -> None:
    world = World(1000, EngineLimits(max_running=4))
    many = [request(20, 5, salt="many") for _ in range(40)]
    few = [request(20, 5, salt=f"few {n}") for n in range(2)]
    world.put([*many, *few])
    world.turn()
    assert all(sequence.running for sequence in few)
    assert sum(sequence.running for sequence in many) == 2
    world.finish()


def test_texts_of_keys_are_read_in_turns_and_those_of_one_key_in_turns_between_its_calls() -> None:
    world = World(1000, EngineLimits(max_background=4))
    many = [[text(20, f"{call}", client="many") for _ in range(20)] for call in range(10)]
    few = [text(20, f"few {n}", client="few") for n in range(2)]
    world.put([*(one for call in many for one in call), *few])
    admitted = world.scheduler.admit()
    assert [one.client for one in admitted] == ["many", "few", "many", "few"]
    assert [one for one in admitted if one.client == "few"] == few
    assert [one for one in admitted if one.client == "many"] == [many[0][0], many[1][0]]
    world.finish()
    assert len(world.ended) == 202


def test_a_text_of_one_key_waits_for_few_turns_behind_thousands_of_another() -> None:
    world = World(1000)
    world.scheduler.budget.observe(2048, 0, 0.5)
    world.put([text(200, f"{number % 50}", client="many") for number in range(2000)])
    world.turn()
    world.put([few := text(200, "few", client="few")])
    for _ in range(8):
        world.turn()
    assert few in world.ended
    world.finish()


def test_passes_begin_with_texts_of_each_key_and_of_each_of_its_calls() -> None:
    world = World(1000, EngineLimits(prefill_tokens=32, idle_prefill_tokens=32))
    texts = [text(640, f"{client} {call}", client=client) for client in "ab" for call in "xy"]
    world.put(texts)
    assert {world.turn()[0][0].cache_salt for _ in range(4)} == {one.cache_salt for one in texts}
    world.finish()


def test_prompts_of_one_key_do_not_hold_up_those_of_another() -> None:
    limits = EngineLimits(prefill_tokens=64, idle_prefill_tokens=64)
    world = World(5000, limits)
    long = [request(2000, 2, salt="many") for _ in range(8)]
    world.put(long)
    world.turn()
    short = request(40, 2, salt="another")
    world.put([short])
    turns = 0
    while not short.generated:
        world.turn()
        turns += 1
    assert turns <= 3
    world.finish()


def test_live_requests_come_before_a_readout_of_1500_texts() -> None:
    world = World(400)
    world.scheduler.budget.observe(2048, 0, 0.5)
    world.put([text(50) for _ in range(1500)])
    for _ in range(3):
        world.turn()
    assert world.most_running == EngineLimits().max_background
    live = request(20, 5)
    world.put([live])
    work = world.turn()
    assert live in [sequence for sequence, _ in work]
    world.finish()


def test_background_work_is_computed_under_steady_live_traffic() -> None:
    world = World(2000, EngineLimits(prefill_tokens=64, idle_prefill_tokens=64))
    one = text(50)
    world.put([one])
    for _ in range(12):
        world.put([request(200, 1)])
        world.turn()
    assert one in world.ended


def test_live_requests_take_the_blocks_of_background_work() -> None:
    world = World(40)
    world.put([text(16 * 10 + 1, salt=f"call {n}") for n in range(3)])
    world.scheduler.admit()
    assert world.pool.available < 10
    live = request(16 * 30, 4)
    world.put([live])
    assert live in world.scheduler.admit()
    assert world.scheduler.preemptions >= 2
    world.finish()
    assert len(world.ended) == 4


@pytest.mark.parametrize(("blocks", "again"), [(60, False), (100, True)])
def test_who_is_preempted_during_admission_is_not_admitted_twice(blocks: int, again: bool) -> None:
    """Behind a starved text others are admitted, whose blocks a live request takes; a small one may get some again."""
    world = World(blocks)
    starved, *others = (text(16 * size + 1, salt=f"{size}") for size in ((10, 10), (10, 40, 2))[again])
    world.put([starved, *others])
    assert world.scheduler.admit() == [starved, *others]
    for one in (starved, *others):
        world.scheduler.preempt(one)
    starved.overtaken = MOST_OVERTAKEN
    live = request(16 * (60 if again else 45), 4)
    world.put([live])
    admitted = world.scheduler.admit()
    assert set(admitted) == set(world.scheduler.running.values())
    assert len(admitted) == len(set(admitted))
    assert max(one.preemptions for one in others) == 2
    assert (others[-1] in admitted) == again
    world.finish()


def test_the_youngest_gives_way_when_blocks_run_out_and_is_computed_again() -> None:
    world = World(12, EngineLimits(max_running=4))
    rows = [request(20, 120) for _ in range(3)]
    world.put(rows)
    first_to_go = None
    while world.scheduler.busy:
        world.turn()
        if first_to_go is None:
            first_to_go = next((row for row in rows if row.preemptions), None)
    assert first_to_go is rows[2]
    assert rows[0].preemptions == 0
    assert [row.generated for row in rows] == [120] * 3
    assert world.pool.used == 0


def test_a_preempted_sequence_waits_until_it_can_run_for_a_while() -> None:
    """Else it would be computed again, and preempted again, every few tokens."""
    world = World(24, EngineLimits(max_running=4))
    rows = [request(100, 150) for _ in range(3)]
    world.put(rows)
    world.finish()
    assert sum(row.preemptions for row in rows) <= 6


@pytest.mark.parametrize("waiting", [1, 3])
def test_every_stream_has_a_token_in_every_pass_and_prompts_have_their_budget(waiting: int) -> None:
    limits = EngineLimits(prefill_tokens=48, idle_prefill_tokens=100)
    world = World(4000, limits)
    streams = [request(10, 200) for _ in range(5)]
    world.put(streams)
    world.turn()
    world.put([request(1000, 2) for _ in range(waiting)])
    for _ in range(8):
        work = {sequence.id: amount for sequence, amount in world.turn()}
        assert all(work[stream.id] == 1 for stream in streams)
        assert sum(work.values()) - len(streams) == limits.prefill_tokens


def test_texts_to_be_read_take_no_more_of_a_pass_than_background_work_may() -> None:
    """While a stream runs: alone, and as much as a live prompt leaves of it."""
    world = World(4000)
    world.put([request(10, 200)])
    world.turn()
    world.scheduler.budget.observe(0, 1, 0.02)
    world.scheduler.budget.observe(1000, 0, 1.0)
    world.put([text(1000)])
    assert sum(amount for one, amount in world.turn() if one.capture) == int(1000 * BACKGROUND_SECONDS)
    world.put([request(100, 2)])
    work = {bool(one.capture): amount for one, amount in world.turn() if amount > 1}
    assert work == {False: 100, True: int(1000 * BACKGROUND_SECONDS) - 100}
    world.finish()


def test_a_text_whose_attending_token_is_looked_for_counts_twice_in_the_pass_that_looks_for_it() -> None:
    world = World(4000, EngineLimits(idle_prefill_tokens=250))
    world.scheduler.budget.observe(1000, 0, 0.001)
    texts = [text(100, salt=str(n)) for n in range(3)]
    for one in texts:
        assert one.capture is not None
        one.capture.phrase = (0, 1)
    world.put(texts)
    world.scheduler.admit()
    assert [amount for _, amount in world.scheduler.schedule()] == [100, 50]
    for one in texts:
        assert one.capture is not None
        one.capture.attending = (5,)
    assert [amount for _, amount in world.scheduler.schedule()] == [100, 100, 50]


@pytest.mark.parametrize("blocks", [30, 300])
def test_what_was_closed_leaves_nothing_behind(blocks: int) -> None:
    world = World(blocks)
    rows = [request(60, 50) for _ in range(12)]
    world.put(rows)
    world.turn()
    for row in rows:
        row.stream.closed = True
    assert set(world.scheduler.drop_closed()) == set(rows)
    assert not world.scheduler.busy
    assert world.pool.used == 0


def test_who_waits_for_blocks_takes_none_that_the_pass_is_still_to_write() -> None:
    """In every fourth pass background work comes first, with a smaller budget than a live request of the same prompt."""
    world = World(4000)
    world.put([request(10, 200)])
    for _ in range(3):
        world.turn()
    world.scheduler.budget.observe(1000, 0, 1.0)
    background, live = request(400, 2, priority=1), request(400, 2)
    live.ids = list(background.ids)
    world.put([background, live])
    assert [one.id for one, _ in world.turn()][1:] == [background.id]
    assert live.cached == 0
    assert [one.id for one, _ in world.turn()][1:] == [live.id]
    assert live.cached == int(1000 * BACKGROUND_SECONDS) // BLOCK * BLOCK
    world.finish()


def test_a_text_whose_logits_do_not_fit_takes_no_blocks_that_the_pass_is_still_to_write() -> None:
    world = World(400, logit_positions=8)
    one, other = (text(2 * BLOCK + 8, logits_from=2 * BLOCK) for _ in range(2))
    other.ids[: 2 * BLOCK] = one.ids[: 2 * BLOCK]
    world.put([one, other])
    assert [sequence.id for sequence, _ in world.turn()] == [one.id]
    assert other.cached == 0
    assert world.turn() == [(other, 8)]


def test_background_work_that_was_preempted_ends_under_steady_live_load() -> None:
    """Engine S7: live requests take whatever becomes free, and a text that was preempted waits for more than ever does."""
    world = World(40, EngineLimits(prefill_tokens=32, idle_prefill_tokens=32))
    read = text(16 * 30)
    world.put([read])
    world.turn()
    live = 0
    while not world.ended or read not in world.ended:
        while len(world.scheduler.live) + world.scheduler.running_of(background=False) < 8:
            world.put([request(20, 40, salt=str(live))])
            live += 1
        assert world.turn()
        assert live < 500, "the text waits for ever"
    assert read.preemptions > 0
    world.finish()


class CountingQueue(WaitingQueue):
    """Counts the requests that admission looks at."""

    def __init__(self) -> None:
        super().__init__()
        self.looked_at = 0

    def in_turns(self) -> Iterator[Request]:
        for one in super().in_turns():
            self.looked_at += 1
            yield one


def test_texts_of_jobs_that_have_their_rows_are_not_looked_at_one_by_one() -> None:
    world, queue = World(1000), CountingQueue()
    world.scheduler.background = queue
    world.put([text(20, priority=1) for _ in range(5000)])
    world.turn()
    queue.looked_at = 0
    for _ in range(10):
        world.put([request(20, 2)])
        world.turn()
    assert queue.looked_at < 10 * 2 * EngineLimits().max_background
    awaited = text(20, "call")
    world.put([awaited])
    assert awaited in world.scheduler.admit(), "a row is reserved for it"


def test_it_is_known_how_many_requests_of_a_client_wait() -> None:
    world = World(1000, EngineLimits(max_background=4))
    texts = {client: [text(20, f"of {client}", client=client) for _ in range(8)] for client in "ab"}
    for of_client in texts.values():
        world.put(of_client)
    of_a, of_b = texts["a"][0], texts["b"][0]
    assert world.scheduler.waiting_of(of_a) == 8
    world.scheduler.admit()
    assert [world.scheduler.waiting_of(one) for one in (of_a, of_b)] == [6, 6]
    world.scheduler.preempt(of_a)
    assert world.scheduler.waiting_of(of_a) == 7
    texts["b"][7].stream.closed = True
    world.scheduler.drop_closed()
    assert world.scheduler.waiting_of(of_b) == 5
    world.finish()
    assert [world.scheduler.waiting_of(one) for one in (of_a, of_b)] == [0, 0]
    assert world.scheduler.background.jobs == 0


@pytest.mark.parametrize("texts", [7, 8])
def test_live_requests_do_not_wait_for_the_row_of_a_starved_request(texts: int) -> None:
    """It may have the row that is reserved for texts that somebody waits for; where that is taken, it gets the next one."""
    world = World(1000, EngineLimits(max_background=8))
    starved, awaited = request(20, 40, salt="job", priority=1), [text(40, f"{number}") for number in range(texts)]
    world.put([starved, *awaited[:7]])
    assert starved in world.scheduler.admit()
    world.scheduler.preempt(starved)
    world.put(awaited[7:])
    world.scheduler.admit()
    assert world.scheduler.running_of(background=True) == texts
    starved.overtaken = MOST_OVERTAKEN
    live = request(20, 4)
    world.put([live])
    assert live in world.scheduler.admit()
    assert starved.running == (texts == 7)
    if texts == 8:
        world.put([text(40, "another")])
        world.scheduler.release(awaited[0])
        assert world.scheduler.admit() == [starved]
    world.finish()


def test_background_work_is_not_preempted_where_its_blocks_would_not_suffice() -> None:
    """Blocks that two requests share become free once."""
    world = World(34)
    world.scheduler.budget.observe(2048, 0, 0.5)
    running = request(16 * 9 + 1, 8, salt="live")
    one, other = (request(16 * 10 + 1, 8, priority=1) for _ in range(2))
    other.ids = list(one.ids)
    world.put([running, one])
    world.turn()
    world.put([other])
    world.turn()
    assert other.shared == 10
    large = request(16 * 29 + 1, 8, salt="another")
    world.put([large])
    assert world.scheduler.admit() == []
    assert world.scheduler.preemptions == 0
    world.scheduler.release(running)
    assert world.scheduler.admit() == [large], "now it fits in their place"
    assert world.scheduler.preemptions == 2
    world.finish()
