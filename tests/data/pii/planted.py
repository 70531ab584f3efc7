"""Texts with private data planted in known places, and with look-alikes that are none. Drawn from a seed.

Checksums and number plans are written here anew, so that they check those of the product.
"""

from __future__ import annotations

import base64
import json
import random
import string

Planted = tuple[str, list[tuple[str, str]]]  # a text, and the (kind, value)s in it

FIRST = [
    "anna",
    "jean-luc",
    "m.okafor",
    "li_wei",
    "sven",
    "maria.garcia",
    "o.brien",
    "kim",
    "jürgen",
    "a.b.c",
]
LAST = ["smith", "muller", "tanaka", "lopez77", "ivanov", "nguyen", "rossi", "k"]
HOSTS = [
    "gmail.com",
    "uni-koeln.de",
    "cs.ox.ac.uk",
    "mail.ru",
    "company.co.jp",
    "proton.me",
    "x-y.io",
    "lab.nasa.gov",
]
ALNUM = string.ascii_letters + string.digits
WORDS = (
    "the quick report about results was written after several weeks of work on data from many places and "
    "nobody expected that it would become so long or that people would still read it years later"
).split()


def pick(rng: random.Random, alphabet: str, length: int) -> str:
    """`length` characters, digits among them, as keys have them."""
    while True:
        value = "".join(rng.choice(alphabet) for _ in range(length))
        if any(c.isdigit() for c in value) and any(c.isalpha() for c in value):
            return value


def email(rng: random.Random) -> tuple[str, str]:
    value = f"{rng.choice(FIRST)}{rng.choice(['', '.', '+', '-'])}{rng.choice(LAST)}@{rng.choice(HOSTS)}"
    frame = rng.choice(
        ["mail {} today", "<{}>", "mailto:{}?x=1", "({}), or", "Author: {}", '"{}",', "{}."]
    )
    return value, frame


def phone(rng: random.Random) -> tuple[str, str]:
    area, exchange = (
        f"{rng.choice('23456789')}{rng.choice('02345678')}{rng.randrange(10)}",
        f"{rng.randrange(220, 899)}",
    )
    while exchange[1:] == "11" or exchange == "555" or area == "555":
        exchange, area = (
            f"{rng.randrange(220, 899)}",
            f"4{rng.choice('02345678')}{rng.randrange(10)}",
        )
    line = f"{rng.randrange(1000, 9999)}"
    free = ["at {} now", "({}),", "{}.", "reach us: {}"]
    called = ["call {} now", "Tel.: {}", "phone {}", "Fax {},", "Telefon: {}"]
    us = rng.choice(
        [
            "({}) {}-{}",
            "{}-{}-{}",
            "{}.{}.{}",
            "+1 {} {} {}",
            "+1-{}-{}-{}",
            "1-{}-{}-{}",
            "+1 ({}) {}-{}",
        ]
    )
    digits = "".join(rng.sample("123456789", 7))
    return rng.choice(
        [
            (us.format(area, exchange, line), rng.choice(free + called)),
            (f"{area} {exchange} {line}", rng.choice(called)),
            (f"+49 {rng.choice(['30', '89', '171', '221'])} {digits}", rng.choice(free + called)),
            (f"+44 20 7{digits[:3]} {digits[3:]}", rng.choice(free + called)),
            (
                f"+33 {rng.randrange(1, 8)} {digits[:2]} {digits[2:4]} {digits[4:6]} {digits[:2]}",
                rng.choice(free),
            ),
            (f"+91 9{digits[:4]} {digits[2:]}", rng.choice(free + called)),
            (f"+8190{digits}1", rng.choice(free + called)),
            (f"0{rng.choice(['30', '171', '89'])} {digits}", rng.choice(called)),
            (f"(0{rng.choice(['30', '221'])}) {digits[:3]}-{digits[3:]}", rng.choice(called)),
        ]
    )


