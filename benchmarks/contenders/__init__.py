"""What is measured of ours and of plain transformers, each in a process of its own."""
