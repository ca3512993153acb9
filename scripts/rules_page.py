"""Write docs/rules.md from the linter's table of rules: `python scripts/rules_page.py`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from exporter.lowering.lint.rules import FAMILIES, RULES, Rule
from exporter.lowering.lint.versions import VERSIONS, TensorRtVersion

PAGE = Path(__file__).resolve().parent.parent / "docs" / "rules.md"
HEAD = """<!-- Written by scripts/rules_page.py from exporter/lowering/lint/rules; edit these. -->
# Rules

What `resnet-deploy inspect FILE.onnx` looks for. Each finding names its rule; `--strict` ends with 4 where there is an
error or a warning, `--json` lists them, `--github` annotates the file in a workflow. An id keeps its meaning for ever.

- **error**: TensorRT refuses the file, or computes other values than it says.
- **warning**: it is slower or not fused, may overflow, is wrong elsewhere, or cannot be told.
- **note**: it is as it should be, and worth knowing.

Rules "seen on TensorRT-RTX 1.7.1" are held against its parser and builder by this project's tests, which need no GPU.
What TensorRT itself does was seen by nobody here: its parser is built from the same source, its builder is another.
`--build` asks TensorRT-RTX about your own file, and says where it disagrees with the rules.

Without `--target-trt` a file is judged by what all of these take:

| `--target-trt` | comes with | newest opset | known from |
| --- | --- | ---: | --- |
"""


def page_of_rules() -> str:
    """The page in Markdown."""
    return "\n".join([HEAD + "\n".join(map(_version_row, VERSIONS.values())), *_index(), *_sections()]) + "\n"


def _version_row(one: TensorRtVersion) -> str:
    how = "its parser, which read it" if one.seen else "NVIDIA's documentation"
    return f"| `{one.name}` | {one.where} | {one.newest_opset} | {how} |"


def _index() -> Iterator[str]:
    yield "\n| rule | severity | what is found |\n| --- | --- | --- |"
    for rule in RULES.values():
        yield f"| [{rule.id}](#{rule.id.lower()}) | {rule.severity} | {rule.title} |"


def _sections() -> Iterator[str]:
    family = ""
    for rule in RULES.values():
        if rule.id[:3] != family:
            family = rule.id[:3]
            yield f"\n## {family}xx: {FAMILIES[family]}"
        yield _section(rule)


def _section(rule: Rule) -> str:
    known = [f"seen on {rule.seen}"] if rule.seen else ["seen on no builder"]
    known += [f"source: {rule.source}"] if rule.source else []
    return (
        f"\n### {rule.id}\n\n**{rule.title}** ({rule.severity}, {rule.kind})\n\n{rule.does}\n\n"
        f"To mend it: {rule.mend[0].lower() if rule.mend[1:2].islower() else rule.mend[0]}{rule.mend[1:]}\n\n"
        f"<small>{'; '.join(known)}</small>"
    )


if __name__ == "__main__":
    PAGE.write_text(page_of_rules())
