"""The service string is the identity: what makes two services one, and what is no service."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appserver.identity import Service, ServiceError, service_from_words

words = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ((["a b"], None), (["a  b"], None)),
        ((["a b"], None), (["a b "], None)),
        ((["a b"], None), ([" a b"], None)),
        ((["a b"], None), (["a", "b"], None)),
        ((["a b"], None), (["a b"], "two")),
        ((["a b"], "one"), (["a b"], "two")),
        ((["a", "b c"], None), (["a", "b", "c"], None)),
        ((["A"], None), (["a"], None)),
    ],
)
def test_what_differs_in_string_form_or_instance_is_another_service(
    first: tuple[list[str], str | None], second: tuple[list[str], str | None]
) -> None:
    assert service_from_words(*first) != service_from_words(*second)


def test_the_same_words_and_instance_are_one_service() -> None:
    first, second = service_from_words(["a b"], "one"), service_from_words(["a b"], "one")
    assert first == second
    assert hash(first) == hash(second)


@settings(deadline=None)
@given(st.lists(words, min_size=2).filter(lambda found: bool(found[0].strip())))
def test_several_words_are_the_exact_vector(found: list[str]) -> None:
    service = service_from_words(found, None)
    assert service.argv() == tuple(found)
    assert Service("line", (service.text,)).argv() == tuple(found)


@pytest.mark.parametrize(
    ("line", "argv"),
    [
        ("/apps/ping_mon", ("/apps/ping_mon",)),
        ("/bin/sh -c 'exit 3'", ("/bin/sh", "-c", "exit 3")),
        ("  a   b\t", ("a", "b")),
        ('a "b c" d\\ e', ("a", "b c", "d e")),
        ("a '' b", ("a", "", "b")),
        ("a $HOME *", ("a", "$HOME", "*")),
        ("a # b", ("a", "#", "b")),
        ("a; b | c", ("a;", "b", "|", "c")),
    ],
)
def test_one_word_is_a_line_split_without_a_shell(line: str, argv: tuple[str, ...]) -> None:
    service = service_from_words([line], None)
    assert service.text == line
    assert service.argv() == argv


@pytest.mark.parametrize(
    "found", [[], [""], ["  \t"], ["", "b"], [" ", "b"], ["a\0b"], ["a", "\0"], ["\udcff"], ["a", "\udcff"]]
)
def test_what_is_no_service_is_refused(found: list[str]) -> None:
    with pytest.raises(ServiceError):
        service_from_words(found, None)


@pytest.mark.parametrize("instance", ["a\0b", "\udcff"])
def test_what_is_no_instance_is_refused(instance: str) -> None:
    with pytest.raises(ServiceError):
        service_from_words(["a"], instance)


@pytest.mark.parametrize("line", ["a 'b", 'a "b', "a \\", "''"])
def test_a_line_that_does_not_split_into_a_command_is_refused_when_it_is_split(line: str) -> None:
    service = service_from_words([line], None)
    with pytest.raises(ServiceError) as caught:
        service.argv()
    assert repr(line) in str(caught.value)


def test_a_line_is_one_word() -> None:
    with pytest.raises(ServiceError, match="one word, not 2"):
        Service("line", ("a", "b"))


def test_a_service_is_described_by_its_string_and_instance() -> None:
    assert service_from_words(["a b"], None).describe() == "'a b'"
    assert service_from_words(["a", "b c"], "two").describe() == "\"a 'b c'\" instance 'two'"
    assert len(service_from_words(["a" * 5000], None).describe()) < 300
