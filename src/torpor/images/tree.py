"""The merged file tree of an image's layers, held as metadata while contents wait in a spool.

Layers are applied lowest first. Nothing of an untrusted archive touches the host's paths until the
whole tree is known: contents are files named by number, and `write_out` then creates each node in
a directory of its own making, where no parent can be a link. Symbolic links on the way to an entry
are followed inside the tree, an absolute one from the image's root, as a container engine does.

Whiteouts (OCI image specification, "Layer Filesystem Changeset"): `.wh.NAME` hides NAME of lower
layers, `.wh..wh..opq` everything below its directory; neither hides what its own layer brings.
"""

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from torpor.images.errors import BadArchiveError, ImageError
from torpor.images.limits import Budget
from torpor.images.tar import DEVICES, Entry, Kind, display, split_path

MAX_LINK_HOPS = 40
"""As many symbolic links as Linux follows in one path (path_resolution(7))."""

_WHITEOUT = b".wh."
_OPAQUE = b".wh..wh..opq"
_MODES = {
    Kind.FILE: stat.S_IFREG,
    Kind.DIRECTORY: stat.S_IFDIR,
    Kind.SYMBOLIC_LINK: stat.S_IFLNK,
    Kind.CHARACTER_DEVICE: stat.S_IFCHR,
    Kind.BLOCK_DEVICE: stat.S_IFBLK,
    Kind.FIFO: stat.S_IFIFO,
}


@dataclass(slots=True, eq=False)
class Node:
    """An inode. `content` numbers a spooled file; `links` counts its names.

    `below` is the last layer that brought something into this directory or further down.
    """

    kind: Kind
    mode: int = 0o755
    uid: int = 0
    gid: int = 0
    mtime_ns: int = 0
    size_bytes: int = 0
    content: int = -1
    link_target: bytes = b""
    device: tuple[int, int] = (0, 0)
    xattrs: dict[bytes, bytes] | None = None
    children: dict[bytes, "Node"] = field(default_factory=dict)
    links: int = 1
    below: int = -1


@dataclass(frozen=True, slots=True)
class TreeSummary:
    """What was written out."""

    inodes: int
    files_bytes: int


