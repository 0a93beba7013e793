"""The main job over HTTP: make a vector, keep a strength on the server, generate with it. Needs `make serve`."""

import sys

from steering.client import Client
from steering.schemas.generation import GenerateAnswer, TokenPiece

PAIRS = [
    {"positive": f"What a good {thing}, I am glad.", "negative": f"What a bad {thing}, I am sorry.", "topic": thing}
    for thing in ("day", "meal", "song", "book", "game", "trip", "house", "answer")
]


def main(url: str = "http://127.0.0.1:8000") -> GenerateAnswer:
    """The steered answer; it is printed as it is written."""
    with Client(url) as client:
        vector = client.extract_vector("gladness", pairs=PAIRS, description="glad against sorry")
        print(vector.id, "is recommended at layers", vector.recommended.layers)
        for warning in vector.quality.warnings if vector.quality else ():
            print("beware:", warning)
        client.put_profile("glad", [{"vector": "gladness", "strength": 0.5}])

        whole = None
        for event in client.generate_stream("My day was", steering={"profile": "glad"}, max_tokens=24, seed=1):
            if isinstance(event, TokenPiece):
                print(event.text, end="", flush=True)
            else:
                whole = event
    assert whole is not None, "a stream that ends without its last event raises"
    print()
    for one in whole.steering.applied:
        print(one.operation, one.vector, "at", one.strength, one.unit, "with dose", one.relative_dose)
    return whole


if __name__ == "__main__":
    main(*sys.argv[1:])
