"""What a span's fields look like once they leave the span: plain, short, and without secrets.

A value is a secret by the name of its field, or of its key at any depth; and a text may have one inside: what stands
between a URL's scheme and its host, what follows Bearer, a JSON web token, a private key, a token that says whose it is
(`ghp_…`), and `name=value`, `"name": "value"` and `<name>value</name>` where the name is that of a secret. What is
true, false or nothing is no secret, and neither is a number under a name that counts. All that leaves a span goes
through `FieldPolicy`, and so does what comes from the logs of others.

Nothing here calls code of the application. A value of a type that is not known is named, not shown: its `repr` could
block, raise, run a database query, or be 100 MB long, and a span must never do that to the program it watches.
"""

from __future__ import annotations

import enum
import re
import sys
from collections.abc import Mapping
from itertools import islice
from typing import Any, Final

__all__ = ["REDACT", "REDACTED", "FieldPolicy", "error_of", "text_of"]

#: Parts of a field's name (in any case, with or without separators) that make its value a secret. One that begins with
#: an underscore is a word of its own, the last of the name: `db_pass`, `userPass`, not `compass` or `pass_rate`.
REDACT: Final = (
    "password",
    "passwd",
    "pwd",
    "passphrase",
    "passcode",
    "secret",
    "token",
    "api_key",
    "access_key",
    "private_key",
    "signing_key",
    "encryption_key",
    "account_key",
    "amz_signature",
    "goog_signature",
    "authorization",
    "bearer",
    "cookie",
    "credential",
    "session",
    "csrf",
    "xsrf",
    "jwt",
    "dsn",
    "_pass",
    "_pw",
    "_auth",
    "_otp",
    "_sig",
)
REDACTED: Final = "[redacted]"
#: How the names of what is counted or measured end. A number under such a name is shown, though a part of it is in the
#: list: `max_tokens=512`, `session_count=3`.
_COUNTED: Final = ("s", "count", "total", "size", "length", "limit", "ttl", "age")

#: Passes are counted too: a number of so many digits is no password.
_PASSES: Final = 1000
#: Words that have a part of the list in them and are none of it, as `_bare` has them.
_ORDINARY: Final = re.compile(r"tokeni[sz](?!ed)|secretar|(?:ob|pos)session|passwordless|cookiecutter|sessionmaker")
#: A part of so few letters is none where it takes the end of one word and the beginning of the next: `friends_name`.
_SHORT: Final = 4

_PLAIN: Final = frozenset({bool, type(None)})
#: Whole numbers up to this are shown as such, and up to so many bits as text.
_BIGGEST: Final = 1 << 64
_MAX_BITS: Final = 1024
#: Bytes of an object beyond which its text could be long (a Decimal of many digits).
_MAX_SIZE: Final = 1024
# Types of the standard library whose str() is theirs, short and fast, and where they are: an exact type only, since a
# subclass may be the application's own code. By name, because nobody should have to import them all.
_LIBRARY: Final = {
    **dict.fromkeys(("date", "datetime", "time", "timedelta", "timezone"), "datetime"),
    **dict.fromkeys(("IPv4Address", "IPv6Address", "IPv4Network", "IPv6Network"), "ipaddress"),
    **dict.fromkeys(("PosixPath", "PurePosixPath", "PureWindowsPath", "WindowsPath"), "pathlib"),
    "Decimal": "decimal",
    "Fraction": "fractions",
    "UUID": "uuid",
    "ZoneInfo": "zoneinfo",
}
_CONTAINERS: Final = frozenset({dict, list, tuple, set, frozenset})
#: Entries of a container that are shown, and how deep; characters of the name of an entry.
_MAX_ITEMS: Final = 32
_MAX_DEPTH: Final = 4
_MAX_KEY: Final = 256
_MAX_KEYS_KNOWN: Final = 10_000

