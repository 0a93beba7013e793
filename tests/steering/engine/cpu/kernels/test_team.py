"""What a thread of the team raises reaches the caller, and the team works afterwards. The kernels check their arguments before they share work
out, so a library of the test's own raises."""

import ctypes
import subprocess

import pytest
from torch._inductor.cpp_builder import get_cpp_compiler
from torch.utils.cpp_extension import include_paths, library_paths

from steering.engine.cpu.kernels import library

SOURCE = """
#include "team.h"
#include <stdexcept>
#include <string>
// Both threads wait for each other, so each runs its own part. Returns what the caller catches: the number of the thread that raised, 0 for
// nothing; -1: the other thread did not begin within a minute.
extern "C" int raised(int caller_raises, int other_raises) {
  struct Meeting { std::atomic<int> begun{0}; std::atomic<bool> alone{false}; bool raises[2]; } meeting;
  meeting.raises[0] = caller_raises, meeting.raises[1] = other_raises;
  try {
    steering::Team::run(2, [](const void* given, int64_t thread) {
      auto& it = *static_cast<Meeting*>(const_cast<void*>(given));
      ++it.begun;
      const auto until = std::chrono::steady_clock::now() + std::chrono::minutes(1);
      while (it.begun < 2 && !it.alone) if (std::chrono::steady_clock::now() > until) it.alone = true;
      if (it.raises[thread]) throw std::runtime_error(std::to_string(thread + 1));
    }, &meeting);
  } catch (const std::runtime_error& error) {
    return meeting.alone ? -1 : std::stoi(error.what());
  }
  return meeting.alone ? -1 : 0;
}
"""


@pytest.fixture(scope="module")
def team(kernels: None, tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """A library that has the team's threads raise."""
    target = tmp_path_factory.mktemp("team") / "team.so"
    options = [*library._options(kernels=False), "-O1", "-iquote", str(library.HERE)]
    includes = [part for path in include_paths() for part in ("-isystem", path)]
    libraries = [f"-L{path}" for path in library_paths()]
    command = [
        get_cpp_compiler(),
        *options,
        *includes,
        "-x",
        "c++",
        "-",
        "-o",
        str(target),
        *libraries,
        "-ltorch_cpu",
        "-lc10",
    ]
    subprocess.run(command, input=SOURCE, text=True, check=True)
    return ctypes.CDLL(str(target))


def test_what_another_thread_raises_reaches_the_caller_and_the_team_goes_on(team: ctypes.CDLL) -> None:
    for _ in range(20):
        assert team.raised(False, True) == 2
        assert team.raised(False, False) == 0, "nothing is left of the last failure"


def test_one_of_two_failures_is_raised_and_the_other_is_dropped(team: ctypes.CDLL) -> None:
    assert team.raised(True, False) == 1
    assert team.raised(True, True) in (1, 2)
    assert team.raised(False, False) == 0
