"""Lowering and lifting: what was composed here in the formats that others serve, and their checkpoints as specs.

    lower.py, lift.py   to and from a folder, with proof
    families/           one file a family of models: what fits, its config, its weights; used in both directions
    family.py, halves.py, weights.py, fields.py   what a family is written in
    proof.py            both models side by side

Only here is `transformers` known, and only where files are compared: what fits is found without it.
"""
