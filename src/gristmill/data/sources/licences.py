"""Licences: what a person stated to an SPDX id, a licence's text to its id, and which ids are welcome.

Ids: https://spdx.org/licenses. The GNU licences' texts leave open whether later versions hold, so a text
alone gives the short id ("GPL-3.0"); "-only" and "-or-later" come from headers and statements that say so.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from fnmatch import fnmatchcase

MAX_TEXT = 400_000  # characters of a licence file that are looked at
NEAR = 0.85  # share of a phrase's word triples that a text must have

# Titles stand word for word in the text they name.
_TITLES = {
    "Apache-2.0": (
        "apache license version 2 0 january 2004",
        "apache license version 2 0 the license",
    ),
    "AGPL-3.0": ("gnu affero general public license version 3 19 november 2007",),
    "GPL-1.0": ("gnu general public license version 1 february 1989",),
    "GPL-2.0": ("gnu general public license version 2 june 1991",),
    "GPL-3.0": ("gnu general public license version 3 29 june 2007",),
    "LGPL-2.0": ("gnu library general public license version 2 june 1991",),
    "LGPL-2.1": ("gnu lesser general public license version 2 1 february 1999",),
    "LGPL-3.0": ("gnu lesser general public license version 3 29 june 2007",),
    "GFDL-1.2": ("gnu free documentation license version 1 2 november 2002",),
    "GFDL-1.3": ("gnu free documentation license version 1 3 3 november 2008",),
    "MPL-1.1": ("mozilla public license version 1 1",),
    "MPL-2.0": (
        "mozilla public license version 2 0 1 definitions",
        "mozilla public license version 2 0 definitions",
        "subject to the terms of the mozilla public license v 2 0",
    ),
    "BSL-1.0": ("boost software license version 1 0 august 17th 2003",),
    "EPL-1.0": ("eclipse public license v 1 0",),
    "EPL-2.0": ("eclipse public license v 2 0",),
    "EUPL-1.2": ("european union public licence v 1 2",),
    "Artistic-1.0": ("the artistic license preamble",),
    "Artistic-2.0": ("the artistic license 2 0", "artistic license version 2 0"),
    "OFL-1.1": ("sil open font license version 1 1",),
    "CC0-1.0": ("cc0 1 0 universal",),
    "CC-BY-4.0": ("creative commons attribution 4 0 international public license",),
    "CC-BY-SA-4.0": ("creative commons attribution sharealike 4 0 international public license",),
    "CC-BY-NC-4.0": (
        "creative commons attribution noncommercial 4 0 international public license",
    ),
    "CC-BY-NC-SA-4.0": (
        "creative commons attribution noncommercial sharealike 4 0 international public license",
    ),
    "WTFPL": ("do what the fuck you want to public license",),
    "BlueOak-1.0.0": ("blue oak model license version 1 0 0",),
    "PSF-2.0": ("psf license agreement for python", "python software foundation license version 2"),
    "Unlicense": ("this is free and unencumbered software released into the public domain",),
}
# Short licences have no title that is always there: every phrase must be nearly present.
_PHRASES = {
    "MIT": (
        "permission is hereby granted free of charge to any person obtaining a copy of this software and "
        "associated documentation files to deal in the software without restriction",
        "the above copyright notice and this permission notice shall be included in all copies or "
        "substantial portions of the software",
    ),
    "MIT-0": (
        "permission is hereby granted free of charge to any person obtaining a copy of this software and "
        "associated documentation files to deal in the software without restriction",
    ),
    "BSD-4-Clause": (
        "redistribution and use in source and binary forms with or without modification are permitted",
        "all advertising materials mentioning features or use of this software must display the following",
    ),
    "BSD-3-Clause": (
        "redistribution and use in source and binary forms with or without modification are permitted",
        "may be used to endorse or promote products derived from this software without specific prior",
    ),
    "BSD-2-Clause": (
        "redistribution and use in source and binary forms with or without modification are permitted",
        "redistributions in binary form must reproduce the above copyright notice this list of conditions",
    ),
    "ISC": (
        "permission to use copy modify and distribute this software for any purpose with or without fee is "
        "hereby granted provided that the above copyright notice and this permission notice appear in all",
    ),
    "0BSD": (
        "permission to use copy modify and distribute this software for any purpose with or without fee",
    ),
    "HPND": (
        "permission to use copy modify and distribute this software and its documentation for any purpose",
        "appear in all copies and that both that copyright notice and this permission notice appear in "
        "supporting documentation",
    ),
    "Zlib": (
        "in no event will the authors be held liable for any damages arising from the use of this software",
        "altered source versions must be plainly marked as such and must not be misrepresented",
    ),
}
# What a licence's words contain of a looser one: finding the first hides the others.
_HIDES = {
    "MIT": ("MIT-0",),
    "BSD-4-Clause": ("BSD-3-Clause", "BSD-2-Clause"),
    "BSD-3-Clause": ("BSD-2-Clause",),
    "ISC": ("0BSD",),
    "Artistic-2.0": ("Artistic-1.0",),
}

_WORDS = re.compile(r"[a-z0-9]+")
_TAG = re.compile(r"SPDX-License-Identifier:[ \t]{0,9}([\w.+() -]{2,200})")
_LATER = re.compile(
    r"gnu (affero |lesser |library )?general public license as published by the free software foundation "
    r"(?:either )?version (\d)(?: (1|0))?(?: of the license)? (or(?: at your option)? any later version)?"
)


def license_of_text(text: str) -> str:
    """The SPDX id of a licence's text; several as "A AND B" in the order of their ids; "" when none is known."""
    words = " ".join(_WORDS.findall(re.sub(r"and/or", "and", text[:MAX_TEXT].lower())))
    found = {id for id, titles in _TITLES.items() if any(title in words for title in titles)}
    pieces = words.split(" ")
    triples: set[tuple[str, ...]] = set(zip(pieces, pieces[1:], pieces[2:], strict=False))
    found |= {id for id, phrases in _PHRASES.items() if all(_near(p, triples) for p in phrases)}
    for id in sorted(found):
        found -= set(_HIDES.get(id, ()))
    if "Apache-2.0" in found and "llvm exceptions to the apache 2 0 license" in words:
        found = found - {"Apache-2.0"} | {"Apache-2.0 WITH LLVM-exception"}
    return " AND ".join(sorted(found))


