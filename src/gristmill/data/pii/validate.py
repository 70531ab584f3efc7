"""Checks that tell a value from its look-alikes: checksums, lengths, number plans, reserved ranges."""

from __future__ import annotations

import base64
import ipaddress
import json
import math
import re
from collections import Counter

# Top-level domains of addresses that people have. A closed list, because in code `x@self.weight` and
# `logo@2x.png` look like addresses: a match needs a domain that exists.
_GENERIC_DOMAINS = """academy aero agency ai app art asia bank biz blog careers cat center chat city cloud club
coach codes com community company coop dev digital edu email energy engineering eu events expert express
finance foundation fund gallery garden global gov group guru help host hosting icu info ink int io jobs law legal
life link live llc ltd media mil mobi money museum name net network news ngo one online org page partners
photo photography plus post press pro pub research run school science security services shop site social
software solutions space store studio support systems team tech technology tel today tools top travel
university ventures video vip web wiki work works world xyz zone"""
_COUNTRY_DOMAINS = """ac ad ae af ag al am ao aq ar as at au aw ax az ba bb bd be bf bg bh bi bj bm bn bo br bs bt
bw by bz ca cc cd cf cg ch ci ck cl cm cn co cr cu cv cw cx cy cz de dj dk dm do dz ec ee eg es et eu fi fj
fm fo fr ga ge gf gg gh gi gl gm gn gp gr gt gu gy hk hn hr ht hu id ie il im in iq ir is it je jm jo jp ke kg
kh ki kr kw ky kz la lb lc li lk lr ls lt lu lv ly ma mc md me mg mk ml mm mn mo mr ms mt mu mv mw mx my mz na
nc ne nf ng ni nl no np nr nu nz om pa pe pf pg ph pk pl pm pr pt pw py qa re ro rs ru rw sa sb sc sd se sg sh
si sk sl sm sn so sr st su sv sx sy sz tc td tf tg th tj tk tl tm tn to tr tt tv tw tz ua ug uk us uy uz va vc
ve vg vi vn vu wf ws ye yt za zm zw"""
_DOMAINS = frozenset(_GENERIC_DOMAINS.split()) | frozenset(_COUNTRY_DOMAINS.split())
# Domains that RFC 2606 and 6761 reserve for examples.
_EXAMPLE_DOMAIN = re.compile(r"(?i)(?:^|\.)(?:example(?:\.\w+)?|test|invalid|localhost|local)$")


def is_email(local: str, domain: str) -> bool:
    """Whether local@domain can be somebody's: a domain that exists and is not reserved for examples."""
    if domain.rsplit(".", 1)[-1].lower() not in _DOMAINS or _EXAMPLE_DOMAIN.search(domain):
        return False
    return not local.endswith(".") and ".." not in local


def is_public_ipv4(value: str) -> bool:
    """Four octets, without leading zeros, routable in the public internet, no multicast."""
    try:
        address = ipaddress.IPv4Address(value)
    except ValueError:
        return False
    return address.is_global and not address.is_multicast


_DOCUMENTATION_6 = (ipaddress.IPv6Network("2001:db8::/32"), ipaddress.IPv6Network("3fff::/20"))


def is_public_ipv6(value: str) -> bool:
    """Global unicast (2000::/3, all that has been given out), not documentation (RFC 3849, 9637)."""
    try:
        address = ipaddress.IPv6Address(value)
    except ValueError:
        return False
    if int(address) >> 125 != 1 or any(address in net for net in _DOCUMENTATION_6):
        return False
    return address.is_global


# IBAN lengths of the SWIFT registry, release 100.
_IBAN_TABLE = """AD24 AE23 AL28 AT20 AZ28 BA20 BE16 BG22 BH22 BI27 BR29 BY28 CH21 CR22 CY28 CZ24 DE22 DJ27
DK18 DO28 EE20 EG29 ES24 FI18 FK18 FO18 FR27 GB22 GE22 GI23 GL18 GR27 GT28 HN28 HR21 HU28 IE22 IL23 IQ23
IS26 IT27 JO30 KW30 KZ20 LB28 LC32 LI21 LT20 LU20 LV21 LY25 MC27 MD24 ME22 MK19 MN20 MR27 MT31 MU30 NI28
NL18 NO15 OM23 PK24 PL28 PS29 PT25 QA29 RO24 RS22 RU33 SA24 SC31 SD18 SE24 SI19 SK24 SM27 SO23 ST25 SV28
TL23 TN24 TR26 UA29 VA22 VG24 XK20 YE30"""
IBAN_LENGTHS = {entry[:2]: int(entry[2:]) for entry in _IBAN_TABLE.split()}


def iban_remainder(compact: str) -> int:
    """An IBAN without blanks, first four characters last, letters as 10..35, modulo 97 (ISO 13616)."""
    return int("".join(str(int(c, 36)) for c in compact[4:] + compact[:4])) % 97


def is_iban(compact: str) -> bool:
    """Country, length and check digits are right, and it is no stand-in (account of zeros)."""
    if IBAN_LENGTHS.get(compact[:2]) != len(compact) or not re.fullmatch(
        r"[A-Z]{2}\d\d[A-Z0-9]+", compact, re.ASCII
    ):
        return False
    return iban_remainder(compact) == 1 and not compact[4:].startswith("0000")


