"""The pattern language: what each rule of the grammar means, its limits, and the words of its errors."""

import subprocess
import sys
import time

import pytest

from hybridlm.compose.pattern import Block, Parallel, Pattern, Repeat, parse
from hybridlm.errors import PatternError


def flat(text: str) -> str:
    """The block names of all places, parallel ones as M+A."""
    return " ".join(
        place.name if isinstance(place, Block) else "+".join(member.name for member in place.members)
        for place in parse(text).places()
    )


def error(text, names=None) -> str:
    with pytest.raises(PatternError) as caught:
        parse(text, names)
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "layers"),
    [
        ("M", "M"),
        ("M3", "M M M"),
        ("(M3A)2", "M M M A M M M A"),
        ("[ssm]4", "ssm ssm ssm ssm"),
        ("[a-1_b]M", "a-1_b M"),
        ("M-A", "M - A"),
        ("-2", "- -"),
        ("<M|A>3", "M+A M+A M+A"),
        ("<M|A|[ssm]>", "M+A+ssm"),
        ("((M2A)2-)2", "M M A M M A - M M A M M A -"),
        ("M12", " ".join("M" * 12)),
        (" (M 3\n\tA )\r\n2 ", "M M M A M M M A"),
        ("mM", "m M"),
        ("A@shared3", "A A A"),
        ("MA@sharedMA@shared", "M A M A"),
        ("W{window: 128}2", "W W"),
    ],
)
def test_places(text, layers):
    assert flat(text) == layers
    assert parse(text).length == len(layers.split())


def test_tree():
    assert parse("(M3 A@s{window: 4})2<M|A>@p") == Pattern(
        (
            Repeat(
                items=(
                    Repeat(items=(Block(name="M"),), count=3),
                    Block(name="A", label="s", override={"window": 4}),
                ),
                count=2,
            ),
            Parallel(members=(Block(name="M"), Block(name="A")), label="p"),
        )
    )
    assert parse("M") != parse("A") != parse("A@x") != parse("A@x{a: 1}")
    assert hash(parse("A{a: 1}")) == hash(parse("A{a: 1}"))


def test_a_label_is_lower_case_and_stops_before_a_count_or_a_block():
    first, *rest = parse("A@shared3M").places()
    assert (first.name, first.label) == ("A", "shared")
    assert [place.label for place in rest] == ["shared", "shared", None]


def test_override_values_have_yaml_types():
    (place,) = parse("W{a: 1e-3, b: no, c: true, d: null, e: [1, x], f: {g: '1'}}").places()
    assert place.override == {"a": 1e-3, "b": "no", "c": True, "d": None, "e": [1, "x"], "f": {"g": "1"}}


def test_braces_and_quotes_in_an_override():
    places = parse("M{a: it's, b: '}'}A{a: it's, b: \"}\\\"}\"}").places()
    assert [place.override for place in places] == [{"a": "it's", "b": "}"}, {"a": "it's", "b": '}"}'}]


def test_names():
    assert parse("(M<A|[ssm]>-)2 W M").names == ("M", "A", "ssm", "W")
    assert parse("M[ssm]-", names=["ssm", "M"]).length == 3
    assert parse("X").names == ("X",)


# -------------------------------------------------------------------------------------------------------------- errors
def test_the_error_of_the_design():
    assert error("(M3X)2", names=["A", "M"]) == (
        "pattern: (M3X)2\n            ^ unknown block 'X'; defined here: A, M. Did you mean 'A'?"
    )