def _near(phrase: str, triples: set[tuple[str, ...]]) -> bool:
    words = phrase.split()
    wanted = list(zip(words, words[1:], words[2:], strict=False))
    return sum(triple in triples for triple in wanted) >= NEAR * len(wanted)


def license_of_header(text: str) -> str:
    """What the first lines of a source file say: an SPDX tag, or the GNU, Apache or Mozilla notice; else ""."""
    head = text[:5000]
    if tag := _TAG.search(head):
        stated = re.sub(r"\s+", " ", tag[1]).strip(" -")
        return spdx(stated) or stated
    words = " ".join(_WORDS.findall(head.lower()))
    if found := _LATER.search(words):
        name = {"affero ": "AGPL", "lesser ": "LGPL", "library ": "LGPL"}.get(found[1] or "", "GPL")
        return f"{name}-{found[2]}.{found[3] or 0}-{'or-later' if found[4] else 'only'}"
    if "licensed under the apache license version 2 0" in words:
        return "Apache-2.0"
    if "subject to the terms of the mozilla public license v 2 0" in words:
        return "MPL-2.0"
    return ""


_KNOWN = """0BSD AFL-3.0 AGPL-3.0 AGPL-3.0-only AGPL-3.0-or-later Apache-1.1 Apache-2.0 Artistic-1.0 Artistic-2.0
BlueOak-1.0.0 BSD-2-Clause BSD-3-Clause BSD-4-Clause BSL-1.0 CC0-1.0 CC-BY-1.0 CC-BY-2.0 CC-BY-2.5 CC-BY-3.0 CC-BY-4.0
CC-BY-SA-1.0 CC-BY-SA-2.0 CC-BY-SA-2.5 CC-BY-SA-3.0 CC-BY-SA-4.0 CC-BY-NC-2.0 CC-BY-NC-2.5 CC-BY-NC-3.0 CC-BY-NC-4.0
CC-BY-ND-2.0 CC-BY-ND-3.0 CC-BY-ND-4.0 CC-BY-NC-ND-3.0 CC-BY-NC-ND-4.0 CC-BY-NC-SA-2.0 CC-BY-NC-SA-3.0
CC-BY-NC-SA-4.0 CDDL-1.0 CECILL-2.1 CNRI-Python ECL-2.0 EPL-1.0 EPL-2.0 EUPL-1.1 EUPL-1.2 GFDL-1.2 GFDL-1.3 GPL-1.0
GPL-2.0 GPL-2.0-only GPL-2.0-or-later GPL-3.0 GPL-3.0-only GPL-3.0-or-later HPND ISC LGPL-2.0 LGPL-2.0-only
LGPL-2.0-or-later LGPL-2.1 LGPL-2.1-only LGPL-2.1-or-later LGPL-3.0 LGPL-3.0-only LGPL-3.0-or-later MIT MIT-0 MPL-1.1
MPL-2.0 MS-PL NCSA ODbL-1.0 OFL-1.1 OpenSSL PDDL-1.0 PostgreSQL PSF-2.0 Python-2.0 Ruby Unicode-DFS-2016 Unlicense
UPL-1.0 Vim W3C WTFPL X11 Zlib ZPL-2.1"""
_IDS = {id.lower(): id for id in _KNOWN.split()}
# Names that people write; "BSD" and "GPL" alone name families and stay uncertain.
_NAMES = {
    "MIT": "mit license|the mit license|expat|expat license|mit expat|mit licence",
    "Apache-2.0": "apache 2|apache 2 0|apache license 2 0|apache license version 2 0|apache software license 2 0"
    "|apache 2 0 license|apache v2|the apache license version 2 0|apache license v2 0|apache2|asl 2 0",
    "BSD-2-Clause": "bsd 2 clause|bsd 2 clause license|simplified bsd|freebsd license|the bsd 2 clause license"
    "|simplified bsd license|2 clause bsd|2 clause bsd license",
    "BSD-3-Clause": "bsd 3 clause|bsd 3 clause license|new bsd|modified bsd|new bsd license|3 clause bsd license"
    "|modified bsd license|3 clause bsd|the bsd 3 clause license|bsd 3|revised bsd license",
    "ISC": "isc license|isc license iscl",
    "MPL-2.0": "mozilla public license 2 0|mozilla public license 2 0 mpl 2 0|mpl 2|mpl v2",
    "PSF-2.0": "psf|psfl|psf license|python software foundation license",
    "Unlicense": "the unlicense|the unlicense unlicense|unlicense",
    "CC0-1.0": "cc0|cc0 1 0 universal|cc zero|cc0 1 0 universal cc0 1 0 public domain dedication",
    "Zlib": "zlib license|zlib libpng|zlib libpng license",
    "BSL-1.0": "boost software license 1 0|boost|boost software license 1 0 bsl 1 0",
    "GPL-2.0-only": "gplv2|gpl v2|gnu gpl v2|gnu general public license v2 gplv2|gpl 2",
    "GPL-2.0-or-later": "gplv2+|gpl v2+|gnu general public license v2 or later gplv2+|gpl 2+",
    "GPL-3.0-only": "gplv3|gpl v3|gnu gpl v3|gnu general public license v3 gplv3|gpl 3",
    "GPL-3.0-or-later": "gplv3+|gpl v3+|gnu general public license v3 or later gplv3+|gpl 3+",
    "LGPL-3.0-only": "lgplv3|lgpl v3|gnu lesser general public license v3 lgplv3",
    "LGPL-3.0-or-later": "lgplv3+|lgpl v3+|gnu lesser general public license v3 or later lgplv3+",
    "LGPL-2.1-or-later": "lgplv2 1+|lgpl v2 1+",
    "AGPL-3.0-only": "agplv3|agpl v3|gnu affero general public license v3",
    "AGPL-3.0-or-later": "agplv3+|gnu affero general public license v3 or later agplv3+",
    "WTFPL": "wtfpl license|do what the fuck you want to public license",
}
_BY_NAME = {name: id for id, names in _NAMES.items() for name in names.split("|")}
_CC = re.compile(
    r"creativecommons\.org/(?:licen[cs]es/(by(?:-nc)?(?:-nd|-sa)?)/(\d\.\d)|publicdomain/(zero)/1\.0)",
    re.I,
)
_CC_NAME = re.compile(
    r"(?:cc|creative commons)[\s-]{1,3}(by|attribution)((?:[\s-]{1,3}(?:nc|noncommercial|non-commercial))?)"
    r"((?:[\s-]{1,3}(?:sa|sharealike|share-alike|share alike|nd|noderivs|noderivatives))?)"
    r"[\s-]{1,3}v?(\d\.\d)(?:\s+(?:international|unported|generic))?(?:\s+licen[cs]e)?",
    re.I,
)
_URLS = {
    "apache.org/licenses/license-2.0": "Apache-2.0",
    "opensource.org/licenses/mit": "MIT",
    "opensource.org/license/mit": "MIT",
    "opensource.org/licenses/bsd-3-clause": "BSD-3-Clause",
    "opensource.org/licenses/bsd-2-clause": "BSD-2-Clause",
    "mozilla.org/mpl/2.0": "MPL-2.0",
    "unlicense.org": "Unlicense",
}


