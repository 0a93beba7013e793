"""The rows of the mixed batch: every operation, unit and scope, conditions and schedules, each by another vector."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Row:
    """One request: what the user says, and its steering as a caller writes it."""

    prompt: str
    items: list[dict[str, Any]] = field(default_factory=list)


STEERED = (
    Row("How was the trip?", [{"vector": "sentiment", "strength": 0.6, "layers": [14]}]),
    Row(
        "What do you think of my plan?",
        [{"vector": "sycophancy", "strength": -0.5, "scope": {"tokens": "generated"}, "layers": [10, 14]}],
    ),
    Row(
        "Name three fruits.",
        [{"vector": "refusal", "unit": "relative", "strength": 0.25, "scope": {"tokens": "last"}, "layers": "all"}],
    ),
    Row(
        "Is the earth flat?",
        [
            {
                "vector": "truthfulness",
                "unit": "raw",
                "strength": 12.0,
                "layers": [18],
                "scope": {"tokens": "prompt", "start": -4},
            }
        ],
    ),
    Row(
        "Tell me about rain, and where it comes from.",
        [{"vector": "specificity", "operation": "ablate", "layers": {"from": 14, "to": 15}}],
    ),
    Row(
        "Write a note to my boss.",
        [
            {
                "vector": "formality",
                "operation": "ablate",
                "strength": 0.7,
                "scope": {"tokens": "prompt"},
                "layers": "all",
            }
        ],
    ),
    Row(
        "My neighbour is loud.",
        [
            {
                "vector": "toxicity",
                "operation": "clamp",
                "low": 2.0,
                "layers": [14, 18],
                "scope": {"tokens": "generated"},
            }
        ],
    ),
    Row("Where is Lyon?", [{"vector": "cities", "operation": "clamp", "low": 1.0, "high": 1.0, "layers": [18]}]),
    Row(
        "Describe a quiet evening in a small town by the sea.",
        [{"vector": "sentiment.probe", "operation": "rotate", "degrees": 20.0, "strength": -1.0, "layers": [14]}],
    ),
    Row(
        "Say something.",
        [{"vector": "formality.probe", "operation": "replace", "to": "toxicity", "strength": 3.0, "layers": [14]}],
    ),
    Row(
        "Give me a tip for the garden.",
        [
            {
                "vector": "refusal.probe",
                "strength": 2.0,
                "layers": [10],
                "scope": {"tokens": "generated", "start": 2, "end": 9},
                "schedule": {"kind": "linear", "to": 0.2, "tokens": 6},
            }
        ],
    ),
    Row(
        "Why is the sky blue?",
        [
            {
                "vector": "sycophancy.probe",
                "strength": 2.5,
                "layers": [18],
                "schedule": {"kind": "warmup", "tokens": 5},
                "when": {"vector": "specificity", "above": -20.0, "layer": 10, "at": "prompt"},
            }
        ],
    ),
    Row(
        "What is two and two?",
        [
            {
                "vector": "toxicity.probe",
                "strength": 0.9,
                "layers": [14],
                "when": {"vector": "sentiment", "above": 50.0, "layer": 10, "at": "prompt"},
            }
        ],
    ),
    Row(
        "Tell me a short story about a fox.",
        [
            {
                "vector": "truthfulness.probe",
                "operation": "rotate",
                "degrees": 30.0,
                "layers": [18],
                "scope": {"tokens": "generated"},
                "schedule": {"kind": "cosine", "to": 0.5, "tokens": 8},
                "when": {
                    "any": [
                        {"vector": "cities", "below": 0.0, "layer": 10, "at": "token", "until": 0.2},
                        {"not": {"vector": "formality", "above": 0.1, "score": "cosine", "layer": 14, "at": "token"}},
                    ]
                },
            }
        ],
    ),
    Row(
        "Can you help me with my homework?",
        [
            {
                "vector": "specificity.probe",
                "strength": -1.5,
                "layers": [10, 18],
                "schedule": {"kind": "exponential", "to": 0.1, "tokens": 10},
                "when": {"all": [{"vector": "refusal.probe", "above": 0.0, "score": "probe", "layer": 10}]},
            }
        ],
    ),
    Row(
        "Which film should I watch tonight?",
        [
            {"vector": "cities.probe", "operation": "ablate", "layers": [14]},
            {"vector": "sentiment", "strength": -0.7, "layers": [14]},
            {"vector": "formality", "operation": "clamp", "high": 0.0, "layers": [14, 18], "strength": 0.5},
        ],
    ),
)

PLAIN = (
    Row("How was the trip?"),
    Row("Describe a quiet evening in a small town by the sea."),
    Row("What is the capital of France?"),
    Row("Write the first line of a letter to an old friend, whom you have not seen for many years."),
)
