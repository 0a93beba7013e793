"""Where a server that took a free port says it listens. A port chosen beforehand could be somebody else's by then."""

import re


def announced(log: str) -> str | None:
    """The address that uvicorn tells in a log; None as long as it tells none whole."""
    found = re.search(r"running on (http://[\d.]+:\d+) ", log)
    return found and found[1]
