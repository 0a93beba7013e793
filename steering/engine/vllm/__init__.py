"""The vllm engine: vLLM's AsyncLLM behind the Engine protocol, with steering inside vLLM's workers."""
