"""Request and response models of reading routes."""
