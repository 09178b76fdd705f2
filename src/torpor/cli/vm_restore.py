"""`torpor vm restore`: a VM that goes on from a file of `torpor vm snapshot`."""

import os
import uuid
from pathlib import Path

import click

from torpor.cli.vm_run import become_vmm, check_name
from torpor.controller.sealing import Seal
from torpor.datadir import data_dir
from torpor.errors import ImageNotFoundError, TorporError, UsageError
from torpor.images import ImageStore
from torpor.vms.files import SnapshotFile, check_owner, read_snapshot
from torpor.vms.running import managed_option, new_record, owner_of_this_user
from torpor.vms.templates import TemplateStore


@click.command(name="restore")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--name", metavar="NAME", help="Name and host name (default: the stored VM's).")
@click.option(
    "-i", "--interactive", is_flag=True, help="Connect standard input, if the VM had one."
)
@click.option(
    "-p", "--publish", "ports", multiple=True, metavar="[ADDR:]HOST:GUEST", help="Publish a port."
)
@click.option("--egress", metavar="SCOPE", help="Own connections to: none, public, private.")
@click.option("--egress-allow", "allow", multiple=True, metavar="CIDR")
@click.option("--egress-deny", "deny", multiple=True, metavar="CIDR")
@click.pass_obj
def vm_restore(
    data: str | None,
    file: Path,
    name: str | None,
    interactive: bool,
    ports: tuple[str, ...],
    egress: str | None,
    allow: tuple[str, ...],
    deny: tuple[str, ...],
) -> int:
    """Run the VM that is stored in FILE in the foreground, from where it was.

    Any number may run from one FILE, under different names: each is an instance of its own.
    Connections that were open are reset. The exit status is as of `torpor vm run`.
    """
    directory = data_dir(data)
    stored = read_snapshot(file, Seal.of(directory))
    about = stored.description
    owner = owner_of_this_user()
    check_owner(file, about, owner)
    if interactive and not about.interactive:
        raise UsageError(f"-i: the VM in {file} was started without standard input")
    images = ImageStore(directory)
    try:
        image = images.resolve(about.image)
    except ImageNotFoundError:
        raise ImageNotFoundError(
            f"{file}: its image {about.image} is not in {images.directory}: build or pull it again"
        ) from None
    # Kept over exec: the image is in use until the VM ends.
    os.set_inheritable(images.hold(image), True)

    name = check_name(name or about.name)
    template = _template(directory, stored, owner)
    record = new_record(
        uuid=uuid.uuid4().hex,
        image=about.image,
        erofs=image.erofs,
        command=about.command,
        memory=about.memory,
        ports=list(ports),
        interactive=interactive,
        tty=False,
        generation=about.generation,
        template=about.template,
    )
    saved = {
        "template_fd": _inherited("template", template),
        "template": about.template.removeprefix("sha256:"),
        "delta_fd": _inherited("delta", stored.delta) if stored.delta else None,
    }
    words = ["run", *managed_option(directory, name, record, saved), "--name", name]
    words += ["-i"] if interactive else []
    words += ["--egress", egress] if egress else []
    for option, values in (("-p", ports), ("--egress-allow", allow), ("--egress-deny", deny)):
        for value in values:
            words += [option, value]
    return become_vmm([*words, "--image", str(image.erofs)], interactive)


def _template(directory: Path, stored: SnapshotFile, owner: str) -> bytes:
    """The template of a file, which is in the data directory from now on."""
    about = stored.description
    templates = TemplateStore(directory)
    user = ("snapshot", f"{about.instance}-{about.generation}")
    if stored.template:
        templates.add(stored.template, owner=owner, image=about.image, user=user)
        ImageStore(directory).refer("template", about.template.removeprefix("sha256:"), about.image)
        return stored.template
    try:
        return templates.read(about.template, owner=owner)
    except TorporError as error:
        raise TorporError(f"the snapshot's {error}") from error


def _inherited(name: str, content: bytes) -> int:
    """A memory file that the next program finds under the same number."""
    descriptor = os.memfd_create(name, 0)
    with os.fdopen(descriptor, "wb", closefd=False) as file:
        file.write(content)
    return descriptor
