"""Images of the store, as the platform and as the control plane list them."""

from datetime import datetime
from typing import Any

import msgspec

from torpor.api.dispatch import RequestError
from torpor.api.operations import Call, operation
from torpor.api.wire import ImageAnswer, ImageTag, RegistryImage
from torpor.controller.requests import Request
from torpor.images.store import StoredImage

GROUP = "Images"


class TagOrDigest(Request, frozen=True):
    """An image by one of these."""

    tag: str | None = None
    digest: str | None = None


class StoreQuery(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Parameters of the platform."""

    tag: str | None = None
    digest: str | None = None


class ImageQuery(StoreQuery, frozen=True):
    """Parameters of platform and control plane, which share a path here.

    With `namespace` or `details` the control plane answers, else the platform.
    """

    namespace: list[str] = []
    details: bool | None = None


@operation("GET", "/v1/images", "get_images", "List images", group=GROUP, key="images",
           answer=(ImageAnswer, RegistryImage), query=ImageQuery, body=TagOrDigest,
           array=True)  # fmt: skip
async def get_images(call: Call) -> list[Any]:
    query = call.query
    if query.namespace or query.details is not None:
        if query.tag is not None or query.digest is not None:
            raise RequestError(400, "'tag' and 'digest' do not go with 'namespace' and 'details'")
        return _registry(call, query.namespace, details=bool(query.details))
    return _platform(call)


@operation("GET", "/v1/image-store", "get_image_store", "List images in the store", group=GROUP,
           key="images", answer=ImageAnswer, query=StoreQuery, body=TagOrDigest,
           array=True)  # fmt: skip
@operation("GET", "/v1/images/list", "get_images_list", "List images (old path)", group=GROUP,
           key="images", answer=ImageAnswer, query=StoreQuery, body=TagOrDigest,
           array=True)  # fmt: skip
async def get_image_store(call: Call) -> list[Any]:
    return _platform(call)


def _platform(call: Call) -> list[ImageAnswer]:
    wanted = [(each.tag, each.digest) for each in call.body or ()]
    if call.query.tag is not None or call.query.digest is not None:
        wanted.append((call.query.tag, call.query.digest))
    found = call.service.controller.images.images()
    return [_answer(image) for image in found if _wanted(image, wanted)]


def _wanted(image: StoredImage, wanted: list[tuple[str | None, str | None]]) -> bool:
    if not wanted:
        return True
    names = {*image.tags, *(tag.removesuffix(":latest") for tag in image.tags)}
    return any(
        (tag is None or tag in names) and (digest is None or digest == image.digest)
        for tag, digest in wanted
    )


def _answer(image: StoredImage) -> ImageAnswer:
    name = image.tags[0].rpartition(":")[0] if image.tags else "untagged"
    return ImageAnswer(
        url=f"{name}@{image.digest}",
        created_at=datetime.fromisoformat(image.created),
        initrd_or_rom=False,
        size_in_bytes=image.size_bytes,
        args=image.config.argv(),
        env=dict(entry.split("=", 1) for entry in image.config.env),
        tags=list(image.tags),
        users=[user for user in image.users if not user.startswith(("tag/", "torpord/"))],
        persistent=bool(image.tags),
    )


def _registry(call: Call, namespaces: list[str], *, details: bool) -> list[RegistryImage]:
    """By repository; a name without a namespace is in `official`, as clients put it."""
    repositories: dict[str, list[ImageTag]] = {}
    for image in call.service.controller.images.images():
        for reference in image.tags:
            repository, _, tag = reference.rpartition(":")
            full = repository if "/" in repository else f"official/{repository}"
            if namespaces and full.split("/")[0] not in namespaces:
                continue
            repositories.setdefault(full, []).append(
                ImageTag(
                    name=tag,
                    digest=image.digest,
                    size=image.size_bytes,
                    push_time=datetime.fromisoformat(image.created),
                )
            )
    return [
        RegistryImage(name=name, tags=tags if details else None)
        for name, tags in sorted(repositories.items())
    ]