class Tree:
    """Applies entries of layers and writes the result out. `spool` is an empty directory."""

    def __init__(self, spool: Path, budget: Budget) -> None:
        self._spool = spool
        self._budget = budget
        self._next_content = 0
        self._layer = -1
        self._whiteouts = False
        # What the current layer has said already: names it brought and whiteouts, by directory.
        self._said: set[tuple[Node, bytes]] = set()
        self.root = Node(Kind.DIRECTORY)

    # Applying -----------------------------------------------------------------------------------

    def apply(
        self, entry: Entry, data: Iterator[bytes], layer: int, origin: str, *, whiteouts: bool
    ) -> None:
        """Applies one entry of layer number `layer`. Raises BadArchiveError naming `origin`."""
        if layer != self._layer:
            self._layer = layer
            self._said.clear()
        self._whiteouts = whiteouts
        if not entry.path:
            if entry.kind is not Kind.DIRECTORY:
                raise BadArchiveError(f"{origin}: the root is a {entry.kind.value}")
            self._set(self.root, entry)
            return
        name = entry.path[-1]
        parents, parent_names = self._directory(entry.path[:-1], origin)
        parent = parents[-1]
        length = sum(len(part) + 1 for part in parent_names) + len(name)
        if length > self._budget.limits.max_path_bytes:
            raise BadArchiveError(f"{origin}: {entry.display!r}: too long after its links")
        existing = parent.children.get(name)
        both_directories = (
            existing is not None
            and existing.kind is Kind.DIRECTORY
            and entry.kind is Kind.DIRECTORY
        )
        said_before = (parent, name) in self._said or (
            existing is not None and existing.kind is Kind.DIRECTORY and existing.below == layer
        )
        if said_before and not both_directories:
            raise BadArchiveError(f"{origin}: {entry.display!r} appears twice in one layer")
        self._said.add((parent, name))
        if whiteouts and name.startswith(_WHITEOUT):
            self._whiteout(parent, name, f"{origin}: {entry.display!r}")
            return
        for ancestor in parents:
            ancestor.below = layer
        if existing is not None and both_directories:
            self._set(existing, entry)
            return
        if entry.kind is Kind.HARD_LINK:
            node = self._link_source(entry, origin)
            node.links += 1
        else:
            node = Node(entry.kind)
            self._set(node, entry)
            if entry.kind is Kind.FILE and entry.size_bytes:
                node.content = self._next_content
                self._next_content += 1
                with self._spooled(node).open("xb") as file:
                    for chunk in data:
                        file.write(chunk)
        if existing is not None:
            self._drop(existing)
        parent.children[name] = node

    @staticmethod
    def _set(node: Node, entry: Entry) -> None:
        node.mode = entry.mode
        node.uid = entry.uid
        node.gid = entry.gid
        node.mtime_ns = entry.mtime_ns
        node.size_bytes = entry.size_bytes
        node.link_target = entry.link_target
        node.device = entry.device
        node.xattrs = entry.xattrs or None

    def _link_source(self, entry: Entry, origin: str) -> Node:
        target = split_path(entry.link_target, self._budget, f"{origin}: {entry.display!r}")
        node = self._find(target, origin)
        if node is None:
            raise BadArchiveError(
                f"{origin}: {entry.display!r} is a hard link to {display(target)!r}, "
                "which does not exist"
            )
        if node.kind is Kind.DIRECTORY:
            raise BadArchiveError(
                f"{origin}: {entry.display!r} is a hard link to directory {display(target)!r}"
            )
        return node

    def _find(self, path: tuple[bytes, ...], origin: str) -> Node | None:
        if not path:
            return self.root
        found = self._walk(path[:-1], origin, create=False)
        return found[0][-1].children.get(path[-1]) if found is not None else None

    def _directory(self, path: tuple[bytes, ...], origin: str) -> tuple[list[Node], list[bytes]]:
        found = self._walk(path, origin, create=True)
        assert found is not None, "a walk that creates finds"  # noqa: S101
        return found

    def _walk(
        self, path: tuple[bytes, ...], origin: str, *, create: bool
    ) -> tuple[list[Node], list[bytes]] | None:
        """The directories from the root to `path`, links followed, and the names between them.

        What is missing is created, or else the answer is None.
        """
        stack = [self.root]
        names: list[bytes] = []
        todo = list(reversed(path))
        hops = 0
        while todo:
            name = todo.pop()
            if name in (b"", b"."):
                continue
            if name == b"..":  # of a symbolic link's target; the root is its own parent
                if names:
                    stack.pop()
                    names.pop()
                continue
            node = stack[-1].children.get(name)
            if node is None:
                if not create:
                    return None
                if self._whiteouts and name.startswith(_WHITEOUT):
                    raise BadArchiveError(
                        f"{origin}: {display(path)!r}: a whiteout can't be a directory"
                    )
                self._budget.take_entry(origin, device=False)
                node = Node(Kind.DIRECTORY)
                stack[-1].children[name] = node
            if node.kind is Kind.SYMBOLIC_LINK:
                hops += 1
                if hops > MAX_LINK_HOPS:
                    raise BadArchiveError(
                        f"{origin}: {display(path)!r} leads through more than {MAX_LINK_HOPS} links"
                    )
                if node.link_target.startswith(b"/"):
                    del stack[1:], names[:]
                todo.extend(reversed(node.link_target.split(b"/")))
            elif node.kind is Kind.DIRECTORY:
                stack.append(node)
                names.append(name)
                if len(names) > self._budget.limits.max_path_bytes // 2:
                    raise BadArchiveError(f"{origin}: {display(path)!r} is too deep")
            elif not create:
                return None
            else:
                raise BadArchiveError(
                    f"{origin}: {display((*names, name))!r} is a {node.kind.value}, "
                    "yet entries lie below it"
                )
        return stack, names

    def _whiteout(self, parent: Node, name: bytes, origin: str) -> None:
        if name == _OPAQUE:
            for child_name in list(parent.children):
                self._hide(parent, child_name)
            return
        hidden = name.removeprefix(_WHITEOUT)
        if hidden.startswith(_WHITEOUT):
            return  # AUFS's own bookkeeping (.wh..wh.plnk and the like), of no meaning here
        if hidden in (b"", b".", b".."):
            raise BadArchiveError(f"{origin}: this whiteout hides no name")
        self._hide(parent, hidden)

    def _hide(self, parent: Node, name: bytes) -> None:
        """Removes what lower layers have under `name`; what this layer itself brought stays."""
        todo = [(parent, name)]
        while todo:
            parent, name = todo.pop()
            node = parent.children.get(name)
            if node is None:
                continue
            if (parent, name) in self._said or node.below == self._layer:
                todo.extend((node, child) for child in node.children)
            else:
                del parent.children[name]
                self._drop(node)

    def _drop(self, node: Node) -> None:
        """Forgets a node that lost a name, and below it everything, with the contents."""
        todo = [node]
        while todo:
            node = todo.pop()
            node.links -= 1
            if node.links:
                continue
            todo.extend(node.children.values())
            if node.content >= 0:
                self._spooled(node).unlink()

    def _spooled(self, node: Node) -> Path:
        return self._spool / str(node.content)

    # Writing out --------------------------------------------------------------------------------

    def drop_if_empty(self, *names: bytes) -> None:
        """Removes an empty directory that a build's mounts left behind."""
        parent = self.root
        for name in names[:-1]:
            found = parent.children.get(name)
            if found is None:
                return
            parent = found
        node = parent.children.get(names[-1])
        if node is not None and node.kind is Kind.DIRECTORY and not node.children:
            del parent.children[names[-1]]

    def write_out(self, directory: Path) -> TreeSummary:
        """Creates the tree below `directory` (new), moving the spooled contents there. Needs root.

        Owners, modes, extended attributes, times and hard links are as the layers said.
        """
        directory.mkdir(mode=0o700)
        placed: dict[Node, bytes] = {}
        finish: list[tuple[bytes, Node]] = [(os.fsencode(directory), self.root)]
        at = 0
        inodes = 1
        files_bytes = 0
        while at < len(finish):
            path, node = finish[at]
            at += 1
            for name in sorted(node.children):
                child = node.children[name]
                child_path = path + b"/" + name
                if child in placed:
                    os.link(placed[child], child_path, follow_symlinks=False)
                    continue
                inodes += 1
                if child.kind is Kind.DIRECTORY:
                    os.mkdir(child_path, 0o700)  # noqa: PTH102 -- bytes, and hot
                    finish.append((child_path, child))
                    continue
                self._create(child, child_path)
                if child.links > 1:
                    placed[child] = child_path
                files_bytes += child.size_bytes
                _set_metadata(child_path, child)
        for path, node in reversed(finish):
            _set_metadata(path, node)
        return TreeSummary(inodes, files_bytes)

    def _create(self, node: Node, path: bytes) -> None:
        if node.kind is Kind.SYMBOLIC_LINK:
            os.symlink(node.link_target, path)  # noqa: PTH211 -- bytes
        elif node.kind is Kind.FILE and node.content >= 0:
            os.rename(os.fsencode(self._spooled(node)), path)  # noqa: PTH104 -- bytes
        else:
            device = os.makedev(*node.device) if node.kind in DEVICES else 0
            try:
                os.mknod(path, _MODES[node.kind] | 0o600, device)
            except PermissionError as error:
                raise ImageError(
                    f"can't create {node.kind.value} {node.device}: {error.strerror}; "
                    "this needs the right to make device nodes (CAP_MKNOD)"
                ) from error


def _set_metadata(path: bytes, node: Node) -> None:
    os.chown(path, node.uid, node.gid, follow_symlinks=False)
    if node.kind is not Kind.SYMBOLIC_LINK:
        os.chmod(path, node.mode)  # noqa: PTH101 -- bytes
    # After chown, which clears security.capability.
    for name, value in (node.xattrs or {}).items():
        try:
            os.setxattr(path, name, value, follow_symlinks=False)
        except OSError as error:
            raise ImageError(
                f"{display((path,))}: can't keep extended attribute {display((name,))}: "
                f"{error.strerror}; put the data directory on a file system that has it"
            ) from error
    os.utime(path, ns=(node.mtime_ns, node.mtime_ns), follow_symlinks=False)
