"""The command line `steer`, one module per group of commands."""
