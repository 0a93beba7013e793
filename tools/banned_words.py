"""Words that do not appear in code and docs, each with what to write instead."""

from typing import Final

WORDS: Final[dict[str, str]] = {
    "beside": "next to, besides, or run_in_thread",
    "bent": "softcap",
    "borrow": "shared prefix blocks",
    "borrowed": "shared prefix blocks",
    "borrower": "shared prefix blocks",
    "borrowers": "shared prefix blocks",
    "borrows": "shared prefix blocks",
    "complaint": "stderr, warning or error",
    "complaints": "stderr, warnings or errors",
    "couple": "pair",
    "couples": "pairs",
    "door": "interface, endpoint or request reading",
    "doors": "interfaces",
    "effort": "profile",
    "fade": "rescale",
    "forgo": "disable",
    "guest": "client",
    "guests": "clients",
    "half": "bf16",
    "halves": "bf16 values, or the two parts",
    "heap": "positive and negative activations",
    "heaps": "positive and negative activations",
    "heard": "received or reported",
    "house": "project, server",
    "intake": "request reading, tokenized prompts",
    "laid": "written, arranged",
    "lend": "share",
    "lender": "owner of shared blocks",
    "lenders": "owners of shared blocks",
    "lends": "shares",
    "lent": "shared",
    "likeliest": "argmax, most likely",
    "loan": "shared prefix block",
    "loans": "shared prefix blocks",
    "pace": "prefill budget",
    "patience": "timeout",
    "permits": "admission control",
    "room": "space, capacity, package",
    "rooms": "packages",
    "said": "stated, reported",
    "sides": "contenders",
    "spinning": "OpenMP spin count",
    "stranger": "untrusted input, other clients",
    "strangers": "untrusted input, other clients",
    "subject": "model",
    "subjects": "models",
    "telling": "report",
    "told": "reported, informed",
    "visitor": "hook callback",
    "visitors": "hook callbacks",
    "weigh": "softmax, weight",
    "wish": "Intervention, OperationArgs",
    "wished": "requested",
    "wishes": "requests",
}

ONLY_IN: Final[dict[str, str]] = {
    "bent": "steering",
    "effort": "benchmarks",
    "fade": "steering/engine",
    "half": "steering/engine/transformers/execution",
    "sides": "benchmarks",
    "subject": "benchmarks",
    "subjects": "benchmarks",
    "telling": "benchmarks",
    "weigh": "steering/engine",
}
"""Words that are ordinary elsewhere, with the path where they are banned."""

IDENTIFIERS: Final[dict[str, str]] = {
    "PassingThreads": "ThreadPerTaskExecutor",
    "Words": "JsonObject, or the name of what it describes",
    "answering": "CallbackScope",
    "in_passing_thread": "run_in_thread",
    "line_up": "contenders",
    "query_blocks": "query tiling",
    "residual_ends": "embed, unembed",
    "shared_beginnings": "shared prefixes",
    "side_by_side": "length-bucketed groups",
}

PHRASES: Final[dict[str, str]] = {
    "at rest": "persisted",
    "large pages?": "huge pages",
    "on the wire": "request and response models",
    "opening adds?": "static adds",
    "pole texts?": "pair",
}

ALLOWED: Final[dict[tuple[str, str], str]] = {
    ("steering/concepts/__init__.py", "told"): "the description of a starter concept",
    ("steering/engine/transformers/execution/kernels/steer.cpp", "half"): "a constant of ATen",
    ("docs/concepts.md", "complaints"): "a topic of the pairs about formality",
}
"""(path, word) -> the reason why the word is right there."""
