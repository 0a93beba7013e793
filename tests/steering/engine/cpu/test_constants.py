"""Numbers of the compiled engine are limits of an instruction set or a layout, or bounds in which something is measured. Each one is listed
here with its reason, so that a number tuned on one machine does not come in unnoticed."""

import ast
import re
from pathlib import Path

from app.core import process_settings
from steering.engine.cpu import kernels

CPU = Path(kernels.__file__).parents[1]
REASONS = {
    "the registers of an instruction set, and layouts made for them": (
        *(
            "LANES",
            "BF16_LANES",
            "MAX_ROWS",
            "VECTORS",
            "PANEL",
            "TILE_ROWS",
            "TILE_COLUMNS",
            "STEP",
            *(
                "OCTETS",
                "OCTET",
                "MORE",
                "HEADER",
                "BYTES",
                "INPUTS",
                "WIDTH",
                "SCALES",
                "ALIGNMENT",
                "MULTIPLIED_ROWS",
            ),
            "STEP_INPUTS",
            "PAIR_STRIDE",
        ),
        *("MOST_TILE_ROWS", "MOST_ROWS", "KEY_VECTORS", "ROW_BLOCK", "PART_ROWS", "BLOCK", "HEAD_WIDTH_STEP"),
        *("TOGETHER", "SUMS", "RIGHT"),
    ),
    "positions between two rescalings of attention: part of the order of sums, so the same on every machine": (
        *("STEP_BLOCKS", "POSITIONS"),
    ),
    "columns and codes of tables, arguments of calls, fields of words": (
        *(
            "DECIDE",
            "EDIT",
            "READ",
            "KIND",
            "READ_ROW",
            "WEIGHT",
            "MANDATORY",
            "CODES",
            "BIAS",
            "RELATIVE",
            "SCALE",
            "NUMBERS",
        ),
        *("LEFT_TO_PYTHON", "NOTHING", "STRIDE"),
        *("RELU", "ROTATE", "PREFETCH", "SCORED", "END", "ROW_DIMENSIONS", "OPTIONS", "OPEN", "ACTIVE", "EPOCH"),
        *("M_TRIM_THRESHOLD", "M_MMAP_MAX", "M_ARENA_MAX", "LARGEST"),
    ),
    "mathematics: precision of random numbers, logarithms, the smallest lengths, distances that are searched": (
        *("NOISE_BITS", "CERTAIN", "LN2_ABOVE", "NOISE_MARGIN", "LOG2_E", "TINY", "PARALLEL", "WIDTHS", "ENOUGH"),
    ),
    "pieces of work large enough that sharing them out costs little on any processor (a thread begins in a microsecond or more)": (
        *("GRAIN", "SMALL_TILES", "QUERY_ROWS", "WRITE_TOKENS"),
    ),
    "what stays in a first-level cache of 32 KB, and bounds memory while weights are packed": (
        "WIDENED",
        "PANELS_AT_ONCE",
    ),
    "three cache lines, whose page offsets differ on every x86 processor": ("GAP",),
    "bounds of a spin that each thread finds for itself, and of the size of a table": (
        "LEAST_SPIN",
        "MOST_SPIN",
        "MAX_THREADS",
    ),
    "how and how long a choice is measured, and what it must gain": (
        *("FEW_ROWS", "TIMED_ROWS", "THREAD_ROWS", "BLOCK_ROWS", "REPEATS", "MOST_BYTES", "OTHER_ORDER", "TEAM_LIMIT"),
        *("MOST_REPEATS", "ALIKE", "WITHIN"),
        *(
            "LOW_UTILIZATION",
            "SMOOTHING",
            "TRIAL_PASSES",
            "GAIN",
            "LOSS",
            "SHORTEST_WAIT",
            "LONGEST_WAIT",
            "COST",
            "EXPIRES",
        ),
        *("FORGET", "SIMILAR_ROWS"),
    ),
    "how often and when a worker process is looked after, and its memory": (
        "START_DELAY",
        "POLL",
        "MOST_COMPILERS",
    ),
    "work of a graph and of an eager pass over the same layers, which depends on the kernels and not on the processor": (
        *("GRAPH_COST", "PACKED_GRAPH_COST"),
    ),
    "OpenMP reads it before anything can be measured; it acts only where the team was not chosen": ("SPIN_COUNT",),
}
IN_C = re.compile(r"^\s*(?:static )?constexpr (?:int|int64_t|uint32_t|float|double) ([^;]*);", re.MULTILINE)
NAME = re.compile(r"(?:^|, )([A-Z][A-Z0-9_]+)(?:\[\])? =")


def names_in_c(text: str) -> set[str]:
    return {name for statement in IN_C.findall(text) for name in NAME.findall(statement)}


def numbers_in_python(text: str) -> set[str]:
    """Names that a module assigns, whose values have a number in them."""
    found = set()
    for node in ast.parse(text).body:
        if isinstance(node, ast.Assign) and any(
            isinstance(part, ast.Constant) and isinstance(part.value, int | float) for part in ast.walk(node.value)
        ):
            found |= {part.id for target in node.targets for part in ast.walk(target) if isinstance(part, ast.Name)}
    return {name for name in found if name.isupper() and not name.startswith("_")}


def test_every_number_has_a_reason() -> None:
    c = {name for path in (CPU / "kernels").glob("*.[ch]*") for name in names_in_c(path.read_text())}
    python = {
        name
        for path in (*CPU.rglob("*.py"), Path(process_settings.__file__))
        for name in numbers_in_python(path.read_text())
    }
    listed = [name for names in REASONS.values() for name in names]
    assert {"SPIN_COUNT", *c, *python} - set(listed) == set()
    assert set(listed) - {"SPIN_COUNT", *c, *python} == set(), "listed, and not there"
    assert len(listed) == len(set(listed))
