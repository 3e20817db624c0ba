"""output.py: however the engine cuts its stream, the same head and tail are kept."""

from hypothesis import given
from hypothesis import strategies as st

from greengrader.output import Output


def _stream(texts: list[bytes]) -> bytes:
    return b"".join(b"\1\0\0\0" + len(text).to_bytes(4, "big") + text for text in texts)


@given(texts=st.lists(st.binary(max_size=40)), piece=st.integers(1, 50), half=st.integers(1, 60))
def test_head_and_tail(texts: list[bytes], piece: int, half: int) -> None:
    stream, whole = _stream(texts), b"".join(texts)
    output = Output(2 * half)
    for at in range(0, len(stream), piece):
        output.feed(stream[at : at + piece])
    if len(whole) <= 2 * half:
        assert bytes(output) == whole
    else:
        missing = f"\n[... {len(whole) - 2 * half:,} bytes left out ...]\n".encode()
        assert bytes(output) == whole[:half] + missing + whole[-half:]


def test_memory_is_bounded() -> None:
    output = Output(1000)
    for number in range(10_000):
        output.feed(_stream([b"%06d" % number]))
    assert bytes(output).endswith(b"009998009999")
    assert sum(len(text) for text in output._tail) < 520


def test_nothing_printed() -> None:
    assert bytes(Output(10)) == b""
