"""Lowering and lifting: what was composed here in the formats that others serve, and their checkpoints as specs.

    command.py          `hybridlm export` and `hybridlm import`; original.py: what is read, place.py: where it goes
    targets.py          what --to takes; card.py, uses.py, words.py: the README; tokenizer.py: text to ids for others
    choice.py           which family a model goes as, and why not as the others
    lower.py, lift.py   to and from a folder, with proof
    families/           one file a family of models: what fits, its config, its weights; used in both directions
    family.py, halves.py, weights.py, fields.py   what a family is written in
    own.py, remote/, program/   our own form, our layers as one file, prefill and step as programs
    proof.py            both models side by side

Only here is `transformers` known, and only where files are compared: what fits is found without it.
"""
