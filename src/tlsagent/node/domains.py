"""
Host names as URLs write them: Node's `url.domainToASCII`, and addresses in canonical form.

Decides which text is a host and what its one ASCII spelling is (WHATWG URL, "host parsing"; UTS #46, non-transitional,
without STD3 rules and length limits). The standard library's codec is IDNA 2003 and its tables Unicode 3.2, so the
mapping is derived here from `unicodedata` as UTS #46 section 7 derives its table: NFKC, case folding and the general
category, with a few exceptions. That is exact for every character the interpreter's Unicode version knows; one that it
does not know makes the host invalid.
"""

from __future__ import annotations

import ipaddress
import re
import unicodedata
from typing import Final
from urllib.parse import unquote_to_bytes

# UTS #46 -----------------------------------------------------------------------------------------------------------


def _ranges(text: str) -> frozenset[int]:
    members: set[int] = set()
    for part in text.split():
        first, _, last = part.partition("-")
        members.update(range(int(first, 16), int(last or first, 16) + 1))
    return frozenset(members)


_DEVIATIONS: Final = frozenset("\u00df\u03c2\u200c\u200d")  # kept by non-transitional processing
_FULL_STOPS: Final = frozenset("\u3002\uff0e\uff61")
_IGNORED: Final = _ranges(
    "ad 34f 115f-1160 17b4-17b5 180b-180f 200b 2060-2064 206a-206f 3164 fe00-fe0f feff ffa0 1bca0-1bca3 1d173-1d17a "
    "e0100-e01ef"
)
# Ideographic description characters and the replacement characters: symbols, but disallowed.
_DISALLOWED: Final = _ranges("2ff0-2fff 31ef fffc-fffd")
_UNASSIGNED_AND_SPACES: Final = ("C", "Z")
_NON_JOINER, _JOINER = "\u200c", "\u200d"
_VIRAMA: Final = 9
_RIGHT_TO_LEFT: Final = frozenset({"R", "AL", "AN"})
_NEUTRAL: Final = frozenset({"EN", "ES", "CS", "ET", "ON", "BN", "NSM"})

# Joining types (ArabicShaping.txt): what a zero-width non-joiner may stand between (RFC 5892, appendix A.1).
_DUAL_JOINING: Final = _ranges(
    "620 626 628 62a-62e 633-63f 641-647 649-64a 66e-66f 678-687 69a-6bf 6c1-6c2 6cc 6ce 6d0-6d1 6fa-6fc 6ff 712-714 "
    "71a-71d 71f-727 729 72b 72d-72e 74e-758 75c-76a 76d-770 772 775-777 77a-77f 7ca-7ea 841-845 848 84a-853 855 860 "
    "862-865 868 886 889-88d 88f 8a0-8a9 8af-8b0 8b3-8b8 8ba-8c8 1807 1820-1878 1887-18a8 18aa a840-a871 10ac0-10ac4 "
    "10ad3-10ad6 10ad8-10adc 10ade-10ae0 10aeb-10aee 10b80 10b82 10b86-10b88 10b8a-10b8b 10b8d 10b90 10bad-10bae "
    "10d01-10d21 10d23 10ec3-10ec4 10ec6-10ec7 10f30-10f32 10f34-10f44 10f51-10f53 10f70-10f73 10f76-10f81 10fb0 "
    "10fb2-10fb3 10fb8 10fbb-10fbc 10fbe-10fbf 10fc1 10fc4 10fca 1e900-1e943"
)
_LEFT_JOINING: Final = _ranges("a872 10acd 10ad7 10d00 10ed9-10eee 10fcb") | _DUAL_JOINING
_RIGHT_JOINING: Final = _DUAL_JOINING | _ranges(
    "622-625 627 629 62f-632 648 671-673 675-677 688-699 6c0 6c3-6cb 6cd 6cf 6d2-6d3 6d5 6ee-6ef 710 715-719 71e 728 "
    "72a 72c 72f 74d 759-75b 76b-76c 771 773-774 778-779 840 846-847 849 854 856-858 867 869-86a 870-882 88e 8aa-8ac "
    "8ae 8b1-8b2 8b9 10ac5 10ac7 10ac9-10aca 10ace-10ad2 10add 10ae1 10ae4 10aef 10b81 10b83-10b85 10b89 10b8c "
    "10b8e-10b8f 10b91 10ba9-10bac 10d22 10ec2 10f33 10f54 10f74-10f75 10fb4-10fb6 10fb9-10fba 10fbd 10fc2-10fc3 10fc9"
)


