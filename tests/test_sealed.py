"""A file that carries its own checksum."""

from hybridlm.sealed import BLANK, is_sealed, seal


def test_every_flipped_bit_breaks_a_seal():
    blob = seal(b'{"seal":"' + BLANK.encode() + b'","x":1}payload')
    assert is_sealed(blob)
    for bit in range(len(blob) * 8):
        damaged = bytearray(blob)
        damaged[bit // 8] ^= 1 << bit % 8
        assert not is_sealed(bytes(damaged)), bit
    assert not is_sealed(b"no seal at all")
