"""Keys: results of any name have one, and every kind of object a place of its own."""

from __future__ import annotations

import hashlib
import os

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from adr import keys
from adr.batch import new_batch_id

#: The longest there is.
BATCH = new_batch_id("/data/" + "x" * 80)
ATTEMPT = "0123456789abcdef"

#: What Linux allows as a name: bytes without NUL and slash, up to 255 of them.
segments = st.binary(min_size=1, max_size=255).map(
    lambda raw: raw.replace(b"/", b"|").replace(b"\0", b"0")
)
names = (
    st.lists(segments, min_size=1, max_size=20)
    .map(b"/".join)
    .filter(lambda raw: not {b".", b".."} & set(raw.split(b"/")))
)
#: Names of the bytes that quoting itself is made of, so that they come close to each other.
tricky = st.text(".%-/25aEF", min_size=1, max_size=6).map(str.encode)


def key_of(raw: bytes) -> str:
    return keys.result_key(BATCH, 1, ATTEMPT, os.fsdecode(raw))


class TestResultKeys:
    @given(names)
    @example(b"x" * 255)
    @example(b"\xff" * 255)
    @example(b"/".join([b"x" * 200] * 20))
    def test_any_name_fits(self, raw: bytes) -> None:
        key = key_of(raw)

        assert key.startswith(keys.results_prefix(BATCH, 1, ATTEMPT))
        assert len(key.encode()) <= 1024
        assert all(0 < len(segment) <= 255 for segment in key.split("/"))
        assert not {".", ".."} & set(key.split("/"))
        assert key.isascii()
        assert key.isprintable()

    @given(st.lists(tricky | names, min_size=2, max_size=8, unique=True))
    @example([b"%", b"%25", b"%2525"])
    @example([b".", b"%2E", b"..", b"%2E%2E"])
    @example([b"x" * 300, b"x" * 301, b"/".join([b"x" * 100] * 9)])
    def test_no_two_names_share_a_key(self, raw: list[bytes]) -> None:
        assert len({key_of(each) for each in raw}) == len(raw)

    def test_a_name_made_to_read_like_a_digest_has_a_key_of_its_own(self) -> None:
        # given long names, and short ones of which a quoted control character completes a digest
        long = [b"x" * 300 + str(n).encode() for n in range(300)]
        digests = [hashlib.sha256(each).hexdigest() for each in long]
        short = [bytes.fromhex(each[:2]) + each[2:].encode() for each in digests if each[0] in "01"]

        assert short
        assert not {key_of(each) for each in long} & {key_of(each) for each in short}

    @given(names)
    def test_the_same_name_has_the_same_key(self, raw: bytes) -> None:
        assert key_of(raw) == key_of(raw)

    @pytest.mark.parametrize(
        "name", ["result.csv", "deep/er/r.nc", "a b-c_d+e=f@g, (h)'!.txt", ".hidden", "a..b", "..."]
    )
    def test_an_ordinary_name_is_legible(self, name: str) -> None:
        assert keys.result_key("b", 7, "a1", name) == f"b/a1-000007/{name}"

    @pytest.mark.parametrize(
        ("name", "text"),
        [
            ("100%", "100%25"),
            ("../../x", "%2E%2E/%2E%2E/x"),
            ("a/./b", "a/%2E/b"),
            ("é", "%C3%A9"),
            ("\udcff", "%FF"),
            ("a\nb", "a%0Ab"),
            ("a\\b", "a%5Cb"),
        ],
    )
    def test_what_is_not_plain_is_quoted(self, name: str, text: str) -> None:
        assert keys.result_key("b", 1, "a", name) == f"b/a-000001/{text}"

    def test_attempts_do_not_share_keys(self) -> None:
        places = [("b", 1, "a"), ("b", 1, "c"), ("b", 2, "a"), ("d", 1, "a")]

        assert len({keys.result_key(*place, "x") for place in places}) == 4


def test_a_millionth_job_has_its_place() -> None:
    assert keys.card_key("b", 1_234_567) == "_cards/b/1234567"


def test_no_kind_of_object_lies_where_another_does() -> None:
    made = [
        keys.bundle_key("b"),
        keys.manifest_key("b"),
        keys.seal_key("b"),
        keys.sent_key("b"),
        keys.journal_key("b", "w", 0),
        keys.card_key("b", 1),
        keys.log_key("b", 1, "a"),
        keys.heartbeat_key("w"),
        keys.result_key("b", 1, "a", "x"),
    ]

    assert len(set(made)) == len(made)
    assert [key for key in made if key.startswith(keys.results_prefix("b", 1, "a"))] == made[-1:]
    assert keys.journal_key("b", "w", 0).startswith(keys.journal_prefix("b"))
    assert not keys.journal_key("b2", "w", 0).startswith(keys.journal_prefix("b"))
    assert keys.heartbeat_key("w").startswith(keys.LIVE)


def test_a_batch_is_sent_whole_once_it_and_all_its_retries_are() -> None:
    # given a batch with two retries, one that was queued job by job, and one that was cut off
    queued = [keys.manifest_key(name) for name in ("a", "a~1", "a~2", "b+1", "b+2", "c")]
    sealed = [keys.seal_key(name) for name in ("a", "a~1", "b")]
    # then
    assert keys.unsealed_names([*queued, *sealed, keys.TOMBSTONE]) == {"a~2", "c"}
    # when those are sent as well
    sealed += [keys.seal_key(name) for name in (keys.retry_name("a", 2), "c")]
    assert keys.unsealed_names([*queued, *sealed]) == set()
    # and names tell batch and retry
    assert [keys.batch_of(name) for name in ("a", "a~2", "b+1")] == ["a", "a", "b"]
    assert [keys.retry_number(name) for name in ("a", "a~2", "b+1")] == [0, 2, 0]