class _Invalid(ValueError):
    """The text is no host."""


def map_character(char: str) -> str | None:
    """Return what UTS #46 maps a character to ("" if it is ignored), None if it is disallowed."""
    if char < "\x80":
        return char.lower()
    if char in _DEVIATIONS:
        return char
    if char in _FULL_STOPS:
        return "."
    if ord(char) in _IGNORED:
        return ""
    if char == "\u1e9e":  # the capital sharp s, since Unicode 15.1
        return "\u00df"
    mapped = _folded(_folded(char))
    if "." in mapped or "\u3002" in mapped or not all(_is_valid(c) for c in mapped):
        return None
    return mapped


def _folded(text: str) -> str:
    folded = unicodedata.normalize("NFKC", text).casefold()
    return unicodedata.normalize("NFKC", "".join(c for c in folded if ord(c) not in _IGNORED))


def _is_valid(char: str) -> bool:
    if char < "\x80":
        return True
    return unicodedata.category(char)[0] not in _UNASSIGNED_AND_SPACES and ord(char) not in _DISALLOWED


def _to_ascii(domain: str) -> str:
    if domain.isascii():
        return domain.lower()  # labels in punycode are taken on trust, as browsers do
    mapped = [map_character(char) for char in domain]
    if None in mapped:
        raise _Invalid
    labels = unicodedata.normalize("NFC", "".join(filter(None, mapped))).split(".")
    for label in labels:
        _check_label(_decoded(label) if label.startswith("xn--") else label)
    return ".".join(label if label.isascii() else "xn--" + label.encode("punycode").decode("ascii") for label in labels)


def _decoded(label: str) -> str:
    """Return the Unicode form of a label in punycode, which must be its only spelling."""
    try:
        decoded = label[4:].encode("ascii").decode("punycode")
        canonical = decoded.encode("punycode").decode("ascii")
    except UnicodeError as exc:
        raise _Invalid from exc
    if canonical != label[4:] or decoded.isascii() or any(map_character(c) != c for c in decoded):
        raise _Invalid
    if unicodedata.normalize("NFC", decoded) != decoded or "." in decoded:
        raise _Invalid
    return decoded


def _check_label(label: str) -> None:
    if label and (unicodedata.category(label[0])[0] == "M" or (label.startswith("xn--") and not label.isascii())):
        raise _Invalid
    for at, char in enumerate(label):
        if char in (_NON_JOINER, _JOINER) and not _may_join(label, at):
            raise _Invalid
    if not _obeys_bidi_rule(label):
        raise _Invalid


def _may_join(label: str, at: int) -> bool:
    """Whether a zero-width joiner or non-joiner has a meaning where it stands (RFC 5892, appendix A)."""
    if at and unicodedata.combining(label[at - 1]) == _VIRAMA:
        return True
    if label[at] == _JOINER:
        return False
    before = next((c for c in reversed(label[:at]) if not _is_transparent(c)), "\0")
    after = next((c for c in label[at + 1 :] if not _is_transparent(c)), "\0")
    return ord(before) in _LEFT_JOINING and ord(after) in _RIGHT_JOINING


def _is_transparent(char: str) -> bool:
    return unicodedata.category(char) in ("Mn", "Me")


def _obeys_bidi_rule(label: str) -> bool:
    """
    Whether a label with right-to-left characters keeps to RFC 5893, section 2; as Node does it, each for itself.
    """
    kinds = [unicodedata.bidirectional(char) for char in label.rstrip(_NON_JOINER + _JOINER)]
    if _RIGHT_TO_LEFT.isdisjoint(kinds):
        return True
    last = next((kind for kind in reversed(kinds) if kind != "NSM"), "")
    return (
        kinds[0] in ("R", "AL")
        and set(kinds) <= _NEUTRAL | _RIGHT_TO_LEFT
        and last in ("R", "AL", "EN", "AN")
        and not {"EN", "AN"} <= set(kinds)
    )


# WHATWG URL: host parsing ------------------------------------------------------------------------------------------