# Numbers that payment companies publish for tests: nobody's cards.
TEST_CARDS = (
    *("4242424242424242", "4111111111111111", "4012888888881881", "4000056655665556"),
    *("5555555555554444", "5105105105105100", "5200828282828210", "2223003122003222"),
    *("378282246310005", "371449635398431", "378734493671000"),
    *("6011111111111117", "6011000990139424", "6011981111111113"),
    *("3056930009020004", "30569309025904", "38520000023237", "36227206271667"),
    *("3566002020360505", "3530111333300000"),
)
_CARD = re.compile(
    r"4\d{15}(?:\d{3})?|5[1-5]\d{14}|2(?:22[1-9]|2[3-9]\d|[3-6]\d\d|7[01]\d|720)\d{12}|3[47]\d{13}"
    r"|6(?:011|5\d\d|4[4-9]\d)\d{12}|3(?:0[0-5]|[68]\d)\d{11}|35(?:2[89]|[3-8]\d)\d{12}",
    re.ASCII,
)


def luhn(digits: str) -> bool:
    """ISO/IEC 7812-1: every second digit from the right is doubled; the sum of digits ends in 0."""
    double = [sum(divmod(2 * int(d), 10)) for d in digits[-2::-2]]
    return (sum(double) + sum(map(int, digits[-1::-2]))) % 10 == 0


def is_card(digits: str) -> bool:
    """Issuer's prefix and length (Visa, Mastercard, Amex, Discover, Diners, JCB), Luhn, no test number."""
    if not _CARD.fullmatch(digits) or len(set(digits)) < 4:
        return False
    return luhn(digits) and digits not in TEST_CARDS


def is_nanp(digits: str) -> bool:
    """Ten digits that the North American plan gives out: area and exchange begin with 2-9, neither is
    N11, and the line is not one of 555-0100 to 555-0199, which are for fiction."""
    if len(digits) != 10 or digits[0] in "01" or digits[3] in "01":
        return False
    if digits[1:3] == "11" or digits[4:6] == "11" or digits[:3] == "555":
        return False
    return not digits[3:].startswith("55501") and len(set(digits)) > 2


# Country calling codes (ITU-T E.164): of two digits; all others but 1 and 7 have three.
_CALLING_CODES_2 = """20 27 30 31 32 33 34 36 39 40 41 43 44 45 46 47 48 49 51 52 53 54 55 56 57 58 60 61 62 63 64 65 66
81 82 84 86 90 91 92 93 94 95 98"""
_CALLING_2 = frozenset(_CALLING_CODES_2.split())
_CALLING_3 = re.compile(
    r"21[1-368]|2[2-6]\d|29[0179]|35\d|37\d|38[0-35-79]|42[013]|50\d|59\d|67[02-9]|68\d|69[0-2]"
    r"|85[0-356]|88[06]|96\d|97[0-7]|99[2-68]"
)
# UK numbers that Ofcom keeps for fiction, without the leading zero.
_FICTION_UK = ("2079460", "1632960", "7700900")


def calling_code(digits: str) -> str:
    """The country code that the digits after "+" begin with; "" if there is none."""
    for size, known in ((1, digits[:1] in ("1", "7")), (2, digits[:2] in _CALLING_2)):
        if known:
            return digits[:size]
    return digits[:3] if _CALLING_3.fullmatch(digits[:3]) else ""


def is_international(digits: str) -> bool:
    """Digits after "+": a country code and a number of a length that E.164 allows, no stand-in."""
    code = calling_code(digits)
    number = digits[len(code) :]
    if not code or not 8 <= len(digits) <= 15 or len(number) < 6:
        return False
    if code == "1":
        return is_nanp(number)
    if number.startswith("000") or len(set(number)) < 3:
        return False
    if code == "44":
        return len(number) in (9, 10) and not number.startswith(_FICTION_UK)
    return True


_PLACEHOLDER = re.compile(
    r"(?i)your|example|placeholder|dummy|changeme|sample|test|foo|xxxx|1234567|abcdef|redacted|<|\.\.\.|\*\*\*"
)


def is_placeholder(value: str) -> bool:
    """Whether a secret says of itself that it is none."""
    return _PLACEHOLDER.search(value) is not None


def is_random(value: str) -> bool:
    """Whether a string looks drawn by a machine: no placeholder, digits among letters, high entropy."""
    if (
        _PLACEHOLDER.search(value)
        or not re.search(r"[0-9]", value)
        or not re.search(r"[A-Za-z]", value)
    ):
        return False
    # Words joined by punctuation or humps are names: in a random string digits stand everywhere, so that
    # long runs of one case are rare or, where there is one case only, digits and letters take turns often.
    longest_word = max((len(run) for run in re.findall(r"[a-z]+|[A-Z]+", value)), default=0)
    turns = len(re.findall(r"[0-9]+", value))
    if longest_word > 6 and turns < len(value) / 12:
        return False
    hexadecimal = re.fullmatch(r"[0-9a-fA-F-]+", value) is not None
    return entropy(value) >= (2.9 if hexadecimal else 3.5)


def entropy(value: str) -> float:
    """Shannon entropy of the characters, in bits each."""
    total = len(value)
    return -sum(n / total * math.log2(n / total) for n in Counter(value).values())


def is_jwt(value: str) -> bool:
    """Three parts, the first a JSON object with "alg" in base64url (RFC 7519)."""
    head = value.split(".", 1)[0]
    try:
        return "alg" in json.loads(base64.urlsafe_b64decode(head + "=" * (-len(head) % 4)))
    except (ValueError, TypeError, RecursionError):
        return False