def ipv4(rng: random.Random) -> tuple[str, str]:
    first = rng.choice([51, 62, 78, 81, 93, 104, 142, 185, 212])
    value = f"{first}.{rng.randrange(256)}.{rng.randrange(256)}.{rng.randrange(1, 255)}"
    return value, rng.choice(
        ["from {} port 22", "{} - - GET", "http://{}:8080/x", "ip={}", "{}/24", "host ({}),"]
    )


def ipv6(rng: random.Random) -> tuple[str, str]:
    group = lambda: f"{rng.randrange(1, 65536):x}"  # noqa: E731
    head = rng.choice(["2a00:1450", "2606:4700", "2400:cb00", "2a02:908", "2620:fe"])
    value = rng.choice(
        [
            f"{head}:{group()}:{group()}::{group()}",
            f"{head}::{group()}",
            f"{head}:" + ":".join(group() for _ in range(6)),
        ]
    )
    return value, rng.choice(["from {} port", "[{}]:443", "inet6 {}/64", "addr={},", "{}."])


IBAN_SHAPES = {
    "DE": "d" * 18,
    "GB": "aaaa" + "d" * 14,
    "FR": "d" * 10 + "c" * 11 + "dd",
    "NL": "aaaa" + "d" * 10,
    "ES": "d" * 20,
    "NO": "d" * 11,
    "MT": "aaaa" + "d" * 5 + "c" * 18,
}


def iban(rng: random.Random, wrong: bool = False) -> tuple[str, str]:
    country = rng.choice(list(IBAN_SHAPES))
    sets = {
        "d": string.digits,
        "a": string.ascii_uppercase,
        "c": string.digits + string.ascii_uppercase,
    }
    bban = "1" + "".join(rng.choice(sets[c]) for c in IBAN_SHAPES[country][1:])
    if IBAN_SHAPES[country][0] == "a":
        bban = rng.choice(string.ascii_uppercase) + bban[1:]
    number = "".join(str(int(c, 36)) for c in f"{bban}{country}00")
    check = 98 - int(number) % 97
    if wrong:
        check = check % 96 + 2 if check % 96 + 2 != check else 2
    value = f"{country}{check:02d}{bban}"
    if rng.random() < 0.5:
        value = " ".join(value[i : i + 4] for i in range(0, len(value), 4))
    return value, rng.choice(["IBAN: {}", "to account {}, please", "({})", "{}."])


def check_digit(body: str) -> str:
    total = 0
    for place, c in enumerate(reversed(body)):
        d = int(c) * (2 if place % 2 == 0 else 1)
        total += d - 9 if d > 9 else d
    return str(-total % 10)


def card(rng: random.Random, wrong: bool = False) -> tuple[str, str]:
    prefix, length = rng.choice(
        [
            ("4", 16),
            ("51", 16),
            ("55", 16),
            ("2221", 16),
            ("34", 15),
            ("37", 15),
            ("6011", 16),
            ("3528", 16),
            ("36", 14),
        ]
    )
    body = prefix + "".join(rng.choice(string.digits) for _ in range(length - 1 - len(prefix)))
    last = check_digit(body)
    digits = body + (str((int(last) + 1 + rng.randrange(9)) % 10) if wrong else last)
    if rng.random() < 0.5:
        cut = [4, 4, 4, 4] if length == 16 else [4, 6, length - 10]
        parts = [digits[sum(cut[:i]) : sum(cut[: i + 1])] for i in range(len(cut))]
        digits = rng.choice(" -").join(parts)
    return digits, rng.choice(["card {} exp 12/29", "({})", "Visa: {}", "{},", "paid with {}."])


