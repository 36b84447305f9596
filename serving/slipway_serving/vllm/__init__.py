"""A version that vLLM holds, through ray.serve.llm. It has not been run where this was written: there was no GPU."""
