"""What mkdocs calls as it builds the site: pages made from the package itself, and links that work in both places."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(Path(__file__).parent))

import api_pages  # noqa: E402
import commands_page  # noqa: E402
import notebooks  # noqa: E402
import recipes_page  # noqa: E402
import registry_pages  # noqa: E402

SHIM = re.compile(r"https://[\w.]+/iframe-worker/shim")
LINK = re.compile(r"(\])\(([^()\s:#]+?)(#[^()\s]*)?\)")
CODE = re.compile(r"<code\b.*?</code>", re.DOTALL)
FLAG = re.compile(r"(?<![\w-])(--[a-z][\w.-]*|lightning-sora)")
RESULTS = ROOT / "benchmarks" / "results"
#: Where the site keeps what the repository keeps elsewhere.
MOVED = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    **{f"benchmarks/results/{file.name}": f"results/{file.name}" for file in RESULTS.glob("*.*")},
    **{f"docs/notebooks/{name}.ipynb": f"notebooks/{name}.md" for name in notebooks.NAMES},
}


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Adds the pages made here to the navigation."""
    sections = {name: pages for entry in config.nav or [] for name, pages in entry.items() if isinstance(pages, list)}
    sections["Notebooks"] += [{told: f"notebooks/{name}.md"} for name, told in notebooks.NAMES.items()]
    sections["Parts"] += ["parts/index.md", *({kind: f"parts/{kind}.md"} for kind in registry_pages.kinds())]
    sections["Measured"] += _measured()
    return config


def _measured() -> list[dict[str, str]]:
    """The pages of results by their titles, and by their files where two have one title."""
    files = sorted(RESULTS.glob("*.md"))
    titles = [file.read_text().partition("\n")[0].lstrip("# ").replace("`", "") for file in files]
    titles = [re.sub(r"^(\w+): (model|data)\.\w+$", r"Ablation: \1", title) for title in titles]
    return [
        {title if titles.count(title) == 1 else f"{title} ({file.stem.rpartition('_')[0]})": f"results/{file.name}"}
        for title, file in zip(titles, files, strict=True)
    ]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Makes the pages that nobody writes."""
    pages = {
        "index.md": (ROOT / "README.md").read_text(),
        "contributing.md": (ROOT / "CONTRIBUTING.md").read_text(),
        "recipes.md": recipes_page.text(ROOT / "recipes"),
        "commands.md": commands_page.text(),
        **api_pages.pages(),
        **registry_pages.pages(),
        **{f"results/{file.name}": file.read_text() for file in RESULTS.glob("*.md")},
        **{f"notebooks/{name}.md": notebooks.page(name) for name in notebooks.NAMES},
    }
    pictures = {f"results/{file.name}": file.read_bytes() for file in RESULTS.glob("*.png")}
    for path, content in {**pages, **pictures}.items():
        files.append(File.generated(config, path, content=content))
    return files


def on_page_markdown(markdown: str, /, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turns links between files of the repository into links between pages, and drops the notes of the tests."""
    path = page.file.src_uri
    place = next((old for old, new in MOVED.items() if new == path), f"docs/{path}")

    up = "../" * path.count("/")

    def turned(link: re.Match[str]) -> str:
        target, anchor = link[2], link[3] or ""
        file = (ROOT / place).parent.joinpath(target).resolve()
        if not file.is_relative_to(ROOT):
            return link[0]
        there = str(file.relative_to(ROOT))
        there = MOVED.get(there, there.removeprefix("docs/"))
        return f"{link[1]}({up}{there}{anchor})"

    shown = re.split(r"(^ *```.*?^ *```$)", re.sub(r"<!-- .*? -->\n", "", markdown), flags=re.DOTALL | re.MULTILINE)
    shown[::2] = [LINK.sub(turned, words) for words in shown[::2]]  # between them stands code
    return "".join(shown)


def on_post_page(output: str, /, *, page: Page, config: MkDocsConfig) -> str:
    """Takes the script that search needs, when it is read from the disk, from the site and not from the network."""
    return CODE.sub(_whole_flags, SHIM.sub(f"{'../' * page.url.count('/')}iframe-worker.js", output))


def _whole_flags(code: re.Match[str]) -> str:
    """Code whose flags no line breaks after their hyphens."""
    words = re.split(r"(<[^>]*>)", code[0])
    words[::2] = [FLAG.sub(r'<span class="flag">\1</span>', word) for word in words[::2]]
    return "".join(words)


def on_post_template(output: str, /, *, template_name: str, config: MkDocsConfig) -> str:
    """The same of the page that says that there is none."""
    return SHIM.sub("/iframe-worker.js", output)
