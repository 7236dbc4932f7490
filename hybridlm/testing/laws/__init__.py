"""The laws, by their number. Each is a generator of results about one Subject."""

from __future__ import annotations

from hybridlm.testing.laws.law import LAWS, Law, law

__all__ = ["LAWS", "Law", "law"]
