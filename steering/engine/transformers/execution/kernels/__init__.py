"""Our own C++: kernels for processors that multiply halves, and what runs compiled steps. Built where they run."""
