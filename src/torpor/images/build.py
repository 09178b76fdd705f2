"""`torpor build`: a directory with a Dockerfile becomes an image of the store.

Bases come from the store, else from the mirror and registry, else they are made here if they are
known. buildah builds; its result goes the way of every other image through `importing`.
"""

import os
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torpor.errors import TorporError
from torpor.images.bases import known_base, make_base
from torpor.images.buildah import Buildah, image_id_of
from torpor.images.config import parse_config
from torpor.images.convert import BUILD_MOUNT, full_disk_explained
from torpor.images.dockerfile import (
    MAX_DOCKERFILE_BYTES,
    Dockerfile,
    Instruction,
    base_images,
    last_and_its_bases,
    parse_dockerfile,
    stages_to,
)
from torpor.images.errors import BuildError, RegistryUnreachableError
from torpor.images.exporting import write_dir_image
from torpor.images.importing import add_dir_image
from torpor.images.names import Reference, parse_reference
from torpor.images.settings import ImageSettings
from torpor.images.store import ImageStore
from torpor.images.tools import Finished, raise_if_disk_full, require_root
from torpor.images.translate import Translation, translate
from torpor.images.transports import Access, Skopeo, skopeo_message
from torpor.images.userconfig import write_user_config

_STEP = re.compile(r"(?:\[(\d+)/\d+\] )?STEP (\d+)/\d+: (.*)\Z")
_NOISE = re.compile(
    r"--> [0-9a-f]{12}\Z|[0-9a-f]{64}\Z|(?:\[\d+/\d+\] )?COMMIT\b|Successfully tagged |"
    r'time="[^"]*" level=(?:warning|error) |subprocess exited with status |'
    r"(?:Error: |error )building at STEP "
)
_FAILED_STEP = re.compile(r'(?:Error: |error )?building at STEP "(?:.*?)": (.*)\Z', re.DOTALL)

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class BuildOptions:
    """What `torpor build` was asked for. `dockerfile` and `target` may be empty."""

    directory: Path
    dockerfile: Path | None = None
    dockerfile_text: str = ""
    """The Dockerfile itself, where there is no file."""
    tags: tuple[Reference, ...] = ()
    build_args: Mapping[str, str] = field(default_factory=dict)
    target: str = ""
    secrets: tuple[str, ...] = ()
    no_cache: bool = False
    pull: bool = False
    """Ask the registry for newer bases, even where an older one is at hand."""
    no_port: str = ""
    """What to say, in place of building, of an image that will expose no TCP port."""


