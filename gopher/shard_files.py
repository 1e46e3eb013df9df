"""The files of a checkpoint read by torch.distributed.checkpoint without running any code that stands in them."""

import io
import pickle
from pathlib import Path
from typing import Any

from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.state_dict_loader import load

from gopher.errors import GopherError
from gopher.shard import DTYPES


def load_into(state: dict[str, Any], path: Path, **how: Any) -> None:
    """Fill the tensors of `state` from the checkpoint at `path`; `how` as in torch's `load`.

    Raises `GopherError` when the index holds anything else than an index.
    """
    reader = SafeReader(path)
    reader.read_metadata()  # here, because torch's loader would bury a refusal under a fallback
    load(state, storage_reader=reader, **how)


class SafeReader(FileSystemReader):
    """torch reads a checkpoint's index by pickle, which can run anything; this reader admits only the index's types."""

    def read_metadata(self, *_args: Any, **_kwargs: Any) -> Metadata:
        metadata: Metadata = IndexUnpickler(io.BytesIO((Path(self.path) / ".metadata").read_bytes())).load()
        if metadata.storage_meta is None:
            raise GopherError(f"{self.path} has no storage index; it was not written by this program")
        metadata.storage_meta.load_id = self.load_id
        return metadata


class IndexUnpickler(pickle.Unpickler):
    """Unpickles the plain containers of torch's checkpoint index and refuses every other name."""

    ALLOWED = {
        "pathlib": {"PosixPath", "WindowsPath"},
        "pathlib._local": {"PosixPath", "WindowsPath"},  # Python 3.13
        "torch": {"Size", *DTYPES},
        "torch.serialization": {"_get_layout"},
        "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
        "torch.distributed.checkpoint.metadata": {
            "BytesStorageMetadata",
            "ChunkStorageMetadata",
            "Metadata",
            "MetadataIndex",
            "StorageMeta",
            "TensorProperties",
            "TensorStorageMetadata",
            "_MEM_FORMAT_ENCODING",
        },
    }

    def find_class(self, module: str, name: str) -> Any:
        if name not in self.ALLOWED.get(module, ()):
            raise GopherError(
                f"the checkpoint index names {module}.{name}, which no checkpoint of this program has; do not use this file"
            )
        return super().find_class(module, name)
