"""Claim: the documentation's site has every page and public name, and links lead somewhere.

`make docs` builds it and is stricter; this finds what would break it without MkDocs.
"""

import ast
import importlib.util
import posixpath
import re
import subprocess
import sys
from pathlib import Path

import pathspec
import pytest

pytestmark = pytest.mark.quick

ROOT = Path(__file__).parents[2]
LAZY = ("twinvit", "twinvit.port", "torch_vit", "jax_vit")  # packages that import on first use


def load_hook():
    spec = importlib.util.spec_from_file_location("site_pages", ROOT / "docs/site_pages.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


site = load_hook()
PAGES = sorted(
    {path for path in site.outside() if path.endswith(".md")}
    | {path.relative_to(ROOT).as_posix() for path in ROOT.glob("docs/**/*.md")}
)
README = ROOT / "README.md"


def test_every_page_is_in_the_navigation_once():
    nav = (ROOT / "mkdocs.yml").read_text().partition("nav:")[2].partition("theme:")[0]
    assert sorted(re.findall(r"[:-] (\S+\.md)", nav)) == sorted(map(site.place, PAGES)), (
        "list each page of docs/ in the nav of mkdocs.yml"
    )


@pytest.mark.parametrize("page", [*PAGES, "README.md"])
def test_links_lead_to_files(page):
    for link in site._LINK.findall((ROOT / page).read_text()):
        target = ROOT / posixpath.dirname(page) / link
        assert target.is_file(), f"{page}: {link} is not a file of the repository"


def test_figures_of_the_readme_are_files():
    shown = re.findall(r'(?:src|srcset)="([^"]+)"', README.read_text())
    assert len(shown) == 2 and all((ROOT / path).is_file() for path in shown)


def anchors(page: Path) -> set[str]:
    """What GitHub and the site call the headings of a page."""
    headings = re.findall(r"^#+ (.*)", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for text in headings}


@pytest.mark.parametrize("page", [*PAGES, "README.md"])
def test_links_lead_to_headings(page):
    links = re.findall(r"\]\(([^()\s#:]*\.md|)#([^)\s]+)\)", (ROOT / page).read_text())
    for link, heading in links:
        target = ROOT / posixpath.dirname(page) / link if link else ROOT / page
        assert heading in anchors(target), f"{page}: {link} has no heading #{heading}"


def code(text: str) -> list[str]:
    """The lines of the code blocks of a page, fenced or indented."""
    fenced, found = False, []
    for line in text.splitlines():
        if line.lstrip().startswith("```"):
            fenced = not fenced
        elif fenced or line.startswith("    "):
            found.append(line.removeprefix("" if fenced else "    "))
    return found


FIRST_PAGES = ("README.md", "docs/index.md", "docs/port.md", "docs/training.md")


def test_code_of_the_first_pages_fits_its_column():
    """Wider lines are cut off beside the navigation, and on the package's page."""
    for page in (ROOT / name for name in (*FIRST_PAGES, "docs/troubleshooting.md")):
        lines = code(page.read_text())
        assert len(lines) > 5 and max(map(len, lines)) <= 72, (page, max(lines, key=len))


def test_the_readme_is_short():
    text = README.read_text()
    assert len(text.splitlines()) <= 120
    assert text.index("make setup") < text.index("from twinvit import")  # install before use


def test_titles_name_both_faces():
    for path in ("pyproject.toml", "mkdocs.yml", "CITATION.cff"):
        line = re.search(
            r"^(?:description = |site_description: |title: )(.*)", (ROOT / path).read_text(), re.M
        )
        assert all(word in line[1] for word in ("port", "PyTorch", "JAX", "Vision Transformers"))


def test_the_site_leaves_out_no_file_that_a_page_links_to():
    left_out = re.search(r'^exclude_docs: "(.*)"', (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    rule = pathspec.GitIgnoreSpec.from_lines([left_out[1]])
    files = [*site.outside(), *(p.relative_to(ROOT).as_posix() for p in ROOT.glob("docs/**/*.*"))]
    found = {path for path in files if rule.match_file(site.place(path))}
    assert {path for path in found if "__pycache__" not in path} == {
        "docs/site_machine.py",
        "docs/site_pages.py",
        "docs/site_reference.py",
    }
    assert "examples/explain_a_port.py" in files


def test_dead_links_of_the_built_site_are_found(tmp_path):
    page = '<a href="b.html#x">b</a> <img src=c.png> <a href="https://x.org/d">d</a> <a href="#e">'
    (tmp_path / "a.html").write_text(page)
    (tmp_path / "b.html").write_text('<a href="api/f.html">f</a>')
    assert site.dead_links(tmp_path) == ["a.html: c.png", "b.html: api/f.html"]


READ_HELP = """
import ast, sys, types
from pathlib import Path
root = Path(sys.argv[1])
sys.path[:0] = [str(root), str(root / "docs")]
# What the extension's definitions need of Griffe, which is not installed beside the tests.
sys.modules["griffe"] = types.SimpleNamespace(
    **dict.fromkeys(["Extension", "Attribute", "Function", "Module"], object)
)
from site_reference import help_of
read = 0
for path in (p for name in ("shared_vit", "jax_vit", "torch_vit", "twinvit")
             for p in sorted((root / name).rglob("*.py"))):
    module = ".".join(path.relative_to(root).with_suffix("").parts)
    for cls in ast.parse(path.read_text()).body:
        for field in cls.body if isinstance(cls, ast.ClassDef) else ():
            if isinstance(field, ast.AnnAssign) and isinstance(field.value, ast.Call):
                if ast.unparse(field.value.func) == "setting":
                    text = help_of(f"{module}.{cls.name}.{field.target.id}")
                    assert text.strip() and "{" not in text, text
                    read += 1
print(read)
"""


def test_the_reference_reads_the_help_of_every_setting():
    """Without any installed package (-S), as the environment of `make docs` has no framework."""
    command = [sys.executable, "-I", "-S", "-c", READ_HELP, str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 70


def test_links_are_moved_with_the_pages():
    text = "[a](docs/port.md#limits) ![b](docs/curves.png) [c](benchmarks/results/README.md)"
    assert site.for_site("CONTRIBUTING.md", text) == (
        "[a](port.md#limits) ![b](curves.png) [c](benchmarks/results/README.md)"
    )
    text = "[a](../README.md) [b](../benchmarks/results/parity_cpu.json) [c](port.md) [d](no.md)"
    assert site.for_site("docs/lockstep.md", text) == (
        "[a](index.md) [b](benchmarks/results/parity_cpu.json) [c](port.md) [d](no.md)"
    )
    assert site.for_site("docs/api/port.md", "[a](../port.md)") == "[a](../port.md)"
    assert "benchmarks/results/parity_cpu.json" in site.outside()
    for page in PAGES:
        assert site.source(site.place(page)) == page


def test_a_figure_is_shown_as_the_readers_scheme_asks():
    assert site.for_site("docs/index.md", "![a b](segments.png)\n\nText") == (
        "![a b](segments.png#only-light)\n![a b](segments-dark.png#only-dark)\n\nText"
    )
    assert site.for_site("docs/parity.md", "![a](curves.png)") == "![a](curves.png)"


def test_a_list_after_text_is_a_list():
    fence = "```\nx\n- y\n```\n"
    assert site.for_site("README.md", f"Added\n- a\n- b\n{fence}") == f"Added\n\n- a\n- b\n{fence}"


@pytest.mark.parametrize("package", LAZY)
def test_type_checkers_and_the_reference_see_the_public_names(package):
    module = importlib.import_module(package)
    tree = ast.parse(Path(module.__file__).read_text())
    typed = {
        alias.name: node.module
        for block in tree.body
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert set(typed) - {"__version__"} == set(module.__all__) - {"__version__"}
    for name, home in typed.items():
        assert getattr(module, name) is getattr(importlib.import_module(home), name)


def test_every_public_package_has_a_page():
    documented = {
        name
        for path in ROOT.glob("docs/api/*.md")
        for name in re.findall(r"^::: (\S+)$", path.read_text(), re.MULTILINE)
    }
    public = {*LAZY, "shared_vit", "shared_vit.weights", "shared_vit.data", "twinvit.lockstep"}
    assert documented == public