class Builder:
    """Builds images into one store."""

    def __init__(
        self, store: ImageStore, settings: ImageSettings, access: Access, progress: Progress
    ) -> None:
        self._store = store
        self._settings = settings
        self._access = access
        self._progress = progress

    def build(self, options: BuildOptions) -> str:
        """Builds and returns the image's digest. Raises BuildError pointing into the Dockerfile."""
        require_root("torpor build")
        dockerfile = _load(options)
        with (
            Buildah.opened(self._store.data_dir) as buildah,
            self._store.staging() as staging,
            full_disk_explained(self._store.data_dir),
        ):
            image_id = self._run_buildah(buildah, staging, dockerfile, options)
            tag = options.tags[0] if options.tags else None
            digest = self._store.find_source(f"config:{image_id}")
            if digest is None:
                directory = staging / "image"
                self._progress("exporting layers")
                buildah.push(image_id, f"dir:{directory}")
                digest = add_dir_image(
                    self._store,
                    staging,
                    directory,
                    tag,
                    self._settings,
                    self._progress,
                    tag.familiar if tag else options.directory.name,
                )
        for tag in options.tags:
            self._store.tag(digest, tag)
        return digest

    def make_base(self, name: str) -> str:
        """Makes a base image from packages, whatever the store or a registry has."""
        return make_base(self._store, name, self._settings, self._build_recipe, self._progress)

    def _build_recipe(self, directory: Path, reference: Reference) -> str:
        self._progress(f"making {reference.familiar} from packages")
        return self.build(BuildOptions(directory, tags=(reference,)))

    def _run_buildah(
        self, buildah: Buildah, staging: Path, dockerfile: Dockerfile, options: BuildOptions
    ) -> str:
        if options.no_port and not self._exposes(buildah, staging, dockerfile, options):
            raise BuildError(options.no_port)
        names = {
            image: self._provide_base(buildah, staging, image, options)
            for image in base_images(dockerfile, options.target)
        }
        variables = write_user_config(staging / "user")
        heredocs = staging / "heredocs"
        heredocs.mkdir()

        def heredoc_file(text: str) -> tuple[str, str]:
            name = str(len(list(heredocs.iterdir())))
            (heredocs / name).write_text(text)
            (heredocs / name).chmod(0o644)
            os.utime(heredocs / name, (0, 0))
            return "torpor-heredocs", name

        translation = translate(
            dockerfile,
            lambda image: names.get(image, image),
            variables,
            heredoc_file,
            # Stages behind the one that is wanted are not built, nor are their bases there.
            lambda image: buildah.environment(image) if image in names.values() else {},
        )
        translated = staging / "Dockerfile"
        iid_file = staging / "iid"
        arguments = [
            f"--file={translated}",
            f"--iidfile={iid_file}",
            f"--volume={staging / 'user'}:{BUILD_MOUNT}",
            f"--build-context=torpor-heredocs={heredocs}",
        ]
        arguments += [f"--build-arg={name}={value}" for name, value in options.build_args.items()]
        arguments += [f"--secret={secret}" for secret in options.secrets]
        if options.no_cache:
            arguments.append("--no-cache")
        if os.environ.get("SOURCE_DATE_EPOCH"):
            arguments.append(f"--timestamp={os.environ['SOURCE_DATE_EPOCH']}")
        steps = _Steps(dockerfile, self._progress)

        def built(part: Translation, *more: str, offline: bool = False) -> str:
            translated.write_text(part.text)
            steps.translation = part
            words = [*arguments, *more, os.fspath(options.directory.absolute())]
            finished = buildah.build(words, steps.line, offline=offline)
            if finished.status != 0:
                raise_if_disk_full(finished)
                raise _build_error(finished, dockerfile, steps.current)
            steps.finish()
            return image_id_of(iid_file)

        # buildah has one network for all steps of a build.
        while split := translation.split(len(stages_to(dockerfile, options.target))):
            image = built(split.before).removeprefix("sha256:")
            image = built(split.step(image), offline=True).removeprefix("sha256:")
            translation = split.rest(image)
        return built(translation, *([f"--target={options.target}"] if options.target else []))

    def _exposes(
        self, buildah: Buildah, staging: Path, dockerfile: Dockerfile, options: BuildOptions
    ) -> bool:
        """Whether an image will expose a TCP port, or may."""
        stages = last_and_its_bases(dockerfile, options.target)
        for stage in stages:
            for instruction in stage.instructions:
                words = instruction.rest.split()
                tcp = any(not word.lower().endswith("/udp") for word in words)
                if instruction.keyword == "EXPOSE" and tcp:
                    return True
        base = stages[-1].base
        if base == "scratch":
            return False
        config = buildah.config(self._provide_base(buildah, staging, base, options))
        # What it has for those that build on it may be an EXPOSE.
        return bool(parse_config(config, base).tcp_ports) or bool(config.get("OnBuild"))

    def _provide_base(
        self, buildah: Buildah, staging: Path, image: str, options: BuildOptions
    ) -> str:
        """Brings a base image into buildah's storage and returns its name there."""
        digest = None if options.pull else self._store.find(image)
        if digest is not None:
            return self._load(buildah, staging, digest)
        reference = parse_reference(image)
        if not options.pull and buildah.has_image(reference.canonical):
            return reference.canonical
        try:
            self._progress(f"pulling {reference.familiar}")
            Skopeo(staging, self._settings, self._access, buildah.env()).fetch(
                reference, buildah.transport(reference.canonical), buildah.directory
            )
        except RegistryUnreachableError as error:
            if known_base(image) is None:
                raise
            self._progress(f"{error}\n{image} is made on this machine from packages instead")
            return self._load(buildah, staging, self.make_base(image))
        return reference.canonical

    def _load(self, buildah: Buildah, staging: Path, digest: str) -> str:
        name = f"localhost/torpor-store:{digest.removeprefix('sha256:')}"
        if not buildah.has_image(name):
            image = self._store.resolve(digest)
            self._progress(f"loading base image {digest[:19]}")
            directory = staging / f"base-{digest[-12:]}"
            with self._store.held(image):
                write_dir_image(image, directory)
            Skopeo(staging, self._settings, env=buildah.env()).convert(
                f"dir:{directory}", buildah.transport(name), digest, buildah.directory
            )
        return name


