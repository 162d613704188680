"""Draw what ``mlxfn data`` shows of a data set with planted problems: on a terminal, and as a page.

``python docs/doctor.py`` writes both next to the page that explains them; a test fails when they no
longer name what is planted.
"""

from __future__ import annotations

import io
import re
import shutil
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.text import Text

ROOT = Path(__file__).parent.parent
PICTURE = ROOT / "docs" / "explanation" / "doctor.svg"
PAGE = ROOT / "docs" / "explanation" / "doctor.html"
WIDTH = 118


def main() -> None:
    """Run the command and write both."""
    sys.path.insert(0, str(ROOT))
    from tests.support.cli import on_terminal
    from tests.support.models import write_model
    from tests.support.planted import planted
    from tests.support.tokenizers import write_tokenizer

    with tempfile.TemporaryDirectory() as folder:
        room = Path(folder)
        write_tokenizer(write_model(room / "model"), "llama")
        planted(room / "rows")
        words = ["--model", "model", "--data", "rows", "--set", "data.max_seq_length=64"]
        done = on_terminal("data", *words, "--html", "page.html", cwd=room, columns=WIDTH)
        if done.code != 3:
            sys.exit(done.out)
        shutil.copy(room / "page.html", PAGE)
    shown = done.out.replace("\r\n", "\n")
    draw(f"$ mlxfn data rows.toml --html doctor.html\n{shown}")


def draw(shown: str) -> None:
    """Draw what a terminal showed."""
    console = Console(record=True, width=WIDTH, file=io.StringIO(), force_terminal=True)
    console.print(Text.from_ansi(shown))
    picture = console.export_svg(title="mlxfn data")
    # The fonts of whoever looks at it: no request to a font server.
    picture = re.sub(r"\s*@font-face \{.*?\}", "", picture, flags=re.DOTALL)
    PICTURE.write_text(picture, encoding="utf-8")


if __name__ == "__main__":
    main()
