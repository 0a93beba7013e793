"""One file per noun; a handler is a few lines, the thinking is elsewhere."""
