"""Output of the commands: the console, tables, charts, progress bars and live views."""
