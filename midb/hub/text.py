"""Text from anywhere on a page that nobody can break: templates, and what happens to each value that they show.

A card quotes rows, names and prompts that may hold markup, front matter, pipes, HTML or text that turns its direction. So
a template of ours, or one that a user brings, escapes by default: `{{ value }}` is one line of plain words, whatever is in
it. `{{ value | block }}` keeps its lines. Knows Markdown and HTML; not what is on the page.
"""

import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from midb.errors import MidbError

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

CLIP = 700  # characters of a quoted text: enough to see what became of it, and ten rows still make a page

# What Markdown, HTML, a table or a formula would read; as a reference it is the same character and nothing else. What turns
# the direction of text ends with its cell, and as a reference does not turn the file around for who reads its source.
_SPECIAL = {
    ord(sign): f"&#{ord(sign)};"
    for sign in "&<>\"'`*_{}[]|~$#\\!\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
}
_LINE_ENDS = re.compile("\r\n|[\n\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029]")
# A lone half of a surrogate pair, which JSON may hold, is in no file.
_CONTROLS = {code: 0x2400 + code for code in range(32) if code != 9} | dict.fromkeys(
    (127, *range(128, 160), *range(0xD800, 0xE000)), 65533
)
_LINE_START = re.compile(
    r"[ \t=+-]|\d{1,9}[.)](?:[ \t]|$)"
)  # a list, a rule, code: where a template begins a line with a value
_PLAIN = re.compile(r"[\w./@:+,=-]([\w./@:+,= -]*[\w./@:+,=-])?", re.ASCII)
_LONG_WORD = re.compile(
    r"[^\s\u0e00-\u0eff]{40}(?=\S)"
)  # Thai and Lao write without spaces, and browsers know where to break


def inline(value: object) -> "Markup":
    """A value as one line of plain words; whole numbers with commas, nothing for None."""
    from markupsafe import Markup

    if isinstance(value, Markup):
        return value
    if value is None:
        return Markup("")
    if isinstance(value, int) and not isinstance(value, bool):
        return Markup(f"{value:,}")
    return Markup(_started(" ".join(map(_escaped, _LINE_ENDS.split(str(value))))))


def block(value: str, clip: int | None = CLIP) -> "Markup":
    """A text with its lines, on one line of the file; cut after `clip` characters, saying how many there were."""
    from markupsafe import Markup

    cut = value if clip is None else value[:clip]
    said = "<br>".join(map(_escaped, _LINE_ENDS.split(cut)))
    return Markup(_started(said) + (f" <i>… ({len(value):,} characters)</i>" if len(cut) < len(value) else ""))


def code(value: object) -> "Markup":
    """A name as code; where a code span of Markdown could be closed by what is in it, one of HTML."""
    from markupsafe import Markup

    if _PLAIN.fullmatch(str(value)):
        return Markup(f"`{value}`")
    return Markup(f"<code>{inline(value)}</code>") if str(value) else Markup("")


def percent(share: float | None, digits: int = 0) -> "Markup":
    """A share as percent."""
    from markupsafe import Markup

    return Markup("–" if share is None else f"{share:.{digits}%}".replace("%", "\u00a0%"))


def span(interval: tuple[float, float] | None, digits: int = 1) -> "Markup":
    """The ends of an interval of a share, as percent."""
    from markupsafe import Markup

    return Markup(
        "–" if interval is None else f"{100 * interval[0]:.{digits}f} to {100 * interval[1]:.{digits}f}\u00a0%"
    )


def one(value: float | None) -> str:
    """A number to one decimal place."""
    return "" if value is None else f"{value:,.1f}"


def figure(value: object) -> str:
    """A measured number to four digits or to the unit; anything else as it is."""
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def plural(number: int, noun: str) -> str:
    """So many of them."""
    return f"{number:,} {noun}{'s' * (number != 1)}"


def counts(counted: Mapping[str, int]) -> str:
    """What was counted, the most frequent first."""
    return ", ".join(
        f"{name or 'no reason'} {count:,}" for name, count in sorted(counted.items(), key=lambda each: -each[1])
    )


def some(names: Sequence[object], most: int = 12) -> str:
    """The first of many names, and how many more there are."""
    return ", ".join(map(str, names[:most])) + (f" and {len(names) - most:,} more" if len(names) > most else "")


def render(template: str | Path | None, shipped: str, values: Mapping[str, Any]) -> str:
    """Fill in a template.

    Args:
        template: A user's own, as a file; None for the shipped one.
        shipped: The name of ours in `hub_cards`.
        values: What the template may name; any other name is an error, and not an empty place.

    Raises:
        FileNotFoundError: There is no such file.
        MidbError: The user's template is broken, or names what there is not.
    """
    from jinja2 import TemplateError, TemplateSyntaxError

    if template is None:
        page = _environment().get_template(shipped).render(values)
    else:
        own = Path(template).read_text(encoding="utf-8")
        try:
            page = _environment().from_string(own).render(values)
        except (TemplateError, TypeError, ValueError, ArithmeticError) as error:
            line = f", line {error.lineno}" if isinstance(error, TemplateSyntaxError) else ""
            raise MidbError(
                f"the template {template}{line} cannot be filled in ({error}); mend it: it may name {', '.join(sorted(values))}"
            ) from error
    text = re.sub(r"[ \t]+$", "", page, flags=re.MULTILINE)
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"  # of what conditions left out, no gaps


def _escaped(line: str) -> str:
    pieces = _LONG_WORD.sub("\\g<0>\n", line).split("\n")  # there is no line end left in a line
    return "<wbr>".join(piece.translate(_CONTROLS).translate(_SPECIAL) for piece in pieces)


def _started(text: str) -> str:
    return f"&#{ord(text[0])};{text[1:]}" if _LINE_START.match(text) else text


@cache
def _environment() -> "Environment":
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("midb.hub_cards", ""),
        autoescape=True,
        finalize=inline,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "block": block, "code": code, "percent": percent, "span": span, "one": one, "figure": figure, "counts": counts, "some": some,
        "plural": plural,
    }  # fmt: skip
    return environment
