"""From a pattern to a model: the pattern language, strict YAML, specs, blocks, the model, its cost."""
