"""GGUF: the language model for llama.cpp, and a runner that hands it the image features as embeddings."""
