"""Images are kept for as long as something needs them, and no longer."""

from pathlib import Path

import pytest

from tests.controller.conftest import running
from tests.images.single import add_single_file_image
from torpor.controller import Controller
from torpor.controller.model import config_of
from torpor.controller.requests import CreateInstance
from torpor.store import InstanceRow, Owner

pytestmark = pytest.mark.anyio


async def make(controller: Controller, owner: Owner, **spec: object) -> InstanceRow:
    request = CreateInstance(image="web", **spec)  # type: ignore[arg-type]
    (row,) = await controller.create(owner, [request])
    assert isinstance(row, InstanceRow), row
    return row


def referred(controller: Controller) -> list[str]:
    return controller.images.referred("torpord")


async def test_an_image_is_released_when_its_last_instance_is_gone(
    controller: Controller, owner: Owner
) -> None:
    rows = [await make(controller, owner) for _ in range(3)]
    digest = config_of(rows[0].config).image_digest
    for row in rows:
        assert await controller.machines.release_unused(0) == 0
        assert referred(controller) == [digest]
        await controller.delete(row)
    assert await controller.machines.release_unused(3600) == 0, "it was asked for just now"
    assert await controller.machines.release_unused(0) == 1
    assert referred(controller) == []
    row = await make(controller, owner)
    assert referred(controller) == [digest], "needed again"
    await controller.delete(row)


async def test_templates_need_their_image(controller: Controller, owner: Owner) -> None:
    first = await running(controller, owner, "first")
    await controller.delete(first)
    second = await running(controller, owner, "second")
    await controller.delete(second)
    (template,) = controller.store.bases.unneeded()
    assert await controller.machines.release_unused(0) == 0
    await controller.store.bases.drop(template)
    assert await controller.machines.release_unused(0) == 1


async def test_an_image_that_waits_for_a_stop_is_kept_and_used_then(
    controller: Controller, owner: Owner, tmp_path: Path
) -> None:
    add_single_file_image(tmp_path, "next")
    row = await running(controller, owner, "web")
    former = config_of(row.config).image_digest
    await controller.update(row, "image", "set", "next")
    wanted = controller.images.resolve("next").digest
    assert wanted != former
    assert await controller.machines.release_unused(0) == 0
    assert set(referred(controller)) == {former, wanted}
    await controller.lifecycle.stop(row, force=True)
    assert await controller.wait(row, "stopped", 30) == ("stopped", True)
    stopped = controller.store.instances.by_id(row.id)
    assert stopped is not None
    assert config_of(stopped.config).image_digest == wanted
    assert await controller.machines.release_unused(0) == 1
    assert referred(controller) == [wanted]
