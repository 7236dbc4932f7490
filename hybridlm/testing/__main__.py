"""Hold mixers to the laws of state and print the table: every law, worst error beside its limit.

example:
  python -m hybridlm.testing mamba2 attention --dtype bfloat16
  python -m hybridlm.testing my_package.my_mixer:MyMixer --laws C1 C2 C5
  python -m hybridlm.testing --backend triton --device cuda --dtype bfloat16
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

import torch

from hybridlm.command_line import Parser
from hybridlm.errors import SpecError
from hybridlm.layers.mixer import Mixer
from hybridlm.registry import mixers
from hybridlm.testing import Result, check_mixer, report, violations
from hybridlm.testing.check import MAY_REFUSE, numbers

DTYPES = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns 1 if a law is broken. Of all mixers, some may have nothing that runs on a named backend."""
    options = parser().parse_args(arguments)
    found: dict[str, list[Result]] = {}
    try:
        for name in options.mixers or mixers.names():
            found[name] = check_mixer(
                part(name),
                options.backend,
                DTYPES[options.dtype],
                laws=options.laws,
                d_model=options.d_model,
                tokens=options.tokens,
                device=options.device,
            )
    except SpecError as error:
        print(f"hybridlm.testing: {error}", file=sys.stderr)
        return 2
    report(found)
    allowed = MAY_REFUSE if options.mixers else (*MAY_REFUSE, "C15")
    bad = [result for results in found.values() for result in violations(results, allowed)]
    print(f"{sum(map(len, found.values()))} cases, {len(bad)} break a law")
    return 1 if bad else 0


def part(name: str) -> str | type[Mixer]:
    """A registered name as it is, or the class that `module:Class` names; the module is imported."""
    if ":" not in name:
        return name
    module, _, attribute = name.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise SpecError(f"{name}: cannot be imported: {error}") from error


def parser() -> Parser:
    first, _, example = __doc__.partition("\n\n")
    plain = argparse.RawDescriptionHelpFormatter
    made = Parser(
        "python -m hybridlm.testing", description=first, epilog=example, formatter_class=plain, allow_abbrev=False
    )
    known = ", ".join(mixers.names())
    made.add_argument("mixers", nargs="*", help=f"registered names, or module:Class; default: all of {known}")
    made.add_argument("--dtype", choices=DTYPES, default="float32", help="of weights, inputs and compute")
    made.add_argument(
        "--backend",
        default="auto",
        help="auto, reference, triton or vendor; calls that it does not take go to reference",
    )
    laws = f"of {', '.join(numbers())}; default: all"
    made.add_argument("--laws", nargs="+", action="extend", metavar="C1", help=laws)
    made.add_argument("--d-model", type=int, default=32, help="width (default: %(default)s)")
    made.add_argument("--tokens", type=int, default=70, help="length of the scene, at least 50 (default: %(default)s)")
    made.add_argument("--device", default="cpu", help="such as cuda (default: %(default)s)")
    return made


if __name__ == "__main__":
    sys.exit(main())
