"""Editing the files of the AWS CLI: what is asked for changes, and nothing else."""

from __future__ import annotations

import configparser
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adr.awsfiles import edit_section, profile_of


@pytest.mark.parametrize(
    ("header", "profile"),
    [
        ("default", "default"),
        ("profile default", "default"),
        ("profile work", "work"),
        ('profile "my profile"', "my profile"),
        ("profile 'my profile'", "my profile"),
        ("work", None),
        ("profile", None),
        ("profile a b", None),
        ('profile "open', None),
        ("sso-session work", None),
    ],
)
def test_sections_are_matched_to_profiles_as_botocore_does(header, profile):
    assert profile_of(header) == profile


def test_of_two_sections_of_one_profile_the_last_is_edited_as_botocore_reads_that_one():
    text = "[default]\nregion = a\n[profile b]\nregion = b\n[profile default]\nregion = c\n"

    edited = edit_section(
        text, "default", lambda header: profile_of(header) == "default", {"region": "d"}
    )

    assert edited == text.replace("= c", "= d")


WORDS = st.text(string.ascii_lowercase, min_size=1, max_size=4)
VALUES = st.text(string.ascii_letters + "%#;=:[]/+ ", max_size=8).map(str.strip)
GAPS = st.sampled_from(["", "\n", "# note\n", "  ; note\n\n"])


@st.composite
def ini_files(draw):
    """Draw a file that configparser accepts, in one of many layouts."""
    names = draw(st.lists(st.sampled_from(["default", "a", "b", "c"]), unique=True))
    indent = draw(st.sampled_from(["", "  ", "\t"]))
    text = draw(GAPS)
    for name in names:
        text += f"{indent}[{name}]\n" + draw(GAPS)
        for key in draw(st.lists(st.sampled_from(["x", "y", "Z", "w w"]), unique=True)):
            text += f"{indent}{key}{draw(st.sampled_from(['=', ' = ', ':', ': ']))}{draw(VALUES)}\n"
            for more in draw(st.lists(WORDS, max_size=2)):
                text += draw(GAPS) + f"{indent}    {more} = 1\n"
            text += draw(GAPS)
    return text if draw(st.booleans()) else text.rstrip("\n")


def parsed(text):
    parser = configparser.RawConfigParser(default_section=None)
    parser.read_string(text)
    # Blank lines around a value are layout.
    return {
        name: {key: value.strip() for key, value in parser.items(name)}
        for name in parser.sections()
    }


@given(ini_files(), st.dictionaries(st.sampled_from("xyzv"), st.none() | VALUES.filter(bool)))
def test_an_edit_changes_what_it_should_and_nothing_else(text, values):
    expected = parsed(text)
    section = expected.setdefault("default", {})
    for key, value in values.items():
        if value is None:
            section.pop(key, None)
        else:
            section[key] = value

    edited = edit_section(text, "default", lambda header: header == "default", values)

    assert parsed(edited) == expected
    assert list(parsed(edited)) == list(expected)
    assert edited.count("note") == text.count("note")
