"""How fast hybridlm is, beside other packages where they are installed: `python -m benchmarks --help`."""
