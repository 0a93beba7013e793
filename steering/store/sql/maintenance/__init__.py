"""What an operator does with a whole database: copying, backing up, restoring, pruning. Synchronous."""
