"""Prompts are computed in the order in which each would be done if it had come alone."""

from tests.steering.engine.loop.scheduled import World, request


def prompts_of_next_pass(world: World) -> list[int]:
    """The ids of the requests whose prompts the next pass computes, in order."""
    return [sequence.id for sequence, _ in world.turn() if sequence.generated <= 1]


def taught() -> World:
    """A scheduler that knows a rate of 1,000 prompt positions a second."""
    world = World(1000)
    for _ in range(20):
        world.scheduler.budget.observe(200, 0, 0.2)
    return world


def test_a_short_prompt_overtakes_a_long_one_that_has_just_come() -> None:
    world, long, short = taught(), request(4000, 4), request(20, 4)
    short.arrived = long.arrived + 1.0
    world.put([long, short])
    assert prompts_of_next_pass(world) == [short.id, long.id]


def test_a_long_prompt_is_not_overtaken_by_those_that_come_after_it_would_be_done() -> None:
    world, long = taught(), request(4000, 4)
    late = [request(20, 4) for _ in range(3)]
    for one in late:
        one.arrived = long.arrived + 4.0
    world.put([long, *late])
    assert prompts_of_next_pass(world)[0] == long.id


def test_before_the_rate_is_known_the_first_comes_first() -> None:
    world, long, short = World(1000), request(4000, 4), request(20, 4)
    short.arrived = long.arrived + 0.01
    world.put([long, short])
    assert prompts_of_next_pass(world)[0] == long.id
