"""What is a secret, by its name or by how it looks, and a text without those in it.

A value is a secret by the name of its field, or of its key at any depth; and a text may have one inside: what stands
between a URL's scheme and its host, what follows Bearer, a JSON web token, a private key, a token that says whose it is
(`ghp_…`), and `name=value`, `"name": "value"` and `<name>value</name>` where the name is that of a secret. What is
true, false or nothing is no secret, and neither is a number under a name that counts.
"""

from __future__ import annotations

import re
from typing import Final

__all__ = ["ISSUED_LENGTH", "REDACT", "REDACTED", "Redactor", "shown_anyway"]

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

#: Characters of a name, and names of fields, that are remembered.
_MAX_NAME: Final = 256
_MAX_KNOWN: Final = 10_000
#: A whole number up to this may be a count.
_BIGGEST: Final = 1 << 64

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
ISSUED_LENGTH: Final = 36
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
    rf"(?P<index>(?:(?:\[|%5[Bb])[\w.-]{{0,64}}(?:\]|%5[Dd])){{0,4}})(?:\s|%20){{0,16}}{_SIGN}(?:\s|%20){{0,16}}"
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


def _bare(name: str) -> str:
    """A name as secrets are looked for in it: `X-Api-Key`, `api_key` and `apiKey` are one."""
    return name.lower().replace("_", "").replace("-", "").replace(" ", "").replace(".", "")


def _is_counted(name: str) -> bool:
    bare = _bare(name)
    return bare.endswith(_COUNTED) and not bare.endswith("ss")


def _is_pass(name: str) -> bool:
    return _bare(name).endswith("pass")


def shown_anyway(name: str, value: object) -> bool:
    """Whether a value under the name of a secret is none: true, false, nothing, or a number that counts."""
    cls = type(value)
    if value is None or cls is bool:
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


class Redactor:
    """Finds secrets: `parts` are those of names (see `REDACT`) whose values are none of anybody's business."""

    __slots__ = ("_bare_parts", "_signs", "_whole", "_words", "known")

    def __init__(self, parts: tuple[str, ...]) -> None:
        words = {part for part in parts if part[:1] == "_" and part[1:].isalnum()}
        self._bare_parts = tuple(filter(None, (_bare(part) for part in parts if part not in words)))
        self._words = tuple(part[1:].lower() for part in parts if part in words)
        self._whole = {part.lower() for part in parts if len(part) <= _SHORT and part.isalnum()}
        # What is in every text that has such a name: "pass" stands for "password" as well.
        some = {*self._bare_parts, *self._words}
        self._signs = tuple(part for part in some if not any(other in part for other in some - {part}))
        #: Names of fields that were judged before, and whether they are those of secrets.
        self.known: dict[str, bool] = {}

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
        if len(text) > ISSUED_LENGTH and ("_" in text or "-" in text or "AIza" in text or "SG." in text):
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
                hidden = judged[name] = self.names_secret(name)
            if not hidden and not (
                any(map(self.names_secret, _INDEX.findall(found["index"] or "")))
                or (not element and self._two_words(text, found.start(), name))
                or (named and name == "value")
            ):
                if name in ("name", "key"):
                    value = _VALUE.match(text, at)
                    named = value is not None and self.names_secret(value[0])
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
        if second in _KINDS and self.names_secret(before[1]):
            return True
        return any(part in first + second and part not in first for part in self._bare_parts)

    def _may_name_secret(self, text: str) -> bool:
        """Whether the name of a secret may be in a text. (Few have one.)"""
        bare = _bare(text)
        for sign in self._signs:  # noqa: SIM110 a third of the time
            if sign in bare:
                return True
        return False

    def names_secret(self, name: str) -> bool:
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

    def is_secret(self, name: str) -> bool:
        """The same of the name of a field, which comes again and again."""
        hidden = self.known.get(name)
        if hidden is None:
            hidden = self.names_secret(name)
            if len(self.known) < _MAX_KNOWN and len(name) <= _MAX_NAME:
                self.known[name] = hidden
        return hidden
