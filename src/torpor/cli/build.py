"""`torpor build`."""

import sys
from pathlib import Path

import click

from torpor.cli.image import access_options, make_access, say, store_of
from torpor.images.build import Builder, BuildOptions, build_args_from
from torpor.images.detect import suggest_dockerfile
from torpor.images.errors import BuildError
from torpor.images.names import parse_reference
from torpor.images.settings import load_settings


@click.command()
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("-t", "--tag", "tags", metavar="NAME:TAG", multiple=True, help="Name of the image.")
@click.option(
    "-f", "--file", "dockerfile", type=click.Path(path_type=Path), help="Default: DIR/Dockerfile."
)
@click.option("--build-arg", "build_args", metavar="K=V", multiple=True, help="Value of an ARG.")
@click.option("--target", metavar="STAGE", default="", help="Build up to this stage.")
@click.option("--secret", "secrets", metavar="id=ID,src=FILE", multiple=True, help="For RUN steps.")
@click.option("--no-cache", is_flag=True, help="Run every step again.")
@click.option("--pull", is_flag=True, help="Ask the registry for newer base images.")
@click.option("-y", "--yes", is_flag=True, help="Use a suggested Dockerfile without asking.")
@click.option("-q", "--quiet", is_flag=True, help="Print the image's digest alone.")
@access_options
@click.pass_obj
def build(
    data: str | None,
    directory: Path,
    tags: tuple[str, ...],
    dockerfile: Path | None,
    build_args: tuple[str, ...],
    target: str,
    secrets: tuple[str, ...],
    no_cache: bool,
    pull: bool,
    yes: bool,
    quiet: bool,
    creds: str | None,
    authfile: Path | None,
    insecure: bool,
) -> None:
    """Build an image from DIRECTORY and its Dockerfile.

    The RUN steps see the user's pip, npm, Go and apt configuration and proxies; the image does
    not. A Dockerfile is trusted like a Makefile: its RUN steps run as root on this machine.
    """
    store = store_of(data)
    text = ""
    if dockerfile is None and directory.is_dir() and not (directory / "Dockerfile").exists():
        text = _suggested(directory, yes)
    options = BuildOptions(
        directory=directory,
        dockerfile=dockerfile,
        dockerfile_text=text,
        tags=tuple(parse_reference(tag) for tag in tags),
        build_args=build_args_from(build_args),
        target=target,
        secrets=secrets,
        no_cache=no_cache,
        pull=pull,
    )
    progress = (lambda _: None) if quiet else say
    builder = Builder(
        store, load_settings(store.data_dir), make_access(creds, authfile, insecure), progress
    )
    digest = builder.build(options)
    image = store.inspect(digest)
    progress(f"image of {image.size_bytes / 1e6:.1f} MB" + "".join(f", {tag}" for tag in tags))
    click.echo(digest)


def _suggested(directory: Path, yes: bool) -> str:
    suggestion = suggest_dockerfile(directory)
    if suggestion is None:
        raise BuildError(
            f"{directory}: no Dockerfile, and neither package.json, pyproject.toml, "
            "requirements.txt, go.mod nor index.html to guess one from"
        )
    say(f"{directory} has no Dockerfile; by its {suggestion.reason}, this one is used:\n")
    say("".join(f"    {line}\n" for line in suggestion.text.splitlines()))
    if not yes and sys.stdin.isatty():
        click.confirm("Build with it?", default=True, abort=True, err=True)
    return suggestion.text
