"""Draw the pictures of README and docs into docs/images/: a terminal, the report of `make run`'s ResNet-20, the rooms.

The terminal shows what the command really prints, in 100 columns; the report is photographed in a Chromium that is
installed here, both light and dark. The rooms are those of README's code map. Needs the dev group (playwright).
"""

from __future__ import annotations

import html
import io
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Literal

import click
from PIL import Image
from playwright.sync_api import FloatRect, Page, sync_playwright
from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.terminal_theme import TerminalTheme
from rich.text import Text

ROOT = Path(__file__).resolve().parent.parent
COMMAND = "resnet-export resnet20 --fp16 --output build/resnet20-fp16 --force"
COLUMNS = 100
WIDTH, HEIGHT = 800, 735
"""Of one half of the report's picture, in CSS pixels, of which a screenshot takes two each way."""
SECOND_HALF = "Drift by block"
"""The heading that the right half begins with; the left one begins at the top."""
PALETTE = 128
GREY = [(112, 112, 112)] * 8
ROW, ROOM_WIDTH = 40, 860
"""Of the drawing of the rooms, in pixels."""
SANS = "system-ui, 'DejaVu Sans', sans-serif"
THEMES: dict[Literal["light", "dark"], TerminalTheme] = {
    "light": TerminalTheme((255, 255, 255), (36, 41, 47), [*GREY[:2], (17, 99, 41), *GREY[3:]]),
    "dark": TerminalTheme((13, 17, 23), (230, 237, 243), [*GREY[:2], (63, 185, 80), *GREY[3:]]),
}


@click.command(help=__doc__)
@click.option("--output", type=click.Path(path_type=Path), default=ROOT / "docs/images", help="Folder to write to.")
@click.option("--rooms", "rooms_only", is_flag=True, help="Draw the rooms alone: nothing is exported.")
def main(output: Path, *, rooms_only: bool) -> None:
    output.mkdir(parents=True, exist_ok=True)
    (output / "rooms.svg").write_text(rooms_svg((ROOT / "README.md").read_text()))
    if rooms_only:
        return
    name, *arguments = COMMAND.split()
    done = subprocess.run(
        [Path(sys.executable).with_name(name), *arguments], cwd=ROOT, check=True, capture_output=True, text=True
    )
    for scheme, theme in THEMES.items():
        (output / f"terminal-{scheme}.svg").write_text(terminal_svg(done.stdout, theme))
    photograph(ROOT / "build/resnet20-fp16/report.html", output)


def houses_from_readme(readme: str) -> dict[str, tuple[str, list[tuple[str, str]]]]:
    """Each package of README's code map: what it is for, and its rooms with what they are for."""
    blocks = [block for _, block in re.findall(r"^```(\w*)\n(.*?)^```", readme, re.DOTALL | re.M)]
    (code_map,) = [block for block in blocks if "\n  pipeline/" in block]
    houses: dict[str, tuple[str, list[tuple[str, str]]]] = {}
    for line in code_map.splitlines():
        name, text = line.strip().split("/", 1)
        if line.startswith(" "):
            houses[list(houses)[-1]][1].append((name, text.strip()))
        else:
            houses[name] = (text.strip(), [])
    return {name: house for name, house in houses.items() if house[1]}


def rooms_svg(readme: str) -> str:
    """The packages as boxes, their rooms as rows within; a file imports from its own row and those beneath it."""
    parts, y = [], 16
    for name, (purpose, rooms) in houses_from_readme(readme).items():
        height = 44 + len(rooms) * ROW + 6
        parts.append(f'<rect x="40" y="{y}" width="{ROOM_WIDTH - 56}" height="{height}" rx="8" class="house"/>')
        parts.append(f'<text x="56" y="{y + 28}" class="name">{name}</text>')
        parts.append(f'<text x="190" y="{y + 28}" class="text">{html.escape(purpose)}</text>')
        for place, (room, text) in enumerate(rooms):
            top = y + 44 + place * ROW
            box = f'x="56" y="{top}" width="{ROOM_WIDTH - 88}" height="{ROW - 6}" rx="4"'
            parts.append(f'<rect {box} class="room"/>')
            parts.append(f'<text x="70" y="{top + 22}" class="room-name">{room}</text>')
            parts.append(f'<text x="190" y="{top + 22}" class="text">{html.escape(text)}</text>')
        y += height + 14
    height = y + 2
    style = (
        f"text {{ font: 14px {SANS}; fill: #1f2933 }} .name {{ font-weight: 700; font-size: 16px }}"
        ".room-name { font-weight: 600 } .text { fill: #52606d }"
        ".house { fill: #f5f7fa; stroke: #9aa5b1 } .room { fill: #ffffff; stroke: #cbd2d9 }"
        ".arrow { stroke: #52606d; stroke-width: 2; fill: none }"
    )
    arrow = f'<path d="M20 20 V{height - 24} M12 {height - 34} L20 {height - 22} L28 {height - 34}" class="arrow"/>'
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {ROOM_WIDTH} {height}" width="{ROOM_WIDTH}" role="img">'
    )
    title = "<title>Packages and rooms; imports point downwards</title>"
    ground = f'<rect width="{ROOM_WIDTH}" height="{height}" rx="8" fill="#ffffff"/>'
    return "\n".join([head, title, f"<style>{style}</style>", ground, arrow, *parts, "</svg>"]) + "\n"


def terminal_svg(printed: str, theme: TerminalTheme) -> str:
    """A terminal with COMMAND and what it printed; uses the reader's monospaced font, and no network."""
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True, color_system="standard")
    console.print(Text(f"$ {COMMAND}", style="bold"))
    text = Text(printed.rstrip())
    text.highlight_regex(r"\bok$", "green")
    console.print(text)
    code = re.sub(r"@font-face \{\{.*?\}\}\n", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)
    code = code.replace("Fira Code, monospace", "ui-monospace, 'DejaVu Sans Mono', monospace")
    return console.export_svg(title="resnet-export", theme=theme, code_format=code, unique_id="terminal") + "\n"


def photograph(page: Path, output: Path) -> None:
    """Two parts of a report, side by side, as `report-light.png` and `report-dark.png`."""
    chromium = next((path for name in ("chromium", "google-chrome") if (path := shutil.which(name))), None)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for scheme in THEMES:
            tab = browser.new_page(
                viewport={"width": WIDTH, "height": HEIGHT}, color_scheme=scheme, device_scale_factor=2
            )
            tab.goto(page.as_uri())
            box = tab.get_by_role("heading", name=SECOND_HALF).bounding_box()
            assert box is not None, f"the report has no heading '{SECOND_HALF}'"
            halves = [_screenshot(tab, top) for top in (0.0, box["y"] - 24)]
            picture = Image.new("RGB", (2 * halves[0].width, halves[0].height))
            for place, half in enumerate(halves):
                picture.paste(half, (place * half.width, 0))
            few = picture.quantize(PALETTE, dither=Image.Dither.NONE)
            few.save(output / f"report-{scheme}.png", optimize=True)
            tab.close()
        browser.close()


def _screenshot(tab: Page, top: float) -> Image.Image:
    clip: FloatRect = {"x": 0, "y": top, "width": WIDTH, "height": HEIGHT}
    return Image.open(io.BytesIO(tab.screenshot(full_page=True, clip=clip))).convert("RGB")


if __name__ == "__main__":
    main()
