"""What runs in vLLM's worker processes: steering after each decoder layer, and the reports to the server's process."""
