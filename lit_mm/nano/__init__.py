"""The nano world: generated documents, a tokenizer and small backbones; every recipe runs offline in minutes."""
