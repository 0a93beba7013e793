"""The service: speaks HTTP and knows nothing of tensors."""
