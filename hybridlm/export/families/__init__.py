"""One file a family of models: FAMILY says which specs fit, how its config.json says them, which weights are which."""