def spdx(stated: str) -> str:
    """The SPDX id (or expression of known ids) that `stated` certainly means, else ""."""
    stated = " ".join(stated[:1000].split()).strip(" .;,\"'")
    lower = stated.lower()
    if lower in _IDS:
        return _IDS[lower]
    if cc := _CC.search(stated):
        return "CC0-1.0" if cc[3] else f"CC-{cc[1].upper()}-{cc[2]}"
    if cc := _CC_NAME.fullmatch(re.sub(r"^the\s+|[()]", "", stated, flags=re.I)):
        share = cc[3].strip(" -").lower()[:2]
        share = {"sh": "-SA", "sa": "-SA", "nd": "-ND", "no": "-ND"}.get(share, "")
        return f"CC-BY{'-NC' if cc[2] else ''}{share}-{cc[4]}"
    for url, id in _URLS.items():
        if url in lower:
            return id
    name = " ".join(re.findall(r"[a-z0-9]+\+?", lower))
    if name in _BY_NAME:
        return _BY_NAME[name]
    parts = re.split(r"([()])|\b(AND|OR|WITH)\b", stated)
    parts = [part.strip() for part in parts if part and part.strip()]
    if len(parts) < 2:
        return ""
    known = [
        part
        if part in ("AND", "OR", "WITH", "(", ")") or re.fullmatch(r"[\w.-]+-exception", part)
        else spdx(part)
        for part in parts
    ]
    return re.sub(r"\( | \)", lambda m: m[0].strip(), " ".join(known)) if all(known) else ""


