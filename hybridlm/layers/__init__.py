"""The parts of a stack: mixers, one file each, and what stands around them."""