_FORBIDDEN: Final = re.compile(r"[\x00-\x20\x7f#%/:<>?@\[\\\]^|]")
_ENDS_A_HOST: Final = re.compile(r"[/?#\\]")
_NUMBER: Final = re.compile(r"0[xX][0-9a-fA-F]*|0[0-7]*|[1-9][0-9]*")


def domain_to_ascii(domain: str) -> str:
    """
    Return a host in the form that URLs give it, "" if it is none: Node's `url.domainToASCII`.

    As in a URL, what stands from the first slash, question or number sign on is cut off, percent escapes are decoded
    and numbers become IPv4 addresses.
    """
    host = re.sub("[\t\n\r]", "", domain)
    host = _ENDS_A_HOST.split(host, maxsplit=1)[0]
    try:
        return parse_host(host)
    except _Invalid:
        return ""


def parse_host(host: str) -> str:
    """Return the canonical form of a URL's host, IPv6 in brackets. Raises ValueError if it is none."""
    if host.startswith("["):
        address = ipv6_of(host[1:-1]) if host.endswith("]") else None
        if address is None or "%" in host:
            raise _Invalid
        return f"[{_ipv6_text(address, dotted=False)}]"
    try:
        decoded = unquote_to_bytes(host.encode("utf-8", "surrogatepass")).decode("utf-8")
    except UnicodeDecodeError as exc:
        raise _Invalid from exc
    name = _to_ascii(decoded)
    if not name or _FORBIDDEN.search(name):
        raise _Invalid
    return _ipv4_in_url(name) if _ends_in_number(name) else name


def _ends_in_number(name: str) -> bool:
    last = name.removesuffix(".").rpartition(".")[2]
    return last.isdigit() or (last[:2] == "0x" and _NUMBER.fullmatch(last) is not None)


def _ipv4_in_url(name: str) -> str:
    parts = name.removesuffix(".").split(".")
    if len(parts) > 4 or not all(_NUMBER.fullmatch(part) for part in parts):
        raise _Invalid
    *high, low = (_number(part) for part in parts)
    if any(part > 255 for part in high) or low >= 256 ** (4 - len(high)):
        raise _Invalid
    packed = low + sum(part << 8 * (3 - place) for place, part in enumerate(high))
    return str(ipaddress.IPv4Address(packed))


def _number(part: str) -> int:
    if part[:2] in ("0x", "0X"):
        return int(part[2:] or "0", 16)
    return int(part, 8 if part.startswith("0") else 10)


# Addresses ---------------------------------------------------------------------------------------------------------

_ZONE: Final = re.compile(r"^[^%]*%[0-9a-zA-Z.:-]+\Z")


def ipv6_of(text: str) -> int | None:
    """Return an IPv6 address as a number, None for anything else; what stands behind a % is left out of account."""
    try:
        return int(ipaddress.IPv6Address(text.partition("%")[0]))
    except ValueError:
        return None


def is_address(text: str) -> bool:
    """Whether Node's `net.isIP` knows a text as an address; a zone is letters, digits, hyphens, dots and colons."""
    return canonical_address(text) is not None and ("%" not in text or _ZONE.search(text) is not None)


def canonical_address(text: str) -> str | None:
    """Return an IP address as `inet_ntop` writes it, without its zone; None for anything else."""
    try:
        return str(ipaddress.IPv4Address(text))
    except ValueError:
        address = ipv6_of(text)
    return None if address is None else _ipv6_text(address, dotted=True)


def _ipv6_text(address: int, *, dotted: bool) -> str:
    """Write an IPv6 address: RFC 5952; `dotted` ends IPv4-mapped and -compatible ones in the IPv4 form."""
    groups = [f"{address >> shift & 0xFFFF:x}" for shift in range(112, -1, -16)]
    high = address >> 32
    if dotted and (high == 0xFFFF or (high == 0 and address >> 16)):
        return f"::{'ffff:' if high else ''}{ipaddress.IPv4Address(address & 0xFFFFFFFF)}"
    runs = [
        (len(match[0]), match.start()) for match in re.finditer("0+", "".join("0" if g == "0" else "." for g in groups))
    ]
    length, start = max(runs, key=lambda run: run[0], default=(0, 0))
    if length < 2:
        return ":".join(groups)
    return f"{':'.join(groups[:start])}::{':'.join(groups[start + length :])}"
