"""Licences: texts against the system's and the installed packages' own statements, names, policies."""

import importlib.metadata
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from packaging.licenses import canonicalize_license_expression

from gristmill.data.sources.licences import license_of_header, license_of_text, policy, spdx

SYSTEM = Path("/usr/share/common-licenses")
NAMED = {"Artistic": "Artistic-1.0", "BSD": "BSD-3-Clause", "GPL-1": "GPL-1.0", "GPL-2": "GPL-2.0"}
NAMED |= {"GPL-3": "GPL-3.0", "LGPL-2": "LGPL-2.0", "LGPL-3": "LGPL-3.0"}


@pytest.mark.skipif(not SYSTEM.is_dir(), reason="no /usr/share/common-licenses on this system")
def test_texts_of_the_system() -> None:
    texts = [place for place in SYSTEM.iterdir() if re.search(r"\d$|^Artistic$|^BSD$", place.name)]
    assert len(texts) >= 10
    for place in texts:
        assert license_of_text(place.read_text(errors="replace")) == NAMED.get(
            place.name, place.name
        )


def test_packages_that_state_one_licence() -> None:
    """The licence file says what METADATA says; a few hold the licences of bundled code besides."""
    equal, named, differ = 0, 0, []
    for package in importlib.metadata.distributions():
        stated = str(package.metadata.json.get("license_expression", ""))
        files = [
            f for f in package.files or [] if re.match(r"(?i)(licen[cs]e|copying)(\.\w+)?$", f.name)
        ]
        if len(files) != 1 or not stated or " " in stated or files[0].suffix == ".py":
            continue
        place = Path(str(files[0].locate()))
        if not place.is_file():
            continue
        found = license_of_text(place.read_text(errors="replace"))
        equal += found == stated
        named += stated in found.split(" AND ")
        if found != stated:
            differ.append((package.metadata["Name"], stated, found))
    assert equal >= 50
    assert named >= 0.98 * (equal + len(differ)), differ
    assert equal >= 0.90 * (equal + len(differ)), differ


def test_ids_that_packaging_knows_stay() -> None:
    for id in (
        "MIT",
        "mit",
        "Apache-2.0",
        "BSD-3-Clause",
        "MPL-2.0",
        "GPL-3.0-or-later",
        "CC-BY-SA-4.0",
        "Zlib",
    ):
        assert spdx(id) == canonicalize_license_expression(id)
    for stated in ("MIT OR Apache-2.0", "(MIT AND BSD-3-Clause) OR Apache-2.0"):
        assert spdx(stated) == canonicalize_license_expression(stated)


@pytest.mark.parametrize(
    ("stated", "id"),
    [
        ("MIT License", "MIT"),
        ("The MIT License.", "MIT"),
        ("Apache License, Version 2.0", "Apache-2.0"),
        ("http://www.apache.org/licenses/LICENSE-2.0.txt", "Apache-2.0"),
        ("https://creativecommons.org/licenses/by/4.0/", "CC-BY-4.0"),
        ("http://creativecommons.org/licenses/by-nc-sa/3.0/us/", "CC-BY-NC-SA-3.0"),
        ("https://creativecommons.org/publicdomain/zero/1.0/", "CC0-1.0"),
        ("CC BY-SA 4.0", "CC-BY-SA-4.0"),
        ("Creative Commons Attribution-ShareAlike 3.0 Unported", "CC-BY-SA-3.0"),
        ("GPLv3+", "GPL-3.0-or-later"),
        ("BSD", ""),
        ("GPL", ""),
        ("Proprietary", ""),
        ("MIT OR something", ""),
        ("", ""),
    ],
)
def test_statements(stated: str, id: str) -> None:
    assert spdx(stated) == id


def test_headers() -> None:
    gnu = """# This program is free software: you can redistribute it and/or modify
    # it under the terms of the GNU {}General Public License as published by
    # the Free Software Foundation, either version 3 of the License, or
    # (at your option) any later version."""
    assert license_of_header(gnu.format("")) == "GPL-3.0-or-later"
    assert license_of_header(gnu.format("Lesser ")) == "LGPL-3.0-or-later"
    assert (
        license_of_header("/* SPDX-License-Identifier: GPL-2.0-only OR MIT */")
        == "GPL-2.0-only OR MIT"
    )
    assert license_of_header("import os") == ""


@pytest.mark.parametrize(
    ("license", "allow", "deny", "reason"),
    [
        ("MIT", ["MIT"], [], ""),
        ("MIT", ["Apache-2.0"], [], "license_not_allowed"),
        ("GPL-3.0-only", [], ["GPL-*"], "license_denied"),
        ("LGPL-3.0-only", [], ["GPL-*"], ""),
        ("", ["MIT"], [], "license_unknown"),
        ("", [], ["GPL-*"], ""),
        ("MIT OR GPL-2.0-only", ["MIT"], ["GPL-*"], ""),
        ("MIT AND GPL-2.0-only", ["MIT"], ["GPL-*"], "license_denied"),
        ("(MIT AND ISC) OR GPL-2.0-only", ["MIT", "ISC"], [], ""),
        ("MIT AND (GPL-2.0-only OR ISC)", ["MIT", "ISC"], [], ""),
        ("Apache-2.0 WITH LLVM-exception", ["apache-2.0"], [], ""),
        ("CC-BY-NC-4.0", ["CC-BY-*"], ["CC-*NC*"], "license_denied"),
    ],
)
def test_policy(license: str, allow: list[str], deny: list[str], reason: str) -> None:
    assert policy(license, allow, deny) == reason


@given(
    st.lists(st.sampled_from(["MIT", "AND", "OR", "(", ")", "WITH", "GPL-2.0-only"]), max_size=30)
)
def test_no_expression_is_an_error(tokens: list[str]) -> None:
    assert policy(" ".join(tokens), ["MIT"], ["GPL-*"]) in (
        "", "license_unknown", "license_denied", "license_not_allowed",
    )  # fmt: skip