@pytest.mark.parametrize(
    ("text", "caret", "words"),
    [
        ("", 0, "empty"),
        (" \n ", 1, "empty"),
        ("()", 1, "empty"),
        ("M0", 1, "at least 1"),
        ("M000", 1, "at least 1"),
        ("M03", 1, "leading zero"),
        ("M99999", 1, "a count is at most 4,096"),
        ("(((M)9999)9999)9999", 5, "9,999 layers up to here; a pattern has at most 4,096"),
        ("M4095AA", 6, "4,097 layers"),
        ("M" + " " * 4096, 4096, "the text is longer than 4,096 bytes"),
        ("3M", 0, "a count follows"),
        ("M3 4", 3, "a count follows"),
        ("(M3A", 0, "'(' is opened here and never closed"),
        ("M(M(A)2", 1, "'(' is opened here and never closed"),
        ("M3)", 2, "')' closes nothing"),
        ("A(M]", 3, "']' cannot close the '(' that is opened at character 2"),
        ("(M>", 2, "'>' cannot close the '('"),
        ("[ssm", 0, "'[' is opened here and never closed"),
        ("[]", 1, "a name in brackets"),
        ("[1a]", 1, "a name in brackets"),
        ("[a b]", 2, "a name in brackets"),
        ("[" + "a" * 65 + "]", 0, "at most 64"),
        ("<M>", 0, "two members"),
        ("<M|A", 0, "'<' is opened here and never closed"),
        ("<M|", 3, "the pattern ends"),
        ("<M2|A>", 2, "counts and labels stay outside"),
        ("<M@x|A>", 2, "counts and labels stay outside"),
        ("<M|->", 3, "a member"),
        ("<(M)|A>", 1, "a member"),
        ("<<M|A>|M>", 1, "a member"),
        ("M@", 2, "lower-case"),
        ("M@S", 2, "lower-case"),
        ("M@3", 2, "lower-case"),
        ("M@a@b", 3, "a second label"),
        ("M{a: 1}{b: 2}", 7, "a second override"),
        ("M{a: 1", 1, "'{' is opened here and never closed"),
        ("(MA)@x", 4, "belongs to a block, not to a group"),
        ("(MA){a: 1}", 4, "belongs to a block, not to a group"),
        ("M{a: *x}", 5, "alias"),
        ("M{a: &x 1}", 5, "anchor"),
        ("M{a: !!python/name:os.system 1}", 5, "tag"),
        ("M{a: 1, a: 2}", 8, "duplicate key 'a'"),
        ("M{<<: {a: 1}}", 2, "merge key"),
        ("M{1: 2}", 2, "keys are strings"),
        ("M{a: .nan}", 5, ".nan"),
        ("W{window:128}", 2, "a space is missing after the colon"),
        ("M,A", 1, "without commas"),
        ("M*", 1, "notation: megatron"),
        ("@x", 0, "a label follows a block"),
        ("M\x00", 1, "U+0000"),
        ("\ufeffM", 0, "byte order mark"),
        ("M²", 1, "SUPERSCRIPT TWO, which is not the ASCII '2'"),
        ("М", 0, "CYRILLIC CAPITAL LETTER EM, which is not the ASCII 'M'"),
        ("ΜA", 0, "GREEK CAPITAL LETTER MU, which is not the ASCII 'M'"),
        ("Ａ", 0, "FULLWIDTH LATIN CAPITAL LETTER A, which is not the ASCII 'A'"),
        ("M−", 1, "MINUS SIGN, which is not the ASCII '-'"),
        ("M٣", 1, "ARABIC-INDIC DIGIT THREE"),
        ("M\u00a0A", 1, "NO-BREAK SPACE"),
        ("\ud800", 0, "U+D800"),
    ],
)
def test_error_points_at_its_place(text, caret, words):
    message = error(text)
    quoted, pointer = message.split("\n")
    title = quoted[: quoted.index(": ") + 2]
    if len(text) < 80:
        assert pointer.index("^") == len(title) + caret - (text.rfind("\n", 0, caret) + 1)
    assert words in message


@pytest.mark.parametrize("value", [None, 3, ["M"], {"M": None}, b"M"])
def test_not_text(value):
    assert type(value).__name__ in error(value)


# -------------------------------------------------------------------------------------------------------------- limits
@pytest.mark.parametrize(
    "text",
    [
        "(((M)9999)9999)9999",
        "((M64)64)2",
        "M4097",
        "M4096A",
        "(M2048)2A",
        "M" + "9" * 4000,
        "M" + "9" * 100_000,
        "M" * 4097,
        "(" * 17 + "M" + ")" * 17,
        "(" * 4000,
        "<" * 4000,
        "M{a: " + "[" * 4000,
        "M{a: " + "[" * 40 + "]" * 40 + "}",
        "M{" + "'," * 2000,
        "M{a: " + "9" * 3000 + "}",
        "é" * 2049,
        "M{a: [" + "1e15," * 800 + "]}",
    ],
)
def test_limits_are_checked_before_anything_is_built(text):
    start = time.perf_counter()
    error(text)
    assert time.perf_counter() - start < 0.3


def test_at_the_limits():
    assert parse("(M64)64").length == parse("M4096").length == len(parse("(M64)64").places()) == 4096
    assert parse("M" * 4096).length == 4096
    assert parse("(" * 16 + "M" + ")2" * 12 + ")" * 4).length == 4096
    assert parse("[" + "a" * 64 + "]").length == 1


def test_what_does_not_fit_as_canonical_text_is_refused():
    assert "canonical" in error("M{a: [" + "1e15," * 800 + "]}")


def test_no_torch():
    code = "import sys, hybridlm.compose.pattern, hybridlm.compose.notation; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
