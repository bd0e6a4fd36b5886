"""A benchmark's report as Markdown: all of it, and the part that the README shows."""

import re
from typing import Any

from common.markdown import markdown_table

SHOWN = ("extraction", "training", "sampling", "rows")
MARKED = re.compile(r"(<!-- measured: (\w+) -->\n).*?(<!-- end -->)", re.S)


def table(report: dict[str, Any]) -> str:
    """The report: each rate, its spread, its ratio to the first of its section, and what was left out."""
    lines = [f"{key}: {value}" for key, value in (report["machine"] | report["versions"]).items()]
    for name, section in report["sections"].items():
        slow = section["unit"] == "runs/s"  # what takes long is told in seconds
        arithmetic = f" Computed in {section['arithmetic']}." if "arithmetic" in section else ""
        lines += ["", f"**{name}** {section['about']}{arithmetic}", ""]
        rows = [["way", "time" if slow else section["unit"], "lowest – highest", "ratio"]]
        first = _first(section)
        for way, rate in section["rates"].items():
            low, middle, high = (_seconds(rate[k]) if slow else _number(rate[k]) for k in ("low", "median", "high"))
            spread = f"{high} – {low}" if slow else f"{low} – {high}"
            rows.append([way, middle, spread, _ratio(rate["median"], first)])
        lines.append(markdown_table(rows))
        lines += ["", *(f"Left out: {way}. {reason}" for way, reason in section.get("left_out", {}).items())]
        lines += [f"{case}: {taken}" for case, taken in section.get("memory", {}).items()]
    return "\n".join(lines)


def speeds(report: dict[str, Any]) -> str:
    """The README's table: the medians of the ways that compete, in what, and the machine."""
    rows, left_out = [["what", "way", "median", "ratio"]], []
    for name in SHOWN:
        section = report["sections"].get(name, {"rates": {}})
        for way, rate in section["rates"].items():
            ratio = _ratio(rate["median"], _first(section))
            rows.append([name, way, f"{_number(rate['median'])} {section['unit']}", ratio])
        left_out += [f"{name}, {way} ({reason})" for way, reason in section.get("left_out", {}).items()]
    machine = report["machine"]
    about = f"{machine['cpu']}, {machine['threads']} threads; {', '.join(machine.get('flags', []))}."
    return f"{markdown_table(rows)}\n\n{about}" + (f" Left out: {'; '.join(left_out)}." if left_out else "")


def in_readme(text: str, report: dict[str, Any]) -> str:
    """A README's text with the table of this report between `<!-- measured: speed -->` and `<!-- end -->`."""
    return between(text, "speed", speeds(report))


def between(text: str, name: str, made: str) -> str:
    """A text with what was made between `<!-- measured: name -->` and `<!-- end -->`."""
    return MARKED.sub(lambda found: f"{found[1]}{made}\n{found[3]}" if found[2] == name else found[0], text)


def _first(section: dict[str, Any]) -> float:
    """The rate that ratios are of: the first one, unless even that was left out."""
    return next((rate["median"] for rate in section["rates"].values()), 1.0)


def _ratio(median: float, first: float) -> str:
    return f"{median / first:.2f} ×"


def _seconds(rate: float) -> str:
    return f"{1 / rate:.3f} s" if rate < 10 else f"{1000 / rate:.2f} ms"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
