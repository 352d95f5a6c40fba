"""Backend ``cephfs``: a file system of Ceph, mounted by the kernel or by FUSE."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

from pvetools.storage import ceph, secrets
from pvetools.storage.ceph import Cluster
from pvetools.storage.mounted import MountedStorage
from pvetools.storage.mounts import Mount, Wanted
from pvetools.system import files
from pvetools.system.errors import PveError, Refused

_FUSE = "fuse.ceph-fuse"
# Mount options for which the storage has options of its own.
_OWN = frozenset({"name", "secret", "secretfile", "mds_namespace", "fs", "conf"})


class CephFs(MountedStorage):
    """One storage of type ``cephfs``."""

    info = MountedStorage.info._replace(alloc=frozenset(), resize=frozenset(), snapshot=frozenset(), base=frozenset())

    @cached_property
    def cluster(self) -> Cluster:
        return ceph.cluster(self.definition)

    @property
    def folder(self) -> str:
        """The folder of the file system that is mounted."""
        return self.definition.options.subdir or "/"

    @cached_property
    def _secret(self) -> Path | None:
        """The file with the key, where the storage has one; a keyring of this host's cluster is found by itself."""
        place = secrets.path(self.id, self.definition.type, "keyring")
        return place if place.exists() else None

    def reach(self) -> None:
        self._check_secret()
        ceph.reach(self.cluster)

    def check(self) -> None:
        for word in self.words:
            if (key := word.partition("=")[0]) in _OWN:
                raise Refused(
                    f"storage '{self.id}': mount option '{key}' can't be served: the storage has options for it"
                )

    def wanted(self, point: Path) -> Wanted:
        return self._by_fuse(point) if self.definition.options.fuse else self._by_kernel(point)

    def _by_kernel(self, point: Path) -> Wanted:
        cluster = self.cluster
        options = [f"name={cluster.user}", f"conf={cluster.config}"]
        options += [f"secretfile={self._secret}"] if self._secret else []
        options += [f"mds_namespace={self._file_system}"] if self._file_system else []
        source = f"{','.join(cluster.addresses)}:{self.folder}"
        return Wanted(point, source, "ceph", (*options, *self.words), self.creates, self._is_kernels)

    def _is_kernels(self, mount: Mount) -> bool:
        """Whether a mount is ours: the kernel shows the monitors as addresses, whatever they were called.

        One that was made with newer words is shown as ``USER@CLUSTER.NAME=FOLDER``.
        """
        return mount.kind == "ceph" and mount.source.endswith((f":{self.folder}", f"={self.folder}"))

    def _by_fuse(self, point: Path) -> Wanted:
        cluster = self.cluster
        words = ["ceph-fuse", "--conf", str(cluster.config), "--name", f"client.{cluster.user}", "-r", self.folder]
        words += ["-m", ",".join(cluster.addresses)] if cluster.monitors else []
        words += ["--keyfile", str(self._secret)] if self._secret else []
        words += ["--client_fs", self._file_system] if self._file_system else []
        words += [str(point), *(["-o", ",".join(self.words)] if self.words else [])]
        return Wanted(
            point, "ceph-fuse", _FUSE, create=self.creates, ours=lambda mount: mount.kind == _FUSE, command=tuple(words)
        )

    @property
    def _file_system(self) -> str:
        given = self.definition.options.fs_name
        return ceph.check_name(self.id, "fs-name", given) if given else ""

    def _check_secret(self) -> None:
        """The file must hold the key alone; out of a whole keyring, which other tools use, it is taken.

        Raises:
            PveError: there is no key of the user in it.
        """
        place = self._secret
        text = files.read_text(place) if place else None
        if place is None or text is None:
            return
        key = ceph.key_of(self.cluster.user, text)
        if key is None:
            raise PveError(f"'{place}' holds no key of user 'client.{self.cluster.user}'")
        if text.strip() != key:
            files.write_atomic(place, f"{key}\n", mode=0o600)