#: Characters beyond those that are shown in which a secret that begins before may end.
_MARGIN: Final = 512
# Between scheme and host, up to the last @ that can be meant: a password may have any of "/?#@" in it, though it should
# not. (A port is no password.)
_USERINFO: Final = re.compile(
    r"://(?:[^\s/?#@:\"'<>]*+:(?!//|\d{1,5}[/?#])[^\s@:\"'<>]*+(?::(?!//)[^\s@:\"'<>]*+)*+|[^\s/?#@\"'<>]*)@(?:[^\s/?#@]*@)*"
)
_LAST: Final = re.compile(r"(?<![^\s@])[^\s@]++\Z")
_USERINFO_CUT: Final = re.compile(r"://[^\s/?#@:]*:(?!\d{0,5}\Z)[^\s@]*\Z")
# Ways of HTTP authentication, and what looks like credentials after them: words of a sentence do not.
_CREDENTIALS: Final = re.compile(
    r"\b(?:((?i:bearer|basic) {1,4})(?=[A-Za-z]?[a-z]*[0-9A-Z._~+/=-]+[A-Za-z0-9=])"
    r"|((?i:token|apikey|digest|negotiate) {1,4})(?=[A-Za-z._~+/=-]*[0-9]))[A-Za-z0-9._~+/=-]{8,}"
)
# With what is none of them to its end, or each "eyJ" in that were a beginning again.
_WEB_TOKEN: Final = re.compile(r"\beyJ[\w-]{6,}+(?P<rest>\.[\w-]*(?:\.[\w-]*)?)?")
_KEY_BLOCK: Final = re.compile(
    r"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----.*?(?:-----END [A-Z0-9 ]{0,40}-----|\Z)", re.S
)
# Tokens that begin with whose they are: GitHub, GitLab, Slack, Stripe, OpenAI and Anthropic, Google, npm, PyPI, Hugging
# Face, SendGrid. Their first letter stands for itself, or the search would take several times as long.
_ISSUED: Final = re.compile(
    r"[AghnprsSx](?<![A-Za-z0-9].)(?:(?<=g)(?:h[oprsu]_[A-Za-z0-9]{30,}+|ithub_pat_\w{30,}+|lpat-[\w-]{20,}+)"
    r"|(?<=x)ox[abeoprs]-[\w-]{10,}+|(?<=[rs])k_(?:live|test)_[A-Za-z0-9]{16,}+|(?<=s)k-(?:proj-|ant-)[\w-]{32,}+"
    r"|(?<=s)k-[A-Za-z0-9]{40,}+|(?<=A)Iza[\w-]{35,}+|(?<=n)pm_[A-Za-z0-9]{36,}+|(?<=p)ypi-AgEI[\w-]{50,}+"
    r"|(?<=h)f_[A-Za-z0-9]{30,}+|(?<=S)G\.[\w-]{16,}+\.[\w-]{16,}+)"
)
#: So long is each of them, or what it stands in; and more than an id such as a UUID.
_MIN_ISSUED: Final = 36
# Arguments of programs that take a password without saying so, up to what ends a command.
_ARGUMENTS: Final = re.compile(
    r"\b(?P<program>mysql|mariadb|sshpass|curl)[\w-]*+|(?P<end>[;|&\n])"
    r"|(?<!\S)(?P<p>-p)(?P<blank>\s?)(?![\d.]+:\d)(?:\[redacted\]|'[^']*'|\"[^\"]*\"|[^\s;|&]++)"
    r"|(?<!\S)(?P<user>(?:-u\s?|--user[\s=])[\"']?[^\s:;|&\"']*+:)[^\s;|&\"']++"
)
#: What stands between a name and its value; a name may have taken the first half of an arrow.
_SIGN: Final = r"(?:[+?]?[:=]{1,3}>?|-{1,2}>|(?<=-)>|%3[AaDd])"
_ENTITY: Final = r"&(?:quot|apos|#\d\d|#x\d\d);"
#: A name in a text, with what stands between it and its value: `name=`, `"name": `, `a[name]=`, `name[0]=`, `--name `,
#: `("name", `. Of an element the name only: its attributes may have names too.
_NAME: Final = re.compile(
    r"(?<![\w.-])(?:(?<=<)(?P<element>[\w.:-]++)(?=(?:\s[^<>]{0,512})?>(?:<!\[CDATA\[|[^<]++(?:</(?P=element)|\Z)))"
    rf"|(?P<name>[\w.-]++)(?:\\*[\"']|{_ENTITY}|%22)?(?:\]|%5[Dd])?"
    rf"(?P<index>(?:(?:\[|%5[Bb])[\w.-]{{0,64}}(?:\]|%5[Dd])){{0,4}})\s{{0,16}}{_SIGN}\s{{0,16}}"
    r"|(?P<option>--?[A-Za-z][\w-]++)\s{1,4}(?!-)"
    r"|(?:(?<=[(\[][\"'])|(?<=[(\[][bru\\][\"']))(?P<first>[\w.-]++)\\*[\"'],\s?"
    r"(?=[bru]?\\*[\"'][^\"']*+[\"']\s?[)\]]|\[redacted\]))"
)
_INDEX: Final = re.compile(r"(?:\[|%5[Bb])([\w.-]*?)(?:\]|%5[Dd])")
#: What is in an element that has no others in it.
_CONTENT: Final = re.compile(r"[^<>]*>(?P<content>\[redacted\]|<!\[CDATA\[.*?(?:\]\]>|\Z)|[^<]+)", re.S)
_KINDS: Final = ("key", "value")
_WORD_BEFORE: Final = re.compile(r"([\w-]+) \Z")
_QUOTED: Final = (
    r"\[redacted\]|[bBfFrRuU]{0,2}(\\*)(?P<quote>[\"']{3}|[\"']).*?(?:(?<!\\)\1(?P=quote)|\Z)"
    rf"|(?P<entity>{_ENTITY}).*?(?:(?P=entity)|\Z)"
)
# After "|" or ">" a text in YAML begins on the next line.
_VALUE: Final = re.compile(_QUOTED + r"|(?:[|>][-+\d]{0,2}(?:\s|\\[nr]){1,32})?<?[^\s,;&\"'<>)}\]]++", re.S)
#: A value that goes on to the end of the line, with the quoted values of its parameters.
_LINE: Final = re.compile(_QUOTED + r"|(?:[^\r\n\"']|(?<==)\"[^\"\r\n]*\"|(?<==\\)\"[^\"\r\n]*\")++", re.S)
#: A value in brackets, or an object that shows itself as a call; and what counts for where it ends.
_OPENED: Final = re.compile(r"(?!\[redacted\])[\w.]{0,64}\(|(?!\[redacted\])[\[{]")
_BRACKET: Final = re.compile(r"(\\*[\"']).*?(?:(?<!\\)\1|\Z)|[\[({]|[\])}]", re.S)
_NOTHING: Final = re.compile(r"(?:None|True|False|null|true|false)(?=[\s,;&\"'<>)}\]]|\Z)")
_WHOLE_LINES: Final = ("authorization", "cookie")
_COUNT: Final = re.compile(r"[+-]?\d{1,19}(?:\.\d{1,9})?(?=[\s,;&\"'<>)}\]]|\Z)")
_FEW: Final = re.compile(r"\d{1,3}(?=[\s,;&\"'<>)}\]]|\Z)")

