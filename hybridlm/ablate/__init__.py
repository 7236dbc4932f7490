"""Studies: which part of a model does what, at what price, and how sure that is."""