def key(rng: random.Random) -> tuple[str, str]:
    head = (
        base64.urlsafe_b64encode(json.dumps({"alg": "HS256", "typ": "JWT"}).encode())
        .decode()
        .rstrip("=")
    )
    body = (
        base64.urlsafe_b64encode(json.dumps({"sub": pick(rng, ALNUM, 12)}).encode())
        .decode()
        .rstrip("=")
    )
    pem = "\n".join(pick(rng, ALNUM + "+/", 64) for _ in range(8))
    generic = [
        'api_key = "{}"',
        "API_TOKEN={}",
        "'client_secret': '{}'",
        'password: "{}"',
        "export AWS_SECRET_ACCESS_KEY={}",
    ]
    return rng.choice(
        [
            ("AKIA" + pick(rng, string.ascii_uppercase + string.digits, 16), "id {} x"),
            ("ghp_" + pick(rng, ALNUM, 36), 'token = "{}"'),
            (f"xoxb-{rng.randrange(10**11, 10**12)}-" + pick(rng, ALNUM, 24), "slack {}."),
            ("AIza" + pick(rng, ALNUM + "_-", 34) + "x", "key={}"),
            ("sk_live_" + pick(rng, ALNUM, 24), "stripe {} x"),
            ("sk-proj-" + pick(rng, ALNUM, 48), "OPENAI={}"),
            (f"{head}.{body}.{pick(rng, ALNUM + '-', 42)}x", "Authorization: Bearer {}"),
            (f"-----BEGIN RSA PRIVATE KEY-----\n{pem}\n-----END RSA PRIVATE KEY-----", "\n{}\n"),
            (pick(rng, ALNUM, 40), rng.choice(generic)),
            (pick(rng, "0123456789abcdef", 40), rng.choice(generic)),
            (pick(rng, string.ascii_lowercase + string.digits, 32), rng.choice(generic)),
        ]
    )


STREETS = ["Maple", "Washington", "King's", "Old Mill", "Park", "St. James", "Lincoln", "Elm"]


def address(rng: random.Random) -> tuple[str, str]:
    n, name = rng.randrange(1, 9999), rng.choice(STREETS)
    kind = rng.choice(["Street", "Avenue", "Road", "Lane", "Drive", "Boulevard"])
    german = rng.choice(
        ["Hauptstraße", "Goethestr.", "Berliner Straße", "Bahnhofstrasse", "Lange Str."]
    )
    return rng.choice(
        [
            (f"{n} {name} {kind}", rng.choice(["at {} since", "{}, ", "lives at {}."])),
            (
                f"{n} {name} {kind}, Suite {rng.randrange(1, 900)}, Springfield, IL {rng.randrange(10000, 99999)}",
                "{}\n",
            ),
            (f"{n} N. {name} Ave., Portland, OR {rng.randrange(10000, 99999)}", "office: {} x"),
            (
                f"{n % 300 + 1} {name} Road, London SW{rng.randrange(1, 9)}A {rng.randrange(1, 9)}BB",
                "at {} x",
            ),
            (f"{german} {n % 200 + 1}", "in der {} x"),
            (f"{german} {n % 200 + 1}a, {rng.randrange(10000, 99999)} Köln", "{}\n"),
            (f"Am Waldweg {n % 90 + 1}, {rng.randrange(10000, 99999)} Hamburg", "Adresse: {}\n"),
        ]
    )


MAKERS = {
    "email": email,
    "phone": phone,
    "ipv4": ipv4,
    "ipv6": ipv6,
    "iban": iban,
    "card": card,
    "key": key,
    "address": address,
}