# What a class is called, past a metaclass that has its own idea of these attributes.
_qualname_of = type.__dict__["__qualname__"].__get__
_module_of = type.__dict__["__module__"].__get__


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _type_name(cls: type) -> str:
    module = _module_of(cls)
    name: str = _qualname_of(cls)
    return name if type(module) is not str or module == "builtins" else f"{module}.{name}"


def _library_name(cls: type) -> str:
    """Name of the class if it is one of `_LIBRARY`, else ""."""
    name: str = _qualname_of(cls)
    module = _LIBRARY.get(name)
    return name if module is not None and getattr(sys.modules.get(module), name, None) is cls else ""


def _bare(name: str) -> str:
    """A name as secrets are looked for in it: `X-Api-Key`, `api_key` and `apiKey` are one."""
    return name.lower().replace("_", "").replace("-", "").replace(" ", "").replace(".", "")


def _is_counted(name: str) -> bool:
    bare = _bare(name)
    return bare.endswith(_COUNTED) and not bare.endswith("ss")


def _is_pass(name: str) -> bool:
    return _bare(name).endswith("pass")


def _shown_anyway(name: str, value: object) -> bool:
    """Whether a value under the name of a secret is none: true, false, nothing, or a number that counts."""
    cls = type(value)
    if cls in _PLAIN:
        return True
    if cls is int:
        if -_PASSES < value < _PASSES and _is_pass(name):  # type: ignore[operator] # an int
            return True
        return -_BIGGEST < value < _BIGGEST and _is_counted(name)  # type: ignore[operator]
    return cls is float and value - value == 0 and _is_counted(name)  # type: ignore[operator]


