"""One HTML file of a forecast that opens anywhere: the service's page with a view inside."""

import base64
import gzip
import json
import re
from collections.abc import Mapping
from functools import cache
from importlib.resources import files

PAGE_PACKAGE = "serve.page"
INDEX, STYLE, MAIN = "index.html", "page.css", "main.js"
# The file holds its own scripts and styles and may load nothing else.
POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"
)

_STYLE_LINK = '<link rel="stylesheet" href="page/page.css">'
_MAIN_SCRIPT = '<script type="module" src="page/main.js"></script>'
_IMPORT = re.compile(r'^import .* from "\./([\w-]+\.js)";\n', re.MULTILINE)
_EXPORT = re.compile(r"^export (?:async )?(?:const|function\*?|class) (\w+)", re.MULTILINE)


@cache
def page_sources() -> Mapping[str, str]:
    """Return the files of the service's page by name."""
    return {
        entry.name: entry.read_text("utf-8")
        for entry in files(PAGE_PACKAGE).iterdir()
        if entry.name.endswith((".html", ".css", ".js"))
    }


def saved_page(view: bytes, *, state: str = "") -> str:
    """Return the page with the view inside, as HTML.

    `state` is the hash of an address of the page, which says what is shown at first.
    """
    sources = page_sources()
    embedded = base64.b64encode(gzip.compress(view, mtime=0)).decode()
    policy = f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
    style = f"{policy}\n<style>\n{sources[STYLE]}</style>"
    values = {"EMBEDDED_VIEW": embedded, "EMBEDDED_HASH": state}
    data = "".join(f"globalThis.{name} = {_quote(value)};\n" for name, value in values.items())
    main = _in_html(_bundle(MAIN, sources, set()))
    scripts = f'<script>\n{data}</script>\n<script type="module">\n{main}</script>'
    return sources[INDEX].replace(_STYLE_LINK, style).replace(_MAIN_SCRIPT, scripts)


def _bundle(name: str, sources: Mapping[str, str], done: set[str]) -> str:
    """Return a module after the modules that it imports, as one script.

    Each module keeps its own names in a block. What it exports becomes global, so the names of
    exports must differ between modules.
    """
    done.add(name)
    source = sources[name]
    before = "".join(
        _bundle(imported, sources, done)
        for imported in _IMPORT.findall(source)
        if imported not in done
    )
    body = _IMPORT.sub("", source)
    exported = ", ".join(_EXPORT.findall(body))
    inside = re.sub(r"^export ", "", body, flags=re.MULTILINE)
    return f"{before}{{\n{inside}\nObject.assign(globalThis, {{ {exported} }});\n}}\n"


def _quote(text: str) -> str:
    """Return text as a JavaScript string that cannot end its script."""
    return json.dumps(text).replace("<", "\\u003c")


def _in_html(script: str) -> str:
    """Return a script that HTML does not end early."""
    return script.replace("</script", "<\\/script")
