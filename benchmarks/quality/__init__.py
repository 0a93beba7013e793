"""Does steering move text, how far, and at what cost? Tables of the embedded model; apart from everything that is timed."""