def _end_of(value: re.Pattern[str], text: str, at: int) -> int:
    found = value.match(text, at)
    return 0 if found is None else found.end()


def _end_of_brackets(text: str, at: int) -> int:
    """Where the value in brackets that begins there ends, at the latest with the text; 0 if there is none."""
    opened = _OPENED.match(text, at)
    if opened is None:
        return 0
    depth = 1
    for found in _BRACKET.finditer(text, opened.end()):
        depth += (found[0] in "[({") - (found[0] in "])}")
        if not depth:
            return found.end()
    return len(text)


def _hide_arguments(text: str) -> str:
    program = ""

    def shown(found: re.Match[str]) -> str:
        nonlocal program
        if found["program"] or found["end"]:
            program = found["program"] or ""
        elif found["user"]:
            return found["user"] + REDACTED if program == "curl" else found[0]
        elif program == "sshpass" or (program and program != "curl" and not found["blank"]):
            return found["p"] + found["blank"] + REDACTED
        return found[0]

    return _ARGUMENTS.sub(shown, text)


class FieldPolicy:
    """How fields are taken: `capture` (else they are dropped), `max_length` in characters, and the parts of names
    whose values are `redact`ed.
    """

    __slots__ = (
        "_bare_parts",
        "_long",
        "_secret",
        "_signs",
        "_whole",
        "_words",
        "capture",
        "clean",
        "max_length",
        "redact",
    )

    def __init__(self, *, capture: bool = True, max_length: int = 1024, redact: tuple[str, ...] = REDACT) -> None:
        self.capture = capture
        self.max_length = max_length
        self.redact = redact
        words = {part for part in redact if part[:1] == "_" and part[1:].isalnum()}
        self._bare_parts = tuple(filter(None, (_bare(part) for part in redact if part not in words)))
        self._words = tuple(part[1:].lower() for part in redact if part in words)
        self._whole = {part.lower() for part in redact if len(part) <= _SHORT and part.isalnum()}
        # What is in every text that has such a name: "pass" stands for "password" as well.
        some = {*self._bare_parts, *self._words}
        self._signs = tuple(part for part in some if not any(other in part for other in some - {part}))
        self._long = min(max_length, _MIN_ISSUED)
        self._secret: dict[str, bool] = {}
        # Texts that were looked through and have no secret in them: many come again and again.
        self.clean: set[str] = set()

    def merge(self, other: FieldPolicy) -> FieldPolicy:
        """The stricter of both in each respect: one record goes to all listeners, so the strictest decides."""
        return FieldPolicy(
            capture=self.capture and other.capture,
            max_length=min(self.max_length, other.max_length),
            redact=tuple(dict.fromkeys(self.redact + other.redact)),
        )

    def apply(self, fields: dict[str, Any]) -> dict[str, Any]:
        """Make `fields` fit to leave the span, in place where that is possible; returns what is left of them.

        Raises nothing, and calls nothing of the application's.
        """
        if not self.capture:
            return {}
        secret, limit, clean = self._secret, self._long, self.clean
        try:
            for key, value in fields.items():
                if secret[key]:
                    if not _shown_anyway(key, value):
                        fields[key] = REDACTED
                    continue
                cls = type(value)
                if cls is str:
                    # What may hold a secret has one of these; most values have none.
                    if (
                        len(value) > limit
                        or ":" in value
                        or "=" in value
                        or " " in value
                        or "," in value
                        or ">" in value
                        or "eyJ" in value
                    ) and value not in clean:
                        fields[key] = self.text(value)
                elif cls is int:
                    if not -_BIGGEST < value < _BIGGEST:
                        fields[key] = text_of(value, self.max_length)
                elif cls is float:
                    if value - value != 0:
                        fields[key] = text_of(value, self.max_length)
                elif cls not in _PLAIN:
                    fields[key] = self._plain(value)
        except Exception:
            # A name met for the first time, or one whose hash is the application's.
            return self._apply_slowly(fields)
        return fields

    def _apply_slowly(self, fields: dict[str, Any]) -> dict[str, Any]:
        plain = {}
        for key, value in fields.items():
            name = key if type(key) is str else text_of(key, _MAX_KEY)
            try:
                hidden = self._is_secret(name) and not _shown_anyway(name, value)
                plain[name] = REDACTED if hidden else self._plain(value)
            except Exception as error:
                plain[name] = f"<{_type_name(type(error))} while it was read>"
        return plain

    def text(self, value: object, limit: int = 0) -> str:
        """`value` as a text of at most `limit` characters (0: `max_length`), without the secrets that are seen in it.

        Runs no code that is not the standard library's, and raises nothing.
        """
        limit = limit or self.max_length
        shown = text_of(value, limit + _MARGIN)
        hidden = _cut(self.hide(shown, cut=len(shown) >= limit + _MARGIN), limit)
        if hidden is shown:
            self._remember(shown)
        return hidden

    def name(self, name: str, limit: int = 0) -> str:
        """`hide(name)`, and sooner where it came before: the name of a span. `limit`: see `text`; for names of which
        there are ever more, such as a task's or a link.
        """
        if name in self.clean and (not limit or len(name) <= limit):
            return name
        if len(name) <= self._long and name.replace("-", "").isalnum():
            if not limit:
                self._remember(name)
            return name
        if limit:
            return self.text(name, limit)
        hidden = self.hide(name)
        if hidden is name:
            self._remember(name)
        return hidden

    def _remember(self, text: str) -> None:
        if len(text) <= _MAX_KEY:
            if len(self.clean) >= _MAX_KEYS_KNOWN:
                self.clean.clear()
            self.clean.add(text)

    def hide(self, text: str, *, cut: bool = False) -> str:
        """A text without the secrets that are seen in it. `cut`: it was longer, and may end in the middle of one.

        What it gives is given back unchanged. The time is linear in the length.
        """
        if "://" in text and ("@" in text or cut):
            text = _USERINFO.sub(f"://{REDACTED}@", text)
            if cut:
                # In the last word alone, or each "://" were looked behind to the end.
                last = _LAST.search(text)
                text = text if last is None else text[: last.start()] + _USERINFO_CUT.sub(f"://{REDACTED}", last[0])
        if "eyJ" in text:
            text = _WEB_TOKEN.sub(lambda found: REDACTED if found["rest"] else found[0], text)
        if len(text) > _MIN_ISSUED and ("_" in text or "-" in text or "AIza" in text or "SG." in text):
            text = _ISSUED.sub(REDACTED, text)
        if "-----BEGIN" in text:
            text = _KEY_BLOCK.sub(REDACTED, text)
        if " " in text:
            low = text.lower()
            if (
                "bearer " in low
                or "basic " in low
                or "token " in low
                or "apikey " in low
                or "digest " in low
                or "negotiate " in low
            ):
                text = _CREDENTIALS.sub(rf"\1\2{REDACTED}", text)
        if " -" in text and ("mysql" in text or "mariadb" in text or "sshpass" in text or "curl " in text):
            text = _hide_arguments(text)
        if (
            "=" in text
            or ":" in text
            or "--" in text
            or " -" in text
            or "->" in text
            or text[:1] == "-"
            or "%3" in text
            or "<" in text
            or ("," in text and ("'" in text or '"' in text))
        ) and self._may_name_secret(text):
            text = self._hide_values(text, cut)
        return text

    def _hide_values(self, text: str, cut: bool) -> str:
        """A text without the values that follow the names of secrets."""
        parts: list[str] = []
        done = 0
        # Whether the entry before was `"name": "password"`, and so a "value" is what it says.
        named = False
        judged: dict[str, bool] = {}
        for found in _NAME.finditer(text):
            if found.start() < done:
                continue
            element = found["element"]
            name, at = element or found["name"] or found["option"] or found["first"], found.end()
            hidden = judged.get(name)
            if hidden is None:
                # For this text only: whoever writes it could fill the memory with names.
                hidden = judged[name] = self._names_secret(name)
            if not hidden and not (
                any(map(self._names_secret, _INDEX.findall(found["index"] or "")))
                or (not element and self._two_words(text, found.start(), name))
                or (named and name == "value")
            ):
                if name in ("name", "key"):
                    value = _VALUE.match(text, at)
                    named = value is not None and self._names_secret(value[0])
                continue
            named = False
            if element:
                content = _CONTENT.match(text, at)
                if content is not None and (cut or content.end() < len(text)):
                    parts += text[done : content.start("content")], REDACTED
                    done = content.end()
                continue
            if _NOTHING.match(text, at) or (_is_counted(name) and _COUNT.match(text, at)):
                continue
            if _is_pass(name) and _FEW.match(text, at):
                continue
            # A header goes on to the end of its line.
            line = any(whole in name.lower() for whole in _WHOLE_LINES)
            end = _end_of_brackets(text, at) or _end_of(_LINE if line else _VALUE, text, at)
            if end:
                parts += text[done:at], REDACTED
                done = end
        return "".join(parts) + text[done:]

    def _two_words(self, text: str, start: int, name: str) -> bool:
        """Whether the name that starts there is the second word of a secret's, and neither word says so alone (`API
        key: …`) or the second says of what kind it is (`secret key: …`).
        """
        if text[start - 1 : start] != " " or (before := _WORD_BEFORE.search(text, max(0, start - 24), start)) is None:
            return False
        first, second = _bare(before[1]), _bare(name)
        if second in _KINDS and self._names_secret(before[1]):
            return True
        return any(part in first + second and part not in first for part in self._bare_parts)

    def _may_name_secret(self, text: str) -> bool:
        """Whether the name of a secret may be in a text. (Few have one.)"""
        bare = _bare(text)
        for sign in self._signs:  # noqa: SIM110 a third of the time
            if sign in bare:
                return True
        return False

    def _names_secret(self, name: str) -> bool:
        """Whether this is the name of a secret."""
        bare = _bare(name)
        for part in self._bare_parts:
            if (
                part in bare
                and (part not in self._whole or part in name.lower())
                and (part in _ORDINARY.sub(" ", bare) or _ORDINARY.search(part) is not None)
            ):
                return True
        return any(word in bare for word in self._words) and self._ends_with_word(name)

    def _ends_with_word(self, name: str) -> bool:
        name = name.rstrip("0123456789_-. []%")
        low = name.lower()
        for word in self._words:
            if low.endswith(word):
                at = len(low) - len(word)
                if not at or not name[at - 1].isalpha() or (name[at].isupper() and name[at - 1].islower()):
                    return True
        return False

    def _is_secret(self, name: str) -> bool:
        hidden = self._secret.get(name)
        if hidden is None:
            hidden = self._names_secret(name)
            if len(self._secret) < _MAX_KEYS_KNOWN and len(name) <= _MAX_KEY:
                self._secret[name] = hidden
        return hidden

    def _plain(self, value: object) -> Any:
        """`value` as JSON could hold it."""
        return _Plain(self).of(value, 0)


