"""The mixers and MLPs of a model by their names. In an export there stands a table of those that it uses."""

from hybridlm.registry import mixers as MIXERS
from hybridlm.registry import mlps as MLPS

__all__ = ["MIXERS", "MLPS"]
