"""Numbers of the engine are limits of an instruction set or a layout, bounds in which something is measured, or promises to those who wait. Each
one is listed here with its reason, so that a number tuned on one machine does not come in unnoticed."""

import ast
import re
from pathlib import Path

from app.core import process_settings
from steering import engine
from steering.engine.cpu import kernels

CPU = Path(kernels.__file__).parents[1]
ENGINE = Path(engine.__file__).parent
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
            "LAYOUTS",
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
OF_MODULES = {
    "grammars": {
        "KEPT": "bounds the memory of compiled grammars",
        "FIRST_SECONDS, TOKEN_SECONDS": "how long the others wait for one answer's masks, a promise in time",
        "COMPILE_SECONDS": "the longest wait of a request, far above what the bounds of a grammar allow",
        "JSON_OPTIONS": "how much white space an answer may have",
        "WORD": "the bits of an int32, in which masks are packed",
    },
    "norms": {"PROMPTS, PROMPTS_PER_CAPTURE": "the sample of a mean, and the memory of its residuals"},
    "prompts": {
        "MAX_TEXT_TOKENS": "one piece of work, which others wait for; what a fit reads is the same on every machine",
        "MAX_NAMED": "the length of a warning",
        "MAX_INLINE_CHARACTERS": "about 1 ms of the event loop; in a thread the result is the same",
    },
    "transformers.attention": {
        "UNEVEN, UNEVEN_DECODE": "how much padding costs less than one more group of segments",
        "TILE": "half of a long prompt's work is left out, and a tile's scores stay in a second-level cache",
    },
    "transformers.block_pool": {"NULL_BLOCK": "the first block, which pads tables"},
    "transformers.decode_graphs": {
        "WORTH": "passes that together take longer than a capture",
        "MOST_GRAPHS, MOST_SHAPES, MOST_BYTES": "bounds of memory",
        "MOST_DOUBLED, FEW_BLOCKS": "how sizes are rounded, so that there are few graphs",
        "EXACT, ROUNDED": "rounding of float32 and of bfloat16, in nats",
    },
    "transformers.engine": {
        "LOGIT_BYTES, UNEMBEDDED_AT_ONCE": "bounds of memory",
        "FED": "texts in the queue while those that a pass has ended reach their caller",
    },
    "transformers.factory": {
        "MAX_COMPILED_PARAMETERS": "memory: a graph holds weights of its own; STEERING_COMPILED overrides it",
        "COVERED": "share of weights by which a format of the kernels is refused, a property of the model",
        "PROMPTS, PIECE, WINDOW, TOKENS, LARGE_TOKENS, LARGE_PARAMETERS, TOP": "the work of the self-test",
        "EXACT, ROUNDED": "rounding of float32 and of bfloat16, in nats",
    },
    "transformers.loop": {
        "IDLE_SECONDS": "many times what making a pool of threads again takes",
        "MANY, INTERVAL_SECONDS": "how late a token may be sent, which people do not see",
        "MAX_WAITING, MOST_FAILED": "bounds of a queue and of failures",
        "SHARE, SLICE_SECONDS, PATIENT_TURN": "shares of time, measured while it runs; promises to those who wait",
    },
    "transformers.paged_cache": {"STEP_BYTES": "about 1 ms of writing, which a request that arrives waits for"},
    "transformers.runner": {
        "CPU_SHARE, CPU_MOST, CUDA_SHARE": "shares of the memory that is free; STEERING_CACHE_MEGABYTES overrides them"
    },
    "transformers.sampling": {
        "TEMPERATURES, MOST_CANDIDATES, ENOUGH": "the range and the rounding of float32",
        "WIDTHS": "distances that are searched, after which all tokens are taken: they change no result",
        "RANKED": "tokens that are offered before a mask, which changes no result",
        "NONE": "no token",
    },
    "transformers.scheduler": {
        "WINDOW": "how long a reader needs to ask again",
        "BACKGROUND_TURN, LOOKAHEAD, MOST_OVERTAKEN, RESERVED, RESUME_BLOCKS": "turns and shares: who waits for whom",
        "LIVE_SECONDS, BACKGROUND_SECONDS, IDLE_SECONDS, IDLE_BACKGROUND_SECONDS": (
            "promises in time; the positions of a pass follow from the measured rate"
        ),
        "LEAST, FIRST, MEMORY, SMOOTHING": "the first pass, and how fast the measured rate follows",
        "CALL_COST, CALL_PRIOR": "what is assumed until the cost of a call is measured, and how much that counts",
    },
    "transformers.training": {
        "MAX_BATCH_TOKENS": "batches of a fit and their padding, the same on every machine",
        "BETA, LIKELIHOOD_WEIGHT, BETAS": "the published method",
    },
}
IN_C = re.compile(r"^\s*(?:static )?constexpr (?:int|int64_t|uint32_t|float|double) ([^;]*);", re.MULTILINE)
NAME = re.compile(r"(?:^|, )([A-Z][A-Z0-9_]+)(?:\[\])? =")


def names_in_c(text: str) -> set[str]:
    return {name for statement in IN_C.findall(text) for name in NAME.findall(statement)}


def numbers_in_python(text: str) -> set[str]:
    """Names that a module assigns, whose values have a number in them."""
    found = set()
    for node in ast.parse(text).body:
        if isinstance(node, ast.Assign):
            targets, value = node.targets, node.value
        elif isinstance(node, ast.AnnAssign) and node.value is not None:
            targets, value = [node.target], node.value
        else:
            continue
        if any(isinstance(part, ast.Constant) and isinstance(part.value, int | float) for part in ast.walk(value)):
            found |= {part.id for target in targets for part in ast.walk(target) if isinstance(part, ast.Name)}
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


def test_every_number_of_the_other_modules_has_a_reason() -> None:
    """vllm: its constants bound messages and memory, and are those of its interface."""
    paths = [path for path in ENGINE.rglob("*.py") if not {"cpu", "vllm"} & set(path.relative_to(ENGINE).parts)]
    modules = {".".join(path.relative_to(ENGINE).with_suffix("").parts): path for path in paths}
    found = {(module, name) for module, path in modules.items() for name in numbers_in_python(path.read_text())}
    listed = [(module, name) for module, rows in OF_MODULES.items() for names in rows for name in names.split(", ")]
    assert found - set(listed) == set()
    assert set(listed) - found == set(), "listed, and not there"
    assert len(listed) == len(set(listed))
    assert all(reason for rows in OF_MODULES.values() for reason in rows.values())
