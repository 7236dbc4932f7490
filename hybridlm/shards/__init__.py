"""Weights in files, tensor by tensor: one safetensors file, or shards and an index as the Hugging Face Hub has them."""

from hybridlm.shards.layout import FORMS, INDEX, MAX_BYTES, WEIGHTS, Entry, entries_of, index_of, plan_shards
from hybridlm.shards.reader import ShardReader
from hybridlm.shards.writer import ShardWriter, write_shards

__all__ = [
    "FORMS",
    "INDEX",
    "MAX_BYTES",
    "WEIGHTS",
    "Entry",
    "ShardReader",
    "ShardWriter",
    "entries_of",
    "index_of",
    "plan_shards",
    "write_shards",
]
