"""Characters that are obeyed rather than read: what others wrote is shown with these escaped."""

_CONTROL = (*range(0x20), 0x7F, *range(0x80, 0xA0))  # C0, DEL and C1: they move cursors, set titles, end lines
_DIRECTION = (0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A))  # they reorder their neighbours
_BREAKS = (0x2028, 0x2029)
_ESCAPES = {code: f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" for code in (*_CONTROL, *_DIRECTION, *_BREAKS)}
_LINE_ESCAPES = {code: text for code, text in _ESCAPES.items() if code not in (0x09, 0x0A)}
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def shown(text: object) -> str:
    """Return a text in one line for a terminal: control characters and marks of direction as `\\x1b`."""
    return str(text).translate(_ESCAPES)


def shown_lines(text: object) -> str:
    """Return a text of several lines in the same way; tabs and the ends of its lines stay."""
    return str(text).translate(_LINE_ESCAPES)


def is_plain(text: str) -> bool:
    """Whether a text shows as it is, and can be written as UTF-8."""
    return shown(text) == text and is_text(text)


def is_text(text: str) -> bool:
    """Whether a text can be written as UTF-8; an undecodable file name cannot."""
    return not any(0xD800 <= ord(character) < 0xE000 for character in text)


def cell(value: object) -> object:
    """Return a value for a CSV file; what a spreadsheet would take for a formula gets an apostrophe before it."""
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value
