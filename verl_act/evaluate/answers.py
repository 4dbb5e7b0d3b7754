"""Extract the final answer of a reply: the content of its last box, or the letter that it declares as its answer.

The last answer counts: a reply may correct an earlier one. Whether an answer is right is not decided here. Every
function runs in linear time.
"""

from __future__ import annotations

import re

_BOX = r"\boxed"
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_WITHOUT_BRACES = re.compile(r"\s*([0-9]+|[A-Za-z])(?![A-Za-z0-9])")
_OPENING = re.compile(r"\s*\{")

_MARKUP = re.compile(
    r"\\(?:(?:text|math)(?:bf|it|rm|sf|tt|normal)?|boldsymbol|bm|operatorname|ensuremath|displaystyle|fbox|boxed"
    r"|rm|bf|it|left|right|big|Big|large|Large|huge|Huge|q?quad)(?![A-Za-z])"
    r"|\\[()\[\],;:! ]|[{}$*`_~\"“”]|(?<!\w)['‘’]|['‘’](?!\w)"
)
_ANSWER_TAG = re.compile(r"<answer>", re.IGNORECASE)

_ADVERB = r"(?:clearly|therefore|thus|hence|then|indeed|simply|most|likely|probably|definitely|actually|still|now)"
_FILL = rf"(?:(?:{_ADVERB}|the|option|choice|letter|answer|statement)\b\s*|[,:]\s*)*"
_NAMED = r"(?:\b(?:answer|option|choice|solution)|答案)"
_IS = r"(?:\b(?:is|was|be)\b|[:=：]|->|→|[是为])"
_DECLARED = re.compile(
    rf"{_NAMED}(?:\s+(?:to|for|of|in|here|choice|option|must|should|would|has to)\b[^:.\n]{{0,60}}?)?"
    rf"\s*{_IS}\s*{_FILL}$",
    re.IGNORECASE,
)
_HEADING = re.compile(r"\banswer\s*$", re.IGNORECASE)
_CHOSEN = re.compile(
    rf"(?<!not )(?<!n't )(?:choose|chose|pick|select|go with|going with|opt for|settle on)\s+{_FILL}$", re.IGNORECASE
)
_CONCLUDED = re.compile(
    rf"\b(?:it is|it['’]s|it (?:must|has to|should) be|but|rather|instead|so|thus|therefore|hence|conclusion)\b"
    rf"[,:]?\s*{_FILL}$",
    re.IGNORECASE,
)
_NEGATED = re.compile(
    rf"(?:\bnot|n['’]t|\bnever|\bcannot be|rather than|instead of|other than|\bexcept|\bneither|\bnor)\s+{_FILL}$",
    re.IGNORECASE,
)
_SUPPOSED = re.compile(rf"\b(?:if|whether|suppose|assuming|unless)\s+{_FILL}$", re.IGNORECASE)
_CALLED_RIGHT = re.compile(
    rf"\s*(?:is|must be|would be|has to be)\s+(?:{_ADVERB}\s+)?(?:the\s+)?(?:(?:only|best|most likely)\s+)*"
    r"(?:correct|right|answer|best)\b",
    re.IGNORECASE,
)
_OTHERS_TOO = re.compile(
    r"\s*(?:(?:or|and|/|&)\s*(?:option\s+)?[(\[]?[A-D]\b|,\s*[(\[]?[A-D][)\]]?\s*(?:,|or\b|and\b|\.|$))"
)
_ENDS = re.compile(r"\s*(?:[.,;!]|$)|[ \t]*\n")
_ARTICLE = re.compile(r"\s+(?!(?:because|since|as|and|with|which|for|due|is|but)\b)[a-z]")