def look_alike(rng: random.Random) -> str:
    """Something that is none of the kinds."""
    d = lambda n: "".join(rng.choice(string.digits) for _ in range(n))  # noqa: E731
    h = lambda n: "".join(rng.choice("0123456789abcdef") for _ in range(n))  # noqa: E731
    isbn = "978" + d(9)
    return rng.choice(
        [
            f"version {rng.randrange(1, 200)}.{rng.randrange(99)}.{rng.randrange(99)}.{rng.randrange(99)}",
            f"package=={rng.randrange(1, 9)}.{rng.randrange(20)}.{rng.randrange(9)}.{rng.randrange(9)}",
            f"Chrome/{rng.randrange(60, 130)}.0.{rng.randrange(1000, 6000)}.{rng.randrange(200)}",
            f"ISBN {isbn}{d(1)}",
            f"ISBN 0-{d(3)}-{d(5)}-{d(1)}",
            f"sha1 {h(40)}",
            f"md5 {h(32)} file.tar.gz",
            f"commit {h(40)}",
            f"{rng.randrange(1900, 2030)}-{rng.randrange(10, 13)}-{rng.randrange(10, 29)} 12:{d(2)}:{d(2)}",
            f"0.{d(15)} 1.{d(12)} -3.{d(14)}",
            f"{d(3)}.{d(2)}  {d(3)}.{d(2)}  {d(4)}.{d(2)}  {d(2)}.{d(3)}",
            f"{rng.randrange(100, 999)} {rng.randrange(100, 999)} {rng.randrange(1000, 9999)}",
            "@property\ndef value(self): return self @ other.weight",
            f"logo@{rng.randrange(2, 4)}x.png and icon@2x.jpg",
            f"eslint@{rng.randrange(1, 9)}.2.{rng.randrange(9)}",
            "git@github.com:org/repo.git",
            "user@example.com or admin@localhost",
            "https://medium.com/@writer.name/story",
            "127.0.0.1, 192.168.1.10, 10.0.0.5 and 192.0.2.7",
            f"OID 1.3.6.1.4.1.{d(4)}.{rng.randrange(9)}",
            "fe80::1 and ::1 and 2001:db8::5 and std::vector<int>::iterator",
            f"{h(2)}:{h(2)}:{h(2)}:{h(2)}:{h(2)}:{h(2)} is a MAC",
            "SHA256 fingerprint " + ":".join(h(2) for _ in range(20)),
            iban(rng, wrong=True)[0],
            card(rng, wrong=True)[0],
            "test card 4242 4242 4242 4242 or 4111111111111111",
            f"id {rng.randrange(10**17, 10**18)} and {rng.randrange(10**9, 10**10)}",
            "call 555-0123 or (212) 555-0187",
            f"doi:10.{d(4)}/j.{d(4)}.{d(3)}.{d(4)}",
            f"10.{d(4)}/{d(4)}.{d(5)}",
            f"arXiv {rng.randrange(10, 25)}{rng.randrange(1, 12):02d}.{d(5)}",
            'api_key = "YOUR_API_KEY_GOES_HERE_123"',
            'password = os.environ["DATABASE_PASSWORD"]',
            "token = tokenizer.convert_tokens_to_ids(value)",
            f'secret_name = "projects/example/secrets/{d(3)}"',
            "AKIAIOSFODNN7EXAMPLE",
            "sk-learn and sk-a-very-long-hyphenated-name-of-something",
            f"pages {d(3)}-{d(3)}, lines {d(4)}-{d(4)}",
            f"@@ -{d(3)},{d(2)} +{d(3)},{d(2)} @@",
            f"+{d(2)}.{d(2)}% or +{d(5)} points",
            f"order {d(3)}-{d(7)}-{d(7)}",
            f"In {rng.randrange(1900, 2020)} Main Street was closed",
            f"the {rng.randrange(2, 20)} High Court judges",
            f"part no. {d(4)}-{d(4)}-{d(4)}",
            f"{d(8)}T{d(6)}Z",
            f"UUID {h(8)}-{h(4)}-4{h(3)}-a{h(3)}-{h(12)}",
        ]
    )


def texts(seed: int, count: int) -> list[Planted]:
    """`count` texts: half of their parts private, half look-alikes, words between."""
    rng = random.Random(seed)
    made: list[Planted] = []
    for _ in range(count):
        parts: list[str] = []
        truth: list[tuple[str, str]] = []
        for _ in range(rng.randrange(2, 7)):
            parts.append(" ".join(rng.choices(WORDS, k=rng.randrange(6, 20))))
            if rng.random() < 0.5:
                kind = rng.choice(list(MAKERS))
                value, frame = MAKERS[kind](rng)
                parts.append(frame.format(value))
                truth.append((kind, value))
            else:
                parts.append(look_alike(rng))
        made.append((rng.choice([" ", "\n"]).join(parts), truth))
    return made