class _Plain:
    """One field's value being made plain: at most `_MAX_DEPTH` levels, `_MAX_ITEMS` entries each, and about as many
    characters in all as one text may have.
    """

    __slots__ = ("_limit", "_policy", "_room")

    def __init__(self, policy: FieldPolicy) -> None:
        self._policy = policy
        self._limit = self._room = policy.max_length

    def of(self, value: object, depth: int) -> Any:
        cls = type(value)
        if cls in _CONTAINERS and depth < _MAX_DEPTH:
            return self._container(value, depth + 1)
        if cls in _PLAIN or (cls is int and -_BIGGEST < value < _BIGGEST):  # type: ignore[operator]
            self._room -= 8
            return value
        if cls is float and value - value == 0:  # type: ignore[operator]
            self._room -= 8
            return value
        text = self._policy.text(value, max(1, self._room) if depth else self._limit)
        self._room -= len(text) + 2
        return text

    def _is_name(self, value: object) -> bool:
        """Whether it is the name of a secret."""
        return type(value) in (str, bytes) and self._policy._names_secret(text_of(value, _MAX_KEY))

    def _container(self, value: Any, depth: int) -> Any:
        self._room -= 2
        # Copied before anything is done with it, since another thread may change it meanwhile; and no more than needed.
        if type(value) is dict:
            entries = list(islice(value.items(), _MAX_ITEMS))
            plain: dict[str, Any] = {}
            named = any(type(key) is str and key in ("name", "key") and self._is_name(item) for key, item in entries)
            for count, (key, item) in enumerate(entries):
                if self._room <= 0:
                    del entries[count:]
                    break
                text = text_of(key, _MAX_KEY)
                name = key if type(key) is str else text
                self._room -= len(text) + 2
                hidden = self._policy._is_secret(name) or (named and name == "value")
                hidden = hidden and not _shown_anyway(name, item)
                plain[text] = REDACTED if hidden else self.of(item, depth)
            if len(value) > len(entries):
                plain["…"] = f"{len(value) - len(entries)} more"
            return plain
        some = list(islice(value, _MAX_ITEMS))
        if len(value) == 2 and self._is_name(some[0]):
            # A name and its value, as in a list of headers.
            return [text_of(some[0], _MAX_KEY), REDACTED]
        items = list[Any]()
        option = False
        for item in some:
            if self._room <= 0:
                break
            items.append(REDACTED if option else self.of(item, depth))
            # Arguments of a command.
            option = type(item) is str and item.startswith("--") and "=" not in item and self._is_name(item)
        if len(value) > len(items):
            items.append(f"… {len(value) - len(items)} more")
        return items


