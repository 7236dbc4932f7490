"""Pure functions on tensors. Each op has a plain PyTorch reference, and faster backends behind the same signature."""