def policy(license: str, allow: Iterable[str] = (), deny: Iterable[str] = ()) -> str:
    """Why a document of this licence may not be used, or "".

    allow, deny: ids or patterns ("CC-BY-*", "GPL-*"). deny goes before allow; an empty allow is "anything not
    denied". "A OR B" may be used when one of them may, "A AND B" when both may. Reasons: "license_denied",
    "license_not_allowed", "license_unknown" (none stated while allow asks for one).
    """
    allow, deny = tuple(a.lower() for a in allow), tuple(d.lower() for d in deny)
    if not license.strip():
        return "license_unknown" if allow else ""
    tokens = re.findall(r"[()]|[^\s()]+", license[:4000])
    if not any(token in ("AND", "OR", "(") for token in tokens):
        return _one(license, allow, deny)
    return _either(tokens, allow, deny)


def _one(id: str, allow: tuple[str, ...], deny: tuple[str, ...]) -> str:
    id = id.strip().lower()
    if any(fnmatchcase(id, pattern) for pattern in deny):
        return "license_denied"
    if allow and not any(fnmatchcase(id.partition(" with ")[0], pattern) for pattern in allow):
        return "license_not_allowed"
    return ""


def _either(tokens: list[str], allow: tuple[str, ...], deny: tuple[str, ...]) -> str:
    """tokens up to a closing parenthesis, which is taken off: OR of ANDs."""
    choices, needs, name = [], [], []

    def named() -> None:
        if name:
            needs.append(_one(" ".join(name), allow, deny))
            name.clear()

    while tokens:
        token = tokens.pop(0)
        if token == "(":
            needs.append(
                _either(tokens, allow, deny) if len(tokens) < 500 else "license_not_allowed"
            )
        elif token == ")":
            break
        elif token in ("AND", "OR"):
            named()
            if token == "OR":
                choices.append(needs)
                needs = []
        else:
            name.append(token)
    named()
    choices.append(needs)
    problems = [next((need for need in needs if need), "") for needs in choices]
    return "" if "" in problems else problems[0]
