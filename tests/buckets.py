"""An object store in this process, which can be away."""

from typing import Any, ClassVar

from fsspec.implementations.memory import MemoryFileSystem

from lmsearch.store.artifacts import BucketObjects


class Bucket(MemoryFileSystem):  # type: ignore[misc]
    """Objects in memory, of its own for each instance; `is_away` makes every call fail as by a lost network."""

    cachable = False
    store: dict[str, Any]
    pseudo_dirs: list[str]
    calls: ClassVar[tuple[str, ...]] = ("pipe_file", "put_file", "get_file", "cat_file", "ls", "rm_file")

    def __init__(self) -> None:
        super().__init__()
        self.store, self.pseudo_dirs = {}, [""]
        self.is_away = False
        for name in self.calls:
            setattr(self, name, self._unless_away(getattr(self, name)))

    def _unless_away(self, method: Any) -> Any:
        def called(*args: Any, **options: Any) -> Any:
            if self.is_away:
                raise RuntimeError("Could not connect to the endpoint URL")
            return method(*args, **options)

        return called

    def objects(self) -> BucketObjects:
        return BucketObjects(self, "memory://bucket/lm")

    def names(self) -> list[str]:
        """Give the names of all objects."""
        return sorted(name.removeprefix("/bucket/lm/") for name in self.store)
