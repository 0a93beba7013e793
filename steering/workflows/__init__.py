"""What one does with an engine; each workflow knows only `steering.engine.api`."""
