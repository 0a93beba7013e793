"""What an operator enforces: keys, their limits, and the audit log."""
