"""Makes the requests of a first user: the playground with its scripts, a vector, a steered answer. Run by `tools.image`."""

import os
import re

import httpx2

from steering.client import Client

URL = "http://127.0.0.1:8000"


def check_playground() -> str:
    """Loads `/` and every script and style sheet that it names. Raises when one is missing."""
    page = httpx2.get(URL).raise_for_status().text
    names = re.findall(r'(?:src|href)="\.?(/[^"]+\.(?:js|css))"', page)
    if not names:
        raise SystemExit("the page at / names no script: the playground is not in the image")
    sizes = [len(httpx2.get(URL + name).raise_for_status().content) for name in names]
    return f"/ serves the playground with {len(names)} files of {sum(sizes) // 1000} kB"


def check_steering(key: str) -> str:
    """Extracts a vector and generates with it. Raises when the answer was not steered."""
    with Client(URL, api_key=key) as client:
        vector = client.extract_vector("image", concept="sentiment")
        answer = client.generate(
            messages=[{"role": "user", "content": "How is your new apartment?"}],
            steering=[{"vector": vector.id, "strength": 1.0}],
            max_tokens=12,
            temperature=0.0,
        )
    if not answer.steering.relative_dose_total:
        raise SystemExit("the answer was not steered")
    return (
        f"steered by {vector.id}, relative dose {answer.steering.relative_dose_total:.3f}: {answer.choices[0].text!r}"
    )


if __name__ == "__main__":
    print(check_playground())
    print(check_steering(os.environ["STEERING_API_KEY"]))