_MENTION = re.compile(
    r"(?<![\w\\^'’.-])[(\[]?\s?(?P<letter>[A-Da-d])(?!\w|['’-]\w|\s*=|°)(?:\s?(?P<closed>[)\]]))?[.:]?"
)
_LINE = re.compile(
    r"[ \t#>-]*(?:(?:the |final |correct )*(?:answer|option|choice)[ :]*)?[(\[]?([A-D])"
    r"(?:[)\].:]*|[)\].:]+[ \t]+(?P<text>\S.*))",
    re.IGNORECASE,
)
"""An option's letter by itself, or with the option's text after it."""
_PREFIX = re.compile(
    r"^(?:(?:the|my|final|correct|best|right|answer|option|choice|letter|is)\b\s*|[:=]\s*)+", re.IGNORECASE
)
_LETTER_FIRST = re.compile(r"(?:[(\[]\s*)?([A-Da-d])\s*(?:$|[.:)\]](?!\s*[A-D]\s*[.)]?$)|\s[-–—]\s)", re.DOTALL)
_BEFORE, _AFTER = 100, 160
"""How many characters before and after a letter are searched for what it means."""
_END = 20_000
"""How many characters at the end of a reply are searched for a declared answer."""


def last_box(reply: str) -> str | None:
    """The content of the last non-empty `\\boxed{...}`: None without a box, empty if the reply was cut inside it."""
    end = len(reply)
    while (start := reply.rfind(_BOX, 0, end)) >= 0:
        after = start + len(_BOX)
        if opening := _OPENING.match(reply, after):
            content = _to_closing_brace(reply, opening.end())
            if content is None:
                return ""
        else:
            token = _WITHOUT_BRACES.match(reply, after)
            content = token[1] if token else ""
        if content.strip():
            return content
        end = start
    return None


def chosen_letter(reply: str) -> str | None:
    """The letter A to D that `reply` answers with: the one in its last box or, without a box, the last one that it
    declares as its answer. None if there is none, or several."""
    box = last_box(reply)
    return _declared(_plain(reply[-_END:])) if box is None else _letter_in(_plain(box))


def _to_closing_brace(text: str, start: int) -> str | None:
    depth = 1
    for brace in _BRACE.finditer(text, start):
        depth += {"{": 1, "}": -1}.get(brace.group(), 0)
        if not depth:
            return text[start : brace.start()]
    return None


def _plain(text: str) -> str:
    """`text` without the markup of LaTeX and Markdown that may surround a letter."""
    return _MARKUP.sub("", _ANSWER_TAG.sub("answer: ", text)).strip()


def _letter_in(box: str) -> str | None:
    match = _LETTER_FIRST.match(_PREFIX.sub("", box))
    return match[1].upper() if match else None


def _declared(text: str) -> str | None:
    answer = None
    for mention in _MENTION.finditer(text):
        letter = mention["letter"].upper()
        before = text[max(0, mention.start() - _BEFORE) : mention.start()]
        after = text[mention.end() : mention.end() + _AFTER]
        before = re.split(r"[.!?]\s", before)[-1]
        if mention["closed"] is None and (
            (mention["letter"] == "A" and _ARTICLE.match(after))
            or (mention["letter"].islower() and not _ENDS.match(after))
        ):
            continue  # a word, or a letter of a formula
        if _NEGATED.search(before):
            answer = None if answer == letter else answer
        elif _is_declared(mention, before, after):
            answer = None if _OTHERS_TOO.match(after) else letter
    return answer or _last_line(text)


def _is_declared(mention: re.Match[str], before: str, after: str) -> bool:
    if _DECLARED.search(before) or _CHOSEN.search(before):
        return True
    ends = bool(_ENDS.match(after)) or mention.group().endswith((".", ":"))
    if ends and (_HEADING.search(before) or _CONCLUDED.search(before)):
        return True
    return bool(_CALLED_RIGHT.match(after)) and not _SUPPOSED.search(before)


def _last_line(text: str) -> str | None:
    """The letter on the last line. The option's text may follow it if no other line is an option."""
    lines = [_LINE.fullmatch(line.rstrip()) for line in text.splitlines() if line.strip()]
    last = lines[-1] if lines else None
    if last is None or (last["text"] and sum(line is not None for line in lines) > 1):
        return None
    return last[1].upper()
