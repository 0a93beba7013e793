"""The commands of `steer`, one file a noun."""
