"""The plotting library that the page contains: Vega, Vega-Lite and Vega-Embed, as JavaScript."""

from __future__ import annotations

from functools import cache


@cache
def plotting_library() -> str:
    """The three libraries as one script that needs no network; about 0.9 MB.

    Raises:
        ValueError: the package that contains them is missing; the message names it.
    """
    try:
        from vl_convert import javascript_bundle
    except ModuleNotFoundError:
        raise ValueError(
            "the HTML page needs vl-convert-python, which contains its plotting library: "
            "pip install vl-convert-python"
        ) from None
    # Inside a function, its many short names cannot meet those of the page's own scripts.
    return f"(() => {{{javascript_bundle('window.vegaEmbed = vegaEmbed;')}\n}})();"
