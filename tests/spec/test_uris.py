"""Tests of URIs: passwords are hidden wherever they stand, and a query stays at the end."""

import pytest

from raycap.spec.uris import has_password, join_uri, split_uri, without_password


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("s3://KEY:SECRET@bucket/raycap", "s3://***@bucket/raycap"),
        ("s3://KEY:sec/r+et=@bucket/raycap?region=us-east-1", "s3://***@bucket/raycap?region=us-east-1"),
        ("s3://KEY@bucket/raycap", "s3://***@bucket/raycap"),
        ("http://ada:p@ss@host:5000/x", "http://***@host:5000/x"),
        ("https://token@host", "https://***@host"),
        ("postgresql+psycopg2://ada:pw@host:5432/db", "postgresql+psycopg2://***@host:5432/db"),
        ("mysql://host/db?user=ada&password=pw&ssl=1", "mysql://host/db?user=ada&password=***&ssl=1"),
        ("https://host/x?sig=ab%2Fc", "https://host/x?sig=***"),
        ("cannot open 's3://K:S@b/x' or http://u:p@h/", "cannot open 's3://***@b/x' or http://***@h/"),
    ],
)
def test_passwords_are_hidden(uri: str, shown: str) -> None:
    assert has_password(uri)
    assert without_password(uri) == shown
    assert not has_password(shown)


@pytest.mark.parametrize(
    "uri",
    [
        "runs/a@b:c",
        "s3://bucket/a@b?region=us-east-1&endpoint_override=http%3A%2F%2F127.0.0.1%3A5000",
        "s3://bucket/a:b@c",
        "gs://anonymous@bucket/x",
        "postgresql://ada@host/db",
        "http://127.0.0.1:5000/@x",
        "http://[::1]:5000/a@b",
        "sqlite:////home/ada@work/a:b.db",
        "file:///data/x:y@z",
    ],
)
def test_other_uris_stay(uri: str) -> None:
    assert without_password(uri) == uri


def test_a_query_stays_at_the_end() -> None:
    assert (
        join_uri("s3://bucket/raycap/?region=eu", "grid/report.html") == "s3://bucket/raycap/grid/report.html?region=eu"
    )
    assert join_uri("s3://bucket/raycap", "grid") == "s3://bucket/raycap/grid"
    assert join_uri("/data/why?/runs", "grid") == "/data/why?/runs/grid"
    assert split_uri("s3://bucket/raycap/grid/?region=eu") == ("s3://bucket/raycap?region=eu", "grid")
    assert split_uri("s3://bucket/grid") == ("s3://bucket", "grid")