class _Steps:
    """Turns buildah's output into progress, and knows which instruction it is at.

    Where a build has several parts, `translation` is the one that is built, and what it repeats of
    those before is not told again.
    """

    def __init__(self, dockerfile: Dockerfile, progress: Progress) -> None:
        self.translation = Translation((), ())
        self._dockerfile = dockerfile
        self._progress = progress
        self._told: set[int] = set()
        self._is_told = False
        """The step that is under way was told of, and its end is to be."""
        self._began_s = time.monotonic()
        self._cached = False
        self.current: Instruction | None = None

    def line(self, text: str) -> None:
        """Takes a line of buildah's."""
        match = _STEP.match(text)
        if match is not None:
            self._step(int(match[1] or 1) - 1, int(match[2]) - 1)
        elif text.startswith("--> Using cache "):
            self._cached = True
        elif not _NOISE.match(text):
            self._progress(f"  {text}")

    def finish(self) -> None:
        """Ends the last step."""
        if not self._is_told:
            return
        self._is_told = False
        took_s = time.monotonic() - self._began_s
        if self._cached:
            self._progress("  CACHED")
        elif took_s >= 0.1:
            self._progress(f"  done in {took_s:.1f} s")

    def _step(self, stage_number: int, step_number: int) -> None:
        steps = self.translation.steps
        found = None
        if stage_number < len(steps) and step_number < len(steps[stage_number]):
            found = steps[stage_number][step_number]
        if found is None or found is self.current:
            return
        self.finish()
        self.current = found
        self._cached = False
        self._began_s = time.monotonic()
        if id(found) in self._told:
            return
        self._told.add(id(found))
        self._is_told = True
        stages = self._dockerfile.stages
        for number, stage in enumerate(stages, 1):
            own = [id(instruction) for instruction in stage.instructions]
            if id(found) in own:
                where = f"{own.index(id(found)) + 1}/{len(own)}"
                if len(stages) > 1:
                    where = f"stage {number}/{len(stages)} {where}"
                self._progress(f"[{where}] {found.keyword} {' '.join(found.rest.split())}")


def build_args_from(words: tuple[str, ...], env: Mapping[str, str] = os.environ) -> dict[str, str]:
    """--build-arg K=V, or K with its value from the environment, as docker takes it."""
    found = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not name:
            raise BuildError(f"--build-arg {word!r}: must be NAME=VALUE or NAME")
        if equals:
            found[name] = value
        elif name in env:
            found[name] = env[name]
    return found


def _load(options: BuildOptions) -> Dockerfile:
    if not options.directory.is_dir():
        raise BuildError(f"{options.directory}: no such directory")
    if options.dockerfile_text:
        path, text = Path("Dockerfile"), options.dockerfile_text
    else:
        path = options.dockerfile or options.directory / "Dockerfile"
        try:
            with path.open("rb") as file:
                content = file.read(MAX_DOCKERFILE_BYTES + 1)
            text = content.decode()
        except OSError as error:
            raise BuildError(f"{path}: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise BuildError(f"{path}: no text: byte {error.start} is not UTF-8") from error
        if len(content) > MAX_DOCKERFILE_BYTES:
            raise BuildError(f"{path}: larger than {MAX_DOCKERFILE_BYTES:,} bytes")
    return parse_dockerfile(text, path, options.build_args)


def _build_error(finished: Finished, dockerfile: Dockerfile, at: Instruction | None) -> TorporError:
    said = skopeo_message(finished.output)
    match = _FAILED_STEP.match(said)
    reason = match[1] if match else said
    status = re.search(r"exit status (\d+)\Z", reason)
    if status is not None:
        reason = f"the command failed with exit status {status[1]}"
    if at is None:
        return BuildError(f"{dockerfile.path}: {reason}")
    excerpt = dockerfile.excerpt(at.line, at.last_line)
    return BuildError(f"{dockerfile.path}:{at.line}: {at.keyword}: {reason}\n{excerpt}")
