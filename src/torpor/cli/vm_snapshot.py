"""`torpor vm snapshot`: store a named VM in a file."""

import asyncio
import os
import shutil
from datetime import UTC, datetime
from pathlib import Path

import click

from torpor.chance import runtime_that_repeats
from torpor.cli.output import say
from torpor.controller.sealing import Seal
from torpor.datadir import data_dir
from torpor.errors import TorporError
from torpor.images import ImageStore
from torpor.images.config import ImageConfig
from torpor.images.records import NewImage
from torpor.vmprocess import Refused, Stored, VMProcess
from torpor.vms.files import Description, write_snapshot
from torpor.vms.running import RunningVM, RunningVMs, file_identity, owner_of_this_user
from torpor.vms.templates import TemplateStore

_WITHIN_S = 10.0
"""How long a guest kernel may take to get to a point where it can be stopped."""

# Offsets in an EROFS image: its superblock, and the number of inodes in that.
_SUPERBLOCK = 1024
_INODES = 16


@click.command(name="snapshot")
@click.argument("name")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--keep-running", is_flag=True, help="Let the VM go on.")
@click.option("--with-template", is_flag=True, help="Put the template into FILE.")
@click.pass_obj
def vm_snapshot(
    data: str | None, name: str, file: Path, keep_running: bool, with_template: bool
) -> None:
    """Store the running VM NAME in FILE, and end it.

    FILE goes with this data directory: it names image and template by digest, and both stay
    there until `torpor image rm --force`. The first snapshot of a VM makes its template.
    """
    directory = data_dir(data)
    file = _destination(file)
    vm = RunningVMs(directory).find(name)
    if vm.about["tty"]:
        raise TorporError(f"VM {name} has a terminal (-t), which can't be stored: run it without")
    try:
        stored_bytes = asyncio.run(
            _snapshot(directory, vm, file, keep_running=keep_running, with_template=with_template)
        )
    except (Refused, ConnectionError) as error:
        raise TorporError(f"VM {name}: {error}") from error
    say(f"{file}: {stored_bytes} bytes, generation {vm.about['generation']} of VM {name}")
    runtime = runtime_that_repeats(vm.about["command"].split())
    if runtime is not None:
        say(
            f"{file}: {runtime} keeps random numbers in memory: VMs that are restored from this "
            "file more than once draw the same ones, keys and UUIDs too (docs/security.md)"
        )


def _destination(file: Path) -> Path:
    """The regular file that FILE is or will be. Raises TorporError where it can't be one."""
    try:
        found = file.resolve()
    except (OSError, RuntimeError) as error:
        raise TorporError(f"{file} cannot be written: {error}") from error
    if found.is_dir():
        raise TorporError(f"{file} is a directory: name a file in it")
    if found.exists() and not found.is_file():
        raise TorporError(f"{file} is no regular file: a snapshot takes the place of its file")
    if not found.parent.is_dir():
        raise TorporError(f"{file} cannot be written: there is no directory {found.parent}")
    return found


async def _snapshot(
    directory: Path, vm: RunningVM, file: Path, *, keep_running: bool, with_template: bool
) -> int:
    """Stops the VM; whatever fails before the file is safe lets it go on."""
    image = _image_of(directory, vm)
    process = await VMProcess.connect(str(vm.socket))
    try:
        generation = vm.about["generation"] + 1
        stored = await process.standby(generation, within_s=_WITHIN_S, busy=True)
        try:
            content = await _states(process, vm, _content(stored))
            size_bytes = _write(directory, vm, file, image, generation, content, with_template)
        except BaseException:
            await process.run()
            raise
        vm.about["generation"] = generation
        vm.write()
        if keep_running:
            await process.run()
        else:
            await process.stop()
        return size_bytes
    finally:
        process.close()


async def _states(process: VMProcess, vm: RunningVM, delta: bytes) -> tuple[bytes | None, bytes]:
    """A template that is to be stored, if there was none yet, and the delta against it."""
    if vm.about["template"] is not None:
        return None, delta
    # It was booted: all of it is the template, and nothing differs.
    return _content(await process.template(vm.about["uuid"])), b""


def _content(stored: Stored) -> bytes:
    with os.fdopen(stored.descriptor, "rb") as file:
        file.seek(0)
        return file.read()


def _write(
    directory: Path,
    vm: RunningVM,
    file: Path,
    image: str,
    generation: int,
    content: tuple[bytes | None, bytes],
    with_template: bool,
) -> int:
    made, delta = content
    templates = TemplateStore(directory)
    owner = owner_of_this_user()
    user = ("snapshot", f"{vm.about['uuid']}-{generation}")
    if made is None:
        digest = vm.about["template"]
        template = templates.read(digest, owner=owner)
        templates.refer(digest, user)
    else:
        template = made
        digest = templates.add(made, owner=owner, image=image, user=user)
    images = ImageStore(directory)
    images.refer("template", digest.removeprefix("sha256:"), image)
    images.refer(*user, image)
    description = Description(
        owner=owner,
        instance=vm.about["uuid"],
        generation=generation,
        name=vm.name,
        image=image,
        template=digest,
        command=vm.about["command"],
        interactive=vm.about["interactive"],
        memory=vm.about["memory"],
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        delta_bytes=len(delta),
        template_bytes=len(template) if with_template else 0,
    )
    seal = Seal.of(directory)
    write_snapshot(file, description, delta, template if with_template else b"", seal)
    return file.stat().st_size


def _image_of(directory: Path, vm: RunningVM) -> str:
    """The digest of the VM's image, which is put into the store if it is not there yet."""
    if vm.about["image"] is not None:
        return str(vm.about["image"])
    store = ImageStore(directory)
    erofs = Path(vm.about["erofs"])
    with store.staging() as staging:
        copy = staging / "root.erofs"
        shutil.copyfile(erofs, copy)
        if file_identity(erofs) != vm.about["erofs_identity"]:
            raise TorporError(f"{erofs}: not the image any more that VM {vm.name} runs from")
        superblock = copy.read_bytes()[_SUPERBLOCK:][:128]
        inodes = int.from_bytes(superblock[_INODES : _INODES + 8], "little")
        # What its files come to is not known without reading all of them: what they take here.
        new = NewImage(copy, ImageConfig(), files_bytes=copy.stat().st_size, inodes=inodes)
        digest = store.add(new)
    vm.about["image"] = digest
    vm.write()
    return digest
