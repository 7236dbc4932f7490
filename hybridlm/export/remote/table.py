"""What stands in an exported model for the registries of mixers and MLPs."""


class Table(dict):
    """{name: class} of the parts that a model uses; hashed by identity, as a registry is."""

    __hash__ = object.__hash__
