"""C++ operations of compiled passes: built on the machine that runs them, loaded once per process."""