def text_of(value: object, limit: int) -> str:
    """`value` as text of at most `limit` characters, without running any code that is not the standard library's."""
    # Everything is asked of the type: an object's own `__class__`, or a method that a subclass has overridden, is the
    # application's code.
    cls = type(value)
    if cls is str:
        return _cut(value, limit)  # type: ignore[arg-type]
    try:
        return _cut(_text_of(value, cls, limit), limit)
    except Exception as error:
        return _cut(f"<{_type_name(cls)}: {type(error).__name__}>", limit)


def _text_of(value: Any, cls: type, limit: int) -> str:
    if issubclass(cls, enum.Enum):
        return f"{_qualname_of(cls)}.{str.__str__(object.__getattribute__(value, '_name_'))}"
    if issubclass(cls, int):
        bits = int.bit_length(value)
        return int.__repr__(value) if bits < _MAX_BITS else f"<int of {bits} bits>"
    if issubclass(cls, float):
        return float.__repr__(value)
    if issubclass(cls, str):
        return str.__str__(value)
    if cls is bytes or cls is bytearray:
        return repr(bytes(value[:limit]))
    if cls is complex or value is None:
        return repr(value)
    if cls is range:
        return f"range({text_of(value.start, 99)}, {text_of(value.stop, 99)}, {text_of(value.step, 99)})"
    library = _library_name(cls)
    if library == "Fraction":
        return f"{text_of(value.numerator, 400)}/{text_of(value.denominator, 400)}"
    if library and sys.getsizeof(value) < _MAX_SIZE:
        # A time asks its zone, which may be the application's.
        zone = value.tzinfo if library in ("datetime", "time") else None
        return str(value) if zone is None or _library_name(type(zone)) else str(value.replace(tzinfo=None))
    if cls in _CONTAINERS:
        return f"<{cls.__name__} of {len(value)}>"
    if issubclass(cls, type):
        return f"<class {_type_name(value)}>"
    return f"<{_type_name(cls)}>"


#: The exceptions in a group, past a subclass that has its own idea of the attribute.
_exceptions_of = BaseExceptionGroup.__dict__["exceptions"].__get__


def error_of(error: BaseException, policy: FieldPolicy) -> Mapping[str, Any]:
    """`{type, message}` of an exception; a group has the types of its leaves too. Never raises.

    Unlike a field, an exception is asked for its text: that is what it is for. One that fails to say is named only.
    """
    cls = type(error)
    try:
        message = policy.text(str.__str__(str(error)))
    except Exception as failure:
        message = f"<no message: {type(failure).__name__} in __str__>"
    if not issubclass(cls, BaseExceptionGroup):
        return {"type": _type_name(cls), "message": message}
    leaves: list[str] = []
    groups: list[Any] = [error]
    while groups and len(leaves) < _MAX_ITEMS:
        for inner in islice(_exceptions_of(groups.pop(0)), _MAX_ITEMS):
            if issubclass(type(inner), BaseExceptionGroup):
                groups.append(inner)
            else:
                leaves.append(_type_name(type(inner)))
    return {"type": f"{_type_name(cls)}({', '.join(leaves)})", "message": message, "leaves": leaves}
