"""The `companion` command: a thin layer over the package. Imports are made when a command needs them."""

from __future__ import annotations

import typer

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False)


@app.callback()
def companion() -> None:
    """A Jupyter-first course on latent diffusion."""


def main() -> None:
    """Entry point of the `companion` command."""
    app()


if __name__ == "__main__":
    main()
